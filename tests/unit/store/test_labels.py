"""Which entities are on the canary's side."""

from __future__ import annotations

import pytest

from inference.store.versions import is_on_canary_side, labels_from_text

#: of the first hundred, by BLAKE2b of "delay", a zero byte and the id
KNOWN = ["customer-15", "customer-38", "customer-40", "customer-46", "customer-64", "customer-80"]
IDS = [f"customer-{number}" for number in range(20_000)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 0.9])
def test_a_share_of_the_entities_is_on_its_side(share: float) -> None:
    found = sum(is_on_canary_side("delay", one, share) for one in IDS) / len(IDS)
    assert found == pytest.approx(share, abs=4 * (share * (1 - share) / len(IDS)) ** 0.5)


def test_a_larger_share_keeps_those_of_a_smaller_one_and_the_ends_are_all_or_nobody() -> None:
    few = {one for one in IDS if is_on_canary_side("delay", one, 0.05)}
    more = {one for one in IDS if is_on_canary_side("delay", one, 0.1)}
    assert few < more
    assert all(is_on_canary_side("delay", one, 1.0) for one in IDS)
    assert not any(is_on_canary_side("delay", one, 0.0) for one in IDS)


def test_the_side_stays_the_same_in_every_release_and_differs_between_models() -> None:
    # other processes, perhaps of another release, must agree
    assert [one for one in IDS[:100] if is_on_canary_side("delay", one, 0.05)] == KNOWN
    of_another = [one for one in IDS[:100] if is_on_canary_side("price", one, 0.05)]
    assert of_another != KNOWN


def test_labels_are_read_as_they_stand_in_redis() -> None:
    labels = labels_from_text(b"canary=4,stable=3", b"0.05")
    assert (labels.stable, labels.canary, labels.canary_share) == (3, 4, 0.05)
    assert labels_from_text(None, None) == labels_from_text(b"", None)
    assert labels_from_text(b"stable=3", None).canary_for("delay", IDS[0]) is None
