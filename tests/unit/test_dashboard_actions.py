"""What the buttons may ask for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.dashboard.actions import Action
from inference.errors import BadInput


class FakeRuns:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self.calls.append((name, given, named))
            return SimpleNamespace(to_json=lambda: {"done": name})

        return call


@pytest.mark.parametrize(
    "body",
    [
        None, [], "start", {}, {"action": "publish", "run_id": "r"}, {"action": ["start"]}, {"action": "start"},
        {"action": "start", "model": 3}, {"action": "cancel", "model": "delay"}, {"action": "resume", "run_id": None},
        {"action": "rollback", "model": "delay"}, {"action": "rollback", "model": "delay", "generation": True},
    ],
)  # fmt: skip
def test_what_is_no_action_of_ours_is_refused(body):
    with pytest.raises(BadInput):
        Action.from_json(body)


@pytest.mark.parametrize(
    ("body", "method", "given"),
    [
        ({"action": "start", "model": "delay"}, "request", ("delay",)),
        ({"action": "cancel", "run_id": "r1"}, "cancel", ("r1",)),
        ({"action": "resume", "run_id": "r1"}, "resume", ("r1",)),
        ({"action": "rollback", "model": "delay", "generation": 7}, "rollback", ("delay",)),
    ],
)
def test_each_button_does_what_it_says(body, method, given):
    runs: Any = FakeRuns()
    assert Action.from_json(body).do(runs) == {"done": method}
    [(called, positional, named)] = runs.calls
    assert (called, positional) == (method, given)
    assert named.get("generation") == body.get("generation")
