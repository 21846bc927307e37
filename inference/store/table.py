"""One versioned table in Redis (6.2 and later), for blocking callers: workers, maintenance, commands."""

from __future__ import annotations

from collections.abc import Sequence

from inference.redis.bulk import Pace
from inference.redis.clients import Client
from inference.redis.keys import TableKeys, TableKind
from inference.store.forgotten import ForgottenList
from inference.store.generations import Generations
from inference.store.overlay import Overlay
from inference.store.reading import (
    ReaderMemory,
    follow,
    plan_pointer,
    plan_read,
    plan_read_block,
    plan_read_for_change,
    plan_read_generation,
    together,
)
from inference.store.records import ChangeableRows, Entry, Pointer, StoredRows
from inference.store.versions import Versions

_KIND_NAMES = {TableKind.PREDICTIONS: "predictions", TableKind.FEATURES: "features"}


class Table:
    """Reads a table; its `generations`, `overlay` and `versions` change it. Threads may share it.

    Every method raises StoreUnavailable when Redis does not answer: an outage is never a miss. Ids are legal entity
    ids; `as_of` values are epoch seconds, stored as whole seconds, rounded down. `pace`: the share of time that a
    writer of generations may keep Redis busy; None never rests. `forgotten`: the list of entities of which the table
    keeps nothing; None for that of its model.
    """

    def __init__(
        self,
        client: Client,
        keys: TableKeys,
        *,
        kind: TableKind,
        model: str,
        pace: Pace | None = None,
        forgotten: ForgottenList | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._kind, self._model = kind, model
        self._memory = ReaderMemory(is_spread=client.is_spread)
        self._parts: dict[str, Table] = {}
        self.forgotten = forgotten or ForgottenList(client, keys.deployment.forgotten(model), model=model)
        self.overlay = Overlay(client, keys, self.forgotten)
        self.versions = Versions(client, keys)
        name = f"{_KIND_NAMES[kind]} of {model!r}"
        self.generations = Generations(client, keys, self.overlay, name=name, pace=pace or Pace())

    def now(self) -> float:
        """Return Redis' time in epoch seconds, which all writers and readers use."""
        return self._client.now()

    def pointer(self) -> Pointer:
        """Return the generations and versions that are served now."""
        return follow(plan_pointer(self._keys), self._client)

    def read(self, ids: Sequence[str]) -> list[Entry | None]:
        """Return each id's newest entry by (`as_of`, `computed_at`), or None on a miss.

        Ignores overlay entries of other model versions than the active one, except the canary's entries for the
        entities on its side.
        """
        return follow(plan_read(self._keys, self._memory, ids), self._client)

    def read_generation(self, ids: Sequence[str], number: int) -> list[Entry | None]:
        """Return each id's entry in one generation, such as the previous; None where it has none."""
        return follow(plan_read_generation(self._keys, self._memory, ids, number), self._client)

    def read_block(self, ids: Sequence[str]) -> StoredRows | None:
        """Return each id's newest row as arrays, or None when nothing was ever stored.

        The fields are the current generation's. An overlay entry with other fields is left out.
        """
        return follow(plan_read_block(self._keys, self._memory, ids), self._client)

    def read_blocks(self, ids: Sequence[str], parts: Sequence[str]) -> list[StoredRows | None]:
        """Return `read_block` of this table and of each part, read together."""
        tables = [self, *(self.part(name) for name in parts)]
        plans = [plan_read_block(table._keys, table._memory, ids) for table in tables]
        return follow(together(plans), self._client)

    def read_for_change(self, ids: Sequence[str]) -> ChangeableRows | None:
        """Return each id's newest row like `read_block`, with what `Overlay.replace` needs; None if there is none."""
        return follow(plan_read_for_change(self._keys, self._memory, ids), self._client)

    def part(self, name: str) -> Table:
        """Return the table of a part of the rows, such as one group of features. It has an overlay, but no generations.

        Its entries have their own fields, beside the rows of this table. The reader decides which one is newer.
        """
        part = self._parts.get(name)
        if part is None:
            part = Table(
                self._client, self._keys.part(name), kind=self._kind, model=self._model, forgotten=self.forgotten
            )
            self._parts[name] = part
        return part
