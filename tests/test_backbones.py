"""Other backbones than Hugging Face's CLIP: CLIP's ModifiedResNet in OpenAI's and open_clip's
files, and SigLIP.

The ModifiedResNet is compared with an independent transcription, over the same tensors by torch's
functions, and its text encoder with torch's own transformer layer; SigLIP is compared with
transformers.
"""

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import characters
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel

from fedexperts.models import openai
from fedexperts.models.clip import Clip, PromptedClip, encode, words
from fedexperts.models.huggingface import load_clip
from fedexperts.models.huggingface import side as side_of
from fedexperts.models.prompted import PromptedClipSettings

NAMES = ("cat", "be", "horse")
TEMPLATE = "a photo of a"
WIDTH, SIDE, BLOCKS, W, LAYERS, D, L = 4, 64, (1, 2, 1, 1), 128, 2, 24, 30
Tensors = dict[str, Tensor]


# ---- a CLIP with a ModifiedResNet, in OpenAI's names


def convolution(t: Tensors, name: str, out: int, given: int, side: int) -> None:
    t[f"{name}.weight"] = torch.randn(out, given, side, side) * (given * side * side) ** -0.5


def norm(t: Tensors, name: str, channels: int) -> None:
    t[f"{name}.weight"], t[f"{name}.bias"] = (
        1 + 0.2 * torch.randn(channels),
        0.2 * torch.randn(channels),
    )


def batch_norm(t: Tensors, name: str, channels: int) -> None:
    norm(t, name, channels)
    t[f"{name}.running_mean"], t[f"{name}.running_var"] = (
        0.2 * torch.randn(channels),
        0.5 + torch.rand(channels),
    )
    t[f"{name}.num_batches_tracked"] = torch.tensor(7)


def linear(t: Tensors, name: str, out: int, given: int, join: str = ".") -> None:
    t[f"{name}{join}weight"], t[f"{name}{join}bias"] = (
        torch.randn(out, given) * given**-0.5,
        0.1 * torch.randn(out),
    )


def drawn_visual(t: Tensors) -> None:
    for n, (out, given) in enumerate(
        ((WIDTH // 2, 3), (WIDTH // 2, WIDTH // 2), (WIDTH, WIDTH // 2)), 1
    ):
        convolution(t, f"visual.conv{n}", out, given, 3)
        batch_norm(t, f"visual.bn{n}", out)
    given = WIDTH
    for n, count in enumerate(BLOCKS, 1):
        inside = WIDTH * 2 ** (n - 1)
        for i in range(count):
            block = f"visual.layer{n}.{i}"
            for k, (out, into, side) in enumerate(
                ((inside, given, 1), (inside, inside, 3), (4 * inside, inside, 1)), 1
            ):
                convolution(t, f"{block}.conv{k}", out, into, side)
                batch_norm(t, f"{block}.bn{k}", out)
            if not i:
                convolution(t, f"{block}.downsample.0", 4 * inside, given, 1)
                batch_norm(t, f"{block}.downsample.1", 4 * inside)
            given = 4 * inside
    t["visual.attnpool.positional_embedding"] = torch.randn((SIDE // 32) ** 2 + 1, given)
    for part in "qkvc":
        linear(t, f"visual.attnpool.{part}_proj", D if part == "c" else given, given)


def drawn() -> Tensors:
    """The tensors of a tiny CLIP, large enough that every one matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t: Tensors = {}
        drawn_visual(t)
        for i in range(LAYERS):
            block = f"transformer.resblocks.{i}"
            linear(t, f"{block}.attn.in_proj", 3 * W, W, "_")
            linear(t, f"{block}.attn.out_proj", W, W)
            linear(t, f"{block}.mlp.c_fc", 4 * W, W)
            linear(t, f"{block}.mlp.c_proj", W, 4 * W)
            norm(t, f"{block}.ln_1", W)
            norm(t, f"{block}.ln_2", W)
        norm(t, "ln_final", W)
        t["token_embedding.weight"] = torch.randn(len(characters()), W)
        t["positional_embedding"], t["text_projection"] = (
            0.3 * torch.randn(L, W),
            torch.randn(W, D) * W**-0.5,
        )
        t["logit_scale"] = torch.tensor(4.6)
    return t


class Holder(nn.Module):
    """A module whose state dict is these tensors, as a TorchScript archive wants one."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        for name, value in tensors.items():
            place: nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.logit_scale


def save_archive(folder: Path, tensors: Tensors) -> Path:
    """As OpenAI's: half precision but for norms and embeddings, and three numbers beside the
    tensors.
    """
    numbers = {
        "input_resolution": SIDE,
        "context_length": L,
        "vocab_size": len(tensors["token_embedding.weight"]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = Holder(tensors | {name: torch.tensor(value) for name, value in numbers.items()})
        torch.jit.save(torch.jit.trace(module, torch.zeros(1)), folder / "RN50.pt")
    openai.PUBLISHED["tiny"] = hashlib.sha256((folder / "RN50.pt").read_bytes()).hexdigest()
    characters().save_pretrained(folder)
    return folder / "RN50.pt"


class Program(torch.nn.Module):
    """What an archive may do while it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path, self.training = state[0], state[1]
        torch.save(torch.ones(1), self.path)


def test_an_archive_that_is_not_openais_is_not_loaded_for_it_may_write_files(
    tmp_path: Path,
) -> None:
    written = tmp_path / "written"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Program(str(written))), tmp_path / "RN50.pt")
        with pytest.raises(
            ValueError,
            match=r"RN50\.pt .* none of the archives that OpenAI published, .* write files",
        ):
            load_clip(str(tmp_path))
        assert not written.exists()
        torch.jit.load(tmp_path / "RN50.pt")
        assert written.exists()


def save_open_clip(folder: Path, tensors: Tensors, **model: Any) -> None:
    said = {
        "model_cfg": {"text_cfg": {"heads": W // 64}, "quick_gelu": True} | model,
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    # timm's, which names no model type
    (folder / "config.json").write_text('{"architecture": "resnet50_clip"}')
    save_file(tensors, folder / "open_clip_model.safetensors")
    characters().save_pretrained(folder)


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return drawn()


@pytest.fixture(scope="module")
def clip(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return load_clip(str(save_archive(tmp_path_factory.mktemp("rn50"), tensors)))


def test_one_with_a_resnet_says_how_large_an_image_it_sees(
    tensors: Tensors, tmp_path: Path
) -> None:
    assert side_of(save_archive(tmp_path, tensors)) == SIDE


# ---- the same, transcribed


def normed(t: Tensors, name: str, x: Tensor) -> Tensor:
    at = f"{name}.running_mean", f"{name}.running_var", f"{name}.weight", f"{name}.bias"
    mean, variance, weight, bias = (t[key][:, None, None] for key in at)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def image_features(t: Tensors, x: Tensor) -> Tensor:
    t = {name.removeprefix("visual."): value for name, value in t.items()}
    for n in (1, 2, 3):
        x = functional.relu(
            normed(
                t,
                f"bn{n}",
                functional.conv2d(x, t[f"conv{n}.weight"], stride=2 if n == 1 else 1, padding=1),
            )
        )
    x = functional.avg_pool2d(x, 2)
    for n, count in enumerate(BLOCKS, 1):
        for i in range(count):
            at, stride = f"layer{n}.{i}", 2 if n > 1 and not i else 1
            y = functional.relu(
                normed(t, f"{at}.bn1", functional.conv2d(x, t[f"{at}.conv1.weight"]))
            )
            y = functional.relu(
                normed(t, f"{at}.bn2", functional.conv2d(y, t[f"{at}.conv2.weight"], padding=1))
            )
            y = normed(
                t,
                f"{at}.bn3",
                functional.conv2d(functional.avg_pool2d(y, stride), t[f"{at}.conv3.weight"]),
            )
            if not i:
                x = normed(
                    t,
                    f"{at}.downsample.1",
                    functional.conv2d(
                        functional.avg_pool2d(x, stride), t[f"{at}.downsample.0.weight"]
                    ),
                )
            x = functional.relu(x + y)
    tokens = (
        torch.cat([x.mean((2, 3))[None], x.flatten(2).permute(2, 0, 1)])
        + t["attnpool.positional_embedding"][:, None]
    )
    weight = {f"{p}_proj_weight": t[f"attnpool.{p}_proj.weight"] for p in "qkv"}
    bias = torch.cat([t[f"attnpool.{p}_proj.bias"] for p in "qkv"])
    out, _ = functional.multi_head_attention_forward(
        tokens,
        tokens,
        tokens,
        tokens.shape[-1],
        tokens.shape[-1] // 64,
        None,
        bias,
        None,
        None,
        False,
        0.0,
        t["attnpool.c_proj.weight"],
        t["attnpool.c_proj.bias"],
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        **weight,
    )
    return out[0]


def text_features(t: Tensors, ids: list[int], quick: bool = True) -> Tensor:
    x = (t["token_embedding.weight"][ids] + t["positional_embedding"][: len(ids)])[None]

    def activation(y: Tensor) -> Tensor:
        return y * torch.sigmoid(1.702 * y) if quick else functional.gelu(y)

    names = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.": "self_attn.",
        "mlp.c_fc": "linear1",
        "mlp.c_proj": "linear2",
    }
    for i in range(LAYERS):
        own = {
            k.split(".", 3)[3]: v
            for k, v in t.items()
            if k.startswith(f"transformer.resblocks.{i}.")
        }
        for ours, theirs in names.items():
            own = {name.replace(ours, theirs): value for name, value in own.items()}
        layer = nn.TransformerEncoderLayer(
            W, W // 64, 4 * W, 0.0, activation, batch_first=True, norm_first=True
        )
        layer.load_state_dict(own)
        x = layer(
            x, src_mask=nn.Transformer.generate_square_subsequent_mask(len(ids)), is_causal=True
        )
    return (
        functional.layer_norm(x[0, -1], (W,), t["ln_final.weight"], t["ln_final.bias"])
        @ t["text_projection"]
    )


def sentence(text: str) -> list[int]:
    found: list[int] = characters()(text).input_ids  # with start and end
    return found


def in_words(clip: Clip, names: tuple[str, ...] = NAMES) -> Tensor:
    """[C, D]: text features behind a context that is TEMPLATE's words."""
    start = words(clip, TEMPLATE)
    return PromptedClip(clip, names, start).texts(start).detach()


def test_a_modified_resnet_gives_the_features_of_its_transcription(
    clip: Clip, tensors: Tensors
) -> None:
    pixels = torch.randn(3, 3, SIDE, SIDE)
    assert_close(clip.images(pixels), image_features(tensors, pixels), rtol=1e-4, atol=1e-5)


def test_its_text_encoder_gives_those_of_torchs_own_layers(clip: Clip, tensors: Tensors) -> None:
    expected = torch.stack(
        [text_features(tensors, sentence(f"{TEMPLATE} {name}.")) for name in NAMES]
    )
    assert_close(
        in_words(clip), functional.normalize(expected.detach(), dim=-1), rtol=1e-4, atol=1e-5
    )
    assert clip.scale == pytest.approx(math.exp(4.6))


def test_images_are_shown_to_it_as_openai_shows_them(clip: Clip, tensors: Tensors) -> None:
    """Of the right size already, so that all there is to do is the normalisation."""
    images = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    pixels = (images / 255 - mean[:, None, None]) / std[:, None, None]
    assert_close(
        encode(clip, images),
        functional.normalize(image_features(tensors, pixels), dim=-1),
        rtol=1e-4,
        atol=1e-5,
    )


def test_openais_archive_and_open_clips_folder_hold_the_same_clip(
    clip: Clip, tensors: Tensors, tmp_path: Path
) -> None:
    save_open_clip(tmp_path, tensors)
    other = load_clip(str(tmp_path))
    assert other.key == clip.key
    assert torch.equal(in_words(other), in_words(clip))
    assert other.recipe == ""  # no few lines of anybody's make a ModifiedResNet


def test_open_clips_settings_choose_the_activation(
    clip: Clip, tensors: Tensors, tmp_path: Path
) -> None:
    save_open_clip(tmp_path, tensors, quick_gelu=False)
    expected = text_features(tensors, sentence(f"{TEMPLATE} cat."), quick=False).detach()
    plain = in_words(load_clip(str(tmp_path)))
    assert_close(plain[0], functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, in_words(clip), atol=1e-4)


def test_it_can_be_held_in_bf16_and_its_folder_named_as_well_as_its_file(
    tensors: Tensors, tmp_path: Path
) -> None:
    save_archive(tmp_path, tensors)
    exact: Any = PromptedClipSettings(clip=str(tmp_path), context=4).build(NAMES, 0)
    short: Any = PromptedClipSettings(clip=str(tmp_path), context=4, precision="bf16").build(
        NAMES, 0
    )
    images = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8)
    assert short.model.clip.tokens.weight.dtype == torch.bfloat16
    assert functional.cosine_similarity(short.encode(images), exact.encode(images)).min() > 0.99
    at = exact.model.initial["context"]
    assert (
        functional.cosine_similarity(short.model.texts(at), exact.model.texts(at), dim=-1).min()
        > 0.99
    )
    assert short.key != exact.key


def test_nobodys_dice_are_touched_when_it_is_loaded(tensors: Tensors, tmp_path: Path) -> None:
    file = save_archive(tmp_path, tensors)
    before = torch.get_rng_state()
    load_clip(str(file))
    assert torch.equal(torch.get_rng_state(), before)


def without(tensors: Tensors, part: str) -> Tensors:
    return {name: value for name, value in tensors.items() if part not in name}


def test_checkpoints_of_other_shapes_are_refused(tensors: Tensors, tmp_path: Path) -> None:
    save_open_clip(tmp_path, without(tensors, "attnpool"))
    with pytest.raises(
        ValueError, match=r"no CLIP with a ModifiedResNet.*no visual\.attnpool\.c_proj\.weight"
    ):
        load_clip(str(tmp_path))
    save_open_clip(tmp_path, without(tensors, "ln_final"))
    with pytest.raises(ValueError, match="does not hold a whole CLIP"):
        load_clip(str(tmp_path))
    save_open_clip(tmp_path, tensors | {"visual.conv3.weight": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"does not hold a whole CLIP.*size mismatch|ModifiedResNet"
    ):
        load_clip(str(tmp_path))


def test_damaged_and_doubled_checkpoints_are_refused(tensors: Tensors, tmp_path: Path) -> None:
    (tmp_path / "RN50.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"RN50\.pt does not hold a whole CLIP"):
        load_clip(str(tmp_path))
    (tmp_path / "RN101.pt").write_bytes(b"nothing")
    with pytest.raises(
        ValueError, match=r"holds 2 checkpoints; expected one of them, as .*RN101\.pt"
    ):
        load_clip(str(tmp_path))
    save_open_clip(tmp_path, tensors)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(ValueError, match="does not hold a whole CLIP: KeyError 'text_cfg'"):
        load_clip(str(tmp_path))


def test_a_tokenizer_that_is_nowhere_is_asked_for(
    tensors: Tensors, tmp_path: Path, monkeypatch: Any
) -> None:
    file = save_archive(tmp_path, tensors)
    for each in tmp_path.glob("*.json"):
        each.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        ValueError,
        match=r"no tokenizer\.json; type \"fedexperts fetch openai/clip-vit-base-patch32",
    ):
        load_clip(str(file))


# ---- SigLIP


def save_siglip(folder: Path) -> tuple[SiglipModel, PreTrainedTokenizerFast]:
    """A tiny randomly initialised SigLIP in Hugging Face's layout, with a tokenizer of a word a
    token.
    """
    known = ["<pad>", "<eos>", "<unk>", *TEMPLATE.split(), *NAMES, "."]
    inner = Tokenizer(
        models.WordLevel(
            {word: i for i, word in enumerate(dict.fromkeys(known))}, unk_token="<unk>"
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {
        "vocab_size": 32,  # more than there are words: with room for another tokenizer
        "max_position_embeddings": 12,
        "projection_size": 32,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = SiglipConfig(
            text_config=text | sizes | {"bos_token_id": 1, "eos_token_id": 1},
            vision_config=sizes | {"image_size": 16, "patch_size": 8},
        )
        model = SiglipModel(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(
                    torch.randn_like(weight) * weight.shape[-1] ** -0.5 if weight.ndim else weight
                )
            model.logit_scale.fill_(4.7)
    model.save_pretrained(folder)
    ids.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return model, ids


@pytest.fixture(scope="module")
def siglip(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Clip, SiglipModel, PreTrainedTokenizerFast]:
    folder = tmp_path_factory.mktemp("siglip")
    model, ids = save_siglip(folder)
    return load_clip(str(folder)), model, ids


def test_prompts_of_a_siglip_are_read_as_transformers_reads_the_same_words(siglip: Any) -> None:
    clip, model, ids = siglip
    rows = [[*ids(f"{TEMPLATE} {name}.").input_ids, ids.eos_token_id] for name in NAMES]
    padded = torch.tensor([row + [ids.pad_token_id] * (12 - len(row)) for row in rows])
    with torch.no_grad():
        expected = model.text_model(input_ids=padded).pooler_output
    assert_close(in_words(clip), functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)
    assert clip.scale == pytest.approx(math.exp(4.7))


def test_images_of_a_siglip_are_read_as_transformers_reads_them(siglip: Any) -> None:
    clip, model, _ = siglip
    images = torch.randint(256, (2, 3, 20, 30), dtype=torch.uint8)
    shown = SiglipImageProcessorPil(size={"height": 16, "width": 16})(
        list(images.numpy()), input_data_format="channels_first", return_tensors="pt"
    )
    with torch.no_grad():
        expected = model.vision_model(pixel_values=shown.pixel_values).pooler_output
    assert_close(encode(clip, images), functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


def test_the_lines_that_an_export_says_of_a_siglip_give_its_features(
    siglip: Any, tmp_path: Path
) -> None:
    clip = siglip[0]
    save_siglip(tmp_path)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    said: dict[str, Any] = {"torch": torch}
    with torch.no_grad():
        exec(clip.recipe.replace("backbone", str(tmp_path)), said)
        assert_close(said["inputs"](images), encode(clip, images), rtol=1e-5, atol=1e-6)


def test_contexts_of_a_siglip_are_learned_and_stacked_as_those_of_a_clip(siglip: Any) -> None:
    clip = siglip[0]
    contexts = torch.randn(3, 4, 32)
    model = PromptedClip(clip, NAMES, contexts[0])
    alone = torch.stack([model.texts(each) for each in contexts])
    assert_close(model.texts(contexts), alone)
    assert_close(vmap(model.texts)(contexts), alone)
    at = contexts[0].clone().requires_grad_()
    model.logits({"context": at}, torch.randn(2, 32)).square().sum().backward()
    assert at.grad is not None
    assert (at.grad.abs().sum(1) > 0).all()


def test_a_prompt_that_a_siglip_cannot_hold_is_refused(siglip: Any) -> None:
    PromptedClip(siglip[0], NAMES, torch.zeros(9, 32))
    with pytest.raises(
        ValueError, match="has 13 tokens, 10 of them context, and this CLIP takes 12"
    ):
        PromptedClip(siglip[0], NAMES, torch.zeros(10, 32))


def test_a_siglip_with_its_own_sentencepiece_vocabulary_is_loaded(tmp_path: Path) -> None:
    """The first SigLIPs' tokenizer: lower case, no punctuation, and the same token ends a text and
    fills it up.
    """
    sentencepiece = pytest.importorskip("sentencepiece")
    save_siglip(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "text").write_text("\n".join([f"{TEMPLATE} {name}" for name in NAMES] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=20,
        bos_id=-1,
        pad_id=-1,
        eos_id=1,
        unk_id=0,
        minloglevel=3,
        hard_vocab_limit=False,
    )
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "SiglipTokenizer", "model_max_length": 12}'
    )
    clip = load_clip(str(tmp_path))
    assert (clip.start, clip.end, clip.pad) == (None, 1, 1)
    assert clip.tokenize("A CAT.") == clip.tokenize("a cat")
