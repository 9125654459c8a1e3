"""``mlcd inspect``: what the records say of one shard or one image, sealed or not, on a disk and on S3."""

import shlex
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from flows.inspect_text import image_text, shard_text
from mlcd_core.errors import ConfigError, CorruptRecordError, DataError, UpstreamMissingError
from mlcd_core.identity import fingerprint, short
from mlcd_core.images.embed_shard import embedding_table, ipc_bytes
from mlcd_core.kmeans import CentroidState
from mlcd_core.labels import labels_to_parquet_bytes
from mlcd_core.specs import ClusterSpec, EmbedSpec, LabelSpec
from mlcd_core.store import Manifest, StageFolder, UnitTask, open_files
from mlcd_core.tables import RowStatus, label_schema
from tasks.image_inspection import inspect_image
from tasks.inspection import inspect_shard
from tasks.run_record import RunRecord
from tasks.work import Made, StageWork
from tests.servers import make_bucket, s3_environment, s3_server

DIM, NUM_LABELS, NUM_CENTROIDS = 4, 2, 3
OK, TRUNCATED, UNREADABLE, DIED = RowStatus.OK, RowStatus.TRUNCATED, RowStatus.UNREADABLE, RowStatus.WORKER_DIED


@dataclass(frozen=True)
class Unit:
    """What one unit of the test's data holds: keys and their statuses."""

    source: str
    first_row: int
    keys: Sequence[str]
    status: Sequence[int]
    attempt: int = 1
    failed: str = ""

    @property
    def digest(self) -> str:
        return fingerprint(self.source)

    @property
    def id(self) -> str:
        return fingerprint([self.digest, [self.first_row, self.first_row + len(self.keys)]])

    @property
    def counts(self) -> dict[str, int]:
        found = dict(Counter(RowStatus(status).name.lower() for status in self.status))
        return found or ({self.failed: 0} if self.failed else {})


class World:
    """A root whose stages are committed by hand, as the workers would."""

    def __init__(self, address: str, units: Sequence[Unit]) -> None:
        self.root = address
        self.files = open_files(address)
        self.units = units
        self.inputs = {"data": fingerprint([unit.digest for unit in units])}
        self.folder = StageFolder(self.files, EmbedSpec())
        self.folder.open()

    def embed(self, *, done: int | None = None) -> Manifest | None:
        """Commit the first ``done`` units, and seal where that is all."""
        for index, unit in enumerate(self.units[:done]):
            self._commit(index, unit)
        manifest = None
        if done is None:
            receipts = [self.folder.read_receipt(unit.id, unit.attempt) for unit in self.units]
            manifest = self.folder.seal(
                self.inputs,
                [receipt for receipt in receipts if receipt],
                attempt=1,
                notes={"sources": [[unit.source, unit.first_row, len(unit.keys)] for unit in self.units]},
            )
        self._note("embed", self.folder, self.inputs, tuple(unit.id for unit in self.units), manifest)
        return manifest

    def _commit(self, index: int, unit: Unit) -> None:
        rows = np.arange(unit.first_row, unit.first_row + len(unit.keys))
        status_N = np.array(unit.status, np.int8)
        vectors_ND = np.eye(DIM, dtype=np.float16)[rows % DIM] * (status_N == OK)[:, None]
        data = ipc_bytes(embedding_table(rows, unit.keys, status_N, vectors_ND.astype(np.float16)))
        usable = int((status_N == OK).sum())
        part = self.folder.put(short(unit.id), ".arrow", data, rows=len(rows), usable=usable, counts=unit.counts)
        where = {"source": unit.source, "digest": unit.digest, "first_row": unit.first_row, "rows": len(unit.keys)}
        took = {"seconds": {"read": 0.25, "model": 1.5}, "device": "cpu"}
        self.folder.commit(UnitTask(index, unit.id, unit.attempt), [part], notes={**where, **took})

    def cluster_and_label(self, embed: Manifest) -> None:
        """Clusters of 5, 7 and 9 rows; row r has the labels r % 3 and (r + 1) % 3."""
        folder = StageFolder(self.files, ClusterSpec(num_centroids=NUM_CENTROIDS))
        state = CentroidState(21, torch.eye(DIM)[:NUM_CENTROIDS], torch.tensor([5, 7, 9]))
        part = folder.put("centroids", ".arrow", state.to_arrow_bytes(), rows=NUM_CENTROIDS, usable=NUM_CENTROIDS)
        cluster = self._sealed("cluster", folder, {"embed": embed.digest}, [part])
        folder = StageFolder(self.files, LabelSpec(num_labels=NUM_LABELS))
        parts = [self._label(folder, unit) for unit in self.units]
        self._sealed("label", folder, {"embed": embed.digest, "cluster": cluster.digest}, parts)

    def _label(self, folder: StageFolder, unit: Unit) -> Any:
        rows = range(unit.first_row, unit.first_row + len(unit.keys))
        labels = [[r % 3, (r + 1) % 3] if s == OK else [-1, -1] for r, s in zip(rows, unit.status, strict=True)]
        scores = [[0.75, 0.5] if s == OK else [0.0, 0.0] for s in unit.status]
        columns = [pa.array(list(rows)), pa.array(unit.keys, pa.string()), labels, pa.array(scores)]
        schema = label_schema(NUM_LABELS)
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
        return folder.put(short(unit.id), ".parquet", labels_to_parquet_bytes(table), rows=len(rows), usable=0)

    def _sealed(self, stage: Any, folder: StageFolder, inputs: dict[str, str], parts: Sequence[Any]) -> Manifest:
        folder.open()
        units = [fingerprint([stage, number]) for number in range(len(parts))]
        receipts = [folder.commit(UnitTask(i, unit, 1), [parts[i]]) for i, unit in enumerate(units)]
        manifest = folder.seal(inputs, receipts, attempt=1)
        self._note(stage, folder, inputs, tuple(units), manifest)
        return manifest

    def _note(self, stage: Any, folder: StageFolder, inputs: Any, units: Any, manifest: Manifest | None) -> None:
        work = StageWork(spec=folder.spec, inputs=inputs, make=lambda job: Made([]), units=units)
        RunRecord(self.files, "default").note(stage, folder.fingerprint, work, manifest)


def keys(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{i}" for i in range(count)]


UNITS = [
    Unit("/data/a.parquet", 0, ["twin", *keys("a", 5)], [OK] * 5 + [TRUNCATED]),
    Unit("/data/b.parquet", 0, [*keys("b", 3), "twin"], [OK, TRUNCATED, OK, OK]),
    Unit("/data/b.parquet", 4, keys("late", 30), [UNREADABLE] * 30, attempt=2),
    Unit("/data/b.parquet", 34, keys("end", 4), [OK] * 4),
    Unit("/other/a.parquet", 0, keys("o", 2), [OK, OK]),
    Unit("/data/empty.parquet", 0, [], []),
    Unit("/data/no-footer.parquet", 0, [], [], failed="unreadable"),
]


@pytest.fixture(scope="module")
def s3_root() -> Iterator[str]:
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        make_bucket(endpoint, "bucket")
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        yield f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(scope="module", params=["disk", "s3"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """All stages up to label."""
    on_disk = request.param == "disk"
    world = World(str(tmp_path_factory.mktemp("root")) if on_disk else request.getfixturevalue("s3_root"), UNITS)
    embed = world.embed()
    assert embed is not None
    world.cluster_and_label(embed)
    return world


@pytest.mark.parametrize("named", ["uri", "file", "digest start", "digest"])
def test_a_shard_is_found_by_address_file_name_or_digest(world: World, named: str) -> None:
    digest = fingerprint("/data/b.parquet")
    name = {"uri": "/data/b.parquet", "file": "b.parquet", "digest start": digest[:8], "digest": digest}[named]
    report = inspect_shard(world.root, "default", name)
    assert report["shard"] == "/data/b.parquet"
    assert report["rows"] == 38
    assert report["status"] == {"unreadable": 30, "ok": 7, "truncated": 1}
    assert [(u["unit"], u["first_row"], u["rows"], u["attempt"], u["status"]) for u in report["units"]] == [
        (short(unit.id), unit.first_row, len(unit.keys), unit.attempt, unit.counts) for unit in UNITS[1:4]
    ]
    assert [unit["seconds"] for unit in report["units"]] == [{"read": 0.25, "model": 1.5}] * 3
    assert [unit["device"] for unit in report["units"]] == ["cpu"] * 3
    assert report["bad"] == [
        {"key": "b-1", "row": 1, "status": "truncated"},
        *({"key": f"late-{i}", "row": 4 + i, "status": "unreadable"} for i in range(19)),
    ]


@pytest.mark.parametrize(
    ("shard", "following"),
    [
        ("b.parquet", "mlcd retry-failed --root {root} --data"),
        ("/data/a.parquet", "mlcd inspect image KEY --root {root}"),
        ("/other/a.parquet", "mlcd status --root {root}"),
        ("empty.parquet", "mlcd status --root {root}"),
        ("no-footer.parquet", "mlcd retry-failed --root {root} --data"),
    ],
)
def test_the_last_line_is_the_command_to_go_on_with(world: World, shard: str, following: str) -> None:
    report = inspect_shard(world.root, "default", shard)
    last = shard_text(report).splitlines()[-1]
    assert last.startswith(f"next: {following.format(root=world.root)}")


@pytest.mark.parametrize(
    ("shard", "said"),
    [
        ("a.parquet", "names 2 shards: /data/a.parquet, /other/a.parquet; give the whole address"),
        ("c.parquet", "no shard c.parquet among the 5 embedded ones"),
        ("ffffffff", "the start of a digest, such as"),
        ("f" * 64, "the start of a digest, such as"),
    ],
)
def test_a_name_of_no_shard_or_of_several_is_refused(world: World, shard: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        inspect_shard(world.root, "default", shard)


def test_an_image_is_shown_with_its_labels_wherever_its_key_occurs(world: World) -> None:
    report = inspect_image(world.root, "default", "twin")
    assert [(row["shard"], row["row"], row["status"], row["usable"], row["attempt"]) for row in report["found"]] == [
        ("/data/a.parquet", 0, "ok", True, 1),
        ("/data/b.parquet", 3, "ok", True, 1),
    ]
    sizes = [5, 7, 9]
    for row in report["found"]:
        nearest = [row["row"] % 3, (row["row"] + 1) % 3]
        assert [label["cluster"] for label in row["labels"]] == nearest
        assert [label["cosine"] for label in row["labels"]] == [0.75, 0.5]
        assert [label["cluster_rows"] for label in row["labels"]] == [sizes[label] for label in nearest]
    text = image_text(report)
    assert text.startswith("twin: 2 of 46 rows\n")
    assert text.splitlines()[-1] == f"next: mlcd inspect shard /data/a.parquet --root {world.root}"


def test_a_shard_is_found_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    sources = [f"{tmp_path.resolve()}/data/a.parquet", "/data/a.parquet"]
    world = World(str(tmp_path / "root"), [Unit(source, 0, ["x"], [OK]) for source in sources])
    world.embed()
    monkeypatch.chdir(tmp_path)
    for path in ("data/a.parquet", "./link/a.parquet"):
        assert inspect_shard(world.root, "default", path)["shard"] == sources[0]
    with pytest.raises(ConfigError, match=r"no shard root/a\.parquet"):
        inspect_shard(world.root, "default", "root/a.parquet")


def test_the_command_to_go_on_with_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    root = str(tmp_path / "it's a; root")
    world = World(root, [Unit("/my data/$a.parquet", 0, ["x"], [OK])])
    world.embed()
    assert shlex.split(inspect_shard(root, "default", "$a.parquet")["next"]) == ["mlcd", "status", "--root", root]
    words = ["mlcd", "inspect", "shard", "/my data/$a.parquet", "--root", root]
    assert shlex.split(inspect_image(root, "default", "x")["next"]) == words


@pytest.mark.parametrize(("key", "row", "status"), [("late-7", 11, "unreadable"), ("a-4", 5, "truncated")])
def test_a_bad_image_is_not_usable_and_has_no_labels(world: World, key: str, row: int, status: str) -> None:
    report = inspect_image(world.root, "default", key)
    [found] = report["found"]
    assert (found["row"], found["status"], found["usable"], found["labels"]) == (row, status, False, [])
    assert f"{status}: not used by cluster, label and train" in image_text(report)


def test_a_key_that_is_nowhere_says_how_many_rows_were_searched(world: World) -> None:
    with pytest.raises(DataError, match="'nobody' among 46 rows of 5 shards; keys there: twin, a-0, a-1"):
        inspect_image(world.root, "default", "nobody")


def test_a_run_that_is_not_there_names_those_that_are(world: World) -> None:
    for inspect in (inspect_shard, inspect_image):
        with pytest.raises(UpstreamMissingError, match="runs there: default"):
            inspect(world.root, "defualt", "x")


def test_before_the_seal_the_receipts_tell_what_is_done(tmp_path: Path) -> None:
    world = World(str(tmp_path), UNITS)
    world.embed(done=2)
    report = inspect_shard(world.root, "default", "b.parquet")
    assert (report["sealed"], report["units_done"], report["units_total"], report["rows"]) == (False, 2, 7, 4)
    assert report["status"] == {"ok": 3, "truncated": 1}
    text = shard_text(report)
    assert "so far: 2 of 7 units of the run" in text
    assert text.splitlines()[-1].startswith(f"next: mlcd run --root {tmp_path} --data")
    with pytest.raises(ConfigError, match="5 units are still to be made"):
        inspect_shard(world.root, "default", "empty.parquet")
    [row] = inspect_image(world.root, "default", "b-2")["found"]
    assert (row["row"], row["labels"]) == (2, None)


def test_a_seal_that_the_record_of_the_run_does_not_know_yet_counts(tmp_path: Path) -> None:
    world = World(str(tmp_path), UNITS)
    world.embed()
    units = tuple(unit.id for unit in UNITS)
    world._note("embed", world.folder, world.inputs, units, None)  # as a kill between the two leaves it
    report = inspect_shard(world.root, "default", "b.parquet")
    assert (report["sealed"], report["rows"]) == (True, 38)


def test_labels_of_other_embeddings_are_not_shown(tmp_path: Path) -> None:
    old = World(str(tmp_path), UNITS[:1])
    embed = old.embed()
    assert embed is not None
    old.cluster_and_label(embed)
    assert inspect_image(old.root, "default", "twin")["found"][0]["labels"]
    World(str(tmp_path), UNITS[:2]).embed()
    assert [row["labels"] for row in inspect_image(old.root, "default", "twin")["found"]] == [None, None]


def test_more_than_twenty_rows_with_one_key_are_cut_and_said(tmp_path: Path) -> None:
    world = World(str(tmp_path), [Unit("/data/a.parquet", 0, ["same"] * 25, [OK] * 25)])
    world.embed()
    report = inspect_image(world.root, "default", "same")
    assert [row["row"] for row in report["found"]] == list(range(20))
    assert image_text(report).startswith("same: more than 20 of 25 rows, of which the first 20 are shown")


def test_parts_that_are_gone_or_changed_are_not_shown(tmp_path: Path) -> None:
    world = World(str(tmp_path), UNITS[:1])
    manifest = world.embed()
    assert manifest is not None
    path = tmp_path / manifest.parts[0].path
    path.write_bytes(path.read_bytes().replace(b"a-1", b"a-9"))
    with pytest.raises(CorruptRecordError, match="sha256"):
        inspect_image(world.root, "default", "a-9")
    path.unlink()
    with pytest.raises(CorruptRecordError, match="is gone"):
        inspect_image(world.root, "default", "twin")
