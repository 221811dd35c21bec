"""A prompted CLIP as a tree of tokens equals the same CLIP run class by class; and a CLIP is loaded
as it was saved.
"""

import json
import shlex
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import characters
from safetensors.torch import load_file
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from fedexperts.config.checking import checked
from fedexperts.model import Model, PromptModel
from fedexperts.models import clip as clip_room
from fedexperts.models.clip import Clip, LinearProbe, PromptedClip, encode, pack, words
from fedexperts.models.huggingface import load_clip, side
from fedexperts.models.prompted import LinearProbeSettings, PromptedClipSettings

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# 1 to 6 tokens
NAMES = ("a", "be", "cat", "bird", "horse", "bee", "bear", "beast", "b", "c_a_t", "tiger 7")
# 265 tokens
SEVERAL_ROWS = tuple(f"{a}{b}" for a in "abcdefghij" for b in ("x", "yy", "zzz", "wwww", "vvvvv"))
TEMPLATE = "a photo of a"


def save(folder: Path, eos: int | None = None, seed: int = 0) -> CLIPModel:
    """A tiny randomly initialised CLIP in Hugging Face's layout, its weights large enough that
    every token matters.
    """
    ids = characters()
    text = {
        "vocab_size": len(ids),
        "bos_token_id": ids.bos_token_id,
        "eos_token_id": eos or ids.eos_token_id,
    }
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    torch.manual_seed(seed)
    model = CLIPModel(
        CLIPConfig(
            text_config=text | sizes | {"max_position_embeddings": 40},
            vision_config=sizes | {"image_size": 16, "patch_size": 8},
            projection_dim=24,
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and weight.ndim:
                weight.copy_(
                    torch.randn_like(weight)
                    * (weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.1)
                )
        model.logit_scale.fill_(4.6052)
    model.save_pretrained(folder)
    ids.save_pretrained(folder)
    side = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    save(path)
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(str(folder))


def context(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, 32, generator=torch.Generator().manual_seed(seed))


def with_gradient(texts: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of a random linear function of them."""
    at = at.clone().requires_grad_()
    out = texts(at)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return out.detach(), torch.autograd.grad((out * weights).sum(), at)[0]


def assert_close(value: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    """Shapes equal, and the largest difference small beside the largest value."""
    assert value.shape == reference.shape
    assert float((value - reference).abs().max()) <= tolerance * float(reference.abs().max())


# The tree


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "classes", [NAMES, SEVERAL_ROWS, ("cat",), ("cat", "cat"), ("be", "bee", "be")]
)
def test_the_tree_equals_each_class_in_its_own_sequence(
    clip: Clip, classes: tuple[str, ...], seed: int
) -> None:
    at = context(5, seed=seed)
    model = PromptedClip(clip, classes, at)
    out, gradient = with_gradient(model.texts, at)
    for length in (None, model.longest):
        plain, plain_gradient = with_gradient(
            lambda c, length=length: model.texts_plain(c, length), at
        )  # type: ignore[misc]
        assert_close(out, plain)
        assert_close(gradient, plain_gradient)


def test_many_classes_take_several_rows_and_equal_beginnings_are_stored_once() -> None:
    rows = pack([(1, 2, 3), (1, 2, 4), (5, 3), (1, 2, 3)], bound=4)
    assert rows == [{(1,): 0, (1, 2): 1, (1, 2, 3): 2, (1, 2, 4): 3}, {(5,): 0, (5, 3): 1}]


def test_the_classes_of_these_tests_need_more_than_one_row(clip: Clip) -> None:
    tree = PromptedClip(clip, SEVERAL_ROWS, context(5))._tree
    assert len(tree.mask) > 1
    assert tree.mask.shape[1] * len(tree.mask) > len(set(tree.ends.tolist())) == len(SEVERAL_ROWS)


@pytest.mark.parametrize("classes", [NAMES, SEVERAL_ROWS])
def test_leading_dimensions_and_vmap_give_what_each_context_gives_alone(
    clip: Clip, classes: tuple[str, ...]
) -> None:
    model = PromptedClip(clip, classes, context(5))
    contexts = context(2, 3, 5)
    alone = torch.stack([torch.stack([model.texts(one) for one in row]) for row in contexts])
    assert_close(model.texts(contexts), alone)
    assert_close(model.texts_plain(contexts), alone)
    assert_close(vmap(vmap(model.texts))(contexts), alone)
    assert_close(vmap(model.texts)(contexts), alone)  # both at once


def test_gradients_under_vmap_are_those_of_each_context_alone(clip: Clip) -> None:
    model = PromptedClip(clip, NAMES, context(5))
    x, y = normalize(torch.randn(4, 6, 24), dim=-1), torch.randint(len(NAMES), (4, 6))

    def loss(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(model.logits({"context": at}, x), y)

    contexts = context(4, 5).requires_grad_()
    alone = torch.stack([grad(loss)(*one) for one in zip(contexts.detach(), x, y, strict=True)])
    (summed,) = torch.autograd.grad(vmap(loss)(contexts, x, y).sum(), contexts)
    assert_close(summed, alone)
    assert_close(vmap(grad(loss))(contexts.detach(), x, y), alone)


@pytest.mark.parametrize("classes", [NAMES, SEVERAL_ROWS])
def test_another_name_for_one_class_changes_no_other_class(
    clip: Clip, classes: tuple[str, ...]
) -> None:
    at = context(5)
    before = PromptedClip(clip, classes, at).texts(at)
    for c in range(0, len(classes), 7):
        renamed = (*classes[:c], "bees", *classes[c + 1 :])
        after = PromptedClip(clip, renamed, at).texts(at)
        others = [i for i in range(len(classes)) if i != c]
        assert_close(after[others], before[others])
        assert (after[c] - before[c]).abs().max() > 1e-3


def test_every_context_vector_matters_to_every_class(clip: Clip) -> None:
    at = context(5).requires_grad_()
    for text in PromptedClip(clip, NAMES, at).texts(at):
        (gradient,) = torch.autograd.grad(text.sum(), at, retain_graph=True)
        assert (gradient.abs().amax(1) > 1e-4).all()


# Against transformers


def reference_texts(folder: Path, texts: list[str]) -> Tensor:
    model: Any = CLIPModel.from_pretrained(folder)
    inputs = CLIPTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.text_model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
        ).pooler_output
        return normalize(model.text_projection(pooled), dim=-1)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_context_of_words_is_the_zero_shot_template_of_transformers(
    tmp_path: Path, legacy: bool
) -> None:
    save(tmp_path, eos=2 if legacy else None)
    settings = PromptedClipSettings(clip=str(tmp_path), context=4, init="words")
    model: Any = settings.build(DIGITS, seed=0).model
    expected = reference_texts(tmp_path, [f"{TEMPLATE} {digit}." for digit in DIGITS])
    assert len(words(model.clip, TEMPLATE)) == 4
    assert_close(model.texts(model.initial["context"]), expected)
    assert_close(model.texts_plain(model.initial["context"]), expected)


def test_an_underscore_in_a_class_name_is_a_space(clip: Clip, folder: Path) -> None:
    at = words(clip, TEMPLATE)
    texts = PromptedClip(clip, ("sea_lion",), at).texts(at)
    assert_close(texts, reference_texts(folder, [f"{TEMPLATE} sea lion."]))


def test_images_are_preprocessed_and_encoded_as_transformers_does(clip: Clip, folder: Path) -> None:
    images = torch.randint(
        256, (70, 3, 20, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model: Any = CLIPModel.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(list(images), return_tensors="pt")[
        "pixel_values"
    ]
    with torch.no_grad():
        expected = normalize(
            model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1
        )
    features = encode(clip, images)
    assert_close(features, expected)
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_no_images_give_no_features(clip: Clip) -> None:
    assert encode(clip, torch.zeros(0, 3, 16, 16, dtype=torch.uint8)).shape == (0, 24)


# The models


def test_prompted_clip_and_linear_probe_keep_the_contract(clip: Clip) -> None:
    prompted: PromptModel = PromptedClip(clip, DIGITS, context(5))
    probe: Model = LinearProbe(DIGITS, clip.width, clip.scale)
    assert isinstance(prompted, PromptModel)
    assert not isinstance(probe, PromptModel)
    x = normalize(torch.randn(7, 24), dim=-1)
    texts = prompted.texts(prompted.initial["context"])
    assert prompted.classes == probe.classes == DIGITS
    assert_close(texts.norm(dim=-1), torch.ones(10))
    assert_close(prompted.logits(prompted.initial, x), prompted.scale * x @ texts.T)
    assert prompted.scale == pytest.approx(100, rel=1e-4)


def test_a_linear_probe_starts_at_zero_and_is_a_clip_with_free_texts(clip: Clip) -> None:
    probe = LinearProbe(DIGITS, clip.width, clip.scale)
    x, weight, bias = torch.randn(7, 24), torch.randn(10, 24), torch.randn(10)
    assert {name: tuple(value.shape) for name, value in probe.initial.items()} == {
        "weight": (10, 24),
        "bias": (10,),
    }
    assert not probe.logits(probe.initial, x).any()
    assert_close(
        probe.logits({"weight": weight, "bias": bias}, x), clip.scale * x @ weight.T + bias
    )


def weights(clip: Clip) -> list[Tensor]:
    modules = [
        clip.tokens,
        clip.norm,
        clip.project,
        *(part for layer in clip.layers for part in vars(layer).values()),
    ]
    found = [
        value
        for part in modules
        if isinstance(part, torch.nn.Module)
        for value in part.parameters()
    ]
    return [clip.positions, *found]


def test_only_the_context_gets_a_gradient_and_no_weight_moves(clip: Clip) -> None:
    model = PromptedClip(clip, NAMES, context(5))
    before = [weight.clone() for weight in weights(clip)]
    at = model.initial["context"].clone().requires_grad_()
    model.logits({"context": at}, torch.randn(3, 24)).square().sum().backward()
    assert at.grad is not None
    assert at.grad.abs().max() > 0
    assert len(before) == 3 * 12 + 5  # queries, keys and values are one map
    assert not any(weight.requires_grad or weight.grad is not None for weight in weights(clip))
    assert all(torch.equal(weight, old) for weight, old in zip(weights(clip), before, strict=True))
    assert not PromptedClip(clip, NAMES, at).initial["context"].requires_grad


def test_a_wide_clip_is_rounded_where_the_processor_has_units_for_it(tmp_path: Path) -> None:
    about = {"model_type": "clip", "text_config": {"hidden_size": 512}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    wide = PromptedClipSettings(clip=str(tmp_path))
    assert [wide.rounded(units) for units in (True, False)] == ["bf16", "fp32"]
    assert replace(wide, precision="fp32").rounded(True) == "fp32"
    assert PromptedClipSettings().rounded(True) == "fp32"  # the tiny CLIP is narrow
    assert PromptedClipSettings(precision="bf16").rounded(False) == "bf16"


def test_bf16_weights_stay_close_and_prompt_and_outputs_are_fp32(folder: Path) -> None:
    exact: Any = PromptedClipSettings(clip=str(folder), context=5).build(NAMES, seed=0)
    short: Any = PromptedClipSettings(clip=str(folder), context=5, precision="bf16").build(
        NAMES, seed=0
    )
    at = exact.model.initial["context"]
    out, gradient = with_gradient(exact.model.texts, at)
    out_16, gradient_16 = with_gradient(short.model.texts, at)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    assert {weight.dtype for weight in weights(short.model.clip)} == {torch.bfloat16}
    assert {out_16.dtype, gradient_16.dtype, short.encode(images).dtype} == {torch.float32}
    assert short.model.initial["context"].dtype == torch.float32
    assert_close(out_16, out, 0.05)
    assert torch.cosine_similarity(gradient_16.flatten(), gradient.flatten(), 0) > 0.99
    assert_close(short.encode(images), exact.encode(images), 0.05)
    assert short.model.scale == exact.model.scale
    assert short.key != exact.key


# Settings


def test_wrong_settings_are_refused_at_the_door() -> None:
    values, _ = checked(PromptedClipSettings, "model", {})
    assert values == asdict(PromptedClipSettings("tinyclip", "auto", 16, "random", TEMPLATE))
    for wrong in ({"context": 0}, {"init": "False"}, {"precision": "fp16"}):
        assert checked(PromptedClipSettings, "model", wrong)[1]


def test_a_random_start_follows_the_seed_and_a_start_of_words_does_not(folder: Path) -> None:
    def start(seed: int, **fields: Any) -> Tensor:
        return (
            PromptedClipSettings(clip=str(folder), **fields)
            .build(NAMES, seed)
            .model.initial["context"]
        )

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
    assert start(0).shape == (16, 32)
    assert start(0).std() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(start(0, init="words", context=4), start(1, init="words", context=4))


def test_words_that_are_not_context_tokens_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="are 4 tokens and context is 16: set context to 4"):
        PromptedClipSettings(clip=str(folder), init="words").build(NAMES, 0)


def test_a_prompt_that_is_too_long_names_the_class_and_the_way_out(folder: Path) -> None:
    long = "abcdefghijkl"  # 14 tokens with full stop and end: 1 + l + 14 <= 40
    PromptedClipSettings(clip=str(folder), context=25).build(("a", long), 0)
    with pytest.raises(
        ValueError, match=f"'{long}' has 41 tokens.*takes 40: set context to at most 25"
    ):
        PromptedClipSettings(clip=str(folder), context=26).build(("a", long), 0)


def test_a_name_for_which_no_context_is_short_enough_is_to_be_shortened(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="takes 40: shorten the name$"):
        PromptedClipSettings(clip=str(folder)).build(("a", "x" * 90), 0)
    assert capfd.readouterr() == ("", "")


def test_wrong_contexts_and_no_classes_are_refused(clip: Clip) -> None:
    with pytest.raises(ValueError, match=r"shape \[5, 31\].*\[l, 32\]"):
        PromptedClip(clip, NAMES, torch.zeros(5, 31))
    with pytest.raises(ValueError, match="no classes"):
        PromptedClip(clip, (), context(5))


def test_a_built_model_comes_with_its_encoder_and_key(folder: Path, clip: Clip) -> None:
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    for settings in (PromptedClipSettings(clip=str(folder)), LinearProbeSettings(clip=str(folder))):
        built = settings.build(DIGITS, 0)
        assert built.model.classes == DIGITS
        assert built.key == clip.key
        assert torch.equal(built.encode(images), encode(clip, images))


# Loading


def test_loading_twice_gives_the_same_object(
    folder: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_clip(str(folder)) is clip
    assert load_clip(str(folder), torch.float32) is clip
    assert load_clip(str(folder), torch.bfloat16) is not clip
    monkeypatch.chdir(folder.parent)
    assert load_clip(folder.name) is clip


def test_a_saved_folder_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    saved = save(tmp_path, seed=5)
    clip = load_clip(str(tmp_path))
    assert torch.equal(clip.tokens.weight, saved.text_model.embeddings.token_embedding.weight)
    assert torch.equal(clip.project.weight, saved.text_projection.weight)
    for ours, theirs in zip(clip.layers, saved.text_model.encoder.layers, strict=True):
        assert torch.equal(ours.out.weight, theirs.self_attn.out_proj.weight)
    saved.save_pretrained(tmp_path / "again")
    characters().save_pretrained(tmp_path / "again")
    CLIPImageProcessorPil.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert load_clip(str(tmp_path / "again")).key == clip.key


def test_the_key_names_weights_and_preprocessing(tmp_path: Path, clip: Clip) -> None:
    save(tmp_path / "weights", seed=1)
    assert load_clip(str(tmp_path / "weights")).key != clip.key
    save(tmp_path / "preprocessing")
    side = {"height": 16, "width": 16}
    other = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side, image_mean=[0.5] * 3)
    other.save_pretrained(tmp_path / "preprocessing")
    assert load_clip(str(tmp_path / "preprocessing")).key != clip.key
    save(tmp_path / "activation")
    settings = json.loads((tmp_path / "activation" / "config.json").read_text())
    settings["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "activation" / "config.json").write_text(json.dumps(settings))
    assert load_clip(str(tmp_path / "activation")).key != clip.key
    save(tmp_path / "same")
    assert load_clip(str(tmp_path / "same")).key == clip.key


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(tmp_path)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip(str(tmp_path))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["/nowhere/clip", "nobody/nothing", "nothing"])
def test_a_clip_that_is_not_there_is_refused_without_a_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host, **_: asked.append(host) or [])
    with pytest.raises(ValueError, match=f"no CLIP at '{name}'.*fedexperts fetch"):
        load_clip(name)
    assert not asked


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "align"}')
    with pytest.raises(
        ValueError,
        match="of type 'align', not 'clip' or 'siglip', nor a CLIP with a ModifiedResNet",
    ):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("tokenizer.json", "neither tokenizer.json nor vocab.json"),
        ("preprocessor_config.json", "image processor"),
        ("model.safetensors", "model.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(tmp_path: Path, missing: str, said: str) -> None:
    save(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"does not hold a whole CLIP.*{said}"):
        load_clip(str(tmp_path))


def test_weights_in_a_pickle_are_refused_with_what_to_type(tmp_path: Path) -> None:
    save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin is a pickle, .* type: python -c \"from transformers"
    ) as no:
        load_clip(str(tmp_path))
    command = shlex.split(str(no.value).partition("type: ")[2].rpartition(". Save")[0])
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    assert load_clip(str(tmp_path))


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"does not hold a whole CLIP.*its config\.json cannot be read"
    ):
        load_clip(str(tmp_path))


def test_weights_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    model = save(tmp_path)
    some = {
        name: value for name, value in model.state_dict().items() if "text_projection" not in name
    }
    model.save_pretrained(tmp_path, state_dict=some)
    with pytest.raises(ValueError, match=r"no weights for text_projection\.weight"):
        load_clip(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not hold a whole CLIP"):
        load_clip(str(tmp_path))


def test_a_tokenizer_of_another_clip_is_refused(tmp_path: Path) -> None:
    save(tmp_path, eos=7)
    with pytest.raises(
        ValueError, match="ends a text with id 518, but its text encoder pools at id 7"
    ):
        load_clip(str(tmp_path))


def test_a_tokenizer_with_more_words_than_the_embedding_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    words = CLIPTokenizer.from_pretrained(tmp_path)
    words.add_tokens(["vorhofflimmern"])
    words.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its tokenizer has 520 ids and its embedding 519"):
        load_clip(str(tmp_path))


def test_the_clip_that_ships_with_the_library_is_loaded_by_its_name() -> None:
    built = PromptedClipSettings().build(DIGITS, 0)
    assert built.encode(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 128)


def test_other_image_encoders_fit_behind_the_same_parts(clip: Clip) -> None:
    convolution = torch.nn.Conv2d(3, 24, 16).requires_grad_(False)
    other = replace(clip, images=lambda pixels: convolution(pixels).flatten(1))
    assert encode(other, torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 24)
    assert clip_room.IMAGES < 70  # the test of 70 images above takes more than one batch


@pytest.mark.parametrize("cropped", [True, False])
def test_a_clip_says_how_large_an_image_it_sees(
    folder: Path, tmp_path: Path, cropped: bool
) -> None:
    """Also one that is shown more than it was trained with, and one that cuts nothing off."""
    shutil.copytree(folder, other := tmp_path / "larger")
    shown = json.loads((folder / "preprocessor_config.json").read_text())
    shown |= {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}}
    (other / "preprocessor_config.json").write_text(json.dumps(shown | {"do_center_crop": cropped}))
    assert side(other) == (40 if cropped else 48)
