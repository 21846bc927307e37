"""Holds what the API answers: predictions, updates, runs, hit rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload

from forecache.errors import ForecacheError, error_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Prediction:
    """One prediction.

    `value`: a number, a list, or an object by output name, as the model gives it. `outcome`: where it came from, such
    as `hit_batch` or `computed`. `as_of`: age of its features. `degraded`: older than asked for, or a default.
    `entity_id` is None for an instance, `model_version` and `as_of` are None for a default.
    """

    entity_id: str | None
    model: str
    model_version: int | None
    value: Any
    outcome: str
    source: str
    cache_hit: bool
    stale: bool
    degraded: bool
    as_of: datetime | None
    computed_at: datetime
    imputed_features: Sequence[str] = ()
    explanation: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Prediction:
        """Return the prediction of an answer's JSON."""
        return cls(
            entity_id=item["entity_id"],
            model=item["model"],
            model_version=item["model_version"],
            value=item["prediction"],
            outcome=item["outcome"],
            source=item["source"],
            cache_hit=item["cache_hit"],
            stale=item["stale"],
            degraded=item["degraded"],
            as_of=_instant(item["as_of"]),
            computed_at=datetime.fromisoformat(item["computed_at"]),
            imputed_features=tuple(item.get("imputed_features", ())),
            explanation=item.get("explanation"),
        )


@dataclass(frozen=True)
class Failed:
    """An entity or instance without a prediction, and why. `value` is None, so lists of values keep their order."""

    entity_id: str | None
    error: ForecacheError
    value: None = None


class Predictions(Sequence["Prediction | Failed"]):
    """Predictions in the order of the request; one that failed is a `Failed` in its place."""

    def __init__(self, items: Sequence[Prediction | Failed], index: Any = None) -> None:
        self._items = items
        self._index = index

    @overload
    def __getitem__(self, at: int) -> Prediction | Failed: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Prediction | Failed]: ...
    def __getitem__(self, at: int | slice) -> Prediction | Failed | Sequence[Prediction | Failed]:
        return self._items[at]

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"<{len(self)} predictions, {len(self.failed)} failed>"

    @property
    def values(self) -> list[Any]:
        """The predicted values in order; None for each that failed."""
        return [item.value for item in self._items]

    @property
    def failed(self) -> list[Failed]:
        """Those that failed, in order."""
        return [item for item in self._items if isinstance(item, Failed)]

    def raise_failed(self) -> Predictions:
        """Return these predictions if none failed.

        Raises:
            ForecacheError: the error of the first one that failed.
        """
        for item in self.failed:
            raise item.error
        return self

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row for each prediction: entity_id, value, outcome, as_of, model_version, error.

        Its index is that of the Series or DataFrame that was asked for.
        """
        import pandas as pd

        rows = [
            (item.entity_id, None, None, None, None, item.error.message)
            if isinstance(item, Failed)
            else (item.entity_id, item.value, item.outcome, item.as_of, item.model_version, None)
            for item in self._items
        ]
        columns = ["entity_id", "value", "outcome", "as_of", "model_version", "error"]
        return pd.DataFrame(rows, columns=columns, index=self._index)


@dataclass(frozen=True)
class Update:
    """The result of new features of an entity.

    `applied` is false if some groups hold newer features: these are `not_applied`. `as_of`: time of the values that
    are stored now.
    """

    entity_id: str
    applied: bool
    as_of: datetime
    not_applied: Sequence[str]

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Update:
        """Return the result of an answer's JSON."""
        not_applied = tuple(item["not_applied"])
        return cls(item["entity_id"], item["applied"], datetime.fromisoformat(item["as_of"]), not_applied)


@dataclass(frozen=True)
class Run:
    """A batch run: its id, model and state, such as `published`; `details` holds the API's whole answer."""

    run_id: str
    model: str
    state: str
    details: Mapping[str, Any]

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Run:
        """Return the run of an answer's JSON."""
        return cls(item["run_id"], item["model"], item["state"], item)


@dataclass(frozen=True)
class HitRate:
    """Outcomes of a model's requests within `window_s` seconds.

    `total` is the sum of all outcomes except `unknown`. `rate` lies between 0 and 1; None if there were no requests.
    """

    model: str
    window_s: int
    total: int
    rate: float | None
    outcomes: Mapping[str, int]

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> HitRate:
        """Return the hit rate of an answer's JSON."""
        return cls(item["model"], item["window_s"], item["total"], item["hit_rate"], item["outcomes"])


@dataclass(frozen=True)
class Forgotten:
    """Whether an entity is forgotten. `done`: all was removed that could be found; `details`: the whole answer."""

    entity_id: str
    model: str
    forgotten: bool
    done: bool
    details: Mapping[str, Any]

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Forgotten:
        """Return what an answer's JSON says."""
        return cls(item["entity_id"], item["model"], item["forgotten"], item["done"], item)


def item_of(item: Mapping[str, Any]) -> Prediction | Failed:
    """Return the prediction or failure of one item of a list."""
    if "error" in item:
        return Failed(item["entity_id"], error_of(item["error"]))
    return Prediction.from_json(item)


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
