"""The same promises of every runtime, with models that its own library trained and answered for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from inference.errors import ModelError, PredictionFailed
from inference.models import LoadedModel, score_rows
from inference.models.formats import FORMATS, require_model_file
from inference.models.loaded import load_version
from inference.models.runtimes import LoadOptions
from inference.schema import Block, DType, rows_in
from tests.support.redis_server import missing
from tests.support.runtimes.cases import answered, asked, train

#: the design's tolerance: float32 matrix products differ in the last bits with the size of a micro-batch
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
#: runtime → what it needs
RUNTIMES = {"saved_model": "tensorflow", "onnx": "onnxruntime", "skops": "skops", "pickle": "sklearn"}
OPTIONS = LoadOptions(allow_code=True)


@dataclass(frozen=True)
class Trained:
    """The models of one runtime, a folder for each case; tests must not change them."""

    runtime: str
    folder: Path

    def case(self, name: str) -> Path:
        if not (self.folder / name).is_dir():
            pytest.skip(f"{self.runtime} cannot express a model of {name!r}")
        return self.folder / name

    def load(self, name: str) -> LoadedModel:
        folder = self.case(name)
        return load_version(name, folder, 1, folder / "1", options=OPTIONS, warm_up_rows=(1, 8))


@pytest.fixture(scope="module", params=sorted(RUNTIMES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    library = RUNTIMES[request.param]
    if find_spec(library) is None:
        missing(library)
    folder = tmp_path_factory.mktemp(request.param)
    train(request.param, folder)
    return Trained(request.param, folder)


def inputs_of(loaded: LoadedModel, folder: Path) -> Block:
    batch = asked(folder)
    loaded.vectoriser.check_schema(batch.schema, "the table")
    rows = loaded.vectoriser.features_from_arrow(batch)
    assert not rows.rejected.any(), rows.reasons
    return loaded.vectoriser.inputs(rows.block)


def part(block: Block, start: int, stop: int) -> Block:
    return {name: values[start:stop] for name, values in block.items()}


def assert_same(got: Block, wanted: dict[str, np.ndarray]) -> None:
    assert sorted(got) == sorted(wanted)
    for name, values in wanted.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(got[name], values, **TOLERANCE)
        else:
            assert got[name].tolist() == values.tolist()


def test_every_format_is_found_by_its_file(trained: Trained) -> None:
    assert require_model_file(trained.case("plain") / "1").format.name == trained.runtime


@pytest.mark.parametrize("case", ["plain", "several", "text"])
def test_predictions_are_the_librarys_own(trained: Trained, case: str) -> None:
    folder = trained.case(case)
    loaded = trained.load(case)
    assert_same(loaded.predict(inputs_of(loaded, folder)), answered(folder))


@pytest.mark.parametrize("case", ["plain", "several", "text"])
def test_the_signature_tells_what_comes_out(trained: Trained, case: str) -> None:
    folder = trained.case(case)
    loaded = trained.load(case)
    outputs = loaded.predict(inputs_of(loaded, folder))
    assert [spec.name for spec in loaded.record.signature.outputs] == list(outputs)
    for spec in loaded.record.signature.outputs:
        values = outputs[spec.name]
        assert values.shape[1:] == spec.shape
        if spec.dtype is DType.STRING:
            assert all(type(value) is str for value in values.ravel())
        else:
            assert values.dtype == spec.dtype.numpy


@pytest.mark.parametrize("case", ["plain", "several", "text"])
def test_a_row_alone_gets_the_answer_that_it_gets_among_many(trained: Trained, case: str) -> None:
    loaded = trained.load(case)
    inputs = inputs_of(loaded, trained.case(case))
    together = loaded.predict(inputs)
    for row in (0, 1, rows_in(inputs) - 1):
        assert_same(loaded.predict(part(inputs, row, row + 1)), part(together, row, row + 1))


def test_any_number_of_rows_is_taken(trained: Trained) -> None:
    loaded = trained.load("plain")
    inputs = inputs_of(loaded, trained.case("plain"))
    for rows in (1, 2, 3, 7, 64, 257):
        assert rows_in(loaded.predict(part(inputs, 0, rows))) == rows


def test_inputs_of_another_shape_are_an_error_of_the_prediction(trained: Trained) -> None:
    loaded = trained.load("plain")
    wrong = {spec.name: np.zeros((3, 9), spec.dtype.numpy) for spec in loaded.runtime.signature.inputs}
    with pytest.raises(PredictionFailed) as caught:
        loaded.runtime.predict(wrong)
    assert "\n" not in caught.value.message


def test_a_row_that_is_no_number_fails_alone(trained: Trained) -> None:
    loaded = trained.load("plain")
    x = np.ones((40, 4), np.float32)
    x[[3, 17], 1] = np.nan
    scored = score_rows(loaded, {f"f{i}": x[:, i] for i in range(4)})
    assert np.flatnonzero(scored.failed).tolist() == [3, 17]


def test_a_model_that_answers_no_numbers_is_refused_at_warm_up(trained: Trained) -> None:
    with pytest.raises(ModelError, match="not a finite number"):
        trained.load("broken")


def test_a_damaged_file_is_refused_in_one_line(trained: Trained, tmp_path: Path) -> None:
    whole = require_model_file(trained.case("plain") / "1").file
    (tmp_path / whole.name).write_bytes(b"PK no model at all")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_version("m", tmp_path, 1, tmp_path, options=OPTIONS)
    assert "\n" not in caught.value.message
    assert whole.name in caught.value.message or str(tmp_path) in caught.value.message


def test_the_device_is_named_for_the_memory_of_micro_batches(trained: Trained) -> None:
    assert trained.load("plain").runtime.device


def test_every_format_is_under_this_contract() -> None:
    assert set(RUNTIMES) == {one.name for one in FORMATS}
