"""Refuses folders of Parquet files that belong to another table format, with a log that says which files count.

Such a folder, read as plain files, also gives deleted and replaced rows. It is refused whether the path names it, a
folder or a file inside it, or a folder around it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as fs

from inference.errors import SourceError
from inference.storage import Location


@dataclass(frozen=True)
class _Format:
    """A table format. Its folder has `log`; if that is a common name, `inside` matches a file in it.

    `fix`: what reads the table's rows.
    """

    name: str
    log: str
    fix: str
    inside: re.Pattern[str] | None = None


_PLAIN = "write its current rows as plain Parquet, such as "


def _duckdb(scan: str) -> str:
    return f"{_PLAIN}COPY (FROM {scan}('{{folder}}')) TO 'snapshot.parquet' in DuckDB"


def _spark(name: str) -> str:
    return f"{_PLAIN}spark.read.format('{name}').load('{{folder}}').write.parquet('snapshot') in Spark"


_FORMATS = (
    _Format("a Delta table", "_delta_log", "name it delta:{folder}, which reads its newest version"),
    _Format("a Hudi table", ".hoodie", _spark("hudi")),
    _Format("part of a Hudi table", ".hoodie_partition_metadata", _spark("hudi")),
    _Format(
        "an Iceberg table",
        "metadata",
        "name it iceberg:CATALOG.NAMESPACE.TABLE, by a catalog of pyiceberg's configuration",
        re.compile(r"v?\d.*\.metadata\.json(\.gz)?"),
    ),
    _Format("a Paimon table", "snapshot", _spark("paimon"), re.compile(r"snapshot-\d+")),
    _Format("the output of a Spark stream", "_spark_metadata", _spark("parquet")),
)
#: Hive's transactional tables have no log: the names of their folders say which files count. They have seven digits,
#: the first one 0; a folder with a date as its name does not match
_HIVE_FOLDER = re.compile(r"(base_0\d{6}|(delete_)?delta_0\d{6}_0\d{6}(_\d{4})?)(_v\d+)?")
_HIVE_EXPORT = _PLAIN + "CREATE TABLE snapshot STORED AS PARQUET AS SELECT * FROM … in Hive"  # noqa: S608 - words for people
#: DuckLake has its log in a database; its files have such names, and some only hold deletes
_DUCKLAKE_FILE = re.compile(r"ducklake-[0-9a-f-]{36}.*\.parquet")
_DUCKLAKE_EXPORT = _PLAIN + "COPY lake.users TO 'snapshot.parquet' in DuckDB"
#: Databricks writes files in place: a number in their names names the log of their job
_DATABRICKS_FILE = re.compile(r".*-tid-(\d+)-.*")
#: marks of other formats in the footer of each file: a copied data file has no log beside it
_FOOTER_MARKS = {
    b"iceberg.schema": ("an Iceberg table", _duckdb("iceberg_scan")),
    b"org.apache.hudi.bloomfilter": ("a Hudi table", _spark("hudi")),
    b"hoodie_min_record_key": ("a Hudi table", _spark("hudi")),
}
_UNCOMMITTED, _COMMITTED = "_temporary", "_SUCCESS"
#: so many logs of jobs in one folder are read
_MOST_LOGS = 64
#: requests to an object store at the same time
_THREADS = 16


def refuse_other_formats(
    place: Location, kept: Sequence[str], listed: Iterable[str], links: Sequence[Path] = ()
) -> None:
    """Refuse files that belong to a table of another format, or to an unfinished write.

    `kept`: the files to read; `listed`: all paths below `place`, also hidden ones; `links`: the links among them.

    Raises:
        SourceError: names the folder, the format and the fix.
    """
    names = set(listed)
    for folder, format_ in dict.fromkeys(_logs_below(names)):
        if _any_below(kept, folder):
            raise _other_format(place.at(folder).name, format_.name, format_.log, format_.fix)
    for above in (place, *_beyond(place, kept, links)):
        for folder, format_ in _logs_above(above):
            raise _other_format(place.at(folder).name, format_.name, format_.log, format_.fix)
    _refuse_hive(place, kept)
    _refuse_ducklake(place, kept)
    _refuse_databricks(place, kept, names)
    _refuse_uncommitted(place, kept, names)


def refuse_copied_file(place: Location, notes: Mapping[bytes, bytes]) -> None:
    """Refuse a copied data file of another format's table. `notes`: the metadata in its footer.

    Raises:
        SourceError: names the file, the format and the fix.
    """
    mark = next((mark for mark in _FOOTER_MARKS if mark in notes), None)
    if mark is not None:
        name, fix = _FOOTER_MARKS[mark]
        raise SourceError(
            f"{place.name} is a data file of {name} ({mark.decode()} in its footer): alone it does not tell which "
            f"of its rows are deleted or replaced; {fix.format(folder='…')}",
            field="source",
        )


def _other_format(folder: str, name: str, mark: str, fix: str) -> SourceError:
    return SourceError(
        f"{folder} is {name} ({mark}): its files also hold deleted or replaced rows; {fix.format(folder=folder)}",
        field="source",
    )


def _any_below(paths: Iterable[str], folder: str) -> bool:
    return any(path.startswith(f"{folder}/") for path in paths)


def _logs_below(names: Iterable[str]) -> Iterator[tuple[str, _Format]]:
    """Yield the tables of other formats among the names; a table may come several times."""
    for format_ in _FORMATS:
        for name in names:
            if f"/{format_.log}" not in name:
                continue
            parts = name.split("/")
            for number, part in enumerate(parts):
                rest = parts[number + 1 :]
                if part == format_.log and (not format_.inside or (rest and format_.inside.fullmatch(rest[0]))):
                    yield "/".join(parts[:number]), format_


def _logs_above(place: Location) -> Iterator[tuple[str, _Format]]:
    """Yield the tables of other formats around the place, the innermost first."""
    path = str(Path(place.path).resolve()) if place.is_local else place.path
    parts = path.rstrip("/").split("/")
    folders = [folder for count in range(len(parts) - 1, 0, -1) if (folder := "/".join(parts[:count]))]
    candidates = [(folder, format_) for folder in folders for format_ in _FORMATS]
    with ThreadPoolExecutor(1 if place.is_local else _THREADS, thread_name_prefix="formats") as pool:
        found = list(pool.map(lambda one: _has_log(place.filesystem, *one), candidates))
    yield from (one for one, is_there in zip(candidates, found, strict=True) if is_there)


def _beyond(place: Location, kept: Sequence[str], links: Sequence[Path]) -> Iterator[Location]:
    """Yield the targets of links to files to read: they are in other folders than the path."""
    if not links:
        return
    folders = {os.path.dirname(path) for path in kept}  # noqa: PTH120 - of a hundred thousand files
    used = {str(parent) for folder in folders for parent in (Path(folder), *Path(folder).parents)} | set(kept)
    targets = [link.resolve() for link in links if str(link) in used]
    # one check of the folders above is enough for all files of a folder
    yield from (
        place.at(path) for path in dict.fromkeys(str(one if one.is_dir() else one.parent / "*") for one in targets)
    )


def _has_log(filesystem: Any, folder: str, format_: _Format) -> bool:
    log = f"{folder}/{format_.log}"
    try:
        kind = filesystem.get_file_info(log).type
        if format_.inside is None or kind != fs.FileType.Directory:
            return bool(kind != fs.FileType.NotFound and format_.inside is None)
        names = [info.base_name for info in filesystem.get_file_info(fs.FileSelector(log))]
    except OSError:
        return False  # a reader of a table's folder may have no right to list others
    return any(format_.inside.fullmatch(name) for name in names)


def _refuse_hive(place: Location, kept: Sequence[str]) -> None:
    for path in kept:
        folders = path.split("/")[:-1]
        for number, folder in enumerate(folders):
            if _HIVE_FOLDER.fullmatch(folder):
                table = place.at("/".join(folders[:number])).name
                raise _other_format(table, "a transactional Hive table", folder, _HIVE_EXPORT)


def _refuse_ducklake(place: Location, kept: Sequence[str]) -> None:
    for path in kept:
        folder, _, name = path.rpartition("/")
        if _DUCKLAKE_FILE.fullmatch(name):
            raise _other_format(place.at(folder).name, "a table of a DuckLake", name, _DUCKLAKE_EXPORT)


def _refuse_databricks(place: Location, kept: Sequence[str], names: set[str]) -> None:
    """Refuse files of Databricks' jobs that have not ended, and files that a later job has replaced.

    https://docs.databricks.com/en/archive/legacy/dbio-commit.html
    """
    by_folder: dict[str, set[str]] = {}
    for path in kept:
        folder, _, name = path.rpartition("/")
        if match := _DATABRICKS_FILE.fullmatch(name):
            by_folder.setdefault(folder, set()).add(match[1])
    for folder, jobs in by_folder.items():
        for job in sorted(jobs):
            if f"{folder}/_started_{job}" in names and f"{folder}/_committed_{job}" not in names:
                raise SourceError(
                    f"{place.at(folder).name} holds files of a Databricks job that has not ended (_started_{job}, "
                    f"no _committed_{job}): wait for it; if it failed, VACUUM removes them",
                    field="source",
                )
        logs = sorted(name for name in names if name.startswith(f"{folder}/_committed_"))
        removed = {
            f"{folder}/{name}" for log in logs[: _MOST_LOGS if len(logs) > 1 else 0] for name in _removed(place, log)
        }
        if gone := sorted(removed.intersection(kept)):
            raise _other_format(
                place.at(folder).name,
                "written by several Databricks jobs",
                gone[0].rpartition("/")[2],
                _spark("parquet"),
            )


def _removed(place: Location, log: str) -> list[str]:
    """Return the names of the files that a Databricks job has replaced."""
    try:
        with place.filesystem.open_input_stream(log) as opened:
            content = json.loads(opened.read())
    except (OSError, ValueError):
        return []  # such as the log of a VACUUM, which is no JSON
    return [name for name in content.get("removed", ()) if isinstance(name, str)] if isinstance(content, dict) else []


def _refuse_uncommitted(place: Location, kept: Sequence[str], names: set[str]) -> None:
    for path in (place.path, *kept):
        folder, found, _ = f"{path}/".partition(f"/{_UNCOMMITTED}/")
        if found:
            message = f"{place.at(path).name} lies in {_UNCOMMITTED}, where Spark writes files that do not count yet"
            raise SourceError(f"{message}: give {place.at(folder).name}, once the job has ended", field="source")
    writing = {f"{name}/".partition(f"/{_UNCOMMITTED}/")[0] for name in names if f"/{_UNCOMMITTED}/" in f"{name}/"}
    for folder in sorted(writing):
        if f"{folder}/{_COMMITTED}" not in names and _any_below(kept, folder):
            message = (
                f"{place.at(folder).name} holds {_UNCOMMITTED} and no {_COMMITTED}: a Spark job has not ended its write"
            )
            raise SourceError(f"{message}; wait for it, or write the table anew if the job failed", field="source")
