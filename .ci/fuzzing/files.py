"""Files that people write, or bring along: contracts, settings, descriptions of engines, tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fuzzing.rule import Parser, refusing
from inference.errors import BadInput, ContractError, ModelError, SettingsError, SourceError
from inference.features import FeatureContract, read_contract
from inference.features.groups import GroupSource
from inference.models.remote_file import read_remote
from inference.schema import DType, Signature, TensorSpec
from inference.settings import Settings, load_settings
from inference.sources import Source, column_problem, open_source, read_slices, whole_slices
from inference.sources.footers import flat_columns, newest_instants, read_footer
from inference.storage import open_location

_FEATURES = [
    {"name": "x", "dtype": "float32", "default": 0.5, "min": -1, "max": 10.5, "column": "X x"},
    {"name": "n", "dtype": "int64", "default": 3, "categories": [1, 2, 3], "group": "own"},
    {"name": "s", "dtype": "string", "nullable": True, "group": "asked"},
    {"name": "v", "dtype": "uint8", "shape": [2, 3], "default": 7},
    {"name": "h", "dtype": "int32", "group": "clock"},
    {"name": "b", "dtype": "bool", "default": [True]},
]
_GROUPS = {
    "own": {"source": "table", "max_age": "24h", "event_time_column": "at"},
    "asked": {"source": "request"},
    "clock": {"source": "function", "function": "hour_of_day", "timezone": "Europe/Berlin"},
}


@cache
def _folder() -> Path:
    for name in [name for name in os.environ if name.upper().startswith("FORECACHE_")]:
        del os.environ[name]
    return Path.cwd()


def _seeds_of_contracts() -> Iterator[dict[str, Any]]:
    yield {"features": _FEATURES[:5], "groups": _GROUPS}
    for feature in _FEATURES[:4]:
        own = feature.get("group")
        yield {"features": [feature], **({"groups": {own: _GROUPS[own]}} if own in _GROUPS else {})}
    yield {"features": [{"name": f"f{n}", "dtype": "float64"} for n in range(9)]}


def attempt_contract(example: Any) -> None:
    """Read a `features.json`, and use what it says as a store and a model's check do."""
    folder = _folder()
    text = json.dumps(example)
    (folder / "features.json").write_text(text, errors="surrogatepass")
    signature = Signature((TensorSpec("x", DType.FLOAT32, (-1,)),), (TensorSpec("y", DType.FLOAT32),))
    with refusing(ContractError, sent=example):
        read_contract(folder, folder, signature)
    with refusing(ContractError, sent=example):
        contract = FeatureContract.from_json(json.loads(text))
        again = FeatureContract.from_json(json.loads(json.dumps(contract.to_json())))
        if again != contract or again.hash != contract.hash:
            raise AssertionError("a contract that is written and read again is another")
        _ = (contract.stored_fields, contract.width, contract.all_scalar, contract.given, contract.has_several_groups)
        for feature in contract.features:
            _ = (feature.legal, feature.missing_value, feature.of_group)
        for group in contract.groups_from(GroupSource.TABLE):
            _ = contract.group_form(group.name).fields


def _seeds_of_remotes() -> Iterator[dict[str, Any]]:
    yield {"protocol": "open-inference", "url": "http://engine:8000", "name": "m", "version": "1", "timeout": "2s"}
    yield {"protocol": "tensorflow-serving-grpc", "url": "grpcs://u:p@engine:8500", "name": "m", "version": 3}
    of_tensorflow = {"signature": "s", "form": "rows", "label": "stable", "retries": 2, "timeout": 1.5}
    yield {"protocol": "tensorflow-serving", "url": "https://u:p@[::1]:8501/x", "name": "m", **of_tensorflow}


def attempt_remote(data: bytes) -> None:
    """Read a `remote.toml`."""
    file = _folder() / "remote.toml"
    file.write_bytes(data)
    with refusing(ModelError, sent=data):
        engine = read_remote(file)
        _ = (engine.place, engine.login)


def _seeds_of_settings() -> Iterator[dict[str, Any]]:
    model: dict[str, Any] = {
        "path": "m", "features": "t.parquet", "event_time_column": "at", "rows": "newest", "signature": "s",
        "batch": {"schedule": "0 6 * * 1-5", "timezone": "Europe/Berlin", "ttl": "1 day", "parquet_path": "out"},
        "realtime": {"default": 0.5, "stale_while_revalidate": "5m", "queue": "own"},
        "parity": {"every": "1h"},
        "fallbacks": [
            {"name": "f", "kind": "function", "function": "m:f", "timeout": "50ms"},
            {"name": "s", "kind": "sql", "url": "postgresql://u:p@h/d", "query": "SELECT * FROM t WHERE id IN :ids"},
        ],
    }  # fmt: skip
    key = {"hash": "sha256:" + "0" * 64, "scopes": ["read", "admin"], "rate": "10/minute"}
    yield {"models": {"m": model}}
    yield {"api": {"keys": {"k": key}, "hosts": ["a.b"], "cors_origins": ["https://a"], "root_path": "/x"}}
    yield {"redis": {"url": "redis://u:p@h:1/0", "cache_url": "unix:///s?db=1"}, "celery": {"broker_url": "amqp://h//"}}
    yield {"celery": {"linked_tasks": {"s.t": "q"}}, "workers": {"load_memory": "2GiB", "engine_hosts": ["*.a:1"]}}
    defaults = Settings.model_validate({"models": {"m": {"path": "m"}}}).model_dump(mode="json")
    for name, section in defaults.items():
        yield {name: _without_none(section)}


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_none(one) for name, one in value.items() if one is not None}


def attempt_settings(data: bytes) -> None:
    """Read a `forecache.toml`, and ask the settings what processes ask."""
    file = _folder() / "forecache.toml"
    file.write_bytes(data)
    with refusing(SettingsError, sent=data):
        settings = load_settings(file)
        _ = (settings.broker_url, settings.cache_url, settings.redis_url, settings.queues, settings.realtime_queues)
        for name in settings.models:
            _ = settings.realtime_queue(name)


_TABLE = "t.parquet"


def _seeds_of_tables() -> Iterator[bytes]:
    at = pa.array([1, None, 3], pa.timestamp("us", "UTC"))
    columns = {"id": ["a", "b", "c"], "x": [1.5, None, 3.0], "at": at, "v": [[1], [2, 3], []], "s": [{"a": 1}] * 3}
    for options in ({}, {"compression": "none", "use_dictionary": False}, {"data_page_version": "2.0"}):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink, row_group_size=2, **options)
        yield sink.getvalue().to_pybytes()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": pa.array([1, 2]), "d": pa.array([1, 2], pa.date32())}), sink)
    yield sink.getvalue().to_pybytes()


def attempt_footer(data: bytes) -> None:
    """Read a table's footer, and its rows."""
    file = _folder() / _TABLE
    file.write_bytes(data)
    with refusing(SourceError, sent=None):
        footer = read_footer(open_location(str(file)), keep_metadata=True)
        for place in flat_columns(footer.metadata).values():
            newest_instants(footer.metadata, place)
    with refusing(SourceError, BadInput, sent=None):
        source = open_source(str(file))
        names = [field.name for field in source.schema if column_problem(field) is None]
        for _, batch in zip(range(20), _rows(source, list(dict.fromkeys(names))), strict=False):
            batch.validate(full=True)


def _rows(source: Source, columns: list[str]) -> Iterator[pa.RecordBatch]:
    return read_slices(source.files, whole_slices(source.files), columns=columns, batch_rows=64)


PARSERS = {
    "contract": Parser(_seeds_of_contracts, attempt_contract),
    "remote": Parser(_seeds_of_remotes, attempt_remote, form="toml"),
    "settings": Parser(_seeds_of_settings, attempt_settings, form="toml"),
    "footers": Parser(_seeds_of_tables, attempt_footer, form="bytes"),
}
