"""The cases of the contract as models of an engine elsewhere, and their folders, which hold no model at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.runtimes.cases import columns_of, float_contract, keep, learnable, learnt_weights
from tests.support.tensorflow_serving import ServedModel

_CODES = {"rot": 1, "grün": 2}
_WORDS = ["?", "red", "green"]


def several(age: np.ndarray, taste: np.ndarray) -> dict[str, np.ndarray]:
    scaled = age[:, None] * taste
    return {"total": scaled.sum(axis=1, keepdims=True), "scaled": scaled}


def text(colour: np.ndarray) -> dict[str, np.ndarray]:
    code = np.array([_CODES.get(one, 0) for one in colour.ravel()], np.int64)
    return {"code": code, "english": np.array([_WORDS[one] for one in code], object)}


def models() -> dict[str, ServedModel]:
    weights, bias = learnt_weights()
    number, x, y = ("DT_FLOAT", ()), {"x": ("DT_FLOAT", (4,))}, {"y": ("DT_FLOAT", (1,))}
    return {
        "plain": ServedModel(x, y, lambda x: {"y": x @ weights + bias}),
        "broken": ServedModel(x, y, lambda x: {"y": x @ weights * np.float32("nan")}),
        "several": ServedModel(
            {"age": number, "taste": ("DT_FLOAT", (3,))},
            {"total": ("DT_FLOAT", (1,)), "scaled": ("DT_FLOAT", (3,))},
            several,
        ),
        "text": ServedModel(
            {"colour": ("DT_STRING", ())}, {"code": ("DT_INT64", ()), "english": ("DT_STRING", ())}, text
        ),
    }


def write_folders(target: Path, url: str, engine: str) -> None:
    """`engine`: the first lines of each `remote.toml`."""
    for name in models():
        folder = target / name / "1"
        folder.mkdir(parents=True)
        (folder / "remote.toml").write_text(f'{engine}\nurl = "{url}"\nname = "{name}"\n')
    x, _ = learnable()
    weights, bias = learnt_weights()
    named = float_contract(["f0", "f1", "f2", "f3"])
    keep(target / "plain", columns_of(x), {"y": (x @ weights + bias)[:, 0]}, features=named)
    keep(target / "broken", columns_of(x), {"y": x[:, 0]}, features=named)
    rng = np.random.default_rng(1)
    columns = {"age": rng.normal(size=50).astype(np.float32), "taste": rng.normal(size=(50, 3)).astype(np.float32)}
    answer = several(**columns)
    keep(target / "several", columns, {"scaled": answer["scaled"], "total": answer["total"][:, 0]})
    words = np.array(["rot", "blau", "grün", "rot"])
    english = text(words)
    keep(target / "text", {"colour": words}, {"code": english["code"], "english": english["english"].astype(str)})
