"""URLs of Redis behind Sentinels: ours, and what redis-py, Celery and kombu get of them."""

from __future__ import annotations

import re

import pytest

from inference.redis.clients import REQUEST, open_async_client, open_client
from inference.settings import Settings
from inference.settings.sentinel_urls import read_sentinel_url
from inference.settings.server_urls import redis_url
from tasks.celery_app import make_celery

URL = "redis+sentinel://app:p%40ss@one:26379,two,[::1]:5000/cache/3?sentinel_username=s&sentinel_password=qu%2Fiet"
TLS = "?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem&ssl_check_hostname=false"


def test_a_url_has_one_form_and_names_the_default_port() -> None:
    written = redis_url(URL)
    assert written == URL.replace("two", "two:26379")
    assert redis_url(written) == written
    assert redis_url("redis+sentinel://h/m") == redis_url("redis+sentinel://h,h:26379/m/?db=0")


def test_it_is_shown_without_passwords() -> None:
    assert read_sentinel_url(URL).place == "cache/3 of the Sentinels one:26379,two:26379,[::1]:5000"


async def test_clients_have_the_password_of_the_servers_and_ask_sentinels_with_theirs() -> None:
    async_client = open_async_client(redis_url(URL), REQUEST)
    for client in (open_client(redis_url(URL), REQUEST), async_client):
        pool = client.connection_pool
        arguments = pool.connection_kwargs
        assert (pool.service_name, arguments["db"], arguments["username"], arguments["password"]) == (
            ("cache", 3, "app", "p@ss")
        )
        of_sentinels = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]
        assert [(one["host"], one["port"]) for one in of_sentinels] == [("one", 26379), ("two", 26379), ("::1", 5000)]
        assert {(one["username"], one["password"]) for one in of_sentinels} == {("s", "qu/iet")}
    await async_client.aclose()


def test_celery_and_kombu_get_the_same_in_their_words() -> None:
    settings = Settings.model_validate({"redis": {"url": URL}})
    application = make_celery(settings)
    backend = application.backend
    assert [(one["host"], one["port"]) for one in backend.connparams["hosts"]] == [
        ("one", 26379),
        ("two", 26379),
        ("::1", 5000),
    ]
    assert (backend.connparams["db"], backend.connparams["password"]) == (3, "p@ss")
    with application.connection_for_write() as connection:
        options = connection.transport_options
        assert (connection.hostname, connection.port, connection.virtual_host) == ("one", 26379, "3")
        assert [one.partition("@")[2] for one in connection.alt] == ["one:26379/3", "two:26379/3", "[::1]:5000/3"]
    for told in (options, application.conf.result_backend_transport_options):
        assert told["master_name"] == "cache"
        assert told["sentinel_kwargs"]["password"] == "qu/iet"


def test_tls_is_for_servers_and_sentinels() -> None:
    settings = Settings.model_validate({"redis": {"url": f"rediss+sentinel://one,two/cache/0{TLS}"}})
    wanted = {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}
    pool = open_client(settings.redis_url, REQUEST).connection_pool
    sentinel = pool.sentinel_manager.sentinels[0].connection_pool
    for connections in (pool, sentinel):
        assert connections.connection_kwargs.items() >= wanted.items()
        assert "SSL" in connections.connection_class.__name__
    conf = make_celery(settings).conf
    assert conf.broker_use_ssl == conf.redis_backend_use_ssl == wanted
    assert conf.broker_transport_options["sentinel_kwargs"]["ssl"] is True


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("redis+sentinel://h:26379", "it names no primary"),
        ("redis+sentinel://h:26379/0", "it names no primary"),
        ("redis+sentinel://h:26379/a b/0", "it names no primary"),
        ("redis+sentinel://h:26379/m/x", "its database is no number"),
        ("redis+sentinel:///m/0", "host:port with commas"),
        ("redis+sentinel://h:26379,/m/0", "host:port with commas"),
        ("redis+sentinel://h:99999/m/0", "host:port with commas"),
        ("redis+sentinel://h:26379;h2:26379/m/0", "with commas"),
        ("sentinel://h:26379;sentinel://h2:26379", "write Sentinels and the name of their primary"),
        ("redis+sentinel://:hu/sh@h:26379/m/0", "%-encode a password"),
        ("redis+sentinel://h/m/0?ssl_cert_reqs=none", "write rediss+sentinel://"),
        ("rediss+sentinel://h/m/0", "?ssl_cert_reqs=required"),
        ("redis+sentinel://h/m/0?master_name=m", "leave it out"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_the_fix(url: str, fix: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fix)) as refusal:
        redis_url(url)
    assert "hu/sh" not in str(refusal.value)
