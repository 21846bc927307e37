"""scikit-learn estimators, kept by skops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tests.support.runtimes.cases import columns_of, float_contract, keep, learnable

Save = Callable[[Any, Path], None]


def plain(folder: Path, save: Save) -> None:
    x, y = learnable()
    model = make_pipeline(
        StandardScaler(), MLPRegressor(hidden_layer_sizes=(8,), max_iter=200, tol=1e-2, random_state=1)
    ).fit(x, y)
    save(model, folder)
    keep(folder, columns_of(x), {"prediction": model.predict(x)}, features=float_contract(["f0", "f1", "f2", "f3"]))


def broken(folder: Path, save: Save) -> None:
    x, y = learnable()
    model = LinearRegression().fit(x, y)
    model.coef_ = model.coef_ * np.nan
    save(model, folder)
    keep(folder, columns_of(x), {"prediction": model.predict(x)}, features=float_contract(["f0", "f1", "f2", "f3"]))


def several(folder: Path, save: Save) -> None:
    """Fitted on a table, whose columns' names it keeps: no contract is written."""
    x, y = learnable()
    table = pd.DataFrame(columns_of(x.astype(np.float64)))
    model = RandomForestClassifier(20, random_state=1).fit(table, np.digitize(y, [-1, 1]))
    save(model, folder)
    columns = {name: table[name].to_numpy() for name in table}
    keep(folder, columns, {"label": model.predict(table), "probabilities": model.predict_proba(table)})


def text(folder: Path, save: Save) -> None:
    rng = np.random.default_rng(2)
    table = pd.DataFrame({"colour": rng.choice(["rot", "grün", "blau"], 90), "size": rng.normal(size=90)})
    named = np.where((table["colour"] == "rot") & (table["size"] > 0), "ja", "nein")
    encoder = ColumnTransformer([("text", OneHotEncoder(handle_unknown="ignore"), ["colour"])], remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression()).fit(table, named)
    save(model, folder)
    columns = {"colour": table["colour"].to_numpy().astype(str), "size": table["size"].to_numpy()}
    answers = {"label": model.predict(table).astype(str), "probabilities": model.predict_proba(table)}
    keep(folder, columns, answers)


def train_all(target: Path, save: Save) -> None:
    for case in (plain, broken, several, text):
        (target / case.__name__ / "1").mkdir(parents=True)
        case(target / case.__name__, save)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), lambda model, folder: skops.io.dump(model, folder / "1" / "model.skops"))
