"""Prints a model's inputs and outputs as JSON: `python -P -m workers.inspect PATH [latest|all|3,4]`.

Runs as a process of its own, so that its caller needs no TensorFlow. A refused model: exit 1, and one line on stderr.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from inference.errors import ForecacheError
from inference.models.loading import inspect_versions, newest_signatures, records_to_json, signatures_to_json
from inference.models.runtimes import LoadOptions
from inference.models.versions import Wanted


def main(argv: Sequence[str]) -> int:
    """Inspect one model's folder; returns the exit status."""
    arguments = _parser().parse_args(argv)
    wanted = parse_wanted(arguments.versions)
    if wanted is None:
        return _complain(f"{arguments.versions!r} is neither 'latest', 'all' nor version numbers such as 3,4", 2)
    options = LoadOptions(
        allow_code=arguments.allow_code,
        # the inputs and outputs do not depend on the code of the features
        import_functions=arguments.import_functions,
        code_folder=arguments.code_folder,
        signature=arguments.signature,
        engine_hosts=None if arguments.engine_hosts is None else tuple(filter(None, arguments.engine_hosts.split(","))),
    )
    try:
        if arguments.signatures:
            print(signatures_to_json(newest_signatures(arguments.path.absolute(), options)))  # noqa: T201
            return 0
        records = inspect_versions(arguments.path.absolute(), wanted, options=options, table=arguments.table)
    except ForecacheError as error:
        return _complain(error.message, 1)
    except Exception as error:  # noqa: BLE001 - the caller reads the last line, a person reads the traceback
        traceback.print_exc()
        return _complain(f"{type(error).__name__}: {error}", 1)
    if not any(record.state == "ready" for record in records.values()):
        newest = records[max(records)]
        return _complain(str(newest.error), 1)
    print(records_to_json(records))  # noqa: T201 - its output is its purpose
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -P -m workers.inspect", description="What a model takes and gives.")
    parser.add_argument("path", type=Path, help="the model's folder")
    parser.add_argument("versions", nargs="?", default="latest", help="latest, all, or numbers such as 3,4")
    parser.add_argument("--allow-code", action="store_true", help="load files that run code when they are loaded")
    parser.add_argument(
        "--code-folder", type=Path, metavar="FOLDER",
        help="where modules of your own lie that a pickle or the features need",
    )  # fmt: skip
    parser.add_argument("--import-functions", action="store_true", help="import the functions of the features too")
    parser.add_argument("--signature", metavar="NAME", help="which one of a SavedModel's signatures is served")
    parser.add_argument("--signatures", action="store_true", help="all signatures of the newest version instead")
    parser.add_argument("--engine-hosts", metavar="HOST,…", help="which hosts a remote.toml may name")
    parser.add_argument("--table", metavar="PATH", help="try versions with the first rows of this table of features")
    return parser


def parse_wanted(text: str) -> Wanted | None:
    """Return the versions that a command line names; None if it is malformed."""
    if text == "latest" or text == "all":
        return text  # type: ignore[return-value]  # mypy does not narrow str by comparison
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else None


def _complain(sentence: str, status: int) -> int:
    print(" ".join(sentence.split()), file=sys.stderr)  # noqa: T201
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
