"""doctor: installed versions, GPUs and clock of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.cli.doctor.findings import Status
from app.cli.doctor.machine import Gpus, check_clock, check_gpus, check_stop, check_versions, find_gpus
from inference.settings import ApiSettings, WorkerSettings

REQUIRED = [
    "celery<5.8,>=5.7",
    "orjson<4,>=3.10",
    'pytest>=8; extra == "dev"',
    'tensorflow<2.22,>=2.19; extra == "tensorflow"',
]


def lines(**installed: str) -> dict[str, tuple[Status, str]]:
    found = check_versions(installed.get, REQUIRED, python="3.11.7", release="1.0")
    return {one.subject: (one.status, one.detail) for one in found}


def test_what_fits_is_shown_and_small_libraries_only_when_they_do_not() -> None:
    found = lines(celery="5.7.1", orjson="3.11", tensorflow="2.20.0")
    assert list(found) == ["python", "forecache", "celery", "tensorflow"]
    assert {status for status, _ in found.values()} == {Status.OK}


def test_a_library_that_is_too_new_or_missing_is_an_error_with_the_line_that_mends_it() -> None:
    found = check_versions({"celery": "5.8.0"}.get, REQUIRED, python="3.11.7", release="1.0")
    wrong = {one.subject: one.fix for one in found if one.status is Status.ERROR}
    assert wrong == {"celery": "pip install 'celery<5.8,>=5.7'", "orjson": "pip install 'orjson<4,>=3.10'"}


def test_a_machine_without_workers_needs_no_tensorflow() -> None:
    assert "tensorflow" not in lines(celery="5.7.0", orjson="3.10")
    assert lines(celery="5.7.0", orjson="3.10", tensorflow="2.30")["tensorflow"][0] is Status.ERROR


@pytest.mark.parametrize(
    ("gpus", "there", "status", "told"),
    [
        ("auto", Gpus((), None, None), Status.OK, "no NVIDIA device"),
        ("auto", Gpus((0, 1), None, None), Status.OK, "NVIDIA device 0, 1"),
        ("auto", Gpus((0,), "-1", None), Status.WARNING, "hidden by CUDA_VISIBLE_DEVICES='-1'"),
        ("auto", Gpus((0,), "", None), Status.WARNING, "hidden by CUDA_VISIBLE_DEVICES=''"),
        ("auto", Gpus((0,), None, "TensorFlow's build is for the CPU only"), Status.WARNING, "CPU only"),
        ("none", Gpus((0,), None, "x"), Status.OK, "not used"),
        ([0, 2], Gpus((0, 1), None, None), Status.ERROR, "names 2, but this machine has 0, 1"),
        ([0], Gpus((), None, None), Status.ERROR, "has no NVIDIA device"),
        ([1], Gpus((0, 1), "0", None), Status.OK, "NVIDIA device 0, 1"),
    ],
)
def test_workers_compute_where_the_settings_want_them(gpus: Any, there: Gpus, status: Status, told: str) -> None:
    found = check_gpus(WorkerSettings(gpus=gpus), there)
    assert found.status is status
    assert told in found.detail


def test_devices_are_counted_by_their_files(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert find_gpus(tmp_path, {"CUDA_VISIBLE_DEVICES": "2"})[:2] == ((0, 2, 10), "2")
    assert find_gpus(tmp_path / "none", {})[:3] == ((), None, None)


def test_a_clock_half_a_second_off_is_told_of() -> None:
    assert check_clock(0.4).status is Status.OK
    assert check_clock(-0.6).status is Status.WARNING
    assert check_clock(-0.6).detail == "0.600 s ahead of Redis"
    assert check_clock(None).status is Status.WARNING


def test_a_drain_that_the_platform_cuts_off_is_told() -> None:
    assert check_stop(ApiSettings()).status is Status.OK
    assert check_stop(ApiSettings(drain=15, stop_timeout=25)).status is Status.OK
    cut_off = check_stop(ApiSettings(drain=16, stop_timeout=25))
    assert (cut_off.status, cut_off.subject) == (Status.WARNING, "stop")
    assert "26 s" in cut_off.detail
    assert "killed after 25 s" in cut_off.detail
    unknown = check_stop(ApiSettings(drain=21))
    assert "Kubernetes kills after 30 s" in unknown.detail
    assert "stop_timeout" in (unknown.fix or "")
