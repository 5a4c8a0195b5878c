"""What a run will take on this machine: a few steps of each kernel are timed, and multiplied by how many there will be.

Passes are of one image through the network, forward or back; a rate is the seconds of one. How many a search takes
before it stalls, or a ray before it is decided, differs from model to model: what is said here is about.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import adaptive, baselines, boundary, data, detector, region, runtime, suite, train
from nbsupport.bench import measure
from nbsupport.bench.measure import BY_SHAPE, Case, Subject
from nbsupport.boundary import Profile
from nbsupport.data import ImageSet, own
from nbsupport.presets import MODELS, Settings
from nbsupport.store import STAGES

_COUNTS = {"digits": (1297, 500), "mnist": (60_000, 10_000), "cifar10": (50_000, 10_000)}  # training and test images
_NOISE = 512  # images that stand in for those that are not at hand; of others no more are read
_IMAGES, _STEPS, _SECONDS = 64, 4, 0.3  # timed at most: images, steps of a search, seconds of a kernel, about
# Of the steps that an adam search may take, until each constant stalls: with one view .44 to .55, with many .26 to .34,
# by `authors` .13 (digits) to .5 (MNIST).
_SPENT = {1: 0.5, "equations": 0.32, "authors": 0.4}
_POINTS = 0.6  # of a vote's points, until the rest cannot change it
_LOOKS = 12  # magnitudes to a look along a ray: 6 to 9 looks on digits, 3 to 6 on MNIST and CIFAR-10 (README.md)
_SCANNED = 0.6  # of the magnitudes, where a ray is visited in full
_ALL = 3  # fits that boosted trees on all attacks take longer than on one
_FOOLED = 0.8  # of what attacks on the defences return: the detector is asked about these
# Seconds without a pass: the start of a kernel, imports, plots and tables. Two slow cores; the larger the run, the less
# they matter.
_ELSE = dict(zip(STAGES, (8, 8, 12, 10, 16, 14, 30), strict=True))
_KERNEL = 520e6  # bytes of a process that has loaded torch, pandas and matplotlib and drawn a figure

Rates = Mapping[str, float]


@dataclass(frozen=True)
class Sizes:
    """What the cost of a run depends on, besides its settings.

    Attributes
    ----------
    in_shape : (C, H, W)
        Of an image.
    trained, tested : int
        Training images, the validation part among them, and test images.
    kept : int
        Bytes that one image leaves in memory for a backward pass.
    rows : int
        Images of one batch.
    """

    in_shape: tuple[int, int, int]
    trained: int
    tested: int
    kept: int
    rows: int

    @property
    def dim(self) -> int:
        """Pixels and channels of an image."""
        return math.prod(self.in_shape)


def rays(s: Settings, dim: int) -> int:
    """Return how many rays there are of an image."""
    return (min(dim, 1000) if s.directions is None else s.directions) * (1 + s.negate)


# How many passes


def passes(s: Settings, sizes: Sizes) -> dict[str, defaultdict[str, float]]:
    """Return about how many units of work each stage does, by the names of the rates in `measured`.

    The keys are the stages; then "training" (an image, with the change of the weights), "inner" (a pass in an attack of
    adversarial training), the attacks by name, "vote", "ray", "EOT" and "mimic" (passes), "detector" (steps of all
    folds) and "boosting" (fits).
    """
    found: dict[str, defaultdict[str, float]] = {stage: defaultdict(float) for stage in STAGES}
    _, training, attacking, voting, probing, judging, adapting = found.values()
    plans = [suite.attacks(s, which) for which in MODELS]
    of_attacks = [n for plan in plans for _, n in plan.values()]
    probed = [min(n, s.boundary_n) for n in (*of_attacks, *(s.n,) * 6)]  # benign, noise and errors of two models
    most = len(s.magnitudes)
    looks = most / _LOOKS * rays(s, sizes.dim)
    judged = min(s.adaptive_n, s.boundary_n, s.n) * len(MODELS)

    for one in suite.training(s).values():
        for kind in one["schedule"]:
            training["training"] += sizes.trained - s.validation_n
            inner = {"benign": 0, "single": 1, "pgd": s.train_steps}[kind]
            training["inner"] += 2 * inner * (sizes.trained - s.validation_n)
            training["inner"] += 2 * s.train_steps * s.validation_n
    training["PGD"] += len(MODELS) * (s.region_n * search(suite.pgd(s)) + 4 * 100 * 20)  # the accuracy
    training["PGD"] += min(s.n, s.region_n) * sum(map(search, suite.strongest(s).values()))  # of one model, robust
    for plan in plans:
        for name, (attack, n) in plan.items():
            attacking[name] += n * search(attack)
        attacking["PGD"] += 2 * suite.INDICATED * search(suite.pgd(s))  # with other budgets
    for attack in {name: attack for _, _, name, attack in suite.demands(s, sizes.in_shape)}.values():
        attacking["OPTMARGIN"] += min(s.cost_n, s.n) * search(attack)
        attacking["vote"] += min(s.cost_n, s.n) * s.samples * _POINTS
    attacking["vote"] += sum(64 * min(n, suite.INDICATED) + 16 * n for n in of_attacks)  # warnings, stability

    voting["vote"] += (2 * max(s.n, s.region_n) + sum(of_attacks)) * s.samples * _POINTS
    variants = suite.region_variants(s, sizes.dim)
    voting["vote"] += 3 * min(s.n, 100) * s.samples * len(variants)
    voting["vote"] += 2 * 81**2 + (2 * 60 + 3 * 40) * 5 * 50  # slices, radii
    probing["ray"] += looks * sum(probed)
    probing["ray"] += sum(min(s.audit_rays, n * rays(s, sizes.dim)) for n in probed) * most * _SCANNED
    around = 3 * len(MODELS) * min(s.geometry_n, s.boundary_n)
    probing["vote"] += around * s.triple_pairs * 33**2
    probing["ray"] += around * s.geometry_rays * most * _SCANNED

    trials = len(MODELS) * (1 + (len(plans[0]) if s.detector_on == "every" else len(suite.MAIN)))
    judging["detector"] += 2 * trials * s.detector_seeds * s.detector_steps + 100 / s.detector_folds
    judging["boosting"] += (trials + _ALL * len(MODELS)) * s.detector_folds
    adapting["EOT"] += 3 * judged * s.adaptive_passes
    for offsets in suite.adaptive_views(s, sizes.in_shape).values():
        cost = len(offsets) + 10
        adapting["OPTMARGIN"] += judged * min(s.ddn_steps, max(1, s.adaptive_passes // cost)) * cost
    adapting["mimic"] += 6 * judged * s.adaptive_passes
    ignorant, aware, informed = len(plans[0]) + 3, 3 + 3 + 6, 6  # informed: of the detector's rays
    adapting["vote"] += judged * ((ignorant + aware) * s.samples * _POINTS + 64 * aware)
    adapting["ray"] += judged * looks * (_FOOLED * (ignorant + aware + informed) + 1)
    return found


def search(attack: Any) -> float:
    """Return the passes, forward and backward, that `attack` (a `functools.partial`) takes of one image, about."""
    given: dict[str, Any] = attack.keywords
    views: int = given.get("views", 1)
    steps: int = given.get("steps", 1) * given.get("restarts", 1)
    if "search_steps" in given:
        constants: int = given["search_steps"]
        return 2 * views * constants * steps * _SPENT[given.get("variant", "equations") if views > 1 else 1]
    return steps * (views + 10 if views > 1 else 2) + 11 * views


# What one pass takes


def measured(s: Settings) -> tuple[Rates, Sizes]:
    """Return the seconds of each thing that `passes` counts, and the sizes; nothing is downloaded or stored.

    The kernels are the run's, on its normal model after a few batches of training and on the first test images; where
    these are not at hand, on noise of their shape.
    """
    images = images_of(s)
    model = suite.new_model(s, images, "normal")
    device = runtime.device_of(model, images.x)
    images = images.to(device)
    subject = Subject(s.model, model, images.x, runtime.predict(model, images.x), s, math.nan)
    pace = _pace(measure.batch(subject, "float32", backward=True), subject)
    batch = min(s.batch_size, len(images))
    few = images.first(batch * max(1, min(8, int(_SECONDS / pace / batch))))
    recipe: dict[str, Any] = {"batch_size": batch, "lr": s.lr, "weight_decay": s.weight_decay, "augment": s.augment}
    recipe["precision"] = s.precision
    history = train.fit(model, few, epochs=3, validation=few.first(1), generator=torch.Generator(), **recipe)
    ascend = train.linf_adversary(eps=s.eps, steps=_STEPS, step_size=s.train_step_size, generator=torch.Generator())
    first = images.x[:batch], images.y[:batch]
    with runtime.reduced_precision(runtime.usable(s.precision, device), device):
        inner = min(measure.timed(partial(ascend, model, *first), device)[1] for _ in range(2)) / (2 * _STEPS * batch)
    rates = {"training": float(history.seconds.iloc[1:].min()) / len(few), "inner": inner}
    model.eval()
    subject = replace(subject, y=runtime.predict(model, images.x))  # all are attacked

    def time(what: str, call: Any, per_image: float, *, least: int = 1, **options: Any) -> Any:
        """Time `call` on as many images as fit into the time with `per_image` passes each, on `least` at least."""
        count = min(max(least, int(_SECONDS / pace / per_image)), _IMAGES, s.n)
        done = measure.measure(Case(what, call, options.pop("steps", _STEPS), 0, options), subject.first(count))
        rates[what] = 1 / done.passes_per_s
        return done.result

    for name, (attack, _) in suite.attacks(s, "normal").items():
        if name == "FGSM":  # a single step: as one of PGD, below
            continue
        given: dict[str, Any] = getattr(attack, "keywords", {})
        once = {"search_steps": 1} if "search_steps" in given else {}
        time(name, attack, 2 * given.get("views", 1) * _STEPS, **once)
    rates["FGSM"] = rates["PGD"]
    time("vote", partial(_vote, s), s.samples, steps=s.samples)
    along = suite.directions(s, images.in_shape)
    rows = runtime.rows_per_batch(model, images.in_shape, device)
    full = max(1, 8 * rows // len(along))  # images whose rays fill the pool
    profile = time("ray", partial(_probe, s, along), len(s.magnitudes) / _LOOKS * len(along), least=full)
    time("EOT", partial(adaptive.through_vote, radius=s.radius, precision=s.precision), 32 * _STEPS)
    like = partial(_mimic, s, along, profile)
    subject = subject.first(len(profile))
    time("mimic", like, 24 * 8 * _STEPS)
    rates |= _fits(s, len(along), images.num_classes, device)
    counts = _count(s.train_data, "train"), _count(s.test_data, "test")
    trained = counts[0] if s.train_n is None else min(counts[0], s.train_n)
    return rates, Sizes(images.in_shape, trained, counts[1], runtime.kept_bytes(model, images.in_shape), rows)


def _pace(case: Case, subject: Subject) -> float:
    """Return the seconds of a pass of `case`, one batch after the other."""
    return 1 / measure.measure(replace(case, seconds=0.2), subject).passes_per_s


def _vote(s: Settings, model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> Any:
    options: dict[str, Any] = {"precision": s.precision, "generator": torch.Generator()}
    return region.classify(model, x, radius=s.radius, samples=steps, stop="none", **options)


def _probe(s: Settings, along: Tensor, model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> Profile:
    return boundary.probe(model, x, along, s.magnitudes, precision=s.precision)


def _mimic(s: Settings, along: Tensor, profile: Profile, model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> Any:
    given: dict[str, Any] = {"directions": along, "magnitudes": s.magnitudes, "rays": 8, "steps": steps}
    given |= {"generator": torch.Generator(), "precision": s.precision}
    return adaptive.mimic(model, x, y, profile.take(slice(len(x))), **given)


def _fits(s: Settings, count: int, num_classes: int, device: torch.device) -> Rates:
    """Return the seconds of a step of one detector of each fold, and of a fit of the boosted trees, on noise."""
    n = max(2 * s.detector_folds, min(s.n, s.boundary_n))
    random = torch.Generator().manual_seed(0)
    sides = []
    for nearest in (0.2, 0.3):
        distance = nearest + 0.5 * torch.rand(n, count, generator=random)
        adjacent = torch.randint(num_classes, (n, count), generator=random).short()
        sides.append(Profile(adjacent[:, 0].long(), distance, adjacent, distance < 1).to(device))
    folds, steps = torch.arange(n) % s.detector_folds, 8
    options: dict[str, Any] = {"num_classes": num_classes, "pairs": s.detector_pairs, "count": s.detector_folds}
    fit = partial(detector.cross_fit, sides[0], sides[1], folds, generator=random, **options)
    networks = min(measure.timed(partial(fit, steps=steps), device)[1] for _ in range(2)) / steps
    grow = partial(baselines.boosting, *sides, num_classes=num_classes)
    trees = min(measure.timed(grow, device)[1] for _ in range(2))  # the first loads scikit-learn
    return {"detector": networks, "boosting": trees}


def images_of(s: Settings) -> ImageSet:
    """Return the first test images, or noise where they would have to be downloaded."""
    published = {name: shape for shape, name in BY_SHAPE.items() if name != "digits"}
    if s.test_data in published:
        files = data.files_of(s.test_data, ["train", "test"], data.data_root(s.root))
        if not all(file.is_file() for file in files):
            x = torch.rand(_NOISE, *published[s.test_data], generator=torch.Generator().manual_seed(0))
            return ImageSet(x, torch.arange(_NOISE) % 10, tuple(map(str, range(10))), 1.0, s.test_data)
    return data.load(s.test_data, train=False, root=s.root, limit=_NOISE)


def _count(source: str, part: str) -> int:
    """Return the number of images in the `part`, "train" or "test", of a data set."""
    kind, _, path = source.partition(":")
    if kind == "folder":
        return sum(map(len, own.tree(Path(path))[0][part].values()))
    return len(data.load(source, train=part == "train")) if kind == "npz" else _COUNTS[kind][part == "test"]


# Minutes and memory


def expected(s: Settings, rates: Rates, sizes: Sizes) -> dict[str, tuple[float, float]]:
    """Return, about, the seconds of each stage and the most bytes that its kernel holds."""
    every = passes(s, sizes)
    seconds = {stage: _ELSE[stage] + sum(n * rates[what] for what, n in every[stage].items()) for stage in STAGES}
    image, batch = 4 * sizes.dim, sizes.rows * sizes.kept
    training, test = 7 * sizes.trained * sizes.dim, sizes.tested * image  # bytes as read, and floats
    count = rays(s, sizes.dim)
    sets = sum(min(n, s.boundary_n) for which in MODELS for _, n in suite.attacks(s, which).values()) + 6 * s.n
    profiles = 7 * sets * count + 2 * count * image  # distances, classes, reached; the directions
    visits = 16 * s.detector_steps * s.detector_folds * s.detector_pairs
    held = dict(zip(STAGES, (training, training, 0, training, profiles, 2 * profiles + visits, profiles), strict=True))
    batches = dict.fromkeys(STAGES, 2 * batch)
    batches[STAGES[1]] = 2 * max(s.batch_size * sizes.kept, batch)
    batches[STAGES[6]] = 8 * batch
    return {stage: (seconds[stage], _KERNEL + test + held[stage] + batches[stage]) for stage in STAGES}


def as_text(s: Settings, stages: Sequence[str] = STAGES) -> str:
    """Return a table of the minutes and the memory that each of the `stages` will take, or why there is none."""
    try:
        found = expected(s, *measured(s))
    except (ValueError, OSError) as error:
        return f"expected minutes: not known ({error})"
    found = {stage: found[stage] for stage in stages}
    lines = [f"  {stage:<26}{seconds / 60:>8.1f} min{held / 1e9:>8.1f} GB" for stage, (seconds, held) in found.items()]
    total, most = sum(seconds for seconds, _ in found.values()), max((held for _, held in found.values()), default=0.0)
    head = "expected on this machine, from a few steps of this run's kernels; other programs that run add to it"
    return "\n".join([head, *lines, f"  {'all':<26}{total / 60:>8.1f} min{most / 1e9:>8.1f} GB"])
