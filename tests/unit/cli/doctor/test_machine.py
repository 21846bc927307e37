"""doctor: what is installed."""

from __future__ import annotations

from app.cli.doctor.findings import Status
from app.cli.doctor.machine import check_versions

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
