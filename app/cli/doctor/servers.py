"""Checks the Redis servers and the broker: do they answer, take writes and keep them?"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import redis
from kombu import Connection
from redis.sentinel import MasterNotFoundError

from app.cli.context import certificate_fix, place_of
from app.cli.doctor.findings import Check, Finding, error, ok, warning
from inference.clock import system_clock
from inference.errors import StoreUnavailable
from inference.redis.clients import Client, Patience, cause_of, open_client
from inference.redis.clock import RedisClock
from inference.redis.cluster_clients import ClusterClient
from inference.redis.keys import Keys
from inference.redis.topology import ClusterFault
from inference.settings import Settings
from inference.settings.server_urls import is_redis

#: the checks give up on a server soon
PATIENCE = Patience(2.0)
OLDEST = (6, 2)
_CLOCK_MEASUREMENTS = 3
#: seconds after which the written value expires, if it cannot be removed
_KEPT_S = 10


@dataclass(frozen=True)
class Server:
    """A server that answered: its INFO, its snapshot rule (None: unknown), and how far its clock is ahead of ours.

    `no_writes`: why it takes no writes, None if it takes them. `nodes`: of a cluster, its nodes by their addresses; its
    INFO is that of one of them, with all their memory.
    """

    info: Mapping[str, Any]
    save: str | None
    offset_s: float
    no_writes: str | None = None
    nodes: tuple[ClusterNode, ...] = ()


@dataclass(frozen=True)
class ClusterNode:
    """A primary of a cluster. `is_alone`: it has no replica. `stops_all`: without it, the other nodes stop too."""

    place: str
    found: Server | Failure
    is_alone: bool = False
    stops_all: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a server does not answer, and the fix. Neither text contains a password."""

    detail: str
    fix: str


def ask_server(url: str, setting: str, *, prefix: str = "forecache") -> Server | Failure:
    """Return the facts about a server, or why it does not answer. `setting`: the name of the URL in the settings.

    Writes a key under the deployment's `prefix`, and removes it.
    """
    try:
        with closing(open_client(url, PATIENCE, tag=prefix)) as client:
            info: Any = client.info("everything")
            server = Server(info, _save_rule(client), _clock_offset_s(client), _write(client, Keys(prefix)))
            return _with_nodes(server, client) if isinstance(client, ClusterClient) else server
    except ValueError:  # the text of this error may quote the password
        return Failure("the URL cannot be understood", f"write {setting} as redis://:password@host:6379/0, %-encoded")
    except StoreUnavailable as outage:
        return _failure_of(cause_of(outage), setting)


def _with_nodes(server: Server, client: ClusterClient) -> Server:
    """Return what is known of a cluster, with each of its nodes."""
    nodes = tuple(_ask_node(place, node, replicas) for place, node, replicas in client.shards())
    infos = [node.found.info for node in nodes if isinstance(node.found, Server)]
    limits = [info.get("maxmemory") or 0 for info in infos]
    memory = {
        "used_memory": sum(info.get("used_memory", 0) for info in infos),
        "maxmemory": sum(limits) if all(limits) else 0,
        # several nodes may share a machine
        "total_system_memory": 0,
    }
    return replace(server, info={**server.info, **memory}, nodes=nodes)


def _ask_node(place: str, node: Client, replicas: int) -> ClusterNode:
    try:
        info: Any = node.info("everything")
        found = Server(info, _save_rule(node), _clock_offset_s(node))
        return ClusterNode(place, found, is_alone=not replicas, stops_all=_stops_all(node))
    except StoreUnavailable as outage:
        fix = "start it, or have it announce an address that is reached from here (cluster-announce-ip)"
        return ClusterNode(place, Failure(_reason(cause_of(outage)), fix))


def _stops_all(node: Client) -> bool:
    try:
        answer: Any = node.config_get("cluster-require-full-coverage")
    except StoreUnavailable:  # managed services forbid CONFIG
        return False
    return bool(answer.get("cluster-require-full-coverage") == "yes")


def _failure_of(problem: Exception | None, setting: str) -> Failure:
    if isinstance(
        problem, redis.AuthenticationError | redis.exceptions.AuthorizationError | redis.exceptions.NoPermissionError
    ):
        return Failure(
            "it refuses the user or the password", f"correct them in {setting} (special characters %-encoded)"
        )
    if isinstance(problem, redis.BusyLoadingError):
        return Failure("it is still loading its data", "wait until it has, then ask again")
    if isinstance(problem, MasterNotFoundError):
        return Failure(f"{problem}", "see what is said of its Sentinels")
    if isinstance(problem, redis.TimeoutError):
        return Failure(f"no answer within {PATIENCE.timeout_s:g} s", f"check the host and port of {setting}")
    if isinstance(problem, ClusterFault):
        return Failure(*str(problem).split(": ", 1))
    if isinstance(problem, redis.ResponseError):
        return Failure(f"it answers with an error: {problem}", _fix_of(str(problem), setting))
    if fix := certificate_fix(problem, setting):
        return Failure("its certificate is of an unknown authority", fix)
    return Failure(_reason(problem), f"start it, or correct {setting}; `forecache up` starts one when none is set")


def _fix_of(problem: str, setting: str) -> str:
    if "DB index" in problem or "SELECT" in problem:
        return f"end {setting} in the number of a database that this server has, as in redis://host:6379/0"
    return f"{setting} must be a Redis of version 6.2 or later, with its commands under their own names"


def check_servers(settings: Settings, results: Server | Failure, cache: Server | Failure) -> list[Finding]:
    """Return the findings about both servers; about a server that is both, only once."""
    if isinstance(cache, Server) and cache.nodes:
        subject = f"cache_url ({place_of(settings.cache_url)})"
        of_results = _check_one(f"url ({place_of(settings.redis_url)})", results, holds_cache=False)
        return [*of_results, *check_writes(Check.REDIS, subject, cache), *check_nodes(cache.nodes)]
    one = isinstance(results, Server) and isinstance(cache, Server) and _same(results, cache)
    if one:
        return _check_one(f"url and cache_url ({place_of(settings.cache_url)})", cache, holds_cache=True)
    return [
        *_check_one(f"url ({place_of(settings.redis_url)})", results, holds_cache=False),
        *_check_one(f"cache_url ({place_of(settings.cache_url)})", cache, holds_cache=True),
    ]


def _check_one(subject: str, server: Server | Failure, *, holds_cache: bool, of_cluster: bool = False) -> list[Finding]:
    if isinstance(server, Failure):
        return [error(Check.REDIS, subject, server.detail, server.fix)]
    info = server.info
    return [
        *_kind(subject, info, holds_cache=holds_cache, of_cluster=of_cluster),
        *check_writes(Check.REDIS, subject, server),
        _eviction(subject, info, holds_cache=holds_cache),
        _persistence(subject, server, holds_cache=holds_cache),
    ]


def check_nodes(nodes: Sequence[ClusterNode]) -> list[Finding]:
    """Return the findings about each node of a cluster."""
    found: list[Finding] = []
    for node in nodes:
        subject = f"cache_url, node {node.place}"
        found += _check_one(subject, node.found, holds_cache=True, of_cluster=True)
        if node.is_alone and isinstance(node.found, Server):
            fix = "add a replica (redis-cli --cluster add-node … --cluster-slave)"
            found.append(warning(Check.REDIS, subject, "it has no replica: its loss stops its share of the hits", fix))
        if node.stops_all:
            fix = "redis-cli CONFIG SET cluster-require-full-coverage no, and the same in redis.conf"
            found.append(warning(Check.REDIS, subject, "without one node, all others stop until it is replaced", fix))
    return found


def _kind(subject: str, info: Mapping[str, Any], *, holds_cache: bool, of_cluster: bool) -> list[Finding]:
    """Check version, mode and role."""
    text = str(info.get("redis_version", "0"))
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    found = []
    if version < OLDEST:
        found.append(error(Check.REDIS, subject, f"Redis {text}", "install Redis 6.2 or later"))
    if info.get("redis_mode") == "cluster" and not of_cluster:
        fix = "use a single Redis server: Celery works on no cluster"
        if holds_cache:
            fix = "write redis+cluster:// in place of redis:// in [redis] cache_url"
        found.append(error(Check.REDIS, subject, "it is a node of a cluster", fix))
    if info.get("redis_mode") == "sentinel":
        fix = "write the URL as redis+sentinel://host:26379,host2:26379/NAME/0, with the primary's NAME there"
        found.append(error(Check.REDIS, subject, f"it runs in {info['redis_mode']} mode", fix))
    if info.get("role") in ("slave", "replica"):
        fix = f"set the URL to its master, {info.get('master_host')}:{info.get('master_port')}"
        found.append(error(Check.REDIS, subject, "it is a replica, which takes no writes", fix))
    # Valkey's `redis_version` is the Redis that it is compatible with
    name = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {text}"
    return found or [ok(Check.REDIS, subject, f"answers; {name}")]


def check_writes(check: Check, subject: str, server: Server) -> list[Finding]:
    """Return an error if the server takes no writes. A replica and a node of a
    cluster already have a finding that names the right one."""
    of_cluster = server.info.get("redis_mode") == "cluster" and not server.nodes
    if server.no_writes is None or server.info.get("role") in ("slave", "replica") or of_cluster:
        return []
    fix = "free memory or disk, or allow the user to write what starts with the deployment's prefix"
    return [error(check, subject, f"it takes no writes: {server.no_writes}", fix)]


def _eviction(subject: str, info: Mapping[str, Any], *, holds_cache: bool) -> Finding:
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return ok(Check.REDIS, subject, "evicts nothing (noeviction)")
    lost = "predictions and runs" if holds_cache else "tasks and results"
    fix = "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
    level = error if holds_cache else warning
    return level(Check.REDIS, subject, f"maxmemory-policy is {policy}: it may throw {lost} away", fix)


def _persistence(subject: str, server: Server, *, holds_cache: bool) -> Finding:
    info = server.info
    aof, snapshots = bool(info.get("aof_enabled")), bool(server.save)
    failed = (aof and info.get("aof_last_write_status", "ok") != "ok") or (
        snapshots and info.get("rdb_last_bgsave_status", "ok") != "ok"
    )
    if failed:
        fix = "read Redis' log: most often the disk is full, or the folder is not writable"
        return error(Check.REDIS, subject, "its last write to disk failed", fix)
    if aof:
        return ok(Check.REDIS, subject, "persistent (append-only file)")
    if snapshots:
        return ok(Check.REDIS, subject, f"persistent (snapshots, save {server.save}; a crash loses what came since)")
    if server.save is None:
        return ok(Check.REDIS, subject, "no append-only file; whether it takes snapshots, it does not tell")
    lost = "all predictions until the next run" if holds_cache else "all waiting tasks"
    fix = "redis-cli CONFIG SET appendonly yes, and the same in redis.conf"
    return warning(Check.REDIS, subject, f"not persistent: a restart loses {lost}", fix)


def _same(one: Server, other: Server) -> bool:
    return one.info.get("run_id") is not None and one.info.get("run_id") == other.info.get("run_id")


def _write(client: Client, keys: Keys) -> str | None:
    """Write, read and remove a value. Return why that fails, or None."""
    key, value = keys.doctor(secrets.token_hex(4)), secrets.token_hex(4)
    try:
        client.set(key, value, ex=_KEPT_S)
        kept: Any = client.get(key)
        client.delete(key)
    except StoreUnavailable as outage:
        if isinstance(problem := cause_of(outage), redis.ResponseError):
            return str(problem)
        raise
    return None if kept == value.encode() else "what was written is not what is read"


def _save_rule(client: Client) -> str | None:
    try:
        answer: Any = client.config_get("save")
    except StoreUnavailable as outage:
        if isinstance(cause_of(outage), redis.ResponseError):
            return None  # managed services forbid CONFIG
        raise
    rule = answer.get("save")
    return None if rule is None else str(rule)


def _clock_offset_s(client: Client) -> float:
    """Return how far Redis' clock is ahead of ours, by the measurement with the quickest answer."""
    measured = []
    for _ in range(_CLOCK_MEASUREMENTS):
        clock, sent_at = RedisClock(), system_clock()
        answer: Any = client.time()
        received_at = system_clock()
        clock.learn(answer[0] + answer[1] / 1e6, sent_at=sent_at, received_at=received_at)
        measured.append((received_at - sent_at, clock.offset_s))
    return min(measured)[1]


def _reason(problem: BaseException | None) -> str:
    """Return the operating system's reason. The text of redis-py may contain secrets."""
    at: BaseException | None = problem
    while at is not None:
        if isinstance(at, OSError) and at.strerror:
            return f"it cannot be reached ({at.strerror})"
        at = at.__cause__ or at.__context__
    return "it cannot be reached"


# --- the broker ---


def check_broker(settings: Settings, results: Server | Failure) -> list[Finding]:
    """Check that the broker answers. `results`: the server at `redis.url`."""
    url = settings.broker_url
    subject = place_of(url)
    if url == settings.redis_url:
        if isinstance(results, Server):
            return [ok(Check.BROKER, subject, "answers: it is the Redis of url")]
        return [error(Check.BROKER, subject, "it is the Redis of url, which does not answer", "see redis, url")]
    found = ask_server(url, "[celery] broker_url", prefix=settings.redis.prefix) if is_redis(url) else _connect(url)
    if isinstance(found, Failure):
        return [error(Check.BROKER, subject, found.detail, found.fix)]
    refused = check_writes(Check.BROKER, subject, found) if isinstance(found, Server) else []
    return refused or [ok(Check.BROKER, subject, "answers")]


def _connect(url: str) -> Failure | None:
    """Return why a broker other than Redis cannot be reached. Quotes no text that may contain the password."""
    try:
        with Connection(url, connect_timeout=PATIENCE.timeout_s) as connection:
            connection.connect()
    except Exception as problem:  # noqa: BLE001 - each transport raises other errors; each is the finding
        return _failure(problem)
    return None


def _failure(problem: Exception) -> Failure:
    if isinstance(problem, ImportError):
        return Failure(f"its client library is not installed ({problem.name})", "install it where Forecache runs")
    if isinstance(problem, OSError):
        why = problem.strerror or "no answer in time"
        return Failure(f"it cannot be reached ({why})", "start it, or correct [celery] broker_url")
    if type(problem).__name__ in ("AccessRefused", "NotAllowed"):
        fix = "correct them in [celery] broker_url (special characters %-encoded)"
        return Failure("it refuses the user, the password or the virtual host", fix)
    return Failure(f"it cannot be used ({type(problem).__name__})", "correct [celery] broker_url")
