"""DP-SGD (arXiv:1607.00133): every example's gradient clipped, their sum noised.

Which examples a step has is drawn for each of them by itself (Poisson), as the account assumes it.
It is exact for every loss that is a sum over examples, and refused for others: a batch norm's
output for one example is made of the others. A penalty, which reads no data, is added after the
noise. This room does not count what is given away.

Shapes: B examples in a step, padded; S steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence

from .learn import Batch, Examples, Fitting, Learning, Local
from .tensors import Normal, Tensors


@dataclass(frozen=True)
class Noised:
    """How several clients' steps are made private; lists are by client."""

    clip: float
    noises: Sequence[float]  # in units of clip
    normals: Sequence[Normal]  # where each client's chance comes from
    examples: Sequence[int]

    def plan(self, client: int, views: int, draw: torch.Generator, how: Learning) -> Tensor:
        """[S, 2, B]: which example and which view of it stands in each position of each step; -1
        where there is none.
        """
        count = self.examples[client]
        steps = how.epochs * math.ceil(count / how.batch)
        rate = min(1.0, how.batch / count)
        taken = []
        for _ in range(steps):
            chance_N = torch.special.ndtr(self.normals[client](torch.Size([count])).double())
            taken.append((chance_N <= rate).nonzero()[:, 0])
        index_SB = pad_sequence(taken, batch_first=True, padding_value=-1)
        return torch.stack([index_SB, torch.randint(views, index_SB.shape, generator=draw)], dim=1)

    def plans(
        self, examples: Sequence[Examples], draws: Sequence[torch.Generator], how: Learning
    ) -> list[Tensor]:
        """Of all clients, as wide as the widest."""
        plans = [
            self.plan(client, own.x.shape[1], draw, how)
            for client, (own, draw) in enumerate(zip(examples, draws, strict=True))
        ]
        widest = max(plan.shape[-1] for plan in plans)
        return [pad(plan, (0, widest - plan.shape[-1]), value=-1) for plan in plans]

    def gradients(
        self, how: Fitting, free: Tensors, fixed: Tensors, batch: Batch
    ) -> tuple[Tensor, list[Tensor]]:
        """Each active client's loss, which stays with it, and the gradients of all, 0 of those that
        are done.
        """
        sums = {name: torch.zeros_like(value) for name, value in free.items()}
        losses = []
        for row, client in enumerate(batch.active.tolist()):
            mine = {name: value[client].detach() for name, value in free.items()}
            held = {name: value[client] for name, value in fixed.items()}
            each, loss_B = _each(how, mine, held, batch.x[row], batch.y[row])
            total = clipped_sum(each, self.clip, batch.weight[row])
            expected = min(how.learning.batch, self.examples[client])
            leaning = _leaning(how, mine, held)
            for name, value in sorted(total.items()):  # a checkpoint has another order
                normal = self.normals[client](value.shape).to(value.device)
                noisy = value + self.noises[client] * self.clip * normal
                sums[name][client] = noisy / expected + leaning[name]
            weight_B = batch.weight[row]
            losses.append((loss_B * weight_B).sum() / weight_B.sum().clamp_min(1))
        return torch.stack(losses), list(sums.values())


def clipped_sum(each: Tensors, clip: float, weight_B: Tensor) -> Tensors:
    """The sum of examples' gradients [B, ...], each scaled to at most `clip` in l2, all tensors as
    one vector.
    """
    squares_B = sum(v.double().square().reshape(len(v), -1).sum(1) for v in each.values())
    assert isinstance(squares_B, Tensor)
    # a little less than allowed, so that rounding never makes it more
    scale_B = (clip * (1 - 1e-6) / squares_B.sqrt().clamp_min(1e-30)).clamp_max(1) * weight_B
    return {
        name: torch.einsum("b,b...->...", scale_B.to(value), value) for name, value in each.items()
    }


def _each(
    how: Fitting, free: Tensors, fixed: Tensors, x: Tensor, y: Tensor
) -> tuple[Tensors, Tensor]:
    """Every example's own gradient and loss."""

    def loss(free: Tensors, x: Tensor, y: Tensor) -> Tensor:
        logits, _ = how.step(Local(free, fixed), x[None])
        return cross_entropy(logits, y[None])

    each, loss_B = vmap(grad_and_value(loss), in_dims=(None, 0, 0))(free, x, y)
    return each, loss_B


def _leaning(how: Fitting, free: Tensors, fixed: Tensors) -> Tensors:
    """The gradient of the penalty."""

    def penalty(free: Tensors) -> Tensor:
        return torch.as_tensor(how.penalty(Local(free, fixed)), dtype=torch.float32)

    leaning: Tensors = grad(penalty)(free)
    return leaning
