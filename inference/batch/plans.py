"""Plans of runs in Redis: the chunks with their files, and until then the ids that a partial run was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import orjson

from inference.batch.plan import Chunk
from inference.redis.clients import Client
from inference.redis.keys import Keys
from inference.sources import SourceFile

#: how long the ids that a partial run was asked for wait for its plan
_KEEP_ENTITIES_S = 86400
#: HSET takes this many chunks or files of a plan at once
_PIECE = 5_000


class Plans:
    """What each run is to do, by its id. Methods raise StoreUnavailable when Redis does not answer.

    `keep_s`: when a plan is forgotten that nobody removed.
    """

    def __init__(self, client: Client, keys: Keys, *, keep_s: int) -> None:
        self._client: Any = client  # redis-py types every answer as every possible one
        self._keys = keys
        self._keep_s = keep_s

    def write(self, run_id: str, chunks: Iterable[Chunk], *, files: Iterable[SourceFile] = ()) -> int:
        """Store the descriptors of chunks and files, replacing what stood there; return how many chunks."""
        key = self._keys.run_part(run_id, "plan")
        self._client.delete(key)
        self._write_pieces(key, ((_file_field(number), file.to_json()) for number, file in enumerate(files)))
        return self._write_pieces(key, ((str(chunk.number), chunk.to_json()) for chunk in chunks))

    def chunk(self, run_id: str, number: int) -> Chunk | None:
        """Return a planned chunk with its files, or None.

        Raises:
            Unreadable: what stands there is no plan.
        """
        key = self._keys.run_part(run_id, "plan")
        text = self._client.hget(key, str(number))
        if text is None:
            return None
        chunk = Chunk.from_json(number, text)
        wanted = list(dict.fromkeys(part.file for part in chunk.slices))
        files = self._client.hmget(key, [_file_field(file) for file in wanted])
        known = zip(wanted, files, strict=True)
        return replace(chunk, files={file: SourceFile.from_json(data) for file, data in known if data})

    def files(self, run_id: str) -> Iterator[SourceFile]:
        """Yield the planned files in their order, without their row groups."""
        key, at = self._keys.run_part(run_id, "plan"), 0
        while True:
            found = self._client.hmget(key, [_file_field(at + offset) for offset in range(_PIECE)])
            yield from (SourceFile.from_json(data) for data in found if data)
            at += _PIECE
            if found[-1] is None:
                return

    def keep_entities(self, run_id: str, packed: bytes) -> None:
        """Keep the ids that a partial run is asked for until it is planned."""
        self._client.set(self._keys.run_part(run_id, "entities"), packed, ex=_KEEP_ENTITIES_S)

    def entities(self, run_id: str) -> bytes | None:
        """Return what `keep_entities` kept, or None when it waited for too long."""
        packed: bytes | None = self._client.get(self._keys.run_part(run_id, "entities"))
        return packed

    def forget_entities(self, run_id: str) -> None:
        """Remove what `keep_entities` kept."""
        self._client.delete(self._keys.run_part(run_id, "entities"))

    def _write_pieces(self, key: str, fields: Iterator[tuple[str, Any]]) -> int:
        written = 0
        while piece := {name: orjson.dumps(value) for name, value in islice(fields, _PIECE)}:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(key, mapping=piece)
                # the run may be cancelled meanwhile, and then nobody else sets an end to it
                pipe.expire(key, self._keep_s)
                pipe.execute()
            written += len(piece)
        return written


def _file_field(number: int) -> str:
    return f"f{number}"
