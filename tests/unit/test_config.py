"""Settings: precedence, unknown names with a suggestion, and values that cannot be meant."""

import pytest

from mlcd_core.config import all_keys, load_config, preset_names, stage_runtime, stage_spec
from mlcd_core.errors import ConfigError
from mlcd_core.identity import spec_fingerprint
from mlcd_core.specs import STAGES


def load(environment: dict[str, str] | None = None, **overrides: object) -> object:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config("laptop", environment=environment or {}, overrides=dotted)


def test_overrides_win_over_environment_over_preset() -> None:
    environment = {"MLCD_TRAIN__EPOCHS": "3", "MLCD_SEED": "7", "PATH": "x", "MLCD_EXTRA": "cpu"}
    config = load(environment)
    assert (config.train.epochs, config.cluster.num_centroids, config.seed) == (3, 200, 7)
    assert load(environment, train__epochs="5").train.epochs == 5


def test_seed_enters_cluster_train_and_evaluate_unless_they_set_their_own() -> None:
    config = load(seed=9, train__seed=1)
    assert (config.cluster.seed, config.train.seed, config.evaluate.seed) == (9, 1, 9)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_loads_and_gives_a_spec_for_each_stage(preset: str) -> None:
    config = load_config(preset, environment={}, overrides={})
    assert [stage_spec(config, stage).STAGE for stage in STAGES] == list(STAGES)


def test_a_runtime_key_does_not_change_any_fingerprint_and_every_spec_key_changes_one() -> None:
    base = load()
    more_workers = load(train__workers=4, cluster__workers=3, embed__pretrained="/elsewhere/weights")
    assert stage_runtime(more_workers, "train").workers == 4
    for stage in STAGES:
        assert spec_fingerprint(stage_spec(base, stage)) == spec_fingerprint(stage_spec(more_workers, stage))
    changed = load(train__num_positive=4)
    different = [s for s in STAGES if spec_fingerprint(stage_spec(base, s)) != spec_fingerprint(stage_spec(changed, s))]
    assert different == ["train"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train.epoch": 1}, "did you mean train.epochs?"),
        ({"cluster.k": 5}, "keys of cluster: "),
        ({"clusters.iterations": 5}, "did you mean cluster.iterations?"),
        ({"train.loss": "softmx"}, "train.loss is 'softmx'"),
        ({"train.batch_size": "many"}, "train.batch_size is 'many'"),
        ({"train.loss": "softmax"}, "set train.num_positive=1"),
        ({"train.num_positive": 17}, "raise label.num_labels"),
        ({"train.accumulation": 3}, "must divide the 32 rows of a rank"),
        ({"train.center_weight_decay": 500}, "must be below 1"),
        ({"train.sampling": "partial_fc", "train.negative_weighting": "inverse_rate"}, "negative_weighting=none"),
        ({"train.margin_kind": "arcface", "train.margin": 2.0}, "an angle below pi/2"),
        ({"train.workers": 3}, "train.workers=3 must divide train.lanes=8"),
        ({"train.tower": "[a"}, "which is no YAML value"),
        ({"train.learning_rate": ".inf"}, "train.learning_rate is inf"),
        ({"cluster.num_centroids": 10}, "lower label.num_labels"),
        ({"train.device": "gpu"}, "train.device is 'gpu'"),
        ({"evaluate.probe_c": []}, "evaluate.probe_c is []"),
        ({"evaluate.probe_c": [-1.0]}, "evaluate.probe_c.0 is -1.0"),
    ],
)
def test_bad_settings_say_what_and_how_to_mend(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("laptop", environment={}, overrides=overrides)
    assert said in str(caught.value)


def test_unknown_preset_and_unknown_environment_key_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"did you mean laptop\?"):
        load_config("labtop", environment={}, overrides={})
    with pytest.raises(ConfigError, match=r"did you mean train.epochs\?"):
        load({"MLCD_TRAIN__EPOCH": "3"})


def test_text_that_looks_like_a_number_stays_text() -> None:
    assert load(train__start_from="123456789012").train.start_from == "123456789012"
    assert load(train__tower="'conv-tiny'").train.tower == "conv-tiny"
    assert load(train__epochs="3").train.epochs == 3


def test_an_empty_value_is_an_empty_string() -> None:
    assert load(embed__pretrained="").embed.pretrained == ""


def test_all_keys_are_settable() -> None:
    assert {"seed", "embed.embedder", "cluster.iterations", "train.negative_ratio"} <= set(all_keys())
