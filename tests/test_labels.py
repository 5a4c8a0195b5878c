from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nbsupport import boundary, checks, region, runtime
from nbsupport.labels import Labeller
from nbsupport.store import Run


class Net(nn.Module):
    """A random network on 3x6x5 images; counts the rows seen in float32."""

    def __init__(self, batch: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten()
        )
        self.last = nn.Linear(240, 6)
        with torch.no_grad():
            self.last.weight.mul_(20)
            self.last.bias.copy_(-self.last(self.layers(torch.full((1, 3, 6, 5), 0.5)))[0])
        self.batch_rows = {"cpu": batch, "cuda": batch}
        self.exact = 0

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            self.exact += len(x)
        z: Tensor = self.last(self.layers(x))
        return z


@pytest.fixture(scope="module")
def near() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Images, directions, and 4,000 rows, half of them within 1e-4 of a boundary."""
    g = torch.Generator().manual_seed(1)
    x = 0.4 + 0.2 * torch.rand(30, 3, 6, 5, generator=g)
    d = boundary.directions(90, 50, negate=True, generator=g)
    found = boundary.probe(Net(), x, d, [0.05 * (i + 1) for i in range(12)], search="refine")
    image, point = found.reached.nonzero().T
    pick = torch.randperm(len(image), generator=g)[:2000]
    assert len(pick) == 2000
    at = found.distance[image[pick], point[pick]] - 1e-4 * torch.rand(2000, generator=g)
    anywhere = torch.randint(30, (2000,), generator=g), torch.randint(100, (2000,), generator=g)
    rows = (
        torch.cat((image[pick], anywhere[0])),
        torch.cat((point[pick], anywhere[1])),
        torch.cat((at, 0.6 * torch.rand(2000, generator=g))),
    )
    return x, d, rows


def test_labels_are_the_plain_evaluation_s(near: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]) -> None:
    x, d, (image, point, scale) = near
    model = Net()
    plain = model((x[image] + scale[:, None, None, None] * d[point].view(-1, 3, 6, 5)).clamp(0, 1)).argmax(1)
    found = Labeller(model, x, d)(image, point, scale)
    assert found.dtype == torch.int64
    assert (found == plain).float().mean() > 0.999  # up to rounding at the boundary
    assert torch.equal(Labeller(model, x, d).centers(), model(x).argmax(1))
    assert Labeller(model, x, d).num_classes == 6


def test_mixed_precision_gives_the_labels_of_float32(
    near: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]],
) -> None:
    x, d, rows = near
    model = Net()
    expected = Labeller(model, x, d)(*rows)
    state = torch.get_rng_state()
    mixed = Labeller(model, x, d, precision="mixed", reach=0.6)
    assert torch.equal(torch.get_rng_state(), state)
    model.exact = 0
    assert torch.equal(mixed(*rows), expected)
    assert 1000 < model.exact < 3600  # the near half was confirmed, most of the others were not
    mixed.bound = -1.0
    assert bool((mixed(*rows) != expected).any())  # without confirmation, labels differ: the test has power


def test_mixed_precision_serves_probe(near: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]) -> None:
    x, d, _ = near
    grid = [0.05 * (i + 1) for i in range(12)]
    expected = boundary.probe(Net(), x, d, grid)
    found = boundary.probe(Net(), x, d, grid, precision="mixed")
    assert torch.equal(found.distance, expected.distance)
    assert torch.equal(found.adjacent, expected.adjacent)


def test_the_bound_covers_the_errors_of_other_points(
    near: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]],
) -> None:
    x, d, (image, point, scale) = near
    mixed = Labeller(Net(), x, d, precision="mixed", reach=0.6)
    assert mixed.bound is not None
    batch = (x[image] + scale[:, None, None, None] * d[point].view(-1, 3, 6, 5)).clamp(0, 1)
    model = Net()
    with torch.no_grad():
        z = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            reduced = model(batch)
    first, second = reduced.float().topk(2).indices.T[..., None]
    error = (reduced.gather(1, first) - reduced.gather(1, second)) - (z.gather(1, first) - z.gather(1, second))
    assert 0.1 * mixed.bound < error.abs().max() < mixed.bound


def test_a_row_may_move_along_several_offsets(near: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]) -> None:
    x, d, (image, _, _) = near
    g = torch.Generator().manual_seed(2)
    point = torch.randint(100, (len(image), 3), generator=g)
    scale = 0.8 * torch.rand(len(image), 3, generator=g) - 0.4
    moved = x[image].flatten(1) + (scale[:, :, None] * d[point]).sum(1)
    plain = Net()(moved.clamp(0, 1).view(-1, 3, 6, 5)).argmax(1)
    found = Labeller(Net(), x, d)(image, point, scale)
    assert (found == plain).float().mean() > 0.999  # up to rounding at the boundary
    assert plain.unique().numel() > 3
    alone = Labeller(Net(), x, d)(image, point[:, :1], scale[:, :1])
    assert torch.equal(alone, Labeller(Net(), x, d)(image, point[:, 0], scale[:, 0]))


def test_logits_are_the_plain_evaluation_s_in_float32(
    near: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]],
) -> None:
    x, d, (image, point, scale) = near
    model = Net()
    plain = model((x[image] + scale[:, None, None, None] * d[point].view(-1, 3, 6, 5)).clamp(0, 1))
    for precision in ("float32", "mixed"):
        found = Labeller(model, x, d, precision=precision).logits(image, point, scale)
        torch.testing.assert_close(found, plain.detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_a_call_looks_once_whether_all_logits_are_finite(
    near: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, d, rows = near  # 63 batches
    label = Labeller(Net(), x, d, precision=precision)
    looked: list[int] = []
    monkeypatch.setattr(checks, "finite_logits", looked.append)
    label(*rows)
    label.logits(*rows)
    assert looked == [0, 0]


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_logits_of_any_batch_that_are_not_finite_are_counted(
    near: tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]], precision: str
) -> None:
    x, d, (image, point, scale) = near
    model = Net()
    label = Labeller(model, x, d, precision=precision)
    model.last.register_forward_hook(lambda module, given, z: torch.where(torch.arange(6) == 5, torch.nan, z))
    for call in (label, label.logits):
        with pytest.raises(ValueError, match=r"expected finite logits from the model, got \d{4,} NaN"):
            call(image, point, scale)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net().double(), r"expected a model with float32 weights, got torch.float64; call model.float\(\)"),
        (nn.Linear(7, 3), r"expected a model that takes images of shape \(3, 6, 5\), got: .*shapes"),
        (torch.relu, "expected a model as a torch.nn.Module, got builtin_function_or_method"),
    ],
    ids=["float64", "size", "function"],
)
@pytest.mark.parametrize("call", ["vote", "probe", "predict"])
def test_models_that_cannot_take_the_images_are_refused(call: str, model: nn.Module, message: str) -> None:
    x = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {
        "vote": lambda: region.classify(model, x, radius=0.1),
        "probe": lambda: boundary.probe(model, x, torch.ones(1, 90), [0.1]),
        "predict": lambda: runtime.predict(model, x),
    }
    with pytest.raises(ValueError, match=message):
        calls[call]()


@pytest.mark.slow
def test_mixed_labels_are_float32s_on_100000_points_half_of_them_at_a_boundary(smoke: Run) -> None:
    model, test = smoke.model("normal"), smoke.test.first(100)
    g = torch.Generator().manual_seed(1)
    directions = boundary.directions(64, 64, negate=True, generator=g)
    found = boundary.probe(model, test.x, directions, [0.01 * (i + 1) for i in range(99)], search="refine")
    image, point = found.reached.nonzero().T
    crossing = torch.randint(len(image), (50_000,), generator=g)
    nearby = found.distance[image[crossing], point[crossing]] * (1 + 2e-3 * torch.rand(50_000, generator=g) - 1e-3)
    anywhere = torch.randint(100, (50_000,), generator=g), torch.randint(128, (50_000,), generator=g)
    rows = (
        torch.cat((image[crossing], anywhere[0])),
        torch.cat((point[crossing], anywhere[1])),
        torch.cat((nearby.float(), 0.99 * torch.rand(50_000, generator=g))),
    )
    with runtime.frozen(model):
        exact = Labeller(model, test.x, directions)(*rows)
        mixed = Labeller(model, test.x, directions, precision="mixed", reach=0.99)
        assert torch.equal(mixed(*rows), exact)
        mixed.bound = 0.0  # without confirmation some would differ: the points are as hard as they are meant to be
        assert (mixed(*rows) != exact).sum() > 100
