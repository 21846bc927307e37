"""Methods that a path does not have, paths that there are not, and what clients make of ids."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.integration.test_api import Deployment, assert_problem, fresh
from tests.integration.test_api_connections import serving

pytestmark = pytest.mark.integration

GETS = [
    "/predict/a", "/health/live", "/health/ready", "/v2", "/v2/health/live", "/v2/health/ready", "/runs", "/runs/r1",
    "/hit-rate", "/metrics", "/docs", "/openapi.json",
]  # fmt: skip


async def test_head_is_get_without_a_body(it: Deployment) -> None:
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        for path in GETS:
            got, asked = await served.http.get(path), await served.http.head(path)
            assert (got.status_code, asked.status_code, asked.content) == (200, 200, b""), path
            assert asked.headers["content-type"] == got.headers["content-type"]
            assert "transfer-encoding" not in asked.headers
        assert (await served.http.head("/predict/%FF")).status_code == 400
        assert (await served.http.head("/v1/models/nobody")).status_code == 404
        assert (await served.http.head("/nowhere")).status_code == 404
        assert (await served.http.head("/predict")).headers["allow"] == "POST"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/predict/a", "GET"),
        ("/predict/a/b", "GET"),
        ("/predict/", "GET"),
        ("/health/live", "GET"),
        ("/v2/health/ready", "GET"),
        ("/v2/models/delay", "GET"),
        ("/runs/r1", "GET"),
        ("/metrics", "GET"),
    ],
)
async def test_a_method_that_a_path_lacks_is_a_405_that_names_those_it_has(
    it: Deployment, http: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    it.reader.entries["a"] = fresh(1.5)
    refused = await http.request(method, path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allow)
    sentence = refused.json().get("detail") or refused.json()["error"]
    assert sentence == f"{method} {path} is not allowed, only {allow}"


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/predict/a", {"GET", "HEAD", "OPTIONS"}),
        ("/predict", {"POST", "OPTIONS"}),
        ("/predictions/x", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("/runs", {"GET", "HEAD", "POST", "OPTIONS"}),
        ("/features/a", {"PUT", "OPTIONS"}),
        ("/health/live", {"GET", "HEAD", "OPTIONS"}),
        ("/v1/models/delay", {"GET", "HEAD", "OPTIONS"}),
        ("/v1/models/delay:predict", {"POST", "OPTIONS"}),
        ("/v2/models/delay/infer", {"POST", "OPTIONS"}),
    ],
)
async def test_options_tells_what_a_path_takes(http: httpx.AsyncClient, path: str, allow: set[str]) -> None:
    answer = await http.options(path)
    assert (answer.status_code, answer.content, set(answer.headers["allow"].split(", "))) == (204, b"", allow)


async def test_options_of_no_path_and_of_the_whole_server(it: Deployment, http: httpx.AsyncClient) -> None:
    assert_problem(await http.options("/nowhere"), 404, "not-found")
    async with serving(it) as served:
        reader, writer = await served.raw(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 204")
        assert b"allow: GET, POST" in answer
        writer.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/health/live/", "did you mean /health/live?"),
        ("/v2/health/ready/", "did you mean /v2/health/ready?"),
        ("/predictions/", "did you mean /predictions?"),
        ("//health//live", "did you mean /health/live?"),
        ("//predict/a", "did you mean /predict/a?"),
        ("/", "GET /docs lists the paths; clients resolve the ids . and .. in a path: send those to POST /predict"),
        ("/predikt/a", "there is no path /predikt/a: GET /docs lists the paths"),
        ("/v3/models", "there is no path /v3/models"),
        ("/" + "x" * 5_000, "GET /docs lists the paths"),
    ],
)
async def test_a_path_that_there_is_not_is_told_with_the_way_on(http: httpx.AsyncClient, path: str, words: str) -> None:
    answer = await http.get(httpx.URL("http://localhost", raw_path=path.encode()))
    body: dict[str, Any] = answer.json()
    assert answer.status_code == 404
    assert words in (body.get("detail") or body["error"])
    assert len(answer.content) < 500


async def test_ids_that_clients_resolve_are_told_to_be_posted(it: Deployment) -> None:
    it.reader.entries.update({".": fresh(1.5), "..": fresh(2.5)})
    async with serving(it) as served:
        for entity_id in (".", ".."):  # httpx asks for /predict and for /
            answer = await served.http.get(f"/predict/{entity_id}")
            assert answer.status_code in (404, 405)
            assert "send those to POST /predict" in answer.json()["detail"]
        put = await served.http.put("/features/..", json={"features": [1]})
        assert "PUT /features" in put.json()["detail"]
        answers = (await served.http.post("/predict", json={"entity_ids": [".", ".."]})).json()["predictions"]
        assert [answer["prediction"] for answer in answers] == [1.5, 2.5]
        for number, entity_id in ((1.5, b"."), (2.5, b"..")):  # who sends them as they are is answered
            reader, writer = await served.raw(b"GET /predict/%b HTTP/1.0\r\n\r\n" % entity_id)
            assert b'"prediction":%.1f' % number in await reader.read()
            writer.close()


TRITON = [
    ("GET", "/v2/trace/setting", "trace"),
    ("POST", "/v2/models/delay/trace/setting", "trace"),
    ("GET", "/v2/logging", "logging"),
    ("GET", "/v2/systemsharedmemory/status", "shared memory"),
    ("POST", "/v2/systemsharedmemory/region/r/register", "shared memory"),
    ("GET", "/v2/cudasharedmemory/region/r/status", "shared memory"),
    ("POST", "/v2/models/delay/generate", "generate"),
    ("POST", "/v2/models/delay/versions/1/generate_stream", "generate"),
]


@pytest.mark.parametrize(("method", "path", "extension"), TRITON)
async def test_an_extension_of_triton_is_refused_by_its_name(
    http: httpx.AsyncClient, method: str, path: str, extension: str
) -> None:
    answer = await http.request(method, path, content=b"{}" if method == "POST" else None)
    assert (answer.status_code, answer.json()) == (400, {"error": f"the {extension} extension is not supported"})


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_a_model_is_not_loaded_by_request(http: httpx.AsyncClient, verb: str) -> None:
    answer = await http.post(f"/v2/repository/models/delay/{verb}", content=b"{}")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"failed to {verb} 'delay', explicit model load / unload is not allowed")


async def test_the_document_promises_no_extension_that_is_refused(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    assert not {path for path in paths for name in ("trace", "logging", "sharedmemory", "generate") if name in path}
