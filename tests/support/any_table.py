"""A deployment in process whose model takes any features: what was read of a table is what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inference.batch import RunView
from inference.batch.selection import read_entities
from inference.features import Feature, FeatureContract, LoadReport, Vectoriser, load_features
from inference.features.group_rows import stored_features
from inference.models import LoadedModel, VersionRecord
from inference.redis.clients import Client
from inference.redis.keys import TableKind
from inference.schema import Block, DType, Signature, TensorSpec
from inference.settings import Settings
from tests.integration.test_runs import World

#: what text adds to an answer, so that it tells which text was read
PRIME = 1009


def text_value(text: str) -> int:
    """A text as the number that `Summing` makes of it."""
    return int(sum(text.encode())) % PRIME


class Summing:
    """Holds a model that adds up its inputs, texts as numbers and vectors by their sums."""

    device = "cpu-x"

    def __init__(self, features: Sequence[Feature]) -> None:
        contract = FeatureContract(tuple(features))
        self.signature = Signature(tuple(feature.spec for feature in features), (TensorSpec("y", DType.FLOAT64),))
        self.record = VersionRecord(
            version=1, state="ready", signature=self.signature, contract=contract, fingerprint="f", inspected_at=0.0
        )
        self.vectoriser = Vectoriser(contract, self.signature)

    def get(self, model: str, version: int | None = None) -> LoadedModel:
        return LoadedModel(model, self.record, self.vectoriser, self)

    def predict(self, inputs: Block) -> Block:
        columns = [
            np.vectorize(text_value, otypes=[float])(values) if values.dtype == object else values.astype(np.float64)
            for values in inputs.values()
        ]
        return {"y": np.sum([each.reshape(len(each), -1).sum(axis=1) for each in columns], axis=0)}


class AnyTable(World):
    """The model `m` over the table `t`: a file, or a folder of them."""

    def __init__(self, client: Client, root: Path, *features: Feature, entity_column: str = "id") -> None:
        super().__init__(client, root)
        self.model = cast("Any", Summing(features))
        self.entity_column = entity_column
        own = self.settings.models["m"].model_copy(update={"features": str(root / "t"), "entity_column": entity_column})
        self.settings.models["m"] = own
        self.runs = self.make_runs()
        self.table.versions.activate(1)

    def configure_quarantine(self, fraction: float) -> None:
        """Let a run leave out so many of its rows."""
        own = self.settings.models["m"]
        batch = own.batch.model_copy(update={"max_quarantined_fraction": fraction})
        self.settings.models["m"] = own.model_copy(update={"batch": batch})
        self.runs = self.make_runs()

    def inspect(self, settings: Settings, model: str) -> dict[int, VersionRecord]:
        return {1: self.model.record}

    def write(self, name: str = "t", /, table: pa.Table | None = None, **columns: Any) -> Path:
        """Write a file: `t` itself, or one below it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns) if table is None else table, path)
        return path

    def run(self, **how: Any) -> RunView:
        return self.finish(self.request(**how))

    def load(self, path: Path | None = None) -> LoadReport:
        return load_features(
            self.table_of(TableKind.FEATURES, "m"),
            str(path or self.root / "t"),
            self.model.vectoriser,
            entity_column=self.entity_column,
            event_time_column=self.settings.models["m"].event_time_column,
            newest=self.settings.models["m"].rows == "newest",
            keep_s=3600,
        )

    def loaded(self, entity_id: str) -> dict[str, Any]:
        return stored_features(self.table_of(TableKind.FEATURES, "m"), self.model.vectoriser.contract, entity_id)[0]

    def ids_in(self, path: Path) -> list[str]:
        """The ids that `--entities PATH` means."""
        return read_entities(str(path), self.entity_column)
