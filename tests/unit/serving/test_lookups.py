from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from inference.errors import Overloaded, StoreUnavailable, Unreadable
from inference.serving.model_service import PATIENCE_S, READ_AT_ONCE, LookUp, SharedLookups
from inference.store import Entry
from tests.support.serving_fakes import FakeReader, entry
from tests.support.virtual_time import virtual_time

LATER = 1e9


async def find(lookups: SharedLookups, ids: Sequence[str], until: float = LATER) -> list[Entry | None]:
    """Ask, wait, and return what was found."""
    over = asyncio.Event()
    look_up = LookUp(ids, until, over.set)
    lookups.ask(look_up)
    assert not over.is_set()
    await over.wait()
    assert look_up.found is not None
    if isinstance(look_up.found, Exception):
        raise look_up.found
    return look_up.found


@virtual_time
async def test_look_ups_of_one_turn_share_one_read() -> None:
    reader = FakeReader({"a": entry(1), "b": entry(2)})
    lookups = SharedLookups(reader)
    found = await asyncio.gather(find(lookups, ["a"]), find(lookups, ["b", "c"]), find(lookups, ["a", "a"]))
    assert reader.reads == [["a", "b", "c"]]
    assert [[e and e.values["prediction"] for e in entries] for entries in found] == [[1], [2, None], [1, 1]]


@virtual_time
async def test_a_later_look_up_does_not_join_a_read_that_has_begun() -> None:
    reader = FakeReader({"a": entry(1)})
    reader.delay_s = 1
    lookups = SharedLookups(reader)
    first = asyncio.create_task(find(lookups, ["a"]))
    await asyncio.sleep(0.5)
    reader.entries["a"] = entry(2)
    [found] = await find(lookups, ["a"])
    assert found is not None
    assert found.values == {"prediction": 2}
    assert len(reader.reads) == 2
    await first


@virtual_time
async def test_what_is_asked_during_a_read_shares_the_next_which_begins_when_that_one_is_over() -> None:
    reader = FakeReader({"a": entry(1)})
    reader.delay_s = PATIENCE_S / 2
    lookups, loop = SharedLookups(reader), asyncio.get_running_loop()
    first = asyncio.create_task(find(lookups, ["a"]))
    await asyncio.sleep(PATIENCE_S / 8)
    second = asyncio.create_task(find(lookups, ["b"]))
    await asyncio.sleep(PATIENCE_S / 8)
    await asyncio.gather(first, second, find(lookups, ["c"]))
    assert reader.reads == [["a"], ["b", "c"]]
    assert loop.time() == pytest.approx(PATIENCE_S)


@virtual_time
async def test_a_flood_is_read_in_parts_in_the_order_of_its_arrival() -> None:
    reader = FakeReader({"last": entry(1)})
    reader.delay_s = PATIENCE_S / 2
    lookups, loop = SharedLookups(reader), asyncio.get_running_loop()
    flood = [asyncio.create_task(find(lookups, [f"e{number}"])) for number in range(2 * READ_AT_ONCE)]
    await asyncio.sleep(0)
    assert await find(lookups, ["last"]) == [entry(1)]
    assert [len(ids) for ids in reader.reads] == [READ_AT_ONCE, READ_AT_ONCE, 1]
    assert loop.time() == pytest.approx(3 * reader.delay_s)
    assert all(found.done() for found in flood)


@virtual_time
async def test_in_a_flood_those_whose_time_ran_out_are_refused_and_not_read() -> None:
    reader = FakeReader({"last": entry(1)})
    reader.delay_s = PATIENCE_S / 2
    lookups, loop = SharedLookups(reader), asyncio.get_running_loop()
    hasty = loop.time() + reader.delay_s / 2
    first = [asyncio.create_task(find(lookups, [f"e{number}"])) for number in range(READ_AT_ONCE)]
    late = [asyncio.create_task(find(lookups, [f"late{number}"], hasty)) for number in range(READ_AT_ONCE)]
    await asyncio.sleep(0)
    assert await find(lookups, ["last"]) == [entry(1)]
    errors = await asyncio.gather(*late, return_exceptions=True)
    assert {type(error) for error in errors} == {Overloaded}
    assert [len(ids) for ids in reader.reads] == [READ_AT_ONCE, 1]
    assert all(found.done() for found in first)


@virtual_time
async def test_a_flood_goes_on_beside_a_read_that_hangs() -> None:
    reader = FakeReader({"last": entry(1)})
    reader.delay_s = 10
    lookups, loop = SharedLookups(reader), asyncio.get_running_loop()
    hanging = [asyncio.create_task(find(lookups, [f"e{number}"])) for number in range(READ_AT_ONCE)]
    last = asyncio.create_task(find(lookups, ["last"]))
    await asyncio.sleep(0.001)
    reader.delay_s = 0
    assert await last == [entry(1)]
    assert loop.time() == pytest.approx(PATIENCE_S)
    for each in hanging:
        each.cancel()


@virtual_time
async def test_a_read_that_hangs_holds_up_the_next_for_no_more_than_a_moment() -> None:
    reader = FakeReader({"a": entry(1)})
    reader.delay_s = 10
    lookups, loop = SharedLookups(reader), asyncio.get_running_loop()
    hanging = asyncio.create_task(find(lookups, ["a"]))
    await asyncio.sleep(1)
    reader.delay_s = 0
    assert await find(lookups, ["a"]) != [None]
    assert loop.time() == pytest.approx(1 + PATIENCE_S)
    assert not hanging.done()
    hanging.cancel()


@virtual_time
async def test_a_cancelled_look_up_does_not_cancel_the_read_that_it_shares() -> None:
    reader = FakeReader({"a": entry(1)})
    reader.delay_s = 1
    lookups = SharedLookups(reader)
    leaving, staying = asyncio.create_task(find(lookups, ["a"])), asyncio.create_task(find(lookups, ["a"]))
    await asyncio.sleep(0.5)
    leaving.cancel()
    assert (await staying)[0] is not None


@virtual_time
async def test_an_outage_is_an_error_for_each_and_never_a_miss() -> None:
    reader = FakeReader()
    reader.down = True
    lookups = SharedLookups(reader)
    results = await asyncio.gather(find(lookups, ["a"]), find(lookups, ["b"]), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable]
    reader.down = False
    with pytest.raises(StoreUnavailable):
        raise results[0]  # type: ignore[misc]
    assert await find(lookups, ["a"]) == [None]


@virtual_time
async def test_each_caller_waits_as_long_as_it_asked_and_the_read_goes_on_for_the_others() -> None:
    reader = FakeReader({"a": entry(1)})
    reader.delay_s = 1
    lookups, loop = SharedLookups(reader), asyncio.get_running_loop()
    started = loop.time()
    hasty, hastier, patient = (
        asyncio.create_task(find(lookups, ["a"], started + wait_s)) for wait_s in (0.5, 0.2, 5.0)
    )
    with pytest.raises(StoreUnavailable, match="in time"):
        await hastier
    assert loop.time() == pytest.approx(started + 0.2)
    with pytest.raises(StoreUnavailable, match="in time"):
        await hasty
    assert loop.time() == pytest.approx(started + 0.5)
    assert (await patient)[0] is not None
    assert len(reader.reads) == 1


@virtual_time
async def test_a_defect_of_the_reader_reaches_every_caller() -> None:
    class Broken(FakeReader):
        async def read(self, ids: Sequence[str]) -> list[Entry | None]:
            raise ZeroDivisionError

    lookups = SharedLookups(Broken())
    results = await asyncio.gather(find(lookups, ["a"]), find(lookups, ["b"]), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError, ZeroDivisionError]


class DamagedReader(FakeReader):
    """Cannot read the row of `bad`."""

    async def read(self, ids: Sequence[str]) -> list[Entry | None]:
        found = await super().read(ids)
        if "bad" in ids:
            raise Unreadable("it is damaged")
        return found


@virtual_time
async def test_a_damaged_row_fails_the_look_up_that_asks_for_it_and_no_other() -> None:
    lookups = SharedLookups(DamagedReader({"a": entry(1), "b": entry(2)}))
    asked = (find(lookups, ["a"]), find(lookups, ["bad"]), find(lookups, ["b"]))
    first, damaged, last = await asyncio.gather(*asked, return_exceptions=True)
    assert [first, last] == [[entry(1)], [entry(2)]]
    assert isinstance(damaged, Unreadable)  # which clients are told; an outage would be another matter
