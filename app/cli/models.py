"""`models list` and `models show`."""

from __future__ import annotations

from typing import Any

import typer

from app.cli.arguments import OneModel
from app.cli.context import models_of, open_services
from app.cli.output import AsJson, print_fields, print_json, print_rows
from inference.clock import to_iso

app = typer.Typer(help="Models and their versions.", no_args_is_help=True)


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Print every configured model, its versions, and which one answers."""
    with open_services() as services:
        found: list[dict[str, Any]] = [
            {
                "model": model,
                "active_version": services.registry.active_version(model),
                "versions": {
                    str(version): record.state for version, record in services.registry.versions(model).items()
                },
            }
            for model in models_of(None, services.settings)
        ]
    if as_json:
        print_json(found)
        return
    rows = [(each["model"], each["active_version"], _states(each["versions"])) for each in found]
    print_rows(("model", "active", "versions"), rows)


@app.command()
def show(
    model: OneModel = None,
    as_json: AsJson = False,
) -> None:
    """Print what a model takes and gives, version by version; for a refused one, why."""
    from inference.models.versions import find_versions

    with open_services() as services:
        name, of_model = services.settings.model(model)
        active = services.registry.active_version(name)
        records = services.registry.versions(name)
    if not records:
        # no worker could load a folder that is wrong: say so here, rather than "start one"
        find_versions(services.settings.path(of_model.path))
    data = [
        {**record.to_json(), "active": version == active, "inspected_at": to_iso(record.inspected_at)}
        for version, record in records.items()
    ]
    if as_json:
        print_json({"model": name, "path": str(of_model.path), "versions": data})
        return
    print_fields({"model": name, "path": str(of_model.path), "active version": active})
    if not data:
        typer.echo("no worker has loaded it yet: start `forecache up`")
    for each in data:
        typer.echo()
        print_fields(_described(each))


def _described(record: dict[str, Any]) -> dict[str, Any]:
    shown = {"version": record["version"], "state": record["state"], "inspected_at": record["inspected_at"]}
    if record["error"]:
        return {**shown, "error": record["error"]}
    signature = record["signature"]
    features = record["contract"]["features"]
    return {
        **shown,
        "format": record["format"],
        "inputs": ", ".join(map(_tensor, signature["inputs"])),
        "outputs": ", ".join(map(_tensor, signature["outputs"])),
        "features": ", ".join(feature["name"] for feature in features),
        "fingerprint": record["fingerprint"],
    }


def _tensor(spec: dict[str, Any]) -> str:
    return f"{spec['name']} {spec['dtype']}{spec['shape'] or ''}"


def _states(versions: dict[str, str]) -> str | None:
    return ", ".join(f"{version} ({state})" for version, state in versions.items()) or None
