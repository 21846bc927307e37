"""How a table talks to Redis, for blocking callers: pipelines, scripts, and what an outage is called."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import redis

from inference.errors import store_error
from inference.store.outages import outage_is_an_error
from inference.store.pipe import pipe_of
from inference.store.plans import Command, Plan, T

_SCRIPTS = {path.stem: path.read_text() for path in (Path(__file__).parent / "scripts").glob("*.lua")}


class TableConnection:
    """Sends a table's commands, from any thread. Each method raises StoreUnavailable, or StoreFull, in an outage.

    `what`: the table's name in those errors, such as "the features of 'm'".
    """

    def __init__(self, client: redis.Redis, what: str) -> None:
        self._client: Any = client
        self._pipe = pipe_of(client)
        self._what = what
        self._scripts = {name: client.register_script(text) for name, text in _SCRIPTS.items()}

    def follow(self, plan: Plan[T]) -> T:
        """Return what a plan makes of the replies to its commands, which only read."""
        try:
            commands = next(plan)
            while True:
                commands = plan.send(self._look_up(commands))
        except StopIteration as done:
            outcome: T = done.value
            return outcome

    def send(self, commands: Sequence[Command], *, atomic: bool = False) -> list[Any]:
        """Return the replies of one pipeline; `atomic` makes it a transaction."""
        with self.outages(), self._client.pipeline(transaction=atomic) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = pipe.execute()
            return replies

    def script_again(self, name: str, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """Run a script that Redis probably holds, and that may run twice."""
        try:
            return self._pipe.send([("EVALSHA", self._scripts[name].sha, len(keys), *keys, *arguments)])[0]
        except (redis.ConnectionError, redis.ResponseError):
            return self.script(name, keys, arguments)
        except redis.RedisError as error:
            raise store_error(self._what, error) from error

    def script(self, name: str, keys: Sequence[Any], arguments: Sequence[Any]) -> Any:
        """Return what a script of `scripts/` answers."""
        with self.outages():
            return self._scripts[name](keys=keys, args=arguments)

    def outages(self) -> AbstractContextManager[None]:
        """Within this, what redis-py raises is an outage of the table."""
        return outage_is_an_error(self._what)

    def _look_up(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies of one pipeline that only reads."""
        try:
            return self._pipe.send(commands)
        except redis.ConnectionError:
            # a connection that lay idle while Redis was restarted; redis-py tries anew, for a while
            return self.send(commands)
        except redis.RedisError as error:
            raise store_error(self._what, error) from error
