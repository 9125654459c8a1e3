"""Class blocks: how C class centers are split, in a way that no world size changes.

The classes are cut into V blocks of nearly equal size, and a rank owns whole neighbouring blocks. Sampling,
initialisation and checkpoints work by block, so they give the same on 1, 2 or 64 ranks. V follows from C alone.
"""

import math
from dataclasses import dataclass

from mlcd_core.errors import TrainingError

CLASSES_PER_BLOCK = 256
MIN_BLOCKS = 8
MAX_BLOCKS = 1024


@dataclass(frozen=True)
class ClassBlocks:
    """The partition of ``num_classes`` classes. Below 8 classes some blocks are empty."""

    num_classes: int

    @property
    def num_blocks(self) -> int:
        """V = clamp(C / 256, 8, 1024), rounded to a power of two."""
        wanted = min(max(self.num_classes / CLASSES_PER_BLOCK, MIN_BLOCKS), MAX_BLOCKS)
        return int(2 ** round(math.log2(wanted)))

    def start(self, block: int) -> int:
        """The first class of a block; the start of block V is C."""
        return block * self.num_classes // self.num_blocks

    def classes(self, blocks: range) -> range:
        """The classes of neighbouring blocks."""
        return range(self.start(blocks.start), self.start(blocks.stop))

    def owned(self, rank: int, world_size: int) -> range:
        """The blocks of one rank. Raises TrainingError when there are more ranks than blocks."""
        if world_size > self.num_blocks:
            raise TrainingError(
                f"{world_size} ranks cannot share the {self.num_blocks} class blocks of {self.num_classes:,} classes; "
                f"expected at most {self.num_blocks} ranks: lower the workers of train"
            )
        return range(rank * self.num_blocks // world_size, (rank + 1) * self.num_blocks // world_size)
