"""An npz file of images: both kinds hold the same images, and everything that can be wrong in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_images import random_bytes

from nbsupport import data


def npz_arrays(kind: str) -> dict[str, Any]:
    pixels = {"train_x": random_bytes(4, 5, 6, 3), "test_x": random_bytes(3, 5, 6, 3, seed=1)}
    if kind == "float32":
        pixels = {name: x.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255) for name, x in pixels.items()}
    return {**pixels, "train_y": np.array([2, 0, 1, 1], np.uint8), "test_y": np.array([0, 3, 1])}


@pytest.mark.parametrize(("kind", "pixel_max"), [("uint8", 255.0), ("float32", 1.0)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_both_kinds_of_npz_hold_the_same_images(kind: str, pixel_max: float, save: Any, tmp_path: Path) -> None:
    save(tmp_path / "a.npz", **npz_arrays(kind))
    for train, part in ((True, "train"), (False, "test")):
        images = data.load(f"npz:{tmp_path}/a.npz", train=train)
        assert images.x.is_contiguous()
        assert np.array_equal(images.x.numpy(), npz_arrays("float32")[f"{part}_x"])
        assert images.y.tolist() == npz_arrays(kind)[f"{part}_y"].tolist()
        assert (images.classes, images.pixel_max) == (("0", "1", "2", "3"), pixel_max)
        few = data.load(f"npz:{tmp_path}/a.npz", train=train, limit=2)
        assert torch.equal(few.x, images.x[:2])
        assert few.x.untyped_storage().nbytes() == 4 * few.x.numel()  # the other images are not kept


def test_original_cifar10_images(cifar10_npz: Path) -> None:
    images = data.load(f"npz:{cifar10_npz}", train=False)
    assert images.x.shape == (1017, 3, 32, 32)
    with np.load(cifar10_npz) as stored:
        assert np.array_equal((images.x * 255).round().byte().permute(0, 2, 3, 1).numpy(), stored["test_x"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_y": None, "test_x": None}, r"found no train_y, test_x among train_x, test_y"),
        ({"train_x": np.zeros((4, 3, 5, 6))}, r"expected train_x as uint8 \(N, H, W, C\) or float32 .* got float64"),
        ({"train_x": np.zeros((4, 5, 6), np.uint8)}, r"got uint8 of shape \(4, 5, 6\); .* add a missing channel axis"),
        ({"train_x": np.uint8(3)}, r"got uint8 of shape \(\)"),
        ({"train_x": np.zeros((0, 5, 6, 3), np.uint8), "train_y": np.zeros(1, np.int64)}, r"got 0 in train_x and 1 in"),
        (
            {"train_x": np.full((4, 3, 5, 6), 200, np.float32)},
            r"expected train_x in \[0, 1\], got values from 200 to 200",
        ),
        ({"train_x": np.full((4, 3, 5, 6), np.nan, np.float32)}, "expected train_x without NaN"),
        (
            {"train_x": np.zeros((3, 5, 6, 3), np.uint8)},
            r"one label an image, got 3 in train_x and 4 in train_y of .*npz",
        ),
        ({"train_y": np.zeros(4)}, r"expected train_y as whole numbers of shape \(N,\), got float64 of shape \(4,\)"),
        ({"train_y": np.zeros((4, 1), int)}, r"got int64 of shape \(4, 1\)"),
        ({"train_y": np.array([0, -1, 1, 1])}, "expected labels from 0 in train_y, got a minimum of -1"),
        ({"test_y": np.zeros(0, int)}, "expected labels from 0 in test_y, got no label"),
        (
            {"test_y": np.array([0, 3, 2**63 + 5], np.uint64)},
            "expected labels from 0 in test_y, got 9223372036854775813",
        ),
        ({"train_y": np.array([0, 10**9, 1, 1])}, "numbered from 0, in .* got labels up to 1000000000 of 7 images"),
        ({"train_y": np.zeros(4, int), "test_y": np.zeros(3, int)}, "at least two classes, .* got labels up to 0"),
        (
            {"train_x": np.zeros((4, 3, 5, 6), np.uint8)},
            r"expected train_x of uint8 as \(N, H, W, C\), .* with numpy.moveaxis\(train_x, 1, -1\)",
        ),
        (
            {"train_x": np.zeros((4, 5, 6, 3), np.float32)},
            r"of float32 as \(N, C, H, W\), .* with numpy.moveaxis\(train_x, -1, 1\)",
        ),
        ({"train_x": np.array(list("abcd"))}, "expected train_x as uint8 .* got <U1"),
        ({"train_x": np.array([b"a", [1]], object)}, "expected numbers in train_x of .* got Python objects"),
    ],
)
def test_what_is_wrong_in_an_npz(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = {name: array for name, array in {**npz_arrays("uint8"), **change}.items() if array is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        data.load(f"npz:{tmp_path}/a.npz", train=True)


def test_a_missing_npz(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected an npz file with train_x, .*, found no file .*/a.npz"):
        data.load(f"npz:{tmp_path}/a.npz", train=True)


def test_a_file_that_is_no_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"expected an npz file, got something else in .*a.npy; write it with"):
        data.load(f"npz:{tmp_path}/a.npy", train=True)


def test_a_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **npz_arrays("uint8"))
    content = bytearray(path.read_bytes())
    start = content.index(npz_arrays("uint8")["train_x"].tobytes())
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected a readable array train_x in .*, got a damaged one"):
        data.load(f"npz:{path}", train=True)
