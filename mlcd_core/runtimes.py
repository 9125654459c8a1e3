"""Where and how a stage runs: never hashed, so changing a worker count is a cache hit.

Train's world size can change the last bits of the weights; it is kept in the manifest's provenance.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Device = Literal["auto", "cpu", "cuda"]
# how k-means proposes candidates: coarse products in a precision, a fused kernel, or faiss; never changes the result
SearchName = Literal["auto", "int8", "bfloat16", "float16", "float32", "triton", "faiss"]
SEARCH_WORDS = "how candidates are proposed; auto: int8 on CPUs with VNNI, float16 on CUDA, else float32"


class Runtime(BaseModel):
    """Base: unknown fields are errors, instances are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: int = Field(1, ge=1, description="threads per worker")


class EmbedRuntime(Runtime):
    """``pretrained`` says where the weights are found; their sha256 is what counts."""

    workers: int = Field(1, ge=1, description="Ray Data actors")
    device: Device = Field("auto", description="auto (cuda where there is one), cpu or cuda")
    pretrained: str = Field("", description="path of a weights file, or an open_clip tag; empty: the packaged codebook")
    vectors: str = Field("", description="of adopted: folder or pattern of the files that hold the vectors")
    max_bad_share: float = Field(
        0.05, ge=0, le=1, description="share of all rows without an embedding that is accepted"
    )
    max_bad_share_shard: float = Field(0.2, ge=0, le=1, description="the same for the rows of one shard that was read")


class ClusterRuntime(Runtime):
    """Nothing here changes the result."""

    workers: int = Field(1, ge=1, description="Ray actors that share the rows")
    device: Device = Field("auto", description="auto (cuda where each worker can have a GPU), cpu or cuda")
    search: SearchName = Field("auto", description=SEARCH_WORDS)
    save_every: int = Field(1, ge=1, description="iterations between saved links")
    save_seconds: float = Field(300, ge=0, description="seconds after which an iteration's sums so far are saved")


class LabelRuntime(Runtime):
    """Nothing here changes the result."""

    workers: int = Field(1, ge=1, description="Ray Data actors")
    device: Device = Field("auto", description="auto (cuda where there is one), cpu or cuda")
    search: SearchName = Field("auto", description=SEARCH_WORDS)


class TrainRuntime(Runtime):
    """World size, the checkpoint interval, and what saves memory or survives losses."""

    workers: int = Field(1, ge=1, description="Ray Train workers, the ranks")
    device: Device = Field("auto", description="auto (cuda where there is one), cpu or cuda")
    checkpoint_steps: int = Field(200, ge=1, description="steps between checkpoints")
    log_steps: int = Field(20, ge=1, description="steps between log records")
    log_folder: str = Field("", description="of the JSONL log and TensorBoard files; empty: logs/ under a local root")
    retries: int = Field(3, ge=0, description="new starts after lost workers, at the largest world size that fits")
    checkpoint_activations: bool = Field(False, description="recompute the tower's activations: less memory, more time")
    shard_tower: bool = Field(False, description="FSDP2: split the tower over the ranks, if one device cannot hold it")


class EvaluateRuntime(Runtime):
    """Evaluation runs in one worker."""

    device: Device = Field("auto", description="auto (cuda where there is one), cpu or cuda")
