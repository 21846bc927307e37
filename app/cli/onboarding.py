"""The conversation of `forecache init`: look, decide, try, write, say what comes next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import typer

from app.cli.asking import Asker
from app.cli.http import base_url
from inference import onboarding
from inference.errors import Conflict, ModelError, SettingsError
from inference.features import check_key_columns
from inference.features.contract import CONTRACT_FILE, find_contract
from inference.models import Inspect, VersionRecord, find_versions, inspect_in_subprocess
from inference.models.formats import SAVED_MODEL, find_model_file, format_named
from inference.models.loading import signatures_in_subprocess
from inference.models.runtimes import SavedSignature
from inference.onboarding import (
    Guess,
    Match,
    ModelFolder,
    Proposal,
    Target,
    Trial,
    TrialRequest,
    UserTable,
    WidthMismatch,
)
from inference.schema import DType, TensorSpec
from inference.settings import ModelSettings, Settings, WorkerSettings, load_settings, settings_file
from inference.settings.fields import parse_schedule
from inference.settings.settings import MODEL_NAME
from inference.sources import Source, open_source

_LABEL_WIDTH = len("event_time_column:")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line gave; None is asked for, or guessed."""

    model: str | None
    features: str | None
    entity_column: str | None
    event_time_column: str | None
    columns: str | None
    name: str | None
    schedule: str
    force: bool
    allow_code: bool = False
    rows: Literal["one", "newest"] = "one"
    signature: str | None = None


class Onboarding:
    """Makes a deployment's first settings. Nothing is written before a row of the table has been scored."""

    def __init__(
        self,
        options: Options,
        asker: Asker,
        *,
        inspect: Inspect = inspect_in_subprocess,
        try_row: Callable[[TrialRequest], Trial] | None = None,
        signatures: Callable[[Path], Mapping[str, SavedSignature]] | None = None,
    ) -> None:
        self._options = options
        self._asker = asker
        self._inspect = inspect
        self._workers = _worker_settings()
        self._try_row = try_row or partial(onboarding.try_row_in_subprocess, workers=self._workers)
        self._signatures = signatures or partial(
            signatures_in_subprocess, workers=self._workers, allow_code=options.allow_code
        )

    def run(self) -> None:
        """Go all the way from the options to the files.

        Raises:
            ForecacheError: something is missing or does not fit, in one line; nothing was written.
        """
        options, need = self._options, self._asker.need
        _check_schedule(options.schedule)
        target = Target.find(settings_file(), force=options.force)
        what = "folder of the model (or of its versions 1/, 2/, …), or its file"
        path = need("--model", what, options.model, onboarding.check_model)
        name = _model_name(options.name, path)
        target.check_model(name)
        source = need("--features", "Parquet file or folder, one row per entity", options.features, _source)
        _say("table", f"{source.path}: {_number(source.rows)} rows, {_number(len(source.schema.names))} columns")
        entity = self._entity_column(source, name)
        event_time = self._event_time_column(source, entity)
        if options.rows == "newest" and event_time.value is None:
            raise SettingsError("--rows newest needs --event-time-column: the column that dates the rows", field="rows")
        with onboarding.model_folder(path, target.root / "models" / name) as folder:
            self._set_up(target, name, folder, source, entity, event_time)

    def _set_up(
        self, target: Target, name: str, folder: ModelFolder, source: Source, entity: Guess, event_time: Guess
    ) -> None:
        """Try the model in a folder on a row of the table, and write the settings."""
        taken = [one for one in (entity.value, event_time.value) if one]
        signature, record = self._newest_version(target, name, folder.path, _table_of(source, name, taken))
        texts = [feature.table_column for feature in record.contract.given if feature.dtype is DType.STRING]
        if source.files[0].partition:  # columns of folders are typed by their use
            source = open_source(source.path, as_text=[str(entity.value), *texts])
        match = self._match(record, folder.path, _table_of(source, name, taken, record))
        trial = self._try(name, folder.path, record, match, source, str(entity.value), signature, target.root)
        contract = replace(match, contract=trial.contract)
        contract_file = self._contract_file(record, contract, folder.path)
        proposal = Proposal(
            model=name,
            path=onboarding.spelled(folder.home, target.root),
            features=onboarding.spelled(Path(source.path), target.root),
            allow_code=self._options.allow_code,
            rows=self._options.rows,
            signature=signature,
            entity_column=entity,
            event_time_column=event_time,
            matched=match.reason,
            schedule=self._options.schedule,
            ages=onboarding.ages_for(self._options.schedule, time.time()),
        )
        rendered = {contract_file: onboarding.render_contract(trial.contract)} if contract_file else {}
        settings = _write(target, proposal, rendered, folder)
        _next_steps(settings, proposal, source, trial)

    def _entity_column(self, source: Source, name: str) -> Guess:
        """Return the column of ids and why it can be it."""
        may_repeat = self._options.rows == "newest"

        def check(column: str) -> Guess:
            check_key_columns(source, column, None)
            head = onboarding.read_head(source, [column])
            return Guess(column, onboarding.check_entity_column(head, column, may_repeat=may_repeat))

        guess = None
        if self._options.entity_column is None:
            candidates = onboarding.entity_candidates(source.schema, f"{Path(source.path).stem} {name}")
            guess = onboarding.guess_entity_column(
                onboarding.read_head(source, candidates),
                onboarding.unfit_id_columns(source.schema),
                may_repeat=may_repeat,
            )
            _say("guess", guess.reason if guess.value is None else f"entity column {guess.value!r}: {guess.reason}")
        chosen = self._asker.need(
            "--entity-column",
            "column of entity ids",
            self._options.entity_column,
            check,
            guess.value if guess else None,
        )
        _say("entity_column", f"{chosen.value!r}: {chosen.reason}")
        return chosen

    def _event_time_column(self, source: Source, entity: Guess) -> Guess:
        """Return the column of event times, as given or guessed; no question is asked for it."""
        given, now = self._options.event_time_column, datetime.now(UTC)
        if given is not None:
            check_key_columns(source, str(entity.value), given)
            chosen = onboarding.given_event_time(given, onboarding.newest_times(source, [given]), now)
        else:
            candidates = onboarding.time_candidates(source.schema)
            chosen = onboarding.guess_event_time(candidates, onboarding.newest_times(source, candidates), now)
        _say("event_time_column", f"{chosen.value!r}: {chosen.reason}" if chosen.value else f"none: {chosen.reason}")
        return chosen

    def _match(self, record: VersionRecord, path: Path, table: UserTable) -> Match:
        """Return which columns are the model's features; asks when that cannot be told."""

        def listed(columns: str) -> Match:
            names = [column.strip() for column in columns.split(",") if column.strip()]
            return onboarding.match_listed(record.signature, table, names)

        try:
            if self._options.columns is not None:
                match = listed(self._options.columns)
            elif find_contract(path, _version_folder(path, record)):
                match = onboarding.match_written(record.contract, record.signature, table)
            else:
                match = onboarding.match_columns(
                    record.signature, table, text_by_table=format_named(record.format).missing_text
                )
        except WidthMismatch as error:
            if not self._asker.interactive:
                raise
            _say("columns", error.message)
            match = self._asker.ask("Columns, in the order of the tensor, with commas between", listed)
        _say("features", match.reason)
        return match

    def _contract_file(self, record: VersionRecord, match: Match, path: Path) -> Path | None:
        """Return where the contract must be written; None when what holds already is the same."""
        if match.contract == record.contract:
            return None
        found = find_contract(path, _version_folder(path, record))
        if found and not self._options.force:
            raise Conflict(f"{found} already lists other columns: --force replaces it, without --columns it is used")
        place = found or path / CONTRACT_FILE
        onboarding.check_writable(place.parent)
        return place

    def _newest_version(
        self, target: Target, name: str, path: Path, table: UserTable
    ) -> tuple[str | None, VersionRecord]:
        """Return the newest version that can be served, and which of its signatures if not the usual one."""
        _say("loading", "the model, in a process of its own; this takes some seconds")
        signature, failure, record = self._options.signature, None, None
        try:
            record = self._inspected(target, name, path, signature)
        except ModelError as error:
            failure = error
        if signature is None and self._options.columns is None and self._may_choose(record, path, table):
            chosen = self._choice(path, table)
            if chosen:
                signature = chosen[0]
                _say("signature", f"{signature!r}: {chosen[1]}")
                record, failure = self._inspected(target, name, path, signature), None
        if record is None:
            raise failure or ModelError("the model cannot be loaded")
        inputs = ", ".join(map(_spec, record.signature.inputs[:20]))
        outputs = ", ".join(map(_spec, record.signature.outputs[:20]))
        _say("version", f"{record.version}: {inputs} -> {outputs}")
        if record.notice:
            _say("note", record.notice)
        return signature, record

    def _inspected(self, target: Target, name: str, path: Path, signature: str | None) -> VersionRecord:
        model = ModelSettings(path=path.absolute(), allow_code=self._options.allow_code, signature=signature)
        settings = Settings.of_folder(target.root, models={name: model}, workers=self._workers)
        records = self._inspect(settings, name)
        ready = [version for version, record in records.items() if record.state == "ready"]
        if not ready:
            raise ModelError(str(records[max(records)].error), field="path")
        return records[max(ready)]

    def _choice(self, path: Path, table: UserTable) -> tuple[str, str] | None:
        try:
            found = self._signatures(path)
        except ModelError:  # what is wrong with the model, or with its columns, is said by those who look at them
            return None
        return onboarding.choose_signature(found, table)

    def _may_choose(self, record: VersionRecord | None, path: Path, table: UserTable) -> bool:
        """Tell whether another signature of a SavedModel may be the right one."""
        newest = max(find_versions(path).items())[1]
        found = find_model_file(newest)
        if found is None or found.format.name != SAVED_MODEL or find_contract(path, newest):
            return False
        return onboarding.needs_choice(record.signature if record else None, table)

    def _try(
        self,
        name: str,
        path: Path,
        record: VersionRecord,
        match: Match,
        source: Source,
        entity_column: str,
        signature: str | None,
        root: Path,
    ) -> Trial:
        """Score one row and show it."""
        request = TrialRequest(
            model=name,
            path=str(path.absolute()),
            version=record.version,
            contract=match.contract,
            source=str(Path(source.path).absolute()),
            entity_column=entity_column,
            allow_code=self._options.allow_code,
            code_folder=str(root),
            signature=signature,
            engine_hosts=self._workers.engine_hosts,
            adapt=self._options.columns is not None or not find_contract(path, _version_folder(path, record)),
        )
        trial = self._try_row(request)
        _say("scored", f"{trial.entity_id!r} -> {trial.prediction!s:.200}")
        bears = [one.name for one in trial.contract.features if one.nullable and one not in match.contract.features]
        if bears:
            _say("missing", f"the model takes rows that lack {', '.join(bears[:20])}: nullable in {CONTRACT_FILE}")
        if trial.advice:
            _say("note", trial.advice)
        if trial.unusable:
            _say(
                "note",
                f"of the first {_number(trial.rows)} rows {_number(trial.unusable)} cannot be scored: {trial.why}",
            )
        return trial


def _worker_settings() -> WorkerSettings:
    """Return how models are loaded; the defaults where the settings cannot be read, which `init` may be to replace."""
    try:
        return load_settings().workers
    except SettingsError:
        return WorkerSettings()


def _table_of(source: Source, name: str, taken: Sequence[str], record: VersionRecord | None = None) -> UserTable:
    """Return the table to match; the names of the model and of its outputs are words for what it predicts."""
    outputs = [spec.name for spec in record.signature.outputs] if record else []
    return UserTable(Path(source.path).name, source.schema, taken, [name, *name.replace("_", "-").split("-"), *outputs])


def _spec(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype}{list(spec.shape) or ''}"


def _check_schedule(schedule: str) -> None:
    try:
        parse_schedule(schedule)
    except ValueError as error:
        raise SettingsError(f"--schedule: {error}", field="schedule") from error


def _source(text: str) -> Source:
    if "://" in text:
        raise SettingsError(f"{text!r} is not on this machine: give a Parquet file or a folder", field="features")
    return open_source(str(Path(text).expanduser()))


def _model_name(given: str | None, path: Path) -> str:
    if given is None:
        name = onboarding.guess_model_name(path)
        _say(
            "model",
            f"{path}, called {name!r} after its {'file' if path.is_file() else 'folder'} (--name gives another)",
        )
        return name
    if not MODEL_NAME.match(given):
        raise SettingsError(f"--name: {given!r} must be 1 to 64 of a-z, 0-9, _ and -", field="name")
    _say("model", f"{path}, called {given!r}")
    return given


def _version_folder(path: Path, record: VersionRecord) -> Path:
    return find_versions(path)[record.version]


def _write(target: Target, proposal: Proposal, contract: Mapping[Path, str], folder: ModelFolder) -> Settings:
    """Write the files and return the settings as every command will find them.

    What belongs to a model that is not at home yet goes there with it.

    Raises:
        Conflict: the settings file holds something else; the block for it is printed instead.
        BadInput: a file cannot be written; nothing has changed.
    """
    moved = {place: _at_home(place, folder) for place in contract}
    if not target.may_write(proposal.model):
        if folder.file:
            home = shlex.quote(str(folder.home / "1"))
            typer.echo(f"\n# {folder.home}:\nmkdir -p {home} && cp {shlex.quote(str(folder.file))} {home}/")
        for place, text in contract.items():
            typer.echo(f"\n# {moved[place]}:\n{text}", nl=False)
        typer.echo(f"\n# {target.file}:\n{onboarding.render_model(proposal)}")
        what = "the text above into these files" if contract or folder.file else "the block above into it"
        raise Conflict(f"{target.file} is already there, so nothing was written: paste {what}")
    own = {place: text for place, text in contract.items() if folder.file}
    for place, text in own.items():  # in a copy that nobody looks at yet
        place.write_text(text, encoding="utf-8")
    others = {place: text for place, text in contract.items() if place not in own}
    with onboarding.staged({**others, target.file: onboarding.render_settings(proposal)}) as files:
        settings = load_settings(files.files[target.file])
        folder.settle()
        files.commit()
    wrote = [*([folder.home] if folder.file else []), *moved.values(), target.file]
    folder.keep()
    _say("wrote", " and ".join(map(str, wrote)))
    return settings


def _at_home(place: Path, folder: ModelFolder) -> Path:
    return folder.home / place.relative_to(folder.path) if folder.file else place


def _next_steps(settings: Settings, proposal: Proposal, source: Source, trial: Trial) -> None:
    features = shlex.quote(source.path)
    typer.echo("\nNext, the first in a terminal of its own, where it stays:")
    typer.echo("  forecache up")
    typer.echo(f"  forecache batch run {proposal.model} --wait")
    typer.echo(f"  curl {base_url(settings.api)}/predict/{quote(trial.entity_id, safe='')}")
    typer.echo("What no run has scored is computed on demand, once its features are loaded:")
    typer.echo(f"  forecache features load {proposal.model} {features}")


def _say(what: str, text: str) -> None:
    typer.echo(f"{what + ':':<{_LABEL_WIDTH}} {text}")


def _number(value: int) -> str:
    return f"{value:,}".replace(",", " ")
