"""Any CLIP of Hugging Face's CLIPModel, in the parts of clip.py; and where Hugging Face keeps models on this machine.

Nothing is downloaded here: a hub name is looked up in this machine's own Hugging Face cache, so that a run has no
hidden traffic and gives the same weights tomorrow.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils import logging

from .clip import Clip, Layer

LEGACY_EOS = 2  # in configs written before transformers knew the real id: pool at the highest id, which is [EOS]


def load_clip(name: str, dtype: torch.dtype = torch.float32) -> Clip:
    """The CLIP of a folder, of our own "tinyclip", or of a hub name that was downloaded before; frozen, once a process.

    Its weights get `dtype` and the default device; scale and outputs stay exact floats. ValueError, with what to type,
    if there is no such CLIP, if it is not a CLIP (SigLIP is not), or if a part of it is missing.
    """
    folder = Path(__file__).parent / name if name == "tinyclip" else find(name, "CLIP", "tinyclip")
    return _load(folder, dtype, torch.get_default_device())


def find(name: str, kind: str, ours: str) -> Path:
    """The folder of a `kind` of model, given itself or by a hub name that was downloaded before.

    ValueError, with what to type or to use instead (`ours`), if there is none.
    """
    if (folder := Path(name).expanduser()).is_dir():
        return folder.resolve()
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        raise ValueError(
            f"no {kind} at {name!r}: it is neither a folder nor in this machine's Hugging Face cache. Give a folder "
            f'with config.json and weights, or type "hf download {name}" first if it is a hub name, or use "{ours}"'
        ) from None


@cache
def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> Clip:
    _check_files(folder)
    with quiet():
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
            loader: Any = CLIPModel.from_pretrained
            model, report = loader(folder, dtype=torch.float32, output_loading_info=True, local_files_only=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _broken(folder, str(error).splitlines()[0]) from None
    if report["missing_keys"]:
        raise _broken(folder, f"it has no weights for {sorted(report['missing_keys'])[0]}")
    _check_ids(folder, model, tokenizer)
    return parts(model, tokenizer, processor, dtype, device)


def parts(model: Any, tokenizer: Any, processor: Any, dtype: torch.dtype, device: torch.device) -> Clip:
    """The parts of a CLIPModel, which is frozen and moved, with its tokenizer and image processor."""
    scale = model.logit_scale.exp().item()  # before bf16 rounds it
    model = model.requires_grad_(False).eval().to(device, dtype)
    text = model.text_model

    def images(pixels: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)  # type: ignore[no-any-return]

    def tokenize(words: str) -> list[int]:
        return tokenizer(words, add_special_tokens=False).input_ids  # type: ignore[no-any-return]

    def preprocess(images: Tensor) -> Tensor:
        arrays = list(images.cpu().numpy())
        pixels = processor(arrays, input_data_format="channels_first", return_tensors="pt").pixel_values
        return pixels.to(device)  # type: ignore[no-any-return]

    return Clip(
        images=images,
        tokens=text.embeddings.token_embedding,
        positions=text.embeddings.position_embedding.weight,
        layers=tuple(_layer(layer) for layer in text.encoder.layers),
        norm=text.final_layer_norm,
        project=model.text_projection,
        scale=scale,
        tokenize=tokenize,
        start=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
        preprocess=preprocess,
        key=_key(
            model.state_dict(), {"vision": model.config.vision_config.to_dict(), "processor": processor.to_dict()}
        ),
    )


def _layer(layer: Any) -> Layer:
    attention = layer.self_attn
    return Layer(
        norm1=layer.layer_norm1,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        out=attention.out_proj,
        norm2=layer.layer_norm2,
        mlp=layer.mlp,
        heads=attention.num_heads,
    )


def _key(weights: dict[str, Tensor], settings: dict[str, Any]) -> str:
    """Hash of all that image features depend on: weights, the shape of the encoder, preprocessing."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_files(folder: Path) -> None:
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise _broken(folder, f"its config.json cannot be read ({error})") from None
    if kind != "clip":
        raise ValueError(
            f"{folder} is of type {kind!r}, not 'clip': a shared context needs a causal text encoder in Hugging Face's "
            'CLIP layout, which SigLIP, ALIGN and BLIP have not; take, say, "openai/clip-vit-base-patch16"'
        )
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():  # it would load an empty one
        raise _broken(folder, "it has neither tokenizer.json nor vocab.json")


def _check_ids(folder: Path, model: Any, tokenizer: Any) -> None:
    """The tokenizer must end a text where the checkpoint pools it."""
    pooled, end = model.config.text_config.eos_token_id, tokenizer.eos_token_id
    if pooled == LEGACY_EOS:
        pooled = max(tokenizer.get_vocab().values())
    if end != pooled:
        raise _broken(folder, f"its tokenizer ends a text with id {end}, but its text encoder pools at id {pooled}")


def _broken(folder: Path, why: str) -> ValueError:
    return ValueError(f"{folder} does not hold a whole CLIP: {why}. Save model, tokenizer and image processor there")


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
