"""Forged messages: what somebody may put on a queue who knows the broker's password and nothing of manners."""

from __future__ import annotations

import base64
import json
import uuid
import zlib
from collections.abc import Iterator
from typing import Any

TASK = "forecache.score_chunk"
MEGABYTE = "x" * (1 << 20)
#: what would begin a line of the log if it were written there
LINE = "12:00:00 [critical] forged.line"
DEEP = "[" * 100_000 + "]" * 100_000
#: in place of a value
ODD: tuple[Any, ...] = (0, -1, True, 1.5, "", "x", f"x\n{LINE}", [], [1], [[]], {}, {"a": 1}, MEGABYTE, 10**30)


def envelope(
    task: Any = TASK, *, body: Any = None, embed: Any = None, kwargs: Any = None, **headers: Any
) -> dict[str, Any]:
    """Return a message as kombu stores it in Redis, well formed but for what is given."""
    task_id = headers.pop("id", str(uuid.uuid4()))
    content = [[], {} if kwargs is None else kwargs, embed] if body is None else body
    return {
        "body": base64.b64encode(json.dumps(content).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": task, "id": task_id, "root_id": "a-root", "parent_id": None, "group": None,
            "retries": 0, "timelimit": [None, None], "eta": None, "expires": None, **headers,
        },
        "properties": {
            "correlation_id": "a-correlation", "reply_to": "nobody", "delivery_mode": 2, "priority": 0,
            "delivery_info": {"exchange": "forecache.batch", "routing_key": "forecache.batch"},
            "body_encoding": "base64", "delivery_tag": str(uuid.uuid4()),
        },
    }  # fmt: skip


def raw_rubbish() -> Iterator[str | bytes]:
    """What is no envelope at all."""
    yield from ("", " ", "not json", "\x00", b"\xff\xfe\x00", "null", "true", "7", '"text"', "[]", "{}", "[1, 2, 3]")
    yield from (DEEP, '{"a":' * 50_000 + "1" + "}" * 50_000, "1" * 5000, "1e999", "NaN", '{"__type__": "uuid"}')
    yield from ('{"__type__": "uuid", "__value__": "no"}', '{"__type__": "os", "__value__": 1}', '{"body": null}')
    for name in ("body", "content-encoding", "content-type", "headers", "properties"):
        yield json.dumps({key: value for key, value in envelope().items() if key != name})
        yield from (json.dumps({**envelope(), name: odd}) for odd in (None, *ODD))
    for name in envelope()["properties"]:
        properties = envelope()["properties"]
        yield json.dumps({**envelope(), "properties": {k: v for k, v in properties.items() if k != name}})
        yield from (json.dumps({**envelope(), "properties": {**properties, name: odd}}) for odd in (None, *ODD))
    for delivery in ({"exchange": 1, "routing_key": "x"}, {"exchange": "x"}, {"exchange": None, "routing_key": None}):
        yield json.dumps({**envelope(), "properties": {**envelope()["properties"], "delivery_info": delivery}})


def bodies() -> Iterator[dict[str, Any]]:
    """Bodies that are no task's, and bodies that unpack to far more than they are."""
    yield from (envelope(body=odd) for odd in (None, *ODD))
    for content in (
        b"",
        b"not json",
        b"\xff",
        DEEP.encode(),
        b'[[], {}, {"callbacks": NaN}]',
        b"[[], {}, " + b"1" * 9999,
    ):
        yield {**envelope(), "body": base64.b64encode(content).decode()}
    yield {**envelope(), "body": "no base64 ***"}
    yield {**envelope(), "content-type": "application/x-python-serialize"}
    yield {**envelope(), "content-type": "application/x-yaml"}
    yield {**envelope(), "content-encoding": "no-such-encoding", "content-type": "text/plain"}
    for name in ("gzip", "bzip2", "xz", "zstd", "no-such"):
        yield {**envelope(compression=name), "body": base64.b64encode(b"not packed").decode()}
    bomb = zlib.compress(b"[[], {}, null]" + b" " * (65 << 20), level=1)
    yield {**envelope(compression="gzip"), "body": base64.b64encode(bomb).decode()}
    yield from (envelope(compression=odd) for odd in ODD)


def headers() -> Iterator[dict[str, Any]]:
    """Headers of odd types and lengths, one at a time, and what a task's context must not take from a message."""
    for name in ("task", "id", "root_id", "parent_id", "group", "group_index", "retries", "timelimit", "eta", "expires",
                 "argsrepr", "kwargsrepr", "origin", "lang", "ignore_result", "shadow", "stamps", "stamped_headers",
                 "replaced_task_nesting", "forecache_sent_at", "forecache_request_ids", "a-header"):  # fmt: skip
        yield from (envelope(**{name: odd}) for odd in ODD)
    for id_ in ("a b", "\x1b[31m", "ä", "../..", "a" * 201, " a", "-", "*"):
        yield envelope(id=id_)
    for name in ("eta", "expires"):
        for instant in ("9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00", "2026-99-99", "2026-01-01T00:00:00+99:99"):
            yield envelope(**{name: instant})
    for name in ("callbacks", "errbacks", "chain", "chord", "called_directly", "is_eager", "args", "kwargs",
                 "headers", "delivery_info", "properties", "reply_to", "hostname", "children", "_protected",
                 "update"):  # fmt: skip
        yield from (envelope(**{name: odd}) for odd in ODD[::4])
    yield envelope(**{f"h{number}": "x" * 100 for number in range(2000)})
    yield envelope(**{LINE: LINE, "task": f"x\n{LINE}"})


def signature(task: Any = "os.system", **options: Any) -> dict[str, Any]:
    """Return a link as Celery writes it."""
    return {"task": task, "args": [], "kwargs": {}, "options": options, "subtask_type": None, "immutable": False}


def links() -> Iterator[dict[str, Any]]:
    """Links, chains and chords that are malformed, or name what must not be sent."""
    yield envelope(embed={"callbacks": [1], "errbacks": ["x"], "chain": [{"task": "os.system"}], "chord": "z"})
    for name in ("callbacks", "errbacks", "chain", "chord"):
        yield from (envelope(embed={name: odd}) for odd in ODD)
        for bad in (signature(), signature(TASK), signature("celery.map"), {**signature("shop.save"), "args": "x"},
                    {**signature("shop.save"), "subtask_type": "group"}, {**signature("shop.save"), "more": 1},
                    signature("shop.save", queue="forecache.batch"), signature("shop.save", exchange="x"),
                    signature("shop.save", link=[signature(TASK)]), signature("shop.save", task_id=7),
                    signature("shop.save", connection="redis://elsewhere"), signature("shop.save", link="x"),
                    signature(["shop.save"]), signature(None)):  # fmt: skip
            yield envelope(embed={name: bad if name == "chord" else [bad]}, group="a-group", group_index=0)
    yield envelope(embed={"callbacks": [signature("shop.save")] * 101})
    nested = signature("shop.save")
    for _ in range(20):
        nested = signature("shop.save", link=[nested])
    yield envelope(embed={"callbacks": [nested]})
    yield from (envelope(embed={"id": "x"}), envelope(embed={"args": [1], "hostname": 1}), envelope(embed={"a": 1}))


def tasks() -> Iterator[dict[str, Any]]:
    """Tasks of Celery's own, which run others, and ours with arguments that nobody checked."""
    for name in (
        "celery.map",
        "celery.starmap",
        "celery.chunks",
        "celery.group",
        "celery.chain",
        "celery.chord",
        "celery.chord_unlock",
        "celery.accumulate",
        "celery.backend_cleanup",
        "os.system",
        "",
        "forecache.",
    ):
        yield envelope(name, kwargs={"task": signature(TASK), "it": [[1]], "group_id": "x", "callback": signature()})
    for odd in (None, *ODD):
        yield envelope(TASK, kwargs={"run_id": odd, "chunk_number": odd})
        yield envelope("forecache.predict_entities", kwargs={"model": odd, "entity_ids": odd, "deadline": odd})
        yield envelope("forecache.predict_job_part", kwargs={"job_id": odd, "part": odd})
        yield envelope("forecache.check_parity", kwargs={"model": odd})
        yield envelope("forecache.start_run", kwargs={"model": odd, "trigger": odd})
        yield envelope("forecache.prepare_run", kwargs={"run_id": odd})
        yield envelope("forecache.drive_run", kwargs={"run_id": odd})
        yield envelope("forecache.compare_run", kwargs={"run_id": odd, "options": odd})
    # of version 1
    first = {"task": TASK, "id": "v1", "args": [], "kwargs": {}, "retries": 0, "eta": None, "expires": None}
    for changed in (
        {},
        {"callbacks": [1]},
        {"id": f"a\n{LINE}"},
        {"chord": signature()},
        {"taskset": [1]},
        {"utc": "x"},
        {"headers": 1, "timelimit": 7},
        {"errbacks": [signature(TASK)]},
        {"eta": 7},
    ):
        yield {**envelope(body={**first, **changed}), "headers": {}}


KINDS = {"bodies": bodies, "headers": headers, "links": links, "tasks": tasks}
