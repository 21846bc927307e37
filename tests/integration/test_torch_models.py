"""What is PyTorch's own: what an exported program takes, and what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import ModelError
from inference.models import LoadedModel
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions
from inference.schema import DType, TensorSpec
from tests.support.redis_server import missing

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def torch() -> Any:
    if find_spec("torch") is None:
        missing("torch (make install-runtimes)")
    import torch

    return torch


def load(torch: Any, folder: Path, forward: Any, *args: Any, free: bool = True, **kwargs: Any) -> LoadedModel:
    module = type("Module", (torch.nn.Module,), {"forward": forward})()
    dim = torch.export.Dim("rows")
    shapes = torch.utils._pytree.tree_map(lambda _: {0: dim}, ([*args], kwargs))
    names = list(forward.__code__.co_varnames[1 : forward.__code__.co_argcount])
    flat = dict(zip(names, shapes[0], strict=False)) | shapes[1]
    program = torch.export.export(module, args, kwargs, dynamic_shapes=flat if free else None)
    torch.export.save(program, folder / "m.pt2")
    return load_version("m", folder, 1, folder, options=LoadOptions(allow_code=True))


def test_arguments_by_position_and_by_name_and_integers_are_taken(torch: Any, tmp_path: Path) -> None:
    def forward(self: Any, x: Any, *, count: Any) -> Any:
        return x * count, count + 1

    rows = torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64)
    loaded = load(torch, tmp_path, forward, rows[0], count=rows[1])
    assert [spec.name for spec in loaded.record.signature.inputs] == ["x", "count"]
    assert loaded.record.signature.outputs[1] == TensorSpec("output_1", DType.INT64)
    answer = loaded.predict({"x": np.ones((2, 2), np.float32), "count": np.array([[3], [4]])})
    assert answer["output_0"].tolist() == [[3, 3], [4, 4]]
    assert answer["output_1"].tolist() == [4, 5]


def test_a_row_dimension_that_was_not_freed_is_refused_with_the_fix(torch: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'x' has a fixed row dimension of 3.*torch\.export\.Dim"):
        load(torch, tmp_path, lambda self, x: x + 1, torch.zeros(3, 2), free=False)


def test_nested_arguments_are_refused(torch: Any, tmp_path: Path) -> None:
    def forward(self: Any, x: Any) -> Any:
        return x["a"] + x["b"]

    with pytest.raises(ModelError, match="takes nested arguments"):
        load(torch, tmp_path, forward, {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)})


def test_a_program_is_not_loaded_without_leave(torch: Any, tmp_path: Path) -> None:
    load(torch, tmp_path, lambda self, x: x + 1, torch.zeros(3, 2))
    with pytest.raises(ModelError, match=r"may run code \(torch\.export\.load evaluates"):
        load_version("m", tmp_path, 1, tmp_path)
