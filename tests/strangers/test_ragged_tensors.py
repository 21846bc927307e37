"""Ragged and sparse tensors in a SavedModel's signature are refused by name; names that look like them are not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.models import inspect_versions

pytestmark = pytest.mark.slow

CASES = {
    "ragged_in": r"'r' and 'r_1' are the parts of a ragged tensor: export a function of dense, padded tensors",
    "ragged_in_beside": r"'r' and 'r_1' are the parts of a ragged tensor",
    "ragged_answer_for_each_value": r"'r' and 'r_1' are the parts of a ragged tensor",
    "deeper_ragged_in": r"'r', 'r_1' and 'r_2' are the parts of a ragged tensor",
    "sparse_in": r"'s', 's_1' and 's_2' are the parts of a sparse tensor",
    "ragged_out": r"output 'y' is ragged: export it dense \(\.to_tensor\(\)\)",
    "ragged_text_out": r"output 'y' is ragged: export it dense",
    "sparse_out": r"output 'y' is sparse: export it dense \(tf\.sparse\.to_dense\)",
}
GOOD = ["numbered_names", "numbered_names_beside_a_ragged_function"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tf = pytest.importorskip("tensorflow")
    folder = tmp_path_factory.mktemp("ragged")
    vector, number = tf.TensorSpec([None, 3], tf.float32, name="x"), tf.TensorSpec([None], tf.float32, name="z")
    ragged, text = tf.RaggedTensorSpec([None, None], tf.float32), tf.TensorSpec([None], tf.string, name="t")
    pair = [tf.TensorSpec([None], tf.float32, name="a"), tf.TensorSpec([None], tf.int64, name="a_1")]
    functions: dict[str, tuple[Any, list[Any]]] = {
        "ragged_in": (lambda r: tf.reduce_sum(r, axis=1), [ragged]),
        "ragged_in_beside": (lambda r, z: tf.reduce_sum(r, axis=1) + z, [ragged, number]),
        "ragged_answer_for_each_value": (lambda r: r.flat_values * 2.0, [ragged]),
        "deeper_ragged_in": (
            lambda r: tf.reduce_sum(r, axis=[1, 2]),
            [tf.RaggedTensorSpec([None, None, None], tf.float32)],
        ),
        "sparse_in": (lambda s: tf.sparse.reduce_sum(s, axis=1), [tf.SparseTensorSpec([None, 3], tf.float32)]),
        "ragged_out": (lambda x: tf.RaggedTensor.from_tensor(x, padding=0.0), [vector]),
        "ragged_text_out": (lambda t: tf.strings.split(t), [text]),
        "sparse_out": (lambda x: tf.sparse.from_dense(x), [vector]),
        "numbered_names": (lambda a, a_1: a + tf.cast(a_1, tf.float32), pair),
    }
    for name, (function, signature) in functions.items():
        module = tf.Module()
        module.serve = _named(tf, function, signature)
        tf.saved_model.save(module, str(folder / name / "1"), signatures={"serving_default": module.serve})
    module = tf.Module()
    module.serve = _named(tf, *functions["numbered_names"])
    module.other = _named(tf, *functions["ragged_in"])
    tf.saved_model.save(module, str(folder / GOOD[1] / "1"), signatures={"serving_default": module.serve})
    yield folder
    shutil.rmtree(folder)


def _named(tf: Any, function: Any, signature: list[Any]) -> Any:
    """Return a function of one output `y` whose arguments are called as those of `function`."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    scope: dict[str, Any] = {"function": function}
    exec(f"def serve({', '.join(names)}): return {{'y': function({', '.join(names)})}}", scope)
    return tf.function(scope["serve"], input_signature=signature, autograph=False)


@pytest.mark.parametrize("name", CASES)
def test_a_signature_with_ragged_or_sparse_tensors_is_refused_by_name(exported: Path, name: str) -> None:
    record = inspect_versions(exported / name, "latest")[1]
    assert record.state == "refused"
    assert re.search(CASES[name], record.error or ""), record.error


@pytest.mark.parametrize("name", GOOD)
def test_inputs_whose_names_only_look_like_parts_are_inputs(exported: Path, name: str) -> None:
    record = inspect_versions(exported / name, "latest")[1]
    assert (record.state, record.unproven) == ("ready", None)
    assert [spec.name for spec in record.signature.inputs] == ["a", "a_1"]
