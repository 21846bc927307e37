"""Reads the names of a version's classes, which clients of Triton's classification extension get."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from inference.schema import TensorSpec

LABELS_FILE = "labels.txt"
#: every process reads them with the version's record, once a second while requests come
_MOST_BYTES = 64 * 1024


def read_class_labels(folder: Path, outputs: Sequence[TensorSpec]) -> tuple[tuple[str, ...], str | None]:
    """Return the labels in a version's folder, one a line, by the number of their class, and a warning or None.

    There are none without the file, or if it cannot be used: then the warning says why. `outputs`: the model's; one of
    them must have a value for each label.
    """
    file = folder / LABELS_FILE
    if not file.is_file():
        return (), None
    if file.stat().st_size > _MOST_BYTES:
        return (), f"{LABELS_FILE} is not used: it is over {_MOST_BYTES} bytes"
    try:
        labels = tuple(file.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError:
        return (), f"{LABELS_FILE} is not used: write it in UTF-8"
    except OSError as error:
        return (), f"{LABELS_FILE} is not used: it cannot be read ({error.strerror})"
    # a free dimension may have any size
    if not any(-1 in one.shape or math.prod(one.shape) == len(labels) for one in outputs):
        return (), f"{LABELS_FILE} is not used: it has {len(labels)} lines, and no output has as many values a row"
    return labels, None
