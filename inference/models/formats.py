"""The formats of models: the file in a version's folder that names its runtime. Imports none of their libraries."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from inference.errors import ModelError
from inference.storage import is_lfs_pointer

_SAVE_PROGRAM = "torch.export.save(torch.export.export(module, arguments, dynamic_shapes=…), path)"
_OF_A_BOOSTER = (
    "is a booster's own file; save the estimator around it, such as an LGBMClassifier or XGBClassifier, by "
    "skops.io.dump(model, '{stem}.skops') or joblib.dump(model, '{stem}.joblib'), or convert it to ONNX (onnxmltools)"
)
#: LightGBM and XGBoost write files with these suffixes too; their first bytes tell
_MAYBE_BOOSTERS = {".txt", ".json", ".model", ".bin", ".lgb", ".xgb"}
_BEGINNING = 256
#: files that are nearly a model, and the fix
_NEAR_MISSES = {
    (".h5", ".hdf5"): (
        "is in Keras' old format; save it once in the new one: "
        """python -c "import keras; keras.models.load_model('{file}').save('{stem}.keras')\""""
    ),
    (".pt", ".pth", ".safetensors"): (
        "holds weights without their model; export both together: "
        "torch.export.save(torch.export.export(model, (rows,), dynamic_shapes=…), '{stem}.pt2')"
    ),
    (".bst", ".ubj", ".cbm"): _OF_A_BOOSTER,
    (".gz", ".z", ".bz2", ".xz", ".lzma", ".sav", ".dat", ".p", ".model"): (
        "has no name of a known model format; if it is a pickle, compressed or not, call it {name}.joblib"
    ),
    (".tflite", ".pmml", ".mar", ".engine", ".plan"): (
        "is in a format that another engine computes; export the model as a SavedModel, Keras, ONNX or skops file, or "
        "name an engine in remote.toml"
    ),
}
_KERAS_WEIGHTS = ".weights.h5"
_WEIGHTS_ALONE = (
    "holds weights without their model: build the model, model.load_weights('{file}'), then model.save('{stem}.keras')"
)
_MOST_SHOWN = 5
#: no archive of a model needs more: weights hardly shrink, and text that describes trees shrinks thirtyfold
_MOST_UNPACKED = 100
_UNPACKED_AT_LEAST = 256 << 20
_MOST_ARCHIVED_FILES = 100_000


@dataclass(frozen=True)
class Format:
    """One format. `name`: in records; `title`: for people; `runtime`: the module that loads it.

    A file has this format if its name is one of `names` or ends in one of `suffixes`. `library`: the module that it
    needs; `extra`: the extra of Forecache that installs it. `runs_code`: why a load may run code of the model's author;
    None if it does not. `instead`: a better way to save, with `{stem}` for the file without its suffix. `missing_text`:
    its models take None for a missing text.
    """

    name: str
    title: str
    runtime: str
    library: str
    extra: str
    names: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    runs_code: str | None = None
    instead: str = ""
    missing_text: bool = False

    def holds(self, file: Path) -> bool:
        """Tell whether a file is of this format, by its name."""
        return file.name in self.names or file.suffix in self.suffixes

    @property
    def files(self) -> str:
        """The names of its files, for messages."""
        return " or ".join([*self.names[:1], *(f"*{suffix}" for suffix in self.suffixes)])


SAVED_MODEL = "saved_model"
FORMATS = (
    Format(
        SAVED_MODEL, "TensorFlow SavedModel", "tensorflow", "tensorflow", "tensorflow",
        names=("saved_model.pb", "saved_model.pbtxt"),
    ),
    Format("keras", "Keras", "keras", "keras", "keras", suffixes=(".keras",)),
    Format(
        "torch_export", "exported PyTorch", "pytorch", "torch", "torch", suffixes=(".pt2",),
        runs_code="torch.export.load evaluates what the file holds",
    ),
    Format("onnx", "ONNX", "onnx", "onnxruntime", "onnx", suffixes=(".onnx",)),
    Format(
        "skops", "scikit-learn (skops)", "sklearn", "skops", "sklearn", suffixes=(".skops",), missing_text=True,
    ),
    Format(
        "pickle", "pickled scikit-learn", "sklearn", "sklearn", "sklearn",
        suffixes=(".pkl", ".pickle", ".joblib"), runs_code="loading a pickle runs whatever it holds",
        instead="; skops.io.dump(model, '{stem}.skops') writes one that needs no such trust",
        missing_text=True,
    ),
    Format("remote", "an engine elsewhere", "remote", "httpx", "", names=("remote.toml",)),
)  # fmt: skip


@dataclass(frozen=True)
class ModelFile:
    """The file that makes a version's folder a model."""

    format: Format
    file: Path


def find_model_file(folder: Path) -> ModelFile | None:
    """Return the one model in a version's folder; None if there is none.

    Raises:
        ModelError: there are several.
    """
    files = _files(folder)
    found = [ModelFile(one, file) for one in FORMATS for file in files if one.holds(file)]
    if len(found) > 1 and not (len(found) == 2 and all(each.file.name in each.format.names for each in found)):
        listed = ", ".join(f"{each.file.name} ({each.format.title})" for each in found[:_MOST_SHOWN])
        raise ModelError(
            f"{folder} holds {len(found)} models, where one is expected: {listed}; leave one there", field="path"
        )
    return found[0] if found else None


def format_of(file: Path) -> Format | None:
    """Return the format of a file by its name; None if it is no model."""
    return next((one for one in FORMATS if one.holds(file)), None)


def format_named(name: str) -> Format:
    """Return the format of this name in records."""
    return next(one for one in FORMATS if one.name == name)


def require_model_file(folder: Path) -> ModelFile:
    """Return the one model in a version's folder.

    Raises:
        ModelError: there is none, or there are several; names the other files, and the fix.
    """
    found = find_model_file(folder)
    if found:
        if is_lfs_pointer(_beginning(found.file)):
            raise ModelError(f"{found.file} is a pointer of Git LFS, not the model itself: git lfs pull", field="path")
        return found
    near = near_miss(folder)
    if near:
        raise near
    names = [file.name for file in _files(folder)]
    shown = ", ".join(names[:_MOST_SHOWN]) + (", …" if len(names) > _MOST_SHOWN else "") if names else "nothing"
    raise ModelError(f"{folder} holds no known model ({known_files()}); found: {shown}", field="path")


def check_allowed(found: ModelFile, *, allow_code: bool) -> None:
    """Refuse a file whose load runs code, unless the settings allow that.

    Raises:
        ModelError: says how to save it otherwise, and how to allow it.
    """
    format_ = found.format
    if format_.runs_code and not allow_code:
        raise ModelError(
            f"{found.file} may run code ({format_.runs_code}): set allow_code = true under [models.NAME] "
            "(forecache init --allow-code) if you trust everyone who can write it"
            + format_.instead.format(stem=found.file.stem),
            field="allow_code",
        )


def check_archive(file: Path) -> None:
    """Refuse an archive that would unpack to far more than its size. Other files pass.

    Raises:
        ModelError: names the unpacked size.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            inside = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError):
        return  # its runtime says what is wrong
    packed, unpacked = file.stat().st_size, sum(one.file_size for one in inside)
    if unpacked > max(_UNPACKED_AT_LEAST, _MOST_UNPACKED * packed):
        raise ModelError(
            f"{file} would unpack from {packed} to {unpacked} bytes, more than {_MOST_UNPACKED} times its size, which "
            "no model does: save the model again",
            field="path",
        )
    if len(inside) > _MOST_ARCHIVED_FILES:
        raise ModelError(
            f"{file} holds {len(inside)} files, more than the {_MOST_ARCHIVED_FILES} that a model may: save the model "
            "again",
            field="path",
        )


def known_files() -> str:
    """Return the names of the files of all formats, for messages."""
    return ", ".join(one.files for one in FORMATS)


def near_miss(folder: Path) -> ModelError | None:
    """Return the fix for a folder's file that is nearly a model; None if there is none."""
    return next((error for file in _files(folder) if (error := near_miss_of(file))), None)


def near_miss_of(file: Path) -> ModelError | None:
    """Return the fix for a file that is nearly a model; None if it is not."""
    if file.name.lower().endswith(_KERAS_WEIGHTS):
        stem = file.name[: -len(_KERAS_WEIGHTS)]
        return ModelError(f"{file} {_WEIGHTS_ALONE.format(file=file, stem=stem)}", field="path")
    name = file.name.partition(".")[0]
    for suffixes, what in _NEAR_MISSES.items():
        if file.suffix.lower() in suffixes or (what is _OF_A_BOOSTER and _is_boosters_own(file)):
            return ModelError(f"{file} {what.format(file=file, stem=file.with_suffix(''), name=name)}", field="path")
    return None


def instead_of_program(file: Path) -> str | None:
    """Return what a `.pt2` file of PyTorch without an exported program is, and the fix; None if its names do not tell.

    Runs no code of the file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return None
    if any("aotinductor/" in name for name in names):
        return f"is a package of AOTInductor, compiled for one machine: save the program itself, {_SAVE_PROGRAM}"
    if any(name.startswith("code/") for name in names) and "constants.pkl" in names:
        return f"is a TorchScript file: export the module anew, {_SAVE_PROGRAM}"
    if "data.pkl" in names:
        return f"was written by torch.save, which keeps a module or weights but no program: {_SAVE_PROGRAM}"
    return None


def _is_boosters_own(file: Path) -> bool:
    """Tell whether a file begins like a model of LightGBM or XGBoost."""
    if file.suffix.lower() not in _MAYBE_BOOSTERS:
        return False
    begin = _beginning(file)
    return begin.startswith(b"tree\n") or b"learner" in begin or b"gbtree" in begin


def _beginning(file: Path) -> bytes:
    """Return a file's first bytes; b"" if it cannot be read: its runtime will say so."""
    try:
        with file.open("rb") as stream:
            return stream.read(_BEGINNING)
    except OSError:
        return b""


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(one for one in folder.iterdir() if one.is_file() and not one.name.startswith("."))
