"""The worst of each kind that a client can send: what costs a server the most for what it costs the sender."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: the limit of a body
FULL = 8 * 1024 * 1024


@dataclass(frozen=True)
class Attack:
    """One request."""

    name: str
    path: str
    body: bytes
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_headers(self) -> dict[str, str]:
        """Its headers, with the type of its body."""
        return {"Content-Type": "application/json", **self.headers}


def attacks(model: str, tensor: str) -> Iterator[Attack]:
    """Yield attacks on a model that takes one tensor of float32."""
    yield from _shapes(f"/v1/models/{model}:predict")
    yield from _numbers(f"/v1/models/{model}:predict")
    yield from _tensors(f"/v2/models/{model}/infer", tensor)
    yield from _names()
    yield from _jobs()
    yield from _patterns()


def _shapes(path: str) -> Iterator[Attack]:
    deep = b"[" * 900 + b"]" * 900
    packed = gzip.compress(_instances(deep, 4600))
    yield Attack("gzip of deep lists", path, packed, headers={"Content-Encoding": "gzip"})
    yield Attack("deep lists", path, _instances(deep, 4600))
    yield Attack("lists as deep as a tensor", path, _instances(b"[" * 60 + b"]" * 60, 4000))
    yield Attack("empty lists", path, _instances(b"[]", 2_700_000))
    yield Attack("as many lists as may be", path, _instances(b"[]", 249_990))
    yield Attack("empty objects", path, _instances(b"{}", 2_700_000))
    yield Attack("objects of one name", path, _instances(b'{"":0}', 240_000))
    yield Attack("unlike rows", path, b'{"inputs":[' + b",".join([b"[1]"] * 200_000 + [b"[1,2]"]) + b"]}")


def _numbers(path: str) -> Iterator[Attack]:
    yield Attack("small integers", path, b'{"inputs":[' + b",".join([b"1"] * 4_000_000) + b"]}")
    yield Attack("floats", path, b'{"inputs":[' + b",".join([b"1.234567"] * 900_000) + b"]}")
    yield Attack("not finite", path, b'{"inputs":[' + b",".join([b"NaN,1"] * 1_300_000) + b"]}")
    yield Attack("long integers", path, b'{"inputs":[NaN,' + b",".join([b"9" * 4000] * 2000) + b"]}")
    yield Attack("one long number", path, b'{"inputs":[0.' + b"9" * 8_000_000 + b"]}")
    yield Attack("escapes", path, b'{"inputs":["' + rb"\\" * 4_000_000 + b'"]}')
    yield Attack("escaped quotes", path, b'{"inputs":["' + rb"\"" * 4_000_000 + b'"]}')
    yield Attack("empty texts", path, b'{"inputs":[' + b",".join([b'""'] * 2_700_000) + b"]}")
    yield Attack("base 64", path, b'{"inputs":[' + b",".join([b'{"b64":""}'] * 240_000) + b"]}")


def _tensors(path: str, tensor: str) -> Iterator[Attack]:
    def asked(**item: object) -> bytes:
        return json.dumps({"inputs": [{"name": tensor, "datatype": "FP32", **item}]}).encode()

    yield Attack("shape of 2^63", path, asked(shape=[2**63 - 1, 2**63 - 1], data=[1]))
    yield Attack("shape of a million", path, asked(shape=[1] * 1_000_000, data=[1]))
    yield Attack("data of a million", path, asked(shape=[1, 2], data=[1.5] * 1_000_000))
    yield Attack(
        "datatype of a million", path, json.dumps({"inputs": [{"name": tensor, "datatype": [1] * 10**6}]}).encode()
    )
    size = FULL - 200
    texts = {"name": tensor, "datatype": "BYTES", "shape": [2_000_000], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [texts]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    yield Attack("empty texts in bytes", path, head + bytes(size), headers=length)
    wanted = json.dumps({"inputs": [], "outputs": [{"name": "y"}] * 200_000})
    yield Attack("outputs by the thousand", path, wanted.encode())
    unknown = b'{"inputs":[{"name":"' + b"n" * 8_000_000 + b'"}]}'
    yield Attack("an input of a long name", path, unknown)


def _names() -> Iterator[Attack]:
    names = b",".join(b'"k%d":1' % number for number in range(500_000))
    ids = json.dumps([f"F{number % 100}" for number in range(1000)]).encode()
    numbers = b"[" + b",".join([b"1"] * 4_000_000) + b"]"
    yield Attack("overrides by the thousand", "/predict", b'{"entity_ids":["F1"],"overrides":{%b}}' % names)
    yield Attack("fields by the thousand", "/predict", b"{%b}" % names)
    yield Attack("a long name", "/predict", b'{"entity_ids":%b,"overrides":{"%b":1}}' % (ids, b"k" * 200_000))
    yield Attack("ids by the million", "/predict", b'{"entity_ids":[%b]}' % b",".join([b'"F1"'] * 1_600_000))
    yield Attack("ids that are no text", "/predict", b'{"entity_ids":%b}' % numbers)
    yield Attack("instances by the million", "/predict", b'{"instances":%b}' % numbers)
    yield Attack("one long instance", "/predict", b'{"instances":[%b]}' % _row(2_000_000))
    yield Attack("features by the thousand", "/features/F1", b'{"features":{%b}}' % names, "PUT")
    yield Attack("a long list of features", "/features/F1", b'{"features":%b}' % numbers, "PUT")
    item = b'{"entity_id":"F1","features":{%b}}' % b",".join(b'"k%d":1' % number for number in range(500))
    yield Attack("updates of unknown names", "/features", b'{"items":[%b]}' % b",".join([item] * 900), "PUT")
    yield Attack("a document of the routes", "/openapi.json", b"", "GET")
    yield Attack("a path of a model", f"/v1/models/{'m' * 4000}", b"", "GET")


def _jobs() -> Iterator[Attack]:
    instances = b",".join([b"[1.5,2.5]"] * 100_000)
    ids = b",".join(b'"F%d"' % number for number in range(100_000))
    named = {"Idempotency-Key": "k"}
    yield Attack("a job of instances", "/predictions", b'{"instances":[%b]}' % instances, headers=named)
    yield Attack("a job of one long instance", "/predictions", b'{"instances":[%b]}' % _row(2_000_000))
    long = b'{"entity_ids":[%b],"overrides":{"%b":1}}' % (ids, b"k" * 20_000)
    yield Attack("a job of a long name", "/predictions", long)
    yield Attack("a run of many entities", "/runs", b'{"entities":[%b],"source":"/nowhere"}' % ids)


def _patterns() -> Iterator[Attack]:
    for name, source in (
        ("stars", "**" * 100 + "z"),
        ("stars and letters", "*a" * 200 + "b"),
        ("folders", "**/" * 300 + "z"),
        ("sets", "[a-z]*" * 150),
        ("a long path", "a" * 1_000_000),
        ("a long pattern", "*" * 1_000_000),
    ):
        yield Attack(f"pattern: {name}", "/runs", json.dumps({"source": f"data/{source}"}).encode())
    yield Attack("a long duration", "/runs", json.dumps({"since": "9" * 1_000_000 + "h"}).encode())


def _row(values: int) -> bytes:
    return b"[" + b",".join([b"1.5"] * values) + b"]"


def _instances(one: bytes, count: int) -> bytes:
    return b'{"instances":[' + b",".join([one] * count) + b"]}"
