"""What is done for a client when its connection is lost, over a transport to nowhere."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.server import ServerState

from app.api.connections import Connection
from app.api.crowd import Crowd
from app.api.limits import Room
from app.api.server import configure
from inference.settings import ApiSettings


class Transport(asyncio.Transport):
    """Keeps what is written; nobody takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_lost = False

    def write(self, data: Any) -> None:
        assert not self.is_lost, "written to a connection that is lost"
        self.written += data

    def is_closing(self) -> bool:
        return self.is_lost

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class SlowApplication:
    """Answers once its client has hung up, or says something more."""

    shown_under = ""

    def __init__(self) -> None:
        self.crowd, self.room = Crowd(10, 10), Room()
        self.heard: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        self.heard.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def test_the_request_that_is_being_answered_hears_of_it_though_others_wait_behind_it() -> None:
    application: Any = SlowApplication()
    config = configure(ApiSettings(), lambda: application)
    config.load()
    state, transport = ServerState(), Transport()
    connection = Connection(config, state, {}, asyncio.get_running_loop())
    connection.connection_made(transport)
    connection.data_received(b"GET /runs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
    await asyncio.sleep(0)
    transport.is_lost = True
    connection.connection_lost(ConnectionAbortedError())
    await asyncio.gather(*state.tasks)
    assert application.heard == ["http.disconnect"]
    assert transport.written == b""
