"""``pin``: an existing committed stage stands in for one of this run: new data, old centroids, stable cluster ids.

A pin is ``{"cluster": run-or-digest}``. It is resolved to a sealed manifest before anything runs, and what is below
reads that manifest's digest, so labels of old shards stay hits. Only cluster can be pinned: the parts of the other
stages belong to the shards they were made from.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlcd_core.config import environment_keys
from mlcd_core.errors import ConfigError, CorruptRecordError
from mlcd_core.identity import short, spec_record
from mlcd_core.specs import EmbedSpec, StageName
from mlcd_core.store import Files, Manifest
from tasks.embed import resolved_embed_spec
from tasks.run import PINNABLE, Run
from tasks.run_record import RunRecord
from tasks.sealed import DIGEST, sealed_manifests, sealed_spec

# what a vector means, with the version of the code; the other fields of an embed spec say how rows are read
SPACE_FIELDS = ("embedder", "architecture", "weights_sha256", "image_size", "feature")


@dataclass(frozen=True)
class Pinned:
    """A stage's manifest as it is used. source: what the person named. ignored: keys they set for that stage."""

    manifest: Manifest
    source: str
    ignored: tuple[str, ...]

    @property
    def note(self) -> str:
        """One line for tables and logs."""
        said = f"pinned to {self.source} ({short(self.manifest.digest)})"
        return f"{said}; ignored: {', '.join(self.ignored)}" if self.ignored else said


def resolve_pins(run: Run) -> dict[StageName, Pinned]:
    """The pinned stages of a run; starts nothing and writes nothing.

    Raises ConfigError when a pin names no sealed manifest, or several, and when its centroids were made from another
    embedder's vectors or are fewer than the labels asked for; CorruptRecordError when its parts are not whole.
    """
    pinned: dict[StageName, Pinned] = {}
    for stage in PINNABLE:
        if stage in run.request.pin:
            source = run.request.pin[stage]
            manifest = _manifest_of(run.files, stage, source)
            _check_whole(run.files, manifest, source)
            _check_same_space(run, manifest, source)
            _check_enough(run, manifest, source)
            pinned[stage] = Pinned(manifest, source, _ignored_keys(stage, run.request.overrides))
    return pinned


def _manifest_of(files: Files, stage: StageName, source: str) -> Manifest:
    """The manifest of a run of that name, else the one with that digest."""
    runs = _digests_of_runs(files, stage)
    if source in runs and runs[source] is None:
        raise ConfigError(
            f"pin {stage}={source}: the run {source!r} has not committed {stage} yet; finish it with "
            f"--name {source} --until {stage}, or pin another"
        )
    wanted = runs.get(source) or source
    sealed = [m for m in sealed_manifests(files, stage) if DIGEST.fullmatch(wanted) and m.digest.startswith(wanted)]
    digests = {manifest.digest for manifest in sealed}
    if len(digests) == 1:
        return max(sealed, key=lambda manifest: (manifest.attempt, manifest.spec))
    found = f"is the start of {', '.join(sorted(digests))}" if digests else f"names no committed {stage}"
    fix = "give all 64 digits" if digests else f"name one of them, or run {stage} first"
    raise ConfigError(f"pin {stage}={source} {found} under {files.uri('')}; {_choices(files, stage, runs)}: {fix}")


def _digests_of_runs(files: Files, stage: StageName) -> dict[str, str | None]:
    """Run name -> digest of its stage, None while that is not committed."""
    found: dict[str, str | None] = {}
    for info in files.list("runs"):
        name = info.path.removeprefix("runs/").removesuffix(".json")
        entry = RunRecord(files, name).read()["stages"].get(stage)
        found[name] = entry["digest"] if entry else None
    return found


def _choices(files: Files, stage: StageName, runs: Mapping[str, str | None]) -> str:
    named = [f"{name} ({short(digest)})" for name, digest in sorted(runs.items()) if digest]
    digests = {short(m.digest) for m in sealed_manifests(files, stage) if m.digest not in runs.values()}
    return f"there are the runs {', '.join(named) or 'none'} and the digests {', '.join(sorted(digests)) or 'none'}"


def _check_whole(files: Files, manifest: Manifest, source: str) -> None:
    sizes = {info.path: info.bytes for info in files.list(manifest.stage)}
    for part in manifest.parts:
        if sizes.get(part.path) != part.bytes:
            raise CorruptRecordError(
                f"pin {manifest.stage}={source}: {files.uri(part.path)} has {sizes.get(part.path, 'no')} bytes, its "
                f"manifest says {part.bytes}; run the command that made it again without a pin"
            )


def _check_same_space(run: Run, manifest: Manifest, source: str) -> None:
    """Refuse centroids of another embedder; the same code, weights and size also give the same dims."""
    embed = manifest.inputs["embed"]
    ours = _space(spec_record(resolved_embed_spec(run)))
    theirs = [_space(sealed_spec(run.files, m)) for m in sealed_manifests(run.files, "embed") if m.digest == embed]
    if not theirs:
        raise ConfigError(
            f"pin {manifest.stage}={source}: its embeddings {short(embed)} are no longer under "
            f"{run.files.uri('')}, so nobody can tell which embedder they came from; expected their manifest in embed/"
        )
    if ours not in theirs:
        differing = [field for field in ours if ours[field] != theirs[0][field]]
        got = ", ".join(f"embed.{field} {ours[field]!r}" for field in differing)
        expected = ", ".join(f"{theirs[0][field]!r}" for field in differing)
        raise ConfigError(
            f"pin {manifest.stage}={source}: its centroids were made from another embedder; this run has {got}, "
            f"expected {expected}: set them so, or cluster again without the pin"
        )


def _space(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{field: record["spec"].get(field, EmbedSpec.model_fields[field].default) for field in SPACE_FIELDS},
        "stage_version": record["stage_version"],
    }


def _check_enough(run: Run, manifest: Manifest, source: str) -> None:
    num_centroids, num_labels = manifest.parts[0].rows, run.config.label.num_labels
    if num_labels > num_centroids:
        raise ConfigError(
            f"label.num_labels={num_labels} nearest of the {num_centroids} centroids of pin {manifest.stage}={source} "
            f"cannot be had; set label.num_labels <= {num_centroids} (and train.num_positive)"
        )


def _ignored_keys(stage: StageName, overrides: Mapping[str, Any]) -> tuple[str, ...]:
    set_by_hand = {*environment_keys(os.environ), *overrides}
    return tuple(sorted(key for key in set_by_hand if key.startswith(f"{stage}.")))
