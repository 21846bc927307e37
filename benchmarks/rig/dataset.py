"""The table and the model that all benchmarks use, with the answers known beforehand."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = 32
_ROWS_PER_GROUP = 250_000


@dataclass(frozen=True)
class Dataset:
    """A features table, a model, and for each row the answer (float32) that TensorFlow gives directly."""

    folder: Path
    rows: int

    @property
    def table(self) -> Path:
        """The Parquet file: `entity_id` and 32 float32 columns."""
        return self.folder / f"features-{self.rows}.parquet"

    @property
    def model(self) -> Path:
        """The model's folder with version 1, as Forecache takes it."""
        return self.folder / "model"

    @property
    def keras_model(self) -> Path:
        """The same weights as a Keras file, for `model.predict`."""
        return self.folder / "model.keras"

    @property
    def answers_file(self) -> Path:
        """numpy file of the expected predictions."""
        return self.folder / f"answers-{self.rows}.npy"

    @property
    def rows_file(self) -> Path:
        """Each row as JSON on a line of its own, for servers that want the features in the request."""
        return self.folder / f"rows-{self.rows}.jsonl"

    def answers(self) -> npt.NDArray[np.float32]:
        """Return the expected predictions in row order."""
        return np.load(self.answers_file)  # type: ignore[no-any-return]


def entity_id(row: int) -> str:
    """Return the id of a row."""
    return f"user_{row}"


def make_dataset(folder: Path, rows: int) -> Dataset:
    """Write the table, export the model in a process of its own, and let it answer every row."""
    dataset = Dataset(folder, rows)
    write_table(dataset.table, rows)
    script = Path(__file__).with_name("train.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
    subprocess.run(
        [sys.executable, str(script), str(folder), str(rows)], check=True, stdout=sys.stderr, env=environment
    )
    return dataset


def write_rows(dataset: Dataset) -> None:
    """Write `rows_file`: `{"entity_id": …, "features": […]}`, floats in as few digits as tell them apart."""
    with dataset.rows_file.open("w") as file:
        for batch in pq.ParquetFile(dataset.table).iter_batches(batch_size=65_536):
            ids, *columns = batch.columns
            rows = np.stack([column.to_numpy() for column in columns], axis=1)
            for name, row in zip(ids.to_pylist(), rows, strict=True):
                file.write(f'{{"entity_id":"{name}","features":[{",".join(map(str, row))}]}}\n')


def write_table(path: Path, rows: int) -> None:
    """Write a table of features, the same for the same number of rows."""
    numbers = np.random.default_rng(7)
    names = [f"f{number:02d}" for number in range(FEATURES)]
    schema = pa.schema([("entity_id", pa.string()), *((name, pa.float32()) for name in names)])
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        for start in range(0, rows, _ROWS_PER_GROUP):
            count = min(_ROWS_PER_GROUP, rows - start)
            values = numbers.standard_normal((count, FEATURES), dtype=np.float32)
            columns: list[Any] = [pa.array([entity_id(row) for row in range(start, start + count)])]
            columns += [pa.array(np.ascontiguousarray(values[:, number])) for number in range(FEATURES)]
            writer.write_table(pa.table(columns, schema=schema))
