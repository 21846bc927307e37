"""What a path under `/v1/` asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from inference.errors import BadInput, cut
from inference.protocols.numbers import MOST_VERSION, whole_number

_MODEL = r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_CALL = re.compile(_MODEL + r":(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII)
_LOOK = re.compile(_MODEL + r"(?P<method>/metadata)?", re.IGNORECASE | re.ASCII)
_PATTERNS = {"GET": _LOOK, "POST": _CALL}
_NO_MODEL = re.compile(r"/v1/models(/metadata)?", re.IGNORECASE)


class Method(StrEnum):
    """What is asked of a model."""

    PREDICT = "predict"
    CLASSIFY = "classify"
    REGRESS = "regress"
    STATUS = "status"
    METADATA = "metadata"


@dataclass(frozen=True)
class ModelUrl:
    """A path that is understood. `version` None: whichever is active. `label` None: none is named."""

    model: str
    method: Method
    version: int | None = None
    label: str | None = None


def methods_of(path: str) -> tuple[str, ...]:
    """Return the HTTP methods that a path takes; none for a path that the protocol does not have."""
    return tuple(method for method, pattern in _PATTERNS.items() if pattern.fullmatch(path))


def parse_path(http_method: str, path: str) -> ModelUrl:
    """Return what a request asks for.

    Version 0 is whichever is active, as OpenVINO Model Server has it, whose client always names one.

    Raises:
        BadInput: the path or the verb is not one of the protocol's.
    """
    pattern = _PATTERNS.get(http_method)
    found = pattern.fullmatch(path) if pattern else None
    if found is None or pattern is None:
        if http_method == "GET" and _NO_MODEL.fullmatch(path):
            raise BadInput("Missing model name in request.")
        raise BadInput(f"Malformed request: {http_method} {cut(path)}")
    version = whole_number(found["version"] or "0", MOST_VERSION)
    if version is None:
        raise BadInput(f"Failed to convert version: {cut(found['version'])} to numeric.")
    method = Method((found["method"] or "status").removeprefix("/").lower())
    return ModelUrl(found["model"], method, version or None, found["label"])
