"""The sharded head and one training step at 1, 2 and 4 gloo ranks: the same numbers as in one process."""

from dataclasses import asdict, replace

import pytest
import torch

from mlcd_core.train.head import HeadSpec, ShardedHead
from mlcd_core.train.ranks import Ranks
from mlcd_core.train.step import new_trainee, train_step
from tests.distributed.harness import RankFailedError, run_ranks
from tests.unit.train.head_cases import CASES, DIM, parity, relative
from tests.unit.train.tiny import BATCH_ROWS, NUM_CLASSES, global_batch, tiny_spec


def sampled_and_initial(group):
    """What must not depend on the world size: drawn classes, and this rank's initial centers."""
    head = ShardedHead(HeadSpec(negative_ratio=0.1), 2_500, DIM, group=group, seed=3)
    return {"sampled": head.sampled_ids(11), "ids": head.class_ids_C, "centers": head.centers_CD}


def two_steps(group, dtype_name, clip_norm, accumulation):
    """Tower and this rank's centers after two steps on two global batches, and the losses and norms."""
    ranks = Ranks(group)
    spec = tiny_spec(clip_norm=clip_norm, center_weight_decay=0.1, accumulation=accumulation)
    trainee = new_trainee(
        spec, num_classes=NUM_CLASSES, device=torch.device("cpu"), group=group, dtype=getattr(torch, dtype_name)
    )
    numbers = []
    for step in range(2):
        batch, rows = global_batch(step), BATCH_ROWS // ranks.size
        own = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
        own_batch = replace(batch, pixels_BCHW=batch.pixels_BCHW[own], positives_BL=batch.positives_BL[own])
        result = train_step(trainee, own_batch, step=step, rate_share=1.0)
        numbers += [float(result.output.loss.detach()), result.gradient_norm]
    trainee.head.optimizer.settle()
    tower = torch.cat([parameter.detach().flatten() for parameter in trainee.tower.parameters()])
    return {"tower": tower, "centers": trainee.head.centers_CD, "numbers": torch.tensor(numbers).double()}


# the clip works, and does not; the rank's rows come at once, and in pieces
STEPS = [("float64", 0.5, 2, 1e-10), ("float64", 1000.0, 1, 1e-10), ("float32", 0.5, 1, 1e-5)]


def everything(group):
    return {
        "parities": [asdict(parity(case, group)) for case in CASES],
        "draw": sampled_and_initial(group),
        "steps": [two_steps(group, *case[:3]) for case in STEPS],
    }


def uneven_batches(group):
    rows = 3 + Ranks(group).rank
    head = ShardedHead(HeadSpec(), 64, DIM, group=group)
    head(torch.randn(rows, DIM), torch.zeros(rows, 1, dtype=torch.int64), step=0)


@pytest.fixture(scope="module", params=[2, 4])
def found_by_rank(request, tmp_path_factory):
    """What each rank computed; one start of the ranks serves all comparisons."""
    return run_ranks(everything, request.param, tmp_path_factory.mktemp("ranks"))


def test_loss_and_gradients_equal_the_dense_reference_on_every_rank(found_by_rank):
    for rank, found in enumerate(found_by_rank):
        for case, differences in zip(CASES, found["parities"], strict=True):
            assert max(differences.values()) <= 1e-10, (rank, case, differences)


def test_sampled_classes_and_initial_centers_do_not_depend_on_the_world_size(found_by_rank):
    alone, draws = sampled_and_initial(None), [found["draw"] for found in found_by_rank]
    assert all(torch.equal(draw["sampled"], alone["sampled"]) for draw in draws)
    assert torch.equal(torch.cat([draw["ids"] for draw in draws]), alone["ids"])
    assert torch.equal(torch.cat([draw["centers"] for draw in draws]), alone["centers"])


@pytest.mark.parametrize("case", range(len(STEPS)), ids=str)
def test_steps_of_tower_and_head_give_the_weights_of_one_process(found_by_rank, case):
    dtype_name, clip_norm, _, tolerance = STEPS[case]
    alone = two_steps(None, dtype_name, clip_norm, accumulation=1)
    centers_CD = torch.cat([found["steps"][case]["centers"] for found in found_by_rank])
    assert relative(centers_CD, alone["centers"]) <= tolerance
    for found in found_by_rank:
        assert relative(found["steps"][case]["tower"], alone["tower"]) <= tolerance
        assert relative(found["steps"][case]["numbers"], alone["numbers"]) <= tolerance


def test_batches_of_different_sizes_are_refused_on_every_rank(tmp_path):
    with pytest.raises(RankFailedError, match=r"different \[rows, labels, step\]"):
        run_ranks(uneven_batches, 2, tmp_path)
