"""The explorer's panels that evaluate the model: the slice and the live part."""

from __future__ import annotations

import asyncio
import html
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_widgets import Driver, parts

from nbsupport import files, models, store, widgets
from nbsupport.store import Run, manifest
from nbsupport.widgets import single
from nbsupport.widgets.single import FILTERS, RAYS, Stored

pytestmark = pytest.mark.slow  # the smoke run


class Panels(Driver):
    """What a reader does with the two panels, and what they see."""

    def __init__(self, run_dir: Path) -> None:
        box: Any = widgets.instance_explorer(run_dir)
        super().__init__(box)
        self.sliders = [part for part in parts(box) if part.__class__.__name__ == "FloatSlider"]

    def says(self, kind: str) -> dict[str, str]:
        (tag,) = [tag for text in self.texts for tag in re.findall(rf'<span class="{kind}"[^>]*>', text.value)]
        return {name: html.unescape(value) for name, value in re.findall(r'data-([a-z-]+)="([^"]*)"', tag)}


@pytest.fixture
def panels(smoke: Run) -> Panels:
    found = Panels(smoke.dir)
    found(model="normal", attack="OPTMARGIN", filter="largest")
    return found


@pytest.fixture
def copied(smoke: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smoke.dir, tmp_path / "run"))


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("the model is evaluated")


def test_models_are_only_evaluated_in_open_panels(smoke: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load", refuse)
    panels = Panels(smoke.dir)
    for condition in FILTERS:
        panels(filter=condition)
    assert panels.says("nb-slice") == panels.says("nb-live") == {"state": "off"}


def test_the_slice_follows_the_image_and_is_computed_once(panels: Panels, monkeypatch: pytest.MonkeyPatch) -> None:
    panels(slice=True)
    first = panels.says("nb-slice")
    assert first | {"state": "ready", "index": panels.data["index"], "third": "view"} == first
    assert (first["views"], first["wrong"]) == ("20", "20")
    pictures = {bytes(panels.pictures[1].value)}
    panels.by["second direction"].value = "gradient"
    assert panels.says("nb-slice")["third"] == "gradient"
    panels(image=2)
    assert panels.says("nb-slice")["index"] == panels.data["index"] != first["index"]
    pictures.add(bytes(panels.pictures[1].value))
    assert len(pictures) == 2
    monkeypatch.setattr(single, "slice_with_views", refuse)
    panels(image=1)
    panels.by["second direction"].value = "view"
    assert panels.says("nb-slice") == first
    assert bytes(panels.pictures[1].value) in pictures
    panels(slice=False)
    assert panels.says("nb-slice") == {"state": "off"}


def test_panels_without_a_model_name_the_command(copied: Path) -> None:
    (copied / "models" / "normal.safetensors").unlink()
    panels = Panels(copied)
    panels(filter="succeeded", slice=True, probe=True)
    assert panels.data["state"] == "ready"
    for kind in ("nb-slice", "nb-live"):
        assert panels.says(kind)["state"] == "error"
    assert panels.text.count("02_training makes it: run\n  ") == 2
    assert "python -m nbsupport run digits --preset smoke" in panels.text
    assert "Traceback" not in panels.text
    panels(model="pgd")
    assert panels.says("nb-slice")["state"] == "ready"


def test_panels_of_no_image_are_closed(panels: Panels, smoke: Run) -> None:
    panels(slice=True, probe=True)
    stored = Stored(smoke)
    y = next(y for y in range(10) if not len(stored.select("normal", "OPTMARGIN", "largest", y)))
    data = panels(**{"class": y})
    assert (data["state"], data["class"], data["count"]) == ("none", str(y), "0")
    assert f'no image of class {y}, attacked by OPTMARGIN on the normal model, fulfils "succeeded' in panels.text
    assert panels.says("nb-slice") == panels.says("nb-live") == {"state": "off"}


def test_moving_the_slider_goes_from_the_original_to_the_adversarial_image(panels: Panels, smoke: Run) -> None:
    stored = Stored(smoke)
    index = int(stored.select("normal", "OPTMARGIN", "largest")["index"].iloc[0])
    shown = stored.single("normal", "OPTMARGIN", index)
    (slider,) = panels.sliders
    panels(probe=True)
    assert panels.says("nb-live")["share"] == "0.5"
    for share, version in ((0.0, shown.original), (1.0, shown.adversarial)):
        slider.value = share
        said = panels.says("nb-live")
        assert said["state"] == "done"
        assert (said["label"], said["vote"]) == (str(version.label), str(version.vote))
        assert float(said["rms"]) == pytest.approx(share * shown.row.rms, rel=1e-5)
        assert (said["rays"], said["done"]) == (str(RAYS), said["total"])
    slider.value = slider.max
    assert panels.says("nb-live")["share"] == "1.5"
    assert panels.bars[0].value == panels.bars[0].max


def test_the_slider_also_takes_lengths(panels: Panels) -> None:
    panels(probe=True)
    (slider,) = panels.sliders
    slider.value = 1.0
    rms = float(panels.data["rms"])
    panels.by["move by"].value = "rms"
    assert slider.value == pytest.approx(rms, rel=1e-4)
    assert slider.max == pytest.approx(1.5 * rms, rel=1e-4)
    assert float(panels.says("nb-live")["share"]) == pytest.approx(1, rel=1e-4)
    slider.value = rms / 2
    assert float(panels.says("nb-live")["share"]) == pytest.approx(0.5, rel=1e-4)
    assert float(panels.says("nb-live")["rms"]) == pytest.approx(rms / 2, rel=1e-4)


def test_an_attack_that_changed_nothing_leaves_no_way_to_go(panels: Panels, smoke: Run) -> None:
    stored = Stored(smoke)
    rms = stored.results["attacks"]["normal", "OPTMARGIN"].rms
    panels(filter="all", image=1 + int((rms == 0).nonzero()[0]), probe=True)
    assert panels.says("nb-live")["state"] == "none"
    assert "there is no way to go" in panels.text


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition`; a test that waits in vain ends with its own time limit."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0)


def test_cancel_ends_the_work_and_leaves_nothing_behind(panels: Panels) -> None:
    threads = threading.active_count()

    async def reader() -> dict[str, str]:
        panels(probe=True)
        assert not panels.by["cancel"].disabled
        await until(lambda: panels.says("nb-live").get("rays", "0") not in ("0", str(RAYS)))
        assert panels.says("nb-live")["state"] == "running"
        panels.by["cancel"].click()
        said = panels.says("nb-live")
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert panels.says("nb-live") == said, "nothing is shown any more"
        return said

    said = asyncio.run(reader())
    assert said["state"] == "cancelled"
    assert 0 < int(said["done"]) < int(said["total"])
    assert panels.by["cancel"].disabled
    assert panels.by["save"].disabled
    assert threading.active_count() == threads


def test_another_image_ends_the_work_on_the_one_before(panels: Panels) -> None:
    async def reader() -> set[str]:
        panels(probe=True)
        await until(lambda: panels.says("nb-live").get("rays") == "8")
        panels(image=2)
        seen = {panels.says("nb-live")["index"]}
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
            seen.add(panels.says("nb-live")["index"])
        return seen

    assert asyncio.run(reader()) == {panels.data["index"]}
    assert panels.says("nb-live")["state"] == "done"


def test_save_stores_what_is_shown(copied: Path) -> None:
    panels = Panels(copied)
    panels(attack="FGSM", filter="largest", probe=True)
    panels.by["save"].click()
    said = panels.says("nb-live")
    assert said["state"] == "saved"
    path = copied / "live" / "normal" / f"FGSM-{said['index']}-0.5000.safetensors"
    assert str(path) in panels.text
    tensors = files.load_with_metadata(path)[0]
    assert int(tensors["counts"].argmax()) == int(said["vote"])
    assert len(tensors["directions"]) == RAYS
    run = store.existing_run(copied)
    assert {run.state(stage).name for stage in manifest.read(copied)["stages"]} == {"complete"}
    panels.by["save"].click()


def test_a_folder_that_cannot_be_written_to_is_told(copied: Path) -> None:
    panels = Panels(copied)
    panels(filter="largest", probe=True)
    (copied / "live").write_text("a file where the folder should be")
    panels.by["save"].click()
    assert panels.says("nb-live")["state"] == "error"
    assert "live" in panels.text


def test_a_model_that_fails_is_told(panels: Panels, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of <memory>")

    monkeypatch.setattr(models, "load", lambda path: Broken())
    panels(probe=True, slice=True)
    assert panels.says("nb-live")["state"] == panels.says("nb-slice")["state"] == "error"
    assert "got: out of <memory>" in panels.text
    assert "The slice cannot be drawn.\n" in re.sub("<.*?>", "\n", panels.text)
    assert panels.by["cancel"].disabled
