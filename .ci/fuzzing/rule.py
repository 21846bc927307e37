"""What is asked of every parser: its value, or an error of ours of the right kind, in a short line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from inference.errors import LONGEST_QUOTE, ForecacheError

#: repeated texts become no longer than this
_LONGEST_TEXT = 1 << 20


class BrokenRule(AssertionError):
    """Raised when a parser did something else than the rule allows."""


@dataclass(frozen=True)
class Parser:
    """One parser. `seeds`: examples; `attempt`: has it read one, and raises whatever breaks the rule.

    `form`: what an example is made of, which says how it is changed: `document`, plain JSON values; `toml`, a table
    that is written as TOML text; `bytes`.
    """

    seeds: Callable[[], Iterable[Any]]
    attempt: Callable[[Any], None]
    form: Literal["document", "toml", "bytes"] = "document"


@contextmanager
def refusing(*kinds: type[ForecacheError], sent: Any) -> Iterator[None]:
    """Take errors of these kinds as refusals of what was sent, if they quote little of it."""
    try:
        yield
    except kinds as error:
        check_words(error.message, sent)


def check_words(message: str, sent: Any) -> None:
    """Refuse a message of several lines, or one that repeats more than is allowed of what was sent."""
    if not message.isprintable():
        raise BrokenRule(f"a message that does not fit a line: {message!r}")
    most = LONGEST_QUOTE + 16  # the words before a quote may stand before the text itself too
    if len(message) <= most:
        return
    for text in _texts(sent):
        if len(text) > most and any(message[at : at + most] in text for at in range(len(message) - most + 1)):
            raise BrokenRule(f"a message that repeats more than {LONGEST_QUOTE} characters: {message}")


def _texts(sent: Any) -> Iterator[str]:
    if isinstance(sent, dict):
        for name, value in sent.items():
            yield str(name)
            yield from _texts(value)
    elif isinstance(sent, list | tuple):
        for value in sent:
            yield from _texts(value)
        yield json.dumps(sent, default=str)
    elif isinstance(sent, bytes):
        yield sent.decode("latin-1")
    else:
        yield str(sent) if not isinstance(sent, int) or abs(sent) < 10**300 else ""


def text_of(value: Any) -> str:
    """Return a text of an example; a pair of a text and a number is that text so often."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int and value[0]:
        return value[0] * max(0, min(value[1], _LONGEST_TEXT // len(value[0])))
    return json.dumps(value)


def bytes_of(value: Any) -> bytes:
    """Return bytes of an example: of characters up to 255 one each, of a text with others its UTF-8."""
    text = text_of(value)
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
