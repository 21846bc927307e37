"""Knows which node of a Redis Cluster serves a key, and plans how commands reach it.

A plan is a Python generator that does no input or output itself, as in `store/reading`: `cluster_clients` runs it for
blocking callers and on an event loop. The protocol: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from __future__ import annotations

import threading
import time
from binascii import crc_hqx
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import redis
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from inference.redis.pipes import Command, has_errors
from inference.redis.topology import OUTAGES, SLOTS, Address, Topology, read_topology

#: a node that did not answer gets no reads for so long, then one, while its replica answers the others
_SUSPECT_S = 0.5
#: shortest time between two reads of the map, since each failed command asks for one
_MAP_AGE_S = 0.1
_PAUSE_S = 0.02
#: a command that is sent on so often goes round in circles
_MOST_ROUNDS = 16

#: what a replica may answer while its primary does not
_READS = frozenset(("HMGET", "HGET", "GET", "MGET"))
_OF_ROWS = frozenset(("HMGET", "HGET"))
#: the commands of a look-up, of which there are dozens
_KEY_FIRST = frozenset(("HMGET", "GET"))
_KEY_AT = {"EVALSHA": 3, "EVAL": 3, "MEMORY": 2}
_KEYLESS = frozenset(
    ("TIME", "PING", "ECHO", "INFO", "CONFIG", "SCRIPT", "SCAN", "KEYS", "DBSIZE", "CLIENT", "CLUSTER", "WAIT")
)


def key_of(command: Command) -> Any:
    """Return the key that decides which node gets a command; None if any may."""
    name = command[0]
    at = _KEY_AT.get(name, 1)
    return None if len(command) <= at or name.partition(" ")[0] in _KEYLESS else command[at]


def slot_of(key: str | bytes) -> int:
    """Return a key's slot: by the part in its first braces, if it has any."""
    data = key.encode() if isinstance(key, str) else key
    start = data.find(b"{") + 1
    if start and (end := data.find(b"}", start)) > start:
        data = data[start:end]
    return crc_hqx(data, 0) % SLOTS


@lru_cache(maxsize=8)
def bucket_slots(buckets: int) -> npt.NDArray[np.uint16]:
    """Return the slot of each bucket of a generation: the hash tag of its key is the bucket's number."""
    return np.fromiter((slot_of(b"%d" % bucket) for bucket in range(buckets)), np.uint16, buckets)


def is_redirection(error: redis.ResponseError) -> bool:
    """Whether another node, or this one in a moment, answers the command."""
    return isinstance(error, AskError | TryAgainError | ClusterDownError)


@dataclass
class Batch:
    """Commands for one node. `indexes`: their places among all.

    `asks`: the node takes a slot over, and answers only what it is asked for. `at_replica`: it repeats what another one
    wrote.
    """

    address: Address
    asks: bool = False
    at_replica: bool = False
    indexes: list[int] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)

    def packed(self) -> list[Command]:
        """Return what is sent: with the words that such a node needs first."""
        if self.asks:
            return [part for command in self.commands for part in (("ASKING",), command)]
        return [("READONLY",), *self.commands] if self.at_replica else self.commands

    def unpacked(self, replies: list[Any]) -> list[Any]:
        """Return the replies to the commands alone."""
        if self.asks:
            return replies[1::2]
        return replies[1:] if self.at_replica else replies


class Cluster:
    """The map of a cluster, read when it is first needed and again when a node fails. Threads may share it.

    `tag`: what the keys begin with that lie in one slot, as `{P}`; commands without a key go to their node.
    """

    def __init__(self, url: str, *, timeout_s: float, tag: str) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self.home_slot = slot_of(tag)
        self._lock = threading.Lock()
        self._read_at = -1e9
        self._topology: Topology | None = None
        self._by_slot: list[Address] = []
        self._suspects: dict[Address, float] = {}

    @property
    def is_known(self) -> bool:
        """Whether the map was read."""
        return self._topology is not None

    @property
    def topology(self) -> Topology:
        """The map, read now if it never was.

        Raises:
            ClusterFault: it is no cluster that can be used.
            redis.RedisError: no node answers.
        """
        if self._topology is None:
            self.read()
        assert self._topology is not None  # noqa: S101 - `read` raises otherwise
        return self._topology

    def read(self) -> None:
        """Read the map from the first node that answers, unless another thread just did."""
        with self._lock:
            if self._topology is not None and time.monotonic() - self._read_at < _MAP_AGE_S:
                return
            known = self._topology
            topology = read_topology(self._url, known.primaries if known else (), self._timeout_s, careful=not known)
            # a slot that nobody serves now stays with the node that did
            before = self._by_slot
            names = topology.primaries
            self._by_slot = [
                names[owner] if owner >= 0 else before[slot] for slot, owner in enumerate(topology.owners.tolist())
            ]
            self._topology = topology
            self._read_at = time.monotonic()

    def read_again(self) -> None:
        """Read the map; keep the old one if no node answers."""
        try:
            self.read()
        except (redis.RedisError, OSError):
            return

    def moved(self, slot: int, address: Address) -> None:
        """Learn from a node that another one serves a slot."""
        if self.topology and self._by_slot[slot] != address:
            self._by_slot[slot] = address
            self._read_at = -1e9  # the rest of the map is old too

    def address_of(self, key: Any) -> Address:
        """Return the node that serves a key; None: the node of the keys that lie in one slot."""
        self.topology  # noqa: B018 - read when it is first needed
        return self._by_slot[self.slot_of(key)]

    def addresses_of(self, commands: Iterable[Command]) -> list[Address]:
        """Return the node that serves each command's key."""
        self.topology  # noqa: B018 - read when it is first needed
        by_slot = self._by_slot
        return [
            by_slot[slot_of(command[1]) if command[0] in _KEY_FIRST else self.slot_of(key_of(command))]
            for command in commands
        ]

    def slot_of(self, key: str | bytes | None) -> int:
        """Return a key's slot; None: that of the keys that lie in one slot."""
        return self.home_slot if key is None else slot_of(key)

    @property
    def has_suspects(self) -> bool:
        """Whether a node did not answer lately."""
        return bool(self._suspects)

    def replica_of(self, address: Address) -> Address | None:
        """Return a replica of a primary, or None."""
        found = self.topology.replicas.get(address)
        return found[0] if found else None

    def notes(self, note: str) -> dict[Address, str]:
        """Return a key that begins with `note`, without its braces, of each node that has replicas."""
        form = note.replace("{", "").replace("}", "") + ":{%d}"
        wanted = {address for address, replicas in self.topology.replicas.items() if replicas}
        found: dict[Address, str] = {}
        for number in range(SLOTS):
            if found.keys() >= wanted:
                break
            key = form % number
            found.setdefault(self.address_of(key), key)
        return {address: key for address, key in found.items() if address in wanted}

    def suspect(self, address: Address) -> None:
        """Remember that a node did not answer."""
        self._suspects[address] = time.monotonic() + _SUSPECT_S

    def answered(self, address: Address) -> None:
        """Remember that a node answers."""
        if self._suspects:
            self._suspects.pop(address, None)

    def is_suspect(self, address: Address) -> bool:
        """Whether reads should go to the node's replica now. Lets one through when the time is up."""
        until = self._suspects.get(address)
        if until is None:
            return False
        if time.monotonic() < until:
            return True
        self._suspects[address] = time.monotonic() + self._timeout_s + _SUSPECT_S
        return False


# --- plans ---


@dataclass(frozen=True)
class Again:
    """What a plan asks for between two rounds: a new map, a pause in seconds."""

    read_map: bool = False
    pause_s: float = 0.0


Plan = Generator[list[Batch] | Again, list[Any], list[Any]]


def plan_exchange(cluster: Cluster, commands: Sequence[Command], *, may_repeat: bool, patience_s: float) -> Plan:
    """Plan one exchange: yield batches for the nodes, get for each its replies or its outage, return all replies.

    Follows redirections, and waits while a slot moves. Errors of other kinds stay among the replies.
    `may_repeat`: whether commands may run twice; reads then go to a replica if the primary does not answer.

    Raises:
        redis.RedisError: a node does not answer, and no other one can.
    """
    routing = _Routing(cluster, commands, may_repeat=may_repeat)
    ends_at, rounds = None, 0
    while routing.targets:
        batches = routing.batches()
        answers = yield batches
        routing.take(batches, answers)
        if routing.lost:
            yield Again(read_map=True)
            routing.try_again()
        rounds = 0 if routing.waits else rounds + 1
        if routing.waits:
            ends_at = ends_at or time.monotonic() + patience_s
            if time.monotonic() > ends_at:
                raise redis.TimeoutError(f"the cluster still moves a slot after {patience_s:g} s")
            yield Again(read_map=True, pause_s=_PAUSE_S)
        elif rounds > _MOST_ROUNDS:
            raise redis.ConnectionError("the nodes of the cluster do not agree on who serves a slot")
    return routing.replies


class _Routing:
    """The commands of one exchange on their way. `targets`: index of an open command → the node to ask, and how."""

    def __init__(self, cluster: Cluster, commands: Sequence[Command], *, may_repeat: bool) -> None:
        self._cluster = cluster
        self._commands = commands
        self._may_repeat = may_repeat
        self.replies: list[Any] = [None] * len(commands)
        self.targets: dict[int, tuple[Address, str] | None] = dict.fromkeys(range(len(commands)))
        #: index → the node that did not answer, and its error
        self.lost: dict[int, tuple[Address, Exception]] = {}
        self.waits = False

    def batches(self) -> list[Batch]:
        """Return the open commands by node."""
        commands = self._commands
        unplaced = [index for index, target in self.targets.items() if target is None]
        places: dict[int, Any] = dict(self.targets)
        places.update(zip(unplaced, self._cluster.addresses_of([commands[index] for index in unplaced]), strict=True))
        if self._cluster.has_suspects:
            places.update((index, self._place_of(commands[index], places[index])) for index in unplaced)
        found: dict[Address | tuple[Address, str], Batch] = {}
        for index, place in places.items():
            batch = found.get(place)
            if batch is None:
                batch = found[place] = _batch_at(place)
            batch.indexes.append(index)
            batch.commands.append(commands[index])
        return list(found.values())

    def _place_of(self, command: Command, address: Address) -> Address | tuple[Address, str]:
        """Return where a command goes while nodes are suspected: to its node, or to a replica of it."""
        replica = self._replica_for(command, address) if self._cluster.is_suspect(address) else None
        return address if replica is None else (replica, "replica")

    def take(self, batches: Sequence[Batch], answers: Sequence[Any]) -> None:
        """Keep the replies, and find out which commands to send again, and where."""
        self.targets, self.lost, self.waits = {}, {}, False
        for batch, answer in zip(batches, answers, strict=True):
            if isinstance(answer, Exception):
                self._cluster.suspect(batch.address)
                for index in batch.indexes:
                    self._outage(index, batch, answer)
                continue
            self._cluster.answered(batch.address)
            if not batch.at_replica and not has_errors(answer):
                for index, reply in zip(batch.indexes, answer, strict=True):
                    self.replies[index] = reply
                continue
            for index, reply in zip(batch.indexes, answer, strict=True):
                if isinstance(reply, redis.ResponseError):
                    self._error(index, batch, reply)
                elif batch.at_replica and self._may_lack(self._commands[index], reply):
                    self.lost[index] = batch.address, redis.ConnectionError("the primary of a slot does not answer")
                else:
                    self.replies[index] = reply

    def try_again(self) -> None:
        """Send what got no answer to the node that has taken over; raise its outage if there is none."""
        for index, (address, outage) in self.lost.items():
            now = self._cluster.address_of(key_of(self._commands[index]))
            if now == address or self._cluster.is_suspect(now) or not (self._may_repeat or _was_refused(outage)):
                raise outage
            self.targets[index] = None
        self.lost = {}

    def _error(self, index: int, batch: Batch, error: redis.ResponseError) -> None:
        if isinstance(error, MovedError):  # in redis-py a kind of AskError
            self._cluster.moved(error.slot_id, _named(error, batch))
            self.targets[index] = None
        elif isinstance(error, AskError):
            self.targets[index] = _named(error, batch), "ask"
        elif isinstance(error, TryAgainError) or "non local key in a cluster node" in str(error):
            self.targets[index] = None
            self.waits = True
        elif isinstance(error, OUTAGES):
            self._outage(index, batch, error)
        else:
            self.replies[index] = error

    def _outage(self, index: int, batch: Batch, outage: Exception) -> None:
        replica = None if batch.at_replica else self._replica_for(self._commands[index], batch.address)
        if replica is not None:
            self.targets[index] = replica, "replica"
        else:
            self.lost[index] = batch.address, outage

    def _replica_for(self, command: Command, address: Address) -> Address | None:
        return self._cluster.replica_of(address) if self._may_repeat and command[0] in _READS else None

    def _may_lack(self, command: Command, reply: Any) -> bool:
        """Whether a replica may lack the row that its primary has: it may be behind, and a miss must be one."""
        if command[0] not in _OF_ROWS or self._cluster.slot_of(command[1]) == self._cluster.home_slot:
            return False
        return reply is None or (isinstance(reply, list) and None in reply)


def _batch_at(place: Address | tuple[Address, str]) -> Batch:
    first, second = place
    if isinstance(first, str):
        return Batch((first, cast(int, second)))
    return Batch(first, asks=second == "ask", at_replica=second == "replica")


def _was_refused(outage: Exception) -> bool:
    """Whether a node took no connection, so that nothing was sent."""
    return isinstance(outage.__cause__ or outage.__context__, ConnectionRefusedError)


def _named(error: Any, batch: Batch) -> Address:
    # an empty host means the host that answered
    return error.host or batch.address[0], error.port


#: commands with many keys that are sent for one key each → the name then, and how the replies are joined
_SPLIT: dict[str, tuple[str, Callable[[list[Any]], Any]]] = {"MGET": ("GET", list), "UNLINK": ("UNLINK", sum)}


def one_by_key(commands: Sequence[Command]) -> tuple[list[Command], list[int]]:
    """Return the commands with one key each, and into how many each was split; 0: it was not."""
    single: list[Command] = []
    counts = []
    for command in commands:
        if command[0] in _SPLIT:
            name = _SPLIT[command[0]][0]
            single.extend([(name, key) for key in command[1:]])
            counts.append(len(command) - 1)
        else:
            single.append(command)
            counts.append(0)
    return single, counts


def joined(commands: Sequence[Command], replies: list[Any], counts: list[int]) -> list[Any]:
    """Return the replies to the commands as they were before `one_by_key`."""
    found, at = [], 0
    for command, count in zip(commands, counts, strict=True):
        found.append(_SPLIT[command[0]][1](replies[at : at + count]) if count else replies[at])
        at += count or 1
    return found
