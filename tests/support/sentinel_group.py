"""A Redis with replicas and Sentinels for tests, all real, on free ports of this machine."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import redis

from tests.support.ports import free_port
from tests.support.redis_server import RedisServer, find_redis_binary
from tests.support.waiting import wait_for

#: milliseconds of silence after which a Sentinel takes a server for dead
DOWN_AFTER_MS = 1000


class SentinelGroup:
    """One primary, its replicas and three Sentinels, which call it `primary`.

    `password`, `sentinel_password`: of the data servers and of the Sentinels; none by default.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replicas: int = 1,
        password: str | None = None,
        sentinel_password: str | None = None,
        binary: Path | None = None,
    ) -> None:
        self.folder = folder
        self.password, self.sentinel_password = password, sentinel_password
        self._binary = binary or find_redis_binary()
        self.servers = [
            RedisServer(folder / f"server-{number}", binary=self._binary, appendonly=True)
            for number in range(1 + replicas)
        ]
        self.sentinel_ports = [free_port() for _ in range(3)]
        self.sentinels: list[subprocess.Popen[bytes]] = []

    def url(self, database: int = 0) -> str:
        user = f":{self.password}@" if self.password else ""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        options = f"?sentinel_password={self.sentinel_password}" if self.sentinel_password else ""
        return f"redis+sentinel://{user}{hosts}/primary/{database}{options}"

    def __enter__(self) -> SentinelGroup:
        try:
            for server in self.servers:
                server.start()
            for server in self.servers:
                self._set_passwords(server)
                with self.client(server) as client:
                    if server is not self.servers[0]:
                        client.replicaof("127.0.0.1", self.servers[0].port)
            wait_for(lambda: self.replicas() == len(self.servers) - 1, "the replicas", 15)
            for port in self.sentinel_ports:
                self.sentinels.append(self._start_sentinel(port))
            wait_for(self._is_settled, "the Sentinels to know each other and the replicas", 20)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        for process in self.sentinels:
            process.kill()
            process.wait(5)
        for server in self.servers:
            if server.process and server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
            server.stop()

    def client(self, server: RedisServer) -> redis.Redis:
        return redis.Redis(port=server.port, password=self.password, socket_timeout=2, retry=None)

    def _set_passwords(self, server: RedisServer) -> None:
        with redis.Redis(port=server.port, socket_timeout=2, retry=None) as client:
            # a replica that waits for its first copy answers nobody
            client.config_set("repl-diskless-sync-delay", 0)
            if self.password:
                client.config_set("masterauth", self.password)
                client.config_set("requirepass", self.password)

    def replicas(self) -> int:
        with self.client(self.primary) as client:
            info = client.info("replication")
        return sum(1 for number in range(info["connected_slaves"]) if info[f"slave{number}"]["state"] == "online")

    @property
    def primary(self) -> RedisServer:
        """The server that the Sentinels name; the first one before they are asked."""
        if not self.sentinels:
            return self.servers[0]
        port = self.primary_port(self.sentinel_ports[0])
        return next(server for server in self.servers if server.port == port)

    def primary_port(self, sentinel_port: int) -> int:
        with self.sentinel(sentinel_port) as client:
            return int(client.sentinel_get_master_addr_by_name("primary")[1])

    def sentinel(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, password=self.sentinel_password, socket_timeout=2, retry=None)

    def kill_primary(self) -> RedisServer:
        """kill -9 of the primary; return it. Its data stays on disk, and `start` starts it again."""
        server = self.primary
        server.kill()
        return server

    def revive(self, server: RedisServer) -> None:
        """Start a killed server again, which the Sentinels make a replica."""
        server.start()
        self._set_passwords(server)
        wait_for(lambda: self.replicas() == len(self.servers) - 1, "the revived server as a replica", 30)

    def wait_failover(self, old: RedisServer, timeout_s: float = 20) -> float:
        """Wait until every Sentinel names another primary; return the seconds that it took."""
        began_at = time.monotonic()
        wait_for(
            lambda: all(self.primary_port(port) != old.port for port in self.sentinel_ports), "a failover", timeout_s
        )
        return time.monotonic() - began_at

    def _is_settled(self) -> bool:
        for port in self.sentinel_ports:
            with self.sentinel(port) as client:
                try:
                    [state] = client.sentinel_masters().values()
                except redis.RedisError:
                    return False
            if state["num-other-sentinels"] != 2 or state["num-slaves"] != len(self.servers) - 1:
                return False
        return True

    def _start_sentinel(self, port: int) -> subprocess.Popen[bytes]:
        own = self.folder / f"sentinel-{port}"
        own.mkdir(parents=True)
        lines = [
            f"port {port}", "bind 127.0.0.1", f"dir {own}",
            f"sentinel monitor primary 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds primary {DOWN_AFTER_MS}",
            "sentinel failover-timeout primary 5000",
        ]  # fmt: skip
        if self.password:
            lines.append(f"sentinel auth-pass primary {self.password}")
        if self.sentinel_password:
            lines += [f"requirepass {self.sentinel_password}", f"sentinel sentinel-pass {self.sentinel_password}"]
        (own / "sentinel.conf").write_text("\n".join(lines) + "\n")
        with (own / "log").open("wb") as log:
            return subprocess.Popen([self._binary, own / "sentinel.conf", "--sentinel"], stdout=log, stderr=log)


def fail_over(sentinel: redis.Redis) -> bool:
    """Have the Sentinels replace a primary that works; False while they are busy with the last failover."""
    try:
        sentinel.execute_command("SENTINEL FAILOVER", "primary")
    except redis.ResponseError:
        return False
    return True
