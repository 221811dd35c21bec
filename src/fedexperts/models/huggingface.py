"""Any CLIP of Hugging Face's CLIPModel or SiglipModel, in the parts of clip.py; and where Hugging
Face keeps models.

A CLIP with a ModifiedResNet, which has no class there, gets its tokenizer and image processor here,
too.

Nothing is downloaded here: a hub name is looked up in this machine's own Hugging Face cache.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    SiglipImageProcessorPil,
    SiglipModel,
)
from transformers.activations import QuickGELUActivation
from transformers.utils import logging

from ..fetch import NotHereError, Repository, here, snapshot
from ..options import Values, typed_path
from . import openai
from .built import device
from .clip import Clip, Layer, one_product, quick_mlp
from .openai import plain
from .sight import patches_of, taken_apart

KINDS: dict[str, tuple[Any, Any, Any]] = {  # of config.json: model, tokenizer, image processor
    "clip": (CLIPModel, CLIPTokenizer, CLIPImageProcessorPil),
    "siglip": (SiglipModel, AutoTokenizer, SiglipImageProcessorPil),
}
FEATURES = {  # in lines of Python
    "clip": "clip.visual_projection(clip.vision_model(pixel_values=shown).pooler_output)",
    "siglip": "clip.vision_model(pixel_values=shown).pooler_output",
}
RECIPE = """from transformers import {processor}, {model}

clip = {model}.from_pretrained("backbone", dtype=torch.float32).to({dtype})
processor = {processor}.from_pretrained("backbone")


def inputs(pixels):
    shown = processor(list(pixels.numpy()), input_data_format="channels_first", return_tensors="pt").pixel_values
    return torch.nn.functional.normalize({features}.float(), dim=-1)"""  # noqa: E501
VOCABULARIES = tuple(
    f"openai/clip-vit-{size}" for size in ("base-patch32", "base-patch16", "large-patch14")
)
OURS = (  # in quotation marks
    'tinyclip" for written characters or, for photographs, "pip install \'fedexperts[photos]\'" and'
    ' model.name = "prompted-dual'
)
# in configs written before transformers knew the real id: pool at the highest id, which is [EOS]
LEGACY_EOS = 2


def load_clip(name: str, dtype: torch.dtype = torch.float32) -> Clip:
    """The CLIP of a folder or file, our own "tinyclip", or of a hub name downloaded before; frozen,
    once a process.

    Its weights get `dtype` and the device of `computing_on`; scale and outputs stay exact floats.
    ValueError, with what to type, if there is no such CLIP, if it is none that a learned context
    fits, or if a part of it is missing.
    """
    return _load(find_clip(name), dtype, device())


def find_clip(name: str) -> Path:
    """Where `load_clip` reads it; ValueError, with what to type, if it is not on this machine."""
    return Path(__file__).parent / name if name == "tinyclip" else find(name, "CLIP", OURS)


def side(folder: Path) -> int:
    """Pixels of a side of the images that the CLIP in a folder (or file) is shown."""
    if (kind := _kind(folder)) not in KINDS:
        return _checkpoint(folder, kind).side
    try:
        processor = KINDS[kind][2].from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _broken(folder, str(error).splitlines()[0]) from None
    return side_of(processor)


def width(folder: Path) -> int:
    """Numbers of a word in the text encoder of the CLIP in a folder (or file)."""
    if (kind := _kind(folder)) not in KINDS:
        return _checkpoint(folder, kind).tensors["positional_embedding"].shape[1]
    about = KINDS[kind][0].config_class.from_pretrained(folder, local_files_only=True)
    return int(about.text_config.hidden_size)


def side_of(processor: Any) -> int:
    """Pixels of a side of what an image processor makes."""
    size = processor.size
    if getattr(processor, "do_center_crop", False):
        size = processor.crop_size
    return int(size.get("height") or size["shortest_edge"])


def find(name: str, kind: str, ours: str) -> Path:
    """The folder (or file) of a `kind` of model, given itself or by a hub name that was downloaded
    before.

    ValueError, with what to type or to use instead (`ours`), if there is none.
    """
    if (there := typed_path(name)).exists():
        return there.resolve()
    if folder := here(Repository(name)):
        return folder
    raise NotHereError(
        f"no {kind} at {name!r}: it is neither a folder nor, whole, in this machine's Hugging Face"
        " cache. Give a folder with config.json and weights, or type "
        f'"fedexperts fetch {name}" first if it is a hub name, or use "{ours}"',
        names=[name],
    )


def pickled(folder: Path, kind: str) -> str:
    """Why the weights in a folder are not read, with what to type, for a class of transformers; ""
    if they are safe.
    """
    if any(folder.glob("*.safetensors")) or not (pickles := sorted(folder.glob("*.bin"))):
        return ""
    return (
        f"{pickles[0].name} is a pickle, which can run programs when it is read, so only"
        " model.safetensors is. If you "
        f'trust who made it, type: python -c "from transformers import {kind} as M; '
        f'M.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"'
    )


def unknown_ids(tokenizer: Any, embedding: Any) -> str:
    """Why a tokenizer says ids that an embedding does not have, with what to do; "" if it has all.

    So it is where words were added to a tokenizer alone.
    """
    ids = 1 + max(tokenizer.get_vocab().values())
    if ids <= embedding.num_embeddings:
        return ""
    return (
        f"its tokenizer has {ids} ids and its embedding {embedding.num_embeddings}; use"
        " model.resize_token_embeddings(len(tokenizer)) and train these words"
    )


@cache
def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> Clip:
    kind = _kind(folder)
    if kind not in KINDS:
        return _resnet(folder, kind, dtype, device)
    classes = KINDS[kind]
    _check_vocabulary(folder)
    if why := pickled(folder, classes[0].__name__):
        raise _broken(folder, why)
    with quiet():
        try:
            tokenizer = classes[1].from_pretrained(folder, local_files_only=True)
            processor = classes[2].from_pretrained(folder, local_files_only=True)
            loader: Any = classes[0].from_pretrained
            model, report = loader(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
            )
        except ImportError:
            raise ValueError(
                f"the tokenizer in {folder} needs a package; type: pip install 'fedexperts[siglip]'"
            ) from None
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _broken(folder, str(error).splitlines()[0]) from None
    if report["missing_keys"]:
        raise _broken(folder, f"it has no weights for {sorted(report['missing_keys'])[0]}")
    if why := unknown_ids(tokenizer, model.text_model.embeddings.token_embedding):
        raise _broken(folder, why)
    if kind == "clip":
        _check_ids(folder, model, tokenizer)
    return parts(model, tokenizer, processor, dtype, device)


def parts(
    model: Any, tokenizer: Any, processor: Any, dtype: torch.dtype, device: torch.device
) -> Clip:
    """The parts of a CLIPModel or SiglipModel, which is frozen and moved, with its tokenizer and
    image processor.
    """
    # before bf16 rounds it; a SigLIP's bias is the same for all classes
    scale = model.logit_scale.exp().item()
    layers = [_layer(layer, device, dtype) for layer in model.text_model.encoder.layers]
    model = model.requires_grad_(False).eval().to(device, dtype)
    text, causal = model.text_model, hasattr(model, "text_projection")
    vision = model.vision_model
    projection = model.visual_projection if causal else nn.Identity()

    def images(pixels: Tensor) -> Tensor:
        features: Tensor = projection(vision(pixel_values=pixels).pooler_output)
        return features

    return Clip(
        images=images,
        tokens=text.embeddings.token_embedding,
        positions=text.embeddings.position_embedding.weight,
        layers=tuple(layers),
        norm=text.final_layer_norm,
        project=model.text_projection if causal else text.head,
        scale=scale,
        tokenize=partial(_tokenize, tokenizer, plain if causal else str),
        start=tokenizer.bos_token_id if causal else None,
        end=tokenizer.eos_token_id,
        preprocess=partial(preprocessed, processor, device),
        key=fingerprint(
            model.state_dict(),
            {
                "vision": model.config.vision_config.to_dict(),
                "processor": processor.to_dict(),
                "device": device.type,
            },
        ),
        pad=None if causal else tokenizer.pad_token_id,
        recipe=_recipe("clip" if causal else "siglip", dtype),
        patches=partial(patches_of, vision, projection) if causal else None,
        sight=partial(taken_apart, vision, projection) if causal else None,
    )


def _recipe(kind: str, dtype: torch.dtype) -> str:
    model, _, processor = KINDS[kind]
    return RECIPE.format(
        model=model.__name__,
        processor=processor.__name__,
        features=FEATURES[kind],
        dtype=dtype,
    )


def _resnet(folder: Path, kind: str, dtype: torch.dtype, device: torch.device) -> Clip:
    """The parts of a CLIP with a ModifiedResNet."""
    saved = _checkpoint(folder, kind)
    crop = {"height": saved.side, "width": saved.side}
    shown: Any = CLIPImageProcessorPil
    processor = shown(
        size={"shortest_edge": saved.side},
        crop_size=crop,
        image_mean=list(saved.mean),
        image_std=list(saved.std),
    )
    with quiet():
        tokenizer = CLIPTokenizer.from_pretrained(_vocabulary(folder), local_files_only=True)
    seen = {
        name: value.to(dtype) for name, value in saved.tensors.items() if name.startswith("visual.")
    }
    key = fingerprint(
        seen, {"visual": "ModifiedResNet", "processor": processor.to_dict(), "device": device.type}
    )
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    tokenize = partial(_tokenize, tokenizer, plain)
    preprocess = partial(preprocessed, processor, device)
    try:
        return openai.parts(saved, tokenize, ends, preprocess, key, dtype, device)
    except (KeyError, RuntimeError) as error:
        raise _broken(folder, f"{type(error).__name__} {error}".splitlines()[0]) from None


def _checkpoint(folder: Path, kind: str) -> openai.Checkpoint:
    saved = openai.checkpoint(folder)
    if saved is None:
        raise ValueError(
            f"{folder} is of type {kind!r}, not 'clip' or 'siglip', nor a CLIP with a"
            " ModifiedResNet: a learned context needs a text encoder in one of these layouts;"
            ' take, say, "openai/clip-vit-base-patch16"'
        )
    return saved


def _tokenize(tokenizer: Any, clean: Callable[[str], str], words: str) -> list[int]:
    ids: list[int] = tokenizer(clean(words), add_special_tokens=False, verbose=False).input_ids
    return ids


def preprocessed(processor: Any, device: torch.device, images: Tensor) -> Tensor:
    """Pixel values of images uint8 [B, 3, H, W], as an image processor makes them."""
    arrays = list(images.cpu().numpy())
    made = processor(arrays, input_data_format="channels_first", return_tensors="pt")
    pixels: Tensor = made.pixel_values
    return pixels.to(device)


def _layer(layer: Any, device: torch.device, dtype: torch.dtype) -> Layer:
    """Joined before its weights are rounded to `dtype`."""
    attention, mlp = layer.self_attn, layer.mlp
    if isinstance(mlp.activation_fn, QuickGELUActivation):
        mlp = quick_mlp(mlp.fc1, mlp.fc2)
    joined = one_product(attention.q_proj, attention.k_proj, attention.v_proj)
    return Layer(
        norm1=layer.layer_norm1,
        seen=joined.to(device, dtype),
        out=attention.out_proj,
        norm2=layer.layer_norm2,
        mlp=mlp.to(device, dtype),
        heads=attention.num_heads,
    )


def fingerprint(weights: dict[str, Tensor], settings: Values) -> str:
    """Hash of all that image features depend on: weights, the shape of the encoder, preprocessing,
    where they run.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _kind(folder: Path) -> str:
    """What config.json says that a folder holds; "" if there is none, as beside a checkpoint of
    OpenAI's.
    """
    if not (file := folder / "config.json").exists():
        return ""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("model_type", ""))
    except (OSError, ValueError) as error:
        raise _broken(folder, f"its config.json cannot be read ({error})") from None


def _has_vocabulary(folder: Path) -> bool:
    """Without one of these, transformers would make an empty tokenizer."""
    return any(
        (folder / name).exists() for name in ("tokenizer.json", "vocab.json", "spiece.model")
    )


def _check_vocabulary(folder: Path) -> None:
    if not _has_vocabulary(folder):
        raise _broken(folder, "it has neither tokenizer.json nor vocab.json")


def _vocabulary(folder: Path) -> Path:
    """The folder of the tokenizer of a checkpoint: its own, or any that was downloaded, for
    OpenAI's are all one.
    """
    if _has_vocabulary(own := folder if folder.is_dir() else folder.parent):
        return own
    for name in VOCABULARIES:
        if (other := snapshot(Repository(name))) and _has_vocabulary(other):
            return other
    raise _broken(
        own,
        f'it has no tokenizer.json; type "fedexperts fetch {VOCABULARIES[0]}", whose'
        " tokenizer is that of all",
    )


def _check_ids(folder: Path, model: Any, tokenizer: Any) -> None:
    """The tokenizer must end a text where the checkpoint pools it."""
    pooled, end = model.config.text_config.eos_token_id, tokenizer.eos_token_id
    if pooled == LEGACY_EOS:
        pooled = max(tokenizer.get_vocab().values())
    if end != pooled:
        raise _broken(
            folder,
            f"its tokenizer ends a text with id {end}, but its text encoder pools at id {pooled}",
        )


def _broken(folder: Path, why: str) -> ValueError:
    return ValueError(
        f"{folder} does not hold a whole CLIP: {why}. Save model, tokenizer and image processor"
        " there"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no notes while a model is loaded; what went wrong is raised."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
