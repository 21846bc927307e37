"""How a process lets others go first: with all its threads, and with its session where Linux schedules by session."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from inference import processors
from inference.processors import BACKGROUND_NICENESS, work_in_background

LOWERED = """
import os, sys, threading
from pathlib import Path
from inference.processors import work_in_background

ended = threading.Event()
thread = threading.Thread(target=ended.wait)
thread.start()
os.nice(int(sys.argv[1]))
work_in_background()
later = threading.Thread(target=ended.wait)
later.start()
print([os.getpriority(os.PRIO_PROCESS, one.native_id) for one in (threading.main_thread(), thread, later)])
ended.set()
"""


class _Kernel:
    """Stands for /proc/self/autogroup: raises what it is given, one a write, then takes what is written."""

    def __init__(self, *refusals: OSError) -> None:
        self._refusals = list(refusals)
        self.written: list[str] = []

    def write_text(self, text: str) -> None:
        if self._refusals:
            raise self._refusals.pop(0)
        self.written.append(text)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    # this process keeps its rank, and leads its session
    monkeypatch.setattr("os.setpriority", lambda *_: None)
    monkeypatch.setattr("os.getsid", lambda _: os.getpid())
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_every_thread_lets_others_go_first_and_none_becomes_less_nice() -> None:
    def priorities(niceness: int) -> str:
        return subprocess.check_output([sys.executable, "-c", LOWERED, str(niceness)], text=True).strip()

    before = os.getpriority(os.PRIO_PROCESS, 0)
    lowered = max(before, BACKGROUND_NICENESS)
    assert priorities(0) == str([lowered] * 3)
    nicer = min(before + BACKGROUND_NICENESS + 2, 19)
    # only its main thread was that nice
    assert priorities(BACKGROUND_NICENESS + 2) == str([nicer, lowered, nicer])


def test_a_kernel_that_is_busy_is_asked_again(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = _Kernel(BlockingIOError(), BlockingIOError())
    monkeypatch.setattr(processors, "_AUTOGROUP", kernel)
    work_in_background()
    assert kernel.written == [str(BACKGROUND_NICENESS)]
    assert len(pauses) == 2


@pytest.mark.parametrize("refusal", [PermissionError(), FileNotFoundError(), OSError(30, "Read-only file system")])
def test_where_the_share_cannot_be_lowered_the_process_starts_all_the_same(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch, refusal: OSError
) -> None:
    kernel = _Kernel(refusal)
    monkeypatch.setattr(processors, "_AUTOGROUP", kernel)
    work_in_background()
    assert kernel.written == []
    assert pauses == []


def test_a_kernel_that_stays_busy_does_not_hold_the_process_up(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = _Kernel(*[BlockingIOError() for _ in range(1000)])
    monkeypatch.setattr(processors, "_AUTOGROUP", kernel)
    work_in_background()
    assert sum(pauses) < 5


def test_the_session_of_another_process_keeps_its_share(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = _Kernel()
    monkeypatch.setattr(processors, "_AUTOGROUP", kernel)
    monkeypatch.setattr("os.getsid", lambda _: os.getpid() + 1)
    work_in_background()
    assert kernel.written == []
