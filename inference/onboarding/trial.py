"""The proof before anything is written: one row of the table through the model, in a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from inference.entities import entity_ids_as_text, illegal_entity_ids
from inference.errors import ModelError, SourceError
from inference.features import FeatureContract, FeatureRows, Vectoriser
from inference.features.rows import examples, take
from inference.models import VersionRecord, prediction_values, score_rows
from inference.models.load_limits import LoadLimits, run_model_process
from inference.models.loading import try_version
from inference.models.runtimes import LoadOptions, keras_environment
from inference.models.versions import find_versions
from inference.models.warm_up import check_rows_alone
from inference.onboarding.gaps import Gaps, find_gaps
from inference.onboarding.head import TableHead, read_head
from inference.schema import Block
from inference.settings import WorkerSettings
from inference.sources import open_source

#: rows among which one without missing values is looked for
TRIAL_ROWS = 1_000
#: rows in which missing values are looked for
GAP_ROWS = 200_000
#: rows of which some are also tried alone
_TOGETHER = 32
#: a wide table is read less far
_TRIAL_VALUES = 2_000_000
_SHOWN_VALUE = 40
_SHOWN_ROW = 300


@dataclass(frozen=True, kw_only=True)
class TrialRequest:
    """What to try. `path`: the model's folder; `source`: the Parquet file or folder; both absolute."""

    model: str
    path: str
    version: int
    contract: FeatureContract
    source: str
    entity_column: str
    allow_code: bool = False
    code_folder: str | None = None
    signature: str | None = None
    engine_hosts: list[str] | None = None
    #: features with gaps that the model bears become nullable
    adapt: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**self.__dict__, "contract": self.contract.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialRequest:
        """Rebuild from `to_json`."""
        return cls(**{**data, "contract": FeatureContract.from_json(data["contract"])})


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One scored row. Of the first `rows` rows, `unusable` ones cannot be scored, `why` being the first reason.

    `contract`: that of the request, with features nullable that may be missing; `advice`: what to write for others.
    """

    entity_id: str
    prediction: Any
    rows: int
    unusable: int
    why: str | None
    contract: FeatureContract
    advice: str | None = None


def try_row_in_subprocess(request: TrialRequest, workers: WorkerSettings) -> Trial:
    """Do what `try_row` does without importing TensorFlow into this process; takes seconds.

    Raises:
        ModelError: what `try_row` raised, in one line.
    """
    output = run_model_process(
        "workers.try_row",
        what=f"model {request.model!r}",
        limits=LoadLimits.of(workers, Path(request.path)),
        stdin=json.dumps(request.to_json()),
        environment=keras_environment(workers.keras_backend),
    )
    data = json.loads(output.strip().splitlines()[-1])
    return Trial(**{**data, "contract": FeatureContract.from_json(data["contract"])})


def try_row(request: TrialRequest) -> Trial:
    """Score the first usable row of the table with the model.

    Raises:
        SourceError: none of the first rows can be used; the first is shown.
        ModelError: the model cannot be loaded, or fails on the row, which is shown.
    """
    path = Path(request.path)
    folder = find_versions(path)[request.version]
    options = LoadOptions(
        allow_code=request.allow_code,
        code_folder=Path(request.code_folder) if request.code_folder else None,
        signature=request.signature,
        engine_hosts=None if request.engine_hosts is None else tuple(request.engine_hosts),
    )
    loaded = try_version(request.model, path, request.version, folder, options=options, contract=request.contract)
    if isinstance(loaded, VersionRecord):
        raise ModelError(loaded.error or "it cannot be loaded")
    head = _read_head(request, loaded.vectoriser)
    gaps = find_gaps(loaded, head) if request.adapt else Gaps(request.contract, None)
    if gaps.contract != request.contract:
        loaded.known_vectoriser = Vectoriser(gaps.contract, loaded.vectoriser.signature)
    ids, rows = _first_rows(request, loaded.vectoriser, head)
    bad = rows.rejected | np.asarray(illegal_entity_ids(ids))
    why = _why_not(ids, rows, bad, request.entity_column)
    if bad.all():
        hint = f"; {gaps.advice}" if gaps.advice else ""
        raise SourceError(
            f"none of the first {len(ids)} rows of {Path(request.source).name} can be scored: {why}{hint}",
            field="features",
        )
    chosen = int(np.flatnonzero(~bad)[0])
    row = take(rows.block, np.array([chosen]))
    scored = score_rows(loaded, row)
    if scored.failed[0]:
        raise ModelError(
            f"the model fails on the row of {ids[chosen].as_py()!r}: {scored.reasons[0]}; the row: {_shown(row)}"
        )
    check_rows_alone(loaded.runtime, loaded.vectoriser.inputs(take(rows.block, np.flatnonzero(~bad)[:_TOGETHER])))
    prediction = prediction_values(scored.outputs)[0]
    return Trial(
        entity_id=ids[chosen].as_py(),
        prediction=prediction,
        rows=len(ids),
        unusable=int(bad.sum()),
        why=why or None,
        contract=gaps.contract,
        advice=gaps.advice,
    )


def trial_to_json(trial: Trial) -> str:
    """Return the trial as one line of JSON."""
    return json.dumps({**trial.__dict__, "contract": trial.contract.to_json()})


def _read_head(request: TrialRequest, vectoriser: Vectoriser) -> TableHead:
    """Return so many of the table's first rows that gaps show, or only as many as are tried."""
    names = list(dict.fromkeys([request.entity_column, *vectoriser.columns]))
    source = open_source(request.source, as_text=[request.entity_column, *vectoriser.text_columns])
    return read_head(source, names, rows=GAP_ROWS if request.adapt else TRIAL_ROWS)


def _first_rows(request: TrialRequest, vectoriser: Vectoriser, head: TableHead) -> tuple[pa.Array, FeatureRows]:
    """Return ids as text and features of the table's first rows."""
    rows = max(1, min(TRIAL_ROWS, _TRIAL_VALUES // max(request.contract.width, 1)))
    batch = head.table.slice(0, rows).combine_chunks().to_batches()[0]
    ids = entity_ids_as_text(batch.column(request.entity_column), request.entity_column)
    return ids, vectoriser.features_from_arrow(batch, at=time.time())


def _why_not(ids: pa.Array, rows: FeatureRows, bad: npt.NDArray[np.bool_], entity_column: str) -> str:
    if rows.reasons:
        return next(examples(rows.reasons, lambda row: repr(ids[row].as_py()), most=1))
    return f"{int(bad.sum())} have no legal id in {entity_column!r}" if bad.any() else ""


def _shown(row: Block) -> str:
    """Return a row as text of bounded length, whatever its values are."""
    values = {name: _shortened(column[0]) for name, column in row.items()}
    text = ", ".join(f"{name}={value}" for name, value in values.items())
    return text if len(text) <= _SHOWN_ROW else text[: _SHOWN_ROW - 1] + "…"


def _shortened(value: Any) -> str:
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    text = json.dumps(plain, ensure_ascii=False)
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"
