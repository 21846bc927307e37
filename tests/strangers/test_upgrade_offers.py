"""Offers to upgrade a connection are ignored: the same answers as without, and no byte read as anything else."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.test_api import Deployment, fresh
from tests.integration.test_api_connections import get, read_answer, serving
from tests.support.redis_server import missing

pytestmark = pytest.mark.integration

OFFERS = [
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n",
    "Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.0, HTTP/2.0\r\n",
    "upgrade: foo/2\r\nconnection: upgrade\r\n",
]
BODY = b'{"entity_ids": ["a"]}'


def post(path: str, offer: str, body: bytes, *, chunked: bool = False, method: str = "POST") -> tuple[bytes, bytes]:
    """Return the head and the framed body of a request that offers an upgrade."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{offer}Content-Type: application/json\r\n{framing}\r\n\r\n"
    return head.encode(), (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "websocket", "tls", "any"])
async def test_a_body_after_an_offer_is_read_as_the_body(it: Deployment, offer: str, chunked: bool) -> None:
    it.reader.entries["a"] = fresh(1.5)
    head, body = post("/predict", offer, BODY, chunked=chunked)
    async with serving(it) as served:
        for cut in (0, len(head) - 7, len(head), len(head) + 3):  # where the packet ends
            reader, writer = await served.raw((head + body)[:cut] if cut else b"")
            await asyncio.sleep(0.02)
            writer.write((head + body)[cut:] + get("/predict/a"))
            answers = [(await read_answer(reader))[1] for _ in range(2)]
            writer.close()
            assert [answers[0]["predictions"][0]["prediction"], answers[1]["prediction"]] == [1.5, 1.5]


@pytest.mark.parametrize("offer", OFFERS)
async def test_a_body_that_looks_like_a_request_is_never_served(it: Deployment, offer: str) -> None:
    it.reader.entries["b"] = fresh(2.5)
    smuggled = get("/predict/b")
    head, body = post("/predict", offer, smuggled)
    async with serving(it) as served:
        reader, writer = await served.raw(head)
        await asyncio.sleep(0.02)
        writer.write(body)
        answer_head, problem = await read_answer(reader)
        assert (answer_head[:12], problem["code"]) == (b"HTTP/1.1 400", "bad-input")
        writer.write(get("/health/live"))
        assert (await read_answer(reader))[1] == {"status": "live"}
        writer.close()
    assert it.reader.reads == []


@pytest.mark.parametrize("offer", OFFERS)
async def test_pipelined_requests_after_an_offer_are_all_answered_in_order(it: Deployment, offer: str) -> None:
    it.reader.entries.update({name: fresh(float(number)) for number, name in enumerate("abc")})
    offering = f"GET /predict/b HTTP/1.1\r\nHost: localhost\r\n{offer}\r\n".encode()
    head, body = post("/predict", offer, BODY)
    async with serving(it) as served:
        reader, writer = await served.raw(get("/predict/a") + offering + head + body + offering + get("/predict/c"))
        answers = [(await read_answer(reader))[1] for _ in range(5)]
        writer.close()
    values = [
        answer["predictions"][0]["prediction"] if "predictions" in answer else answer["prediction"]
        for answer in answers
    ]
    assert values == [0.0, 1.0, 0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "framing",
    [
        "Transfer-Encoding: gzip",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
    ],
)
async def test_an_offer_lets_no_framing_through_that_is_refused_without_it(it: Deployment, framing: str) -> None:
    async with serving(it) as served:
        for offer in ("", *OFFERS):
            request = f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{offer}{framing}\r\n\r\n".encode()
            reader, writer = await served.raw(request + b"abc" + get("/health/live"))
            answer = await reader.read()
            assert (answer[:12], answer.count(b"HTTP/1.1")) == (b"HTTP/1.1 400", 2), answer  # in head and detail
            writer.close()


async def test_connect_and_http2_by_prior_knowledge_are_refused_and_hung_up_on(it: Deployment) -> None:
    async with serving(it) as served:
        for request, status in (
            (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", b"501"),
            (b"CONNECT /predict/a HTTP/1.1\r\nHost: a\r\n\r\n", b"501"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),  # TLS
        ):
            reader, writer = await served.raw(request + get("/health/live"))
            answer = await reader.read()
            assert (answer[9:12], answer.count(b"\r\n\r\n")) == (status, 1)
            assert b"connection: close" in answer
            writer.close()


async def test_a_bad_request_after_a_good_one_does_not_take_its_answer(it: Deployment) -> None:
    it.reader.entries["a"] = fresh(1.5)
    it.reader.delay_s = 0.02
    async with serving(it) as served:
        reader, writer = await served.raw(get("/predict/a") + b"nonsense\r\n\r\n")
        head, answer = await read_answer(reader)
        assert (answer["prediction"], b"connection: close" in head) == (1.5, True)
        assert await reader.read() == b""
        writer.close()


async def test_curl_that_offers_http2_is_answered_on_every_route(it: Deployment) -> None:
    curl = shutil.which("curl") or missing("curl")
    it.reader.entries["a"] = fresh(1.5)
    sent = ["-H", "content-type: application/json", "-d", BODY.decode()]
    calls = {
        "/predict/a": (["-G"], "200"),
        "/predict": (sent, "200"),
        "/predictions": (sent, "202"),
        "/runs": (["-X", "POST"], "202"),
        "/features/a": (["-X", "PUT", "-H", "content-type: application/json", "-d", "{"], "400"),
    }
    async with serving(it) as served:
        for path, (options, status) in calls.items():
            done = await asyncio.to_thread(
                subprocess.run,
                [curl, "-s", "--http2", "-o", "/dev/null", "-w", "%{http_code}", *options, f"http://127.0.0.1:{served.port}{path}"],
                capture_output=True, text=True, check=True, timeout=20,
            )  # fmt: skip
            assert done.stdout == status, path


JAVA = """
import java.net.URI; import java.net.http.*; import java.net.http.HttpRequest.BodyPublishers;
class Ask { public static void main(String[] a) throws Exception {
  var client = HttpClient.newHttpClient();
  for (var body : new String[] {null, "{\\"entity_ids\\": [\\"a\\"]}", "{\\"entity_ids\\": [\\"a\\", \\"a\\"]}"}) {
    var path = body == null ? "/predict/a" : "/predict";
    var ask = HttpRequest.newBuilder(URI.create(a[0] + path)).header("Content-Type", "application/json");
    ask = body == null ? ask.GET() : ask.POST(BodyPublishers.ofString(body));
    System.out.println(client.send(ask.build(), HttpResponse.BodyHandlers.ofString()).statusCode());
  } } }
"""


@pytest.mark.slow
async def test_javas_client_as_it_comes_is_answered(it: Deployment, tmp_path: Path) -> None:
    java = shutil.which("java") or missing("java")
    program = tmp_path / "Ask.java"
    program.write_text(JAVA)
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it) as served:
        done = await asyncio.to_thread(
            subprocess.run,
            [java, str(program), f"http://127.0.0.1:{served.port}"],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.stdout.split() == ["200", "200", "200"], done.stderr
