"""Remembers, for the next run, from which vector each prediction was computed: digests in files, beside Redis.

Each chunk of a run writes one part; when all are there, they become one file, sorted by the hashes of the ids. A row
takes 24 bytes in it: the hash of its id, the digest of the vector that the model got, the hash that leads to its
bucket, and its `as_of`; 8 more if the run also writes Parquet, for its place there. The files are Arrow's (IPC), mapped
into memory where they are read.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs as fs

from inference.batch.sinks import CarriedRows, Window
from inference.errors import SourceError
from inference.failures import sentence_of
from inference.logs import get_logger
from inference.schema import Block, rows_in
from inference.sources import hash_ids
from inference.storage import Location, open_location
from inference.store import bucket_hashes, stored_as_of, stored_ids
from inference.stored_data import json_text_of, record_from_json

log = get_logger(__name__)

Hashes = npt.NDArray[np.uint64]

#: rows of the sorted file that are merged at once
_MERGED_AT_ONCE = 1 << 20
#: rows whose digests are computed at once, so that the words of wide vectors take little memory
_DIGESTED_AT_ONCE = 4096
_WHOLE = "vectors.arrow"
_OURS = re.compile(r"part-\d+\.arrow|vectors\.arrow|\.(part-\d+|vectors)\.\w+\.tmp")
_FACTS = b"forecache"
_PART = (("hash", pa.uint64()), ("digest", pa.uint64()), ("bucket", pa.uint32()), ("as_of", pa.uint32()))
_SHIFT = np.uint64(32)
#: bytes of a row in the parts, in the whole file, and there for its place in the Parquet parts
PART_BYTES, WHOLE_BYTES, PLACE_BYTES = 28, 24, 8


@dataclass(frozen=True)
class Facts:
    """The run whose vectors a file holds. `key`: of the digests, in hex; `deltas`: delta runs since the last full run.

    `files`: a fingerprint of the model's files. `parquet_folder`: of the run's parts, empty for none.
    """

    run_id: str
    model_version: int
    files: str
    contract_hash: str
    key: str
    deltas: int
    parquet_folder: str


def digests_of(inputs: Block, key: bytes) -> Hashes:
    """Return a 64-bit digest of each row of a model's inputs. Two different rows have equal digests once in 2**64.

    The digest is the upper half of two sums of the row's 32-bit words, each with random factors that `key` decides:
    strongly universal by D. Lemire and O. Kaser, "Strongly universal string hashing is fast" (2014). Rows with equal
    numbers and different bits (0 and -0) count as different.
    """
    words = [_words(values, key) for values in inputs.values()]
    factors = _factors(key, sum(part.shape[1] for part in words))
    digests = np.empty(rows_in(inputs), np.uint64)
    for start in range(0, len(digests), _DIGESTED_AT_ONCE):
        part = slice(start, start + _DIGESTED_AT_ONCE)
        wide = np.concatenate([one[part] for one in words], axis=1).astype(np.uint64)
        sums = wide @ factors[1:] + factors[0]
        digests[part] = (sums[:, 0] >> _SHIFT << _SHIFT) | (sums[:, 1] >> _SHIFT)
    return digests


@lru_cache(maxsize=8)
def _factors(key: bytes, words: int) -> Hashes:
    stream = hashlib.shake_256(key).digest(16 * (words + 1))
    factors: Hashes = np.frombuffer(stream, np.uint64).reshape(words + 1, 2)
    return factors


def _words(values: npt.NDArray[Any], key: bytes) -> npt.NDArray[np.uint32]:
    """Return an input's values as 32-bit words, of shape [rows, words]."""
    shape = len(values), math.prod(values.shape[1:])
    if values.dtype == object:
        values = _text_digests(values.reshape(-1), key)
    flat = np.ascontiguousarray(values.reshape(shape)).view(np.uint8)
    missing = -flat.shape[1] % 4
    return (np.pad(flat, ((0, 0), (0, missing))) if missing else flat).view(np.uint32)


def _text_digests(texts: npt.NDArray[Any], key: bytes) -> Hashes:
    distinct = pa.array(texts, pa.large_string()).dictionary_encode()
    digests = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")
        for text in distinct.dictionary.to_pylist()
    ]
    # the last one stands for a missing text
    known = np.array([*digests, 0], np.uint64)
    digests_of_texts: Hashes = known[distinct.indices.fill_null(len(digests)).to_numpy(zero_copy_only=False)]
    return digests_of_texts


class VectorSink:
    """Writes one chunk's part of `folder`, a path or a URI; the part appears when the chunk is whole.

    `latest`: the table stores no later `as_of` (epoch seconds). `is_needed`: the run cannot end without the part;
    otherwise a part that cannot be written is left out, and costs later runs only time.
    """

    def __init__(self, folder: str, *, chunk: int, token: str, latest: float, is_needed: bool) -> None:
        self._folder, self._is_needed = open_location(folder), is_needed
        self._name = f"part-{chunk:06d}"
        self._token, self._latest = token, latest
        self._rows: list[pa.Table] = []
        self._written = 0

    def write(self, window: Window) -> None:
        """Add scored rows.

        Raises:
            ValueError: the window has no digests.
        """
        if window.digests is None:
            raise ValueError("the window has no digests")
        self._add(window.ids, window.digests, window.as_of)

    def carry(self, rows: CarriedRows) -> Block:
        """Add carried rows; tells nothing about their predictions."""
        self._add(rows.ids, rows.digests, rows.as_of)
        return {}

    def commit(self) -> None:
        """Write the part; it replaces an earlier attempt's part, which held the same rows.

        Raises:
            OSError: it is needed, and cannot be written.
        """
        schema = pa.schema([*_PART, ("row", pa.uint32())])
        table = pa.concat_tables(self._rows) if self._rows else schema.empty_table()
        try:
            with _writing(self._folder, self._name, self._token, schema) as writer:
                writer.write_batch(_one_batch(table.sort_by("hash")))
        except OSError as error:
            if self._is_needed:
                raise OSError(f"delta_path cannot be written to: {error}") from error
            log.warning("chunk.vectors_not_written", folder=self._folder.name, error=sentence_of(error))

    def abandon(self) -> None:
        """Do nothing: nothing was written yet."""

    def _add(self, ids: pa.Array, digests: Hashes, as_of: npt.NDArray[np.float64]) -> None:
        rows = np.arange(self._written, self._written + len(ids), dtype=np.uint32)
        self._written += len(ids)
        ages = stored_as_of(np.minimum(as_of, self._latest))
        columns = [hash_ids(stored_ids(ids)), digests, bucket_hashes(ids), ages, rows]
        self._rows.append(pa.table(columns, [*(name for name, _ in _PART), "row"]))


@dataclass(frozen=True)
class KnownVectors:
    """What a run's vectors say of some ids. Arrays of the ids' length; what is not `known` holds zeros.

    `places`: of the rows in the Parquet parts, the part's number times 2**32 and the row; zeros if it wrote none.
    """

    known: npt.NDArray[np.bool_]
    digests: Hashes
    as_of: npt.NDArray[np.uint32]
    places: Hashes


class Vectors:
    """The sorted vectors of one run, mapped into memory. Threads may share it.

    An id whose hash another id of the run has, which happens once among billions, is unknown.
    """

    def __init__(self, file: Any) -> None:
        reader = pa.ipc.open_file(file)
        self.facts = record_from_json(Facts, reader.schema.metadata[_FACTS], "the vectors of a run")
        self.schema = reader.schema
        self.batches = [
            {name: batch.column(name).to_numpy() for name in batch.schema.names}
            for batch in (reader.get_batch(number) for number in range(reader.num_record_batches))
            if batch.num_rows
        ]
        self._firsts = np.array([batch["hash"][0] for batch in self.batches], np.uint64)
        self.rows = sum(len(batch["hash"]) for batch in self.batches)

    def find(self, hashes: Hashes) -> KnownVectors:
        """Return what is known of ids, by the hashes of their stored forms."""
        count = len(hashes)
        found = KnownVectors(
            np.zeros(count, np.bool_),
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint32),
            np.zeros(count, np.uint64),
        )
        order = np.argsort(hashes)
        for batch, rows in self._of_batches(hashes[order]):
            sought, ours = hashes[order[rows]], batch["hash"]
            at = np.minimum(np.searchsorted(ours, sought), len(ours) - 1)
            last = len(ours) - 1
            repeats = (at < last) & (ours[np.minimum(at + 1, last)] == sought)
            same = (ours[at] == sought) & ~repeats
            target, at = order[rows][same], at[same]
            found.known[target] = True
            found.digests[target] = batch["digest"][at]
            found.as_of[target] = batch["as_of"][at]
            if "place" in batch:
                found.places[target] = batch["place"][at]
        return found

    def without(self, other: Vectors) -> Iterator[tuple[Hashes, npt.NDArray[np.uint32]]]:
        """Yield, some at a time, the rows that `other` lacks: the hashes of their ids and those of their buckets."""
        for batch in self.batches:
            gone = ~other._has(batch["hash"])
            if gone.any():
                yield batch["hash"][gone], batch["bucket"][gone]

    def _has(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Return which of some ascending hashes there are."""
        has = np.zeros(len(hashes), bool)
        for batch, rows in self._of_batches(hashes):
            at = np.minimum(np.searchsorted(batch["hash"], hashes[rows]), len(batch["hash"]) - 1)
            has[rows] = batch["hash"][at] == hashes[rows]
        return has

    def _of_batches(self, hashes: Hashes) -> Iterator[tuple[dict[str, Any], slice]]:
        """Yield each batch with the stretch of ascending hashes that it may hold."""
        starts = [0, *np.searchsorted(hashes, self._firsts[1:]).tolist(), len(hashes)]
        for batch, start, end in zip(self.batches, starts, starts[1:], strict=False):
            if start < end:
                yield batch, slice(start, end)


@dataclass(frozen=True)
class Compared:
    """What became of some rows since the earlier run. Arrays of the rows' length.

    `same`: the model would get the same vector; `aged`: those of them whose copy in the table has another `as_of`.
    """

    digests: Hashes
    same: npt.NDArray[np.bool_]
    aged: npt.NDArray[np.bool_]
    places: Hashes

    def take(self, mask: npt.NDArray[np.bool_]) -> Compared:
        """Return the rows of a mask."""
        return Compared(self.digests[mask], self.same[mask], self.aged[mask], self.places[mask])


@dataclass(frozen=True)
class VectorCheck:
    """Digests the vectors of rows, and compares them with those of an earlier run.

    `before`: the vectors of that run; None if all rows are scored. `copied_at`: the `as_of` of all rows copied from it;
    None if they keep theirs. `latest`: as for `VectorSink`.
    """

    key: bytes
    before: Vectors | None
    copied_at: float | None
    latest: float

    def compare(self, ids: pa.Array, inputs: Block, as_of: npt.NDArray[np.float64]) -> Compared:
        """Return what became of rows; `ids`: text without nulls."""
        digests = digests_of(inputs, self.key)
        if self.before is None or not len(ids):
            nothing = np.zeros(len(ids), np.bool_)
            return Compared(digests, nothing, nothing, np.zeros(len(ids), np.uint64))
        found = self.before.find(hash_ids(stored_ids(ids)))
        same = found.known & (found.digests == digests)
        copied = found.as_of if self.copied_at is None else stored_as_of(np.array([self.copied_at]))
        aged = same & (stored_as_of(np.minimum(as_of, self.latest)) != copied)
        return Compared(digests, same, aged, found.places)


def open_vectors(folder: str) -> Vectors | None:
    """Return the whole vectors of a run, or None if there are none in its folder.

    Raises:
        SourceError: the file is damaged, or the store does not answer.
    """
    where = open_location(folder)
    path = f"{where.path}/{_WHOLE}"
    with _errors(folder):
        if where.filesystem.get_file_info(path).type is fs.FileType.NotFound:
            return None
        return Vectors(pa.memory_map(path)) if where.is_local else _fetched(folder, _stamp_of(where.at(path)))


def _stamp_of(file: Location) -> str:
    """Return a text that changes when the file does: an entity may be forgotten meanwhile."""
    info = file.filesystem.get_file_info(file.path)
    return f"{info.mtime_ns} {info.size}"


@lru_cache(maxsize=2)  # each chunk of a run reads it
def _fetched(folder: str, stamp: str) -> Vectors:  # noqa: ARG001 - another stamp means another content
    """Return vectors in an object store, mapped from a nameless copy on this machine."""
    where = open_location(folder)
    with tempfile.NamedTemporaryFile() as copy:
        with where.filesystem.open_input_stream(f"{where.path}/{_WHOLE}") as stream:
            shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        return Vectors(pa.memory_map(copy.name))


def merge_parts(folder: str, facts: Facts, *, chunks: int, give_way: Callable[[], None] = lambda: None) -> Vectors:
    """Write the sorted file of a run whose chunks are done, remove its parts, and return it. May run twice.

    Takes memory for some millions of rows, however many there are. Calls `give_way` before each of these steps.

    Raises:
        SourceError: a part is missing or damaged, or the folder cannot be written to.
    """
    whole = open_vectors(folder)
    if whole is not None:
        return whole
    where = open_location(folder)
    with _errors(folder):
        parts = _paths(where, "part-")
        if len(parts) != chunks:
            raise SourceError(
                f"{folder} holds the vectors of {len(parts):,} of {chunks:,} chunks: delta_path must be a folder that "
                "all batch and maintenance workers share"
            )
        with _readable(where, parts) as files:
            _merge(where, files, facts, give_way)
        for part in parts:
            where.filesystem.delete_file(part)
    whole = open_vectors(folder)
    if whole is None:
        raise SourceError(f"the vectors in {folder} are gone: another process removed them")
    return whole


class TakenVectors:
    """The vectors of a run while rows leave its Parquet parts; without the file, the next delta run scores all rows."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._taken: Vectors | None = None

    def take(self) -> None:
        """Read the vectors and remove their file, before a part changes: after a kill, its places would be wrong."""
        self._taken = open_vectors(self._folder)
        if self._taken is not None:
            where = open_location(self._folder)
            with _errors(self._folder):
                where.filesystem.delete_file(f"{where.path}/{_WHOLE}")

    def put_back(self, hashes: Hashes, places: Sequence[int]) -> int:
        """Write the file again without some ids, by the hashes of their stored forms; return how many it had.

        `places`: of the rows that have left the parts; those behind them in the same part have moved up.

        Raises:
            SourceError: the file is damaged, or cannot be written.
        """
        whole = self._taken or open_vectors(self._folder)
        if whole is None:
            return 0
        removed = sum(int(np.isin(batch["hash"], hashes).sum()) for batch in whole.batches)
        if removed or self._taken is not None:
            _rewrite(self._folder, whole, hashes, np.sort(np.array(places, np.uint64)))
        return removed


def _rewrite(folder: str, whole: Vectors, hashes: Hashes, gone: Hashes) -> None:
    name = _WHOLE.partition(".")[0]
    with _errors(folder), _writing(open_location(folder), name, f"{os.getpid()}", whole.schema) as writer:
        for batch in whole.batches:
            left = ~np.isin(batch["hash"], hashes)
            columns = {name: values[left] for name, values in batch.items()}
            if "place" in columns:
                at = columns["place"]
                before = np.searchsorted(gone, at) - np.searchsorted(gone, at >> _SHIFT << _SHIFT)
                columns["place"] = at - before.astype(np.uint64)
            writer.write_batch(pa.RecordBatch.from_arrays(list(map(pa.array, columns.values())), schema=whole.schema))


def remove_vectors(folder: str) -> None:
    """Remove a run's files, and its folder if it is empty then.

    Raises:
        OSError: a file cannot be removed, or the store does not answer.
    """
    where = open_location(folder)
    for path in _paths(where, ""):
        if _OURS.fullmatch(path.rpartition("/")[2]):
            where.filesystem.delete_file(path)
    if where.is_local:
        with suppress(OSError):  # it does not exist, or other files lie there
            Path(where.path).rmdir()


def _merge(where: Location, files: Sequence[str], facts: Facts, give_way: Callable[[], None]) -> None:
    rows = sum(len(_part(file)[0]) for file in files)
    pieces = max(1, -(-rows // _MERGED_AT_ONCE))
    bounds = [min(2**64 * number // pieces, 2**64 - 1) for number in range(pieces + 1)]
    has_places = bool(facts.parquet_folder)
    schema = pa.schema([*_PART, *([("place", pa.uint64())] if has_places else [])])
    schema = schema.with_metadata({_FACTS: json_text_of(Facts, facts)})
    with _writing(where, _WHOLE.partition(".")[0], f"{os.getpid()}", schema) as writer:
        for number in range(pieces):
            give_way()
            last = number == pieces - 1
            found = [_between(file, bounds[number], None if last else bounds[number + 1]) for file in files]
            table = pa.concat_tables(found).sort_by("hash")
            writer.write_batch(_one_batch(table.select(schema.names)))


def _between(file: str, first: int, end: int | None) -> pa.Table:
    """Return a part's rows with hashes from `first` up to `end`, and their places."""
    batch = _part(file)
    hashes = batch.column("hash").to_numpy()
    start = int(np.searchsorted(hashes, np.uint64(first)))
    stop = len(hashes) if end is None else int(np.searchsorted(hashes, np.uint64(end)))
    part = pa.Table.from_batches([batch.slice(start, stop - start)])
    number = np.uint64(int(re.findall(r"part-(\d+)", file)[-1]))
    places = part.column("row").to_numpy().astype(np.uint64) | (number << _SHIFT)
    return part.append_column("place", pa.array(places))


def _part(file: str) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(file)).get_batch(0)


@contextmanager
def _readable(where: Location, paths: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the names of files on this machine with the contents of these."""
    if where.is_local:
        yield paths
        return
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for path in paths:
            copies.append(str(Path(folder) / path.rpartition("/")[2]))
            with where.filesystem.open_input_stream(path) as stream, Path(copies[-1]).open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
        yield copies


@contextmanager
def _writing(where: Location, name: str, token: str, schema: pa.Schema) -> Iterator[Any]:
    """Yield a writer of a file that appears when it is whole."""
    if not where.is_local:
        with tempfile.NamedTemporaryFile() as copy:
            with pa.OSFile(copy.name, "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
                yield writer
            with where.filesystem.open_output_stream(f"{where.path}/{name}.arrow") as target:
                shutil.copyfileobj(copy, target, 1 << 20)
        return
    folder = Path(where.path)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{token}.tmp"
    try:
        with pa.OSFile(str(temporary), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
            yield writer
        temporary.replace(folder / f"{name}.arrow")
    finally:
        temporary.unlink(missing_ok=True)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _paths(where: Location, start: str) -> list[str]:
    infos = where.filesystem.get_file_info(fs.FileSelector(where.path, allow_not_found=True))
    return sorted(info.path for info in infos if info.base_name.startswith(start) and info.type is fs.FileType.File)


@contextmanager
def _errors(folder: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"the vectors in {folder} cannot be read or written: {error}") from error
