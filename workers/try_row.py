"""Scores one row of a table: reads a `TrialRequest` as JSON from stdin, prints a `Trial` as JSON.

Runs as a process of its own, so that `forecache init` needs no TensorFlow. A bad row or model: exit 1, and one line on
stderr.
"""

from __future__ import annotations

import json
import sys
import traceback

from inference.errors import ForecacheError
from inference.onboarding.trial import TrialRequest, trial_to_json, try_row


def main() -> int:
    """Try the row; returns the exit status."""
    try:
        trial = try_row(TrialRequest.from_json(json.load(sys.stdin)))
    except ForecacheError as error:
        print(" ".join(error.message.split()), file=sys.stderr)  # noqa: T201
        return 1
    except Exception as error:  # noqa: BLE001 - the caller reads the last line, a person reads the traceback
        traceback.print_exc()
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)  # noqa: T201
        return 1
    print(trial_to_json(trial))  # noqa: T201 - its output is its purpose
    return 0


if __name__ == "__main__":
    sys.exit(main())
