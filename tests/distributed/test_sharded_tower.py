"""A tower that FSDP2 splits over two gloo ranks: the numbers of a whole one, in half the memory, same files."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from mlcd_core.errors import ConfigError, TrainingStopped
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.train import Start, build_tower, checkpoint, train
from mlcd_core.train.ranks import Ranks
from mlcd_core.train.sharded_tower import is_sharded, transformer_blocks
from mlcd_core.train.start import begin_from
from mlcd_core.train.step import new_trainee, train_step
from tests.distributed.harness import run_ranks
from tests.unit.train.head_cases import relative
from tests.unit.train.tiny import (
    BATCH_ROWS,
    NUM_CLASSES,
    TINY_VIT,
    global_batch,
    open_tiny_data,
    tiny_chain,
    tiny_spec,
    write_tiny_data,
)

CPU = torch.device("cpu")
NUM_STEPS = 4
CLIP_NORM = 0.5
# tower, precision, pieces, recomputed activations
CASES = [
    ("conv-tiny", "float32", 2, True),
    ("timm:test_vit", "float32", 2, True),
    ("timm:test_vit", "bfloat16", 1, False),
]
SPEC = tiny_spec(epochs=1, ema_decay=0.9, accumulation=2)


def whole(tensors):
    """Copies of tensors, put together from the ranks' parts."""
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for name, t in tensors.items()}


def flat(tensors):
    return torch.cat([tensor.detach().flatten().double() for _, tensor in sorted(tensors.items())])


def stepped(group, sharded, tower, precision, pieces, recompute):
    """Weights and numbers after some steps."""
    spec = tiny_spec(tower=tower, precision=precision, accumulation=pieces, clip_norm=CLIP_NORM, ema_decay=0.9)
    trainee = new_trainee(
        spec, num_classes=NUM_CLASSES, device=CPU, group=group, recompute_activations=recompute, sharded=sharded
    )
    assert is_sharded(trainee.tower) == sharded
    ranks, numbers = Ranks(group), []
    rows = BATCH_ROWS // ranks.size
    own = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
    for step in range(NUM_STEPS):
        batch = global_batch(step)
        own_batch = replace(batch, pixels_BCHW=batch.pixels_BCHW[own], positives_BL=batch.positives_BL[own])
        result = train_step(trainee, own_batch, step=step, rate_share=1.0)
        numbers.append([float(result.output.loss.detach()), result.gradient_norm])
    return {
        "tower": flat(whole(trainee.tower.state_dict())),
        "average": flat(whole(trainee.average.state)),
        "centers": trainee.head.centers_CD.clone(),
        "numbers": torch.tensor(numbers),
    }


def run(group, folder, root, *, sharded, stop=False):
    """The digests of the last link, or none where the run was told to stop after its first step."""
    try:
        link = train(
            SPEC,
            open_tiny_data(Path(folder)),
            num_classes=NUM_CLASSES,
            chain=tiny_chain(Path(root), SPEC),
            group=group,
            runtime=TrainRuntime(device="cpu", shard_tower=sharded),
            stop=lambda: stop,
        )
    except TrainingStopped:
        return None
    return {part.name: part.sha256 for part in link.parts}


def loaded(group, root):
    """A sharded trainee at the end of a run, and one that starts from that run."""
    chain = tiny_chain(Path(root), SPEC)
    link = chain.newest()
    resumed, fresh = (
        new_trainee(spec, num_classes=NUM_CLASSES, device=CPU, group=group, sharded=True)
        for spec in (SPEC, tiny_spec(seed=9, ema_decay=0.9))
    )
    checkpoint.load(resumed, chain, link)
    begin_from(fresh, Start(link.parts, chain.read))
    return {
        "started": whole(fresh.tower.state_dict()),
        "average": whole(fresh.average.state),
        "bytes": bytes_held(resumed),
    }


def bytes_held(trainee):
    """Of this rank's parts of the tower, by what they are."""
    parameters = list(trainee.tower.parameters())
    states = [trainee.optimizer.state[parameter] for parameter in parameters]
    return {
        "parameters": stored(parameters),
        "gradient": stored([trainee.gradient]),
        "exp_avg": stored([state["exp_avg"] for state in states]),
        "exp_avg_sq": stored([state["exp_avg_sq"] for state in states]),
        "average": stored(trainee.average.state.values()),
    }


def stored(tensors):
    own = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.untyped_storage().nbytes() for tensor in own)


def everything(group, folder):
    found = {
        "steps": [{sharded: stepped(group, sharded, *case) for sharded in (False, True)} for case in CASES],
        "undisturbed": run(group, folder, folder / "undisturbed", sharded=True),
    }
    for name in ("sharded", "whole"):
        assert run(group, folder, folder / name, sharded=name == "sharded", stop=True) is None
    if Ranks(group).rank == 0:
        shutil.copytree(folder / "sharded", folder / "on-one")
    dist.barrier(group)
    for name in ("sharded", "whole"):
        found[name] = run(group, folder, folder / name, sharded=True)
    return found | {"loaded": loaded(group, folder / "undisturbed")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    write_tiny_data(folder)
    return folder


@pytest.fixture(scope="module")
def found_by_rank(folder):
    """What both ranks found; one start of them serves all comparisons."""
    return run_ranks(partial(everything, folder=folder), 2, folder, timeout_s=300)


def saved(root):
    """The tensors of the newest link, by part and first word of their names; those of all class blocks together."""
    chain, kinds = tiny_chain(root, SPEC), {}
    for part in sorted(chain.newest().parts, key=lambda part: part.name):
        if part.path.endswith(".safetensors"):
            for name, tensor in safetensors.torch.load(chain.read(part)).items():
                kind = (part.name.partition("-0")[0], name.partition(".")[0])
                kinds.setdefault(kind, {})[part.name + name] = tensor
    return kinds


@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_clipped_steps_of_a_split_tower_give_the_weights_of_a_whole_one(found_by_rank, case):
    for found in found_by_rank:
        steps = found["steps"][case]
        assert steps[False]["numbers"][:, 1].min() > CLIP_NORM
        for name, expected in steps[False].items():
            assert relative(steps[True][name], expected) <= 1e-6, name


def test_each_rank_holds_half_of_weights_gradients_moments_and_average(found_by_rank):
    tower = build_tower("conv-tiny", image_size=16, seed=0)
    tower_bytes = sum(parameter.numel() * 4 for parameter in tower.parameters())
    for found in found_by_rank:
        for name, held in found["loaded"]["bytes"].items():
            assert held == pytest.approx(tower_bytes / 2, rel=0.01), name


def test_a_split_tower_is_saved_and_resumed_split_with_the_bytes_of_an_undisturbed_run(found_by_rank):
    for found in found_by_rank:
        assert found["sharded"] == found["undisturbed"]


def test_split_and_whole_towers_resume_from_each_other(found_by_rank, folder):
    assert run(None, folder, folder / "on-one", sharded=True)
    undisturbed = saved(folder / "undisturbed")
    expected = {("tower", "body"), ("tower-ema", "body"), ("tower-optimizer", "exp_avg_sq"), ("block", "center")}
    assert expected < undisturbed.keys()
    for root in ("on-one", "whole"):
        resumed = saved(folder / root)
        assert resumed.keys() == undisturbed.keys()
        for kind, tensors in undisturbed.items():
            assert relative(flat(resumed[kind]), flat(tensors)) <= 1e-6, (root, kind)


def test_a_split_tower_starts_from_the_averaged_weights_of_another_run(found_by_rank, folder):
    expected = saved(folder / "undisturbed")["tower-ema", "body"]
    for found in found_by_rank:
        for name in ("started", "average"):
            weights = found["loaded"][name]
            assert {f"tower-ema{key}" for key in weights} == expected.keys()
            assert all(torch.equal(tensor, expected[f"tower-ema{key}"]) for key, tensor in weights.items())


@pytest.mark.parametrize(("name", "blocks"), [("conv-tiny", 0), ("timm:test_vit", 6), ("open_clip:ViT-tiny", 2)])
def test_transformer_blocks_are_put_together_on_their_own(name, blocks, monkeypatch):
    import open_clip  # the ranks import this file too, and do without

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny", TINY_VIT)
    found = transformer_blocks(build_tower(name, image_size=16, seed=0))
    assert len(found) == blocks
    assert all("Block" in type(block).__name__ for block in found)


def test_one_rank_has_nothing_to_split():
    trainee = new_trainee(tiny_spec(), num_classes=NUM_CLASSES, device=CPU, sharded=True)
    assert not is_sharded(trainee.tower)


def test_a_split_tower_is_not_compiled():
    with pytest.raises(ConfigError, match=r"train.shard_tower=true and train.compile=true"):
        new_trainee(tiny_spec(compile=True), num_classes=NUM_CLASSES, device=CPU, sharded=True)
