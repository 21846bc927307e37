"""Failures at a boundary: one sentence for people, and the traceback once in the log.

A boundary is where one thing's failure must not become another's: a model among several, a request, a thread's next
round. What is raised inside becomes the thing's own failed state, told by `sentence_of`; `Failures` logs it.
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
#: of more things than these the oldest failure is forgotten, and told again if it goes on
_MAX_TOLD = 1000


def sentence_of(error: BaseException) -> str:
    """Return one line that tells a person of an error: our own message, or the type and the text of any other."""
    if isinstance(error, ForecacheError):
        return _printable(error.message)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return _printable(without_secrets(text)[:_MAX_TEXT])


def _printable(text: str) -> str:
    # a file name that is no UTF-8 has surrogates, which neither Redis nor a terminal takes
    return text.encode(errors="backslashreplace").decode()


class _Told(NamedTuple):
    """A failure that is going on: where it was raised, and the sentence that the log has of it."""

    place: tuple[str, str, int]
    sentence: str


class Failures:
    """Logs failures as `EVENT.failed`, a repeated one once, and `EVENT.recovered` when it is over.

    An error of ours is one line. Any other is a defect: the log has its traceback, once while the same line of code
    raises the same type. May be used from several threads.
    """

    def __init__(self, logger: str, event: str) -> None:
        self._log = get_logger(logger)
        self._event = event
        self._told: dict[str, _Told] = {}

    def tell(self, error: BaseException, about: str = "", **fields: Any) -> str:
        """Log a failure, unless the last one was the same, and return its sentence.

        `about`: the thing that failed, such as a model.
        """
        sentence, place = sentence_of(error), _place_of(error)
        before = self._told.get(about)
        self._remember(about, _Told(place, sentence))
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
        """Log the failure of one of many, such as a request, and return its sentence.

        Each has its line, since somebody may look for it; only the first from one line of code has its traceback.
        """
        place = _place_of(error)
        about = f"{place[0]} {place[1]}:{place[2]}"
        is_first = about not in self._told
        sentence = sentence_of(error)
        self._remember(about, _Told(place, sentence))
        trace = {"exc_info": error} if is_first and not isinstance(error, ForecacheError) else {}
        self._log.error(f"{self._event}.failed", error=sentence, **trace, **fields)
        return sentence

    def over(self, about: str = "", **fields: Any) -> None:
        """Note that the thing works: its next failure is logged again."""
        if self._told and self._told.pop(about, None) is not None:
            self._log.info(f"{self._event}.recovered", **fields)

    def _remember(self, about: str, told: _Told) -> None:
        self._told.pop(about, None)
        self._told[about] = told
        if len(self._told) > _MAX_TOLD:
            self._told.pop(next(iter(self._told)), None)

    @contextmanager
    def kept_here(self, about: str = "", **fields: Any) -> Iterator[None]:
        """Let no exception out of the block: it is told; a block that ends well is over."""
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
