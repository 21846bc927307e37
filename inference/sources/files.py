"""Tells what the text of a source means, and lists the files of a path, a folder or a pattern. Opens no file.

Python's regular expressions backtrack for every star of a pattern and hold the interpreter meanwhile. `PathPattern`
follows all places that a name may have reached at once, as the bits of one number: its time grows with the name only.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs

from inference.errors import SourceError, quoted
from inference.sources.table_formats import refuse_other_formats
from inference.storage import Location, reason_of

#: characters of a path, a pattern or a URI of a source
LONGEST_PATH = 4096
LONGEST_PATTERN = 1024
#: a pattern remembers so many steps
_MAX_STEPS = 10_000

_TABLE = re.compile(r"(?P<kind>delta|iceberg|sql):(?P<place>.+?)(@(?P<version>\d+))?", re.DOTALL)
_CSV_NAME = re.compile(r".*\.(csv|tsv)(\.(gz|bz2|zst|lz4))?", re.IGNORECASE | re.DOTALL)
_MAGIC = re.compile(r"[*?\[]")
#: `deep` is `**/`, which matches zero or more folders; `far` is `**`, which matches anything
_PIECE = re.compile(
    r"(?P<deep>\*\*/)|(?P<far>\*\*)|(?P<star>\*)|(?P<one>\?)|(?P<set>\[!?\]?[^]/]*\])|(?P<text>.)", re.DOTALL
)
_PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
_PLACES = "give a Parquet file, a folder of them, or a pattern such as data/*.parquet"


#: suffix of another format → pandas' reader
_READERS = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".feather": "feather",
    ".arrow": "feather", ".orc": "orc", ".xlsx": "excel", ".xls": "excel", ".pkl": "pickle", ".pickle": "pickle",
}  # fmt: skip
_MORE = {".jsonl": ", lines=True", ".ndjson": ", lines=True"}
_CSV = (".csv", ".tsv")
#: suffixes of files that do not count any more, or not yet
_SET_ASIDE = (".tmp", ".temp", ".part", ".partial", ".inprogress", ".bak", ".old", ".orig")
_PARQUET_MAGIC = b"PAR1"
#: so many files with other names are opened for their first bytes, each by a request to an object store
_MOST_LOOKED_AT = 8
_COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")


@dataclass(frozen=True)
class TableName:
    """A table by `kind`: delta (`place`: its folder or URI), iceberg (catalog, namespace and table) or sql (a file).

    `version`: of Delta, or the id of an Iceberg snapshot; None for the newest. Queries have none.
    """

    kind: str
    place: str
    version: int | None = None

    def __str__(self) -> str:
        """Return the text that settings have."""
        return f"{self.kind}:{self.place}" + ("" if self.version is None else f"@{self.version}")

    @classmethod
    def read(cls, text: str) -> TableName | None:
        """Return the table that a text of a source names; None for a path or URI of files."""
        match = _TABLE.fullmatch(text)
        return match and cls(match["kind"], match["place"], int(match["version"]) if match["version"] else None)


def is_csv(path: str) -> bool:
    """Tell whether a path, a pattern or a URI names tables in CSV, compressed or not."""
    return _CSV_NAME.fullmatch(path) is not None


def is_pattern(path: str) -> bool:
    """Tell whether a path is a pattern."""
    return _MAGIC.search(path) is not None


def check_path(path: str) -> None:
    """Refuse a path or pattern that is too long, or illegal in every file system.

    Raises:
        SourceError: names the problem.
    """
    longest = LONGEST_PATTERN if is_pattern(path) else LONGEST_PATH
    if len(path) > longest:
        raise SourceError(f"a source of {len(path)} characters is too long: at most {longest}", field="source")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise SourceError(f"source {quoted(path)} is no valid Unicode", field="source") from error
    if "\0" in path:
        raise SourceError(f"source {quoted(path)} holds a NUL, which no path may", field="source")
    if is_pattern(path):
        PathPattern(path)


class PathPattern:
    """A pattern: `*` and `?` stay within one name, `**` spans folders, `[ab]` and `[!ab]` are sets.

    Raises:
        SourceError: a set has a range that goes backwards, such as `[z-a]`.
    """

    def __init__(self, pattern: str) -> None:
        # more than two stars mean the same as two, and several `**/` the same as one
        plain = re.sub(r"(\*\*/)+", "**/", re.sub(r"\*{3,}", "**", pattern))
        #: the start of every matching name, which is compared as a whole
        self._start = plain[: found.start()] if (found := _MAGIC.search(plain)) else plain
        self._sets: dict[int, re.Pattern[str]] = {}
        self._texts: dict[str, int] = {}
        self._steps: dict[tuple[int, str], int] = {}
        #: bits: places that any character but a slash passes; places that only a slash passes
        self._within = self._slash = 0
        #: bits: places that stay on any character; places that stay on any but a slash
        self._far = self._star = 0
        #: bits: places that may be skipped; places that may be skipped together with the next
        self._skip = self._skip_two = 0
        self._places = 0
        for piece in _PIECE.finditer(plain):
            self._add(piece, pattern)

    def _add(self, piece: re.Match[str], pattern: str) -> None:
        place = 1 << self._places
        self._places += 2 if piece["deep"] else 1
        if piece["deep"]:  # skipped, or entered, and left after a slash
            self._skip |= place
            self._skip_two |= place
            self._far |= place << 1
            self._slash |= place << 1
        elif piece["far"] or piece["star"]:
            self._skip |= place
            self._far |= place if piece["far"] else 0
            self._star |= place if piece["star"] else 0
        elif piece["one"]:
            self._within |= place
        elif piece["set"]:
            self._sets[place] = _set(piece["set"], pattern)
        else:
            self._texts[piece["text"]] = self._texts.get(piece["text"], 0) | place

    def matches(self, name: str, *, below: bool = False) -> bool:
        """Tell whether the whole name matches; with `below`, also whether one of its folders does."""
        if not name.startswith(self._start):
            return False
        reached, end, steps = self._with_skipped(1 << len(self._start)), 1 << self._places, self._steps
        for character in name[len(self._start) :]:
            if below and character == "/" and reached & end:
                return True
            following = steps.get((reached, character))
            reached = self._step(reached, character) if following is None else following
            if not reached:
                return False
        return bool(reached & end)

    def _step(self, reached: int, character: str) -> int:
        """Return the places that one character leads to, and remember them: names are often alike."""
        passes, stays = self._texts.get(character, 0), self._far
        if character == "/":
            passes |= self._slash
        else:
            passes |= self._within | sum(place for place, one in self._sets.items() if one.fullmatch(character))
            stays |= self._star
        following = self._with_skipped((reached & passes) << 1 | reached & stays)
        if len(self._steps) >= _MAX_STEPS:
            self._steps.clear()
        self._steps[reached, character] = following
        return following

    def _with_skipped(self, reached: int) -> int:
        while (more := reached | (reached & self._skip) << 1 | (reached & self._skip_two) << 2) != reached:
            reached = more
        return reached


def _set(text: str, pattern: str) -> re.Pattern[str]:
    """Return a set as a regular expression for one character."""
    is_not, chosen = text[1] == "!", text[2:-1] if text[1] == "!" else text[1:-1]
    for special in ("\\", "]", "^", "[", "&", "~", "|"):
        chosen = chosen.replace(special, f"\\{special}")
    try:
        return re.compile(f"[{'^' if is_not else ''}{chosen}]", re.DOTALL)
    except re.error as error:
        message = f"source {quoted(pattern)}: the set {quoted(text)} has a range that goes backwards"
        raise SourceError(message, field="source") from error


def as_parquet(name: str) -> str | None:
    """Return that a file is no Parquet, and what to do about it; None if its name does not tell."""
    path = PurePosixPath(name)
    plain = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    suffix = plain.suffix.lower()
    if suffix in _CSV:
        return "is CSV: name such a file, or a pattern of such files alone, as in data/*.csv"
    if suffix not in _READERS:
        return None
    made = json.dumps(str(plain.with_suffix(".parquet")), ensure_ascii=False)
    read = f"pandas.read_{_READERS[suffix]}({json.dumps(name, ensure_ascii=False)}{_MORE.get(suffix, '')})"
    return f"is no Parquet file; make it one: python -c {shlex.quote(f'import pandas; {read}.to_parquet({made})')}"


def fixed_part(path: str) -> str:
    """Return the folder around all matches of a pattern; for other paths the path itself."""
    parts = path.split("/")
    magic = next((number for number, part in enumerate(parts) if is_pattern(part)), None)
    return path if magic is None else "/".join(parts[:magic]) or ("/" if path.startswith("/") else "")


def list_files(place: Location) -> list[str]:
    """Return the paths of a source's files, sorted.

    For a folder, and for folders that match a pattern, lists every `*.parquet` (`.parq`, `.pq`) below. Leaves out
    hidden names, names that start with an underscore, such as `_SUCCESS`, and `.crc`.

    Raises:
        SourceError: the path is illegal, does not exist, has no Parquet file, cannot be listed, or belongs to a table
            of another format, such as Delta.
    """
    check_path(place.path)
    if is_pattern(place.path) and not (place.is_local and _exists(place.path)):
        root = fixed_part(place.path)
        listed = _below(place, root)
        links = _links_below(place, root)
        kept = _once(_matching(place, _visible(root, listed)), links)
        refuse_other_formats(place.at(root), kept, listed, links)
        return kept
    kind = _kind(place, place.path)
    if kind == fs.FileType.NotFound:
        raise SourceError(f"{place.name} does not exist: {_PLACES}", field="source")
    if kind == fs.FileType.File:
        refuse_other_formats(place, [place.path], ())
        return [place.path]
    listed = _below(place, place.path)
    found = _visible(place.path, listed)
    links = _links_below(place, place.path)
    parquet = _once([path for path in found if _is_named_parquet(path)], links)
    refuse_other_formats(place, parquet, listed, links)
    _refuse_disguised(place, [path for path in found if not _is_named_parquet(path)], parquet)
    if not parquet:
        raise SourceError(f"{place.name} holds no *.parquet file{_instead(found)}", field="source")
    return parquet


def _is_named_parquet(path: str) -> bool:
    return path.lower().endswith(_PARQUET_SUFFIXES)


def _refuse_disguised(place: Location, others: Sequence[str], parquet: Sequence[str]) -> None:
    """Refuse a folder with Parquet files of other names, as Hive, Athena and Impala write: their rows would be lost."""
    names = [(path, PurePosixPath(path).name) for path in others]
    unknown = [
        path
        for path, name in names
        if as_parquet(name) is None and ".parquet." not in name.lower() and not name.lower().endswith(_SET_ASIDE)
    ]
    found = next((path for path in unknown[:_MOST_LOOKED_AT] if _begins_as_parquet(place, path)), None)
    if found is None:
        return
    inside = found.removeprefix(place.path).strip("/")
    depth = "**" if "/" in inside else "*"
    rename = f"rename it to {PurePosixPath(found).name}.parquet, move it away, or " if parquet else ""
    raise SourceError(
        f"{place.name} holds {inside}, which is Parquet and not called so: {rename}give the pattern "
        f"{place.name.rstrip('/')}/{depth}, which takes files of any name",
        field="source",
    )


def _begins_as_parquet(place: Location, path: str) -> bool:
    try:
        with place.filesystem.open_input_stream(path) as opened:
            return bool(opened.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{place.at(path).name} cannot be read: {reason_of(error)}", field="source") from error


def _matching(place: Location, found: list[str]) -> list[str]:
    pattern = PathPattern(place.path)
    # a file that matches may have any suffix; a file below a matching folder must have one of Parquet
    kept = [path for path in found if pattern.matches(path, below=_is_named_parquet(path))]
    if not kept:
        raise SourceError(f"{place.name} matches no Parquet file{_instead(found)}", field="source")
    return kept


def _exists(path: str) -> bool:
    """Tell whether a file exists whose name looks like a pattern."""
    try:
        return Path(path).exists()
    except OSError:  # the name is too long
        return False


def _instead(found: list[str]) -> str:
    if not found:
        return ""
    name = PurePosixPath(found[0]).name
    fix = as_parquet(name)
    more = f" and {len(found) - 1} more" if found[1:] else ""
    return f"; it holds {name}{more}" + (f", which {fix}" if fix else "")


def _kind(place: Location, path: str) -> Any:
    try:
        return place.filesystem.get_file_info(path).type
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{place.at(path).name} cannot be read: {reason_of(error)}", field="source") from error


def _below(place: Location, root: str) -> dict[str, bool]:
    """Return all paths below a folder → whether it is a file; {} if the folder does not exist."""
    try:
        infos = place.filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    except FileNotFoundError:
        return {}
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{place.at(root).name} cannot be listed: {reason_of(error)}", field="source") from error
    try:
        listed = {info.path: info.type for info in infos}
    except UnicodeDecodeError as error:
        message = f"{place.at(root).name} holds a file whose name is no UTF-8: rename it"
        raise SourceError(message, field="source") from error
    return {path: type_ == fs.FileType.File for path, type_ in listed.items()}


def _links_below(place: Location, root: str) -> list[Path]:
    """Return the links below a folder of this machine; [] for an object store.

    Raises:
        SourceError: a link with the name of a table's file has no target. Arrow does not list it, so its rows would be
            lost.
    """
    links: list[Path] = []
    folders = [root] if place.is_local and Path(root).is_dir() else []
    while folders:
        with os.scandir(folders.pop()) as entries:
            visible = [entry for entry in entries if not _is_hidden(entry.name)]
        links += [Path(entry.path) for entry in visible if entry.is_symlink()]
        folders += [entry.path for entry in visible if entry.is_dir(follow_symlinks=False)]
    lost = next((link for link in links if _is_named_parquet(link.name) and not link.exists()), None)
    if lost:
        message = f"{lost} is a link to a file that is not there: fetch it (dvc pull, git annex get), or remove it"
        raise SourceError(message, field="source")
    return links


def _visible(root: str, listed: Mapping[str, bool]) -> list[str]:
    """Return the files that may belong to a table, sorted."""
    return sorted(path for path, is_file in listed.items() if is_file and not _is_hidden(path[len(root) :]))


def _once(paths: list[str], links: Sequence[Path]) -> list[str]:
    """Return each file once, by its shortest path: a link such as `latest.parquet` leads to another one."""
    if not links:
        return paths
    kept: dict[Path, str] = {}
    for path in sorted(paths, key=lambda one: (len(one), one)):
        kept.setdefault(Path(path).resolve(), path)
    return sorted(kept.values())


def _is_hidden(relative: str) -> bool:
    parts = [part for part in relative.split("/") if part]
    # a partition column may start with an underscore
    return relative.endswith(".crc") or any(
        part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts
    )
