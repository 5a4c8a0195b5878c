"""A run as one folder of HTML pages for any web server: chapters, tables, figures, the explorer's pictures.

No page loads anything from another place: formulas are MathML, which browsers draw themselves.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbsupport import files
from nbsupport.runner import notebooks, report
from nbsupport.store import MissingInput, Run, manifest

if TYPE_CHECKING:
    import pandas as pd

PAGE = Path(__file__).with_name("page.html")
STILLS = 20  # images of the explorer
ROWS = 2000  # shown of a table; the rest is in its CSV file


def write(run: Run, target: Path, echo: Callable[[str], object] = print) -> None:
    """Write what the finished stages of `run` have stored as HTML pages to the folder `target`.

    - `index.html`: what was run, its results, and links to all other pages;
    - `STAGE.html`: the chapters, as executed;
    - `tables.html` and `tables/NAME.html`: each table, sorted by a click on a column's head, beside the run's CSV file;
    - `figures.html`: the figures, beside the run's PNG and PDF files;
    - `explorer.html`: the explorer's pictures of some images, of each attack and model in turn.

    Files of the same names are replaced; the explorer's page is left out where no attack is stored.

    Raises ValueError where `target` is a run folder, MissingInput where the run has finished no stage, and
    DamagedArtifact.
    """
    if (target / manifest.NAME).exists():
        raise ValueError(f"expected a folder for the pages, got {target}, which holds a run; choose one inside it")
    stages = list(manifest.read(run.dir)["stages"])
    if not stages:
        raise MissingInput(f"the run in {run.dir} has finished no stage yet; run\n  {run.command}")
    put = partial(_put, target, report.about(run))
    tables, figures = (report.stored(run.dir, kind) for kind in (".csv", ".png"))
    for stage in stages:
        put(f"{stage}.html", stage, _chapter(run.path("notebooks", f"{stage}.ipynb")))
    for name, stage in tables.items():
        shutil.copyfile(run.path("tables", f"{name}.csv"), _within(target / "tables" / f"{name}.csv"))
        put(f"tables/{name}.html", name, _table(name, report.referenced(run, name, stage)))
    for name in figures:
        for kind in (".png", ".pdf"):
            shutil.copyfile(run.path("figures", f"{name}{kind}"), _within(target / "figures" / f"{name}{kind}"))
    shown = [_still(target, name, still) for name, still in _stills(run)]
    links = "".join(f'<li><a href="tables/{name}.html">{name}</a></li>' for name in tables)
    pages = {"tables": f"<ul>{links}</ul>", "figures": "".join(map(_figure, figures)), "explorer": "".join(shown)}
    pages = {name: body for name, body in pages.items() if body}
    for name, body in pages.items():
        put(f"{name}.html", name.capitalize(), body)
    put("index.html", "Decision boundary analysis of adversarial examples", _index(run, stages, list(pages)))
    echo(f"{len(stages)} chapters, {len(tables)} tables, {len(figures)} figures, {len(shown)} images: {target}")


def _put(target: Path, run: str, path: str, title: str, body: str) -> None:
    """Write one page; `path` is that within `target`."""
    import jinja2

    template = jinja2.Template(PAGE.read_text(encoding="utf-8"))
    given = {"title": html.escape(title), "run": html.escape(run), "body": body, "root": "../" * path.count("/")}
    files.write_text(target / path, template.render(given))


def _within(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _index(run: Run, stages: list[str], pages: list[str]) -> str:
    """Return what was run, by which versions and when, its results, and links to the pages."""
    about = manifest.read(run.dir)
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    facts = {"command": run.command, "commit": about.get("commit"), "device": about.get("device"), "versions": versions}
    told = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items() if value)
    asked = {stage: notebooks.question(run.path("notebooks", f"{stage}.ipynb")) for stage in stages}
    chapters = "".join(f'<li><a href="{stage}.html">{stage}</a> {html.escape(asked[stage])}</li>' for stage in stages)
    more = ", ".join(f'<a href="{page}.html">{page}</a>' for page in pages)
    results = html.escape(report.results(run, where=False))
    return f"<ul>{chapters}</ul><p>And {more}.</p><h2>Results</h2><pre>{results}</pre><h2>The run</h2><dl>{told}</dl>"


def _chapter(path: Path) -> str:
    """Return the cells of the notebook `path` as HTML."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # links to the other chapters
            cell.source = re.sub(r"(\]\([\w./]*)\.ipynb\b", r"\1.html", cell.source)
    options: dict[str, Any] = dict.fromkeys(("exclude_input_prompt", "exclude_output_prompt"), True)
    options |= {"template_name": "basic", "filters": {"markdown2html": _prose}}
    exporter = HTMLExporter(**options)  # type: ignore[no-untyped-call]
    page, _ = exporter.from_notebook_node(notebook)
    return str(page)


def _prose(source: str) -> str:
    """Return markdown as HTML, its formulas as MathML."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    def mathml(formula: str, display: str) -> str:
        drawn = convert(re.sub(r"\\tag\{(.+?)\}", r"\\qquad (\1)", formula), display=display)
        drawn = re.sub(r"(<m[io][^>]*>)\\", r"\1", drawn)  # a name or brace that it left as it stood
        return drawn.replace("<mi>&#x02032;</mi>", "<mo>&#x02032;</mo>")  # a prime is no letter

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return mathml(body, "block")

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

    return str(MarkdownWithMath(renderer=Renderer(escape=False)).render(source))


def _table(name: str, frame: pd.DataFrame) -> str:
    options: dict[str, Any] = {"index": False, "border": 0, "na_rep": "", "float_format": "{:.4g}".format}
    cut = f", the first {ROWS} of them here" if len(frame) > ROWS else ""
    head = f'<p>{len(frame)} rows{cut}; <a href="{name}.csv">{name}.csv</a>. A click on a column\'s head sorts.</p>'
    return f'{head}<div class="wide">{frame.head(ROWS).to_html(classes="sortable", **options)}</div>'


def _figure(name: str) -> str:
    picture = f'<a href="figures/{name}.png"><img loading="lazy" alt="{name}" src="figures/{name}.png"></a>'
    return f'<figure>{picture}<figcaption>{name} (<a href="figures/{name}.pdf">PDF</a>)</figcaption></figure>'


def _stills(run: Run) -> Iterator[tuple[str, Any]]:
    """Yield a name and the explorer's still of up to STILLS images."""
    from nbsupport import widgets  # which loads torch

    try:
        yield from widgets.stills(run.dir, STILLS)
    except MissingInput:  # no attack is stored yet
        return


def _still(target: Path, name: str, still: Any) -> str:
    """Write the picture of `still`, and return its place on the page."""
    with files.replacing(_within(target / "explorer" / f"{name}.png")) as file:
        file.write(still.picture)
    said = html.escape(still.text)
    picture = f'<img loading="lazy" alt="{said}" src="explorer/{name}.png">'
    return f"<figure>{picture}<figcaption>{said}</figcaption></figure>"
