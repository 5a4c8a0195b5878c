"""The ten lines of README and notebook 3 that take a reader's own module and images through the whole suite."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import ipywidgets
import pytest
from conftest import one_thread
from PIL import Image

from nbsupport import store
from nbsupport.data import ImageSet
from nbsupport.store import STAGES

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def printed() -> tuple[str, str]:
    """The module and the calls, as notebook 3 prints them."""
    notebook = json.loads((ROOT / "notebooks" / "03_attacks.ipynb").read_text())
    (section,) = (text for cell in notebook["cells"] if "## Bring your own" in (text := "".join(cell["source"])))
    module, calls = CODE.findall(section)
    return module, calls


def texts(widget: ipywidgets.Widget) -> Iterator[str]:
    """What the widget and all within it say."""
    if isinstance(value := getattr(widget, "value", None), str):
        yield value
    for child in getattr(widget, "children", ()):
        yield from texts(child)


def test_the_readme_prints_the_same_ten_lines() -> None:
    readme = CODE.findall((ROOT / "README.md").read_text())
    for block in printed():
        assert block in readme
    assert sum(bool(line.strip()) for block in printed() for line in block.splitlines()) <= 10


@pytest.mark.slow
def test_the_lines_give_every_table_and_the_explorer(
    digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, (image, label) in enumerate(zip(digits.x[:400], digits.y[:400], strict=True)):
        path = tmp_path / "my_images" / ("test" if i % 4 == 0 else "train") / f"c{label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).byte().numpy()).save(path)
    module, calls = printed()
    (tmp_path / "my_module.py").write_text(module)
    monkeypatch.chdir(tmp_path)
    lines = calls.strip().splitlines()
    names: dict[str, object] = {}
    with one_thread():
        exec("\n".join([*lines[:-1], f"explorer = {lines[-1]}"]), names)
    run = store.existing_run(tmp_path / "runs" / "mine")
    assert [run.state(stage).name for stage in STAGES] == ["complete"] * 7
    assert run.settings.model == "my_module:Net"
    tables = {path.stem for path in (run.dir / "tables").glob("*.csv")}
    assert tables >= {"datasets", "training", "attacks", "region", "boundary", "geometry", "detector", "claims"}
    explorer = names["explorer"]
    assert isinstance(explorer, ipywidgets.Box)
    assert any("true class c" in text for text in texts(explorer))
