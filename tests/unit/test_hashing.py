import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlcd_core.hashing import splitmix64
from tests.unit.kmeans import oracle

words = st.integers(min_value=-(2**63), max_value=2**64 - 1)


def test_first_outputs_of_the_reference_generator():
    # splitmix64.c seeded with 1234567; both outputs happen to be below 2^63
    increment = 0x9E3779B97F4A7C15
    assert int(splitmix64(1234567)) == 6457827717110365317
    assert int(splitmix64(1234567 + increment)) == 3203168211198807973


@given(st.lists(words, min_size=1, max_size=4))
def test_equals_python_integers(values):
    assert int(splitmix64(*values)) == oracle.splitmix64(*values)


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_tensors_hash_element_by_element_like_ints(seed, ids):
    hashes = splitmix64(seed, torch.tensor(ids, dtype=torch.int64))
    assert hashes.dtype == torch.int64
    assert hashes.tolist() == [int(splitmix64(seed, value)) for value in ids]
    assert all(value >= 0 for value in hashes.tolist())


def test_words_broadcast_and_their_order_counts():
    assert splitmix64(torch.arange(3)[:, None], torch.arange(4)).shape == (3, 4)
    assert int(splitmix64(1, 2)) != int(splitmix64(2, 1))


def test_bits_are_balanced():
    hashes = splitmix64(7, torch.arange(20_000))
    ones = torch.stack([(hashes >> bit) & 1 for bit in range(63)]).double().mean(dim=1)
    # five standard deviations of a fair coin over 20,000 throws
    assert (ones - 0.5).abs().max() < 5 * 0.5 / 20_000**0.5


def test_other_dtypes_are_refused():
    with pytest.raises(AssertionError, match="int32"):
        splitmix64(torch.zeros(2, dtype=torch.int32))
