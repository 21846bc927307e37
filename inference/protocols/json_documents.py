"""Parses JSON that a client sent: its depth and shape are looked at first, and a large document is read in pieces.

The parsers hold the interpreter for as long as they read, so that all else waits even when they run in a thread. A
piece takes a few milliseconds, whatever is in it; between two pieces others have their turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic_core import from_json

from inference.errors import BadInput, cut, quoted

#: lists and objects inside each other; numpy, like TensorFlow, knows no tensor of more dimensions
MAX_DEPTH = 64
#: lists and objects of one document: each costs the interpreter's garbage collector as much as a hundred numbers
MAX_CONTAINERS = 250_000
#: bytes of a piece: parsed in less than 10 ms, measured with nothing but empty lists
PIECE_BYTES = 128 * 1024
#: a document that is parsed as one, in about 10 ms; a list or an object takes as long as so many bytes of numbers
_BYTES_AT_ONCE, _BYTES_OF_CONTAINER = 1024 * 1024, 16

_UTF8_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_BLANKS = b" \t\r\n"
_NOT_FINITE = (b"NaN", b"Infinity")
_LONG_NUMBER = re.compile(rb"[0-9]{19}")

_OPEN, _CLOSE, _COMMA, _COLON, _QUOTE = 1, 2, 3, 4, 5
_KINDS = np.zeros(256, np.uint8)
for _characters, _kind in ((b"[{", _OPEN), (b"]}", _CLOSE), (b",", _COMMA), (b":", _COLON), (b'"', _QUOTE)):
    _KINDS[list(_characters)] = _kind

_NEITHER_BRACKETS_NOR_QUOTES = bytes(set(range(256)) - set(b'[]{}"'))

Places = npt.NDArray[np.intp]


def parse(body: bytes) -> Any:
    """Return what JSON says; `NaN`, `Infinity` and `-Infinity` are numbers, and a UTF-8 byte order mark is skipped.

    Raises:
        BadInput: it is no JSON in UTF-8, is nested deeper than any tensor, or has too many lists and objects; the
            message says where, or how many may come.
    """
    body = body.removeprefix(_UTF8_MARK)
    if not body.strip(_BLANKS):
        raise parse_error("The document is empty")
    containers = body.count(b"[") + body.count(b"{")
    if containers > MAX_DEPTH:
        containers = _checked_containers(body)
    if len(body) + _BYTES_OF_CONTAINER * containers <= _BYTES_AT_ONCE:
        return _loads(body, 0)
    _require_utf8(body)
    return _Pieces(body, _marks_of(body)).value(0, len(body))


def parse_error(what: str, offset: int | None = None) -> BadInput:
    """Return that a body is no JSON."""
    where = "" if offset is None else f" at offset: {offset}"
    return BadInput(f"JSON Parse error: {what}{where}", field="body")


@dataclass(frozen=True)
class _Marks:
    """The brackets, commas and colons outside of texts: where they are, what, and how deep it is behind them."""

    places: Places
    kinds: npt.NDArray[np.uint8]
    depths: npt.NDArray[np.int32]


def _marks_of(body: bytes) -> _Marks:
    found = _KINDS[np.frombuffer(_without_escapes(body), np.uint8)]
    places = np.flatnonzero(found)
    kinds = found[places]
    is_quote = kinds == _QUOTE
    outside = ~is_quote & ~np.logical_xor.accumulate(is_quote) if is_quote.any() else ~is_quote
    places, kinds = places[outside], kinds[outside]
    steps = (kinds == _OPEN).astype(np.int8) - (kinds == _CLOSE).astype(np.int8)
    return _Marks(places, kinds, np.cumsum(steps, dtype=np.int32))


def _without_escapes(body: bytes) -> bytes:
    """Return the body, as long as before, without what may stand before a quote that ends no text."""
    return body.replace(rb"\\", b"__").replace(rb"\"", b"__") if b"\\" in body else body


def _checked_containers(body: bytes) -> int:
    """Return how many lists and objects there are, if not too many, nor too deep."""
    # only brackets and quotes are left: a few bytes of a body of numbers
    marks = _marks_of(_without_escapes(body).translate(None, _NEITHER_BRACKETS_NOR_QUOTES))
    if marks.depths.max(initial=0) > MAX_DEPTH:
        raise parse_error(f"it is nested more than {MAX_DEPTH} levels deep")
    containers = int(np.count_nonzero(marks.kinds == _OPEN))
    if containers > MAX_CONTAINERS:
        raise BadInput(
            f"the body holds {containers} lists and objects: at most {MAX_CONTAINERS}, send it in parts", field="body"
        )
    return containers


class _Pieces:
    """One document, read in pieces that begin and end at its commas. What they hold is for the parser to judge."""

    def __init__(self, body: bytes, marks: _Marks) -> None:
        self._body = body
        self._marks = marks

    def value(self, start: int, stop: int) -> Any:
        """Return the value that stands between two places of the body."""
        first, last = np.searchsorted(self._marks.places, (start, stop)).tolist()
        if stop - start <= PIECE_BYTES or first == last:  # or one long text or number
            return _loads(self._body[start:stop], start)
        begin, end = int(self._marks.places[first]), int(self._marks.places[last - 1])
        pair = self._body[begin : begin + 1] + self._body[end : end + 1]
        if self._body[start:begin].strip(_BLANKS) or self._body[end + 1 : stop].strip(_BLANKS) or pair not in _PAIRS:
            raise parse_error("unexpected character", begin)
        inner = slice(first + 1, last - 1)
        level = self._marks.depths[first]
        at_level = (self._marks.kinds[inner] == _COMMA) & (self._marks.depths[inner] == level)
        if self._marks.depths[inner].min(initial=level) < level:
            raise parse_error("unexpected end of a list or an object", begin)
        cuts = np.concatenate([[begin], self._marks.places[inner][at_level], [end]])
        if len(cuts) == 2 and not self._body[begin + 1 : end].strip(_BLANKS):
            return [] if pair == b"[]" else {}
        return self._list(cuts) if pair == b"[]" else self._object(cuts)

    def _list(self, cuts: Places) -> list[Any]:
        found: list[Any] = []
        for start, stop, is_one in _grouped(cuts):
            if is_one:
                found.append(self.value(start, stop))
            else:
                found += self._some(b"[", start, stop, b"]", len(cuts))
        return found

    def _object(self, cuts: Places) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for start, stop, is_one in _grouped(cuts):
            if is_one:
                name, after = self._name(start, stop)
                some = {name: self.value(after, stop)}
            else:
                some = self._some(b"{", start, stop, b"}", len(cuts))
            if repeated := found.keys() & some.keys():
                raise _repeats(next(iter(repeated)))
            found |= some
        return found

    def _some(self, opening: bytes, start: int, stop: int, closing: bytes, cuts: int) -> Any:
        found = _loads(opening + self._body[start:stop] + closing, start - 1)
        if not found and cuts > 2:  # nothing before or behind a comma
            raise parse_error("unexpected character", stop)
        return found

    def _name(self, start: int, stop: int) -> tuple[str, int]:
        """Return the name of an object's member, and where its value begins."""
        number = int(np.searchsorted(self._marks.places, start))
        colon = int(self._marks.places[number])
        name = _loads(self._body[start:colon], start) if self._marks.kinds[number] == _COLON and colon < stop else None
        if not isinstance(name, str):
            raise parse_error("unexpected character", start)
        return name, colon + 1


_PAIRS = (b"[]", b"{}")


def _grouped(cuts: Places) -> Iterator[tuple[int, int, bool]]:
    """Yield where pieces between cuts begin and end, and whether a piece is one member that is too large."""
    at = 0
    while at < len(cuts) - 1:
        last = int(np.searchsorted(cuts, cuts[at] + PIECE_BYTES, "right")) - 1
        is_one = last <= at
        last = at + 1 if is_one else last
        yield int(cuts[at]) + 1, int(cuts[last]), is_one
        at = last


def _loads(text: bytes, offset: int) -> Any:
    """Return what a piece says; `offset`: where in the body it begins."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        _require_utf8(text)
        if not any(word in text for word in _NOT_FINITE):
            raise parse_error(_in_our_words(error.msg), offset + error.pos) from error
        found = _with_not_finite(text)
    _require_each_name_once(text, found)
    return found


def _require_each_name_once(text: bytes, found: Any) -> None:
    """Refuse an object that has a name twice, of which parsers keep the last: each name has a colon in the text."""
    colons = text.count(b":")
    # texts hold colons too: then it is written again, and what a parser dropped is missing
    if colons == _count_names(found) or colons <= orjson.dumps(found).count(b":"):
        return
    if len(text) <= PIECE_BYTES:
        json.loads(text, object_pairs_hook=_refuse_repeats)
    raise _repeats()


def _count_names(document: Any) -> int:
    """Return how many names the objects hold, but for those in lists of lists: it reads no large tensor."""
    found, waiting = 0, [document]
    while waiting:
        one = waiting.pop()
        if type(one) is dict:
            found += len(one)
            waiting.extend(value for value in one.values() if type(value) in (dict, list))
        elif type(one) is list and one and type(one[0]) is dict:
            waiting.extend(value for value in one if type(value) is dict)
    return found


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _repeats(name)
        seen.add(name)


def _repeats(name: str | None = None) -> BadInput:
    return parse_error("an object has a name twice" if name is None else f"an object has the name {quoted(name)} twice")


def _with_not_finite(text: bytes) -> Any:
    try:
        found = from_json(text, cache_strings=False)
        # as the other parser has it, a whole number beyond 64 bits is a float
        return _without_long_integers(found) if _LONG_NUMBER.search(text) else found
    except ValueError as error:
        raise parse_error(_in_our_words(str(error))) from error
    except OverflowError as error:
        raise parse_error("a number has too many digits") from error


def _without_long_integers(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_long_integers(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_long_integers(one) for name, one in value.items()}
    return float(value) if type(value) is int and not -(2**63) <= value < 2**64 else value


def _require_utf8(body: bytes) -> None:
    if body[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in body[:2]:
        raise parse_error("this is UTF-16 or UTF-32: send UTF-8")
    if body[:2] == _GZIP:
        raise parse_error("this is gzip: send the header Content-Encoding: gzip with it")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{body[error.start]:02x} is not UTF-8: send the text as UTF-8"
        raise parse_error(byte, error.start) from error


def _in_our_words(message: str) -> str:
    if "infinity" in message:
        return "a number is larger than any float"
    if "out of range" in message:
        return "a number has too many digits"
    if "hex escape" in message or "surrogate" in message:
        return "half of a surrogate pair is no text"
    return cut(message)
