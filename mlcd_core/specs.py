"""What each stage computes: frozen models whose canonical JSON is hashed into the stage's address.

Anything that can change a byte of the result on one machine is here; where and how (workers, devices, paths) is in
``runtimes``. ``STAGE_VERSION`` goes up when the same spec would give other bytes.
"""

import math
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from mlcd_core.errors import ConfigError, TooFewRowsError

StageName = Literal["embed", "cluster", "label", "train", "evaluate"]
STAGES: tuple[StageName, ...] = ("embed", "cluster", "label", "train", "evaluate")


class Spec(BaseModel):
    """Base: unknown fields are errors, instances are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StageSpec(Spec):
    """A spec with its stage name and the version of the code that computes it."""

    STAGE: ClassVar[StageName]
    STAGE_VERSION: ClassVar[int] = 1


class EmbedSpec(StageSpec):
    """One embedding per image, of an off-the-shelf model or of a tower trained here."""

    STAGE = "embed"

    embedder: Literal["hog_words", "open_clip", "tower", "adopted"] = "hog_words"
    tower: str = Field("", description="of tower: digest of the train manifest, 12 digits or more; resolved to all 64")
    architecture: str = Field("", description="open_clip model name, for example ViT-B-32; of tower: from its manifest")
    weights_sha256: str = Field(
        "", description="sha256 of the weights file, or of the adopted vectors; resolved when empty"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the model's products; the embedding is float16 always"
    )
    feature: Literal["image", "image_text_mean"] = Field(
        "image", description="image_text_mean: mean of the unit vectors of image and caption, of open_clip alone"
    )
    caption_column: str = Field("caption", description="string column that image_text_mean reads")
    image_size: int = Field(32, ge=8, description="pixels of the square crop that the embedder sees")
    batch_rows: int = Field(256, ge=1, description="rows per encoder call; the last batch of a shard is shorter")
    max_pixels: int = Field(
        64_000_000,
        ge=1,
        description="an image with more, or one that costs as much to decode (PNG 25.6, WebP 16 million), gets the "
        "status too_many_pixels",
    )
    decode: Literal["exact", "fast"] = Field(
        "exact", description="fast: JPEGs far above the target at a fraction of their size; the metrics give its PSNR"
    )
    rows_per_unit: int = Field(
        10_000, ge=1, description="a shard with more rows is cut between row groups into units of at most so many"
    )
    image_column: str = Field("auto", description="column with the image bytes, or auto: jpg, png, webp, image")
    key_column: str = Field("key", description="string column that names the row; made from shard and row when absent")


RecipeName = Literal["exact", "sample", "fast", "hierarchical"]


class ClusterSpec(StageSpec):
    """Spherical k-means over the usable embeddings."""

    STAGE = "cluster"

    num_centroids: int | None = Field(None, ge=1, description="K; usable rows / rows_per_centroid when not given")
    rows_per_centroid: int = Field(30, ge=4)
    iterations: int = Field(20, ge=1, description="at most; of hierarchical: in each slice, and to merge them")
    tolerance: float = Field(1e-4, ge=0, description="stop when the objective improves by less than this share")
    seed: int = 0
    recipe: RecipeName = Field(
        "exact", description="what iterations before the last final_iterations do: all exact, or one of three savings"
    )
    # after one, the recorded objective is still that of the cheap centroids
    final_iterations: int = Field(
        2, ge=1, description="of the other recipes: exact iterations over all rows at the end"
    )
    sample_rows: int = Field(256, ge=4, description="of sample: rows used for each centroid, about, chosen by hash")
    probes: int = Field(8, ge=1, description="of fast: groups of centroids that a row looks at, at most all")
    slices: int = Field(4, ge=2, description="of hierarchical: parts of the rows that are clustered on their own first")

    def centroids_of(self, num_rows: int, what: str = "usable rows") -> int:
        """K as given or as the rows allow. Raises TooFewRowsError when there are not four rows per centroid."""
        num_centroids = self.num_centroids or max(1, num_rows // self.rows_per_centroid)
        if num_centroids > num_rows // 4:
            fix = f"set cluster.num_centroids <= {num_rows // 4:,} or add shards" if num_rows >= 4 else "add shards"
            raise TooFewRowsError(
                f"{num_centroids:,} centroids from {num_rows:,} {what}; K may be at most rows/4: {fix}"
            )
        return num_centroids

    @property
    def most_iterations(self) -> int:
        """Iterations that a run ends with at the latest; those of slices and their merge are not counted."""
        return self.final_iterations if self.recipe == "hierarchical" else self.iterations


class LabelSpec(StageSpec):
    """The nearest centroids of each row, best first."""

    STAGE = "label"

    num_labels: int = Field(16, ge=1, description="L, centroid ids kept per row; how many train is train.num_positive")


LossName = Literal["mlcd", "mlc", "softmax", "softmax_masked", "mlcd_bias"]
LOSS_WORDS = (
    "mlcd: Eq. 5; mlc: Eq. 4; softmax: Eq. 3, single label; softmax_masked: mean over the positives of Eq. 3; "
    "mlcd_bias: mlcd with a learned threshold"
)


class HeadSpec(StageSpec):
    """The discrimination loss over class centers (MLCD, arXiv 2407.17331); equations in ``train.head.losses``."""

    STAGE = "train"

    loss: LossName = Field("mlcd", description=LOSS_WORDS)
    margin_kind: Literal["cosface", "arcface", "none"] = Field("cosface", description="margin on positives")
    margin: float = Field(0.3, ge=0, description="m, taken from the cosine (cosface) or added to the angle (arcface)")
    scale: float = Field(64.0, gt=0)
    negative_ratio: float = Field(0.1, gt=0, le=1, description="r, share of the classes drawn as negatives each step")
    sampling: Literal["independent", "partial_fc"] = Field(
        "independent", description="partial_fc: the batch's positives are drawn first; can exceed r"
    )
    negative_weighting: Literal["none", "inverse_rate"] = Field(
        "none",
        description="inverse_rate: each of the S negatives counts C / S times: an estimate over all classes",
    )


def check_head_spec(spec: HeadSpec, *, num_positive: int) -> None:
    """Raise ConfigError for settings that exclude each other."""
    if spec.loss == "softmax" and num_positive != 1:
        raise ConfigError(
            f"train.loss=softmax with train.num_positive={num_positive}; it takes the nearest cluster alone: "
            "set train.num_positive=1, or train.loss=softmax_masked"
        )
    if spec.sampling == "partial_fc" and spec.negative_weighting == "inverse_rate":
        raise ConfigError(
            "train.sampling=partial_fc with train.negative_weighting=inverse_rate; the batch's positives are drawn "
            "always, the other classes at another rate: set train.negative_weighting=none, or "
            "train.sampling=independent"
        )
    if spec.margin_kind == "arcface" and spec.margin >= math.pi / 2:
        raise ConfigError(
            f"train.margin_kind=arcface with train.margin={spec.margin}; expected an angle below pi/2 = 1.57: "
            "set train.margin, 0.3 in the paper"
        )


def check_sharding(*, sharded: bool, compiled: bool) -> None:
    """Raise ConfigError for a tower that is both split over the ranks and compiled."""
    if sharded and compiled:
        raise ConfigError(
            "train.shard_tower=true and train.compile=true; expected one of them, since what FSDP does at each block "
            "would cut the compiled tower to pieces: set train.compile=false"
        )


class TrainSpec(HeadSpec):
    """One training run of a tower against the cluster labels."""

    tower: str = Field(
        "conv-tiny", description="conv-tiny, open_clip:<architecture> such as open_clip:ViT-B-32, or timm:<model>"
    )
    image_size: int = Field(32, ge=8)
    max_pixels: int = Field(64_000_000, ge=1)
    image_column: str = "auto"
    num_positive: int = Field(8, ge=1, description="l, how many of a row's labels are its positives")
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(64, ge=1, description="B, rows of the global batch")
    accumulation: int = Field(1, ge=1, description="pieces in which a rank's rows go through the tower; same gradient")
    lanes: int = Field(8, ge=1, description="fixed reading lanes; world size divides lanes divides batch_size")
    learning_rate: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    center_learning_rate: float = Field(2e-3, gt=0)
    center_weight_decay: float = Field(0.0, ge=0)
    center_optimizer: Literal["lazy", "dense"] = Field(
        "lazy", description="lazy: AdamW on the centers that a step touches; dense: on all centers at every step"
    )
    center_init: Literal["normal", "centroids", "centroids_pca"] = Field(
        "normal", description="centroids: as clustered, where dimensions match; centroids_pca: through their PCA"
    )
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    schedule: Literal["cosine", "poly"] = Field("cosine", description="decay to 0 after warm-up; poly: (1 - t)^2")
    warmup_share: float = Field(0.1, ge=0, lt=1, description="share of the steps with linear warm-up")
    clip_norm: float = Field(5.0, gt=0, description="global gradient norm of tower and head together")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: autocast of the tower, and TF32 products in the head on CUDA"
    )
    ema_decay: float = Field(0.0, ge=0, lt=1, description="of the average of the tower's weights; 0: no average")
    compile: bool = Field(False, description="torch.compile of the tower")
    start_from: str = Field("", description="digest of a train manifest whose weights are the start; empty: random")
    augment: Literal["shift_jitter", "crop_flip", "none"] = "shift_jitter"
    seed: int = 0


class EvaluateSpec(StageSpec):
    """Probes of the trained tower, the untrained tower and the source embedder on labelled rows."""

    STAGE = "evaluate"

    label_column: str = Field("", description="int, or list of ints, per row; empty: cluster evidence only")
    image_column: str = "auto"
    max_pixels: int = Field(64_000_000, ge=1)
    knn: int = Field(20, ge=1, description="neighbours of the kNN vote")
    probe_c: tuple[PositiveFloat, ...] = Field(
        (0.1, 1.0, 10.0), min_length=1, description="inverse L2 strengths tried on training folds"
    )
    batch_rows: int = Field(256, ge=1)
    seed: int = 0
