"""Puts faults into one room of the code, one at a time, and lists those that no test notices.

`make mutants ROOM=inference/store` starts it; docs/testing.md tells how to read the outcome. The work is mutmut's;
it happens in a copy below build/, so that the checkout stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIES = ROOT / "build" / "mutants"
#: outcomes of a fault that no test noticed: all passed, or none calls the function
UNNOTICED = ("survived", "no tests")
PRODUCT = ("app", "inference", "tasks", "workers")
#: faults that change nothing which can be observed, each with its reason
EXPLAINED = ROOT / "tests" / "mutants.toml"


@dataclass(frozen=True)
class Survivor:
    """A fault that no test noticed."""

    name: str
    path: str
    removed: str
    added: str
    diff: str


def main() -> int:
    """Run the faults that the command line asks for; 1 when one survives without an explanation."""
    asked = _arguments()
    files = _changed_files() if asked.changed else _room_files(asked.room)
    if not files:
        print("no changed Python file of the product" if asked.changed else f"no Python file in {asked.room}")
        return 0 if asked.changed else 2
    tests = _tests_of(files)
    if not tests:
        print(f"no fast test imports any of: {', '.join(files)}", file=sys.stderr)
        return 2
    copy = COPIES / ("changed" if asked.changed else asked.room.strip("/").replace("/", "-"))
    names = (
        [name for name, status in _outcomes(copy, files) if status in (*UNNOTICED, "timeout")] if asked.again else []
    )
    _copy_checkout(copy, files, tests)
    os.chdir(copy)  # mutmut reads its settings, and finds the code, in the working directory
    names = names if asked.again else _choose(files, asked.count, asked.seed)
    if not names:
        print("the last run left nothing to try again")
        return 0
    print(f"{len(names)} faults in {len(files)} files, tried on {len(tests)} files of tests", flush=True)
    return _report(copy, files) if _run_mutmut(copy, names, asked.processes) else 2


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--room", help="a folder or a file of the product, such as inference/store")
    which.add_argument("--changed", action="store_true", help="the files that differ from the branch main")
    parser.add_argument("--count", type=int, default=100, help="how many faults are drawn; 0 for all (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="another number draws other faults (default 1)")
    parser.add_argument("--again", action="store_true", help="only what the last run did not see noticed, or saw hang")
    parser.add_argument("--processes", type=int, default=2, help="faults tried at the same time (default 2)")
    return parser.parse_args()


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603, S607
    return [line for line in done.stdout.split("\0" if "-z" in arguments else "\n") if line]


def _room_files(room: str) -> list[str]:
    path = ROOT / room
    found = path.rglob("*.py") if path.is_dir() else [path] if path.is_file() else []
    return sorted(one.relative_to(ROOT).as_posix() for one in found)


def _changed_files() -> list[str]:
    branches = _git("branch", "--all", "--list", "main", "origin/main", "--format", "%(refname:short)")
    if not branches:
        sys.exit("CHANGED=1 compares with the branch main, which this checkout lacks: name a ROOM")
    base = _git("merge-base", branches[0], "HEAD")[0]
    changed = {*_git("diff", "--name-only", base), *_git("ls-files", "--others", "--exclude-standard")}
    return sorted(
        one for one in changed if one.startswith(tuple(f"{p}/" for p in PRODUCT)) and one.endswith(".py")
        and (ROOT / one).is_file()
    )  # fmt: skip


def _module(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _tests_of(files: Sequence[str]) -> list[str]:
    """Return the files of fast tests that import one of these modules, or the package that one belongs to."""
    rooms = {_module(file) for file in files}
    rooms |= {room.rpartition(".")[0] for room in rooms if room.count(".") > 1}
    imported = re.compile(r"^from (" + "|".join(map(re.escape, rooms)) + r")(\.\w+)* import", re.MULTILINE)
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        if imported.search(text):
            found.append(path.relative_to(ROOT).as_posix())
    return found


def _copy_checkout(copy: Path, files: Sequence[str], tests: Sequence[str]) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    for name in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    also = sorted({one.name for one in copy.iterdir()} - {*PRODUCT, "tests", "pyproject.toml"})
    settings = {
        "source_paths": list(PRODUCT),
        "only_mutate": list(files),
        "also_copy": also,
        "pytest_add_cli_args_test_selection": list(tests),
        "pytest_add_cli_args": [
            "-m",
            "not slow and not gpu and not browser",
            "-p",
            "no:cacheprovider",
            "-p",
            "in_process",
        ],
        # the texts of log lines and of errors are for people: their tests look for the words that matter
        "do_not_mutate_patterns": [r"^\s*log\.", r"^\s*raise ", r"pipeline\(transaction=False\)"],
        "timeout_constant": 3.0,
        "timeout_multiplier": 15.0,
        "process_isolation": "forkserver",
    }
    lines = "".join(f"{key} = {_as_toml(value)}\n" for key, value in settings.items())
    with (copy / "pyproject.toml").open("a") as file:
        file.write(f"\n[tool.mutmut]\n{lines}")


def _as_toml(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(f"'{one}'" for one in value) + "]"
    return f"'{value}'" if isinstance(value, str) else str(value)


def _choose(files: Sequence[str], count: int, seed: int) -> list[str]:
    from mutmut.mutation.file_mutation import mutate_file_contents

    names = []
    for file in files:
        made = mutate_file_contents(file, Path(file).read_text("utf-8"))
        names += [f"{_module(file)}.{name}" for name in made.mutant_names]
    if count and count < len(names):
        names = random.Random(seed).sample(names, count)  # noqa: S311 - a draw that can be repeated, no secret
    return sorted(names)


def _run_mutmut(copy: Path, names: Sequence[str], processes: int) -> bool:
    """Try the faults; False, with the end of its log, when mutmut itself failed."""
    program = Path(sys.executable).with_name("mutmut")
    environment = {**os.environ, "PYTHONPATH": str(copy / ".ci")}
    log = copy / "mutmut.log"
    with log.open("w") as file:
        mutmut = subprocess.Popen(  # noqa: S603
            [program, "run", "--max-children", str(processes), *names],
            stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            code = mutmut.wait()
        finally:
            # servers of tests that hung, which their killed processes have left behind
            with suppress(ProcessLookupError):
                os.killpg(mutmut.pid, signal.SIGKILL)
    if code:
        print(f"mutmut failed; the end of {log}:\n{log.read_text('utf-8').replace(chr(13), chr(10))[-3000:]}")
    return code == 0


def _outcomes(copy: Path, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each fault of a run in `copy` with what became of it; those that were not tried are left out."""
    from mutmut.stats import status_by_exit_code

    for file in files:
        kept = copy / "mutants" / f"{file}.meta"
        codes = json.loads(kept.read_text("utf-8"))["exit_code_by_key"] if kept.is_file() else {}
        yield from ((name, status_by_exit_code[code]) for name, code in codes.items() if code is not None)


def _report(copy: Path, files: Sequence[str]) -> int:
    outcomes = dict(_outcomes(copy, files))
    survivors = [_survivor(name, files) for name, status in outcomes.items() if status in UNNOTICED]
    left = [one for one in survivors if not _is_explained(one)]
    for one in left:
        print(f"\n{one.name}\n{one.diff}")
    print(f"\n{dict(Counter(outcomes.values()))}")
    noticed = len(outcomes) - len(survivors)
    print(f"noticed {noticed} of {len(outcomes)}; {len(survivors) - len(left)} others change nothing that matters")
    return 1 if left else 0


def _survivor(name: str, files: Sequence[str]) -> Survivor:
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    [path] = [file for file in files if name.startswith(_module(file) + ".x")]
    diff = get_diff_for_mutant(name, path=Path(path))
    changed = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    removed, added = (" ".join(line[1:].strip() for line in changed if line[0] == sign) for sign in "-+")
    return Survivor(name, path, removed, added, "\n".join(changed))


def _is_explained(survivor: Survivor) -> bool:
    """Whether EXPLAINED holds a fault, or leaves out of all lines what it changes."""
    told = tomllib.loads(EXPLAINED.read_text("utf-8"))
    if any(
        (one["file"], one["from"], one["to"]) == (survivor.path, survivor.removed, survivor.added)
        for one in told["mutant"]
    ):
        return True
    return any(
        re.sub(one["text"], "", survivor.removed) == re.sub(one["text"], "", survivor.added)
        for one in told["everywhere"]
    )


if __name__ == "__main__":
    sys.exit(main())
