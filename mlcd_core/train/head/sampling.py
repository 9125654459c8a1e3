"""Negative sampling: which classes stand as negatives at a step. The same on any device and world size.

``independent``: exactly S = max(1, round(r * C)) classes are drawn, whatever the positives are. With
k = splitmix64(seed, step) mod C, the block [start, end) draws floor((S*end + k)/C) - floor((S*start + k)/C) classes:
the sum telescopes to S, and over k every block, and so every class, has the same chance S/C. (Rounding each block's
share alone would starve some classes for ever.) Inside a block the classes with the smallest keys
splitmix64(seed, step, class id) win (63 bits: equal keys do not happen).

``partial_fc`` (arXiv 2203.15565), for comparison: the classes that are positives of any row of the batch come first,
then the smallest keys up to the block's share; where a block has more positives than its share, all of them and nothing
else. So the set can exceed S: with 8 labels per row the paper's batch has about 230,600 distinct positives, 23 % of a
million classes where r is 10 %.

V blocks, M classes of the biggest block, Q draws of the block that draws most, S sampled classes.
"""

import torch
from torch import Tensor

from mlcd_core.hashing import splitmix64
from mlcd_core.train.head.blocks import ClassBlocks

POSITIVE_KEY = -1  # before all keys, which are not negative


def num_negatives(num_classes: int, negative_ratio: float) -> int:
    """S, the classes drawn at each step."""
    return max(1, round(negative_ratio * num_classes))


def sampled_classes(
    partition: ClassBlocks,
    blocks: range,
    *,
    num_sampled: int,
    seed: int,
    step: int,
    device: torch.device,
    positives: Tensor | None = None,
) -> Tensor:
    """The class ids that ``blocks`` draw at ``step``, ascending, int64 on ``device``.

    positives: class ids that ``partial_fc`` draws first, of any block, in any order; -1 is no class.
    """
    num_classes = partition.num_classes
    offset = int(splitmix64(seed, step)) % num_classes
    bounds = torch.arange(blocks.start, blocks.stop + 1, device=device) * num_classes // partition.num_blocks
    quota_V = block_quotas(bounds, num_sampled=num_sampled, offset=offset, num_classes=num_classes)
    size_V = bounds.diff()
    column_M = torch.arange(int(size_V.max()), device=device)
    ids_VM = bounds[:-1, None] + column_M
    is_class_VM = column_M < size_V[:, None]
    keys_VM = splitmix64(seed, step, ids_VM)
    if positives is not None:
        is_positive_VM = torch.isin(ids_VM, torch.unique(positives)) & is_class_VM
        keys_VM = torch.where(is_positive_VM, POSITIVE_KEY, keys_VM)
        quota_V = torch.maximum(quota_V, is_positive_VM.sum(dim=1))
    # classes beyond the end of a shorter block come last
    keys_VM = torch.where(is_class_VM, keys_VM, torch.iinfo(torch.int64).max)
    column_VQ = keys_VM.topk(int(quota_V.max()), dim=1, largest=False).indices
    is_drawn_VQ = column_M[: column_VQ.shape[1]] < quota_V[:, None]
    return ids_VM.gather(1, column_VQ)[is_drawn_VQ].sort().values


def block_quotas(bounds: Tensor, *, num_sampled: int, offset: int, num_classes: int) -> Tensor:
    """How many classes each block [bounds[v], bounds[v + 1]) draws at the offset k."""
    return ((num_sampled * bounds + offset) // num_classes).diff()
