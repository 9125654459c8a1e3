"""Training: towers against cluster labels with a sharded head; the loop, its data, its checkpoints."""

from mlcd_core.train.checkpoint import load_tower, ran_on, tower_part_name, whole_curve
from mlcd_core.train.checks import check_tower
from mlcd_core.train.labels import TrainData
from mlcd_core.train.loop import train
from mlcd_core.train.model import Tower, build_tower
from mlcd_core.train.start import Start
from mlcd_core.train.tower_cost import tower_cost

__all__ = [
    "Start",
    "Tower",
    "TrainData",
    "build_tower",
    "check_tower",
    "load_tower",
    "ran_on",
    "tower_cost",
    "tower_part_name",
    "train",
    "whole_curve",
]
