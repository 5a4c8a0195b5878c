"""The class of many perturbed images: perturb, clip, lay out, evaluate, in batches of fixed size and memory."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nbsupport import checks, runtime

# Measured on digits, digits_cnn, 100,000 points of the hypercube (500 images x 200, r .15), bfloat16 on a CPU: without
# the bound 36 labels differ from float32's, with it none, and 0.6 % of the points are confirmed. The largest error of
# all was 1.50 times that at the 512 points. (A network trained more briefly: 390, none, 15 %, 1.25 times.)
_CALIBRATION_POINTS = 512
_SAFETY = 2.0  # on the largest error seen at the calibration points


def margins(logits: Tensor, label: Tensor, *, targeted: bool = False, temperature: Tensor | None = None) -> Tensor:
    """Return the margins (N,) of `label` (N,) in `logits` (N, L), negated when `targeted`.

    With a `temperature` (N,), in logits, they are smooth: with a soft maximum over the rivals. At temperature 1 their
    gradient is that of the cross-entropy without its factor 1 - p_y, which is positive but underflows in float32 where
    the model is sure.
    """
    own = logits.gather(1, label[:, None]).squeeze(1)
    rivals = logits.scatter(1, label[:, None], -torch.inf)
    rival = rivals.amax(1) if temperature is None else temperature * (rivals / temperature[:, None]).logsumexp(1)
    return rival - own if targeted else own - rival


class Labeller:
    """The class of clip(x[image] + scale * offsets[point]) for any rows of (image, point, scale).

    A row may move along several offsets at once: the class of clip(x[image] + sum_p scale_p * offsets[point_p]).
    Only the images of one batch are ever in memory. The caller keeps the model frozen.

    Parameters
    ----------
    model : Module
        Maps images (N, C, H, W) in [0, 1] to logits (N, L).
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    offsets : Tensor (K, C*H*W) float32
        Flattened in NCHW order.
    precision : {"float32", "mixed"}
        "mixed" evaluates in bfloat16 (autocast), and again in float32 wherever the two largest logits are no
        further apart than a bound. The bound is measured in every call, on 512 points other than those asked for
        (random images, random mixtures of two offsets, random scales up to `reach`): twice the largest change
        between the logits of any two classes. It is a measurement, not a proof, that the labels are float32's.
    reach : float
        The largest scale that will be asked for; used in that measurement alone.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, offsets: Tensor, *, precision: str = "float32", reach: float = 1.0
    ) -> None:
        self.model = model
        self.device = runtime.device_of(model, x)
        precision = runtime.usable(precision, self.device)
        self.shape = tuple(x.shape[1:])
        self.rows = runtime.rows_per_batch(model, self.shape, self.device)
        # Rows gathered from these form a batch in the model's order of memory without a further copy: channels-last is
        # 1.6 times as fast as NCHW for `mnist_cnn` on two cores in float32, 2.2 times in bfloat16.
        images = (tensor.detach().to(self.device).view(-1, *self.shape) for tensor in (x, offsets))
        self._x, self._offsets = (runtime.as_rows(model, tensor) for tensor in images)
        self._broken = torch.zeros((), dtype=torch.int64, device=self.device)  # logits that are not finite, so far
        first = torch.zeros(1, dtype=torch.int64, device=self.device)
        with checks.forward_pass(model, self.shape):
            self.num_classes = self._logits(first, first, first.float()).shape[1]
        self.require_finite()
        self.bound = self._measured_bound(reach) if precision == "mixed" else None

    def __call__(self, image: Tensor, point: Tensor, scale: Tensor) -> Tensor:
        """Return the classes (R,) int64 of the rows `image` (R,) int64, `point` (R,) or (R, P) int64, `scale` alike."""
        labels, _ = self.look(image, point, scale)
        self.require_finite()
        return labels

    def look(self, image: Tensor, point: Tensor, scale: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the classes (R,) int64 of the same rows, and the margins (R,) of the classes `own` (R,).

        The margin is Z_own - max_{j != own} Z_j; `own` None: of the class found. In mixed precision margins are
        bfloat16's where the two largest logits lie further apart than the bound, and float32's elsewhere. The caller
        asks `require_finite` before it hands out what it made of them.
        """
        labels = torch.empty(image.numel(), dtype=torch.int64, device=self.device)
        lead, margin = torch.empty(2, image.numel(), device=self.device)
        reduced, rows = self.bound is not None, torch.arange(image.numel(), device=self.device)
        while True:
            for part in self._parts(rows):
                z = self._logits(image[part], point[part], scale[part], reduced=reduced)
                labels[part] = found = z.argmax(1)
                lead[part] = margins(z, found)
                margin[part] = lead[part] if own is None else margins(z, own[part])
            if not reduced:
                break
            reduced, rows = False, (lead <= self.bound).nonzero().squeeze(1)
        return labels, margin

    def logits(self, image: Tensor, point: Tensor, scale: Tensor) -> Tensor:
        """Return the logits (R, L) of the same rows, in float32 whatever `precision` is."""
        every = torch.arange(len(image), device=self.device)
        z = torch.cat([self._logits(image[part], point[part], scale[part]) for part in self._parts(every)])
        self.require_finite()
        return z

    def centers(self) -> Tensor:
        """Return the classes (N,) int64 of the images themselves."""
        image = torch.arange(len(self._x), device=self.device)
        return self(image, torch.zeros_like(image), torch.zeros(len(image), device=self.device))

    def _parts(self, index: Tensor) -> Iterator[Tensor]:
        return (index[start : start + self.rows] for start in range(0, len(index), self.rows))

    def require_finite(self) -> None:
        """Raise ValueError if a logit was not finite: a look that makes the host wait."""
        checks.finite_logits(int(self._broken))

    @torch.inference_mode()
    def _logits(self, image: Tensor, point: Tensor, scale: Tensor, *, reduced: bool = False) -> Tensor:
        # (R,), (R,) or (R, P), the same -> (R, C, H, W) -> (R, L)
        rows = len(image)
        flat = self._x[image]
        for one, length in zip(point.view(rows, -1).T, scale.view(rows, -1, 1).transpose(0, 1), strict=True):
            flat = torch.addcmul(flat, self._offsets[one], length)
        flat.clamp_(0, 1)
        with runtime.reduced_precision("mixed" if reduced else "float32", self.device):
            z = runtime.forward(self.model, runtime.as_images(self.model, flat, self.shape))
        self._broken += (~z.isfinite()).sum()
        return z.float() if reduced else z

    def _measured_bound(self, reach: float) -> float:
        g = torch.Generator().manual_seed(0)  # a stream of its own: the caller's draws stay as they are
        n = _CALIBRATION_POINTS
        image = torch.randint(len(self._x), (n,), generator=g).to(self.device)
        point = torch.randint(len(self._offsets), (2, n), generator=g).T.to(self.device)
        angle = 2 * math.pi * torch.rand(n, 1, generator=g)
        scale = (reach * torch.rand(n, 1, generator=g) * torch.cat((angle.cos(), angle.sin()), 1)).to(self.device)
        spread = torch.zeros((), device=self.device)
        for part in self._parts(torch.arange(n, device=self.device)):
            rows = image[part], point[part], scale[part]
            error = self._logits(*rows, reduced=True) - self._logits(*rows)
            spread = torch.maximum(spread, (error.amax(1) - error.amin(1)).max())
        self.require_finite()
        return _SAFETY * float(spread)
