"""A run from end to end: its notebooks in order, each skipped when what it stored is complete and verified."""

from __future__ import annotations

import time
from collections.abc import Callable

from nbsupport import execution, notebooks, report
from nbsupport.job import Job, intent
from nbsupport.progress import Echo, Follower, duration
from nbsupport.store import Run


class StageFailed(RuntimeError):  # noqa: N818  (read aloud where it is caught)
    """A stage ended without its outputs; `error` is one line, `traceback` the last lines that the kernel gave."""

    def __init__(self, stage: str, error: str, traceback: str, copy: str) -> None:
        super().__init__(stage, error, traceback, copy)
        self.stage, self.error, self.traceback, self.copy = stage, error, traceback, copy

    def __str__(self) -> str:
        last = [line for line in self.traceback.splitlines() if line.strip()][-12:]
        quoted = "".join(f"    {line}\n" for line in last)
        return f"stage {self.stage} failed: {self.error}\n{quoted}executed notebook: {self.copy}"


Executor = Callable[[Job, str], None]  # runs a stage, or waits until it has run; raises StageFailed


def run(job: Job, echo: Echo = print, *, execute: Executor | None = None) -> None:
    """Run the stages of `job` that are not complete, and print the results.

    With `execute`, that is called for each stage to run it elsewhere, and takes the lock of the folder there.
    Raises StageFailed, and store.RunInUse where another process runs in the folder.
    """
    opened = job.open()
    echo(f"run folder {job.run_dir}")
    if execute is not None:
        _stages(job, opened, echo, execute)
    else:
        with opened.lock():
            _stages(job, opened, echo, execute_stage)
    echo(report.results(opened, job.stages))


def _stages(job: Job, opened: Run, echo: Echo, execute: Executor) -> None:
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
            execute(job, stage)
        echo(f"  stored after {duration(time.monotonic() - began)}")


def execute_stage(job: Job, stage: str) -> None:
    """Run the notebook of `stage` in this process's kernel; raises StageFailed unless it records its outputs."""
    opened = job.open()
    copy = opened.path("notebooks", f"{stage}.ipynb")
    opened.begin(stage)
    opened.journal.append(stage=stage, event="begun")
    try:
        execution.execute(job.notebooks / f"{stage}.ipynb", copy, job.parameters(), cwd=job.cwd)
    except execution.NotebookFailed as error:
        failure = StageFailed(stage, error.error, error.traceback, str(copy))
    else:
        state = opened.state(stage)
        if state.name == "complete":
            return
        missing = ", ".join(state.faults) or "it did not record any (Run.finish)"
        failure = StageFailed(stage, f"the notebook ended without its outputs: {missing}", "", str(copy))
    opened.journal.append(stage=stage, event="failed", error=failure.error)
    raise failure
