"""A run: the configuration, the input shards and the storage that its stages share, and the record that names it."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mlcd_core.config import Config, load_config, stage_spec, suggestion
from mlcd_core.dataset import Shard, ShardReader, data_digest, find_shards
from mlcd_core.digest_memo import default_memo
from mlcd_core.errors import ConfigError
from mlcd_core.images.embedder import check_embed_spec
from mlcd_core.objects import is_s3
from mlcd_core.specs import STAGES, EmbedSpec, StageName
from mlcd_core.store import Files, open_files
from tasks.demo_data import DEMO, compose_demo
from tasks.tower import with_tower

PINNABLE: tuple[StageName, ...] = ("cluster",)


@dataclass(frozen=True)
class Request:
    """What a person asked for. ``root`` is absolute; ``data`` is a file, folder, pattern, or ``demo``.

    pin: stage -> name of a run under the root, or digest of a manifest, whose result is used as it is.
    """

    root: str
    preset: str = "laptop"
    name: str = "default"
    data: str = DEMO
    eval_data: str = ""
    label_column: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    pin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A request made concrete: settings read, shards found and identified."""

    request: Request
    files: Files
    config: Config
    shards: tuple[Shard, ...]
    eval_shards: tuple[Shard, ...]
    label_column: str

    @cached_property
    def data_digest(self) -> str:
        """Identity of the training shards, in order."""
        return data_digest(self.shards)


def open_run(request: Request) -> Run:
    """Read the settings and find the shards. Raises ConfigError or DataError; writes nothing but the demo's data."""
    for key in ("root", "data", "eval_data"):
        path = getattr(request, key)
        is_demo = key != "root" and path == DEMO
        if path and not is_demo and not is_s3(path) and not Path(path).is_absolute():
            raise ConfigError(
                f"{key} is {path!r}; a deployment runs in another folder than yours, so give an absolute path, or s3://..."
            )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", request.name):
        raise ConfigError(f"name is {request.name!r}; it becomes a file name: use letters, digits, '.', '_' and '-'")
    config = read_settings(request)
    files = open_files(request.root)
    data, eval_data, label_column = request.data, request.eval_data, request.label_column
    if data == DEMO:
        compose_demo(files)
        data, eval_data, label_column = files.uri(f"{DEMO}/train-*"), files.uri(f"{DEMO}/test-*"), "labels"
    label_column = label_column or config.evaluate.label_column
    if eval_data and not label_column:
        raise ConfigError("eval_data is given without a label column, so nothing could be scored; add --label-column")
    memo = default_memo()
    run = Run(
        request=request,
        files=files,
        config=config,
        # a shard that is not whole costs its rows, and the error budget of embed says how many may be lost
        shards=find_shards(data, memo=memo, unreadable="keep"),
        eval_shards=find_shards(eval_data, memo=memo) if eval_data else (),
        label_column=label_column,
    )
    _check_columns(run)
    return run


def _check_columns(run: Run) -> None:
    """A wrong column is wrong in the first shard that can be read, before anything is started."""
    embed = run.config.embed
    captions = embed.caption_column if embed.feature == "image_text_mean" else ""
    for shards in (run.shards, run.eval_shards):
        readable = (shard for shard in shards if not shard.error)
        # where none can be read, the first says why
        for shard in [next(readable, shards[0])] if shards else []:
            ShardReader(shard, image_column=embed.image_column, label_column=run.label_column, caption_column=captions)


def read_settings(request: Request) -> Config:
    """The configuration of a request, with the tower that embeds looked up in the root.

    Raises ConfigError; reads no data.
    """
    for stage, source in request.pin.items():
        if stage not in PINNABLE or not source:
            raise ConfigError(
                f"pin {stage}={source}: expected {' or '.join(PINNABLE)}=RUN_OR_DIGEST; the results of other stages "
                "belong to the shards they were made from"
            )
    # pinned centroids are counted in their manifest, not by a key
    counted = {"cluster.num_centroids": None} if "cluster" in request.pin else {}
    config = load_config(request.preset, environment=os.environ, overrides={**request.overrides, **counted})
    config = with_tower(config, open_files(request.root))
    spec = stage_spec(config, "embed")
    assert isinstance(spec, EmbedSpec)
    check_embed_spec(spec)
    return config


def check_stage(option: str, name: str) -> None:
    """Raise ConfigError for the name of a stage that there is none of; "" is none at all."""
    if name and name not in STAGES:
        raise ConfigError(f"{option} is {name!r}; {suggestion(name, list(STAGES))}")


def check_force(force: Iterable[str], selected: Sequence[StageName], request: Request) -> None:
    """Raise ConfigError for stages that cannot be made again by a run that runs the selected ones."""
    for stage in force:
        check_stage("force", stage)
        if stage in request.pin:
            raise ConfigError(f"{stage} is forced and pinned; a pinned stage never runs: leave one of the two out")
        if stage not in selected:
            raise ConfigError(
                f"{stage} is forced, but only {', '.join(selected)} would run; expected it among them: "
                "widen only, from_stage or until, or leave it out of force"
            )


def selected_stages(*, only: str, from_stage: str, until: str) -> list[StageName]:
    """The stages that may run. Raises ConfigError for unknown names or an empty selection."""
    for option, value in (("only", only), ("from_stage", from_stage), ("until", until)):
        check_stage(option, value)
    if only:
        if from_stage or until:
            raise ConfigError("only selects one stage by itself; leave out from_stage and until")
        return [stage for stage in STAGES if stage == only]
    first = STAGES.index(from_stage) if from_stage else 0
    last = STAGES.index(until) if until else len(STAGES) - 1
    if first > last:
        raise ConfigError(f"from_stage={from_stage} comes after until={until}; the order is {', '.join(STAGES)}")
    return list(STAGES[first : last + 1])
