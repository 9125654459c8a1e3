"""Partial sums: an iteration that was stopped anywhere goes on to the bits of the undisturbed run, each row once."""

import gc
import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from mlcd_core.errors import ConfigError, CorruptRecordError
from mlcd_core.kmeans import ArrayPoints, CentroidState, ClusterSpec, PartialSums, Saving, fit
from mlcd_core.tables import sums_schema
from tests.unit.kmeans import oracle

SPEC = ClusterSpec(num_centroids=12, iterations=4, tolerance=0)
ROWS_ND = oracle.blobs(200, 7, 9, seed=5)
BLOCK_ROWS = 30  # seven blocks


def points():
    return ArrayPoints(ROWS_ND, block_rows=BLOCK_ROWS)


def ticks():
    """A clock that is one second later whenever it is read."""
    return itertools.count().__next__


def going_on(partial):
    return Saving(read_partial=lambda: partial)


def run_with_saves(save_seconds, resume=None, partial=None):
    saved = []
    clustering = fit(
        points(),
        SPEC,
        resume=resume,
        saving=Saving(
            read_partial=lambda: partial,
            on_partial=lambda state, partial: saved.append((state.to_arrow_bytes(), partial.to_arrow_bytes())),
            save_seconds=save_seconds,
            clock=ticks(),
        ),
    )
    return clustering.state.to_arrow_bytes(), saved


def read(saved):
    state, partial = saved
    return CentroidState.from_arrow_bytes(state), PartialSums.from_arrow_bytes(partial)


# a clock that ticks once a block: 0 seconds save after each, 3 after three, 1000 never
@pytest.mark.parametrize(("save_seconds", "blocks"), [(0, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (1000, [])])
def test_rounds_end_when_their_time_is_over_and_change_no_bit(save_seconds, blocks):
    expected = fit(points(), SPEC).state.to_arrow_bytes()
    found, saved = run_with_saves(save_seconds)
    assert found == expected
    partials = [read(one) for one in saved]
    assert [partial.num_blocks for _, partial in partials] == blocks * SPEC.iterations
    assert [partial.iteration for _, partial in partials] == [state.iteration for state, _ in partials]


def test_going_on_from_any_partial_gives_the_bits_of_the_undisturbed_run():
    expected, saved = run_with_saves(0)
    for number, one in enumerate(saved):
        state, partial = read(one)
        found, later = run_with_saves(0, resume=state, partial=partial)
        assert found == expected
        assert [read(one)[1].num_blocks for one in later] == [read(one)[1].num_blocks for one in saved[number + 1 :]]


def test_partial_holds_each_row_of_its_blocks_once():
    _, saved = run_with_saves(0)
    for state, partial in map(read, saved):
        in_blocks = partial.done_B.numpy().nonzero()[0]
        rows = np.concatenate([np.arange(BLOCK_ROWS * b, min(BLOCK_ROWS * (b + 1), 200)) for b in in_blocks])
        chosen_ND = oracle.normalised_rows(ROWS_ND)[rows]
        labels_N = oracle.top_labels(chosen_ND, state.centroids_KD.numpy(), 1)[0][:, 0]
        sums_KD = np.zeros((12, 7))
        np.add.at(sums_KD, labels_N, chosen_ND.astype(np.float64))
        assert np.array_equal(partial.sums_KD.numpy(), sums_KD)
        assert np.array_equal(partial.counts_K.numpy(), np.bincount(labels_N, minlength=12))
        assert partial.tally.rows == len(rows)


def test_a_partial_that_was_used_or_handed_out_is_not_changed_by_going_on():
    kept = []
    keep = Saving(on_partial=lambda _, partial: kept.append((partial, partial.sums_KD.clone())), save_seconds=0)
    fit(points(), SPEC, saving=keep)
    assert kept
    _, saved = run_with_saves(0)
    state, partial = read(saved[2])
    kept.append((partial, partial.sums_KD.clone()))
    fit(points(), SPEC, resume=state, saving=going_on(partial))
    for handed_out, sums_KD in kept:
        assert torch.equal(handed_out.sums_KD, sums_KD)


def test_saved_sums_are_read_once_and_no_sums_outlive_their_iteration():
    _, saved = run_with_saves(0)
    state, data = CentroidState.from_arrow_bytes(saved[2][0]), saved[2][1]
    reads, alive = [], []

    def read_partial():
        reads.append(1)
        return PartialSums.from_arrow_bytes(data)

    def count_sums(_):
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        alive.append(sum(each.dtype == torch.float64 and each.shape == (12, 7) for each in tensors))

    saving = Saving(read_partial=read_partial, on_partial=lambda *_: None, save_seconds=0)
    fit(points(), SPEC, resume=state, saving=saving, on_iteration=count_sums)
    assert len(reads) == 1
    assert alive == [0] * SPEC.iterations


def test_changed_share_is_known_again_one_iteration_after_a_partial():
    whole = fit(points(), SPEC)
    _, saved = run_with_saves(3)
    state, partial = read(saved[2])  # three of seven blocks of the second iteration
    resumed = fit(points(), SPEC, resume=state, saving=going_on(partial))
    assert resumed.changed_shares == (None, None, *whole.changed_shares[3:])
    assert None not in whole.changed_shares[1:]


def test_rows_of_the_event_are_those_that_were_summed_here():
    _, saved = run_with_saves(3)
    state, partial = read(saved[2])
    events = []
    fit(
        points(),
        SPEC,
        resume=state,
        saving=replace(going_on(partial), clock=ticks()),
        report=lambda _, values: events.append(dict(values)),
    )
    assert [event["rows"] for event in events] == [200 - 3 * BLOCK_ROWS, 200, 200]
    assert all(event["seconds"] > 0 for event in events)


def test_partial_of_another_state_spec_or_cut_into_blocks_is_an_error():
    _, saved = run_with_saves(0)
    state, partial = read(saved[0])
    later, _ = read(saved[-1])
    other_blocks = ArrayPoints(ROWS_ND, block_rows=50)
    for rows, resume, wrong in (
        (points(), later, partial),
        (points(), state, replace(partial, sums_KD=partial.sums_KD[:5], counts_K=partial.counts_K[:5])),
        (points(), state, replace(partial, num_rows=199)),
        (other_blocks, state, partial),
    ):
        with pytest.raises(ConfigError, match="start without partial"):
            fit(rows, SPEC, resume=resume, saving=going_on(wrong))


def test_leaving_before_a_block_raises_what_was_raised():
    blocks = itertools.count()

    def leave():
        if next(blocks) == 9:
            raise InterruptedError("told to leave")

    with pytest.raises(InterruptedError):
        fit(points(), SPEC, saving=Saving(before_block=leave))
    assert next(blocks) == 10


def test_bytes_bring_back_every_field_and_are_the_documented_table():
    _, saved = run_with_saves(3)
    data = saved[0][1]
    partial = PartialSums.from_arrow_bytes(data)
    assert partial.to_arrow_bytes() == data
    assert (partial.num_rows, partial.iteration, partial.done_B.tolist()) == (200, 0, [True] * 3 + [False] * 4)
    assert (partial.tally.rows, partial.tally.changed, partial.tally.unknown) == (90, 0, 90)
    table = pa.ipc.open_file(data).read_all()
    assert table.schema.equals(sums_schema(7), check_metadata=False)
    assert sum(table.column("count").to_pylist()) == 90


def test_damaged_or_other_files_are_an_error_with_the_fix():
    (state, partial), *_ = run_with_saves(3)[1]
    for data in (b"", b"not arrow", partial[:-20], partial[:100], state):
        with pytest.raises(CorruptRecordError, match="delete it and run again"):
            PartialSums.from_arrow_bytes(data)
    with pytest.raises(CorruptRecordError):
        CentroidState.from_arrow_bytes(partial)
