"""The flows: ``pipeline`` runs the stages that are asked for, and one flow per stage runs that one alone.

    embed -> cluster -> label -> train -> evaluate

Parameters are flat, so that the form in the UI is usable and ``prefect deployment run -p`` replaces single values.
"""

import uuid
from collections.abc import Mapping
from typing import Any, Literal

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.rendering import plan_text
from mlcd_core.specs import StageName
from tasks.approval import check_approval
from tasks.artifacts import publish_plan_artifact, publish_run_artifact
from tasks.rounds import plan_rounds
from tasks.run import Request, selected_stages
from tasks.run_rounds import rounds_summary, run_rounds
from tasks.stage import Manner
from tasks.summary import RunFailedError

Stage = Literal["", "embed", "cluster", "label", "train", "evaluate"]
# no dict | None: the form has no field for it in V2 of the UI
NOTHING: Mapping[str, Any] = {}


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
    overrides: Mapping[str, Any] = NOTHING,
    pin: Mapping[str, str] = NOTHING,
    rounds: int = 1,
    force: tuple[StageName, ...] = (),
    retry_failed: bool = False,
    wait_s: float = -1.0,
    ray_address: str = "",
    approve_before: Stage = "",
    plan_only: bool = False,
) -> Any:
    """Embed, cluster, label, train and evaluate; stages that are committed return at once.

    Args:
        root: Absolute path or s3:// address of what holds everything this run makes.
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
        force: Make these stages again from the beginning, though they are committed. What is committed stays valid
            until the new attempt is whole; where its bytes are equal, all below is cached. A retry of this run goes on
            with that attempt and forces nothing again.
        retry_failed: Embed again what could not be embedded: units whose shard could not be read, or whose worker died.
            They get a new attempt, and so does the stage; where the bytes are equal, all below is cached.
        wait_s: Seconds to wait for another run that makes the same stage; negative: as long as it takes.
        ray_address: Ray cluster that the machine of this run is a node of: auto, or host:port of its head. Or
            http://host:port of the dashboard of any cluster: there each stage that is not committed runs as a job,
            which a run that was killed finds again. Empty: Ray is started on that machine alone, and stopped with the
            run.
        approve_before: Suspend the run before this stage, where it has work to do, and show what was clustered. Resume
            it to approve or to end it. Only for runs of a deployment.
        plan_only: Run nothing, and show as the artifact mlcd-plan what a run would do, why, and what it would take.
    """
    selected = selected_stages(only=only, from_stage=from_stage, until=until)
    check_approval(approve_before, selected)
    request = Request(root, preset, name, data, eval_data, label_column, overrides, pin)
    # the id is the same when the run is retried
    manner = Manner(retry_failed, frozenset(force), flow_run.id or uuid.uuid4().hex, wait_s, approve_before)
    if plan_only:
        plan = plan_rounds(request, selected, rounds, manner)
        publish_plan_artifact(plan_text(plan["stages"], plan["estimate"]))
        return plan
    summary = rounds_summary(run_rounds(request, selected, rounds, manner, ray_address=ray_address))
    publish_run_artifact(summary)
    failed = [stage for stage in summary["stages"] if stage["result"] == "failed"]
    if failed:
        text = failed[0]["error"]
        # an exception, for Prefect raises what a failed state holds
        return Failed(message=text, data=RunFailedError(text, summary))
    return summary
