"""A TCP proxy before Redis that can make subscriptions half-open: alive for both ends, silent for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class DeafProxy:
    """Passes bytes on, until told to swallow what the present subscribers would hear."""

    def __init__(self) -> None:
        self.port = 0
        self.subscribers: set[asyncio.StreamWriter] = set()
        self.deaf: set[asyncio.StreamWriter] = set()

    def deafen(self) -> None:
        """From now on those who have subscribed by now hear nothing."""
        self.deaf |= self.subscribers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.wait(
                {
                    asyncio.create_task(self._upstream(reader, server_writer, writer)),
                    asyncio.create_task(self._downstream(server_reader, writer)),
                },
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            server_writer.close()
            writer.close()

    async def _upstream(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, who: asyncio.StreamWriter
    ) -> None:
        while data := await client.read(65536):
            if b"PSUBSCRIBE" in data:
                self.subscribers.add(who)
            server.write(data)

    async def _downstream(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await server.read(65536):
            if client not in self.deaf:
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
