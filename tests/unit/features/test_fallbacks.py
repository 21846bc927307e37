"""Fallbacks over a table in memory: their order, what fails, what is remembered, what is counted. SQLite is real."""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference.errors import SettingsError
from inference.features import Feature, FeatureContract, FeatureGatherer, Gathered, Vectoriser
from inference.features.fallback_sources import FunctionSource, SqlSource
from inference.features.fallbacks import REST_S, FallbackChain, GuardedSource
from inference.schema import DType, Signature, TensorSpec
from inference.settings import FunctionFallback, ModelSettings, Settings, SqlFallback, load_settings
from inference.store import Table
from tests.support.waiting import wait_for

NOW = float(int(time.time()))
CONTRACT = FeatureContract((Feature("x", DType.FLOAT32), Feature("n", DType.INT64, default=7)))
SIGNATURE = Signature((TensorSpec("in", DType.FLOAT32, (2,)),), (TensorSpec("out", DType.FLOAT32),))


class FakeKnower:
    """Knows what it is given; fails while `error` is set, and only ends when `hold` is."""

    def __init__(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self.rows = rows
        self.asked: list[list[str]] = []
        self.error: Exception | None = None
        self.hold: threading.Event | None = None

    def prepare(self) -> None:
        if self.error:
            raise self.error

    def fetch(self, entity_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        self.asked.append(list(entity_ids))
        if self.hold:
            self.hold.wait(5)
        if self.error:
            raise self.error
        return {key: self.rows[key] for key in entity_ids if key in self.rows}

    def close(self) -> None:
        if self.hold:
            self.hold.set()


def settings_of(name: str, **more: Any) -> FunctionFallback:
    return FunctionFallback.model_validate({"kind": "function", "name": name, "function": "a:b", "timeout": 60, **more})


class Room:
    def __init__(self, table: Table) -> None:
        self.table = table
        self.counts: Counter[str] = Counter()
        self.members: list[GuardedSource] = []
        self.event_time_column: str | None = None

    def add(self, name: str, source: Any, **more: Any) -> Any:
        self.members.append(GuardedSource(settings_of(name, **more), source))
        return source

    @property
    def chain(self) -> FallbackChain:
        return FallbackChain(self.members, event_time_column=self.event_time_column, count=self.counts.update)

    def gather(self, *entity_ids: str) -> Gathered:
        gatherer = FeatureGatherer(self.table, Vectoriser(CONTRACT, SIGNATURE), self.chain)
        return gatherer.gather(entity_ids, now=NOW)


@pytest.fixture
def room(new_table: Callable[[], Table]) -> Iterator[Room]:
    room = Room(new_table())
    yield room
    for member in room.members:
        member.close()


def xs(gathered: Gathered) -> list[float]:
    values: list[float] = gathered.rows.block["x"].tolist()
    return values


def test_each_is_asked_for_what_those_before_it_did_not_know(room: Room) -> None:
    first = room.add("first", FakeKnower({"a": {"x": 1, "n": 2}}))
    second = room.add("second", FakeKnower({"a": {"x": 9}, "b": {"x": 3.5, "extra": "e"}}))
    gathered = room.gather("a", "b", "c")
    assert (xs(gathered)[:2], gathered.rows.block["n"].tolist()[:2]) == ([1.0, 3.5], [2, 7])
    assert (first.asked, second.asked) == ([["a", "b", "c"]], [["b", "c"]])
    assert (gathered.known.tolist(), gathered.doubtful.tolist()) == ([True, True, False], [False] * 3)
    assert gathered.groups["features"].source == ["fallback:first", "fallback:second", None]
    assert room.counts == {"first:found": 1, "first:not_found": 2, "second:found": 1, "second:not_found": 1}


def test_where_nothing_is_left_nobody_else_is_asked(room: Room) -> None:
    room.add("first", FakeKnower({"a": {"x": 1}, "b": {"x": 2}}))
    second = room.add("second", FakeKnower({"a": {"x": 9}}))
    assert xs(room.gather("a", "b")) == [1, 2]
    assert second.asked == []
    assert room.counts == {"first:found": 2}


def test_a_call_that_has_ended_makes_room_for_the_next(room: Room) -> None:
    source = room.add("only", FakeKnower({f"e{n}": {"x": n} for n in range(5)}), pool=1)
    for n in range(5):
        assert xs(room.gather(f"e{n}")) == [n]
    source.error = ValueError("no")
    assert room.gather("other").doubtful.tolist() == [True]
    assert source.asked == [["e0"], ["e1"], ["e2"], ["e3"], ["e4"], ["other"]]


def test_the_time_of_values_that_do_not_fit_is_not_that_of_another_fallbacks_values(room: Room) -> None:
    room.event_time_column = "at"
    old = datetime.fromtimestamp(NOW - 500, UTC)
    room.add("wrong", FakeKnower({"a": {"x": 1, "n": Decimal(2**63), "at": old}}))
    room.add("right", FakeKnower({"a": {"x": 2, "n": 3}}))
    gathered = room.gather("a")
    assert (xs(gathered), gathered.groups["features"].source) == ([2], ["fallback:right"])
    assert gathered.as_of.tolist() == [NOW]


def test_one_that_fails_is_passed_over_and_what_is_not_found_then_is_in_doubt(room: Room) -> None:
    down = room.add("down", FakeKnower({"a": {"x": 1}}))
    down.error = ConnectionError("no route")
    room.add("up", FakeKnower({"b": {"x": 2}}))
    gathered = room.gather("a", "b")
    assert xs(gathered)[1] == 2.0
    assert (gathered.known.tolist(), gathered.doubtful.tolist()) == ([False, True], [True, False])
    assert room.counts == {"down:failed": 2, "up:found": 1, "up:not_found": 1}


def test_one_that_failed_is_left_alone_for_a_moment(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    source = room.add("down", FakeKnower({"a": {"x": 1}}))
    source.error = ConnectionError("no route")
    assert room.gather("a").doubtful.all()
    source.error = None
    assert room.gather("a").doubtful.all()
    assert len(source.asked) == 1
    later = time.monotonic() + 2 * REST_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert xs(room.gather("a")) == [1.0]


def test_one_that_is_too_slow_is_not_waited_for_and_not_asked_without_end(room: Room) -> None:
    slow = FakeKnower({"a": {"x": 1}})
    slow.hold = threading.Event()
    room.add("slow", slow, timeout="20ms", pool=1)
    assert room.gather("a").doubtful.all()  # or it would never end: the call is held until the test is over
    room.members[0]._rests_until = 0.0
    assert room.gather("a").doubtful.all(), "its one call is still on its way"
    assert len(slow.asked) == 1


def test_what_was_said_is_remembered_for_a_moment_also_that_nothing_is_known(room: Room) -> None:
    source = room.add("one", FakeKnower({"a": {"x": 1}}))
    for _ in range(2):
        assert room.gather("a", "b").known.tolist() == [True, False]
    assert source.asked == [["a", "b"]]
    assert room.counts == {"one:found": 1, "one:not_found": 1, "one:cached": 2}


def test_the_memory_is_bounded(room: Room) -> None:
    source = room.add("one", FakeKnower({"a": {"x": 1}, "b": {"x": 2}}), cache_entities=1)
    for entity_id in ("a", "b", "a"):
        room.gather(entity_id)
    assert source.asked == [["a"], ["b"], ["a"]]


@pytest.mark.parametrize("value", ["text", [1.0, 2.0]], ids=str)
def test_values_that_do_not_fit_the_contract_are_passed_over(room: Room, value: Any) -> None:
    room.add("wrong", FakeKnower({"a": {"x": value}}))
    room.add("right", FakeKnower({"a": {"x": 5}}))
    assert xs(room.gather("a")) == [5.0]
    assert room.counts == {"wrong:invalid": 1, "right:found": 1}


def test_an_integer_out_of_range_spoils_its_own_row_only(room: Room) -> None:
    narrow = FeatureContract((Feature("x", DType.FLOAT32), Feature("n", DType.INT8, default=7)))
    room.add("wrong", FakeKnower({"a": {"x": 1, "n": 1000}, "b": {"x": 2, "n": 3}}))
    chain = FallbackChain(room.members, event_time_column=None, count=room.counts.update)
    gathered = FeatureGatherer(room.table, Vectoriser(narrow, SIGNATURE), chain).gather(["a", "b"], now=NOW)
    assert gathered.known.tolist() == [False, True]


def test_an_integer_that_no_column_can_hold_is_passed_over(room: Room) -> None:
    room.add("wrong", FakeKnower({"a": {"x": 1, "n": 2**64}}))
    room.add("right", FakeKnower({"a": {"x": 2, "n": 3}}))
    gathered = room.gather("a")
    assert (xs(gathered), gathered.groups["features"].source) == ([2], ["fallback:right"])
    assert room.counts == {"wrong:invalid": 1, "right:found": 1}


def test_values_are_as_old_as_they_say_and_of_now_without_a_word(room: Room) -> None:
    room.event_time_column = "at"
    at = datetime.fromtimestamp(NOW - 500, UTC)
    ahead = datetime.fromtimestamp(NOW + 500, UTC)
    room.add("one", FakeKnower({"a": {"x": 1, "at": at}, "b": {"x": 2, "at": None}, "c": {"x": 3, "at": ahead}}))
    gathered = room.gather("a", "b", "c")
    assert gathered.as_of.tolist() == [NOW - 500, NOW, NOW]
    assert gathered.groups["features"].as_of.tolist() == [NOW - 500, NOW, NOW]


def test_a_missing_value_takes_the_default_or_is_an_error(room: Room) -> None:
    room.add("one", FakeKnower({"a": {"x": 1.0, "n": None}, "b": {"x": None}}))
    gathered = room.gather("a", "b")
    assert gathered.rows.block["n"].tolist() == [7, 7]
    assert gathered.rows.rejected.tolist() == [False, True]


# --- SQLite ------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE users (entity_id TEXT, number INTEGER, x NUMERIC, n INTEGER)")
        connection.executemany(
            "INSERT INTO users VALUES (?, ?, ?, ?)",
            [("a", 1, 1.5, 2), ("it's", 2, 2, None), ("twice", 3, 3, 3), ("twice", 3, 3, 3)],
        )
    connection.close()
    return file


def sql(database: Path, query: str, **more: Any) -> SqlSource:
    settings = {"kind": "sql", "name": "db", "url": f"sqlite:///{database}", "query": query, "timeout": 60, **more}
    return SqlSource(SqlFallback.model_validate(settings), "entity_id")


BY_ID = "SELECT entity_id, x, n FROM users WHERE entity_id IN :ids"


def test_a_query_s_columns_are_features_by_name(room: Room, database: Path) -> None:
    room.add("db", sql(database, BY_ID))
    gathered = room.gather("a", "nobody", "it's", "' OR 1=1 --")
    assert gathered.known.tolist() == [True, False, True, False]
    assert xs(gathered)[::2] == [1.5, 2.0]
    assert gathered.rows.block["n"].tolist()[::2] == [2, 7]


def test_integer_ids_are_compared_as_integers(room: Room, database: Path) -> None:
    query = "SELECT number AS entity_id, x FROM users WHERE number IN :ids"
    room.add("db", sql(database, query, id_type="integer"))
    gathered = room.gather("1", "01", "+1", "one", "99999999999999999999", "2")
    assert gathered.known.tolist() == [True, False, False, False, False, True]
    assert not gathered.doubtful.any()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT x FROM users WHERE entity_id IN :ids", "no column 'entity_id'"),
        ("SELECT entity_id, x FROM nowhere WHERE entity_id IN :ids", "no such table"),
        ("SELECT entity_id, x FROM users WHERE entity_id IN :ids OR entity_id = 'twice'", "several rows of 'twice'"),
    ],
)
def test_a_query_that_cannot_be_used_is_an_outage_and_the_log_says_why(
    room: Room, database: Path, query: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    room.add("db", sql(database, query))
    assert room.gather("a").doubtful.all()
    assert says in "".join(capsys.readouterr())


# --- functions ---------------------------------------------------------------------------------------

MODULE = """
import pandas as pd

def by_column(ids):
    return pd.DataFrame({"entity_id": ids, "x": [float(len(one)) for one in ids]})

def by_index(ids):
    return pd.DataFrame({"x": [float(len(one)) for one in ids]}, index=ids)

def twice(ids):
    return pd.DataFrame({"entity_id": [*ids, *ids], "x": 1.0})

def nothing(ids):
    return None

def raising(ids):
    raise RuntimeError("secret trouble")

value = 1
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Callable[[str], FunctionSource]]:
    (tmp_path / "shop_features.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        yield lambda name: FunctionSource(f"shop_features:{name}", "entity_id", tmp_path)
        sys.modules.pop("shop_features", None)


@pytest.mark.parametrize("name", ["by_column", "by_index"])
def test_a_function_of_the_deployment_s_folder_is_asked(
    room: Room, module: Callable[[str], FunctionSource], name: str
) -> None:
    room.add("f", module(name))
    assert xs(room.gather("abc", "abcd")) == [3.0, 4.0]


def test_one_that_is_prepared_has_imported_its_function_before_it_is_asked(
    room: Room, module: Callable[[str], FunctionSource]
) -> None:
    room.add("f", module("by_column"))
    room.chain.prepare()
    wait_for(lambda: hasattr(sys.modules.get("shop_features"), "value"), "the import")


def test_one_that_is_prepared_has_connected(room: Room, database: Path) -> None:
    room.add("db", sql(database, BY_ID))
    room.chain.prepare()
    wait_for(lambda: str(database) in {file.path for file in psutil.Process().open_files()}, "the connection")


def test_one_that_could_not_be_prepared_is_asked_all_the_same(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    source = room.add("f", FakeKnower({"a": {"x": 1.5}}))
    source.error = RuntimeError("not there yet")
    said: list[str] = []
    room.chain.prepare()
    wait_for(lambda: said.extend(capsys.readouterr()) or "fallback.not_ready" in "".join(said), "the warning")
    source.error = None
    assert xs(room.gather("a")) == [1.5]


@pytest.mark.parametrize("name", ["twice", "nothing", "raising", "value", "gone"])
def test_a_function_that_cannot_be_used_is_an_outage(
    room: Room, module: Callable[[str], FunctionSource], name: str
) -> None:
    room.add("f", module(name))
    room.add("next", FakeKnower({"a": {"x": Decimal("1.5")}}))
    gathered = room.gather("a", "b")
    assert (xs(gathered)[0], gathered.doubtful.tolist()) == (1.5, [False, True])
    assert room.counts["f:failed"] == 2


# --- settings ----------------------------------------------------------------------------------------


def write(folder: Path, *lines: str) -> Path:
    file = folder / "forecache.toml"
    file.write_text("\n".join(['[models.m]\npath = "m"', "[[models.m.fallbacks]]", *lines]))
    return file


GOOD = ('kind = "sql"', 'name = "db"', 'url = "postgresql://u:sesame@h/d"', f'query = "{BY_ID}"')


def test_the_password_of_a_database_is_not_shown(tmp_path: Path) -> None:
    model: ModelSettings = load_settings(write(tmp_path, *GOOD, 'timeout = "20ms"')).models["m"]
    assert model.fallbacks[0].timeout == 0.02
    assert "sesame" not in repr(model)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ((*GOOD, "tmeout = 1"), "did you mean 'timeout'?"),
        ((*GOOD[:3], 'query = "SELECT 1"'), "must ask for the entities in :ids"),
        ((*GOOD[:3], "query = \"SELECT 1 WHERE 'a'::ids = 1\""), "must ask for the entities in :ids"),
        (('kind = "function"', 'name = "f"', 'function = "a.b"'), "write package.module:name"),
        (('kind = "sqll"', 'name = "f"'), "sql"),
        ((*GOOD, "[[models.m.fallbacks]]", *GOOD), "two fallbacks are called 'db'"),
    ],
)
def test_a_mistake_in_the_settings_is_named(tmp_path: Path, lines: tuple[str, ...], says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(write(tmp_path, *lines))
    assert says in str(raised.value)
    assert "sesame" not in str(raised.value)


def test_without_fallbacks_there_are_none() -> None:
    assert Settings.model_validate({"models": {"m": {"path": "m"}}}).models["m"].fallbacks == []
