"""Runtimes load a model's folder and compute by it. One file for each library; only workers import it."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inference.errors import ModelError
from inference.features import FeatureContract
from inference.models.formats import SAVED_MODEL, Format, check_allowed, check_archive, require_model_file
from inference.models.runtimes.runtime import (
    LoadOptions,
    Runtime,
    SavedSignature,
    SignedRuntime,
    is_startup_note,
    without_startup_notes,
)

__all__ = [
    "LoadOptions",
    "Runtime",
    "SavedSignature",
    "SignedRuntime",
    "is_startup_note",
    "keras_environment",
    "load_runtime",
    "signatures_of",
    "without_startup_notes",
]


def load_runtime(
    folder: Path, *, options: LoadOptions | None = None, contract: FeatureContract | None = None
) -> Runtime:
    """Load the model in a version's folder. The first call takes seconds: it imports the library.

    `contract`: the features, for formats without named inputs; None if they are not known.

    Raises:
        ModelError: it cannot be loaded or served, runs code that is not allowed, or its library is not installed.
        SettingsError: `gpu_memory_share` is set, and the size of the GPU's memory is unknown.
    """
    options = options or LoadOptions()
    found = require_model_file(folder)
    check_allowed(found, allow_code=options.allow_code)
    check_archive(found.file)
    if options.signature is not None and found.format.name != SAVED_MODEL:
        raise ModelError(
            f'signature = "{options.signature}" chooses one of a SavedModel, and {found.file} is {found.format.title}: '
            'remove "signature" under [models.NAME]',
            field="signature",
        )
    runtime: Runtime = _import(found.format).load(found.file, options, contract)
    return runtime


def signatures_of(folder: Path, options: LoadOptions | None = None) -> dict[str, SavedSignature]:
    """Return all signatures of the SavedModel in a version's folder, by name; {} for other formats.

    Raises:
        ModelError: it cannot be loaded, or there is no model.
    """
    found = require_model_file(folder)
    if found.format.name != SAVED_MODEL:
        return {}
    named: dict[str, SavedSignature] = _import(found.format).signatures(folder, options or LoadOptions())
    return named


def keras_environment(backend: str | None) -> dict[str, str]:
    """Return the environment variables that choose a backend of Keras. None: Keras chooses."""
    return {} if backend is None else {"KERAS_BACKEND": backend}


def _import(format_: Format) -> Any:
    name = f"inference.models.runtimes.{format_.runtime}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        if find_spec(format_.library) is None:  # checked here, since a runtime may import it late
            raise ModuleNotFoundError(f"No module named {format_.library!r}")
        with without_startup_notes():
            runtime = import_module(name)
    except ImportError as error:
        raise ModelError(
            f"{format_.title} models need {format_.library}, which cannot be imported ({error}): "
            f"install forecache[{format_.extra}] where workers run"
        ) from error
    # a library's objects stay for good: without this, each garbage collection takes 0.3 s, with it 5 ms
    gc.collect()
    gc.freeze()
    return runtime
