"""k-means over gloo ranks: any number of ranks, with any split of the rows, gives the bits of one process."""

import itertools
import random
import threading
from functools import partial

import numpy as np
import pytest
import torch.distributed as dist

from mlcd_core.errors import ConfigError, DataError, TooFewRowsError, WorkerLostError
from mlcd_core.kmeans import ArrayPoints, CentroidState, ClusterSpec, PartialSums, Saving, fit
from mlcd_core.kmeans.points import Points
from tests.distributed.harness import RankFailedError, run_ranks
from tests.unit.kmeans import oracle

SPEC = ClusterSpec(num_centroids=30, iterations=5, tolerance=0)
ROWS_ND = oracle.blobs(400, 9, 12, seed=0, noise=0.3)
# duplicates across ranks, so that which rows are distinct is a matter of all ranks together
ROWS_ND[200:260] = ROWS_ND[:60]
# more centroids than a rank offers at first as starts, so that what others may still hold counts
MANY = ClusterSpec(num_centroids=100, iterations=1, tolerance=0)
# ten starts three times over, so that clusters are empty and must be split
TWINS_KD = np.repeat(ROWS_ND[:10], 3, axis=0)
# positions where rank 0, 1, ... start; equal ones leave a rank without rows
SPLITS = {1: [0], 2: [0, 37], 3: [0, 150, 150], 4: [0, 0, 340, 341]}


def shard(rank, world_size, rows_ND=ROWS_ND):
    edges = [*SPLITS[world_size], len(rows_ND)]
    return ArrayPoints(rows_ND[edges[rank] : edges[rank + 1]], first_row=edges[rank])


def scattered_shard(rank, world_size):
    row_ids = np.random.default_rng(7).permutation(len(ROWS_ND))[rank::world_size]
    return ArrayPoints(ROWS_ND[row_ids], row_ids=row_ids)


def error_text(function):
    try:
        function()
    except (ConfigError, DataError, TooFewRowsError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fit_in_worlds_of_one_to_four(group):
    """One start of four processes serves all worlds: the smaller ones are groups of its first ranks."""
    rank, results = dist.get_rank(group), {}
    for world_size in SPLITS:
        world = dist.new_group(list(range(world_size)))
        if rank >= world_size:
            continue
        saved = []
        fit(shard(rank, world_size), SPEC, group=world, on_iteration=lambda state, kept=saved: kept.append(state))
        states = {"contiguous": saved[-1], "scattered": fit(scattered_shard(rank, world_size), SPEC, group=world).state}
        states["twins"] = fit(shard(rank, world_size), SPEC, init_KD=TWINS_KD, group=world).state
        states["many"] = fit(shard(rank, world_size), MANY, group=world).state
        for state in saved[:-1]:
            name = f"resumed after {state.iteration}"
            states[name] = fit(shard(rank, world_size), SPEC, group=world, resume=state).state
        results[world_size] = {name: list(state.to_arrow_bytes()) for name, state in states.items()}
    return results


def test_any_world_split_and_resume_gives_the_bits_of_one_process(tmp_path):
    twins = fit(ArrayPoints(ROWS_ND), SPEC, init_KD=TWINS_KD)
    assert twins.splits[0] == 20
    alone = fit(ArrayPoints(ROWS_ND), SPEC).state.to_arrow_bytes()
    expected = {"twins": twins.state.to_arrow_bytes(), "many": fit(ArrayPoints(ROWS_ND), MANY).state.to_arrow_bytes()}
    for rank, worlds in enumerate(run_ranks(fit_in_worlds_of_one_to_four, 4, tmp_path)):
        assert list(worlds) == [world_size for world_size in SPLITS if world_size > rank]
        for world_size, states in worlds.items():
            for name, data in states.items():
                assert bytes(data) == expected.get(name, alone), (rank, world_size, name)


def save_until_killed(folder, group):
    rank = dist.get_rank(group)

    def save_or_die(state):
        if rank == 0:
            (folder / f"{state.iteration}.arrow").write_bytes(state.to_arrow_bytes())
        dist.barrier(group)
        if state.iteration == 3 and rank == 1:
            raise RuntimeError("killed after iteration 3")

    fit(shard(rank, 2), SPEC, group=group, on_iteration=save_or_die)


def resume_newest(folder, group):
    newest = max(folder.glob("*.arrow"), key=lambda path: int(path.stem))
    state = CentroidState.from_arrow_bytes(newest.read_bytes())
    return list(fit(shard(dist.get_rank(group), 3), SPEC, group=group, resume=state).state.to_arrow_bytes())


def test_run_that_lost_a_rank_goes_on_with_another_number_of_ranks(tmp_path):
    with pytest.raises(RankFailedError, match=r"rank 1\n[\s\S]*killed after iteration 3"):
        run_ranks(partial(save_until_killed, tmp_path), 2, tmp_path)
    assert not (tmp_path / "4.arrow").exists()
    expected = fit(ArrayPoints(ROWS_ND), SPEC).state.to_arrow_bytes()
    for data in run_ranks(partial(resume_newest, tmp_path), 3, tmp_path):
        assert bytes(data) == expected


def fixed_blocks(rank, world_size):
    """Every world-th of 14 blocks: which blocks there are does not depend on the number of ranks."""
    every = ArrayPoints(ROWS_ND, block_rows=30)
    return Points(every.blocks[rank::world_size], every.dim)


def fit_with_partials(rank, world_size, group, resume, read_partial):
    """The end state, and on the first rank all (state, partial) that were saved; each rank's clock is its own."""
    saved, clock = [], itertools.count(step=rank + 1)
    clustering = fit(
        fixed_blocks(rank, world_size),
        SPEC,
        group=group,
        resume=resume,
        saving=Saving(
            read_partial=read_partial,
            on_partial=lambda state, partial: saved.append((state.to_arrow_bytes(), partial.to_arrow_bytes())),
            save_seconds=3,
            clock=clock.__next__,
        ),
    )
    return clustering.state.to_arrow_bytes(), saved


def read_on_first(rank, data):
    assert rank == 0, "the first rank alone has the sums"
    return PartialSums.from_arrow_bytes(data) if data else None


def stop_and_go_on_in_other_worlds(seed, group):
    """World after world goes on from a random partial of the one before, as if that had been killed there."""
    rank, draw, results, begun = dist.get_rank(group), random.Random(seed), {}, [None]
    for world_size in (1, 3, 2, 4, 1, 4, 3):
        world = dist.new_group(list(range(world_size)))
        dist.broadcast_object_list(begun, src=0, group=group)
        if rank < world_size:
            state, sums = (None, None) if begun[0] is None else begun[0]
            data, saved = fit_with_partials(
                rank,
                world_size,
                world,
                resume=CentroidState.from_arrow_bytes(state) if state else None,
                read_partial=lambda data=sums: read_on_first(rank, data),
            )
            results[f"{len(results)}: {world_size}"] = list(data)
            begun = [draw.choice(saved[: len(saved) // 2 + 1])] if saved else begun
    return results


@pytest.mark.parametrize("seed", [0, 1])
def test_iterations_stopped_anywhere_go_on_with_any_number_of_ranks(tmp_path, seed):
    expected = fit(ArrayPoints(ROWS_ND), SPEC).state.to_arrow_bytes()
    for rank, results in enumerate(run_ranks(partial(stop_and_go_on_in_other_worlds, seed), 4, tmp_path)):
        assert len(results) == [7, 5, 4, 2][rank]
        for name, data in results.items():
            assert bytes(data) == expected, (rank, name)


def saves_without_block_numbers(group):
    rank = dist.get_rank(group)
    saving = Saving(on_partial=lambda state, partial: None)
    return error_text(lambda: fit(shard(rank, 2), SPEC, group=group, saving=saving))


def test_saving_sums_asks_for_blocks_that_differ_between_ranks(tmp_path):
    for text in run_ranks(saves_without_block_numbers, 2, tmp_path):
        assert text.startswith("ConfigError: block 0 belongs to more than one rank")


def leave_in_the_second_iteration(group):
    """Rank 1 leaves its group before a block; the other two, which wait for it, are told by their collectives."""
    rank, blocks = dist.get_rank(group), itertools.count()
    world = dist.new_group([0, 1, 2])

    def before_block():
        if rank == 1 and next(blocks) == 7:
            raise InterruptedError

    try:
        fit(fixed_blocks(rank, 3), SPEC, group=world, saving=Saving(before_block=before_block))
    except (WorkerLostError, InterruptedError) as error:
        answer = type(error).__name__
    dist.destroy_process_group(world)
    del world  # the last reference closes the sockets, which tells the others
    again = fit(fixed_blocks(rank, 3), SPEC, group=group).state.to_arrow_bytes()
    return [answer, list(again)]


def test_ranks_that_lost_one_say_so_and_can_form_a_new_group(tmp_path):
    expected = fit(ArrayPoints(ROWS_ND), SPEC).state.to_arrow_bytes()
    answers = run_ranks(leave_in_the_second_iteration, 3, tmp_path)
    assert [answer for answer, _ in answers] == ["WorkerLostError", "InterruptedError", "WorkerLostError"]
    assert all(bytes(data) == expected for _, data in answers)


def errors_of_two_ranks(group):
    rank = dist.get_rank(group)
    same_rows = ArrayPoints(np.tile(ROWS_ND[:1], (100, 1)), first_row=100 * rank)
    other_dims = ArrayPoints(ROWS_ND[:, : 4 + rank])
    same_ids = ArrayPoints(ROWS_ND)
    return [
        error_text(lambda points=points: fit(points, SPEC, group=group)) for points in (same_rows, other_dims, same_ids)
    ]


def test_errors_are_raised_on_every_rank(tmp_path):
    for same_rows, other_dims, same_ids in run_ranks(errors_of_two_ranks, 2, tmp_path):
        assert same_rows.startswith("TooFewRowsError: 30 centroids from 200 usable rows, of which only 1 are distinct")
        assert other_dims.startswith("DataError: the ranks hold (rows, dims) [(400, 4), (400, 5)]")
        assert same_ids.startswith("ConfigError: row id ")


def wait_for_ever(group):
    if dist.get_rank(group) == 0:
        dist.barrier(group)
    else:
        threading.Event().wait()


def test_ranks_that_hang_are_ended(tmp_path):
    with pytest.raises(TimeoutError, match="did not finish in time"):
        run_ranks(wait_for_ever, 2, tmp_path, timeout_s=5)
