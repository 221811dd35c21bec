"""Settings of networks for texts. Importing this room does not import transformers; building a
model does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..options import Outside, option
from .built import Built
from .network import Network


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
        return Built(network, encoder.encode, "", recipe=encoder.recipe, files=encoder.files)
