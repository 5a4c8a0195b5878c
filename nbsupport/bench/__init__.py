"""The timed loops: the kernels against plain code and other libraries, on the same model and images.

Every figure is taken in one process, beside the machine's own matrix rate, since machines differ and drift: compare
ratios, not seconds. The results, with their conditions, are in the README.md of this folder.
"""

import dataclasses
import itertools
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from nbsupport import attacks, boundary, files, models, presets, region, runtime, suite
from nbsupport.bench import measure, published
from nbsupport.bench.measure import Case, Measured, Narrator, Subject, obtain
from nbsupport.runner import report

Row = dict[str, Any]
IMAGES = {"attacks": 64, "boundary": 20, "region": 1000, "published": 30}  # measured on, unless told otherwise

PARTS = {"all": ("attacks", "boundary", "region")}
MEMORY_COUNTS = (64, 1000)  # images attacked, or probed
SCALE_SECONDS = 300  # each of the rows of `scale`, on two slow cores
UNPROJECTED = ("3.3.4",)  # Foolbox's releases whose L2FMNAttack.project scales by norms / norms, which is 1
_TUNED = "tuned: handed the model with constant weights in channels-last order, which their users would have to know of"
_LOOKS, _FINE_LOOKS = 6, 3  # along a ray, about: on the grid, and below it


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
    rows: list[Row] = field(default_factory=list)

    def as_json(self) -> str:
        """Return everything as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    def as_text(self) -> str:
        """Return a table for each benchmark.

        `forwards` and `backwards` are passes of one image, or of one ray, `matrix` is the share of the machine's matrix
        rate, `speed` compares with the first row, and `waits`, on a GPU, says how often the host waited for it.
        """
        machine = self.machine
        threads = f"{machine['threads']} thread" + ("s" if machine["threads"] > 1 else "")
        rates = ", ".join(f"{rate / 1e9:.4g} GFLOP/s before {name}" for name, rate in self.matrix_rate.items())
        lines = [f"{self.subject}; {machine['device_name']}, {threads}, torch {machine['torch']}"]
        lines.append(f"matrix rate: {rates}")
        for name, rows in itertools.groupby(self.rows, lambda row: row["bench"]):
            table = pd.DataFrame(rows).drop(columns="bench").dropna(axis=1, how="all")
            names = table.columns.str.replace("_accuracy|_per_(?:image|ray)|_share|_up", "", regex=True)
            table.columns = names.str.replace("_per_s", "/s")
            lines += ["", name, report.frame_text(table)]
        return "\n".join(lines)


def most_images(what: str, images: int | None) -> int:
    """Return how many images the benchmark `what` takes; `images` None: as many as `IMAGES` says."""
    return images or max(IMAGES[name] for name in PARTS.get(what, (what,)))


def run(
    what: str, subject: Subject, narrator: Narrator, *, images: int | None = None, keep: Path | None = None
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
    """
    results = Results(subject.name, measure.described(subject.x.device), narrator.notes)
    for name in PARTS.get(what, (what,)):
        rate = results.matrix_rate[name] = measure.matrix_rate(subject.x.device)
        for row in table_rows(name, subject.first(images or IMAGES[name]), rate, narrator):
            results.rows.append(row)
            if keep is not None:
                files.write_text(keep, results.as_json())
    return results


def table_rows(name: str, subject: Subject, matrix_rate: float, narrator: Narrator) -> Iterator[Row]:
    """Yield the rows of the benchmark `name` as they are timed; "attacks" begins with the model alone.

    The FLOP/s of the passes are stated as a share of `matrix_rate`. "attacks" ends with memory, "boundary" with
    adversarial examples and with large numbers.
    """
    listed = {"attacks": all_attacks, "published": published_attacks, "boundary": searches, "region": votes}[name]
    n, attacking = len(subject.x), name in ("attacks", "published")

    def row(table: str, run: Measured, columns: Row) -> Row:
        share = {"matrix_share": subject.flops * run.passes_per_s / matrix_rate}
        return {"bench": table, "what": run.case.what, "images": n, "seconds": run.seconds, **columns, **share}

    paces = {}  # by which it is told how long a case may take
    for precision in runtime.PRECISIONS:
        if name == "attacks":
            run = measure.measure(measure.batch(subject, precision, backward=True), subject)
            yield row("engine", run, {"images": run.result, "passes_per_s": run.passes_per_s})
        met = measure.batch(subject, precision, backward=attacking, rows=n if attacking else None)
        paces[precision] = measure.measure(met, subject).passes_per_s
    cases = listed(subject, narrator)
    most = [case.passes * n / paces[case.options.get("precision", "float32")] for case in cases]
    narrator.coming(f"{len(cases)} rows, {n} images", sum(most))
    first = None
    for case, longest in zip(cases, most, strict=True):
        narrator.coming(case.what, longest)
        run = measure.measure(case, subject, narrator.ticker(case.what, case.passes * n, "passes at most"))
        first = first or run
        found = attacked(subject, run) if attacking else compared(run, first)
        yield row(
            name, run, found if run.waits is None else {"images_per_s": n / run.seconds, **found, "waits": run.waits}
        )
    if name == "attacks":
        narrator.coming("memory", 2 * measure.STEPS * sum(MEMORY_COUNTS) / paces["float32"])
        yield from memory(subject)
    if name == "boundary":
        for examples, points in around(subject).items():
            case_scan, case_bracket = cases[1:3]
            many = {"images": len(points.x)}
            at_most = 2 * case_scan.passes * len(points.x) / paces["float32"]
            narrator.coming(f"scan and bracket around {examples}", at_most)
            scan = measure.measure(case_scan, points)
            yield row(f"around {examples}", scan, compared(scan, scan) | many)
            bracket = measure.measure(case_bracket, points)
            yield row(f"around {examples}", bracket, compared(bracket, scan) | many)
        yield from scale(subject.x.device, narrator)


def around(subject: Subject) -> dict[str, Subject]:
    """Return the subject with its adversarial examples for images, those whose attack succeeded."""
    eps, generator = subject.settings.view_eps, runtime.seeded(0, "bench", "views")
    found = {
        "OPTBRITTLE": attacks.ddn_l2(subject.model, subject.x, subject.y),
        "OPTMARGIN": attacks.optmargin(subject.model, subject.x, subject.y, eps=eps, steps=60, generator=generator),
    }
    attacked = {name: attack.take(attack.success.nonzero().squeeze(1)) for name, attack in found.items()}
    return {name: replace(subject, x=attack.x_adv) for name, attack in attacked.items() if len(attack)}


def scale(device: torch.device, narrator: Narrator) -> Iterator[Row]:
    """Yield what a probe takes where there is much of it: many images x 1568 rays, and images of 3 x 224 x 224.

    Networks have random weights. A half-space looked at once along each ray shows memory, which depends neither on the
    model, its activations apart, nor on the magnitudes: its time means nothing.
    """
    flat, large = (1, 28, 28), (3, 224, 224)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.build("resnet20", in_shape=large, num_classes=1000)
        spaces = {size: models.HalfSpace(torch.randn(math.prod(size)), 0.0) for size in (flat, large)}
    cases: list[tuple[str, nn.Module, tuple[int, ...], int, int, list[float]]]
    cases = [("half-space", spaces[flat], flat, count, 1568, [0.1]) for count in MEMORY_COUNTS]
    cases += [("half-space", spaces[large], large, 2, 1000, [0.1])]
    cases += [("resnet20", network, large, 2, 200, presets.settings("cifar10").magnitudes)]
    for of, model, size, images, rays, grid in cases:
        what = f"{of}, {'x'.join(map(str, size))}"
        narrator.coming(what, SCALE_SECONDS)
        yield {"bench": "scale", "what": what, **measure.probe_cost(model.to(device).eval(), size, images, rays, grid)}


def memory(subject: Subject) -> Iterator[Row]:
    """Yield the growth of the peak of memory as more images are attacked: their own size, and no more."""
    grown = measure.memory_growth(subject.model, subject.x, subject.y, MEMORY_COUNTS)
    what = f"OPTBRITTLE ddn {measure.STEPS}, {measure.SLOTS} slots"
    for count, size in zip(MEMORY_COUNTS, grown, strict=True):
        own = 2 * count * subject.x[0].nbytes / 1e6
        yield {"bench": "memory", "what": what, "images": count, "growth_mb": size / 1e6, "inputs_and_results_mb": own}


def all_attacks(subject: Subject, narrator: Narrator) -> list[Case]:
    """Return the attacks of this package, the published loop, and another library's where it is installed.

    Those that search long stand there also in mixed precision, right after float32.
    """
    s, margin, eps = subject.settings, attacks.optmargin, {"eps": subject.settings.view_eps}
    cases = [
        Case("PGD 40", attacks.pgd_linf, 40, 40 * 2, {"eps": s.eps, "step_size": s.pgd_step_size}),
        Case("OPTBRITTLE ddn 200", attacks.ddn_l2, 200, 200 * 2),
    ]
    for case in (
        Case("OPTBRITTLE adam 4 x 200", attacks.carlini_wagner_l2, 200, 4 * 200 * 2, {"search_steps": 4}),
        Case("OPTMARGIN ddn 200", margin, 200, 200 * (20 + 2 * 5), eps),
        Case("OPTMARGIN adam 2 x 50", margin, 50, 2 * 50 * 2 * 20, {**eps, "solver": "adam", "search_steps": 2}),
    ):
        most = case.passes * 5 // 3  # a look that found something is repeated in float32
        options = {**case.options, "precision": "mixed"}
        cases += [case, replace(case, what=f"{case.what}, mixed", passes=most, options=options)]
    plain = Case("whole-batch C&W 4 x 200", published.carlini_wagner, 200, 4 * 200 * 2, {"search_steps": 4})
    return [*cases, plain, *foolbox(narrator)]


def published_attacks(subject: Subject, narrator: Narrator) -> list[Case]:
    """Return OPTMARGIN by `ddn`, and by `adam` at the published settings in both variants: 4 x 1000 steps."""
    found = suite.attacks(presets.settings(subject.settings.dataset, "paper"), "normal")
    ddn, equations, authors = (found[name][0] for name in suite.OPTMARGINS)
    return [
        Case("OPTMARGIN ddn 200", ddn, 200, 200 * (20 + 2 * 5)),
        Case("OPTMARGIN adam 4 x 1000, equations", equations, 1000, 4 * 1000 * 2 * 20),
        Case("OPTMARGIN adam 4 x 1000, authors", authors, 1000, 4 * 1000 * 2 * 20),
    ]


def foolbox(narrator: Narrator) -> list[Case]:
    """Return the minimum-norm attacks of Foolbox at the settings of ours.

    What their rows must be read with is noted; where Foolbox cannot be imported, a note says why and how to install it.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of names that scipy has moved
            import foolbox as library
    except ImportError as error:
        remedy = "to install it: pip install -e '.[peers]'"
        narrator.note(f"Foolbox cannot be imported, so its rows are left out ({error}); {remedy}")
        return []
    narrator.note(_TUNED)
    if library.__version__ in UNPROJECTED:
        fault = "FMN never shortens a perturbation in L2, so that its mean_rms is far from least"
        narrator.note(f"Foolbox {library.__version__}'s {fault}")
    search = {"binary_search_steps": 4, "stepsize": 0.05, "confidence": 0, "initial_const": 1, "abort_early": True}
    kinds = library.attacks.L2CarliniWagnerAttack, library.attacks.DDNAttack, library.attacks.L2FMNAttack
    penalty, ddn, fmn = (partial(peer, library, kind) for kind in kinds)
    return [
        Case("Foolbox C&W 4 x 200", penalty, 200, 4 * 200 * 2, search, plain=True),
        Case("Foolbox C&W 4 x 200, tuned", penalty, 200, 4 * 200 * 2, search),
        Case("Foolbox DDN 200", ddn, 200, 200 * 2, plain=True),
        Case("Foolbox FMN 200", fmn, 200, 200 * 2, plain=True),
    ]


def peer(library: Any, make: Any, model: nn.Module, x: Tensor, y: Tensor, *, steps: int, **options: Any) -> Tensor:
    """Return the images that the attack `make(steps=steps)` of `library` found, and those it failed on as they were."""
    handed = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
    criterion = library.criteria.Misclassification(y)
    x_adv: Tensor = make(steps=steps, **options)(handed, x, criterion, epsilons=None)[1].detach()
    black = (x_adv == 0).flatten(1).all(1)  # what its Carlini & Wagner gives where it found nothing
    return torch.where(black[:, None, None, None], x, x_adv)


def attacked(subject: Subject, run: Measured) -> Row:
    """Return what is said of an attack, and whether the true label wins the vote on its images."""
    s, n = subject.settings, len(subject.x)
    x_adv, success, rms = judged(subject, run.result)
    generator = runtime.seeded(0, "bench", "region")
    vote = region.classify(subject.model, x_adv, radius=s.radius, samples=s.samples, generator=generator)
    return {
        "success": float(success.float().mean()),
        "mean_rms": float(rms[success].mean()) if bool(success.any()) else None,
        "region_accuracy": float((vote.label == subject.y).float().mean()),
        "forwards_per_image": run.forwards / n,
        "backwards_per_image": run.backwards / n,
        "passes_per_s": run.passes_per_s,
    }


def judged(subject: Subject, found: attacks.Attack | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images found (N, C, H, W), and their success (N,) and RMS (N,), re-checked here in float32."""
    x_adv = found.x_adv if isinstance(found, attacks.Attack) else found.clamp(0, 1)
    success = runtime.predict(subject.model, x_adv) != subject.y
    return x_adv, success, (x_adv - subject.x).square().flatten(1).mean(1).sqrt()


def searches(subject: Subject, narrator: Narrator) -> list[Case]:
    """Return the published scan, one image at a time, the same in the pool of rays, then the faster searches.

    Directions and magnitudes are those of the standard preset; a ray agrees where its distance and its adjacent class
    are those of the published scan.
    """
    grid = subject.settings.magnitudes
    directions = suite.directions(subject.settings, tuple(subject.x.shape[1:]))

    def scan(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        return published.scan(model, x, directions, grid[:steps])

    def pooled(model: nn.Module, x: Tensor, y: Tensor, steps: int, **options: Any) -> tuple[Tensor, Tensor]:
        found = boundary.probe(model, x, directions, grid[:steps], **options)
        return found.distance, found.adjacent

    rays, m = len(directions), len(grid)
    return [
        Case("scan, one image at a time", scan, m, m * rays),
        Case("scan", pooled, m, m * rays, {"search": "scan"}),
        Case("bracket", pooled, m, _LOOKS * rays, {"search": "bracket"}),
        Case("bracket, mixed", pooled, m, _LOOKS * rays, {"search": "bracket", "precision": "mixed"}),
        Case("refine", pooled, m, (_LOOKS + _FINE_LOOKS) * rays, {"search": "refine"}),
    ]


def votes(subject: Subject, narrator: Narrator) -> list[Case]:
    """Return the vote one image at a time, over all points at once, and with the rules that stop it earlier.

    All share their points; an image agrees where its label is that of the vote one image at a time.
    """
    radius, samples = subject.settings.radius, subject.settings.samples

    def one_at_a_time(model: nn.Module, x: Tensor, y: Tensor, steps: int, generator: torch.Generator) -> tuple[Tensor]:
        points = torch.rand(steps, x[0].numel(), generator=generator)
        return (published.vote(model, x, 2 * points - 1, radius=radius),)

    def pooled(model: nn.Module, x: Tensor, y: Tensor, steps: int, generator: torch.Generator, **options: Any) -> Any:
        found = region.classify(model, x, radius=radius, samples=steps, generator=generator, **options)
        return (found.label,)

    stops = {"all points": {"stop": "none"}, "exact stop": {"stop": "exact"}, "alpha stop": {"stop": "alpha"}}
    stops["exact stop, mixed"] = {"stop": "exact", "precision": "mixed"}
    plain = Case("one image at a time", one_at_a_time, samples, samples)
    return [plain, *(Case(what, pooled, samples, samples, options) for what, options in stops.items())]


def compared(run: Measured, first: Measured) -> Row:
    """Return what is said of a search or a vote, which repeats the work of the `first` row of its table.

    Its results are tensors (N, K), one value a ray, or (N,). Distances that are no elements of the grid are compared
    with none.
    """
    equal = torch.stack([own == other for own, other in zip(run.result, first.result, strict=True)]).all(0)
    n, on_grid = equal.numel(), run.case.options.get("search") != "refine"
    rate = {"rays_per_s": n / run.seconds} if equal.dim() == 2 else {}
    return {
        **rate,
        f"forwards_per_{'ray' if rate else 'image'}": run.forwards / n,
        "forwards_per_s": run.passes_per_s,
        "agreement": float(equal.double().mean()) if on_grid else None,
        "differing": int((~equal).sum()) if on_grid else None,
        "speed_up": first.seconds / run.seconds,
        "peak_gb": run.peak / 1e9,
    }
