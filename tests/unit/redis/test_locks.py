from __future__ import annotations

import threading

import pytest

from inference.errors import StaleAttempt, StoreUnavailable
from inference.redis.locks import Lease


class Holder:
    """Answers renewals from a script and says when it was asked."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.exhausted = threading.Event()

    def renew(self) -> bool:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if len(self.answers) == 1:
            self.exhausted.set()
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_lost_lease_is_never_taken_for_a_live_one_again() -> None:
    holder = Holder(False, True)
    with Lease(holder.renew, name="chunk", every_s=60) as lease:
        with pytest.raises(StaleAttempt, match="chunk is no longer this worker's"):
            lease.check()
        with pytest.raises(StaleAttempt):
            lease.check()


def test_an_outage_at_the_fence_stops_the_write() -> None:
    lease = Lease(Holder(StoreUnavailable("gone")).renew, name="chunk", every_s=60)
    with lease, pytest.raises(StoreUnavailable):
        lease.check()


def test_the_thread_keeps_renewing_through_an_outage() -> None:
    holder = Holder(True, StoreUnavailable("gone"), StoreUnavailable("gone"), True)
    with Lease(holder.renew, name="chunk", every_s=0.001) as lease:
        assert holder.exhausted.wait(5)
        lease.check()


def test_the_thread_ends_with_the_work() -> None:
    before = threading.active_count()
    with Lease(Holder(True).renew, name="chunk", every_s=60):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
