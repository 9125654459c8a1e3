"""Embeddings that embed committed, copied from its parts into one float16 array, beside other ways to hold them.

One thread, warm page cache; the array was written before, so that no page of it is new, but for the rows that say so.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.embedding import joined_embeddings
from mlcd_core.images.embed_shard import embedding_table, ipc_bytes, read_ipc
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import LocalFiles, Part, StageFolder, map_part

GOAL_GB_S = 1.5
PART_ROWS, DIM = 10_000, 768
COPIED = "mlcd: parts mapped and copied"
RUNS = 7


@dataclass(frozen=True)
class Stored:
    """The same vectors in three forms, part by part: committed, plain numbers, and Parquet's FixedSizeList."""

    files: LocalFiles
    parts: list[Part]
    plain: list[Path]
    parquet: list[Path]
    embeddings_ND: np.ndarray


@dataclass(frozen=True)
class Speeds:
    """GB/s of each run by the clock on the wall, and by the processor's time."""

    wall: list[float]
    processor: list[float]

    @property
    def median(self) -> float:
        """The middle by the clock on the wall."""
        return statistics.median(self.wall)

    def __str__(self) -> str:
        spread = f"{min(self.wall):.2f} to {max(self.wall):.2f}"
        return f"{self.median:.2f} | {spread} | {statistics.median(self.processor):.2f}"


def reading_section(num_bytes: int, folder: Path) -> list[str]:
    """Store that many bytes of vectors, read them back in every way, and say how fast."""
    stored = store(num_bytes, folder)
    speeds = {name: gigabytes_per_s(stored, read) for name, read in ways(stored).items()}
    median = speeds[COPIED].median
    verdict = "met" if median >= GOAL_GB_S else "missed"
    return [
        "## Reading embeddings",
        "",
        f"{stored.embeddings_ND.nbytes / 1e6:,.0f} MB, {len(stored.parts)} parts of {PART_ROWS:,} x {DIM} float16,",
        f"warm page cache, one thread, {RUNS} runs; into an array that exists already unless a row says otherwise.",
        "The last column divides by the processor time of the process: it is lower where a second thread helped, and",
        "higher where other work was in the way.",
        "",
        "| | GB/s, median | least to most | by processor time |",
        "|---|---|---|---|",
        *(f"| {name} | {found} |" for name, found in speeds.items()),
        "",
        f"- {COPIED}: {median:.2f} GB/s; goal {GOAL_GB_S}: {verdict}.",
        "",
    ]


def store(num_bytes: int, folder: Path) -> Stored:
    """Unit rows that differ, in parts of the stage's own format and beside it in the other two."""
    num_parts = max(1, round(num_bytes / (PART_ROWS * DIM * 2)))
    generator = np.random.default_rng(0)
    files = LocalFiles(folder / "root")
    stage = StageFolder(files, EmbedSpec())
    parts, plain, parquet, embeddings = [], [], [], []
    for number in range(num_parts):
        vectors_ND = generator.standard_normal((PART_ROWS, DIM), np.float32)
        vectors_ND = (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float16)
        keys = [f"{number:05d}{row:06d}" for row in range(PART_ROWS)]
        table = embedding_table(np.arange(PART_ROWS), keys, np.zeros(PART_ROWS, np.int8), vectors_ND)
        parts.append(stage.put(f"{number:012d}", ".arrow", ipc_bytes(table), rows=PART_ROWS, usable=PART_ROWS))
        plain.append(folder / f"{number}.f16")
        vectors_ND.tofile(plain[-1])
        parquet.append(folder / f"{number}.parquet")
        pq.write_table(table.select(["embedding"]), parquet[-1], compression="none", use_dictionary=False)
        embeddings.append(vectors_ND)
    return Stored(files, parts, plain, parquet, np.concatenate(embeddings))


def ways(stored: Stored) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Each takes an array that it may fill, and gives the one that holds all vectors."""

    def mapped(out_ND: np.ndarray) -> np.ndarray:
        tables = [read_ipc(buffer) for part in stored.parts if (buffer := stored.files.map(part.path)) is not None]
        return copied([table["embedding"] for table in tables], out_ND)

    def checked(out_ND: np.ndarray) -> np.ndarray:
        tables = [read_ipc(map_part(stored.files, part)) for part in stored.parts]
        return copied([table["embedding"] for table in tables], out_ND)

    def joined(_: np.ndarray) -> np.ndarray:
        return joined_embeddings([(stored.files.root / part.path).read_bytes() for part in stored.parts])

    def from_file(_: np.ndarray) -> np.ndarray:
        return np.concatenate([np.fromfile(path, np.float16) for path in stored.plain]).reshape(-1, DIM)

    def read_into(out_ND: np.ndarray) -> np.ndarray:
        for number, path in enumerate(stored.plain):
            with path.open("rb", buffering=0) as file:
                file.readinto(memoryview(out_ND[number * PART_ROWS : (number + 1) * PART_ROWS]).cast("B"))
        return out_ND

    def fixed_size_list(out_ND: np.ndarray) -> np.ndarray:
        return copied([pq.read_table(path, use_threads=False)["embedding"] for path in stored.parquet], out_ND)

    return {
        COPIED: mapped,
        "mlcd: the same, each part checked by its sha256 first": checked,
        "mlcd: parts read and joined in a new array": joined,
        "plain float16 files, read into the array": read_into,
        "plain float16 files, `np.fromfile` and `np.concatenate`": from_file,
        "Parquet FixedSizeList<float16>, not compressed": fixed_size_list,
    }


def copied(columns: list[pa.ChunkedArray], out_ND: np.ndarray) -> np.ndarray:
    """The vectors of all columns in order, written into the array."""
    first = 0
    for chunk in (chunk for column in columns for chunk in column.chunks):
        out_ND[first : first + len(chunk)] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, DIM)
        first += len(chunk)
    return out_ND


def gigabytes_per_s(stored: Stored, read: Callable[[np.ndarray], np.ndarray]) -> Speeds:
    """Of each run but the first, which warms; the vectors must be those that were stored."""
    out_ND = np.zeros_like(stored.embeddings_ND)
    assert np.array_equal(read(out_ND), stored.embeddings_ND)
    wall, processor = [], []
    for _ in range(RUNS):
        started, started_cpu = time.perf_counter(), time.process_time()
        read(out_ND)
        wall.append(out_ND.nbytes / 1e9 / (time.perf_counter() - started))
        processor.append(out_ND.nbytes / 1e9 / (time.process_time() - started_cpu))
    return Speeds(wall, processor)
