"""The index of keys: a dictionary is the oracle, also where hashes are made to collide."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.images import key_index
from mlcd_core.images.key_index import ABSENT, build_key_index, key_hashes

KEYS = st.lists(st.text(max_size=20) | st.text(alphabet="a\0", max_size=20), max_size=40)


@settings(deadline=None, max_examples=50)
@given(pieces=st.lists(KEYS, max_size=4), others=KEYS)
def test_index_finds_what_a_dictionary_finds(pieces: list[list[str]], others: list[str]) -> None:
    keys = [key for piece in pieces for key in piece]
    index = build_key_index([pa.array(piece, pa.string()) for piece in pieces], num_keys=len(keys))
    asked = [*keys, *others]
    assert index.find(asked).tolist() == [keys.index(key) if key in keys else ABSENT for key in asked]
    twins = {(a, b) for a, b in index.twins().tolist()}
    assert all(keys[a] == keys[b] and a < b for a, b in twins)
    assert len(twins) == len(keys) - len(set(keys))


@settings(deadline=None, max_examples=50)
@given(keys=KEYS)
def test_hashes_do_not_depend_on_neighbours(keys: list[str]) -> None:
    alone = [[int(column[0]) for column in key_hashes(pa.array([key]))] for key in keys]
    together = key_hashes(pa.array(["x" * 99, *keys, "y"]).slice(1, len(keys)))
    assert [list(pair) for pair in zip(*(column.tolist() for column in together), strict=True)] == alone


def test_nulls_take_a_location_and_are_never_found() -> None:
    index = build_key_index([pa.array(["a", None, "b"]), pa.array([None, "c"])], num_keys=5)
    assert index.find(["a", "b", "c", ""]).tolist() == [0, 2, 4, ABSENT]


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_keys_that_share_the_first_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch, distinct: int) -> None:
    def few_first_hashes(keys: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        first, second = key_hashes(keys)
        return first % distinct, second

    monkeypatch.setattr(key_index, "key_hashes", few_first_hashes)
    keys = [str(i % 37) for i in range(60)]
    index = build_key_index([pa.array(keys[:20]), pa.array(keys[20:])], num_keys=60)
    asked = [*keys, *(str(i) for i in range(37, 60))]
    assert index.find(asked).tolist() == [keys.index(key) if key in keys else ABSENT for key in asked]
    assert len(index.twins()) == 60 - 37
