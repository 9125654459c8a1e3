"""Storage: whole objects, receipts and manifests, and the two shapes of stages built on them."""

from mlcd_core.store.chain import Chain
from mlcd_core.store.files import FileInfo, Files, LocalFiles
from mlcd_core.store.folder import StageFolder, StagePlan, UnitTask
from mlcd_core.store.opening import open_files
from mlcd_core.store.probe import Finding, StoreProbe, probe_store
from mlcd_core.store.records import Manifest, Part, Receipt, content_digest, map_part, read_part

__all__ = [
    "Chain",
    "FileInfo",
    "Files",
    "Finding",
    "LocalFiles",
    "Manifest",
    "Part",
    "Receipt",
    "StageFolder",
    "StagePlan",
    "StoreProbe",
    "UnitTask",
    "content_digest",
    "map_part",
    "open_files",
    "probe_store",
    "read_part",
]
