"""The moving average of a tower's weights, against the definition written out."""

import torch
from torch import nn

from mlcd_core.train.average import TowerAverage


def test_it_is_the_average_with_a_decay_that_warms_up():
    layer = nn.Linear(3, 2)
    average, expected = TowerAverage(layer, 0.5), layer.weight.detach().clone()
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]):
        with torch.no_grad():
            layer.weight.add_(step + 1)
        average.update(layer, step)
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        torch.testing.assert_close(average.state["weight"], expected)
    assert not torch.equal(average.state["weight"], layer.weight)


def test_counts_are_copied_and_weights_kept_in_float32():
    norm = nn.BatchNorm1d(3).double()
    average = TowerAverage(norm, 0.9)
    norm(torch.randn(4, 3, dtype=torch.float64))
    average.update(norm, step=100)
    assert int(average.state["num_batches_tracked"]) == 1
    assert average.state["running_mean"].dtype == torch.float32
    torch.testing.assert_close(average.state["running_mean"], 0.1 * norm.running_mean.float())
