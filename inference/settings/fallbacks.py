"""Where features are looked for that are not stored: `[[models.NAME.fallbacks]]`, one after the other."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from inference.errors import shown
from inference.settings.fields import Duration, Section

_FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
_IDS = re.compile(r"(?<![:\w\\]):ids\b")


class _Fallback(Section):
    """What all kinds have.

    `name`: of it in counters and logs; two of a model have different ones. `timeout`: how long it is waited for.
    `cache`: how long a worker remembers what it found, and that it found nothing, of up to `cache_entities` entities.
    `pool`: how many calls may run at a time in a worker, one whose time is up included.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
    timeout: Duration = 0.05
    cache: Duration = 5.0
    cache_entities: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    pool: Annotated[int, Field(ge=1, le=64)] = 4


class SqlFallback(_Fallback):
    """A query of a database that SQLAlchemy knows.

    `query` selects the entity column and columns called like the features, of the entities in the list `:ids`.
    `id_type`: the type of the column that `:ids` is compared with. `url` may hold a password, so it prints as stars.
    """

    kind: Literal["sql"]
    url: SecretStr
    query: str
    id_type: Literal["text", "integer"] = "text"

    @field_validator("query")
    @classmethod
    def _asks_for_ids(cls, value: str) -> str:
        if not _IDS.search(value):
            raise ValueError("it must ask for the entities in :ids, as in SELECT … WHERE entity_id IN :ids")
        return value


class FunctionFallback(_Fallback):
    """A function of the user's: from a list of entity ids to a pandas DataFrame of those that it knows.

    `function`: `package.module:name`. Naming it here is what allows its code to run, in the real-time workers.
    """

    kind: Literal["function"]
    function: str

    @field_validator("function")
    @classmethod
    def _dotted(cls, value: str) -> str:
        if not _FUNCTION.match(value):
            raise ValueError(f"{shown(value)} names no function: write package.module:name")
        return value


FallbackSettings = Annotated[SqlFallback | FunctionFallback, Field(discriminator="kind")]
FALLBACK_KINDS: dict[str, type[Section]] = {"sql": SqlFallback, "function": FunctionFallback}
