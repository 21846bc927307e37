"""PyTorch programs by torch.export; their answers are those of the module before it was exported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from tests.support.runtimes.cases import columns_of, float_contract, keep, learnable, learnt_weights

ROWS = torch.export.Dim("rows")


def save(module: torch.nn.Module, folder: Path, **examples: torch.Tensor) -> None:
    (folder / "1").mkdir(parents=True)
    shapes = {name: {0: ROWS} for name in examples}
    program = torch.export.export(module.eval(), tuple(examples.values()), dynamic_shapes=shapes)
    torch.export.save(program, folder / "1" / "model.pt2")


def plain(folder: Path, *, broken: bool = False) -> None:
    weights, bias = learnt_weights()
    layer = torch.nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight[:] = torch.from_numpy(weights.T) * (float("nan") if broken else 1)
        layer.bias[:] = torch.from_numpy(bias)
    x, _ = learnable()
    save(layer, folder, input=torch.from_numpy(x[:2]))
    answer = layer(torch.from_numpy(x)).detach().numpy()[:, 0]
    keep(folder, columns_of(x), {"output": answer}, features=float_contract(["f0", "f1", "f2", "f3"]))


class Several(torch.nn.Module):
    def forward(self, taste: torch.Tensor, age: torch.Tensor) -> dict[str, torch.Tensor]:
        scaled = age[:, None] * taste
        return {"total": scaled.sum(1, keepdim=True), "scaled": scaled}


def several(folder: Path) -> None:
    module = Several()
    save(module, folder, taste=torch.zeros(2, 3), age=torch.zeros(2))
    rng = np.random.default_rng(1)
    columns = {"age": rng.normal(size=50).astype(np.float32), "taste": rng.normal(size=(50, 3)).astype(np.float32)}
    answer = module(**{name: torch.from_numpy(values) for name, values in columns.items()})
    keep(folder, columns, {"scaled": answer["scaled"].numpy(), "total": answer["total"].numpy()[:, 0]})


if __name__ == "__main__":
    target = Path(sys.argv[1])
    plain(target / "plain")
    plain(target / "broken", broken=True)
    several(target / "several")
