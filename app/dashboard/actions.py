"""What the buttons of the page of runs do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference.errors import BadInput

if TYPE_CHECKING:
    from inference.batch import Runs


@dataclass(frozen=True)
class Action:
    """A button that was pressed. `run_id` for cancel and resume, `model` for start and roll back.

    `generation`: the one to roll back from, as the page showed it; another one in service is a conflict.
    """

    name: str
    model: str | None = None
    run_id: str | None = None
    generation: int | None = None

    @classmethod
    def from_json(cls, body: Any) -> Action:
        """Check what a page sent.

        Raises:
            BadInput: it is no action of ours, or lacks what the action needs.
        """
        if not isinstance(body, Mapping) or body.get("action") not in list(_DOERS):
            raise BadInput(f"action is one of {', '.join(_DOERS)}", field="action")
        needed = "run_id" if body["action"] in ("cancel", "resume") else "model"
        if not isinstance(body.get(needed), str):
            raise BadInput(f"{needed} is missing", field=needed)
        generation = body.get("generation")
        if body["action"] == "rollback" and type(generation) is not int:
            raise BadInput("generation is the one to roll back from", field="generation")
        return cls(body["action"], body.get("model"), body.get("run_id"), generation)

    def do(self, runs: Runs) -> dict[str, Any]:
        """Do it and return the run, or what serves now, as JSON values.

        Raises:
            ForecacheError: as `Runs` says.
        """
        return _DOERS[self.name](runs, self)


def _start(runs: Runs, action: Action) -> dict[str, Any]:
    from inference.batch import Trigger

    return runs.request(action.model, trigger=Trigger.API).to_json()


_DOERS: dict[str, Callable[[Runs, Action], dict[str, Any]]] = {
    "start": _start,
    "cancel": lambda runs, action: runs.cancel(str(action.run_id)).to_json(),
    "resume": lambda runs, action: runs.resume(str(action.run_id)).to_json(),
    "rollback": lambda runs, action: runs.rollback(action.model, generation=action.generation).to_json(),
}
