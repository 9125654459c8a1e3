"""Model FLOP utilisation: the share of a device's peak that the training arithmetic reaches.

Only where the peak is known; recomputed activations do not count as work.
"""

import torch

from mlcd_core.estimate import PEAK_FLOPS, PEAK_FLOPS_FLOAT32
from mlcd_core.tower_estimate import BACKWARD
from mlcd_core.train.model import Tower

# kinds of cards whose peak is known, by a part of the device's name
KINDS = {"H200": "H100/H200", "H100 80GB HBM3": "H100/H200", "A100-SXM4": "A100"}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of one device, or None where they are not known, as on any CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = PEAK_FLOPS_FLOAT32 if precision == "float32" else PEAK_FLOPS
    return next((peaks[kind] for part, kind in KINDS.items() if part in name), None)


def tower_flops(tower: Tower, image_size: int) -> int:
    """FLOPs to train the tower on one image, forward and backward."""
    return (1 + BACKWARD) * forward_flops(tower, image_size)


def forward_flops(tower: Tower, image_size: int) -> int:
    """FLOPs of the tower's products on one image."""
    from torch.utils.flop_counter import FlopCounterMode  # brings triton with it, and only GPUs need it

    was_training = tower.training
    # one image is no batch for BatchNorm; gradients stay on, or attention takes a path that is not counted
    tower.eval()
    pixels = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=tower.mean_C11.device)
    with FlopCounterMode(display=False) as counter:
        tower(pixels)
    tower.train(was_training)
    return int(counter.get_total_flops())
