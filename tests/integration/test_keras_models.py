"""What is Keras' own: safe mode, models that do not say what they take, what is kept beside weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import ModelError
from inference.models.loading import load_version
from inference.schema import DType, TensorSpec

pytestmark = [
    pytest.mark.integration,
    # Keras 3.15 over numpy 2, when it saves
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def keras() -> Any:
    # imported here: it takes four seconds, and each process that runs tests reads every file
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return pytest.importorskip("keras", reason="forecache[keras] is not installed")


def home(keras: Any) -> Any:
    """Return a model of a class that nobody else knows."""

    class Home(keras.Model):
        def __init__(self, **more: object) -> None:
            super().__init__(**more)
            self.dense = keras.layers.Dense(1)

        def call(self, x: object) -> object:
            return self.dense(x)

    return Home()


def test_a_layer_that_holds_code_is_refused_and_not_run(keras: Any, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    code = f"lambda x: (open({str(proof)!r}, 'w'), x)[1]"
    x = keras.Input((2,))
    model = keras.Model(x, keras.layers.Lambda(eval(code), output_shape=(2,))(x))
    proof.unlink(missing_ok=True)  # building it ran it once
    model.save(tmp_path / "m.keras")
    proof.unlink(missing_ok=True)
    with pytest.raises(ModelError, match="cannot be loaded as a Keras model") as caught:
        load_version("m", tmp_path, 1, tmp_path)
    assert "\n" not in caught.value.message
    assert not proof.exists()


def test_a_class_that_is_not_known_here_is_refused(keras: Any, tmp_path: Path) -> None:
    model = home(keras)
    model(np.zeros((1, 2), np.float32))
    model.save(tmp_path / "m.keras")
    with pytest.raises(ModelError, match="cannot be loaded as a Keras model"):
        load_version("m", tmp_path, 1, tmp_path)


def test_what_was_adapted_to_the_data_and_dropout_behave_as_when_predicting(keras: Any, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(3, 2, (40, 2)).astype(np.float32)
    normalise = keras.layers.Normalization()
    normalise.adapt(rows)
    model = keras.Sequential([keras.Input((2,), name="x"), normalise, keras.layers.Dropout(0.9), keras.layers.Dense(1)])
    model.save(tmp_path / "m.keras")
    loaded = load_version("m", tmp_path, 1, tmp_path)
    assert loaded.record.signature.inputs == (TensorSpec("x", DType.FLOAT32, (2,)),)
    (answer,) = loaded.predict({"x": rows}).values()
    np.testing.assert_allclose(answer, model.predict(rows, verbose=0)[:, 0], rtol=1e-5, atol=1e-6)


def test_one_list_of_inputs_is_filled_by_name(keras: Any, tmp_path: Path) -> None:
    second, first = keras.Input((1,), name="b"), keras.Input((1,), name="a")
    model = keras.Model([second, first], keras.layers.Subtract(name="y")([second, first]))
    model.save(tmp_path / "m.keras")
    loaded = load_version("m", tmp_path, 1, tmp_path)
    rows = {"a": np.float32([1, 2]), "b": np.float32([10, 20])}
    assert loaded.predict(loaded.vectoriser.inputs(rows))["y"].tolist() == [9, 18]
