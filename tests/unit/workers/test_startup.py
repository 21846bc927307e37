"""Workers: which pools are refused, waiting for Redis, and what stays off the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from inference.errors import StoreUnavailable
from inference.models.runtimes import is_startup_note, without_startup_notes
from tests.support.redis_server import missing
from workers.__main__ import worker_arguments
from workers.inspect import parse_wanted
from workers.startup import check_pool, named_pool, wait_for_store


@pytest.mark.parametrize("argv", [["-P", "prefork"], ["-Pprefork"], ["--pool", "prefork"], ["--pool=prefork"]])
def test_a_command_line_that_asks_for_prefork_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check_pool("gpu", "threads", None, ["celery", "worker", *argv, "-c", "2"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("the gpu worker cannot run on the prefork pool")
    assert "use -P threads" in told


@pytest.mark.parametrize("pool", ["prefork", "processes", "gevent", "eventlet"])
def test_a_pool_that_was_configured_otherwise_is_refused_too(pool: str) -> None:
    with pytest.raises(SystemExit):
        check_pool("gpu", "threads", pool, ["celery", "worker"])


def test_threads_and_solo_are_accepted_and_so_is_the_default() -> None:
    from celery.concurrency.solo import TaskPool as Solo
    from celery.concurrency.thread import TaskPool as Threads

    for pool in (Solo, Threads, "solo", "threads", None):
        check_pool("realtime", "solo", pool, ["celery", "worker", "-Q", "realtime"])
    assert named_pool(["worker", "-Q", "Prefork", "--prefetch-multiplier=1"]) is None


def test_a_worker_waits_for_redis_with_longer_and_longer_pauses() -> None:
    pauses: list[float] = []

    def start() -> None:
        if len(pauses) < 5:
            raise StoreUnavailable("not yet")

    wait_for_store(start, sleep=pauses.append)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0]


def test_a_worker_gets_its_queue_and_a_name_of_its_own_unless_given() -> None:
    assert worker_arguments("gpu", ["batch"], []) == [
        "--quiet",
        "worker",
        "--without-gossip",
        "--without-mingle",
        "-Q",
        "batch",
        "-n",
        f"gpu-{os.getpid()}@%h",
        "-l",
        "INFO",
    ]
    given = ["-Q", "fast", "--hostname=a@b", "--loglevel", "DEBUG"]
    assert worker_arguments("realtime", ["realtime"], given)[-len(given) :] == given


def test_versions_to_inspect_are_words_or_numbers() -> None:
    assert parse_wanted("latest") == "latest"
    assert parse_wanted("3,4") == [3, 4]
    assert parse_wanted("3;4") is None


def test_greetings_are_held_back_and_everything_else_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    with without_startup_notes():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
        os.write(2, b"I0000 00:00:1.2 1 cudart_stub.cc:31] Could not find cuda drivers\n")
        os.write(2, b"something is wrong\n")
    assert capfd.readouterr().err == "something is wrong\n"


def test_a_silent_gpu_is_told_of_only_where_there_is_one() -> None:
    line = b"E0000 00:00:1.2 1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error"
    assert is_startup_note(line, has_gpu=False)
    assert not is_startup_note(line, has_gpu=True)


@pytest.mark.slow  # it starts TensorFlow
def test_tensorflow_says_nothing_while_it_looks_for_gpus() -> None:
    if find_spec("tensorflow") is None:
        missing("tensorflow")
    look = "from inference.models.runtimes import _import; from inference.models.formats import FORMATS; "
    look += "_import(next(one for one in FORMATS if one.name == 'saved_model')).prepare_gpus(None)"
    done = subprocess.run([sys.executable, "-P", "-c", look], capture_output=True, text=True, check=True)
    assert done.stderr == ""
