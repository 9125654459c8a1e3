"""Packing: image folders, ImageFolder trees and webdataset tars to the Parquet shards that the pipeline reads.

A plan says which images go in which shard (``folder``, ``webdataset``); a shard is made by ``pack_unit`` and proved by
a receipt (``ledger``), so that a pack can be killed at any time and go on. Processes are not started here.
"""

from mlcd_core.pack.folder import plan_folder
from mlcd_core.pack.ledger import Changed, Failed, PackLedger
from mlcd_core.pack.options import Kind, KindOption, PackOptions
from mlcd_core.pack.packing import OnRows, pack_unit
from mlcd_core.pack.plan import PackPlan, PackUnit
from mlcd_core.pack.plan_record import recorded_tar_plan
from mlcd_core.pack.scan import FoundFile
from mlcd_core.pack.sources import Sources, find_sources
from mlcd_core.pack.tar_index import BrokenTar, TarIndex, index_tar
from mlcd_core.pack.webdataset import plan_tars

__all__ = [
    "BrokenTar",
    "Changed",
    "Failed",
    "FoundFile",
    "Kind",
    "KindOption",
    "OnRows",
    "PackLedger",
    "PackOptions",
    "PackPlan",
    "PackUnit",
    "Sources",
    "TarIndex",
    "find_sources",
    "index_tar",
    "pack_unit",
    "plan_folder",
    "plan_tars",
    "recorded_tar_plan",
]
