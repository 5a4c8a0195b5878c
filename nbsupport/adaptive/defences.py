"""What each defence says of an image: point classifier, vote, and detector, the noise fresh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import boundary, checks, region, runtime
from nbsupport.detector import Detector
from nbsupport.record import Record


@dataclass(frozen=True, eq=False)
class Judged(Record):
    """What the defences say of N images.

    Attributes
    ----------
    point, vote : Tensor (N,) int64
        The classes of the model and of the vote.
    score, secret : Tensor (N,) float64
        The probability of "adversarial" by the detector that judges the image, along its own directions and along
        some that the attack did not know; NaN where it was not asked.
    """

    point: Tensor
    vote: Tensor
    score: Tensor
    secret: Tensor


def judge(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    samples: int,
    fold: Tensor,
    detectors: Sequence[Detector] = (),
    directions: Tensor,
    secret: Tensor | None = None,
    magnitudes: Sequence[float],
    precision: str = "float32",
    generator: torch.Generator | None = None,
) -> Judged:
    """Return what the defences say of the images `x`.

    The detector is asked only about images whose class or vote is wrong: on others no attack can have succeeded.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    radius, samples
        Of the vote, see `region.classify`.
    fold : (N,) int64
        Which of the `detectors` judges each image.
    detectors
        None where the detector is not to be asked.
    directions, secret : (K, D), magnitudes : (M,)
        Of the detector's profiles; `secret` None: the attack did not know `directions`, they are secret already.
    generator : torch.Generator, optional
        A CPU generator of the points of the vote; None: torch's global one.

    Raises
    ------
    ValueError
        As `region.classify`, `boundary.probe` and `Detector.score`.
    """
    checks.labels(fold, count=len(x), num_classes=len(detectors) or None, name="fold")
    point = runtime.predict(model, x)
    options: dict[str, Any] = {"radius": radius, "samples": samples, "precision": precision, "generator": generator}
    vote = region.classify(model, x, **options).label
    label, of_fold = y.to(point.device), fold.to(point.device)
    asked = ((point != label) | (vote != label)).nonzero().squeeze(1)
    scores = torch.full((2, len(x)), torch.nan, dtype=torch.float64, device=point.device)
    along = [directions] if secret is None else [directions, secret]
    for row, each in zip(scores, along if detectors and len(asked) else [], strict=False):
        profile = boundary.probe(model, x.to(point.device)[asked], each, magnitudes, precision=precision)
        for number, detector in enumerate(detectors):
            own = of_fold[asked] == number
            if own.any():
                row[asked[own]] = detector.score(profile.take(own).to("cpu")).to(row)
    # A copy: what is stored shares no memory.
    return Judged(point, vote, scores[0], scores[0].clone() if secret is None else scores[1])
