"""The whole pipeline by the real command with data and root on S3: a server in its process, proxies in theirs.

What the command reads and writes is counted at a proxy; the tests look past it. The tests build on each other in order.
"""

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import mlcd_core
from mlcd_core.images.digit_scenes import scene_parquet_bytes
from tests.integration.harness import Finished, Mlcd, tiny_settings, write_scenes
from tests.integration.s3_store import BUCKET, RequestLog, Store, proxy, store
from tests.s3.proxy import NO_ANSWER, Request
from tests.servers import s3_environment

STAGES = ["embed", "cluster", "label", "train", "evaluate"]
COMPARED = STAGES[:4]
CANARY = "canary-c1d0f2a97e5b"
ROWS = 40
# a missing column is said at once: the command, and then the flow, read the end of the first shard of each kind
COLUMN_CHECKS = {"data/train-00000.parquet": 2, "data/test-00000.parquet": 2}
FAULTS = [
    {"kind": "silence", "method": "PUT", "key": "*/data/*", "nth": [2], "seconds": 20},
    {"kind": "lost reply", "method": "PUT", "key": "*/units/*", "nth": [1, 4]},
    {"kind": "lost reply", "method": "PUT", "key": "*/manifests/*", "nth": [1]},
    {"kind": "409", "method": "PUT", "key": "*/units/*", "nth": [2, 3]},
    {"kind": "cut body", "method": "GET", "nth": [3, 7, 11, 15]},
    {"kind": "reset", "nth": [9, 30]},
    {"kind": "503", "nth": [2, 5, 14, 22, 41]},
    {"kind": "503", "probability": 0.05},
]


@dataclass
class World:
    """Scenes in a bucket and in a folder; the command against either, and all that it has printed."""

    folder: Path
    store: Store
    log: RequestLog
    mlcd: Mlcd
    printed: list[str] = field(default_factory=list)

    def run(self, *words: str, root: str = "root", endpoint: str = "") -> Finished:
        """Run it on the bucket, through the proxy that counts or through another."""
        mlcd = Mlcd(self.mlcd.api, {**self.mlcd.variables, "AWS_ENDPOINT_URL": endpoint}) if endpoint else self.mlcd
        done = mlcd(*request(f"s3://{BUCKET}/{root}", f"s3://{BUCKET}/data"), *words)
        self.printed += [done.stdout, done.stderr]
        assert done.code == 0, done.stderr
        return done

    @contextmanager
    def local_run(self) -> Iterator["subprocess.Popen[bytes]"]:
        """The same on local disk; gone at the end."""
        words = request(str(self.folder / "root"), str(self.folder / "data"))
        local = self.mlcd.start(*words, "--until", "train")
        try:
            yield local
        finally:
            local.terminate()
            local.wait()

    def local_digests(self) -> dict[str, str]:
        run = mlcd_core.open_run(self.folder / "root")
        return {stage: run.manifest(stage).digest for stage in COMPARED}

    def requests_since(self, start: int) -> list[Request]:
        return self.log.read()[start:]


def request(root: str, data: str) -> list[str]:
    where = ["--root", root, "--data", f"{data}/train-*.parquet", "--eval-data", f"{data}/test-*.parquet"]
    return ["run", *where, "--label-column", "labels", *tiny_settings(), "--json"]


def digests(done: Finished, stages: list[str] = COMPARED) -> dict[str, str]:
    found = {stage["stage"]: stage["manifest_digest"] for stage in done.summary["stages"]}
    return {stage: found[stage] for stage in stages}


def data_reads(requests: list[Request]) -> Counter[str]:
    """How often each object of the data was read."""
    return Counter(key for method, key, _ in requests if method == "GET" and key.startswith("data/"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("s3")
    write_scenes(folder / "data", "train", shards=4, rows=ROWS)
    write_scenes(folder / "data", "test", shards=1, rows=ROWS)
    log = folder / "requests.jsonl"
    with store() as server, proxy(server.endpoint, log) as endpoint:
        for path in sorted((folder / "data").iterdir()):
            server.put(f"data/{path.name}", path.read_bytes())
        variables = {**s3_environment(endpoint), "AWS_SECRET_ACCESS_KEY": CANARY}
        yield World(folder, server, RequestLog(log), Mlcd(prefect_server, variables))


def test_a_run_on_s3_gives_the_digests_of_one_on_local_disk(world: World) -> None:
    with world.local_run() as local:
        assert local.wait(timeout=600) == 0  # first, for two starts of Ray at once may be too much for a small machine
    done = world.run()
    assert done.results() == dict.fromkeys(STAGES, "ran")
    assert digests(done) == world.local_digests()


def test_the_same_again_is_cached_writes_nothing_and_reads_no_images(world: World) -> None:
    before = len(world.log.read())
    done = world.run()
    assert done.results() == dict.fromkeys(STAGES, "cached")
    requests = world.requests_since(before)
    assert Counter(method for method, _, _ in requests if method in ("PUT", "POST", "DELETE")) == {}
    assert data_reads(requests) == COLUMN_CHECKS


def test_open_run_reads_labels_from_s3(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_environment(world.store.endpoint).items():
        monkeypatch.setenv(name, value)
    labels = mlcd_core.open_run(f"s3://{BUCKET}/root").labels()
    assert labels.num_rows == 4 * ROWS
    assert labels == mlcd_core.open_run(world.folder / "root").labels()


def test_a_store_that_stumbles_gives_the_same_digests(world: World) -> None:
    log = world.folder / "faults.jsonl"
    with proxy(world.store.endpoint, log, FAULTS, seed=0) as endpoint:
        done = world.run("--until", "label", root="stumbling", endpoint=endpoint)
    assert digests(done, STAGES[:3]) == {stage: world.local_digests()[stage] for stage in STAGES[:3]}
    statuses = Counter(status for _, _, status in RequestLog(log).read())
    assert min(statuses[503], statuses[409], statuses[NO_ANSWER]) > 0


def test_one_shard_more_embeds_one_and_reads_no_other(world: World) -> None:
    world.store.put("data/train-00004.parquet", scene_parquet_bytes("train", 4, ROWS, 0))
    before = len(world.log.read())
    done = world.run("--until", "embed")
    [embed, *_] = done.summary["stages"]
    assert (embed["units_run"], embed["rows"]) == (1, 5 * ROWS)
    reads = data_reads(world.requests_since(before))
    assert reads.pop("data/train-00004.parquet") > 0
    assert reads == COLUMN_CHECKS


def test_the_secret_key_is_written_and_shown_nowhere(world: World, private_home: Path) -> None:
    secret = CANARY.encode()
    keys = world.store.keys()
    assert len(keys) > 50
    assert [key for key in keys if secret in world.store.read(key)] == []
    assert (private_home / "prefect" / "prefect.db").exists()
    files = [path for folder in (private_home, world.folder) for path in folder.rglob("*") if path.is_file()]
    assert [str(path) for path in files if secret in path.read_bytes()] == []
    assert not any(CANARY in text for text in world.printed)
