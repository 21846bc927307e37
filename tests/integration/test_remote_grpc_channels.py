"""The channel to an engine over gRPC: certificates, logins, forks, names with other addresses, dead connections."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import DeadlineExceeded, ModelError, ModelUnavailable
from inference.models.runtimes import remote_grpc
from inference.models.runtimes.runtime import answering_by
from tests.integration.test_remote_grpc import PROTOCOLS, X, load, right, wanted
from tests.support.certificates import make_certificate
from tests.support.deaf_proxy import deaf_proxy_in_thread
from tests.support.grpc_engine import GrpcEngine
from tests.support.runtimes.cases import ROOT
from tests.support.runtimes.remote_cases import models

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificates"))


def secured(pair: tuple[Path, Path], **more: Any) -> GrpcEngine:
    certificate, key = pair
    return GrpcEngine(models(), pair=(key.read_bytes(), certificate.read_bytes()), **more)


def test_tls_with_an_authority_that_the_environment_names(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pair[0]))
    with secured(pair) as engine:
        loaded = load(tmp_path, f"grpcs://localhost:{engine.port}")
        assert right(loaded)
        assert loaded.runtime.device == f"remote localhost:{engine.port}"
        with pytest.raises(ModelError, match="does not answer"):  # the certificate is for localhost only
            load(tmp_path, f"grpcs://127.0.0.1:{engine.port}")
        with pytest.raises(ModelError, match="does not answer"):
            load(tmp_path, f"grpc://localhost:{engine.port}")


def test_a_certificate_that_nobody_vouches_for_is_an_outage(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with secured(pair) as engine, pytest.raises(ModelError, match="does not answer"):
        load(tmp_path, f"grpcs://localhost:{engine.port}")


def test_a_file_of_authorities_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ModelError, match=r"remote\.toml: SSL_CERT_FILE cannot be read: .*none\.pem"):
        load(tmp_path, "grpcs://localhost:1")


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ("svc:a%2Fb@", "Basic c3ZjOmEvYg=="),
        (":a%2Fb@", "Bearer a/b"),
        ("", None),
    ],
)
def test_the_login_goes_in_the_metadata(tmp_path: Path, login: str, said: str | None) -> None:
    with GrpcEngine(models()) as engine:
        loaded = load(tmp_path, f"grpc://{login}127.0.0.1:{engine.port}")
        assert engine.said.get("authorization") == said
        engine.said = {}
        assert right(loaded)
        assert engine.said.get("authorization") == said


FORK = """
import os, sys
import numpy as np
from pathlib import Path
from inference.models.loading import load_version
folder = Path(sys.argv[1])
loaded = load_version("m", folder, 1, folder)
x = {"x": np.load(folder / "x.npy")}
print(loaded.predict(x)["y"].tolist(), flush=True)
for _ in range(2):
    if not (child := os.fork()):
        print(loaded.predict(x)["y"].tolist(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(loaded.predict(x)["y"].tolist(), flush=True)
"""


@pytest.mark.slow
def test_a_fork_opens_a_channel_of_its_own_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with GrpcEngine(models()) as engine:
        load(tmp_path, engine.url)
        engine.peers.clear()
        forked = subprocess.run(
            [sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, timeout=100, cwd=ROOT
        )
        assert forked.returncode == 0, forked.stderr
        answers = [line for line in forked.stdout.splitlines() if line.startswith("[")]
        assert len(answers) == 4
        assert len(set(answers)) == 1
        # to describe the model, then the parent's and each child's
        assert len(engine.peers) == 4


class Names:
    """Says which addresses the name `engines.example` has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.addresses = addresses
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._found)

    def _found(self, host: str, port: int, *more: Any, **options: Any) -> list[Any]:
        if host != "engines.example":
            return self._real(host, port, *more, **options)
        if not self.addresses:
            raise socket.gaierror("no such name")
        kinds = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(kinds[":" in one], socket.SOCK_STREAM, 6, "", (one, port)) for one in self.addresses]


def test_calls_are_spread_over_all_addresses_of_a_name_and_over_new_ones_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, "127.0.0.1", "127.0.0.2")
    monkeypatch.setattr(remote_grpc, "_LOOK_UP_EVERY_S", 0.0)
    with GrpcEngine(models()) as first:
        with (
            GrpcEngine(models(), address=f"127.0.0.2:{first.port}") as second,
            GrpcEngine(models(), address=f"127.0.0.3:{first.port}") as third,
        ):
            loaded = load(tmp_path, f"grpc://engines.example:{first.port}")
            assert all(right(loaded) for _ in range(20))
            assert first.predictions > 2
            assert second.predictions > 2
            names.addresses = ("127.0.0.2", "127.0.0.3")
            before = first.predictions
            assert all(right(loaded) for _ in range(20))
            assert third.predictions > 2
            assert first.predictions == before
            names.addresses = ()  # the name server is away: what is open still serves
            assert right(loaded)
        names.addresses = ("127.0.0.1", "127.0.0.2")
        assert all(right(loaded) for _ in range(20)), "one of two engines is gone"


def test_of_two_families_the_one_is_taken_where_somebody_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    Names(monkeypatch, "127.0.0.1", "::1")
    for address in ("[::1]:0", "127.0.0.1:0"):
        with GrpcEngine(models(), address=address) as engine:
            assert right(load(tmp_path, f"grpc://engines.example:{engine.port}"))


def test_a_connection_on_which_nothing_passes_any_more_is_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_grpc, "_SILENT_S", 0.0)
    with GrpcEngine(models()) as engine, deaf_proxy_in_thread(engine.port) as proxy:
        loaded = load(tmp_path, f"grpc://127.0.0.1:{proxy.port}", timeout="1s")
        assert right(loaded)
        proxy.fall_silent()
        with pytest.raises(ModelUnavailable, match="in time"):
            loaded.predict({"x": X})
        assert right(loaded)
        proxy.fall_silent()
        with answering_by(time.monotonic() + 0.3), pytest.raises(DeadlineExceeded):
            loaded.predict({"x": X})
        assert right(loaded)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_proxy_for_http_is_not_asked(tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with GrpcEngine(models()) as engine:
        loaded = load(tmp_path, engine.url, protocol=protocol)
        assert loaded.predict({"x": X})["y"] == pytest.approx(wanted(), rel=1e-5)
