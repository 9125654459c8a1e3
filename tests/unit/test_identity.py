"""Fingerprints: stable spelling, and loud refusal of what has none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcd_core.identity import canonical_json, fingerprint, spec_fingerprint
from mlcd_core.specs import ClusterSpec, EmbedSpec

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(json_values)
def test_canonical_json_is_json_and_spells_a_value_the_same_after_a_round_trip(value: object) -> None:
    spelled = canonical_json(value)
    assert canonical_json(json.loads(spelled)) == spelled


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_key_order_does_not_matter(values: dict[str, int]) -> None:
    assert fingerprint(values) == fingerprint(dict(reversed(values.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {"a": {3}}, [object()], b"bytes", Path("x")])
def test_value_without_a_stable_spelling_raises_with_its_place(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="value"):
        fingerprint(value)


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from mlcd_core.identity import spec_fingerprint as f; from mlcd_core.specs import ClusterSpec;"
        "print(f(ClusterSpec(num_centroids=7)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == spec_fingerprint(ClusterSpec(num_centroids=7))


def test_every_field_of_a_spec_and_its_version_enter_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    base = spec_fingerprint(EmbedSpec())
    assert base != spec_fingerprint(EmbedSpec(weights_sha256="0" * 64))
    assert base != spec_fingerprint(EmbedSpec(batch_rows=7))
    monkeypatch.setattr(EmbedSpec, "STAGE_VERSION", 2)
    assert base != spec_fingerprint(EmbedSpec())
