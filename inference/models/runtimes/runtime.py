"""The interface of all runtimes, and what they share: options, names of devices, checks of tensors, short errors."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from inference.errors import ModelError, ModelOutOfMemory, PredictionFailed, SettingsError
from inference.schema import Block, DType, GraphSignature, Signature, TensorSpec
from inference.wording import counted

_LONGEST_LINE = 300
#: the lines around the message of one of TensorFlow's graph errors begin so
_FRAME_LINES = ("Graph execution error", "Detected at node", "<stack", "File ", "[[", "(")
#: the place in the graph, before the message itself
_NODE = re.compile(r"^(\{\{[^}]*\}\}\s*)+")
#: how to make the rows free in most libraries
_FREE_ROWS = "export it with None there (PyTorch: a torch.export.Dim)"
_STDERR = 2
#: notes, and the notice about messages before the start of logging
_NOTE = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog)")
#: an error only on a machine with a GPU
_NO_GPU = re.compile(rb"^E\d{4} .*(cuInit|cuda)", re.IGNORECASE)


_answer_by: ContextVar[float | None] = ContextVar("answer_by", default=None)


@contextmanager
def answering_by(instant: float | None) -> Iterator[None]:
    """Tell models within the block when their answer is no longer wanted: `time.monotonic`; None for never."""
    before = _answer_by.set(instant)
    try:
        yield
    finally:
        _answer_by.reset(before)


def seconds_left() -> float | None:
    """Return for how long an answer is still wanted; None for no limit, 0 or less if it is too late."""
    instant = _answer_by.get()
    return None if instant is None else instant - time.monotonic()


class Runtime(Protocol):
    """A loaded model. Several threads may call `predict`."""

    #: the inputs as the model declares them, and the outputs as they are served: without a trailing dimension of 1
    signature: Signature
    #: the kind of device that computes, such as "cpu-8" or a GPU's name; equal devices have the same best micro-batch
    device: str

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised on these rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        ...


@runtime_checkable
class SignedRuntime(Runtime, Protocol):
    """A loaded model with named signatures, each of which can be called."""

    #: what each signature declares, by name
    signatures: dict[str, GraphSignature]
    #: the signature behind `predict`
    signature_name: str
    #: why that computes no rows, so that `signature` is empty, and the model can only be called; None if it does
    without_rows: str | None

    def call(self, signature: str, tensors: Block) -> Block:
        """Return the outputs of a signature by name. The model decides which shapes it takes, and gives.

        Raises:
            BadInput: the model does not take these tensors.
            PredictionFailed: the model raised.
            ModelOutOfMemory: the tensors do not fit into the device's memory.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The settings for the load of a model.

    `allow_code`: load files whose load runs code. `import_functions`: import the functions of the features at once, not
    at their first call. `code_folder`: the folder of modules, for these functions and for pickles, that Python does not
    find by itself. `signature`: the name of a SavedModel's signature; None for its default one, or its only one.
    `gpu_memory_share`: the fraction of each GPU's memory to take; None takes memory when it is needed. `engine_hosts`:
    the hosts that a `remote.toml` may name; None for all.
    """

    allow_code: bool = False
    gpu_memory_share: float | None = None
    import_functions: bool = True
    code_folder: Path | None = None
    signature: str | None = None
    engine_hosts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class SavedSignature:
    """A signature of a SavedModel. `reads_examples`: its input is serialized tf.Examples, not columns."""

    signature: Signature
    reads_examples: bool


def one_line(error: BaseException) -> str:
    """Return the message of a library's error as one line of bounded length."""
    return " ".join(str(error).split())[:_LONGEST_LINE] or type(error).__name__


def telling_line(error: BaseException) -> str:
    """Return the line of a TensorFlow error with its message, without its place in the graph."""
    lines = [_NODE.sub("", line.strip()) for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_FRAME_LINES)]
    return telling[0][:_LONGEST_LINE] if telling else one_line(error)


def cpu_name() -> str:
    """Return the name of this machine's processors as a `Runtime.device`."""
    return f"cpu-{os.cpu_count()}"


def gpu_memory_mib() -> list[int]:
    """Return the memory of each GPU that this process sees, in its order.

    Raises:
        SettingsError: the driver's tool does not answer.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        sizes: list[int] = []
        for one in visible.split(",") if visible else [None]:
            only = ["-i", one.strip()] if one else []
            # the driver's own tool; each argument is ours or the operator's
            output = subprocess.run([*command, *only], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
            sizes.extend(int(line) for line in output.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SettingsError(
            f"gpu_memory_share needs nvidia-smi to tell the GPU's memory ({error}): install it or unset this",
            field="workers.gpu_memory_share",
        ) from error
    return sizes


@contextmanager
def without_startup_notes() -> Iterator[None]:
    """Hold back stderr while the block runs, then write it without TensorFlow's notes.

    TensorFlow's C++ prints them while it starts and while it looks for GPUs, whatever the log level.
    """
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
    """Tell whether a line of stderr needs no action of an operator."""
    return bool(_NOTE.match(line)) or (not has_gpu and bool(_NO_GPU.match(line)))


class NoRows(ModelError):
    """Raised when an input or output of a model has no free row dimension: it computes no rows."""


class MisshapenOutput(PredictionFailed):
    """Raised when the form of an output is wrong for any row: such a version is never served."""


def row_spec(
    folder: Path, kind: str, name: str, dtype: str, shape: Sequence[int | None], *, free_rows: str = _FREE_ROWS
) -> TensorSpec:
    """Return a tensor's dtype and the shape of one row. `kind`: input or output. None is a dimension of unknown size.

    `free_rows`: how the model's author makes the row dimension free.

    Raises:
        NoRows: it has no free row dimension.
        ModelError: it has a dtype that numpy and JSON do not have.
    """
    if not shape:
        raise NoRows(f"{folder}: {kind} {name!r} is a scalar without a row dimension", field=name)
    rows, *sizes = shape
    if rows is not None:
        raise NoRows(
            f"{folder}: {kind} {name!r} has a fixed row dimension of {rows}: {free_rows}, so that it takes any number "
            "of rows",
            field=name,
        )
    return TensorSpec(name, dtype_of(folder, kind, name, dtype), tuple(-1 if size is None else size for size in sizes))


def dtype_of(folder: Path, kind: str, name: str, dtype: str) -> DType:
    """Return a dtype by its name in numpy.

    Raises:
        ModelError: numpy and JSON do not have it.
    """
    try:
        return DType(dtype)
    except ValueError:
        raise ModelError(
            f"{folder}: {kind} {name!r} is {dtype}, which cannot be served: {_fix_of(kind, dtype)}", field=name
        ) from None


def _fix_of(kind: str, dtype: str) -> str:
    if dtype.startswith(("datetime64", "timedelta64")):
        return "have the model give text or a number in its place, in training too"
    if dtype.startswith("complex"):
        return f"have the model {'take' if kind == 'input' else 'give'} its real and imaginary parts as two {kind}s"
    where = "convert it to float32 at the end of the model" if kind == "output" else "have the model convert a float32"
    return f"{where} (PyTorch: .float(); else a cast), and export it again"


def failed_call(rows: int, said: str, *, out_of_memory: bool) -> PredictionFailed:
    """Return the error for a call of a model with `rows` rows. `said`: the words of its library, in one line."""
    if out_of_memory:
        does = counted(rows, "row does", "rows do")
        return ModelOutOfMemory(f"{does} not fit into memory: {said}" if said else f"{does} not fit into memory")
    return PredictionFailed(f"the model failed: {said}")


def as_served(array: npt.NDArray[Any], spec: TensorSpec, rows: int) -> npt.NDArray[Any]:
    """Return an output's values in the model's own shape. Text becomes `str`.

    Raises:
        MisshapenOutput: it has another number of rows than the inputs, or its rows differ in length.
    """
    if array.ndim == 0 or len(array) != rows:
        raise MisshapenOutput(f"output {spec.name!r} has shape {list(array.shape)} for {counted(rows, 'row')} of input")
    if array.dtype.kind not in "OSUT":
        return array
    values = array.ravel().tolist() if array.dtype.kind == "O" else array.astype(object).ravel().tolist()
    if any(isinstance(value, np.ndarray | list | tuple) for value in values):
        raise MisshapenOutput(
            f"output {spec.name!r} is ragged, its rows differ in length: export it dense, padded to one length"
        )
    if spec.dtype is not DType.STRING and not any(isinstance(value, str | bytes) for value in values):
        return _as_numbers(array, spec)
    decoded = np.empty(len(values), dtype=object)
    decoded[:] = [_as_text(value, spec) for value in values]
    return decoded.reshape(array.shape)


def plain_numbers(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array of Python's numbers as one of numpy's, with NaN for None; any other array unchanged."""
    values = array.ravel().tolist() if array.dtype.kind == "O" else []
    if not values or not all(value is None or isinstance(value, bool | int | float | Decimal) for value in values):
        return array
    odd = any(value is None or isinstance(value, Decimal) for value in values)
    numbers = np.array(values, dtype=np.float64) if odd else np.array(values)
    return numbers.reshape(array.shape)


def _as_text(value: Any, spec: TensorSpec) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str | bool | int | float):
        if value != value:
            raise PredictionFailed(f"output {spec.name!r} is missing: the model gives NaN for the row")
        return str(value)
    if value is None:
        raise PredictionFailed(f"output {spec.name!r} is missing: the model gives None for the row")
    raise PredictionFailed(
        f"output {spec.name!r} is a {type(value).__name__}, which is neither text nor a number: have the model give "
        "one of these, or an array of numbers, for each row"
    )


def _as_numbers(array: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    """Return Python's numbers in the declared dtype, with NaN for None."""
    try:
        return array.astype(spec.dtype.numpy)
    except (TypeError, ValueError, OverflowError) as error:
        raise PredictionFailed(f"output {spec.name!r} is no {spec.dtype}: {error}") from error
