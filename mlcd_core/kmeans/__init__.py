"""Spherical k-means whose result is a mathematical function of its rows.

``fit`` finds the centroids, ``nearest_centroids`` the exact top L of each row. Both give the same bits for any tile
size, thread count, number of ranks, row order or restart; ``exact`` says why.
"""

from mlcd_core.kmeans.assign import Neighbors, nearest_centroids
from mlcd_core.kmeans.lloyd import Clustering, fit
from mlcd_core.kmeans.partial import PartialSums
from mlcd_core.kmeans.points import ArrayPoints
from mlcd_core.kmeans.saving import Saving
from mlcd_core.kmeans.state import CentroidState
from mlcd_core.specs import ClusterSpec

__all__ = [
    "ArrayPoints",
    "CentroidState",
    "ClusterSpec",
    "Clustering",
    "Neighbors",
    "PartialSums",
    "Saving",
    "fit",
    "nearest_centroids",
]
