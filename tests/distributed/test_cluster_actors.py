"""The workers of a clustering in a real Ray session: killed inside iterations, they give the bits of one process."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mlcd_core.embedded_points import block_ranges
from mlcd_core.errors import CorruptRecordError, WorkerLostError
from mlcd_core.events import silent
from mlcd_core.images.embed_shard import embedding_table, ipc_bytes
from mlcd_core.kmeans import ArrayPoints, fit
from mlcd_core.runtimes import ClusterRuntime
from mlcd_core.specs import ClusterSpec, EmbedSpec
from mlcd_core.store import LocalFiles, Part, StageFolder
from tasks.cluster_actors import run_workers
from tasks.cluster_worker import RankJob
from tasks.failures import worker_errors
from tasks.ray_session import RaySession
from tasks.work import ChainAddress
from tests.unit.kmeans import oracle

# Ray's own settings object warns of a field that it fills in itself
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

SPEC = ClusterSpec(num_centroids=20, iterations=60, tolerance=0)
PART_ROWS = [70, 0, 90, 40, 60, 80, 30, 50, 100, 20]
POINTS = ArrayPoints(oracle.blobs(sum(PART_ROWS), 9, 12, seed=3, noise=0.3))
INPUTS = {"embed": "e" * 64}


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with RaySession(most_workers=3) as session:
        session.start()
        yield


def embedding_parts(root: Path) -> tuple[Part, ...]:
    """Embedding files as the stage before writes them; each is one block."""
    folder, parts, offset = StageFolder(LocalFiles(root), EmbedSpec()), [], 0
    for number, rows in enumerate(PART_ROWS):
        own_ND = POINTS.points_ND[offset : offset + rows].numpy()
        keys = [str(offset + row) for row in range(rows)]
        table = embedding_table(range(rows), keys, np.zeros(rows, np.int8), own_ND)
        part = folder.put(f"part{number}", ".arrow", ipc_bytes(table), rows=rows, usable=rows)
        parts.append(replace(part, offset=offset))
        offset += rows
    return tuple(parts)


def job(root: Path, **runtime: Any) -> RankJob:
    parts = embedding_parts(root)
    last_number = SPEC.iterations * len(block_ranges(parts))
    links = ChainAddress(str(root), SPEC, INPUTS, attempt=1, last_number=last_number)
    return RankJob(links, parts, ClusterRuntime(**runtime), "cpu", 20, silent)


def worker_processes() -> list[psutil.Process]:
    """The actor processes of this session, which Ray names after the class."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::ClusterWorker"):
            found.append(process)
    return found


def num_links(root: Path) -> int:
    return len(list(root.glob("cluster/*/units/*.json")))


class Killer(threading.Thread):
    """SIGKILLs so many random workers at once, at a random time after new links; and again."""

    def __init__(self, root: Path, victims: list[int]) -> None:
        super().__init__(daemon=True)
        self.root, self.victims = root, victims
        self.killed: list[int] = []

    def run(self) -> None:
        for num_victims in self.victims:
            before = num_links(self.root)
            while num_links(self.root) <= before + 3:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.3))
            for process in random.sample(worker_processes(), num_victims):
                process.kill()
            self.killed.append(num_victims)


def test_workers_killed_inside_iterations_are_revived_within_the_run(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    killer = Killer(tmp_path, [1, 2])
    killer.start()
    quality = run_workers(
        job(tmp_path, workers=3, save_seconds=0),
        world=3,
        report=lambda event, values: events.append((event, dict(values))),
    )
    assert killer.killed == [1, 2], "the run was over before the kills"
    revivals = [values for event, values in events if event == "cluster.revival"]
    assert [len(values["ranks"].split(", ")) for values in revivals] == [1, 2], revivals
    expected = fit(POINTS, SPEC)
    assert quality["objective"] == list(expected.objective)
    assert quality["splits"] == list(expected.splits)
    chain = job(tmp_path).links.open()
    last = chain.newest()
    assert last is not None
    assert last.number == chain.last_number
    assert chain.read(last.parts[0]) == expected.state.to_arrow_bytes()
    assert num_links(tmp_path) > SPEC.iterations, "no iteration was saved in part"


def test_workers_that_die_again_and_again_end_the_stage(tmp_path: Path) -> None:
    over = threading.Event()

    def kill_on_sight() -> None:
        while not over.wait(0.02):
            for process in worker_processes():
                process.kill()

    killer = threading.Thread(target=kill_on_sight, daemon=True)
    killer.start()
    try:
        with pytest.raises(WorkerLostError, match="died 3 times without a new link in between; the last time rank 0"):
            run_workers(job(tmp_path), world=1, report=silent)
    finally:
        over.set()
        killer.join()


def test_an_error_of_a_worker_is_raised_and_nobody_is_revived(tmp_path: Path) -> None:
    broken = job(tmp_path)
    (tmp_path / broken.parts[3].path).write_bytes(b"not what was committed")
    events: list[str] = []
    with pytest.raises(CorruptRecordError, match="sha256"), worker_errors():
        run_workers(broken, world=2, report=lambda event, values: events.append(event))
    assert events == []
