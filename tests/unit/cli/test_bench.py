from __future__ import annotations

import asyncio

import pytest

from app.cli.bench import hold_rate
from tests.support.virtual_time import virtual_time


@virtual_time
async def test_requests_go_out_at_their_rate_however_long_answers_take() -> None:
    sent: list[float] = []

    async def ask(_: int) -> str:
        sent.append(asyncio.get_running_loop().time())
        await asyncio.sleep(3)
        return "computed"

    answered = await hold_rate(range(5), ask, rate_rps=10, connections=64)

    assert sent == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [each.outcome for each in answered] == ["computed"] * 5
    assert [each.latency_s for each in answered] == pytest.approx([3] * 5)
    assert [each.late_s for each in answered] == pytest.approx([0] * 5)


@virtual_time
async def test_a_request_that_had_to_wait_for_another_counts_from_when_it_was_due() -> None:
    async def ask(_: int) -> str:
        await asyncio.sleep(1)
        return "computed"

    answered = await hold_rate(range(3), ask, rate_rps=10, connections=1)

    assert [each.late_s for each in answered] == pytest.approx([0, 0.9, 1.8])
    assert [each.latency_s for each in answered] == pytest.approx([1, 1.9, 2.8])
