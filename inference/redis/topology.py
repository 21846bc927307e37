"""Reads which nodes of a Redis Cluster serve which slots, and refuses a cluster that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import redis
from redis.exceptions import ClusterDownError, MasterDownError

from inference.settings.server_urls import node_url, seeds_of

Address = tuple[str, int]

SLOTS = 16_384
#: as for a single Redis
OLDEST = (6, 2)
#: what says that a node cannot answer
OUTAGES = (redis.ConnectionError, redis.TimeoutError, ClusterDownError, MasterDownError, OSError)


class ClusterFault(redis.RedisError):
    """What is wrong with a cluster as it is set up, and the fix, in one line."""


@dataclass(frozen=True)
class Topology:
    """Which node serves each slot. `owners`: the place in `primaries` of each slot's node; -1 if nobody serves it."""

    primaries: tuple[Address, ...]
    owners: npt.NDArray[np.int16]
    replicas: dict[Address, tuple[Address, ...]]

    @property
    def unserved(self) -> int:
        """How many slots no node serves."""
        return int(np.count_nonzero(self.owners < 0))


def read_topology(url: str, known: Sequence[Address], timeout_s: float, *, careful: bool) -> Topology:
    """Read the map from the first node that answers: those known, then those of the URL.

    `careful`: also check that it is a cluster that can be used.

    Raises:
        ClusterFault: it cannot be used; the message names the fix.
        redis.RedisError: no node answers.
    """
    last: Exception | None = None
    for host, port in dict.fromkeys([*known, *seeds_of(url)]):
        try:
            with closing(_open_node(url, (host, port), timeout_s)) as node:
                topology = _parse_slots(node.execute_command("CLUSTER", "SLOTS"), host)
                if careful:
                    _check(node, topology)
                    if (host, port) not in topology.primaries:
                        _check_addresses(url, topology.primaries, timeout_s)
                return topology
        except redis.AuthenticationError:
            raise
        except redis.ResponseError as error:
            if "cluster support disabled" in str(error):
                raise ClusterFault(
                    f"{host}:{port} is no node of a cluster: write redis:// in place of redis+cluster:// "
                    "in [redis] cache_url, or start it with cluster-enabled yes"
                ) from error
            last = error
        except OUTAGES as error:
            last = error
    assert last is not None  # noqa: S101 - a URL has at least one node
    raise last


def _open_node(url: str, address: Address, timeout_s: float) -> Any:
    return redis.Redis.from_url(
        node_url(url, address), socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None
    )


def _parse_slots(answer: Iterable[Any], asked: str) -> Topology:
    owners = np.full(SLOTS, -1, np.int16)
    primaries: dict[Address, int] = {}
    replicas: dict[Address, tuple[Address, ...]] = {}
    for first, last, *nodes in answer:
        # a node that does not know its own address leaves it out
        primary, *others = [(_text(node[0]) or asked, int(node[1])) for node in nodes]
        owners[first : last + 1] = primaries.setdefault(primary, len(primaries))
        replicas[primary] = tuple(others)
    return Topology(tuple(primaries), owners, replicas)


def _text(value: Any) -> str:
    text = value.decode() if isinstance(value, bytes) else value or ""
    return "" if text == "?" else text


def _check(node: Any, topology: Topology) -> None:
    try:
        version = str(node.info("server").get("redis_version", "0"))
    except redis.ResponseError:  # users of `users.acl` may not ask; doctor tells it
        version = ".".join(map(str, OLDEST))
    if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
        raise ClusterFault(f"the cluster of [redis] cache_url runs Redis {version}: install 6.2 or later")
    if topology.unserved:
        raise ClusterFault(
            f"no node serves {topology.unserved:,} of the {SLOTS:,} slots of the cluster of [redis] cache_url: "
            "redis-cli --cluster fix, or wait until it is set up"
        )


def _check_addresses(url: str, primaries: Sequence[Address], timeout_s: float) -> None:
    """Refuse a cluster none of whose nodes can be reached at the address that it announces."""
    for address in primaries:
        try:
            with closing(_open_node(url, address, timeout_s)) as node:
                node.ping()
                return
        except OUTAGES:
            continue
    host, port = primaries[0]
    raise ClusterFault(
        f"the nodes of the cluster announce addresses that cannot be reached from here, such as {host}:{port}: set "
        "cluster-announce-ip and cluster-announce-port on each node"
    )
