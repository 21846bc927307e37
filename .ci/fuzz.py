"""Gives parsers what nobody would send on purpose, guided by which of their lines that reaches, and keeps what breaks.

`make fuzz PARSER=bodies SECONDS=600` starts it; docs/testing.md tells how to read the outcome. The work is Atheris',
which is libFuzzer for Python; each parser is tried in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOUND = ROOT / "build" / "fuzz"
#: by name, the modules with their parsers
PARSERS = {
    "bodies": "bodies", "heads": "heads", "messages": "messages", "envelopes": "messages", "records": "records",
    "tables": "records", "results": "records", "contract": "files", "remote": "files", "settings": "files",
    "footers": "files",
}  # fmt: skip
#: whose lines are counted
MEASURED = ["app", "inference", "tasks", "workers", "celery.worker.request", "celery.worker.strategy"]
MOST_BYTES = 8 * 1024
#: of processor time for one example; one that hangs for ten is killed
MOST_S, HANGS_S = 1.0, 10
MOST_MIB = 2048


def main() -> int:
    """Try the parsers that the command line asks for; 1 when one broke the rule."""
    asked = _arguments()
    if asked.inside:
        _run(asked.parser)
    names = [asked.parser] if asked.parser else list(PARSERS)
    return max([_try(name, asked.seconds) for name in names])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parser", choices=PARSERS, help="left out, all of them, one after the other")
    parser.add_argument("--seconds", type=int, default=600, help="for each parser (default 600)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _try(name: str, seconds: int) -> int:
    folder = FOUND / name
    for each in ("examples", "found", "work"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--inside", "--parser", name, "--seconds", str(seconds)]
    with (folder / "fuzz.log").open("wb") as log:
        code = subprocess.run(command, cwd=folder / "work", stdout=log, stderr=log, check=False).returncode  # noqa: S603
    said = (folder / "fuzz.log").read_text(errors="replace")
    done = re.findall(r"^Done (\d+) runs", said, re.MULTILINE) or re.findall(r"^#(\d+)", said, re.MULTILINE) or ["0"]
    found = sorted((folder / "found").iterdir())
    print(f"{name}: {int(done[-1]):,} examples in {seconds} s, {len(found) // 2} that break the rule", flush=True)
    for file in found:
        if file.suffix == ".txt":
            print(f"  {file.with_suffix('').relative_to(ROOT)}: {file.read_text().strip().splitlines()[-1][:300]}")
    if code:
        print(f"  the process ended with {code}: {(folder / 'fuzz.log').relative_to(ROOT)} says why")
    return 1 if found or code else 0


def _run(name: str) -> None:
    import atheris  # only here: the command itself works without its hooks

    asked = _arguments()
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=MEASURED, enable_loader_override=False):
        module = importlib.import_module(f"fuzzing.{PARSERS[name]}")
    from fuzzing.mutation import Mutator, read_as, written_as

    parser = getattr(module, "PARSERS", {}).get(name) or module.PARSER
    seeds = [text for seed in parser.seeds() if (text := written_as(parser.form, seed)) is not None]
    folder = FOUND / name
    for seed in seeds:
        (folder / "examples" / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    keep = _Keeper(folder / "found")

    def attempt(data: bytes) -> int:
        example = read_as(parser.form, data)
        if example is None and parser.form == "document":
            return -1
        started = time.process_time()
        try:
            parser.attempt(data if parser.form == "toml" else example)
            _check_time(time.process_time() - started)
        except Exception as error:  # noqa: BLE001 - the finding
            keep(data, error)
        return 0

    options = [
        str(folder / "examples"), f"-max_total_time={asked.seconds}", f"-max_len={MOST_BYTES}", f"-timeout={HANGS_S}",
        f"-rss_limit_mb={MOST_MIB}", f"-artifact_prefix={folder / 'found'}/", "-len_control=0",
    ]  # fmt: skip
    mutator = Mutator(parser.form, seeds, lambda data, most: atheris.Mutate(data, most))  # it is another one later
    atheris.Setup([sys.argv[0], *options], attempt, custom_mutator=mutator)
    atheris.Fuzz()


def _check_time(took_s: float) -> None:
    if took_s > MOST_S:
        raise TimeoutError(f"it took {took_s:.1f} s")


class _Keeper:
    """Writes down the first example of each kind that broke the rule, with its traceback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, data: bytes, error: Exception) -> None:
        name = hashlib.sha256(_kind_of(error).encode()).hexdigest()[:12]
        file = self._folder / name
        if file.exists() and file.stat().st_size <= len(data):
            return
        file.write_bytes(data)
        file.with_suffix(".txt").write_text("".join(traceback.format_exception(error)), errors="backslashreplace")


def _kind_of(error: Any) -> str:
    """Return what findings of one cause share: the types of the errors, and the last lines of ours that raised."""
    parts = []
    while error is not None:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if str(ROOT) in one.filename]
        place = next((one for one in reversed(frames) if "/.venv/" not in one.filename), None)
        parts.append(f"{type(error).__name__} {place.filename}:{place.lineno}" if place else type(error).__name__)
        error = error.__cause__
    return " < ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
