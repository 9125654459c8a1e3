"""One flow per stage: ``pipeline`` with ``only`` set, so that each stage is a deployment and can be run alone."""

from typing import Any

from prefect import Flow, flow

from flows.pipeline import Stage, pipeline


def _stage_flow(stage: Stage) -> Flow[..., Any]:
    @flow(name=stage, persist_result=False, description=f"The stage {stage} alone; what it reads must be committed.")
    def stage_flow(
        root: str,
        data: str = "demo",
        eval_data: str = "",
        label_column: str = "",
        preset: str = "laptop",
        name: str = "default",
        overrides: dict[str, Any] | None = None,
        pin: dict[str, str] | None = None,
    ) -> Any:
        return pipeline.fn(root, data, eval_data, label_column, preset, name, only=stage, overrides=overrides, pin=pin)

    return stage_flow


embed = _stage_flow("embed")
cluster = _stage_flow("cluster")
label = _stage_flow("label")
train = _stage_flow("train")
evaluate = _stage_flow("evaluate")
