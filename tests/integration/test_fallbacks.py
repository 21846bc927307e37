"""Entities that are not stored are looked up in a real PostgreSQL, then by a function, then take defaults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pandas as pd
import pytest

from tests.support.models import write_features, write_sum_model
from tests.support.postgresql_server import PostgresServer
from tests.support.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

#: a secret that no log may show
PASSWORD = "sesame-street"
#: of a row of the database
AT = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
TABLES = f"""
CREATE TABLE customers (id bigint PRIMARY KEY, a double precision, b numeric, updated_at timestamptz);
INSERT INTO customers VALUES (7, 1.5, 2, '{AT.isoformat()}'), (8, NULL, 2, now());
"""
TOML = """
[models.shop]
path = "model"
features = "shop.parquet"
event_time_column = "updated_at"
[models.shop.realtime]
timeout_ms = 30000
unknown_ttl = "100ms"
[[models.shop.fallbacks]]
kind = "sql"
name = "customers"
url = "{url}"
query = "SELECT id AS entity_id, a, b, updated_at FROM customers WHERE id IN :ids"
id_type = "integer"
timeout = "20s"
cache = "1s"
[[models.shop.fallbacks]]
kind = "function"
name = "rules"
function = "shop_rules:features"
timeout = "20s"

[models.guess]
path = "guess"
features = "shop.parquet"
[models.guess.realtime]
timeout_ms = 5000
unknown_entity = "defaults"
[[models.guess.fallbacks]]
kind = "sql"
name = "customers"
url = "{url}"
query = "SELECT id AS entity_id, a, b, pg_sleep(CASE WHEN id = 99 THEN 600 END) FROM customers_or_none WHERE id IN :ids"
id_type = "integer"
timeout = "300ms"
cache = "1s"
"""
RULES = """
import pandas as pd

def features(entity_ids):
    known = [one for one in entity_ids if one.startswith("rule-")]
    return pd.DataFrame({"entity_id": known, "a": [float(len(one)) for one in known], "b": 0.5})
"""


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        server.create().sql(TABLES)
        server.sql("CREATE VIEW customers_or_none AS SELECT * FROM customers UNION SELECT 99, 0, 0, now()")
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, database: PostgresServer) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("fallbacks")
    write_sum_model(folder / "model", ["a", "b"])
    write_sum_model(folder / "guess", ["a", "b"])
    write_features(folder / "guess", [{"name": name, "dtype": "float32", "default": 100.0} for name in "ab"])
    now = pd.Timestamp.now("UTC")
    table = {"entity_id": ["1"], "a": [10.0], "b": [20.0], "updated_at": [now]}
    pd.DataFrame(table).to_parquet(folder / "shop.parquet")
    (folder / "shop_rules.py").write_text(RULES)
    url = database.url.replace("postgres@", f"postgres:{PASSWORD}@")
    with Stack(folder, TOML.replace("{url}", url)) as stack:
        stack.start("realtime", "maintenance", "api")
        stack.wait_ready()
        assert stack.cli("features", "load", "shop", "shop.parquet").returncode == 0
        yield stack


def ask(stack: Stack, entity_id: str, model: str = "shop") -> dict[str, Any]:
    answer = httpx.get(f"{stack.url}/predict/{entity_id}", params={"model": model}, timeout=40)
    body: dict[str, Any] = answer.json()
    return body


def counts(stack: Stack) -> dict[str, float]:
    """What `/metrics` says of fallbacks."""
    text = httpx.get(f"{stack.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("forecache_fallback_entities_total{")]
    return {line.partition("{")[2].partition("}")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_the_worker_has_connected_before_anyone_asks(stack: Stack, database: PostgresServer) -> None:
    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    wait_for(lambda: database.sql(others) == "2", "a connection for each model's database", 20)


def test_the_store_comes_first_then_the_database_then_the_function(stack: Stack) -> None:
    assert ask(stack, "1")["prediction"] == 30.0
    from_database = ask(stack, "7")
    assert from_database["prediction"] == 3.5
    assert datetime.fromisoformat(from_database["as_of"]) == AT, "as old as the row says"
    assert ask(stack, "rule-5")["prediction"] == 6.5
    assert ask(stack, "nobody")["code"] == "unknown-entity"
    told = counts(stack)
    assert told['fallback="customers",model="shop",outcome="found"'] == 1
    assert told['fallback="rules",model="shop",outcome="found"'] == 1
    hits = stack.cli("hits", "shop", "--json").stdout
    assert '"customers": {' in hits


def test_what_the_database_lacks_is_named(stack: Stack) -> None:
    problem = ask(stack, "8")
    assert (problem["code"], problem["field"]) == ("bad-features", "a")


def test_a_database_that_is_down_is_an_outage_and_never_an_unknown_entity(
    stack: Stack, database: PostgresServer
) -> None:
    database.stop()
    try:
        problem = ask(stack, "70")
        assert (problem["status"], problem["code"]) == (503, "features-unavailable")
        assert PASSWORD not in str(problem)
        assert ask(stack, "1")["prediction"] == 30.0, "what is stored needs no database"
        time.sleep(1.2)  # it was left alone meanwhile
        assert ask(stack, "rule-77")["prediction"] == 7.5, "the order goes on"
        made_up = ask(stack, "71", "guess")
        assert (made_up["prediction"], made_up["outcome"]) == (200.0, "computed")
    finally:
        database.start()
    wait_for(lambda: ask(stack, "70").get("code") == "unknown-entity", "the database to be asked again", 20)
    database.sql("INSERT INTO customers VALUES (71, 1, 1, now())")
    wait_for(lambda: ask(stack, "71", "guess").get("prediction") == 2.0, "what was made up to be forgotten", 20)
    assert counts(stack)['fallback="customers",model="shop",outcome="failed"'] >= 1
    assert PASSWORD not in stack.log("realtime")


def test_a_query_that_takes_too_long_is_not_waited_for_and_ends_on_the_server(
    stack: Stack, database: PostgresServer
) -> None:
    started = time.monotonic()
    assert ask(stack, "99", "guess")["prediction"] == 200.0
    asleep = "state = 'active' AND query LIKE '%pg_sleep(CASE%' AND pid <> pg_backend_pid()"
    count = f"SELECT count(*) FROM pg_stat_activity WHERE {asleep}"
    wait_for(lambda: database.sql(count) == "0", "the server to give the query up", 20)
    assert time.monotonic() - started < 300, "it would sleep for 600"
