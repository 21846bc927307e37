"""PyTorch programs that `torch.export` wrote. Only this file and Keras' backend import torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.export.passes import move_to_device_pass
from torch.utils._pytree import tree_leaves

from inference.errors import ModelError, PredictionFailed
from inference.features import FeatureContract
from inference.models.formats import instead_of_program
from inference.models.runtimes.runtime import LoadOptions, as_served, cpu_name, failed_call, one_line, row_spec
from inference.schema import Block, Signature, TensorSpec, rows_in

_OUTPUT = "output"
#: the allocator of processor memory has no error class
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")


def load(file: Path, options: LoadOptions, _: FeatureContract | None) -> TorchRuntime:
    """Load the program in `file`, onto the GPU if there is one."""
    prepare_gpus(options.gpu_memory_share)
    return TorchRuntime(file)


class TorchRuntime:
    """An exported program in memory. Its arguments must be flat: nested ones are refused."""

    def __init__(self, file: Path) -> None:
        self._on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            program = torch.export.load(file)
            if self._on.type != "cpu":
                program = move_to_device_pass(program, self._on)
            self._module = program.module()
        except Exception as error:
            raise ModelError(f"{file} {_why_not(file, error)}", field="path") from error
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        self._keywords = _keywords(program.call_spec.in_spec, file)
        taken, given = program.graph_signature.user_inputs, program.graph_signature.user_outputs
        names = _output_names(program.call_spec.out_spec, file)
        self._inputs = tuple(_spec(file, "input", name, values.get(name)) for name in taken)
        self._outputs = tuple(
            _spec(file, "output", name, values.get(node)) for name, node in zip(names, given, strict=True)
        )
        self.device = device()
        self.signature = Signature.of_model(self._inputs, self._outputs)

    def predict(self, inputs: Block) -> Block:
        """Return the outputs by name in the model's own shapes, rows in the order of the inputs.

        Raises:
            PredictionFailed: the model raised, or gave another number of rows.
            ModelOutOfMemory: so many rows do not fit into the device's memory.
        """
        rows = rows_in(inputs)
        try:
            arrays = self._compute(inputs)
        except Exception as error:  # guards, kernels and the allocator each have their own
            raise failure(error, rows) from error
        return {spec.name: as_served(array, spec, rows) for spec, array in zip(self._outputs, arrays, strict=True)}

    def _compute(self, inputs: Block) -> list[npt.NDArray[Any]]:
        tensors = [_tensor(inputs[spec.name]).to(self._on) for spec in self._inputs]
        first_keyword = len(tensors) - len(self._keywords)
        keywords = dict(zip(self._keywords, tensors[first_keyword:], strict=True))
        with torch.inference_mode():
            answer = self._module(*tensors[:first_keyword], **keywords)
            return [tensor.cpu().numpy() for tensor in tree_leaves(answer)]


@cache
def prepare_gpus(gpu_memory_share: float | None) -> None:
    """Bound this process's share of each GPU's memory. Only the first call has an effect."""
    if gpu_memory_share is not None:
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(gpu_memory_share, index)


def device() -> str:
    """Return the name of PyTorch's GPU, else of the processors."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()


def failure(error: Exception, rows: int) -> PredictionFailed:
    """Return our error for an error of PyTorch in a call with `rows` rows."""
    line = one_line(error)
    full = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in line for words in _CPU_OUT_OF_MEMORY)
    return failed_call(rows, line, out_of_memory=full)


def _why_not(file: Path, error: Exception) -> str:
    """Return why a file cannot be loaded, and the fix."""
    other = instead_of_program(file)
    if other is not None:
        return other
    # PyTorch refers to warnings that nobody sees here
    lost = "warnings above" in str(error)
    said = "it is damaged, or was written by another version of PyTorch" if lost else one_line(error)
    return f"cannot be loaded as an exported PyTorch program: {said}"


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    # torch shares the memory, and warns if it is read-only
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _keywords(in_spec: Any, file: Path) -> list[str]:
    """Return the names of the keyword arguments. Positional arguments come before them."""
    positional, named = in_spec.children()
    if not all(each.is_leaf() for each in [*positional.children(), *named.children()]):
        raise ModelError(f"{file} takes nested arguments: export a module whose arguments are tensors", field="path")
    return list(named.context)


def _output_names(out_spec: Any, file: Path) -> list[str]:
    if out_spec.is_leaf():
        return [_OUTPUT]
    if not all(each.is_leaf() for each in out_spec.children()):
        raise ModelError(f"{file} gives nested outputs: return a tensor, or a dict of tensors", field="path")
    if out_spec.type is dict:
        return list(out_spec.context)
    return [f"{_OUTPUT}_{number}" for number in range(out_spec.num_children)]


def _spec(file: Path, kind: str, name: str, value: Any) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        raise ModelError(f"{file}: {kind} {name!r} is no tensor", field=name)
    shape = [size if isinstance(size, int) else None for size in value.shape]
    dtype = str(value.dtype).removeprefix("torch.")
    return row_spec(file, kind, name, dtype, shape, free_rows="a torch.export.Dim there")
