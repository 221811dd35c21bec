"""A frozen CLIP with adapters beside the upper layers of both encoders.

What lies below the first adapter never changes: of an image it is what the model reads, computed
once and kept like features; of the prompts it is computed once, when the model is made. This room
knows torch only; it does not know which parts of an adapter travel.

Shapes: B images, C classes, S tokens, W width of an encoder, D feature width, r width of an
adapter.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, relu
from torch.nn.utils.rnn import pad_sequence

from ..model import Model
from ..tensors import Tensors, rng
from .clip import KEPT, Clip, Layer, Sight, run_frozen
from .clip import _causal as causal
from .clip import _embed as embedded

SIDES = ("image", "text")


class AdaptedClip(Model):
    """CLIP with an adapter beside each of its last `adapted` layers (MMA, CVPR 2024; pFedMMA,
    arXiv:2507.05394).

    A layer's tensors are `SIDE.i.down` and `SIDE.i.up`, and between both sides `shared.i`, each a
    weight and a bias. As in the published code, an adapter reads its layer's input behind that
    layer's first norm. There the maps up are random and all of it is times 0.001; here they start
    at zero, so that it begins as CLIP itself. ValueError if there are fewer layers.
    """

    named = True

    def __init__(
        self,
        clip: Clip,
        sight: Sight,
        classes: tuple[str, ...],
        words: str,
        adapted: int,
        width: int,
        seed: int,
    ) -> None:
        self.clip, self.classes, self.scale = clip, classes, clip.scale
        self.device = clip.positions.device
        layers = min(len(sight.layers), len(clip.layers))
        if adapted > layers:
            raise ValueError(
                f"layers = {adapted}: expected at most {layers}, as this CLIP's encoders have"
            )
        self._project = sight.project
        self._layers = {"image": sight.layers[-adapted:], "text": clip.layers[-adapted:]}
        widths = {"image": clip_width(sight.layers), "text": clip.positions.shape[1]}
        self.initial = _start(widths, adapted, width, seed)
        self._texts_CSW, self._ends_C = self._below(words, len(clip.layers) - adapted)
        tokens = self._texts_CSW.shape[:2].numel()
        self.held = KEPT * tokens * widths["text"] * adapted

    def logits(self, tensors: Tensors, x: Tensor) -> Tensor:
        """[B, C]: scaled cosines of images, of which x [B, S, W] is what the adapted layers read,
        and of the classes' prompts.
        """
        image_BSW = self._above(tensors, "image", x.to(self.device), None)
        image_BD = normalize(self._project(image_BSW[..., 0, :]).float(), dim=-1)
        logits: Tensor = self.scale * image_BD @ self._texts(tensors).mT
        return logits.to(x.device)

    def _texts(self, tensors: Tensors) -> Tensor:
        """[C, D], normalised."""
        hidden_CSW = self._above(tensors, "text", self._texts_CSW, causal(self._texts_CSW))
        ends_CW = hidden_CSW[torch.arange(len(self.classes)), self._ends_C]
        return normalize(self.clip.project(self.clip.norm(ends_CW)).float(), dim=-1)

    def _above(self, tensors: Tensors, side: str, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """z <- layer(z) + up(relu(shared(relu(down(norm1(z)))))), layer by layer."""
        kind = self.clip.positions.dtype
        for i, layer in enumerate(self._layers[side]):
            frozen = run_frozen([layer], hidden.to(kind), mask)
            normed = layer.norm1(hidden.to(kind)).float()
            small = relu(_map(tensors, f"{side}.{i}.down", normed))
            between = relu(_map(tensors, f"shared.{i}", small))
            hidden = frozen.float() + _map(tensors, f"{side}.{i}.up", between)
        return hidden.to(kind)

    @torch.no_grad()
    def _below(self, words: str, layers: int) -> tuple[Tensor, Tensor]:
        """What the first adapted layer reads of each class's prompt, and where each ends."""
        clip = self.clip
        start = [] if clip.start is None else [clip.start]
        prompts = [
            [*start, *clip.tokenize(f"{words} {name.replace('_', ' ')}."), clip.end]
            for name in self.classes
        ]
        longest = max(map(len, prompts))
        if longest > len(clip.positions):
            name = self.classes[max(range(len(prompts)), key=lambda c: len(prompts[c]))]
            raise ValueError(
                f"the prompt of class {name!r} has {longest} tokens, and this CLIP takes"
                f" {len(clip.positions)}: use fewer words, or shorten the name"
            )
        ids_CS = pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
        hidden_CSW = embedded(clip, ids_CS) + clip.positions[:longest]
        below_CSW = run_frozen(clip.layers[:layers], hidden_CSW, causal(hidden_CSW))
        return below_CSW, torch.tensor([len(ids) - 1 for ids in prompts])


def clip_width(layers: Sequence[Layer]) -> int:
    """W of the layers of an encoder."""
    weight: Tensor = layers[0].out.weight  # type: ignore[assignment]
    return weight.shape[0]


def _start(widths: dict[str, int], adapted: int, width: int, seed: int) -> Tensors:
    draw = rng(seed, "adapters")

    def drawn(name: str, outputs: int, inputs: int) -> Tensors:
        weight = (2 / outputs) ** 0.5 * torch.randn(outputs, inputs, generator=draw)
        return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}

    start: Tensors = {}
    for i in range(adapted):
        start |= drawn(f"shared.{i}", width, width)
        for side in SIDES:
            start |= drawn(f"{side}.{i}.down", width, widths[side])
            start[f"{side}.{i}.up.weight"] = torch.zeros(widths[side], width)
            start[f"{side}.{i}.up.bias"] = torch.zeros(widths[side])
    return start


def _map(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
