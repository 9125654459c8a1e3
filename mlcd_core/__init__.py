"""MLCD's core: everything the pipeline computes, without Prefect and without Ray."""

from mlcd_core.opened import OpenedRun, open_run

__all__ = ["OpenedRun", "open_run"]
