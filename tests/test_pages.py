"""A run as HTML pages: nothing is missing, nothing is loaded from elsewhere, and tables sort in a real browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from browser import chromium

from nbsupport import pages, runner
from nbsupport.store import STAGES, MissingInput, Run

pytestmark = pytest.mark.slow  # the smoke run
ATTRIBUTES = ("src", "href")


class Page(HTMLParser):
    """What a page names, and what it says between its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.named: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.named += [value for name, value in attrs if name in ATTRIBUTES and value]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def site(smoke: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("pages") / "out"
    said: list[str] = []
    pages.write(smoke, target, said.append)
    assert said[0].startswith("7 chapters, ")
    return target


def test_every_link_leads_somewhere_and_nothing_comes_from_the_network(site: Path) -> None:
    seen = set()
    for path in site.rglob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        assert not {"link", "iframe"} & set(page.tags)
        for name in page.named:
            if not name.startswith(("https://", "data:", "#")):
                found = path.parent / name.partition("#")[0]
                assert found.is_file(), f"{path.name} names {name}"
                seen.add(found.resolve())
        loaded = re.findall(r"<(?:img|script)[^>]*src=[\"'](?!data:)([^\"']+)", path.read_text(encoding="utf-8"))
        assert not [name for name in loaded if ":" in name]
    everything = {path.resolve() for path in site.rglob("*") if path.is_file()}
    assert everything - seen == {(site / "index.html").resolve()} - seen


def test_what_the_run_has_stored_is_there(smoke: Run, site: Path) -> None:
    for folder, kind in (("tables", ".csv"), ("figures", ".png"), ("figures", ".pdf")):
        stored = {path.name: path.read_bytes() for path in smoke.path(folder).glob(f"*{kind}")}
        assert stored
        assert {path.name: path.read_bytes() for path in (site / folder).glob(f"*{kind}")} == stored
    assert len(list((site / "explorer").glob("*.png"))) == pages.STILLS
    rows = Page((site / "tables" / "attacks.html").read_text(encoding="utf-8")).tags.count("tr")
    assert rows == 1 + len(pd.read_csv(smoke.path("tables", "attacks.csv")))


@pytest.mark.parametrize("stage", STAGES)
def test_a_chapter_has_its_prose_formulas_and_figures(smoke: Run, site: Path, stage: str) -> None:
    notebook = nbformat.read(smoke.path("notebooks", f"{stage}.ipynb"), as_version=4)
    text = (site / f"{stage}.html").read_text(encoding="utf-8")
    page = Page(text)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    without_code = re.sub(r"`[^`]*`", "", prose)
    formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+?\$", without_code, re.DOTALL)
    assert page.tags.count("math") == len(formulas)
    drawn = re.findall(r"<math.*?</math>", text, re.DOTALL)
    assert not [each for each in drawn if "\\" in re.sub(r"<[^>]*>", "", each)]
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert page.tags.count("img") == sum("image/png" in output.get("data", {}) for output in outputs)
    for title in re.findall(r"^#+ (\w+ \w+)", prose, re.MULTILINE):
        assert title in "".join(page.text)


def test_a_stage_that_has_not_run_is_left_out_and_a_run_without_any_is_refused(tmp_path: Path) -> None:
    empty = runner.plan("digits", "smoke", {}, tmp_path / "run").open()
    with pytest.raises(MissingInput, match="finished no stage yet; run"):
        pages.write(empty, tmp_path / "out")
    with pytest.raises(ValueError, match="which holds a run"):
        pages.write(empty, empty.dir)


@pytest.mark.ui
@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_browser_pages_fit_and_tables_sort(site: Path, width: int) -> None:
    order = "() => [...document.querySelector('.sortable').tBodies[0].rows].map(row => row.cells[%d].textContent)"
    table = pd.read_csv(site / "tables" / "attacks.csv")
    column = list(table.columns).index("mean_rms")
    with chromium() as browser:
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
        page, wrong = context.new_page(), list[Any]()
        page.on("pageerror", lambda error: wrong.append(error))  # playwright marks the function that it is given
        for path in site.rglob("*.html"):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        page.goto((site / "tables" / "attacks.html").as_uri())
        for descending in (False, True):
            page.locator("th", has_text=re.compile("^mean_rms$")).click()
            shown = [float(text) for text in page.evaluate(order % column) if text.strip()]
            assert len(shown) == table.mean_rms.notna().sum()
            assert shown == sorted(shown, reverse=descending)
            assert page.evaluate(order % column)[0] != ""
    assert not wrong
