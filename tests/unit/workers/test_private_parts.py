"""Workers replace parts of Celery and kombu that their authors may change. A new release without them fails here."""

from __future__ import annotations

import inspect
from typing import Any

import celery.app.trace
import celery.apps.worker
import celery.worker.consumer.control
import celery.worker.pidbox
import kombu.transport
import kombu.transport.redis
import pytest
from celery.app.task import Task
from celery.backends.redis import RedisBackend
from celery.states import FAILURE
from celery.worker.consumer import Consumer
from kombu import compression
from kombu.message import Message

from workers.consumer import CheckedPidbox, RealtimeConsumer, TaskConsumer, replace_parts_of_celery
from workers.redis_transport import Channel, RealtimeResults, Transport, Unacknowledged

#: our class → the methods in which it differs from its base class
REPLACED: dict[type, tuple[str, ...]] = {
    TaskConsumer: (
        "register_with_event_loop",
        "perform_pending_operations",
        "on_connection_error_before_connected",
        "on_connection_error_after_connected",
        "create_task_handler",
        "update_strategies",
        "on_decode_error",
        "on_invalid_task",
        "on_unknown_message",
        "on_unknown_task",
    ),
    RealtimeConsumer: ("on_send_event_buffered", "stop"),
    CheckedPidbox: ("on_message",),
    Unacknowledged: ("ack", "reject", "restore_by_tag"),
    Channel: ("decode_body", "_do_restore_message"),
    Transport: ("_deliver",),
    RealtimeResults: ("_store_result",),
}
#: classes of Celery and kombu → the private parts of them that ours use
USED: list[tuple[Any, str]] = [
    (Consumer, "_flush_events"),
    (Task, "__trace__"),
    (Message, "ack_log_error"),
    (Message, "reject_log_error"),
    (kombu.transport.redis.QoS, "_remove_from_indices"),
    (kombu.transport.redis.Channel, "QoS"),
    (kombu.transport.redis.Transport, "Channel"),
    (RedisBackend, "_get_result_meta"),
    (RedisBackend, "get_key_for_task"),
    (RedisBackend, "ensure"),
    (RedisBackend, "client"),
    (compression, "encoders"),
    (compression, "register"),
]


def by_position(method: Any) -> int:
    """How many arguments a method takes by position; many, if it takes any number."""
    parameters = inspect.signature(method).parameters.values()
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return 100
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)


@pytest.mark.parametrize(("ours", "name"), [(ours, name) for ours, names in REPLACED.items() for name in names])
def test_a_replaced_method_exists_and_takes_no_more_arguments_than_ours(ours: type, name: str) -> None:
    base: Any = ours.__base__
    assert name in vars(ours)
    assert callable(getattr(base, name)), f"{base.__name__}.{name} is gone"
    assert by_position(getattr(base, name)) <= by_position(getattr(ours, name))


@pytest.mark.parametrize(("of", "name"), USED)
def test_a_part_that_ours_use_exists(of: Any, name: str) -> None:
    assert hasattr(of, name)


def test_celery_looks_up_the_remote_control_where_ours_takes_its_place() -> None:
    assert "pidbox.Pidbox" in inspect.getsource(celery.worker.consumer.control)


def test_celery_tells_the_effect_of_a_signal_by_a_function_of_its_module() -> None:
    source = inspect.getsource(celery.apps.worker)
    assert "def safe_say(msg" in source
    assert source.count("safe_say(") > 1


def test_kombu_parses_messages_by_a_function_of_its_module_and_finds_transports_by_name() -> None:
    assert inspect.getsource(kombu.transport.redis).count(" loads(bytes_to_str(") >= 3
    assert {"redis", "rediss"} <= kombu.transport.TRANSPORT_ALIASES.keys()


def test_a_pool_takes_the_failure_that_ours_returns_in_place_of_an_error_of_celerys() -> None:
    assert celery.app.trace.trace_ok_t._fields == ("retval", "info", "runtime", "retstr")
    error = ValueError()
    info = celery.app.trace.TraceInfo(FAILURE, error)
    assert (info.state, info.retval) == (FAILURE, error)


def test_the_replaced_parts_of_celery_are_in_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery.worker.pidbox, "Pidbox", celery.worker.pidbox.Pidbox)
    monkeypatch.setattr(celery.apps.worker, "safe_say", celery.apps.worker.safe_say)
    monkeypatch.setattr(celery.app.trace, "saferepr", celery.app.trace.saferepr)
    before = celery.apps.worker.safe_say
    replace_parts_of_celery()
    assert celery.worker.consumer.control.pidbox.Pidbox is CheckedPidbox
    assert celery.apps.worker.safe_say is not before
    result = {"model": "m", "model_version": 3, "predictions": [{"entity_id": "a"}, {"entity_id": "b"}]}
    assert celery.app.trace.saferepr(result, 1024) == "2 predictions of version 3"
    assert celery.app.trace.saferepr(None, 1024) == "None"
    assert celery.app.trace.saferepr({"outputs": "x" * 100}, 10).startswith("{'outputs'")


def test_celery_spells_a_result_by_a_function_of_its_module() -> None:
    assert "saferepr(R, resultrepr_maxsize)" in inspect.getsource(celery.app.trace.build_tracer)
