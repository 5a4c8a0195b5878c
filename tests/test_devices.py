"""Kernels, training and detector by a GPU's rules, on a stand-in: a CPU's results, no mixing, no waiting in a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerator import DEVICE, MixedError, OnDevice, StandIn
from torch import Tensor, nn

from nbsupport import attacks, boundary, detector, region, runtime, train
from nbsupport.boundary import Profile
from nbsupport.data import ImageSet

N, ROWS = 6, 4  # images, and rows of a batch: pools refill and run dry
GRID = [0.06 * (i + 1) for i in range(8)]
SIZES = {1, 2, 3, 4, 6, 8, attacks.indicators.BATCH}  # of a batch
DIRECTIONS = boundary.directions(36, 4, negate=True, generator=torch.Generator().manual_seed(3))

Call = Callable[[nn.Module, Tensor, Tensor], Any]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5)
        model = nn.Sequential(*layers).eval()
    vars(model)["batch_rows"] = {"cpu": ROWS, DEVICE.type: ROWS}
    return model


def subject() -> tuple[nn.Module, Tensor, Tensor]:
    """An untrained network and images with the labels that it gives them, but for two."""
    model = network()
    x = 0.2 + 0.6 * torch.rand(N, 1, 6, 6, generator=seeded())
    y = runtime.predict(model, x)
    y[::3] = (y[::3] + 1) % 5
    return model, x, y


def drawing(kernel: Any, **options: Any) -> partial[Any]:
    def call(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
        return kernel(model, x, y, **options, generator=seeded())

    return partial(call, **options)


def of_images(kernel: Any, *given: Any, **options: Any) -> Call:
    return lambda model, x, y: kernel(model, x, *given, **options)


def scanned(model: nn.Module, x: Tensor) -> Profile:
    return boundary.probe(model, x, DIRECTIONS, GRID, search="scan")


def voted(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> region.Vote:
    return region.classify(model, x, radius=0.3, samples=20, generator=seeded(), **options)


def indicated(model: nn.Module, x: Tensor, y: Tensor, eps: float | None) -> Any:
    found = attacks.ddn_l2(model, x, y, steps=8) if eps is None else attacks.fgsm(model, x, y, eps=eps)
    return attacks.failure_indicators(model, x, y, found, eps=eps, generator=seeded())


def geometry(model: nn.Module, x: Tensor, y: Tensor) -> boundary.Geometry:
    seen = scanned(model, x[:2])
    planes = {"rays": 8, "pairs": 1, "negate": True, "generator": seeded()}
    return boundary.geometry(model, x[:2], DIRECTIONS, GRID, seen, **planes)


def triple_points(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    drawn = {"pairs": 3, "generator": seeded()}
    return {"cells": boundary.triple_points(model, x, DIRECTIONS[:4], reach=0.3, size=5, **drawn)}


def plane(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    found = boundary.plane(model, x[0], x[1], reach=0.2, size=9, third="gradient", generator=seeded())
    return {"labels": found.labels, "u": found.u, "v": found.v}


adam: dict[str, Any] = {"steps": 12, "search_steps": 2}
views: dict[str, Any] = {"eps": 0.05, "views": 2}
ATTACKS: dict[str, partial[Any]] = {
    "fgsm": partial(attacks.fgsm, eps=0.1),
    "pgd_linf": drawing(attacks.pgd_linf, eps=0.05, steps=3, step_size=0.02, restarts=2),
    "carlini_wagner_l2": partial(attacks.carlini_wagner_l2, **adam),
    "carlini_wagner_l2, confidence": partial(attacks.carlini_wagner_l2, **adam, confidence=0.05),
    "ddn_l2": partial(attacks.ddn_l2, steps=12),
    "optmargin, ddn": drawing(attacks.optmargin, **views, steps=12),
    "optmargin, ddn, worst views": drawing(attacks.optmargin, eps=0.05, views=8, steps=6),
    "optmargin, adam": drawing(attacks.optmargin, **views, **adam, solver="adam"),
    "optmargin, authors": drawing(attacks.optmargin, **views, **adam, variant="authors"),
}
LABELLED: dict[str, Call] = {
    **{f"classify, {stop}": partial(voted, stop=stop) for stop in region.STOPS},
    **{f"classify, {shape}": partial(voted, shape=shape) for shape in region.SHAPES[1:]},
    **{f"classify, {combine}": partial(voted, combine=combine) for combine in region.COMBINATIONS[1:]},
    "search_radius": drawing(region.search_radius, step=0.2, samples=10),
    **{
        f"probe, {way}": of_images(boundary.probe, DIRECTIONS, GRID, search=way)
        for way in ("scan", "bracket", "refine")
    },
    "audit": lambda m, x, y: boundary.audit(m, x, DIRECTIONS, GRID, scanned(m, x), rays=20, generator=seeded()),
    "reentry": lambda m, x, y: boundary.reentry(m, x, DIRECTIONS, GRID, scanned(m, x)),
    "triple_points": triple_points,
}
KERNELS: dict[str, Call] = {
    **ATTACKS,
    **LABELLED,
    "stability": lambda m, x, y: attacks.stability(m, x, y),
    "failure_indicators, eps": partial(indicated, eps=0.02),
    "failure_indicators, l2": partial(indicated, eps=None),
    "normals": lambda m, x, y: boundary.normals(m, x, DIRECTIONS, scanned(m, x)),
    "geometry": geometry,
    "plane": plane,
    "purity": lambda m, x, y: {"purity": boundary.purity(scanned(m, x), num_classes=5)},
}
# Waits of a call outside of the pool, at most: those of the checks at its edge, and of what is sent to the device.
BOUNDS = {
    "triple_points": 30,
    "search_radius": 60,
    "failure_indicators, eps": 30,
    "failure_indicators, l2": 30,
    "geometry": 30,
}


def tensors(result: Any) -> dict[str, Tensor]:
    """Return the tensors of a result by name, on the CPU."""
    named = result if isinstance(result, dict) else result.tensors()
    return {name: tensor.host if isinstance(tensor, OnDevice) else tensor for name, tensor in named.items()}


def same(found: Any, expected: Any) -> None:
    """Require equal numbers; those of a search may differ by what rounding does to them in batches of another size."""
    if isinstance(expected, float | tuple):
        assert found == expected
        return
    found, expected = tensors(found), tensors(expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def on_device(call: Call) -> tuple[Any, list[Any], set[int]]:
    """Return what `call` gives on the device, the waits of the host, and the sizes of the model's batches."""
    model, x, y = subject()
    sizes: set[int] = set()
    with StandIn() as standin:
        model = model.to(DEVICE)
        model.register_forward_hook(lambda module, given, z: sizes.add(len(z)))
        standin.waits.clear()
        result = call(model, x, y)
    return result, standin.waits, sizes


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str) -> None:
    expected = KERNELS[name](*subject())
    found, waits, sizes = on_device(KERNELS[name])
    if name in ("optmargin, adam", "optmargin, authors"):  # as documented: on a GPU every view has a backward pass
        found, expected = (dict(tensors(one)) for one in (found, expected))
        for one in (found, expected):
            del one["forwards"], one["backwards"]
    same(found, expected)
    times = Counter(wait.within for wait in waits)
    assert times.keys() <= {"drain", ""}, "a step, or a retirement, waits"
    assert times[""] <= BOUNDS.get(name, 15)
    assert sizes <= SIZES


@pytest.mark.parametrize("name", [name for name, call in ATTACKS.items() if "steps" in call.keywords])
def test_waits_of_an_attack_are_the_looks_of_the_pool(name: str) -> None:
    """Twice the steps, twice the looks; all else is once a call."""
    steps = ATTACKS[name].keywords["steps"]
    fewer, more = (on_device(partial(ATTACKS[name], steps=many))[1] for many in (steps, 2 * steps))
    assert [wait for wait in fewer if not wait.within] == [wait for wait in more if not wait.within]


@pytest.mark.parametrize("name", [name for name in LABELLED if name not in ("classify, ball", "classify, gaussian")])
def test_logits_that_are_not_finite_are_refused(name: str) -> None:
    """They are not where a pixel is black, as none is in the images."""

    def broken(model: nn.Module, x: Tensor, y: Tensor) -> Any:
        def spoil(module: nn.Module, given: tuple[Tensor], z: Tensor) -> Tensor:
            return z.masked_fill(given[0].flatten(1).amin(1, keepdim=True) <= 0, torch.nan)

        model.register_forward_hook(spoil)
        return LABELLED[name](model, x, y)

    with pytest.raises(ValueError, match="expected finite logits from the model"):
        on_device(broken)


# training and the detector


def trained(device: torch.device, adversary: str, augment: str, images: int = 40) -> tuple[nn.Module, Any]:
    model, generator = network().to(device), seeded()
    x = torch.rand(images, 1, 6, 6, generator=generator)
    parts = [ImageSet(x, torch.arange(images) % 5, tuple("abcde"), 1.0, "noise")] * 2
    recipe = {"eps": 0.1, "steps": 2, "step_size": 0.05, "batch_size": 16, "lr": 0.02, "augment": augment}
    return model, train.fit_schedule(model, *parts, schedule=["benign", adversary], generator=generator, **recipe)


@pytest.mark.parametrize(("adversary", "augment"), [("benign", "crop-flip"), ("single", "crop"), ("pgd", "none")])
def test_training(adversary: str, augment: str) -> None:
    expected, history = trained(torch.device("cpu"), adversary, augment)
    with StandIn() as standin:
        found, on_device = trained(DEVICE, adversary, augment)
        few = len(standin.waits)
        trained(DEVICE, adversary, augment, images=80)
        assert len(standin.waits) == 2 * few, "twice the steps of an epoch, as many waits"
        weights = {name: tensor.host for name, tensor in found.state_dict().items()}
    torch.testing.assert_close(weights, dict(expected.state_dict()), rtol=1e-3, atol=1e-4)
    assert on_device.drop(columns="seconds").round(4).equals(history.drop(columns="seconds").round(4))


def profiles(device: torch.device, seed: int) -> Profile:
    g = torch.Generator().manual_seed(seed)
    distance, adjacent = torch.rand(30, 40, generator=g), torch.randint(0, 5, (30, 40), generator=g)
    return Profile(adjacent[:, 0], distance, adjacent, distance < 2).to(device)


def test_detector() -> None:
    def fitted(device: torch.device, steps: int) -> detector.Detector:
        return detector.fit(*(profiles(device, i) for i in (1, 2)), num_classes=5, generator=seeded(), steps=steps)

    expected = fitted(torch.device("cpu"), 10)
    with StandIn() as standin:
        found = fitted(DEVICE, 10)
        few = len(standin.waits)
        fitted(DEVICE, 20)
        assert len(standin.waits) == 2 * few, "twice the steps, as many waits"
        scores = found.score(profiles(DEVICE, 3))
        rates = found.rates(profiles(DEVICE, 1), profiles(DEVICE, 2))
    assert found.network.linear2.weight.device == scores.device == DEVICE
    torch.testing.assert_close(found.history, expected.history, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.host, expected.score(profiles(torch.device("cpu"), 3)), rtol=1e-3, atol=1e-5)
    assert rates == expected.rates(profiles(torch.device("cpu"), 1), profiles(torch.device("cpu"), 2))


# the stand-in itself


def refused(call: Callable[[Tensor, Tensor], Any]) -> None:
    with StandIn():
        call(torch.arange(6.0).to(DEVICE), torch.arange(6.0))


@pytest.mark.parametrize(
    "call",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat((there, here)),
        lambda there, here: here[there.long()],
        lambda there, here: there.index_put_((there.long(),), here),
        lambda there, here: there.where(here > 2, here),
        lambda there, here: torch.rand(6, device=DEVICE, generator=seeded()),
    ],
)
def test_the_stand_in_refuses_what_a_gpu_refuses(call: Callable[[Tensor, Tensor], Any]) -> None:
    with pytest.raises(MixedError, match="at outside the package"):
        refused(call)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda t: bool((t > 2).any()), "_local_scalar_dense"),
        (lambda t: t[t > 2], "mask"),
        (lambda t: t.nonzero(), "nonzero"),
        (lambda t: t.index_put_((t > 2,), t[:3].clone()), "mask"),
        (lambda t: t.repeat_interleave(t.long()), "repeat_interleave"),
        (lambda t: t.unique(), "_unique2"),
        (lambda t: t.cpu(), "copy to the host"),
        (lambda t: torch.ones(3).to(DEVICE), "copy from the host"),
        (lambda t: t[torch.tensor([1])], "index from the host"),
        (lambda t: torch.ones(3).to(DEVICE, non_blocking=True), None),
        (lambda t: t[t.long()] + t.sum() * torch.tensor(2.0), None),
        (lambda t: t.masked_fill_(t > 2, 0).sort().values.clamp(min=1), None),
    ],
)
def test_the_stand_in_counts_what_makes_the_host_wait(call: Callable[[Tensor], Any], what: str | None) -> None:
    with StandIn() as standin:
        there = torch.arange(6.0).to(DEVICE)
        standin.waits.clear()
        call(there)
    assert [wait.what for wait in standin.waits] == ([] if what is None else [what])
