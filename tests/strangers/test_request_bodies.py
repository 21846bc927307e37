"""Bodies as clients send them: packed, marked, cut off, nested, misspelt. One rule for every route."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_core import core_schema

from app.api.features import FeaturesBody, ItemsBody
from app.api.limits import MAX_BODY_BYTES
from app.api.request_bodies import _STEP_BYTES, _unpacked
from app.api.requests import as_bad_input
from app.api.schemas import EnqueueBody, PredictBody, PublishBody, RollbackBody, RunBody
from inference.field_errors import _SENTENCES, WANTED
from inference.protocols.json_documents import parse
from tests.integration.test_api import Deployment, fresh

pytestmark = pytest.mark.integration

JSON = {"content-type": "application/json"}
#: method, path: every route that reads a body
ROUTES = [
    ("POST", "/predict"),
    ("POST", "/predictions"),
    ("POST", "/runs"),
    ("PUT", "/features"),
    ("PUT", "/features/a"),
    ("POST", "/runs/r1/publish"),
    ("POST", "/models/delay/rollback"),
    ("POST", "/v1/models/delay:predict"),
    ("POST", "/v2/models/delay/infer"),
]
IDS = b'{"entity_ids": ["a"]}'


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


async def ask(
    http: httpx.AsyncClient, route: tuple[str, str], content: bytes | None, **headers: str
) -> tuple[int, str, Any]:
    """Return the status, the sentence, and the whole body of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await http.request(*route, content=content, headers=JSON | named)
    body = answer.json()
    return answer.status_code, str(body.get("detail", body.get("error"))), body


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
        ("", bytes),
        ("identity, gzip", gzip.compress),
    ],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_packed_body_is_taken_as_a_plain_one(
    http: httpx.AsyncClient, it: Deployment, route: tuple[str, str], encoding: str, pack: Any
) -> None:
    plain = await ask(http, route, b'{"no_such": 1}')
    packed = await ask(http, route, pack(b'{"no_such": 1}'), content_encoding=encoding)
    assert packed[:2] == plain[:2]
    it.reader.entries["a"] = fresh(1.5)
    if route[1] == "/predict":
        answer = await ask(http, route, pack(IDS), content_encoding=encoding)
        assert answer[2]["predictions"][0]["prediction"] == 1.5


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "deflate, gzip", "aws-chunked"])
@pytest.mark.parametrize("route", ROUTES)
async def test_another_packing_is_a_415_that_says_what_to_send(
    http: httpx.AsyncClient, route: tuple[str, str], encoding: str
) -> None:
    status, sentence, _ = await ask(http, route, b"x", content_encoding=encoding)
    assert (status, sentence) == (415, f"Content-Encoding {encoding} is not supported: send gzip, deflate or none")


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", IDS),
        ("gzip", gzip.compress(IDS)[:-9]),
        ("gzip", gzip.compress(IDS) + b"more"),
        ("deflate", IDS),
        ("deflate", raw_deflate(IDS)[:-1]),
        ("deflate", zlib.compress(IDS)[:-4]),
    ],
    ids=["plain", "gzip cut off", "gzip and more", "plain as deflate", "raw cut off", "deflate cut off"],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_body_that_is_not_packed_as_it_says_is_told_so(
    http: httpx.AsyncClient, route: tuple[str, str], encoding: str, content: bytes
) -> None:
    status, sentence, _ = await ask(http, route, content, content_encoding=encoding)
    assert status == 400
    assert sentence.startswith(f"the body is no {encoding}: ")


@pytest.mark.parametrize("route", ROUTES)
async def test_what_is_too_large_unpacked_is_refused_before_all_of_it_is_unpacked(
    http: httpx.AsyncClient, route: tuple[str, str]
) -> None:
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        bomb = pack(b" " * (MAX_BODY_BYTES + 1))
        status, sentence, _ = await ask(http, route, bomb, content_encoding=encoding)
        assert (status, sentence) == (413, f"the body is over {MAX_BODY_BYTES} bytes: send it in parts")


async def test_a_packed_body_is_unpacked_in_small_steps() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield gzip.compress(b" " * 10_000_000)

    sizes = [len(piece) async for piece in _unpacked(pieces(), "gzip")]
    assert (sum(sizes), max(sizes)) == (10_000_000, _STEP_BYTES)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"entity_ids":["a"', "unexpected end of data at offset: 18"),
        (b'{"entity_ids":["a"],}', "trailing comma is not allowed at offset: 19"),
        (b"{'entity_ids':['a']}", "at offset: 1"),
        ('{"x": "Zürich"}'.encode("latin-1"), "byte 0xfc is not UTF-8: send the text as UTF-8 at offset: 8"),
        ('{"x": "“quoted”"}'.encode("cp1252"), "byte 0x93 is not UTF-8: send the text as UTF-8 at offset: 7"),
        ('{"x": 1}'.encode("utf-16"), "this is UTF-16 or UTF-32: send UTF-8"),
        ('{"x": 1}'.encode("utf-16-be"), "this is UTF-16 or UTF-32: send UTF-8"),
        ('{"x": 1}'.encode("utf-32-le"), "this is UTF-16 or UTF-32: send UTF-8"),
        (b"[" * 100_000, "it is nested more than 64 levels deep"),
        (b'{"a":' * 100_000, "it is nested more than 64 levels deep"),
        (b"[" * 100_000 + b"NaN" + b"]" * 100_000, "it is nested more than 64 levels deep"),
        (b'{"x": ' + b"9" * 5_000 + b"}", "a number is larger than any float at offset: 6"),
        (b'{"y": NaN, "x": ' + b"9" * 5_000 + b"}", "a number has too many digits"),
        (b'{"x": 1e999}', "a number is larger than any float at offset: 6"),
        (b"  \n", "The document is empty"),
    ],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_what_is_no_json_is_told_in_the_same_words_everywhere(
    http: httpx.AsyncClient, route: tuple[str, str], content: bytes, words: str
) -> None:
    status, sentence, body = await ask(http, route, content)
    assert status == 400
    assert sentence.startswith("JSON Parse error: ")
    assert words in sentence
    assert body.get("field", "body") == "body"


@pytest.mark.parametrize("route", ROUTES)
async def test_a_byte_order_mark_is_skipped_everywhere(http: httpx.AsyncClient, route: tuple[str, str]) -> None:
    plain = await ask(http, route, b'{"no_such": 1}')
    assert (await ask(http, route, b'\xef\xbb\xbf{"no_such": 1}'))[:2] == plain[:2]


@pytest.mark.parametrize(("sent_as", "words"), [
    ("application/x-www-form-urlencoded", "send JSON as application/json, not as application/x-www-form-urlencoded"),
    ("text/plain; charset=utf-8", "send JSON as application/json, not as text/plain"),
    ("application/msgpack", "send JSON as application/json, not as application/msgpack"),
    ("", "no Content-Type came: send JSON as application/json"),
])  # fmt: skip
async def test_our_own_routes_take_json_only_by_its_name(http: httpx.AsyncClient, sent_as: str, words: str) -> None:
    for method, path in ROUTES:
        answer = await http.request(method, path, content=b'{"no_such": 1}', headers={"content-type": sent_as})
        if path.startswith(("/v1", "/v2")):  # their clients name none, or any
            assert answer.status_code in (400, 404)
        else:
            assert (answer.status_code, answer.json()["detail"]) == (415, f"body: {words}")
            assert answer.headers["accept"] == "application/json"


async def test_json_by_any_of_its_names_is_taken(http: httpx.AsyncClient, it: Deployment) -> None:
    it.reader.entries["a"] = fresh(1.5)
    for sent_as in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.shop+json"):
        assert (await http.post("/predict", content=IDS, headers={"content-type": sent_as})).status_code == 200


@pytest.mark.parametrize(
    ("route", "sent", "field", "detail"),
    [
        ("/predict", ["a"], "body", "body: is a list: send an object with model, max_staleness_hours, "),
        ("/predict", "a", "body", "body: is the text 'a': send an object with "),
        ("/predict", None, "body", "body: is missing: send an object with model, "),
        ("/predict", {"entity_id": ["a"]}, "entity_id", "entity_id: there is no such field; did you mean entity_ids?"),
        ("/predict", {"entityIds": ["a"]}, "entityIds", "entityIds: there is no such field; did you mean entity_ids?"),
        ("/predict", {"zzzz": 1}, "zzzz", "zzzz: there is no such field; known: model, max_staleness_hours, "),
        ("/predict", {"entity_ids": "a"}, "entity_ids", "entity_ids: is the text 'a': send a list"),
        ("/predict", {"entity_ids": {"a": 1}}, "entity_ids", "entity_ids: is an object: send a list"),
        ("/predict", {"entity_ids": [42]}, "entity_ids.0", 'entity_ids.0: ids are text in JSON: send "42"'),
        ("/predict", {"entity_ids": ["a", 2**70]}, "entity_ids.1", "entity_ids.1: is the number 1.18"),
        ("/predict", {"entity_ids": [4.0]}, "entity_ids.0", "entity_ids.0: is the number 4.0: send text"),
        ("/predict", {"entity_ids": [None]}, "entity_ids.0", "entity_ids.0: is null: send text"),
        ("/predict", {"entity_ids": [True]}, "entity_ids.0", "entity_ids.0: is true: send text"),
        ("/predict", {"entity_ids": ["a"], "timeout_ms": 0}, "timeout_ms", "timeout_ms: must be at least 1"),
        ("/predict", {"entity_ids": ["a"], "timeout_ms": 1.5}, "timeout_ms", "timeout_ms: is the number 1.5: send a "),
        ("/predict", {"entity_ids": ["a"], "model": 3}, "model", "model: is the number 3: send text"),
        ("/predict", {"entity_ids": ["a"], "overrides": [1]}, "overrides", "overrides: is a list: send an object"),
        ("/predictions", {"entity_ids": ["a"], "priority": "urgent"}, "priority", "priority: must be 'low', 'normal' "),
        ("/features", {"itmes": []}, "itmes", "itmes: there is no such field; did you mean items?"),
        ("/features", {"items": []}, "items", "items: holds 0: at least 1"),
        (
            "/features",
            {"items": [{"entity_id": "a", "feature": {}}]},
            "items.0.feature",
            "items.0.feature: there is no such field in items.0; did you mean features?",
        ),
        ("/features/a", {"features": 5}, "features", "features: is the number 5: send an object or a list"),
        ("/features/a", {"features": {}}, "features", "features: holds 0: at least 1"),
        ("/features/a", {"features": [1], "event_time": "2026-01-01"}, "event_time", "event_time: is the text '2026-"),
        ("/features/a", {"features": [1], "event_time": 17}, "event_time", "event_time: write it as ISO 8601 with an"),
        ("/runs", {"entites": ["a"]}, "entites", "entites: there is no such field; did you mean entities?"),
        ("/runs/r1/publish", {"force": "perhaps"}, "force", "force: is the text 'perhaps': send true or false"),
        ("/models/delay/rollback", {"generation": 1.5}, "generation", "generation: is the number 1.5: send a whole "),
    ],
)
async def test_a_mistake_in_a_body_names_the_field_and_the_fix(
    http: httpx.AsyncClient, route: str, sent: Any, field: str, detail: str
) -> None:
    method = "PUT" if route.startswith("/features") else "POST"
    content = None if sent is None else json.dumps(sent).encode()
    answer = await http.request(method, route, content=content, headers=JSON)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
    assert answer.json()["detail"].startswith(detail)


async def test_a_mistake_in_a_query_is_told_in_the_same_words(http: httpx.AsyncClient) -> None:
    for path, detail in (
        ("/predict/a?timeout_ms=x", "timeout_ms: is the text 'x': send a whole number"),
        ("/predict/a?explain=all", "explain: must be 'features'"),
        ("/predict/a?max_staleness_hours=inf", "max_staleness_hours: must be finite"),
        ("/runs?limit=0", "limit: must be at least 1"),
        ("/runs?limit=many", "limit: is the text 'many': send a whole number"),
        ("/predictions/x?wait_s=61", "wait_s: must be at most 60"),
        ("/hit-rate?window_s=x", "window_s: is the text 'x': send a whole number"),
    ):
        answer = await http.get(path)
        assert (answer.status_code, answer.json()["detail"]) == (400, detail)


def test_every_complaint_that_the_bodies_can_raise_has_a_sentence_of_ours() -> None:
    known = {*WANTED, *_SENTENCES, "extra_forbidden"}
    probes: list[Any] = [
        None,
        True,
        1,
        -1,
        1.5,
        "x",
        "2026-01-01",
        "\ud800",
        [],
        {},
        [1],
        [[]],
        {"a": 1},
        ["x"] * 100_001,
    ]
    for model in (PredictBody, EnqueueBody, RunBody, PublishBody, RollbackBody, FeaturesBody, ItemsBody):
        for sent in (*probes, *({name: probe} for name in model.model_fields for probe in probes)):
            try:
                TypeAdapter(model).validate_python(sent)
            except ValidationError as error:
                found = error.errors(include_url=False)
                assert {one["type"] for one in found} <= known
                message = as_bad_input([{**one, "loc": ("body", *one["loc"])} for one in found], model).message
                assert "nput should" not in message
    # a later pydantic's own names for them are these too
    assert known <= {*core_schema.ErrorType.__args__}


async def test_a_name_as_long_as_a_body_is_quoted_by_its_start(http: httpx.AsyncClient) -> None:
    for sent in ({"x" * 1_000_000: 1}, {"entity_ids": "x" * 1_000_000}, {"entity_ids": ["a"], "timeout_ms": 10**100}):
        answer = await http.post("/predict", json=sent)
        assert answer.status_code == 400
        assert len(answer.content) < 1_500


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route[1])
@pytest.mark.parametrize(
    "body",
    [b'{"x": 1, "x": 1}', b'{"a": [{"id": "u:1", "x": {"y": 2, "z": 3, "y": 2}}]}', b'{"x": NaN, "x": 1}'],
    ids=["plain", "nested", "not finite"],
)
async def test_a_name_that_an_object_has_twice_is_refused(
    http: httpx.AsyncClient, route: tuple[str, str], body: bytes
) -> None:
    status, sentence, _ = await ask(http, route, body)
    name = "y" if b"u:1" in body else "x"
    assert (status, sentence) == (400, f"JSON Parse error: an object has the name '{name}' twice")


@pytest.mark.parametrize(
    "body",
    [
        b'{"entity_ids": ["user:1:2", "a"], "max_staleness_hours": 24}',
        rb'{"entity_ids": ["a\u003a", "b"]}',
        b'{"instances": [[1, {"x": [{"x": "a:b"}]}], {"x": 2}, 3]}',
        b"[" * 60 + b'{"x": ":"}' + b"]" * 60,
        b'{"x": ' * 60 + b'":"' + b"}" * 60,
        b'{"a": [' + b"1.5," * 400_000 + b'1], "b": "x:y", "c": {"a": 1}}',
        b'":"',
        b"1",
    ],
)
def test_colons_in_text_repeat_no_name(body: bytes) -> None:
    assert parse(body) == json.loads(body)


async def test_a_packed_body_that_does_not_say_so_is_told(http: httpx.AsyncClient) -> None:
    status, sentence, _ = await ask(http, ("POST", "/predict"), gzip.compress(IDS))
    assert (status, sentence) == (400, "JSON Parse error: this is gzip: send the header Content-Encoding: gzip with it")


@pytest.mark.parametrize(
    ("request_line", "field", "sentence"),
    [
        ("GET /predict/a?max_stalenes_hours=0", "max_stalenes_hours", "did you mean max_staleness_hours?"),
        ("GET /predict/a?maxStalenessHours=0", "maxStalenessHours", "did you mean max_staleness_hours?"),
        ("GET /predict/a?timeout=5", "timeout", "did you mean timeout_ms?"),
        ("GET /predict/a?Model=b", "Model", "did you mean model?"),
        ("GET /predict/a?max_staleness_hours=", "max_staleness_hours", "is the text '': send a number"),
        ("GET /predict/a?max_staleness_hours=0&max_staleness_hours=9", "max_staleness_hours", "is given twice"),
        ("GET /runs?limt=5", "limt", "did you mean limit?"),
        ("GET /runs?limit=5&limit=6", "limit", "is given twice"),
        ("GET /predictions/j1?wait=5", "wait", "did you mean wait_s?"),
        ("GET /hit-rate?window=60", "window", "did you mean window_s?"),
        ("GET /health/ready?modle=b", "modle", "did you mean model?"),
        ("PUT /features/a?modle=b", "modle", "did you mean model?"),
    ],
)
async def test_a_misspelt_parameter_is_not_taken_for_none(
    http: httpx.AsyncClient, request_line: str, field: str, sentence: str
) -> None:
    method, path = request_line.split()
    answer = await http.request(method, path, content=b'{"features": {"f0": 1}}' if method == "PUT" else None)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
    assert sentence in answer.json()["detail"]


async def test_parameters_that_are_like_none_of_ours_are_ignored(http: httpx.AsyncClient, it: Deployment) -> None:
    it.reader.entries["a"] = fresh(1.5)
    answer = await http.get("/predict/a?utm_source=mail&_=1795951241&v=2&" + "&".join(f"x{i}=1" for i in range(50)))
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/runs/r1/publish", {"force": "yes"}),
        ("/runs/r1/publish", {"force": 1}),
        ("/models/delay/rollback", {"generation": True}),
        ("/models/delay/rollback", {"generation": "3"}),
    ],
)
async def test_what_acts_on_a_deployment_takes_no_value_of_another_kind(
    http: httpx.AsyncClient, route: str, body: dict[str, Any]
) -> None:
    answer = await http.post(route, json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, next(iter(body))), answer.text


@pytest.mark.parametrize("instant", ["1795951241", "1795951241.5", "1e9", "-5"])
async def test_text_of_a_number_is_no_instant(http: httpx.AsyncClient, instant: str) -> None:
    answer = await http.put("/features/a", json={"features": {"f0": 1}, "event_time": instant})
    assert (answer.status_code, answer.json()["detail"]) == (400, "event_time: write it as ISO 8601 with an offset")
