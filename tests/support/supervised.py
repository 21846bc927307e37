"""A supervisor over stand-in programs, in a process of its own so that it can really be killed."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from inference.settings import find_embedded_redis
from tests.support.stack import child_environment
from tests.support.waiting import wait_for
from tests.support.warm_start import start_python


class Supervised:
    """`tests/support/local_up.py` at work in a folder's `.forecache`."""

    def __init__(self, root: Path, *kinds: str) -> None:
        self.root = root
        self.state_dir = root / ".forecache"
        self.log = root / "log"
        with self.log.open("wb") as log:
            self.process = start_python(
                # a module of ours: started from a process that has imported Forecache
                ["-m", "tests.support.local_up", str(self.state_dir), *kinds],
                cwd=root, env=child_environment(), stdout=log.fileno(), stderr=log.fileno(),
            )  # fmt: skip

    def output(self) -> str:
        return self.log.read_text()

    def pid(self, name: str) -> int | None:
        """Pid that a stand-in wrote at its latest start."""
        file = self.state_dir / f"{name}.pid"
        text = file.read_text() if file.exists() else ""
        return int(text) if text else None

    def wait_pid(self, name: str, *, other_than: int | None = None) -> int:
        def fresh() -> int | None:
            pid = self.pid(name)
            return pid if pid != other_than else None

        return wait_for(fresh, f"a start of {name}", 15)

    def redis(self, database: int = 1) -> redis.Redis:
        found = find_embedded_redis(self.root)
        assert found
        url = found["cache_url" if database else "url"]
        return redis.Redis.from_url(url, socket_timeout=2, retry=Retry(NoBackoff(), 0))

    def redis_pid(self) -> int:
        with self.redis() as client:
            return int(client.info("server")["process_id"])

    def wait_redis(self) -> None:
        def answers() -> bool:
            try:
                with self.redis() as client:
                    return bool(client.ping())
            except (AssertionError, redis.ConnectionError, redis.TimeoutError):
                return False

        wait_for(answers, "the embedded Redis", 15)

    def wait_said(self, text: str, within_s: float = 15) -> None:
        wait_for(lambda: text in self.output(), f"{text!r} in the output", within_s)

    def descendants(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = 20) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
