"""Identity of specs, inputs and units: sha256 of canonical JSON.

Only values with one stable spelling are accepted; anything else raises instead of hashing an address or a repr, since
a fingerprint that differs between two processes recomputes days of work without a word.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlcd_core.specs import StageSpec

NAME_DIGITS = 12


def canonical_json(value: object) -> str:
    """Spell ``value`` in the one way that is hashed: sorted keys, no spaces, floats by shortest round-trip repr.

    Accepts None, bool, int, finite float, str, and lists, tuples and string-keyed mappings of them.
    Raises TypeError for everything else, ValueError for NaN and infinities.
    """
    _check(value, ("value", ""))
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: object) -> str:
    """sha256 (64 hex digits) of the canonical JSON of ``value``."""
    return sha256_hex(canonical_json(value).encode())


def spec_fingerprint(spec: StageSpec) -> str:
    """Identity of a stage's spec, its name and code version included."""
    return fingerprint(spec_record(spec))


def spec_record(spec: StageSpec) -> dict[str, Any]:
    """The hashed content of a spec, as ``spec.json`` keeps it."""
    return {"stage": spec.STAGE, "stage_version": spec.STAGE_VERSION, "spec": spec.model_dump(mode="json")}


def short(digest: str) -> str:
    """The digits of a digest that stand in names; records always hold all 64."""
    assert len(digest) == 64, f"not a sha256: {digest!r}"
    return digest[:NAME_DIGITS]


def sha256_hex(data: bytes) -> str:
    """sha256 of bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


# the leaves of most values; a manifest of 40,000 parts holds half a million
_PLAIN = frozenset({type(None), bool, int, str})


def _check(value: object, where: tuple[Any, ...]) -> None:
    """Raise for what has no stable spelling. where: (place of the parent, step); it is spelled only for an error."""
    if type(value) in _PLAIN or isinstance(value, (int, str)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{_place(where)} is {value!r}, which has no canonical spelling; use a finite number")
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{_place(where)} has the key {key!r} of type {type(key).__name__}; use string keys")
            if type(item) not in _PLAIN:
                _check(item, (where, f".{key}"))
    elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        for i, item in enumerate(value):
            if type(item) not in _PLAIN:
                _check(item, (where, f"[{i}]"))
    else:
        raise TypeError(f"{_place(where)} is a {type(value).__name__}, which has no stable encoding; use JSON values")


def _place(where: tuple[Any, ...]) -> str:
    parent, step = where
    return f"{_place(parent) if isinstance(parent, tuple) else parent}{step}"
