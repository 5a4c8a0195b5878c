"""Images for tests that read files."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def random_bytes(*shape: int, seed: int = 0) -> Array:
    """Return the same random bytes of `shape` for the same `seed`."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
