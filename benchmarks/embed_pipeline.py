"""The embed stage as a user runs it, `mlcd run --until embed` on a fresh root, and what its receipts say of its speed.

When a unit ended is when its receipt was written (the file's modification time). Every run has a Prefect home and a
memory of digests of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embed_bare import Loop, Piece

from mlcd_core import open_run
from mlcd_core.store.records import decode_receipt


@dataclass(frozen=True)
class Setting:
    """Actors of the stage, threads of each, and the most rows of a unit."""

    workers: int
    threads: int
    unit_rows: int

    def __str__(self) -> str:
        actors = f"{self.workers} actor{'s' if self.workers > 1 else ''}"
        return f"{actors} of {self.threads} thread{'s' if self.threads > 1 else ''}, units of {self.unit_rows:,}"


@dataclass(frozen=True)
class PipelineRun:
    """One run of the stage: the pieces of ``loop`` are its units, ``startup_s`` ends with the first receipt."""

    loop: Loop
    startup_s: float


def run_pipeline(data: str, settings: Mapping[str, Any], setting: Setting, folder: Path) -> PipelineRun:
    """Embed the shards of a folder with nothing left from before."""
    root = tempfile.mkdtemp(prefix="root-", dir=folder)
    words = {**settings, "device": "cpu", "rows_per_unit": setting.unit_rows}
    words |= {"workers": setting.workers, "threads": setting.threads}
    started = time.time()
    mlcd_run(data, root, words, folder)
    units = units_of(Path(root))
    column = open_run(root).embeddings()["embedding"].combine_chunks()
    embeddings_ND = column.flatten().to_numpy().reshape(len(column), -1)
    return PipelineRun(Loop(embeddings_ND, units), min(unit.ended for unit in units) - started)


def mlcd_run(
    data: str, root: str, settings: Mapping[str, Any], folder: Path, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`mlcd run --until embed`; the JSON summary. Ends this script when the run fails."""
    chosen = [word for name, value in settings.items() for word in ("--set", f"embed.{name}={value}")]
    mlcd = str(Path(sys.executable).parent / "mlcd")
    command = [mlcd, "run", "--data", data, "--root", root, "--until", "embed", *chosen, "--json"]
    home = tempfile.mkdtemp(prefix="home-", dir=folder)
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    private = {"PREFECT_HOME": home, "XDG_CACHE_HOME": home}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**inherited, **private, **(environment or {})}, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def units_of(root: Path) -> list[Piece]:
    """Each unit of embed: it ended when its receipt was written, and took the seconds that the receipt names."""
    units = []
    for path in root.glob("embed/*/units/*.json"):
        receipt = decode_receipt(path.read_bytes(), str(path))
        ended, took = path.stat().st_mtime, sum(receipt.provenance["seconds"].values())
        units.append(Piece(ended - took, ended, sum(part.rows for part in receipt.parts), receipt.provenance["pid"]))
    return units
