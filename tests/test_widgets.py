"""The widgets over one smoke run: what they show equals what is stored, and bad folders give a message."""

from __future__ import annotations

import base64
import html
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from nbsupport import files, store, suite, widgets
from nbsupport.runner import report
from nbsupport.store import MODELS, Run, journal, manifest
from nbsupport.widgets import base
from nbsupport.widgets.explorer import figure
from nbsupport.widgets.single import FILTERS, Stored

pytestmark = pytest.mark.slow  # the smoke run


def parts(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


class Driver:
    """What a reader does with the explorer, and what they see."""

    def __init__(self, box: Any) -> None:
        self.by = {part.description: part for part in parts(box) if getattr(part, "description", "")}
        self.texts = [part for part in parts(box) if isinstance(part, ipywidgets.HTML)]
        self.bars = [part for part in parts(box) if isinstance(part, ipywidgets.IntProgress)]
        self.pictures = [part for part in parts(box) if isinstance(part, ipywidgets.Image)]

    def __call__(self, **values: Any) -> dict[str, str]:
        for name, value in values.items():
            self.by[name].value = value
        return self.data

    @property
    def text(self) -> str:
        return html.unescape("\n".join(part.value for part in self.texts))

    @property
    def data(self) -> dict[str, str]:
        (tag,) = re.findall(r'<span class="nb-status"[^>]*>', self.texts[0].value)
        return dict(re.findall(r'data-([a-z-]+)="([^"]*)"', tag))

    @property
    def png(self) -> bytes:
        return bytes(self.pictures[0].value)


@pytest.fixture(scope="module")
def stored(smoke: Run) -> Stored:
    return Stored(smoke)


@pytest.fixture
def explorer(smoke: Run) -> Driver:
    return Driver(widgets.instance_explorer(smoke.dir))


@pytest.fixture
def copy(smoke: Run, tmp_path: Path) -> Path:
    """A copy of the smoke run that a test may harm."""
    return Path(shutil.copytree(smoke.dir, tmp_path / "run"))


def expected(stored: Stored, model: str, attack: str, condition: str) -> list[int]:
    """The positions of the images to show, image by image from the stored tensors."""
    found, run = stored.results["attacks"][model, attack], stored.run
    given, votes = run.inputs(f"attacks/{model}/{attack}"), stored.results["region"][model, attack]
    limits = (
        run.read_table("thresholds", "06_detector")
        .set_index(["model", "detector", "trained_on", "seed", "fold", "target_fpr"])
        .threshold
    )
    probed = stored.results["boundary"].get((model, attack))
    at = [] if probed is None else run.inputs(f"boundary/{model}/{attack}")["index"].tolist()
    keep = []
    for row, index in enumerate(given["index"].tolist()):
        correct, success = bool(found.correct[row]), bool(found.success[row])
        missed = False
        fold = int(suite.folds(run.settings, torch.tensor(index)))
        own = [name for name in (attack, "all") if (model, suite.judge(name, fold)) in stored.results["detector"]]
        if probed is not None and own and index in at:
            score = stored.results["detector"][model, suite.judge(own[0], fold)].score(probed)[at.index(index)]
            missed = float(score) < limits[model, "network", own[0], 0, fold, 0.05]
        fulfils = {
            "all": True,
            "succeeded": success,
            "failed": correct and not success,
            "vote-wrong": correct and int(votes.label[row]) != int(given["y"][row]),
            "missed": missed,
            "largest": success,
        }
        if fulfils[condition]:
            keep.append((-float(found.rms[row]) if condition == "largest" else 0.0, index))
    return [index for _, index in sorted(keep)]


def selected(stored: Stored, model: str, attack: str, condition: str, y: int | None = None) -> list[int]:
    """The positions of the images that the filter shows."""
    positions: list[int] = stored.select(model, attack, condition, y)["index"].tolist()
    return positions


@pytest.mark.parametrize("condition", FILTERS)
def test_filters_select_exactly_the_right_images(explorer: Driver, stored: Stored, condition: str) -> None:
    for model in MODELS:
        for attack in ("FGSM", "OPTBRITTLE", "OPTMARGIN"):
            wanted = expected(stored, model, attack, condition)
            assert selected(stored, model, attack, condition) == wanted
    explorer(model="pgd", attack="FGSM", filter="succeeded")
    explorer(filter="all")
    data = explorer(filter=condition)
    wanted = expected(stored, "pgd", "FGSM", condition)
    assert (data["filter"], data["count"]) == (condition, str(len(wanted)))
    assert data["index"] == (str(wanted[0]) if wanted else "")
    assert data["state"] == ("ready" if wanted else "none")


def probed_successes(stored: Stored, model: str, attack: str) -> set[int]:
    """The positions of the images on which the attack succeeded and whose rays are stored."""
    if (model, attack) not in stored.results["boundary"]:
        return set()
    probed = set(stored.run.inputs(f"boundary/{model}/{attack}")["index"].tolist())
    return probed & set(expected(stored, model, attack, "succeeded"))


def test_it_opens_on_the_first_probed_success(explorer: Driver, stored: Stored) -> None:
    data = explorer.data
    assert (data["state"], data["success"], data["filter"]) == ("ready", "true", "all")
    assert int(data["index"]) == min(probed_successes(stored, "normal", "OPTMARGIN"))
    shown = stored.single("normal", "OPTMARGIN", int(data["index"]))
    for version in (shown.original, shown.adversarial):
        panels = version.image, version.counts, version.profile, version.purity, version.score
        assert all(panel is not None for panel in panels)
    assert explorer.png == base.png(figure(stored, shown))


def test_another_attack_opens_on_a_probed_success_where_the_image_is_not_in_the_list(
    explorer: Driver, stored: Stored
) -> None:
    short = next(name for name in stored.names if len(stored.images["normal", name]) < 12)
    explorer(image=12)
    data = explorer(attack=short)
    best = probed_successes(stored, "normal", short) or set(expected(stored, "normal", short, "succeeded"))
    assert data["index"] == str(min(best, default=0))


def test_without_rays_it_opens_on_the_first_success(copy: Path, stored: Stored) -> None:
    unfinished(copy, "05_boundary_analysis", "06_detector")
    explorer = Driver(widgets.instance_explorer(copy))
    assert explorer.data["index"] == str(min(expected(stored, "normal", "OPTMARGIN", "succeeded")))


def test_every_control_changes_picture_and_status(explorer: Driver, stored: Stored) -> None:
    seen = {explorer.png: explorer.data}
    assert explorer.png.startswith(b"\x89PNG")
    for change in ({"attack": "FGSM"}, {"model": "pgd"}, {"image": 3}, {"filter": "succeeded"}):
        data = explorer(**change)
        assert explorer.png not in seen
        assert data not in seen.values()
        seen[explorer.png] = data
    assert (data["model"], data["attack"], data["filter"]) == ("pgd", "FGSM", "succeeded")
    explorer(model="normal", attack="OPTMARGIN", filter="all", image=2)
    assert next(iter(seen)) == explorer.png, "the same image gives the same picture"


def test_the_class_filter_selects_images_of_that_class(explorer: Driver, stored: Stored) -> None:
    found = stored.run.inputs("attacks/normal/OPTMARGIN")
    position, true = found["index"].tolist(), found["y"]
    assert explorer.by["class"].label == "all classes"
    for y in sorted(set(true.tolist())):
        for condition in FILTERS:
            every = selected(stored, "normal", "OPTMARGIN", condition)
            wanted = [index for index in every if true[position.index(index)] == y]
            assert selected(stored, "normal", "OPTMARGIN", condition, y) == wanted
        data = explorer(**{"class": y})
        assert (data["class"], data["y"], data["count"]) == (str(y), str(y), str(int((true == y).sum())))
    assert explorer(**{"class": -1})["class"] == ""


def test_a_typed_number_goes_to_the_nearest_image_of_the_filter(explorer: Driver, stored: Stored) -> None:
    explorer(filter="succeeded", attack="OPTBRITTLE")
    index = selected(stored, "normal", "OPTBRITTLE", "succeeded")
    field = explorer.by["test image"]
    for typed in (index[-1], 0, *index[:2]):
        data = explorer(**{"test image": typed})
        assert abs(int(data["index"]) - typed) == min(abs(other - typed) for other in index)
        assert field.value == int(data["index"])
    absent = next(i for i in range(12) if i not in index)
    explorer(**{"test image": absent})
    assert field.value in index
    assert explorer(image=1)["index"] == str(field.value) == str(index[0])


def test_the_band_is_that_of_the_benign_images(stored: Stored) -> None:
    for model in MODELS:
        distance = np.sort(stored.results["boundary"][model, "benign"].distance.double().numpy(), axis=1)
        wanted = np.quantile(distance, [0.1, 0.5, 0.9], axis=0, method="higher")
        np.testing.assert_array_equal(stored.bands[model], wanted)


def test_previous_and_next_stop_at_the_ends(explorer: Driver) -> None:
    previous, following = explorer.by["previous"], explorer.by["next"]
    assert explorer(image=1)["index"] == "0"
    assert previous.disabled
    assert not following.disabled
    following.click()
    assert (explorer.data["index"], previous.disabled) == ("1", False)
    previous.click()
    previous.click()
    assert explorer.data["index"] == "0"
    explorer(image=int(explorer.data["count"]))
    assert following.disabled
    last = explorer.data
    following.click()
    assert explorer.data == last


def test_another_model_or_attack_stays_at_the_image(explorer: Driver) -> None:
    explorer(image=4)
    assert explorer(model="pgd")["index"] == "3"
    assert explorer(attack="PGD")["index"] == "3"


def test_numbers_are_those_of_the_artifacts(explorer: Driver, stored: Stored, smoke: Run) -> None:
    explorer(attack="OPTMARGIN", filter="succeeded")
    for model in MODELS:
        data = explorer(model=model)
        index = int(data["index"])
        attack = files.load_with_metadata(smoke.path("attacks", model, "OPTMARGIN.safetensors"))[0]
        votes = files.load_with_metadata(smoke.path("region", model, "OPTMARGIN.safetensors"))[0]
        row = attack["index"].tolist().index(index)
        assert data["success"] == "true"
        assert float(data["rms"]) == pytest.approx(float(attack["rms"][row]), rel=1e-5)
        assert int(data["y"]) == int(attack["y"][row])
        assert int(data["vote"]) == int(votes["label"][row])
        names = [suite.judge(name, suite.folds(smoke.settings, torch.tensor(index))) for name in ("OPTMARGIN", "all")]
        judges = [found for name in names if (found := stored.results["detector"].get((model, name))) is not None]
        if not judges:
            assert data["score"] == ""
            continue
        for name, shown in (("OPTMARGIN", data["score"]), ("benign", data["benign-score"])):
            found = smoke.inputs(f"boundary/{model}/{name}")["index"].tolist()
            score = judges[0].score(stored.results["boundary"][model, name])[found.index(index)]
            assert float(shown) == pytest.approx(float(score), rel=1e-5)


def test_counts_of_the_filters_are_those_of_the_tables(stored: Stored, smoke: Run) -> None:
    attacks = pd.read_csv(smoke.path("tables", "attacks.csv")).set_index(["model", "attack"])
    region = pd.read_csv(smoke.path("tables", "region.csv")).set_index(["model", "examples"])
    measured = [key for key in attacks.index if attacks.loc[key].n]
    assert measured
    for key in measured:
        succeeded = attacks.loc[key].success_rate * attacks.loc[key].n
        wrong = (1 - region.loc[key].region_accuracy) * region.loc[key].n
        assert len(stored.select(*key, "succeeded")) == pytest.approx(succeeded)
        assert len(stored.select(*key, "failed")) == pytest.approx(attacks.loc[key].n - succeeded)
        assert len(stored.select(*key, "vote-wrong")) == pytest.approx(wrong, abs=1e-6)


def test_detectors_are_loaded_as_they_were_trained(smoke: Run) -> None:
    trained = {path.relative_to(smoke.path("detector")) for path in smoke.path("detector").glob("*/*.safetensors")}
    loaded = Stored(smoke).results["detector"]
    assert {Path(model, f"{name}.safetensors") for model, name in loaded} == trained


def test_a_picture_stands_beside_the_widget_for_readers_without_a_kernel(
    smoke: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(base.IPython.display, "display", lambda bundle, raw: shown.append(bundle))
    for make in (widgets.instance_explorer, widgets.progress):
        box: Any = make(smoke.dir)
        box._ipython_display_()
    explorer, beside, progress, text = shown
    assert all("application/vnd.jupyter.widget-view+json" in bundle for bundle in (explorer, progress))
    assert "widget" not in beside["text/html"]
    (encoded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', beside["text/html"])
    assert base64.b64decode(encoded).startswith(b"\x89PNG")
    assert "OPTMARGIN on the normal model: test image" in beside["text/plain"]
    assert report.status(smoke) == text["text/plain"]
    assert "<img" not in text["text/html"]


def test_nothing_is_written(explorer: Driver, smoke: Run) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in smoke.dir.rglob("*") if path.is_file()}

    before = state()
    explorer(attack="FGSM", filter="missed")
    widgets.progress(smoke.dir)
    assert state() == before


def test_a_change_is_drawn_once_and_from_memory(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = Driver(widgets.instance_explorer(copy))
    for path in [*copy.rglob("*.safetensors"), *copy.rglob("*.csv")]:
        path.unlink()
    draw, drawn = base.png, [explorer.png]

    def counting(drawing: Figure) -> bytes:
        drawn.append(draw(drawing))
        return drawn[-1]

    monkeypatch.setattr(base, "png", counting)
    # A change of the attack also moves the slider and the number, whose own events must not draw again.
    another = 1 + explorer.by["image"].value % explorer.by["image"].max
    changes: list[dict[str, Any]] = [{"image": another}, {"attack": "FGSM"}, {"filter": "largest"}, {"class": 3}]
    for count, change in enumerate(changes, 2):
        explorer(**change)
        assert len(drawn) == count
        assert explorer.png == drawn[-1]
    assert len(set(drawn)) > 2


def unfinished(folder: Path, *stages: str) -> None:
    """Let the run be as it was before these stages."""
    contents = manifest.read(folder)
    for stage in stages:
        del contents["stages"][stage]
    manifest.write(folder, contents)


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("votes", "04_region_classification"),
        ("profiles", "05_boundary_analysis"),
        ("detectors", "06_detector"),
    ],
)
def test_a_half_done_run_shows_the_rest_and_names_the_command(copy: Path, missing: str, stage: str) -> None:
    unfinished(copy, *dict.fromkeys((stage, "06_detector")))
    explorer = Driver(widgets.instance_explorer(copy))
    assert explorer.data["state"] == "ready"
    for word in (f"Not stored: {missing}.", stage, "python -m nbsupport run digits --preset smoke"):
        assert word in explorer.text
    for condition in FILTERS:
        explorer(filter=condition)
    assert ("normal" in Stored(store.existing_run(copy)).bands) == (missing != "profiles")
    explorer(filter={"votes": "vote-wrong"}.get(missing, "missed"))
    assert explorer.data["state"] == "none"


@pytest.mark.parametrize("table", ["images_votes", "images_boundary", "images_detector"])
def test_a_table_that_is_gone_counts_as_not_stored(copy: Path, table: str) -> None:
    (copy / "tables" / f"{table}.csv").unlink()
    explorer = Driver(widgets.instance_explorer(copy))
    assert explorer.data["state"] == "ready"
    assert f"{table}.csv is missing; the notebook" in explorer.text


@pytest.mark.parametrize(
    ("name", "stages"), [("confidence", ["03_attacks", "06_detector"]), ("detector_steps", ["06_detector"])]
)
def test_results_out_of_date_are_shown_with_what_has_changed(copy: Path, name: str, stages: list[str]) -> None:
    contents = manifest.read(copy)
    contents["parameters"][name] = 7
    manifest.write(copy, contents)
    explorer = Driver(widgets.instance_explorer(copy))
    assert explorer.data["state"] == "ready"
    told = re.findall(rf"Out of date: the results of (\w+) \({name}: .* -> 7\); run that notebook again", explorer.text)
    assert set(stages) <= set(told)
    assert ("03_attacks" in told) == ("03_attacks" in stages)


def test_an_attack_without_a_detector_says_why_none_is_missed(copy: Path) -> None:
    run = store.existing_run(copy)
    images = run.read_table("images_detector", "06_detector")
    own = (images.model == "normal") & (images.examples == "OPTMARGIN")
    run.write_table("images_detector", images[~own])
    explorer = Driver(widgets.instance_explorer(copy))
    assert explorer(filter="missed")["state"] == "none"
    assert "no detector judges OPTMARGIN" in explorer.text


def test_without_a_threshold_no_image_is_missed_and_that_is_said(copy: Path) -> None:
    run = store.existing_run(copy)
    images = run.read_table("images_detector", "06_detector")
    run.write_table("images_detector", images.assign(detector_threshold=math.nan))
    explorer = Driver(widgets.instance_explorer(copy))
    assert explorer(filter="succeeded")["state"] == "ready"
    assert "(no threshold; held out in fold" in explorer.text
    assert explorer(filter="missed")["state"] == "none"
    assert "too few benign images on the normal model for a threshold at 5 % false positives" in explorer.text


def test_missed_images_have_a_score_below_their_threshold(copy: Path) -> None:
    run = store.existing_run(copy)
    images = run.read_table("images_detector", "06_detector")
    run.write_table("images_detector", images.assign(detector_threshold=images.detector_score.median()))
    frame = Stored(store.existing_run(copy)).images["normal", "OPTMARGIN"]
    low = frame.success & (frame.detector_score < images.detector_score.median())
    assert selected(Stored(store.existing_run(copy)), "normal", "OPTMARGIN", "missed") == frame["index"][low].tolist()


def no_attacks(folder: Path) -> str:
    shutil.rmtree(folder / "attacks" / "pgd")
    return r"attacks/pgd/.*03_attacks makes it: run\n\s*python -m nbsupport run digits --preset smoke"


def damaged(folder: Path) -> str:
    path = folder / "attacks" / "normal" / "FGSM.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    return r"FGSM\.safetensors is damaged .*run its notebook again"


def no_run(folder: Path) -> str:
    (folder / manifest.NAME).unlink()
    return r"is not a run folder: .*python -m nbsupport run digits --run-dir"


def unreadable(folder: Path) -> str:
    (folder / manifest.NAME).write_text("{")
    return r"run\.json is damaged"


def not_attacked(folder: Path) -> str:
    unfinished(folder, "03_attacks")
    return r"attacks is not complete; the notebook 03_attacks makes it: run\n\s*python -m nbsupport run digits"


def other_parameters(folder: Path) -> str:
    contents = manifest.read(folder)
    del contents["parameters"]["test_data"]
    manifest.write(folder, contents)
    return r"another version of nbsupport: it lacks the parameters test_data"


def other_entries(folder: Path) -> str:
    path = folder / "attacks" / "normal" / "FGSM.safetensors"
    tensors, metadata = files.load_with_metadata(path)
    own = {name: text for name, text in metadata.items() if name not in ("contents", "sha256")}
    files.save_tensors(path, {name: tensor for name, tensor in tensors.items() if name != "rms"}, **own)
    return r"this version of nbsupport in .*, got others: .*'rms'.*\n\s*python -m nbsupport run digits"


def no_data(folder: Path) -> str:
    contents = manifest.read(folder)
    contents["parameters"] |= {"train_data": "npz:/nowhere.npz", "test_data": "npz:/nowhere.npz"}
    manifest.write(folder, contents)
    return "nowhere"


@pytest.mark.parametrize(
    "harm", [no_attacks, not_attacked, damaged, no_run, unreadable, other_parameters, other_entries, no_data]
)
def test_a_folder_that_cannot_be_shown_gives_a_message(copy: Path, harm: Any) -> None:
    message = harm(copy)
    explorer = Driver(widgets.instance_explorer(copy))
    assert explorer.data == {"state": "error"}
    assert re.search(message, explorer.text, re.DOTALL)
    assert not explorer.pictures
    assert "Traceback" not in explorer.text


def test_progress_tells_the_status_and_reads_it_again(copy: Path) -> None:
    shown = Driver(widgets.progress(str(copy)))
    assert report.status(store.existing_run(copy)) in shown.text
    assert shown.data["state"] == "ready"
    writer = journal.Journal(copy)
    writer.report("03_attacks", "a <b> attack", 0, 9, event="started")
    time_passes = shown.data
    writer.report("03_attacks", "a <b> attack", 3, 9, success=0.5, median_rms=0.125)
    assert shown.data == time_passes, "only the button reads again"
    shown.by["refresh"].click()
    assert (shown.data["stage"], shown.data["done"], shown.data["total"]) == ("03_attacks", "3", "9")
    assert shown.data["what"] == "a &lt;b&gt; attack"
    assert re.search(r"a <b> attack +3/9 images, .*/s, .* left, success 0\.5", shown.text)
    assert (shown.data["success"], shown.data["median-rms"]) == ("0.5", "0.125")
    assert float(shown.data["rate"]) > 0
    assert float(shown.data["left"]) == pytest.approx(6 / float(shown.data["rate"]), rel=1e-4)
    (bar,) = shown.bars
    assert (bar.value, bar.max, bar.description) == (3, 9, "a <b> attack: 3 of 9 images")
    (copy / manifest.NAME).unlink()
    shown.by["refresh"].click()
    assert shown.data == {"state": "error"}
    assert "is not a run folder" in shown.text
    assert bar.layout.display == "none"


def test_progress_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    run = store.open_run(tmp_path / "new", dataset="digits", preset="smoke")
    shown = Driver(widgets.progress(run.dir))
    assert (shown.data["state"], shown.data["stage"]) == ("ready", "")
    assert "Nothing has been reported yet" in shown.text
    explorer = Driver(widgets.instance_explorer(run.dir))
    assert explorer.data == {"state": "error"}
    assert "03_attacks makes it: run" in explorer.text


def test_mimic_is_one_of_the_attacks_once_notebook_7_has_run(stored: Stored, explorer: Driver, copy: Path) -> None:
    assert stored.names[-1] == "mimic"
    shown = explorer(model="normal", attack="mimic")
    assert (shown["state"], shown["attack"]) == ("ready", "mimic")
    index = int(shown["index"])
    row = stored.row("normal", "mimic", index)
    one = stored.single("normal", "mimic", index)
    kept = stored.run.load("adaptive/normal/mimic")
    place = stored.run.inputs("adaptive/normal/mimic")["index"].tolist().index(index)
    assert torch.equal(torch.as_tensor(one.adversarial.image), kept.x_adv[place])
    assert one.adversarial.vote == row.vote
    assert (one.adversarial.profile is not None) == bool(row.success)
    unfinished(copy, "07_adaptive_attacks")
    assert "mimic" not in Stored(store.existing_run(copy)).names
