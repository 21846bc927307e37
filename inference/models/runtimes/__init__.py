"""Runtimes: how a model's folder becomes something that computes. One file each, imported by workers only."""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inference.errors import ModelError
from inference.features import FeatureContract
from inference.models.formats import SAVED_MODEL, Format, check_allowed, check_archive, require_model_file
from inference.models.runtimes.runtime import LoadOptions, Runtime, SavedSignature

__all__ = [
    "LoadOptions",
    "Runtime",
    "SavedSignature",
    "is_startup_note",
    "keras_environment",
    "load_runtime",
    "signatures_of",
    "without_startup_notes",
]

_STDERR = 2
#: notes, and the notice that they come before logging is set up
_NOTE = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog)")
#: an error only where there is a GPU that should have answered
_NO_GPU = re.compile(rb"^E\d{4} .*(cuInit|cuda)", re.IGNORECASE)


def load_runtime(
    folder: Path, *, options: LoadOptions | None = None, contract: FeatureContract | None = None
) -> Runtime:
    """Load the model in a version's folder. Takes seconds the first time: its library is imported here.

    `contract`: what is known of the features already, for formats that name no inputs; None for nothing.

    Raises:
        ModelError: it cannot be loaded or served, runs code that was not allowed, or its library is not installed.
        SettingsError: `gpu_memory_share` is set, but the size of the GPU's memory cannot be found out.
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
    """Return all signatures of the SavedModel in a version's folder, by name; nothing for other formats.

    Raises:
        ModelError: it cannot be loaded, or there is no model.
    """
    found = require_model_file(folder)
    if found.format.name != SAVED_MODEL:
        return {}
    named: dict[str, SavedSignature] = _import(found.format).signatures(folder, options or LoadOptions())
    return named


def keras_environment(backend: str | None) -> dict[str, str]:
    """Return the variables that make Keras, when it is loaded, compute by a backend; None: as it would anyway."""
    return {} if backend is None else {"KERAS_BACKEND": backend}


def _import(format_: Format) -> Any:
    name = f"inference.models.runtimes.{format_.runtime}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        if find_spec(format_.library) is None:  # asked first: a runtime may import it only when it is used
            raise ModuleNotFoundError(f"No module named {format_.library!r}")
        with without_startup_notes():
            runtime = import_module(name)
    except ImportError as error:
        raise ModelError(
            f"{format_.title} models need {format_.library}, which cannot be imported ({error}): "
            f"install forecache[{format_.extra}] where workers run"
        ) from error
    # what a library holds is there for good: with it the garbage collector takes 0.3 s each time, without 5 ms
    gc.collect()
    gc.freeze()
    return runtime


@contextmanager
def without_startup_notes() -> Iterator[None]:
    """Hold back what is written to stderr meanwhile, and write it afterwards without the notes."""
    saved = os.dup(_STDERR)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)
            held.seek(0)
            has_gpu = Path("/dev/nvidiactl").exists()
            for line in held:
                if not is_startup_note(line, has_gpu=has_gpu):
                    os.write(_STDERR, line)


def is_startup_note(line: bytes, *, has_gpu: bool) -> bool:
    """Tell whether a line says nothing that an operator should act on."""
    return bool(_NOTE.match(line)) or (not has_gpu and bool(_NO_GPU.match(line)))
