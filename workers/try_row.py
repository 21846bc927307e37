"""Scores one row of a table: a `TrialRequest` as JSON on stdin, a `Trial` as JSON on stdout.

Its own process, so that `forecache init` needs no TensorFlow. A row or model at fault: exit 1 and one line on stderr.
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
    except Exception as error:  # noqa: BLE001 - who asked has the last line, and a person who runs this the rest
        traceback.print_exc()
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)  # noqa: T201
        return 1
    print(trial_to_json(trial))  # noqa: T201 - its output is its purpose
    return 0


if __name__ == "__main__":
    sys.exit(main())
