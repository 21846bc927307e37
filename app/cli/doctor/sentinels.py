"""Checks the Sentinels: whether each answers, they can elect a primary, and their addresses work from here."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import redis

from app.cli.doctor.findings import Check, Finding, at_once, error, ok, warning
from inference.redis.sentinels import Address, sentinel_options
from inference.settings import Settings
from inference.settings.sentinel_urls import SCHEMES, SentinelUrl, read_sentinel_url

#: seconds for one Sentinel, and for a connection to an announced address
_ANSWER_S = 1.5
#: of fewer, none may fail
_LEAST = 3


@dataclass(frozen=True)
class SentinelView:
    """What one Sentinel says. `no_quorum`: why they could elect no primary, None if they could."""

    primary: Address
    replicas: tuple[tuple[Address, str], ...]
    sentinels: int
    quorum: int
    no_quorum: str | None


class SentinelProblem(Exception):
    """What is wrong with one Sentinel, and the fix."""

    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.detail, self.fix = detail, fix


def check_sentinels(settings: Settings) -> list[Finding]:
    """Return the findings about the Sentinels of each URL; those that several URLs share, once."""
    urls = {
        "[redis] url": settings.redis_url,
        "[redis] cache_url": settings.cache_url,
        "[celery] broker_url": settings.broker_url,
    }
    found: dict[str, tuple[str, SentinelUrl]] = {}
    for setting, text in urls.items():
        if text.startswith(SCHEMES):
            url = read_sentinel_url(text)
            found.setdefault(str(replace(url, database=0)), (setting, url))
    return [finding for setting, url in found.values() for finding in _check(setting, url)]


def _check(setting: str, url: SentinelUrl) -> Iterator[Finding]:
    subject = f"Sentinels of {url.service}"
    views = at_once({address: partial(_ask, address, setting, url) for address in url.sentinels}, 2 * _ANSWER_S)
    good = {address: view for address, view in views.items() if isinstance(view, SentinelView)}
    # a majority elects; with one, clients find it
    level = warning if 2 * len(good) > len(views) else error
    for address, view in views.items():
        if not isinstance(view, SentinelView):
            yield level(Check.REDIS, f"Sentinel {_spelled(address)}", *_told(view, setting))
    if not good:
        return
    view = next(iter(good.values()))
    yield from _of_group(subject, good)
    yield from _unreachable(subject, view)
    names = f"{len(good)} of {len(views)} answer, quorum {view.quorum}"
    yield ok(Check.REDIS, subject, f"{names}; primary {_spelled(view.primary)}, {len(view.replicas)} replica(s)")


def _of_group(subject: str, views: Mapping[Address, SentinelView]) -> Iterator[Finding]:
    """Yield what is wrong with the Sentinels as a group."""
    primaries = {_spelled(view.primary) for view in views.values()}
    if len(primaries) > 1:
        fix = "wait for a failover to end; else look which Sentinel is cut off from the others"
        yield error(Check.REDIS, subject, f"they name different primaries: {', '.join(sorted(primaries))}", fix)
    view = next(iter(views.values()))
    if view.no_quorum is not None:
        fix = "start the missing Sentinels: without a majority nobody replaces a dead primary"
        yield error(Check.REDIS, subject, f"they could elect no primary: {view.no_quorum}", fix)
    if view.sentinels < _LEAST:
        fix = f"run {_LEAST} or more, on different machines"
        yield warning(Check.REDIS, subject, f"{view.sentinels} Sentinel(s): no majority is left when one dies", fix)
    if not any("down" not in flags and "disconnected" not in flags for _, flags in view.replicas):
        fix = "start a replica, as redis-server --replicaof HOST PORT"
        yield warning(Check.REDIS, subject, "the primary has no working replica that could replace it", fix)


def _unreachable(subject: str, view: SentinelView) -> Iterator[Finding]:
    """Yield the announced addresses that cannot be reached from here: clients connect to what Sentinels announce."""
    addresses = {"primary": view.primary, **{f"replica {number}": one for number, (one, _) in enumerate(view.replicas)}}
    tried = at_once({kind: partial(_connect, address) for kind, address in addresses.items()}, 2 * _ANSWER_S)
    for kind, problem in tried.items():
        if isinstance(problem, Exception):
            fix = (
                "have servers announce addresses that all hosts reach: replica-announce-ip and replica-announce-port "
                "in redis.conf, sentinel announce-ip in sentinel.conf"
            )
            level = error if kind == "primary" else warning
            what = (
                f"they announce {_spelled(addresses[kind])} as {kind.partition(' ')[0]}, which this host cannot reach"
            )
            yield level(Check.REDIS, subject, what, fix)


def _ask(address: Address, setting: str, url: SentinelUrl) -> SentinelView:
    """Return what a Sentinel says.

    Raises:
        SentinelProblem: it does not know the primary.
        redis.RedisError: it does not answer, or refuses.
    """
    make: Any = redis.Redis
    with make(*address, **sentinel_options(url, _ANSWER_S)) as client:
        primaries = client.sentinel_masters()
        if url.service not in primaries:
            known = ", ".join(sorted(primaries)) or "none"
            raise SentinelProblem(
                f"it knows no primary called {url.service}; it knows: {known}", f"correct the name in {setting}"
            )
        state = primaries[url.service]
        replicas = tuple(
            ((str(one["ip"]), int(one["port"])), str(one["flags"])) for one in client.sentinel_slaves(url.service)
        )
        return SentinelView(
            primary=(str(state["ip"]), int(state["port"])),
            replicas=replicas,
            sentinels=int(state["num-other-sentinels"]) + 1,
            quorum=int(state["quorum"]),
            no_quorum=_no_quorum(client, url.service),
        )


def _no_quorum(client: Any, service: str) -> str | None:
    try:
        client.execute_command("SENTINEL CKQUORUM", service)
    except redis.exceptions.NoPermissionError:
        return None  # nobody knows
    except redis.ResponseError as refusal:
        return str(refusal)
    return None


def _connect(address: Address) -> None:
    with socket.create_connection(address, timeout=_ANSWER_S):
        pass


def _told(problem: object, setting: str) -> tuple[str, str]:
    """Return what is wrong with a Sentinel, and the fix. Quotes no text that may contain a password."""
    if isinstance(problem, SentinelProblem):
        return problem.detail, problem.fix
    if isinstance(
        problem, redis.AuthenticationError | redis.exceptions.AuthorizationError | redis.exceptions.NoPermissionError
    ):
        fix = f"correct ?sentinel_username= and sentinel_password= in {setting} (special characters %-encoded)"
        return "it refuses the user or the password", fix
    if isinstance(problem, redis.ResponseError):
        return "it is no Sentinel", f"give the Sentinels' port in {setting}, most often 26379"
    fix = f"start it, or correct {setting}; rediss+sentinel:// is for Sentinels with TLS, redis+sentinel:// for others"
    return "it does not answer", fix


def _spelled(address: Address) -> str:
    return f"{address[0]}:{address[1]}"
