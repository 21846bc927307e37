"""Which format a folder holds, told from file names alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inference.errors import ModelError
from inference.models import find_versions
from inference.models.formats import FORMATS, find_model_file, require_model_file
from inference.models.loading import load_version
from inference.models.runtimes import LoadOptions, load_runtime
from inference.models.versions import check_confined


def holding(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("format_", FORMATS, ids=lambda one: one.name)
def test_the_one_file_that_is_a_model_tells_the_format(tmp_path: Path, format_) -> None:
    for name in [*format_.names, *(f"any{suffix}" for suffix in format_.suffixes)]:
        folder = holding(tmp_path / name, name, "features.json", "README.md")
        found = find_model_file(folder)
        assert found is not None
        assert (found.format, found.file) == (format_, folder / name)
        assert find_versions(folder) == {1: folder}


def test_two_models_in_one_folder_are_refused_by_name(tmp_path: Path) -> None:
    holding(tmp_path, "saved_model.pb", "m.onnx")
    with pytest.raises(
        ModelError, match=r"holds 2 models.*saved_model\.pb \(TensorFlow SavedModel\), m\.onnx \(ONNX\)"
    ):
        require_model_file(tmp_path)
    with pytest.raises(ModelError, match="holds 2 models"):
        find_versions(holding(tmp_path / "twice", "a.onnx", "b.onnx"))


def test_a_folder_without_a_model_says_what_is_known_and_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no known model \(saved_model\.pb, .*\*\.onnx.*\); found: notes\.txt"):
        require_model_file(holding(tmp_path, "notes.txt"))
    with pytest.raises(ModelError, match="found: nothing"):
        require_model_file(holding(tmp_path / "empty"))


def test_hidden_files_are_no_models(tmp_path: Path) -> None:
    assert find_model_file(holding(tmp_path, "._m.onnx", ".DS_Store")) is None


def test_numbered_folders_come_before_what_lies_beside_them(tmp_path: Path) -> None:
    holding(tmp_path, "old.onnx")
    holding(tmp_path / "3", "m.onnx")
    assert find_versions(tmp_path) == {3: tmp_path / "3"}


@pytest.mark.parametrize(
    ("name", "fix"), [("m.h5", r"load_model\('.*m\.h5'\)\.save\('.*m\.keras'\)"), ("m.pth", "torch.export.save")]
)
def test_what_is_nearly_a_model_gets_the_line_that_makes_it_one(tmp_path: Path, name: str, fix: str) -> None:
    folder = holding(tmp_path, name)
    for look in (find_versions, require_model_file):
        with pytest.raises(ModelError, match=fix):
            look(folder)


@pytest.mark.parametrize("format_", [one for one in FORMATS if one.extra], ids=lambda one: one.name)
def test_a_library_that_is_not_installed_is_one_sentence_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_
) -> None:
    holding(tmp_path, [*format_.names, *(f"m{suffix}" for suffix in format_.suffixes)][0])
    ours = f"inference.models.runtimes.{format_.runtime}"  # and what it is made of
    for name in [name for name in sys.modules if name.startswith((f"{format_.library}.", ours))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, format_.library, None)
    with pytest.raises(ModelError, match=rf"install forecache\[{format_.extra}\] where workers run") as caught:
        load_runtime(tmp_path, options=LoadOptions(allow_code=True))
    assert "\n" not in caught.value.message


def test_a_link_that_leads_out_of_the_models_folder_is_refused_before_it_is_read(tmp_path: Path) -> None:
    holding(tmp_path / "secrets", "m.onnx", "key")
    own = holding(tmp_path / "model")
    (own / "1").symlink_to(tmp_path / "secrets")
    holding(own / "2", "m.onnx")
    (own / "2" / "vocabulary.txt").symlink_to(tmp_path / "secrets" / "key")
    holding(own / "3" / "deep", "m.onnx")
    (own / "3" / "deep" / "er").symlink_to("../../../secrets")
    for version in (1, 2, 3):
        with pytest.raises(ModelError, match=r"is a link to .*secrets.*outside of the model's folder: copy it there"):
            load_version("m", own, version, own / str(version))


def test_links_within_the_models_folder_and_a_folder_that_is_a_link_are_fine(tmp_path: Path) -> None:
    # as Kubernetes mounts a volume, with versions that share a file
    holding(tmp_path / "mounted" / ".data" / "1", "m.onnx")
    holding(tmp_path / "mounted" / "shared", "vocabulary.txt")
    (tmp_path / "mounted" / "1").symlink_to(".data/1")
    (tmp_path / "mounted" / ".data" / "1" / "vocabulary.txt").symlink_to("../../shared/vocabulary.txt")
    (tmp_path / "model").symlink_to(tmp_path / "mounted")
    check_confined(tmp_path / "model", tmp_path / "model" / "1")
    check_confined(tmp_path / "mounted", tmp_path / "mounted" / "1")
