"""Pins the private parts of uvicorn that the connections of `app/api` override or imitate."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tests.test_architecture import ROOT, source_files

#: part of uvicorn → digest of the source that our code was written against
KNOWN: dict[Callable[..., Any], str] = {
    FlowControl.__init__: "0152d94a0407",
    FlowControl.pause_reading: "7c27388bb984",
    FlowControl.resume_reading: "a0429d30857e",
    HttpToolsProtocol.__init__: "4f0899941034",
    HttpToolsProtocol.connection_made: "6efb565ff3d3",
    HttpToolsProtocol.connection_lost: "c91a4c9bf2e2",
    HttpToolsProtocol.eof_received: "5652627579a0",
    HttpToolsProtocol.data_received: "010a7ae59a5d",
    HttpToolsProtocol._should_upgrade: "8fcad1ab8e09",
    HttpToolsProtocol.on_message_begin: "96d377fdc7c2",
    HttpToolsProtocol.on_headers_complete: "1ea8589acfad",
    HttpToolsProtocol.on_body: "dba9c32aeba3",
    HttpToolsProtocol.on_message_complete: "1fbad42dc31f",
    HttpToolsProtocol._start_asgi_task: "9c08c2571ae9",
    HttpToolsProtocol.on_response_complete: "64e254f28e38",
    HttpToolsProtocol.shutdown: "d7351fa33f00",
    RequestResponseCycle.__init__: "4d2f220910c3",
    RequestResponseCycle.run_asgi: "0f33f2449a44",
    RequestResponseCycle.send: "abdd8601b326",
    RequestResponseCycle.receive: "8124ae006be7",
}


@pytest.mark.parametrize("part", KNOWN, ids=lambda part: part.__qualname__)
def test_a_part_of_uvicorn_is_the_one_that_our_connections_know(part: Callable[..., Any]) -> None:
    digest = hashlib.sha256(inspect.getsource(part).encode()).hexdigest()[:12]
    assert digest == KNOWN[part], (
        f"uvicorn has changed {part.__qualname__}: compare the connections of app/api with it, then put {digest} here"
    )


def test_no_other_module_reaches_into_uvicorn() -> None:
    reaching = [
        file.relative_to(ROOT).as_posix() for file in source_files() if "uvicorn.protocols" in file.read_text("utf-8")
    ]
    assert reaching == ["app/api/bounded_connections.py", "app/api/connections.py"]
