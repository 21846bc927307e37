"""Loads versions of a model, and finds out what they take and give: in this process, or in one of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from inference.clock import Clock, system_clock
from inference.errors import ContractError, ForecacheError, ModelError, ModelUnavailable, Unavailable
from inference.failures import Failures
from inference.features import FeatureContract, FeatureFunctions, Vectoriser, read_contract, written_contract
from inference.features.contract import check_order, logged_contract
from inference.features.functions import check_code_allowed
from inference.logs import get_logger
from inference.models.class_labels import read_class_labels
from inference.models.formats import Format, require_model_file
from inference.models.load_limits import LoadLimits, bounded_growth, run_model_process, with_fix
from inference.models.loaded import LoadedModel
from inference.models.registry import ModelRegistry, VersionRecord
from inference.models.runtimes import (
    LoadOptions,
    Runtime,
    SavedSignature,
    SignedRuntime,
    keras_environment,
    load_runtime,
    signatures_of,
)
from inference.models.versions import Wanted, check_confined, find_versions, fingerprint, wanted_versions
from inference.models.warm_up import SampleRows, WarmUpResult, warm_up
from inference.schema import DType, GraphSignature, Signature
from inference.settings import ModelSettings, Settings, WorkerSettings
from inference.sources import TableName, absolute_source

log = get_logger(__name__)

#: two sizes, which show whether the shape of an output depends on the number of rows
WARM_UP_ROWS = (1, 2)
NO_ROWS = SampleRows()
#: a model of a wide table, with an input for each column, has some thousands
_MOST_TENSORS = 10_000
_LONGEST_NAME = 1_000
_failures = Failures(__name__, "model.load")

#: inspects a model's wanted versions without TensorFlow in this process
Inspect = Callable[[Settings, str], dict[int, VersionRecord]]
#: tries one version of a model in a process of its own, where it can do no harm
TryApart = Callable[[Settings, str, int], VersionRecord]


def load_version(
    model: str,
    path: Path,
    version: int,
    folder: Path,
    *,
    options: LoadOptions | None = None,
    contract: FeatureContract | None = None,
    rows: SampleRows = NO_ROWS,
    known: VersionRecord | None = None,
    warm_up_rows: Sequence[int] = WARM_UP_ROWS,
    clock: Clock = system_clock,
) -> LoadedModel:
    """Load a version, and warm it up before it may serve. `path`: the model's folder. `folder`: the version's.

    `contract`: replaces the contract in the folders; None for that one. `rows`: the rows to warm it up with. `known`:
    the version's record; one that has answered rows need not do so again.

    Raises:
        ModelError: the folder cannot be served, a link leads out of it, the model answers no row (see `warm_up`), it
            computes none although it has features, or these name code that the settings do not allow, or that cannot be
            imported.
        ContractError: its features contradict its signature.
        ModelUnavailable: an engine elsewhere did not answer.
        StoreUnavailable: Redis did not answer in time.
    """
    started = time.monotonic()
    check_confined(path, folder)
    given = contract or written_contract(path, folder)
    runtime = _load_runtime(folder, options, given)
    signatures, own, without_rows = {}, "", None
    if isinstance(runtime, SignedRuntime):
        signatures, own, without_rows = runtime.signatures, runtime.signature_name, runtime.without_rows
    if without_rows is not None and (given is not None or rows.table is not None):
        raise ModelError(without_rows)
    _check_size(runtime.signature, *signatures.values())
    contract = contract or read_contract(path, folder, runtime.signature)
    if given is not None:
        check_order(contract, folder, runtime.signature)
    format_ = require_model_file(folder).format
    _check_missing_text(contract, format_)
    vectoriser = None
    if contract.features:
        vectoriser = Vectoriser(contract, runtime.signature, _functions(contract, options or LoadOptions()))
    digest = fingerprint(folder)
    is_proved = known is not None and known.is_proved and (known.fingerprint, known.contract) == (digest, contract)
    if without_rows is None:
        result = warm_up(runtime, vectoriser, rows, sizes=warm_up_rows, is_proved=is_proved)
    else:
        result = WarmUpResult(runtime.signature, f"{without_rows}; until then only clients of /v1 can call it")
    labels, labels_notice = read_class_labels(folder, result.signature.model_outputs)
    record = VersionRecord(
        version=version,
        state="ready",
        signature=result.signature,
        contract=contract,
        fingerprint=digest,
        inspected_at=clock(),
        format=format_.name,
        unproven=result.unproven,
        # a version that answered rows before keeps its notice
        notice=_notice(runtime, labels_notice, known.notice if is_proved and known else result.remark),
        signatures=signatures,
        own_signature=own,
        class_labels=labels,
    )
    took_s = round(time.monotonic() - started, 2)
    log.info("model.loaded", model=model, version=version, device=runtime.device, took_s=took_s)
    if result.unproven:
        log.warning("model.unproven", model=model, version=version, reason=result.unproven)
    if record.notice:
        log.warning("model.noticed", model=model, version=version, notice=record.notice)
    return LoadedModel(model, record, vectoriser, runtime)


def _load_runtime(folder: Path, options: LoadOptions | None, given: FeatureContract | None) -> Runtime:
    """Load a version. Without a contract, a model that knows no types of its columns takes them from its registry."""
    logged = logged_contract(folder) if given is None and require_model_file(folder).format.missing_text else None
    if logged is not None:
        # of numbers only their width differs, and MLflow's says nothing of missing ones
        typed = (one if one.dtype is DType.STRING else replace(one, dtype=DType.FLOAT64) for one in logged.features)
        with suppress(ContractError):
            return load_runtime(folder, options=options, contract=replace(logged, features=tuple(typed)))
    return load_runtime(folder, options=options, contract=given)


def _check_size(*signatures: Signature | GraphSignature) -> None:
    """Refuse a model whose description would fill the record that every process reads."""
    tensors = [tensor for one in signatures for tensor in (*one.inputs, *one.outputs)]
    if len(tensors) > _MOST_TENSORS:
        raise ModelError(f"it has {len(tensors)} inputs and outputs, and at most {_MOST_TENSORS} can be served")
    longest = max((tensor.name for tensor in tensors), key=len, default="")
    if len(longest) > _LONGEST_NAME:
        raise ModelError(
            f"the name of {longest[:40]}… has {len(longest)} characters, and at most {_LONGEST_NAME} can be served"
        )


def _notice(runtime: Runtime, *remarks: str | None) -> str | None:
    """Return the warnings of a version's runtime and further ones; None for none."""
    # a remark that was kept has those of the last load, too
    said = [one for remark in (getattr(runtime, "notice", ""), *remarks) if remark for one in remark.split("; ")]
    return "; ".join(dict.fromkeys(said)) or None


def _check_missing_text(contract: FeatureContract, format_: Format) -> None:
    for feature in contract.features:
        if feature.nullable and feature.dtype is DType.STRING and not format_.missing_text:
            raise ContractError(
                f"feature {feature.name!r} is text that may be missing (nullable), and no value of a tensor of text "
                f'says so ({format_.title}): write "default" in place of "nullable" in features.json, such as "" if '
                "the model was trained with that",
                field=feature.name,
            )


def _functions(contract: FeatureContract, options: LoadOptions) -> FeatureFunctions:
    check_code_allowed(contract, allow_code=options.allow_code)
    functions = FeatureFunctions(contract, options.code_folder)
    if options.import_functions:
        functions.import_all()
    return functions


def inspect_versions(
    path: Path,
    wanted: Wanted,
    *,
    options: LoadOptions | None = None,
    table: str | None = None,
    clock: Clock = system_clock,
) -> dict[int, VersionRecord]:
    """Load the wanted versions one after the other. Return their records, those of refused versions too.

    `table`: the model's table of features, whose rows they are tried with. If the latest is wanted, stops at the first
    version that answers rows.

    Raises:
        ModelError: there is no model at the path, or it lacks a listed version.
        ModelUnavailable: an engine elsewhere did not answer.
    """
    found = find_versions(path)
    records: dict[int, VersionRecord] = {}
    for version in wanted_versions(found, wanted):
        rows = SampleRows(table)
        result = try_version(path.name, path, version, found[version], options=options, rows=rows, clock=clock)
        records[version] = result.record if isinstance(result, LoadedModel) else result
        if wanted == "latest" and records[version].is_proved:
            break
    return records


def try_version(
    model: str,
    path: Path,
    version: int,
    folder: Path,
    *,
    options: LoadOptions | None = None,
    contract: FeatureContract | None = None,
    rows: SampleRows = NO_ROWS,
    known: VersionRecord | None = None,
    warm_up_rows: Sequence[int] = WARM_UP_ROWS,
    limits: LoadLimits | None = None,
    clock: Clock = system_clock,
) -> LoadedModel | VersionRecord:
    """Return the loaded version, or the record of its refusal, whatever its libraries raise.

    `contract`, `rows`, `known`: as in `load_version`. `limits`: None in a process whose parent bounds it.

    Raises:
        ModelUnavailable: an engine elsewhere did not answer.
        StoreUnavailable: Redis did not answer in time.
    """
    try:
        with bounded_growth(limits):
            return load_version(
                model, path, version, folder,
                options=options, contract=contract, rows=rows, known=known, warm_up_rows=warm_up_rows, clock=clock,
            )  # fmt: skip
    except Unavailable:
        raise
    except ForecacheError as error:
        reason = error.message
    except SystemExit as error:
        if type(error) is not SystemExit:  # Celery ends the worker by a subclass
            raise
        reason = f"loading it calls sys.exit({error.code!r}): guard the script that it imports by __name__"
    except Exception as error:  # noqa: BLE001 - a boundary: `tell` logs it
        reason = f"loading it raised {_failures.tell(error, str(folder), model=model, version=version)}"
    return VersionRecord.refused(version, with_fix(reason, reason, limits), inspected_at=clock())


def inspect_in_subprocess(settings: Settings, model: str) -> dict[int, VersionRecord]:
    """Return the records of a model's wanted versions, without TensorFlow in this process.

    Takes seconds. At least one version is ready; others may be refused.

    Raises:
        UnknownModel: it is not in the settings.
        ModelError: no version can be served, in one line.
    """
    name, of_model = settings.model(model)
    versions = of_model.versions
    wanted = versions if isinstance(versions, str) else ",".join(map(str, versions))
    return _inspect_apart(settings, name, wanted, what=f"model {name!r}")


def inspect_version_in_subprocess(settings: Settings, model: str, version: int) -> VersionRecord:
    """Return the record of one good version. Tries it with its functions and its table in a process of its own.

    Raises:
        UnknownModel: it is not in the settings.
        ModelError: it cannot be served, or ended the process that tried it.
    """
    name, of_model = settings.model(model)
    what = f"version {version} of model {name!r}"
    table = table_of(settings, of_model)
    more = ["--import-functions", *(["--table", table] if table else [])]
    return _inspect_apart(settings, name, str(version), *more, what=what)[version]


def table_of(settings: Settings, of_model: ModelSettings) -> str | None:
    """Return the path or URI of a model's table of features; None if it has none, or a query of a database."""
    if of_model.features is None:
        return None
    table = TableName.read(of_model.features)
    # each worker would ask the database for each new version
    is_query = table is not None and table.kind == "sql"
    return None if is_query else absolute_source(of_model.features, settings.root)


def _inspect_apart(settings: Settings, model: str, wanted: str, *more: str, what: str) -> dict[int, VersionRecord]:
    of_model, path = settings.models[model], settings.model_folder(model)
    allowed = ["--allow-code"] if of_model.allow_code else []
    chosen = [] if of_model.signature is None else ["--signature", of_model.signature]
    hosts = settings.workers.engine_hosts
    engines = [] if hosts is None else ["--engine-hosts", ",".join(hosts)]
    folder = ["--code-folder", str(settings.root)]
    output = run_model_process(
        "workers.inspect", str(path), wanted, *allowed, *chosen, *engines, *folder, *more,
        what=what, limits=LoadLimits.of(settings.workers, path),
        environment=keras_environment(settings.workers.keras_backend),
    )  # fmt: skip
    return records_from_json(output)


def newest_signatures(path: Path, options: LoadOptions) -> dict[str, SavedSignature]:
    """Return all signatures of a model's newest version, by name; nothing if it is no SavedModel.

    Raises:
        ModelError: there is no model at the path, or it cannot be loaded.
    """
    found = find_versions(path)
    check_confined(path, found[max(found)])
    return signatures_of(found[max(found)], options)


def signatures_in_subprocess(path: Path, workers: WorkerSettings, *, allow_code: bool) -> dict[str, SavedSignature]:
    """Return the result of `newest_signatures`, without TensorFlow in this process. Takes seconds.

    Raises:
        ModelError: as `newest_signatures`, in one line.
    """
    allowed = ["--allow-code"] if allow_code else []
    output = run_model_process(
        "workers.inspect", str(path.absolute()), "--signatures", *allowed,
        what=f"model {path.name!r}", limits=LoadLimits.of(workers, path),
    )  # fmt: skip
    found = json.loads(output.strip().splitlines()[-1])
    return {name: SavedSignature(Signature.from_json(one), reads) for name, (one, reads) in found.items()}


def signatures_to_json(signatures: Mapping[str, SavedSignature]) -> str:
    """Return signatures as one line of JSON."""
    return json.dumps({name: [one.signature.to_json(), one.reads_examples] for name, one in signatures.items()})


def record_to_serve(
    settings: Settings, registry: ModelRegistry, model: str, *, inspect: Inspect = inspect_in_subprocess
) -> VersionRecord:
    """Return the active version's record. Before the first activation, records the newest good version.

    Raises:
        UnknownModel: it is not in the settings.
        ModelError: no version can be served, or none may answer before it is labelled.
    """
    try:
        return registry.active(model)
    except ModelUnavailable:
        if settings.models[model].activate == "by-label":
            raise ModelError(
                f'no version of model {model!r} is labelled stable yet, and activate is "by-label": '
                f"`forecache models label stable N --model {model}`"
            ) from None
        if settings.models[model].registered is not None:
            raise ModelError(
                f"no version of model {model!r} answers yet: a worker must fetch {settings.models[model].path} first, "
                "and `forecache doctor` says why it has not"
            ) from None
        records = inspect(settings, model)
    ready = [version for version, record in records.items() if record.state == "ready"]
    if not ready:
        reasons = "; ".join(f"version {n}: {record.error}" for n, record in sorted(records.items()) if record.error)
        raise ModelError(f"model {model!r} has no version that can be served: {reasons or 'none was found'}")
    chosen = records[max(ready, key=lambda version: (records[version].is_proved, version))]
    registry.put(model, chosen)
    return chosen


def record_of_version(
    settings: Settings,
    registry: ModelRegistry,
    model: str,
    version: int,
    *,
    inspect: TryApart = inspect_version_in_subprocess,
) -> VersionRecord:
    """Return the record of one version, whether or not it serves. Records it if no worker has done so yet.

    Raises:
        UnknownModel: it is not in the settings.
        ModelError: the version cannot be served.
    """
    try:
        return registry.get(model, version)
    except ModelUnavailable:
        record = inspect(settings, model, version)
    if record.state != "ready":
        raise ModelError(f"version {version} of model {model!r} cannot be served: {record.error}")
    registry.put(model, record)
    return record


def records_to_json(records: dict[int, VersionRecord]) -> str:
    """Return the records as one line of JSON."""
    return json.dumps({"versions": [record.to_json() for record in records.values()]})


def records_from_json(text: str) -> dict[int, VersionRecord]:
    """Read the output of `records_to_json`. Ignores all lines before the last: libraries print to stdout too."""
    data = json.loads(text.strip().splitlines()[-1])
    records = [VersionRecord.from_json(json.dumps(one)) for one in data["versions"]]
    return {record.version: record for record in records}
