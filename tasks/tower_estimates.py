"""What a run's towers would cost, counted on towers that are built for it without memory."""

from mlcd_core.config import Config, stage_runtime, stage_spec
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.tower_estimate import TowerEstimate, estimate_embedding, estimate_training


def estimate_towers(config: Config, *, num_rows: int, num_classes: int) -> list[TowerEstimate]:
    """The stages embed and train, as far as they are towers of open_clip, of timm or trained here.

    ``hog_words`` has no products worth counting, and ``conv-tiny`` is measured by a probe in less time than torch takes
    to load, which every other tower needs. Raises ConfigError as ``build_tower``.
    """
    found = []
    embed, train, runtime = config.embed, stage_spec(config, "train"), stage_runtime(config, "train")
    assert isinstance(train, TrainSpec)
    assert isinstance(runtime, TrainRuntime)
    if embed.embedder in ("open_clip", "tower"):
        from mlcd_core.train import tower_cost

        tower = f"open_clip:{embed.architecture}" if embed.embedder == "open_clip" else embed.architecture
        found.append(
            estimate_embedding(
                tower_cost(tower, image_size=embed.image_size, precision=embed.precision),
                tower=tower,
                image_size=embed.image_size,
                precision=embed.precision,
                num_rows=num_rows,
                workers=embed.workers,
            )
        )
    if train.tower != TrainSpec.model_fields["tower"].default:
        from mlcd_core.train import tower_cost

        cost = tower_cost(
            train.tower,
            image_size=train.image_size,
            precision=train.precision,
            recompute=runtime.checkpoint_activations,
        )
        found.append(estimate_training(cost, train, runtime, num_rows=num_rows, num_classes=num_classes))
    return found
