"""A stateless random number per key: the same on CPU, GPU and any number of ranks.

Ranking rows for the k-means init and drawing negatives both need a number that depends on (seed, id) alone, never on
who asks or in which order. SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; constants and finaliser of Vigna's public
domain splitmix64.c) is three shifts and two multiplications, so it runs as int64 tensor operations, which wrap modulo
2^64. Not for cryptography.
"""

import torch
from torch import Tensor

_INCREMENT = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_LOW_63_BITS = (1 << 63) - 1


def splitmix64(*words: int | Tensor) -> Tensor:
    """Mix the words, in order, to one non-negative int64 per element; int64 tensors and ints broadcast.

    One word gives the low 63 bits of the first output of splitmix64.c seeded with it. The result lies where the tensors
    lie, on the CPU when all words are ints; ints are taken modulo 2^64.
    """
    assert words, "splitmix64 needs at least one word"
    mixed = _mix(_int64(words[0]))
    for word in words[1:]:
        mixed = _mix(mixed ^ _int64(word))
    return mixed & _LOW_63_BITS


def _mix(state: Tensor) -> Tensor:
    mixed = state + _signed(_INCREMENT)
    mixed = (mixed ^ _logical_shift(mixed, 30)) * _signed(_MULTIPLIER_1)
    mixed = (mixed ^ _logical_shift(mixed, 27)) * _signed(_MULTIPLIER_2)
    return mixed ^ _logical_shift(mixed, 31)


def _int64(word: int | Tensor) -> Tensor:
    if isinstance(word, Tensor):
        assert word.dtype == torch.int64, f"splitmix64 mixes int64 tensors, not {word.dtype}"
        return word
    # a CPU scalar combines with tensors of any device
    return torch.tensor(_signed(word), dtype=torch.int64)


def _logical_shift(value: Tensor, bits: int) -> Tensor:
    # >> on int64 repeats the sign bit
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    word %= 1 << 64
    return word - (1 << 64) if word >> 63 else word
