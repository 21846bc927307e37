"""`LocalReader`: reads predictions in the service's own process, from a file that follows the deployment."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from forecache.answers import Failed, Prediction
from forecache.client import Client
from forecache.errors import BadRequest, Unavailable, UnknownModel
from forecache.inputs import entity_id_of, entity_ids_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from inference.local_reader import LocalRows, LocalStore
    from inference.outcomes import Outcome
    from inference.store import Manifest

MISSING = (
    "LocalReader reads Redis itself and needs the server's package beside the client: pip install forecache "
    "(in a checkout: pip install . ./client)"
)
_LOOK_EVERY_S = 0.02


@dataclass(frozen=True)
class ReaderState:
    """The state of a reader.

    `generation`, `model_version`: of the file that answers; None if none does. `outcome`: of its answers, `hit_batch`
    or `previous`. `entities`, `bytes`: how many it holds, and its size. `heard_at`: when Redis last answered; None if
    it never did. `error`: what is wrong now; None if nothing is.
    """

    model: str
    generation: int | None
    model_version: int | None
    outcome: str | None
    entities: int
    bytes: int
    heard_at: datetime | None
    error: str | None


class LocalReader:
    """Answers from the generation that serves, in microseconds, without a request. Threads may share it.

    Needs the server's package (`pip install forecache`), its settings file, and a Redis user that may read
    predictions. `client`: answers what the file cannot, such as an entity that it lacks; None: such reads give None.
    `settings`: the settings file; None: `FORECACHE_CONFIG`, else `forecache.toml` in the working directory. `folder`:
    where the files lie, which the processes of this user on this host share; None: the user's cache folder.
    `max_staleness_hours`: age limit of the answers; None: the model's `ttl`. `allow_degraded`: also gives answers that
    are older, and those of the generation before while a new one loads; they are marked `degraded`.

    Raises:
        ImportError: the server's package is missing; the message says how to install it.
        BadRequest: the settings are wrong; `UnknownModel`: they do not have the model.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        client: Client | None = None,
        settings: str | Path | None = None,
        folder: str | Path | None = None,
        max_staleness_hours: float | None = None,
        allow_degraded: bool = False,
    ) -> None:
        limit_s = None if max_staleness_hours is None else max_staleness_hours * 3600
        self._store = _open_store(model, settings, folder, limit_s, allow_degraded)
        self._client = client
        self._shared = _Shared(self._store.model)

    def __repr__(self) -> str:
        return f"<LocalReader of {self._store.model}>"

    def __enter__(self) -> LocalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, entity_id: str | int) -> Prediction | None:
        """Return the prediction of one entity. Without a client, returns None if the file has no answer.

        Raises:
            BadRequest: it is no id.
            ForecacheError: the client was asked and has no answer.
        """
        if type(entity_id) is not str:
            entity_id = entity_id_of(entity_id)
        store = self._store
        try:
            found = store.get(entity_id)
        except UnicodeEncodeError:
            raise _not_text() from None
        if found is not None:
            return self._shared.prediction(entity_id, *found)
        return None if self._client is None else self._client.predict(entity_id, model=store.model)

    def get_many(self, entity_ids: Any) -> LocalPredictions:
        """Return the predictions of many entities (a list, an array, a Series), in order; None where there is none.

        With a client, asks it for those that the file lacks, all at once.

        Raises:
            BadRequest: they are no ids.
            ForecacheError: the client was asked, and its request failed as a whole.
        """
        ids = entity_ids.tolist() if hasattr(entity_ids, "tolist") else entity_ids
        try:
            if not isinstance(ids, list):
                raise TypeError  # noqa: TRY301 - as an id that is not text
            rows = self._store.get_many(ids)
        except TypeError:
            ids = entity_ids_of(ids)
            rows = self._store.get_many(ids)
        except UnicodeEncodeError:
            raise _not_text() from None
        missing = list(range(len(ids))) if rows is None else (~rows.found).nonzero()[0].tolist()
        answers: dict[int, Prediction | Failed] = {}
        if missing and self._client is not None:
            asked = self._client.predict_many([ids[i] for i in missing], model=self._store.model)
            answers = dict(zip(missing, asked, strict=True))
        return LocalPredictions(self._store.model, ids, rows, answers)

    def state(self) -> ReaderState:
        """Return which generation answers, and what is wrong, for health checks."""
        follower, model = self._store.follower, self._store.model
        serving, heard_at = follower.serving, follower.heard_at
        heard = None if heard_at is None else _instant(heard_at)
        if serving is None:
            return ReaderState(model, None, None, None, 0, 0, heard, follower.error)
        packed = serving.packed
        of_file = (packed.manifest.number, packed.manifest.model_version, serving.outcome.value)
        return ReaderState(model, *of_file, packed.rows, packed.size, heard, follower.error)

    def wait_ready(self, timeout_s: float = 60.0) -> ReaderState:
        """Wait until a file answers, and return the state. A service may as well start at once.

        Raises:
            Unavailable: none does within `timeout_s`; the message says why.
        """
        end = time.monotonic() + timeout_s
        while (state := self.state()).generation is None:
            if time.monotonic() >= end:
                why = state.error or "no generation is published, or it is still being loaded"
                raise Unavailable(f"no file of {state.model!r} after {timeout_s:g} s: {why}")
            time.sleep(_LOOK_EVERY_S)
        return state

    def close(self) -> None:
        """Add the last reads to the counters, and end."""
        self._store.close()


class LocalPredictions(Sequence["Prediction | Failed | None"]):
    """Predictions of `get_many`, in order: a `Prediction`; None where there is none; `Failed` where the client failed.

    `values` is a list. `block` holds the file's values as arrays by output, for numpy: rows without `found` hold zeros
    there, also if the client has answered.
    """

    def __init__(
        self, model: str, entity_ids: Sequence[str], rows: LocalRows | None, answers: dict[int, Prediction | Failed]
    ) -> None:
        self._shared = _Shared(model)
        self._ids = entity_ids
        self._rows = rows
        self._answers = answers

    @overload
    def __getitem__(self, at: int) -> Prediction | Failed | None: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Prediction | Failed | None]: ...
    def __getitem__(self, at: int | slice) -> Prediction | Failed | Sequence[Prediction | Failed | None] | None:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        place = range(len(self))[at]
        rows = self._rows
        if rows is None or not rows.found[place]:
            return self._answers.get(place)
        outcome = rows.old_outcome if rows.is_old[place] else rows.outcome
        value = _value({name: column[place].tolist() for name, column in rows.block.items()})
        return self._shared.prediction(self._ids[place], float(rows.as_of[place]), value, outcome, rows.manifest)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"<{len(self)} predictions, {self.values.count(None)} missing>"

    @property
    def values(self) -> list[Any]:
        """The predicted values in order; None where there is no prediction."""
        values: list[Any] = [None] * len(self)
        if self._rows is not None:
            names, found = list(self._rows.block), self._rows.found
            columns = [column.tolist() for column in self._rows.block.values()]
            values = columns[0]
            if len(columns) > 1:
                values = [dict(zip(names, one, strict=True)) for one in zip(*columns, strict=True)]
            if not found.all():
                values = [value if here else None for value, here in zip(values, found.tolist(), strict=True)]
        for place, answer in self._answers.items():
            values[place] = answer.value
        return values

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """Whether the file has answered; one for each id."""
        import numpy as np

        return np.zeros(len(self), np.bool_) if self._rows is None else self._rows.found

    @property
    def block(self) -> dict[str, npt.NDArray[Any]]:
        """The file's values: output → array (n, *shape). Empty if no file answers."""
        return {} if self._rows is None else dict(self._rows.block)


def _open_store(
    model: str | None, settings: str | Path | None, folder: str | Path | None, limit_s: float | None, degraded: bool
) -> LocalStore:
    try:
        from inference.errors import ForecacheError as ServerError
        from inference.local_reader import LocalStore
    except ImportError as error:
        hidden_by = getattr(sys.modules.get("inference"), "__file__", None)
        raise ImportError(f"{MISSING}{f'; {hidden_by} hides a part of it' if hidden_by else ''} ({error})") from None
    try:
        return LocalStore(
            model,
            settings=None if settings is None else Path(settings),
            folder=None if folder is None else Path(folder),
            limit_s=limit_s,
            allows_degraded=degraded,
        )
    except ServerError as error:
        kind = UnknownModel if error.code == "unknown-model" else BadRequest
        raise kind(error.message, code=error.code, field=error.field) from None


class _Shared:
    """Makes predictions; remembers what those of one generation and outcome share."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._known: tuple[Manifest | None, Outcome | None, dict[str, Any]] = (None, None, {})

    def prediction(self, entity_id: str, as_of: float, value: Any, outcome: Outcome, manifest: Manifest) -> Prediction:
        """Return a prediction. `as_of`: epoch seconds."""
        of, with_outcome, fields = self._known
        if of is not manifest or with_outcome is not outcome:
            fields = self._fields(outcome, manifest)
            self._known = (manifest, outcome, fields)
        made = Prediction.__new__(Prediction)
        # the constructor of a frozen dataclass sets field by field, which takes longer than the look-up
        made.__dict__.update(fields, entity_id=entity_id, value=value, as_of=_instant(as_of))
        return made

    def _fields(self, outcome: Outcome, manifest: Manifest) -> dict[str, Any]:
        return vars(
            Prediction(
                entity_id=None,
                model=self._model,
                model_version=manifest.model_version,
                value=None,
                outcome=outcome.value,
                source="batch",
                cache_hit=outcome.is_hit,
                stale=outcome.is_stale,
                degraded=outcome.is_degraded,
                as_of=None,
                computed_at=_instant(manifest.created_at),
            )
        )


def _value(values: dict[str, Any]) -> Any:
    return next(iter(values.values())) if len(values) == 1 else values


@lru_cache(maxsize=4096)
def _instant(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(epoch_s, UTC)


def _not_text() -> BadRequest:
    return BadRequest("entity_id: it is not valid UTF-8", field="entity_id")
