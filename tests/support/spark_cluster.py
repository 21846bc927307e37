"""A Spark of several machines in small: a standalone master and workers, each a JVM with a folder of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psutil

from tests.support.ports import free_port
from tests.support.stack import child_environment
from tests.support.waiting import wait_for


class SparkCluster:
    """A master and workers on the loopback address. Ends them all at the end."""

    def __init__(self, folder: Path, workers: int) -> None:
        import pyspark

        self.folder = folder
        self.home = Path(pyspark.__file__).parent
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._workers = [f"worker-{number}" for number in range(1, workers + 1)]

    @property
    def url(self) -> str:
        return f"spark://127.0.0.1:{self.port}"

    def __enter__(self) -> SparkCluster:
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--webui-port", str(free_port())]
        self._start("master", "org.apache.spark.deploy.master.Master", *address)
        for name in self._workers:
            self.start_worker(name)
        self.wait_workers(len(self._workers))
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self.kill(name)

    def start_worker(self, name: str) -> None:
        """Start a machine with one core. What it writes is below its own folder."""
        own = ["--host", "127.0.0.1", "--webui-port", str(free_port()), "--cores", "1", "--memory", "1g"]
        work = ["--work-dir", str(self.folder / name)]
        self._start(name, "org.apache.spark.deploy.worker.Worker", *own, *work, self.url)

    def wait_workers(self, count: int) -> None:
        """Wait until the master has registered so many workers, those that died since included."""
        log = self.folder / "master.log"
        wait_for(lambda: log.read_text().count("Registering worker") >= count, f"{count} workers", 90)

    def kill(self, name: str) -> None:
        """End a machine as if its power failed: the worker, its executors and their workers in Python."""
        process = self.processes.pop(name)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        for one in family:
            one.kill()
        process.kill()
        process.wait(20)

    def executors(self) -> list[psutil.Process]:
        """The executors' JVMs on all machines."""
        found = []
        for process in self.processes.values():
            for one in psutil.Process(process.pid).children(recursive=True):
                try:
                    if any("CoarseGrainedExecutorBackend" in part for part in one.cmdline()):
                        found.append(one)
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
        return found

    def logs(self) -> list[str]:
        """What each executor wrote, its workers in Python included."""
        return [log.read_text(errors="replace") for log in sorted(self.folder.glob("worker-*/app-*/*/stderr"))]

    def _start(self, name: str, java_class: str, *arguments: str) -> None:
        environment = child_environment() | {
            "SPARK_HOME": str(self.home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_CONF_DIR": str(self.folder),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [self.home / "bin" / "spark-class", java_class, *arguments],
                cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
