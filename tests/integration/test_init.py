"""`forecache init` with real models: what it decides and writes, and that nothing is written when anything is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.cli.init import Asker, Options
from app.cli.onboarding import Onboarding
from inference.errors import Conflict, ForecacheError, SettingsError
from inference.models import VersionRecord, inspect_versions
from inference.onboarding.trial import try_row
from inference.settings import Settings, load_settings
from tests.support.models import dense_predictions, export_models
from tests.support.plain_onnx import write_dense, write_fussy, write_mixed
from tests.support.stack import child_environment, run_cli
from tests.support.terminal import Terminal
from tests.support.wide_parquet import write_wide

pytestmark = pytest.mark.integration

INIT = [sys.executable, "-P", "-m", "app.cli", "init"]
USERS = pd.DataFrame(
    {
        "country": ["DE"] * 50,
        "user_id": [f"user {i}/é" for i in range(50)],
        "age": np.arange(50),
        "income": np.linspace(-1, 1, 50),
        "visits": 3.0,
        "clicks": 0,
    }
)
STONES = pd.DataFrame({"id": range(50), "cut": "Ideal", "depth": 60, "carat": 1.0})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_dense(folder / "clicks" / "1", 3)
    write_dense(folder / "wide" / "1", 5)
    write_mixed(folder / "price" / "1")
    write_fussy(folder / "fussy" / "1")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models and tables."""
    own = tmp_path / "own"
    shutil.copytree(exported, own / "models")
    USERS.to_parquet(own / "users.parquet")
    STONES.to_parquet(own / "stones.parquet")
    monkeypatch.chdir(own)
    monkeypatch.delenv("FORECACHE_CONFIG", raising=False)
    return own


def inspect_here(settings: Settings, model: str) -> dict[int, VersionRecord]:
    return inspect_versions(settings.path(settings.model(model)[1].path), "latest")


def init(model: str, features: str, entity_column: str | None, **more: object) -> None:
    """The command without its subprocesses, each of which takes seconds to load TensorFlow."""
    options = Options(
        model=model,
        features=features,
        entity_column=entity_column,
        event_time_column=None,
        columns=None,
        name=None,
        schedule="0 3 * * *",
        force=False,
    )
    asker = Asker(interactive=False, accepts=True)
    Onboarding(replace(options, **more), asker, inspect=inspect_here, try_row=try_row).run()  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", pytest.param("saved_model", marks=pytest.mark.slow)])
def test_a_single_tensor_gets_settings_and_a_contract_after_a_row_was_scored(folder: Path, format_: str) -> None:
    if format_ == "saved_model":
        shutil.rmtree(folder / "models/clicks")
        export_models({folder / "models/clicks/1": "dense:3:0"})
    before = contents(folder)
    done = run_cli(
        folder, "init", "--model", "models/clicks", "--features", "users.parquet", "--entity-column", "user_id"
    )
    assert done.returncode == 0, done.stderr
    assert set(contents(folder)) - set(before) == {"forecache.toml", "models/clicks/features.json"}
    name, model = load_settings().model()
    assert (name, str(model.path), model.features, model.entity_column) == (
        "clicks",
        "models/clicks",
        "users.parquet",
        "user_id",
    )
    features = json.loads((folder / "models/clicks/features.json").read_text())["features"]
    assert [feature["name"] for feature in features] == ["age", "income", "visits"]
    (expected,) = dense_predictions(np.array([[0, -1, 3]]))
    scored = next(line for line in done.stdout.splitlines() if line.startswith("scored:"))
    assert "'user 0/é'" in scored
    assert float(scored.rpartition(" ")[2]) == pytest.approx(float(expected), rel=1e-5)
    assert "left out as what the model predicts: clicks" in done.stdout
    commands = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert commands[:3] == [
        "forecache up",
        "forecache batch run clicks --wait",
        "curl http://127.0.0.1:8000/predict/user%200%2F%C3%A9",
    ]


def test_named_inputs_need_no_contract_and_the_id_is_guessed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    init("models/price", "stones.parquet", None, name="stone-price")
    assert set(contents(folder)) - set(before) == {"forecache.toml"}
    assert load_settings().model()[1].entity_column == "id"
    said = capsys.readouterr().out
    assert "'id': integers, unique in all 50 rows" in said
    assert "'0' -> 190.0" in said


def test_what_was_written_is_replaced_only_by_force(folder: Path) -> None:
    init("models/clicks", "users.parquet", "user_id")
    before = contents(folder)
    with pytest.raises(Conflict, match=r"already sets up \[models.clicks\]: --force replaces it"):
        init("models/clicks", "users.parquet", "user_id")
    with pytest.raises(Conflict, match=r"features\.json already lists other columns: --force replaces it"):
        init("models/clicks", "users.parquet", "user_id", columns="visits,age,income", name="other")
    assert contents(folder) == before
    init("models/clicks", "users.parquet", "user_id", columns="visits,age,income", force=True)
    features = json.loads((folder / "models/clicks/features.json").read_text())["features"]
    assert [feature["name"] for feature in features] == ["visits", "age", "income"]


def test_beside_other_models_the_block_to_paste_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "forecache.toml").write_text('[models.price]\npath = "models/price"\n')
    before = contents(folder)
    for force in (False, True):
        with pytest.raises(Conflict, match="nothing was written: paste the text above into these files"):
            init("models/clicks", "users.parquet", "user_id", force=force)
    assert contents(folder) == before
    said = capsys.readouterr().out
    contract, _, block = said.split("# models/clicks/features.json:\n")[-1].partition("# forecache.toml:\n")
    (folder / "models/clicks/features.json").write_text(contract)
    (folder / "forecache.toml").write_text('[models.price]\npath = "models/price"\n' + block)
    assert set(load_settings().models) == {"clicks", "price"}


def test_a_second_model_is_added_when_told_so(folder: Path) -> None:
    before = '# mine\n[api]\nport = 9000\n\n[models.price]\npath = "models/price"\n'
    (folder / "forecache.toml").write_text(before)
    init("models/clicks", "users.parquet", "user_id", add=True)
    settings = load_settings()
    assert (set(settings.models), settings.api.port) == ({"clicks", "price"}, 9000)
    assert (folder / "forecache.toml").read_text().startswith(before)


def test_a_file_to_which_no_table_can_be_added_stays_as_it_is(folder: Path) -> None:
    (folder / "forecache.toml").write_text('models = { price = { path = "models/price" } }\n')
    before = contents(folder)
    with pytest.raises(SettingsError):
        init("models/clicks", "users.parquet", "user_id", add=True)
    assert contents(folder) == before


def test_a_contract_that_is_already_there_is_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = '{"features": [{"name": "clicks", "dtype": "float32"}, {"name": "age", "dtype": "float32"}]}'
    (folder / "models/fussy/features.json").write_text(written.replace("float32", "int64", 1))
    with pytest.raises(ForecacheError, match=r"not a finite number; the row: clicks=0, age=0\.0"):
        init("models/fussy", "users.parquet", "user_id")
    assert "as features.json lists them: clicks, age" in capsys.readouterr().out


# --- bad input: one line, nothing written ---


def with_table(folder: Path, name: str, table: pd.DataFrame) -> str:
    table.to_parquet(folder / name)
    return name


BAD_TABLES = {
    "absent": ("gone.parquet", "does not exist"),
    "elsewhere": ("s3://bucket/users.parquet", "is not on this machine"),
    "no-parquet": ("notes.txt", "not readable as Parquet"),
    "empty": ("empty.parquet", "has no rows"),
    "million-columns": ("wide.parquet", "over 200,000 columns or row groups"),
    "float-ids": ("floats.parquet", "cast it to an integer or to text"),
    "repeated-ids": ("twice.parquet", r"'user_id' repeats 'user 0/é' in all 50 rows"),
    "misspelt-id": ("renamed.parquet", r"no column 'user_id' \(entity_column\): did you mean 'usr_id'"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_writes_nothing(folder: Path, case: str) -> None:
    (folder / "notes.txt").write_text("user_id,age\n1,2\n")
    with_table(folder, "empty.parquet", USERS.iloc[:0])
    with_table(folder, "floats.parquet", USERS.assign(user_id=np.arange(50.0)))
    with_table(folder, "twice.parquet", USERS.assign(user_id=["user 0/é", *USERS["user_id"][:49]]))
    with_table(folder, "renamed.parquet", USERS.rename(columns={"user_id": "usr_id"}))
    write_wide(folder / "wide.parquet", 1_000_000)
    table, words = BAD_TABLES[case]
    assert_refused(folder, words, "models/clicks", table, "user_id")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("models/gone", "models/gone does not exist"),
        ("models", "holds no model"),
        ("users.parquet", "give the folder that holds the model"),
        ("model.keras", "^model.keras cannot be loaded as a Keras model"),
    ],
)
def test_a_bad_model_folder_writes_nothing(folder: Path, model: str, words: str) -> None:
    (folder / "model.keras").write_bytes(b"PK")
    assert_refused(folder, words, model, "users.parquet", "user_id")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": "My Model"}, "--name: 'My Model' must be 1 to 64 of a-z"),
        ({"schedule": "daily at 3"}, "--schedule: 'daily at 3' is no schedule"),
        ({"event_time_column": "age"}, "event time column 'age' is int64: cast it to a timestamp"),
        ({"columns": "age,incme,visits"}, r"no column 'incme' \(nearest: 'income'\)"),
        ({"columns": "age,income"}, "gives 2 values but the model's input 'x' takes 3 values"),
    ],
)
def test_a_bad_option_writes_nothing(folder: Path, more: dict[str, str], words: str) -> None:
    assert_refused(folder, words, "models/clicks", "users.parquet", "user_id", **more)


def test_a_model_whose_inputs_match_no_column_names_the_nearest(folder: Path) -> None:
    with_table(folder, "renamed.parquet", STONES.rename(columns={"carat": "carats", "cut": "shape", "depth": "Depth"}))
    words = r"none of the model's 3 inputs .*'carat' \(nearest: 'carats'\), 'cut' .*, 'depth' \(nearest: 'Depth'\)"
    assert_refused(folder, words, "models/price", "renamed.parquet", "id")


def test_a_tensor_wider_than_the_table_names_what_it_has(folder: Path) -> None:
    assert_refused(
        folder, "takes 5 values, .* only age, income, visits, clicks", "models/wide", "users.parquet", "user_id"
    )


def test_a_model_that_fails_on_the_first_row_shows_it(folder: Path) -> None:
    with_table(folder, "negative.parquet", USERS[["user_id", "age", "visits"]].assign(age=-7))
    words = r"fails on the row of 'user 0/é': .*; the row: age=-7.0, visits=3.0$"
    assert_refused(folder, words, "models/fussy", "negative.parquet", "user_id")


def test_a_table_without_a_usable_row_shows_why(folder: Path) -> None:
    with_table(folder, "missing.parquet", USERS[["user_id", "age", "visits"]].assign(age=np.nan))
    words = r"none of the first 50 rows of missing.parquet can be scored: feature 'age': missing"
    assert_refused(folder, words, "models/fussy", "missing.parquet", "user_id")


def test_rows_that_cannot_be_scored_are_skipped_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = USERS[["user_id", "age", "visits"]].assign(age=[np.nan, np.nan, *range(48)])
    init("models/fussy", with_table(folder, "some.parquet", some), "user_id")
    said = capsys.readouterr().out
    assert "'user 2/é' -> " in said
    assert "2 of the first 50 rows cannot be scored: feature 'age': missing" in said


def assert_refused(folder: Path, words: str, *arguments: str, **more: str) -> None:
    before = contents(folder)
    with pytest.raises(ForecacheError, match=words) as caught:
        init(*arguments, **more)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1_000
    assert contents(folder) == before


OPTIONS = {"--model": "models/clicks", "--features": "users.parquet", "--entity-column": "user_id"}


@pytest.mark.parametrize("missing", OPTIONS)
def test_without_a_terminal_the_missing_option_is_named(folder: Path, missing: str) -> None:
    before = contents(folder)
    given = [text for option, value in OPTIONS.items() if option != missing for text in (option, value)]
    done = run_cli(folder, "init", *given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"forecache: {missing} is missing: ")
    assert len(done.stderr.splitlines()) == 1
    assert missing != "--entity-column" or "the table suggests 'user_id'" in done.stderr
    assert contents(folder) == before


@pytest.mark.parametrize("command", [["init"], ["up"], ["batch", "list"]])
def test_a_syntax_error_in_the_settings_is_named_by_line_and_column(folder: Path, command: list[str]) -> None:
    (folder / "forecache.toml").write_text("[api]\nport = = 8000\n")
    before = contents(folder)
    done = run_cli(folder, *command)
    assert done.returncode == 2
    assert done.stderr == "forecache: forecache.toml line 2, column 8: not valid TOML: Invalid value\n"
    assert contents(folder) == before


def as_ordinary_user(*command: str) -> list[str]:
    """The command, bound by permissions even where root runs the tests."""
    if os.geteuid() != 0:
        return list(command)
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--", *command]


@pytest.mark.parametrize("place", [".", pytest.param("models/clicks", marks=pytest.mark.slow)])
def test_a_read_only_folder_is_said_in_one_line(folder: Path, place: str) -> None:
    before = contents(folder)
    (folder / place).chmod(0o555)
    arguments = [text for option in OPTIONS.items() for text in option]
    done = subprocess.run(
        as_ordinary_user(*INIT, *arguments),
        cwd=folder,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    (folder / place).chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.startswith("forecache: folder ")
    assert "cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert contents(folder) == before


# --- on a terminal ---


@pytest.mark.slow
def test_on_a_terminal_wrong_answers_are_asked_for_again_with_the_reason(folder: Path) -> None:
    with Terminal(folder, *INIT, "--name", "wide") as terminal:
        terminal.wait_said("folder of the model")
        terminal.answer("models/gone")
        terminal.wait_said("models/gone does not exist")
        terminal.answer("models/clicks")
        terminal.wait_said("Parquet file or folder")
        terminal.answer("users.csv")
        terminal.wait_said("users.csv does not exist")
        terminal.answer("users.parquet")
        terminal.wait_said("column of entity ids [user_id]:")
        terminal.answer("country")
        terminal.wait_said("'country' repeats 'DE'")
        terminal.press("Enter")
        # "clicks" is not left out unasked: the model has another name
        terminal.wait_said("has 4 numeric columns: age, income, visits, clicks", within_s=150)
        terminal.answer("age, incme, visits")
        terminal.wait_said("no column 'incme' (nearest: 'income')")
        terminal.answer("visits, income, age")
        assert terminal.wait_ended(within_s=150) == 0
        assert "forecache batch run wide --wait" in terminal.screen()
    features = json.loads((folder / "models/clicks/features.json").read_text())["features"]
    assert [feature["name"] for feature in features] == ["visits", "income", "age"]
    assert load_settings().model()[1].entity_column == "user_id"


@pytest.mark.parametrize("key", ["C-c", "C-d"])
def test_leaving_a_question_leaves_cleanly(folder: Path, key: str) -> None:
    before = contents(folder)
    with Terminal(folder, *INIT, "--model", "models/clicks") as terminal:
        terminal.wait_said("Parquet file or folder")
        terminal.press(key)
        assert terminal.wait_ended() in (1, 130)
        assert "Aborted" in terminal.screen()
        assert "Traceback" not in terminal.screen()
    assert contents(folder) == before


def test_what_is_given_is_not_asked_for() -> None:
    assert Asker(interactive=True, accepts=False).need("--entity-column", "column", "id", str) == "id"
