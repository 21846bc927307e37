"""Arguments that several commands take, with what the shell completes for them.

A completion that fails completes nothing: a half-typed line is no place for errors.
"""

from __future__ import annotations

from typing import Annotated

import typer

from inference.errors import ForecacheError

#: a person waits for this between two keys
_PATIENCE_S = 0.5
_RUNS = 20


def complete_model(incomplete: str) -> list[str]:
    """Return the configured models that begin so."""
    from app.cli.context import load_settings

    try:
        return [name for name in sorted(load_settings().models) if name.startswith(incomplete)]
    except ForecacheError:
        return []


def complete_run(incomplete: str) -> list[str]:
    """Return the newest runs whose ids begin so, if Redis tells at once."""
    from app.cli.context import load_settings
    from inference.redis.clients import Patience, open_client
    from inference.redis.keys import Keys

    try:
        settings = load_settings()
        with (
            open_client(settings.cache_url, Patience(_PATIENCE_S)) as client,
            client.pipeline(transaction=False) as pipe,
        ):
            for model in sorted(settings.models):
                pipe.zrange(Keys(settings.redis.prefix).runs(model), 0, _RUNS - 1, desc=True)
            found = [run_id.decode() for run_ids in pipe.execute() for run_id in run_ids]
    except (ForecacheError, ValueError):
        return []
    return [run_id for run_id in found if run_id.startswith(incomplete)]


_LEFT_OUT = "May be left out when one is configured."

#: MODEL of a command about one model
OneModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=_LEFT_OUT, autocompletion=complete_model)]
#: MODEL of a command that may be about all of them
AnyModel = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Left out: all models.", autocompletion=complete_model)
]
#: --model of a command whose arguments are entities
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help=_LEFT_OUT, autocompletion=complete_model)
]
#: RUN
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", autocompletion=complete_run)]
