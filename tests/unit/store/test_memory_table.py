"""Time in the table in memory; everything else is in the contract."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from inference.schema import DType, TensorSpec
from inference.store import MemoryTable, Origin

PRICE = (TensorSpec("price", DType.FLOAT32),)


def test_rows_and_overlay_entries_are_forgotten_when_their_time_is_over() -> None:
    now = [1000.0]
    table = MemoryTable(lambda: now[0])
    manifest = table.begin(PRICE, rows_expected=1, model_version=1, contract_hash="c", keep_s=60)
    table.write(manifest, pa.array(["a"]), {"price": np.ones(1, np.float32)}, np.zeros(1))
    table.publish(manifest.number)
    table.upsert(
        ["b"], PRICE, {"price": np.ones(1, np.float32)}, as_of=np.zeros(1), computed_at=1000, model_version=0,
        origin=Origin.UPSERT, keep_s=30,
    )  # fmt: skip
    assert None not in table.read(["a", "b"])
    now[0] = 1030.0
    assert table.read(["b"]) == [None]
    assert table.read(["a"]) != [None]
    now[0] = 1060.0
    assert table.read(["a"]) == [None]


def test_the_second_sweep_is_due_only_after_its_time() -> None:
    now = [1000.0]
    table = MemoryTable(lambda: now[0])
    manifest = table.begin(PRICE, rows_expected=1, model_version=1, contract_hash="c", keep_s=60)
    table.write(manifest, pa.array(["a"]), {"price": np.ones(1, np.float32)}, np.zeros(1))
    table.publish(manifest.number)
    table.publish(table.begin(PRICE, rows_expected=0, model_version=1, contract_hash="c", keep_s=60).number)
    table.publish(table.begin(PRICE, rows_expected=0, model_version=1, contract_hash="c", keep_s=60).number)
    assert table.collect(manifest.number, sweep_after_s=10) == 1
    assert table.collectable() == []
    now[0] = 1010.0
    assert table.collectable() == [manifest.number]
    table.collect(manifest.number)
    assert table.manifest(manifest.number) is None
