"""Handles failures at a boundary: one sentence for people, and the traceback once in the log.

A boundary keeps a failure from spreading: to other models, to other requests, to a thread's next round.
`sentence_of` describes the error in the failed thing's state; `Failures` logs it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from inference.errors import ForecacheError
from inference.logs import get_logger
from inference.redaction import without_secrets

#: longer texts of libraries are cut
_MAX_TEXT = 500
#: most ongoing failures that are remembered; the oldest is forgotten, and logged again if it goes on
_MAX_ONGOING = 1000


def sentence_of(error: BaseException) -> str:
    """Return one line about an error for people: our own error's message, or another error's type and text."""
    if isinstance(error, ForecacheError):
        return _printable(error.message)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return _printable(without_secrets(text)[:_MAX_TEXT])


def _printable(text: str) -> str:
    # a file name that is not UTF-8 has surrogates, which Redis and terminals refuse
    return text.encode(errors="backslashreplace").decode()


class _Ongoing(NamedTuple):
    """A failure that is going on: where it was raised, and its sentence in the log."""

    place: tuple[str, str, int]
    sentence: str


class Failures:
    """Logs a failure as `EVENT.failed`, once if it repeats, and `EVENT.recovered` when it is over.

    Our own errors take one line. Any other error is a defect and gets a traceback, once while the same line of code
    raises the same type. Threads may share it.
    """

    def __init__(self, logger: str, event: str) -> None:
        self._log = get_logger(logger)
        self._event = event
        self._ongoing: dict[str, _Ongoing] = {}

    def tell(self, error: BaseException, about: str = "", **fields: Any) -> str:
        """Log a failure, unless the last one was the same, and return its sentence.

        `about`: the thing that failed, such as a model.
        """
        sentence, place = sentence_of(error), _place_of(error)
        before = self._ongoing.get(about)
        self._remember(about, _Ongoing(place, sentence))
        if before is not None and before.sentence == sentence:
            return sentence
        if isinstance(error, ForecacheError):
            self._log.warning(f"{self._event}.failed", error=sentence, **fields)
        elif before is not None and before.place == place:
            self._log.error(f"{self._event}.failed", error=sentence, **fields)
        else:
            self._log.error(f"{self._event}.failed", error=sentence, exc_info=error, **fields)
        return sentence

    def tell_each(self, error: BaseException, **fields: Any) -> str:
        """Log the failure of one item, such as a request, and return its sentence.

        Logs one line each time. Only the first failure from a line of code gets a traceback.
        """
        place = _place_of(error)
        about = f"{place[0]} {place[1]}:{place[2]}"
        is_first = about not in self._ongoing
        sentence = sentence_of(error)
        self._remember(about, _Ongoing(place, sentence))
        trace = {"exc_info": error} if is_first and not isinstance(error, ForecacheError) else {}
        self._log.error(f"{self._event}.failed", error=sentence, **trace, **fields)
        return sentence

    def over(self, about: str = "", **fields: Any) -> None:
        """Note that the thing works again; its next failure is logged."""
        if self._ongoing and self._ongoing.pop(about, None) is not None:
            self._log.info(f"{self._event}.recovered", **fields)

    def _remember(self, about: str, told: _Ongoing) -> None:
        self._ongoing.pop(about, None)
        self._ongoing[about] = told
        if len(self._ongoing) > _MAX_ONGOING:
            self._ongoing.pop(next(iter(self._ongoing)), None)

    @contextmanager
    def kept_here(self, about: str = "", **fields: Any) -> Iterator[None]:
        """Catch and log any exception of the block. A block without one ends an ongoing failure."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a boundary: `tell` logs it
            self.tell(error, about, **fields)
        else:
            self.over(about, **fields)


def _place_of(error: BaseException) -> tuple[str, str, int]:
    """Return an error's type and the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return type(error).__name__, last.filename if last else "", (last.lineno or 0) if last else 0
