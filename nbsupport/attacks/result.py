"""What every attack returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
    """

    x_adv: Tensor
    success: Tensor
    correct: Tensor
    rms: Tensor
    forwards: Tensor
    backwards: Tensor
