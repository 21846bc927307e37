"""What a program of the supervisor does before it becomes itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.local import child


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
    monkeypatch.setattr("os.nice", lambda step: step)
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


def test_a_kernel_that_is_busy_is_asked_again(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = _Kernel(BlockingIOError(), BlockingIOError())
    monkeypatch.setattr(child, "_AUTOGROUP", kernel)
    child.give_way(5)
    assert kernel.written == ["5"]
    assert len(pauses) == 2


@pytest.mark.parametrize("refusal", [PermissionError(), FileNotFoundError(), OSError(30, "Read-only file system")])
def test_where_the_share_cannot_be_lowered_the_program_starts_all_the_same(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch, refusal: OSError
) -> None:
    kernel = _Kernel(refusal)
    monkeypatch.setattr(child, "_AUTOGROUP", kernel)
    child.give_way(5)
    assert kernel.written == []
    assert pauses == []


def test_a_kernel_that_stays_busy_does_not_hold_the_program_up(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = _Kernel(*[BlockingIOError() for _ in range(1000)])
    monkeypatch.setattr(child, "_AUTOGROUP", kernel)
    child.give_way(5)
    assert sum(pauses) < 5


def test_a_program_of_usual_rank_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.nice", lambda step: pytest.fail("asked for another rank"))
    monkeypatch.setattr(child, "_AUTOGROUP", tmp_path / "autogroup")
    child.give_way(0)
    assert not (tmp_path / "autogroup").exists()
