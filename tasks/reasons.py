"""Why a stage would run: how it differs from the nearest result under the same root.

What a result hangs on is its spec (settings, and the version of the stage's code) and what it reads. Both are recorded
with it, so the difference is found by looking, and nobody need remember what was changed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlcd_core.identity import short, spec_fingerprint, spec_record
from mlcd_core.store import Files
from tasks.sealed import sealed_manifests, sealed_spec
from tasks.work import StageWork


@dataclass(frozen=True)
class Change:
    """One difference: a setting's key, ``{stage}'s code``, or the role of an input; None where it had no value."""

    what: str
    was: Any
    now: Any


@dataclass(frozen=True)
class Why:
    """nearest: the address of the result compared with, "" where there is none.

    changes: all differences. With a result and no change its files are not whole, or it had units that failed.
    """

    nearest: str = ""
    changes: tuple[Change, ...] = ()


def why_pending(files: Files, work: StageWork, own_spec: str) -> Why:
    """Compare a stage that is not committed with what is. own_spec: that of the run's record wins between equals.

    Reads every manifest of the stage.
    """
    now = spec_record(work.spec)
    of_spec: dict[str, tuple[Change, ...]] = {spec_fingerprint(work.spec): ()}
    best: tuple[tuple[int, bool, str], Why] | None = None
    for manifest in sealed_manifests(files, work.spec.STAGE):
        if manifest.spec not in of_spec:
            of_spec[manifest.spec] = tuple(_spec_changes(sealed_spec(files, manifest), now))
        changes = (*of_spec[manifest.spec], *_input_changes(manifest.inputs, work.inputs))
        rank = (len(changes), manifest.spec != own_spec, manifest.spec)
        if best is None or rank < best[0]:
            best = rank, Why(files.uri(f"{manifest.stage}/{short(manifest.spec)}"), changes)
    return best[1] if best else Why()


def _spec_changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    stage = now["stage"]
    if was["stage_version"] != now["stage_version"]:
        yield Change(f"{stage}'s code", was["stage_version"], now["stage_version"])
    for key in sorted(was["spec"].keys() | now["spec"].keys()):
        if was["spec"].get(key) != now["spec"].get(key):
            yield Change(f"{stage}.{key}", was["spec"].get(key), now["spec"].get(key))


def _input_changes(was: Mapping[str, str], now: Mapping[str, str]) -> Iterator[Change]:
    for role in sorted(was.keys() | now.keys()):
        if was.get(role) != now.get(role):
            yield Change(f"the {role} it reads", *(side.get(role) and short(side[role]) for side in (was, now)))
