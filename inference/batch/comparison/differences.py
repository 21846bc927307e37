"""The records of a comparison: how a run's predictions differ from those that serve, or served before it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from inference.errors import BadInput, Unreadable
from inference.failures import sentence_of
from inference.schema import DType, TensorSpec
from inference.stored_data import json_of, json_text_of, record_from_json

#: ids that a comparison names for each output, at most
MAX_TOP = 1_000

_STRICT = ConfigDict(json_schema_serialization_defaults_required=True)


@dataclass(frozen=True)
class DiffOptions:
    """What to compare. `threshold`: numbers from it on are one decision, those below it the other; None: none.

    `tolerance`: the absolute change up to which a prediction counts as unmoved; None: the noise of floats. `segment`:
    a column of the run's source. `top`: the number of ids that moved most. `features`: compare the features too.
    """

    threshold: Annotated[float | None, Field(allow_inf_nan=False)] = None
    tolerance: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    segment: str | None = None
    top: Annotated[int, Field(ge=1, le=MAX_TOP)] = 10
    features: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> DiffOptions:
        """Rebuild from `to_json`.

        Raises:
            BadInput: these are no options.
        """
        try:
            return record_from_json(cls, json.dumps(data), "the options of a comparison")
        except (Unreadable, TypeError, ValueError) as error:
            raise BadInput(sentence_of(error), field="options") from error


@dataclass(frozen=True)
class Distribution:
    """Values of one generation. `quantiles`: `p50` → value, from a sample of up to a million rows."""

    __pydantic_config__ = _STRICT

    count: int
    mean: float
    std: float
    min: float
    max: float
    quantiles: Mapping[str, float]


@dataclass(frozen=True)
class SideBySide:
    """Shares of the values in equal bins between `edges`; the first and the last bin also hold what lies beyond."""

    __pydantic_config__ = _STRICT

    edges: Sequence[float]
    before: Sequence[float]
    after: Sequence[float]


@dataclass(frozen=True)
class Flips:
    """Entities whose decision differs, out of those in both generations. `up`, `down`: across a threshold."""

    __pydantic_config__ = _STRICT

    rows: int
    share: float
    up: int | None = None
    down: int | None = None


@dataclass(frozen=True)
class Mover:
    """One entity whose prediction moved far. `id` is None if the store only has a digest of a long id."""

    __pydantic_config__ = _STRICT

    id: str | None
    before: Any
    after: Any
    movement: float


@dataclass(frozen=True)
class TextChange:
    """Rows whose text changed in the same way. A text is None if there are too many different ones to keep."""

    __pydantic_config__ = _STRICT

    before: str | None
    after: str | None
    rows: int


@dataclass(frozen=True)
class Segment:
    """The entities with one value of the segment column. Means are None for text; `flipped` without decisions."""

    __pydantic_config__ = _STRICT

    value: str
    rows: int
    moved: float
    mean_before: float | None = None
    mean_after: float | None = None
    flipped: float | None = None


@dataclass(frozen=True)
class OutputDiff:
    """One output. `kind`: number, vector, or text (also arrays of any length), which is only compared for equality.

    `moved`: share of the entities in both generations that moved more than the tolerance. `movement`: quantiles of
    the distance; that of a vector is its largest among the elements. `decision`: what counts as one. `left_out`: in
    words, what makes no sense for this output.
    """

    __pydantic_config__ = _STRICT

    name: str
    kind: str
    moved: float
    before: Distribution | None = None
    after: Distribution | None = None
    histogram: SideBySide | None = None
    movement: Mapping[str, float] | None = None
    decision: str | None = None
    flips: Flips | None = None
    movers: Sequence[Mover] = ()
    changes: Sequence[TextChange] = ()
    segments: Sequence[Segment] = ()
    left_out: Sequence[str] = ()


@dataclass(frozen=True)
class FeatureMove:
    """One feature. `drift`: population stability index; None for text or too few values.

    `changed` (share of the entities) and `moved` (mean distance, in standard deviations of the values before): only
    of the same entities, so None for a table's columns.
    """

    __pydantic_config__ = _STRICT

    name: str
    drift: float | None = None
    changed: float | None = None
    moved: float | None = None
    mean_before: float | None = None
    mean_after: float | None = None


@dataclass(frozen=True)
class FeatureMoves:
    """The features that moved most, first. `how`: in words, what was compared, or why nothing was."""

    __pydantic_config__ = _STRICT

    how: str
    rows: int = 0
    features: Sequence[FeatureMove] = ()


@dataclass(frozen=True, kw_only=True)
class RunDiff:
    """A run compared with what serves, or served before it. Instants are ISO 8601 UTC.

    `rows_both`, `rows_new` and `rows_gone`: entities in both generations, only in the run's, only in the other.
    """

    __pydantic_config__ = _STRICT

    run_id: str
    model: str
    made_at: str
    generation: int
    model_version: int
    against_generation: int
    against_version: int
    against_run: str | None
    rows_both: int
    rows_new: int
    rows_gone: int
    options: DiffOptions
    outputs: Sequence[OutputDiff]
    features: FeatureMoves | None = None
    notes: Sequence[str] = ()
    #: its rows are gone from Redis by now: this is the comparison that was kept
    is_kept: bool = field(default=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values: dict[str, Any] = json_of(type(self), self)
        return values

    def to_text(self) -> str:
        """Return the JSON that `from_text` reads."""
        return json_text_of(type(self), self)

    @classmethod
    def from_text(cls, text: bytes | str, run_id: str) -> RunDiff:
        """Rebuild from `to_text`.

        Raises:
            Unreadable: it is no comparison.
        """
        return record_from_json(cls, text, f"the comparison of run {run_id}")


def check_comparable(whose: str, new: Sequence[TensorSpec], old: Sequence[TensorSpec]) -> None:
    """Refuse to compare outputs with other names, shapes or kinds. `whose`: names the new ones in the error.

    Raises:
        BadInput: they differ.
    """
    if sorted(map(_kind, new)) != sorted(map(_kind, old)):
        raise BadInput(
            f"{whose} predicts other outputs than what serves: {_named(new)}, and there {_named(old)}", field="run_id"
        )


def _kind(spec: TensorSpec) -> tuple[str, tuple[int, ...], bool]:
    return spec.name, spec.shape, spec.dtype is DType.STRING


def _named(fields: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r} {spec.dtype.value}{list(spec.shape) if spec.shape else ''}" for spec in fields)
