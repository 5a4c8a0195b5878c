"""A tree of image files: pixels, order and channels, and everything that can be wrong in one."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from random_images import Array, random_bytes

from nbsupport import data


def write_tree(root: Path, files: dict[str, Array | Image.Image]) -> None:
    """Write each image under its name, `train/cat/0.png`; grey arrays are (H, W), colour (H, W, 3)."""
    for name, pixels in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)


def colour_tree(root: Path, size: tuple[int, int] = (4, 5)) -> dict[str, Array]:
    names = ["train/dog/a.png", "train/dog/b.png", "train/cat/1.png", "train/cat/2.png", "train/cat/3.png",
             "test/cat/x.png", "test/dog/y.png"]  # fmt: skip
    files: dict[str, Array] = {name: random_bytes(*size, 3, seed=seed) for seed, name in enumerate(names)}
    write_tree(root, dict(files))
    return files


def stacked(files: dict[str, Array], *names: str) -> Array:
    return np.stack([files[name] for name in names]).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def test_a_folder_takes_the_classes_in_turn(tmp_path: Path) -> None:
    files = colour_tree(tmp_path)
    train = data.load(f"folder:{tmp_path}", train=True)
    order = ["train/cat/1.png", "train/dog/a.png", "train/cat/2.png", "train/dog/b.png", "train/cat/3.png"]
    assert np.array_equal(train.x.numpy(), stacked(files, *order))
    assert train.y.tolist() == [0, 1, 0, 1, 0]
    assert (train.classes, train.pixel_max, train.name) == (("cat", "dog"), 255.0, f"folder:{tmp_path}")
    test = data.load(f"folder:{tmp_path}", train=False)
    assert np.array_equal(test.x.numpy(), stacked(files, "test/cat/x.png", "test/dog/y.png"))
    few = data.load(f"folder:{tmp_path}", train=True, limit=3)
    assert torch.equal(few.x, train.x[:3])
    assert few.y.tolist() == [0, 1, 0]


def test_a_folder_leaves_out_what_is_no_image(tmp_path: Path) -> None:
    colour_tree(tmp_path)
    (tmp_path / "train" / "notes.txt").write_text("not a class")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "labels.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / "._1.png").write_bytes(b"what another system leaves behind")
    assert len(data.load(f"folder:{tmp_path}", train=True)) == 5


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "tif", "ppm", "gif", "webp", "jpg", "jpeg"])
def test_every_suffix_that_pillow_reads(suffix: str, tmp_path: Path) -> None:
    flat = {f"{part}/{name}/deeper/0.{suffix}": np.full((8, 8, 3), level, np.uint8)
            for part in ("train", "test") for name, level in (("dark", 0), ("light", 255))}  # fmt: skip
    write_tree(tmp_path, dict(flat))
    images = data.load(f"folder:{tmp_path}", train=False)
    assert images.x.mean((1, 2, 3)).tolist() == pytest.approx([0, 1], abs=0.01)


GREY = random_bytes(4, 4)
COLOUR = random_bytes(4, 4, 3)
PALETTE_GREY = Image.fromarray(GREY).convert("P")
PALETTE_COLOUR = Image.fromarray(COLOUR).quantize(4)
OPAQUE_GREY = Image.merge("LA", (Image.fromarray(GREY), Image.new("L", (4, 4), 255)))
ONE_BIT = Image.fromarray(GREY).convert("1")


@pytest.mark.parametrize(
    ("odd", "where", "channels"),
    [
        (GREY, "train", 1),
        (ONE_BIT, "train", 1),
        (OPAQUE_GREY, "train", 1),
        (PALETTE_GREY, "train", 1),
        (PALETTE_COLOUR, "train", 3),
        (COLOUR, "train", 3),
        (COLOUR, "test", 3),
    ],
    ids=["L", "1", "LA", "grey palette", "palette", "RGB", "RGB in test"],
)
def test_a_tree_is_grey_where_every_file_is(odd: Any, where: str, channels: int, tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{part}/{name}/0.png": GREY for part in ("train", "test") for name in ("a", "b")}
    write_tree(tmp_path, {**files, f"{where}/b/0.png": odd})
    expected = GREY.astype(np.float32) / np.float32(255)
    for train in (True, False):
        images = data.load(f"folder:{tmp_path}", train=train)
        assert images.in_shape == (channels, 4, 4)
        assert all(np.array_equal(plane.numpy(), expected) for plane in images.x[0])
    odd_set = data.load(f"folder:{tmp_path}", train=where == "train")
    with Image.open(tmp_path / where / "b" / "0.png") as image:
        truth = np.asarray(image.convert("RGB"))[..., :channels].transpose(2, 0, 1)
    assert np.array_equal(odd_set.x[1].numpy(), truth.astype(np.float32) / np.float32(255))


def test_transparency_is_dropped_without_a_warning(tmp_path: Path) -> None:
    colour_tree(tmp_path, (4, 4))
    palette = Image.fromarray(random_bytes(4, 4, 3)).quantize(4)
    palette.info["transparency"] = bytes([0, 128, 255, 255])
    palette.save(tmp_path / "test" / "cat" / "x.png")
    Image.fromarray(random_bytes(4, 4, 4)).save(tmp_path / "test" / "dog" / "y.png")
    images = data.load(f"folder:{tmp_path}", train=False)
    assert np.array_equal(images.x[1].numpy() * 255, random_bytes(4, 4, 4)[..., :3].transpose(2, 0, 1))
    assert np.array_equal(
        (images.x[0] * 255).round().numpy(), np.asarray(palette.convert("RGBA").convert("RGB")).transpose(2, 0, 1)
    )


def remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def grow(root: Path, name: str) -> None:
    write_tree(root, {name: random_bytes(6, 7, 3)})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def enlarge(file: Path) -> None:
    """Write a PNG whose header promises 900 million pixels."""
    Image.new("L", (1, 1)).save(file)
    data = file.read_bytes()
    header = data[12:16] + struct.pack(">II", 30_000, 30_000) + data[24:29]
    file.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def test_a_link_back_to_its_own_folder_is_not_followed(tmp_path: Path) -> None:
    colour_tree(tmp_path)
    before = data.load(f"folder:{tmp_path}", train=True)
    (tmp_path / "train" / "cat" / "again").symlink_to(".", target_is_directory=True)
    (tmp_path / "train" / "dog" / "up").symlink_to("../cat", target_is_directory=True)
    found = data.load(f"folder:{tmp_path}", train=True)
    cats = int((before.y == 0).sum())
    assert len(found) == len(before) + cats  # those of `up`, once: `again` and `up/again` lead back


SPOILT: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no folder": (
        lambda root: remove(root),
        FileNotFoundError,
        "expected a folder with train/ and test/, found no folder .*",
    ),
    "no train": (
        lambda root: remove(root / "train"),
        FileNotFoundError,
        "expected class folders in .*/train, found no such folder; the tree is train/<class>/<image> in",
    ),
    "no test": (
        lambda root: remove(root / "test"),
        FileNotFoundError,
        "expected class folders in .*/test, found no such folder",
    ),
    "empty class": (
        lambda root: (root / "train" / "cow").mkdir(),
        ValueError,
        "expected images in every class folder, found none in .*train/cow",
    ),
    "lone class": (
        lambda root: grow(root, "test/cow/0.png"),
        ValueError,
        "expected the same classes in .*/train and .*/test, found cow in one only",
    ),
    "one class": (
        lambda root: remove(root / "train" / "cat", root / "test" / "cat"),
        ValueError,
        "expected at least two class folders in .*/train, found dog",
    ),
    "no class": (
        lambda root: remove(*(root / part / name for part in ("train", "test") for name in ("cat", "dog"))),
        ValueError,
        "expected at least two class folders in .*/train, found none",
    ),
    "sizes": (
        lambda root: grow(root, "train/dog/b.png"),
        ValueError,
        "expected images of one size, got 5x4 in .*train/cat/1.png and 7x6 in .*train/dog/b.png; resize",
    ),
    "damaged": (
        lambda root: (root / "train/dog/a.png").write_bytes(b"no image"),
        ValueError,
        "expected an image that Pillow reads in .*train/dog/a.png: .*; repair or remove the file",
    ),
    "first damaged": (
        lambda root: (root / "train/cat/1.png").write_bytes(b"no image"),
        ValueError,
        "expected an image that Pillow reads in .*train/cat/1.png",
    ),
    "truncated": (
        lambda root: cut(root / "train/cat/2.png"),
        ValueError,
        "expected an image that Pillow reads in .*train/cat/2.png",
    ),
    "pipe": (
        lambda root: os.mkfifo(root / "train/dog/pipe.png"),
        ValueError,
        "expected an image that Pillow reads in .*train/dog/pipe.png: it is no regular file",
    ),
    "too large": (
        lambda root: enlarge(root / "train/dog/b.png"),
        ValueError,
        "expected an image that Pillow reads in .*train/dog/b.png: .* exceeds limit",
    ),
    "16 bits": (
        lambda root: Image.fromarray(np.zeros((4, 5), np.uint16)).save(root / "train/cat/2.png"),
        ValueError,
        "expected 8 bits a channel, got Pillow's mode I;16 in .*train/cat/2.png; convert it",
    ),
}


@pytest.mark.parametrize(("spoil", "error", "message"), SPOILT.values(), ids=SPOILT)
def test_what_is_wrong_in_a_tree(
    spoil: Callable[[Path], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    colour_tree(root)
    spoil(root)
    with pytest.raises(error, match=message):
        data.load(f"folder:{root}", train=True)


def test_the_test_images_have_the_size_of_the_training_images(tmp_path: Path) -> None:
    colour_tree(tmp_path)
    for name in ("test/cat/x.png", "test/dog/y.png"):
        grow(tmp_path, name)
    with pytest.raises(ValueError, match=r"got 5x4 in .*train/cat/1.png and 7x6 in .*test/cat/x.png; resize"):
        data.load(f"folder:{tmp_path}", train=False)
