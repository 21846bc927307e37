"""The same table in each format: a run reads the rows as they were when it was planned, and nothing else."""

from __future__ import annotations

import gzip
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from inference.errors import SourceError
from inference.sources import (
    Source,
    find_column,
    open_any,
    open_source,
    pin_source,
    read_slices,
    state_of,
    whole_slices,
)
from tests.support.lake_tables import (
    catalog_properties,
    delete_by_position,
    delete_by_value,
    delete_by_vector,
    new_catalog,
)
from tests.support.postgresql_server import PostgresServer

TEXTS = ["entity_id", "tier"]


def users(first: int = 0, count: int = 40, *, of: float = 1.0) -> pa.Table:
    ids = [f"{number:04}" for number in range(first, first + count)]
    tiers = [("free", "pro", "1.10")[number % 3] for number in range(count)]
    return pa.table({"entity_id": ids, "x": [of * number for number in range(count)], "tier": tiers})


def rows(source: Source) -> list[tuple[str, float, str]]:
    columns = ["entity_id", "x", "tier"]
    found = read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=7)
    return sorted(tuple(row[name] for name in columns) for batch in found for row in batch.to_pylist())


def expected(table: pa.Table) -> list[tuple[str, float, str]]:
    return sorted((row["entity_id"], row["x"], row["tier"]) for row in table.to_pylist())


# --- the kinds of tables: (text of the source, its rows, what overwrites it) ---

Made = tuple[str, pa.Table, Callable[[], object]]


def parquet(folder: Path) -> Made:
    path = folder / "users.parquet"
    pq.write_table(users(), path)
    return str(path), users(), lambda: None


def comma(folder: Path) -> Made:
    path = folder / "users.csv"
    csv.write_csv(users(), path)
    return str(path), users(), lambda: csv.write_csv(users(of=9.0), path)


def semicolon_compressed(folder: Path) -> Made:
    path = folder / "users.CSV.gz"
    lines = ["entity_id;x;tier", *(f'"{row["entity_id"]}";{row["x"]};{row["tier"]}' for row in users().to_pylist())]
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + "\r\n".join(lines).encode()))
    return str(path), users(), lambda: path.write_bytes(b"")


def several_csv(folder: Path) -> Made:
    first, second = users(0, 20), users(20, 20, of=0.5)
    # whole numbers in the first file, other numbers in the second
    csv.write_csv(first.set_column(1, "x", first["x"].cast(pa.int64())), folder / "1.csv")
    csv.write_csv(second, folder / "2.csv")
    return f"{folder}/*.csv", pa.concat_tables([first, second]), lambda: (folder / "2.csv").unlink()


def delta(folder: Path) -> Made:
    write_deltalake(folder / "a table", users(0, 30))
    write_deltalake(folder / "a table", users(30, 10), mode="append")
    table = pa.concat_tables([users(0, 30), users(30, 10)])
    return (
        f"delta:{folder}/a table",
        table,
        lambda: write_deltalake(folder / "a table", users(of=9.0), mode="overwrite"),
    )


def delta_in_partitions(folder: Path) -> Made:
    write_deltalake(folder / "t", users(), partition_by=["tier"])
    return f"delta:{folder}/t", users(), lambda: write_deltalake(folder / "t", users(1), mode="overwrite")


def delta_at_a_version(folder: Path) -> Made:
    write_deltalake(folder / "t", users())
    write_deltalake(folder / "t", users(of=5.0), mode="overwrite")
    return f"delta:{folder}/t@0", users(), lambda: write_deltalake(folder / "t", users(of=9.0), mode="overwrite")


def delta_with_a_later_column(folder: Path) -> Made:
    write_deltalake(folder / "t", users(0, 10).drop_columns(["tier"]))
    write_deltalake(folder / "t", users(10, 10), mode="append", schema_mode="merge")
    early = users(0, 10).set_column(2, "tier", pa.nulls(10, pa.string()))
    return f"delta:{folder}/t", pa.concat_tables([early, users(10, 10)]), lambda: None


def delta_with_deleted_rows(folder: Path) -> Made:
    write_deltalake(folder / "t", users())
    delete_by_vector(folder / "t", [0, 7, 39])
    kept = users().filter(pa.array([number not in (0, 7, 39) for number in range(40)]))
    return f"delta:{folder}/t", kept, lambda: None


def delta_with_mapped_columns(folder: Path) -> Made:
    write_deltalake(folder / "t", users(), configuration={"delta.columnMapping.mode": "name"})
    return f"delta:{folder}/t", users(), lambda: None


def iceberg(folder: Path) -> Made:
    table = new_catalog(folder / "catalog").create_table("lake.users", schema=users().schema)
    table.append(users(0, 30))
    table.append(users(30, 10))
    return (
        "iceberg:test.lake.users",
        pa.concat_tables([users(0, 30), users(30, 10)]),
        lambda: table.overwrite(users(of=9.0)),
    )


def iceberg_with_a_deleted_row(folder: Path) -> Made:
    properties = {"format-version": "2"}
    table = new_catalog(folder / "catalog").create_table("lake.users", schema=users().schema, properties=properties)
    table.append(users())
    delete_by_position(table, 7)
    kept = users().filter(pa.array([number != 7 for number in range(40)]))
    return "iceberg:test.lake.users", kept, lambda: table.overwrite(users(of=9.0))


def iceberg_with_a_renamed_column(folder: Path) -> Made:
    old = users().rename_columns(["entity_id", "score", "tier"])
    table = new_catalog(folder / "catalog").create_table("lake.users", schema=old.schema)
    table.append(old)
    with table.update_schema() as schema:
        schema.rename_column("score", "x")
    return "iceberg:test.lake.users", users(), lambda: table.overwrite(users(of=9.0))


def query_of_sqlite(folder: Path) -> Made:
    with closing(sqlite3.connect(folder / "shop.db")) as database, database:
        database.execute("CREATE TABLE users (entity_id TEXT, x REAL, tier TEXT)")
        values = [tuple(row.values()) for row in users().to_pylist()]
        database.executemany("INSERT INTO users VALUES (?, ?, ?)", values)
    write_query(folder, "sqlite:///shop.db", "SELECT * FROM users WHERE x < 30")

    def overwrite() -> None:
        with closing(sqlite3.connect(folder / "shop.db")) as database, database:
            database.execute("UPDATE users SET x = 1")

    return f"sql:{folder}/users.toml", users(0, 30), overwrite


def query_of_duckdb(folder: Path) -> Made:
    duckdb_users(folder)
    write_query(folder, "duckdb:///shop.duckdb", "-- cheap ones\nWITH u AS (SELECT * FROM users) SELECT * FROM u; ")

    def overwrite() -> None:
        with duckdb.connect(folder / "shop.duckdb") as database:
            database.execute("UPDATE users SET x = 1")

    return f"sql:{folder}/users.toml", users(0, 30), overwrite


def duckdb_users(folder: Path) -> None:
    table = users(0, 30)
    with duckdb.connect(folder / "shop.duckdb") as database:
        database.register("given", table)
        database.execute("CREATE TABLE users AS SELECT * FROM given")


def write_query(folder: Path, url: str, query: str) -> None:
    (folder / "users.toml").write_text(f"url = {json.dumps(url)}\nquery = {json.dumps(query)}\n")


KINDS = [
    parquet, comma, semicolon_compressed, several_csv, delta, delta_in_partitions, delta_at_a_version,
    delta_with_a_later_column, delta_with_deleted_rows, delta_with_mapped_columns, iceberg, iceberg_with_a_deleted_row,
    iceberg_with_a_renamed_column, query_of_sqlite, query_of_duckdb,
]  # fmt: skip
#: their data files are read as they are
PLAIN = {parquet, delta, delta_in_partitions, delta_at_a_version, iceberg}


@pytest.fixture(autouse=True)
def catalogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyiceberg reads its configuration once, when it is imported."""
    from pyiceberg import catalog

    known = {"catalog": {"test": catalog_properties(tmp_path / "catalog")}}
    monkeypatch.setattr(catalog._ENV_CONFIG, "config", known)


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_stay_as_they_were_when_the_table_was_pinned(kind: Callable[[Path], Made], tmp_path: Path) -> None:
    path, table, overwrite = kind(tmp_path)

    pinned = pin_source(path, str(tmp_path / "snapshots"), as_text=TEXTS)
    overwrite()

    assert rows(pinned) == expected(table)
    again = open_source(pinned.path, as_text=TEXTS)
    assert [file.identity for file in again.files] == [file.identity for file in pinned.files]
    assert rows(again) == expected(table)
    assert pinned.name.partition("@")[0] == path.partition("@")[0]
    assert (tmp_path / "snapshots").exists() is (kind not in PLAIN)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not parquet])
def test_a_table_for_this_process_leaves_nothing_behind(
    kind: Callable[[Path], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path, table, _ = kind(tmp_path)

    source = open_any(path, as_text=TEXTS)
    assert rows(source) == expected(table)
    assert open_any(path, as_text=TEXTS, most_rows=5).rows in (5, table.num_rows)
    del source

    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("kind", [comma, delta, iceberg])
def test_the_state_of_a_table_changes_with_its_rows(kind: Callable[[Path], Made], tmp_path: Path) -> None:
    path, _, overwrite = kind(tmp_path)
    before = state_of(path)
    assert state_of(path) == before
    overwrite()
    assert state_of(path) != before


def refused(path: str, tmp_path: Path) -> str:
    with pytest.raises(SourceError) as error:
        pin_source(path, str(tmp_path / "snapshots"), as_text=TEXTS)
    return error.value.message.replace(str(tmp_path), "…")


# --- CSV ---


def test_ids_and_text_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("entity_id,zip,tier,count\n007,01234,1.10,NA\n008,9,2,3\n")

    source = pin_source(f"{tmp_path}/t.csv", str(tmp_path / "snapshots"), as_text=TEXTS)

    columns = ["entity_id", "zip", "tier", "count"]
    [batch] = read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=9)
    assert batch.to_pydict() == {
        "entity_id": ["007", "008"], "zip": ["01234", "9"], "tier": ["1.10", "2"], "count": [None, 3]
    }  # fmt: skip


def test_empty_text_is_missing_and_an_index_without_a_name_has_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(',tier,x,land\nu1,"",NULL,NA\nu2,pro,1,\nu3,pro,2,DE\n')

    source = pin_source(f"{tmp_path}/t.csv", str(tmp_path / "snapshots"), as_text=["tier"])

    columns = ["__index_level_0__", "tier", "x", "land"]
    [batch] = read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=9)
    assert batch.to_pydict() == {
        "__index_level_0__": ["u1", "u2", "u3"], "tier": [None, "pro", "pro"], "x": [None, 1, 2],
        "land": ["NA", None, "DE"],
    }  # fmt: skip


def test_text_in_a_column_of_numbers_is_named_to_those_who_need_numbers(tmp_path: Path) -> None:
    lines = [f"{number},{number},{number}" for number in range(900_000)]
    text = "\n".join(["entity_id,x,note", *lines, "900000,abc,abc", "900001,2,3"])
    (tmp_path / "t.csv").write_text(text)

    source = pin_source(f"{tmp_path}/t.csv", str(tmp_path / "snapshots"), as_text=TEXTS)

    assert source.rows == 900_002
    with pytest.raises(SourceError) as error:
        find_column(source.schema, "x", source.name)
    assert error.value.message.replace(str(tmp_path), "…") == (
        "column 'x' holds values of type int64, but …/t.csv, row 900,002 has 'abc' (the header is row 1): "
        "correct that value, or leave it empty"
    )


def test_values_may_hold_line_breaks_wherever_the_first_look_ends(tmp_path: Path) -> None:
    note = "a note\n" + "of many lines\n" * 20
    lines = ["entity_id,note,x", *(f'{number},"{note}",{number}' for number in range(3_000))]
    (tmp_path / "t.csv").write_text("\n".join(lines))

    source = pin_source(f"{tmp_path}/t.csv", str(tmp_path / "snapshots"), as_text=TEXTS)

    assert (source.rows, source.schema.names) == (3_000, ["entity_id", "note", "x"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "…/t.csv is not readable as CSV: Empty CSV file"),
        (b"entity_id,x\n", "…/t.csv has no rows: give a table of features with at least one"),
        (
            b"entity_id,x\n1,2\n3\n",
            "…/t.csv is not readable as CSV: CSV parse error: Row #3: Expected 2 columns, got 1: 3",
        ),
        (
            b"entity_id,tier\n1,M\xfcnchen\n",
            "…/t.csv is not readable as CSV: In CSV column #1: Row #2: CSV conversion error to large_string: "
            "invalid UTF8 data; write it in UTF-8",
        ),
        (b"PAR1\x00\x01", "…/t.csv is Parquet and called CSV: rename it to t.parquet"),
        ("entity_id,x\n1,2\n".encode("utf-16"), "…/t.csv is text in UTF-16: write it in UTF-8"),
    ],
)
def test_what_is_no_csv_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert refused(f"{tmp_path}/t.csv", tmp_path) == message


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("entity_id,x\n1,2\n")
    (tmp_path / "2.csv").write_text("entity_id,y\n1,2\n")
    assert refused(f"{tmp_path}/*.csv", tmp_path) == "…/2.csv has other columns than the first file: entity_id, y"


# --- Delta and Iceberg ---


def test_a_version_whose_files_were_vacuumed_is_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", users())
    write_deltalake(tmp_path / "t", users(of=2.0), mode="overwrite")
    DeltaTable(tmp_path / "t").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    message = refused(f"delta:{tmp_path}/t@0", tmp_path)
    assert message.startswith("delta:…/t@0: a data file of this version is gone; VACUUM")


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("delta:{}/nowhere", "delta:…/nowhere cannot be read: "),
        ("delta:{}/t@7", "delta:…/t@7 cannot be read: .*; the newest version is 0"),
        ("delta:{}/plain", "delta:…/plain cannot be read: .* for a folder of plain Parquet files leave delta: out"),
        (
            "iceberg:test.lake.nobody",
            r"iceberg:test.lake.nobody cannot be read: .*; correct the name, or .* \(PYICEBERG_CATALOG__TEST__URI\)",
        ),
        ("iceberg:test.users", "iceberg:test.users cannot be read: .*; write iceberg:CATALOG.NAMESPACE.TABLE"),
        ("iceberg:other.lake.users", "iceberg:other.lake.users cannot be read: .*; no such catalog is configured here"),
        ("iceberg:test", "iceberg:test names no table: write iceberg:CATALOG.NAMESPACE.TABLE"),
        ("iceberg:test.lake.users@5", "iceberg:test.lake.users@5 is gone: its snapshot was expired"),
    ],
)
def test_a_table_or_a_version_that_is_not_there_is_refused_by_name(text: str, begins: str, tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", users())
    iceberg(tmp_path)
    (tmp_path / "plain").mkdir()
    pq.write_table(users(), tmp_path / "plain" / "a.parquet")
    assert re.match(begins, refused(text.format(tmp_path), tmp_path))


def test_equality_deletes_are_refused_by_name(tmp_path: Path) -> None:
    properties = {"format-version": "2"}
    table = new_catalog(tmp_path / "catalog").create_table("lake.users", schema=users().schema, properties=properties)
    table.append(users())
    delete_by_value(table, "entity_id", "0001")
    assert "equality deletes" in refused("iceberg:test.lake.users", tmp_path)


def test_a_delta_folder_without_its_prefix_names_the_way_in(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", users())
    with pytest.raises(SourceError, match=r"is a Delta table .*; name it delta:.*/t, which reads its newest version"):
        open_source(str(tmp_path / "t"))


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    assert refused(f"delta:{tmp_path}/t", tmp_path) == (
        "delta:…/t needs deltalake: pip install 'forecache[delta]' on this machine"
    )


# --- queries ---


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server.create()
    finally:
        server.stop()


@pytest.mark.slow
def test_a_query_of_postgresql_is_read_as_it_was_and_may_not_write(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.sql(
        "CREATE TABLE users AS SELECT lpad(i::text, 6, '0') AS entity_id, i::float8 AS x, 'free' AS tier, "
        "now() AS at FROM generate_series(0, 199999) AS i"
    )
    monkeypatch.setenv("SHOP_URL", postgres.url)
    (tmp_path / "users.toml").write_text('url_variable = "SHOP_URL"\nquery = "SELECT * FROM users"\n')
    source = pin_source(f"sql:{tmp_path}/users.toml", str(tmp_path / "snapshots"), as_text=TEXTS)
    postgres.sql("UPDATE users SET x = 0")
    assert rows(source) == [(f"{number:06}", float(number), "free") for number in range(200_000)]

    write_query(
        tmp_path, postgres.url,
        "SELECT a.entity_id::numeric AS entity_id, a.entity_id::numeric / 3 AS x, interval '1 day' AS wait, "
        "a.tier, b.tier FROM users a JOIN users b USING (entity_id) -- all of it\nWHERE a.entity_id = '000007'; \n",
    )  # fmt: skip
    source = pin_source(f"sql:{tmp_path}/users.toml", str(tmp_path / "snapshots"), as_text=TEXTS)
    [batch] = read_slices(source.files, whole_slices(source.files), columns=["entity_id", "x"], batch_rows=9)
    assert batch.to_pylist() == [{"entity_id": "7", "x": 7 / 3}]
    for column, message in [("wait", "cast it in the query"), ("tier", "the query returns 2 columns 'tier'")]:
        with pytest.raises(SourceError, match=message):
            find_column(source.schema, column, "t")

    for query, words in [
        ("DELETE FROM users", "read-only transaction"),
        ("SELECT entity_id, 1 / (150000 - entity_id::int) AS x FROM users", "division by zero"),
        ("SELECT nothing FROM users", 'column "nothing" does not exist'),
    ]:
        write_query(tmp_path, postgres.url, query)
        assert words in refused(f"sql:{tmp_path}/users.toml", tmp_path), query


def test_a_query_of_duckdb_that_cannot_be_read_says_why_and_writes_nothing(tmp_path: Path) -> None:
    duckdb_users(tmp_path)
    source = f"sql:{tmp_path}/users.toml"
    for query, words in [
        ("SELECT * FROM nobody", "Table with name nobody does not exist"),
        (f"COPY users TO '{tmp_path}/out.csv'", "the query of DuckDB must be one SELECT"),
        ("SELECT 1; SELECT 2", "the query of DuckDB must be one SELECT"),
        ("DROP TABLE users", "the query of DuckDB must be one SELECT"),
        (
            "SELECT i AS entity_id, CASE WHEN i = 900000 THEN error('half-way') END AS x FROM range(1000000) r(i)",
            "half-way",
        ),
    ]:
        write_query(tmp_path, "duckdb:///shop.duckdb", query)
        assert words in refused(source, tmp_path), query
    assert not (tmp_path / "out.csv").exists()

    write_query(tmp_path, "duckdb:///shop.duckdb", "SELECT * FROM users")
    hold = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(tmp_path / "shop.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        told = refused(source, tmp_path)
        assert "Could not set lock on file" in told
        assert told.endswith("; another process has the database open to write: close it there, or query a copy")
        holder.communicate()
    assert pin_source(source, str(tmp_path / "snapshots")).rows == 30

    write_query(tmp_path, "duckdb:///no.duckdb", "SELECT 1")
    assert "there is no database …/no.duckdb" in refused(source, tmp_path)
    assert not (tmp_path / "no.duckdb").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('query = "SELECT 1"', "…/users.toml: give either url or url_variable, the name of an environment variable"),
        ('url = "sqlite:///shop.db"', "…/users.toml: query: "),
        (
            'url = "mysql://a"\nquery = "SELECT 1"',
            "…/users.toml: the url of a database begins with one of postgresql://, sqlite://",
        ),
        (
            'url_variable = "NO_URL"\nquery = "SELECT 1"',
            "…/users.toml: the environment variable NO_URL is not set",
        ),
        ('url = "sqlite:///no.db"\nquery = "SELECT 1"', "…/users.toml: there is no database …/no.db: correct the url"),
        ('url = "sqlite:///a.db"\nqery = "SELECT 1"', "…/users.toml: query: is missing"),
        (
            'url = "sqlite:///a.db"\nquery = "SELECT 1"\nqery = ""',
            "…/users.toml: qery: no such key; known: query, url, url_variable",
        ),
        ('url = "postgresql://u:hush-12@127.0.0.1:1/x"\nquery = "SELECT 1"', "sql:…/users.toml cannot be read: "),
        ("query", "…/users.toml is not readable as a query in TOML: "),
    ],
)
def test_what_is_wrong_with_a_query_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "users.toml").write_text(text)
    told = refused(f"sql:{tmp_path}/users.toml", tmp_path)
    assert told.startswith(message)
    assert "hush" not in told
    assert not (tmp_path / "no.db").exists()
