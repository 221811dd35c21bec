"""A transformer as a model is Hugging Face's own classifier, padding is nothing, and tiny ones need
no files.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    CLIPConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from fedexperts.models.built import Built
from fedexperts.models.sequence import TransformerSettings
from fedexperts.models.transformer import hashed

CLASSES = ("bad", "so so", "good")
TEXTS = ("the soup was cold", "good", "a very good soup , and warm", "")
# weights so large that every token matters
SIZES: dict[str, Any] = {"num_labels": 3, "initializer_range": 0.5}


def tokenizer(bert: bool) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    special = ["[PAD]", "[CLS]", "[SEP]"] if bert else ["<|endoftext|>"]
    words.train_from_iterator(TEXTS, WordLevelTrainer(special_tokens=[*special, "[UNK]"]))
    if not bert:
        return PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token="[UNK]", eos_token="<|endoftext|>"
        )
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")


def save(folder: Path, kind: str) -> Path:
    """A small classifier with random weights, and its tokenizer; GPT-2's knows no padding."""
    words = tokenizer(kind == "bert")
    sizes = SIZES | {"vocab_size": len(words)}
    config = (
        BertConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=24,
            **sizes,
        )
        if kind == "bert"
        else GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0, **sizes
        )
    )
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp(request.param), request.param)


def built(name: Path | str, seed: int = 0, **fields: Any) -> Built:
    return TransformerSettings(str(name), **fields).build(CLASSES, seed)


def outputs(one: Built) -> Tensor:
    return one.model.logits(one.model.initial, one.encode(TEXTS))


def reference(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()


# It is Hugging Face's


def test_a_transformer_is_the_classifier_called_directly(folder: Path) -> None:
    one, classifier = built(folder, tokens=12), reference(folder)
    ids, mask = one.encode(TEXTS).unbind(1)
    classifier.config.pad_token_id = 0
    assert torch.equal(outputs(one), classifier(ids, attention_mask=mask).logits)
    assert torch.equal(one.model.step(one.model.initial, one.encode(TEXTS))[0], outputs(one))  # type: ignore[attr-defined]
    names = {f"classifier.{name}": value for name, value in classifier.named_parameters()}
    assert names.keys() == one.model.initial.keys()
    assert all(torch.equal(one.model.initial[name], value) for name, value in names.items())


@pytest.mark.parametrize("pooling", ["own", "mean"])
def test_a_text_among_others_is_what_it_is_alone_and_without_padding(
    folder: Path, pooling: str
) -> None:
    one, classifier = built(folder, tokens=12, pooling=pooling), reference(folder)
    words = AutoTokenizer.from_pretrained(folder)
    for text, found in zip(TEXTS[:3], outputs(one), strict=False):
        ids = words(text, return_tensors="pt").input_ids
        if pooling == "own":
            expected = classifier(ids).logits[0]
        else:
            hidden = classifier.base_model(ids).last_hidden_state[0].mean(0)
            expected = one.model.initial["head.weight"] @ hidden + one.model.initial["head.bias"]
        assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(*outputs(one)[:2], atol=0.1)


@pytest.mark.parametrize("pooling", ["own", "mean"])
@pytest.mark.parametrize("name", ["folder", "tiny-bert", "tiny-gpt2"])
def test_padding_changes_nothing(folder: Path, name: str, pooling: str) -> None:
    one = built(folder if name == "folder" else name, tokens=24, pooling=pooling)
    x = one.encode(TEXTS)
    short, other = x[:, :, :10], x.clone()
    assert not x[:, 1, 10:].any()
    if pooling == "mean":  # GPT-2's own looks at the ids, not at the mask
        other[:, 0] = torch.where(other[:, 1] == 1, other[:, 0], 5)
    for same in (short, other):
        assert torch.allclose(one.model.logits(one.model.initial, same), outputs(one), atol=1e-4)
    assert outputs(one).isfinite().all()


@pytest.mark.parametrize("pooling", ["own", "mean"])
@pytest.mark.parametrize("name", ["folder", "tiny-bert", "tiny-gpt2"])
def test_every_weight_has_a_gradient_and_nothing_moves(
    folder: Path, name: str, pooling: str
) -> None:
    model: Any = (
        one := built(folder if name == "folder" else name, pooling=pooling, tokens=24)
    ).model
    trained = {name: value.clone().requires_grad_() for name, value in model.initial.items()}
    loss = model.step(trained, one.encode(TEXTS))[0].square().sum()
    gradients = torch.autograd.grad(loss, list(trained.values()))
    # a key's bias never matters
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.8 * len(gradients)
    assert not model.buffers
    assert not model.together


# Its inputs


def test_a_long_text_is_cut_and_a_text_without_words_is_still_something(folder: Path) -> None:
    one = built(folder, tokens=4)
    x = one.encode(("good soup " * 9, ""))
    assert x.shape == (2, 2, 4)
    assert x.dtype == torch.int64
    assert x[:, 1].sum(1).tolist() == [4, 2 if "bert" in folder.name else 1]  # [CLS] [SEP]


def test_words_of_the_tiny_ones_are_hashed() -> None:
    ids, mask = hashed(8, ("Good soup, good!", "", "a b c d e f g h i")).unbind(1)
    good, soup, comma, _, bang = ids[0, 1:6].tolist()
    assert ids[0].tolist() == [1, good, soup, comma, good, bang, 0, 0]
    assert (good, soup) == (1000, 914)  # for ever: a trained network depends on them
    assert len({good, soup, comma, bang}) == 4
    assert ids[1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert mask.tolist() == (ids > 0).long().tolist()
    assert mask[2].all()


# Its start


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2"])
def test_a_tiny_one_follows_the_seed_and_touches_nobody_elses_dice(name: str) -> None:
    torch.manual_seed(5)
    dice = torch.get_rng_state()
    first = outputs(built(name))
    assert torch.equal(torch.get_rng_state(), dice)
    torch.rand(1)
    assert torch.equal(outputs(built(name)), first)
    assert not torch.equal(outputs(built(name, seed=1)), first)
    assert sum(value.numel() for value in built(name).model.initial.values()) < 100_000


def test_a_head_for_other_classes_or_of_none_is_fresh_from_the_seed(
    folder: Path, tmp_path: Path
) -> None:
    def head(name: Path, classes: int, seed: int) -> Tensor:
        initial = (
            TransformerSettings(str(name), tokens=24)
            .build(tuple("abcde"[:classes]), seed)
            .model.initial
        )
        return initial.get("classifier.score.weight", initial.get("classifier.classifier.weight"))  # type: ignore[return-value]

    bare = tmp_path / "bare"
    reference(folder).base_model.save_pretrained(bare)
    AutoTokenizer.from_pretrained(folder).save_pretrained(bare)
    for name, classes in ((folder, 5), (bare, 3)):
        assert head(name, classes, 0).shape == (classes, 16)
        assert torch.equal(head(name, classes, 0), head(name, classes, 0))
        assert not torch.equal(head(name, classes, 0), head(name, classes, 1))
    assert torch.equal(head(folder, 3, 0), head(folder, 3, 1))


# Loading


def test_loading_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in (folder, "tiny-bert", "tiny-gpt2"):
        TransformerSettings(str(name), tokens=24).build(tuple("abcde"), 0)
    assert capfd.readouterr() == ("", "")


def test_more_tokens_than_it_takes_are_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match="takes texts of 24 tokens, and tokens is 25: set tokens to at most 24"
    ):
        built(folder, tokens=25)


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no text model at 'nobody/nothing'.*fedexperts fetch.*use \"tiny-bert\""
    ):
        built("nobody/nothing")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("config.json", "config.json"),
        ("tokenizer.json", "neither tokenizer.json nor"),
        ("model.safetensors", "model.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(tmp_path: Path, missing: str, said: str) -> None:
    (save(tmp_path, "bert") / missing).unlink()
    with pytest.raises(ValueError, match=f"does not hold a whole text model.*{said}"):
        built(tmp_path)


def test_a_tokenizer_with_more_words_than_the_embedding_is_refused(tmp_path: Path) -> None:
    words = AutoTokenizer.from_pretrained(save(tmp_path, "bert"))
    ids = len(words)
    words.add_tokens(["vorhofflimmern"])
    words.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tokenizer has {ids + 1} ids and its embedding {ids}"):
        built(tmp_path)


def test_a_tokenizer_that_can_fill_no_text_up_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "bert")
    bare = tokenizer(bert=True)
    bare.pad_token = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='neither a pad token nor an end token.*add a "pad_token"'):
        built(tmp_path)


def test_a_roberta_takes_as_many_tokens_as_it_has_positions_behind_padding(tmp_path: Path) -> None:
    words = tokenizer(bert=True)
    config = RobertaConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        pad_token_id=1,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    long = " ".join(["soup"] * 30)
    most = built(tmp_path, tokens=22)
    assert most.model.logits(most.model.initial, most.encode([long])).isfinite().all()
    with pytest.raises(ValueError, match="takes texts of 22 tokens, and tokens is 23"):
        built(tmp_path, tokens=23)


def test_weights_in_a_pickle_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, "bert")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        ValueError,
        match=r"pytorch_model\.bin is a pickle, .* AutoModelForSequenceClassification as M",
    ):
        built(folder)


def test_weights_that_are_missing_and_other_kinds_are_refused(tmp_path: Path) -> None:
    model = reference(save(tmp_path, "bert"))
    some = {
        name: value
        for name, value in model.state_dict().items()
        if "layer.1.output.dense" not in name
    }
    model.save_pretrained(tmp_path, state_dict=some)
    with pytest.raises(
        ValueError, match=r"no weights for bert\.encoder\.layer\.1\.output\.dense\.bias"
    ):
        built(tmp_path)
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="does not hold a whole text model: Unrecognized configuration"
    ):
        built(tmp_path)
