"""A CLIP with a learned context in front of its class names, over the parts that any CLIP gives us.

The text encoder is causal and the context comes first, so what `[SOS][p1 .. pl]` becomes is the
same for every class, and nothing behind `[EOS]` matters. All classes therefore run as one tree:
`[SOS][p1 .. pl]` once, the trunk, and behind it the few tokens of every name, each with the
position that it has in its own prompt and seeing itself and its ancestors only. Names that begin
alike share those tokens too. In the last layer only the `[EOS]` go on. All this is exact;
benchmarks/text_encoder.py says what it saves.

This room knows torch only; where the parts come from (huggingface.py) is none of its business.

Shapes: B batch, C classes, D feature width, W word width, l context tokens, L positions, T = 1 + l
trunk tokens, S sequence, H heads, d head width, R rows of names, s tokens of a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from ..model import Model, Portable, PromptModel
from ..tensors import Tensors

Name = tuple[int, ...]  # the token ids behind the context: class name, full stop, [EOS]
Row = dict[Name, int]  # the beginning of a name -> the position in the row of its last token
# queries, keys, values [.., H, S, d] -> [.., H, S, d]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

QUICK = 1.702
KEPT = 16  # values that a layer keeps of a token for its gradient, in widths
IMAGES = 64  # images that an image encoder sees at once


@dataclass(frozen=True)
class Layer:
    """A pre-norm transformer layer, each part a map of [.., W] to [.., W]."""

    norm1: nn.Module
    seen: nn.Module  # to [.., 3 W]: queries, keys and values in one product
    out: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    heads: int


@dataclass(frozen=True)
class Sight:
    """The image side of a CLIP that is a transformer, layer by layer."""

    tokens: Callable[[Tensor], Tensor]  # pixel values [B, 3, H, W] -> [B, S, W], the class's first
    layers: tuple[Layer, ...]
    project: Callable[[Tensor], Tensor]  # [.., W] -> features [.., D], not normalised


def one_product(query: nn.Linear, key: nn.Linear, value: nn.Linear) -> nn.Linear:
    """Three maps of the same as one, frozen."""
    maps = (query, key, value)
    return _linear(
        torch.cat([each.weight for each in maps]), torch.cat([each.bias for each in maps])
    )


def quick_mlp(first: nn.Linear, second: nn.Linear) -> nn.Module:
    """What OpenAI took for a GELU between two maps, x * sigmoid(1.702 x), as one operation: the
    factor is in the weights.
    """
    return nn.Sequential(
        _linear(QUICK * first.weight, QUICK * first.bias),
        nn.SiLU(),
        _linear(second.weight / QUICK, second.bias),
    )


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    rows, columns = weight.shape
    with torch.device("meta"):
        made = nn.Linear(columns, rows)
    made.load_state_dict({"weight": weight.detach(), "bias": bias.detach()}, assign=True)
    return made.requires_grad_(False)


@dataclass(frozen=True)
class Clip:
    """What any CLIP gives us, frozen and in evaluation mode.

    The image side is one function, so a ModifiedResNet fits as well as a ViT. The text side is
    open, because a learned context enters behind `tokens` and the attention of the layers is ours.
    Its parts have one type, fp32 or bf16. A text encoder is causal and pools a text at [EOS]; or,
    with `pad`, it sees a text of all L positions in both directions and pools it at the last
    (SigLIP, arXiv:2303.15343): then nothing can be shared between the classes.
    """

    # pixel values [B, 3, H, W] -> features [B, D], not normalised
    images: Callable[[Tensor], Tensor]
    tokens: nn.Embedding  # ids -> [.., W]
    positions: Tensor  # [L, W]
    layers: tuple[Layer, ...]
    norm: nn.Module  # [.., W] -> [.., W]
    project: nn.Linear  # [.., W] -> [.., D]
    scale: float  # exp(logit_scale): the inverse temperature
    tokenize: Callable[[str], list[int]]  # ids of a text, without start and end
    start: int | None  # id of [SOS]; None: a text begins at once
    end: int  # id of [EOS]
    preprocess: Callable[[Tensor], Tensor]  # uint8 [B, 3, H, W] -> pixel values
    key: str  # hash of all that image features depend on: weights, preprocessing
    pad: int | None = None  # id that fills a text up to L positions; None: the encoder is causal
    # lines of Python that define inputs(pixels) as `encode` does, of a folder "backbone"; "": many
    # lines
    recipe: str = ""
    # pixel values -> features [B, 1 + P, D] of the image and its patches; None: they lie elsewhere
    # than texts
    patches: Callable[[Tensor], Tensor] | None = None
    sight: Callable[[], Sight] | None = None  # None: its image side is no transformer

    @property
    def width(self) -> int:
        """D, the width of image and text features."""
        return self.project.out_features


@torch.no_grad()
def encode(clip: Clip, images: Tensor) -> Tensor:
    """Normalised features [B, D] in fp32 of images uint8 [B, 3, H, W], whatever B."""
    batches = images.split(IMAGES) if len(images) else ()
    features = [clip.images(clip.preprocess(batch)).float() for batch in batches]
    return normalize(
        torch.cat([*features, clip.positions.new_empty(0, clip.width).float()]), dim=-1
    ).to(images.device)


def words(clip: Clip, text: str) -> Tensor:
    """[n, W] word embeddings of a text in fp32, on the CPU: a context that starts as "a photo of
    a", say.
    """
    return _embed(clip, clip.tokenize(text)).float().cpu()


class PromptedClip(PromptModel):
    """The model of CoOp (arXiv:2109.01134) and pFedMoAP (arXiv:2410.10114): a frozen CLIP and a
    learned context.

    The prompt of class c is `[SOS][p1 .. pl][tokens of the class name][.][EOS]`; an underscore in a
    name is a space. `initial` is {"context": [l, W]}, shared by all classes; nothing else ever gets
    a gradient. ValueError if a prompt is longer than the text encoder, or `context` does not fit
    it.
    """

    def __init__(
        self, clip: Clip, classes: tuple[str, ...], context: Tensor, patches: bool = False
    ) -> None:
        self.clip, self.classes, self.scale = clip, classes, clip.scale
        self.patches, self.width = patches, 0 if patches else clip.width
        self.device = clip.positions.device
        self.initial = {"context": context.detach().to("cpu", torch.float32)}
        self._names = [(*clip.tokenize(f"{name.replace('_', ' ')}."), clip.end) for name in classes]
        self._start = _embed(clip, [] if clip.start is None else [clip.start])  # [0 or 1, W]
        self._trunk = len(self._start) + len(context)
        self._check()
        self._tree = _tree(clip, self._names, self._trunk) if clip.pad is None else None
        tokens, width = len(self.classes) * len(clip.positions), clip.positions.shape[1]
        if self._tree:
            tokens = self._trunk + len(self._tree.words)
        self.held = KEPT * tokens * width * len(clip.layers)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt, [SOS] and [EOS] included."""
        return self._trunk + max(map(len, self._names))

    def texts(self, context: Tensor) -> Tensor:
        """Contexts [..., l, W] to normalised text features [..., C, D] in fp32, where the contexts
        lie.
        """
        if (tree := self._tree) is None:
            return self.texts_plain(context)
        trunk = self._begin(context)
        branches = tree.words.expand(*trunk.shape[:-2], -1, -1)
        attend = partial(_attend_tree, mask_RsS=tree.mask)
        hidden = torch.cat([trunk, branches], dim=-2)
        return self._finish(hidden, attend, (tree.ends,)).to(context.device)

    def texts_plain(self, context: Tensor, length: int | None = None) -> Tensor:
        """The same as `texts`, each class in a sequence of `length` tokens (None: as many as there
        are positions).

        What every other implementation computes; of a causal encoder for tests and benchmarks
        alone, usually with `length=self.longest`.
        """
        clip, T, C = self.clip, self._trunk, len(self.classes)
        length = len(clip.positions) if length is None else length
        fill = clip.end if clip.pad is None else clip.pad
        padded_CS = torch.tensor(
            [[*name, *[fill] * (length - T - len(name))] for name in self._names]
        )
        names = _embed(clip, padded_CS) + clip.positions[T:length]
        trunk = self._begin(context).unsqueeze(-3)
        hidden = torch.cat(
            [part.expand(*trunk.shape[:-3], C, -1, -1) for part in (trunk, names)], dim=-2
        )
        ends = (
            torch.tensor([T + len(name) if clip.pad is None else length for name in self._names])
            - 1
        )
        mask = _causal(hidden) if clip.pad is None else hidden.new_zeros(())
        return self._finish(hidden, partial(_attend, mask=mask), (torch.arange(C), ends)).to(
            context.device
        )

    def _begin(self, context: Tensor) -> Tensor:
        """[..., T, W]: the embeddings of [SOS][p1 .. pl]."""
        start = self._start.expand(*context.shape[:-2], -1, -1)
        return torch.cat([start, context.to(start)], dim=-2) + self.clip.positions[: self._trunk]

    def _finish(self, hidden: Tensor, attend: Attend, ends: tuple[Tensor, ...]) -> Tensor:
        """Embeddings [..., S, W] to the normalised text features [..., C, D] at the indices
        `ends`.
        """
        *layers, last = self.clip.layers
        for layer in layers:
            hidden = _run(layer, hidden, attend)
        hidden = _run(last, hidden, attend, ends)
        return normalize(self.clip.project(self.clip.norm(hidden)).float(), dim=-1)

    def _check(self) -> None:
        (L, W), shape = self.clip.positions.shape, list(self.initial["context"].shape)
        if not self.classes:
            raise ValueError("there are no classes: give at least one class name")
        if len(shape) != 2 or shape[1] != W:
            raise ValueError(
                f"a context of shape {shape} does not fit this CLIP: it must be [l, {W}]"
            )
        if self.longest > L:
            name = self.classes[max(range(len(self._names)), key=lambda c: len(self._names[c]))]
            most = shape[0] - self.longest + L
            remedy = f"set context to at most {most}, or shorten the name"
            if most < 1:
                remedy = "shorten the name"
            raise ValueError(
                f"the prompt of class {name!r} has {self.longest} tokens, {shape[0]} of them"
                f" context, and this CLIP takes {L}: {remedy}"
            )


class LinearProbe(Model):
    """A linear classifier on normalised image features: scale * (x @ weight^T) + bias, from zero.

    CLIP's own scale makes it the function of the features that a prompted CLIP is, with free
    vectors for its texts.
    """

    def __init__(self, classes: tuple[str, ...], width: int, scale: float) -> None:
        self.classes, self.scale, self.width = classes, scale, width
        C = len(classes)
        self.initial = {"weight": torch.zeros(C, width), "bias": torch.zeros(C)}

    def logits(self, tensors: Tensors, x_BD: Tensor) -> Tensor:
        """[B, C] from normalised image features [B, D]."""
        return self.scale * x_BD @ tensors["weight"].mT + tensors["bias"]

    def portable(self, tensors: Tensors) -> Portable:
        code = 'def logits(x):\n    return n["scale"] * x @ t["weight"].T + t["bias"]'
        formula = "A linear map of `x`, the image's normalised feature times scale."
        return Portable(dict(tensors), {"scale": self.scale}, formula, code)


@dataclass(frozen=True)
class Tree:
    """What stands behind the trunk: R rows of s tokens, one behind the other, padded with tokens
    that nobody sees.
    """

    words: Tensor  # [Rs, W]: embeddings
    # [R, s, T + s]: 0 where a token sees one of the trunk or of its own row, -inf where it does not
    mask: Tensor
    # [C]: position of each class's [EOS] among the T + Rs, where the text encoder is: a step copies
    # nothing
    ends: Tensor


def pack(names: Sequence[Name], bound: int) -> list[Row]:
    """Names as trees, in rows of at most `bound` tokens (or one name, where that is longer).

    A row bounds what attention costs. Names are sorted first, so that those which begin alike come
    into the same row.
    """
    rows: list[Row] = []
    for name in sorted(set(names)):
        beginnings = [name[:n] for n in range(1, len(name) + 1)]
        if not rows or len(rows[-1].keys() | beginnings) > bound:
            rows.append({})
        for beginning in beginnings:
            rows[-1].setdefault(beginning, len(rows[-1]))
    return rows


def _cheapest(names: Sequence[Name], T: int, W: int) -> list[Row]:
    """The rows that take the least time: few tokens with their padding, in rows short enough for
    attention.
    """

    def cost(rows: list[Row]) -> int:
        s = max(map(len, rows))
        # a token's attention, and its share of the linear maps: measured
        return len(rows) * s * (s + T + 2 * W)

    return min((pack(names, bound) for bound in range(24, 257, 8)), key=cost)


@torch.no_grad()
def _tree(clip: Clip, names: Sequence[Name], T: int) -> Tree:
    rows = _cheapest(names, T, clip.positions.shape[1])
    R, s = len(rows), max(map(len, rows))
    own_Rss = clip.positions.new_full((R, s, s), float("-inf"))
    own_Rss.diagonal(dim1=-2, dim2=-1).zero_()
    for r, row in enumerate(rows):
        for beginning, i in row.items():
            if len(beginning) > 1:
                own_Rss[r, i] = own_Rss[r, row[beginning[:-1]]]  # what its parent sees ..
            own_Rss[r, i, i] = 0  # .. and itself
    ids_Rs = _padded([[beginning[-1] for beginning in row] for row in rows])
    places_Rs = _padded([[T + len(beginning) - 1 for beginning in row] for row in rows])
    where = {beginning: r * s + i for r, row in enumerate(rows) for beginning, i in row.items()}
    return Tree(
        words=(_embed(clip, ids_Rs) + clip.positions[places_Rs]).flatten(0, 1),
        mask=torch.cat([own_Rss.new_zeros(R, s, T), own_Rss], dim=-1),
        ends=torch.tensor([T + where[name] for name in names]).to(clip.positions.device),
    )


def _run(
    layer: Layer, hidden: Tensor, attend: Attend, ends: tuple[Tensor, ...] | None = None
) -> Tensor:
    """One layer on [..., S, W]; with `ends`, only those tokens go on behind the attention: [..., C,
    W].
    """
    parts = layer.seen(layer.norm1(hidden)).unflatten(-1, (3, layer.heads, -1))
    query, key, value = parts.movedim(-3, 0).transpose(-3, -2)  # [.., H, S, d] each
    seen = attend(query, key, value).transpose(-3, -2).flatten(-2)
    if ends is not None:
        chosen: Any = (..., *ends, slice(None))
        hidden, seen = hidden[chosen], seen[chosen]
    hidden = hidden + layer.out(seen)
    mapped: Tensor = layer.mlp(layer.norm2(hidden))
    return hidden + mapped


def run_frozen(layers: Sequence[Layer], hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """[..., S, W] through layers, each token seeing all others or those that the mask says."""
    attend = partial(_attend, mask=hidden.new_zeros(()) if mask is None else mask)
    for layer in layers:
        hidden = _run(layer, hidden, attend)
    return hidden


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention in separate steps: the fused kernels know no vmap on a CPU."""
    scores: Tensor = query @ key.mT * query.shape[-1] ** -0.5 + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def _attend_tree(query: Tensor, key: Tensor, value: Tensor, mask_RsS: Tensor) -> Tensor:
    """The trunk sees itself; the tokens of each row see the trunk and those of their own row that
    the mask says.
    """
    R, s, T = *mask_RsS.shape[:2], mask_RsS.shape[2] - mask_RsS.shape[1]

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        trunk, rows = x.split([T, R * s], dim=-2)
        return trunk, rows.unflatten(-2, (R, s))  # [.., H, T, d] and [.., H, R, s, d]

    def seen(trunk: Tensor, rows: Tensor) -> Tensor:
        # [.., H, R, T + s, d]
        return torch.cat([trunk.unsqueeze(-3).expand(*rows.shape[:-2], -1, -1), rows], dim=-2)

    (query, query_R), (key, key_R), (value, value_R) = parts(query), parts(key), parts(value)
    behind = _attend(query_R, seen(key, key_R), seen(value, value_R), mask_RsS)
    return torch.cat([_attend(query, key, value, _causal(query)), behind.flatten(-3, -2)], dim=-2)


def _causal(x: Tensor) -> Tensor:
    """[S, S] for [.., S, d]: 0 up to a token's own position, -inf behind it."""
    return torch.full((x.shape[-2],) * 2, float("-inf"), dtype=x.dtype, device=x.device).triu(1)


def _embed(clip: Clip, ids: Tensor | Sequence[int]) -> Tensor:
    """Word embeddings [.., W] of ids [..]."""
    embeddings: Tensor = clip.tokens(
        torch.as_tensor(ids, dtype=torch.long).to(clip.positions.device)
    )
    return embeddings.detach()


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
