"""Settings that only the tower can show to be wrong, found before hours of stages above have run."""

import torch

from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.train.center_init import check_centroid_dim
from mlcd_core.train.model import build_tower, check_batch_norm, checkpoint_activations


def check_tower(spec: TrainSpec, runtime: TrainRuntime, *, centroid_dim: int | None) -> None:
    """Build the tower without memory for its weights and raise what training itself would raise.

    centroid_dim: that of the centroids, where it is known. Raises ConfigError for an unknown tower, one that cannot
    recompute its activations when it should, or dims other than those of the centroids it takes over; TrainingError for
    BatchNorm where a batch comes in parts.
    """
    with torch.device("meta"):
        tower = build_tower(spec.tower, image_size=spec.image_size, seed=spec.seed)
    check_batch_norm(tower, spec.tower, world_size=runtime.workers, accumulation=spec.accumulation)
    if runtime.checkpoint_activations:
        checkpoint_activations(tower, spec.tower)
    if centroid_dim is not None:
        check_centroid_dim(spec, centroid_dim=centroid_dim, dim=tower.dim)
