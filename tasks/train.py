"""train: the core's training loop inside Ray Train workers.

Ray gives the processes and their group, nothing more: checkpoints are links of our own chain, the loop itself asks it
where to go on, and Ray's run gets a fresh name and a scratch folder each time.
"""

import math
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from mlcd_core.digest_memo import cache_folder
from mlcd_core.errors import ConfigError
from mlcd_core.events import Report, Value
from mlcd_core.identity import fingerprint, short, spec_fingerprint
from mlcd_core.images.embedder import embedding_dim
from mlcd_core.objects import is_s3
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from tasks.progress import forwarded_events
from tasks.progress_bar import stage_bar
from tasks.run import Run
from tasks.train_attempts import Device, pick_train_device, run_attempts
from tasks.train_log import train_log
from tasks.train_progress import TrainProgress
from tasks.train_start import start_of, start_parts
from tasks.train_stop import saving_at_sigterm
from tasks.train_worker import TrainJob, train_worker
from tasks.work import Committed, Job, Made, StageWork, settings


def train_work(run: Run, committed: Committed) -> StageWork:
    """Describe the stage; C is the number of centroids in the label manifest. Raises ConfigError as ``start_of``."""
    _, runtime = settings(run, "train")
    assert isinstance(runtime, TrainRuntime)
    spec, start = start_of(run)
    label, cluster = committed["label"], committed["cluster"]
    inputs = {"data": run.data_digest, "label": label.digest}
    if spec.center_init != "normal":
        inputs["cluster"] = cluster.digest
    if start is not None:
        inputs["start"] = start.digest

    def make(job: Job) -> Made:
        import ray

        from mlcd_core.train import ran_on, whole_curve

        beginning = start_parts(run, start, label) if start else None
        job.session.start()
        links = work.links(job)
        device = pick_train_device(runtime.device, ray.cluster_resources())
        train_job = TrainJob(
            links=links,
            runtime=runtime.model_copy(update={"device": device}),
            shards=run.shards,
            label_parts=label.parts,
            num_classes=label.metrics["num_centroids"],
            key_column=run.config.embed.key_column,
            centroids=cluster.parts[0] if "cluster" in inputs else None,
            start=beginning,
        )
        train_on_workers(train_job, device, log_folder(run, spec), job.report)
        chain = links.open()
        last = chain.newest()
        assert last is not None, "training ended without a checkpoint"
        metrics = {"curve": whole_curve(chain, last), "num_classes": train_job.num_classes}
        return Made([last], metrics=metrics, notes={"ran_on": ran_on(chain, last)})

    work = StageWork(
        spec=spec,
        inputs=inputs,
        make=make,
        last_number=total_steps(spec, usable_rows=label.usable),
        note=_beginning(spec, inputs),
    )
    return work


def check_train(run: Run) -> None:
    """Raise ConfigError or TrainingError for settings of train that are wrong, before the stages above have run."""
    _, runtime = settings(run, "train")
    assert isinstance(runtime, TrainRuntime)
    spec, _ = start_of(run)
    log_folder(run, spec)
    takes_centroids = spec.center_init == "centroids" and "cluster" not in run.request.pin
    # the default tower fits all that it can be asked, and torch takes seconds to load
    if spec.tower != TrainSpec.model_fields["tower"].default or takes_centroids:
        from mlcd_core.train import check_tower

        embed = run.config.embed
        check_tower(spec, runtime, centroid_dim=embedding_dim(embed, embed.source) if takes_centroids else None)


def log_folder(run: Run, spec: TrainSpec) -> Path:
    """Where the logs of all inputs of this spec lie. Raises ConfigError for a relative ``train.log_folder``."""
    given = run.config.train.log_folder
    if given and not Path(given).is_absolute():
        raise ConfigError(
            f"train.log_folder is {given!r}; a deployment runs in another folder than yours, so give an absolute path"
        )
    return (Path(given) if given else default_logs(run.files.uri(""))) / "train" / short(spec_fingerprint(spec))


def default_logs(root: str) -> Path:
    """``logs/`` of a local root. S3 cannot append, so for a root there it is a folder of the user's cache."""
    if is_s3(root):
        return cache_folder() / "logs" / fingerprint(root)[:12]
    return Path(root) / "logs"


def train_on_workers(job: TrainJob, device: Device, logs: Path, report: Report) -> None:
    """Train to the end, through lost workers. SIGTERM makes the workers save and ends the run."""
    import ray

    from mlcd_core.train.head.blocks import ClassBlocks

    spec = job.links.spec
    assert isinstance(spec, TrainSpec)
    started = threading.Event()

    def note_start(event: str, values: Mapping[str, Value]) -> None:
        del values
        if event == "train_start":
            started.set()

    with ExitStack() as stack:
        log = stack.enter_context(train_log(logs, short(fingerprint(job.links.inputs))))
        heard = _each(report, log, TrainProgress(stage_bar()), note_start)
        remote = stack.enter_context(forwarded_events(heard))
        ask = remote.board.ask_stop.remote
        stack.enter_context(saving_at_sigterm(lambda: ray.get(ask()), can_save=started.is_set))
        run_attempts(
            train_worker,
            {"job": job, "device": device, "report": remote},
            spec=spec,
            runtime=job.runtime,
            device=device,
            num_blocks=ClassBlocks(job.num_classes).num_blocks,
            report=heard,
        )


def total_steps(spec: TrainSpec, *, usable_rows: int) -> int:
    """Steps of the whole run: a lane gives batch_size / lanes rows a step, the longest lane sets the epoch."""
    longest_lane = math.ceil(usable_rows / spec.lanes)
    return spec.epochs * math.ceil(longest_lane / (spec.batch_size // spec.lanes))


def _beginning(spec: TrainSpec, inputs: Mapping[str, str]) -> str:
    """One line for ``plan``: what training begins from, where that is not random."""
    said = []
    if "start" in inputs:
        said.append(f"begins with the weights of train {short(inputs['start'])}")
    if "cluster" in inputs:
        through = " through their PCA" if spec.center_init == "centroids_pca" else ""
        if_new = ", if its classes are other ones" if "start" in inputs else ""
        said.append(f"centers begin as the centroids of cluster {short(inputs['cluster'])}{through}{if_new}")
    return "; ".join(said)


def _each(*reports: Report) -> Report:
    def report(event: str, values: Mapping[str, Value]) -> None:
        for listener in reports:
            listener(event, values)

    return report
