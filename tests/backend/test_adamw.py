"""Our loop around torch's fused step against torch's own optimiser and schedule."""

import torch
from torch import Tensor

from backend.adamw import AdamW

STEPS = 60


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(20, 5), (5,), (5, 3)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def loss_of(tensors: list[Tensor], step: int) -> Tensor:
    first, bias, second = tensors
    inputs = torch.randn(16, 20, generator=torch.Generator().manual_seed(step))
    return (torch.relu(inputs @ first + bias) @ second - inputs[:, :3]).square().mean()


def test_same_steps_as_torchs_own() -> None:
    ours, theirs = parameters(), parameters()
    optimiser = AdamW(
        [([ours[0], ours[2]], 0.1), ([ours[1]], 0.0)], learning_rate=0.05, steps=STEPS
    )
    groups = [
        {"params": [theirs[0], theirs[2]], "weight_decay": 0.1},
        {"params": [theirs[1]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, STEPS)
    for step in range(STEPS):
        optimiser.step(torch.autograd.grad(loss_of(ours, step), [ours[0], ours[2], ours[1]]))
        reference.zero_grad()
        loss_of(theirs, step).backward()  # type: ignore[no-untyped-call]
        reference.step()
        schedule.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    assert loss_of(ours, STEPS) < loss_of(parameters(), STEPS) / 2
