"""The settings of streams: Redis streams and Kafka topics whose messages update features."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from inference.errors import SettingsError, shown
from inference.settings.fields import Section
from inference.settings.server_urls import cache_url as read_cache_url
from inference.settings.server_urls import is_cluster

STREAM_NAME = re.compile(r"^[a-z0-9_-]{1,64}$")
NO_STREAM = 'no stream is configured: add a [streams.NAME] section with stream = "…" to forecache.toml'
_KAFKA = "kafka://"
_BROKER = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
#: Kafka's own rule for names of topics
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
#: settings of the client that come from other fields of the section, or that decide what is lost
_OWN_OPTIONS = {
    "bootstrap.servers": "write the brokers in url",
    "metadata.broker.list": "write the brokers in url",
    "group.id": "write group",
    "auto.offset.reset": "write start",
    "enable.auto.commit": "offsets are committed once a batch is stored",
    "enable.auto.offset.store": "offsets are committed once a batch is stored",
    "sasl.password": "write password, which no log shows",
}
#: options whose values are secrets, which logs would show
_SECRET_OPTION = re.compile(r"password|secret|\.pem$|jaas|sasl\.oauthbearer\.config")


class StreamSettings(Section):
    """A stream whose messages update the features of entities.

    `model`: the model whose features they are; None for the only one. `url`: the Redis (as `cache_url`, which is the
    default), or `kafka://host:9092,other:9092`. `stream`: the stream's key, or the topic. `group`: the consumer group;
    listeners of one group share the work. `start`: where a new group begins. `recompute`: which entities are computed
    anew once their features have changed: none, or those that were asked for today or yesterday. `password`: of SASL.
    `options`: more settings of librdkafka.
    """

    stream: Annotated[str, Field(min_length=1, max_length=512)]
    model: str | None = None
    url: SecretStr | None = None
    group: Annotated[str, Field(min_length=1, max_length=255)] = "forecache"
    start: Literal["earliest", "latest"] = "earliest"
    recompute: Literal["none", "asked"] = "none"
    password: SecretStr | None = None
    options: dict[str, str] = {}

    @property
    def brokers(self) -> str | None:
        """The brokers of Kafka, with commas between them; None for a Redis stream."""
        url = self.url.get_secret_value() if self.url else ""
        return url.removeprefix(_KAFKA) if url.startswith(_KAFKA) else None

    @field_validator("url")
    @classmethod
    def _read_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value()
        if not text.lower().startswith(_KAFKA):
            return SecretStr(_one_redis(text))
        hosts = text[len(_KAFKA) :].strip("/")
        if "@" in hosts:
            raise ValueError('a Kafka URL has no user: set options = {"sasl.username" = "…"}, and password')
        if not all(_BROKER.fullmatch(host) for host in hosts.split(",")):
            raise ValueError("Kafka is written kafka://host:9092,other:9092")
        return SecretStr(_KAFKA + hosts)

    @field_validator("options")
    @classmethod
    def _legal_options(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in _OWN_OPTIONS:
                raise ValueError(f"{shown(name)} is not set here: {_OWN_OPTIONS[name]}")
            if _SECRET_OPTION.search(name):
                raise ValueError(f"{shown(name)} would hold a secret: use password, or an option that names a file")
        return value

    @model_validator(mode="after")
    def _of_kafka(self) -> StreamSettings:
        if self.brokers is None:
            if self.options or self.password:
                raise ValueError("options and password are Kafka's: write url as kafka://host:9092, or leave them out")
        elif not _TOPIC.fullmatch(self.stream):
            raise ValueError(f"stream {shown(self.stream)} is no topic: Kafka takes 1 to 249 of A-Z a-z 0-9 . _ -")
        return self


def chosen_streams(streams: Mapping[str, StreamSettings], names: Sequence[str]) -> list[str]:
    """Return the named streams, or all for no names.

    Raises:
        SettingsError: there is no stream, or one is unknown; names the nearest.
    """
    if not streams:
        raise SettingsError(NO_STREAM, field="streams")
    for name in names:
        if name not in streams:
            near = difflib.get_close_matches(name, streams, n=1, cutoff=0.5)
            hint = f"did you mean {shown(near[0])}?" if near else f"known: {', '.join(streams)}"
            raise SettingsError(f"no stream {shown(name)} is configured; {hint}", field="streams")
    return list(dict.fromkeys(names)) or list(streams)


def _one_redis(text: str) -> str:
    url = read_cache_url(text)
    if is_cluster(url):
        raise ValueError("a stream lies in one Redis, and this is a Redis Cluster: write redis://host:6379/0")
    return url
