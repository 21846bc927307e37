"""Redis over TLS with a password, as `docs/existing.md` spells the URL: cache, results and broker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from app.cli.doctor.servers import Failure, Server, ask_server
from inference.deployment import Deployment
from inference.errors import StoreUnavailable
from inference.redis.clients import WORKER
from inference.settings import RedisSettings, Settings
from tasks.dispatch import open_dispatcher
from tests.support.certificates import make_certificate
from tests.support.ports import free_port
from tests.support.redis_server import find_redis_binary
from tests.support.stack import ROOT, child_environment, end_tree
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PASSWORD = "p@ss/word"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    server = subprocess.Popen(
        [find_redis_binary(7), "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "",
         "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate,
         "--tls-auth-clients", "no", "--requirepass", PASSWORD, "--dir", tmp_path],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        server_url = f"rediss://:{quote(PASSWORD, safe='')}@localhost:{port}/0"
        yield f"{server_url}?ssl_cert_reqs=required&ssl_ca_certs={certificate}"
    finally:
        end_tree(server)


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Iterator[Settings]:
    """The settings of a deployment whose worker is at work."""
    settings = Settings(redis=RedisSettings.model_validate({"url": url, "cache_url": url, "prefix": "test"}))
    wait_for(lambda: answers(settings), "Redis over TLS", 15)
    worker = subprocess.Popen(
        [sys.executable, "-P", ROOT / "tests" / "support" / "echo_worker.py"],
        cwd=tmp_path,
        env=child_environment() | {"FORECACHE_REDIS__URL": url, "FORECACHE_REDIS__PREFIX": "test"},
    )
    try:
        yield settings
    finally:
        end_tree(worker)


async def test_one_url_serves_cache_results_and_broker(settings: Settings) -> None:
    async with open_dispatcher(settings) as dispatcher:
        result = await dispatcher("forecache.predict_echo", {"n": 1}, deadline=time.time() + 30, timeout_s=30)
    assert result["n"] == 1


def answers(settings: Settings) -> bool:
    try:
        with Deployment(settings, WORKER) as deployment:
            return bool(deployment.cache.ping())
    except StoreUnavailable:
        return False


def test_a_certificate_of_an_unknown_authority_is_told_with_its_fix(settings: Settings, url: str) -> None:
    untrusted = url.partition("&ssl_ca_certs")[0]
    failure = ask_server(untrusted, "[redis] cache_url")
    assert isinstance(failure, Failure)
    assert failure.detail == "its certificate is of an unknown authority"
    assert failure.fix.startswith("add ssl_ca_certs=/path/ca.pem to [redis] cache_url")
    assert isinstance(ask_server(url, "[redis] cache_url"), Server)
