"""Whole numbers in paths and headers."""

from __future__ import annotations

#: the largest version: an int64 in both protocols
MOST_VERSION = 2**63 - 1


def whole_number(text: str, most: int) -> int | None:
    """Return the number that digits spell; None for other text, or one over `most`."""
    # thousands of digits are refused before int() would raise on them
    if not (text.isascii() and text.isdecimal()) or len(text.lstrip("0")) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None
