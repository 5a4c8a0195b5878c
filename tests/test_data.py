"""Sets of images: shapes, parts, names and roots, and scikit-learn's digits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from nbsupport import data
from nbsupport.data import ImageSet


def small_set(n: int = 5) -> ImageSet:
    x = torch.arange(n * 12).view(n, 3, 2, 2) / (n * 12)
    return ImageSet(x, torch.arange(n) % 2, ("cat", "dog"), 255.0, "small")


def test_an_image_set_knows_its_shape() -> None:
    images = small_set()
    assert (len(images), images.in_shape, images.num_classes) == (5, (3, 2, 2), 2)
    assert repr(images) == "ImageSet('small': 5 of 3x2x2, 2 classes, pixel_max 255)"


@pytest.mark.parametrize("n", [1, 3, 5, 9])
def test_first(n: int) -> None:
    images = small_set()
    kept = images.first(n)
    assert torch.equal(kept.x, images.x[:n])
    assert torch.equal(kept.y, images.y[:n])
    assert (kept.classes, kept.pixel_max, kept.name) == (images.classes, images.pixel_max, images.name)


@pytest.mark.parametrize("n_last", [1, 4])
def test_split_loses_and_repeats_nothing(n_last: int) -> None:
    images = small_set()
    train, validation = images.split(n_last)
    assert len(validation) == n_last
    assert torch.equal(torch.cat((train.x, validation.x)), images.x)
    assert torch.equal(torch.cat((train.y, validation.y)), images.y)


def test_to_keeps_everything_on_the_cpu() -> None:
    images = small_set()
    moved = images.to("cpu")
    assert moved.x is images.x
    assert (moved.classes, moved.pixel_max, moved.name) == (images.classes, images.pixel_max, images.name)


@pytest.mark.gpu
def test_to_the_gpu(cuda: torch.device) -> None:
    moved = small_set().to(cuda)
    assert moved.x.device.type == moved.y.device.type == "cuda"
    assert torch.equal(moved.x.cpu(), small_set().x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small_set().first(0), "expected n as a whole number of at least 1, got 0"),
        (lambda: small_set().split(0), "expected n_last as a whole number of at least 1, got 0"),
        (lambda: small_set().split(5), "expected n_last below the 5 images of small, got 5"),
        (
            lambda: ImageSet(torch.full((1, 1, 2, 2), 2.0), torch.zeros(1).long(), ("a", "b"), 1.0, ""),
            "got values from 2 to 2",
        ),
        (lambda: ImageSet(torch.zeros(2, 1, 2, 2), torch.zeros(1).long(), ("a", "b"), 1.0, ""), "one label an image"),
        (lambda: ImageSet(torch.zeros(1, 1, 2, 2), torch.ones(1).long(), ("a",), 1.0, ""), "expected y from 0 to 0"),
        (
            lambda: ImageSet(torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), ("a",), 0.0, ""),
            "expected pixel_max above 0",
        ),
    ],
)
def test_an_image_set_refuses_what_does_not_fit(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("digit", "'digits'"),
        ("mnits", "'mnist'"),
        ("cifar-10", "'cifar10'"),
        ("npz", "'npz:PATH'"),
        ("foldr:/x", "'folder:PATH'"),
    ],
)
def test_an_unknown_name_is_answered_with_a_close_one(name: str, close: str) -> None:
    with pytest.raises(ValueError, match=f"expected data set to be one of digits, .*did you mean .*{close}"):
        data.load(name, train=True)


@pytest.mark.parametrize("limit", [0, -1, 2.0, True])
def test_limit_is_a_count(limit: Any) -> None:
    with pytest.raises(ValueError, match=f"expected limit as a whole number of at least 1, got {limit}"):
        data.load("digits", train=True, limit=limit)


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_path_is_asked_for(kind: str) -> None:
    with pytest.raises(ValueError, match=f"expected a path after '{kind}:'"):
        data.load(f"{kind}:", train=True)


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [("~/here", "/there", "~/here"), (None, "/there", "/there"), (None, "", "data"), (None, None, "data")],
)
def test_the_root_of_published_data(
    given: str | None, variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NBSUPPORT_DATA", raising=False)
    if variable is not None:
        monkeypatch.setenv("NBSUPPORT_DATA", variable)
    assert data.data_root(given) == Path(expected).expanduser().absolute()


@pytest.mark.parametrize(("train", "size"), [(True, 1297), (False, 500)])
def test_digits_follow_the_recipe(train: bool, size: int) -> None:
    source = load_digits()
    parts = train_test_split(np.arange(1797), test_size=500, stratify=source.target, random_state=0)
    index = parts[0] if train else parts[1]
    images = data.load("digits", train=train)
    assert images.x.shape == (size, 1, 8, 8)
    assert np.array_equal(images.x[:, 0].numpy(), source.images[index] / 16)
    assert np.array_equal(images.y.numpy(), source.target[index])
    assert (images.classes, images.pixel_max, images.name) == (tuple("0123456789"), 1.0, "digits")
    shares = np.bincount(images.y.numpy()) / np.bincount(source.target)
    assert np.abs(shares - size / 1797).max() < 0.01  # stratified


def test_the_parts_of_digits_are_apart(digits: ImageSet, digits_train: ImageSet) -> None:
    together = torch.cat((digits.x, digits_train.x)).flatten(1).numpy()
    everything = (load_digits().data / 16).astype(np.float32)
    assert np.array_equal(together[np.lexsort(together.T)], everything[np.lexsort(everything.T)])


def test_limit_takes_the_first(digits: ImageSet) -> None:
    few = data.load("digits", train=False, limit=7)
    assert torch.equal(few.x, digits.x[:7])
    assert torch.equal(few.y, digits.y[:7])
    assert len(data.load("digits", train=False, limit=10**6)) == 500
