"""`forecache cost` and `forecache advise` as they are typed, without any deployment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import forecache_here
from tests.support.stack import run_cli

ROOT = Path(__file__).resolve().parents[3]


def cost(folder: Path, *options: str) -> Any:
    done = forecache_here(folder, "cost", *options, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_articles_example_by_its_name(tmp_path: Path) -> None:
    told = cost(tmp_path, "--preset", "article")
    assert round(told["batch"]["daily"], 6) == 0.108333
    assert told["batch"]["per_prediction"] == pytest.approx(1.083333e-7)
    assert (told["realtime"]["instances"], told["realtime"]["daily"]) == (2, 240.0)
    assert told["realtime"]["per_prediction"] == pytest.approx(2.777778e-5)
    assert told["savings_percent"] == pytest.approx(99.954861)
    assert told["hybrid"]["daily"] == pytest.approx(120.108333)
    assert "a month's price" in told["slip"]
    assert told["corrected"]["batch"]["daily"] == pytest.approx(0.084155, abs=1e-6)


def test_the_example_is_still_known_by_its_older_name(tmp_path: Path) -> None:
    assert cost(tmp_path, "--preset", "brief") == cost(tmp_path, "--preset", "article")


def test_in_words_the_slip_is_told_with_both_figures(tmp_path: Path) -> None:
    done = forecache_here(tmp_path, "cost", "--preset", "article")
    assert "batch costs 0.084155 a day and not 0.108333" in done.stdout
    assert "batch\t0.108333" in done.stdout
    assert "real time\t240" in done.stdout


def test_one_price_is_for_both_fleets_and_a_batch_price_for_runs_alone(tmp_path: Path) -> None:
    given = (
        "--entities",
        "3.6e6",
        "--throughput",
        "1000",
        "--rps",
        "10",
        "--redis-price",
        "0",
        "--instance-price",
        "2",
    )
    assert cost(tmp_path, *given)["batch"]["daily"] == 2
    assert cost(tmp_path, *given, "--batch-instance-price", "3")["batch"]["daily"] == 3
    assert cost(tmp_path, *given, "--batch-instance-type", "g5.xlarge")["batch"]["daily"] == pytest.approx(1.006)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "--entities"),
        (("--entities", "5"), "--rps"),
        (("--entities", "0", "--rps", "1"), "entities: 0"),
        (("--entities", "-5", "--rps", "1"), "entities: -5"),
        (("--entities", "nan", "--rps", "1"), "entities: nan"),
        (("--entities", "5", "--rps", "inf"), "rps: inf"),
        (("--entities", "5", "--rps", "1", "--bytes", "0"), "bytes: 0"),
        (("--entities", "5", "--rps", "1e308", "--headroom", "9"), "rps: 1e+308 is too large"),
        (("--entities", "5", "--rps", "1", "--throughput", "1e-300"), "throughput: 1e-300 is too small"),
        (("--entities", "5", "--rps", "1", "--hit-rate", "1.5"), "hit_rate: 1.5"),
        (("--entities", "5", "--rps", "1", "--instance-type", "g5.xlagre"), "nearest is 'g5.xlarge'"),
        (("--entities", "5", "--rps", "1", "--prices", "none.toml"), "none.toml cannot be read"),
        (("--preset", "articel"), "the only one is 'article'"),
        (("--preset", "article", "--picture", "cost.jpg"), "does not end in .png or .svg"),
    ],
)
def test_a_wrong_input_is_wrong_usage_and_named_in_one_line(
    tmp_path: Path, options: tuple[str, ...], named: str
) -> None:
    done = forecache_here(tmp_path, "cost", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "head"), [("cost.png", b"\x89PNG"), ("cost.svg", b"<?xml")])
def test_a_picture_is_drawn_whole(tmp_path: Path, name: str, head: bytes) -> None:
    pytest.importorskip("matplotlib")
    done = forecache_here(tmp_path, "cost", "--preset", "article", "--picture", name)
    assert done.returncode == 0, done.stderr
    content = (tmp_path / name).read_bytes()
    assert content.startswith(head)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name.endswith("svg"):
        for text in (b"requests per entity and day", b"real time", b"break-even", b"What moves the hybrid total"):
            assert text in content


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = forecache_here(tmp_path, "cost", "--preset", "article", "--picture", "nowhere/cost.png")
    assert done.returncode == 1
    assert "nowhere/cost.png cannot be written" in done.stderr


# --- advise ---

SETTINGS = '[models.delay]\npath = "m"\nfeatures = "t.parquet"\n'


def advise(folder: Path, *options: str) -> Any:
    done = run_cli(folder, "advise", *options, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_a_history_advice_says_how_little_it_rests_on(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text(SETTINGS)
    done = run_cli(tmp_path, "advise")
    assert done.returncode == 0
    assert "delay: hybrid (confidence low)" in done.stdout
    assert "not sure: 0 published runs" in done.stdout
    assert "nothing measured: no Redis" in done.stderr


def test_answers_decide_and_each_number_is_traced(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text(SETTINGS)
    said = ("--stable-hours", "24", "--latency-ms", "3600000", "--cost-matters", "--entities", "1e6", "--rps", "10")
    (told,) = advise(tmp_path, *said)
    assert told["approach"] == "batch"
    # 27 MB three times at 61.32 a GB and month, and 100 s once a day at 3 an hour
    assert told["cost_per_day"] == pytest.approx(0.081 * 61.32 * 24 / 730 + 100 / 3600 * 3, rel=1e-6)
    assert "real time 120" in told["explanations"]["cost_per_day"]
    shown = run_cli(tmp_path, "advise", *said, "--explain").stdout
    assert "changes-slowly\tbatch\tyes\tstable_hours 24 (option: --stable-hours)" in shown
    assert "low-latency\trealtime\tno\tlatency_ms 3600000.0 (option: --latency-ms)" in shown


def test_no_can_be_said_too(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text(SETTINGS)
    (told,) = advise(tmp_path, "--no-fresh-features", "--high-value")
    held = {rule["name"]: rule["holds"] for rule in told["rules"]}
    assert (held["fresh-features"], held["high-value"], held["immediate-feedback"]) == (False, True, None)


def test_when_one_model_cannot_be_written_no_other_is(tmp_path: Path) -> None:
    file = tmp_path / "forecache.toml"
    file.write_text(SETTINGS)
    # `price` is set in the environment, so the file has no section of it
    arguments = ("advise", "--max-staleness-hours", "6", "--write")
    done = run_cli(tmp_path, *arguments, environment={"FORECACHE_MODELS__PRICE__PATH": "p"})
    assert done.returncode == 2, done.stderr
    assert "no section [models.price]" in done.stderr
    assert file.read_text() == SETTINGS
    assert [each.name for each in tmp_path.iterdir()] == ["forecache.toml"]


def test_a_link_stays_one_and_a_private_file_stays_private(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_bytes(SETTINGS.replace("\n", "\r\n").encode())
    real.chmod(0o600)
    (tmp_path / "forecache.toml").symlink_to(real)
    done = run_cli(tmp_path, "advise", "--max-staleness-hours", "6", "--write")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "forecache.toml").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert real.read_bytes().startswith(SETTINGS.replace("\n", "\r\n").encode())
    assert b'ttl = "6h"' in real.read_bytes()


def test_advice_that_stands_there_already_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "forecache.toml"
    file.write_text(SETTINGS)
    first = run_cli(tmp_path, "advise", "--max-staleness-hours", "6", "--write")
    written, at = file.read_text(), file.stat().st_mtime_ns
    assert '+schedule = "3h"' in first.stderr
    second = run_cli(tmp_path, "advise", "--max-staleness-hours", "6", "--write")
    assert "nothing was changed" in second.stderr
    assert (file.read_text(), file.stat().st_mtime_ns) == (written, at)


def test_without_a_model_it_says_what_to_do(tmp_path: Path) -> None:
    done = run_cli(tmp_path, "advise")
    assert done.returncode == 2
    assert "forecache init" in done.stderr


def test_a_wrong_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "forecache.toml").write_text(SETTINGS)
    done = run_cli(tmp_path, "advise", "--coverage", "2")
    assert done.returncode == 2
    assert "--coverage is from 0 to 1" in done.stderr
