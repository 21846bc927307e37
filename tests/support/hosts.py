"""Hosts of their own for tests: network namespaces with addresses, names and clocks, joined by a bridge in another one.

Nothing leaves these namespaces: no host has a route to this machine's network.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.redis_server import missing
from tests.support.stack import child_environment

_SUBNET = "10.79.0"
_NETWORK_NAMESPACE = 0x40000000  # CLONE_NEWNET
_libc = ctypes.CDLL(None, use_errno=True)


def require_namespaces() -> None:
    """Skip where there are none: without root, or on another system than Linux. Fail in CI."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for tool in ("ip", "tc", "unshare"):
        if not shutil.which(tool):
            missing(f"{tool} (iproute2, util-linux)")
    if _libfaketime() is None:
        missing("libfaketime")
    if subprocess.run(["ip", "netns", "add", "fc-probe"], capture_output=True).returncode:
        missing("the right to make network namespaces")
    _ip("netns", "del", "fc-probe")


class Host:
    """A namespace with an address. `ahead_s`: how far its clock is ahead of this machine's."""

    def __init__(self, network: Network, name: str, number: int, ahead_s: float) -> None:
        self.name, self.address = name, f"{_SUBNET}.{number}"
        self.ahead_s = ahead_s
        self._namespace, self._link, self._hub = f"{network.name}-{name}", f"v{number}", network.name
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = network.folder
        _ip("netns", "add", self._namespace)
        peer = ["peer", "name", "eth0", "netns", self._namespace]
        _ip("link", "add", self._link, "netns", self._hub, "type", "veth", *peer)
        self._inside("link", "set", "lo", "up")
        self._inside("address", "add", f"{self.address}/24", "dev", "eth0")
        self._inside("link", "set", "eth0", "up")
        _ip("-n", self._hub, "link", "set", self._link, "master", "bridge", "up")

    def _clock(self) -> dict[str, str]:
        """Return the variables that set the clock of a process."""
        if not self.ahead_s:
            return {}
        return {
            "LD_PRELOAD": str(_libfaketime()),
            "FAKETIME": f"{self.ahead_s:+g}s",
            # it goes on as it is, as on a real host
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # times of files are by the clock of whoever wrote them
            "NO_FAKE_STAT": "1",
            "PYTHONPATH": f"{Path(__file__).parent / 'steady_sleep'}:{child_environment()['PYTHONPATH']}",
        }

    def start(self, name: str, command: list[str | Path]) -> None:
        """Start a process on this host; its log is `HOST-NAME.log`."""
        words = [f"{key}={value}" for key, value in self._clock().items()]
        with self._log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                # a host name of its own; the clock is for the process alone, not for these tools
                ["ip", "netns", "exec", self._namespace, "unshare", "--uts", "sh", "-c",
                 'hostname "$0"; exec env "$@"', self.name, *words, *map(str, command)],
                cwd=self._folder, env=child_environment(), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def log(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")

    def ended(self) -> list[str]:
        """Return the processes that ended by themselves."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        process = self._processes.pop(name)
        process.send_signal(how)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def stop_all(self) -> None:
        for name in reversed(list(self._processes)):
            self.stop(name)

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Pull the cable: packets are lost, and nobody is told."""
        _ip("-n", self._hub, "link", "set", self._link, "nomaster")
        try:
            yield
        finally:
            _ip("-n", self._hub, "link", "set", self._link, "master", "bridge")

    @contextmanager
    def slow_link(self, rate: str) -> Iterator[None]:
        """Bound what this host sends to a rate such as `256kbit`, with a queue of seconds."""
        bound = ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "4kb", "latency", "2s"]
        _run("ip", "netns", "exec", self._namespace, "tc", *bound)
        try:
            yield
        finally:
            _run("ip", "netns", "exec", self._namespace, "tc", "qdisc", "del", "dev", "eth0", "root")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the sockets that this thread opens within the block be on this host."""
        own = Path("/proc/thread-self/ns/net")
        with own.open() as before, Path(f"/var/run/netns/{self._namespace}").open() as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def remove(self) -> None:
        self.stop_all()
        _ip("netns", "del", self._namespace)

    def _inside(self, *words: str) -> None:
        _ip("-n", self._namespace, *words)

    def _log(self, name: str) -> Path:
        return self._folder / f"{self.name}-{name}.log"


class Network:
    """Hosts that reach each other; `with` removes them all, and ends their processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"fc{os.getpid()}"
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Network:
        _ip("netns", "add", self.name)
        _ip("-n", self.name, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.name, "link", "set", "bridge", "up")
        return self

    def __exit__(self, *exc: object) -> None:
        for host in self.hosts.values():
            host.stop_all()
        for host in self.hosts.values():
            host.remove()
        _ip("netns", "del", self.name)

    def add(self, name: str, *, ahead_s: float = 0.0) -> Host:
        self.hosts[name] = Host(self, name, len(self.hosts) + 1, ahead_s)
        return self.hosts[name]


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _NETWORK_NAMESPACE):
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


def _libfaketime() -> Path | None:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
