"""Checks the URLs of Redis servers and of brokers, and gives each one form.

redis-py and Celery spell a Unix socket and a database number differently. The settings have redis-py's form;
`celery_url` translates it for Celery.
"""

from __future__ import annotations

from importlib.util import find_spec
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from inference.errors import shown
from inference.settings.sentinel_urls import SCHEMES as _SENTINELS
from inference.settings.sentinel_urls import SENTINEL_OPTIONS, SentinelUrl, is_sentinel, read_sentinel_url

_REDIS = ("redis", "rediss", "unix")
#: Celery's schemes for a Redis on a Unix socket
_CELERY_SOCKETS = ("redis+socket", "socket")
_AMQP = ("amqp", "amqps", "pyamqp")
#: of engines, without and with TLS
HTTP_SCHEMES = ("http", "https")
GRPC_SCHEMES = ("grpc", "grpcs")
_CERT_REQS = ("required", "optional", "none")
#: the options in a URL that both redis-py and Celery understand
_TLS_OPTIONS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
#: more options of redis-py; only redis-py reads the cache
_CACHE_OPTIONS = ("protocol", "client_name", "health_check_interval")

#: Celery's brokers that processes on several machines can share → (module of the client library, Celery's extra)
_OTHER_BROKERS = {
    "sqs": ("boto3", "sqs"),
    "gcpubsub": ("google.cloud.pubsub_v1", "gcpubsub"),
    "azureservicebus": ("azure.servicebus", "azureservicebus"),
    "azurestoragequeues": ("azure.storage.queue", "azurestoragequeues"),
    "kafka": ("confluent_kafka", "kafka"),
    "confluentkafka": ("confluent_kafka", "kafka"),
    "mongodb": ("pymongo", "mongodb"),
    "zookeeper": ("kazoo", "zookeeper"),
    "sqla": ("sqlalchemy", "sqlalchemy"),
    "sqlalchemy": ("sqlalchemy", "sqlalchemy"),
}

_SENTINEL = "write Sentinels and the name of their primary as redis+sentinel://host:26379,host2:26379/mymaster/0"
_CLUSTER = (
    "Redis Cluster holds only predictions and features, in cache_url, which is Celery's limit: give a single Redis, "
    "as redis://host:6379/0"
)
#: a cluster's scheme → that of its nodes
_CLUSTERS = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_DEFAULT_PORT = 6379
_LIST = (
    "a list of servers (with ;) is not supported: give one, or the address of a proxy or service name that follows "
    "the right one"
)
_BAD_PORT = "its port is no number from 1 to 65535: special characters of a password are %-encoded"
_REFUSED = {
    "sentinel": _SENTINEL,
    "sentinels": _SENTINEL,
    "redis-sentinel": _SENTINEL,
    "redis+cluster": _CLUSTER,
    "rediss+cluster": _CLUSTER,
    "redis-cluster": "a Redis Cluster is written redis+cluster://host:6379,other:6379",
    "valkey": "Valkey is reached as Redis is: write redis:// in place of valkey://",
    "valkeys": "Valkey is reached as Redis is: write rediss:// in place of valkeys://",
    "memory": "memory:// lives in one process, and others cannot reach it: use redis:// or amqp://",
    "filesystem": "filesystem:// lives in a folder of one machine: use redis:// or amqp://",
}


def cache_url(text: str) -> str:
    """Return the URL of the Redis or the Redis Cluster that holds predictions, in its one form.

    Raises:
        ValueError: as `redis_url`.
    """
    scheme, _, rest = text.partition("://")
    if scheme.lower() not in _CLUSTERS:
        return redis_url(text, cache=True)
    scheme = _CLUSTERS[scheme.lower()]
    place, _, query = rest.partition("?")
    netloc, _, path = place.partition("/")
    user, at, hosts = netloc.rpartition("@")
    if path.strip("/") not in ("", "0") or "@" in path:
        raise ValueError("a Redis Cluster has no database numbers, and special characters of a password are %-encoded")
    addresses = [_address(user + at, host) for host in hosts.split(",")]
    # each of them is checked as the URL of a Redis
    checked = {redis_url(f"{scheme}://{user}{at}{_netloc(one)}/0?{query}", cache=True) for one in addresses}
    options = next(iter(checked)).partition("?")[2]
    return f"{scheme}+cluster://{user}{at}{','.join(map(_netloc, addresses))}" + (f"?{options}" if options else "")


def is_cluster(url: str) -> bool:
    """Tell whether a URL in our form names a Redis Cluster."""
    return url.partition("://")[0] in _CLUSTERS


def seeds_of(url: str) -> list[tuple[str, int]]:
    """Return host and port of each node that a cluster's URL names."""
    hosts = url.partition("://")[2].partition("?")[0].rpartition("@")[2]
    return [_address("", host) for host in hosts.split(",")]


def node_url(url: str, address: tuple[str, int]) -> str:
    """Return the URL of one node of a cluster."""
    scheme, _, rest = url.partition("://")
    place, mark, query = rest.partition("?")
    user, at, _ = place.rpartition("@")
    return f"{_CLUSTERS[scheme]}://{user}{at}{_netloc(address)}/0{mark}{query}"


def _address(user: str, host: str) -> tuple[str, int]:
    parts = _split(f"redis://{user}{host}")
    if not parts.hostname:
        raise ValueError("a Redis Cluster is written redis+cluster://host:6379,other:6379")
    return parts.hostname, parts.port or _DEFAULT_PORT


def _netloc(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def redis_url(text: str, *, cache: bool = False) -> str:
    """Return the URL of a Redis server in its one form: `redis://`, `rediss://`, `unix://` or `redis+sentinel://`.

    `cache`: only redis-py reads it, so more options are allowed.

    Raises:
        ValueError: it cannot be used; the message names the fix and quotes nothing that may be a password.
    """
    if _scheme_of(text) in _SENTINELS:
        return str(_sentinel_url(text, cache=cache))
    parts = _split(text)
    if parts.scheme not in (*_REDIS, *_CELERY_SOCKETS):
        raise ValueError(_REFUSED.get(parts.scheme, "a Redis URL starts with redis://, rediss:// or unix://"))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme in ("redis", "rediss"):
        database = _database(options.pop("db", "") or parts.path.strip("/"))
        _check_options(parts.scheme, options, (*_TLS_OPTIONS, *(_CACHE_OPTIONS if cache else ())))
        query = f"?{urlencode(options)}" if options else ""
        return f"{parts.scheme}://{parts.netloc}/{database}{query}"
    return _unix_url(parts, options, cache=cache)


def broker_url(text: str) -> str:
    """Return the URL of a broker: of a Redis in its one form, of others unchanged.

    Raises:
        ValueError: it cannot be used, or two processes cannot share it; as in `redis_url`.
    """
    if is_redis(text) and _scheme_of(text) != "sentinel":
        return redis_url(text)
    parts = _split(text)
    if parts.scheme in _REFUSED:
        raise ValueError(_REFUSED[parts.scheme])
    if is_amqp(text):
        return text
    if "sqlite" in parts.scheme and parts.path.strip("/") in ("", ":memory:"):
        raise ValueError("a SQLite database in memory lives in one process: use redis:// or amqp://")
    # sqla+postgresql://… names the database after the plus
    library = _OTHER_BROKERS.get(parts.scheme.split("+")[0])
    if library is None:
        raise ValueError("a broker's URL starts with redis://, rediss://, unix://, amqp:// or amqps://")
    module, extra = library
    if not _is_installed(module):
        raise ValueError(f"this kind of broker needs {module}: pip install 'celery[{extra}]'")
    return text


def celery_url(url: str) -> str:
    """Return the URL of a broker or result backend in Celery's form."""
    if _scheme_of(url) in _SENTINELS:
        return read_sentinel_url(url).celery_url()
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    database = dict(parse_qsl(parts.query)).get("db", "0")
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database}"


def is_redis(url: str) -> bool:
    """Tell whether a broker's URL, in our form or in Celery's, names a Redis server."""
    return _scheme_of(url) in (*_REDIS, *_CELERY_SOCKETS) or is_sentinel(url)


def tls_options(options: dict[str, str]) -> dict[str, str | bool]:
    """Return the options of TLS in a URL as arguments of a connection."""
    found: dict[str, str | bool] = {name: value for name, value in options.items() if name in _TLS_OPTIONS}
    if "ssl_check_hostname" in found:
        found["ssl_check_hostname"] = options["ssl_check_hostname"].lower() in ("true", "yes", "1")
    return found


def is_amqp(url: str) -> bool:
    """Tell whether a broker's URL names RabbitMQ or another server of AMQP."""
    return urlsplit(url).scheme in _AMQP


def split_engine_url(text: str, schemes: tuple[str, str] = HTTP_SCHEMES) -> SplitResult:
    """Return the parts of an engine's URL. `schemes`: the legal ones, without and with TLS.

    Raises:
        ValueError: it is no such URL; the message quotes nothing that may be a password.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # its message may quote the password
        raise ValueError(_BAD_PORT) from None
    if parts.scheme not in schemes:
        raise ValueError(f"a URL of an engine starts with {' or '.join(f'{one}://' for one in schemes)}")
    # a part of a password that is not %-encoded is in the path
    if port == 0 or not parts.hostname or "@" in parts.path:
        raise ValueError(_BAD_PORT)
    return parts


def _scheme_of(text: str) -> str:
    return text.partition(":")[0].lower()


def _sentinel_url(text: str, *, cache: bool) -> SentinelUrl:
    url = read_sentinel_url(text)
    known = (*_TLS_OPTIONS, *SENTINEL_OPTIONS, *(_CACHE_OPTIONS if cache else ()))
    _check_options(_SENTINELS[url.tls], url.options, known)
    return url


def _split(text: str) -> SplitResult:
    """Return the parts of a URL."""
    scheme = text.partition(":")[0].lower()
    if ";" in text:
        raise ValueError(_REFUSED.get(scheme, _LIST))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # its message may quote the password; several hosts are no port either
        raise ValueError(_REFUSED.get(scheme, _BAD_PORT)) from None
    if port == 0 or parts.fragment:
        raise ValueError(_BAD_PORT)
    return parts


def _database(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal()):
        raise ValueError("its database is no number: a Redis URL ends in one, as in redis://host:6379/0")
    return int(text)


def _check_options(scheme: str, options: dict[str, str], known: tuple[str, ...]) -> None:
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise ValueError(f"it has an option that cannot be used here, {shown(unknown[0])}: leave it out")
    is_plain, is_tls = scheme in ("redis", _SENTINELS[0]), scheme in ("rediss", _SENTINELS[1])
    if is_plain and any(name.startswith("ssl_") for name in options):
        secure = scheme.replace("redis", "rediss")
        raise ValueError(f"it has options of TLS: write {secure}:// in place of {scheme}://")
    if is_tls and options.get("ssl_cert_reqs") not in _CERT_REQS:
        # Celery needs one, and also takes CERT_REQUIRED, which redis-py refuses
        raise ValueError(f"a {scheme}:// URL must end in ?ssl_cert_reqs=required (or optional, or none)")


def _unix_url(parts: SplitResult, options: dict[str, str], *, cache: bool) -> str:
    """Return the URL of a socket, with user and password before its path, and the database after it."""
    user, _, host = parts.netloc.rpartition("@")
    if host or not parts.path.strip("/"):
        raise ValueError("a Unix socket is written with its whole path, as in unix:///run/redis.sock?db=0")
    # Celery's name for it, then redis-py's
    database = _database(options.pop("virtual_host", "").strip("/") or options.pop("db", ""))
    options.pop("db", None)
    name, password = options.pop("username", ""), options.pop("password", "")
    if name or password:
        user = f"{quote(name, safe='')}:{quote(password, safe='')}"
    _check_options("unix", options, _CACHE_OPTIONS if cache else ())
    before = f"{user}@" if user else ""
    path = quote(unquote(parts.path))
    query = urlencode({"db": str(database), **options})
    return f"unix://{before}{path}?{query}"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False
