"""label: the nearest centroids of every row, one Parquet file per embedding part."""

from collections.abc import Mapping
from typing import Any

from mlcd_core.device import check_search
from mlcd_core.identity import fingerprint, short
from mlcd_core.runtimes import LabelRuntime
from mlcd_core.specs import LabelSpec
from mlcd_core.store import Part, StageFolder, UnitTask, map_part, open_files, read_part
from tasks.run import Run
from tasks.units import run_units
from tasks.work import Committed, Job, Made, StageWork, settings


def label_work(run: Run, committed: Committed) -> StageWork:
    """Describe the stage; its units follow the parts of the embed manifest."""
    spec, runtime = settings(run, "label")
    assert isinstance(spec, LabelSpec)
    assert isinstance(runtime, LabelRuntime)
    embed, cluster = committed["embed"], committed["cluster"]
    units = tuple(fingerprint([part.sha256, cluster.digest]) for part in embed.parts)
    inputs = {"embed": embed.digest, "cluster": cluster.digest}
    centroids = cluster.parts[0]

    def make(job: Job) -> Made:
        check_search("label.search", runtime.search, runtime.device)
        if job.plan.pending:
            job.session.start()
        devices: set[str] = set()
        pending = list({task.unit: task for task in job.plan.pending}.values())
        run_units(
            UnitLabeler,
            {"root": run.files.uri(""), "spec": spec, "runtime": runtime, "centroids": centroids},
            pending,
            [vars(embed.parts[task.index]) for task in pending],
            workers=runtime.workers,
            report=job.report,
            device=runtime.device,
            on_unit=lambda _, values: devices.add(values["device"]),
        )
        notes = {"devices": sorted(devices), "dim": cluster.provenance.get("dim")}
        return Made(job.folder.receipts(units, job.plan), metrics={"num_centroids": centroids.rows}, notes=notes)

    return StageWork(spec=spec, inputs=inputs, make=make, units=units, expected_rows=embed.rows)


class UnitLabeler:
    """Labels the rows of one embedding part and commits them."""

    def __init__(self, root: str, spec: LabelSpec, runtime: LabelRuntime, centroids: Part) -> None:
        import torch

        from mlcd_core.device import pick_device
        from mlcd_core.kmeans import CentroidState
        from mlcd_core.kmeans.assign import Assigner

        torch.set_num_threads(runtime.threads)
        self._files = open_files(root)
        self._folder = StageFolder(self._files, spec)
        state = CentroidState.from_arrow_bytes(read_part(self._files, centroids))
        self._device = pick_device(runtime.device)
        centroids_KD = state.centroids_KD.to(self._device)
        self._assigner = Assigner(centroids_KD, num_labels=spec.num_labels, search=runtime.search)

    def __call__(self, task: UnitTask, reads: Mapping[str, Any]) -> dict[str, Any]:
        """Commit the unit and return its rows and the device."""
        from mlcd_core.images.embed_shard import read_ipc
        from mlcd_core.labels import label_table, labels_to_parquet_bytes

        source = Part(**reads)
        table = label_table(read_ipc(map_part(self._files, source)), self._assigner)
        part = self._folder.put(
            short(task.unit), ".parquet", labels_to_parquet_bytes(table), rows=table.num_rows, usable=source.usable
        )
        self._folder.commit(task, [part])
        return {"rows": int(table.num_rows), "device": self._device}
