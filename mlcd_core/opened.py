"""Reads what a run has made: embeddings, centroids and labels as Arrow tables."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlcd_core.errors import UpstreamMissingError

if TYPE_CHECKING:
    import pyarrow as pa

    from mlcd_core.specs import StageName
    from mlcd_core.store import Files, Manifest


@dataclass(frozen=True)
class OpenedRun:
    """The committed stages of one run. Each method raises UpstreamMissingError while its stage is not committed."""

    files: "Files"
    name: str

    def embeddings(self) -> "pa.Table":
        """All rows in input order, in ``tables.embedding_schema``."""
        return self._table("embed")

    def centroids(self) -> "pa.Table":
        """The centroids in id order, in ``tables.centroid_schema``."""
        return self._table("cluster")

    def labels(self) -> "pa.Table":
        """All rows in input order, in ``tables.label_schema``."""
        return self._table("label")

    def manifest(self, stage: "StageName") -> "Manifest":
        """The manifest that stands for a stage of this run."""
        from mlcd_core.identity import fingerprint, short
        from mlcd_core.store.records import decode_manifest

        record = json.loads(self.files.read(f"runs/{self.name}.json") or b'{"stages": {}}')
        entry = record["stages"].get(stage)
        if entry is None or entry["digest"] is None:
            raise UpstreamMissingError(
                f"{stage} of the run {self.name!r} under {self.files.uri('')} is not committed; "
                f"see mlcd status --root {self.files.uri('')}"
            )
        name = f"{short(fingerprint(entry['inputs']))}-{entry['attempt']:04d}.json"
        path = f"{stage}/{short(entry['spec'])}/manifests/{name}"
        data = self.files.read(path)
        if data is None:
            raise UpstreamMissingError(f"{self.files.uri(path)} is gone; run again with --only {stage}")
        return decode_manifest(data, self.files.uri(path))

    def _table(self, stage: "StageName") -> "pa.Table":
        import pyarrow as pa
        import pyarrow.parquet as pq

        from mlcd_core.store import read_part

        tables = []
        for part in self.manifest(stage).parts:
            source = pa.BufferReader(read_part(self.files, part))
            is_parquet = part.path.endswith(".parquet")
            tables.append(pq.read_table(source) if is_parquet else pa.ipc.open_file(source).read_all())
        return pa.concat_tables(tables)


def open_run(root: str | Path, name: str = "default") -> OpenedRun:
    """Open the run ``name`` under ``root`` for reading."""
    from mlcd_core.store import open_files

    return OpenedRun(open_files(root), name)
