"""A key's rate counts what requests weigh: a row is a row and a byte a byte, in whatever request they come."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import httpx
import pytest

from app.api.access import BYTES_PER_ROW
from inference.errors import BrokerUnavailable
from inference.features import Feature, FeatureContract
from inference.models import ModelRegistry, VersionRecord
from inference.schema import DType, Signature, TensorSpec
from tests.integration.test_api import KEYS, Deployment, assert_problem, fresh, it  # noqa: F401 - `it` is a fixture
from tests.integration.test_api_connections import serving

pytestmark = pytest.mark.integration

RATE = 40
#: each test's keys: a fresh one for each thing that it weighs
NAMES = [f"k{number}" for number in range(30)]


@asynccontextmanager
async def rated(it: Deployment) -> AsyncIterator[httpx.AsyncClient]:  # noqa: F811
    """Serve keys of which each may ask for 40 a day, and a model of which a version is ready."""
    scopes = ["read", "enqueue", "write", "admin"]
    keys = {
        name: {"hash": f"sha256:{sha256(name.encode()).hexdigest()}", "rate": f"{RATE}/day", "scopes": scopes}
        for name in NAMES
    }
    signature = Signature(inputs=(TensorSpec("x", DType.FLOAT32),), outputs=(TensorSpec("y", DType.FLOAT32),))
    contract = FeatureContract([Feature("x", DType.FLOAT32)])
    record = VersionRecord(
        version=1, state="ready", signature=signature, contract=contract, fingerprint="f", inspected_at=0.0
    )
    ModelRegistry(it.client, KEYS).put("delay", record)
    it.reader.entries["a"] = fresh(1.5)
    it.workers.error = BrokerUnavailable("none here")
    async with serving(it, keys=keys) as served:
        yield served.http


async def ask(http: httpx.AsyncClient, key: str, method: str, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"X-API-Key": key, "Content-Type": "application/json", **headers}
    return await http.request(method, path, content=content, headers=sent)


async def left(http: httpx.AsyncClient, key: str) -> int:
    """Use up what a key has left with requests that count 1 each, and return how many they were."""
    used = 0
    while (await ask(http, key, "GET", "/v2", None)).status_code != 429:
        used += 1
    return used


IDS = [str(number) for number in range(30)]
PAD = "x" * (3 * BYTES_PER_ROW)
TENSOR = {"name": "x", "shape": [30], "datatype": "FP32", "data": [1.0] * 30}
REQUESTS: list[tuple[str, str, Any, int]] = [
    ("POST", "/predict", {"entity_ids": IDS}, 30),
    ("POST", "/predict", {"entity_ids": IDS[:1]}, 1),
    ("POST", "/predict", {"instances": [{"x": 1.0}] * 30}, 30),
    ("POST", "/predict", {"instances": [[1.0]] * 20, "entity_ids": IDS}, 30),
    ("POST", "/predict", {"entity_ids": ["1"], "overrides": {"x": PAD}}, 4),
    ("POST", "/predict", {"entity_ids": [*IDS, PAD]}, 34),
    ("POST", "/predictions", {"entity_ids": IDS}, 30),
    ("POST", "/predictions", {"instances": [[1.0]] * 30}, 30),
    ("POST", "/runs", {"entities": IDS}, 30),
    ("PUT", "/features", {"items": [{"entity_id": one, "features": {"x": 1}} for one in IDS]}, 30),
    ("PUT", "/features/a", {"features": [1.0] * 30}, 1),
    ("POST", "/predict", PAD.encode(), 4),
    ("POST", "/v1/models/delay:predict", {"instances": PAD}, 4),
    ("POST", "/v1/models/delay:predict", {"instances": [1.0] * 30}, 30),
    ("POST", "/v1/models/delay:predict", {"inputs": [1.0] * 30}, 30),
    ("POST", "/v1/models/delay/versions/1:predict", {"instances": [{"x": 1.0}] * 30}, 30),
    ("POST", "/v2/models/delay/infer", {"inputs": [TENSOR]}, 30),
    ("POST", "/v2/models/delay/infer", {"id": PAD, "inputs": []}, 4),
    ("GET", "/predict/a", None, 1),
    ("GET", "/runs", None, 1),
]


@pytest.mark.slow
async def test_each_request_counts_its_rows_and_its_bytes(it: Deployment) -> None:  # noqa: F811
    async with rated(it) as http:
        for key, (method, path, body, weight) in zip(NAMES, REQUESTS, strict=False):
            answer = await ask(http, key, method, path, body)
            assert answer.status_code not in (401, 403, 429), answer.text
            assert await left(http, key) == RATE - weight, (path, str(body)[:60])


async def test_a_packed_body_weighs_what_it_unpacks_to_and_is_not_unpacked_further(it: Deployment) -> None:  # noqa: F811
    bomb = gzip.compress(b" " * (7 * 1024 * 1024))
    async with rated(it) as http:
        for key, path in zip(NAMES, ("/predict", "/v1/models/delay:predict", "/v2/models/delay/infer"), strict=False):
            refused = await ask(http, key, "POST", path, bomb, **{"Content-Encoding": "gzip"})
            assert refused.status_code == 413
            assert f"{RATE} per 1 day" in refused.text


async def test_what_fits_into_no_window_is_told_so_and_what_fits_the_next_one_when(it: Deployment) -> None:  # noqa: F811
    many = {"entity_ids": [str(number) for number in range(RATE + 1)]}
    async with rated(it) as http:
        for path in ("/predict", "/predictions"):
            for _ in range(2):
                refused = await ask(http, NAMES[0], "POST", path, many)
                assert_problem(refused, 413, "too-heavy")
                assert "in parts" in refused.json()["detail"]
                assert "retry-after" not in refused.headers
        # a refused one leaves to others what it would have used up
        assert await left(http, NAMES[0]) == RATE - 4
        assert (await ask(http, NAMES[1], "POST", "/predict", {"entity_ids": IDS})).status_code == 200
        later = await ask(http, NAMES[1], "POST", "/predictions", {"entity_ids": IDS})
        assert_problem(later, 429, "rate-limited")
        assert 86_000 < int(later.headers["retry-after"]) <= 86_400
        assert await left(http, NAMES[1]) == RATE - 30 - 1
        whole = {"entity_ids": many["entity_ids"][:RATE]}
        assert (await ask(http, NAMES[2], "POST", "/predict", whole)).status_code == 200
        assert await left(http, NAMES[2]) == 0
    assert it.sent == []
