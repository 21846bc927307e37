"""The unit files of `examples/systemd`, read as far as tests need: commands, environments, time-outs."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.stack import ROOT

UNITS = ROOT / "examples" / "systemd"
#: where the units expect the virtual environment
BIN = "/opt/forecache/bin"
GPU = "0"


@dataclass(frozen=True)
class Service:
    name: str
    argv: list[str]
    environment: dict[str, str]
    stop_timeout_s: float


def services() -> list[Service]:
    """Every service, the templates as their instance 0, with paths of this machine."""
    return [_read(file) for file in sorted(UNITS.glob("*.service"))]


def environment_file() -> dict[str, str]:
    """The variables of `forecache.env`."""
    lines = (line.strip() for line in (UNITS / "forecache.env").read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def copy_units(folder: Path) -> list[Path]:
    """Copy the units as an administrator would, but to a folder, and with paths of this machine."""
    for file in [path for path in UNITS.rglob("*") if path.is_file()]:
        copy = folder / file.relative_to(UNITS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_with_paths(file.read_text()))
    names = [f"{service.name}.service" for service in services()]
    return [folder / name for name in [*names, "forecache.target"]]


def _read(file: Path) -> Service:
    entries = [line.split("=", 1) for line in file.read_text().splitlines() if "=" in line and not line.startswith("#")]
    settings = {key: _with_paths(value).replace("%i", GPU).replace("%%", "%") for key, value in entries}
    environment = [value for key, value in entries if key == "Environment"]
    return Service(
        name=file.stem.replace("@", f"@{GPU}"),
        argv=shlex.split(settings["ExecStart"]),
        environment=dict(value.replace("%i", GPU).split("=", 1) for value in environment),
        stop_timeout_s=float(settings["TimeoutStopSec"]),
    )


def _with_paths(text: str) -> str:
    """Return a unit's text with programs of this machine, in quotes, since their folder may have a blank."""
    return re.sub(rf"{BIN}/([\w-]+)", rf'"{Path(sys.executable).parent}/\1"', text)
