"""What is worth knowing of the cluster sizes. Shapes: K centroids."""

from typing import Any

import numpy as np
from torch import Tensor

QUANTILES = {"min": 0.0, "1 %": 0.01, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "99 %": 0.99, "max": 1.0}


def size_quality(counts_K: Tensor) -> dict[str, Any]:
    """Quantiles of the rows per cluster, their imbalance, and how many clusters have each size.

    The imbalance is K * sum(n^2) / N^2: 1 when all clusters are equal, K when one has all rows.
    """
    sizes_K = np.sort(counts_K.numpy())
    positions = {name: int(share * (len(sizes_K) - 1)) for name, share in QUANTILES.items()}
    sizes, clusters = np.unique(sizes_K, return_counts=True)
    squares = sum(size * size * number for size, number in zip(sizes.tolist(), clusters.tolist(), strict=True))
    return {
        "size_quantiles": {name: int(sizes_K[position]) for name, position in positions.items()},
        "imbalance": len(sizes_K) * squares / int(sizes_K.sum()) ** 2,
        "sizes": [list(pair) for pair in zip(sizes.tolist(), clusters.tolist(), strict=True)],
    }
