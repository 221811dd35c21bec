"""Any torch.nn.Module as a model: a pure function of its named parameters and buffers, in
evaluation and in training.

This room knows torch only: not what the module is, what it takes as its one argument, or who trains
it.
"""

from collections.abc import Callable, Iterable
from copy import copy, deepcopy
from inspect import getsource
from threading import local
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from ..model import Model, Portable
from ..tensors import Tensors, on, rng
from .built import device

M = TypeVar("M", bound=nn.Module)


class Network(Model):
    """A module [B, ...] -> [B, C] with its weights outside; `initial` are those it came with.

    It computes on the device of `computing_on`, in which it is made, wherever its tensors lie; see
    `Model`.

    `initial` holds parameters (tied ones once) and the buffers that a state_dict would keep; other
    buffers are constants and stay inside. Dropout is switched off: a pure function has no hidden
    dice. Threads may compute at once.
    """

    def __init__(self, module: nn.Module, classes: tuple[str, ...], together: bool = True) -> None:
        kept = module.state_dict().keys()
        buffers = {name: value for name, value in module.named_buffers() if name in kept}
        weights = dict(module.named_parameters()) | buffers
        self.classes = classes
        self.device = device()
        self.initial: Tensors = {
            name: value.detach().clone().cpu() for name, value in weights.items()
        }
        self.buffers = frozenset(buffers)
        # stacked clients are padded: that would enter a batch's statistics
        self.together = together and not buffers
        self._hollow = _Hollow(_emptied(module, weights.values(), self.device))

    def starting(self, initial: Tensors) -> "Network":
        """The same network with another start."""
        other = copy(self)
        other.initial = initial
        return other

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C] in evaluation mode."""
        logits: Tensor = functional_call(
            self._hollow.evaluating, on(self.device, tensors), (x.to(self.device),)
        )
        return logits.to(x.device)

    def portable(self, tensors: Tensors) -> Portable:
        """ValueError if the module is neither made of parts that can be written down, nor says
        itself how.
        """
        module: Any = self._hollow.evaluating
        if hasattr(module, "portable"):
            portable: Portable = module.portable(tensors, self.classes)
            return portable
        sources = {
            type(part): getsource(type(part)) for part in module.modules() if hasattr(part, "parts")
        }
        classes = "".join(f"{source}\n\n" for source in sources.values())
        code = f"{classes}net = {written(module)}\nnet.load_state_dict(t)\nnet.eval()\n\n\n"
        code += "def logits(x):\n    return net(x)"
        return Portable(dict(tensors), {}, "The output of the network below.", code)

    def step(self, tensors: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        """[B, C] in training mode, and the new values of the buffers; those given stay as
        they are.
        """
        there = on(self.device, tensors)
        # these the module writes into
        moved = {name: there[name].detach().clone() for name in self.buffers}
        try:
            output = functional_call(self._hollow.training, there | moved, (x.to(self.device),))
            return output.to(x.device), on(x.device, moved)
        except ValueError as error:
            if not (self.buffers and len(x) == 1):
                raise
            raise ValueError(
                f"batch norm cannot train on a batch of one ({error}); use another"
                " learning.batch, which leaves no batch of one, or group norm"
            ) from None


def written(module: Any) -> str:
    """The expression that makes a module of torch's own layers, one behind the other; ValueError
    for any other.

    A layer of ours that computes what one of torch's does names it as its `plain`. A class whose
    constructor takes modules and nothing else names them as its `parts`; its source, which may use
    torch, nn and Tensor, goes in front.
    """
    kind = getattr(module, "plain", type(module))
    if kind is nn.Sequential or hasattr(module, "parts"):
        inner = (
            module
            if isinstance(module, nn.Sequential)
            else [getattr(module, name) for name in module.parts]
        )
        return f"{_called(kind)}({''.join(f'{chr(10)}    {written(part)},' for part in inner)}\n)"
    if not kind.__module__.startswith("torch.nn.modules") or any(module.children()):
        raise ValueError(
            f"{kind.__name__} is not one of torch's own layers, of which a network must be that is"
            " written down in a few lines of torch; use, say, a run with the model"
            " compact-cnn"
        )
    return f"{_called(kind)}({module.extra_repr()})"


def _called(kind: type) -> str:
    return f"nn.{kind.__name__}" if kind.__module__.startswith("torch.") else kind.__name__


class _Hollow(local):
    """A module without weights in both modes: every thread's own, for functional_call hangs weights
    in as it runs.
    """

    def __init__(self, module: nn.Module) -> None:
        self.evaluating = deepcopy(module).eval()
        self.training = deepcopy(module).train()


def _emptied(module: nn.Module, weights: Iterable[Tensor], device: torch.device) -> nn.Module:
    """A copy without dropout, its weights on "meta", where they take no memory, and its constants
    on a device.
    """
    hollow = deepcopy(
        module, {id(weight): torch.empty_like(weight, device="meta") for weight in weights}
    )
    for part in hollow.modules():
        for name in part._non_persistent_buffers_set:
            part.register_buffer(name, part.get_buffer(name).to(device), persistent=False)
        if isinstance(part, _DropoutNd):
            part.p = 0.0
    return hollow


def seeded(make: Callable[[], M], seed: int) -> M:
    """What `make` makes, on the CPU, its start a pure function of `seed`; nobody else's dice are
    touched.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(rng(seed, "model").initial_seed())
        return make()
