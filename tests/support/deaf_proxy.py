"""A TCP proxy before a server that can make connections half-open: alive for both ends, silent for one or both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress


class DeafProxy:
    """Passes bytes on, until told to swallow what the present subscribers would hear."""

    def __init__(self) -> None:
        self.port = 0
        self.subscribers: set[asyncio.StreamWriter] = set()
        self.deaf: set[asyncio.StreamWriter] = set()
        self.open: set[asyncio.StreamWriter] = set()
        self.dead: set[asyncio.StreamWriter] = set()

    def deafen(self) -> None:
        """From now on those who have subscribed by now hear nothing."""
        self.deaf |= self.subscribers

    def fall_silent(self) -> None:
        """From now on nothing passes over the connections that are open by now, as after a firewall's restart."""
        self.dead |= self.open

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        self.open.add(writer)
        try:
            await asyncio.wait(
                {
                    asyncio.create_task(self._upstream(reader, server_writer, writer)),
                    asyncio.create_task(self._downstream(server_reader, writer)),
                },
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self.open.discard(writer)
            server_writer.close()
            writer.close()

    async def _upstream(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, who: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while data := await client.read(65536):
                if b"PSUBSCRIBE" in data:
                    self.subscribers.add(who)
                if who not in self.dead:
                    server.write(data)

    async def _downstream(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await server.read(65536):
                if client not in self.deaf | self.dead:
                    client.write(data)


@asynccontextmanager
async def deaf_proxy(port: int) -> AsyncIterator[DeafProxy]:
    """Yield a proxy in front of the port of a Redis on this machine."""
    proxy = DeafProxy()
    server = await asyncio.start_server(lambda r, w: proxy.serve(r, w, port), "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


@contextmanager
def deaf_proxy_in_thread(port: int) -> Iterator[DeafProxy]:
    """Yield the same, served by a thread of its own, for tests whose own code waits."""
    ready, over = threading.Event(), threading.Event()
    found: list[DeafProxy] = []

    async def serve() -> None:
        async with deaf_proxy(port) as proxy:
            found.append(proxy)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        over.set()
        thread.join(10)
