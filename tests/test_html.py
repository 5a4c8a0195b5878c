"""The executed notebooks as HTML: every figure shows without a kernel and without a network."""

from __future__ import annotations

import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest

from nbsupport.runner.notebooks import execute
from nbsupport.store import STAGES, Run

pytestmark = pytest.mark.slow  # the smoke run


class Resources(HTMLParser):
    """The pictures of a page, and what else it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.loaded: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given.get("src") or "")
        elif tag in ("script", "link", "iframe", "object", "embed") and (given.get("src") or given.get("href")):
            self.loaded.append((tag, str(given.get("src") or given.get("href"))))


def converted(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter's own dependencies
        from nbconvert import HTMLExporter

        page, _ = HTMLExporter().from_filename(str(path))
    return str(page)


def figures(notebook: Any) -> list[Any]:
    """The outputs of a notebook that hold a picture."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("stage", STAGES)
def test_every_figure_is_embedded(smoke: Run, stage: str) -> None:
    path = smoke.path("notebooks", f"{stage}.ipynb")
    notebook = nbformat.read(path, as_version=4)
    page = converted(path)
    found = Resources(page)
    shown = [source.removeprefix("data:image/png;base64,") for source in found.images]
    wanted = ["".join(output.data["image/png"].split()) for output in figures(notebook)]
    assert wanted
    assert [source.replace("\n", "") for source in shown] == wanted
    assert "Loading widget" not in page
    assert "widgets" not in notebook.metadata
    assert "application/vnd.jupyter.widget" not in page.split("<body", 1)[1]
    # The converter's template names MathJax and a module loader: formulas need them, figures do not.
    assert all("mathjax" in source or "require" in source.lower() for tag, source in found.loaded if tag == "script")
    assert not re.findall(r"<img[^>]*src=[\"']https?:", page)


def test_the_explorer_leaves_its_picture_in_a_headless_run(smoke: Run) -> None:
    notebook = nbformat.read(smoke.path("notebooks", "05_boundary_analysis.ipynb"), as_version=4)
    (cell,) = [cell for cell in notebook.cells if "instance_explorer" in cell.source]
    (output,) = cell.outputs
    assert output.data.keys() == {"image/png", "text/plain"}
    assert "OPTMARGIN on the normal model: test image" in output.data["text/plain"]


def test_progress_is_plain_text_in_a_headless_run(smoke: Run, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    lines = ["from nbsupport import widgets", f"widgets.progress({str(smoke.dir)!r})"]
    lines += [f"widgets.{name}({str(tmp_path)!r})" for name in ("progress", "instance_explorer")]
    notebook.cells = [nbformat.v4.new_code_cell(line) for line in lines]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "source.ipynb")
    execute(tmp_path / "source.ipynb", tmp_path / "executed.ipynb", {}, cwd=tmp_path)
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    assert "widgets" not in executed.metadata
    shown = [output for cell in executed.cells for output in cell.outputs]
    assert [set(output.data) for output in shown] == [{"text/plain"}] * 3
    told, *refused = (output.data["text/plain"] for output in shown)
    assert re.search(r"attacks/normal/OPTMARGIN +12/12 images, success 1, median rms 0\.\d+", told)
    for text in refused:
        assert "is not a run folder" in text
        assert "python -m nbsupport run digits --run-dir" in text
