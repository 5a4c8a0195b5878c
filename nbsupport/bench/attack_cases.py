"""The attacks that are timed: this package's, the published whole-batch loop, another library's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nbsupport import attacks, runtime
from nbsupport.bench import peers, published
from nbsupport.bench.narrator import Narrator
from nbsupport.bench.subject import Subject

Result = attacks.Attack | Tensor  # images (N, C, H, W), where the success is not known yet
Call = Callable[[nn.Module, Subject, int], Result]  # (model, subject, steps)


@dataclass(frozen=True)
class Case:
    """One row: an attack, its steps, and the passes of one image that it takes at most."""

    what: str
    steps: int
    passes: int
    attack: Call
    precision: runtime.Precision = "float32"


def ours() -> list[Case]:
    """Return the attacks of this package; those that search long also in mixed precision, right after float32."""
    cases = [Case("PGD 40", 40, 2 * 40, _pgd), Case("OPTBRITTLE ddn 200", 200, 2 * 200, _brittle_ddn)]
    makers = (  # name, steps, passes of one step with its 1 or 20 views, constants, how to call it
        ("OPTBRITTLE adam 4 x 200", 200, 2, 4, _brittle_adam),
        ("OPTMARGIN ddn 200", 200, 20 + 2 * 5, 1, _margin_ddn),
        ("OPTMARGIN adam 2 x 50", 50, 2 * 20, 2, _margin_adam),
    )
    for what, steps, passes, constants, make in makers:
        views = 1 if "OPTBRITTLE" in what else 20  # in mixed precision each may be looked at again, to confirm
        cases += [
            Case(what, steps, passes * constants * steps, make("float32")),
            Case(f"{what}, mixed", steps, (passes + views) * constants * steps, make("mixed"), "mixed"),
        ]
    return cases


def as_published() -> list[Case]:
    """Return OPTMARGIN by `ddn`, and by `adam` at the published settings in both variants: 4 x 1000 steps."""
    passes = 2 * 20 * 4 * 1000
    return [
        Case("OPTMARGIN ddn 200", 200, 200 * (20 + 2 * 5), _margin_ddn("float32")),
        Case("OPTMARGIN adam 4 x 1000, equations", 1000, passes, _margin_published("equations")),
        Case("OPTMARGIN adam 4 x 1000, authors", 1000, passes, _margin_published("authors")),
    ]


def others(narrator: Narrator) -> list[Case]:
    """Return the published loop, and another library's attacks where it is installed, else why they are left out."""
    cases = [Case("whole-batch C&W 4 x 200", 200, 2 * 4 * 200, _whole_batch)]
    try:
        found = peers.foolbox()
    except peers.Absent as absent:
        narrator.note(str(absent))
        return cases
    for peer in found:
        if peer.remark:
            narrator.note(peer.remark)
    return cases + [Case(peer.what, peer.steps, peer.passes, _of(peer)) for peer in found]


def _pgd(model: nn.Module, subject: Subject, steps: int) -> attacks.Attack:
    s = subject.settings
    return attacks.pgd_linf(
        model, subject.x, subject.y, eps=s.eps, steps=steps, step_size=s.pgd_step_size, generator=_draws()
    )


def _brittle_ddn(model: nn.Module, subject: Subject, steps: int) -> attacks.Attack:
    return attacks.ddn_l2(model, subject.x, subject.y, steps=steps)


def _brittle_adam(precision: runtime.Precision) -> Call:
    def attack(model: nn.Module, subject: Subject, steps: int) -> attacks.Attack:
        return attacks.carlini_wagner_l2(model, subject.x, subject.y, search_steps=4, steps=steps, precision=precision)

    return attack


def _margin_ddn(precision: runtime.Precision) -> Call:
    def attack(model: nn.Module, subject: Subject, steps: int) -> attacks.Attack:
        eps = subject.settings.view_eps
        return attacks.optmargin(
            model, subject.x, subject.y, eps=eps, steps=steps, generator=_draws(), precision=precision
        )

    return attack


def _margin_adam(precision: runtime.Precision) -> Call:
    def attack(model: nn.Module, subject: Subject, steps: int) -> attacks.Attack:
        return attacks.optmargin(
            model,
            subject.x,
            subject.y,
            eps=subject.settings.view_eps,
            solver="adam",
            search_steps=2,
            steps=steps,
            generator=_draws(),
            precision=precision,
        )

    return attack


def _margin_published(variant: Literal["equations", "authors"]) -> Call:
    def attack(model: nn.Module, subject: Subject, steps: int) -> attacks.Attack:
        s = subject.settings
        lr, const = (s.authors_lr, s.authors_const) if variant == "authors" else (s.lr_adam, s.initial_const)
        return attacks.optmargin(
            model,
            subject.x,
            subject.y,
            eps=s.view_eps,
            solver="adam",
            variant=variant,
            distance_scale=s.distance_scale if variant == "authors" else None,
            steps=steps,
            lr=lr,
            initial_const=const,
            generator=_draws(),
        )

    return attack


def _whole_batch(model: nn.Module, subject: Subject, steps: int) -> Tensor:
    return published.carlini_wagner(model, subject.x, subject.y, search_steps=4, steps=steps)


def _of(peer: peers.Peer) -> Call:
    return lambda model, subject, steps: peer.attack(model, subject.x, subject.y, steps)


def _draws() -> torch.Generator:
    return runtime.seeded(0, "bench")
