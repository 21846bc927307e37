"""Makes a version folder from the folder of an MLflow model, which may have its model's file further inside.

Writes the columns of the model's signature beside it, in the form of a feature contract.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inference.errors import ContractError, ModelError
from inference.features import FeatureContract
from inference.features.contract import CONTRACT_FILE, LOGGED_FILE
from inference.models.class_labels import LABELS_FILE
from inference.models.formats import find_model_file, near_miss
from inference.schema import DType
from inference.small_files import read_small

MODEL_FILE = "MLmodel"
#: flavors that have a format here, the best first, and the key that names their file or folder
SERVED = {
    "onnx": "data",
    "keras": "data",
    "tensorflow": "saved_model_dir",
    "sklearn": "pickled_model",
    "lightgbm": "data",
    "xgboost": "data",
    "pytorch": "model_data",
}
#: where these flavors keep their files if the key is absent
_USUAL = "data"
_FIX = (
    "Forecache serves the flavors onnx, keras, tensorflow, sklearn (skops; a pickle if allow_code is set), lightgbm as "
    'an estimator, and pytorch with serialization_format="pt2"'
)


def make_version(model: Path, folder: Path, what: str) -> None:
    """Move the files of an MLflow model to a new version folder, so that the model's file lies at its top.

    `what`: the model's name in messages. A `features.json` or `labels.txt` beside `MLmodel` comes along. The columns of
    the signature, if it has any, are written as `LOGGED_FILE`.

    Raises:
        ModelError: there is no MLflow model, or it has no flavor that is served; names those it has.
    """
    described = _described(model, what)
    flavors = described["flavors"]
    places = list(dict.fromkeys(place for name in SERVED for place in _places(model, flavors.get(name))))
    try:
        place = next((one for one in places if find_model_file(one) is not None), None)
        near = next((error for one in places if (error := near_miss(one))), None)
    except ModelError as error:
        raise _without_folder(error, model, what) from error
    if place is not None:
        _move(model, place, folder)
        if columns := _columns(described.get("signature")):
            (folder / LOGGED_FILE).write_text(json.dumps(columns.to_json(), ensure_ascii=False), encoding="utf-8")
        return
    if near is not None:
        raise _without_folder(near, model, what)
    named = ", ".join(sorted(set(flavors) - {"python_function"})) or "python_function alone"
    raise ModelError(f"{what} has no flavor that is served here, but {named}: {_FIX}", field="path")


def _move(model: Path, place: Path, folder: Path) -> None:
    for file in (MODEL_FILE, CONTRACT_FILE, LABELS_FILE) if place != model else ():
        if (model / file).is_file() and not (place / file).exists():
            shutil.move(model / file, place / file)
    place.rename(folder)
    if place != model:
        shutil.rmtree(model)


def _without_folder(error: ModelError, model: Path, what: str) -> ModelError:
    """Return the error with the model's name in place of the folder of the download."""
    return ModelError(
        f"{what}: {error.message.replace(f'{model}/', '').replace(str(model), 'its folder')}", field="path"
    )


def _described(model: Path, what: str) -> dict[str, Any]:
    """Return what MLmodel says, with flavors of the right form."""
    import yaml  # MLflow's client brings it

    file = model / MODEL_FILE
    if not file.is_file():
        raise ModelError(
            f"{what} has no {MODEL_FILE} among its artifacts: they are gone, or no model was logged there; register a "
            "logged model",
            field="path",
        )
    try:
        said = dict(yaml.safe_load(read_small(file)))
        flavors = {str(name): dict(of_flavor) for name, of_flavor in said["flavors"].items()}
    except (yaml.YAMLError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{what}: its {MODEL_FILE} lists no flavors: log the model again", field="path") from error
    return said | {"flavors": flavors}


#: MLflow's types of columns. It has others, of values that cannot be features
_DTYPES = {
    "boolean": DType.BOOL,
    "integer": DType.INT32,
    "long": DType.INT64,
    "float": DType.FLOAT32,
    "double": DType.FLOAT64,
    "string": DType.STRING,
}


def _columns(signature: Any) -> FeatureContract | None:
    """Return the input columns of MLflow's signature; None if it names none, or one that cannot be a feature."""
    try:
        features = [
            {"name": one["name"], "dtype": _DTYPES[one["type"]], "nullable": one.get("required") is False}
            for one in json.loads(signature["inputs"])
        ]
        return FeatureContract.from_json({"features": features})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, ContractError):
        return None


def _places(model: Path, of_flavor: Mapping[str, Any] | None) -> Iterator[Path]:
    """Yield the folders in which a flavor may have its model's file."""
    if of_flavor is None:
        return
    keys = (*dict.fromkeys(SERVED.values()), "keras_model")
    named = [str(of_flavor[key]) for key in keys if isinstance(of_flavor.get(key), str)]
    home = model.resolve()
    for name in [*named, _USUAL]:
        place = model / name
        if not place.resolve().is_relative_to(home):
            continue
        yield from (one for one in (place, place / "model", place.parent) if one.is_dir() and one.resolve() >= home)
