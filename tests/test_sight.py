"""More of an image than one feature: patches and the state below adapters, against Hugging Face's
own model run whole.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import characters
from test_clip import NAMES, save
from torch import Tensor
from torch.nn.functional import linear, multi_head_attention_forward, normalize, relu
from transformers import CLIPModel

from fedexperts.models.clip import encode
from fedexperts.models.huggingface import load_clip
from fedexperts.models.modified_resnet import AttentionPool
from fedexperts.models.prompted import AdaptedClipSettings, PromptedClipSettings
from fedexperts.models.sight import patches_in, sight_of

IMAGES = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
WORDS = "a photo of a"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sight")
    save(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    return CLIPModel.from_pretrained(folder).eval()


def test_patches_are_projected_as_their_image_is(folder: Path, whole: Any) -> None:
    settings = PromptedClipSettings(clip=str(folder), patches=True, context=4)
    built = settings.build(("a", "be"), 0)
    x = built.encode(IMAGES)
    clip = load_clip(str(folder))
    hidden = whole.vision_model(pixel_values=clip.preprocess(IMAGES)).last_hidden_state
    expected = whole.visual_projection(whole.vision_model.post_layernorm(hidden))
    assert torch.allclose(x, normalize(expected, dim=-1), atol=1e-5)
    assert torch.allclose(x[:, 0], encode(clip, IMAGES), atol=1e-5)
    plain = PromptedClipSettings(clip=str(folder), context=4).build(("a", "be"), 0)
    assert built.key != plain.key
    logits = built.model.logits(built.model.initial, x)
    assert torch.allclose(logits, plain.model.logits(plain.model.initial, x[:, 0]), atol=1e-4)


def test_every_position_of_a_resnet_asks_all_as_the_mean_does() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(4, 8, 2, 6)
    torch.nn.init.normal_(pool.positional_embedding)
    x = torch.randn(3, 8, 2, 2)
    seen = x.flatten(2).permute(2, 0, 1)
    seen = torch.cat([seen.mean(0, keepdim=True), seen]) + pool.positional_embedding[:, None]
    maps = (pool.q_proj, pool.k_proj, pool.v_proj)
    expected, _ = multi_head_attention_forward(
        seen,
        seen,
        seen,
        8,
        2,
        None,
        torch.cat([m.bias for m in maps]),
        None,
        None,
        False,
        0.0,
        pool.c_proj.weight,
        pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    assert torch.allclose(pool.everywhere(x), expected.transpose(0, 1), atol=1e-5)
    assert torch.allclose(pool(x), expected[0], atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_adapters_change_what_leaves_their_layers_and_nothing_below_runs_again(
    folder: Path, whole: Any, layers: int
) -> None:
    settings = AdaptedClipSettings(clip=str(folder), layers=layers, width=5, words=WORDS)
    built = settings.build(NAMES, 0)
    x = built.encode(IMAGES)
    model = built.model
    draw = torch.Generator().manual_seed(1)
    tensors = {
        name: value + 0.3 * torch.randn(value.shape, generator=draw)
        for name, value in model.initial.items()
    }

    def adapting(side: str, i: int) -> Any:
        def hook(layer: Any, given: Any, made: Any) -> Any:
            def of(name: str, z: Tensor) -> Tensor:
                return linear(z, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

            z = layer.layer_norm1(given[0])
            added = of(f"{side}.{i}.up", relu(of(f"shared.{i}", relu(of(f"{side}.{i}.down", z)))))
            return (made[0] + added, *made[1:]) if isinstance(made, tuple) else made + added

        return hook

    hooks = []
    for side, encoder in (("image", whole.vision_model), ("text", whole.text_model)):
        for i, layer in enumerate(encoder.encoder.layers[3 - layers :]):
            hooks.append(layer.register_forward_hook(adapting(side, i)))
    clip = load_clip(str(folder))
    pixels = clip.preprocess(IMAGES)
    image = whole.visual_projection(whole.vision_model(pixel_values=pixels).pooler_output)
    ids = characters()
    said = []
    for name in NAMES:
        text = ids(f"{WORDS} {name.replace('_', ' ')}.", return_tensors="pt").input_ids
        said.append(whole.text_projection(whole.text_model(input_ids=text).pooler_output)[0])
    for hook in hooks:
        hook.remove()
    expected = clip.scale * normalize(image, dim=-1) @ normalize(torch.stack(said), dim=-1).T
    assert torch.allclose(model.logits(tensors, x), expected, atol=2e-3)


def test_adapters_begin_as_the_clip_with_these_words(folder: Path) -> None:
    adapted = AdaptedClipSettings(clip=str(folder), words=WORDS).build(NAMES, 0)
    clip = load_clip(str(folder))
    length = len(clip.tokenize(WORDS))
    plain = PromptedClipSettings(clip=str(folder), context=length, init="words", words=WORDS)
    prompted = plain.build(NAMES, 0)
    mine = adapted.model.logits(adapted.model.initial, adapted.encode(IMAGES))
    theirs = prompted.model.logits(prompted.model.initial, prompted.encode(IMAGES))
    assert torch.allclose(mine, theirs, atol=1e-3)


def test_what_a_clip_has_not_is_said_with_what_to_use(folder: Path) -> None:
    other = replace(load_clip(str(folder)), patches=None, sight=None)  # as a SigLIP's are
    with pytest.raises(
        ValueError, match='patches of this SigLIP .* use a CLIP, say model.clip = "'
    ):
        patches_in(other)
    with pytest.raises(ValueError, match="no layers of a transformer to put adapters beside"):
        sight_of(other)
    with pytest.raises(ValueError, match="layers = 4: expected at most 3"):
        AdaptedClipSettings(clip=str(folder), layers=4).build(NAMES, 0)
    with pytest.raises(ValueError, match="the prompt of class 'tiger 7' has .* use fewer words"):
        AdaptedClipSettings(clip=str(folder), words="a photo of a " * 12).build(NAMES, 0)
