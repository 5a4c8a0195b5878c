"""Models without parameters whose decision boundary is known in closed form: the truth behind tests and demonstrations.

Each maps images (N, C, H, W) to logits (N, L) and offers two exact lengths, computed in float64 and ignoring the
limits of [0, 1]:

- `distance(x)` (N,): the L2 distance from each image to the nearest point of the boundary;
- `crossing(x, direction)`: the smallest t > 0 at which x + t * direction meets the boundary, inf where it never
  does; (N,) for one direction (D,), (N, K) for K directions (K, D). For a direction of RMS 1 (of L2 norm sqrt(D)) t
  is a magnitude in RMS, for one of L2 norm 1 an L2 distance.

Pixels are flattened in NCHW order. Logits have the dtype of the buffers (float32; float64 after `.double()`).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nbsupport import checks


class _Analytic(nn.Module):
    """A model whose margin is a function of the flattened image."""

    def distance(self, x: Tensor) -> Tensor:
        """Return the L2 distance (N,) float64 of each image of `x` (N, C, H, W) to the nearest boundary."""
        return self._distance(x.flatten(1).double())

    def crossing(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return the smallest t > 0 at which x + t * direction meets the boundary, inf where it never does.

        `x` (N, C, H, W); `direction` (D,) or (K, D). Returns (N,) or (N, K), float64.
        """
        t = self._crossing(x.flatten(1).double(), torch.atleast_2d(direction).to(x.device).double())
        t = torch.where(t > 0, t, math.inf)
        return t[:, 0] if direction.ndim == 1 else t

    def _distance(self, x: Tensor) -> Tensor:
        """Return (N,) for flattened images (N, D), float64."""
        raise AssertionError

    def _crossing(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return (N, K) for flattened images (N, D) and directions (K, D), float64; no crossing: anything not > 0."""
        raise AssertionError


class HalfSpace(_Analytic):
    """Class 1 where normal . x > offset, else class 0: logits (0, normal . x - offset).

    The margin of class 1 is normal . x - offset, so the signed L2 distance is that over ||normal||.

    Parameters
    ----------
    normal : Tensor (D,)
        Normal of the boundary, not zero, of any length.
    offset : float
        The boundary is normal . x = offset.
    num_classes : int
        Logits given; classes from 2 on lie below both others everywhere and never win.
    """

    def __init__(self, normal: Tensor, offset: float, *, num_classes: int = 2) -> None:
        super().__init__()
        checks.count(num_classes, name="num_classes", low=2)
        if normal.ndim != 1 or not bool(normal.any()):
            raise ValueError(f"expected a normal (D,) other than zero, got shape {tuple(normal.shape)}")
        self.num_classes = num_classes
        self.normal = nn.Buffer(normal.float())
        self.offset = nn.Buffer(torch.tensor(float(offset)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to logits (N, num_classes)."""
        score = x.flatten(1) @ self.normal - self.offset
        zero = torch.zeros_like(score)
        below = torch.minimum(score, zero) - 1
        return torch.stack((zero, score, *[below] * (self.num_classes - 2)), 1)

    def _distance(self, x: Tensor) -> Tensor:
        normal = self.normal.double()
        distance: Tensor = (x @ normal - self.offset.double()).abs() / normal.norm()
        return distance

    def _crossing(self, x: Tensor, direction: Tensor) -> Tensor:
        normal = self.normal.double()
        return (self.offset.double() - x @ normal)[:, None] / (direction @ normal)  # (N, K); parallel: inf or NaN


class Ball(_Analytic):
    """Class 1 inside a ball, class 0 outside: logits (0, radius - ||x - center||).

    The margin is the signed L2 distance to the sphere.

    Parameters
    ----------
    center : Tensor (D,)
        Centre of the ball.
    radius : float
        L2 radius, > 0.
    """

    def __init__(self, center: Tensor, radius: float) -> None:
        super().__init__()
        checks.number(radius, name="radius", open_low=True)
        self.center = nn.Buffer(center.float())
        self.radius = nn.Buffer(torch.tensor(float(radius)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to logits (N, 2)."""
        score = self.radius - (x.flatten(1) - self.center).norm(dim=1)
        return torch.stack((torch.zeros_like(score), score), 1)

    def _distance(self, x: Tensor) -> Tensor:
        distance: Tensor = (self.radius.double() - (x - self.center.double()).norm(dim=1)).abs()
        return distance

    def _crossing(self, x: Tensor, direction: Tensor) -> Tensor:
        # |p + t d|^2 = r^2 as a t^2 + 2 b t + c = 0; c < 0 inside, where only the larger root is ahead.
        p = x - self.center.double()
        a = direction.square().sum(1)  # (K,)
        b = p @ direction.T  # (N, K)
        c = (p.square().sum(1) - self.radius.double().square())[:, None]  # (N, 1)
        root = (b.square() - a * c).sqrt()  # NaN where the ray misses the ball
        return torch.where(c < 0, root - b, -root - b) / a


class Wedge(_Analytic):
    """Angular sectors around a point in the plane of two pixel directions: L >= 3 classes that meet in that point.

    With p = (first . (x - center), second . (x - center)), class k has the logit p . (cos axes[k], sin axes[k]):
    it holds the angles nearest to its axis, and neighbouring classes meet on the half-line midway between their axes.

    Parameters
    ----------
    first, second : Tensor (D,)
        Orthonormal directions (L2 norm 1).
    center : Tensor (D,)
        The point, in pixels, where all classes meet.
    axes : sequence of float
        One angle a class, in radians, all different modulo 2 pi, at least three.
    """

    def __init__(self, first: Tensor, second: Tensor, *, center: Tensor, axes: Sequence[float]) -> None:
        super().__init__()
        plane = torch.stack((first, second), 1).double()  # (D, 2)
        if not torch.allclose(plane.T @ plane, torch.eye(2, dtype=torch.float64), atol=1e-5):
            raise ValueError("expected first and second orthonormal in L2; use the columns of torch.linalg.qr(...).Q")
        angles = torch.tensor([angle % (2 * math.pi) for angle in axes], dtype=torch.float64)
        if angles.unique().numel() != angles.numel() or angles.numel() < 3:
            raise ValueError(f"expected at least three different axes, one a class, got {list(axes)}")
        ascending = angles.sort().values
        following = torch.cat((ascending[1:], ascending[:1] + 2 * math.pi))
        edges = (ascending + following) / 2
        self.plane = nn.Buffer(plane.float())
        self.center = nn.Buffer(center.float())
        self.axes = nn.Buffer(torch.stack((angles.cos(), angles.sin())).float())  # (2, L)
        self.edges = nn.Buffer(torch.stack((edges.cos(), edges.sin())))  # (2, L), float64: only for lengths

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to logits (N, L)."""
        return (x.flatten(1) - self.center) @ self.plane @ self.axes

    def _distance(self, x: Tensor) -> Tensor:
        p = (x - self.center.double()) @ self.plane.double()  # (N, 2)
        along = (p @ self.edges.double()).clamp_min(0)  # (N, L): the foot of the perpendicular on each half-line
        distance: Tensor = (p[:, :, None] - along[:, None] * self.edges.double()).norm(dim=1).amin(1)
        return distance

    def _crossing(self, x: Tensor, direction: Tensor) -> Tensor:
        # Where p + t q = s e with s >= 0, for each half-line e: t = cross(p, e) / cross(e, q).
        plane, (cos, sin) = self.plane.double(), self.edges.double()
        p = ((x - self.center.double()) @ plane)[:, None, :, None]  # (N, 1, 2, 1)
        q = (direction @ plane)[None, :, :, None]  # (1, K, 2, 1)
        t = (p[:, :, 0] * sin - p[:, :, 1] * cos) / (cos * q[:, :, 1] - sin * q[:, :, 0])  # (N, K, L)
        s = (p[:, :, 0] + t * q[:, :, 0]) * cos + (p[:, :, 1] + t * q[:, :, 1]) * sin
        return torch.where((t > 0) & (s >= 0), t, math.inf).amin(2)
