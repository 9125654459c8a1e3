"""Checkpoints: one safetensors file per class block, the tower, its optimizer, and a small state.

Every rank writes its own blocks; rank 0 writes the rest and appends the link that makes the checkpoint count. Files
are by class block, not by rank, so any allowed world size can load them, reading only the blocks it owns. Equal
weights are equal bytes. No pickle. A link's number is the global step: how many steps are done. Where the tower's
weights are averaged, the average is a part of its own.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mlcd_core.errors import CorruptRecordError, TrainingError
from mlcd_core.identity import canonical_json, spec_fingerprint
from mlcd_core.specs import TrainSpec
from mlcd_core.store import Chain, Part, Receipt
from mlcd_core.train.head import ShardedHead
from mlcd_core.train.model import Tower, build_tower
from mlcd_core.train.sharded_tower import load_whole, split_like, whole_tensors
from mlcd_core.train.step import Trainee

TOWER_PART = "tower"
EMA_PART = "tower-ema"
TOWER_OPTIMIZER_PART = "tower-optimizer"
HEAD_PART = "head"
STATE_PART = "state"


def save(trainee: Trainee, chain: Chain, *, step: int, epoch: int, records: list[dict[str, float]]) -> Receipt:
    """Write the state after ``step`` steps and append its link; all ranks call it and get the link that stands.

    records: what was logged since the link before; the link's ``state["curve"]``. Where another writer's link was first
    and differs, that one is loaded: what stands is what goes on.
    """
    head, ranks = trainee.head, trainee.head.ranks
    own = [_put(chain, block_name(block), head.block_state(block)) for block in filled_blocks(head)]
    for name, tensors in _tower_tensors(trainee).items():
        whole = whole_tensors(tensors, keep=ranks.rank == 0)
        own += [_put(chain, name, whole)] if ranks.rank == 0 else []
    if ranks.rank == 0:
        own += [
            _put(chain, HEAD_PART, head.common_state()),
            chain.put(STATE_PART, ".json", canonical_json(_state(trainee, step=step, epoch=epoch)).encode()),
        ]
    parts = sorted((part for rank_parts in ranks.gathered(own) for part in rank_parts), key=lambda part: part.name)
    where = {"world_size": ranks.size, "threads": torch.get_num_threads(), "device": head.device.type}
    state = {"step": step, "epoch": epoch, "ran_on": where, "curve": records}
    link: Receipt = ranks.from_first(chain.append(step, parts, state) if ranks.rank == 0 else None)
    if list(link.parts) != parts:
        load(trainee, chain, link)
    return link


def whole_curve(chain: Chain, last: Receipt) -> list[dict[str, float]]:
    """What was logged up to ``last``, by step: each link holds a piece, and the latest of equal steps counts."""
    by_step = {record["step"]: record for link in _links_to(chain, last) for record in link.state["curve"]}
    return [by_step[step] for step in sorted(by_step)]


def ran_on(chain: Chain, last: Receipt) -> list[dict[str, Any]]:
    """Where the steps up to ``last`` were computed, which can show in the last bits of the weights.

    One entry as long as nothing changes: ``world_size``, ``threads`` of each rank, ``device``, and ``to_step``.
    """
    pieces: list[dict[str, Any]] = []
    for link in _links_to(chain, last):
        where = link.state["ran_on"]
        if pieces and all(pieces[-1][name] == value for name, value in where.items()):
            pieces[-1]["to_step"] = link.number
        else:
            pieces.append({**where, "to_step": link.number})
    return pieces


def load(trainee: Trainee, chain: Chain, link: Receipt) -> None:
    """Make the trainee what it was after ``link.number`` steps.

    Raises TrainingError for a checkpoint of another spec or clustering, CorruptRecordError for a part that is missing
    or changed.
    """
    head, parts = trainee.head, {part.name: part for part in link.parts}
    _check_state(trainee, json.loads(part_bytes(chain.read, parts, STATE_PART)), link.number)
    for block in filled_blocks(head):
        saved = part_tensors(chain.read, parts, block_name(block))
        for name, tensor in head.block_state(block).items():
            tensor.copy_(saved[name])
    head.load_common_state(part_tensors(chain.read, parts, HEAD_PART))
    load_whole(trainee.tower, part_tensors(chain.read, parts, TOWER_PART))
    _restore_optimizer(trainee, part_tensors(chain.read, parts, TOWER_OPTIMIZER_PART))
    if trainee.average is not None:
        trainee.average.load(part_tensors(chain.read, parts, EMA_PART))


def load_tower(spec: TrainSpec, tower_part: bytes) -> Tower:
    """The trained tower from the bytes of a manifest's part ``tower_part_name(spec)``, on the CPU, for evaluation."""
    import safetensors.torch

    tower = build_tower(spec.tower, image_size=spec.image_size, seed=spec.seed)
    tower.load_state_dict(safetensors.torch.load(tower_part))
    return tower.eval()


def tower_part_name(spec: TrainSpec) -> str:
    """The part of a manifest that holds the tower to use: the averaged one where there is one."""
    return EMA_PART if spec.ema_decay > 0 else TOWER_PART


def block_name(block: int) -> str:
    """The part that holds a class block."""
    return f"block-{block:04d}"


def filled_blocks(head: ShardedHead) -> list[int]:
    """This rank's blocks that have classes."""
    return [block for block in head.blocks if len(head.partition.classes(range(block, block + 1)))]


def part_tensors(read: Callable[[Part], bytes], parts: Mapping[str, Part], name: str) -> dict[str, Tensor]:
    """The tensors of one part. Raises CorruptRecordError where a checkpoint lacks it."""
    import safetensors.torch

    tensors: dict[str, Tensor] = safetensors.torch.load(part_bytes(read, parts, name))
    return tensors


def part_bytes(read: Callable[[Part], bytes], parts: Mapping[str, Part], name: str) -> bytes:
    """The bytes of one part. Raises CorruptRecordError where a checkpoint lacks it."""
    if name not in parts:
        raise CorruptRecordError(
            f"a checkpoint has no part {name!r}, it has {', '.join(sorted(parts))}; "
            "delete that link's receipt and run again: training goes on from the link before"
        )
    return read(parts[name])


def _links_to(chain: Chain, last: Receipt) -> list[Receipt]:
    # of a link that was made again, the later counts
    by_number = {link.number: link for link in chain.links() if link.number <= last.number}
    return list(by_number.values())


def _put(chain: Chain, name: str, tensors: Mapping[str, Tensor]) -> Part:
    import safetensors.torch

    whole = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    return chain.put(name, ".safetensors", safetensors.torch.save(whole))


def _tower_tensors(trainee: Trainee) -> dict[str, Mapping[str, Tensor]]:
    """What is kept of the tower, by part; where the tower is sharded, these tensors are too."""
    tensors: dict[str, Mapping[str, Tensor]] = {
        TOWER_PART: trainee.tower.state_dict(),
        TOWER_OPTIMIZER_PART: _optimizer_tensors(trainee),
    }
    return tensors | ({EMA_PART: trainee.average.state} if trainee.average else {})


def _state(trainee: Trainee, *, step: int, epoch: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": epoch,
        "spec": spec_fingerprint(trainee.spec),
        "num_classes": trainee.head.num_classes,
        "dim": trainee.head.dim,
    }


def _check_state(trainee: Trainee, found: dict[str, Any], step: int) -> None:
    expected = _state(trainee, step=step, epoch=found["epoch"])
    if found != expected:
        differing = [
            f"{key} {found.get(key)!r}, expected {expected[key]!r}"
            for key in expected
            if found.get(key) != expected[key]
        ]
        raise TrainingError(
            f"the checkpoint of step {step} is of another run: {'; '.join(differing)}; "
            "train into its own root, or delete that chain"
        )


def _optimizer_tensors(trainee: Trainee) -> dict[str, Tensor]:
    state = trainee.optimizer.state
    return {
        f"{kind}.{name}": tensor for name, parameter in _trained(trainee) for kind, tensor in state[parameter].items()
    }


def _restore_optimizer(trainee: Trainee, saved: dict[str, Tensor]) -> None:
    for name, parameter in _trained(trainee):
        whole = {kind: saved[f"{kind}.{name}"].to(parameter.device) for kind in ("exp_avg", "exp_avg_sq")}
        moments = {kind: split_like(moment, parameter) for kind, moment in whole.items()}
        trainee.optimizer.state[parameter] = {"step": saved[f"step.{name}"], **moments}


def _trained(trainee: Trainee) -> list[tuple[str, Parameter]]:
    return [named for named in trainee.tower.named_parameters() if named[1].requires_grad]
