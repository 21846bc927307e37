"""Reads the URL of a Redis behind Sentinels: `redis+sentinel://user:password@host:26379,host:26379/NAME/0?options`.

`NAME` is what the Sentinels call their primary, as in `sentinel monitor NAME …`. User and password are those of the
data servers; the Sentinels' own are options. redis-py and Celery have no such URL: each gets what it needs from the
parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

SCHEMES = ("redis+sentinel", "rediss+sentinel")
DEFAULT_PORT = 26379

#: user and password of the Sentinels themselves
SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")

_EXAMPLE = "redis+sentinel://host:26379,host2:26379/mymaster/0"
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # Redis itself allows no others


@dataclass(frozen=True)
class SentinelUrl:
    """The parts of such a URL. `service`: the primary's name at the Sentinels. `options`: all others, as text."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    database: int
    username: str
    password: str
    tls: bool
    options: dict[str, str]

    def __str__(self) -> str:
        """Return the URL in its one form, with the password."""
        user = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.has_user else ""
        query = f"?{urlencode(self.options)}" if self.options else ""
        scheme = SCHEMES[self.tls]
        return f"{scheme}://{user}{self.hosts}/{self.service}/{self.database}{query}"

    @property
    def has_user(self) -> bool:
        """Whether a user or a password is given for the data servers."""
        return bool(self.username or self.password)

    @property
    def hosts(self) -> str:
        """The Sentinels' addresses, as in the URL."""
        return ",".join(f"{_bracketed(host)}:{port}" for host, port in self.sentinels)

    @property
    def place(self) -> str:
        """What may be shown of it: neither user nor password."""
        return f"{self.service}/{self.database} of the Sentinels {self.hosts}"

    def celery_url(self) -> str:
        """Return the list of addresses that Celery and kombu read. The rest goes into their options."""
        user = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.has_user else ""
        return ";".join(f"sentinel://{user}{_bracketed(host)}:{port}/{self.database}" for host, port in self.sentinels)


def is_sentinel(url: str) -> bool:
    """Tell whether a URL, in our form or in Celery's, names Sentinels."""
    return url.partition("://")[0].lower() in (*SCHEMES, "sentinel")


def read_sentinel_url(text: str) -> SentinelUrl:
    """Return the parts of a URL. The caller checks its options.

    Raises:
        ValueError: it cannot be used; the message names the fix and quotes nothing that may be a password.
    """
    scheme, _, rest = text.partition("://")
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    user, _, hosts = place.rpartition("@")
    service, _, database = path.strip("/").partition("/")
    if ";" in text or "#" in text or "@" in path:
        raise ValueError(f"write its Sentinels with commas, and %-encode a password: {_EXAMPLE}")
    username, _, password = user.partition(":")
    if not _NAME.fullmatch(unquote(service)) or (service.isdecimal() and not database):
        raise ValueError(f"it names no primary: end it in the name that its Sentinels use, as in {_EXAMPLE}")
    if database and not (database.isascii() and database.isdecimal()):
        raise ValueError(f"its database is no number: a URL of Sentinels ends in name and number, as in {_EXAMPLE}")
    options = dict(parse_qsl(query, keep_blank_values=True))
    return SentinelUrl(
        sentinels=tuple(dict.fromkeys(_address(one) for one in hosts.split(","))),
        service=unquote(service),
        database=int(database or options.pop("db", "") or 0),
        username=unquote(username),
        password=unquote(password),
        tls=scheme.lower() == SCHEMES[1],
        options=options,
    )


def _address(text: str) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    port = int(found["port"] or DEFAULT_PORT) if found else 0
    if found is None or not 0 < port < 1 << 16:
        raise ValueError(f"its Sentinels are no list of host:port with commas, as in {_EXAMPLE}")
    return found["host"].strip("[]"), port


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
