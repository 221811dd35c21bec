"""Pre-train the tiny CLIP that ships in `fedexperts/models/tinyclip`, from nothing, on pictures
drawn here.

What it is: a CLIP of 1.5 million parameters with the classes, files and behaviour of a large one,
for tests, examples and small experiments without a download. It learns from 32 x 32 pictures of
glyphs and shapes that this script renders from the fonts inside matplotlib, with captions put
together from words.

What it is not: a model of photographs. It has seen no camera picture and no handwriting.
scikit-learn's scanned digits measure it at the very end and never enter the training; only the
ranges of the rendering (how coarse, how bold) were set by hand, after looking at such scans and at
the accuracy of early models on them.

    python pretraining/tiny_clip.py                   train, save the folder, evaluate, write its
    card python pretraining/tiny_clip.py --evaluate-only   print the card's accuracies again
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from torch import Generator, Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

# --- What there is to see, and the words for it
# ---------------------------------------------------------------------

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz")
SHAPES = [
    "circle",
    "square",
    "triangle",
    "star",
    "ring",
    "cross",
    "diamond",
    "hexagon",
    "heart",
    "arrow",
]
THINGS = DIGITS + LETTERS + SHAPES
COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.65, 0.2),
    "blue": (0.15, 0.25, 0.9),
    "yellow": (0.95, 0.9, 0.1),
    "orange": (1.0, 0.55, 0.05),
    "purple": (0.55, 0.15, 0.7),
    "pink": (1.0, 0.55, 0.75),
    "brown": (0.45, 0.27, 0.1),
}
TEXTURES = ["plain", "striped", "dotted", "checked"]
LOOKS = ["slanted", "faint", "noisy", "blurred", "coarse"]
FACTS = ["thing", "colour", "texture", *LOOKS]
"""Eight whole numbers describe a picture; a caption mentions some of them and leaves the rest open (-1)."""  # noqa: E501

FRAMES = [
    "a photo of a {}",
    "a picture of a {}",
    "a scan of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a {}",
    "{}",
    "the {}",
    "a photo of the {}",
    "a scan of the {}",
    "a picture of the {}",
    "this is a {}",
    "a small picture of a {}",
    "a rendering of a {}",
    "my {}",
]
FILLERS = """here we see in this small image what someone made for us and it shows something that was kept on paper or
screen with care as you can tell there now look at what of many things from our set which has been found again today
simple clear new old good sample example kind type class named called""".split()  # noqa: E501, SIM905

FONTS = [
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmti10",
]
HELD_OUT_FONTS = [
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralBol",
    "cmtt10",
]

CANVAS, SIDE = 64, 32  # masks are drawn and bent on the canvas; pictures have this side
MEAN, STD = 0.51, 0.29  # of the rendered pixels, to two digits
LONGEST = 26  # tokens of the longest caption; prompts with learned context are about as long
SOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


# --- Rendering
# ---------------------------------------------------------------------------------------------


def fill_canvas(mask: Image.Image) -> np.ndarray:
    """Crop a mask to its ink and fit it, proportions kept, into the canvas with a margin for
    bending.
    """
    ink = mask.crop(mask.getbbox())
    scale = 50 / max(ink.size)
    ink = ink.resize(
        (max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BOX
    )
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(canvas)


def draw_glyph(character: str, font: str) -> np.ndarray:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    mask = Image.new("L", (400, 400))
    ImageDraw.Draw(mask).text((130, 80), character, fill=255, font=ImageFont.truetype(path, 150))
    return fill_canvas(mask)


def polygon(
    corners: int, inner: float = 1.0, turn: float = -math.pi / 2
) -> list[tuple[float, float]]:
    """A regular polygon; `inner` below 1 pulls every second corner towards the middle, which makes
    a star.
    """
    radii = [90 * (inner if k % 2 else 1.0) for k in range(corners)]
    angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
    return [
        (100 + r * math.cos(a), 100 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)
    ]


def heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * k / 60 for k in range(60)]
    wave = [
        13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        for t in turns
    ]
    return [(100 + 85 * math.sin(t) ** 3, 90 - 5.5 * y) for t, y in zip(turns, wave, strict=True)]


OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": polygon(4, turn=math.pi / 4),
    "triangle": polygon(3),
    "star": polygon(10, inner=0.42),
    "diamond": [(100, 5), (160, 100), (100, 195), (40, 100)],
    "hexagon": polygon(6),
    "heart": heart(),
    "cross": [
        (75, 10),
        (125, 10),
        (125, 75),
        (190, 75),
        (190, 125),
        (125, 125),
        (125, 190),
        (75, 190),
        (75, 125),
        (10, 125),
        (10, 75),
        (75, 75),
    ],
    "arrow": [(10, 75), (110, 75), (110, 30), (190, 100), (110, 170), (110, 125), (10, 125)],
}


def draw_shape(name: str) -> np.ndarray:
    mask = Image.new("L", (200, 200))
    pen = ImageDraw.Draw(mask)
    if name in OUTLINES:
        pen.polygon(OUTLINES[name], fill=255)
    else:
        pen.ellipse((10, 10, 190, 190), fill=255)
    if name == "ring":
        pen.ellipse((55, 55, 145, 145), fill=0)
    return fill_canvas(mask)


def drawings(thing: str, fonts: tuple[str, ...]) -> list[np.ndarray]:
    if thing in SHAPES:
        return [draw_shape(thing)]
    characters = [str(DIGITS.index(thing))] if thing in DIGITS else [thing, thing.upper()]
    return [draw_glyph(c, font) for c in characters for font in fonts]


@cache
def bank(fonts: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Every mask, and for each thing its first row there and how many rows it has."""
    groups = [drawings(thing, fonts) for thing in THINGS]
    counts = torch.tensor([len(group) for group in groups])
    masks = torch.from_numpy(np.stack([mask for group in groups for mask in group]))
    return masks, counts.cumsum(0) - counts, counts


def uniform(n: int, low: float, high: float, g: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=g)


def choose(n: int, weights: list[float], g: Generator) -> Tensor:
    return torch.multinomial(
        torch.tensor(weights, dtype=torch.float32), n, replacement=True, generator=g
    )


def draw_facts(n: int, g: Generator) -> Tensor:
    """Half digits, a quarter letters, the rest shapes; glyphs are mostly black or white and never
    textured.
    """
    groups = [(DIGITS, 0.55), (LETTERS, 0.25), (SHAPES, 0.2)]
    thing = choose(n, [share / len(group) for group, share in groups for _ in group], g)
    shape = thing >= len(DIGITS) + len(LETTERS)
    colour = torch.where(shape, choose(n, [1] * 10, g), choose(n, [6, 6] + [0.25] * 8, g))
    texture = choose(n, [1] * 4, g) * shape
    looks = torch.rand(n, len(LOOKS), generator=g) < torch.tensor([0.25, 0.2, 0.2, 0.1, 0.5])
    looks[:, 0] &= ~shape
    return torch.cat([torch.stack([thing, colour, texture], 1), looks.long()], 1)


def thicken(masks: Tensor, g: Generator) -> Tensor:
    width = choose(len(masks), [4, 2, 2, 1], g)
    for k in (1, 2, 3):
        masks[width >= k] = F.max_pool2d(masks[width >= k], 3, 1, 1)
    return masks


def affine(slanted: Tensor, g: Generator) -> Tensor:
    """A 2 x 3 matrix a picture, from output to input: scale, turn, slant (large where it is said
    so) and shift.
    """
    n = len(slanted)
    wide, high = uniform(n, 0.65, 1.25, g), uniform(n, 0.72, 1.1, g)
    # most writing leans to the right
    side = torch.where(torch.rand(n, generator=g) < 0.7, 1.0, -1.0)
    slant = torch.where(slanted, side * uniform(n, 0.25, 0.6, g), uniform(n, -0.12, 0.15, g))
    turn = uniform(n, -0.15, 0.15, g)
    rows = [wide, slant + turn, uniform(n, -0.12, 0.12, g), -turn, high, uniform(n, -0.08, 0.08, g)]
    return torch.stack(rows, 1).view(n, 2, 3)


def bend(masks: Tensor, slanted: Tensor, g: Generator) -> Tensor:
    n = len(masks)
    grid = F.affine_grid(affine(slanted, g), [n, 1, SIDE, SIDE], align_corners=False)
    knots = torch.randn(n, 2, 4, 4, generator=g) * uniform(n, 0.0, 0.1, g).view(-1, 1, 1, 1)
    wobble = F.interpolate(knots, size=(SIDE, SIDE), mode="bilinear").permute(0, 2, 3, 1)
    return F.grid_sample(masks, grid + wobble, align_corners=False)


def textured(masks: Tensor, texture: Tensor, g: Generator) -> Tensor:
    """Weave waves of random direction and period into the ink: one for stripes, two crossed for
    dots and checks.
    """
    n, steps = len(masks), torch.arange(SIDE) - SIDE / 2
    turn, pace = (
        uniform(n, 0, math.pi, g).view(-1, 1, 1),
        2 * math.pi / uniform(n, 5, 9, g).view(-1, 1, 1),
    )
    x, y = steps.view(1, 1, -1), steps.view(1, -1, 1)
    u = torch.sin(pace * (x * turn.cos() + y * turn.sin()))
    v = torch.sin(pace * (y * turn.cos() - x * turn.sin()))
    waves = (
        torch.stack([torch.ones_like(u), u * 4, (u * v) * 8 - 2, u * v * 8]).clamp(-1, 1) * 0.5
        + 0.5
    )
    return masks * (0.2 + 0.8 * waves[texture, torch.arange(n)].unsqueeze(1))


def painted(masks: Tensor, colour: Tensor, faint: Tensor, g: Generator) -> Tensor:
    """Ink of the colour on a grey that differs from it; faint pictures keep a third of the contrast
    around any grey.
    """
    n = len(masks)
    ink = torch.tensor(list(COLOURS.values()))[colour]
    light = torch.where(ink.mean(1) > 0.5, uniform(n, 0.0, 0.25, g), uniform(n, 0.75, 1.0, g))
    ink = (ink + 0.04 * torch.randn(n, 3, generator=g)).view(n, 3, 1, 1)
    pictures = masks * ink + (1 - masks) * light.view(n, 1, 1, 1)
    contrast = torch.where(faint, uniform(n, 0.25, 0.5, g), uniform(n, 0.7, 1.0, g)).view(
        n, 1, 1, 1
    )
    return contrast * pictures + (1 - contrast) * torch.rand(n, 1, 1, 1, generator=g)


def noised(pictures: Tensor, noisy: Tensor, g: Generator) -> Tensor:
    """Grain of any size between that of a coarse scan and one pixel."""
    n = len(pictures)
    share = torch.rand(n, 1, 1, 1, generator=g)
    rough = F.interpolate(torch.randn(n, 1, 8, 8, generator=g), scale_factor=4, mode="bilinear")
    level = torch.where(noisy, uniform(n, 0.07, 0.18, g), uniform(n, 0.0, 0.03, g)).view(
        -1, 1, 1, 1
    )
    return pictures + level * (
        share * rough + (1 - share) * torch.randn(n, 1, SIDE, SIDE, generator=g)
    )


def scanned(pictures: Tensor, coarse: Tensor, g: Generator) -> Tensor:
    """Where coarse, keep only a grid of 8 to 16 cells and enlarge that again, as the eye meets a
    small scan.
    """
    cells = torch.where(
        coarse, torch.tensor([8, 10, 12, 16])[choose(len(pictures), [4, 1, 1, 1], g)], SIDE
    )
    for side in (8, 10, 12, 16):
        small = F.interpolate(pictures[cells == side], size=(side, side), mode="area")
        pictures[cells == side] = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    return pictures


def blur(pictures: Tensor, blurred: Tensor) -> Tensor:
    soft = F.avg_pool2d(
        F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False), 3, 1, 1, count_include_pad=False
    )
    return torch.where(blurred.view(-1, 1, 1, 1), soft, pictures)


def render(n: int, seed: int, fonts: tuple[str, ...] = tuple(FONTS)) -> tuple[Tensor, Tensor]:
    """`n` pictures (uint8, n x 3 x 32 x 32) and their facts (n x 8); equal seeds give equal
    bits.
    """
    g = Generator().manual_seed(seed)
    facts = draw_facts(n, g)
    slanted, faint, noisy, blurred, coarse = facts[:, 3:].bool().T
    masks, first, count = bank(fonts)
    rows = first[facts[:, 0]] + (torch.rand(n, generator=g) * count[facts[:, 0]]).long()
    ink = textured(bend(thicken(masks[rows].unsqueeze(1) / 255, g), slanted, g), facts[:, 2], g)
    pictures = blur(scanned(painted(ink, facts[:, 1], faint, g), coarse, g), blurred)
    return (noised(pictures, noisy, g).clamp(0, 1) * 255).round().byte(), facts


# --- Captions
# ---------------------------------------------------------------------------------------------


def name(thing: str, draw: random.Random) -> str:
    kinds = (
        ["digit", "number"]
        if thing in DIGITS
        else ["letter", "character"]
        if thing in LETTERS
        else [""]
    )
    return f"{draw.choice(kinds)} {thing}".strip() if draw.random() < 0.4 else thing


def mentioned(facts: list[int], draw: random.Random) -> list[int]:
    """Which facts a caption tells: always the thing, at times its colour, texture and one look."""
    told = [facts[0]] + [-1] * (len(FACTS) - 1)
    plain = THINGS[facts[0]] not in SHAPES
    told[1] = facts[1] if draw.random() < (0.15 if plain else 0.5) else -1
    told[2] = facts[2] if not plain and draw.random() < 0.5 else -1
    looks = [k for k in range(3, len(FACTS)) if facts[k]]
    if looks and draw.random() < 0.35:
        told[draw.choice(looks)] = 1
    return told


def phrase(told: list[int], draw: random.Random) -> str:
    words = [FACTS[k] for k in range(3, len(FACTS)) if told[k] == 1]
    words += [list(COLOURS)[told[1]]] if told[1] >= 0 else []
    words += [TEXTURES[told[2]]] if told[2] >= 0 else []
    return " ".join([*words, name(THINGS[told[0]], draw)])


def caption(told: list[int], filler: int, draw: random.Random) -> str:
    text = draw.choice(FRAMES).format(phrase(told, draw)) + draw.choice(["", "."])
    return " ".join([*draw.choices(FILLERS, k=filler), text])


def captions(facts: Tensor, draw: random.Random) -> tuple[list[str], Tensor]:
    """A caption each and what it tells. A third of the batches begin with idle words, so that names
    also stand late.
    """
    most = draw.choice([0, 0, 17])
    told = [mentioned(row, draw) for row in facts.tolist()]
    return [caption(row, draw.randint(0, most), draw) for row in told], torch.tensor(told)


def words() -> list[str]:
    """All words of the captions, the more telling ones repeated so that they become single tokens
    first.
    """
    telling = [*THINGS, *COLOURS, *TEXTURES, *LOOKS, "digit", "number", "letter", "character"]
    return 3 * telling + " ".join(FRAMES).replace("{}", "").split() + FILLERS


def learn_merges(corpus: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding, run until each word of the corpus is one token; ties go to the first in
    the alphabet.
    """
    pieces, merges = [[*word[:-1], f"{word[-1]}</w>"] for word in corpus], []
    while pairs := Counter(pair for word in pieces for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [merged(word, best) for word in pieces]
    return merges


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def byte_characters() -> list[str]:
    """The 256 characters that stand for bytes in byte-level tokenizers (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + k) for k in range(len(hidden))]


def build_tokenizer() -> CLIPTokenizer:
    letters, merges = byte_characters(), learn_merges(words())
    tokens = [
        *letters,
        *(f"{c}</w>" for c in letters),
        *("".join(pair) for pair in merges),
        PAD,
        SOS,
        EOS,
    ]
    vocab = {token: k for k, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=PAD, model_max_length=48)


# --- Model and training
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    epochs: int = 10
    images: int = 50_000
    seed: int = 0
    batch: int = 128
    rate: float = 1.5e-3


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    shared = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    text = shared | {
        "num_hidden_layers": 3,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 48,
    }
    text |= {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")
    }
    vision = shared | {"num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    words = model.text_model.embeddings
    # CLIP's own 0.02 hardly learns in so short a training
    torch.nn.init.normal_(words.token_embedding.weight, std=0.3)
    torch.nn.init.normal_(words.position_embedding.weight, std=0.1)
    return model


def normalise(pictures: Tensor) -> Tensor:
    return (pictures / 255 - MEAN) / STD


def agreement(told: Tensor, facts: Tensor) -> Tensor:
    """Which caption (row) is true of which picture (column): all it tells is so, whatever picture
    it was made for.
    """
    return ((told[:, None] == -1) | (told[:, None] == facts[None])).all(-1).float()


def contrast(logits: Tensor, true: Tensor) -> Tensor:
    """CLIP's loss in both directions, with the weight shared among all true pairs."""
    texts = -(F.log_softmax(logits, 1) * true / true.sum(1, keepdim=True)).sum(1).mean()
    images = -(F.log_softmax(logits, 0) * true / true.sum(0, keepdim=True)).sum(0).mean()
    return (texts + images) / 2


def batch_loss(
    model: CLIPModel, tokenizer: CLIPTokenizer, batch: tuple[Tensor, Tensor], draw: random.Random
) -> Tensor:
    pictures, facts = batch
    texts, told = captions(facts, draw)
    tokens = tokenizer(
        texts, padding=True, truncation=True, max_length=LONGEST + 2, return_tensors="pt"
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = model(pixel_values=normalise(pictures), **tokens)
    return contrast(out.logits_per_text.float(), agreement(told, facts))


def train(model: CLIPModel, tokenizer: CLIPTokenizer, settings: Settings) -> None:
    """AdamW with warm-up and a cosine to zero; every epoch sees newly rendered pictures."""
    # the fused one is many times slower backwards, in bfloat16 on a CPU
    model.set_attn_implementation("eager")
    steps = settings.epochs * (settings.images // settings.batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda k: min((k + 1) / warm, 0.5 * (1 + math.cos(math.pi * k / steps)))
    )
    draw, start = random.Random(settings.seed), time.time()
    for step in range(steps):
        loss = batch_loss(
            model, tokenizer, render(settings.batch, settings.seed * 1_000_003 + step), draw
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=math.log(100))
        if step % 50 == 0:
            print(
                f"step {step:5d} of {steps}  loss {loss.item():.3f}  {time.time() - start:6.0f} s",
                flush=True,
            )


# --- Evaluation
# ---------------------------------------------------------------------------------------------


def load(folder: Path) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    return (
        model,
        CLIPTokenizer.from_pretrained(folder),
        CLIPImageProcessorPil.from_pretrained(folder),
    )


@torch.no_grad()
def zero_shot(
    folder: Path, images: list[Image.Image], names: list[str], prompt: str = "a photo of a {}."
) -> Tensor:
    """The index of the name that the folder's model finds nearest to each image."""
    model, tokenizer, processor = load(folder)
    tokens = tokenizer([prompt.format(name) for name in names], padding=True, return_tensors="pt")
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    return model(pixel_values=pixels, **tokens).logits_per_image.argmax(1)


def as_image(grey: np.ndarray) -> Image.Image:
    """An 8 x 8 array in 0..1 as three equal channels of 32 x 32."""
    small = Image.fromarray((grey.clip(0, 1) * 255).round().astype(np.uint8))
    return small.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("RGB")


def lean(image: Image.Image, slant: float = 0.35) -> Image.Image:
    shear = (1, slant, -slant * SIDE / 2, 0, 1, 0)
    return image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BILINEAR)


def scans() -> tuple[dict[str, list[Image.Image]], Tensor]:
    """scikit-learn's 1,797 digits as they are (bright ink on dark) and through three other
    scanners; their labels.
    """
    ink, labels = load_digits(return_X_y=True)
    ink = ink.reshape(-1, 8, 8) / 16
    grain = 0.08 * np.random.default_rng(0).standard_normal(ink.shape)
    looks = {"plain": ink, "inverted": 1 - ink, "noisy, low contrast": 0.3 + 0.4 * ink + grain}
    images = {look: [as_image(grey) for grey in pictures] for look, pictures in looks.items()}
    return images | {"slanted": [lean(image) for image in images["plain"]]}, torch.from_numpy(
        labels
    )


def percent(found: Tensor, wanted: Tensor) -> float:
    return round(100 * (found == wanted).float().mean().item(), 1)


def on_scans(folder: Path) -> dict[str, float]:
    pictures, labels = scans()
    found = {look: zero_shot(folder, images, DIGITS) for look, images in pictures.items()}
    idle = " ".join(FILLERS[:16]) + " {}."
    found["plain, after 16 idle words"] = zero_shot(folder, pictures["plain"], DIGITS, idle)
    return {f"real digits, {look}": percent(names, labels) for look, names in found.items()}


def on_rendered(folder: Path, n: int = 6000) -> dict[str, float]:
    """Fonts that training left out, and another seed for everything else."""
    pictures, facts = render(n, 987_654_321, tuple(HELD_OUT_FONTS))
    groups = {
        "digits": DIGITS,
        "letters": LETTERS,
        "shapes": SHAPES,
        "glyphs": DIGITS + LETTERS,
        "things": THINGS,
    }
    scores = {}
    for group, names in groups.items():
        wanted = facts[:, 0] - THINGS.index(names[0])
        kept = (wanted >= 0) & (wanted < len(names))
        images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures[kept]]
        scores[f"rendered {group}, {len(names)} classes"] = percent(
            zero_shot(folder, images, names), wanted[kept]
        )
    return scores


def evaluate(folder: Path) -> dict[str, float]:
    scores = on_rendered(folder) | on_scans(folder)
    for what, score in scores.items():
        print(f"{what:45s} {score:5.1f} %", flush=True)
    return scores


# --- The folder
# ---------------------------------------------------------------------------------------------


def save(folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Hugging Face's layout, weights in half precision."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        resample=Image.Resampling.BILINEAR,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    processor.save_pretrained(folder)


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# Tiny CLIP of fedexperts

A CLIP of {parameters:,} parameters (32 x 32 images in patches of 8, width 128, 4 image and 3 text layers) in Hugging
Face's layout, small enough to ship with the library and to run on any CPU. It exists for tests, examples and small
experiments.

**The pictures it learned from are rendered.** `pretraining/tiny_clip.py` draws digits, letters and simple shapes from
the fonts inside matplotlib, in many styles, with captions put together from words. It has never seen a photograph or
handwriting. scikit-learn's scanned digits, measured below, never entered the training; only the ranges of the
rendering (how coarse, how bold) were set by hand, after looking at such scans and at the
accuracy of early models on them.

```python
model = CLIPModel.from_pretrained(folder, dtype=torch.float32)  # stored in half precision
tokenizer = CLIPTokenizer.from_pretrained(folder)
processor = CLIPImageProcessorPil.from_pretrained(folder)
```

## How it was made
`{command}`: seed {seed}, {epochs} epochs of {images:,} newly rendered pictures in batches of {batch}, peak
rate {rate}, {minutes} minutes on one CPU thread in bfloat16. The captions name things at any of the first 26
positions of the 48 that there are. Equal seeds give equal weights on equal processors and versions of torch.

Licence: Apache-2.0, for the weights as for the code.

## Zero-shot accuracy
Text: "a photo of a {{name}}.". Chance is 10 % for ten classes. `--evaluate-only` prints these numbers again.

| pictures | accuracy |
|---|---|
{table}

*Rendered*: fonts and random draws that training left out. Letters are asked for without their case, and some glyphs
cannot be told apart (0 and o, 1 and l). *Real digits*: all 1,797 scans of 8 x 8, enlarged bilinearly. *Plain* is bright
ink on a dark ground, as scikit-learn gives them; *inverted* is dark on light. *After 16 idle words*: the text is
sixteen filler words and the name, the layout of a prompt with learned context.
"""  # noqa: E501


def write_card(folder: Path, facts: dict[str, object], scores: dict[str, float]) -> None:
    table = "\n".join(f"| {what} | {score:.1f} % |" for what, score in scores.items())
    (folder / "README.md").write_text(CARD.format(table=table, **facts))
    (folder / "card.json").write_text(json.dumps(facts | {"zero_shot": scores}, indent=1) + "\n")


def make(folder: Path, settings: Settings, command: str) -> None:
    torch.manual_seed(settings.seed)
    start, tokenizer = time.time(), build_tokenizer()
    model = build_model(tokenizer)
    train(model, tokenizer, settings)
    save(folder, model, tokenizer)
    size = sum(weight.numel() for weight in model.parameters())
    facts = {
        "command": command,
        "minutes": round((time.time() - start) / 60),
        "parameters": size,
    } | asdict(settings)
    write_card(folder, facts, evaluate(folder))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field, value in asdict(Settings()).items():
        parser.add_argument(f"--{field}", type=type(value), default=value)
    parser.add_argument("--out", type=Path, default=Path("src/fedexperts/models/tinyclip"))
    parser.add_argument("--evaluate-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    torch.set_num_threads(1)
    disable_progress_bar()
    asked = arguments()
    if asked.evaluate_only:
        evaluate(asked.out)
    else:
        settings = Settings(*(getattr(asked, field) for field in asdict(Settings())))
        make(asked.out, settings, shlex.join(["python", *sys.argv]))


if __name__ == "__main__":
    main()
