"""One client's training, or several clients' at once: gradient steps of torch.optim on named
tensors.

Clients whose tensors have equal shapes can be trained *together*: their parameters are stacked on a
leading axis, the loss is vmapped and summed, and an elementwise optimiser step on the stack is
every client's own step. Whether that is faster is measured (benchmarks/together.py), so how many
are stacked is an option. The server trains on its reserve set by the same function. This room knows
no method and no model: it is handed a function of one client's tensors, and the device on which to
call it; what goes in and what comes out lies on the CPU.

Shapes: n clients, B examples in a batch, V views of an example.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.func import vmap
from torch.optim import Optimizer

from .options import option
from .tensors import CPU, Tensors, named, on, stack, unbind, under


@dataclass(frozen=True)
class Local:
    """What one client works with: `trained` moves under the optimiser, `fixed` does not."""

    trained: Tensors
    fixed: Tensors = field(default_factory=dict)

    def kept(self) -> Tensors:
        """As tensors for the private store; `Local.of` is the inverse."""
        return named("trained", self.trained) | named("fixed", self.fixed)

    @classmethod
    def of(cls, kept: Tensors) -> "Local":
        return cls(under(kept, "trained"), under(kept, "fixed"))


# one client: [B, ...] inputs to [B, C], and what moved
Step = Callable[[Local, Tensor], tuple[Tensor, Tensors]]
Logits = Callable[[Local, Tensor], Tensor]  # one client: [B, ...] inputs to [B, C]
Penalty = Callable[[Local], Tensor | float]


@dataclass(frozen=True)
class Learning:
    """How a client trains in one round."""

    epochs: int = option(5, says="passes over a client's training examples in a round", ge=1)
    batch: int = option(16, says="examples in a step", ge=1)
    views: int = option(
        1, says="V, views of an image to draw from: itself and V - 1 augmented ones", ge=1
    )
    optimizer: Literal["sgd", "adam", "adamw"] = option(
        "sgd", says="torch.optim's; its state begins afresh each round"
    )
    rate: float = option(
        0.002, says="learning rate (of the prompt, where a method has other rates beside it)", gt=0
    )
    momentum: float = option(0.0, says="of sgd", ge=0, lt=1)
    weight_decay: float = option(0.0, says="of the optimiser", ge=0)
    schedule: Literal["constant", "cosine"] = option(
        "constant", says="of the rates over the rounds: a pure function of the round"
    )

    def factor(self, round: int, rounds: int) -> float:
        """What the rates are multiplied by in `round` (1 to rounds)."""
        return (
            1.0
            if self.schedule == "constant"
            else (1 + math.cos(math.pi * (round - 1) / rounds)) / 2
        )


@dataclass(frozen=True)
class Examples:
    """Inputs [N, V, ...], view 0 being the example itself, and labels [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Batch:
    """A step of the n clients that have one: inputs [n, B, ...], labels and weights (0: padding)
    [n, B], positions [n].
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    active: Tensor


@dataclass(frozen=True)
class Fitting:
    """How clients of equal shapes are trained, whoever they are."""

    step: Step
    learning: Learning
    penalty: Penalty = lambda _: 0.0
    # of tensors named `prefix.*`, instead of `learning.rate`
    rates: Mapping[str, float] = field(default_factory=dict)
    factor: float = 1.0  # of all rates
    # names of tensors without a gradient: each step says where they moved
    buffers: frozenset[str] = frozenset()
    device: torch.device = CPU


def fit(
    how: Fitting,
    starts: Sequence[Local],
    examples: Sequence[Examples],
    generators: Sequence[torch.Generator],
) -> tuple[list[Tensors], list[float]]:
    """Train clients of equal shapes; their trained tensors, and each one's mean loss over its
    steps.
    """
    begun = on(how.device, stack([s.trained for s in starts]))
    trained = {name: value.detach().clone() for name, value in begun.items()}
    free = {n: value.requires_grad_() for n, value in trained.items() if n not in how.buffers}
    fixed = on(how.device, stack([s.fixed for s in starts]))
    optimizer = _optimizer(free, how)
    total, steps = torch.zeros(2, len(starts), device=how.device)
    for batch in _batches(examples, generators, how):
        losses, moved = _losses(how, trained, fixed, batch)
        gradients = torch.autograd.grad(losses.sum(), list(free.values()))
        for value, gradient in zip(free.values(), gradients, strict=True):
            value.grad = gradient
        _step(optimizer, free, batch.active)
        for name, value in moved.items():
            trained[name][batch.active] = value.detach()
        total[batch.active] += losses.detach()
        steps[batch.active] += 1
    ended = on(CPU, {name: value.detach() for name, value in trained.items()})
    return unbind(ended, len(starts)), (total / steps).tolist()


def predict(
    logits: Logits, states: Sequence[Local], inputs: Sequence[Tensor], device: torch.device = CPU
) -> list[Tensor]:
    """Logits [N_i, C] of clients of equal shapes on their own inputs [N_i, ...]."""
    with torch.no_grad():
        if len(states) == 1:
            one = Local(on(device, states[0].trained), on(device, states[0].fixed))
            return [logits(one, inputs[0].to(device)).to(CPU)]
        trained, fixed = (
            on(device, stack([getattr(s, part) for s in states])) for part in ("trained", "fixed")
        )
        out = vmap(lambda t, f, x: logits(Local(t, f), x))(
            trained, fixed, _stacked(inputs).to(device)
        ).to(CPU)
        return [out[i, : len(x)] for i, x in enumerate(inputs)]


def _losses(how: Fitting, trained: Tensors, fixed: Tensors, batch: Batch) -> tuple[Tensor, Tensors]:
    """Loss of each active client, weighted cross-entropy plus penalty; and its tensors that
    moved.
    """

    def one(
        trained: Tensors, fixed: Tensors, x: Tensor, y: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensors]:
        local = Local(trained, fixed)
        logits, moved = how.step(local, x)
        loss = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        return (loss * weight).sum() / weight.sum() + how.penalty(local), moved

    everyone = len(batch.active) == len(next(iter(trained.values())))

    def rows(group: Tensors) -> Tensors:
        return group if everyone else {name: value[batch.active] for name, value in group.items()}

    if len(batch.active) > 1:
        losses: tuple[Tensor, Tensors] = vmap(one)(
            rows(trained), rows(fixed), batch.x, batch.y, batch.weight
        )
        return losses
    (alone,) = unbind(rows(trained), 1)
    (constant,) = unbind(rows(fixed), 1)
    loss, moved = one(alone, constant, batch.x[0], batch.y[0], batch.weight[0])
    return loss[None], {name: value[None] for name, value in moved.items()}


def _batches(
    examples: Sequence[Examples],
    generators: Sequence[torch.Generator],
    how: Fitting,
) -> Iterator[Batch]:
    """Every client's own shuffled epochs, step by step; a client with fewer examples stops
    earlier.
    """
    x, y = (_stacked([getattr(e, part) for e in examples]).to(how.device) for part in ("x", "y"))
    plans = [
        _plan(len(own), own.x.shape[1], generator, how.learning)
        for own, generator in zip(examples, generators, strict=True)
    ]
    for step in range(max(len(plan) for plan in plans)):
        rows = [row for row, plan in enumerate(plans) if step < len(plan)]
        index, view = torch.stack([plans[row][step] for row in rows], dim=1)  # [2, n, B]
        width = int((index >= 0).sum(1).max())
        index, view, client = (
            at.to(how.device) for at in (index[:, :width], view[:, :width], torch.tensor(rows))
        )
        some = client[:, None], index.clamp(min=0)
        yield Batch(x[(*some, view)], y[some], (index >= 0).float(), client)


def _plan(count: int, views: int, generator: torch.Generator, learning: Learning) -> Tensor:
    """[steps, 2, B]: which example and which view of it stands in each position of each step; -1
    where there is none.
    """
    steps = -(-count // learning.batch)
    plan = torch.full((learning.epochs, 2, steps * learning.batch), -1)
    for epoch in plan:
        epoch[0, :count] = torch.randperm(count, generator=generator)
        epoch[1] = torch.randint(views, epoch[1].shape, generator=generator)
    return plan.reshape(learning.epochs, 2, steps, learning.batch).transpose(1, 2).flatten(0, 1)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Tensors of different lengths on a new leading axis, zeros behind the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def _optimizer(trained: Tensors, how: Fitting) -> Optimizer:
    """One group a rate; without the multi-tensor paths, whose rounding depends on what else is in
    the group.
    """
    learning = how.learning
    kinds: dict[str, Callable[..., Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=learning.momentum),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    groups = [
        {"params": [value], "lr": how.factor * _rate(name, how)}
        for name, value in sorted(trained.items())
    ]
    return kinds[learning.optimizer](groups, weight_decay=learning.weight_decay, foreach=False)


def _rate(name: str, how: Fitting) -> float:
    for prefix, rate in how.rates.items():
        if name.startswith(prefix + "."):
            return rate
    return how.learning.rate


def _step(optimizer: Optimizer, trained: Tensors, active: Tensor) -> None:
    """An optimiser step of the active clients; the others stay exactly where they are."""
    count = len(next(iter(trained.values())))
    done = torch.ones(count, dtype=torch.bool, device=active.device).index_fill(0, active, False)
    before = (
        {name: value[done].detach().clone() for name, value in trained.items()}
        if len(active) < count
        else {}
    )
    optimizer.step()
    with torch.no_grad():
        for name, value in before.items():
            trained[name][done] = value
