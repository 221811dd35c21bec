"""A frozen image classifier beside a frozen sentence encoder, which a linear map joins, under a
learned context.

The classifier's last layer has a row for each class that it knows, and each class has a name. A
ridge regression from the names' sentence embeddings to these rows maps any other name to where its
row would lie; the cosine between that and an image's features is a logit, as with a CLIP. The
sentence encoder reads a text in both directions and pools all of it, so nothing is shared between
the classes; prompts are padded to the longest, not to what the encoder takes.

This room knows torch only; where the two come from (halves.py) is none of its business.

Shapes: B images, C classes, D feature width, K classes that the classifier knows, E width of a
sentence embedding, W word width, l context tokens, S tokens of a prompt, N prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence

from ..model import PromptModel

IMAGES = 8  # that a classifier sees at once: few stay in a processor's cache, which halves its time
NAMES = 256  # classes whose names are embedded at once, when the map is made
RIDGES = (1.0, 3.0, 10.0, 30.0, 100.0)
SCALES = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 70.0, 100.0)


@dataclass(frozen=True)
class Classifier:
    """What any image classifier gives us, frozen and in evaluation mode."""

    # pixel values [B, 3, H, W] -> features [B, D]: what its last layer reads
    images: Callable[[Tensor], Tensor]
    rows: Tensor  # [K, D]: its last layer
    names: tuple[str, ...]  # of the K classes
    preprocess: Callable[[Tensor], Tensor]  # uint8 [B, 3, H, W] -> pixel values
    key: str  # hash of all that image features depend on: weights, preprocessing
    recipe: str  # lines of Python that define inputs(pixels) as `encode` does, its name left open


@dataclass(frozen=True)
class Sentences:
    """What any sentence encoder gives us, frozen and in evaluation mode."""

    tokens: nn.Embedding  # ids -> [.., W]
    # word embeddings [N, S, W] and which are there [N, S] -> sentence embeddings [N, E]
    pooled: Callable[[Tensor, Tensor], Tensor]
    tokenize: Callable[[str], list[int]]  # ids of a text, without start and end
    start: int  # id that begins a text
    end: int  # id that ends it
    longest: int  # tokens of a text that it takes
    key: str  # hash of all that sentence embeddings depend on, but for the words
    recipe: str  # lines of Python that define inputs(texts) as `encode_texts` does
    files: Callable[[], dict[str, bytes]]  # what these lines read, by name

    def words(self, text: str) -> Tensor:
        """[n, W] word embeddings of a text."""
        return self.embed(self.tokenize(text))

    def embed(self, ids: Tensor | Sequence[int]) -> Tensor:
        """Word embeddings [.., W] of ids [..]."""
        at = torch.as_tensor(ids, dtype=torch.long).to(self.tokens.weight.device)
        embeddings: Tensor = self.tokens(at)
        return embeddings.detach()


@dataclass(frozen=True)
class Bridge:
    """From sentence embeddings [.., E] to where image features lie: (e - mean) @ matrix."""

    mean: Tensor  # [E]
    matrix: Tensor  # [E, D]
    scale: float  # of cosines, so that they are logits


@dataclass(frozen=True)
class Dual:
    """A classifier and a sentence encoder, joined."""

    classifier: Classifier
    sentences: Sentences
    bridge: Bridge
    words: str  # that stood in front of the names when they were joined


@torch.no_grad()
def encode(classifier: Classifier, images: Tensor) -> Tensor:
    """Normalised features [B, D] in fp32 of images uint8 [B, 3, H, W], whatever B."""
    features = [torch.empty(0, classifier.rows.shape[1])]
    if len(images):
        batches = images.split(IMAGES)
        features += [classifier.images(classifier.preprocess(b)).float().cpu() for b in batches]
    return normalize(torch.cat(features), dim=-1).to(images.device)


@torch.no_grad()
def encode_texts(sentences: Sentences, texts: Sequence[str]) -> Tensor:
    """Sentence embeddings [B, E] in fp32 of texts, each by itself and cut where it is too long."""
    embeddings = []
    for text in texts:
        ids = [sentences.start, *sentences.tokenize(text)[: sentences.longest - 2], sentences.end]
        words_1SW = sentences.embed(torch.tensor([ids]))
        there_1S = torch.ones(1, len(ids), dtype=torch.long, device=words_1SW.device)
        embeddings.append(sentences.pooled(words_1SW, there_1S)[0].float().cpu())
    return torch.stack(embeddings)


@torch.no_grad()
def joined(classifier: Classifier, sentences: Sentences, words: str) -> Bridge:
    """The map by what a sentence encoder says of "`words` NAME." for each class known."""
    context = sentences.words(words)
    embeddings = [
        Prompts(sentences, classifier.names[first : first + NAMES], words).embedded(context).cpu()
        for first in range(0, len(classifier.names), NAMES)
    ]
    return bridge(torch.cat(embeddings), classifier.rows.cpu())


def bridge(embeddings_KE: Tensor, rows_KD: Tensor) -> Bridge:
    """The ridge regression from embeddings to rows, both about their means: a softmax does not see
    what all rows have in common.

    Its strength is that of RIDGES which maps each class best with the class itself left out; the
    scale is that of SCALES under which the maps so made say which row is which.
    """
    mean_E = embeddings_KE.double().mean(0)
    embeddings_KE = embeddings_KE.double() - mean_E
    rows_KD = rows_KD.double() - rows_KD.double().mean(0)
    tried = {ridge: _left_out(embeddings_KE, rows_KD, ridge) for ridge in RIDGES}
    best = min(RIDGES, key=lambda ridge: float((tried[ridge] - rows_KD).square().sum()))
    cosines_KK = normalize(rows_KD, dim=-1) @ normalize(tried[best], dim=-1).T
    own_K = torch.arange(len(rows_KD))
    scale = min(SCALES, key=lambda scale: float(cross_entropy(scale * cosines_KK, own_K)))
    matrix_ED = _solved(embeddings_KE, best) @ rows_KD
    return Bridge(mean_E.float(), matrix_ED.float(), scale)


def _solved(embeddings_KE: Tensor, ridge: float) -> Tensor:
    """[E, K]: what rows are multiplied by to become the map."""
    square_EE = embeddings_KE.T @ embeddings_KE
    square_EE.diagonal().add_(ridge)
    solved_EK: Tensor = torch.linalg.solve(square_EE, embeddings_KE.T)
    return solved_EK


def _left_out(embeddings_KE: Tensor, rows_KD: Tensor, ridge: float) -> Tensor:
    """[K, D]: where each class would be mapped by a map that was made without it."""
    solved_EK = _solved(embeddings_KE, ridge)
    own_K1 = (embeddings_KE * solved_EK.T).sum(1, keepdim=True)  # a class's weight in its own map
    return (embeddings_KE @ (solved_EK @ rows_KD) - own_K1 * rows_KD) / (1 - own_K1)


class Prompts:
    """Prompts `[start][p1 .. pl][tokens of a class name][.][end]` for a sentence encoder; an
    underscore in a name is a space.
    """

    def __init__(self, sentences: Sentences, classes: Sequence[str], words: str) -> None:
        self.sentences, before = sentences, len(sentences.tokenize(words))
        # some tokenizers see whether a space stands in front of a name: here one does
        texts = [f"{words} {name.replace('_', ' ')}." for name in classes]
        self.names = [[*sentences.tokenize(text)[before:], sentences.end] for text in texts]
        ids_CS = pad_sequence([torch.tensor(name) for name in self.names], batch_first=True)
        sizes_C1 = torch.tensor([[len(name)] for name in self.names])
        self._start_1W = sentences.embed([sentences.start])
        self._names_CSW = sentences.embed(ids_CS)
        self._there_CS = (torch.arange(ids_CS.shape[1]) < sizes_C1).to(self._start_1W.device)

    def embedded(self, context: Tensor) -> Tensor:
        """[..., C, E]: sentence embeddings behind contexts [..., l, W], normalised, in fp32."""
        names, lead, length = self._names_CSW, context.shape[:-2], context.shape[-2]
        C, _, W = names.shape
        parts = (
            self._start_1W.expand(*lead, C, 1, W),
            context.to(names).unsqueeze(-3).expand(*lead, C, length, W),
            names.expand(*lead, *names.shape),
        )
        prompts_NSW = torch.cat(parts, dim=-2).reshape(lead.numel() * C, -1, W)
        seen = torch.cat([self._there_CS.new_ones(C, 1 + length), self._there_CS], dim=1)
        pooled = self.sentences.pooled(prompts_NSW, seen.long().repeat(lead.numel(), 1))
        embedded: Tensor = normalize(pooled.float(), dim=-1).unflatten(0, (*lead, C))
        return embedded


class PromptedDual(PromptModel):
    """A learned context in front of class names, as in a CLIP, of a dual model.

    `initial` is {"context": [l, W]}, shared by all classes; nothing else ever gets a gradient.
    ValueError if a prompt is longer than the sentence encoder takes, or if `context` does not fit
    it.
    """

    def __init__(self, dual: Dual, classes: tuple[str, ...], context: Tensor) -> None:
        _check(dual.sentences, classes, context)
        weight = dual.sentences.tokens.weight
        self.classes, self.scale, self.device = classes, dual.bridge.scale, weight.device
        self.initial = {"context": context.detach().to("cpu", torch.float32)}
        self._prompts = Prompts(dual.sentences, classes, dual.words)
        self._mean_E = dual.bridge.mean.to(self.device)
        self._matrix_ED = dual.bridge.matrix.to(self.device)
        self.width = self._matrix_ED.shape[1]
        self._check_length()
        length = 1 + len(context) + max(map(len, self._prompts.names))
        # as a CLIP's, of twelve layers
        self.held = 16 * 12 * len(classes) * length * weight.shape[1]

    def texts(self, context: Tensor) -> Tensor:
        """Contexts [..., l, W] to normalised text features [..., C, D] in fp32, where the contexts
        lie.
        """
        embedded = self._prompts.embedded(context.to(self.device))
        return normalize((embedded - self._mean_E) @ self._matrix_ED, dim=-1).to(context.device)

    def _check_length(self) -> None:
        lengths = [len(name) for name in self._prompts.names]
        context = len(self.initial["context"])
        longest, most = 1 + context + max(lengths), self._prompts.sentences.longest
        if longest > most:
            name = self.classes[lengths.index(max(lengths))]
            raise ValueError(
                f"the prompt of class {name!r} has {longest} tokens, {context} of them context, and"
                f" this sentence encoder takes {most}: set context to at most"
                f" {context - longest + most}, or shorten the name"
            )


def _check(sentences: Sentences, classes: tuple[str, ...], context: Tensor) -> None:
    W, shape = sentences.tokens.embedding_dim, list(context.shape)
    if not classes:
        raise ValueError("there are no classes: give at least one class name")
    if len(shape) != 2 or shape[1] != W:
        raise ValueError(
            f"a context of shape {shape} does not fit this sentence encoder: it must be [l, {W}]"
        )
