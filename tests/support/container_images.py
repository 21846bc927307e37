"""Builds the images of docker/ without a Docker daemon, and runs commands in their roots.

By buildah in chroot isolation, as root, on a base that debootstrap makes of Debian packages. What apt and pip of this
machine are told (mirror, index, certificates) is read when the test runs and handed to the build, never kept.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.redis_server import missing
from tests.support.stack import ROOT

#: it has Python 3.11; any Debian's debootstrap can make it
SUITE = "bookworm"
#: binutils is for docker/slim.sh, which would install it otherwise
PACKAGES = "python3,python3-venv,ca-certificates,binutils"
_STEP_TIMEOUT_S = 900


def require_builder() -> None:
    """Skip on a laptop, fail in CI, where the images cannot be built."""
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            missing(f"{program} (Debian's package of that name)")
    if os.getuid() != 0:
        missing("root, whom debootstrap and chroot isolation need,")


class Images:
    """Images in a folder of their own, gone with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        storage = f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        (folder / "storage.conf").write_text(storage)
        self.environment = os.environ | {
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"), "BUILDAH_ISOLATION": "chroot",
        }  # fmt: skip

    def close(self) -> None:
        """Remove everything."""
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")
        shutil.rmtree(self.folder)

    def make_base(self) -> None:
        """Make the image `base`: a small Debian with Python."""
        root = self.folder / "base"
        _run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), debian_mirror()])
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, str(root), "/")
        self.buildah("commit", "--quiet", container, "localhost/base")
        self.buildah("rm", container)
        shutil.rmtree(root)

    def build(self, target: str, **arguments: str) -> None:
        """Build a target of docker/Dockerfile on the base."""
        conf, paths = pip_configuration()
        secret = self.folder / "pip.conf"
        secret.touch(0o600)
        secret.write_text(conf)
        self.buildah(
            "build", "--format", "docker", "--layers=false", "--file", "docker/Dockerfile", "--target", target,
            "--tag", f"localhost/{target}", "--secret", f"id=pip_conf,src={secret}",
            *(f"--volume={path}:{path}:ro" for path in paths), "--build-arg", "PYTHON_IMAGE=localhost/base",
            *(f"--build-arg={name}={value}" for name, value in arguments.items()), ".",
        )  # fmt: skip

    def config(self, image: str) -> dict[str, Any]:
        """What an image says of itself: User, Cmd, Healthcheck …."""
        described = json.loads(self.buildah("inspect", "--type", "image", f"localhost/{image}"))
        config: dict[str, Any] = described["Docker"]["config"]
        return config

    def buildah(self, *arguments: str) -> str:
        """Run buildah; return what it printed."""
        return _run(["buildah", *arguments], self.environment)


class Container:
    """A root made of an image, in which several commands may run at once, each as the image's user."""

    def __init__(self, images: Images, image: str) -> None:
        self._images = images
        self.name = images.buildah("from", f"localhost/{image}")
        self.root = Path(images.buildah("mount", self.name))

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return int(_run(["du", "-s", "--apparent-size", "--block-size=1", str(self.root)]).split()[0])

    def argv(
        self, command: Sequence[str], *, volumes: Mapping[Path, str] | None = None, env: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return what runs a command in it. `volumes`: folder or file of this machine → where it is seen."""
        mounts = [f"--volume={outside}:{inside}" for outside, inside in (volumes or {}).items()]
        variables = [f"--env={name}={value}" for name, value in (env or {}).items()]
        return ["buildah", "run", *mounts, *variables, self.name, "--", *command]

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which may be a failure."""
        return subprocess.run(
            self.argv(command, **options),
            env=self._images.environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def start(self, log: Path, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command whose output goes to a file; `end_tree` ends it."""
        with log.open("wb") as output:
            return subprocess.Popen(
                self.argv(command, **options), env=self._images.environment, stdout=output, stderr=output
            )


def debian_mirror() -> str:
    """Return where apt of this machine gets Debian's main packages."""
    targets = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT) $(CODENAME)"]).splitlines()
    for target in targets:
        uri, component, codename = target.split(" ")
        if component == "main" and codename.isalpha():  # no bookworm-security
            return uri
    pytest.fail(f"apt knows no mirror of Debian: {targets}")


def pip_configuration() -> tuple[str, list[Path]]:
    """Return a pip.conf that says what pip is told here by files and environment, and the paths that it names.

    A later line of `pip config list` wins, but that the environment's come first and win over all.
    """
    lines = _run([sys.executable, "-m", "pip", "config", "list"]).splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line]
    by_rank = sorted(pairs, key=lambda pair: (pair[0].startswith(":env:."), pair[0].startswith("install.")))
    options = {name.split(".", 1)[1]: str(ast.literal_eval(value)) for name, value in by_rank}
    words = [word for value in options.values() for word in value.split()]
    text = "".join(f"{name} = {value}\n" for name, value in options.items())
    return f"[global]\n{text}", sorted({path for word in words if (path := _local_path(word))})


def _local_path(word: str) -> Path | None:
    # an index on disk links to files beside it
    path = Path(urlsplit(word).path).parent if word.startswith("file://") else Path(word)
    return path if path.is_absolute() and path.exists() else None


def _run(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_STEP_TIMEOUT_S, check=False
    )
    said = f"{shlex.join(argv)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said[-4000:]
    return done.stdout.strip()
