"""What a partial run must pass. Gates that compare with a whole source have nothing to say about it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from inference.batch.gates import Gate, RunFacts, check_gates
from inference.batch.records import RunRecord
from inference.store import Pointer

#: of the gates of a whole run; ids are compared before a partial one starts
_GATES = ("coverage", "features", "quarantine", "finite")


def entities_gate(asked: int, missing: int, examples: Sequence[str]) -> Gate:
    """Say how many of the asked ids the table has; it fails when it has none of them."""
    if not missing:
        return Gate("entities", True, f"all {asked:,} entities are in the table")
    named = ", ".join(map(repr, examples))
    detail = f"{missing:,} of {asked:,} entities are not in the table, such as {named}"
    return Gate("entities", missing < asked, detail)


def partial_gates(run: RunRecord, facts: RunFacts, pointer: Pointer) -> tuple[Gate, ...]:
    """Return every gate's verdict on a run whose chunks are all done, those from its planning first."""
    planned = [gate for gate in run.gates if gate.name == "entities"]
    return (*planned, *(gate for gate in check_gates(facts) if gate.name in _GATES), _version(run, pointer))


def _version(run: RunRecord, pointer: Pointer) -> Gate:
    """Say whether the run's version serves: of any other, the overlay's answers are not read."""
    if run.model_version == pointer.active_version:
        return Gate("version", True, f"model version {run.model_version}")
    serving = "none does" if pointer.active_version is None else f"{pointer.active_version} does"
    return Gate("version", False, f"model version {run.model_version} does not serve now ({serving})")
