"""What a cost is computed from: each figure with its unit, its legal range, and where it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from inference.errors import SettingsError

#: beyond these, products of inputs run over
_SMALLEST, _LARGEST = 1e-15, 1e15


class Basis(StrEnum):
    """Where a figure came from."""

    #: the caller said it
    OPTION = "option"
    #: counted or timed in this deployment
    MEASURED = "measured"
    #: read from forecache.toml
    SETTINGS = "settings"
    #: the dated table of prices
    PRICES = "prices"
    #: the brief's own example
    BRIEF = "brief"
    #: nobody knows better: an assumption
    DEFAULT = "default"


@dataclass(frozen=True)
class Figure:
    """One number, where it came from, and in a few words how."""

    value: float
    origin: Basis
    how: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"value": self.value, "from": self.origin.value, "how": self.how}


@dataclass(frozen=True)
class Field:
    """One input. `legal` says whether a finite number will do, `range` says it in words; `default` may be missing."""

    unit: str
    range: str
    legal: Callable[[float], bool]
    default: Figure | None = None


def _positive(value: float) -> bool:
    return value > 0


def _not_negative(value: float) -> bool:
    return value >= 0


def _assumed(value: float, how: str, origin: Basis = Basis.DEFAULT) -> Figure:
    return Figure(value, origin, how)


_ABOVE = "a number above 0"
_FROM_ZERO = "0 or more"
_BELOW_ONE = "from 0 to below 1"

#: every input of a cost, by its name in `CostInputs`
FIELDS: dict[str, Field] = {
    "entities": Field("entities", _ABOVE, _positive),
    "runs_per_day": Field("runs/day", _ABOVE, _positive, _assumed(1, "one run a day")),
    "throughput": Field("predictions/s", _ABOVE, _positive, _assumed(10_000, "the brief's assumption")),
    "startup_s": Field("s", _FROM_ZERO, _not_negative, _assumed(0, "workers that stay up start nothing")),
    "batch_instance_price": Field("per hour", _ABOVE, _positive),
    "spot_discount": Field("share", _BELOW_ONE, lambda v: 0 <= v < 1, _assumed(0, "no spot instances")),
    "retry_factor": Field("share", _FROM_ZERO, _not_negative, _assumed(0, "no work done twice")),
    "rps": Field("requests/s", _ABOVE, _positive),
    "peak_rps": Field("requests/s", "at least rps", _positive),
    "instance_price": Field("per hour", _ABOVE, _positive),
    "instance_rps": Field("requests/s", _ABOVE, _positive, _assumed(100, "the brief's assumption")),
    "headroom": Field("share", _FROM_ZERO, _not_negative, _assumed(0.5, "the brief's 50 %")),
    "utilisation": Field("share", "above 0, at most 1", lambda v: 0 < v <= 1, _assumed(1, "fully used at the peak")),
    "min_replicas": Field("instances", "a whole number from 1", lambda v: v >= 1 and v == int(v), _assumed(1, "one")),
    "hit_rate": Field("share", "from 0 to 1", lambda v: 0 <= v <= 1, _assumed(0.9, "an assumption: measure it")),
    "redis_price": Field("per GB and month", _FROM_ZERO, _not_negative),
    "bytes": Field("bytes/prediction", _ABOVE, _positive, _assumed(27, "a float32 prediction: benchmarks/memory.py")),
    "generations": Field("generations", _ABOVE, _positive, _assumed(3, "current, previous and the one being loaded")),
    "replicas": Field("copies of Redis", _ABOVE, _positive, _assumed(1, "one server without replicas")),
    "storage_price": Field("per GB and month", _FROM_ZERO, _not_negative),
    "storage_bytes": Field("bytes/prediction", _FROM_ZERO, _not_negative, _assumed(0, "no Parquet files")),
    "storage_days": Field("days", _FROM_ZERO, _not_negative, _assumed(30, "a month of files")),
}


@dataclass(frozen=True)
class CostInputs:
    """Inputs that were checked: finite, each in its range. Units stand in `FIELDS`, shares are 0 to 1."""

    entities: float
    runs_per_day: float
    throughput: float
    startup_s: float
    batch_instance_price: float
    spot_discount: float
    retry_factor: float
    rps: float
    peak_rps: float
    instance_price: float
    instance_rps: float
    headroom: float
    utilisation: float
    min_replicas: float
    hit_rate: float
    redis_price: float
    bytes: float
    generations: float
    replicas: float
    storage_price: float
    storage_bytes: float
    storage_days: float

    def __post_init__(self) -> None:
        for each in fields(self):
            check_figure(each.name, getattr(self, each.name))
        if self.peak_rps < self.rps:
            told = f"peak_rps: {self.peak_rps:g} is less than rps ({self.rps:g}): no peak is below the mean"
            raise SettingsError(told, field="peak_rps")

    @classmethod
    def of(cls, figures: Mapping[str, Figure]) -> CostInputs:
        """Return the inputs that figures say.

        Raises:
            SettingsError: one is missing, not finite, or out of its range; `field` names it.
        """
        missing = next((name for name in FIELDS if name not in figures), None)
        if missing is not None:
            raise SettingsError(
                f"{missing} is missing, and nothing measured tells it: give {option_of(missing)}", field=missing
            )
        for name in FIELDS:
            _check_size(name, figures[name].value)
        return cls(**{name: figures[name].value for name in FIELDS})


def check_figure(name: str, value: float) -> float:
    """Return the value if it is legal for that input.

    Raises:
        SettingsError: it is not finite, or out of range.
    """
    if not math.isfinite(value) or not FIELDS[name].legal(value):
        raise SettingsError(f"{name}: {value:g} cannot be used: {option_of(name)} is {FIELDS[name].range}", field=name)
    return value


def _check_size(name: str, value: float) -> None:
    if math.isfinite(value) and value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise SettingsError(
            f"{name}: {value:g} is too {'large' if abs(value) > 1 else 'small'} to be meant", field=name
        )


def option_of(name: str) -> str:
    """Return the option of `forecache cost` that sets an input."""
    return f"--{name.replace('_', '-')}"


def complete_figures(*sources: Mapping[str, Figure]) -> dict[str, Figure]:
    """Return each input from the first source that has it, else its default.

    A peak that nobody gave is the mean.
    """
    found = {
        name: figure
        for name, field in FIELDS.items()
        if (figure := next((one[name] for one in sources if name in one), field.default)) is not None
    }
    if "peak_rps" not in found and "rps" in found:
        mean = found["rps"]
        found["peak_rps"] = Figure(mean.value, Basis.DEFAULT, "no peak is known: the mean")
    return {name: found[name] for name in FIELDS if name in found}
