"""Wrong passwords and keys: any bytes are a 401, guesses have to wait, and whoever knows the right one gets in."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from app.dashboard.server import MAX_STRANGERS_BODY_BYTES
from app.defences import BURST
from tests.integration.test_api import Deployment, assert_problem, fresh, it  # noqa: F401 - `it` is a fixture
from tests.integration.test_api_connections import Served, serving
from tests.support.attacked_api import Kind, attacked_api
from tests.support.dashboard import DashboardProcess
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

#: guesses of which one is refused, unless a machine takes nearly a second for each
MOST = 20 * BURST

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def flower(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardProcess]:
    process = DashboardProcess(tmp_path_factory.mktemp("flower"), redis_server.url(1), more='host = "0.0.0.0"\n')
    process.start().wait_ready()
    try:
        yield process
    finally:
        process.stop()


def client(flower: DashboardProcess, address: str) -> httpx.Client:
    """Return a client at an address of its own: all of 127/8 are this machine's."""
    return httpx.Client(base_url=flower.url, transport=httpx.HTTPTransport(local_address=address), timeout=20)


def basic(shown: bytes) -> bytes:
    return b"Basic " + b64encode(shown)


ODD = [
    basic("forecache:\u00fc".encode()),
    basic("forecache:\u00fc".encode("latin-1")),
    basic("\u00fc\u0000\U0001f680:x".encode()),
    basic(b"\xff\xfe\x00"),
    basic(b"forecache"),
    basic(b"forecache:sesame\x00"),
    basic(b"forecache:sesame\n"),
    basic(b"Forecache:sesame"),
    b"",
    b"Basic",
    b"Basic \xc3\xbc",
    b"Basic =",
    b"Basic Zm9yZWNhY2hlOnNlc2FtZQ",  # cut off
    b"Basic Zm9yZWNhY2hlOnNlc2FtZQ== x",
    b"Bearer Zm9yZWNhY2hlOnNlc2FtZQ==",
    b"\xff",
]


def test_odd_bytes_are_a_401_without_a_word_in_the_log(flower: DashboardProcess) -> None:
    with client(flower, "127.0.0.2") as http:
        for shown in ODD:
            for path in ("/runs", "/api/tasks"):
                assert http.get(path, headers={b"Authorization": shown}).status_code == 401, shown
        right = {"Authorization": "basic  Zm9yZWNhY2hlOnNlc2FtZQ=="}
        for cookie in ("x", "2|1:0|", "\u00fc", '"', "2|1:0|10:1|15:forecache_known|4:MQ==|" + "0" * 64):
            for name in (b"forecache_known", b"_xsrf"):
                sent = {**right, b"Cookie": name + b"=" + cookie.encode()}
                assert http.get("/runs", headers=sent).status_code == 200
    assert "Traceback" not in flower.log()


def test_guesses_wait_and_other_addresses_and_known_browsers_do_not(flower: DashboardProcess) -> None:
    with client(flower, "127.0.0.3") as guesser, client(flower, "127.0.0.3") as browser:
        assert browser.get("/runs", auth=flower.auth).status_code == 200
        for number in range(MOST):
            refused = guesser.get("/api/tasks", auth=("forecache", f"guess {number}"))
            if refused.status_code == 429:
                break
            assert refused.status_code == 401
        assert refused.status_code == 429
        assert number >= BURST
        assert int(refused.headers["retry-after"]) >= 1
        assert "wait" in refused.text
        assert browser.get("/runs", auth=flower.auth).status_code == 200
        with client(flower, "127.0.0.4") as other:
            assert other.get("/runs", auth=flower.auth).status_code == 200
            assert other.get("/runs", auth=("forecache", "guess 1")).status_code == 401
        # the right password waits too, or every guess would be looked at; but not for ever
        wait_for(lambda: guesser.get("/runs", auth=flower.auth).status_code == 200, "the wait to be over")
        # no cookie opens the door by itself
        assert browser.get("/runs").status_code == 401


def test_the_size_of_a_body_tells_no_more_about_a_guess_than_the_answer(flower: DashboardProcess) -> None:
    with client(flower, "127.0.0.6") as http:

        def is_taken(password: str) -> bool:
            large = b"x" * (MAX_STRANGERS_BODY_BYTES + 1)
            with suppress(httpx.TransportError):  # hung up on while it sends
                return http.post("/runs/actions", content=large, auth=("forecache", password)).status_code != 400
            return False

        assert is_taken("sesame")
        for number in range(MOST):
            assert not is_taken(f"guess {number}")
            if not is_taken("sesame"):
                break
        assert number >= BURST - 1


def test_a_wrong_password_that_is_repeated_holds_up_itself_alone(flower: DashboardProcess) -> None:
    with client(flower, "127.0.0.5") as http:
        statuses = (http.get("/api/tasks", auth=("forecache", "of last year")).status_code for _ in range(MOST))
        assert 429 in statuses
        assert http.get("/runs", auth=flower.auth).status_code == 200


KEYS = {"shop": {"hash": f"sha256:{sha256(b'sesame').hexdigest()}"}}


async def show(served: Served, key: bytes) -> httpx.Response:
    return await served.http.get("/predict/a", headers={b"X-API-Key": key})


async def test_guessed_keys_wait_and_a_right_one_never_does(it: Deployment) -> None:  # noqa: F811
    it.reader.entries["a"] = fresh(1.5)
    async with serving(it, keys=KEYS) as served:
        for number in range(MOST):
            refused = await show(served, b"guess %d" % number)
            assert (await show(served, b"sesame")).status_code == 200
            if refused.status_code == 429:
                break
            assert_problem(refused, 401, "unauthorized")
        assert number >= BURST
        assert_problem(refused, 429, "rate-limited")
        assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("key", [b"\xff\xfe", "\u00fc".encode(), b"-", b"sesame\x80"])
async def test_odd_bytes_in_a_key_are_a_401(it: Deployment, key: bytes) -> None:  # noqa: F811
    async with serving(it, keys=KEYS) as served:
        assert (await show(served, key)).status_code == 401
        for shown in (b"Bearer " + key, b"Basic " + key, key):
            answer = await served.http.post("/v1/models/delay:predict", headers={b"Authorization": shown})
            assert answer.status_code == 401


@pytest.mark.parametrize("kind", ["two processes", "a Unix socket"])
def test_a_right_key_never_waits_for_guesses_on_several_processes_or_behind_a_unix_socket(
    tmp_path: Path, kind: Kind
) -> None:
    keys = f'[api.keys.shop]\nhash = "{KEYS["shop"]["hash"]}"\n'
    with attacked_api(tmp_path, kind, settings=keys) as api:

        def status(key: str) -> int:
            return api.request("GET", "/predict/a", headers={"X-API-Key": key}).status_code

        for number in range(MOST):
            refused = status(f"guess {number}")
            assert status("sesame") not in (401, 429)
            if refused == 429:
                break
            assert refused == 401
        # each process counts for itself, and all clients behind the socket are one
        assert number >= BURST
        assert refused == 429
