"""`features …`: loads, prints and stores features."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.context import complete_model, model_and, open_deployment
from app.cli.output import AsJson, print_fields, print_json
from inference.clock import to_iso
from inference.errors import UnknownEntity

if TYPE_CHECKING:
    from inference.features import FeatureContract
    from inference.settings import Settings

app = typer.Typer(help="Features for answers that are computed on demand.", no_args_is_help=True)

_IF_SEVERAL = "The model, if several are configured."
#: the spelling of an empty text; an empty value means that it is missing
_EMPTY_TEXT = '""'


@app.command()
def load(
    first: Annotated[str, typer.Argument(metavar="MODEL|PATH", help=_IF_SEVERAL, autocompletion=complete_model)],
    second: Annotated[
        str | None, typer.Argument(metavar="PATH", help="A Parquet or CSV file, a folder, a URI, or delta:PATH.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Load a table of features. It replaces the loaded one, whole or not at all."""
    from inference.features import Vectoriser, load_features
    from inference.models import record_to_serve
    from inference.sources import absolute_source

    with open_deployment() as deployment:
        named, path = model_and(first, second, deployment.settings)
        model = deployment.settings.features_owner(named)
        of_model = deployment.settings.models[model]
        record = record_to_serve(deployment.settings, deployment.registry, model)
        report = load_features(
            deployment.features(model),
            absolute_source(path, Path.cwd()),
            Vectoriser(record.contract, record.signature),
            entity_column=of_model.entity_column,
            event_time_column=of_model.event_time_column,
            newest=of_model.rows == "newest",
            keep_s=of_model.batch.keep,
        )
    if as_json:
        print_json(asdict(report))
    else:
        print_fields(asdict(report))


@app.command()
def get(
    first: Annotated[str, typer.Argument(metavar="MODEL|ENTITY", help=_IF_SEVERAL, autocompletion=complete_model)],
    second: Annotated[
        str | None, typer.Argument(metavar="ENTITY", help="The entity id; one that begins with - after a lone --.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print an entity's features and their age."""
    from inference.entities import check_entity_id
    from inference.features.group_rows import stored_features
    from inference.models import record_to_serve

    with open_deployment() as deployment:
        named, entity = model_and(first, second, deployment.settings)
        model = deployment.settings.features_owner(named)
        contract = record_to_serve(deployment.settings, deployment.registry, model).contract
        values, times = stored_features(deployment.features(model), contract, check_entity_id(entity))
    if not times:
        raise UnknownEntity(f"no features of {entity!r} are loaded for model {model!r}", field="entity_id")
    groups = {name: to_iso(as_of) for name, as_of in times.items()}
    as_of = min(groups.values())
    if as_json:
        print_json({"entity_id": entity, "model": model, "as_of": as_of, "groups": groups, "features": values})
    else:
        several = {f"as_of of {name}": at for name, at in groups.items()} if len(groups) > 1 else {}
        print_fields({**values, **several, "as_of": as_of})


@app.command()
def put(
    arguments: Annotated[list[str], typer.Argument(metavar="[MODEL] ENTITY NAME=VALUE...", help=_IF_SEVERAL)],
    event_time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When the values became true: ISO 8601 with an offset. By default now."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store some or all features of an entity; exit 1 if newer ones are stored.

    Values are numbers, true, false, text, or JSON lists. NAME= marks a missing value; NAME='""' is empty text.
    The entity's next prediction is computed from them.
    """
    from inference.features import FeatureUpdate
    from inference.models import record_to_serve

    with open_deployment() as deployment:
        named, entity, pairs = _put_arguments(arguments, deployment.settings)
        model = deployment.settings.features_owner(named)
        contract = record_to_serve(deployment.settings, deployment.registry, model).contract
        texts = _texts_by_name(pairs, contract)
        update = FeatureUpdate(entity, _values(texts, contract), _event_at(event_time))
        result = deployment.feature_writer(model, contract).write([update])[0].to_json()
    if as_json:
        print_json({**result, "model": model})
    else:
        print_fields({"applied": result["applied"], "as_of": result["as_of"]})
    if not result["applied"]:
        raise typer.Exit(1)


def _put_arguments(arguments: list[str], settings: Settings) -> tuple[str, str, list[str]]:
    """Return the model, the entity, and the NAME=VALUE arguments."""
    named = 2 if len(arguments) > 1 and "=" not in arguments[1] else 1
    names, pairs = arguments[:named], arguments[named:]
    if not pairs:
        raise typer.BadParameter("give at least one feature as NAME=VALUE")
    for pair in pairs:
        if "=" not in pair:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE")
    model = settings.model(names[0] if named == 2 else None)[0]
    return model, names[-1], pairs


def _texts_by_name(pairs: list[str], contract: FeatureContract) -> dict[str, str]:
    texts: dict[str, str] = {}
    for pair in pairs:
        name, text = _name_and_text(pair, contract)
        if name in texts:
            raise typer.BadParameter(f"{name!r} is given twice: give it once")
        texts[name] = text
    return texts


def _name_and_text(pair: str, contract: FeatureContract) -> tuple[str, str]:
    """Return a feature's name and its value as text. A name may contain "=": the longest known name wins."""
    known = [name for name in contract.names if pair.startswith(f"{name}=")]
    name = max(known, key=len, default=pair.partition("=")[0])
    return name, pair[len(name) + 1 :]


def _values(texts: dict[str, str], contract: FeatureContract) -> dict[str, Any]:
    """Parse values as JSON; None for an empty one. Values of text features stay text.

    A value that is not JSON stays text, which the contract checks.
    """
    from inference.schema import DType

    as_text = {one.name for one in contract.features if one.dtype is DType.STRING and not one.shape}
    return {name: _value(text, as_text=name in as_text) for name, text in texts.items()}


def _value(text: str, *, as_text: bool) -> Any:
    import json

    if not text:
        return None
    if as_text:
        return "" if text == _EMPTY_TEXT else text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _event_at(text: str | None) -> float | None:
    from datetime import datetime

    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"--event-time {text!r} is not an ISO 8601 instant") from error
    if at.tzinfo is None:
        raise typer.BadParameter(f"--event-time {text!r} has no offset: add Z or one such as +01:00")
    return at.timestamp()
