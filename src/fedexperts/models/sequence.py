"""Settings of networks for texts: a transformer that is trained whole, or a small network behind a
frozen one.

Importing this room does not import transformers; building a model does.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn

from ..options import Outside, option
from .built import Backbone, Built
from .network import Network, seeded


@dataclass(frozen=True)
class TransformerSettings(Outside):
    """A BERT or a GPT-2 that classifies texts, all of its weights trained; encoded texts are int64
    [B, 2, tokens].
    """

    model: str = option(
        "tiny-bert",
        says='"tiny-bert" or "tiny-gpt2" (small, fresh from the seed), a local folder, or a hub'
        " name downloaded before",
    )
    tokens: int = option(
        64, says="length of a text: a longer one is cut, a shorter one padded", ge=3
    )
    pooling: Literal["own", "mean"] = option(
        "own",
        says='"own": as the classifier in Hugging Face has it; "mean": over all tokens, and a'
        " linear layer",
    )

    def at_hand(self) -> None:
        """ValueError, with what to type, if the model is not on this machine."""
        self.reads()

    def reads(self) -> list[Path]:
        from .huggingface import find  # as below

        if self.model.startswith("tiny-"):
            return []
        return [find(self.model, "text model", "tiny-bert")]

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        """ValueError if the model cannot be loaded, or takes fewer tokens. What it has no weights
        for is seeded.
        """
        # takes seconds to import: not before a model is built
        from .transformer import load_transformer

        module, encoder = load_transformer(
            self.model, len(classes), self.tokens, self.pooling, seed
        )
        network = Network(module, classes, together=False)
        return Built(
            network,
            encoder.encode,
            "",
            recipe=encoder.recipe,
            files=encoder.files,
            reads="texts",
        )


@dataclass(frozen=True)
class SentenceNetworkSettings(Outside):
    """A small network on what a frozen sentence encoder says of a text, which it reads once; one
    hidden layer.
    """

    encoder: str = option(
        "all-minilm-l6-v2",
        says='sentence encoder: "all-minilm-l6-v2" (of the extra photos), a local folder, or a hub'
        " name downloaded before",
    )
    hidden: int = option(64, says="units of the hidden layer", ge=1)

    def at_hand(self) -> None:
        from .sentences import check_encoder  # as above

        check_encoder(self.encoder)

    def reads(self) -> list[Path]:
        from .sentences import folders  # as above

        return folders(self.encoder)

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        """ValueError if the encoder cannot be loaded. The network starts from the seed."""
        from .dual import encode_texts  # as above
        from .sentences import load_sentences, text_key

        sentences = load_sentences(self.encoder)
        width = encode_texts(sentences, [""]).shape[1]

        def fresh() -> nn.Module:
            return nn.Sequential(
                nn.Linear(width, self.hidden), nn.GELU(), nn.Linear(self.hidden, len(classes))
            )

        backbone = None
        for folder in self.reads():
            backbone = Backbone.of(self.encoder, folder)
        return Built(
            Network(seeded(fresh, seed), classes),
            partial(encode_texts, sentences),
            text_key(sentences),
            recipe=sentences.recipe,
            files=sentences.files,
            backbone=backbone,
            reads="texts",
        )
