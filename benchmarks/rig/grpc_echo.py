"""A bare grpc.aio server that answers each message with itself: the floor of what gRPC costs. Argument: its port."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import uvloop

METHOD = "/bench.Echo/Echo"


async def _echo(message: bytes, _: Any) -> bytes:
    return message


async def main(port: str) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler})])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
