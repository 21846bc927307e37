from __future__ import annotations

import asyncio

import pytest

from inference.errors import StoreUnavailable
from inference.serving.lookups import SharedLookups
from tests.support.serving_fakes import FakeReader, entry
from tests.support.virtual_time import virtual_time


@virtual_time
async def test_look_ups_of_one_turn_share_one_read() -> None:
    reader = FakeReader({"a": entry(1), "b": entry(2)})
    lookups = SharedLookups(reader)
    found = await asyncio.gather(lookups.find(["a"]), lookups.find(["b", "c"]), lookups.find(["a", "a"]))
    assert reader.reads == [["a", "b", "c"]]
    assert [[e and e.values["prediction"] for e in entries] for entries in found] == [[1], [2, None], [1, 1]]


@virtual_time
async def test_a_later_look_up_does_not_join_a_read_that_has_begun() -> None:
    reader = FakeReader({"a": entry(1)})
    reader.delay_s = 1
    lookups = SharedLookups(reader)
    first = asyncio.create_task(lookups.find(["a"]))
    await asyncio.sleep(0.5)
    reader.entries["a"] = entry(2)
    [found] = await lookups.find(["a"])
    assert found is not None
    assert found.values == {"prediction": 2}
    assert len(reader.reads) == 2
    await first


@virtual_time
async def test_a_cancelled_look_up_does_not_cancel_the_read_that_it_shares() -> None:
    reader = FakeReader({"a": entry(1)})
    reader.delay_s = 1
    lookups = SharedLookups(reader)
    leaving, staying = asyncio.create_task(lookups.find(["a"])), asyncio.create_task(lookups.find(["a"]))
    await asyncio.sleep(0.5)
    leaving.cancel()
    assert (await staying)[0] is not None


@virtual_time
async def test_an_outage_is_an_error_for_each_and_never_a_miss() -> None:
    reader = FakeReader()
    reader.down = True
    lookups = SharedLookups(reader)
    results = await asyncio.gather(lookups.find(["a"]), lookups.find(["b"]), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable]
    reader.down = False
    with pytest.raises(StoreUnavailable):
        raise results[0]  # type: ignore[misc]
    assert await lookups.find(["a"]) == [None]
