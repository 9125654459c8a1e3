"""Images, tars and packs in one process for the tests of packing."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mlcd_core.pack import (
    Changed,
    Failed,
    PackLedger,
    PackOptions,
    PackPlan,
    find_sources,
    index_tar,
    pack_unit,
    plan_folder,
    plan_tars,
    recorded_tar_plan,
)
from mlcd_core.store import LocalFiles


def picture(seed: int, *, width: int = 12, height: int = 10, kind: str = "JPEG") -> bytes:
    """An encoded image that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind)
    return sink.getvalue()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Files by relative name."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], **options: Any) -> Path:
    """A tar with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def plan_here(sources: Sequence[Path], to: Path, **options: Any) -> PackPlan:
    """The plan, with tars indexed in this process."""
    settings = PackOptions(**options)
    found = find_sources([str(source) for source in sources], settings.kind)
    if found.kind != "webdataset":
        return plan_folder(found, settings)
    record = PackLedger(LocalFiles(to)).recorded()
    known = recorded_tar_plan(record, found, settings) if record else None
    return known or plan_tars(found, [index_tar(tar, settings) for tar in found.files], settings)


def pack_here(
    sources: Sequence[Path], to: Path, *, changed: Changed = "refuse", failed: Failed = "keep", **options: Any
) -> list[str]:
    """Pack to the end in this process; the names of the shards that were made."""
    plan = plan_here(sources, to, **options)
    files = LocalFiles(to)
    ledger = PackLedger(files)
    ledger.begin(plan, changed=changed)
    pending = ledger.pending(plan, failed=failed)
    for unit in pending:
        pack_unit(unit, plan.columns, plan.options, files, on_rows=lambda rows: None)
    ledger.finish(plan, [ledger.receipt(unit) for unit in plan.units])
    return [unit.name for unit in pending]


def shard_names(to: Path) -> list[str]:
    return sorted(path.name for path in to.glob("*.parquet"))


def rows_of(to: Path) -> list[dict[str, Any]]:
    """All rows of a pack, in order."""
    return [row for name in shard_names(to) for row in pq.read_table(to / name).to_pylist()]
