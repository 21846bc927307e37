"""The lines of `up`: one form, whoever said them, and nothing that matters lost."""

from __future__ import annotations

import errno
import io
import json
import re

import pytest

from app.local.loglines import LogLine, LogReader
from app.local.output import KEEPS_DYING, Board, Lines, Output, table_lines
from app.local.programs import Program

CUDNN = "Unable to register cuDNN factory: Attempting to register factory for plugin cuDNN when one has already been"


def reader() -> LogReader:
    return LogReader(now=lambda: "12:00:00")


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("09:08:07 [info     ] run.planned chunks=1", "info", "run.planned chunks=1"),
        ("09:08:07 [error    ] model.refused model=ctr process=gpu", "error", "model.refused model=ctr"),
        ("30524:M 23 Nov 2026 09:08:07.150 # Server initialized", "info", "Server initialized"),
        ("30524:M 23 Nov 2026 09:08:07.150 # Can't save in background", "warning", "Can't save in background"),
        ("30524:M 23 Nov 2026 09:08:07.150 * Ready to accept connections", "info", "Ready to accept connections"),
        ("2026-11-23 09:08:07.123456: W tensorflow/x.cc:1] Allocation exceeds", "warning",
         "tensorflow/x.cc:1] Allocation exceeds"),
        ("2026-11-23 09:08:07.123456: F tensorflow/x.cc:1] Check failed", "error", "tensorflow/x.cc:1] Check failed"),
    ],
)  # fmt: skip
def test_every_form_keeps_its_own_time_and_becomes_one(line: str, level: str, text: str) -> None:
    assert reader().read(line) == LogLine("09:08:07", level, text)


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("30524:signal-handler (1795477119) Received SIGTERM", "info", "Received SIGTERM"),
        ("E0000 00:00:1751448150.98 10148 cuda_driver.cc:1] out of memory", "error", "cuda_driver.cc:1] out of memory"),
        ("WARNING:tensorflow:5 out of the last 5 calls", "warning", "tensorflow:5 out of the last 5 calls"),
        ("/lib/x.py:12: UserWarning: old", "warning", "UserWarning: old"),
        ("forecache: port 8000 is taken", "error", "port 8000 is taken"),
        ("\x1b[31mred\x1b[0m and \x07a bell", "info", "red and a bell"),
        ("anything else", "info", "anything else"),
    ],
)
def test_a_line_without_a_time_gets_the_present_one(line: str, level: str, text: str) -> None:
    assert reader().read(line) == LogLine("12:00:00", level, text)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "   ",
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1751448150.986970   10148 gpu_device.cc:2020] Created device /job:localhost",
        f"E0000 00:00:1751448150.986970   10148 cuda_dnn.cc:8579] {CUDNN}",
        f"2026-11-23 09:08:07.123456: E external/local_xla/xla/stream_executor/cuda/cuda_dnn.cc:9261] {CUDNN}",
        "W0000 00:00:1751448151.003754 10148 computation_placer.cc:177] computation placer already registered. Please",
        "2026-11-23 09:08:07.1: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
        "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow",
        "2026-11-23 09:08:07.1: E x/cuda.cc:1] failed call to cuInit: CUDA_ERROR_NO_DEVICE: no device is detected",
    ],
)
def test_tensorflows_greetings_are_left_out(line: str) -> None:
    assert reader().read(line) is None


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-23 09:08:07.1: E x/cuda_driver.cc:1] failed call to cuInit: CUDA_ERROR_UNKNOWN: unknown error",
        "2026-11-23 09:08:07.1: W tensorflow/core/gpu_device.cc:2433] Cannot dlopen some GPU libraries",
    ],
)  # fmt: skip
def test_what_keeps_tensorflow_from_a_gpu_is_no_greeting(line: str) -> None:
    assert reader().read(line)


def test_a_whole_traceback_is_an_error_and_what_follows_is_not() -> None:
    lines = [
        "Traceback (most recent call last):",
        '  File "x.py"',
        "ValueError: no",
        "09:08:07 [info] on",
    ]
    each = reader()
    assert [found.level for line in lines if (found := each.read(line))] == ["error", "error", "error", "info"]


def test_lines_that_arrive_in_pieces_are_printed_whole_behind_their_name() -> None:
    stream = io.StringIO()
    lines = Lines("api", Output(["api", "maintenance"], stream))
    for piece in ("09:08:07 [info] hal", "lo é"[:4], "\n09:08:07 [info] second\n09:08:07 [info] thi"):
        lines.take(piece.encode())
    lines.close()
    assert stream.getvalue() == (
        "api         | 09:08:07 info    hallo é\n"
        "api         | 09:08:07 info    second\n"
        "api         | 09:08:07 info    thi\n"
    )


def test_a_character_cut_in_two_is_put_together_again() -> None:
    stream = io.StringIO()
    lines = Lines("up", Output(["up"], stream))
    data = "🚀\n".encode()
    lines.take(data[:2])
    lines.take(data[2:])
    assert stream.getvalue().endswith(" info    🚀\n")


def test_an_endless_line_is_passed_on_in_pieces() -> None:
    stream = io.StringIO()
    lines = Lines("up", Output(["up"], stream))
    for _ in range(70):
        lines.take(b"x" * 1024)
    assert " info    xxx" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_and_for_those_who_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        stream = Terminal()
        Output(["api"], stream).line("api", LogLine("09:08:07", "error", "bad"))
        return stream.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert said() == "\x1b[36mapi |\x1b[0m 09:08:07 \x1b[31merror  \x1b[0m bad\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert said() == "api | 09:08:07 error   bad\n"


@pytest.mark.parametrize("gone", [BrokenPipeError(), OSError(errno.EIO, "the terminal was closed")])
def test_a_reader_that_has_gone_is_no_reason_to_stop(gone: OSError) -> None:
    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            raise gone

    output = Output(["api"], Stream())
    output.say("one")
    output.say("two")


def board(*names: str) -> tuple[Board, list[str]]:
    said: list[str] = []
    programs = [Program(name, [], says_ready=re.compile("ready"), url=f"{name}-url") for name in names]
    return Board(programs, lambda text, level: said.append(text)), said


def test_the_table_is_told_once_all_are_ready_and_again_after_a_death() -> None:
    told, said = board("redis", "api")
    told.started("redis", 11)
    told.ready("redis")
    told.started("api", 12)
    assert said == []
    told.ready("api")
    assert said[:3] == ["process  pid  state  URL", "redis    11   ready  redis-url", "api      12   ready  api-url"]
    said.clear()
    told.died("api", "exit code 1", 2.0, 1)
    assert said == ["api ended (exit code 1), restarting in 2 s"]
    told.started("api", 13)
    told.ready("api")
    assert "api      13   ready  api-url" in said
    assert said[-1] == "all ready again"


def test_a_process_that_keeps_dying_is_shown_in_the_table_once() -> None:
    told, said = board("api")
    for deaths in range(1, KEEPS_DYING + 3):
        told.started("api", 1)
        told.died("api", "exit code 2", float(deaths), deaths)
    assert [line for line in said if line.startswith("api      -    restarting in")] == [
        f"api      -    restarting in {KEEPS_DYING} s  api-url"
    ]


def test_only_a_process_that_was_ready_has_worked() -> None:
    told, _ = board("batch")
    told.started("batch", 1)
    assert told.worked_s("batch") == 0
    told.ready("batch")
    assert told.worked_s("batch") > 0
    told.started("batch", 2)
    assert told.worked_s("batch") == 0


def test_who_is_missing_after_a_while_is_named() -> None:
    told, said = board("redis", "batch")
    told.started("redis", 1)
    told.ready("redis")
    told.tell_if_waiting()
    assert "batch    -    waiting  batch-url" in said
    assert "not ready yet: batch" in said[-1]


def test_columns_are_as_wide_as_they_must_be() -> None:
    assert table_lines([["a", "bb"], ["ccc", ""]]) == ["a    bb", "ccc"]


def test_with_json_every_line_is_an_object_that_names_its_process_whoever_said_it() -> None:
    stream = io.StringIO()
    seen: list[str] = []
    lines = Lines("batch-1", Output(["batch-1"], stream, as_json=True), on_text=seen.append)
    own = {"timestamp": "2026-11-23T09:08:07Z", "level": "info", "event": "chunk.scored", "process": "gpu", "rows": 3}
    said = [json.dumps(own), "30524:M 23 Nov 2026 09:08:07.150 # Can't save in background", '{"no": "line of ours"}']
    lines.take("\n".join([*said, ""]).encode())
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert first == {**own, "process": "batch-1"}
    assert (second["level"], second["event"], second["process"]) == ("warning", "Can't save in background", "batch-1")
    assert third["event"] == '{"no": "line of ours"}'
    assert seen == [first["event"], second["event"], third["event"]]
