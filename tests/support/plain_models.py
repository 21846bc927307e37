"""Pickled estimators that need no training, and no scikit-learn: who loads one spares the second of its import."""

from __future__ import annotations

import ctypes
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.models import write_features

#: a row whose feature has this value ends the process of a `Deadly` model
DEADLY = 13.0
FEATURES = [{"name": "x", "dtype": "float32"}]


class Times:
    """Multiplies by a number."""

    n_features_in_ = 1

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def predict(self, x: Any) -> np.ndarray:
        return np.asarray(x, np.float64)[:, 0] * self.factor


class Deadly(Times):
    """Reads what no process may read when it meets the deadly row, as broken native code does: a real SIGSEGV."""

    def predict(self, x: Any) -> np.ndarray:
        if (np.asarray(x)[:, 0] == DEADLY).any():
            ctypes.string_at(0)
        return super().predict(x)


class DeadlyToLoad(Times):
    """The same, of whoever loads it."""

    def __setstate__(self, state: Any) -> None:
        ctypes.string_at(0)


class Endless(Times):
    """Never comes to the end of its load."""

    def __setstate__(self, state: Any) -> None:
        threading.Event().wait()


class SlowSum:
    """Adds its features up, in calls that take so many seconds on whatever machine."""

    def __init__(self, features: int, seconds: float) -> None:
        self.n_features_in_ = features
        self.seconds = seconds

    def predict(self, x: Any) -> np.ndarray:
        time.sleep(self.seconds)
        return np.asarray(x, np.float64).sum(axis=1)


class WhoComputes(Times):
    """Answers with the id of the process that computes, after a moment in which another process could begin."""

    def predict(self, x: Any) -> np.ndarray:
        time.sleep(0.02)
        return np.full(len(x), float(os.getpid()))


def write_slow_sum_model(folder: Path, names: list[str], *, seconds: float) -> None:
    """Write version 1 of a model that adds its float features up, slowly; its settings need `allow_code`."""
    features = [{"name": name, "dtype": "float32"} for name in names]
    write_version(folder, 1, SlowSum(len(names), seconds), features)


def write_version(folder: Path, version: int, model: Any, features: list[dict[str, Any]] | None = None) -> None:
    """Write a version beside those in a model's folder, whole from the first moment on."""
    write_features(folder, features or FEATURES)
    hidden = folder / f".{version}"
    hidden.mkdir()
    (hidden / "model.pkl").write_bytes(pickle.dumps(model))
    hidden.rename(folder / str(version))


class Vocabulary:
    """Looks the first feature, a text, up; a word that it does not know raises."""

    n_features_in_ = 1

    def __init__(self, known: dict[str, float] | None = None) -> None:
        self.known = known

    def predict(self, x: Any) -> np.ndarray:
        return np.array([(self.known or {})[word] for word in np.asarray(x, object)[:, 0]], np.float64)


class AlwaysAnswers(Times):
    """Answers every row with the same value, whatever it is: NaN, a list, a text."""

    def __init__(self, value: Any = 1.0, n_features_in_: int = 1) -> None:
        self.value = value
        self.n_features_in_ = n_features_in_

    def predict(self, x: Any) -> np.ndarray:
        return np.array([self.value] * len(x))


class OnlyPositive(Times):
    """Raises for rows without a positive value, such as a model of logarithms or counts."""

    def predict(self, x: Any) -> np.ndarray:
        if not (np.asarray(x)[:, 0] > 0).all():
            raise ValueError("values must be positive")
        return super().predict(x)


class Broken(Times):
    """Raises for every row."""

    def predict(self, x: Any) -> np.ndarray:
        raise IndexError("index 7 is out of bounds")


class RaisesOnLoad(Times):
    """Raises an error of the chosen kind when it is unpickled."""

    def __init__(self, kind: type[BaseException] = AttributeError) -> None:
        self.kind = kind

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["kind"]("not what anybody foresaw")


class NoEstimator:
    """Predicts, and fails in an own way when it is asked what it was fitted on."""

    @property
    def feature_names_in_(self) -> list[str]:
        raise RuntimeError("asked too early")

    def predict(self, x: Any) -> np.ndarray:
        return np.asarray(x)[:, 0]
