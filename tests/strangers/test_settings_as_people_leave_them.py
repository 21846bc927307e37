"""Settings files as editors save them, variables as containers pass them, arguments as shells hand them over."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app import cli
from app.cli.doctor.machine import check_environment
from app.cli.features import _texts_by_name
from app.http import listen
from inference.errors import SettingsError
from inference.features import Feature, FeatureContract
from inference.schema import DType
from inference.settings import ApiSettings, load_settings
from inference.settings.loading import find_embedded_redis
from tests.support.stack import child_environment
from tests.support.warm_start import run_python

MODEL = '[models.m]\npath = "models/m"\n'


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORECACHE_CONFIG", raising=False)


def refusal() -> str:
    with pytest.raises(SettingsError) as refused:
        load_settings()
    return refused.value.message


def test_the_byte_order_mark_of_a_windows_editor_is_skipped() -> None:
    Path("forecache.toml").write_bytes(b"\xef\xbb\xbf" + MODEL.replace("\n", "\r\n").encode())
    assert list(load_settings().models) == ["m"]


def test_what_stands_after_a_byte_order_mark_is_refused_at_its_place() -> None:
    Path("forecache.toml").write_bytes(b"\xef\xbb\xbf# f\xfcr\n")
    assert refusal() == "forecache.toml line 1, column 4: byte 0xfc is not UTF-8: save it so"


@pytest.mark.parametrize("kind", ["folder", "dangling link", "loop"])
def test_a_settings_file_that_is_none_is_not_taken_for_missing(kind: str) -> None:
    file = Path("forecache.toml")
    if kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("forecache.toml" if kind == "loop" else "/nowhere/forecache.toml")
    assert refusal().startswith("settings file forecache.toml is no file, or a link to none")


@pytest.mark.parametrize("name", ["path", "features", "entity_column", "event_time_column"])
@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_says_nothing(name: str, blank: str) -> None:
    lines = {"path": "models/m", name: blank}
    Path("forecache.toml").write_text("[models.m]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items()))
    assert refusal() == f"forecache.toml [models.m]: {name}: is empty: write it, or leave the line out"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[api]\nport = 0", "[api]: port: must be at least 1"),
        ("[api]\nport = 99999", "[api]: port: must be at most 65535"),
        ('[api]\nport = "x"', "[api]: port: write a whole number"),
        ("[api]\nhost = 5", "[api]: host: write text"),
        ("[logs]\nlevel = 'DEBUG'", "[logs]: level: must be 'debug', 'info', 'warning' or 'error'"),
        ("[models.m]", "[models.m]: path: is missing"),
        ("[models.m]\npath = 5", "[models.m]: path: write a path"),
        ("models = 5", ": models: write a table"),
        (f"{MODEL}[models.m.realtime]\ntimeout_ms = 1e30", "[models.m.realtime]: timeout_ms: is too large"),
        (f"{MODEL}[models.m.realtime]\ntimeout_ms = nan", "[models.m.realtime]: timeout_ms: must be finite"),
        (f"{MODEL}[models.m.batch]\nmin_size_ratio = 7", "[models.m.batch]: min_size_ratio: must be at most 1"),
    ],
)
def test_a_value_of_another_kind_is_told_in_words_of_ours(line: str, sentence: str) -> None:
    Path("forecache.toml").write_text(line)
    assert refusal() == f"forecache.toml {sentence}".replace(" :", ":")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FORECACHE_API__PORT", "", "FORECACHE_API__PORT: port: write a whole number"),
        ("FORECACHE_MODELS__M__BATCH__TTL", "1 hour", "FORECACHE_MODELS__M__BATCH__TTL: ttl: '1 hour' is not"),
        ("forecache_api__prot", "8000", "forecache_api__prot: unknown setting 'prot'; did you mean 'port'?"),
    ],
)
def test_what_came_from_the_environment_is_not_blamed_on_the_file(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    Path("forecache.toml").write_text(MODEL)
    monkeypatch.setenv(variable, value)
    assert refusal().startswith(f"environment variable {told}")


def test_a_list_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("forecache.toml").write_text(MODEL)
    monkeypatch.setenv("FORECACHE_WORKERS__GPUS", "[0, 2]")
    monkeypatch.setenv("FORECACHE_MODELS__M__VERSIONS", "[3]")
    monkeypatch.setenv("FORECACHE_API__KEYS__ME__HASH", "sha256:" + "0" * 64)
    monkeypatch.setenv("FORECACHE_API__KEYS__ME__SCOPES", '["read", "write"]')
    settings = load_settings()
    assert (settings.workers.gpus, settings.models["m"].versions) == ([0, 2], [3])
    assert [scope.value for scope in settings.api.keys["me"].scopes] == ["read", "write"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[workers]\ngpus = 5", "[workers]: gpus: must be 'auto' or 'none', or write a list"),
        ('[workers]\ngpus = "[0,"', "[workers]: gpus: must be 'auto' or 'none', or write a list"),
        (f"{MODEL}versions = [0]", "[models.m.versions]: 0: must be at least 1"),
        (f"{MODEL}[models.m.realtime]\ndefault = 'x'", "[models.m.realtime]: default: write a number, or write a list"),
    ],
)
def test_what_may_be_of_several_kinds_names_all_of_them(line: str, sentence: str) -> None:
    Path("forecache.toml").write_text(line)
    assert refusal().startswith(f"forecache.toml {sentence}")


@pytest.mark.parametrize("content", [b"\xff", b"null", b"[]", b"{"])
def test_a_spoilt_note_of_the_embedded_redis_is_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".forecache").mkdir()
    (tmp_path / ".forecache" / "redis.json").write_bytes(content)
    assert find_embedded_redis(tmp_path) is None


def test_an_argument_that_is_no_text_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["forecache", "predict", "a\udcff"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == cli.USAGE
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "forecache: the argument a\\udcff is not UTF-8 text: "
        "give it as UTF-8, in a locale of UTF-8 such as LC_ALL=C.UTF-8"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "a", "--timeout-ms", "99999999999999999999"],
        ["predict", "a", "--max-staleness-hours", "1e400"],
        ["predict", "a", "--max-staleness-hours", "nan"],
        ["api", "--fd", "-1"],
        ["api", "--fd", "99999999999"],
        ["api", "--standby"],
    ],
    ids=" ".join,
)
def test_numbers_that_nothing_can_hold_are_wrong_usage(arguments: list[str]) -> None:
    Path("forecache.toml").write_text(MODEL)
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, SystemExit | SettingsError), result.exception


def test_a_variable_that_lacks_an_underscore_is_told_by_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECACHE_REDIS_URL", "redis://10.0.0.1:6379/0")
    monkeypatch.setenv("FORECACHE_CELERY_BROKER_URL", "amqp://10.0.0.1")
    told = {one.detail: one.fix for one in check_environment()}
    assert told == {
        "FORECACHE_REDIS_URL is not a setting, and nothing reads it": "call it FORECACHE_REDIS__URL",
        "FORECACHE_CELERY_BROKER_URL is not a setting, and nothing reads it": "call it FORECACHE_CELERY__BROKER_URL",
    }


def test_what_container_platforms_inject_is_no_mistake_of_the_users() -> None:
    injected = {
        "FORECACHE_API_PORT": "tcp://10.0.0.1:8000",
        "FORECACHE_API_PORT_8000_TCP_PORT": "8000",
        "FORECACHE_API_SERVICE_HOST": "10.0.0.1",
        "FORECACHE_DEBUG": "1",
        "FORECACHE_CONFIG": "/etc/forecache.toml",
        "FORECACHE_REDIS__URL": "redis://10.0.0.1:6379/0",
    }
    assert not check_environment(injected)


def test_a_feature_that_is_put_twice_is_refused() -> None:
    contract = FeatureContract((Feature("a", DType.FLOAT32), Feature("a=b", DType.FLOAT32)))
    assert _texts_by_name(["a=1", "a=b=2"], contract) == {"a": "1", "a=b": "2"}
    with pytest.raises(typer.BadParameter, match="'a' is given twice: give it once"):
        _texts_by_name(["a=1", "a=2"], contract)


def test_a_host_that_is_none_is_told_apart_from_a_port_that_is_taken() -> None:
    api = ApiSettings(host="192.0.2.1", allow_remote=True)  # of documentation: no machine has it
    with pytest.raises(SettingsError, match=r"cannot be used \(.*\): correct \[api\] host"):
        listen(api)


def test_beat_says_in_one_line_what_is_wrong_with_the_settings(tmp_path: Path) -> None:
    Path("forecache.toml").write_text("modls = 1\n")
    done = run_python(["-m", "beat_schedule"], cwd=tmp_path, env=child_environment(), timeout_s=60)
    assert done.returncode == 1
    assert done.stderr == "forecache.toml: unknown setting 'modls'; did you mean 'models'?\n"
