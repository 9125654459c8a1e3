"""The discrimination head: sharded class centers, their loss, their lazy optimizer, and the dense oracle."""

from mlcd_core.specs import HeadSpec
from mlcd_core.train.head.fused import Tile
from mlcd_core.train.head.reference import reference_loss
from mlcd_core.train.head.sharded import HeadOutput, HeadStats, ShardedHead

__all__ = ["HeadOutput", "HeadSpec", "HeadStats", "ShardedHead", "Tile", "reference_loss"]
