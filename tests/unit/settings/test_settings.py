"""Settings: where they come from, and what a user is told when one is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inference.errors import SettingsError, UnknownModel
from inference.settings import ApiSettings, load_settings, parse_duration

MINIMAL = '[models.delay]\npath = "models/delay"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, name: str = "forecache.toml") -> None:
    Path(name).write_text(text)


def test_without_a_file_the_defaults_stand() -> None:
    settings = load_settings()
    assert settings.redis_url == "redis://127.0.0.1:6379/0"
    assert settings.cache_url == "redis://127.0.0.1:6379/1"
    assert settings.api.port == 8000


def test_durations_become_seconds() -> None:
    write(MINIMAL + '[models.delay.batch]\nttl = "12h"\nkeep = "3d"\n')
    _, model = load_settings().model()
    assert (model.batch.ttl, model.batch.keep) == (12 * 3600, 3 * 86400)


@pytest.mark.parametrize("text", ["24x", "-5s", "0s", "", "h", True, [3]])
def test_a_malformed_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    write(MINIMAL + '[models.delay.batch]\nschedul = "30s"\n')
    with pytest.raises(SettingsError, match=r"\[models\.delay\.batch\].*'schedul'.*'schedule'"):
        load_settings()


def test_an_unknown_section_names_the_nearest_known_one() -> None:
    write('[reddis]\nurl = "redis://x"\n')
    with pytest.raises(SettingsError, match="did you mean 'redis'"):
        load_settings()


def test_a_syntax_error_names_line_and_column() -> None:
    write("[api]\nport = = 1\n")
    with pytest.raises(SettingsError, match=r"line 2, column"):
        load_settings()


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write(MINIMAL + "[api]\nport = 8001\n")
    monkeypatch.setenv("FORECACHE_API__PORT", "8002")
    monkeypatch.setenv("FORECACHE_MODELS__DELAY__VERSIONS", "[3, 4]")
    settings = load_settings()
    assert settings.api.port == 8002
    assert settings.model("delay")[1].versions == [3, 4]


def test_what_container_platforms_inject_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECACHE_API", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("FORECACHE_API_PORT", "tcp://10.0.0.1:8000")
    assert load_settings().api.port == 8000


def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECACHE_REDSI__URL", "redis://x")
    with pytest.raises(SettingsError, match=r"FORECACHE_REDSI__URL.*'redis'"):
        load_settings()


def test_a_setting_may_come_from_a_file_as_containers_get_their_secrets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(MINIMAL + '[redis]\nurl = "redis://other/0"\n')
    (folder / "redis_url").write_text("redis://:sesame@cache/0\n")
    (folder / "hash").write_text(f"sha256:{'0' * 64}")
    monkeypatch.setenv("FORECACHE_REDIS__URL_FILE", str(folder / "redis_url"))
    monkeypatch.setenv("FORECACHE_API__KEYS__SHOP__HASH_FILE", str(folder / "hash"))
    settings = load_settings()
    assert settings.redis_url == "redis://:sesame@cache/0"
    assert settings.api.keys["shop"].hash == f"sha256:{'0' * 64}"


def test_a_file_of_a_setting_that_cannot_be_read_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECACHE_REDIS__URL_FILE", "/run/secrets/nothing")
    with pytest.raises(SettingsError, match=r"FORECACHE_REDIS__URL_FILE: /run/secrets/nothing cannot be read: No such"):
        load_settings()


def test_a_setting_and_its_file_at_once_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "redis_url").write_text("redis://cache/0")
    monkeypatch.setenv("FORECACHE_REDIS__URL", "redis://other/0")
    monkeypatch.setenv("FORECACHE_REDIS__URL_FILE", str(folder / "redis_url"))
    with pytest.raises(SettingsError, match="FORECACHE_REDIS__URL and FORECACHE_REDIS__URL_FILE are both set"):
        load_settings()


def test_a_misspelt_variable_of_a_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "secret").write_text("x")
    monkeypatch.setenv("FORECACHE_REDIS__URRL_FILE", str(folder / "secret"))
    with pytest.raises(SettingsError, match="did you mean 'url'"):
        load_settings()


def test_the_content_of_a_secret_file_is_in_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "secret").write_text("http://:hunter2@cache/0")
    monkeypatch.setenv("FORECACHE_REDIS__URL_FILE", str(folder / "secret"))
    with pytest.raises(SettingsError, match="a Redis URL starts with") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_a_model_may_be_called_as_if_it_were_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECACHE_MODELS__FROM_FILE__PATH", "model")
    assert load_settings().model("from_file")[1].path == Path("model")


def test_a_named_file_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECACHE_CONFIG", "nowhere.toml")
    with pytest.raises(SettingsError, match=r"nowhere\.toml does not exist"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"[api]\nport = = 1\n", "line 2, column 8"),
        (b"[api", "line 1, column 5"),
        (b'[api]\nhost = "x', "line 2, column 10"),
        (b"port = 1\nport = 2", "line 2, column 9"),
        (b'# h\xc3\xb6\n[api]\nhost = "\xff"', "line 3, column 9"),
    ],
)
def test_a_syntax_error_is_one_line_with_line_and_column(text: bytes, place: str) -> None:
    Path("forecache.toml").write_bytes(text)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.message.startswith(f"forecache.toml {place}: ")
    assert "\n" not in caught.value.message


def test_relative_paths_start_at_the_settings_file(folder: Path) -> None:
    (folder / "deep").mkdir()
    write(MINIMAL, "deep/forecache.toml")
    settings = load_settings("deep/forecache.toml")
    assert settings.path("models/delay") == folder / "deep" / "models" / "delay"
    assert settings.state_dir == folder / "deep" / ".forecache"


def test_secrets_are_never_printed() -> None:
    write(
        '[redis]\nurl = "redis://:hunter2@localhost/0"\ncache_url = "redis://:hunter2@localhost/1"\n'
        '[celery]\nbroker_url = "amqp://u:hunter2@localhost"\n[dashboard]\npassword = "hunter2"\n'
    )
    settings = load_settings()
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.model_dump_json())
    assert settings.broker_url == "amqp://u:hunter2@localhost"


def test_a_malformed_secret_is_not_echoed() -> None:
    write('[redis]\nurl = "http://:hunter2@localhost"\n')
    with pytest.raises(SettingsError, match="redis://") as caught:
        load_settings()
    assert "hunter2" not in caught.value.message


def test_a_running_embedded_redis_is_found(folder: Path) -> None:
    (folder / ".forecache").mkdir()
    (folder / ".forecache" / "redis.json").write_text(
        json.dumps({"url": "redis://:pw@127.0.0.1:7000/0", "cache_url": "redis://:pw@127.0.0.1:7000/1", "pid": 1})
    )
    assert load_settings().cache_url == "redis://:pw@127.0.0.1:7000/1"


def test_a_configured_redis_wins_over_an_embedded_one(folder: Path) -> None:
    test_a_running_embedded_redis_is_found(folder)
    write('[redis]\nurl = "redis://elsewhere/0"\ncache_url = "redis://elsewhere/1"\n')
    assert load_settings().redis_url == "redis://elsewhere/0"


@pytest.mark.parametrize("line", ['schedule = "every day"', 'timezone = "Mars/Base"', "rows_per_chunk = 0"])
def test_a_bad_value_names_its_key(line: str) -> None:
    write(MINIMAL + f"[models.delay.batch]\n{line}\n")
    with pytest.raises(SettingsError, match=line.split()[0]):
        load_settings()


def test_a_bad_model_name_is_refused() -> None:
    write('[models."Delay!"]\npath = "x"\n')
    with pytest.raises(SettingsError, match="Delay!"):
        load_settings()


def test_the_only_model_need_not_be_named() -> None:
    write(MINIMAL)
    assert load_settings().model()[0] == "delay"


def test_an_unknown_model_names_the_known_ones() -> None:
    write(MINIMAL)
    with pytest.raises(UnknownModel, match=r"'price'.*known: delay"):
        load_settings().model("price")


@pytest.mark.parametrize("query", ["", "?ssl_ca_certs=ca.pem", "?ssl_cert_reqs=CERT_REQUIRED"])
def test_a_redis_over_tls_must_say_which_certificates_it_asks_for(query: str) -> None:
    write(f'[redis]\nurl = "rediss://:secret@host:6380/0{query}"\n')
    with pytest.raises(SettingsError, match=r"\[redis\].*\?ssl_cert_reqs=required") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:hu/sh@h:6379/0", "redis://:hush@h:hush/0", "redis://:hu?sh@h/0"])
def test_an_address_with_a_password_that_is_not_encoded_is_refused_and_not_quoted(url: str) -> None:
    write(f'[redis]\nurl = "{url}"\n')
    with pytest.raises(SettingsError, match="special characters of a password are %-encoded") as caught:
        load_settings()
    assert "hu" not in caught.value.message.replace("[redis]", "")


def test_the_form_of_the_log_comes_from_the_environment_too_and_must_be_a_known_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (load_settings().logs.format, load_settings().logs.level) == ("console", "info")
    monkeypatch.setenv("FORECACHE_LOGS__FORMAT", "json")
    monkeypatch.setenv("FORECACHE_LOGS__LEVEL", "warning")
    assert (load_settings().logs.format, load_settings().logs.level) == ("json", "warning")
    monkeypatch.setenv("FORECACHE_LOGS__FORMAT", "xml")
    with pytest.raises(SettingsError, match="format"):
        load_settings()


def entities(text: str, *, batch: str = "feature_table = true", more: str = "") -> str:
    """The settings with a rule of entities."""
    return MINIMAL + f"\n[models.delay.batch]\nentities = {text}\n{batch}\n{more}"


@pytest.mark.parametrize(
    ("text", "window_s", "hit_rate"),
    [
        ('"all"', None, None),
        ('"asked within 30d"', 30 * 86400, None),
        ('"asked  within 36h"', 36 * 3600, None),
        ('"hit rate 0.95"', None, 0.95),
        ('"hit rate 0.5"', None, 0.5),
    ],
)
def test_entities_have_three_forms(text: str, window_s: float | None, hit_rate: float | None) -> None:
    write(entities(text))
    batch = load_settings().models["delay"].batch
    assert (batch.rule.asked_within_s, batch.rule.hit_rate) == (window_s, hit_rate)
    assert (batch.rule.is_all, batch.new_entities) == (text == '"all"', True)


@pytest.mark.parametrize(
    "text",
    [
        '"some"', "3", '"asked within 30"', '"asked within 23h"', '"asked within d"', '"hit rate 95%"', '"hit rate 0"',
        '"hit rate 0.49"', '"hit rate 1"', '"hit rate nan"', '"hit rate -inf"', '""', '"hit rate"', "true",
    ],
)  # fmt: skip
def test_other_entities_are_refused_with_the_three_forms(text: str) -> None:
    write(entities(text))
    with pytest.raises(SettingsError, match=r"\[models.delay.batch\]: entities: .*\"all\".*\"asked within.*\"hit rate"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "batch", "more", "message"),
    [
        (
            '"hit rate 0.9"',
            "",
            "",
            "leaves entities to real time, .* set batch.feature_table = true or features_of, or add a fallback",
        ),
        ('"hit rate 0.9"', "prediction_table = false\nfeature_table = true", "", "turn batch.prediction_table on"),
        ('"hit rate 0.9"', "feature_table = true", "[models.delay.access_log]\nenabled = false", "access_log.enabled"),
        (
            '"hit rate 0.9"',
            "feature_table = true",
            "[models.delay.access_log]\nasked_days = 6",
            "asked_days = 7 or more",
        ),
        ('"asked within 31d"', "feature_table = true", "", "asked_days = 31 or more"),
    ],
)
def test_a_rule_that_the_other_settings_cannot_serve_is_refused(text: str, batch: str, more: str, message: str) -> None:
    write(entities(text, batch=batch, more=more))
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_a_fallback_has_the_features_of_the_entities_that_are_left_out() -> None:
    fallback = '[[models.delay.fallbacks]]\nkind = "function"\nname = "f"\nfunction = "a:b"'
    write(entities('"hit rate 0.9"', batch="", more=fallback))
    assert load_settings().models["delay"].batch.entities == "hit rate 0.9"


OWN_QUEUE = '[models.slow]\npath = "slow"\n[models.slow.realtime]\nqueue = "{}"\n'


def test_a_model_may_have_a_queue_of_its_own() -> None:
    write(MINIMAL + "\n" + OWN_QUEUE.format("own"))
    settings = load_settings()
    assert settings.queues == ("batch", "realtime", "own", "maintenance")
    assert [settings.realtime_queue(model) for model in ("delay", "slow", None)] == ["realtime", "own", "realtime"]
    assert settings.models_of(["own"]) == ["slow"]


def test_the_only_models_queue_is_that_of_requests_that_name_none() -> None:
    write(OWN_QUEUE.format("own"))
    assert load_settings().realtime_queue(None) == "own"


@pytest.mark.parametrize("name", ["batch", "maintenance", "2", "Own", "a b", ""])
def test_a_queue_whose_workers_compute_no_requests_or_that_is_no_name_is_refused(name: str) -> None:
    write(OWN_QUEUE.format(name))
    with pytest.raises(SettingsError, match="queue"):
        load_settings()


@pytest.mark.parametrize(("given", "seconds"), [(0, 0.0), ("0", 0.0), ("0s", 0.0), ("1m", 60.0), (2.5, 2.5)])
def test_a_drain_may_be_none_at_all(given: object, seconds: float) -> None:
    assert ApiSettings.model_validate({"drain": given}).drain == seconds


@pytest.mark.parametrize("given", [-1, False, "five", None])
def test_a_drain_that_is_no_duration_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        ApiSettings.model_validate({"drain": given})


def test_features_of_names_another_model_with_features_of_its_own() -> None:
    other = '[models.fare]\npath = "models/fare"\nfeatures_of = "{}"\n'
    write(MINIMAL + other.format("delay"))
    settings = load_settings()
    assert [settings.features_owner(name) for name in ("delay", "fare", "gone")] == ["delay", "delay", "gone"]
    assert settings.sharing_features("delay") == ["delay", "fare"]
    for owner, told in (("dealy", "did you mean 'delay'?"), ("fare", "no other model")):
        write(MINIMAL + other.format(owner))
        with pytest.raises(SettingsError, match=re.escape(told)):
            load_settings()
    write(MINIMAL + other.format("delay") + "[models.fare.batch]\nfeature_table = true\n")
    with pytest.raises(SettingsError, match=re.escape("turn batch.feature_table off")):
        load_settings()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("", "[streams.in]: stream: is missing"),
        ('stream = "s"\ngrup = "g"', "did you mean 'group'?"),
        ('stream = "s"\nmodel = "price"', "in: no model 'price' is configured; known: delay"),
        ('stream = "s"\nstart = "now"', "start: must be 'earliest' or 'latest'"),
        ('stream = "s"\nurl = "http://x:1"', "a Redis URL starts with redis://"),
        ('stream = "s"\nurl = "redis+cluster://x:1"', "a stream lies in one Redis"),
        ('stream = "s"\nurl = "kafka://x"', "kafka://host:9092,other:9092"),
        ('stream = "s"\nurl = "kafka://u:geheim@x:9092"', 'set options = {"sasl.username" = "…"}, and password'),
        ('stream = "a b"\nurl = "kafka://x:9092"', "stream 'a b' is no topic"),
        ('stream = "s"\npassword = "geheim"', "options and password are Kafka's"),
        ('stream = "s"\nurl = "kafka://x:1"\noptions = {"group.id" = "g"}', "'group.id' is not set here: write group"),
        ('stream = "s"\nurl = "kafka://x:1"\noptions = {"sasl.password" = "geheim"}', "write password"),
        ('stream = "s"\nurl = "kafka://x:1"\noptions = {"ssl.key.pem" = "geheim"}', "would hold a secret"),
    ],
)
def test_a_wrong_stream_is_refused_by_field_and_fix(tmp_path: Path, section: str, says: str) -> None:
    file = tmp_path / "forecache.toml"
    file.write_text(f'[models.delay]\npath = "model"\n[streams.in]\n{section}\n')
    with pytest.raises(SettingsError) as refused:
        load_settings(file)
    assert says in refused.value.message
    assert "geheim" not in refused.value.message


def test_a_stream_hides_its_password_and_takes_it_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "forecache.toml"
    file.write_text('[models.delay]\npath = "model"\n[streams.in]\nstream = "s"\nurl = "kafka://x:9092"\n')
    monkeypatch.setenv("FORECACHE_STREAMS__IN__PASSWORD", "geheimes Wort")
    settings = load_settings(file)
    assert settings.streams["in"].password is not None
    assert "geheimes" not in repr(settings)
    assert (settings.streams["in"].brokers, settings.stream_model("in")) == ("x:9092", "delay")


def test_of_several_models_a_stream_names_one(tmp_path: Path) -> None:
    file = tmp_path / "forecache.toml"
    models = '[models.delay]\npath = "model"\n[models.price]\npath = "model"\nfeatures_of = "delay"\n'
    file.write_text(f'{models}[streams.in]\nstream = "s"\n')
    with pytest.raises(SettingsError, match="in names no model: set model to one of delay, price"):
        load_settings(file)
    file.write_text(f'{models}[streams.in]\nstream = "s"\nmodel = "price"\n')
    assert load_settings(file).stream_model("in") == "delay"
