"""What the notebooks share: the attacks by name, the two trainings, which images are looked at. Plain functions."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nbsupport import adaptive, boundary, checks, models, region, runtime
from nbsupport import attacks as kernels
from nbsupport.adaptive import Judged
from nbsupport.attacks import Attack, Stability
from nbsupport.attacks.optmargin import draw_views
from nbsupport.boundary import Profile, Slice
from nbsupport.data import ImageSet
from nbsupport.detector import Detector
from nbsupport.presets import MODELS, OWN, Settings

BENIGN = "benign"
CONTROLS = ("noise", "errors")  # benign images that a detector should not call adversarial
MAIN = ("OPTBRITTLE", "OPTMARGIN")  # the attacks that have a detector of their own in every preset
OPTMARGINS = ("OPTMARGIN", "OPTMARGIN-adam", "OPTMARGIN-authors")
_PARALLEL = 0.9999  # cosine of directions that span no plane
_SQUARE = 4  # the side of the square of `distorted` is 1 / _SQUARE of the image's
_FAR, _HALVINGS = 1e3, 40  # the longest step of `moved`, and how often the interval of its length is halved
INDICATED = 32  # images of each attack on which signs of failure are looked for
VOTE = ("vote", math.nan)
DEFENCES = ("point", "vote", "detector", "vote + detector")
TARGETS = (0.05, 0.5)  # false positive rates that thresholds are calibrated to; the first one flags images
_WARNINGS = ["model", "attack", "indicator", "share", "n", "what_to_do"]
_MISSED = 0.05  # share of the images on which only attacks that do not know the defence succeed; above it we warn
_SHARES = (1.0, 1.25, 1.5)  # budgets of `selective`, in budgets of the image
_LENGTHS = (0.75, 1.25, 1.5)  # of OPTMARGIN's perturbation, shortened or stretched
_BUDGETS = (0.5, 2.0)  # of PGD, in budgets of the run

Kernel = Callable[..., Attack]
Keys = tuple[str, str]  # model and examples
Networks = Mapping[str, nn.Module]
Results = Mapping[Keys, Attack]
Profiles = Mapping[str, Profile]  # of one model, by examples
Positions = Mapping[str, Tensor]  # in the test set, alike
Tensors = Mapping[Keys, Tensor]  # of both models
Evasion = tuple[str, float]  # a defence, and the false-positive rate of its detector; NaN: it has none

# Training


def training(s: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings of `train.fit_schedule` for each of the two models; one that has weights has no epochs."""
    fast = s.fast_epochs if s.pgd_schedule == "fast" else 0
    common: dict[str, Any] = {"batch_size": s.batch_size, "lr": s.lr, "weight_decay": s.weight_decay}
    common |= {"eps": s.eps, "steps": s.train_steps, "step_size": s.train_step_size, "precision": s.precision}
    normal = {"schedule": ["benign"] * s.epochs, "augment": s.augment, "label_smoothing": s.label_smoothing}
    pgd = {"schedule": ["single"] * fast + ["pgd"] * s.pgd_epochs, "augment": s.pgd_augment, "label_smoothing": 0.0}
    found = {"normal": {**common, **normal}, "pgd": {**common, **pgd}}
    return {which: {**one, "schedule": []} if _weights(s, which) else one for which, one in found.items()}


def schedules(s: Settings) -> dict[str, str]:
    """Return how each model was trained, in a word: "given" where its weights were."""
    own = {"normal": "normal", "pgd": s.pgd_schedule}
    return {which: "given" if _weights(s, which) else schedule for which, schedule in own.items()}


def new_model(s: Settings, images: ImageSet, which: str) -> nn.Module:
    """Return the model `which` before training, with the weights that `s` names, else with those that the seed sets."""
    name, weights = (s.pgd_model or s.model if which == "pgd" else s.model), _weights(s, which)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        model = models.build(name, in_shape=images.in_shape, num_classes=images.num_classes)
    if weights not in (None, OWN):
        models.load_weights(model, weights)
    return model.to(runtime.best_device())


def _weights(s: Settings, which: str) -> str | None:
    return s.pgd_weights if which == "pgd" else s.weights


def kept_epochs(histories: Mapping[str, pd.DataFrame]) -> dict[str, int]:
    """Return the epoch of each model whose weights `train.fit` kept.

    It is the last of those with the best validation accuracy, under PGD for the PGD-trained model.
    """
    scores = {"normal": "benign_accuracy", "pgd": "pgd_accuracy"}
    last_first = {model: history[::-1].set_index("epoch")[scores[model]] for model, history in histories.items()}
    return {model: int(accuracy.index[int(accuracy.argmax())]) for model, accuracy in last_first.items()}


# Attacks


def attacks(s: Settings, which: str) -> dict[str, tuple[Kernel, int]]:
    """Return the attacks on the model `which` by the name of their examples: a kernel, and for how many images."""
    common: dict[str, Any] = {"precision": s.precision}
    search = {**common, "search_steps": s.search_steps, "steps": s.adam_steps}
    penalty = {**search, "lr": s.lr_adam, "initial_const": s.initial_const}
    views: dict[str, Any] = {"eps": s.view_eps, "views": s.views}
    authors = {**search, "lr": s.authors_lr, "initial_const": s.authors_const, "distance_scale": s.distance_scale}
    brittle = {
        "ddn": partial(kernels.ddn_l2, steps=s.brittle_steps, **common),
        "adam": partial(kernels.carlini_wagner_l2, confidence=0.0, **penalty),
    }
    n = s.n if which == "normal" or s.pgd_n is None else min(s.pgd_n, s.n)
    strong, slow = min(s.strong_n, n), min(s.adam_n if which == "normal" else s.pgd_adam_n or s.adam_n, n)
    return {
        "FGSM": (partial(kernels.fgsm, eps=s.eps, **common), n),
        "PGD": (pgd(s), n),
        "OPTBRITTLE": (brittle[s.brittle_solver], n),
        "OPTSTRONG": (partial(kernels.carlini_wagner_l2, confidence=s.confidence, **penalty), strong),
        "OPTMARGIN": (partial(kernels.optmargin, **views, solver="ddn", steps=s.ddn_steps, **common), n),
        "OPTMARGIN-adam": (partial(kernels.optmargin, **views, solver="adam", **penalty), slow),
        "OPTMARGIN-authors": (partial(kernels.optmargin, **views, variant="authors", **authors), slow),
    }


def shard(attack: Kernel) -> int | None:
    """Return how many images of `attack` to store at once: 32 where each brings many views; None: a batch of them."""
    return 32 if "views" in getattr(attack, "keywords", {}) else None


def pgd(s: Settings, *, budget: float = 1.0) -> Kernel:
    """Return PGD as the run uses it, with its eps and its steps times `budget`."""
    options: dict[str, Any] = {"steps": s.pgd_steps, "restarts": s.pgd_restarts, "precision": s.precision}
    return partial(kernels.pgd_linf, eps=budget * s.eps, step_size=budget * s.pgd_step_size, **options)


def strongest(s: Settings) -> dict[str, Kernel]:
    """Return attacks within the run's eps under which fewer images stay right than under PGD.

    On either loss, longer, with several starts.
    """
    options: dict[str, Any] = {"eps": s.eps, "steps": 5 * s.pgd_steps, "step_size": 2 * s.eps, "restarts": 5}
    options |= {"precision": s.precision, "decay": True}
    return {loss: partial(kernels.pgd_linf, loss=loss, **options) for loss in ("cross-entropy", "margin")}


def about(s: Settings) -> pd.DataFrame:
    """Return what attacks.csv says of each attack: solver, variant, `eps` ([0, 1] units) or `confidence`."""
    rows = [
        ("FGSM", None, None, s.eps, math.nan),
        ("PGD", None, None, s.eps, math.nan),
        ("OPTBRITTLE", s.brittle_solver, None, math.nan, 0.0),
        ("OPTSTRONG", "adam", None, math.nan, s.confidence),
        ("OPTMARGIN", "ddn", "equations", s.view_eps, math.nan),
        ("OPTMARGIN-adam", "adam", "equations", s.view_eps, math.nan),
        ("OPTMARGIN-authors", "adam", "authors", s.view_eps, math.nan),
    ]
    return pd.DataFrame(rows, columns=["attack", "solver", "variant", "eps", "confidence"])


def targets(s: Settings, model: nn.Module, images: ImageSet) -> dict[str, Tensor]:
    """Return the classes (N,) that attacks on `images` are to reach, as the keyword `targets`; none for "off".

    "random": any class but the true one, drawn once for both models; "least-likely": that of the smallest logit.
    """
    if s.targeted == "off":
        return {}
    if s.targeted == "random":
        generator, classes = runtime.seeded(s.seed, "targets"), images.num_classes
        further = torch.randint(1, classes, images.y.shape, generator=generator)
        return {"targets": (images.y + further) % classes}
    z = runtime.logits(model, images.x).cpu()
    z[torch.arange(len(z)), images.y] = torch.inf  # never the true class
    return {"targets": z.argmin(1)}


def correct(networks: Networks, images: ImageSet) -> dict[str, Tensor]:
    """Return for each model which images (N,) bool it classifies correctly."""
    return {which: runtime.predict(model, images.x).cpu() == images.y for which, model in networks.items()}


def of_model(found: Mapping[Keys, Any], which: str) -> dict[str, Any]:
    """Return what is filed under (model, examples) for one model, by examples."""
    return {name: entry for (model, name), entry in found.items() if model == which}


def by_model(found: Mapping[Keys, Any]) -> dict[str, dict[str, Any]]:
    """Return what is filed under (model, examples) as model -> examples, both models always among the keys."""
    return {which: of_model(found, which) for which in MODELS}


def shown(results: Mapping[str, Attack], *, count: int | None = None, succeeded: bool = False) -> Tensor:
    """Return the positions of the first `count` images (None: all) that all attacks in `results` were given.

    Images that the model misclassified are left out and, with `succeeded`, those on which an attack failed. Where no
    image fulfils the conditions they are dropped, last one first, so that there is always an image to show.
    """
    common = min(map(len, results.values()))  # every attack is given the first images of the test set
    right = next(iter(results.values())).correct[:common]
    successes = torch.stack([attack.success[:common] for attack in results.values()]).all(0)
    conditions = [right & successes] * succeeded + [right, torch.ones_like(right)]
    return next(mask for mask in conditions if bool(mask.any())).nonzero().squeeze(1)[:count]


def warnings(s: Settings, networks: Networks, results: Results, images: ImageSet) -> pd.DataFrame:
    """Return one row for each sign of failure that an attack shows on its first 32 images.

    The signs are those of `attacks.failure_indicators`; PGD is run again with half and twice its budget, steps scaled
    alike. Columns: model, attack, indicator, share, n, what_to_do.
    """
    eps = about(s).set_index("attack").eps
    rows = []
    for (which, name), result in results.items():
        model, part = networks[which], images.first(min(len(result), INDICATED))
        aims = targets(s, model, part)
        options: dict[str, Any] = {"generator": runtime.seeded(s.seed, "indicators"), **aims}
        if name in ("FGSM", "PGD"):
            options["eps"] = float(eps[name])  # of others it is the size of a view, or there is none
        if name == "PGD":
            options["by_eps"] = {}
            for budget in _BUDGETS:  # from the same random start as the run's
                again: dict[str, Any] = {"generator": runtime.seeded(s.seed, "attack", name), **aims}
                options["by_eps"][budget * s.eps] = pgd(s, budget=budget)(model, part.x, part.y, **again)
        if name in OPTMARGINS:
            options |= {"views": view_offsets(s, name, images.in_shape), "clip_views": name != "OPTMARGIN-authors"}
        signs = kernels.failure_indicators(model, part.x, part.y, result.take(slice(len(part))), **options)
        rows += _signs(which, name, signs)
    return pd.DataFrame(rows, columns=_WARNINGS)


def _signs(which: str, name: str, signs: Iterable[kernels.Indicator]) -> list[tuple[Any, ...]]:
    """Return the signs of failure of one attack as rows of `warnings`."""
    return [(which, name, sign.name, sign.share, sign.n, sign.message) for sign in signs]


def flips(s: Settings, networks: Networks, results: Results, images: ImageSet) -> dict[Keys, Stability]:
    """Return which successes of every attack are undone by scoring them again: see `attacks.stability`."""
    found = {}
    for (which, name), result in results.items():
        model, part, success = networks[which], images.first(len(result)), result.success
        aims = {label: classes[success] for label, classes in targets(s, model, part).items()}
        found[which, name] = kernels.stability(model, result.x_adv[success], part.y[success], **aims)
    return found


def view_offsets(s: Settings, name: str, in_shape: tuple[int, ...]) -> Tensor:
    """Return the views (V, C, H, W) of the run's OPTMARGIN attack `name`, which are its first draw."""
    generator = runtime.seeded(s.seed, "attack", name)
    return draw_views(in_shape, eps=s.view_eps, views=s.views, generator=generator)


def demands(s: Settings, in_shape: tuple[int, ...]) -> list[tuple[str, float, str, Kernel]]:
    """Return OPTMARGIN (`ddn`) with growing demands: what grows, its value, a name, and the attack.

    Three curves run through the published demand: the number of views, their RMS ([0, 1] units), the confidence.
    """
    most = math.prod(in_shape) + 1
    counts = sorted({min(count, most) for count in (1, s.views // 4 or 1, s.views, 2 * s.views)})
    curves: list[tuple[str, str, Sequence[float]]] = [
        ("number of views", "views", counts),
        ("size of the views", "eps", [share * s.view_eps for share in (0.5, 1.0, 1.5, 2.0)]),
        ("confidence", "confidence", [share * s.confidence for share in (0.0, 0.05, 0.15, 0.4)]),
    ]
    options: dict[str, Any] = {"solver": "ddn", "steps": s.ddn_steps, "precision": s.precision}
    found: list[tuple[str, float, str, Kernel]] = []
    for curve, grows, values in curves:
        for value in values:
            demand: dict[str, Any] = {"views": s.views, "eps": s.view_eps, "confidence": 0.0, grows: value}
            name = "views-{views}_size-{eps:.4f}_confidence-{confidence:.4f}".format(**demand)
            found.append((curve, value, name, partial(kernels.optmargin, **demand, **options)))
    return found


# Region classification


def kept(s: Settings, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return for which images (N,) bool the true label `y` wins the vote of notebook 4."""
    generator = runtime.seeded(s.seed, "region")
    vote = region.classify(model, x, radius=s.radius, samples=s.samples, precision=s.precision, generator=generator)
    return vote.label.cpu() == y


def region_variants(s: Settings, dim: int) -> dict[str, dict[str, Any]]:
    """Return the vote varied in one thing at a time, the published one first: settings of `region.classify` by name.

    Radii are such that the expected RMS of an offset, before clipping, is that of the run's hypercube.
    """
    cube, plurality = region.SHAPES[0], region.COMBINATIONS[0]
    chosen = [(shape, plurality) for shape in region.SHAPES] + [(cube, way) for way in region.COMBINATIONS[1:]]
    found = {}
    for shape, way in chosen:
        radius = s.radius * (region.unit_rms(cube, dim) / region.unit_rms(shape, dim))
        found[f"{shape}-{way}"] = {"shape": shape, "combine": way, "radius": radius, "samples": s.samples}
    return found


def slice_through(s: Settings, model: nn.Module, attacked: Mapping[str, Attack], images: ImageSet) -> tuple[int, Slice]:
    """Return which image a slice is through, and the plane in which it and its OPTMARGIN and OPTBRITTLE lie.

    It is the image of OPTMARGIN's median distortion among those on which both succeeded. Where there is none, the
    first test image is in the middle of a plane of random directions.
    """
    brittle, margin = (attacked[name] for name in MAIN)
    both = (margin.success & brittle.success).nonzero().squeeze(1)
    if not len(both):
        return 0, plane(s, model, images.x[0], images.x[0], MAIN[1])
    row = int(both[margin.rms[both].argsort()[(len(both) - 1) // 2]])
    x, near = images.x[row], (brittle.x_adv[row] - images.x[row]).flatten()
    along = (margin.x_adv[row] - x).flatten()
    if float(torch.cosine_similarity(near, along, dim=0).abs()) > _PARALLEL:  # they span no plane
        return row, plane(s, model, x, margin.x_adv[row], MAIN[1])
    seen = plane(s, model, x, margin.x_adv[row], MAIN[1], third=near)
    place = torch.stack([(near @ way).div(len(near)) for way in (seen.u, seen.v)])
    return row, replace(seen, points={**seen.points, MAIN[0]: place})


def plane(s: Settings, model: nn.Module, x: Tensor, x_adv: Tensor, name: str, **options: Any) -> Slice:
    """Return the slice through `x` and `x_adv` (C, H, W), which reaches as far as the hypercube of the vote.

    `options` are those of `boundary.plane`: `third` and `size`.
    """
    length = float((x_adv - x).square().mean().sqrt())
    reach = max(s.radius, length)  # every point of a hypercube has an RMS of at most its radius
    generator = runtime.seeded(s.seed, "slice")
    seen = boundary.plane(model, x, x_adv, reach=reach, generator=generator, **options)
    return replace(seen, points=dict(zip((BENIGN, name), seen.points.values(), strict=False)))


# The boundary


def directions(s: Settings, in_shape: tuple[int, ...]) -> Tensor:
    """Return the run's directions (K, D), the same for all images and both models; drawn once, not to be written to."""
    dim = math.prod(in_shape)
    return _directions(dim, min(dim, 1000) if s.directions is None else s.directions, s.negate, s.seed)


@functools.lru_cache(maxsize=1)
def _directions(dim: int, count: int, negate: bool, seed: int) -> Tensor:
    return boundary.directions(dim, count, negate=negate, generator=runtime.seeded(seed, "directions"))


def versions(s: Settings, networks: Networks, attacked: Results, images: ImageSet) -> dict[Keys, tuple[Tensor, Tensor]]:
    """Return what is probed: the positions (N,) and images of every set of examples, empty sets left out.

    They are the first `boundary_n` of the attacked images, benign, that the model classifies correctly, the first
    `boundary_n` successes of every attack, and two controls:

    - `noise`: the benign images on which OPTMARGIN succeeded, moved in a random direction by the same RMS (`noisy`);
      those whose class changes are left out, since they are no longer benign;
    - `errors`: the first `boundary_n` of all test images that the model misclassifies.
    """
    found = {}
    for which, model in networks.items():
        right = runtime.predict(model, images.x).cpu() == images.y
        own = of_model(attacked, which)
        sets = {BENIGN: (right[: max(map(len, own.values()), default=s.n)], images.x)}
        sets |= {name: (attack.success, attack.x_adv) for name, attack in own.items()}
        sets["errors"] = ~right, images.x
        if margin := attacked.get((which, "OPTMARGIN")):
            x = noisy(images.x[: len(margin)], margin.rms, generator=runtime.seeded(s.seed, "noise"))
            sets["noise"] = margin.success & (runtime.predict(model, x).cpu() == images.y[: len(x)]), x
        for name, (chosen, x) in sets.items():
            index = chosen.nonzero().squeeze(1)[: s.boundary_n]
            if len(index):
                found[which, name] = index, x[index]
    return found


def noisy(x: Tensor, rms: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Return each image of `x` (N, C, H, W) moved in a random direction, clipped to [0, 1], at the distance `rms` (N,).

    See `moved`.
    """
    return moved(x, torch.randn(x.shape, generator=generator), rms)


def moved(x: Tensor, direction: Tensor, rms: Tensor) -> Tensor:
    """Return each image of `x` (N, C, H, W) moved along its `direction`, clipped to [0, 1], at the distance `rms` (N,).

    The step is chosen so that the RMS after clipping is `rms`. Where clipping does not allow as much in that direction,
    the image goes as far as it allows.
    """
    low, high = torch.zeros(len(x), 1, 1, 1), torch.full((len(x), 1, 1, 1), _FAR)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = ((x + middle * direction).clamp(0, 1) - x).square().flatten(1).mean(1).sqrt() < rms
        low, high = (
            torch.where(short.view(low.shape) == side, middle, end) for side, end in ((True, low), (False, high))
        )
    return (x + high * direction).clamp(0, 1)


def typical(profiles: Profiles, positions: Positions, names: Iterable[str], *, radius: float) -> dict[str, int]:
    """Return the row of one image in each of the sets of examples `names`; sets that are absent are left out.

    It is a typical image: the middle one by the share of its rays that end before radius / sqrt(3) around OPTMARGIN
    (where it is absent: around the first set), and among equal ones by the median ray. Where no image was probed in all
    sets, the last ones are dropped until one was; without any image the answer is empty.
    """
    names = [name for name in names if name in profiles]
    while names:
        common = sorted(set.intersection(*(set(positions[name].tolist()) for name in names)))
        if common:
            by = MAIN[1] if MAIN[1] in names else names[0]
            below = (profiles[by].distance < radius / math.sqrt(3)).double().mean(1).tolist()
            order = dict(zip(positions[by].tolist(), zip(below, ray_medians(profiles[by]), strict=True), strict=True))
            chosen = sorted(common, key=order.__getitem__)[(len(common) - 1) // 2]
            return {name: positions[name].tolist().index(chosen) for name in names}
        names.pop()
    return {}


def ray_medians(profile: Profile) -> NDArray[np.float64]:
    """Return the median distance (N,) of each image's rays, [0, 1] units; inf where half of them meet no boundary."""
    medians: NDArray[np.float64] = np.median(profile.distance.cpu().double().numpy(), axis=1)
    return medians


def clipped_rms(s: Settings, x: Tensor) -> float:
    """Return the mean RMS, [0, 1] units, of the points of the vote around the image `x` (C, H, W) after clipping."""
    generator = runtime.seeded(s.seed, "clipped")
    offsets = s.radius * (2 * torch.rand(max(s.samples, 1000), *x.shape, generator=generator) - 1)
    moved = (x + offsets).clamp(0, 1) - x
    return float(moved.square().flatten(1).mean(1).sqrt().mean())


# The detector


def folds(s: Settings, positions: Tensor) -> Tensor:
    """Return the fold (N,) int64, from 0 to `detector_folds` - 1, of images at these `positions` in the test set.

    It belongs to the image: all its versions are in one fold. The first n images are spread evenly, at random.
    """
    spread = torch.randperm(s.n, generator=runtime.seeded(s.seed, "detector folds"))
    return torch.where(positions < s.n, spread[positions.clamp(max=s.n - 1)], positions) % s.detector_folds


def judge(trained_on: str, fold: int, seed: int = 0) -> str:
    """Return the name under which the detector of a fold is stored, such as "OPTMARGIN-3"; further seeds follow it."""
    return f"{trained_on}-{fold}" + (f"-{seed}" if seed else "")


def trials(s: Settings, profiles: Profiles, positions: Positions) -> dict[str, tuple[Profile, Profile, Tensor]]:
    """Return what the detectors of one model are trained on: benign and adversarial profiles in pairs, and their folds.

    A pair are the two versions of an image. One entry for `all` attacks and those that `detector_on` names; an attack
    whose pairs are not in two folds at least is left out.
    """
    row = {int(position): i for i, position in enumerate(positions.get(BENIGN, ()))}
    pairs: dict[str, tuple[Profile, Profile, Tensor]] = {}
    for name in [name for name in profiles if name not in (BENIGN, *CONTROLS)]:
        seen = [i for i, position in enumerate(positions[name].tolist()) if position in row]
        at = positions[name][seen]
        if len(folds(s, at).unique()) > 1:
            originals = torch.tensor([row[int(position)] for position in at])
            pairs[name] = profiles[BENIGN].take(originals), profiles[name].take(torch.tensor(seen)), folds(s, at)
    if not pairs:
        return {}
    benign, adversarial, spread = zip(*pairs.values(), strict=True)
    chosen = {name: pair for name, pair in pairs.items() if s.detector_on == "every" or name in MAIN}
    return chosen | {"all": (Profile.cat(list(benign)), Profile.cat(list(adversarial)), torch.cat(spread))}


# Attacks on the defences


@dataclass(frozen=True)
class Defended:
    """The images of one model on which its defences are attacked, and what is known of each of the N images."""

    index: Tensor  # (N,), positions in the test set
    x: Tensor  # (N, C, H, W)
    y: Tensor  # (N,)
    fold: Tensor  # (N,), of which the detector judges the image
    budget: Tensor  # (N,): the RMS of the image's own OPTMARGIN, [0, 1] units; the mean where that failed
    start: Tensor  # (N, C, H, W): the image's own OPTMARGIN
    profile: Profile  # the boundary around the images
    detectors: list[Detector]  # one a fold; none where no attack succeeded on enough images
    thresholds: dict[float, Tensor]  # false-positive rate -> (N,) the score from which the image is flagged, or NaN


def defended(
    s: Settings,
    images: ImageSet,
    optmargin: Attack,
    profiles: tuple[Profile, Tensor],
    detectors: Sequence[Detector],
    thresholds: pd.DataFrame,
) -> Defended:
    """Return the first `adaptive_n` images that OPTMARGIN attacked and whose benign version was probed.

    `profiles`: of the benign versions, and their positions; `detectors`: of `all` attacks, one a fold; `thresholds`:
    the rows of thresholds.csv about the model.
    """
    profile, at = profiles
    rows = optmargin.correct[at].nonzero().squeeze(1)[: s.adaptive_n]
    index = at[rows]
    fold, success = folds(s, index), optmargin.success[index]
    rms = optmargin.rms[index]
    budget = torch.where(success, rms, rms[success].mean()) if success.any() else torch.full_like(rms, s.view_eps)
    chosen = thresholds[(thresholds.detector == "network") & (thresholds.trained_on == "all") & (thresholds.seed == 0)]
    known = {(row["target_fpr"], row["fold"]): float(row["threshold"]) for row in chosen.to_dict("records")}
    flags = {
        rate: torch.tensor([known.get((rate, int(each)), math.nan) for each in fold], dtype=torch.float64)
        for rate in TARGETS
    }
    known_of_each = images.x[index], images.y[index], fold, budget, optmargin.x_adv[index], profile.take(rows)
    return Defended(index, *known_of_each, [*detectors], flags)


def adaptive_attacks(s: Settings, given: Defended) -> dict[str, tuple[Kernel, dict[str, Any]]]:
    """Return the attacks on the defences by name: a kernel, and what it is given image by image.

    Each spends about `adaptive_passes` network evaluations on an image. "EOT-least" and the attacks with views look for
    the nearest image, the others for the best one within the budget or, after a number in the name, so many budgets.
    """
    seen = tuple(given.x.shape[1:])
    start = {"start": given.start}
    common: dict[str, Any] = {"precision": s.precision}
    vote = partial(adaptive.through_vote, radius=s.radius, steps=max(1, s.adaptive_passes // 32), points=16, **common)
    found: dict[str, tuple[Kernel, dict[str, Any]]] = {"EOT-least": (vote, {})}
    for share in (1.0, 0.75):
        found[_at("EOT", share)] = vote, {"budget": share * given.budget, **start}
    for name, offsets in adaptive_views(s, seen).items():
        steps = min(s.ddn_steps, max(1, s.adaptive_passes // (len(offsets) + 10)))
        found[f"views-{name}"] = partial(adaptive.through_views, offsets=offsets, steps=steps, **common), {}
    rays = min(32, max(4, s.adaptive_passes // 500))
    search: dict[str, Any] = {"directions": directions(s, seen), "magnitudes": s.magnitudes}
    search |= {"rays": rays, "steps": max(1, s.adaptive_passes // (24 * rays)), **common}
    if given.detectors:
        past = partial(adaptive.past_detector, detectors=given.detectors, **search)
        strict = given.thresholds[min(TARGETS)].nan_to_num(0.5)  # not known: as a detector is used without one
        aim = {"fold": given.fold, "threshold": strict, **start}
        for share in _SHARES:
            found[_at("selective", share)] = past, {"budget": share * given.budget, **aim}
        found["orthogonal"] = partial(past, rule="orthogonal"), {"budget": given.budget, **aim}
        found["selective-vote"] = partial(past, radius=s.radius), {"budget": given.budget, **aim}
    like = partial(adaptive.mimic, **search)
    return found | {"mimic": (like, {"profile": given.profile, "budget": given.budget, **start})}


def _at(name: str, share: float) -> str:
    """Return the name of an attack within `share` of the budget."""
    return name if share == 1 else f"{name}-{share:g}"


def judging(s: Settings, given: Defended, name: str) -> Callable[..., Judged]:
    """Return `adaptive.judge` with the run's defences, for the images of the attack `name`.

    Where the attack stepped on the detector's rays, the detector is asked along other directions too. The points of the
    vote are to be drawn from another seed than the attack's.
    """
    in_shape, secret = tuple(given.x.shape[1:]), None
    own = directions(s, in_shape)
    attack, _ = adaptive_attacks(s, given).get(name, (None, {}))
    if "directions" in getattr(attack, "keywords", {}):
        half, random = len(own) // (1 + s.negate), runtime.seeded(s.seed, "secret directions")
        secret = boundary.directions(math.prod(in_shape), half, negate=s.negate, generator=random)
    options: dict[str, Any] = {"radius": s.radius, "samples": s.samples, "precision": s.precision}
    options |= {"detectors": given.detectors, "magnitudes": s.magnitudes, "directions": own}
    return partial(adaptive.judge, secret=secret, **options)


def evaded(given: Defended, judged: Judged, rows: Tensor) -> dict[Evasion, Tensor]:
    """Return for each (defence, false-positive rate) on which images (n,) bool it was evaded; the rate is NaN for none.

    `rows` (n,): which of the given images `judged` is about. A detector whose threshold is not known is left out.
    """
    y = given.y[rows]
    point, vote = judged.point != y, judged.vote != y
    found = {("point", math.nan): point, VOTE: vote}
    scores = {"detector": judged.score, "detector, secret rays": judged.secret}
    for rate, every in given.thresholds.items():
        threshold = every[rows]
        for name, score in scores.items():
            if given.detectors and not threshold.isnan().any():
                found[name, rate] = point & (score < threshold)
                found[f"vote + {name}", rate] = vote & (score < threshold)
    return found


class Attempt(NamedTuple):
    """One attack on the defences of one model."""

    model: str
    attack: str
    source: str  # the model that the attack saw
    transfer: bool  # it knew nothing of the defences
    rows: Tensor  # (n,), which of the given images
    rms: Tensor  # (n,), [0, 1] units
    evaded: Mapping[Evasion, Tensor]  # (n,) bool each


def transferred(given: Defended, attack: Attack) -> tuple[Tensor, Attack]:
    """Return which of the given images `attack` was given too (n,), and its results on these."""
    rows = (given.index < len(attack)).nonzero().squeeze(1)
    return rows, attack.take(given.index[rows])


def tried(
    given: Defended, attacked: Mapping[str, Attack], aware: Mapping[str, Attack]
) -> list[tuple[str, bool, Tensor, Attack]]:
    """Return all attacks on one model: the name, whether it is transferred, which given images it had, its results.

    `attacked` are those of notebook 3, which know nothing of the defences, `aware` those that do. OPTMARGIN is there
    with other budgets too: its perturbation shortened or stretched, which takes no knowledge either.
    """
    parts = [(name, True, *transferred(given, attack)) for name, attack in attacked.items()]
    rows, attack = transferred(given, attacked["OPTMARGIN"])
    for share in _LENGTHS:
        x = given.x[rows]
        x_adv = (x + share * (attack.x_adv - x)).clamp(0, 1)
        moved = replace(attack, x_adv=x_adv, rms=(x_adv - x).square().flatten(1).mean(1).sqrt())
        parts.append((_at("OPTMARGIN", share), True, rows, moved))
    every = torch.arange(len(given.index))
    return [part for part in parts if len(part[2])] + [(name, False, every, each) for name, each in aware.items()]


def evasion_points(
    attempts: Sequence[Attempt], aware: Mapping[str, Attack]
) -> list[tuple[str, float | str, Attack, Tensor]]:
    """Return rows for `tables.evasion` on one model: EOT with parts of the budget."""
    shares = {"EOT-0.75": 0.75, "EOT": 1.0}
    known = {one.attack: ~one.evaded[VOTE] for one in attempts if VOTE in one.evaded}
    return [("EOT, in budgets", share, aware[name], known[name]) for name, share in shares.items() if name in known]


def adaptive_warnings(
    s: Settings, networks: Networks, every: Mapping[str, Defended], aware: Results, attempts: Sequence[Attempt]
) -> pd.DataFrame:
    """Return a row for each sign that an attack on a defence did not do what it could; none is what one wants.

    The signs of `attacks.failure_indicators`, on misclassification alone: an attack with a budget is compared to random
    signs of that RMS on the images that stayed right. And "transfer beats it", of each defence: images on which an
    attack that knows nothing of the defence succeeded within the budget and none that knows it did. Columns as
    `warnings`.
    """
    rows = []
    views = {which: adaptive_views(s, tuple(given.x.shape[1:])) for which, given in every.items()}
    for (which, name), attack in aware.items():
        given, model = every[which], networks[which]
        fooled = (runtime.predict(model, attack.x_adv).cpu() != given.y) & attack.correct
        options: dict[str, Any] = {"generator": runtime.seeded(s.seed, "indicators")}
        nearest = name.startswith("views-") or name.endswith("-least")
        options |= {"views": views[which][name.removeprefix("views-")]} if name.startswith("views-") else {}
        options |= {} if nearest else {"eps": float(given.budget.min())}
        judged = replace(attack, success=attack.success if "views" in options else fooled)
        signs = kernels.failure_indicators(model, given.x, given.y, judged, **options)
        rows += _signs(which, name, signs)
    for which, given in every.items():
        n = len(given.index)
        for (defence, rate), kinds in least_rms([one for one in attempts if one.model == which], n).items():
            if len(kinds) == 3 and defence in DEFENCES[1:]:  # both kinds, and all together
                within = {kind: values <= given.budget * (1 + 1e-4) for kind, values in kinds.items()}
                missed = int((within["transferred"] & ~within["adaptive"]).sum())
                message = f"on {missed} of {n} images only an attack that knows nothing of the defence succeeds; "
                message += "suspect masked gradients, raise adaptive_passes"
                said = defence if math.isnan(rate) else f"{defence} at {rate:g}"
                rows += [(which, said, "transfer beats it", missed / n, n, message)] * (missed > _MISSED * n)
    return pd.DataFrame(rows, columns=_WARNINGS)


def crossed(networks: Networks, every: Mapping[str, Defended], attacked: Results) -> list[Attempt]:
    """Return every attack on one model tried on the point classifier of the other."""
    found = []
    for (source, name), attack in attacked.items():
        for which, given in every.items():
            rows, part = transferred(given, attack)
            if which != source and len(rows):
                fooled = runtime.predict(networks[which], part.x_adv).cpu() != given.y[rows]
                evasions = {("point", math.nan): fooled}
                found.append(Attempt(which, name, source, True, rows, part.rms, evasions))
    return found


def least_rms(attempts: Iterable[Attempt], images: int) -> dict[Evasion, dict[str, Tensor]]:
    """Return for each defence the RMS (N,) of the nearest of each image's versions that evaded it, inf where none did.

    By kind of attack: "transferred", "adaptive" and "all"; [0, 1] units.
    """
    found: dict[Evasion, dict[str, Tensor]] = {}
    for attempt in attempts:
        for key, evaded in attempt.evaded.items():
            kinds = found.setdefault(key, {})
            for kind in ("transferred" if attempt.transfer else "adaptive", "all"):
                least = kinds.setdefault(kind, torch.full((images,), torch.inf))
                own = torch.where(evaded, attempt.rms, torch.inf)
                kinds[kind] = least.index_put((attempt.rows,), torch.minimum(least[attempt.rows], own))
    return found


def adaptive_views(s: Settings, in_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return views (V, C, H, W) for OPTMARGIN, the image itself among them.

    "hypercube": points of the vote; "large": up to twice as many as in notebook 3, and half as large again; "rays":
    along directions of the detector.
    """
    seed, dim = runtime.seeded(s.seed, "adaptive views"), math.prod(in_shape)
    most = min(s.views, dim + 1) - 1
    zero = torch.zeros(1, *in_shape)
    points = s.radius * region.draw("hypercube", most, zero, seed).view(-1, *in_shape)
    every = directions(s, in_shape)
    chosen = every[torch.randperm(len(every), generator=seed)[:most]]
    large = draw_views(in_shape, eps=1.5 * s.view_eps, views=min(2 * s.views, dim + 1), generator=seed)
    found = {"hypercube": torch.cat((points, zero)), "large": large}
    return found | {"rays": torch.cat((s.view_eps * chosen.view(-1, *in_shape), zero))}


# One image


def distorted(x: Tensor, lengths: Sequence[float], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Return the image `x` changed in four ways, each by the same lengths.

    Random noise and random signs (of which every pixel moves by the same length, as in one step of FGSM) are drawn
    once and scaled; a constant is added; and the pixels of a square in the middle move towards the other end of
    [0, 1]. Each is scaled so that its RMS after clipping is the length, as far as clipping allows it.

    Parameters
    ----------
    x : Tensor (C, H, W) float32
        In [0, 1].
    lengths : sequence of M floats
        RMS after clipping, [0, 1] units, > 0.
    generator : torch.Generator, optional
        On the CPU; None takes torch's global one.

    Returns
    -------
    dict
        Kind of distortion -> (M, C, H, W), clipped to [0, 1].

    Raises
    ------
    ValueError
        For an image out of range or a length that is not above 0.
    """
    checks.images(x[None])
    for length in lengths:
        checks.number(length, name="length", open_low=True)
    x = x.cpu()
    noise = torch.randn(x.shape, generator=generator)
    signs = 2.0 * torch.randint(2, x.shape, generator=generator) - 1
    square = torch.zeros_like(x)
    middle = [(length // 2 - max(1, length // _SQUARE) // 2, max(1, length // _SQUARE)) for length in x.shape[1:]]
    rows, columns = (slice(first, first + count) for first, count in middle)
    square[:, rows, columns] = 1
    kinds = {
        "random noise": noise,
        "random signs": signs,
        "a constant": torch.ones_like(x),
        "a square": square * torch.where(x < 0.5, 1.0, -1.0),
    }
    every = x.expand(len(lengths), *x.shape)
    return {kind: moved(every, change, torch.tensor(list(lengths))) for kind, change in kinds.items()}
