"""What the checks let through, and every message of what they refuse."""

import math

import numpy as np
import pytest
import torch

from nbsupport import checks


def image(**changes):
    x = torch.full((2, 1, 3, 3), 0.5)
    for position, value in changes.items():
        x.view(-1)[int(position.removeprefix("at"))] = value
    return x


@pytest.mark.parametrize("x", [image(), torch.zeros(1, 3, 1, 1), image(at0=0.0, at1=1.0)])
def test_images_are_accepted(x):
    assert checks.images(x) is None


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.5]], r"expected x as a torch.Tensor, got list; convert with torch.as_tensor\(...\)"),
        (image().double(), r"expected x as float32 in \[0, 1\], got torch.float64; convert with x.float\(\)"),
        (image().to(torch.uint8), r"expected x as float32 .* got torch.uint8; divide by 255 after .float\(\)"),
        (image()[0], r"expected x of shape \(N, C, H, W\), got \(1, 3, 3\); add the missing axes"),
        (image()[:0], r"expected at least one image in x, got shape \(0, 1, 3, 3\)"),
        (image(at3=math.nan), "expected x without NaN; drop or repair the images"),
        (image(at3=-0.42), r"expected x in \[0, 1\], got values from -0.42 to 0.5; scale the pixels"),
        (255 * image(), r"expected x in \[0, 1\], got values from 127.5 to 127.5"),
        (image(at0=math.inf), r"expected x in \[0, 1\], got values from 0.5 to inf"),
    ],
)
def test_images_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        checks.images(x)


def test_a_check_names_the_argument():
    with pytest.raises(ValueError, match=r"expected x_adv as a torch\.Tensor"):
        checks.images(None, name="x_adv")


@pytest.mark.parametrize("num_classes", [None, 3])
def test_labels_are_accepted(num_classes):
    assert checks.labels(torch.tensor([0, 2]), count=2, num_classes=num_classes) is None


@pytest.mark.parametrize(
    ("y", "num_classes", "message"),
    [
        ([0, 1], None, r"expected y as an int64 tensor, got list; convert with torch.as_tensor\(y\).long\(\)"),
        (torch.tensor([0, 1], dtype=torch.int32), None, "expected y as an int64 tensor, got torch.int32"),
        (torch.tensor([0, 1, 2]), None, r"expected y of shape \(2,\), one label an image, got \(3,\)"),
        (torch.tensor([[0, 1]]), None, r"expected y of shape \(2,\), one label an image, got \(1, 2\)"),
        (torch.tensor([0, -1]), None, "expected y from 0, got labels from -1 to 0; check the model's classes"),
        (torch.tensor([0, 3]), 3, "expected y from 0 to 2, got labels from 0 to 3"),
    ],
)
def test_labels_are_refused(y, num_classes, message):
    with pytest.raises(ValueError, match=message):
        checks.labels(y, count=2, num_classes=num_classes)


def test_logits_are_accepted():
    assert checks.logits(torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), count=4) is None


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (None, r"expected logits of shape \(2, classes\) from the model, got NoneType; return model\(x\) -> \(N, L\)"),
        (torch.zeros(2), r"got \(2,\)"),
        (torch.zeros(3, 4), r"got \(3, 4\)"),
        (torch.zeros(2, 1), r"got \(2, 1\)"),
        (torch.tensor([[0, math.nan], [math.inf, 0]]), "expected finite logits from the model, got 2 NaN or infinite"),
    ],
)
def test_logits_are_refused(z, message):
    with pytest.raises(ValueError, match=message):
        checks.logits(z, count=2)


def test_the_shape_and_the_values_of_logits_are_judged_apart():
    broken = torch.tensor([[0, math.nan], [math.inf, 0]])
    assert checks.logits_shape(broken, count=2) is None
    with pytest.raises(ValueError, match=r"expected logits of shape \(3, classes\)"):
        checks.logits_shape(broken, count=3)
    assert checks.finite_logits(0) is None
    with pytest.raises(ValueError, match="expected finite logits from the model, got 5 NaN or infinite values; check"):
        checks.finite_logits(5)


@pytest.mark.parametrize(
    "z",
    [
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),  # saturated: cannot be told from one-hot logits
        torch.tensor([[0.3, 0.7], [2.0, -1.0]]),  # one row is no probability
        torch.tensor([[0.3, 0.6]]),  # does not sum to 1
        torch.tensor([[1.5, -0.5]]),
    ],
)
def test_logits_that_are_no_probabilities_pass(z):
    assert checks.not_probabilities(z) is None


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_probabilities_are_refused(scale):
    z = scale * torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    checks.not_probabilities(z)
    with pytest.raises(ValueError, match="expected logits, got rows that are probabilities; return the layer before"):
        checks.not_probabilities(z.softmax(1))


@pytest.mark.parametrize("value", [0, 0.0, 1e-9, 3, np.float32(2.0)])
def test_numbers_are_accepted(value):
    assert checks.number(value, name="eps") is None


@pytest.mark.parametrize(
    ("value", "limits", "message"),
    [
        (-0.1, {}, "expected eps at least 0, got -0.1"),
        (math.nan, {}, "expected eps at least 0, got nan"),
        (math.inf, {}, "expected eps at least 0, got inf"),
        (0.0, {"open_low": True}, "expected eps above 0, got 0.0"),
        (2.0, {"low": 0.5, "high": 1.0}, "expected eps at least 0.5 and at most 1, got 2.0"),
    ],
)
def test_numbers_are_refused(value, limits, message):
    with pytest.raises(ValueError, match=message):
        checks.number(value, name="eps", **limits)


@pytest.mark.parametrize("value", [1, 20, np.int64(3)])
def test_counts_are_accepted(value):
    assert checks.count(value, name="steps") is None


@pytest.mark.parametrize("value", [0, -3, 1.0, True, "4", None, np.float64(2)])
def test_counts_are_refused(value):
    with pytest.raises(ValueError, match="expected steps as a whole number of at least 1, got"):
        checks.count(value, name="steps")


def test_a_count_has_its_own_least_value():
    checks.count(0, name="index", low=0)
    with pytest.raises(ValueError, match="expected index as a whole number of at least 2, got 1"):
        checks.count(1, name="index", low=2)


def test_choices_are_accepted():
    assert checks.choice("scan", ("scan", "bracket"), name="search") is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("braket", "expected search to be one of scan, bracket, got 'braket'; did you mean 'bracket'"),
        ("zzz", "expected search to be one of scan, bracket, got 'zzz'$"),
        (7, "expected search to be one of scan, bracket, got 7$"),
    ],
)
def test_choices_are_refused_with_the_close_matches(value, message):
    with pytest.raises(ValueError, match=message):
        checks.choice(value, (option for option in ("scan", "bracket")), name="search")


def test_of_many_choices_the_close_match_comes_before_the_list():
    many = [f"name{i}" for i in range(30)]
    message = r"^expected parameter to be one of 30, got 'name300'; did you mean .*; these are name0, name1, "
    with pytest.raises(ValueError, match=message):
        checks.choice("name300", many, name="parameter")
