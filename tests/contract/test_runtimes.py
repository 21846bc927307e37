"""The same promises of every runtime, with models that its own library trained and answered for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from inference.errors import ModelError, PredictionFailed
from inference.models import LoadedModel, score_rows
from inference.models.formats import FORMATS, require_model_file
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions
from inference.schema import Block, DType, rows_in
from tests.support.grpc_engine import GrpcEngine
from tests.support.open_inference import OpenInferenceServer
from tests.support.redis_server import missing
from tests.support.runtimes import remote_cases
from tests.support.runtimes.cases import ROOT, answered, asked, train
from tests.support.tensorflow_serving import TensorFlowServingServer

#: the design's tolerance: float32 matrix products differ in the last bits with the size of a micro-batch
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
#: format → what it needs
LIBRARIES = {
    "saved_model": "tensorflow",
    "onnx": "onnxruntime",
    "skops": "skops",
    "pickle": "sklearn",
    "keras": "keras",
    "torch_export": "torch",
    "remote": "httpx",
}
#: an engine is asked in several ways: what serves, and what `remote.toml` says of it
ENGINES: dict[str, tuple[type[TensorFlowServingServer | GrpcEngine], str]] = {
    "remote-columns": (TensorFlowServingServer, 'protocol = "tensorflow-serving"'),
    "remote-rows": (TensorFlowServingServer, 'protocol = "tensorflow-serving"\nform = "rows"'),
    "remote-open": (OpenInferenceServer, 'protocol = "open-inference"'),
    "remote-grpc": (GrpcEngine, 'protocol = "tensorflow-serving-grpc"'),
    "remote-open_grpc": (GrpcEngine, 'protocol = "open-inference-grpc"'),
}
RUNTIMES = [*sorted(set(LIBRARIES) - {"remote"}), *ENGINES]
#: their libraries take many seconds to train with
_LONG = {"keras", "torch_export"}
#: formats whose loading may run their author's code; the others must do without
RUN_CODE = {"pickle", "torch_export"}
CASES = ("plain", "several", "text")
#: (format, case): PyTorch and JAX have no tensors of text
INEXPRESSIBLE = {("torch_export", "text")}
if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    INEXPRESSIBLE.add(("keras", "text"))


@dataclass(frozen=True)
class Trained:
    """The models of one runtime, a folder for each case; tests must not change them."""

    runtime: str
    folder: Path

    @property
    def format(self) -> str:
        return self.runtime.partition("-")[0]

    @property
    def cases(self) -> list[Path]:
        """The folders of the models that the library can express."""
        return [self.folder / name for name in CASES if (self.format, name) not in INEXPRESSIBLE]

    def load(self, name: str) -> LoadedModel:
        folder = self.folder / name
        return load_version(name, folder, 1, folder / "1", options=self.options, warm_up_rows=(1, 8))

    @property
    def options(self) -> LoadOptions:
        return LoadOptions(allow_code=self.format in RUN_CODE)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in _LONG else []) for name in RUNTIMES],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    own = Trained(request.param, tmp_path_factory.mktemp(request.param))
    if own.format == "remote":
        kind, lines = ENGINES[own.runtime]
        with kind(remote_cases.models()) as server:
            remote_cases.write_folders(own.folder, server.url, lines)
            yield own
        return
    library = LIBRARIES[own.format]
    if find_spec(library) is None:
        missing(library)
    train(own.format, own.folder)
    yield own


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
    assert require_model_file(trained.folder / "plain" / "1").format.name == trained.format
    assert trained.load("plain").record.format == trained.format


def test_predictions_are_the_librarys_own(trained: Trained) -> None:
    for folder in trained.cases:
        loaded = trained.load(folder.name)
        assert_same(loaded.predict(inputs_of(loaded, folder)), answered(folder))


def test_the_signature_tells_what_comes_out(trained: Trained) -> None:
    for folder in trained.cases:
        loaded = trained.load(folder.name)
        assert_as_declared(loaded, loaded.predict(inputs_of(loaded, folder)))


def assert_as_declared(loaded: LoadedModel, outputs: Block) -> None:
    assert [spec.name for spec in loaded.record.signature.outputs] == list(outputs)
    for spec in loaded.record.signature.outputs:
        values = outputs[spec.name]
        assert values.shape[1:] == spec.shape
        if spec.dtype is DType.STRING:
            assert all(type(value) is str for value in values.ravel())
        else:
            assert values.dtype == spec.dtype.numpy


def test_a_row_alone_gets_the_answer_that_it_gets_among_many(trained: Trained) -> None:
    for folder in trained.cases:
        loaded = trained.load(folder.name)
        inputs = inputs_of(loaded, folder)
        together = loaded.predict(inputs)
        for row in (0, 1, rows_in(inputs) - 1):
            assert_same(loaded.predict(part(inputs, row, row + 1)), part(together, row, row + 1))


def test_any_number_of_rows_is_taken(trained: Trained) -> None:
    loaded = trained.load("plain")
    inputs = inputs_of(loaded, trained.folder / "plain")
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
    whole = require_model_file(trained.folder / "plain" / "1").file
    (tmp_path / whole.name).write_bytes(b"PK no model at all")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_version("m", tmp_path, 1, tmp_path, options=trained.options)
    assert "\n" not in caught.value.message
    assert whole.name in caught.value.message or str(tmp_path) in caught.value.message


def test_the_device_is_named_for_the_memory_of_micro_batches(trained: Trained) -> None:
    assert trained.load("plain").runtime.device


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_keras_keeps_the_contract_over_its_other_backends(backend: str) -> None:
    """A process has one backend: this one's is TensorFlow."""
    if find_spec(backend) is None:
        missing(backend)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", "keras and not backends", __file__],
        env=os.environ | {"KERAS_BACKEND": backend}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "test_predictions_are_the_librarys_own[keras] PASSED" in done.stdout


@pytest.mark.parametrize("format_", FORMATS, ids=lambda one: one.name)
def test_only_what_is_known_to_run_code_needs_leave(format_) -> None:
    assert bool(format_.runs_code) == (format_.name in RUN_CODE)


def test_every_format_is_under_this_contract() -> None:
    assert set(LIBRARIES) == {one.name for one in FORMATS}
