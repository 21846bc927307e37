"""`features load` and `features get`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.arguments import complete_model
from app.cli.context import model_and, open_services
from app.cli.output import AsJson, print_fields, print_json
from inference.clock import to_iso
from inference.errors import UnknownEntity

app = typer.Typer(help="The features that answers on demand are computed from.", no_args_is_help=True)

_IF_SEVERAL = "The model, if several are configured."


@app.command()
def load(
    first: Annotated[str, typer.Argument(metavar="MODEL|PATH", help=_IF_SEVERAL, autocompletion=complete_model)],
    second: Annotated[str | None, typer.Argument(metavar="PATH", help="A Parquet file, a folder or a URI.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load a Parquet table of features; it replaces what was loaded before, all or nothing."""
    from inference.features import Vectoriser, load_features
    from inference.models import record_to_serve

    with open_services() as services:
        model, path = model_and(first, second, services.settings)
        of_model = services.settings.models[model]
        record = record_to_serve(services.settings, services.registry, model)
        report = load_features(
            services.features(model),
            path if "://" in path else str(Path(path).absolute()),
            Vectoriser(record.contract, record.signature),
            entity_column=of_model.entity_column,
            event_time_column=of_model.event_time_column,
            keep_s=of_model.batch.keep,
        ).to_json()
    if as_json:
        print_json(report)
    else:
        print_fields(report)


@app.command()
def get(
    first: Annotated[str, typer.Argument(metavar="MODEL|ENTITY", help=_IF_SEVERAL, autocompletion=complete_model)],
    second: Annotated[str | None, typer.Argument(metavar="ENTITY", help="The entity id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print an entity's features and how old they are."""
    from inference.entities import check_entity_id

    with open_services() as services:
        model, entity = model_and(first, second, services.settings)
        entry = services.features(model).read([check_entity_id(entity)])[0]
    if entry is None:
        raise UnknownEntity(f"no features of {entity!r} are loaded for model {model!r}", field="entity_id")
    as_of = to_iso(entry.as_of)
    if as_json:
        print_json({"entity_id": entity, "model": model, "as_of": as_of, "features": entry.values})
    else:
        print_fields({**entry.values, "as_of": as_of})
