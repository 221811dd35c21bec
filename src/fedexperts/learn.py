"""One client's training, or several clients' at once: gradient steps of torch.optim on named
tensors.

Clients whose tensors have equal shapes can be trained *together*: their parameters are stacked on a
leading axis, the loss is vmapped and summed, and an elementwise optimiser step on the stack is
every client's own step; stacks.py says who is trained with whom. The server trains on its reserve
set by the same function. This room knows no method and no model: it is handed a function of one
client's tensors, and the device on which to call it; what goes in and what comes out lies on the
CPU.

Shapes: n clients, B examples in a batch, V views of an example.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.utils.rnn import pad_sequence
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

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
    everyone: bool  # whether these are all clients


class Private(Protocol):
    """Steps that hide each example (noised.py): their batches and gradients are its own."""

    def plans(
        self, examples: Sequence[Examples], draws: Sequence[torch.Generator], how: Learning
    ) -> list[Tensor]: ...

    def gradients(
        self, how: "Fitting", free: Tensors, fixed: Tensors, batch: Batch
    ) -> tuple[Tensor, list[Tensor]]: ...


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
    private: Private | None = None


def fit(
    how: Fitting,
    starts: Sequence[Local],
    examples: Sequence[Examples],
    generators: Sequence[torch.Generator],
) -> tuple[list[Tensors], list[float]]:
    """Train clients of equal shapes; their trained tensors, and each one's mean loss over its
    steps.
    """
    if how.private:
        drawn = how.private.plans(examples, generators, how.learning)
        return _together(how, starts, examples, [plan.to(how.device) for plan in drawn])
    plans = [
        _plan(len(own), own.x.shape[1], generator, how.learning).to(how.device)
        for own, generator in zip(examples, generators, strict=True)
    ]
    if len(starts) == 1:
        ended, loss = _alone(how, starts[0], examples[0], plans[0])
        return [ended], [loss]
    return _together(how, starts, examples, plans)


def _alone(how: Fitting, start: Local, own: Examples, plan: Tensor) -> tuple[Tensors, float]:
    """One client, without a stack."""
    trained, free = _begun(on(how.device, start.trained), how)
    fixed = on(how.device, start.fixed)
    x, y = own.x.to(how.device), own.y.to(how.device)
    descent = _Descent(free, how)
    total = torch.zeros((), device=how.device)
    for index, view in plan:
        width = int((index >= 0).sum())
        at = index[:width]
        loss, moved = _loss(how, Local(trained, fixed), x[at, view[:width]], y[at])
        descent.step(torch.autograd.grad(loss, list(free.values())))
        trained |= {name: value.detach() for name, value in moved.items()}
        total += loss.detach()
    ended = on(CPU, {name: value.detach() for name, value in trained.items()})
    return ended, float(total / len(plan))


def _together(
    how: Fitting, starts: Sequence[Local], examples: Sequence[Examples], plans: Sequence[Tensor]
) -> tuple[list[Tensors], list[float]]:
    """Clients on a leading axis."""
    trained, free = _begun(on(how.device, stack([s.trained for s in starts])), how)
    fixed = on(how.device, stack([s.fixed for s in starts]))
    descent = _Descent(free, how)
    total, steps = torch.zeros(2, len(starts), device=how.device)
    for batch in _batches(examples, plans, how.device):
        moved: Tensors = {}
        if how.private:
            losses, gradients = how.private.gradients(how, free, fixed, batch)
        else:
            losses, moved = _losses(how, trained, fixed, batch)
            gradients = list(torch.autograd.grad(losses.sum(), list(free.values())))
        if batch.everyone:
            descent.step(gradients)
        else:
            _some(descent, gradients, batch.active)
        for name, value in moved.items():
            trained[name][batch.active] = value.detach()
        total[batch.active] += losses.detach()
        steps[batch.active] += 1
    ended = on(CPU, {name: value.detach() for name, value in trained.items()})
    return unbind(ended, len(starts)), (total / steps).tolist()


def _begun(starts: Tensors, how: Fitting) -> tuple[Tensors, Tensors]:
    """Copies that may be trained, and those of them that have a gradient."""
    trained = {name: value.detach().clone() for name, value in starts.items()}
    free = {n: value.requires_grad_() for n, value in trained.items() if n not in how.buffers}
    return trained, free


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


def _loss(how: Fitting, local: Local, x: Tensor, y: Tensor) -> tuple[Tensor, Tensors]:
    """One client's loss on a batch, cross-entropy plus penalty; and its tensors that moved."""
    logits, moved = how.step(local, x)
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    return losses.sum() / len(y) + how.penalty(local), moved


def _losses(how: Fitting, trained: Tensors, fixed: Tensors, batch: Batch) -> tuple[Tensor, Tensors]:
    """Loss of each active client, and its tensors that moved."""

    def padded(
        trained: Tensors, fixed: Tensors, x: Tensor, y: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensors]:
        local = Local(trained, fixed)
        logits, moved = how.step(local, x)
        losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        return (losses * weight).sum() / weight.sum() + how.penalty(local), moved

    def rows(group: Tensors) -> Tensors:
        if batch.everyone:
            return group
        return {name: value[batch.active] for name, value in group.items()}

    if len(batch.active) > 1:
        losses: tuple[Tensor, Tensors] = vmap(padded)(
            rows(trained), rows(fixed), batch.x, batch.y, batch.weight
        )
        return losses
    (alone,) = unbind(rows(trained), 1)
    (constant,) = unbind(rows(fixed), 1)
    loss, moved = _loss(how, Local(alone, constant), batch.x[0], batch.y[0])
    return loss[None], {name: value[None] for name, value in moved.items()}


def _batches(
    examples: Sequence[Examples], plans: Sequence[Tensor], device: torch.device
) -> Iterator[Batch]:
    """Every client's own shuffled epochs, step by step; a client with fewer examples stops
    earlier.
    """
    x, y = (_stacked([getattr(e, part) for e in examples]).to(device) for part in ("x", "y"))
    # [n, steps, 2, B]: -1 also behind a client's last step
    padded = pad_sequence(list(plans), batch_first=True, padding_value=-1)
    everybody = torch.arange(len(plans), device=device)
    for step, (index, view) in enumerate(padded.permute(1, 2, 0, 3)):
        rows = [row for row, plan in enumerate(plans) if step < len(plan)]
        client, everyone = everybody, len(rows) == len(plans)
        if not everyone:
            client = torch.tensor(rows, device=device)
            index, view = index[client], view[client]
        width = max(1, int((index >= 0).sum(1).max()))
        index, view = index[:, :width], view[:, :width]
        some = client[:, None], index.clamp(min=0)
        yield Batch(x[(*some, view)], y[some], (index >= 0).float(), client, everyone)


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
    return pad_sequence(list(values), batch_first=True)


class _Descent:
    """Steps of torch.optim by the functions under its classes, tensor by tensor: whatever else is
    trained, a tensor rounds the same. Making one of the classes imports a compiler, for a second.
    """

    def __init__(self, free: Tensors, how: Fitting) -> None:
        self.how, self.values = how, list(free.values())
        self.rates = [how.factor * _rate(name, how) for name in free]
        self.momenta: list[Tensor | None] = [None] * len(self.values)  # of sgd
        moments = how.learning.optimizer != "sgd"
        # of adam and adamw
        self.means, self.squares = (
            [torch.zeros_like(value) for value in self.values] if moments else [] for _ in range(2)
        )
        self.steps = [torch.tensor(0.0) for _ in self.values]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        take = self._sgd if self.how.learning.optimizer == "sgd" else self._adam
        for position, gradient in enumerate(gradients):
            take(position, gradient)

    def _sgd(self, at: int, gradient: Tensor) -> None:
        momentum = [self.momenta[at]]
        sgd(
            [self.values[at]],
            [gradient],
            momentum,
            foreach=False,
            weight_decay=self.how.learning.weight_decay,
            momentum=self.how.learning.momentum,
            lr=self.rates[at],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        self.momenta[at] = momentum[0]

    def _adam(self, at: int, gradient: Tensor) -> None:
        kinds: dict[str, Callable[..., object]] = {"adam": adam, "adamw": adamw}
        kinds[self.how.learning.optimizer](
            [self.values[at]],
            [gradient],
            [self.means[at]],
            [self.squares[at]],
            [],
            [self.steps[at]],
            foreach=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.rates[at],
            weight_decay=self.how.learning.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def _rate(name: str, how: Fitting) -> float:
    for prefix, rate in how.rates.items():
        if name.startswith(prefix + "."):
            return rate
    return how.learning.rate


@torch.no_grad()
def _some(descent: _Descent, gradients: Sequence[Tensor], active: Tensor) -> None:
    """A step of the active clients; the others stay exactly where they are."""
    done = torch.ones(len(descent.values[0]), dtype=torch.bool, device=active.device)
    done[active] = False
    before = [value[done].clone() for value in descent.values]
    descent.step(gradients)
    for value, was in zip(descent.values, before, strict=True):
        value[done] = was
