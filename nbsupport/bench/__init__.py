"""The timed loops: the kernels against plain code and other libraries, on the same model and images.

Every figure is taken in one process, beside the machine's own matrix rate, since machines differ and drift: compare
ratios, not seconds. The results, with their conditions, are in the README.md of this folder.
"""

from __future__ import annotations

from collections.abc import Callable

from nbsupport.bench import cases, machine
from nbsupport.bench.results import Narrator, Results
from nbsupport.bench.subject import Subject, obtain

IMAGES = {"attacks": 64, "boundary": 20, "region": 1000, "published": 30}  # measured on, unless told otherwise


def most_images(what: str, images: int | None) -> int:
    """Return how many images the benchmark `what` takes; `images` None: as many as `IMAGES` says."""
    return images or max(IMAGES[name] for name in _named(what))


def run(
    what: str,
    subject: Subject,
    narrator: Narrator,
    *,
    images: int | None = None,
    keep: Callable[[Results], None] = lambda results: None,
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
    keep : callable, optional
        Called with the results after every row, so that an interruption leaves what was measured.
    seconds : float
        For which the model's own pace is measured at least, before each benchmark.
    """
    results = Results(subject.name, machine.described(subject.device), narrator.notes)
    for name in _named(what):
        rate = results.matrix_rate[name] = machine.matrix_rate(subject.device)
        for row in cases.rows(name, subject.first(images or IMAGES[name]), rate, narrator, seconds=seconds):
            results.rows.append(row)
            keep(results)
    return results


def _named(what: str) -> tuple[str, ...]:
    return ("attacks", "boundary", "region") if what == "all" else (what,)
