"""One configuration from a preset, the environment and dotted overrides, in that order of precedence.

A section's keys are the fields of the stage's Spec and of its Runtime: ``train.epochs`` is hashed, ``train.workers`` is
not. Unknown keys are errors that name the likely one.
"""

import difflib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mlcd_core.errors import ConfigError
from mlcd_core.runtimes import ClusterRuntime, EmbedRuntime, EvaluateRuntime, LabelRuntime, Runtime, TrainRuntime
from mlcd_core.specs import (
    ClusterSpec,
    EmbedSpec,
    EvaluateSpec,
    LabelSpec,
    StageName,
    StageSpec,
    TrainSpec,
    check_head_spec,
    check_sharding,
)

ENVIRONMENT_PREFIX = "MLCD_"

SPECS: dict[StageName, type[StageSpec]] = {
    "embed": EmbedSpec,
    "cluster": ClusterSpec,
    "label": LabelSpec,
    "train": TrainSpec,
    "evaluate": EvaluateSpec,
}
RUNTIMES: dict[StageName, type[Runtime]] = {
    "embed": EmbedRuntime,
    "cluster": ClusterRuntime,
    "label": LabelRuntime,
    "train": TrainRuntime,
    "evaluate": EvaluateRuntime,
}


class EmbedSettings(EmbedSpec, EmbedRuntime):
    """Keys ``embed.*``."""

    @property
    def source(self) -> str:
        """Where weights, or adopted vectors, are found."""
        return self.vectors if self.embedder == "adopted" else self.pretrained


class ClusterSettings(ClusterSpec, ClusterRuntime):
    """Keys ``cluster.*``."""


class LabelSettings(LabelSpec, LabelRuntime):
    """Keys ``label.*``."""


class TrainSettings(TrainSpec, TrainRuntime):
    """Keys ``train.*``."""


class EvaluateSettings(EvaluateSpec, EvaluateRuntime):
    """Keys ``evaluate.*``."""


class Config(BaseModel):
    """Every setting of a run.

    ``seed`` enters cluster, train and evaluate, and embed's image column and pixel limit enter train and evaluate,
    where these do not set their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    embed: EmbedSettings = EmbedSettings()
    cluster: ClusterSettings = ClusterSettings()
    label: LabelSettings = LabelSettings()
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="before")
    @classmethod
    def _spread_shared_keys(cls, values: dict[str, Any]) -> dict[str, Any]:
        seed = {"seed": values.get("seed", 0)}
        image = {k: v for k, v in values.get("embed", {}).items() if k in ("image_column", "max_pixels")}
        shared = {"cluster": seed, "train": {**seed, **image}, "evaluate": {**seed, **image}}
        return {**values, **{name: {**keys, **values.get(name, {})} for name, keys in shared.items()}}

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        train, label = self.train, self.label
        if train.num_positive > label.num_labels:
            raise ValueError(
                f"train.num_positive is {train.num_positive}, label.num_labels keeps only {label.num_labels}; "
                "raise label.num_labels or lower train.num_positive"
            )
        check_head_spec(train, num_positive=train.num_positive)
        if train.batch_size % train.lanes or train.lanes % train.workers:
            raise ValueError(
                f"train.workers={train.workers} must divide train.lanes={train.lanes}, and that train.batch_size="
                f"{train.batch_size}; change one of them"
            )
        rank_rows = train.batch_size // train.workers
        if rank_rows % train.accumulation:
            raise ValueError(
                f"train.accumulation={train.accumulation} must divide the {rank_rows} rows of a rank "
                f"(train.batch_size={train.batch_size} over train.workers={train.workers}); change one of them"
            )
        check_sharding(sharded=train.shard_tower, compiled=train.compile)
        for kind in ("", "center_"):
            rate, decay = getattr(train, f"{kind}learning_rate"), getattr(train, f"{kind}weight_decay")
            if rate * decay >= 1:
                raise ValueError(
                    f"train.{kind}learning_rate={rate} times train.{kind}weight_decay={decay} is {rate * decay:g}; "
                    "a step takes that share of the weights, so it must be below 1: lower one of them"
                )
        if self.cluster.num_centroids is not None and label.num_labels > self.cluster.num_centroids:
            raise ValueError(
                f"label.num_labels={label.num_labels} nearest of cluster.num_centroids={self.cluster.num_centroids} "
                "centroids cannot be had; lower label.num_labels (and train.num_positive) or raise the centroids"
            )
        if not train.tower.startswith("conv-") and train.image_size < 32:
            raise ValueError(f"train.image_size={train.image_size} is too small for {train.tower}; use at least 32")
        return self


def load_config(preset: str, *, environment: Mapping[str, str], overrides: Mapping[str, Any]) -> Config:
    """Build the configuration of a run.

    preset: name of a packaged YAML file. environment: variables; ``MLCD_TRAIN__EPOCHS=3`` sets ``train.epochs``.
    overrides: dotted key -> value, strings are read as YAML. Raises ConfigError for unknown names and bad values.
    """
    values = read_preset(preset)
    for key, value in {**environment_keys(environment), **overrides}.items():
        _set(values, key, _read(key, value) if isinstance(value, str) else value)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def stage_spec(config: Config, stage: StageName) -> StageSpec:
    """The hashed half of a stage's section."""
    return SPECS[stage](**_fields(getattr(config, stage), SPECS[stage]))


def stage_runtime(config: Config, stage: StageName) -> Runtime:
    """The half of a stage's section that says where and how."""
    return RUNTIMES[stage](**_fields(getattr(config, stage), RUNTIMES[stage]))


def num_workers(config: Config, stage: StageName) -> int:
    """The workers that a stage asks for."""
    return int(getattr(stage_runtime(config, stage), "workers", 1))


def most_workers(config: Config) -> int:
    """The largest number of workers that a stage asks for."""
    return max(num_workers(config, stage) for stage in SPECS)


def preset_names() -> list[str]:
    """The packaged presets."""
    folder = resources.files("mlcd_core") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """The values of a packaged preset. Raises ConfigError for an unknown name."""
    if name not in preset_names():
        raise ConfigError(f"unknown preset {name!r}; {suggestion(name, preset_names())}")
    text = (resources.files("mlcd_core") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def all_keys() -> list[str]:
    """Every key that can be set, dotted."""
    sections = {name: info.annotation for name, info in Config.model_fields.items() if name != "seed"}
    return ["seed"] + [
        f"{section}.{field}" for section, kind in sections.items() if kind is not None for field in kind.model_fields
    ]


def suggestion(name: str, known: list[str]) -> str:
    """``did you mean x?`` for a near miss, else the list of what there is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _fields(settings: BaseModel, kind: type[BaseModel]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in kind.model_fields}


def environment_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Dotted key -> text of every setting that the environment holds."""
    found = {}
    for name, value in environment.items():
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if name.startswith(ENVIRONMENT_PREFIX) and ("." in key or key == "seed"):
            found[key] = value
    return found


def _read(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text) if text else text
    except yaml.YAMLError as error:
        raise ConfigError(f"{key} is {text!r}, which is no YAML value; put it in quotes: {key}='\"{text}\"'") from error
    # a digest of decimal digits only is still text
    return value if isinstance(value, str) or not _is_text(key) else text


def _is_text(key: str) -> bool:
    section, _, field = key.rpartition(".")
    kind = Config.model_fields[section].annotation if section in Config.model_fields else None
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    return field in kind.model_fields and kind.model_fields[field].annotation is str


def _set(values: dict[str, Any], key: str, value: object) -> None:
    section, _, field = key.rpartition(".")
    if key not in all_keys():
        fields = [known.rpartition(".")[2] for known in all_keys() if section and known.startswith(f"{section}.")]
        raise ConfigError(f"unknown key {key!r}; {_key_suggestion(key, section, field, fields)}")
    target = values.setdefault(section, {}) if section else values
    target[field] = value


def _key_suggestion(key: str, section: str, field: str, fields: list[str]) -> str:
    """A likely key of the same section, else of any, else what there is."""
    if not fields:
        return suggestion(key, all_keys())
    near = difflib.get_close_matches(field, fields, n=1, cutoff=0.6)
    return f"did you mean {section}.{near[0]}?" if near else f"keys of {section}: {', '.join(fields)}"


def _explain(error: ValidationError) -> str:
    lines = []
    for issue in error.errors():
        where = ".".join(str(part) for part in issue["loc"])
        text = issue["msg"].removeprefix("Value error, ")
        lines.append(f"{where} is {issue['input']!r}: {text}" if where else text)
    return "; ".join(lines)
