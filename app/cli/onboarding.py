"""The steps of `forecache init`: look at model and table, decide, score a row, write the files, name the next steps."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote

import typer

from app.cli.api_client import base_url
from app.cli.init import Asker, Options
from inference.errors import Conflict, ModelError, SettingsError
from inference.features import check_key_columns
from inference.features.contract import CONTRACT_FILE, find_contract, is_stacked
from inference.models import Inspect, VersionRecord, find_versions, inspect_in_subprocess
from inference.models.formats import SAVED_MODEL, find_model_file, format_named
from inference.models.loading import signatures_in_subprocess
from inference.models.runtimes import SavedSignature
from inference.onboarding import files, key_columns, matching, proposal
from inference.onboarding.files import ModelFolder, SettingsTarget
from inference.onboarding.key_columns import Guess
from inference.onboarding.matching import Match, UserTable
from inference.onboarding.proposal import Proposal
from inference.onboarding.trial import Trial, TrialRequest, try_row_in_subprocess
from inference.schema import DType, TensorSpec
from inference.settings import ModelSettings, Settings, load_settings, settings_file
from inference.settings.fields import parse_schedule
from inference.settings.settings import MODEL_NAME
from inference.sources import Source, TableName, absolute_source, open_any
from inference.wording import counted

_LABEL_WIDTH = len("event_time_column:")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is set up: a model in a folder, a table and its key columns. `root`: folder of the settings file."""

    model: str
    folder: ModelFolder
    root: Path
    source: Source
    entity_column: Guess
    event_time_column: Guess

    def table(self, outputs: Sequence[TensorSpec] = ()) -> UserTable:
        """Return the table to match. The predicted value may have the name of the model or of an output."""
        taken = [one.value for one in (self.entity_column, self.event_time_column) if one.value]
        targets = [self.model, *self.model.replace("_", "-").split("-"), *(spec.name for spec in outputs)]
        return UserTable(Path(self.source.name).name, self.source.schema, taken, targets)


class Onboarding:
    """Makes a deployment's first settings. Writes nothing before one row of the table has been scored."""

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
        self._present = _present_settings()
        self._workers = self._present.workers
        self._try_row = try_row or partial(try_row_in_subprocess, workers=self._workers)
        self._signatures = signatures or partial(
            signatures_in_subprocess, workers=self._workers, allow_code=options.allow_code
        )

    def run(self) -> None:
        """Do all steps, from the options to the files.

        Raises:
            ForecacheError: something is missing or does not fit; nothing was written.
        """
        options, need = self._options, self._asker.need
        _check_schedule(options.schedule)
        target = SettingsTarget.find(settings_file(), force=options.force, add=options.add)
        what = "folder of the model (or of its versions 1/, 2/, …), or its file"
        path = need("--model", what, options.model, files.check_model)
        name = _model_name(options.name, path)
        target.check_model(name)
        source = need(
            "--features",
            "Parquet file or folder, CSV file or delta:FOLDER, one row per entity",
            options.features,
            _source,
        )
        rows, columns = _number(source.rows, "row"), _number(len(source.schema.names), "column")
        _say("table", f"{source.name}: {rows}, {columns}")
        entity = self._entity_column(source, name)
        event_time = self._event_time_column(source, entity)
        if options.rows == "newest" and event_time.value is None:
            raise SettingsError("--rows newest needs --event-time-column: the column that dates the rows", field="rows")
        with self._model_folder(path, name, target.root) as folder:
            subject = Subject(
                model=name,
                folder=folder,
                root=target.root,
                source=source,
                entity_column=entity,
                event_time_column=event_time,
            )
            self._set_up(target, subject)

    def _model_folder(self, path: Path, name: str, root: Path) -> AbstractContextManager[ModelFolder]:
        registered = files.registered_in(path)
        if registered is None:
            return files.model_folder(path, root / "models" / name)
        settings = Settings.of_folder(root, models={name: {"path": path}}, mlflow=self._present.mlflow)
        _say("downloading", f"{path} from the registry")
        return nullcontext(files.download(registered, name, settings))

    def _set_up(self, target: SettingsTarget, subject: Subject) -> None:
        """Try the model on a row of the table, and write the settings."""
        options, folder, source = self._options, subject.folder, subject.source
        signature, record = self._newest_version(subject)
        if source.files[0].partition:  # the values in folder names get their type from the model
            texts = [feature.table_column for feature in record.contract.given if feature.dtype is DType.STRING]
            source = open_any(source.path, as_text=[str(subject.entity_column.value), *texts])
            subject = replace(subject, source=source)
        match = self._match(record, folder.path, subject.table(record.signature.outputs))
        trial = self._try(subject, record, match, signature)
        contract_file = self._contract_file(record, replace(match, contract=trial.contract), folder.path)
        proposed = Proposal(
            model=subject.model,
            path=str(folder.home) if folder.version else proposal.spelled(folder.home, subject.root),
            features=proposal.spelled_source(source.name, subject.root),
            allow_code=options.allow_code,
            rows=options.rows,
            signature=signature,
            entity_column=subject.entity_column,
            event_time_column=subject.event_time_column,
            matched=match.reason,
            schedule=options.schedule,
            ages=proposal.ages_for(options.schedule, time.time()),
        )
        contract = {contract_file: proposal.render_contract(trial.contract)} if contract_file else {}
        settings = _write(target, proposed, contract, folder)
        _print_next_steps(settings, proposed, source, trial)

    def _entity_column(self, source: Source, name: str) -> Guess:
        """Return the column of ids and the reason for it."""
        may_repeat = self._options.rows == "newest"

        def check(column: str) -> Guess:
            check_key_columns(source, column, None)
            first_rows = key_columns.read_first_rows(source, [column])
            return Guess(column, key_columns.check_entity_column(first_rows, column, may_repeat=may_repeat))

        guess = None
        if self._options.entity_column is None:
            candidates = key_columns.entity_candidates(source.schema, f"{Path(source.name).stem} {name}")
            guess = key_columns.guess_entity_column(
                key_columns.read_first_rows(source, candidates),
                key_columns.unfit_id_columns(source.schema),
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
        """Return the column of event times, as given or guessed. Asks no question."""
        given, now = self._options.event_time_column, datetime.now(UTC)
        if given is not None:
            check_key_columns(source, str(entity.value), given)
            chosen = key_columns.given_event_time(given, key_columns.newest_times(source, [given]), now)
        else:
            candidates = key_columns.time_candidates(source.schema)
            chosen = key_columns.guess_event_time(candidates, key_columns.newest_times(source, candidates), now)
        _say("event_time_column", f"{chosen.value!r}: {chosen.reason}" if chosen.value else f"none: {chosen.reason}")
        return chosen

    def _match(self, record: VersionRecord, path: Path, table: UserTable) -> Match:
        """Return the columns that are the model's features. Asks if they are unclear."""

        def listed(columns: str) -> Match:
            names = [column.strip() for column in columns.split(",") if column.strip()]
            return matching.match_listed(record.signature, table, names)

        try:
            if self._options.columns is not None:
                match = listed(self._options.columns)
            elif find_contract(path, _version_folder(path, record)):
                match = matching.match_written(record.contract, record.signature, table)
            elif record.contract.features and is_stacked(record.contract, record.signature):
                match = matching.match_logged(record.contract, record.signature, table)
            else:
                text_by_table = format_named(record.format).missing_text
                match = matching.match_columns(record.signature, table, text_by_table=text_by_table)
        except matching.WidthMismatch as error:
            if not self._asker.interactive:
                raise
            _say("columns", error.message)
            match = self._asker.ask("Columns, in the order of the tensor, with commas between", listed)
        _say("features", match.reason)
        return match

    def _contract_file(self, record: VersionRecord, match: Match, path: Path) -> Path | None:
        """Return where to write the contract; None if the present one is the same."""
        if match.contract == record.contract:
            return None
        found = find_contract(path, _version_folder(path, record))
        if found and not self._options.force:
            raise Conflict(f"{found} already lists other columns: --force replaces it, without --columns it is used")
        place = found or path / CONTRACT_FILE
        files.check_writable(place.parent)
        return place

    def _newest_version(self, subject: Subject) -> tuple[str | None, VersionRecord]:
        """Return the newest version that can be served, and its signature (None: the default one)."""
        _say("loading", "the model, in a process of its own; this takes some seconds")
        signature, failure, record = self._options.signature, None, None
        try:
            record = self._inspected(subject, signature)
        except ModelError as error:
            failure = error
        if signature is None and self._options.columns is None and self._may_choose(record, subject):
            chosen = self._choice(subject)
            if chosen:
                signature = chosen[0]
                _say("signature", f"{signature!r}: {chosen[1]}")
                record, failure = self._inspected(subject, signature), None
        if record is None:
            raise failure or ModelError("the model cannot be loaded")
        inputs = ", ".join(map(_spec, record.signature.inputs[:20]))
        outputs = ", ".join(map(_spec, record.signature.outputs[:20]))
        _say("version", f"{record.version}: {inputs} -> {outputs}")
        if record.notice:
            _say("note", record.notice)
        return signature, record

    def _inspected(self, subject: Subject, signature: str | None) -> VersionRecord:
        path = subject.folder.path.absolute()
        only = "latest" if subject.folder.version is None else [subject.folder.version]
        model = ModelSettings(path=path, allow_code=self._options.allow_code, signature=signature, versions=only)
        settings = Settings.of_folder(subject.root, models={subject.model: model}, workers=self._workers)
        records = self._inspect(settings, subject.model)
        ready = [version for version, record in records.items() if record.state == "ready"]
        if not ready:
            raise ModelError(str(records[max(records)].error), field="path")
        newest = records[max(ready)]
        if not newest.computes_rows:
            raise ModelError(str(newest.unproven), field="path")
        return newest

    def _choice(self, subject: Subject) -> tuple[str, str] | None:
        try:
            found = self._signatures(subject.folder.path)
        except ModelError:  # the inspection of the model reports this error
            return None
        return matching.choose_signature(found, subject.table())

    def _may_choose(self, record: VersionRecord | None, subject: Subject) -> bool:
        """Tell whether another signature of a SavedModel may be the right one."""
        newest = max(find_versions(subject.folder.path).items())[1]
        found = find_model_file(newest)
        if found is None or found.format.name != SAVED_MODEL or find_contract(subject.folder.path, newest):
            return False
        return matching.needs_choice(record.signature if record else None, subject.table())

    def _try(self, subject: Subject, record: VersionRecord, match: Match, signature: str | None) -> Trial:
        """Score one row and print the result."""
        path = subject.folder.path
        request = TrialRequest(
            model=subject.model,
            path=str(path.absolute()),
            version=record.version,
            contract=match.contract,
            source=absolute_source(subject.source.path, Path.cwd()),
            entity_column=str(subject.entity_column.value),
            allow_code=self._options.allow_code,
            code_folder=str(subject.root),
            signature=signature,
            engine_hosts=self._workers.engine_hosts,
            adapt=self._options.columns is not None or not find_contract(path, _version_folder(path, record)),
        )
        trial = self._try_row(request)
        _say("scored", f"{trial.entity_id!r} -> {trial.prediction!s:.200}")
        nullable = [one.name for one in trial.contract.features if one.nullable and one not in match.contract.features]
        if nullable:
            _say("missing", f"the model takes rows that lack {', '.join(nullable[:20])}: nullable in {CONTRACT_FILE}")
        if trial.advice:
            _say("note", trial.advice)
        if trial.unusable:
            bad = f"{trial.unusable} of the first {_number(trial.rows, 'row')} cannot be scored: {trial.why}"
            _say("note", bad)
        return trial


def _present_settings() -> Settings:
    """Return the settings for loading models; the defaults if the file, which `init` may replace, is wrong."""
    try:
        return load_settings()
    except SettingsError:
        return Settings()


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
    return open_any(text if TableName.read(text) else str(Path(text).expanduser()))


def _model_name(given: str | None, path: Path) -> str:
    if given is None:
        registered = files.registered_in(path)
        name = key_columns.guess_model_name(Path(registered.name) if registered else path)
        kind = "name in the registry" if registered else "file" if path.is_file() else "folder"
        _say("model", f"{path}, called {name!r} after its {kind} (--name gives another)")
        return name
    if not MODEL_NAME.match(given):
        raise SettingsError(f"--name: {given!r} must be 1 to 64 of a-z, 0-9, _ and -", field="name")
    _say("model", f"{path}, called {given!r}")
    return given


def _version_folder(path: Path, record: VersionRecord) -> Path:
    return find_versions(path)[record.version]


def _write(target: SettingsTarget, proposed: Proposal, contract: Mapping[Path, str], folder: ModelFolder) -> Settings:
    """Write the files and return the settings as other commands load them.

    Raises:
        Conflict: the settings file has other content; the block to paste into it is printed instead.
        ForecacheError: a file cannot be written; nothing has changed.
    """
    final = {place: _at_home(place, folder) for place in contract}
    block = proposal.render_model(proposed)
    new_text = target.text_with(proposed.model, block, proposal.render_settings(proposed))
    if new_text is None:
        if folder.file:
            home = shlex.quote(str(folder.home / "1"))
            typer.echo(f"\n# {folder.home}:\nmkdir -p {home} && cp {shlex.quote(str(folder.file))} {home}/")
        for place, text in contract.items():
            typer.echo(f"\n# {final[place]}:\n{text}", nl=False)
        typer.echo(f"\n# {target.file}:\n{block}")
        what = "the text above into these files" if contract or folder.file else "the block above into it"
        raise Conflict(f"{target.file} is already there, so nothing was written: paste {what}, or give --add")
    beside: dict[Path, str] = {}
    if folder.file:  # the folder is still a copy that nobody else reads
        for place, text in contract.items():
            place.write_text(text, encoding="utf-8")
    else:
        beside.update(contract)
    with files.staged({**beside, target.file: new_text}) as new:
        settings = load_settings(new.files[target.file])
        folder.settle()
        new.commit()
    wrote = [*([folder.home] if folder.file else []), *final.values(), target.file]
    folder.keep()
    _say("wrote", " and ".join(map(str, wrote)))
    return settings


def _at_home(place: Path, folder: ModelFolder) -> Path:
    return folder.home / place.relative_to(folder.path) if folder.file else place


def _print_next_steps(settings: Settings, proposed: Proposal, source: Source, trial: Trial) -> None:
    features = shlex.quote(source.name)
    typer.echo("\nNext, the first in a terminal of its own, where it stays:")
    typer.echo("  forecache up")
    typer.echo(f"  forecache batch run {proposed.model} --wait")
    typer.echo(f"  curl {base_url(settings.api)}/predict/{quote(trial.entity_id, safe='')}")
    typer.echo("What no run has scored is computed on demand, once its features are loaded:")
    typer.echo(f"  forecache features load {proposed.model} {features}")


def _say(what: str, text: str) -> None:
    typer.echo(f"{what + ':':<{_LABEL_WIDTH}} {text}")


def _number(count: int, noun: str) -> str:
    return counted(count, noun).replace(",", " ")
