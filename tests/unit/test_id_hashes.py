from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.monitoring.id_hashes import id_hash, id_hashes

KEY = bytes(range(16))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # the vectors of SipHash's authors whose bytes are text
        (0, 0x726FDB47DD0E0E31),
        (1, 0x74F839C593DC67FD),
        (7, 0xAB0200F58B01D137),
        (8, 0x93F5F5799A932462),
        (15, 0xA129CA6149BE45E5),
        (16, 0x3F2ACC7F57C29BDB),
        (63, 0x958A324CEB064572),
    ],
)
def test_hashes_are_siphash_2_4(text: int, expected: int) -> None:
    assert id_hashes([bytes(range(text)).decode()], KEY).tolist() == [expected]


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=50), st.integers(0, 10))
def test_a_hash_depends_on_the_id_and_the_key_alone(ids: list[str], skipped: int) -> None:
    expected = [int(id_hashes([one], KEY)[0]) for one in ids]
    assert id_hashes(ids, KEY).tolist() == expected
    assert id_hashes(np.array(ids, object), KEY).tolist() == expected
    assert id_hashes(pa.array(ids, pa.string())[skipped:], KEY).tolist() == expected[skipped:]
    assert id_hashes(pa.chunked_array([ids[:3], ids[3:]], pa.large_string()), KEY).tolist() == expected
    stored = [one.encode() for one in ids]
    assert [id_hash(one, KEY) for one in stored] == id_hashes(stored, KEY).tolist() == expected
    assert id_hashes(pa.array(stored, pa.large_binary())[skipped:], KEY).tolist() == expected[skipped:]
    assert not ids or id_hashes(ids, bytes(16)).tolist() != expected


def test_hashing_a_list_imports_no_pandas() -> None:
    code = """
import sys
from inference.monitoring.id_hashes import id_hashes
id_hashes(["entity_1"], bytes(16))
sys.exit("pandas" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
