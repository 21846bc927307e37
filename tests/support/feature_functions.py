"""Functions of features that tests name by their path: a good one, and one for each thing that can go wrong."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd

#: what the functions were told: rows and instant of each call
calls: list[tuple[int, datetime]] = []


def mixture(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """All numbers and the clock, by the very same operations for one row and for many."""
    calls.append((len(frame), at))
    total = np.zeros(len(frame), dtype=np.float64)
    for name in sorted(frame.columns):
        if frame[name].dtype.kind in "fiub":
            total = total * 1.7 + np.nan_to_num(frame[name].to_numpy().astype(np.float64)) / 3
    return pd.DataFrame({"mixed": np.sin(total), "hour": np.full(len(frame), at.hour)})


def distances(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """How far each row's numbers lie from the present hour, by pandas' own operations."""
    numbers = frame.select_dtypes("number").astype(np.float64).fillna(at.hour)
    return pd.DataFrame({"mixed": np.log1p(numbers.sub(at.hour).abs().max(axis=1).fillna(0.0)), "hour": at.hour})


def spellings(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """Lengths of the texts, and how many values are not known."""
    total = frame.isna().sum(axis=1).astype(np.float64)
    for name in frame.columns:
        if frame[name].dtype.kind == "O":
            total = total + frame[name].astype(str).str.len() / 7
    return pd.DataFrame({"mixed": total, "hour": at.hour})


def spoiler(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """Changes what it was given."""
    frame["x"] = -1.0
    return pd.DataFrame({"out": frame["x"]})


def raises(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    raise ZeroDivisionError("the secret of this row is 42")


def too_short(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    return pd.DataFrame({"out": np.zeros(len(frame) + 1)})


def wrong_name(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    return pd.DataFrame({"outt": np.zeros(len(frame))})


def wrong_type(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    return pd.DataFrame({"out": ["text"] * len(frame)})


def no_frame(frame: pd.DataFrame, at: datetime) -> Any:
    return np.zeros(len(frame))


def holes(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """Has no value where x is 0, and one that is not legal where x is 1."""
    return pd.DataFrame({"out": frame["x"].map({0.0: None, 1.0: 1000.0}).astype(float).where(frame["x"] < 2, 5.0)})


def large(frame: pd.DataFrame, at: datetime) -> pd.DataFrame:
    """A whole number that a byte cannot hold where x is 1."""
    return pd.DataFrame({"out": np.where(frame["x"] == 1, 1000, 5)})


not_a_function = 7
