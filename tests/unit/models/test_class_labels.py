"""Names of classes beside a model: what is used, and the warning for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.models.class_labels import read_class_labels
from inference.schema import DType, TensorSpec

SCORES = [TensorSpec("scores", DType.FLOAT32, (3,))]


def test_a_version_without_the_file_has_no_labels_and_no_warning(tmp_path: Path) -> None:
    assert read_class_labels(tmp_path, SCORES) == ((), None)


def test_each_line_is_a_label(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("cat\r\nHund: groß\n\n".encode())
    assert read_class_labels(tmp_path, SCORES) == (("cat", "Hund: groß", ""), None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\nb", "it has 2 lines, and no output has as many values a row"),
        (b"\xff\n\xff\n\xff", "write it in UTF-8"),
        (b"a\n" * 40_000, "it is over 65536 bytes"),
    ],
)
def test_a_file_that_is_not_used_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    assert read_class_labels(tmp_path, SCORES) == ((), f"labels.txt is not used: {words}")


def test_an_output_of_any_size_may_have_any_number_of_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb")
    assert read_class_labels(tmp_path, [TensorSpec("scores", DType.FLOAT32, (-1,))])[0] == ("a", "b")
