"""Changes examples so that they stay what parsers get far with: values of a document, rather than bytes of its text."""

from __future__ import annotations

import json
import random
import tomllib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import tomlkit

Mutate = Callable[[bytes, int], bytes]

_INSTANTS = ("2026-01-31T06:00:00Z", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00", "2026-01-01T00:00:00+99:99")
#: values on which parsers stumble
_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 64, 255, 256, 4096, 65536, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    -(2**63) - 1, 10**25, 10**400, 0.5, -0.0, 1e-320, 1e38, 1e39, 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "a", "0", "-1", "1.5", "nan", "inf", "1e999", "true", "null", "\0", "\n", "\x1b[31m", "\x7f", "\x85", "ä",
    "\u2028", "\ud800", "\udcff", "🚀", "%", "%s", "{}", "{0}", "..", "../..", "/", "\\", "'", '"', "[", "]", "{", ":",
    "=", ",", ";", "x" * 65, "x" * 300, ["x", 5000], ["[", 70], ["é", 257], "٣", "1_000", " 7 ", "+1", "0x10", "1e5",
    *_INSTANTS, [], {}, [[]], [None], [0], [1, 2, 3], [[1.0], [2.0]], {"": None}, {"a": 1}, {"b64": "eA=="},
    {"b64": "?"}, {"b64": 1}, [{"b64": "/w=="}], "bool", "int8", "int64", "uint64", "float16", "float32", "string",
)  # fmt: skip
_RECENT = 300


class Mutator:
    """Changes examples of one parser. `mutate`: libFuzzer's own change of bytes."""

    def __init__(self, form: str, seeds: list[bytes], mutate: Mutate) -> None:
        self._form = form
        self._mutate = mutate
        self._known: deque[Any] = deque(maxlen=_RECENT)
        for seed in seeds:
            self._remember(seed)

    def __call__(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Return an example that differs from the given one, of `max_size` bytes at most."""
        rng = random.Random(seed)  # noqa: S311 - no secret
        if self._form == "bytes" or rng.random() < 0.02:
            return self._mutate(data, max_size)
        document = self._remember(data)
        if document is None:
            document = rng.choice(self._known)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
            document = self._changed(document, rng)
        written = written_as(self._form, document)
        return written if written is not None and len(written) <= max_size else self._mutate(data, max_size)

    def _remember(self, data: bytes) -> Any:
        document = read_as(self._form, data)
        if isinstance(document, dict | list):
            self._known.append(document)
        return document

    def _changed(self, document: Any, rng: random.Random) -> Any:
        copy = json.loads(json.dumps(document))
        places = list(_places(copy))
        if not places:
            return rng.choice(self._known)
        holder, key = rng.choice(places)
        value = holder[key]
        if isinstance(value, str):
            holder[key] = self._text(value, rng)
        elif rng.random() < 0.25:
            holder[key] = rng.choice(_ODD)
        elif isinstance(value, dict | list):
            holder[key] = self._container(value, rng)
        elif isinstance(value, bool) or value is None:
            holder[key] = rng.choice((True, False, None, *_ODD))
        else:
            holder[key] = _number(value, rng)
        return copy

    def _text(self, value: str, rng: random.Random) -> Any:
        inner = _document_in(value) if rng.random() < 0.8 else None
        if inner is not None:
            return json.dumps(self._changed([inner], rng)[0], ensure_ascii=rng.random() < 0.8)
        draw = rng.random()
        if draw < 0.5:
            data = value.encode("latin-1") if all(c < "Ā" for c in value) else value.encode("utf-8", "surrogatepass")
            return self._mutate(data, len(data) + 16).decode("latin-1")
        if draw < 0.7:
            return rng.choice(_ODD)
        if draw < 0.8:
            return [value or "x", rng.choice((2, 70, 300, 5000, 70_000))]
        return self._other(rng, str) if draw < 0.95 else value * 2

    def _container(self, value: Any, rng: random.Random) -> Any:
        draw = rng.random()
        new = rng.choice(_ODD) if rng.random() < 0.5 else self._other(rng, object)
        if isinstance(value, list):
            at = rng.randrange(len(value) + 1)
            if draw < 0.3 and value:
                del value[min(at, len(value) - 1)]
            elif draw < 0.6:
                value.insert(at, new)
            elif draw < 0.7 and value:
                value *= rng.choice((2, 3, 65))
            elif draw < 0.8:
                rng.shuffle(value)
            else:
                return [value]
            return value
        if draw < 0.35 and value:
            del value[rng.choice(list(value))]
        elif draw < 0.6:
            name = self._other(rng, str)
            value[name if isinstance(name, str) else "x"] = new
        elif draw < 0.9 and value:
            old = rng.choice(list(value))
            name = self._text(old, rng) if rng.random() < 0.5 else rng.choice(_ODD)
            value[str(name)] = value.pop(old)
        else:
            return {"x": value}
        return value

    def _other(self, rng: random.Random, kind: type) -> Any:
        """Return a value, or for texts also a name, from another example."""
        document = rng.choice(self._known)
        found = [holder[key] for holder, key in _places(document)]
        names = [key for _, key in _places(document) if isinstance(key, str)]
        fitting = [value for value in (*found, *names) if isinstance(value, kind)]
        return json.loads(json.dumps(rng.choice(fitting))) if fitting else "x"


def read_as(form: str, data: bytes) -> Any:
    """Return the example that bytes stand for; None for none."""
    if form == "bytes":
        return data
    try:
        return json.loads(data) if form == "document" else tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        return None


def written_as(form: str, example: Any) -> bytes | None:
    """Return an example as bytes; None when its form cannot hold it."""
    if form == "bytes":
        return bytes(example)
    try:
        return json.dumps(example).encode() if form == "document" else tomlkit.dumps(example).encode()
    except Exception:  # noqa: BLE001 - TOML has no null, no surrogates, and its writer raises of many kinds
        return None


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, value in pairs:
            yield holder, key
            if isinstance(value, dict | list):
                waiting.append(value)


def _document_in(text: str) -> Any:
    if text[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _number(value: float, rng: random.Random) -> Any:
    draw = rng.random()
    if draw < 0.4:
        return value + rng.choice((-1, 1, 2, 256))
    if draw < 0.6:
        return rng.choice((-value, value * 2, value / 2 if abs(value) < 1e300 else 0, str(value)[:400]))
    return rng.choice(_ODD)
