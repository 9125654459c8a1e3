"""The learning rate's course: up to the peak, then down towards zero."""

from itertools import pairwise

import pytest

from mlcd_core.specs import TrainSpec
from mlcd_core.train.schedule import DECAYS, rate_share


def shares(num_steps, **settings):
    spec = TrainSpec(**settings)
    return [rate_share(spec, step, num_steps) for step in range(num_steps)]


def test_every_schedule_of_the_spec_exists():
    assert set(TrainSpec.model_fields["schedule"].annotation.__args__) == set(DECAYS)


@pytest.mark.parametrize("schedule", DECAYS)
def test_it_warms_up_in_a_line_then_falls_at_every_step(schedule):
    found = shares(100, schedule=schedule, warmup_share=0.1)
    assert found[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert found[10] == 1.0
    assert all(before > after for before, after in pairwise(found[10:]))
    assert 0 < found[-1] < 0.001


@pytest.mark.parametrize(("schedule", "half_way"), [("cosine", 0.5), ("poly", 0.25)])
def test_half_way_down(schedule, half_way):
    assert rate_share(TrainSpec(schedule=schedule, warmup_share=0.2), 60, 100) == pytest.approx(half_way)


@pytest.mark.parametrize("schedule", DECAYS)
def test_a_single_step_has_the_peak_rate(schedule):
    assert shares(1, schedule=schedule, warmup_share=0.1) == [1.0]
    assert shares(1, schedule=schedule, warmup_share=0.9) == [1.0]
