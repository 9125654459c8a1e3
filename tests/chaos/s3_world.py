"""The world of the S3 experiments: image shards in a store that can be stopped, a proxy that counts, a Prefect server.

Commands are started with a mark in their environment, in a session of their own, so that all their processes are found.
"""

import io
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.chaos.disturbances import MARK, Family, killed
from tests.integration.harness import BIN, prefect_api
from tests.integration.s3_store import BUCKET, RequestLog, Store, proxy, store
from tests.servers import s3_environment

DATA = "data"
SIDE = 128  # pixels
ROW_GROUP_ROWS = 100
# one row of so many is no whole image: such rows must be counted, not lost
BAD_EVERY = 97


@dataclass(frozen=True)
class World:
    """A store with shards under ``data/``, behind a proxy; and the command's environment."""

    store: Store
    log: RequestLog
    environment: dict[str, str]
    folder: Path
    families: list[Family] = field(default_factory=list)

    def start(self, words: Sequence[str], name: str) -> Family:
        """Start ``mlcd`` with these words; what it prints goes to ``NAME.out`` and ``NAME.err`` in the folder."""
        mark = uuid.uuid4().hex
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            child = subprocess.Popen(
                [str(BIN / "mlcd"), *words],
                stdout=out,
                stderr=err,
                env={**self.environment, MARK: mark},
                start_new_session=True,
            )
        family = Family(child, mark)
        self.families.append(family)
        return family

    def kill_all(self) -> None:
        """Kill what lives of all commands that were started."""
        for process in [process for family in self.families for process in family.members()]:
            killed(process)


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Servers for the experiments; they and all commands are ended at the end."""
    # an exit instead of the default death, so that a script that is terminated ends them too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "requests.jsonl"
    log.touch()
    with ExitStack() as stack:
        server = stack.enter_context(store())
        endpoint = stack.enter_context(proxy(server.endpoint, log))
        environment = {
            **os.environ,
            **s3_environment(endpoint),
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PREFECT_HOME": str(folder / "prefect"),
        }
        environment["PREFECT_API_URL"] = stack.enter_context(prefect_api(folder, environment))
        here = World(server, RequestLog(log), environment, folder)
        stack.callback(here.kill_all)
        yield here


def address(key: str) -> str:
    """``s3://`` address of a key."""
    return f"s3://{BUCKET}/{key}"


def put_shards(server: Store, *, shards: int, rows: int) -> list[str]:
    """Compose shards of small JPEGs under ``data/``; the keys of their rows, in order."""
    keys: list[str] = []
    for shard in range(shards):
        table = jpeg_table(shard, rows)
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=ROW_GROUP_ROWS, compression="none")
        server.put(f"{DATA}/{shard:05d}.parquet", sink.getvalue())
        keys += table["key"].to_pylist()
    return keys


def jpeg_table(shard: int, rows: int) -> pa.Table:
    """Rows of ``key`` and ``jpg``; a key begins with the number of its shard."""
    rng = np.random.default_rng([SIDE, shard])
    images = [_jpeg(rng) for _ in range(rows)]
    images = [image[: len(image) // 2] if i % BAD_EVERY == 0 else image for i, image in enumerate(images)]
    return pa.table({"key": [f"{shard:05d}-{row:06d}" for row in range(rows)], "jpg": images})


def _jpeg(rng: np.random.Generator) -> bytes:
    blobs = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    sink = io.BytesIO()
    blobs.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
    return sink.getvalue()
