"""Models: sizes known in closed form, storage, own factories, and the exact lengths of the analytic models."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nbsupport import files, models
from nbsupport.files import DamagedArtifact
from nbsupport.models import Ball, HalfSpace, Wedge
from nbsupport.models.architectures import StandardiseImage

CASES = [
    ("digits_cnn", (1, 8, 8), 10),
    ("digits_cnn", (3, 9, 13), 4),
    ("mnist_cnn", (1, 28, 28), 10),
    ("mnist_cnn", (3, 15, 12), 2),
    ("resnet20", (3, 32, 32), 10),
    ("resnet20", (1, 9, 11), 3),
]
IDS = [f"{name}-{'x'.join(map(str, shape))}" for name, shape, _ in CASES]


def built(name="digits_cnn", in_shape=(1, 8, 8), num_classes=10, seed=0):
    torch.manual_seed(seed)
    return models.build(name, in_shape=in_shape, num_classes=num_classes)


def own_factory(*, in_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), num_classes))


def not_a_module(*, in_shape, num_classes):
    return "a model"


OWN = f"{__name__}:own_factory"


# Architectures


@pytest.mark.parametrize(("name", "in_shape", "num_classes"), CASES, ids=IDS)
def test_any_shape_gives_logits_and_a_gradient(name, in_shape, num_classes):
    model = built(name, in_shape, num_classes)
    assert model.spec == models.Spec(name, in_shape, num_classes)
    x = torch.rand(3, *in_shape, requires_grad=True)
    z = model(x)
    assert z.shape == (3, num_classes)
    z.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()


@pytest.mark.parametrize(
    ("name", "in_shape", "parameters"),
    [
        ("mnist_cnn", (1, 28, 28), 832 + 51_264 + 3136 * 1024 + 1024 + 10_250),
        ("resnet20", (3, 32, 32), 269_722),  # the count usually quoted as 0.27 million
    ],
)
def test_number_of_parameters(name, in_shape, parameters):
    assert sum(p.numel() for p in built(name, in_shape).parameters()) == parameters


@pytest.mark.parametrize(("name", "in_shape"), [("mnist_cnn", (1, 28, 28)), ("digits_cnn", (1, 8, 8))])
def test_pooling_before_the_relu_changes_no_bit(name, in_shape):
    model = built(name, in_shape)
    as_published = []
    for layer in model:  # a ReLU directly behind each convolution
        if isinstance(layer, nn.Conv2d):
            as_published += [layer, nn.ReLU()]
        elif not (isinstance(layer, nn.ReLU) and isinstance(as_published[-1], nn.MaxPool2d)):
            as_published += [] if isinstance(layer, nn.ReLU) and isinstance(as_published[-1], nn.ReLU) else [layer]
    assert [type(layer).__name__ for layer in as_published].count("MaxPool2d") == 2
    x = torch.rand(8, *in_shape, requires_grad=True)
    z, want = model(x), nn.Sequential(*as_published)(x)
    assert torch.equal(z, want)
    assert torch.equal(*(torch.autograd.grad(logits.logsumexp(1).sum(), x)[0] for logits in (z, want)))


def test_wide_resnet_is_that_of_madry_et_al():
    with torch.device("meta"):
        model = models.build("wrn_34_10", in_shape=(3, 32, 32), num_classes=10)
        shape = model(torch.empty(2, 3, 32, 32)).shape
    # A unit of widths a, b: norms over a and b, a convolution a -> b and one b -> b, no shortcut weights.
    unit = lambda a, b: 2 * a + 2 * b + 9 * a * b + 9 * b * b  # noqa: E731
    stages = sum(unit(a, b) + 4 * unit(b, b) for a, b in pairwise((16, 160, 320, 640)))
    expected = 27 * 16 + stages + 2 * 640 + 640 * 10 + 10
    assert sum(p.numel() for p in model.parameters()) == expected
    assert shape == (2, 10)
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == 1 + 3 * 5 * 2


def test_wide_resnet_standardises_each_image():
    standardise = StandardiseImage()
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, deviation = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(standardise(x), (x - mean) / deviation)
    flat = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    standardise(flat).sum().backward()
    assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize(
    ("name", "in_shape", "mflop"), [("mnist_cnn", (1, 28, 28), 27.8), ("digits_cnn", (1, 8, 8), 1.8)]
)
def test_cost_of_a_forward_pass(name, in_shape, mflop):
    model = built(name, in_shape)
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, *in_shape))
    assert counter.get_total_flops() / 1e6 == pytest.approx(mflop, abs=0.06)


def test_weights_are_channels_last():
    weight = built("mnist_cnn", (1, 28, 28))[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_same_seed_same_weights():
    one, two, other = built(seed=1), built(seed=1), built(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit_cnn"}, "did you mean 'digits_cnn'"),
        ({"in_shape": (8, 8)}, r"in_shape as \(channels, height, width\)"),
        ({"in_shape": (0, 8, 8)}, r"in_shape as \(channels, height, width\)"),
        ({"in_shape": (1, 3, 8)}, "at least 4x4 pixels, which are pooled twice, got 3x8"),
        ({"name": "mnist_cnn", "in_shape": (1, 8, 2)}, "at least 4x4 pixels, which are pooled twice, got 8x2"),
        ({"num_classes": 1}, "num_classes as a whole number of at least 2, got 1"),
        ({"name": "no_such_package:factory"}, "to name a function as package.module:function"),
        ({"name": "math:no_such_function"}, "no_such_function"),
        ({"name": f"{__name__}:not_a_module"}, "to return a torch.nn.Module, got str"),
    ],
)
def test_what_cannot_be_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        built(**arguments)


# Storage


@pytest.mark.parametrize(("name", "in_shape", "num_classes"), [*CASES, (OWN, (2, 3, 4), 5)], ids=[*IDS, "own factory"])
def test_a_loaded_model_gives_the_same_logits(tmp_path, name, in_shape, num_classes):
    model = built(name, in_shape, num_classes)
    x = torch.rand(5, *in_shape)
    model(x)  # batch statistics move
    models.save(model, tmp_path / "model.safetensors")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    loaded = models.load(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.spec == model.spec
    assert not loaded.training
    assert torch.equal(loaded(x), model.eval()(x))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_saving_again_replaces_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    models.save(built(seed=1), path)
    models.save(built(seed=2), path)
    assert torch.equal(models.load(path)[0].weight, built(seed=2)[0].weight)


def test_a_model_of_unknown_origin_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"made by models.build, got Linear; .*package.module:function"):
        models.save(nn.Linear(2, 2), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:-9] + b"?" + data[-8:], lambda data: b""]
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    models.save(built(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedArtifact, match=r"model\.safetensors"):
        models.load(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    files.save_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"expected a model stored by models\.save"):
        models.load(tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(DamagedArtifact, match="carries no checksum"):
        models.load(tmp_path / "plain.safetensors")
    with pytest.raises(FileNotFoundError):
        models.load(tmp_path / "absent.safetensors")


def test_weights_that_no_longer_fit_are_refused(tmp_path, monkeypatch):
    models.save(built(OWN, (1, 2, 2), 3), tmp_path / "model.safetensors")
    wider = lambda *, in_shape, num_classes: nn.Linear(7, num_classes)  # noqa: E731
    monkeypatch.setitem(globals(), "own_factory", wider)
    with pytest.raises(ValueError, match=r"to fit what .*own_factory builds now; train it again"):
        models.load(tmp_path / "model.safetensors")


# Analytic models


D, SHAPE = 12, (3, 2, 2)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wedge(axes=(0.3, 1.9, 2.8, 5.0)):
    basis = torch.linalg.qr(drawn(D, 2, seed=3)).Q
    return Wedge(basis[:, 0], basis[:, 1], center=torch.full((D,), 0.5), axes=axes)


ANALYTIC = {
    "half-space": lambda: HalfSpace(drawn(D, seed=1), 0.2),
    "half-space of four classes": lambda: HalfSpace(drawn(D, seed=1), 0.2, num_classes=4),
    "ball": lambda: Ball(torch.full((D,), 0.5), 0.9),
    "wedge": wedge,
    "wedge with a reflex sector": lambda: wedge((0.0, 0.4, 0.8)),
}


@pytest.fixture(params=ANALYTIC.values(), ids=ANALYTIC.keys())
def analytic(request):
    return request.param()


@pytest.fixture
def images():
    return torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(2))


def label(model, x):
    return model(x.reshape(-1, *SHAPE)).argmax(1)


def test_nothing_nearer_than_the_distance_has_another_label(analytic, images):
    distance = analytic.distance(images)
    offsets = nn.functional.normalize(drawn(500, D, seed=4).double(), dim=1)
    for x, own, reach in zip(images.flatten(1).double(), label(analytic, images), distance, strict=True):
        assert (label(analytic.double(), x + 0.999 * reach * offsets) == own).all()


def test_the_distance_is_reached(analytic, images):
    """A descent on the margin's own gradient ends just across, no further away than the distance."""
    exact = analytic.double()
    for x, distance in zip(images.double(), exact.distance(images), strict=True):
        own = exact(x[None]).argmax(1)
        candidates = nn.functional.normalize(drawn(4000, D, seed=5).double(), dim=1)
        candidates = torch.cat((candidates, _toward_the_boundary(exact, x, own)))
        assert (label(exact, x.flatten() + 1.001 * (distance + 1e-9) * candidates) != own).any()


def _toward_the_boundary(model, x, own):
    """Unit directions (J, D): down each margin of `own` over another class, and, in a wedge, toward its vertex."""
    x = x[None].clone().requires_grad_()
    z = model(x)[0]
    gradients = [torch.autograd.grad(z[j] - z[own[0]], x, retain_graph=True)[0].flatten() for j in range(len(z))]
    rows = [g for g in gradients if g.norm() > 0]
    if isinstance(model, Wedge):
        p = (x.detach().flatten() - model.center) @ model.plane
        rows.append(-(model.plane @ p))
    return nn.functional.normalize(torch.stack(rows), dim=1)


def test_the_first_crossing_agrees_with_a_fine_march(analytic, images):
    exact, step = analytic.double(), 0.002
    directions = nn.functional.normalize(drawn(7, D, seed=6).double(), dim=1) * math.sqrt(D)  # RMS 1
    images = images[:8]
    t = exact.crossing(images, directions)
    assert t.shape == (8, 7)
    grid = torch.arange(1, 1001, dtype=torch.float64) * step
    for i, x in enumerate(images.flatten(1).double()):
        for k, direction in enumerate(directions):
            differs = label(exact, x + grid[:, None] * direction) != label(exact, x)
            if differs.any():
                first = grid[differs.int().argmax()]
                assert first - step - 1e-9 <= t[i, k] <= first + 1e-9
            else:
                assert t[i, k] > grid[-1] or _grazes(exact, x, direction, t[i, k], step)


def _grazes(model, x, direction, t, step):
    """Whether the ray leaves its class for less than a step: then a march may miss what the formula finds."""
    fine = t + torch.linspace(0, step, 2001, dtype=torch.float64)
    return bool((label(model, x + fine[:, None] * direction) == label(model, x)).any())


def test_one_direction_gives_one_length_an_image(analytic, images):
    directions = drawn(3, D, seed=8)
    assert torch.equal(analytic.crossing(images, directions[1]), analytic.crossing(images, directions)[:, 1])


def test_lengths_that_are_known_by_hand():
    x = torch.zeros(1, *SHAPE)
    axis = torch.eye(D)[0]
    plane = HalfSpace(2 * axis, 1.0)
    assert plane.distance(x).item() == 0.5
    assert plane.crossing(x, torch.stack((axis, -axis, torch.eye(D)[1], 4 * axis))).tolist() == [
        [0.5, math.inf, math.inf, 0.125]
    ]
    ball = Ball(2 * axis, 0.5)
    assert ball.distance(x).item() == 1.5
    assert ball.crossing(x, torch.stack((axis, -axis))).tolist() == [[1.5, math.inf]]
    inside = (2 * axis).reshape(1, *SHAPE)
    assert ball.distance(inside).item() == 0.5
    assert ball.crossing(inside, axis).tolist() == [0.5]
    sectors = Wedge(axis, torch.eye(D)[1], center=torch.zeros(D), axes=[0, 2 * math.pi / 3, 4 * math.pi / 3])
    on_axis = axis.reshape(1, *SHAPE)
    assert sectors.distance(on_axis).item() == pytest.approx(math.sin(math.pi / 3), abs=1e-6)
    assert sectors.crossing(on_axis, torch.stack((-axis, axis))).tolist() == [[pytest.approx(1, abs=1e-6), math.inf]]


def test_classes_of_a_wedge_hold_the_angles_nearest_to_their_axis():
    model, angles = wedge(), torch.linspace(0, 2 * math.pi, 721)[:-1]
    points = model.center + (torch.stack((angles.cos(), angles.sin()), 1) @ model.plane.T)
    axes = torch.tensor([0.3, 1.9, 2.8, 5.0])
    apart = (angles[:, None] - axes).abs()
    nearest = torch.minimum(apart, 2 * math.pi - apart).argmin(1)
    assert torch.equal(label(model, points), nearest)


def test_further_classes_of_a_half_space_never_win(images):
    model = HalfSpace(drawn(D, seed=1), 0.2, num_classes=5)
    assert model(images).shape == (40, 5)
    assert set(label(model, images).tolist()) == {0, 1}


def test_analytic_models_have_no_parameters_and_follow_the_dtype(analytic, images):
    assert not list(analytic.parameters())
    assert analytic(images).dtype == torch.float32
    assert analytic.distance(images).dtype == torch.float64
    assert analytic.double()(images.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HalfSpace(torch.zeros(D), 0.0), "a normal .* other than zero"),
        (lambda: HalfSpace(torch.ones(2, D), 0.0), "a normal .* other than zero, got shape"),
        (lambda: HalfSpace(torch.ones(D), 0.0, num_classes=1), "num_classes as a whole number of at least 2"),
        (lambda: Ball(torch.zeros(D), 0.0), "radius above 0"),
        (lambda: Wedge(torch.ones(D), torch.ones(D), center=torch.zeros(D), axes=[0, 1, 2]), "orthonormal in L2"),
        (lambda: wedge((0.0, 1.0)), "at least three different axes"),
        (lambda: wedge((0.0, 1.0, 2 * math.pi)), "at least three different axes"),
    ],
)
def test_impossible_analytic_models(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.fixture
def trained():
    return built(seed=5)


@pytest.mark.parametrize(
    ("name", "store"),
    [
        ("a.safetensors", lambda state, path: save_file({n: t.contiguous() for n, t in state.items()}, path)),
        ("a.pt", torch.save),
        ("a.ckpt", lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path)),
        ("a.pth", lambda state, path: torch.save({"net": {f"module.{n}": t for n, t in state.items()}}, path)),
        ("a.bin", lambda state, path: torch.save({name: tensor.double() for name, tensor in state.items()}, path)),
    ],
)
def test_weights_made_elsewhere_are_taken(trained, name, store, tmp_path):
    store(trained.state_dict(), tmp_path / name)
    model = built()
    models.load_weights(model, tmp_path / name)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(model.eval()(x), trained.eval()(x))
    assert next(model.parameters()).dtype == torch.float32


class Unpickled:
    """What a file must not bring to life."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (
            lambda path: torch.save(Unpickled(), path),
            "expected weights in .*a.pt, as a safetensors file or a state dict",
        ),
        (lambda path: torch.save(built(), path), "expected weights in .*a.pt, as a safetensors file or a state dict"),
        (
            lambda path: torch.save(torch.ones(3), path),
            "expected a state dict in .*a.pt, got Tensor; store model.state_dict",
        ),
        (lambda path: path.write_bytes(b"no weights"), "expected weights in .*a.pt"),
        (lambda path: path.write_bytes(b""), "expected weights in .*a.pt"),
        (
            lambda path: torch.save(built(num_classes=3).state_dict(), path),
            "expected weights of DigitsCNN in .* got others",
        ),
        (lambda path: torch.save({}, path), "expected weights of DigitsCNN in .*Missing key"),
        (lambda path: torch.save({"a": 1}, path), "expected weights of DigitsCNN in .* got others"),
    ],
)
def test_what_are_no_weights_of_the_model_is_refused(trained, store, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        models.load_weights(trained, tmp_path / "a.pt")
    assert not Path("executed").exists()


def test_a_damaged_safetensors_file_of_weights_is_refused(trained, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x10" + bytes(30))
    with pytest.raises(ValueError, match=r"expected weights in .*a.safetensors"):
        models.load_weights(trained, tmp_path / "a.safetensors")


def test_absent_weights_are_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file of weights, found no file .*a.pt"):
        models.load_weights(trained, tmp_path / "a.pt")
