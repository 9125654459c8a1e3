"""Where class centers start: at random, or at the centroids that gave the classes.

``centroids`` takes the centroids as they are, where tower and embedding have the same number of dims. ``centroids_pca``
maps them into the tower's dims by their uncentred principal directions (an orthonormal map: it keeps as much of the
angles between centroids as so many dims can), or pads them with zeros.

Rows get the length that random centers have on average, INIT_STD * sqrt(D): AdamW moves every coordinate by about the
learning rate, whatever the gradient, so a step turns a center by an angle of about lr * sqrt(D) / length. Centroids
left at length 1 would turn 12 times more slowly than random centers of 64 dims, at the same learning rate.

K = C centroids and classes, E dims of the centroids, D dims of the tower.
"""

import math

import numpy as np
import torch
from torch import Tensor

from mlcd_core.errors import ConfigError
from mlcd_core.specs import TrainSpec
from mlcd_core.train.head.sharded import INIT_STD, InitialCenters

BLOCK_ROWS = 65_536  # of centroids in float64 at once: 400 MB at 768 dims
SHORTEST = 1e-6  # of a unit centroid within the kept directions


def initial_centers(
    spec: TrainSpec, centroids_KE: np.ndarray | None, *, num_classes: int, dim: int
) -> InitialCenters | None:
    """What the head starts from; None is its own random centers.

    Raises ConfigError for centroids that are absent, of another number, of dims that do not match, or without any
    length in the kept directions.
    """
    if spec.center_init == "normal":
        return None
    key = f"train.center_init={spec.center_init}"
    if centroids_KE is None:
        raise ConfigError(
            f"{key} starts from centroids and got none; pass those of the clustering, or set it to normal"
        )
    num_centroids, centroid_dim = centroids_KE.shape
    if num_centroids != num_classes:
        raise ConfigError(
            f"{key} got {num_centroids:,} centroids for {num_classes:,} classes; expected those that the labels were "
            "made with: run the label stage again, or set it to normal"
        )
    check_centroid_dim(spec, centroid_dim=centroid_dim, dim=dim)
    map_ED = None if spec.center_init == "centroids" else principal_map(centroids_KE, dim)

    def centers(classes: range) -> Tensor:
        own_CE = torch.from_numpy(np.ascontiguousarray(centroids_KE[classes.start : classes.stop]))
        own_CD = own_CE.double() if map_ED is None else own_CE.double() @ map_ED
        length_C = own_CD.norm(dim=1, keepdim=True)
        if bool((length_C < SHORTEST).any()):
            row = int(length_C.argmin())
            raise ConfigError(
                f"{key}: centroid {classes.start + row} has the length {float(length_C[row]):.1e} in the {dim} kept "
                "directions, so it has no direction to start from; set train.center_init=normal"
            )
        scaled_CD: Tensor = own_CD * (INIT_STD * math.sqrt(dim) / length_C)
        return scaled_CD

    return centers


def check_centroid_dim(spec: TrainSpec, *, centroid_dim: int, dim: int) -> None:
    """Raise ConfigError where centroids shall be taken as they are and do not have the tower's dims."""
    if spec.center_init == "centroids" and centroid_dim != dim:
        raise ConfigError(
            f"train.center_init=centroids, and train.tower={spec.tower} gives {dim} dims while the centroids have "
            f"{centroid_dim}; set train.center_init=centroids_pca or normal"
        )


def principal_map(centroids_KE: np.ndarray, dim: int) -> Tensor:
    """The orthonormal map [E, D] onto the D leading eigenvectors of C^T C, in float64; zero columns where D > E.

    An eigenvector's sign is free: its largest entry is made positive.
    """
    centroid_dim = centroids_KE.shape[1]
    gram_EE = torch.zeros(centroid_dim, centroid_dim, dtype=torch.float64)
    for first in range(0, len(centroids_KE), BLOCK_ROWS):
        block_KE = torch.from_numpy(np.ascontiguousarray(centroids_KE[first : first + BLOCK_ROWS])).double()
        gram_EE += block_KE.T @ block_KE
    vectors_ED = torch.linalg.eigh(gram_EE).eigenvectors.flip(1)[:, :dim]
    largest_D = vectors_ED.gather(0, vectors_ED.abs().argmax(dim=0, keepdim=True))
    vectors_ED = vectors_ED * largest_D.sign()
    return torch.nn.functional.pad(vectors_ED, (0, dim - vectors_ED.shape[1]))
