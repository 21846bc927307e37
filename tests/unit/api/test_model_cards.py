from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from app.api.models import ModelCards
from inference.errors import NotFound, StoreUnavailable
from inference.models import VersionRecord
from tests.support.serving_fakes import FakeReader
from tests.support.virtual_time import virtual_time


class Records:
    """The records of a model, one refused version. `delay_s`: how long reading them takes."""

    def __init__(self) -> None:
        self.reads = 0
        self.delay_s = 0.0

    async def __call__(self, model: str) -> Mapping[int, VersionRecord]:
        self.reads += 1
        await asyncio.sleep(self.delay_s)
        return {1: VersionRecord.refused(1, "broken", inspected_at=0.0)}


@virtual_time
async def test_a_card_is_read_once_a_second_however_many_ask() -> None:
    records, reader = Records(), FakeReader()
    records.delay_s = 0.1
    cards = ModelCards({"m": reader}, records)
    await asyncio.gather(*(cards.of("m") for _ in range(10)))
    await asyncio.sleep(0.8)
    assert (await cards.of("m")).active == 1
    assert records.reads == 1
    reader.active_version = 2
    await asyncio.sleep(0.3)
    assert (await cards.of("m")).active == 2
    assert records.reads == 2


@virtual_time
async def test_a_model_that_has_just_come_into_service_is_seen_at_once() -> None:
    reader = FakeReader()
    reader.active_version = None
    cards = ModelCards({"m": reader}, Records())
    assert (await cards.of("m")).active is None
    reader.active_version = 1
    assert (await cards.of("m")).active == 1


@virtual_time
async def test_a_refused_or_unknown_version_is_not_ready() -> None:
    card = await ModelCards({"m": FakeReader()}, Records()).of("m")
    assert card.ready(None) is card.ready(1) is card.ready(7) is None


@virtual_time
async def test_a_model_that_is_not_configured_has_no_card() -> None:
    with pytest.raises(NotFound):
        await ModelCards({"m": FakeReader()}, Records()).of("x")


@virtual_time
async def test_a_store_that_hangs_is_an_outage_and_the_next_request_asks_again() -> None:
    records = Records()
    cards = ModelCards({"m": FakeReader()}, records)
    records.delay_s = 30.0
    with pytest.raises(StoreUnavailable):
        await cards.of("m")
    records.delay_s = 0.0
    assert (await cards.of("m")).active == 1
