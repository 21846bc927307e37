"""A model's versions in its prediction table: which one answers, their labels, and the entities of the one on trial."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from inference.redis.clients import Client
from inference.redis.keys import TableKeys

#: the version that answers: while it is set, no other is activated
STABLE = "stable"
#: the version on trial: never activated by itself, and given a share of what is computed on demand
CANARY = "canary"

LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_HASH_BYTES = 8


@dataclass(frozen=True)
class Labels:
    """A model's labels: name → version. `canary_share`: of all entities, 0 to 1, how many are the canary's."""

    versions: Mapping[str, int] = field(default_factory=dict)
    canary_share: float = 0.0

    @property
    def stable(self) -> int | None:
        """The version that is to answer; None: the newest good one."""
        return self.versions.get(STABLE)

    @property
    def canary(self) -> int | None:
        """The version on trial; None: there is none."""
        return self.versions.get(CANARY)

    def canary_for(self, model: str, entity_id: str) -> int | None:
        """Return the canary's version for an entity on its side; None for all others."""
        canary = self.canary
        return canary if canary is not None and is_on_canary_side(model, entity_id, self.canary_share) else None


def is_on_canary_side(model: str, entity_id: str, share: float) -> bool:
    """Whether an entity is among a model's first `share` (0 to 1) of all entities.

    By a hash of both, so that every process agrees, an entity stays where it is for as long as the share does, one
    that is within a share is within any larger one, and two models try their canaries on different entities.
    """
    digest = blake2b(f"{model}\0{entity_id}".encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest) < share * 2.0 ** (8 * _HASH_BYTES)


def labels_from_text(names: bytes | None, share: bytes | None) -> Labels:
    """Return labels as they stand in Redis: `canary=4,stable=3`, and the share as decimal text."""
    pairs = (part.split("=") for part in (names or b"").decode().split(",") if part)
    return Labels({name: int(version) for name, version in pairs}, float(share or 0))


class Versions:
    """Changes which versions a table serves. `Table.pointer` tells which they are.

    Every method raises StoreUnavailable when Redis does not answer.
    """

    def __init__(self, client: Client, keys: TableKeys) -> None:
        self._client = client
        self._keys = keys

    def activate(self, version: int, *, force: bool = False) -> bool:
        """Make a model version the active one, and say whether it is.

        Refuses a held version, and any other version than `stable` where that label is set. Without that label, it
        refuses a version that is older than the active one or labelled `canary`. `force` insists: it ends a hold and a
        trial, and moves the label `stable` to the version.
        """
        return bool(self._client.run_script("activate", [self._keys.pointer], [version, int(force)]))

    def label(self, name: str, version: int | None, *, share: float = 0.0) -> None:
        """Give a label to a version in place of the one that has it, or take it away (None).

        `share`: for the label `canary` only, the share of the entities, 0 to 1, whose overlay entries of that version
        are read. Labelling a version `stable` ends its hold and its trial; the workers activate it.
        """
        of_canary = "" if version is None or name != CANARY else repr(share)
        arguments = [name, "" if version is None else version, of_canary]
        self._client.run_script("label", [self._keys.pointer], arguments)
