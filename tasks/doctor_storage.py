"""Whether the root can be written, and what its store promises."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from mlcd_core.objects import is_s3
from mlcd_core.store import open_files
from mlcd_core.store.probe import probe_store
from tasks.doctor_findings import Finding
from tasks.spelling import size_text

LITTLE_DISK_BYTES = 5e9
# a run waits longer for a store that is away; here a person waits for the answer
PATIENCE_S = 5.0


def check_store(root: str) -> Iterator[Finding]:
    """Create, read, list and delete a few small objects. A folder that was not there is not there afterwards."""
    made = [] if is_s3(root) else _missing_folders(Path(root))
    try:
        probe = probe_store(open_files(root, patience_s=PATIENCE_S))
    finally:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    for found in probe.findings:
        yield Finding("storage", found.level, found.text)
    if probe.put_ms is not None and probe.get_ms is not None:
        yield Finding(
            "storage", "ok", f"{probe.put_ms:.1f} ms to write a small object, {probe.get_ms:.1f} ms to read it"
        )


def check_disk(root: Path) -> Finding:
    """Free space where a local root lies, or will lie."""
    place = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < LITTLE_DISK_BYTES:
        text = f"{size_text(free)} free at {place}; expected {size_text(LITTLE_DISK_BYTES)}: make room there"
        return Finding("disk", "warning", text)
    return Finding("disk", "ok", f"{size_text(free)} free at {place}")


def _missing_folders(root: Path) -> list[Path]:
    """The folders that making the root makes, deepest first."""
    return [folder for folder in (root, *root.parents) if not folder.exists()]
