"""A run from end to end: its notebooks in order, each skipped when what it stored is complete and verified.

`runner.run(runner.plan("digits", "smoke", {}))` is what `nbsupport run digits --preset smoke` does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from nbsupport.runner import notebooks, report
from nbsupport.runner.job import Job, intent, plan
from nbsupport.runner.notebooks import StageFailed
from nbsupport.runner.progress import Echo, Follower, duration
from nbsupport.store import stages

Executor = Callable[[Job, str], None]  # runs a stage, or waits until it has run; raises StageFailed


def run(job: Job, echo: Echo = print, *, execute: Executor | None = None) -> None:
    """Run the stages of `job` that are not complete, and print the results.

    With `execute`, that is called for each stage to run it elsewhere, and takes the lock of the folder there.
    Raises StageFailed, and store.RunInUse where another process runs in the folder.
    """
    opened = job.open()
    echo(f"run folder {job.run_dir}")
    with opened.lock() if execute is None else contextlib.nullcontext():
        for number, stage in enumerate(job.stages, 1):
            title = f"stage {number}/{len(job.stages)} {stage}: "
            state = opened.state(stage)
            if state.name == "complete":
                echo(f"{title}complete and verified, reused")
                continue
            if state.faults:
                echo(f"{title}{intent(state)}")
            echo(title + notebooks.question(job.notebooks / f"{stage}.ipynb"))
            began = time.monotonic()
            with Follower(opened.dir, echo):
                (execute or execute_stage)(job, stage)
            echo(f"  stored after {duration(time.monotonic() - began)}")
    echo("\n" + report.results(opened, job.stages))


def execute_stage(job: Job, stage: str) -> None:
    """Run the notebook of `stage` in this process's kernel; raises StageFailed unless it records its outputs."""
    opened = job.open()
    copy = opened.path("notebooks", f"{stage}.ipynb")
    for kept in opened.begin(stage):
        opened.warn(stage, [f"the executed notebook was edited since; it is kept as {kept}"])
    opened.journal.append(stage=stage, event="begun")
    try:
        notebooks.execute(job.notebooks / f"{stage}.ipynb", copy, job.parameters(), cwd=job.cwd)
        state = opened.state(stage)
        if state.name != "complete":
            missing = ", ".join(state.faults) or "it did not record any (Run.finish)"
            raise StageFailed(stage, f"the notebook ended without its outputs: {missing}", "", str(copy))
        stages.add_output(opened.dir, stage, copy)
    except StageFailed as failure:
        opened.journal.append(stage=stage, event="failed", error=failure.error)
        raise
