"""A model that computes for so many microseconds a row, and notes how long it has computed."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np

#: names the file of the notes: rows and seconds, a line for each call. Until the file exists the model computes only
#: its answers, so that what is not measured is over soon
SECONDS = "BENCH_MODEL_SECONDS"


class HeavySum:
    """Adds its features up, after matrix products that keep one core busy and leave Python to other threads."""

    def __init__(self, features: int, us_per_row: float) -> None:
        self.n_features_in_ = features
        self.us_per_row = us_per_row

    def predict(self, x: Any) -> np.ndarray:
        started = time.perf_counter()
        rows = np.asarray(x, np.float32)
        answers = rows.sum(axis=1)
        work = np.ones((128, 128), np.float32)
        notes = Path(os.environ[SECONDS])
        if notes.exists():
            while time.perf_counter() - started < len(rows) * self.us_per_row / 1e6:
                work @ work
            with notes.open("a") as file:
                file.write(f"{len(rows)} {time.perf_counter() - started}\n")
        return answers


def write_heavy_model(folder: Path, features: int, us_per_row: float) -> None:
    """Write version 1; its settings need `allow_code`."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.pkl").write_bytes(pickle.dumps(HeavySum(features, us_per_row)))


def noted(file: Path) -> tuple[int, float]:
    """Return the rows and the seconds that are noted."""
    calls = [line.split() for line in file.read_text().splitlines()]
    return sum(int(rows) for rows, _ in calls), sum(float(seconds) for _, seconds in calls)
