"""What was measured, as a table and as JSON, and what the terminal is told meanwhile."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nbsupport.runner import report
from nbsupport.runner.progress import duration

Row = dict[str, Any]
Tick = Callable[[int], None]  # takes the units done so far
_SHORT = {
    "region_accuracy": "region",
    "forwards_per_image": "forwards",
    "backwards_per_image": "backwards",
    "forwards_per_ray": "forwards",
    "passes_per_s": "passes/s",
    "forwards_per_s": "forwards/s",
    "rays_per_s": "rays/s",
}


@dataclass
class Results:
    """The rows of a benchmark.

    Attributes
    ----------
    subject : str
        The model and its data set.
    machine : dict
        Device, its name, threads, versions; see `machine.described`.
    notes : list of str
        What was left out, and why; what a row must be read with.
    matrix_rate : dict
        The machine's float32 rate in FLOP/s, measured right before each benchmark, by its name.
    rows : list of dict
        In a row `bench` is the table that it belongs to, `what` what was measured; None: not measured.
    """

    subject: str
    machine: dict[str, Any]
    notes: list[str]
    matrix_rate: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def as_json(self) -> str:
        """Return everything as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    def as_text(self) -> str:
        """Return a table for each benchmark; forwards and backwards are passes of one image, or of one ray."""
        import pandas as pd

        machine = self.machine
        threads = f"{machine['threads']} thread" + ("s" if machine["threads"] > 1 else "")
        rates = ", ".join(f"{rate / 1e9:.4g} GFLOP/s before {name}" for name, rate in self.matrix_rate.items())
        lines = [
            f"{self.subject}; {machine['device_name']}, {threads}, torch {machine['torch']}",
            f"matrix rate: {rates}",
        ]
        for name in dict.fromkeys(row["bench"] for row in self.rows):
            part = pd.DataFrame([row for row in self.rows if row["bench"] == name]).drop(columns="bench")
            lines += ["", name, report.frame_text(part.dropna(axis=1, how="all").rename(columns=_SHORT))]
        return "\n".join(lines)


class Narrator:
    """Tells `say` what comes, and at most every `every` seconds how far it is."""

    def __init__(self, say: Callable[[str], None], *, every: float = 5.0) -> None:
        self.say, self._every = say, every
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Say `text` and keep it for the results."""
        self.notes.append(text)
        self.say(f"  {text}")

    def coming(self, what: str, seconds: float) -> None:
        """Say that `what` comes and takes `seconds` at most, as far as one can tell from the model's pace."""
        self.say(f"  {what}: up to about {duration(max(seconds, 0.1))}")

    def ticker(self, what: str, total: int, unit: str) -> Tick:
        """Return what is to be called with the units done of the `total`, from now on."""
        begun = told = time.monotonic()

        def tick(done: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told < self._every:
                return
            told = now
            rate = done / (now - begun)
            left = duration(max(total - done, 0) / rate)
            self.say(f"    {what:<28} {done}/{total} {unit}, {rate:.3g}/s, {left} left")

        return tick
