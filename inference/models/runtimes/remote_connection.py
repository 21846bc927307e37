"""What the connections to remote engines share: limits of time and size, and the words for failures."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

from inference.errors import DeadlineExceeded, ForecacheError, ModelUnavailable
from inference.logs import get_logger
from inference.models.remote_file import RemoteEngine
from inference.models.runtimes.runtime import seconds_left
from inference.schema import Block, TensorSpec

log = get_logger(__name__)

#: an engine that does not accept a connection within this time is down
CONNECT_S = 2.0
#: the pause before a request is sent again
PAUSE_S = 0.05
#: eight thousand rows of a thousand numbers
MOST_ANSWER_BYTES = 256 << 20
_LONGEST_MESSAGE = 300

#: sends one request to the engine, and returns its answer; without a body it only reads
Ask = Callable[..., Any]


class RemoteProtocol(Protocol):
    """A protocol of engines: asks for a model's inputs and outputs, and for predictions."""

    def describe(self, ask: Ask) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the declared inputs and outputs of the model."""
        ...

    def predict(self, ask: Ask, inputs: Block) -> dict[str, Any]:
        """Return each output's values, nested lists or arrays, by name."""
        ...


class Connection(Protocol):
    """Keeps connections to an engine. Repeats a request where that may help."""

    def ask(self, what: str, body: Any = None) -> Any:
        """Send one request and return its answer. `what`: the path or the method.

        Raises:
            PredictionFailed: the engine refused it, or answered with something else.
            ModelOutOfMemory: fewer rows may fit.
            ModelUnavailable: the engine did not answer, or does not serve the model.
            DeadlineExceeded: the time of the request in hand is over.
        """
        ...


class EngineFailures:
    """The messages of an engine's failures for clients and records: their kind, and a reference to the log.

    They hold neither the engine's address nor its own words, which may hold secrets. The log has the words at level
    debug. While the same failure goes on, it has one reference and one line.
    """

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine
        self._trouble: tuple[str, str] | None = None
        # a failed load is for the author of the file
        self._subject = engine.place

    def hide_address(self) -> None:
        """Leave the engine's address out of later messages, which are for clients."""
        self._subject = "its engine"

    def message(self, what: str, said: str = "") -> str:
        """Return the message of a failure. `said`: the engine's own words."""
        if self._trouble is None or self._trouble[0] != what:
            self._trouble = what, secrets.token_hex(4)
            log.warning("engine.failed", reference=self._trouble[1], engine=self._engine.place, reason=what)
            log.debug("engine.said", reference=self._trouble[1], said=short(said))
        return f"{self._subject} {what} (reference {self._trouble[1]} in the worker's log)"

    def late(self, said: str = "") -> ForecacheError:
        """Return the error for an answer that did not come in time."""
        left = seconds_left()
        if left is not None and left <= PAUSE_S:  # an engine that was told the deadline gives up a little earlier
            return DeadlineExceeded("the engine did not answer within the request's time")
        return ModelUnavailable(self.message("did not answer in time", said))

    def over(self) -> None:
        """Note an answer: the next failure is a new one."""
        self._trouble = None


def patience_s(engine: RemoteEngine) -> float:
    """Return for how many seconds to wait for the engine's answer: its timeout, or what the request in hand has left.

    Raises:
        DeadlineExceeded: the request's time is over.
    """
    left = seconds_left()
    if left is None:
        return engine.timeout
    if left <= 0:
        raise DeadlineExceeded("the request's time is over, so its engine was not asked")
    return min(engine.timeout, left)


def short(text: str) -> str:
    """Return an engine's words as one line of bounded length."""
    return " ".join(text.split())[:_LONGEST_MESSAGE]
