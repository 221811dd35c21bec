"""Any sequence classifier of Hugging Face's BERT and GPT-2 families, or a tiny fresh one, and what
makes its inputs.

As with a CLIP (huggingface.py), nothing is downloaded here. This room does not know how a network
is trained.

Shapes: B texts, L tokens, W width, C classes; x [B, 2, L] holds token ids and the attention mask.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import getsource
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, GPT2Config

from ..model import Portable
from ..options import Values
from ..tensors import Tensors, under
from .huggingface import find, pickled, quiet, unknown_ids
from .network import seeded

PAD, START, WORDS = 0, 1, 1022  # ids of the tiny ones: 1,024 altogether
WORD = re.compile(r"\w+|[^\w\s]")
ATTENTION = "eager"  # separate steps: the same bits each time, on every device


@dataclass(frozen=True)
class Encoder:
    """Texts to int64 [B, 2, L], and the same as lines of Python with the files that these read."""

    encode: Callable[[Sequence[str]], Tensor]
    recipe: str
    files: Callable[[], dict[str, bytes]] = dict


def load_transformer(
    name: str, classes: int, tokens: int, pooling: str, seed: int
) -> tuple[nn.Module, Encoder]:
    """A module [B, 2, L] -> [B, C], and the encoder of texts in front of it; L is `tokens`.

    `name` is one of TINY, a folder, or a hub name that was downloaded before. ValueError, with what
    to type, if there is no such model, if a part of it is missing, or if it takes fewer tokens.
    """
    make: Callable[[], Any]
    if name in TINY:
        make = partial(_fresh, TINY[name](tokens), classes)
        encoder = Encoder(
            partial(hashed, tokens), _HASHED.format(source=getsource(hashed), tokens=tokens)
        )
    else:
        folder = find(name, "text model", "tiny-bert")
        tokenizer = _tokenizer(folder)
        make = partial(_load, folder, classes, tokens, tokenizer)
        recipe = _TOKENIZED.format(source=getsource(tokenized), tokens=tokens)
        encoder = Encoder(partial(tokenized, tokenizer, tokens), recipe, partial(saved, tokenizer))
    return seeded(lambda: POOLINGS[pooling](make(), classes), seed), encoder


class Own(nn.Module):
    """A classifier with its own pooling: BERT's at the first token, GPT-2's at the last that is not
    padding.
    """

    def __init__(self, classifier: Any, classes: int) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        ids, mask = x.unbind(1)
        logits: Tensor = self.classifier(input_ids=ids, attention_mask=mask).logits
        return logits

    def portable(self, tensors: Tensors, classes: tuple[str, ...]) -> Portable:
        """As Hugging Face has it: its config, its names of tensors."""
        names = {
            "id2label": dict(enumerate(classes)),
            "label2id": {name: number for number, name in enumerate(classes)},
        }
        return Portable(
            under(tensors, "classifier"), _described(self.classifier) | names, _FORMULA, _OWN
        )


class Mean(nn.Module):
    """A classifier's body, the mean of what it makes of the tokens (padding is none), and a linear
    layer.
    """

    def __init__(self, classifier: Any, classes: int) -> None:
        super().__init__()
        self.body = classifier.base_model
        self.body.pooler = None  # BERT's, which nobody would read: it would have no gradient
        self.head = nn.Linear(classifier.config.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        ids, mask = x.unbind(1)
        hidden_BLW = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        share_BL = mask / mask.sum(1, keepdim=True)
        logits: Tensor = self.head((share_BL[:, None] @ hidden_BLW)[:, 0])
        return logits

    def portable(self, tensors: Tensors, classes: tuple[str, ...]) -> Portable:
        formula = f"{_FORMULA} The logits are a linear map of the mean over tokens."
        return Portable(dict(tensors), _described(self.body), formula, _MEAN)


POOLINGS: dict[str, Callable[[Any, int], nn.Module]] = {"own": Own, "mean": Mean}


def tokenized(tokenizer: Any, tokens: int, texts: Sequence[str]) -> Tensor:
    """Texts as a tokenizer of Hugging Face has them, int64 [B, 2, L], padded on the right."""
    encoded = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=tokens,
        padding_side="right",  # where GPT-2's own pooling and positions expect it
        return_tensors="pt",
    )
    x = torch.stack([encoded.input_ids, encoded.attention_mask], dim=1)
    x[:, 1, 0] = 1  # a text without any token is one of padding: nobody takes a mean of nothing
    return x


def hashed(tokens: int, texts: Sequence[str]) -> Tensor:
    """Texts for the tiny ones, int64 [B, 2, L]: START, then lower-case words and punctuation marks,
    then PAD.

    A word's id is a hash of it, so that there is no vocabulary to learn or to keep; some words
    share one.
    """
    ids = torch.full((len(texts), tokens), PAD)
    for row, text in zip(ids, texts, strict=True):
        words = [START, *(2 + crc32(word.encode()) % WORDS for word in WORD.findall(text.lower()))][
            :tokens
        ]
        row[: len(words)] = torch.tensor(words)
    return torch.stack([ids, (ids != PAD).long()], dim=1)


_FORMULA = (
    "`x` [B, 2, L] holds token ids and the attention mask; `transformers` computes the network"
    " below."
)

_OWN = """from transformers import AutoConfig, AutoModelForSequenceClassification

net = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**n), attn_implementation="eager")
net.load_state_dict(t)
net.eval()


def logits(x):
    ids, mask = x.unbind(1)
    return net(input_ids=ids, attention_mask=mask).logits"""  # noqa: E501

_MEAN = """from transformers import AutoConfig, AutoModel

net = AutoModel.from_config(AutoConfig.for_model(**n), attn_implementation="eager")
net.pooler = None
net.load_state_dict({name.removeprefix("body."): value for name, value in t.items() if name.startswith("body.")})
net.eval()


def logits(x):
    ids, mask = x.unbind(1)
    hidden = net(input_ids=ids, attention_mask=mask).last_hidden_state
    share = mask / mask.sum(1, keepdim=True)
    return nn.functional.linear((share[:, None] @ hidden)[:, 0], t["head.weight"], t["head.bias"])"""  # noqa: E501

_HASHED = f"""import re
from collections.abc import Sequence
from zlib import crc32

PAD, START, WORDS = {PAD}, {START}, {WORDS}
WORD = re.compile(r"{WORD.pattern}")


{{source}}

def inputs(texts):
    return hashed({{tokens}}, texts)"""

_TOKENIZED = """from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")


{source}

def inputs(texts):
    return tokenized(tokenizer, {tokens}, texts)"""


def _described(network: Any) -> Values:
    """Its config as plain values, without the folder that it came from."""
    described: Values = json.loads(network.config.to_json_string(use_diff=False))
    return {key: value for key, value in described.items() if key != "_name_or_path"}


def saved(tokenizer: Any) -> dict[str, bytes]:
    """The files of a tokenizer."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def _tiny_bert(tokens: int) -> BertConfig:
    return BertConfig(
        vocab_size=2 + WORDS,
        pad_token_id=PAD,
        max_position_embeddings=tokens,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )


def _tiny_gpt2(tokens: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=2 + WORDS,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=START,
        n_positions=tokens,
        n_embd=32,
        n_layer=2,
        n_head=2,
        use_cache=False,  # nobody goes on writing these texts
    )


TINY: dict[str, Callable[[int], Any]] = {"tiny-bert": _tiny_bert, "tiny-gpt2": _tiny_gpt2}


def _fresh(config: Any, classes: int) -> Any:
    config.num_labels = classes
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION)  # type: ignore[no-untyped-call]


def _tokenizer(folder: Path) -> Any:
    # it would make an empty one
    if not (folder / "tokenizer.json").exists() and not any(folder.glob("vocab.*")):
        raise _broken(folder, "it has neither tokenizer.json nor vocab.json nor vocab.txt")
    with quiet():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise _broken(folder, str(error).splitlines()[0]) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2's has none
    if tokenizer.pad_token is None:
        raise _broken(
            folder,
            "its tokenizer has neither a pad token nor an end token, and texts of one batch are"
            ' filled up to one length: add a "pad_token" to its tokenizer_config.json',
        )
    return tokenizer


def _load(folder: Path, classes: int, tokens: int, tokenizer: Any) -> Any:
    """The classifier of a folder in fp32; its head is fresh if the folder has none for so many
    classes.
    """
    if why := pickled(folder, "AutoModelForSequenceClassification"):
        raise _broken(folder, why)
    with quiet():
        try:
            classifier, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=classes,
                dtype=torch.float32,
                attn_implementation=ATTENTION,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise _broken(folder, str(error).splitlines()[0]) from None
    body, lacking = (
        classifier.base_model_prefix,
        {
            *report["missing_keys"],
            *(n for n, *_ in report["mismatched_keys"]),
        },
    )
    if gone := sorted(
        name for name in lacking if name.startswith(f"{body}.") and ".pooler." not in name
    ):
        raise _broken(folder, f"it has no weights for {gone[0]}")
    if why := unknown_ids(tokenizer, classifier.get_input_embeddings()):
        raise _broken(folder, why)
    if tokens > (most := _longest(classifier)):
        raise ValueError(
            f"{folder} takes texts of {most} tokens, and tokens is {tokens}: set tokens to at most"
            f" {most}"
        )
    classifier.config.pad_token_id = tokenizer.pad_token_id  # GPT-2 looks for its last token by it
    classifier.config.use_cache = False
    return classifier


def _longest(classifier: Any) -> int:
    """Tokens of the longest text; RoBERTa's positions begin behind the one of padding."""
    embeddings = getattr(classifier.base_model, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    most: int = classifier.config.max_position_embeddings
    padding = getattr(positions, "padding_idx", None)
    if padding is not None:
        most -= padding + 1
    return most


def _broken(folder: Path, why: str) -> ValueError:
    return ValueError(
        f"{folder} does not hold a whole text model: {why}. Save model and tokenizer there"
    )
