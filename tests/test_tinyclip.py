"""The tiny CLIP in the package: it loads, it is small, it sees what its card says, and its pictures
repeat.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "src/fedexperts/models/tinyclip"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_clip", ROOT / "pretraining/tiny_clip.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_folder_loads_with_the_classes_of_a_large_clip(script):
    model, tokenizer, processor = script.load(FOLDER)
    text = model.config.text_config
    assert (text.bos_token_id, text.eos_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )
    assert text.pad_token_id == tokenizer.pad_token_id != text.eos_token_id != 2
    assert text.max_position_embeddings >= 1 + 16 + 8
    assert processor.size["shortest_edge"] == model.config.vision_config.image_size
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_words_of_the_captions_are_single_tokens_and_any_text_has_tokens(script):
    tokenizer = script.load(FOLDER)[1]
    assert len(tokenizer.tokenize(" ".join(script.DIGITS))) == len(script.DIGITS)
    assert (
        tokenizer.unk_token_id
        not in tokenizer("Zürich, 東京!", add_special_tokens=False)["input_ids"]
    )


def test_the_folder_takes_at_most_four_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 4_000_000


def test_zero_shot_on_real_digits_is_what_the_card_says(script):
    said = json.loads((FOLDER / "card.json").read_text())["zero_shot"]["real digits, plain"]
    pictures, labels = script.scans()
    assert (
        script.percent(script.zero_shot(FOLDER, pictures["plain"], script.DIGITS), labels)
        >= said - 1
    )
    assert f"{said:.1f} %" in (FOLDER / "README.md").read_text()


def test_equal_seeds_render_equal_pictures_and_another_seed_others(script):
    once, again, other = script.render(32, 1), script.render(32, 1), script.render(32, 2)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once[0], other[0])
