"""Nothing is left for ever: each key is in the catalogue of `inference/redis/keys.py` and has an owner or an end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from inference.batch import RunState
from inference.redis.clients import WORKER, Client, open_client
from inference.redis.keys import Keys, TableKind
from tests.support.stack import Stack
from tests.support.waiting import wait_for

#: kept for good, once a model or a table
_FOR_GOOD = re.compile(
    r"[pf]:[^:]+:(pointer|seq|gens|schemas)|m:[^:]+:(record|runs|slots|quarantines|micro|forgotten)|h:key|h:[^:]+:(log|total)"
)
_GENERATION = re.compile(r"([pf]):([^:]+):g:(\d+)")
#: must expire, whoever wrote them
_EXPIRING = re.compile(
    r"[pf]:[^:]+:g:\d+:\{?\d+\}?|[pf]:[^:]+:o:.*|m:[^:]+:(reconciler|loads|forgotten:[0-9a-f]{16})|[pf]:[^:]+:replicated|h:replicated(:\{\d+\})?|h:requests|h:[^:]+(:[a-z_]+)?:\d+|r:[^:]+:(known|driver)|j:.*|jobs|i:.*|[wq]:.*|doctor:.*",
    re.DOTALL,
)
_ACTIVE_RUN = re.compile(r"m:([^:]+):active_run")
_HELD_RUN = re.compile(r"m:([^:]+):held_run")
_RUN = re.compile(r"r:([^:]+)(:(plan|claims|done|sent|bins|histogram|diff))?")
#: what the broker keeps: queues, their bindings, deliveries that nobody has confirmed yet, answers to remote control
#: that came after whoever asked had left
_BROKER = re.compile(r"_kombu\..*|unacked.*|[^:]+\.(batch|realtime|maintenance)|[^:]*pidbox.*|celeryev.*")


def leaked_keys(client: Client, prefix: str) -> list[str]:
    """The keys of the cache Redis that nobody owns and that never expire, and those that no one knows."""
    connection: Any = client
    nodes = connection.primaries() if client.is_spread else [connection]
    found = [key.decode(errors="replace") for node in nodes for key in node.scan_iter(count=1000)]
    return sorted(key for key in found if _leaks(connection, Keys(prefix), key))


def _leaks(client: Any, keys: Keys, key: str) -> bool:
    # in a cluster, the prefix of rows has no braces
    prefix = keys.prefix if key.startswith("{") else keys.prefix.strip("{}")
    if not key.startswith(f"{prefix}:"):
        return True
    name, expires = key.removeprefix(f"{prefix}:"), client.ttl(key) != -1
    if _FOR_GOOD.fullmatch(name):
        return False
    if _EXPIRING.fullmatch(name):
        return not expires
    if match := _GENERATION.fullmatch(name):
        listed = client.zscore(keys.table(TableKind(match[1]), match[2]).generations, match[3])
        return listed is None
    if match := _ACTIVE_RUN.fullmatch(name):
        run_id = client.get(key)
        return run_id is not None and not _is_going_on(client, keys, run_id.decode())
    if _HELD_RUN.fullmatch(name):
        run_id = client.get(key)
        return run_id is not None and client.hget(keys.run(run_id.decode()), "state") != RunState.HELD.encode()
    if match := _RUN.fullmatch(name):
        return not expires and not _is_going_on(client, keys, match[1])
    return True


def _is_going_on(client: Any, keys: Keys, run_id: str) -> bool:
    state = client.hget(keys.run(run_id), "state")
    return state is not None and not RunState(state.decode()).is_over


def leaked_files(folder: Path) -> list[Path]:
    """Temporary files of sinks below a folder."""
    return [path for path in folder.rglob("*.tmp") if path.is_file()]


def assert_nothing_leaks(stack: Stack) -> None:
    """No key without owner or end, in the cache or beside the broker's own, and no temporary file."""
    prefix, tag = stack.settings.redis.prefix, stack.settings.redis.key_prefix
    with open_client(stack.settings.cache_url, WORKER, tag=tag) as cache:
        leaked = leaked_keys(cache, tag)
    assert leaked == [], leaked
    with Client.from_url(stack.settings.redis_url) as results:
        connection: Any = results
        lasting = [key.decode() for key in connection.scan_iter() if connection.ttl(key) == -1]
    ours = [key for key in lasting if not _BROKER.fullmatch(key.removeprefix(f"{prefix}:"))]
    assert ours == [], ours
    # a chunk of the run that just ended may be on its way out in another worker
    wait_for(lambda: not leaked_files(stack.folder), f"an end of {leaked_files(stack.folder)}", 15)
