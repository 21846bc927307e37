"""`keys …`: makes keys for clients of the API."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

import typer

from app.cli.output import AsJson, note, print_json
from inference.errors import BadInput

app = typer.Typer(help="Keys for clients of the API.", no_args_is_help=True)

_BYTES = 32


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who uses the key.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, enqueue, write, forget or admin; may be repeated.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Limit of rows, such as 600/minute; 8 KiB count as one row.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print the lines to add to forecache.toml. The key is shown only once; they hold its hash."""
    from pydantic import ValidationError

    from inference.field_errors import describe_error_in_file
    from inference.settings import ApiKey
    from inference.settings.settings import MODEL_NAME

    if not MODEL_NAME.match(name):
        raise BadInput(f"NAME {name!r} must be 1 to 64 of a-z, 0-9, _ and -", field="NAME")
    key = f"fc_{secrets.token_urlsafe(_BYTES)}"
    digest = f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    try:
        made = ApiKey.model_validate({"hash": digest, "scopes": scope or ["read"], "rate": rate})
    except ValidationError as error:
        wrong = error.errors()[0]
        option = str(wrong["loc"][0]).removesuffix("s")
        raise BadInput(f"--{option}: {describe_error_in_file(wrong)}") from error
    scopes = [one.value for one in made.scopes]
    if as_json:
        print_json({"name": name, "key": key, "hash": digest, "scopes": scopes, "rate": rate})
        return
    typer.echo(key)
    note(f"\nGive it to the client, which sends it as `Authorization: Bearer {key[:6]}…`. Add to forecache.toml:\n")
    note(f'[api.keys.{name}]\nhash = "{digest}"\nscopes = {scopes!r}'.replace("'", '"'))
    if rate:
        note(f'rate = "{rate}"')
