"""Recipes over gloo ranks: any number of ranks gives the bits of one process, also after a stop among others."""

import torch.distributed as dist

from mlcd_core.errors import ConfigError
from mlcd_core.kmeans import ArrayPoints, CentroidState, ClusterSpec, Saving, fit
from mlcd_core.kmeans.points import Points
from tests.distributed.harness import run_ranks
from tests.unit.kmeans import oracle

ROWS_ND = oracle.blobs(400, 9, 12, seed=0, noise=0.3)
SPECS = {
    "sample": ClusterSpec(num_centroids=30, iterations=5, tolerance=0, recipe="sample", sample_rows=5),
    # so few that the sample is doubled, by what all ranks hold together
    "tiny sample": ClusterSpec(num_centroids=1, iterations=3, tolerance=0, recipe="sample", sample_rows=4, seed=5),
    "fast": ClusterSpec(num_centroids=30, iterations=5, tolerance=0, recipe="fast", probes=1),
    "hierarchical": ClusterSpec(num_centroids=30, iterations=3, recipe="hierarchical", final_iterations=2, slices=3),
}


def fixed_blocks(rank, world_size):
    every = ArrayPoints(ROWS_ND, block_rows=30)
    return Points(every.blocks[rank::world_size], every.dim)


def run(points, spec, group=None, saved=()):
    """(end state, recall of each iteration, states of the parts so far at each call)"""
    recalls, parts = [], []
    saving = Saving(
        parts=saved, on_parts=lambda states: parts.append([list(state.to_arrow_bytes()) for state in states])
    )
    clustering = fit(
        points,
        spec,
        group=group,
        report=lambda event, values: recalls.append(values["recall"]) if event == "cluster.iteration" else None,
        saving=saving,
    )
    return list(clustering.state.to_arrow_bytes()), recalls, parts


def run_in_worlds_of_one_to_three(group):
    rank, results = dist.get_rank(group), {}
    for world_size in (1, 2, 3):
        world = dist.new_group(list(range(world_size)))
        if rank < world_size:
            results[world_size] = {
                name: run(fixed_blocks(rank, world_size), spec, world) for name, spec in SPECS.items()
            }
    return results


def test_any_number_of_ranks_gives_the_bits_and_recall_of_one_process(tmp_path):
    expected = {name: run(fixed_blocks(0, 1), spec) for name, spec in SPECS.items()}
    assert [recall is None for recall in expected["fast"][1]] == [False] * 3 + [True] * 2
    for rank, worlds in enumerate(run_ranks(run_in_worlds_of_one_to_three, 3, tmp_path)):
        assert len(worlds) == 3 - rank
        for world_size, results in worlds.items():
            for name, result in results.items():
                assert result == expected[name], (rank, world_size, name)


def stop_and_go_on_with_others(group):
    """Two ranks stop in each part in turn; three go on from there."""
    rank, answers = dist.get_rank(group), []
    pair = dist.new_group([0, 1])
    for num_calls in (1, 4, 8):
        saved = [()]
        if rank < 2:
            calls = []

            def on_parts(parts, calls=calls, num_calls=num_calls):
                calls.append(parts)
                if len(calls) == num_calls:
                    raise InterruptedError

            try:
                fit(fixed_blocks(rank, 2), SPECS["hierarchical"], group=pair, saving=Saving(on_parts=on_parts))
            except InterruptedError:
                saved = [[state.to_arrow_bytes() for state in calls[-1]]]
        dist.broadcast_object_list(saved, src=0, group=group)
        parts = tuple(CentroidState.from_arrow_bytes(data) for data in saved[0])
        end, _, more = run(fixed_blocks(rank, 3), SPECS["hierarchical"], group, saved=parts)
        answers.append([end, len(more)])
    return answers


def test_hierarchical_stopped_among_two_ranks_goes_on_among_three(tmp_path):
    end, _, parts = run(fixed_blocks(0, 1), SPECS["hierarchical"])
    assert len(parts) == 12
    for answers in run_ranks(stop_and_go_on_with_others, 3, tmp_path):
        assert answers == [[end, 11], [end, 8], [end, 4]]


def equal_block_numbers(group):
    rank = dist.get_rank(group)
    points = ArrayPoints(ROWS_ND[rank::2], row_ids=list(range(rank, 400, 2)))
    try:
        fit(points, SPECS["hierarchical"], group=group)
    except ConfigError as error:
        return str(error)
    return "no error"


def test_slices_ask_for_blocks_that_differ_between_ranks(tmp_path):
    for text in run_ranks(equal_block_numbers, 2, tmp_path):
        assert text.startswith("block 0 belongs to more than one rank")
