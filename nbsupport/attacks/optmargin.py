"""OPTMARGIN: the least perturbation that flips the image and random views around it."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.attacks.engine import Attack, Objective, Problem
from nbsupport.attacks.minimum_norm import NormSearch, PenaltySearch
from nbsupport.boundary import directions
from nbsupport.runtime import Precision, frozen


def optmargin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    views: int = 20,
    confidence: float = 0.0,
    solver: Literal["adam", "ddn"] | None = None,
    variant: Literal["equations", "authors"] = "equations",
    distance_scale: float | None = None,
    search_steps: int = 4,
    steps: int | None = None,
    lr: float | None = None,
    initial_const: float | None = None,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: Precision = "float32",
) -> Attack:
    """Return the least L2 images whose `views` surrogates f(x' + v_i) are all misclassified.

    The v_i are mutually orthogonal random vectors of RMS `eps`, and zero; all images share them, for the whole attack.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    eps : float
        RMS of one view (not a budget), in [0, 1] units.
    views : int
        Number of surrogates, the zero view included; at most D + 1.
    confidence : float
        Margin, in logits, that every view must reach.
    solver : {"adam", "ddn"}, optional
        "adam": the published penalty search; "ddn": minimum norm. None: "adam" for `authors`, else "ddn".
    variant : {"equations", "authors"}
        "equations": views clipped to [0, 1], squared L2 as it is. "authors", as the release computes it: views not
        clipped, squared L2 divided by `distance_scale`; only for "adam".
    distance_scale : float, optional
        None: 1 for `equations`, 255^2 for `authors`.
    search_steps, steps : int
        `adam`: constants tried and iterations with each (None: 1000). `ddn`: `steps` iterations (None: 200).
    lr, initial_const : float, optional
        Of `adam`; None: .05 and 1 (`authors`: .2 and .2, the release's for MNIST).
    targets : (N,) int64, optional
        Classes to reach.
    generator : torch.Generator, optional
        A CPU generator, from which the views are drawn; None: torch's global one.
    precision : {"float32", "mixed"}
        "mixed" searches in bfloat16 and confirms in float32 what it keeps. Images whose gradient bfloat16 does not
        resolve are searched in float32, as are all where the device has no fast bfloat16 (with a warning).

    Returns
    -------
    Attack
        A failed image is returned unchanged. An iteration of `adam` counts `views` passes forward, and one backward
        for each view that is not across yet (on a GPU for every view); one of `ddn` counts `views` forward and then,
        of the five views of greatest weight, five forward and five backward.

    Raises
    ------
    ValueError
        For images, labels, logits or settings out of their range or shape, and for "ddn" with `authors`.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018.
    """
    checks.number(eps, name="eps")
    checks.choice(variant, ("equations", "authors"), name="variant")
    authors = variant == "authors"
    solver = ("adam" if authors else "ddn") if solver is None else solver
    checks.choice(solver, ("adam", "ddn"), name="solver")
    if solver == "ddn" and authors:
        raise ValueError("expected solver 'adam' for the variant 'authors', got 'ddn'; 'ddn' has no distance to scale")
    adam_only = {"distance_scale": distance_scale, "lr": lr, "initial_const": initial_const}
    given = {name: value for name, value in adam_only.items() if value is not None}
    if solver == "ddn" and given:
        raise ValueError(
            f"expected {', '.join(given)} with the solver 'adam' only, got 'ddn'; leave out or change solver"
        )
    with frozen(model):
        problem = Problem.of(model, x, y, targets)
        surrogates = draw_views(tuple(x.shape[1:]), eps=eps, views=views, generator=generator).to(problem.x.device)
        objective = Objective(problem, surrogates, clip=not authors, precision=precision)
        if solver == "ddn":
            return NormSearch(objective, confidence=confidence, steps=200 if steps is None else steps).attack()
        defaults = (255.0**2, 0.2, 0.2) if authors else (1.0, 0.05, 1.0)
        settings: dict[str, Any] = {"steps": 1000 if steps is None else steps, "search_steps": search_steps}
        settings |= {**dict(zip(adam_only, defaults, strict=True)), **given}
        return PenaltySearch(objective, confidence=confidence, **settings).attack()


def draw_views(
    in_shape: tuple[int, ...], *, eps: float, views: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return the surrogates' offsets (views, C, H, W): orthogonal, each of RMS `eps`, and the zero view last."""
    checks.count(views, name="views")
    zero = torch.zeros(1, *in_shape)
    dim = zero.numel()
    if views - 1 > dim:
        raise ValueError(f"expected at most {dim + 1} views of images with {dim} values, got {views}; lower views")
    if views == 1:
        return zero
    offsets = eps * directions(dim, views - 1, negate=False, generator=generator)
    return torch.cat((offsets.view(-1, *in_shape), zero))
