"""The timed loops: the kernels against plain code and other libraries, on the same model and images.

Every figure is taken in one process, beside the machine's own matrix rate, since machines differ and drift: compare
ratios, not seconds. The results, with their conditions, are in the README.md of this folder.
"""

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from nbsupport import files
from nbsupport.bench import cases, measure
from nbsupport.bench.measure import Narrator, Subject
from nbsupport.bench.subject import obtain
from nbsupport.runner import report

IMAGES = {"attacks": 64, "boundary": 20, "region": 1000, "published": 30}  # measured on, unless told otherwise


@dataclass
class Results:
    """The rows of a benchmark.

    Attributes
    ----------
    subject : str
        The model and its data set.
    machine : dict
        Device, its name, threads, versions; see `measure.described`.
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
    rows: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> str:
        """Return everything as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    def as_text(self) -> str:
        """Return a table for each benchmark.

        `forwards` and `backwards` are passes of one image, or of one ray, `matrix` is the share of the machine's matrix
        rate, and `speed` compares with the first row.
        """
        machine = self.machine
        threads = f"{machine['threads']} thread" + ("s" if machine["threads"] > 1 else "")
        rates = ", ".join(f"{rate / 1e9:.4g} GFLOP/s before {name}" for name, rate in self.matrix_rate.items())
        lines = [f"{self.subject}; {machine['device_name']}, {threads}, torch {machine['torch']}"]
        lines.append(f"matrix rate: {rates}")
        for name, rows in itertools.groupby(self.rows, lambda row: row["bench"]):
            table = pd.DataFrame(rows).drop(columns="bench").dropna(axis=1, how="all").rename(columns=_short)
            lines += ["", name, report.frame_text(table)]
        return "\n".join(lines)


def _short(column: str) -> str:
    return re.sub("_accuracy|_per_(image|ray)|_share|_up", "", column).replace("_per_s", "/s")


def most_images(what: str, images: int | None) -> int:
    """Return how many images the benchmark `what` takes; `images` None: as many as `IMAGES` says."""
    return images or max(IMAGES[name] for name in _named(what))


def run(
    what: str,
    subject: Subject,
    narrator: Narrator,
    *,
    images: int | None = None,
    keep: Path | None = None,
    seconds: float = 1.0,
) -> Results:
    """Return the measurements of the benchmark `what`.

    Parameters
    ----------
    what : {"attacks", "boundary", "region", "published", "all"}
        What is measured: "published" is OPTMARGIN at the settings of its authors, which takes long, and no part of
        "all".
    subject : Subject
        The model and images that it is measured on; see `obtain`.
    narrator : Narrator
        Told what comes and how long it may take.
    images : int, optional
        Images in every benchmark; None: as `IMAGES` says. Fewer, where the subject has fewer.
    keep : Path, optional
        Where the results are written as JSON after every row, so that an interruption leaves what was measured.
    seconds : float
        For which the model's own pace is measured at least, before each benchmark.
    """
    results = Results(subject.name, measure.described(subject.x.device), narrator.notes)
    for name in _named(what):
        rate = results.matrix_rate[name] = measure.matrix_rate(subject.x.device)
        for row in cases.rows(name, subject.first(images or IMAGES[name]), rate, narrator, seconds=seconds):
            results.rows.append(row)
            if keep is not None:
                files.write_text(keep, results.as_json())
    return results


def _named(what: str) -> tuple[str, ...]:
    return ("attacks", "boundary", "region") if what == "all" else (what,)
