"""What was measured, and what it must be read with: as a table and as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from nbsupport.runner import report

_SHORT = {
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
        Device, its name, threads, versions; see `rates.machine`.
    matrix_rate : dict
        The machine's float32 rate in FLOP/s, measured right before each benchmark, by its name.
    notes : list of str
        What was left out, and why.
    rows : list of dict
        In a row `bench` is the table that it belongs to, `what` what was measured; None: not measured.
    """

    subject: str
    machine: dict[str, Any]
    notes: list[str]
    matrix_rate: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

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
