"""The demo's folder: a generated table of flights, its settings, and what the model is to learn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

FEATURES = ("distance_km", "departure_hour", "weekday", "taxi_out_min", "carrier_delay_min")
TARGET = "delay_min"
MODEL = "delay"
#: entities that the table of features knows and the batch source does not: the demo's misses
NEWCOMERS = 100
_SEED = 7

_SETTINGS = """\
[api]
port = {api_port}

[dashboard]
port = {dashboard_port}

[models.delay]
path = "models/delay"
features = "data/flights.parquet"
entity_column = "flight"

[models.delay.batch]
schedule = "15s"

[models.delay.realtime]
timeout_ms = 5000
"""


@dataclass(frozen=True)
class DemoFolder:
    """Where the demo keeps its files."""

    root: Path

    @property
    def training(self) -> Path:
        """Flights with known delays."""
        return self.root / "data" / "training.parquet"

    @property
    def source(self) -> Path:
        """What runs score."""
        return self.root / "data" / "flights.parquet"

    @property
    def features(self) -> Path:
        """What answers on demand are computed from: the source and the newcomers."""
        return self.root / "data" / "features.parquet"

    @property
    def model(self) -> Path:
        """The model's folder, with numbered versions."""
        return self.root / "models" / MODEL


def known_entity(number: int) -> str:
    """Return the id of an entity that runs score."""
    return f"FL-{number:06d}"


def new_entity(number: int) -> str:
    """Return the id of an entity that no run has seen."""
    return f"NEW-{number:03d}"


def write_folder(folder: DemoFolder, *, entities: int, api_port: int, dashboard_port: int) -> None:
    """Write tables, feature contract and settings. The same numbers each time."""
    folder.source.parent.mkdir(parents=True)
    folder.model.mkdir(parents=True)
    ids = [known_entity(i) for i in range(entities)] + [new_entity(i) for i in range(NEWCOMERS)]
    flights = generate_flights(ids)
    flights.head(10_000).to_parquet(folder.training, index=False)
    features = flights.drop(columns=TARGET)
    features.to_parquet(folder.features, index=False)
    features.head(entities).to_parquet(folder.source, index=False)
    contract = {"features": [{"name": name, "dtype": "float32"} for name in FEATURES]}
    (folder.model / "features.json").write_text(json.dumps(contract, indent=2))
    settings = _SETTINGS.format(api_port=api_port, dashboard_port=dashboard_port)
    (folder.root / "forecache.toml").write_text(settings)


def generate_flights(ids: list[str]) -> pd.DataFrame:
    """Return one row per id: the features and a delay (minutes) that depends on them, with noise."""
    random = np.random.default_rng(_SEED)
    rows = len(ids)
    flights = pd.DataFrame(
        {
            "flight": ids,
            "distance_km": random.uniform(200, 4000, rows),
            "departure_hour": random.integers(0, 24, rows),
            "weekday": random.integers(0, 7, rows),
            "taxi_out_min": random.gamma(4.0, 4.0, rows),
            "carrier_delay_min": random.exponential(6.0, rows),
        }
    )
    rush = ((flights["departure_hour"] - 17) ** 2 < 9).astype(float)
    weekend = (flights["weekday"] >= 5).astype(float)
    delay = 0.8 * flights["carrier_delay_min"] + 0.5 * flights["taxi_out_min"] + 9 * rush - 4 * weekend
    flights[TARGET] = delay - flights["distance_km"] / 800 + random.normal(0, 2, rows)
    return flights.astype(dict.fromkeys((*FEATURES, TARGET), "float32"))
