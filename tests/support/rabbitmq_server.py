"""A real RabbitMQ for tests: a private node with an epmd of its own, nothing shared with a broker of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

from tests.support.ports import free_port
from tests.support.redis_server import missing

#: the command on PATH is Debian's wrapper, which changes the user and the folder
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_EPMD = Path("/usr/bin/epmd")


class RabbitMQServer:
    """One RabbitMQ node on a free port of loopback; what was durable is there again after a restart."""

    def __init__(self, folder: Path) -> None:
        if not (_SERVER.exists() and _EPMD.exists()):
            missing("rabbitmq-server (Debian's package)")
        self.folder = folder
        self.port, self._epmd_port, self._dist_port = free_port(), free_port(), free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> RabbitMQServer:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\nlog.file.level = warning\n"
        )
        (self.folder / "enabled_plugins").write_text("[].\n")
        # in the foreground: a daemon, which the node would start by itself, would outlive the test
        self._epmd = subprocess.Popen([_EPMD], env=self._environment())
        with (self.folder / "output").open("ab") as output:
            self._server = subprocess.Popen(
                [_SERVER], env=self._environment(), cwd=self.folder, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._wait_ready()
        return self

    def stop(self) -> None:
        """Stop the node in good order, and its epmd."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return kept | {
            "HOME": str(self.folder),  # of the Erlang cookie
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "forecache-test@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "no-such-file"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            # one scheduler: it shares the test's cores
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }

    def _wait_ready(self, timeout_s: float = 60) -> None:
        end = time.monotonic() + timeout_s
        while not self._answers():
            assert self._server is not None
            assert self._server.poll() is None, (self.folder / "output").read_text()
            assert time.monotonic() < end, f"RabbitMQ did not answer within {timeout_s} s"
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Whether it greets an AMQP client; the port is open some time before."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        if self._server is not None:
            # the Erlang machine is a child of the script, which would take seconds to stop it
            beams = [p for p in psutil.Process(self._server.pid).children(recursive=True) if p.name() == "beam.smp"]
            for beam in beams:
                beam.send_signal(how)
            try:
                self._server.wait(30)
            finally:
                self._end_group(self._server.pid)
                self._server.wait(5)
                self._server = None
        if self._epmd is not None:
            self._epmd.terminate()
            self._epmd.wait(5)
            self._epmd = None

    @staticmethod
    def _end_group(leader: int) -> None:
        """End what the node started and left behind, such as its port programs."""
        try:
            os.killpg(leader, signal.SIGKILL)
        except ProcessLookupError:
            return
