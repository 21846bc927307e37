"""Parses and encodes JSON, large documents in pieces. Before it parses, it checks depth and shape.

Parsers and encoders hold the interpreter, so that everything else waits, even if they run in a thread of their own. A
piece takes a few milliseconds whatever it holds, and other threads run between two pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic_core import from_json

from inference.errors import BadInput, cut, quoted

#: levels of nested lists and objects; numpy and TensorFlow have no tensor with more dimensions
MAX_DEPTH = 64
#: lists and objects in one document: the garbage collector spends as much on each as on a hundred numbers
MAX_CONTAINERS = 250_000
#: size of a piece; parsing one takes less than 10 ms, measured with nothing but empty lists
PIECE_BYTES = 128 * 1024
#: a document up to this size is parsed at once, in about 10 ms; a list or object takes as long as 16 bytes of numbers
_BYTES_AT_ONCE, _BYTES_OF_CONTAINER = 1024 * 1024, 16
#: values to encode at once, in a few milliseconds
ENCODED_AT_ONCE = 16_384
#: characters of text that take as long as one value
_CHARACTERS = 64
#: members of a list to encode together
_TOGETHER = 1024

#: TensorFlow Serving's words
_INVALID = "Invalid value."
#: part of the parser's message → TensorFlow Serving's words
_WORDS = {
    "expected a JSON value": _INVALID,
    "invalid literal": _INVALID,
    "expected ':'": "Missing a colon after a name of object member.",
    "expected ',' or '}'": "Missing a comma or } after an object member.",
    "expected ',' or ']'": "Missing a comma or ] after an array element.",
    "expected a string key": "Missing a name for object member.",
}

_NESTED = (list, dict, str)

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
    """Return the value of a JSON document. `NaN`, `Infinity` and `-Infinity` are numbers; a byte order mark is skipped.

    Raises:
        BadInput: the body is not JSON in UTF-8, is nested deeper than any tensor, or has too many lists and objects;
            the message says where, or has the limit.
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
    """Return the error for a body that is not JSON; `offset` says where."""
    where = "" if offset is None else f" at offset: {offset}"
    return BadInput(f"JSON Parse error: {what}{where}", field="body")


@dataclass(frozen=True)
class _Marks:
    """The brackets, commas and colons outside of texts: their places, their kinds, and the depth behind each."""

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
    """Return the body without escaped quotes and backslashes; its length stays the same."""
    return body.replace(rb"\\", b"__").replace(rb"\"", b"__") if b"\\" in body else body


def _checked_containers(body: bytes) -> int:
    """Return the number of lists and objects, after checking it and their depth."""
    # keep brackets and quotes only: a few bytes in a body of numbers
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
    """Parses one document in pieces that begin and end at its commas. The parser judges what the pieces hold."""

    def __init__(self, body: bytes, marks: _Marks) -> None:
        self._body = body
        self._marks = marks

    def value(self, start: int, stop: int) -> Any:
        """Return the value between two places of the body."""
        first, last = np.searchsorted(self._marks.places, (start, stop)).tolist()
        if stop - start <= PIECE_BYTES or first == last:  # or one long text or number
            return _loads(self._body[start:stop], start)
        begin, end = int(self._marks.places[first]), int(self._marks.places[last - 1])
        pair = self._body[begin : begin + 1] + self._body[end : end + 1]
        if self._body[start:begin].strip(_BLANKS) or self._body[end + 1 : stop].strip(_BLANKS) or pair not in _PAIRS:
            raise parse_error(_INVALID, begin)
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
        if not found and cuts > 2:  # there is nothing before or behind a comma
            raise parse_error(_INVALID, stop)
        return found

    def _name(self, start: int, stop: int) -> tuple[str, int]:
        """Return the name of an object's member, and the place where its value begins."""
        number = int(np.searchsorted(self._marks.places, start))
        colon = int(self._marks.places[number])
        name = _loads(self._body[start:colon], start) if self._marks.kinds[number] == _COLON and colon < stop else None
        if not isinstance(name, str):
            raise parse_error(_INVALID, start)
        return name, colon + 1


_PAIRS = (b"[]", b"{}")


def _grouped(cuts: Places) -> Iterator[tuple[int, int, bool]]:
    """Yield the start and stop of each piece between cuts, and whether the piece is a single, too large member."""
    at = 0
    while at < len(cuts) - 1:
        last = int(np.searchsorted(cuts, cuts[at] + PIECE_BYTES, "right")) - 1
        is_one = last <= at
        last = at + 1 if is_one else last
        yield int(cuts[at]) + 1, int(cuts[last]), is_one
        at = last


def _loads(text: bytes, offset: int) -> Any:
    """Return the value of a piece; `offset`: the piece's place in the body."""
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
    """Refuse an object that has a name twice: parsers keep only the last. Each name has a colon in the text."""
    colons = text.count(b":")
    # texts hold colons too: then encode the value again, which shows whether the parser dropped a name
    if colons == _count_names(found) or colons <= orjson.dumps(found).count(b":"):
        return
    if len(text) <= PIECE_BYTES:
        json.loads(text, object_pairs_hook=_refuse_repeats)
    raise _repeats()


def _count_names(document: Any) -> int:
    """Return the number of names in objects. Skips lists of lists, so that it does not read large tensors."""
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
        # the other parser, too, makes a float of an integer over 64 bits
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
    return next((words for part, words in _WORDS.items() if part in message), cut(message))


def is_heavy(value: Any, most: int = ENCODED_AT_ONCE) -> bool:
    """Return whether a plain value holds more than `most` values. Stops counting there."""
    left, to_see = most, [value]
    while to_see:
        one = to_see.pop()
        if isinstance(one, str):
            left -= len(one) // _CHARACTERS
            continue
        left -= len(one)
        if left < 0:
            return True
        to_see += [each for each in (one.values() if isinstance(one, Mapping) else one) if type(each) in _NESTED]
    return left < 0


def encode(value: Any, encode_light: Callable[[Any], bytes]) -> bytes:
    """Return a plain value as JSON. Call it in a thread.

    `encode_light`: encodes a value that is not heavy, without blanks.
    """
    if not isinstance(value, list | dict) or not is_heavy(value):
        return encode_light(value)
    if isinstance(value, dict):
        members = [b"%b:%b" % (encode_light(name), encode(one, encode_light)) for name, one in value.items()]
        return b"{%b}" % b",".join(members)
    pieces: list[bytes] = []
    for start in range(0, len(value), _TOGETHER):
        some = value[start : start + _TOGETHER]
        if is_heavy(some):
            pieces += [encode(one, encode_light) for one in some]
        else:
            pieces.append(encode_light(some)[1:-1])
    return b"[%b]" % b",".join(pieces)
