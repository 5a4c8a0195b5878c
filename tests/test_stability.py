"""Examples scored again: models whose label depends on the batch, on the precision, on the last bits of a pixel."""

import copy

import pytest
import torch
from torch import nn

from nbsupport import attacks
from nbsupport.attacks import Stability, stability
from nbsupport.attacks.indicators import BATCH
from nbsupport.models.analytic import HalfSpace

SHAPE = (1, 2, 2)
DIM = 4
CONDITIONS = ("alone", "batch", "float64", "eight_bit")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n, seed=0):
    return torch.rand(n, *SHAPE, generator=seeded(seed))


def zeros(n):
    return torch.zeros(n, dtype=torch.int64)


def flips(result):
    return {name: getattr(result, name).tolist() for name in CONDITIONS}


class Answers(nn.Module):
    """Class 0 for a batch that `undoing` accepts, else class 1."""

    def __init__(self, undoing):
        super().__init__()
        self.undoing = undoing
        self.register_buffer("bias", torch.zeros(2))

    def forward(self, x):
        first = torch.full_like(x[:, 0, 0, 0], 1.0 if self.undoing(x) else -1.0)
        return torch.stack((first, -first), 1) + self.bias


@pytest.mark.parametrize(
    ("undoing", "condition"),
    [
        (lambda x: len(x) == 1, "alone"),
        (lambda x: len(x) == 256, "batch"),
        (lambda x: x.dtype == torch.float64, "float64"),
        (lambda x: x.dtype == torch.float32 and bool(((255 * x).round() / 255 == x).all()), "eight_bit"),
        (lambda x: False, None),
    ],
)
@pytest.mark.parametrize("targeted", [False, True])
def test_each_condition_is_told_apart(undoing, condition, targeted):
    # Class 0 is the truth, class 1 the target.
    targets = torch.ones(5, dtype=torch.int64) if targeted else None
    result = stability(Answers(undoing), images(5), zeros(5), targets=targets)
    assert flips(result) == {name: [name == condition] * 5 for name in CONDITIONS}


@pytest.mark.parametrize("n", [1, 3, 256, 257, 1100])
def test_batches_have_the_promised_size_and_hold_every_image(n):
    model, seen, x = Answers(lambda x: False), [], images(n)
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    stability(model, x, zeros(n))
    usual = [len(part) for part in x.split(1024)]
    filled = -(-n // BATCH)
    assert [len(batch) for batch in seen] == usual + [1] * n + [BATCH] * filled + usual + usual
    seen = seen[len(usual) :]
    assert torch.equal(torch.cat(seen[:n]), x)
    assert torch.equal(torch.cat(seen[n : n + filled]), x.repeat(BATCH, 1, 1, 1)[: filled * BATCH])  # from the start
    double, rounded = (torch.cat(part) for part in (seen[n + filled :][: len(usual)], seen[-len(usual) :]))
    assert torch.equal(double, x.double())
    torch.testing.assert_close(255 * rounded, (255 * x).round())


@pytest.mark.parametrize("targeted", [False, True])
def test_float64_sees_what_float32_rounds_away(targeted):
    # The score is 1e-9 below the offset of a boundary at 16 in exact arithmetic; float32 rounds it onto the other side.
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("offset", torch.tensor(16.0))

        def forward(self, x):
            score = (self.offset + x.flatten(1)[:, 0] * 1e-7) - self.offset - 1e-9
            return torch.stack((score, torch.zeros_like(score)), 1)

    x = torch.tensor([0.5, 0.0]).view(2, 1, 1, 1)
    model = Tiny()
    targets = torch.ones(2, dtype=torch.int64) if targeted else None
    result = stability(model, x, zeros(2), targets=targets)
    assert flips(result) == {
        "alone": [False, False],
        "batch": [False, False],
        "float64": [True, False],
        "eight_bit": [False, False],
    }


def test_rounding_to_eight_bits_undoes_what_lies_within_half_a_step_of_the_boundary():
    # One pixel, class 0 below the offset: an image at 100.4 / 255 is class 1, and 100 / 255 is class 0.
    model = HalfSpace(torch.tensor([1.0]), 100.2 / 255)
    x = torch.tensor([100.4, 100.6, 99.9, 250.0]).view(4, 1, 1, 1) / 255
    assert stability(model, x, zeros(4)).eight_bit.tolist() == [True, False, True, False]


def test_what_never_succeeded_reads_as_undone():
    model = HalfSpace(torch.tensor([1.0]), 0.5)
    x = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1)
    assert flips(stability(model, x, zeros(2))) == {name: [True, False] for name in CONDITIONS}


def test_a_minimum_norm_attack_survives_all_but_the_pixels_of_a_file():
    normal = torch.randn(DIM, generator=seeded(1))
    model = HalfSpace(normal, float(normal.sum()) / 2)
    x = 0.4 + 0.2 * images(50)
    with torch.no_grad():
        y = model(x).argmax(1)
    found = attacks.ddn_l2(model, x, y)
    result = stability(model, found.x_adv, y)
    assert found.success.all()
    assert not (result.alone | result.batch).any()
    # Barely across the boundary, rounding the pixels is a coin toss.
    assert 0.2 < result.eight_bit.float().mean() < 0.8


def test_the_model_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Dropout(), nn.Flatten()).train()
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    stability(model, images(3), zeros(3))
    assert model.training
    assert model[1].training
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert {name: (value.dtype, value.tolist()) for name, value in model.state_dict().items()} == {
        name: (torch.float32, value.tolist()) for name, value in before.items()
    }


def test_no_example_is_an_answer_too():
    result = stability(Answers(lambda x: True), images(0), zeros(0))
    assert all(getattr(result, name).shape == (0,) for name in CONDITIONS)
    assert all(getattr(result, name).dtype == torch.bool for name in CONDITIONS)
    assert isinstance(result, Stability)


@pytest.mark.parametrize(
    ("x", "y", "targets", "message"),
    [
        (images(2) + 1, zeros(2), None, r"expected x in \[0, 1\]"),
        (images(2)[0], zeros(2), None, r"expected x of shape \(N, C, H, W\)"),
        (images(0), zeros(1), None, "expected at least one image"),
        (images(2), zeros(3), None, r"expected y of shape \(2,\)"),
        (images(2), zeros(2) + 2, None, "expected y from 0 to 1"),
        (images(2), zeros(2), zeros(2) + 2, "expected targets from 0 to 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(x, y, targets, message):
    with pytest.raises(ValueError, match=message):
        stability(Answers(lambda x: False), x, y, targets=targets)


@pytest.mark.gpu
def test_the_result_lies_on_the_models_device(cuda):
    normal = torch.randn(DIM, generator=seeded(1))
    model = HalfSpace(normal, float(normal.sum()) / 2).to(cuda)
    x = images(300)
    with torch.no_grad():
        y = model(x.to(cuda)).argmax(1).cpu()
    on_cpu, on_gpu = stability(copy.deepcopy(model).cpu(), x, 1 - y), stability(model, x, 1 - y)
    assert all(getattr(on_gpu, name).device.type == "cuda" for name in CONDITIONS)
    assert torch.equal(on_gpu.float64.cpu(), on_cpu.float64)
    assert torch.equal(on_gpu.eight_bit.cpu(), on_cpu.eight_bit)
