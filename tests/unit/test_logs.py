"""Log lines of a process of its own, as they reach whoever collects them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.logs import MAX_TOLD, RequestId, from_message, told
from tests.support.stack import child_environment
from tests.support.warm_start import run_python

ROOT = Path(__file__).resolve().parents[2]

_SET_UP = """
import logging, threading, warnings
from inference.logs import bound, configure_logging, get_logger, in_this_context
from inference.logs import RequestId, work_for
configure_logging("gpu", form=FORMAT, level=LEVEL)
log = get_logger("ours")
"""


def logged(code: str, *, form: str = "json", level: str = "info") -> list[str]:
    """Run code in a new process with logging set up; return the lines of its stderr."""
    start = _SET_UP.replace("FORMAT", repr(form)).replace("LEVEL", repr(level))
    done = run_python(["-c", start + code], cwd=ROOT, env=child_environment(), timeout_s=60)
    return done.stderr.splitlines()


def objects(code: str, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in logged(code, **options)]


def test_a_line_in_json_has_time_level_logger_process_and_fields() -> None:
    (line,) = objects("log.info('chunk.scored', rows=3, entity='a\\nb')")
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "chunk.scored", "level": "info", "logger": "ours", "process": "gpu", "rows": 3, "entity": "a\nb",
    }  # fmt: skip


def test_libraries_lines_and_pythons_warnings_have_the_same_form() -> None:
    lines = objects("logging.getLogger('celery.beat').warning('Sending %s', 'x'); warnings.warn('old', stacklevel=1)")
    assert tuple(lines[0][name] for name in ("event", "level", "process")) == ("Sending x", "warning", "gpu")
    assert "old" in lines[1]["event"]


def test_a_traceback_is_one_field_without_local_variables() -> None:
    (line,) = objects(
        "def fail(secret):\n    raise ValueError('bad')\n"
        "try:\n    fail('hunter2')\nexcept ValueError:\n    log.exception('chunk.failed')"
    )
    assert line["level"] == "error"
    assert line["exception"].endswith("ValueError: bad")
    assert "hunter2" not in line["exception"].replace("fail('hunter2')", "")


def test_what_nobody_caught_is_a_line_too_also_in_a_thread() -> None:
    lines = objects("threading.Thread(target=lambda: 1 / 0).start()\nraise KeyError('lost')")
    assert {line["event"] for line in lines} == {"process.crashed"}
    assert {line["exception"].rsplit("\n", 1)[-1] for line in lines} == {
        "ZeroDivisionError: division by zero",
        "KeyError: 'lost'",
    }


@pytest.mark.parametrize("form", ["json", "console"])
def test_lines_within_a_block_carry_its_fields_also_from_threads_made_in_it(form: str) -> None:
    first, second, outside = logged(
        "with bound(run_id='r1', chunk=2):\n"
        "    log.info('a')\n"
        "    thread = threading.Thread(target=in_this_context(lambda: logging.warning('b')))\n"
        "thread.start(); thread.join()\nlog.info('c')",
        form=form,
    )
    for line in (first, second):
        assert "r1" in line
        assert "chunk" in line
    assert "r1" not in outside


def test_lines_name_the_request_or_the_requests_that_they_are_written_for() -> None:
    one, several, none = objects(
        "work_for([RequestId('abc')]); log.info('a')\n"
        "work_for([RequestId('abc'), RequestId('def')]); log.info('b')\nwork_for([]); log.info('c')"
    )
    assert one["request_id"] == "abc"
    assert several["request_ids"] == ["abc", "def"]
    assert not {"request_id", "request_ids"} & set(none)


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_password_of_a_url_is_ever_in_a_line(form: str) -> None:
    lines = logged(
        "log.warning('lost', url='rediss://user:hunter2@h:1/0')\n"
        "try:\n    raise OSError('amqp://u:hunter2@h//')\nexcept OSError:\n    logging.exception('failed')",
        form=form,
    )
    assert not [line for line in lines if "hunter2" in line and "raise OSError" not in line and "try" not in line]
    assert any("rediss://***@h:1/0" in line for line in lines)


def test_celerys_word_of_a_failed_task_has_its_id_and_not_its_arguments() -> None:
    (line,) = objects(
        "data = {'id': 't1', 'name': 'forecache.predict_entities', 'kwargs': 'somebody'}\n"
        "logging.getLogger('celery.app.trace').error('Task failed', extra={'data': data})"
    )
    assert line["task_id"] == "t1"
    assert line["task"] == "forecache.predict_entities"
    assert "somebody" not in json.dumps(line)


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_a_signal_handler_writes_at_once_has_the_form_too(form: str) -> None:
    (line,) = logged(
        "from inference.logs import write_at_once\nwrite_at_once('worker: Warm shutdown (MainProcess)')", form=form
    )
    assert "worker: Warm shutdown (MainProcess)" in line
    assert line.startswith('{"timestamp"') if form == "json" else "[info" in line


def test_the_level_decides_what_is_written() -> None:
    code = "log.debug('a'); log.info('b'); logging.getLogger('x').info('c'); log.warning('d')"
    assert [line["event"] for line in objects(code, level="warning")] == ["d"]
    assert [line["event"] for line in objects(code, level="debug")][:1] == ["a"]


def test_an_id_is_kept_when_it_is_sane_and_made_once_when_it_is_not() -> None:
    assert str(RequestId("5b0f:a-b.C_9=+/@")) == "5b0f:a-b.C_9=+/@"
    for insane in (None, "", "a b", "a\r\nSet-Cookie: x", "<script>", "é", "x" * 129):
        made = RequestId(insane)
        assert not made.is_named
        assert str(made) == str(made)
        assert RequestId(str(made)).is_named
    assert str(RequestId()) != str(RequestId())


def test_a_message_names_few_requests_each_once_and_only_sane_ones() -> None:
    same = RequestId("same")
    assert told([same, RequestId("other"), same]) == ["same", "other"]
    assert len(told(RequestId() for _ in range(100))) == MAX_TOLD
    assert [str(one) for one in from_message(["a", "b c", 7, None])] == ["a"]
    assert len(from_message(["a"] * 100)) == MAX_TOLD
    assert from_message("abc") == from_message(None) == ()
