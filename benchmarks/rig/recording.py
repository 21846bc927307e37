"""The Redis floor: the very bytes that a run wrote, sent again from raw sockets."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_PIECE = 1 << 20


class Recorder:
    """A proxy before Redis that keeps what each client sends, one file per connection."""

    def __init__(self, folder: Path, redis_port: int) -> None:
        self._folder = folder
        self._redis_port = redis_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._files: list[Path] = []
        folder.mkdir()

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Recorder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.close()

    def streams(self) -> list[Path]:
        """Return the recordings of the connections that wrote: those with over 1 % of all bytes."""
        sizes = {path: path.stat().st_size for path in self._files}
        return [path for path, size in sizes.items() if size > sum(sizes.values()) / 100]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed: the recording is over
                return
            server = socket.create_connection(("127.0.0.1", self._redis_port))
            path = self._folder / f"{len(self._files)}.resp"
            self._files.append(path)
            threading.Thread(target=_copy, args=(client, server, path), daemon=True).start()
            threading.Thread(target=_copy, args=(server, client, None), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, keep: Path | None) -> None:
    with source, target:
        stream = keep.open("wb", buffering=0) if keep else None
        try:
            while data := source.recv(_PIECE):
                target.sendall(data)
                if stream:
                    stream.write(data)
        except OSError:
            return  # either side went away, which closes the other
        finally:
            if stream:
                stream.close()


def replay(streams: Sequence[Path], port: int) -> float:
    """Send each recording on its own connection; return the seconds until Redis has worked them off."""
    contents = [path.read_bytes() for path in streams]
    threads = [threading.Thread(target=_send, args=(content, port)) for content in contents]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def _send(content: bytes, port: int) -> None:
    marker = uuid.uuid4().hex.encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        reader = threading.Thread(target=_read_until, args=(connection, marker))
        reader.start()
        connection.sendall(content)
        connection.sendall(b"*2\r\n$4\r\nECHO\r\n$32\r\n" + marker + b"\r\n")
        reader.join()


def _read_until(connection: socket.socket, marker: bytes) -> None:
    tail = b""
    while marker not in tail:
        data = connection.recv(_PIECE)
        if not data:
            raise ConnectionError("Redis closed the connection during the replay")
        tail = tail[-len(marker) :] + data
