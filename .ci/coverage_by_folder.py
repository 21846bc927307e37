"""Prints which share of the lines the tests ran, by folder: the end of `make coverage`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).resolve().parents[1]
#: folders below these are told one by one
_WIDE = ("app", "inference")


def main() -> None:
    """Print a line for each folder, and the total."""
    measured = Coverage()
    measured.load()
    lines: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for file in sorted(measured.get_data().measured_files()):
        _, statements, _, missing, _ = measured.analysis2(file)
        for folder in (_folder(Path(file)), "total"):
            lines[folder] += len(statements)
            missed[folder] += len(missing)
    for folder in sorted(lines, key=lambda name: (name == "total", name)):
        share = 1 - missed[folder] / lines[folder] if lines[folder] else 1
        print(f"{folder:28}{lines[folder]:8} lines{share:8.1%}")
    print(f"each line: {measured.config.html_dir}/index.html")


def _folder(file: Path) -> str:
    *folders, _ = file.relative_to(ROOT).parts
    return "/".join(folders[: 2 if folders and folders[0] in _WIDE else 1]) or file.name


if __name__ == "__main__":
    main()
