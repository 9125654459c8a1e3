"""``train.start_from``: another training of this root, named by its manifest's digest, that a training begins from."""

from dataclasses import dataclass

from mlcd_core.errors import ConfigError
from mlcd_core.identity import short
from mlcd_core.specs import TrainSpec
from mlcd_core.store import Manifest, Part
from tasks.run import Run
from tasks.sealed import find_manifest, sealed_manifests
from tasks.work import settings


@dataclass(frozen=True)
class StartParts:
    """The last checkpoint of a training, and whether its class k is class k of the training that begins from it."""

    parts: tuple[Part, ...]
    same_classes: bool


def start_of(run: Run) -> tuple[TrainSpec, Manifest | None]:
    """The spec with the whole digest that ``train.start_from`` begins, and the manifest of that training.

    Raises ConfigError for a digest that names no committed training under the root, or several.
    """
    spec, _ = settings(run, "train")
    assert isinstance(spec, TrainSpec)
    if not spec.start_from:
        return spec, None
    start = find_manifest(run.files, "train", spec.start_from, key="train.start_from")
    return spec.model_copy(update={"start_from": start.digest}), start


def start_parts(run: Run, start: Manifest, label: Manifest) -> StartParts:
    """What the workers read of ``start``. Raises ConfigError when nobody can tell which classes it was trained on."""
    if start.inputs["label"] == label.digest:
        return StartParts(start.parts, same_classes=True)
    theirs = [m for m in sealed_manifests(run.files, "label") if m.digest == start.inputs["label"]]
    if not theirs:
        raise ConfigError(
            f"train.start_from={short(start.digest)}: its labels {short(start.inputs['label'])} are no longer under "
            f"{run.files.uri('')}, so nobody can tell whether its classes are those of this run; expected "
            "their manifest in label/: run that label stage again"
        )
    return StartParts(start.parts, same_classes=theirs[0].inputs["cluster"] == label.inputs["cluster"])
