"""Stage 01: what the run's two image sets hold."""

from __future__ import annotations

from typing import Any

import pandas as pd

from nbsupport.data import ImageSet


def dataset_table(train: ImageSet, test: ImageSet) -> pd.DataFrame:
    """Return a row for the training and one for the test images: how many, their shape, and their range in its unit."""
    return pd.DataFrame([_row("training", train), _row("test", test)])


def _row(part: str, images: ImageSet) -> dict[str, Any]:
    counts = images.y.bincount(minlength=images.num_classes)
    return {
        "part": part,
        "source": images.name,
        "images": len(images),
        "shape": "x".join(map(str, images.in_shape)),
        "classes": images.num_classes,
        "fewest_in_a_class": int(counts.min()),
        "most_in_a_class": int(counts.max()),
        "lowest_pixel": images.pixel_max * float(images.x.min()),
        "mean_pixel": images.pixel_max * float(images.x.mean()),
        "highest_pixel": images.pixel_max * float(images.x.max()),
    }
