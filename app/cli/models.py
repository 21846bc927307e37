"""`models …`: lists, shows, verifies, reloads and labels models and their versions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import ModelOption, OneModel, load_settings, models_of, open_deployment
from app.cli.output import AsJson, note, print_fields, print_json, print_rows
from inference.clock import to_iso

if TYPE_CHECKING:
    from pathlib import Path

    from inference.deployment import Deployment
    from inference.models import VersionRecord
    from inference.store import Labels

app = typer.Typer(help="Models and their versions.", no_args_is_help=True)

_POLL_S = 0.2

_Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for the workers; 0: do not wait.")]


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Print every configured model, its versions, and which one answers."""
    with open_deployment() as deployment:
        found = [
            (model, _serving(deployment, model), deployment.registry.versions(model))
            for model in models_of(None, deployment.settings)
        ]
    if as_json:
        states = [{str(version): record.state for version, record in records.items()} for _, _, records in found]
        listed = zip(found, states, strict=True)
        print_json([{"model": model, **serving, "versions": of_model} for (model, serving, _), of_model in listed])
        return
    rows = [
        (model, serving["active_version"], _states(records), _named(serving["labels"], serving["canary_share"]))
        for model, serving, records in found
    ]
    print_rows(("model", "active", "versions", "labels"), rows)


@app.command()
def show(
    model: OneModel = None,
    as_json: AsJson = False,
) -> None:
    """Print each version of a model: its inputs and outputs, or why it was refused."""
    from inference.models.versions import find_versions

    with open_deployment() as deployment:
        name, of_model = deployment.settings.model(model)
        serving = _serving(deployment, name)
        records = deployment.registry.versions(name)
    if not records and of_model.registered is None:
        # if the folder is wrong, no worker can load it: raise that error rather than say "start a worker"
        find_versions(deployment.settings.model_folder(name))
    data = [
        {
            **record.to_json(),
            "active": version == serving["active_version"],
            "labels": [label for label, given in serving["labels"].items() if given == version],
            "inspected_at": to_iso(record.inspected_at),
        }
        for version, record in records.items()
    ]
    if as_json:
        shares = {"canary_share": serving["canary_share"]}
        print_json({"model": name, "path": str(of_model.path), **shares, "versions": data})
        return
    labels = _named(serving["labels"], serving["canary_share"])
    shown = {"active version": serving["active_version"], **({"labels": labels} if labels else {})}
    print_fields({"model": name, "path": str(of_model.path), **shown})
    if not data:
        typer.echo("no worker has loaded it yet: start `forecache up`, or wait until its workers are ready")
    for each in data:
        typer.echo()
        print_fields(_described(each))


@app.command()
def verify(
    model: OneModel = None,
    version: Annotated[int | None, typer.Option(help="By default every version in the model's folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load versions in a separate process and say whether they can be served. Change nothing else.

    Exit 1 if one cannot be served.
    """
    from inference.models.versions import find_versions, wanted_versions

    settings = load_settings()
    name, _ = settings.model(model)
    found = find_versions(settings.model_folder(name))
    records = [_verified(name, each) for each in wanted_versions(found, "all" if version is None else [version])]
    if as_json:
        print_json({"model": name, "versions": [record.to_json() for record in records]})
    else:
        for record in records:
            print_fields(_described({**record.to_json(), "inspected_at": to_iso(record.inspected_at)}))
            typer.echo()
    if any(record.state == "refused" for record in records):
        raise typer.Exit(1)


def _verified(model: str, version: int) -> VersionRecord:
    from inference.errors import ModelError
    from inference.models import VersionRecord
    from inference.models.loading import inspect_version_in_subprocess

    try:
        return inspect_version_in_subprocess(load_settings(), model, version)
    except ModelError as error:
        return VersionRecord.refused(version, error.message, inspected_at=time.time())


@app.command()
def reload(
    model: OneModel = None,
    timeout: _Timeout = 120,
    as_json: AsJson = False,
) -> None:
    """Tell the workers to look for new versions now and to try refused ones again; wait until they have.

    Exit 1 if not all are done in time, or if features.json was changed beside a loaded version.
    """
    with open_deployment() as deployment:
        name, _ = deployment.settings.model(model)
        left = _reloaded(deployment, name, timeout)
        active = deployment.registry.active_version(name)
        versions = {str(version): record for version, record in deployment.registry.versions(name).items()}
        ignored = _ignored_contract(deployment.settings.model_folder(name), versions.get(str(active)))
    if as_json:
        states = {version: record.state for version, record in versions.items()}
        print_json({"model": name, "active_version": active, "versions": states, "not_done": left})
    else:
        print_fields({"model": name, "active version": active})
        for version, record in versions.items():
            print_fields({f"version {version}": record.remark or record.state})
    _fail_if_not_done(left, timeout)
    if ignored is not None:
        note(ignored)
        raise typer.Exit(1)


def _ignored_contract(path: Path, record: VersionRecord | None) -> str | None:
    """Return a text if a features.json was changed beside a version that is already loaded; else None."""
    from app.cli.doctor.models import CONTRACT_FIX
    from inference.models.versions import contract_change, find_versions

    # the folder on this machine may differ from that of the workers, or be missing
    folder = find_versions(path).get(record.version) if record is not None and path.exists() else None
    change = None if record is None or folder is None else contract_change(record, path, folder)
    return None if change is None else f"{change}, and a version that is loaded keeps what it has: {CONTRACT_FIX}"


_Label = Annotated[str, typer.Argument(metavar="LABEL", help="stable, canary, or a name of your own.")]


@app.command()
def label(
    name: _Label,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1, help="A version that a worker has accepted.")],
    model: ModelOption = None,
    share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="For canary: the share of entities that it computes, 0.05 for 5 %."),
    ] = None,
    timeout: _Timeout = 120,
    as_json: AsJson = False,
) -> None:
    """Give a version a label, and wait until the workers hold it.

    stable: this version answers, and no newer one until that gets the label. canary: it computes the answers on demand
    for a share of the entities. /v1 answers by any label. Exit 1 if not all workers are done in time.
    """
    with open_deployment() as deployment:
        named, of_model = deployment.settings.model(model)
        _check_wanted(named, of_model.versions, version)
        deployment.registry.label(named, name, version, share=share)
        left = _reloaded(deployment, named, timeout)
        serving = _serving(deployment, named)
    _tell_labels(named, serving, left, timeout, as_json)


@app.command()
def unlabel(name: _Label, model: ModelOption = None, timeout: _Timeout = 120, as_json: AsJson = False) -> None:
    """Remove a label, and wait until the workers know.

    From now on, answers of a canary are not served. Exit 1 if not all workers are done in time.
    """
    with open_deployment() as deployment:
        named, _ = deployment.settings.model(model)
        deployment.registry.remove_label(named, name)
        left = _reloaded(deployment, named, timeout)
        serving = _serving(deployment, named)
    _tell_labels(named, serving, left, timeout, as_json)


def _check_wanted(model: str, versions: Any, version: int) -> None:
    from inference.errors import BadInput

    if isinstance(versions, list) and version not in versions:
        listed = ", ".join(map(str, versions))
        raise BadInput(
            f"the settings of model {model!r} list versions {listed}: add {version} to them first", field="version"
        )


def _serving(deployment: Deployment, model: str) -> dict[str, Any]:
    """Return the version that answers, and the labels."""
    pointer = deployment.registry.pointer(model)
    labels: Labels = pointer.labels
    versions = dict(sorted(labels.versions.items()))
    return {"active_version": pointer.active_version, "labels": versions, "canary_share": labels.canary_share}


def _tell_labels(model: str, serving: dict[str, Any], left: list[str], timeout_s: float, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, **serving, "not_done": left})
    else:
        labels = _named(serving["labels"], serving["canary_share"])
        print_fields({"model": model, "active version": serving["active_version"], "labels": labels or "none"})
    _fail_if_not_done(left, timeout_s)


def _fail_if_not_done(left: list[str], timeout_s: float) -> None:
    if left:
        note(f"not done within {timeout_s:g} s: {', '.join(left)}")
        raise typer.Exit(1)


def _named(labels: dict[str, int], canary_share: float) -> str | None:
    """Return labels in readable form: `canary 4 (0.05 of the entities), stable 3`."""
    shares = {"canary": f" ({canary_share:.4g} of the entities)"}
    return ", ".join(f"{label} {version}{shares.get(label, '')}" for label, version in labels.items()) or None


def _reloaded(deployment: Deployment, model: str, timeout_s: float) -> list[str]:
    """Tell the workers to look for versions. Return those that are not done in time; none if the time is 0."""
    number = deployment.registry.ask_reload(model)
    if not timeout_s:
        return []
    end = time.monotonic() + timeout_s
    while left := _not_done(deployment, model, number):
        if time.monotonic() > end:
            break
        time.sleep(_POLL_S)
    return left


def _not_done(deployment: Deployment, model: str, number: int) -> list[str]:
    from inference.settings import BATCH_QUEUE

    done = deployment.registry.reloads(model).done
    queues = (deployment.settings.realtime_queue(model), BATCH_QUEUE)
    alive = [one for queue in queues for one in deployment.presence.roster(queue).alive if one.ready]
    if not alive:
        note("no worker is running: the first one that starts looks at the model's folder")
    return [one.identity for one in alive if done.get(one.identity, 0) < number]


def _described(record: dict[str, Any]) -> dict[str, Any]:
    shown = {"version": record["version"], "state": record["state"], "inspected_at": record["inspected_at"]}
    if record["error"]:
        return {**shown, "error": record["error"]}
    signature = record["signature"]
    features = record["contract"]["features"]
    return {
        **shown,
        **{key: record[key] for key in ("unproven", "notice") if record[key]},
        "format": record["format"],
        "inputs": ", ".join(map(_tensor, signature["inputs"])),
        "outputs": ", ".join(map(_tensor, signature["outputs"])),
        **_signatures(record),
        "features": ", ".join(feature["name"] for feature in features),
        **_groups(record["contract"]),
        "fingerprint": record["fingerprint"],
    }


def _signatures(record: dict[str, Any]) -> dict[str, str]:
    """Return a line for each signature of a SavedModel, its own first; empty for other formats."""
    own = record["own_signature"]
    names = sorted(record["signatures"], key=lambda name: (name != own, name))
    return {f"signature {name}": _signature(record["signatures"][name]) for name in names}


def _signature(declared: dict[str, Any]) -> str:
    method = declared["method"].rpartition("/")[2]
    sides = (", ".join(map(_graph_tensor, declared[side])) for side in ("inputs", "outputs"))
    return f"{method}, {' → '.join(sides)}"


def _graph_tensor(declared: dict[str, Any]) -> str:
    kind = declared["dtype"].removeprefix("DT_").lower()
    return f"{declared['name']} {kind}{'[?]' if declared['shape'] is None else declared['shape']}"


def _groups(contract: dict[str, Any]) -> dict[str, str]:
    """Return the declared groups with their properties; empty if none is declared."""
    declared = contract.get("groups", {})
    properties = {
        name: ", ".join(f"{key} {value}" for key, value in group.items() if key != "source")
        for name, group in declared.items()
    }
    words = [
        f"{name} ({declared[name]['source']}{', ' if properties[name] else ''}{properties[name]})" for name in declared
    ]
    return {"groups": "; ".join(words)} if words else {}


def _tensor(spec: dict[str, Any]) -> str:
    return f"{spec['name']} {spec['dtype']}{spec['shape'] or ''}"


def _states(records: Mapping[int, VersionRecord]) -> str | None:
    words = {version: "unproven" if record.unproven else record.state for version, record in records.items()}
    return ", ".join(f"{version} ({word})" for version, word in words.items()) or None
