"""What sections of the settings are made of: their base, durations and sizes."""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr

from inference.errors import shown
from inference.redaction import remember_secret

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*$")
#: more than anybody means; beyond 292 years no thread can wait, and no date can be told
_LONGEST_D = 100_000
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT])(i?)B\s*$", re.IGNORECASE)


def parse_duration(value: Any) -> float:
    """Return seconds from text such as `30s`, `15m`, `24h`, `7d`, or from a number of seconds.

    Raises:
        ValueError: the text has another form, or the duration is not positive or over 100000 days.
    """
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match:
        seconds = float(match[1]) * _UNIT_S[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < sys.float_info.max else float("inf")
    else:
        raise ValueError(f"{shown(value)} is not a duration: write a number and a unit, as in 30s, 15m, 24h or 7d")
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{shown(value)} is not a positive duration")
    if seconds > _LONGEST_D * _UNIT_S["d"]:
        raise ValueError(f"{shown(value)} is too long: at most {_LONGEST_D}d")
    return seconds


def is_duration(text: str) -> bool:
    """Return whether a text has the form of a duration."""
    return bool(_DURATION.match(text))


def parse_list(value: Any) -> Any:
    """Return the list that a text such as `[0, 1]` of an environment variable means; anything else unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def parse_size(value: Any) -> int:
    """Return bytes from text such as `512 MB` or `8 GiB`, or from a number of bytes.

    Raises:
        ValueError: the text has another form, or the size is not positive.
    """
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match:
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** ("KMGT".index(match[2].upper()) + 1))
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise ValueError(f"{shown(value)} is not a size: write a number and a unit, as in 512 MB or 8 GB")
    if size <= 0:
        raise ValueError(f"{shown(value)} is not a positive size")
    return size


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def model_post_init(self, _: Any) -> None:
        """Have the section's secrets hidden in all that is written from here on."""
        for value in vars(self).values():
            if isinstance(value, SecretStr):
                remember_secret(value.get_secret_value())
