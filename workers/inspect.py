"""Prints what a model takes and gives, as JSON: `python -P -m workers.inspect PATH [latest|all|3,4] [--allow-code]`.

Its own process, so that those who ask need no TensorFlow. A refused model: exit 1 and one line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from inference.errors import ForecacheError
from inference.models.inspection import inspect_versions, records_to_json
from inference.models.runtimes import LoadOptions
from inference.models.versions import Wanted

#: pickles may be loaded, which runs what they hold
_ALLOW_CODE = "--allow-code"
#: by how much this process stands back from those that serve (nice)
_POLITENESS = 10


def main(argv: Sequence[str]) -> int:
    """Inspect one model's folder; returns the exit status."""
    # what the model is can be told without the code that its features need
    options = LoadOptions(allow_code=_ALLOW_CODE in argv, import_functions=False)
    argv = [word for word in argv if word != _ALLOW_CODE]
    if len(argv) not in (1, 2):
        return _complain(f"usage: python -P -m workers.inspect PATH [latest|all|3,4] [{_ALLOW_CODE}]", 2)
    wanted = parse_wanted(argv[1] if len(argv) == 2 else "latest")
    if wanted is None:
        return _complain(f"{argv[1]!r} is neither 'latest', 'all' nor version numbers such as 3,4", 2)
    # whoever serves requests on this machine goes first
    os.nice(_POLITENESS)
    try:
        records = inspect_versions(Path(argv[0]).absolute(), wanted, options=options)
    except ForecacheError as error:
        return _complain(error.message, 1)
    if not any(record.state == "ready" for record in records.values()):
        newest = records[max(records)]
        return _complain(str(newest.error), 1)
    print(records_to_json(records))  # noqa: T201 - its output is its purpose
    return 0


def parse_wanted(text: str) -> Wanted | None:
    """Return which versions a command line asks for; None when it cannot be understood."""
    if text == "latest" or text == "all":
        return text  # type: ignore[return-value]  # mypy does not narrow str by comparison
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else None


def _complain(sentence: str, status: int) -> int:
    print(" ".join(sentence.split()), file=sys.stderr)  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
