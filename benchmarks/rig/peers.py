"""Other systems that are measured beside ours: an environment of its own for each, and model servers that come and go.

Their packages would not fit beside ours, and they are never dependencies of ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from rig.dataset import Dataset
from rig.stack import ROOT, free_port, wait_until
from rig.wrk import Posts, Target

ENVIRONMENTS = ROOT / ".peers"
SERVERS = ROOT / "benchmarks" / "peers"


@dataclass(frozen=True)
class Peer:
    """A model server under `peers/`.

    `requirements`: names its environment. `command`: from a model's folder and a port to the arguments of its
    interpreter. `body`: what stands before and after a row in a request.
    """

    name: str
    requirements: str
    command: Callable[[Path, int], list[str]]
    path: str
    body: tuple[str, str] = ("", "")
    stop_with: signal.Signals = signal.SIGTERM
    environment: dict[str, str] = field(default_factory=dict)


def _ray_serve(model: Path, port: int) -> list[str]:
    return [str(SERVERS / "ray_serve_server.py"), str(model), str(port)]


PEERS = (
    Peer(
        "litserve",
        "litserve",
        lambda model, port: [str(SERVERS / "litserve_server.py"), str(model), str(port)],
        "/predict",
        # by SIGTERM it leaves its workers behind, by SIGINT it takes more than 20 s
        stop_with=signal.SIGKILL,
    ),
    Peer(
        "bentoml",
        "bentoml",
        lambda _, port: ["-m", "bentoml", "serve", "bentoml_server:Bench", "--host", "127.0.0.1", "--port", str(port)],
        "/predict",
        body=('{"rows":[', "]}"),
    ),
    Peer("ray_serve", "ray_serve", _ray_serve, "/"),
    Peer(
        "ray_serve_haproxy",
        "ray_serve",
        _ray_serve,
        "/",
        # off unless asked for; what Ray's guide to high throughput sets (2.56 and later)
        environment={"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    ),
)


def peer_python(name: str) -> Path:
    """Return the interpreter of the environment of `peers/NAME.txt`; the first time it is made, which takes minutes."""
    requirements = SERVERS / f"{name}.txt"
    mark = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{name}-{mark}"
    python = folder / "bin" / "python"
    installed = folder / ".installed"
    if not installed.exists():
        print(f"installing {requirements.name} into {folder.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True)
        installed.touch()
    return python


@contextlib.contextmanager
def serving(peer: Peer, dataset: Dataset, answers: Path) -> Iterator[Target]:
    """Start a peer, yield what to load once it predicts, and end every process of it.

    Only while it is measured: Ray takes a tenth of a core when nobody asks it anything.
    """
    port = free_port()
    log_file = dataset.folder / f"{peer.name}.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [str(peer_python(peer.requirements)), *peer.command(dataset.model, port)],
            cwd=SERVERS, env=_environment(dataset) | peer.environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    url, rows = f"http://127.0.0.1:{port}", dataset.rows_file
    try:
        wait_until(lambda: _predicts(f"{url}{peer.path}", rows, peer.body, process, log_file), peer.name)
        posts = Posts(peer.path, rows, *peer.body)
        yield Target(peer.name, url, dataset.rows, '"prediction":', answers=answers, posts=posts)
    finally:
        _end(process, peer.stop_with)


def _environment(dataset: Dataset) -> dict[str, str]:
    return {**peer_environment(), "BENCH_MODEL": str(dataset.model)}


def peer_environment() -> dict[str, str]:
    """Return the environment of every peer: none of our modules on its path, and no word to its makers."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {
        **own,
        "BENTOML_DO_NOT_TRACK": "true",
        "FEAST_USAGE": "False",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def _predicts(url: str, rows: Path, body: tuple[str, str], process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise SystemExit(f"{url} ended before it answered; its log ends with:\n{log.read_text()[-2000:]}")
    with rows.open() as file:
        row = file.readline().rstrip()
    content = f"{body[0]}{row}{body[1]}"
    try:
        answer = httpx.post(url, content=content, headers={"content-type": "application/json"}, timeout=5)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


def _end(process: subprocess.Popen[bytes], stop_with: signal.Signals) -> None:
    process.send_signal(stop_with)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    # whatever it left behind, itself included
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
