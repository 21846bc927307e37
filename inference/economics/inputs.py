"""Defines the inputs of a cost: unit, legal range, default and option of each, and where a figure came from.

The options of `forecache cost` are made from these fields, so this module imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, get_type_hints

from inference.errors import SettingsError

#: outside of these bounds, products of inputs overflow
_SMALLEST, _LARGEST = 1e-15, 1e15


class Basis(StrEnum):
    """Where a figure came from."""

    #: the caller gave it
    OPTION = "option"
    #: counted or timed in this deployment
    MEASURED = "measured"
    #: read from forecache.toml
    SETTINGS = "settings"
    #: the dated table of prices
    PRICES = "prices"
    #: the design article's example
    ARTICLE = "article"
    #: an assumption
    DEFAULT = "default"


@dataclass(frozen=True)
class Figure:
    """One number, where it came from, and how."""

    value: float
    origin: Basis
    how: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"value": self.value, "from": self.origin.value, "how": self.how}


class Range(NamedTuple):
    """The legal range of a finite number, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


ABOVE_0 = Range("a number above 0", lambda value: value > 0)
FROM_0 = Range("0 or more", lambda value: value >= 0)
FROM_0_TO_1 = Range("from 0 to 1", lambda value: 0 <= value <= 1)
FROM_0_BELOW_1 = Range("from 0 to below 1", lambda value: 0 <= value < 1)
ABOVE_0_TO_1 = Range("above 0, at most 1", lambda value: 0 < value <= 1)
WHOLE_FROM_1 = Range("a whole number from 1", lambda value: value >= 1 and value == int(value))
_ARTICLE = "the design article's assumption"


class Input(NamedTuple):
    """One input. `help`: of its option; `default`: None if nothing can be assumed; `because`: why this default."""

    unit: str
    help: str
    range: Range = ABOVE_0
    default: float | None = None
    because: str = ""


@dataclass(frozen=True)
class CostInputs:
    """Checked inputs: each is finite and in its range. Shares are 0 to 1, not percent."""

    entities: Annotated[float, Input("entities", "How many entities runs predict for.")]
    runs_per_day: Annotated[float, Input("runs/day", "Runs a day.", ABOVE_0, 1, "one run a day")]
    throughput: Annotated[
        float, Input("predictions/s", "Predictions/s of one batch instance.", ABOVE_0, 10_000, _ARTICLE)
    ]
    startup_s: Annotated[
        float,
        Input("s", "Seconds billed before a run's first prediction.", FROM_0, 0, "workers that stay up start nothing"),
    ]
    batch_instance_price: Annotated[float, Input("per hour", "Price of a batch instance and hour.")]
    spot_discount: Annotated[
        float, Input("share", "Discount on batch instances, 0 to 1.", FROM_0_BELOW_1, 0, "no spot instances")
    ]
    retry_factor: Annotated[
        float, Input("share", "Batch work done twice, as a share.", FROM_0, 0, "no work done twice")
    ]
    rps: Annotated[float, Input("requests/s", "Mean requests/s.")]
    peak_rps: Annotated[float, Input("requests/s", "Requests/s at the peak. Left out: the mean.")]
    instance_price: Annotated[
        float, Input("per hour", "Price of an instance and hour; of batch ones too, unless they have their own.")
    ]
    instance_rps: Annotated[
        float, Input("requests/s", "Requests/s that one instance computes.", ABOVE_0, 100, _ARTICLE)
    ]
    headroom: Annotated[
        float,
        Input("share", "Spare capacity over the peak, 0.5 for half more.", FROM_0, 0.5, "the design article's 50 %"),
    ]
    utilisation: Annotated[
        float, Input("share", "How far an instance may be used, 0 to 1.", ABOVE_0_TO_1, 1, "fully used at the peak")
    ]
    min_replicas: Annotated[float, Input("instances", "Real-time instances that always run.", WHOLE_FROM_1, 1, "one")]
    hit_rate: Annotated[
        float,
        Input(
            "share", "Share of requests that the cache answers, 0 to 1.", FROM_0_TO_1, 0.9, "an assumption: measure it"
        ),
    ]
    redis_price: Annotated[float, Input("per GB and month", "Price of a GB of Redis and month.", FROM_0)]
    bytes: Annotated[
        float,
        Input(
            "bytes/prediction",
            "Bytes of a prediction in Redis.",
            ABOVE_0,
            27,
            "a float32 prediction: benchmarks/memory.py",
        ),
    ]
    generations: Annotated[
        float,
        Input(
            "generations",
            "Generations kept in Redis at once.",
            ABOVE_0,
            3,
            "current, previous and the one being loaded",
        ),
    ]
    replicas: Annotated[
        float,
        Input("copies of Redis", "Copies of Redis, itself among them.", ABOVE_0, 1, "one server without replicas"),
    ]
    storage_price: Annotated[float, Input("per GB and month", "Price of a GB of files and month.", FROM_0)]
    storage_bytes: Annotated[
        float, Input("bytes/prediction", "Bytes of a prediction in Parquet files.", FROM_0, 0, "no Parquet files")
    ]
    storage_days: Annotated[float, Input("days", "Days that files are kept.", FROM_0, 30, "a month of files")]

    def __post_init__(self) -> None:
        for name in FIELDS:
            check_figure(name, getattr(self, name))
        if self.peak_rps < self.rps:
            told = f"peak_rps: {self.peak_rps:g} is less than rps ({self.rps:g}): no peak is below the mean"
            raise SettingsError(told, field="peak_rps")

    @classmethod
    def of(cls, figures: Mapping[str, Figure]) -> CostInputs:
        """Return the inputs with the values of figures.

        Raises:
            SettingsError: an input is missing, not finite, or out of its range; `field` names it.
        """
        missing = next((name for name in FIELDS if name not in figures), None)
        if missing is not None:
            raise SettingsError(
                f"{missing} is missing, and nothing measured tells it: give {option_of(missing)}", field=missing
            )
        for name in FIELDS:
            _check_size(name, figures[name].value)
        return cls(**{name: figures[name].value for name in FIELDS})


#: every input by its name in `CostInputs`
FIELDS: dict[str, Input] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(CostInputs, include_extras=True).items()
}


def check_figure(name: str, value: float) -> float:
    """Return the value if it is legal for that input.

    Raises:
        SettingsError: it is not finite, or out of range.
    """
    range_ = FIELDS[name].range
    if not math.isfinite(value) or not range_.holds(value):
        raise SettingsError(f"{name}: {value:g} cannot be used: {option_of(name)} is {range_.words}", field=name)
    return value


def _check_size(name: str, value: float) -> None:
    if math.isfinite(value) and value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise SettingsError(
            f"{name}: {value:g} is too {'large' if abs(value) > 1 else 'small'} to be meant", field=name
        )


def option_of(name: str) -> str:
    """Return the command-line option of an input or a fact."""
    return f"--{name.replace('_', '-')}"


def complete_figures(*sources: Mapping[str, Figure]) -> dict[str, Figure]:
    """Return each input from the first source that has it, else its default.

    If no source has the peak, the mean stands for it.
    """
    defaults = {
        name: Figure(field.default, Basis.DEFAULT, field.because)
        for name, field in FIELDS.items()
        if field.default is not None
    }
    found: dict[str, Figure] = {}
    for source in (*sources, defaults):
        found = {**source, **found}
    if "peak_rps" not in found and "rps" in found:
        found["peak_rps"] = Figure(found["rps"].value, Basis.DEFAULT, "no peak is known: the mean")
    return {name: found[name] for name in FIELDS if name in found}
