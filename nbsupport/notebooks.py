"""The notebooks of a run: where they are, what each asks, and which parameters it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbsupport import checks

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def require(folder: Path, stages: Sequence[str], parameters: Mapping[str, Any]) -> None:
    """Raise unless `folder` has the notebook of every stage, and each takes all of `parameters`.

    Raises FileNotFoundError where a notebook is absent and ValueError where one has no cell tagged `parameters`
    or does not define one of the names there.
    """
    absent = [stage for stage in stages if not (folder / f"{stage}.ipynb").is_file()]
    if absent:
        raise FileNotFoundError(
            f"no notebooks {', '.join(absent)} in {folder}: they belong to the source tree and are not installed with "
            "the package; run from a checkout, or install it with `pip install --editable`"
        )
    import papermill

    for stage in stages:
        defined = papermill.inspect_notebook(str(folder / f"{stage}.ipynb"))
        if not defined:
            raise ValueError(f"the notebook {stage} has no cell tagged `parameters`")
        for name in parameters:
            checks.choice(name, defined, name=f"a parameter of the notebook {stage}")


def question(notebook: Path) -> str:
    """Return the first sentence of `notebook` that ends with a question mark, else its title."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    for text in prose:
        for paragraph in text.split("\n\n"):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                if sentence.endswith("?"):
                    return sentence.lstrip("#>*_ ")
    title = next((text.strip().splitlines()[0] for text in prose if text.strip()), notebook.stem)
    return title.lstrip("# ")
