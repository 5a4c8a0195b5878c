"""The explorer of notebook 05 in a real JupyterLab, used with mouse and keyboard."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from browser import READY, SECONDS, chromium, jupyter_lab

from nbsupport import files, store
from nbsupport.store import Run
from nbsupport.widgets.base import png
from nbsupport.widgets.explorer import figure
from nbsupport.widgets.single import FILTERS, Stored

pytestmark = [pytest.mark.ui, pytest.mark.slow]
LISTS = ("model", "attack", "class", "filter")
NOTEBOOK = "05_boundary_analysis.ipynb"


class Explorer:
    """What a reader does with the explorer on the page, and what they see."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.box = page.locator(".jp-OutputArea .widget-vbox").filter(has=page.locator(".nb-status")).first

    def data(self, kind: str = "nb-status") -> dict[str, str]:
        """What the status element of class `kind` says."""
        found: dict[str, str] = self.box.locator(f".{kind}").evaluate("element => ({...element.dataset})")
        return found

    def wait(self, kind: str = "nb-status", **values: str) -> dict[str, str]:
        """Wait until the status has these values and the kernel has answered all that was asked of it."""
        wanted = {name.replace("_", "-"): value for name, value in values.items()}
        selector = f".{kind}" + "".join(f'[data-{name}="{value}"]' for name, value in wanted.items())
        self.box.locator(selector).wait_for(state="attached")
        self.page.wait_for_function(READY)
        return self.data(kind)

    def choose(self, label: str, option: str) -> None:
        self.box.get_by_label(label, exact=True).select_option(option)

    def begin(self, model: str, attack: str, condition: str) -> dict[str, str]:
        """Go to the first image of the filter `condition`, wherever an earlier test has gone."""
        for label, option in (("model", model), ("attack", attack), ("class", "all classes")):
            self.choose(label, option)
        self.choose("filter", FILTERS["all"][0])  # a filter that changes begins at its first image
        self.wait(model=model, attack=attack, filter="all")
        self.choose("filter", FILTERS[condition][0])
        return self.wait(model=model, attack=attack, filter=condition)

    def press(self, name: str) -> None:
        self.box.get_by_role("button", name=name).click()

    @property
    def image(self) -> Any:
        """The picture of all panels."""
        return self.box.locator("img").first

    def picture(self, wanted: str) -> str:
        """The digest of the picture of all panels, as soon as it is `wanted`; else, after ten seconds, what it is."""
        return str(
            self.image.evaluate(
                """async (image, wanted) => {
                  let digest = '';
                  for (const end = Date.now() + 10000; digest !== wanted && Date.now() < end;) {
                    const bytes = await fetch(image.src).then(answer => answer.arrayBuffer(), () => new ArrayBuffer(0));
                    const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
                    digest = [...hash].map(byte => byte.toString(16).padStart(2, '0')).join('');
                    await new Promise(requestAnimationFrame);
                  }
                  return digest;
                }""",
                wanted,
            )
        )

    def redrawn(self, action: Callable[[], None], **values: str) -> dict[str, str]:
        """Do `action`, wait until the status has these values and another picture has come; return what it says."""
        before = self.image.get_attribute("src")
        action()
        data = self.wait(**values)
        self.page.wait_for_function(
            "([image, before]) => image.src !== before", arg=[self.image.element_handle(), before]
        )
        return data


@pytest.fixture(scope="module")
def folder(smoke: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the notebook, and beside it a copy of the finished run that it reads.

    A smoke run has too few benign images for a threshold: one is planted, which the lower half of the scores miss.
    """
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(smoke.dir, root / "run")
    scores = pd.read_csv(path := root / "run" / "tables" / "images_detector.csv", engine="python")
    scores["detector_threshold"] = scores.groupby(["model", "examples"]).detector_score.transform("median")
    scores.to_csv(path, index=False)
    notebook = nbformat.read(Path(__file__).parents[1] / "notebooks" / NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = 'dataset, preset, run_dir, overrides = "digits", "smoke", "run", {}'
    nbformat.write(notebook, root / NOTEBOOK)
    return root


@pytest.fixture(scope="module")
def explorer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    """The explorer after all cells of the notebook have run; its page must have no error at the end."""
    with chromium() as browser, jupyter_lab(folder, tmp_path_factory.mktemp("home")) as address:
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        page.set_default_timeout(1000 * SECONDS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address.format(NOTEBOOK))
        page.wait_for_function(READY)
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.locator(".nb-status").first.wait_for(state="attached")
        found = Explorer(page)
        found.wait(state="ready")
        try:
            yield found
            assert errors == []
            assert page.get_by_text("Loading widget").count() == 0
        finally:
            page.screenshot(path=str(folder / "last.png"))


@pytest.fixture
def stored(folder: Path) -> Stored:
    return Stored(store.existing_run(folder / "run"))


def expected(stored: Stored, data: dict[str, str]) -> str:
    """The digest of the picture that belongs to what the status says, drawn here."""
    shown = stored.single(data["model"], data["attack"], int(data["index"]))
    return hashlib.sha256(png(figure(stored, shown))).hexdigest()


def check(explorer: Explorer, stored: Stored, data: dict[str, str]) -> None:
    """Title, picture and numbers are those of the run folder."""
    stem = Path(data["model"], f"{data['attack']}.safetensors")
    attack = files.load_with_metadata(stored.run.path("attacks") / stem)[0]
    votes = files.load_with_metadata(stored.run.path("region") / stem)[0]
    row = attack["index"].tolist().index(int(data["index"]))
    assert float(data["rms"]) == pytest.approx(float(attack["rms"][row]), rel=1e-5)
    assert (data["y"], data["vote"]) == (str(int(attack["y"][row])), str(int(votes["label"][row])))
    assert data["success"] == str(bool(attack["success"][row])).lower()
    assert f"test image {data['index']}, true class {data['y']}" in explorer.box.locator(".nb-status").inner_text()
    wanted = expected(stored, data)
    assert explorer.picture(wanted) == wanted


def test_mouse_and_keyboard_show_what_is_stored(explorer: Explorer, stored: Stored) -> None:
    page, box = explorer.page, explorer.box
    data = explorer.data()
    check(explorer, stored, data)
    assert data["success"] == "true", "it opens on a telling image"
    shown = stored.single("normal", "OPTMARGIN", int(data["index"]))
    assert "Not shown" not in " ".join(text.get_text() for text in figure(stored, shown).texts), "five panels are drawn"
    chosen = [box.get_by_label(name, exact=True).evaluate("list => list.value") for name in LISTS]
    assert chosen == ["normal", "OPTMARGIN", "all classes", FILTERS["all"][0]]
    explorer.begin("normal", "OPTMARGIN", "succeeded")
    data = explorer.redrawn(lambda: explorer.choose("model", "pgd"), model="pgd")
    check(explorer, stored, data)
    box.get_by_label("attack", exact=True).focus()
    data = explorer.redrawn(lambda: page.keyboard.type("PGD"), attack="PGD")
    check(explorer, stored, data)
    table = pd.read_csv(stored.run.path("tables", "attacks.csv")).set_index(["model", "attack"]).loc["pgd", "PGD"]
    assert int(data["count"]) == round(table.success_rate * table.n) > 3

    index = stored.select("pgd", "PGD", "succeeded")["index"].tolist()
    data = explorer.redrawn(lambda: explorer.press("next"), index=str(index[1]))
    check(explorer, stored, data)

    slider = box.locator(".noUi-handle").first
    slider.focus()
    data = explorer.redrawn(lambda: page.keyboard.press("ArrowRight"), index=str(index[2]))
    check(explorer, stored, data)
    field = box.get_by_label("test image")
    data = explorer.redrawn(lambda: (field.fill(str(index[-1])), field.press("Enter")), index=str(index[-1]))
    check(explorer, stored, data)
    box.get_by_role("button", name="previous").focus()
    data = explorer.redrawn(lambda: page.keyboard.press("Space"), index=str(index[-2]))
    check(explorer, stored, data)


def test_every_control_is_reached_by_tab(explorer: Explorer) -> None:
    page, box = explorer.page, explorer.box
    explorer.begin("normal", "OPTMARGIN", "succeeded")
    explorer.redrawn(lambda: explorer.press("next"))  # so that no button is disabled
    wanted = [box.get_by_label(name, exact=True) for name in LISTS]
    wanted += [box.locator(".noUi-handle").first, box.get_by_label("test image")]
    wanted += [box.get_by_role("button", name=name) for name in ("previous", "next", "slice", "probe")]
    for number, control in enumerate(wanted):
        control.evaluate("(element, number) => element.dataset.number = number", number)
    wanted[0].focus()
    reached = []
    while len(reached) < 15 and reached[-1:] != [len(wanted) - 1]:
        reached.append(int(page.evaluate("document.activeElement.dataset.number ?? -1")))
        page.keyboard.press("Tab")
    assert [number for number in reached if number >= 0] == list(range(len(wanted)))


def test_the_filter_of_missed_images(explorer: Explorer, stored: Stored) -> None:
    model, attack = "normal", "OPTMARGIN"
    rows, images = stored.select(model, attack, "missed"), stored.images[model, attack]
    assert 0 < len(rows) < int(images.success.sum())
    assert (rows.detector_score < rows.detector_threshold).all()
    data = explorer.begin(model, attack, "missed")
    assert data["count"] == str(len(rows))
    assert float(data["score"]) < rows.detector_threshold.iloc[0]
    check(explorer, stored, data)


def test_the_slice_and_the_live_part(explorer: Explorer, stored: Stored) -> None:
    data = explorer.begin("normal", "OPTMARGIN", "largest")
    explorer.press("slice")
    seen = explorer.wait("nb-slice", state="ready", index=data["index"])
    assert (seen["views"], seen["wrong"]) == ("20", "20"), "OPTMARGIN succeeds on all its views"
    explorer.press("slice")
    explorer.wait("nb-slice", state="off")

    explorer.press("probe")
    explorer.wait("nb-live", state="done", share="0.5")
    handle = explorer.box.locator(".noUi-handle").nth(1)
    handle.focus()
    for _ in range(10):
        explorer.page.keyboard.press("ArrowRight")
    live = explorer.wait("nb-live", state="done", share="1")
    assert live["index"] == data["index"]
    assert float(live["rms"]) == pytest.approx(float(data["rms"]), rel=1e-5)
    assert live["vote"] == data["vote"]
    explorer.press("save")
    explorer.wait("nb-live", state="saved")
    (path,) = stored.run.path("live").rglob("*.safetensors")
    saved = files.load_with_metadata(path)[0]
    assert torch.equal(saved["image"], stored.given("normal", "OPTMARGIN", int(data["index"]))[3])
    explorer.press("probe")
    explorer.wait("nb-live", state="off")
