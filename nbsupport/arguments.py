"""Plain arguments checked: numbers, counts and choices. Free of torch, so that the command line answers at once."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable

_FEW = 12  # options that are read at a glance


def number(value: float, *, name: str, low: float = 0.0, open_low: bool = False, high: float = math.inf) -> None:
    """Raise ValueError unless `value` is finite and in [low, high] (above `low` with `open_low`)."""
    try:
        finite = math.isfinite(value)
    except TypeError:
        raise ValueError(f"expected {name} as a number, got {value!r}") from None
    inside = finite and (value > low if open_low else value >= low) and value <= high
    if not inside:
        bound = f"{'above' if open_low else 'at least'} {low:g}" + (
            "" if math.isinf(high) else f" and at most {high:g}"
        )
        raise ValueError(f"expected {name} {bound}, got {value!r}")


def count(value: int, *, name: str, low: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number of at least `low`."""
    try:
        whole = operator.index(value)  # takes NumPy's integers too
    except TypeError:
        whole = low - 1
    if isinstance(value, bool) or whole < low:
        raise ValueError(f"expected {name} as a whole number of at least {low}, got {value!r}")


def choice(value: str, allowed: Iterable[str], *, name: str) -> None:
    """Raise ValueError, with the closest match, unless `value` is one of `allowed`."""
    options = list(allowed)
    if value not in options:
        close = difflib.get_close_matches(str(value), options, n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        if len(options) > _FEW:  # first what helps, then the list
            raise ValueError(
                f"expected {name} to be one of {len(options)}, got {value!r}{hint}; these are {', '.join(options)}"
            )
        raise ValueError(f"expected {name} to be one of {', '.join(options)}, got {value!r}{hint}")
