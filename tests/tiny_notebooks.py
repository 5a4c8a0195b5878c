"""Throwaway notebooks for the tests of the runner, and stages that run without a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import pandas as pd
import torch
from kernels_for_keep import Weighted, sums
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nbsupport.runner import Job
from nbsupport.store import STAGES, Run
from nbsupport.store.run import MADE_BY

PARAMETERS = 'dataset = "digits"\npreset = "standard"\nrun_dir = "../runs/digits-standard"\noverrides = {}'
STORE = """
import pandas as pd
from nbsupport import store
run = store.open_run(run_dir, dataset=dataset, preset=preset, overrides=overrides)
run.finish("{stage}", tables={{"{stage}": pd.DataFrame({{"n": [run.settings.n]}})}})
"""


def write(path: Path, cells: Sequence[str], *, parameters: str | None = PARAMETERS) -> Path:
    """Write a notebook that asks a question, has the tagged parameters, and then `cells`."""
    made = [new_markdown_cell("# A title\n\nSome prose. What does it ask? More."), *map(new_code_cell, cells)]
    if parameters is not None:
        made.insert(1, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


def write_all(folder: Path, cells: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Write the notebooks of all stages, each with its `cells` or, by default, with none."""
    for stage in STAGES:
        write(folder / f"{stage}.ipynb", (cells or {}).get(stage, ()))
    return folder


def store_something(run: Run, stage: str) -> None:
    """Keep a result in two shards, a table and a figure, as a notebook would, and finish `stage`."""
    from matplotlib.figure import Figure

    folder = next((name for name, made_by in MADE_BY.items() if made_by == stage and name != "models"), None)
    if folder is not None:
        x = torch.zeros(4, 1, 2, 2)
        run.keep(f"{folder}/normal/a", sums, Weighted(), x, torch.arange(4), shard=2)
    table = pd.DataFrame({"n": [run.settings.n], "share": [1 / 3]})
    run.finish(stage, tables={stage: table}, figures={stage: Figure()})


class FakeKernel:
    """Runs stages in this process; `calls` are those it ran, and `fail` is one in which it raises `error`."""

    def __init__(self, fail: str | None = None, error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.fail, self.error = fail, error

    def __call__(self, job: Job, stage: str) -> None:
        self.calls.append(stage)
        run = job.open()
        run.begin(stage)
        if stage == self.fail:
            assert self.error is not None
            raise self.error
        store_something(run, stage)
