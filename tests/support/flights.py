"""A small deployment for tests of whole journeys: flights whose delay is the sum of two features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tests.support.models import write_sum_model

ROWS = 100
#: a generous budget: what is tested is not speed
FLIGHTS_TOML = """
[models.delay]
path = "model"
features = "flights.parquet"
[models.delay.realtime]
timeout_ms = 5000
min_recompute_interval = "1s"
"""


def write_flights(folder: Path) -> str:
    """Write the model and a table of flights F0 to F99, of which FN is N + 1 late; return the model's settings."""
    write_sum_model(folder / "model", ["a", "b"])
    ids = [f"F{number}" for number in range(ROWS)]
    pd.DataFrame({"entity_id": ids, "a": np.arange(float(ROWS)), "b": np.ones(ROWS)}).to_parquet(
        folder / "flights.parquet"
    )
    return FLIGHTS_TOML
