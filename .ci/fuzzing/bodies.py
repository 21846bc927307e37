"""Requests with bodies, as the whole application answers them."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import unquote

from fuzzing.deployment import check_codes, make_application, traceback_of
from fuzzing.rule import BrokenRule, Parser, bytes_of, check_words, text_of

ROUTES = (
    "POST /predict", "POST /predictions", "PUT /features", "PUT /features/a", "POST /v1/models/plain:predict",
    "POST /v1/models/wide:predict", "POST /v1/models/texts:classify", "POST /v1/models/regress:regress",
    "POST /v1/models/open:predict", "POST /v2/models/open/infer", "POST /v2/models/wide/infer",
    "POST /v2/models/plain/versions/1/infer", "GET /predict/a?explain=features&model=wide",
)  # fmt: skip
_LENGTH = "inference-header-content-length"
_ROW = {"x": 1.5, "n": 3, "city": "b", "free": None, "sure": True, "small": [1, 2], "half": 0.25}
_PACKED = {"gzip": gzip.compress, "deflate": zlib.compress}
#: the model's own fault, in both forms: it gives what is not finite
_MODELS_OWN = ("prediction-failed", "the model gave no usable prediction for this input")


def _tensor(name: str, shape: list[int], datatype: str, **rest: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, **rest}


def _seeds() -> Iterator[dict[str, Any]]:
    one, wide = {"model": "plain"}, {"model": "wide"}
    yield {"route": 0, "json": {**one, "entity_ids": ["a", "b"], "max_staleness_hours": 0, "timeout_ms": 50}}
    yield {"route": 0, "json": {**wide, "entity_ids": ["a"], "overrides": _ROW}}
    yield {"route": 0, "json": {**wide, "instances": [_ROW]}}
    yield {"route": 1, "json": {**wide, "instances": [_ROW], "priority": "low"}, "headers": {"idempotency-key": "k"}}
    yield {"route": 1, "json": {**wide, "entity_ids": ["a"], "overrides": {"x": None}, "timeout_ms": 1000}}
    item = {"entity_id": "a", "features": _ROW, "event_time": "2026-01-31T06:00:00Z"}
    yield {"route": "PUT /features?model=wide", "json": {"items": [item, {"entity_id": "b", "features": {"x": 1}}]}}
    flat = [1.5, 3, "b", None, True, 1, 2, 0.25]
    yield {"route": "PUT /features/a?model=wide", "json": {"features": flat}}
    yield {"route": 4, "json": {"instances": [1.0, 2]}}
    yield {"route": 4, "json": {"signature_name": "serving_default", "inputs": [1.0]}}
    columns = {name: [value] for name, value in {**_ROW, "free": "x"}.items()}
    yield {"route": 5, "json": {"instances": [{**_ROW, "free": {"b64": "eA=="}}]}}
    yield {"route": 5, "json": {"inputs": columns}}
    yield {
        "route": 6,
        "json": {"context": {"c": 1}, "examples": [{"a": 1.5, "b": [1, 2], "c": "x", "d": {"b64": "/w=="}}]},
    }
    yield {"route": 7, "json": {"examples": [{"a": [0.5]}]}}
    yield {"route": 8, "json": {"instances": [{"a": [[1.0, 2.0]], "b": True, "c_bytes": [{"b64": "eA=="}]}]}}
    a = _tensor("a", [1, 1, 2], "FP64", data=[1.0, 2.0])
    b = _tensor("b", [1], "BOOL", data=[True])
    c = _tensor("c_bytes", [1, 1], "BYTES", data=["x"])
    wanted = [{"name": "a", "parameters": {"binary_data": True}}, {"name": "c_bytes"}]
    yield {"route": 9, "json": {"id": "i", "inputs": [a, b, c], "outputs": wanted}}
    packed = [
        _tensor("a", [1, 1, 2], "FP64", parameters={"binary_data_size": 16}),
        _tensor("b", [1], "BOOL", parameters={"binary_data_size": 1}),
        _tensor("c_bytes", [1, 1], "BYTES", parameters={"binary_data_size": 5}),
    ]
    binary = "\0" * 14 + "\xf0\x3f" + "\1" + "\1\0\0\0x"
    outputs = {"binary_data_output": True}
    yield {"route": 9, "json": {"inputs": packed, "parameters": outputs}, "binary": binary}
    kinds = {
        "x": "FP32",
        "n": "INT64",
        "city": "BYTES",
        "free": "BYTES",
        "sure": "BOOL",
        "small": "UINT8",
        "half": "FP16",
    }
    inputs = [_tensor(name, [1, *([2] if name == "small" else [])], kinds[name], data=columns[name]) for name in kinds]
    yield {"route": 10, "json": {"inputs": inputs}}
    yield {"route": 11, "json": {"inputs": [_tensor("x", [2], "FP32", data=[1, 2.5])]}, "step": 7}
    yield {"route": 0, "json": {**one, "entity_ids": ["a"]}, "packed": "gzip", "headers": {"content-encoding": "gzip"}}
    yield {"route": 0, "body": '{"model": "plain", "entity_ids": ["\\u00e4"], "x": NaN}'}
    yield {"route": 12}


@cache
def _application() -> tuple[Any, asyncio.AbstractEventLoop]:
    return make_application(), asyncio.new_event_loop()


def attempt(example: Any) -> None:
    """Have the application answer a request; whatever it says, none of it is a defect."""
    if not isinstance(example, dict):
        return
    body, head = _body_of(example)
    named = example.get("route", 0)
    route = ROUTES[named % len(ROUTES)] if type(named) is int else text_of(named)
    method, _, target = route.partition(" ")
    path, _, query = target.partition("?")
    if not (method.isascii() and method.isalpha() and path.startswith("/") and target.isascii()):
        return
    headers = {"host": "localhost", "content-type": "application/json", **head}
    given = example.get("headers")
    headers |= {str(name).lower(): text_of(value) for name, value in given.items()} if isinstance(given, dict) else {}
    if not all(name.isascii() and value.isprintable() and _is_latin(value) for name, value in headers.items()):
        return
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method.upper(), "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip
    app, loop = _application()
    step = example.get("step")
    traceback_of.clear()
    status, sent, answer = loop.run_until_complete(_ask(app, scope, body, step if type(step) is int else 0))
    _judge(example, status, sent, answer)


def _judge(example: Any, status: int, sent: dict[bytes, bytes], answer: bytes) -> None:
    if b"json" not in sent.get(b"content-type", b"") and sent.get(b"content-type") != b"application/octet-stream":
        return
    length = sent.get(_LENGTH.encode())
    told = json.loads(answer[: int(length)] if length else answer) if answer else None
    check_codes(told)
    if status >= 500 and (told or {}).get("code", (told or {}).get("error")) not in _MODELS_OWN:
        raise BrokenRule(f"{status} {told}") from (traceback_of or [None])[-1]
    if status >= 400:
        # TensorFlow Serving quotes JSON on several lines, and so do we in its place
        check_words(str(told.get("detail", told.get("error"))).replace("\n", " "), example)


def _body_of(example: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    if "json" not in example:
        return bytes_of(example.get("body", "")), {}
    body = json.dumps(example["json"]).encode()
    head = {_LENGTH: str(len(body))} if "binary" in example else {}
    body += bytes_of(example.get("binary", ""))
    pack = _PACKED.get(str(example.get("packed")))
    return (pack(body) if pack else body), head


def _is_latin(text: str) -> bool:
    return all(ord(character) < 256 for character in text)


async def _ask(app: Any, scope: dict[str, Any], body: bytes, step: int) -> tuple[int, dict[bytes, bytes], bytes]:
    step = step if 0 < step < len(body) and len(body) // step < 100 else max(len(body), 1)
    pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    messages = iter(
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    )
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if (message := next(messages, None)) is not None:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        told.append(message)

    async with asyncio.timeout(30):
        await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in told[1:])
    return told[0]["status"], dict(told[0]["headers"]), answer


PARSER = Parser(_seeds, attempt)
