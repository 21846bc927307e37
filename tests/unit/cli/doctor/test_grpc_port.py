"""doctor: whether gRPC is served as the settings say."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from app.api.access import AccessControl
from app.api.grpc_server import grpc_served
from app.api.limits import RequestMemory
from app.cli.doctor.findings import Finding, Status
from app.cli.doctor.grpc_port import check_grpc_port
from inference.monitoring.presence import Roster, WorkerBeat
from inference.settings import Settings
from tests.support.certificates import make_certificate
from tests.support.ports import free_port
from tests.unit.api.test_grpc_server import NoModels

HERE = socket.gethostname()


def beat(host: str) -> WorkerBeat:
    return WorkerBeat(
        name=f"api@{host}", process="api", queues=("api",), host=host, pid=1, release=None, started_at=0.0, ready=True,
        versions={},
    )  # fmt: skip


def served_by(*hosts: str) -> Roster:
    return Roster(tuple(map(beat, hosts)), {})


def settings(**grpc: Any) -> Settings:
    return Settings.of_folder(Path("/"), grpc={"port": free_port(), **grpc})


def check(found: Settings, *hosts: str) -> Finding:
    [finding] = check_grpc_port(found, served_by(*hosts))
    return finding


def test_without_a_port_it_is_off() -> None:
    [found] = check_grpc_port(Settings(), None)
    assert (found.status, found.detail) == (Status.OK, "off: [grpc] port turns it on")


@pytest.mark.parametrize("tls", [False, True])
async def test_a_port_that_answers_is_described(tmp_path: Path, tls: bool) -> None:
    pair = dict(zip(("certificate", "private_key"), make_certificate(tmp_path), strict=True))
    given = settings(**(pair if tls else {}))
    # the settings were changed, and the API was not restarted
    changed = settings(port=given.grpc.port, **({} if tls else pair))
    process: Any = NoModels(given)
    async with grpc_served(process, AccessControl(given.api), RequestMemory()):
        found = await asyncio.to_thread(check, given, HERE)
        how = "TLS" if tls else "plain text"
        assert (found.status, found.detail) == (Status.OK, f"answers; {how}, without API keys")
        found = await asyncio.to_thread(check, changed, HERE)
        assert found.status is Status.ERROR
        assert "no gRPC" in found.detail


def test_a_port_that_nobody_serves_is_free_or_a_fault() -> None:
    found = check(settings())
    assert (found.status, found.detail.partition("; ")[2]) == (
        Status.OK, "the port is free, no API process runs on this machine",
    )  # fmt: skip
    found = check(settings(), HERE)
    assert (found.status, found.detail) == (
        Status.ERROR, "an API process runs on this machine, but nothing listens there",
    )  # fmt: skip
    assert check(settings(), "elsewhere").status is Status.OK


def test_a_taken_port_is_told_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = check(settings(port=other.getsockname()[1]))
    assert found.status is Status.ERROR
    assert found.detail.startswith("the port is taken: ")


def test_a_missing_extra_and_a_wrong_address_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(settings(host="0.0.0.0"), HERE)
    assert (found.status, "can be reached from other machines" in found.detail) == (Status.ERROR, True)
    monkeypatch.setattr("app.cli.doctor.grpc_port.find_spec", lambda _: None)
    assert (check(settings()).status, check(settings()).fix) == (Status.ERROR, "pip install 'forecache[grpc]'")
    assert check(settings(), "elsewhere").status is Status.WARNING
