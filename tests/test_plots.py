"""The figures: what is drawn equals a slow computation, nothing is cut off, and no global state changes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.collections import PolyCollection
from matplotlib.colors import same_color, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.text import Text

from nbsupport import claims, files, intervals, plots
from nbsupport.boundary import Profile, Slice, Trace
from nbsupport.plots import schematic, style
from nbsupport.plots.style import PALETTE

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ATTACKS = ("OPTMARGIN", "FGSM", "OPTBRITTLE", "OPTMARGIN-authors")
RNG = np.random.default_rng(7)
GREY = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(1))
RGB = GREY.repeat(1, 3, 1, 1)
LABELS = torch.arange(40) % 10
X_ADV = {name: (GREY + 0.03 * (i + 1)).clamp(0, 1) for i, name in enumerate(ATTACKS)}
AFTER = dict.fromkeys(ATTACKS, (LABELS + 1) % 10) | {"FGSM": LABELS}
DISTANCE = torch.from_numpy(RNG.uniform(0.05, 1.0, (9, 20)))
DISTANCE[DISTANCE > 0.6] = torch.inf
DISTANCES = {
    "normal": {"benign": DISTANCE, "FGSM": DISTANCE / 2},
    "pgd": {"benign": DISTANCE, "PGD": torch.empty(0, 20)},
}
GRID = torch.linspace(0, 1, 21)
PURITY = torch.from_numpy(np.sort(RNG.uniform(0.3, 1.0, (12, 3)), axis=1))
ADJACENT = torch.where(DISTANCE[:1].isfinite(), torch.arange(20)[None] % 3 + 4, -1)
INSTANCE = Profile(torch.tensor([3]), DISTANCE[:1], ADJACENT, DISTANCE[:1].isfinite())
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3, 4],
        "loss": [2.0, 1.0, 0.5, 0.4],
        "benign_accuracy": [0.5, 0.8, 0.9, 0.95],
        "pgd_accuracy": [np.nan, 0.2, 0.3, 0.35],
    }
)
OFFSETS = np.linspace(-0.5, 0.5, 41)
PIXELS = torch.eye(36)[[3, 8]].double()
PLANE = torch.linalg.qr(torch.from_numpy(RNG.normal(size=(36, 2))))[0].T * 6
REGIONS = np.where(OFFSETS[None, :] + 0 * OFFSETS[:, None] > 0.05, 1, 0)


def claim(number: int, model: str, examples: str, statistic: float, verdict: str, n: int = 98, **changes: Any) -> Any:
    """A row of claims.csv."""
    row = {"claim": number, "model": model, "examples": examples, "statistic": statistic, "threshold": 0.5, "n": n}
    row |= {"verdict": verdict, "verdict_holm": verdict, "by_construction": np.nan, "decides": True, **changes}
    return pd.DataFrame([row], columns=list(claims.COLUMNS))


SURE = {"by_construction": "a reason", "decides": False}
CLAIMS = pd.concat(
    [
        claim(1, "normal", "OPTMARGIN", 0.99, "holds", verdict_holm="undecided"),
        claim(1, "pgd", "OPTMARGIN", 0.8, "fails", n=97),
        claim(2, "normal", "OPTMARGIN", 0.25, "holds", **SURE),
        claim(5, "normal", "FGSM - OPTMARGIN", -0.001, "undecided"),
        claim(5, "normal", "FGSM - OPTMARGIN", 0.3, "holds", decides=False),
        claim(5, "pgd", "PGD - OPTMARGIN", np.nan, "undecided", n=0),
        claim(7, "pgd", "PGD", 0.9, "holds", n=55),
        claim(7, "pgd", "PGD", 0.2, "fails", n=44),
        claim(7, "pgd", "OPTBRITTLE", 1.0, "holds", n=40, **SURE),
        claim(7, "pgd", "OPTBRITTLE", 0.4, "undecided", n=39),
        claim(8, "normal", "all", 0.95, "holds", n=90),
        claim(10, "pgd", "minimum", 0.1, "fails", n=9876),
    ],
    ignore_index=True,
)


def region_table() -> pd.DataFrame:
    rows = []
    for model in ("normal", "pgd"):
        for name, point, region in (("FGSM", 0.25, 0.5), ("benign", 1.0, 0.95)):
            rate = intervals.wilson(round(40 * region), 40)
            rows.append((model, name, 40, point, rate.value, rate.low, rate.high, 0.15, 100))
    needed = "model examples n point_accuracy region_accuracy region_low region_high radius samples"
    return pd.DataFrame(rows, columns=needed.split())


def detector_table() -> pd.DataFrame:
    """Two detectors of each model, tested on PGD and on noise; that of FGSM on FGSM too."""
    rows = []
    for model in ("normal", "pgd"):
        for trained, tested in (("FGSM", "FGSM"), ("FGSM", "PGD"), ("FGSM", "noise"), ("all", "PGD"), ("all", "noise")):
            row: dict[str, Any] = {"model": model, "trained_on": trained, "tested_on": tested, "target_fpr": 0.05}
            row |= {"n_benign": 40, "n_adversarial": {"PGD": 38, "noise": 0}.get(tested, 40)}
            for rate, wrong in (("false_positive_rate", 8 if tested == "noise" else 4), ("false_negative_rate", 30)):
                measured = intervals.wilson(wrong, 0 if tested == "noise" and wrong == 30 else 40)
                row |= {rate: measured.value, f"{rate}_low": measured.low, f"{rate}_high": measured.high}
            rows.append(row)
    return pd.DataFrame(rows)


def folds(benign: Sequence[float], adversarial: Sequence[float]) -> intervals.Folds:
    """The scores of images that are all different, in one fold."""
    scores, wrong = np.array([[*benign, *adversarial]]), np.arange(len(benign) + len(adversarial)) >= len(benign)
    return intervals.Folds(scores, wrong, np.zeros(len(wrong), dtype=int), np.arange(len(wrong)))


def montage(**changes: Any) -> Figure:
    return plots.montage(**{"images": GREY, "labels": LABELS, "classes": CLASSES, **changes})


def training(histories: dict[str, pd.DataFrame], n_validation: int = 50) -> Figure:
    return plots.training_curves(histories, n_validation=n_validation, best=dict.fromkeys(histories, 3))


def attack_grid(**changes: Any) -> Figure:
    few = {"before": LABELS[:2], "after": {name: y[:2] for name, y in AFTER.items()}, "classes": CLASSES}
    few |= {"x": GREY[:2], "adversarial": {name: x[:2] for name, x in X_ADV.items()}}
    return plots.attack_grid(**{**few, **changes})


def variants(**changes: Any) -> Figure:
    known = {"x": GREY, "variants": X_ADV, "before": LABELS, "after": AFTER, "classes": CLASSES}
    return plots.variants_side_by_side(
        **{**known, "region_accuracy": {"OPTMARGIN": intervals.wilson(3, 40)}, **changes}
    )


def instance(**changes: Any) -> Figure:
    known = {"instances": {"benign": INSTANCE, "FGSM": INSTANCE}, "classes": CLASSES, "radius": 0.15, "last": 0.6}
    return plots.instance_boundary(**{**known, "clipped_rms": {"FGSM": 0.0712}, **changes})


def a_slice(**changes: Any) -> Figure:
    plane: dict[str, Any] = {"labels": REGIONS, "across": OFFSETS, "up": OFFSETS, "u": 6 * PIXELS[0]}
    plane |= {"v": 6 * PIXELS[1]}  # RMS 1, as those of `boundary.plane`
    plane |= {"points": {"FGSM": (0.1, 0.2)}}
    plane |= {name: changes.pop(name) for name in plane.keys() & changes.keys()}
    return plots.slice_figure(Slice(**plane), **{"radius": 0.15, "classes": CLASSES, **changes})


def version(image: torch.Tensor, **changes: Any) -> plots.Version:
    counts = torch.tensor([0, 0, 12, 80, 0, 0, 0, 0, 0, 8])
    known = {"label": 3, "counts": counts, "share": (0.7, 0.87), "profile": INSTANCE, "purity": PURITY[0], "score": 0.3}
    return plots.Version(image, **{**known, **changes})


NOTHING = dict.fromkeys(("label", "counts", "share", "profile", "purity", "score"))


def panels(original: plots.Version, adversarial: plots.Version, **changes: Any) -> Figure:
    known = {"name": "OPTMARGIN-authors", "title": "Test image 7", "classes": CLASSES, "radius": 0.15, "last": 0.6}
    return plots.instance_panels(original, adversarial, **{**known, **changes})


def views(**changes: Any) -> Figure:
    known: dict[str, Any] = {"u": PLANE[0], "v": PLANE[1], "points": {"benign": (0, 0), "OPTMARGIN-authors": (0.3, 0)}}
    known |= {"around": ["OPTMARGIN-authors"], "views": [(0.31, 0.0), (0.29, 0.01), (0.3, 0.2)]}
    return a_slice(**{**known, "view_labels": [1, 1, 4], **changes})


COUNTS = torch.tensor([0, 0, 0, 40, 0, 0, 0, 0, 0, 0])


def live(counts: Any = COUNTS, profile: Any = INSTANCE, **changes: Any) -> Figure:
    known = {"logits": np.eye(10)[3] * 9, "title": "share 0.5, RMS 0.0217", "classes": CLASSES, "radius": 0.15}
    image = changes.pop("image", GREY[0])
    version = plots.Version(image, counts=counts, share=(0.9, 1.0), profile=profile)
    return plots.live_panels(version, **{**known, "last": 0.6, **changes})


def accuracy(**changes: Any) -> Figure:
    rates = {"normal": [intervals.wilson(n, 40) for n in (40, 20, 0)]}
    rates["pgd"] = [intervals.wilson(n, m) for n, m in ((39, 40), (0, 0), (20, 38))]
    known = {"x": [0.0, 0.1, 0.2], "rates": rates, "xlabel": "eps of PGD", "title": "Accuracy", "marks": {"eps": 0.15}}
    return plots.accuracy_curve(**{**known, **changes})


def purity(sets: dict[str, Any]) -> Figure:
    """The purity of sets whose rows are about the images 0, 1, 2, ..."""
    return plots.purity_curves({"normal": sets}, {"normal": {name: range(len(each)) for name, each in sets.items()}})


BAND = np.quantile(np.sort(DISTANCE.numpy(), 1), [0.1, 0.5, 0.9], axis=0, method="higher")

FIGURES: dict[str, Callable[[], Figure]] = {
    "montage": montage,
    "montage_rgb": lambda: montage(images=RGB),
    "class_counts": lambda: plots.class_counts(LABELS, LABELS[:20], CLASSES),
    "pixel_values": lambda: plots.pixel_values(GREY, GREY[:5]),
    "pixel_values_rgb": lambda: plots.pixel_values(RGB, RGB[:5], pixel_max=255),
    "rms_examples": lambda: plots.rms_examples(GREY[0], {"sign noise": X_ADV["FGSM"][:4], "one pixel": GREY[:2]}),
    "training_curves": lambda: training({"normal": HISTORY, "pgd": HISTORY}),
    "attack_grid": attack_grid,
    "attack_grid_rgb": lambda: attack_grid(x=RGB[:2], adversarial={"FGSM": RGB[2:4]}),
    "attack_grid_bare": lambda: plots.attack_grid(GREY[:1], {"OPTMARGIN": X_ADV["OPTMARGIN"][:1]}, classes=CLASSES),
    "variants": variants,
    "accuracy_curve": accuracy,
    "distortion": lambda: plots.distortion_distribution({"normal": {"FGSM": [0.1, 0.3, 0.2]}, "pgd": {"PGD": []}}),
    "slice": a_slice,
    "slice_plane": lambda: a_slice(u=PLANE[0], v=PLANE[1], points={}, pixel_max=255),
    "region_accuracy": lambda: plots.region_accuracy(region_table()),
    "distance_curves": lambda: plots.distance_curves(DISTANCES, last=0.6, bootstrap=20, pixel_max=255),
    "distance_curves_one": lambda: plots.distance_curves({"normal": DISTANCES["normal"]}, last=0.6),
    "margins": lambda: plots.margins(
        {name: Trace(GRID, 1 - GRID / 0.6, torch.tensor([0, 19, 14, 13])) for name in ("benign", "OPTMARGIN")}
    ),
    "purity_curves": lambda: purity({"benign": PURITY, "errors": PURITY[:0], "FGSM": PURITY[:1]}),
    "instance": instance,
    "instance_three": lambda: instance(
        instances=dict.fromkeys(("benign", "OPTBRITTLE", "OPTMARGIN-authors"), INSTANCE)
    ),
    "panels": lambda: panels(version(GREY[0]), version(X_ADV["FGSM"][0], score=0.97)),
    "panels_rgb": lambda: panels(version(RGB[0]), version(RGB[1]), pixel_max=255),
    "panels_band": lambda: panels(version(GREY[0]), version(X_ADV["FGSM"][0], score=0.97), band=BAND, pixel_max=255),
    "views": views,
    "views_many_classes": lambda: views(labels=np.arange(41 * 41).reshape(41, 41) // 169, pixel_max=255),
    "views_one_point": lambda: views(points={"benign": (0, 0)}, around=None, axes=("change", "a view of OPTMARGIN")),
    "live": lambda: live(pixel_max=255),
    "live_begins": lambda: live(image=RGB[0], counts=None, profile=None),
    "panels_no_change": lambda: panels(version(GREY[0], score=None), version(GREY[0], **NOTHING)),
    "panels_half": lambda: panels(version(GREY[0]), version(GREY[1], profile=None, purity=None), band=BAND),
    "panels_votes_only": lambda: panels(*(version(x, profile=None, purity=None, score=None) for x in GREY[:2])),
    "panels_nothing_stored": lambda: panels(
        version(GREY[0], **NOTHING), version(GREY[1], **NOTHING), absent={"votes": "the vote is missing; " * 4}
    ),
    "detector_training": lambda: plots.detector_training({"FGSM": np.linspace(0.7, 0.1, 60), "all": [0.6, 0.5]}),
    "error_rates": lambda: plots.error_rates(detector_table()),
    "roc": lambda: plots.roc({"FGSM": folds([0.1, 0.4, 0.6], [0.5, 0.9]), "PGD": folds([0.2], [])}),
    "claims": lambda: plots.claims_overview(CLAIMS),
    "claims_all": lambda: plots.claims_overview(every_claim()),
    "claims_one": lambda: plots.claims_overview(CLAIMS[:1]),
    "nothing": lambda: plots.nothing_to_show("no image was left to draw on any of the two models, " * 3),
    "decision_regions": plots.decision_regions,
    "evasion_cost": lambda: plots.evasion_cost(evasion()),
    "detector_architecture": plots.detector_architecture,
}


def texts(fig: Figure) -> str:
    return "\n".join(text.get_text() for text in fig.findobj(Text))


def pixels(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="raw")
    return buffer.getvalue()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_whole_and_readable_and_leaves_no_trace(name: str) -> None:
    before = dict(matplotlib.rcParams)
    fig = FIGURES[name]()
    assert isinstance(fig, Figure)
    fig.draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    width, height = fig.get_size_inches()
    assert 6 <= width <= 10
    drawn = fig.get_tightbbox().padded(-1e-6)
    assert drawn.x0 >= 0, "cut off on the left"
    assert drawn.y0 >= 0, "cut off below"
    assert drawn.x1 <= width, "cut off on the right"
    assert drawn.y1 <= height, "cut off above"
    written = [artist for ax in fig.axes for artist in (ax.xaxis.label, ax.yaxis.label, ax.title, ax.get_legend())]
    written += [artist for part in (fig, *fig.subfigs) for artist in (*part.texts, *part.legends)]
    boxes = [(artist.get_window_extent(), artist) for artist in written if artist is not None]
    for i, (box, artist) in enumerate(boxes):
        for other, neighbour in boxes[:i]:
            empty = not box.width or not other.width
            assert empty or not box.padded(-0.5).overlaps(other), f"{artist} overlaps {neighbour}"
    assert min(text.get_fontsize() for text in fig.findobj(Text) if text.get_text()) >= 9


@pytest.mark.parametrize("name", ["attack_grid", "slice", "distance_curves_one", "roc"])
def test_a_figure_is_the_same_again_and_in_any_style_of_the_reader(name: str) -> None:
    first = pixels(FIGURES[name]())
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "xtick.labelsize": 30, "axes.grid": False}):
        assert pixels(FIGURES[name]()) == first


def test_a_figure_shows_in_a_notebook_without_pyplots_backend_and_saves_as_pdf() -> None:
    fig = plots.detector_architecture()
    formatter = DisplayFormatter()
    formatter.active_types = ["image/png"]
    shown, _ = formatter.format(fig)
    assert shown["image/png"].startswith(b"\x89PNG")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="pdf")
    assert buffer.getvalue().startswith(b"%PDF")


def test_a_figure_is_drawn_once_for_the_notebook_and_the_file_and_again_after_a_change(tmp_path: Path) -> None:
    drawings = []

    class Counted(style.Picture):
        def draw(self, renderer: Any) -> None:
            drawings.append(renderer)
            super().draw(renderer)

    fig = Counted(layout="constrained")
    ax = fig.subplots()
    shown, size = fig._repr_png_()
    once = len(drawings)
    files.write_figure(tmp_path / "a.png", fig)
    assert len(drawings) == once
    assert (tmp_path / "a.png").read_bytes() == shown
    assert size["width"] == pytest.approx(plt.imread(io.BytesIO(shown)).shape[1] * 100 / 150, abs=1)
    ax.plot([0, 1])
    files.write_figure(tmp_path / "a.png", fig)
    assert len(drawings) == 2 * once
    assert (tmp_path / "a.png").read_bytes() != shown


def test_colours_are_distinct_and_fixed() -> None:
    assert len({to_rgba(colour) for colour in plots.EXAMPLES.values()}) == len(plots.EXAMPLES)
    assert plots.examples_colour("mine") == plots.examples_colour("mine")
    assert plots.examples_colour("mine") in PALETTE
    colours = plots.class_colours(30)
    assert all(same_color(colour, want) for colour, want in zip(colours, style.CLASSES, strict=False))
    assert style.GREY not in style.CLASSES  # the colour of what was not reached
    assert [same_color(colour, style.BLACK) for colour in plots.class_colours(4, true=2)] == [False, False, True, False]
    assert len(set(colours)) == 30
    pairs = {(colour, style.MARKERS[i % len(style.MARKERS)]) for i, colour in enumerate(plots.class_colours(50))}
    assert len(pairs) == 50
    assert style.in_order(["mine", "FGSM", "benign"]) == ["benign", "FGSM", "mine"]


def test_montage_puts_the_first_images_of_a_class_in_its_row() -> None:
    fig = montage()  # four images a class: the other places stay white
    canvas = np.asarray(fig.axes[0].images[0].get_array())
    assert canvas.shape == (10 * 7 - 1, 16 * 7 - 1)  # 6 pixels and a gap of one
    np.testing.assert_array_equal(canvas[21:27, 7:13], GREY[13, 0].double())  # the second image of class 3
    assert (canvas[:, 28:] == 1).all()
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [f"{name}  (n=4)" for name in CLASSES]


def test_class_counts_and_pixel_values_count() -> None:
    fig = plots.class_counts(LABELS[:15], LABELS, CLASSES)
    assert [[bar.get_width() for bar in ax.patches] for ax in fig.axes] == [[2] * 5 + [1] * 5, [4] * 10]
    assert [ax.get_title() for ax in fig.axes] == ["training set, n=15", "test set, n=40"]
    black = GREY * (GREY > 0.3)
    fig = plots.pixel_values(black, black[:5], pixel_max=255)
    for steps, x in zip(fig.axes[0].lines, (black, black[:5]), strict=True):
        for at, share in zip(*steps.get_data(), strict=True):
            assert share in (0, pytest.approx(float((255 * x <= at + 1e-4).double().mean())))
        assert (
            f"n={len(x)} images, mean {255 * x.mean():.3g}\n{(x == 0).double().mean():.0%} are 0" in steps.get_label()
        )
    assert "pixels in [0, 255]" in fig.axes[0].get_xlabel()


def test_captions_carry_the_measured_rms_and_the_labels() -> None:
    shown = texts(plots.rms_examples(GREY[0], {"brighter": (GREY[:1] * 0 + GREY[0]) * 0.5}, pixel_max=255))
    assert f"{255 * (GREY[0] / 2).square().mean().sqrt():.3g}" in shown
    assert "pixels in [0, 255]" in shown
    fig = attack_grid()
    shown = texts(fig)
    for name in ("FGSM", "OPTBRITTLE"):
        rms = (X_ADV[name][0] - GREY[0]).square().mean().sqrt()
        assert f"\N{RIGHTWARDS ARROW} {CLASSES[int(AFTER[name][0])]}\nRMS {rms:.3g}" in shown
    assert len(fig.axes[0].images) == 2 * (1 + 4)  # two images: the original, four results
    unchanged = [text for text in fig.findobj(Text) if f"\N{RIGHTWARDS ARROW} {CLASSES[0]}" in text.get_text()]
    assert len(unchanged) == 1
    assert unchanged[0].get_color() == "0.5"


def test_a_bare_grid_states_distortion_only() -> None:
    fig = plots.attack_grid(GREY[:1], {"OPTMARGIN": X_ADV["OPTMARGIN"][:1]}, classes=CLASSES)
    rms = (X_ADV["OPTMARGIN"][0] - GREY[0]).square().mean().sqrt()
    assert [text.get_text() for text in fig.axes[0].texts][-3:] == ["image 1", "original", f"RMS {rms:.3g}"]
    shown = texts(plots.attack_grid(GREY[:2], {"mine": GREY[2:4]}, before=LABELS[:2], after={"mine": LABELS[2:4]}))
    assert "0\noriginal" in shown
    assert "\N{RIGHTWARDS ARROW} 3\nRMS" in shown


def test_variants_state_the_mean_over_all_images_and_show_the_differences_of_the_first() -> None:
    fig = variants()
    shown = texts(fig)
    mean = intervals.mean((X_ADV["OPTMARGIN"] - GREY).square().mean((1, 2, 3)).sqrt().double())
    assert f"mean RMS {mean.value:.3g}\n[{mean.low:.3g}, {mean.high:.3g}], n=40" in shown
    assert "region accuracy\n8 % [3, 20], n=40" in shown
    assert "the difference x 2" in shown  # twice the largest RMS, .2, would leave the scale at 5
    images = [image.get_array() for image in fig.axes[0].images]
    assert len(images) == 4 + 4 * 8  # the originals; of each variant four results and their differences
    wanted = 0.5 + 0.5 * (2 * (X_ADV["FGSM"][0, 0].double() - GREY[0, 0].double())).clamp(-1, 1)  # FGSM comes first
    np.testing.assert_allclose(images[8], wanted)


def test_training_curves_draw_the_history() -> None:
    fig = training({"normal": HISTORY})
    upper, lower = fig.axes
    benign, under_pgd, kept = upper.lines
    np.testing.assert_array_equal(benign.get_ydata(), HISTORY["benign_accuracy"])
    np.testing.assert_array_equal(under_pgd.get_xdata(), [2, 3, 4])  # the first epoch was not measured
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), HISTORY["loss"])
    assert list(kept.get_xdata()) == [3, 3]
    assert "n=50, 95 % interval" in upper.get_ylabel()
    edges = upper.collections[0].get_paths()[0].vertices[:, 1]
    assert intervals.wilson(25, 50).low == pytest.approx(edges.min())
    assert lower.get_ylim()[0] == 0


def test_distortion_has_a_point_for_each_image() -> None:
    values = [0.1, 0.4, 0.2]
    fig = plots.distortion_distribution({"normal": {"FGSM": values}, "pgd": {"FGSM": [], "PGD": [0.3]}}, pixel_max=255)
    points, quartiles, median = fig.axes[0].lines
    np.testing.assert_allclose(points.get_xdata(), np.multiply(values, 255))
    np.testing.assert_allclose(quartiles.get_xdata(), [255 * 0.15, 255 * 0.3])
    np.testing.assert_allclose(median.get_xdata(), [255 * 0.2])
    labels = [[label.get_text() for label in ax.get_yticklabels()] for ax in fig.axes]
    assert labels == [["FGSM\nn=3", "PGD\nn=0"], ["FGSM\nn=0", "PGD\nn=1"]]
    assert "pixels in [0, 255]" in fig.axes[0].get_xlabel()


def test_outline_is_a_square_for_two_pixels_and_exact_in_any_plane() -> None:
    square = plots.hypercube_outline(PIXELS[0], PIXELS[1], 0.3)
    np.testing.assert_allclose(np.abs(square), 0.3)
    assert len(square) == 4
    corners = plots.hypercube_outline(PLANE[0], PLANE[1], 0.3)
    u, v = PLANE.numpy()
    reach = np.abs(corners @ np.stack([u, v]))  # every corner: two pixels at the limit, none beyond
    np.testing.assert_allclose(reach.max(1), 0.3)
    assert (np.sum(reach > 0.3 - 1e-9, axis=1) == 2).all()
    x, y = corners.T
    area = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    side = np.abs(corners).max()
    a, b = RNG.uniform(-side, side, (2, 40000))
    share = (np.abs(np.outer(a, u) + np.outer(b, v)).max(1) <= 0.3).mean()
    deviation = np.sqrt(share * (1 - share) / 40000)
    assert abs(area / (2 * side) ** 2 - share) < 5 * deviation


def test_slice_shows_regions_outline_and_points_in_the_units_of_the_set() -> None:
    fig = a_slice(pixel_max=255, points={"benign": (0, 0), "FGSM": (0.1, 0.2)}, around=["benign"])
    ax = fig.axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), REGIONS)
    assert ax.images[0].get_extent() == pytest.approx([-255 * 0.5125, 255 * 0.5125] * 2)
    (outline,) = [patch for patch in ax.patches if isinstance(patch, Polygon)]
    assert outline.get_xy()[:, 0].max() == pytest.approx(255 * 0.15 / 6)
    np.testing.assert_allclose(np.ravel(ax.lines[1].get_data()), [25.5, 51.0])
    assert same_color(ax.lines[1].get_color(), plots.EXAMPLES["FGSM"])
    assert ax.get_xlabel() == "change by the attack, RMS (pixels in [0, 255])"
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend == ["airplane", "automobile", "benign", "FGSM", "around benign"]
    assert "hypercube around" not in texts(a_slice(around=[]))
    voted = texts(a_slice(votes={"FGSM": intervals.wilson(3, 40)}, true=0))
    assert "around FGSM\ntrue class: 8 % [3, 20] of n=40 votes" in voted


def test_the_boundary_of_a_slice_is_a_line_and_the_true_class_grey() -> None:
    (lines,) = {
        tuple(np.unique(path.vertices[:, 0])) for one in a_slice().axes[0].collections for path in one.get_paths()
    }
    assert lines == pytest.approx([0.0375])  # in the middle between the offsets .025 and .05
    patches = a_slice(true=1).legends[0].get_patches()
    assert same_color(patches[1].get_facecolor(), style.blend(style.BLACK, 1.0, 0.8))
    assert same_color(patches[0].get_facecolor(), style.blend(style.CLASSES[0], 1.0, 0.45))


def test_slice_centres_the_outline_on_the_named_point() -> None:
    fig = a_slice(u=PLANE[0], v=PLANE[1])
    ax = fig.axes[0]
    (outline,) = [patch for patch in ax.patches if isinstance(patch, Polygon)]
    corners = plots.hypercube_outline(PLANE[0], PLANE[1], 0.15) + np.array([0.1, 0.2])
    np.testing.assert_allclose(outline.get_xy()[:-1], corners)
    assert "RMS (pixels in [0, 1])" in ax.get_ylabel()


def test_region_accuracy_has_both_classifiers_with_intervals() -> None:
    fig = plots.region_accuracy(region_table(), pixel_max=255)
    ax = fig.axes[0]
    assert [bar.get_width() for bar in ax.patches] == [1.0, 0.25, 0.95, 0.5]  # point, then region; benign first
    ends = [segment[:, 0] for bars in ax.collections for segment in bars.get_segments()]
    rates = [intervals.wilson(n, 40) for n in (40, 10, 38, 20)]
    np.testing.assert_allclose(ends, [(rate.low, rate.high) for rate in rates])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["benign\nn=40", "FGSM\nn=40"]
    assert "Hypercubes of radius 0.15 (pixels in [0, 255]), 100 samples; Wilson 95 %" in texts(fig).replace("\n", " ")


def test_distance_curves_are_the_mean_of_capped_sorted_distances_and_dashed_where_rare() -> None:
    fig = plots.distance_curves(DISTANCES, last=0.6, pixel_max=255)
    want, reached = [], []
    for rank in range(20):
        capped = [min(sorted(row)[rank], 0.6) for row in DISTANCE.tolist()]
        want.append(255 * sum(capped) / len(capped))
        reached.append(sum(sorted(row)[rank] < np.inf for row in DISTANCE.tolist()) / len(DISTANCE))
    first = next(rank for rank in range(20) if reached[rank] < 0.5)
    solid, dashed = fig.axes[0].lines[:2]
    np.testing.assert_allclose(solid.get_ydata(), want[: first + 1])
    np.testing.assert_allclose(dashed.get_ydata(), want[first:])
    assert dashed.get_xdata()[0] == first + 1  # ranks count from 1
    assert dashed.is_dashed()
    assert not solid.is_dashed()
    legends = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in fig.axes]
    assert legends == [["benign, n=9", "FGSM, n=9"], ["benign, n=9", "PGD, n=0"]]
    assert [ax.get_title() for ax in fig.axes] == ["normal model", "pgd model"]
    assert fig.axes[0].get_ylabel() == "mean distance (RMS, pixels in [0, 255])"


@pytest.mark.parametrize(("reach", "lines"), [(np.inf, (1, 20)), (0.1, (20, None))])
def test_a_curve_is_all_dashed_or_all_solid(reach: float, lines: tuple[int, int | None]) -> None:
    fig = plots.distance_curves({"normal": {"benign": np.full((3, 20), reach)}}, last=0.5)
    curves = [line for line in fig.axes[0].lines if len(line.get_xdata()) != 2]
    assert len(curves[0].get_xdata()) == lines[0]
    assert [len(line.get_xdata()) for line in curves[1:]] == ([] if lines[1] is None else [lines[1]])


def test_bootstrap_band_holds_the_mean_and_is_about_two_standard_errors_wide() -> None:
    fig = plots.distance_curves({"normal": {"benign": DISTANCE}}, last=0.6, bootstrap=2000)
    band = fig.axes[0].collections[0].get_paths()[0].vertices
    capped = np.minimum(np.sort(DISTANCE.numpy(), axis=1), 0.6)
    at = 5
    edges = band[band[:, 0] == at + 1][:, 1]
    error = capped[:, at].std() / 3
    assert np.ptp(edges) == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert edges.min() < capped[:, at].mean() < edges.max()


def test_purity_is_drawn_with_its_difference_to_the_benign_versions_and_without_images_of_no_ray() -> None:
    few = torch.cat((PURITY[:5] / 2, torch.zeros(1, 3)))  # no ray of the last image was reached
    dots, paired, curve = purity({"FGSM": few, "benign": PURITY, "PGD": PURITY[:0]}).axes
    assert [tick.get_text() for tick in dots.get_yticklabels()] == ["benign, n=12", "FGSM, n=5", "PGD, n=0"]
    change = PURITY[:5, 0] / 2 - PURITY[:5, 0]
    for ax, values, place in ((dots, PURITY[:, 0], 0), (dots, few[:5, 0], 1), (paired, change, 1)):
        rate = intervals.mean(values)
        ends, dot = [line for line in ax.lines if list(line.get_ydata()) in ([place], [place] * 2)]
        np.testing.assert_allclose(ends.get_xdata(), [rate.low, rate.high])
        np.testing.assert_allclose(dot.get_xdata(), rate.value)
    assert [text.get_text() for text in paired.texts] == [" n=5"]
    for line, values in zip(curve.lines, (PURITY, few[:5]), strict=False):
        np.testing.assert_allclose(line.get_ydata(), values.mean(0))


def test_instance_boundary_sorts_colours_and_marks_the_radius() -> None:
    fig = instance(pixel_max=255, true=5, index=17, images=dict.fromkeys(("benign", "FGSM"), GREY[0]))
    ax = fig.axes[1]
    order = DISTANCE[0].argsort(stable=True).tolist()
    bars = {bar.get_label(): bar for bar in ax.patches}
    for label in (4, 5, 6):
        want = [255 * DISTANCE[0, ray] * (DISTANCE[0, ray] < np.inf and ADJACENT[0, ray] == label) for ray in order]
        drawn = bars[CLASSES[label]]
        np.testing.assert_allclose(drawn.get_data().values, np.nan_to_num(want))
        assert same_color(drawn.get_facecolor(), style.BLACK if label == 5 else plots.class_colours(10)[label])
    unreached = bars["none within 153"].get_data().values
    assert [each for each in unreached if each] == [255 * 0.6] * int(DISTANCE[0].isinf().sum())
    line = {line.get_label(): line for line in ax.lines}[f"radius 38.2 / sqrt(3) = {255 * 0.15 / 3**0.5:.3g}"]
    assert line.get_color() == "black"
    np.testing.assert_allclose(line.get_ydata(), 255 * 0.15 / 3**0.5)
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend[:3] == ["deer", "dog", "frog"]
    assert f"radius 38.2 / sqrt(3) = {255 * 0.15 / 3**0.5:.3g}" in legend
    assert "clipped region sample: RMS 18.2" in ax.get_xlabel()
    assert "clipped" not in fig.axes[0].get_xlabel()
    assert ax.get_title() == "FGSM: the model says cat"
    below = (DISTANCE[0] < 0.15 / 3**0.5).double().mean()
    assert f"{below:.0%} end\nbelow the line" in [text.get_text() for text in ax.texts]
    np.testing.assert_array_equal(ax.child_axes[0].images[0].get_array(), GREY[0, 0].double())
    assert "test image 17 of class dog (black)" in texts(fig)


def test_detector_training_draws_every_step_and_a_running_mean() -> None:
    loss = RNG.uniform(0.1, 0.9, 250)
    fig = plots.detector_training({"FGSM": loss})
    every, smooth, _ = fig.axes[0].lines
    np.testing.assert_array_equal(every.get_ydata(), loss)
    np.testing.assert_allclose(smooth.get_ydata(), [loss[i - 5 : i].mean() for i in range(5, 251)])
    assert list(smooth.get_xdata()) == list(range(5, 251))
    assert "nats), mean of 5 steps" in fig.axes[0].get_ylabel()


def test_each_history_of_the_detector_has_a_mean_of_its_own_width() -> None:
    fig = plots.detector_training({"FGSM": RNG.uniform(0.1, 0.9, 250), "PGD": RNG.uniform(0.1, 0.9, 100)})
    long, short = fig.axes[0].lines[1], fig.axes[0].lines[3]
    assert [int(line.get_xdata()[0]) for line in (long, short)] == [5, 2]
    assert "mean of 2 to 5 steps" in fig.axes[0].get_ylabel()


def test_error_rates_are_marks_with_intervals_benign_images_first() -> None:
    fig = plots.error_rates(detector_table())
    assert [ax.get_title() for ax in fig.axes] == ["normal model", "pgd model"]
    for ax in fig.axes:
        rows = ["benign, n=40", "noise, n=40", "FGSM, n=40", "PGD, n=38"]
        assert [label.get_text() for label in ax.get_yticklabels()] == rows
        fgsm, all_ = ax.containers
        np.testing.assert_allclose(fgsm.lines[0].get_xdata(), [0.1, 0.2, 0.75, 0.75])
        np.testing.assert_allclose(all_.lines[0].get_xdata(), [0.1, 0.2, 0.75])
        heights = np.array(all_.lines[0].get_ydata(), dtype=float)
        np.testing.assert_allclose(np.round(heights), [0, 1, 3])
        assert (heights > [0, 1, 3]).all(), "the second mark of a row is below the first"
        ends = fgsm.lines[2][0].get_segments()[0][:, 0]
        expected = intervals.wilson(4, 40)
        np.testing.assert_allclose(ends, [expected.low, expected.high])
        assert same_color(fgsm.lines[0].get_color(), plots.EXAMPLES["FGSM"])
    assert "Threshold for 5% of the benign images" in texts(fig)


def test_accuracy_curves_are_the_rates_with_their_intervals() -> None:
    fig = accuracy()
    ax = fig.axes[0]
    normal, pgd, mark = ax.lines
    np.testing.assert_array_equal(normal.get_xdata(), [0, 0.1, 0.2])
    np.testing.assert_allclose(normal.get_ydata(), [1, 0.5, 0])
    assert np.isnan(pgd.get_ydata()).tolist() == [False, True, False]
    edges = ax.collections[0].get_paths()[0].vertices
    half = intervals.wilson(20, 40)
    np.testing.assert_allclose(np.unique(edges[edges[:, 0] == 0.1, 1]), [half.low, half.high])
    assert list(mark.get_xdata()) == [0.15, 0.15]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["normal, n=40", "pgd, n=0 to 40", "eps"]
    assert ax.yaxis.get_major_formatter()(0.5) == "50%"
    rates = {"OPTMARGIN": [half] * 3}
    assert same_color(accuracy(rates=rates).axes[0].lines[0].get_color(), plots.EXAMPLES["OPTMARGIN"])


def test_roc_is_drawn_with_its_band_and_its_area() -> None:
    tested = folds([0.1, 0.4, 0.5, 0.5], [0.3, 0.5, 0.9])
    fig = plots.roc({"FGSM": tested})
    _, curve = fig.axes[0].lines
    x, y = curve.get_data()
    mean, low, high = intervals.roc_of_folds(tested, x)
    np.testing.assert_allclose(y, mean)
    edges = fig.axes[0].collections[0].get_paths()[0].vertices
    middle = np.unique(edges[np.isclose(edges[:, 0], x[100]), 1])
    np.testing.assert_allclose(middle, np.unique([low[100], high[100]]))
    area = intervals.roc_auc_of_folds(tested)
    assert f"FGSM: AUC {area.value:.3f} [{area.low:.3f}, {area.high:.3f}]\nn=4+3" in texts(fig)


def every_claim() -> pd.DataFrame:
    names = [name for name in plots.EXAMPLES if name not in ("noise", "errors")]
    rows = [(number, model, name) for number in claims.CLAIMS for model in ("normal", "pgd") for name in names]
    frames = [claim(*row, -99.95, "fails", n=10000, verdict_holm="undecided") for row in rows]
    return pd.concat(frames, ignore_index=True)


def test_the_claims_make_a_matrix_of_verdicts() -> None:
    (ax,) = plots.claims_overview(CLAIMS).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["normal", "pgd"] * 6
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns == ["FGSM", "PGD", "OPTBRITTLE", "OPTMARGIN", "benign, all\nor minimum"]
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    lines = {1: 0, 2: 2, 5: 4, 7: 6, 8: 8, 10: 10}  # the first line of each claim: the normal model
    expected = {
        ("OPTMARGIN", lines[1]): ("0.99* (98)", style.VERDICTS["holds"]),
        ("OPTMARGIN", lines[1] + 1): ("0.80 (97)", style.VERDICTS["fails"]),
        ("OPTMARGIN", lines[2]): ("0.25 (98)", style.blend(style.VERDICTS["holds"], 1.0, 0.6)),  # by construction
        ("FGSM", lines[5]): ("0.00 (98)", style.VERDICTS["undecided"]),  # the row beside it is not shown
        ("PGD", lines[5] + 1): ("n=0", style.VERDICTS["undecided"]),
        ("PGD", lines[7] + 1): ("0.20 (44)", style.VERDICTS["mixed"]),  # another row holds
        ("OPTBRITTLE", lines[7] + 1): ("0.40 (39)", style.VERDICTS["undecided"]),  # the other is so by construction
        (columns[-1], lines[8]): ("0.95 (90)", style.VERDICTS["holds"]),
        (columns[-1], lines[10] + 1): ("0.10 (9.9k)", style.VERDICTS["fails"]),
    }
    assert len(ax.patches) == len(expected)
    for (column, line), (text, colour) in expected.items():
        place = (columns.index(column), line)
        assert cells[place] == text
        (patch,) = [patch for patch in ax.patches if patch.get_window_extent().contains(*ax.transData.transform(place))]
        assert same_color(patch.get_facecolor(), colour)
    words = [text.get_text().replace("\n    ", " ") for text in ax.texts if text.get_position()[0] < -0.1]
    assert words == [f"{number}  {claims.CLAIMS[number]}" for number in lines]


def test_all_claims_fit_one_screen() -> None:
    width, height = plots.claims_overview(every_claim()).get_size_inches()
    assert width <= 9
    assert height <= 7.5


def test_the_sketch_shows_what_its_titles_say() -> None:
    label = {name: int(schematic._label(*map(np.asarray, place))) for name, place in schematic._PLACES.items()}
    assert label == {"benign": 0, "OPTBRITTLE": 1, "OPTMARGIN": 1}
    share = {name: schematic.share_of_true_class(place) for name, place in schematic._PLACES.items()}
    assert share["benign"] == 1
    assert share["OPTBRITTLE"] > 0.5
    assert share["OPTMARGIN"] < 0.05


@pytest.mark.parametrize(
    ("rays", "sizes"), [(1568, ("8 x 391", "16 x 96", "1536 + 3")), (128, ("8 x 31", "16 x 6", "96 + 3"))]
)
def test_architecture_names_the_sizes(rays: int, sizes: tuple[str, ...]) -> None:
    shown = texts(plots.detector_architecture(rays=rays))
    assert all(size in shown for size in (*sizes, f"1 x {rays}"))


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "rank": (lambda: montage(images=GREY[0]), r"expected images of shape \(N, C, H, W\), got \(1, 6, 6\)"),
    "channels": (lambda: montage(images=GREY.repeat(1, 2, 1, 1)), "one channel .grey. or three"),
    "length": (lambda: montage(labels=LABELS[:3]), r"expected labels of shape \(40,\), got \(3,\)"),
    "class": (lambda: montage(classes=CLASSES[:4]), "labels from 0 to 3, the index of one of 4 classes, got .* 0 to 9"),
    "float labels": (lambda: montage(labels=LABELS / 2), "expected labels as whole numbers, got float32"),
    "set": (lambda: plots.pixel_values(GREY, RGB), "as many channels, got .*'training': 1, 'test': 3"),
    "no version": (lambda: plots.rms_examples(GREY[0], {}), "at least one entry in versions, got none"),
    "version": (lambda: plots.rms_examples(GREY[0], {"noise": GREY[:, :, 1:]}), r"of shape \(M, 1, 6, 6\)"),
    "after": (lambda: attack_grid(after={}), "labels in after for every attack; missing: OPTMARGIN, FGSM"),
    "x_adv": (lambda: variants(variants={"FGSM": GREY[:3]}), r"images of FGSM of shape \(40, 1, 6, 6\)"),
    "history": (lambda: training({"pgd": HISTORY[["epoch"]]}), "history of pgd .* missing: loss, benign"),
    "empty history": (lambda: training({"pgd": HISTORY[:0]}), "at least one row, got an empty table"),
    "n_validation": (lambda: training({"pgd": HISTORY}, n_validation=0), "expected n_validation as a whole number"),
    "steps": (lambda: plots.detector_training({"FGSM": []}), "the steps in the history of FGSM .* at least 1, got 0"),
    "rms": (lambda: plots.distortion_distribution({"pgd": {"FGSM": GREY}}), r"rms of FGSM of shape \(n,\)"),
    "parallel": (lambda: plots.hypercube_outline(PIXELS[0], -PIXELS[0], 1), "span a plane, got parallel"),
    "zero": (lambda: plots.hypercube_outline(PIXELS[0], 0 * PIXELS[0], 1), "span a plane, got parallel ones or a zero"),
    "radius": (lambda: a_slice(radius=0.0), "expected radius above 0"),
    "direction": (lambda: a_slice(v=PIXELS[1, :5]), r"direction_b of shape \(36,\), got \(5,\)"),
    "grid": (lambda: a_slice(labels=REGIONS[:-1]), r"labels of shape \(41, 41\), got \(40, 41\)"),
    "points": (lambda: a_slice(points={"FGSM": (1, 2, 3)}), r"point FGSM of shape \(2,\), got \(3,\)"),
    "around": (lambda: a_slice(around=["PGD"]), "every name in around among the points FGSM, got 'PGD'"),
    "region table": (lambda: plots.region_accuracy(region_table().drop(columns="n")), "region table .* missing: n$"),
    "distances": (
        lambda: plots.distance_curves({"pgd": {"FGSM": DISTANCE[0]}}, last=1.0),
        r"of FGSM of shape \(N, K\)",
    ),
    "last": (lambda: plots.distance_curves(DISTANCES, last=0.0), "expected last above 0"),
    "bootstrap": (lambda: plots.distance_curves(DISTANCES, last=1.0, bootstrap=-1), "expected bootstrap"),
    "purity": (
        lambda: plots.purity_curves({"pgd": {"FGSM": [1.0]}}, {"pgd": {"FGSM": [3]}}),
        r"purity of FGSM of shape \(N, top\), got \(1,\)",
    ),
    "instance": (
        lambda: instance(instances={"a": Profile(LABELS, DISTANCE, ADJACENT, ADJACENT)}),
        r"distance of a of shape \(1, K\), got \(9, 20\)",
    ),
    "adjacent": (lambda: instance(classes=CLASSES[:5]), "adjacent of benign from -1 to 4"),
    "no instance": (lambda: instance(instances={}), "at least one entry in instances"),
    "twice": (lambda: plots.error_rates(pd.concat([detector_table()] * 2)), "got two for normal, FGSM, FGSM"),
    "rates": (lambda: accuracy(x=[0.0, 0.1]), "a rate of 'normal' for each of the 2 numbers x, got 3"),
    "no rate": (lambda: accuracy(rates={}), "at least one entry in rates"),
    "no score": (lambda: plots.roc({}), "at least one entry in tested"),
    "verdict": (lambda: plots.claims_overview(CLAIMS.replace("holds", "hold")), "did you mean 'holds'"),
    "band": (
        lambda: panels(version(GREY[0]), version(GREY[1]), band=BAND[:2]),
        r"band of shape \(3, 20\), got \(2, 20\)",
    ),
    "views": (lambda: views(views=[(0, 0, 0)]), r"views of shape \(V, 2\), got \(1, 3\)"),
    "view labels": (lambda: views(view_labels=[1, 1, 10]), "view_labels from 0 to 9"),
    "view alone": (lambda: views(view_labels=None), "views and view_labels, got one without the other"),
    "live radius": (lambda: live(radius=0), "expected radius above 0"),
    "live last": (lambda: live(last=0), "expected last above 0"),
    "live logits": (lambda: live(logits=[1.0, 2.0]), r"logits of shape \(10,\), got \(2,\)"),
    "live image": (lambda: live(image=GREY), r"image of shape \(C, H, W\)"),
    "rays": (lambda: plots.detector_architecture(rays=35), "expected rays as a whole number of at least 36"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_says_what_was_expected(case: str) -> None:
    make, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_panels_state_difference_votes_rays_and_score() -> None:
    x, x_adv = GREY[0], X_ADV["FGSM"][0]
    fig = panels(version(x), version(x_adv, score=0.97), pixel_max=255)
    said = texts(fig)
    assert f"RMS {255 * float((x_adv - x).double().square().mean().sqrt()):.4g}" in said
    assert "difference x 10" in said  # 0.06 * 10 is in the scale, 0.06 * 20 is not
    assert "detector\nbenign 0.30, attacked 0.97" in said
    assert "OPTMARGIN-authors, n=100" in said
    votes = next(ax for ax in fig.axes if "votes" in ax.get_title(loc="left"))
    assert [bar.get_height() for bar in votes.patches[10:]] == pytest.approx([0, 0, 0.12, 0.8, 0, 0, 0, 0, 0, 0.08])
    purity = next(ax for ax in fig.axes if ax.get_title() == "purity")
    assert [bar.get_height() for bar in purity.patches] == pytest.approx(2 * PURITY[0].tolist())
    assert sum("of 20 reach a boundary" in ax.get_xlabel() for ax in fig.axes) == 2


def test_panels_without_data_take_no_room_and_are_named_with_the_reason() -> None:
    full, bare = version(GREY[0]), version(GREY[1], **NOTHING)
    everything, half = panels(full, full), panels(full, bare)
    nothing = panels(bare, bare, absent={"votes": "not stored yet", "detectors": "not stored yet"})
    assert "Not shown" not in texts(everything)
    assert len(everything.axes) == 3 + 1 + 2 + 3
    assert len(half.axes) == 3 + 1 + 1 + 3
    assert len(nothing.axes) == 3
    assert nothing.get_figheight() < 3
    assert "(no vote on this image); rays of OPTMARGIN-authors, purity of OPTMARGIN" in texts(half).replace("\n", " ")
    reasons = "votes, detector score (not stored yet); rays, purity (this image was not probed)"
    assert f"Not shown: {reasons}" in texts(nothing)


def test_panels_draw_sorted_distances_over_the_band_of_benign_images() -> None:
    near = replace(INSTANCE, distance=DISTANCE[1:2] / 2)
    fig = panels(version(GREY[0]), version(GREY[1], profile=near), band=BAND, pixel_max=255)
    ax = next(ax for ax in fig.axes if ax.get_title(loc="left") == "sorted distances")
    drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
    np.testing.assert_allclose(drawn["benign"], 255 * np.minimum(np.sort(DISTANCE[0]), 0.6))
    np.testing.assert_allclose(drawn["OPTMARGIN-authors"], 255 * np.minimum(np.sort(DISTANCE[1] / 2), 0.6))
    (area,) = [artist for artist in ax.collections if isinstance(artist, PolyCollection)]
    corners = area.get_paths()[0].vertices
    for rank in range(1, 21):
        low, high = 255 * np.minimum(BAND[[0, 2], rank - 1], 0.6)
        at = corners[corners[:, 0] == rank, 1]
        assert (at.min(), at.max()) == pytest.approx((low, high))


def test_views_are_drawn_where_they_are_and_counted_by_their_own_class() -> None:
    fig = views(pixel_max=10)
    lines = {line.get_label(): line for line in fig.axes[0].lines}
    np.testing.assert_allclose(lines["views of class automobile: 2"].get_xydata(), [(3.1, 0), (2.9, 0.1)])
    np.testing.assert_allclose(lines["views of class deer: 1"].get_xydata(), [(3, 2)])
    np.testing.assert_allclose(lines["OPTMARGIN-authors"].get_xydata(), [(3, 0)])
    corners = plots.hypercube_outline(PLANE[0], PLANE[1], 0.15) * 10 + (3, 0)
    (outline,) = [patch for patch in fig.axes[0].patches if isinstance(patch, Polygon)]
    np.testing.assert_allclose(outline.get_xy()[:-1], corners)


def test_live_panels_state_the_two_most_likely_classes() -> None:
    said = texts(live(logits=np.log(np.array([0.1, 0, 0, 0.5, 0, 0, 0.4, 0, 0, 0]) + 1e-12)))
    assert "cat: 50.0 %\nfrog: 40.0 %" in said
    assert "not counted yet" in texts(live(counts=None))
    assert "no ray yet" in texts(live(profile=None))


def test_panels_of_many_classes_show_those_with_votes() -> None:
    counts = torch.zeros(40, dtype=torch.int64)
    counts[[33, 39]] = torch.tensor([60, 40])
    fig = panels(
        version(GREY[0], counts=counts), version(GREY[1], **NOTHING), classes=[f"class number {i}" for i in range(40)]
    )
    votes = next(ax for ax in fig.axes if "votes" in ax.get_title(loc="left"))
    assert len(votes.patches) == 12
    assert sorted(bar.get_height() for bar in votes.patches)[-2:] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial": version(RGB[0])}, "the image of OPTMARGIN-authors of shape"),
        ({"radius": 0.0}, "radius"),
        ({"last": -1.0}, "last"),
        ({"threshold": -0.5}, "threshold"),
        ({"adversarial": version(GREY[0], counts=torch.ones(3))}, "counts of OPTMARGIN-authors of shape"),
    ],
)
def test_panels_refuse_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        panels(**{"original": version(GREY[0]), "adversarial": version(GREY[1]), **changes})


def evasion() -> pd.DataFrame:
    rows = [
        ("number of views", "1", 0.05, 0.9),
        ("number of views", "20", 0.07, 0.4),
        ("confidence", "0", 0.07, 0.0),
        ("confidence", "6", float("nan"), 1.0),
        ("published", "OPTMARGIN (ddn, equations)", 0.08, 0.4),
        ("published", "PGD", 0.12, 0.0),
    ]
    frame = pd.DataFrame(rows, columns=["curve", "demand", "mean_rms", "region_accuracy"]).assign(n=24)
    low, high = frame.region_accuracy - 0.1, frame.region_accuracy + 0.1
    return frame.assign(region_low=low.clip(lower=0), region_high=high.clip(upper=1))


def test_the_cost_of_evasion_is_one_panel_in_which_marks_grow_and_zeros_lie_apart() -> None:
    (ax,) = plots.evasion_cost(evasion()).axes
    assert ax.get_xscale() == "log"
    marks = [container.lines[0] for container in ax.containers]
    drawn = {(mark.get_xdata()[0], mark.get_ydata()[0]): mark for mark in marks}
    sizes = [drawn[place].get_markersize() for place in ((0.05, 0.9), (0.07, 0.4))]
    assert sizes == sorted(sizes)
    zeros = sorted({mark.get_ydata()[0] for mark in marks if mark.get_ydata()[0] < 0})
    assert len(zeros) == 2, "a series each"
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == [
        "number of views: 1, 20 (n=24)",
        "confidence: 0, 6 (n=24)",
        "OPTMARGIN (ddn, equations), n=24",
        "PGD, n=24",
    ]


def test_a_cost_of_evasion_without_its_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="region_low"):
        plots.evasion_cost(evasion().drop(columns="region_low"))
