"""The flows: ``pipeline`` runs the stages that are asked for, and one flow per stage runs that one alone.

    embed -> cluster -> label -> train -> evaluate

Parameters are flat, so that the form in the UI is usable and ``prefect deployment run -p`` replaces single values.
"""

from typing import Any, Literal

from prefect import flow
from prefect.states import Failed

from tasks.run import Request, selected_stages
from tasks.run_rounds import rounds_summary, run_rounds

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
    rounds: int = 1,
    retry_failed: bool = False,
    wait_s: float = -1.0,
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
        rounds: How often to run the stages. Each round after the first embeds with the tower that the one before
            trained, and is a run of its own, named NAME-round2, NAME-round3, ...
        retry_failed: Embed again what could not be embedded: units whose shard could not be read, or whose worker died.
            They get a new attempt, and so does the stage; where the bytes are equal, all below is cached.
        wait_s: Seconds to wait for another run that makes the same stage; negative: as long as it takes.
    """
    selected = selected_stages(only=only, from_stage=from_stage, until=until)
    request = Request(root, preset, name, data, eval_data, label_column, overrides or {}, pin or {})
    summary = rounds_summary(run_rounds(request, selected, rounds, retry_failed=retry_failed, wait_s=wait_s))
    failed = [stage for stage in summary["stages"] if stage["result"] == "failed"]
    return Failed(message=failed[0]["error"], data=summary) if failed else summary
