import numpy as np
import pytest

from mlcd_core.errors import ConfigError, TooFewRowsError
from mlcd_core.kmeans import ArrayPoints, CentroidState, ClusterSpec, Saving, fit
from tests.unit.kmeans import oracle

ROWS_ND = oracle.normalised_rows(oracle.blobs(400, 10, 12, seed=0, noise=0.4))
# 14 blocks, the last of 10 rows: slices of 150, 130 and 120 rows
POINTS = ArrayPoints(ROWS_ND, block_rows=30)
SLICE_ROWS = [[n for n in range(400) if n // 30 % 3 == number] for number in range(3)]


def spec(num_centroids=20, iterations=4, final_iterations=2, slices=3, tolerance=0.0):
    return ClusterSpec(
        num_centroids=num_centroids,
        iterations=iterations,
        final_iterations=final_iterations,
        slices=slices,
        tolerance=tolerance,
        recipe="hierarchical",
    )


def test_slices_merge_by_weight_and_all_rows_follow_as_in_the_oracle():
    found = fit(POINTS, spec())
    centroids, counts = [], []
    for rows in SLICE_ROWS:
        num_centroids = -(-2 * 20 * len(rows) // 400)
        start_KD = oracle.hash_ranked_start(ROWS_ND[rows], rows, num_centroids, seed=0)
        slice_KD, _, counts_K, _ = oracle.lloyd(ROWS_ND[rows], start_KD, iterations=4)
        centroids += list(slice_KD[counts_K > 0])
        counts += counts_K[counts_K > 0].tolist()
    merged_MD = oracle.normalised_rows(np.array(centroids))
    start_KD = oracle.hash_ranked_start(merged_MD, list(range(len(merged_MD))), 20, seed=0)
    # a row of weight 7 is seven rows
    merged_KD, *_ = oracle.lloyd(np.repeat(merged_MD, counts, axis=0), start_KD, iterations=4)
    centroids_KD, objective, counts_K, splits = oracle.lloyd(ROWS_ND, merged_KD, iterations=2)
    assert np.array_equal(found.centroids_KD.numpy(), centroids_KD)
    assert found.objective == pytest.approx(objective, rel=0, abs=1e-14)
    assert np.array_equal(found.counts_K.numpy(), counts_K)
    assert found.splits == tuple(splits)


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_stop_in_any_part_loses_one_iteration_of_it(tolerance):
    saved = []
    saving = Saving(on_parts=lambda parts: saved.append(to_bytes(parts)))
    expected = fit(POINTS, spec(tolerance=tolerance), saving=saving)
    assert [len(parts) for parts in saved] == sorted(len(parts) for parts in saved)
    assert len(saved[-1]) == 4
    for number, data in enumerate(saved):
        parts, again = tuple(CentroidState.from_arrow_bytes(part) for part in data), []
        found = fit(POINTS, spec(tolerance=tolerance), saving=Saving(parts=parts, on_parts=again.append))
        assert [to_bytes(parts) for parts in again] == saved[number + 1 :]
        assert found.state.to_arrow_bytes() == expected.state.to_arrow_bytes()


def to_bytes(parts):
    return [state.to_arrow_bytes() for state in parts]


def test_resume_after_the_parts_does_not_cluster_slices_again():
    saved = []
    expected = fit(POINTS, spec(), on_iteration=saved.append)

    def on_parts(parts):
        raise AssertionError("a slice was clustered again")

    found = fit(POINTS, spec(), resume=saved[0], saving=Saving(on_parts=on_parts))
    assert found.state.to_arrow_bytes() == expected.state.to_arrow_bytes()


def test_events_name_the_parts():
    events = []
    fit(POINTS, spec(), report=lambda event, values: events.append((event, dict(values))))
    parts = [values for event, values in events if event == "cluster.part"]
    assert [part["part"] for part in parts] == ["slice 1 of 3", "slice 2 of 3", "slice 3 of 3", "the merge"]
    assert [part["centroids"] for part in parts] == [15, 13, 12, 20]
    assert [part["rows"] for part in parts] == [150, 130, 120, 40]
    assert [event for event, _ in events if event != "cluster.part"] == ["cluster.iteration"] * 2


def test_slices_without_rows_are_left_out():
    # three blocks, so three of five slices have rows, and the three rows of the last carry no centroid
    points = ArrayPoints(ROWS_ND[:203], block_rows=100)
    parts = []
    found = fit(points, spec(slices=5), saving=Saving(on_parts=parts.append))
    assert len(parts[-1]) == 3
    assert int(found.counts_K.sum()) == 203


def test_slices_that_carry_too_few_centroids_are_an_error():
    # slices of one block: 13 of 30 rows carry seven centroids each, one of 10 rows carries two
    with pytest.raises(TooFewRowsError, match=r"carry 93 centroids.* at least the 95 .*cluster.slices lower"):
        fit(POINTS, spec(num_centroids=95, slices=14))
    assert len(fit(POINTS, spec(num_centroids=93, slices=14)).centroids_KD) == 93


def test_duplicates_only_in_a_slice_are_an_error_that_names_it():
    rows_ND = ROWS_ND.copy()
    rows_ND[SLICE_ROWS[1]] = rows_ND[0]
    with pytest.raises(TooFewRowsError, match=r"slice 2 of 3 of a hierarchical clustering: .*only 1 are distinct"):
        fit(ArrayPoints(rows_ND, block_rows=30), spec())


def test_parts_of_other_data_or_another_spec_are_an_error():
    saved = []
    fit(POINTS, spec(), saving=Saving(on_parts=saved.append))
    with pytest.raises(ConfigError, match="start without resume"):
        fit(POINTS, spec(num_centroids=19), saving=Saving(parts=saved[-1]))
    with pytest.raises(ConfigError, match="expected at most 3"):
        fit(POINTS, spec(slices=2), saving=Saving(parts=saved[-1]))


def test_given_start_is_used_as_it_is():
    start_KD = oracle.on_grid(ROWS_ND[:20].astype(np.float64))
    found = fit(POINTS, spec(), init_KD=start_KD)
    assert np.array_equal(found.centroids_KD.numpy(), oracle.lloyd(ROWS_ND, start_KD, iterations=2)[0])
