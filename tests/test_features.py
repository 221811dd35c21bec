"""Features on disk: computed once, found again, and never silently wrong."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedexperts.data.features import BLOCK, features

IMAGES = (torch.arange(3 * 3 * 8 * 8) * 37 % 251).to(torch.uint8).view(3, 3, 8, 8)


def means(images: Tensor) -> Tensor:
    """An encoder: [B, 3, H, W] to [B, 3]."""
    return images.float().mean((2, 3))


def pixels(images: Tensor) -> Tensor:
    """An encoder that shows what it was shown."""
    return images


def never(inputs: object) -> Tensor:
    raise AssertionError("the encoder was called although the features are kept")


def only(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def test_the_first_view_is_of_the_image_itself_and_the_second_call_computes_nothing(
    tmp_path: Path,
) -> None:
    first = features(IMAGES, means, "means", tmp_path)
    assert torch.equal(first, means(IMAGES)[:, None])
    assert torch.equal(features(IMAGES, never, "means", tmp_path), first)
    assert not first.requires_grad


def lengths(texts: tuple[str, ...]) -> Tensor:
    """An encoder of texts."""
    return torch.tensor([[float(len(text))] for text in texts])


def test_texts_are_encoded_once_each_by_itself_and_others_anew(tmp_path: Path) -> None:
    texts = ("so", "", "a text, and another") * BLOCK
    first = features(texts, lengths, "lengths", tmp_path)
    assert torch.equal(first, lengths(texts)[:, None])
    assert torch.equal(features(texts, never, "lengths", tmp_path), first)
    features((*texts[:-1], "a text and, another"), lengths, "lengths", tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_another_key_image_number_of_views_seed_or_shape_is_computed_anew(tmp_path: Path) -> None:
    changed = IMAGES.clone()
    changed[1, 2, 3, 4] ^= 1
    features(IMAGES, means, "means", tmp_path)
    features(IMAGES, means, "other", tmp_path)
    features(changed, means, "means", tmp_path)
    features(IMAGES, means, "means", tmp_path, views=2)
    features(IMAGES, means, "means", tmp_path, views=2, seed=1)
    features(IMAGES.view(3, 3, 4, 16), means, "means", tmp_path)
    assert len(list(tmp_path.iterdir())) == 6
    features(IMAGES, means, "means", tmp_path, seed=1)  # the image itself knows no seed
    assert len(list(tmp_path.iterdir())) == 6


def test_further_views_are_small_seeded_changes_of_each_image(tmp_path: Path) -> None:
    smooth = torch.linspace(40, 200, 32).to(torch.uint8).expand(20, 3, 32, 32).contiguous()
    seen = features(smooth, pixels, "pixels", tmp_path, views=3, seed=5)
    assert seen.shape == (20, 3, 3, 32, 32)
    assert torch.equal(seen[:, 0], smooth)
    moved = (seen[:, 1:].float() - smooth[:, None].float()).abs()
    assert moved.mean() > 2
    assert moved.max() < 50
    assert not torch.equal(seen[:, 1], seen[:, 2])
    assert not torch.equal(seen[0, 1], seen[1, 1])
    assert torch.equal(features(smooth, pixels, "pixels", tmp_path, views=2, seed=5), seen[:, :2])
    other = features(smooth, pixels, "pixels", tmp_path, views=2, seed=6)
    assert not torch.equal(other[:, 1], seen[:, 1])


def test_views_shift_scale_and_change_contrast_within_their_limits(tmp_path: Path) -> None:
    dot = torch.full((200, 3, 33, 33), 100, dtype=torch.uint8)
    dot[:, :, 13:20, 13:20] = 180
    seen = features(dot, pixels, "pixels", tmp_path, views=2)[:, 1, 0].float()
    ink = (seen - seen[:, :1, :1]).clamp(min=0)  # [N, H, W]
    total = ink.sum((1, 2))
    across = (ink.sum(1) * torch.arange(33)).sum(1) / total - 16
    down = (ink.sum(2) * torch.arange(33)).sum(1) / total - 16
    for shift in (across, down):
        assert 1.7 < shift.abs().max() < 0.06 * 33 / 0.9 + 0.1
    height = ink.flatten(1).max(1).values / 80
    assert 0.79 <= height.min() < 0.85
    assert 1.15 < height.max() <= 1.21
    side = (total / (height * 80)).sqrt() / 7
    assert 0.88 < side.min() < 0.94
    assert 1.06 < side.max() < 1.13


def test_many_images_reach_the_encoder_in_blocks_and_come_back_in_order(tmp_path: Path) -> None:
    many = (
        torch.arange(BLOCK + 3)
        .remainder(256)
        .to(torch.uint8)[:, None, None, None]
        .expand(-1, 3, 2, 2)
    )
    sizes: list[int] = []

    def watched(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images[:, 0, 0, 0]

    assert torch.equal(features(many, watched, "first", tmp_path)[:, 0], many[:, 0, 0, 0])
    assert sizes == [BLOCK, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_a_type_survives_the_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    answer = features(IMAGES, lambda images: means(images).to(dtype), "typed", tmp_path)
    assert answer.dtype == dtype
    assert torch.equal(answer[:, 0], means(IMAGES).to(dtype))


def test_features_of_an_encoder_that_answers_channels_last_are_kept(tmp_path: Path) -> None:
    answer = features(
        IMAGES,
        lambda images: images.float().to(memory_format=torch.channels_last),
        "last",
        tmp_path,
    )
    assert torch.equal(answer[:, 0], IMAGES.float())


def test_no_graph_is_built_behind_the_features(tmp_path: Path) -> None:
    weight = torch.ones(3, requires_grad=True)
    built: list[bool] = []

    def trained(images: Tensor) -> Tensor:
        answer = means(images) * weight
        built.append(answer.requires_grad)
        return answer

    assert not features(IMAGES, trained, "graph", tmp_path).requires_grad
    assert built == [False]


def test_writing_to_the_features_does_not_change_the_file(tmp_path: Path) -> None:
    kept = features(IMAGES, means, "means", tmp_path)
    kept += 1
    assert torch.equal(features(IMAGES, never, "means", tmp_path)[:, 0], means(IMAGES))


def test_no_byte_of_a_kept_file_can_change_unseen(tmp_path: Path) -> None:
    features(IMAGES, means, "means", tmp_path)
    path = only(tmp_path)
    good = path.read_bytes()
    for place in range(len(good)):
        flipped = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        for bad in (flipped, good[:place]):
            path.unlink()  # a new file: the old one may still be mapped
            path.write_bytes(bad)
            with pytest.raises(
                ValueError, match=rf"{path.name} is not what was written there .*: delete it"
            ):
                features(IMAGES, never, "means", tmp_path)


@pytest.mark.parametrize(("true", "false"), [(b'"F32"', b'"I32"'), (b"[3,1,3]", b"[3,3,1]")])
def test_another_type_or_shape_of_the_same_bytes_is_found_out(
    tmp_path: Path, true: bytes, false: bytes
) -> None:
    features(IMAGES, means, "means", tmp_path)
    path = only(tmp_path)
    good = path.read_bytes()
    assert true in good
    path.unlink()
    path.write_bytes(good.replace(true, false))
    with pytest.raises(ValueError, match="its checksum is wrong"):
        features(IMAGES, never, "means", tmp_path)


def test_a_kept_file_under_another_files_name_is_found_out(tmp_path: Path) -> None:
    features(IMAGES, means, "means", tmp_path)
    mine = only(tmp_path)
    features(IMAGES.flip(0), means, "means", tmp_path)
    (other,) = set(tmp_path.iterdir()) - {mine}
    other.replace(mine)
    with pytest.raises(
        ValueError, match=rf"{mine.name} is not what was written there \(its checksum is wrong\)"
    ):
        features(IMAGES, never, "means", tmp_path)


def test_a_failing_encoder_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        features(IMAGES, never, "means", tmp_path)
    assert not list(tmp_path.iterdir())


def test_wrong_images_views_and_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images are torch.float32"):
        features(IMAGES.float(), means, "means", tmp_path)
    with pytest.raises(ValueError, match=r"learning.views = 2: texts are not augmented"):
        features(("a text", "another"), lengths, "lengths", tmp_path, views=2)
    with pytest.raises(ValueError, match="N at least 1"):
        features(IMAGES[:0], means, "means", tmp_path)
    with pytest.raises(ValueError, match="views is 0"):
        features(IMAGES, means, "means", tmp_path, views=0)
    with pytest.raises(ValueError, match=r"encode gave \[2, 3\] for 3 inputs: it must give \[3, "):
        features(IMAGES, lambda images: means(images)[:2], "means", tmp_path)


def test_each_image_is_counted_from_the_first_second_on(tmp_path: Path) -> None:
    many = IMAGES[:1].expand(2 * BLOCK + 3, -1, -1, -1)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    def watched(images: Tensor) -> Tensor:
        assert told, "nothing was said before the encoder was asked"
        return means(images)

    features(many, watched, "means", tmp_path, views=2, tell=tell)
    total = 2 * len(many)
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert sorted(told) == told
    assert {done for done, _ in told} >= {0, BLOCK, 2 * BLOCK}
    told.clear()
    features(many, never, "means", tmp_path, views=2, tell=tell)
    assert not told


def test_who_fails_in_the_middle_goes_on_with_the_block_that_failed(tmp_path: Path) -> None:
    many = (torch.arange(3 * BLOCK) % 251).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    seen: list[int] = []

    def failing(images: Tensor) -> Tensor:
        seen.append(int(images[0, 0, 0, 0]))
        if len(seen) == 2:
            raise ValueError("out of memory, say")
        return images[:, 0, 0, 0]

    with pytest.raises(ValueError, match="out of memory"):
        features(many, failing, "first", tmp_path)
    whole = features(many, failing, "first", tmp_path)
    assert seen == [0, BLOCK, BLOCK, 2 * BLOCK]
    assert torch.equal(whole[:, 0], many[:, 0, 0, 0])
    assert only(tmp_path).suffix == ".safetensors"


def test_a_block_that_is_damaged_is_not_built_upon(tmp_path: Path) -> None:
    many = IMAGES[:1].expand(BLOCK + 1, -1, -1, -1)

    def failing(images: Tensor) -> Tensor:
        if len(images) == 1:
            raise ValueError("not now")
        return means(images)

    with pytest.raises(ValueError, match="not now"):
        features(many, failing, "means", tmp_path)
    (block,) = tmp_path.glob("*.blocks/*.safetensors")
    data = bytearray(block.read_bytes())
    data[-1] ^= 1
    block.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{block.name} is not what was written there"):
        features(many, means, "means", tmp_path)
    block.unlink()
    assert torch.equal(features(many, means, "means", tmp_path)[:, 0], means(many))


def test_another_may_finish_while_one_looks_how_far_it_is(tmp_path: Path) -> None:
    """Who finishes takes the folder of blocks away; nothing is encoded twice."""
    many = torch.arange(130).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    encoded: list[int] = []

    def encode(images: Tensor) -> Tensor:
        encoded.append(len(images))
        return means(images)

    def tell(done: int, total: int) -> None:
        if not encoded:
            features(many, encode, "shared", tmp_path)

    kept = features(many, encode, "shared", tmp_path, tell=tell)
    assert torch.equal(kept[:, 0], means(many))
    assert encoded == [64, 64, 2]
    assert only(tmp_path).suffix == ".safetensors"


SLOW = """
import sys, time
from pathlib import Path
import torch
from fedexperts.data.features import BLOCK, features

cache, said, *others = (Path(word) for word in sys.argv[1:])
said.touch()
while not all(other.exists() for other in others):  # as if they were begun in one instant
    time.sleep(0.001)

def encode(images):
    first = int(images[0, 0, 0, 0])
    with open(said, "a") as file:
        file.write(f"{first}\\n")
    time.sleep(0.05)
    return images[:, 0, 0].float()

images = torch.arange(20).repeat_interleave(BLOCK).to(torch.uint8)[:, None, None, None]
images = images.expand(-1, 3, 2, 2)
told = []
kept = features(images, encode, "slow", cache, tell=lambda done, total: told.append(done))
assert told == sorted(told) and told[-1] == len(images), told
assert torch.equal(kept[:, 0], images[:, 0, 0].float())
"""


def begun(cache: Path, said: Path, *others: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", SLOW, *map(str, (cache, said, *others))]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def ended(process: "subprocess.Popen[bytes]") -> None:
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()


@pytest.mark.slow
def test_processes_that_need_the_same_images_encode_each_once_between_them(tmp_path: Path) -> None:
    said = [tmp_path / name for name in ("one", "two", "three")]
    processes = [begun(tmp_path / "cache", file, *said) for file in said]
    for process in processes:
        ended(process)
    blocks = [int(line) for file in said for line in file.read_text().split()]
    assert sorted(blocks) == list(range(20))
    assert all(file.read_text() for file in said)
    assert only(tmp_path / "cache").suffix == ".safetensors"


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    cache, first, second = (tmp_path / name for name in ("cache", "one", "two"))
    process = begun(cache, first)
    while len([*cache.glob("*.blocks/*.safetensors")]) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    kept = len([*cache.glob("*.blocks/*.safetensors")])
    ended(begun(cache, second))
    assert len(second.read_text().split()) == 20 - kept
    assert only(cache).suffix == ".safetensors"
