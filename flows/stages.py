"""One flow per stage: ``pipeline`` with ``only`` set, so that each stage is a deployment and can be run alone."""

from collections.abc import Mapping
from typing import Any

from prefect import Flow, flow

from flows.pipeline import NOTHING, pipeline
from mlcd_core.specs import StageName


def _stage_flow(stage: StageName) -> Flow[..., Any]:
    @flow(name=stage, persist_result=False, description=f"The stage {stage} alone; what it reads must be committed.")
    def stage_flow(
        root: str,
        data: str = "demo",
        eval_data: str = "",
        label_column: str = "",
        preset: str = "laptop",
        name: str = "default",
        overrides: Mapping[str, Any] = NOTHING,
        pin: Mapping[str, str] = NOTHING,
        force: bool = False,
        wait_s: float = -1.0,
        ray_address: str = "",
    ) -> Any:
        """Run one stage.

        Args:
            root: Absolute path or s3:// address of what holds everything this run makes.
            data: Parquet shards with images: a file, folder or pattern, or demo for composed digit scenes.
            eval_data: Labelled shards that only evaluation reads.
            label_column: Column of an int, or a list of ints, per row.
            preset: Packaged settings to start from.
            name: Name of the run's record under root/runs.
            overrides: Settings by dotted key, for example {"train.epochs": 3}.
            pin: Stage to use as it is, by run name or digest.
            force: Make the stage again, though it is committed; what is committed stays valid until then.
            wait_s: Seconds to wait for another run that makes the same; negative is as long as it takes.
            ray_address: Ray cluster that the machine of this run is a node of: auto, or host:port of its head; or
                http://host:port of the dashboard of any cluster, where the stage runs as a job.
        """
        return pipeline.fn(
            root,
            data,
            eval_data,
            label_column,
            preset,
            name,
            only=stage,
            overrides=overrides,
            pin=pin,
            force=(stage,) if force else (),
            wait_s=wait_s,
            ray_address=ray_address,
        )

    return stage_flow


embed = _stage_flow("embed")
cluster = _stage_flow("cluster")
label = _stage_flow("label")
train = _stage_flow("train")
evaluate = _stage_flow("evaluate")
