"""Counts, sizes and durations in words."""

from __future__ import annotations

import pytest

from inference.wording import counted, duration_text, size_text


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [
        (0, ("row",), "0 rows"),
        (1, ("row",), "1 row"),
        (1_200, ("row",), "1,200 rows"),
        (1, ("entity", "entities"), "1 entity"),
        (2, ("entity", "entities"), "2 entities"),
        (1, ("is", "are"), "1 is"),
        (1.0, ("hour",), "1 hour"),
        (0.25, ("hour",), "0.25 hours"),
        (12_345.0, ("hour",), "12,345 hours"),
        (1_234_567.8, ("hour",), "1,234,568 hours"),
        (3.14159, ("hour",), "3.142 hours"),
    ],
)
def test_a_noun_follows_its_count(count: float, nouns: tuple[str, ...], text: str) -> None:
    assert counted(count, *nouns) == text


def test_sizes_and_durations_are_read_at_a_glance() -> None:
    assert [size_text(n) for n in (0, 999, 84_200_000, 2e12)] == ["0 B", "999 B", "84.2 MB", "2.0 TB"]
    assert [duration_text(s) for s in (0.293, 15, 300, 9000, 3e6)] == ["0.29 s", "15 s", "5 min", "2.5 h", "35 d"]
