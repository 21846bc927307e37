"""Generates the demo's folder: tables of users and page views, and the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

NUMBERS = ("visits_7d", "clicks_30d", "days_since_signup", "hour")
DEVICES = ("android", "desktop", "ios")
FEATURES = (*NUMBERS, "device")
TARGET = "clicked"
MODEL = "ctr"
#: users who signed up after the table was written; requests for them miss
NEWCOMERS = 100
#: page views of yesterday, from which the model learns
TRAINING_ROWS = 40_000
SCHEDULE_S = 15
_SEED = 7

_SETTINGS = """\
# Forecache's settings: copy this file beside a model and a table of yours, and change the names.
# Every setting has a default but `path`; docs/settings.md lists them all.
# There is no [redis] url here: `forecache up` then starts a Redis of its own, for development.

[api]
port = {api_port}

[dashboard]
port = {dashboard_port}

[models.ctr]                            # "ctr" is the model's name in URLs and commands
path = "models/ctr"                     # version folders 1/, 2/, … or one SavedModel
features = "data/users.parquet"         # what a run scores: one row per entity
entity_column = "user_id"               # the other columns are matched to the model's inputs by name

[models.ctr.batch]
schedule = "{schedule_s}s"                        # for this demo; usually a cron line such as "0 3 * * *"
ttl = "24h"                             # how long a precomputed answer counts as fresh
rows_per_chunk = {rows_per_chunk}                  # one Celery task each; without this line tasks are larger

[models.ctr.realtime]
timeout_ms = 2000                       # how long a caller waits for an answer that a worker computes
ttl = "1h"                              # how long such an answer is kept
"""


@dataclass(frozen=True)
class DemoFolder:
    """The paths of the demo's files."""

    root: Path

    @property
    def training(self) -> Path:
        """Page views, each with or without a click."""
        return self.root / "data" / "training.parquet"

    @property
    def source(self) -> Path:
        """The table that runs score."""
        return self.root / "data" / "users.parquet"

    @property
    def features(self) -> Path:
        """The features of computed answers: the users of the source, and the newcomers."""
        return self.root / "data" / "features.parquet"

    @property
    def model(self) -> Path:
        """The model's folder of numbered versions."""
        return self.root / "models" / MODEL

    @property
    def settings(self) -> Path:
        """The settings, which a user copies."""
        return self.root / "forecache.toml"


def known_entity(number: int) -> str:
    """Return the id of a user in the source."""
    return f"user-{number:06d}"


def new_entity(number: int) -> str:
    """Return the id of a newcomer, whom no run scores."""
    return f"new-{number:03d}"


def write_folder(folder: DemoFolder, *, entities: int, api_port: int, dashboard_port: int) -> None:
    """Write tables and settings; the tables are the same each time."""
    folder.source.parent.mkdir(parents=True)
    folder.model.mkdir(parents=True)
    random = np.random.default_rng(_SEED)
    views = generate_users([f"view-{i}" for i in range(TRAINING_ROWS)], random)
    views[TARGET] = (random.random(TRAINING_ROWS) < click_probability(views)).astype("float32")
    views.to_parquet(folder.training, index=False)
    users = generate_users([known_entity(i) for i in range(entities)], random)
    newcomers = generate_users([new_entity(i) for i in range(NEWCOMERS)], random)
    newcomers["days_since_signup"] = np.float32(0)
    users.to_parquet(folder.source, index=False)
    pd.concat([users, newcomers]).to_parquet(folder.features, index=False)
    settings = _SETTINGS.format(
        api_port=api_port,
        dashboard_port=dashboard_port,
        schedule_s=SCHEDULE_S,
        # about ten chunks, so that the bar moves
        rows_per_chunk=max(entities // 10, 1),
    )
    folder.settings.write_text(settings)


def generate_users(ids: list[str], random: np.random.Generator) -> pd.DataFrame:
    """Return one row of features per id, as known before the page is shown."""
    rows = len(ids)
    visits = random.gamma(1.5, 3.0, rows).round()
    users = pd.DataFrame(
        {
            "user_id": ids,
            "visits_7d": visits,
            "clicks_30d": random.poisson(0.3 * visits + 0.2),
            "days_since_signup": random.exponential(200.0, rows).round(),
            "hour": random.integers(0, 24, rows),
            "device": random.choice(DEVICES, rows, p=(0.45, 0.3, 0.25)),
        }
    )
    return users.astype(dict.fromkeys(NUMBERS, "float32"))


def click_probability(users: pd.DataFrame) -> pd.Series[float]:
    """Return each user's probability of a click, which the model learns."""
    evening = ((users["hour"] >= 18) & (users["hour"] <= 22)).astype(float)
    by_device = users["device"].map({"android": 0.0, "desktop": -0.5, "ios": 0.4}).astype(float)
    score = 0.9 * np.log1p(users["clicks_30d"]) + 0.25 * np.log1p(users["visits_7d"]) + 0.6 * evening + by_device
    chance: pd.Series[float] = 1 / (1 + np.exp(3.6 + users["days_since_signup"] / 400 - score))
    return chance
