"""The same estimators, kept by joblib and, one of them, by pickle."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import joblib

from tests.support.runtimes.train_skops import train_all


def save(model: Any, folder: Path) -> None:
    if folder.name == "several":
        (folder / "1" / "model.pkl").write_bytes(pickle.dumps(model))
    else:
        joblib.dump(model, folder / "1" / "model.joblib")


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), save)
