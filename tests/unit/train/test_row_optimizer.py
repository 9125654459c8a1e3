"""AdamW over rows: torch's where every row is touched or asked for, and lazy semantics where rows rest."""

import pytest
import torch

from mlcd_core.train.head import AdamWSettings, HeadSpec, ShardedHead, reference_loss
from mlcd_core.train.head.row_optimizer import RowAdamW

BETAS, EPS = (0.9, 0.98), 1e-8


def rows(count=6, dim=3, dtype=torch.float64):
    return torch.randn(count, dim, dtype=dtype, generator=torch.Generator().manual_seed(0))


def lazy(center_CD, weight_decay=0.0):
    return RowAdamW(center_CD.clone(), AdamWSettings("lazy", BETAS, EPS, weight_decay))


def gradient(step, like):
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(100 + step))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_rows_touched_at_every_step_move_as_in_torch_adamw(weight_decay, dtype, tolerance):
    center_CD = rows(dtype=dtype)
    optimizer = lazy(center_CD, weight_decay)
    dense = torch.nn.Parameter(center_CD.clone())
    torch_optimizer = torch.optim.AdamW([dense], lr=0.0, betas=BETAS, eps=EPS, weight_decay=weight_decay)
    all_rows = torch.arange(len(center_CD))
    for step in range(20):
        rate = 0.1 / (1 + step)
        torch_optimizer.param_groups[0]["lr"] = rate
        dense.grad = gradient(step, center_CD)
        torch_optimizer.step()
        optimizer.read(all_rows)
        optimizer.step(all_rows, gradient(step, center_CD), rate)
    torch.testing.assert_close(optimizer.state.center, dense.detach(), rtol=tolerance, atol=tolerance)


def test_full_sampling_head_equals_dense_training_with_torch_adamw():
    spec, generator = HeadSpec(negative_ratio=1.0, scale=16, margin=0.1), torch.Generator().manual_seed(3)
    head = ShardedHead(spec, 20, 5, dtype=torch.float64, adamw=AdamWSettings("lazy", BETAS, EPS, 0.05))
    dense = torch.nn.Parameter(head.centers_CD.clone())
    torch_optimizer = torch.optim.AdamW([dense], lr=0.01, betas=BETAS, eps=EPS, weight_decay=0.05)
    for step in range(15):
        features_BD = torch.randn(8, 5, dtype=torch.float64, generator=generator)
        positives_BL = torch.rand(8, 20, generator=generator).topk(3, dim=1).indices
        torch_optimizer.zero_grad()
        reference_loss(features_BD, dense, positives_BL, spec).backward()
        torch_optimizer.step()
        head(features_BD, positives_BL, step=step).loss.backward()
        head.step(0.01)
    torch.testing.assert_close(head.centers_CD, dense.detach(), rtol=1e-6, atol=1e-9)


def test_dense_moves_all_rows_as_torch_adamw_with_the_gradient_of_the_touched():
    center_CD = rows()
    optimizer = RowAdamW(center_CD.clone(), AdamWSettings("dense", BETAS, EPS, 0.1))
    twin = torch.nn.Parameter(center_CD.clone())
    torch_optimizer = torch.optim.AdamW([twin], lr=0.0, betas=BETAS, eps=EPS, weight_decay=0.1)
    for step, touched in enumerate([[0, 1, 2], [5], [1, 3], [0, 5], [2]]):
        rate, touched_T = 0.1 / (1 + step), torch.tensor(touched)
        torch_optimizer.param_groups[0]["lr"] = rate
        twin.grad = torch.zeros_like(center_CD)
        twin.grad[touched_T] = gradient(step, center_CD)[touched_T]
        torch_optimizer.step()
        assert torch.equal(optimizer.read(touched_T), optimizer.state.center[touched_T])
        optimizer.step(touched_T, gradient(step, center_CD)[touched_T], rate)
    torch.testing.assert_close(optimizer.state.center, twin.detach(), rtol=1e-13, atol=1e-13)


def test_a_resting_row_keeps_its_moments_and_owes_only_decay():
    center_CD, rate, decay = rows(), 0.1, 0.2
    optimizer = lazy(center_CD, decay)
    everything, first = torch.arange(6), torch.tensor([0])
    optimizer.read(everything)
    optimizer.step(everything, gradient(0, center_CD), rate)
    after_one = optimizer.state.center.clone()
    moments = optimizer.state.m.clone()
    for step in (1, 2, 3):
        optimizer.read(first)
        optimizer.step(first, gradient(step, center_CD[:1]), rate)
    assert torch.equal(optimizer.state.center[1:], after_one[1:])
    assert torch.equal(optimizer.state.m[1:], moments[1:])
    assert optimizer.state.touches.tolist() == [4, 1, 1, 1, 1, 1]
    optimizer.settle()
    torch.testing.assert_close(optimizer.state.center[1:], after_one[1:] * (1 - rate * decay) ** 3)
    settled = optimizer.state.center.clone()
    optimizer.settle()
    assert torch.equal(optimizer.state.center, settled)


def test_a_row_follows_adamw_over_its_own_touches():
    # a row touched at steps 1 and 4 moves as one that AdamW saw twice, with the rates of those steps
    center_CD, rates = rows(count=2), [0.3, 0.1, 0.2, 0.4, 0.05]
    optimizer = lazy(center_CD)
    for step, rate in enumerate(rates):
        touched = torch.tensor([0, 1] if step in (1, 4) else [0])
        optimizer.read(touched)
        optimizer.step(touched, gradient(step, center_CD[touched]), rate)
    twin = torch.nn.Parameter(center_CD[1:].clone())
    torch_optimizer = torch.optim.AdamW([twin], lr=0.0, betas=BETAS, eps=EPS, weight_decay=0.0)
    for step in (1, 4):
        torch_optimizer.param_groups[0]["lr"] = rates[step]
        twin.grad = gradient(step, center_CD)[1:]
        torch_optimizer.step()
    torch.testing.assert_close(optimizer.state.center[1:], twin.detach(), rtol=1e-12, atol=1e-12)
