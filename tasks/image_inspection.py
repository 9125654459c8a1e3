"""``mlcd inspect image``: where a key occurs, and what each stage made of that row.

The key column of every part is looked through: mapped on a disk, where that is a matter of seconds for a million rows;
on S3 every part is fetched. What is shown then comes from parts that are checked against their records.
"""

import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import mlcd_core
from mlcd_core.errors import CorruptRecordError, DataError, UpstreamMissingError
from mlcd_core.identity import short
from mlcd_core.images.embed_shard import read_ipc
from mlcd_core.opened import OpenedRun
from mlcd_core.specs import StageName
from mlcd_core.store import Manifest, Part, map_part, read_part
from mlcd_core.tables import RowStatus
from tasks.embedded_units import EmbeddedUnit, EmbeddedUnits, embedded_units
from tasks.inspection import run_options

MOST_ROWS, SEARCH_THREADS = 20, 8
# the table of a million centroids has gigabytes, too many for the size of one cluster
SMALL_TABLE_BYTES = 64_000_000


def inspect_image(root: str, run_name: str, key: str) -> dict[str, Any]:
    """Every row with that key, the first 20: its shard, status, and its labels where there are some.

    Raises DataError when no row has it.
    """
    run = mlcd_core.open_run(root, run_name)
    embedded = embedded_units(run)
    labelled = _Labelled.of(run, embedded)
    found = list(islice(_found(embedded, key), MOST_ROWS + 1))
    if not found:
        raise DataError(
            f"no row has the key {key!r} among {embedded.rows:,} rows of {len(embedded.sources):,} shards; keys there: "
            f"{', '.join(_first_keys(embedded)) or 'none'}"
        )
    rows = [_row(embedded, unit, position, labelled) for unit, position in found[:MOST_ROWS]]
    return {
        "key": key,
        "rows_searched": embedded.rows,
        "sealed": embedded.manifest is not None,
        "more": len(found) > MOST_ROWS,
        "found": rows,
        "next": f"mlcd inspect shard {shlex.quote(rows[0]['shard'])} {run_options(root, run_name)}",
    }


@dataclass(frozen=True)
class _Labelled:
    """The labels of the same embeddings, part for part, and the sizes of the clusters where they are small."""

    run: OpenedRun
    manifest: Manifest
    sizes: list[int] | None

    @classmethod
    def of(cls, run: OpenedRun, embedded: EmbeddedUnits) -> "_Labelled | None":
        """None while these embeddings have no labels."""
        label, cluster = _committed(run, "label"), _committed(run, "cluster")
        if not (label and embedded.manifest and label.inputs["embed"] == embedded.manifest.digest):
            return None
        sizes = None
        if cluster and cluster.digest == label.inputs["cluster"] and cluster.parts[0].bytes <= SMALL_TABLE_BYTES:
            sizes = read_ipc(read_part(run.files, cluster.parts[0]))["count"].to_pylist()
        return cls(run, label, sizes)

    def row(self, number: int, position: int) -> list[dict[str, Any]]:
        """Clusters of a row, nearest first, with the cosine and, where known, the rows of the cluster."""
        data = read_part(self.run.files, self.manifest.parts[number])
        row = pq.read_table(pa.BufferReader(data)).slice(position, 1)
        [labels], [scores] = row["labels"].to_pylist(), row["scores"].to_pylist()
        return [
            {"cluster": label, "cosine": float(score), "cluster_rows": self.sizes[label] if self.sizes else None}
            for label, score in zip(labels, scores, strict=True)
            if label >= 0
        ]


def _committed(run: OpenedRun, stage: StageName) -> Manifest | None:
    try:
        return run.manifest(stage)
    except UpstreamMissingError:
        return None


def _found(embedded: EmbeddedUnits, key: str) -> Iterator[tuple[EmbeddedUnit, int]]:
    """Unit and position of every row with the key, in order."""
    wanted = pa.scalar(key, pa.string())

    def positions(unit: EmbeddedUnit) -> list[int]:
        keys = _mapped(embedded, unit.part)["key"]
        places: list[int] = pc.indices_nonzero(pc.equal(keys, wanted)).to_pylist()
        return places

    pool = ThreadPoolExecutor(SEARCH_THREADS, thread_name_prefix="inspect")
    try:
        for unit, places in zip(embedded.units, pool.map(positions, embedded.units), strict=True):
            yield from ((unit, place) for place in places)
    finally:
        pool.shutdown(cancel_futures=True)


def _row(embedded: EmbeddedUnits, unit: EmbeddedUnit, position: int, labelled: _Labelled | None) -> dict[str, Any]:
    row = read_ipc(map_part(embedded.files, unit.part)).slice(position, 1)
    status = RowStatus(row["status"][0].as_py())
    notes = embedded.receipt(unit).provenance
    return {
        "shard": unit.source,
        "row": row["row"][0].as_py(),
        "status": status.name.lower(),
        "usable": status is RowStatus.OK,
        "unit": short(unit.unit),
        "attempt": unit.attempt,
        "device": notes.get("device"),
        "labels": labelled.row(unit.number, position) if labelled else None,
    }


def _first_keys(embedded: EmbeddedUnits) -> list[str]:
    firsts = [_mapped(embedded, unit.part)["key"].slice(0, 3).to_pylist() for unit in embedded.units[:3]]
    return [key for keys in firsts for key in keys][:3]


def _mapped(embedded: EmbeddedUnits, part: Part) -> pa.Table:
    """A part without a look at its checksum, for which all of its bytes would be read."""
    data = embedded.files.map(part.path)
    if data is None:
        raise CorruptRecordError(f"{embedded.files.uri(part.path)} is gone; run again, only its unit is redone")
    return read_ipc(data)
