"""What every attack returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


def _nowhere() -> Tensor:
    return torch.zeros((), dtype=torch.bool)


@dataclass(frozen=True)
class Attack:
    """The outcome of an attack, one entry an image.

    Attributes
    ----------
    x_adv : (N, C, H, W) float32 in [0, 1]
        The adversarial image. Where a minimum-norm attack failed, and where `correct` is False, the original;
        where FGSM or PGD failed, the perturbed image.
    success : (N,) bool
        Re-checked in float32 on the returned image: the margin is at most -confidence in every view, and below 0.
    correct : (N,) bool
        Whether the label was right before the attack (targeted: was not the target yet). Others are not attacked.
    rms : (N,) float32
        Root mean square of `x_adv - x` over pixels and channels, in [0, 1] units; never NaN.
    forwards, backwards : (N,) int64
        Network evaluations spent on the image, every one counted: the check before, the search (up to the step at
        which finished images leave the batch), the check after.
    falling : (N,) bool
        The search ended while it was still gaining: the last tenth of its steps improved its result by more than 1 %
        (minimum norm: of the distance; PGD: of the margin before the attack).
    at_bound : (N,) bool
        The constant of a penalty search was only ever too large or only ever too small: all constants tried
        succeeded, so that a smaller one may distort less, or none did.

    Notes
    -----
    `falling` and `at_bound` are evidence for `failure_indicators`; False where the attack has nothing of the kind.
    """

    x_adv: Tensor
    success: Tensor
    correct: Tensor
    rms: Tensor
    forwards: Tensor
    backwards: Tensor
    falling: Tensor = field(default_factory=_nowhere)
    at_bound: Tensor = field(default_factory=_nowhere)

    def __post_init__(self) -> None:
        for name in ("falling", "at_bound"):
            object.__setattr__(
                self, name, getattr(self, name).to(self.success.device).expand_as(self.success).contiguous()
            )


def best_of(attacks: Sequence[Attack]) -> Attack:
    """Return, for every image, the successful result of least RMS among several attacks on the same images.

    Its RMS is an upper bound of the distance to the boundary that no single attack's weakness can spoil. Where none
    succeeded, the result of the first attack stands.

    Parameters
    ----------
    attacks : sequence of Attack
        Each on the same N images, in the same order, on one device.

    Returns
    -------
    Attack
        Passes are summed over all attacks, as all were made to find the best; evidence is the chosen attack's.

    Raises
    ------
    ValueError
        Without an attack, or where they differ in the number of images, in their shape or in `correct`.

    References
    ----------
    Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705: report the per-image minimum.
    """
    if not attacks:
        raise ValueError("expected at least one attack, got none; pass the results to choose from")
    first = attacks[0]
    for other in attacks[1:]:
        if other.x_adv.shape != first.x_adv.shape:
            raise ValueError(
                f"expected attacks on the same images, got {tuple(first.x_adv.shape)} and {tuple(other.x_adv.shape)}; "
                "attack the same images with each"
            )
        if not torch.equal(other.correct, first.correct):
            raise ValueError(
                "expected attacks on the same images and model, got results that disagree on which images were "
                "classified correctly; attack the same images, with the same targets, with each"
            )
    rms = torch.stack([torch.where(attack.success, attack.rms, torch.inf) for attack in attacks])  # (A, N)
    chosen, image = rms.argmin(0), torch.arange(rms.shape[1], device=rms.device)

    def pick(name: str) -> Tensor:
        return torch.stack([getattr(attack, name) for attack in attacks])[chosen, image]

    return Attack(
        x_adv=pick("x_adv"),
        success=pick("success"),
        correct=first.correct,
        rms=pick("rms"),
        forwards=torch.stack([attack.forwards for attack in attacks]).sum(0),
        backwards=torch.stack([attack.backwards for attack in attacks]).sum(0),
        falling=pick("falling"),
        at_bound=pick("at_bound"),
    )
