"""The model versions of a prediction table: the active one, labels, and the entities of the version on trial."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from inference.redis.clients import Client
from inference.redis.keys import TableKeys

#: label of the version that must answer: while it is set, no other version is activated
STABLE = "stable"
#: label of the version on trial: it is never activated automatically, and serves a share of the entities
CANARY = "canary"

LABEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_HASH_BYTES = 8


@dataclass(frozen=True)
class Labels:
    """A model's labels: name → version. `canary_share`: the canary's share of all entities, 0 to 1."""

    versions: Mapping[str, int] = field(default_factory=dict)
    canary_share: float = 0.0

    @property
    def stable(self) -> int | None:
        """The version that must answer; None: the newest good one."""
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
    """Whether an entity is among the `share` (0 to 1) of a model's entities that its canary serves.

    A hash of model and entity decides. So all processes agree, the entities stay the same while the share does, a
    larger share includes a smaller one, and two models try their canaries on different entities.
    """
    digest = blake2b(f"{model}\0{entity_id}".encode(), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest) < share * 2.0 ** (8 * _HASH_BYTES)


def labels_from_text(names: bytes | None, share: bytes | None) -> Labels:
    """Return labels from their form in Redis: `canary=4,stable=3`, and the share as decimal text."""
    pairs = (part.split("=") for part in (names or b"").decode().split(",") if part)
    return Labels({name: int(version) for name, version in pairs}, float(share or 0))


class Versions:
    """Changes the versions that a table serves. `Table.pointer` returns them.

    Every method raises StoreUnavailable when Redis does not answer.
    """

    def __init__(self, client: Client, keys: TableKeys) -> None:
        self._client = client
        self._keys = keys

    def activate(self, version: int, *, force: bool = False, backwards: bool = False) -> bool:
        """Make a model version active; return whether it is.

        Refuses a held version, and any version other than `stable` if that label is set. Without that label, it
        refuses a version that is older than the active one, unless `backwards`, or labelled `canary`. `force` refuses
        nothing: it ends the version's hold and trial, and moves the label `stable`, if set, to it.
        """
        return bool(self._client.run_script("activate", [self._keys.pointer], [version, int(force), int(backwards)]))

    def label(self, name: str, version: int | None, *, share: float = 0.0) -> None:
        """Move a label to a version, or remove the label (None).

        `share`: for the label `canary` only, the share of the entities, 0 to 1, that read their overlay entries of that
        version. Labelling a version `stable` ends its hold and its trial; the workers activate it.
        """
        of_canary = "" if version is None or name != CANARY else repr(share)
        arguments = [name, "" if version is None else version, of_canary]
        self._client.run_script("label", [self._keys.pointer], arguments)
