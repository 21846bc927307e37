"""Nothing that a client sends keeps the others waiting: the worst of each kind, and hits beside it."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import httpx
import pytest

from app.api import watchdog
from inference.errors import BadInput
from inference.protocols import json_documents, tensors
from inference.protocols.json_documents import MAX_CONTAINERS, PIECE_BYTES, parse
from inference.schema import DType
from tests.support.flights import write_flights
from tests.support.stack import Stack
from tests.support.waiting import LONG_S, wait_for

pytestmark = pytest.mark.integration

#: sent one after the other while an attack is at work; one that stops the loop lets one or two through
HITS = 4
#: by name, attacks that take hundreds of milliseconds of work, however fast the machine is
LONG_WORK = (
    "gzip of deep lists",
    "lists as deep as a tensor",
    "small integers",
    "not finite",
    "unlike rows",
    pytest.param("one long instance", marks=pytest.mark.slow),
    pytest.param("a job of one long instance", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("attacked")
    with Stack(folder, write_flights(folder)) as made:
        made.start("realtime", "api")
        made.wait_ready()
        httpx.put(f"{made.url}/features/F1", json={"features": {"a": 1, "b": 2}}).raise_for_status()
        wait_for(lambda: is_hit(made), "a first hit")
        yield made


def is_hit(stack: Stack) -> bool:
    answer = httpx.get(f"{stack.url}/predict/F1", timeout=LONG_S)
    return answer.status_code == 200 and bool(answer.json()["cache_hit"])


def send(stack: Stack, attack: Any) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", stack.api_port, timeout=120)
    try:
        connection.request(attack.method, attack.path, attack.body or None, attack.all_headers)
        answer = connection.getresponse()
        answer.length_read = len(answer.read())  # type: ignore[attr-defined]
        return answer
    finally:
        connection.close()


@pytest.fixture(scope="module")
def worst(rig_attacks: ModuleType) -> dict[str, Any]:
    """The attacks that take long, by name."""
    names = [name if isinstance(name, str) else name.values[0] for name in LONG_WORK]
    return {one.name: one for one in rig_attacks.attacks("delay", "x") if one.name in names}


@pytest.mark.parametrize("name", LONG_WORK)
def test_hits_are_answered_before_the_attack_is(stack: Stack, worst: dict[str, Any], name: str) -> None:
    expected = ["hit"] * HITS + ["attack"]
    # a machine that is fast at the attack, or busy with something else at the hits, gets other chances; a loop that
    # stands has none
    assert any(beside(stack, worst[name]) == expected for _ in range(10))


def beside(stack: Stack, attack: Any) -> list[str]:
    """Send an attack and hits beside it; return in which order they were answered."""
    order: list[str] = []
    hits = http.client.HTTPConnection("127.0.0.1", stack.api_port, timeout=120)
    attacker = http.client.HTTPConnection("127.0.0.1", stack.api_port, timeout=120)

    def wait_for_answer() -> None:
        attacker.getresponse().read()
        order.append("attack")

    try:
        hits.connect()
        attacker.request(attack.method, attack.path, attack.body, attack.all_headers)
        answered = threading.Thread(target=wait_for_answer)
        answered.start()
        for _ in range(HITS):
            hits.request("GET", "/predict/F1")
            assert hits.getresponse().read().startswith(b'{"entity_id":"F1"')
            order.append("hit")
        answered.join(120)
    finally:
        hits.close()
        attacker.close()
    return order


@pytest.mark.slow
def test_every_attack_is_answered_shortly_and_leaves_the_service_as_it_was(
    stack: Stack, rig_attacks: ModuleType
) -> None:
    for attack in rig_attacks.attacks("delay", "x"):
        answer = send(stack, attack)
        assert answer.status < 500, attack.name
        assert answer.length_read < 512 * 1024, attack.name  # type: ignore[attr-defined]
    assert is_hit(stack)
    assert "Traceback" not in stack.log("api") + stack.log("realtime")


# --- a document in pieces is the document ---


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_documents, "PIECE_BYTES", 8)
    monkeypatch.setattr(json_documents, "_BYTES_AT_ONCE", 8)
    monkeypatch.setattr(tensors, "AT_ONCE", 2)
    monkeypatch.setattr(json_documents, "_TOGETHER", 2)


DOCUMENTS = [
    (b'{"a": [1, [2.5, "x,]\\"\\\\{y"], {}], "b,": null, "d": {"c": [[], [[]], true]}}', None),
    (b"[[1, 2, 3], [4, 5, 6], [7, 8, 9]]", [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    (b'{"e": [         ], "o": {            }}', {"e": [], "o": {}}),
    (b'"a text that is longer than a piece, [of] {course}"', None),
    (b'[18446744073709551616, NaN, "x"]', None),
]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("text", "value"), DOCUMENTS)
def test_a_document_in_pieces_says_what_it_says_as_a_whole(text: bytes, value: Any) -> None:
    found = parse(text)
    if value is not None:
        assert found == value
    json_documents._BYTES_AT_ONCE = PIECE_BYTES  # `small_pieces` puts it back
    assert repr(found) == repr(parse(text))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "text",
    [
        b"[1, 2, 3, 4, 5, 6,]",
        b"[, 1, 2, 3, 4, 5, 6]",
        b"[1, 2, 3,, 4, 5, 6]",
        b"[1, 2, 3, 4, 5, 6}",
        b"[1, 2, 3], [4, 5, 6]",
        b"[[1, 2, 3, 4], 5, 6]]",
        b'{"a" 1, "b": [1, 2, 3, 4]}',
        b'{"a": [1, 2, 3, 4], "b": 2, "a": [1, 2, 3, 4]}',
        b'{"a": 1, "a": 2, "b": [1, 2, 3, 4, 5, 6]}',
        b'{1: [1, 2, 3, 4, 5], "b": 2}',
        b'{"a": 1, "b": [1, 2, 3, 4]',
        b'["a, [1, 2, 3, 4, 5, 6]',
        b"x[1, 2, 3, 4, 5, 6, 7, 8]",
        *(b"[" + b"1" * digits + b",]" for digits in range(4, 9)),
        *(b"[," + b"1" * digits + b"]" for digits in range(4, 9)),
        *(b'{"a":' + b"1" * digits + b",}" for digits in range(1, 6)),
    ],
)
def test_what_is_no_json_as_a_whole_is_none_in_pieces(text: bytes) -> None:
    with pytest.raises(BadInput, match=r"^JSON Parse error: "):
        parse(text)


def test_no_piece_is_longer_than_a_parser_may_hold_the_interpreter_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    loads = json_documents._loads
    monkeypatch.setattr(
        json_documents, "_loads", lambda text, offset: (sizes.append(len(text)), loads(text, offset))[1]
    )
    body = b'{"inputs": {"x": [[' + b",".join([b"1"] * 600_000) + b"]]}}"
    assert len(parse(body)["inputs"]["x"][0]) == 600_000
    assert sum(sizes) > 1_100_000
    assert max(sizes) <= PIECE_BYTES + 2


@pytest.mark.parametrize("depth", [64, 65])
@pytest.mark.parametrize("form", [lambda n: b"[" * n + b"]" * n, lambda n: b'{"a":' * n + b"1" + b"}" * n])
def test_depth_is_counted_before_anything_is_parsed(form: Callable[[int], bytes], depth: int) -> None:
    # brackets in texts are text
    body = b'["' + b"[" * 200 + b'\\"[", ' + form(depth - 1) + b"]"
    if depth <= 64:
        parse(body)
        return
    with pytest.raises(BadInput, match="more than 64 levels deep"):
        parse(body)


def test_lists_and_objects_are_counted_before_anything_is_parsed() -> None:
    assert len(parse(b"[" + b",".join([b"{}"] * (MAX_CONTAINERS - 1)) + b"]")) == MAX_CONTAINERS - 1
    with pytest.raises(BadInput, match=f"holds {MAX_CONTAINERS + 1} lists and objects: at most {MAX_CONTAINERS}"):
        parse(b"[" + b",".join([b"{}"] * MAX_CONTAINERS) + b"]")


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "value", [[], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]], [[1], [2, 3]], [[1, 2], 3, 4], [["a"]]]
)
def test_an_array_in_steps_is_the_array(value: Any) -> None:
    at_once = tensors._array_at_once(value, DType.INT64)
    in_steps = tensors.array_of(value, DType.INT64)
    assert (in_steps is None) == (at_once is None)
    if at_once is not None and in_steps is not None:
        assert in_steps.tolist() == at_once.tolist()
        assert tensors.render({"y": in_steps}) == b'{"y":' + tensors.render(at_once.tolist()) + b"}"


# --- the watchdog ---


class Told:
    """A log that remembers."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        assert event == "loop.stands"
        self.lines.append(fields)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(watchdog, "log", told)
    monkeypatch.setattr(watchdog, "BEAT_S", 0.005)
    return told


async def test_a_loop_that_stands_is_told_once_with_what_it_is_doing(told: Told) -> None:
    def keep_everyone_waiting() -> None:
        before = len(told.lines)
        wait_for(lambda: len(told.lines) > before, "the watchdog")

    with watchdog.loop_watched():
        for stands in (1, 2):
            await asyncio.sleep(0.05)  # it moves
            keep_everyone_waiting()
            assert len(told.lines) == stands
    assert all("keep_everyone_waiting" in line["doing"] for line in told.lines)
    assert all(line["stands_ms"] >= watchdog.STANDS_AFTER_S * 1000 for line in told.lines)


async def test_the_watchdog_ends_with_its_loop(told: Told) -> None:
    before = set(threading.enumerate())
    with suppress(ZeroDivisionError), watchdog.loop_watched():
        [watching] = set(threading.enumerate()) - before
        raise ZeroDivisionError
    watching.join(LONG_S)
    assert not watching.is_alive()
