"""The discrimination head: sharded class centers, their loss, their row optimizer, and the dense oracle."""

from mlcd_core.specs import HeadSpec, check_head_spec
from mlcd_core.train.head.fused import Tile
from mlcd_core.train.head.reference import reference_loss
from mlcd_core.train.head.row_optimizer import AdamWSettings
from mlcd_core.train.head.sharded import HeadOutput, HeadStats, ShardedHead, combined

__all__ = [
    "AdamWSettings",
    "HeadOutput",
    "HeadSpec",
    "HeadStats",
    "ShardedHead",
    "Tile",
    "check_head_spec",
    "combined",
    "reference_loss",
]
