"""URLs of Redis servers and brokers, as people copy them from other projects: used as meant, or refused in one line."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis
from flower.utils import broker
from kombu import Connection

from app.dashboard.flower_app import count_by_our_url
from inference.errors import SettingsError
from inference.monitoring.queues import JobPriority
from inference.settings import Settings, load_settings
from tasks.celery_app import make_celery
from tasks.dispatch.sender import priorities
from tests.support.redis_server import RedisServer

TLS = "?ssl_cert_reqs=required"


def read(folder: Path, **urls: str) -> Settings:
    """Return the settings of a file with these URLs."""
    file = folder / "forecache.toml"
    of_redis = "".join(f'{name} = "{url}"\n' for name, url in urls.items() if name != "broker_url")
    of_celery = f'[celery]\nbroker_url = "{urls["broker_url"]}"\n' if "broker_url" in urls else ""
    file.write_text(f"[redis]\n{of_redis}{of_celery}")
    return load_settings(file)


def refusal(folder: Path, **urls: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(folder, **urls)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://:p%40ss@cache:6380/3", 3),
        ("REDIS://:p%40ss@cache:6380/3", 3),
        ("redis://:p%40ss@cache:6380?db=3", 3),
        ("redis://:p%40ss@cache:6380", 0),
        (f"rediss://:p%40ss@cache:6380/3{TLS}", 3),
        ("unix://:p%40ss@/run/r.sock?db=3", 3),
        ("unix:///run/r.sock?db=3&password=p@ss", 3),
        ("redis+socket://:p%40ss@/run/r.sock?virtual_host=3", 3),
        ("socket://:p%40ss@/run/r.sock?virtual_host=3", 3),
        ("unix://:p%40ss@/run/r.sock", 0),
        ("unix://:p%40ss@/run/r.sock?virtual_host=3", 3),
    ],
)
def test_every_spelling_of_a_redis_is_the_same_server_for_redis_py_and_for_celery(
    tmp_path: Path, url: str, database: int
) -> None:
    settings = read(tmp_path, url=url)
    own = redis.Redis.from_url(settings.broker_url).connection_pool.make_connection()
    application = make_celery(settings)
    with application.connection_for_write() as connection:
        transport = connection.transport
        kombus = transport.Channel._connparams(FakeChannel(transport))
    results = application.backend.connparams
    for told in (kombus, results):
        assert (told["db"], told["password"]) == (database, "p@ss") == (own.db, own.password)
        assert told.get("path") == getattr(own, "path", None)
        assert told.get("host") == getattr(own, "host", None)
    # the options fit the kind of connection
    kombus["connection_class"](**{name: value for name, value in kombus.items() if name not in _OF_POOLS})
    application.backend.client.connection_pool.make_connection()


_OF_POOLS = ("connection_class", "max_connections")


class FakeChannel:
    """As much of kombu's Redis channel as working out the parameters of its connections takes."""

    def __init__(self, transport: object) -> None:
        self.connection = transport
        self.__dict__.update(
            {
                name: self.connection.client.transport_options.get(name)  # type: ignore[attr-defined]
                for name in ("socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options")
            },
            max_connections=10, health_check_interval=5, retry_on_timeout=None, client_name=None,
        )  # fmt: skip

    connection_class = redis.Connection
    connection_class_ssl = redis.SSLConnection

    def __getattr__(self, name: str) -> object:
        from kombu.transport.redis import Channel

        return getattr(Channel, name).__get__(self)


@pytest.mark.parametrize(
    "url", ["redis://h/0", f"rediss://h/0{TLS}", "unix:///run/r.sock", "redis+socket:///run/r.sock"]
)
def test_every_redis_has_the_prefix_the_order_of_priorities_and_a_limit_on_silence(tmp_path: Path, url: str) -> None:
    settings = read(tmp_path, broker_url=url)
    options = make_celery(settings).conf.broker_transport_options
    assert options["global_keyprefix"] == "forecache:"
    assert 0 < options["socket_timeout"] <= 10
    assert options["health_check_interval"] <= 10
    numbers = priorities(settings)
    assert numbers.request < numbers.jobs[JobPriority.HIGH] < numbers.jobs[JobPriority.LOW]


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://127.0.0.1:26379;sentinel://127.0.0.1:26380;sentinel://127.0.0.1:26381",
        "sentinel://h:26379",
        "redis-sentinel://h:26379",
    ],
)
def test_celerys_own_form_of_sentinels_is_refused_with_what_to_write(tmp_path: Path, url: str) -> None:
    for where in ("broker_url", "url", "cache_url"):
        told = refusal(tmp_path, **{where: url})
        assert where in told
        assert "redis+sentinel://host:26379,host2:26379/mymaster/0" in told


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("redis://a:6379/3;redis://b:6379/3", "a list of servers"),
        ("amqp://a:5672//;amqp://b:5672//", "a list of servers"),
        ("redis+cluster://h:6379", "give a single Redis, as redis://host:6379/0"),
        ("rediss+cluster://h:6379", "give a single Redis, as redis://host:6379/0"),
        ("memory://", "use redis:// or amqp://"),
        ("memory://localhost/", "use redis:// or amqp://"),
        ("filesystem://", "use redis:// or amqp://"),
        ("sqla+sqlite://", "use redis:// or amqp://"),
        ("bogus://x", "starts with redis://"),
        ("http://h:6379", "starts with redis://"),
        ("tcp://h:6379", "starts with redis://"),
        ("127.0.0.1:6379", "starts with redis://"),
        ("h:6379/0", "starts with redis://"),
        ("", "starts with redis://"),
        ("valkey://h:6379/0", "write redis://"),
        ("amqp://guest:guest@h:port//", "its port is no number"),
        ("amqp://guest:guest@h:99999//", "its port is no number"),
        ("amqp://u:pa/ss@h:5672//", "%-encoded"),
        ("redis://h:0/1", "its port is no number"),
        ("redis://h:6379/cache", "its database is no number"),
        ("redis://h:6379/-1", "its database is no number"),
        ("redis://h:6379/0?socket_timeout=5", "leave it out"),
        ("redis://h:6379/0?ssl_cert_reqs=none", "write rediss://"),
        ("rediss://h:6379/0", "?ssl_cert_reqs=required"),
        ("unix://run/r.sock", "unix:///run/redis.sock"),
        ("unix://", "unix:///run/redis.sock"),
        ("pgmq://h", "starts with redis://"),
        ("redis+unix:///run/r.sock?db=0", "starts with redis://, rediss://, unix://"),
        ("redis-socket:///run/r.sock", "starts with redis://, rediss://, unix://"),
        ("unix:/tmp/redis.sock:1;", "a list of servers"),
    ],
)
def test_a_broker_that_cannot_be_used_is_refused_with_the_fix(tmp_path: Path, url: str, fix: str) -> None:
    told = refusal(tmp_path, broker_url=url)
    assert fix in told
    assert "broker_url" in told
    assert "pa/ss" not in told


def test_a_broker_without_its_client_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.settings.server_urls.find_spec", lambda _: None)
    assert "pip install 'celery[sqs]'" in refusal(tmp_path, broker_url="sqs://")


@pytest.mark.parametrize("url", ["amqp://", "amqp://u:p@h:5672/vhost", "amqps://h/%2F", "pyamqp://h", "AMQP://h"])
def test_brokers_of_amqp_are_kept_as_they_are(tmp_path: Path, url: str) -> None:
    settings = read(tmp_path, broker_url=url)
    assert settings.broker_url == url
    assert Connection(make_celery(settings).conf.broker_url).transport.driver_type == "amqp"
    assert priorities(settings).request > priorities(settings).jobs[JobPriority.HIGH]


def test_the_cache_may_have_options_that_only_redis_py_reads_it(tmp_path: Path) -> None:
    url = read(tmp_path, cache_url="redis://h/1?protocol=2&client_name=mine").cache_url
    assert redis.Redis.from_url(url).connection_pool.make_connection().protocol == 2
    assert "leave it out" in refusal(tmp_path, cache_url="redis://h/1?protocoll=2")


@pytest.mark.parametrize(
    "url", ["unix://{socket}?db=2", "redis+socket://{socket}?virtual_host=2", "redis://h:{port}/2"]
)
def test_flower_counts_the_messages_of_the_right_database(
    tmp_path: Path, redis_server: RedisServer, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    for name in ("Redis", "RedisSsl", "RedisSocket"):  # put back afterwards
        monkeypatch.setattr(broker, name, getattr(broker, name))
    url = url.format(socket=redis_server.socket, port=redis_server.port).replace("//h:", "//127.0.0.1:")
    settings = read(tmp_path, url=url)
    count_by_our_url(settings)
    application = make_celery(settings)
    conf = application.conf
    with redis.Redis.from_url(settings.broker_url) as client:
        client.lpush("forecache:forecache.batch", "x", "y")
    with application.connection_for_read() as connection:
        uri = connection.as_uri(include_password=True)
        counting = broker.Broker(
            uri,
            broker_options=conf.broker_transport_options,
            broker_use_ssl=conf.broker_use_ssl,
        )
    assert asyncio.run(counting.queues(["forecache.batch"])) == [{"name": "forecache.batch", "messages": 2}]
    assert redis_client.dbsize() == 0  # database 0
