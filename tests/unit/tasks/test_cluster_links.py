"""Iterations and partial sums as links: numbers grow, the newest link alone is enough to go on."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mlcd_core.kmeans import ArrayPoints, Saving, fit
from mlcd_core.specs import ClusterSpec
from mlcd_core.store import Chain, LocalFiles, StageFolder
from tasks.cluster_actors import death_reason
from tasks.cluster_links import LinkWriter, links_before, read_parts, read_state, read_sums, seen_iterations
from tests.unit.kmeans import oracle

SPEC = ClusterSpec(num_centroids=8, iterations=4, tolerance=0)
HIERARCHICAL = SPEC.model_copy(update={"recipe": "hierarchical", "final_iterations": 2, "slices": 2})
POINTS = ArrayPoints(oracle.blobs(150, 6, 5, seed=0), block_rows=40)
NUM_BLOCKS = 4


def chain(root: Path, spec: ClusterSpec = SPEC) -> Chain:
    last_number = links_before(spec) + spec.most_iterations * NUM_BLOCKS
    return Chain(StageFolder(LocalFiles(root), spec), {"embed": "e" * 64}, 1, last_number)


class StoppedError(Exception):
    """The run was stopped here."""


def run(
    root: Path,
    *,
    spec: ClusterSpec = SPEC,
    stop_after_blocks: int = 10**9,
    save_every: int = 1,
    save_seconds: float = 0,
) -> bytes:
    """Go on from the newest link, save each round, and stop before a block."""
    links, blocks = chain(root, spec), count()
    newest = links.newest()
    writer = LinkWriter(links, newest, num_blocks=NUM_BLOCKS, save_every=save_every, num_before=links_before(spec))

    def before_block() -> None:
        if next(blocks) == stop_after_blocks:
            raise StoppedError

    saving = Saving(
        read_partial=lambda: read_sums(links, newest),
        parts=read_parts(links, newest),
        on_partial=writer.save_partial,
        on_parts=writer.save_parts,
        save_seconds=save_seconds,
        before_block=before_block,
    )
    clustering = fit(
        POINTS,
        spec,
        resume=read_state(links, newest),
        saving=saving,
        on_iteration=writer.end_iteration,
        report=writer.see,
    )
    return clustering.state.to_arrow_bytes()


def numbers(root: Path, spec: ClusterSpec = SPEC) -> list[int]:
    return [link.number for link in chain(root, spec).links()]


def test_each_round_and_each_iteration_is_a_link_and_numbers_grow(tmp_path: Path) -> None:
    run(tmp_path)
    assert numbers(tmp_path) == list(range(1, 17))


def test_a_run_stopped_after_every_block_ends_with_the_bits_of_the_undisturbed_one(tmp_path: Path) -> None:
    for _ in range(15):
        with pytest.raises(StoppedError):
            run(tmp_path, stop_after_blocks=1, save_every=3)
    assert run(tmp_path, stop_after_blocks=1, save_every=3) == fit(POINTS, SPEC).state.to_arrow_bytes()
    # also the ends of iterations that need not be saved: what came after the partial link before would be lost
    assert numbers(tmp_path) == list(range(1, 17))


def test_ends_of_short_iterations_are_saved_as_often_as_asked(tmp_path: Path) -> None:
    run(tmp_path, save_every=3, save_seconds=1000)
    assert numbers(tmp_path) == [12]


def test_centroids_of_an_iteration_are_kept_while_a_partial_link_needs_them(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, stop_after_blocks=7)  # three blocks into the second iteration
    links = chain(tmp_path)
    newest = links.newest()
    assert newest is not None
    assert newest.number == 7
    data = {path.name for path in (tmp_path / links.folder.prefix / "data").iterdir()}
    # links 6 and 7: the centroids that both began from, and the sums of each
    assert len(data) == 3
    assert [part.path.rpartition("/")[2] in data for part in newest.parts] == [True, True]
    state, partial = read_state(links, newest), read_sums(links, newest)
    assert state is not None
    assert partial is not None
    assert (state.iteration, partial.iteration, partial.num_blocks) == (1, 1, 3)


def test_what_was_seen_of_iterations_is_carried_over_a_stop(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, stop_after_blocks=10)
    run(tmp_path)
    newest = chain(tmp_path).newest()
    assert newest is not None
    seen = seen_iterations(newest)
    assert list(seen) == [1, 2, 3, 4]
    whole = fit(POINTS, SPEC)
    shares: list[Any] = [one["changed_share"] for one in seen.values()]
    assert shares == [None, whole.changed_shares[1], None, None]
    assert [one["rows"] for one in seen.values()] == [150, 150, 150 - 80, 150]


def test_a_stopped_run_without_partial_links_starts_its_iteration_again(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, stop_after_blocks=10, save_seconds=1000)
    assert numbers(tmp_path) == [4, 8]
    assert run(tmp_path, save_seconds=1000) == fit(POINTS, SPEC).state.to_arrow_bytes()
    assert numbers(tmp_path) == [4, 8, 12, 16]


def test_slices_of_a_stopped_hierarchical_run_are_kept(tmp_path: Path) -> None:
    # two blocks a slice, one of merged centroids, four of all rows: each run begins where the last link is
    stops = 0
    while True:
        try:
            end = run(tmp_path, spec=HIERARCHICAL, stop_after_blocks=3)
            break
        except StoppedError:
            stops += 1
    assert end == fit(POINTS, HIERARCHICAL).state.to_arrow_bytes()
    # four iterations of each slice and of the merge, then two of four blocks; no link was made twice
    assert numbers(tmp_path, HIERARCHICAL) == list(range(1, 12 + 2 * 4 + 1))
    assert 8 <= stops <= 12


def test_a_death_for_memory_says_so() -> None:
    died = (
        "The actor died unexpectedly.\n\tclass_name: ClusterWorker\nWorker exit type: SYSTEM_ERROR Worker exit detail"
    )
    assert death_reason(died, killed_for_memory=False).startswith("Worker exit type: SYSTEM_ERROR")
    for text, killed in ((died, True), (died.replace("SYSTEM_ERROR", "NODE_OUT_OF_MEMORY"), False)):
        assert "memory ran out" in death_reason(text, killed_for_memory=killed)
