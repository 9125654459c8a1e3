"""The flows: ``pipeline`` runs the stages that are asked for, and one flow per stage runs that one alone.

    embed -> cluster -> label -> train -> evaluate

Parameters are flat, so that the form in the UI is usable and ``prefect deployment run -p`` replaces single values.
"""

from typing import Any, Literal

from prefect import flow
from prefect.states import Failed

from tasks.run import Request, open_run, selected_stages
from tasks.stage import run_stages
from tasks.summary import run_summary

Stage = Literal["", "embed", "cluster", "label", "train", "evaluate"]


@flow(name="pipeline", persist_result=False)
def pipeline(
    root: str,
    data: str = "demo",
    eval_data: str = "",
    label_column: str = "",
    preset: str = "laptop",
    name: str = "default",
    only: Stage = "",
    from_stage: Stage = "",
    until: Stage = "",
    overrides: dict[str, Any] | None = None,
    pin: dict[str, str] | None = None,
) -> Any:
    """Embed, cluster, label, train and evaluate; stages that are committed return at once.

    Args:
        root: Absolute path of the folder that holds everything this run makes.
        data: Parquet shards with images: a file, folder or pattern, or demo for composed digit scenes.
        eval_data: Labelled shards that only evaluation reads.
        label_column: Column of an int, or a list of ints, per row; without it only clusters are evaluated.
        preset: Packaged settings to start from.
        name: Name of the run's record under root/runs.
        only: Run this stage alone; the stages it reads must be committed.
        from_stage: Run from this stage on.
        until: Run up to this stage.
        overrides: Settings by dotted key, for example {"train.epochs": 3}.
        pin: Stage to use as it is, by run name or digest: {"cluster": "default"} labels new shards with old centroids.
    """
    selected = selected_stages(only=only, from_stage=from_stage, until=until)
    request = Request(root, preset, name, data, eval_data, label_column, overrides or {}, pin or {})
    summary = run_summary(run_stages(open_run(request), selected))
    failed = [stage for stage in summary["stages"] if stage["result"] == "failed"]
    return Failed(message=failed[0]["error"], data=summary) if failed else summary
