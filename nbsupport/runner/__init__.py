"""A run from end to end: its notebooks in order, each skipped when what it stored is complete and verified.

`runner.run(runner.plan("digits", "smoke", {}))` is what `nbsupport run digits --preset smoke` does.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from nbsupport import checks, presets, store
from nbsupport.runner import notebooks, report
from nbsupport.runner.notebooks import StageFailed
from nbsupport.runner.watch import Watch
from nbsupport.store import STAGES, Run, manifest, workers

Folder = str | Path | None


@dataclass(frozen=True)
class Job:
    """Everything a run needs, as plain values that may travel to another machine; made and checked by `plan`."""

    settings: presets.Settings
    run_dir: Path
    notebooks: Path
    cwd: Path

    def parameters(self) -> dict[str, Any]:
        """Return what is injected into each notebook."""
        s, overrides = self.settings, manifest.overrides(self.settings)
        return {"dataset": s.dataset, "preset": s.preset, "run_dir": str(self.run_dir), "overrides": overrides}

    def open(self) -> Run:
        """Return the run, creating its folder."""
        return store.open_run(**self.parameters())


Executor = Callable[[Job, str], None]  # runs a stage, or waits until it has run; raises StageFailed


def plan(
    dataset: str, preset: str, overrides: Mapping[str, Any], run_dir: Folder = None, *, folder: Folder = None
) -> Job:
    """Return the checked job of a run; nothing is created.

    Parameters
    ----------
    dataset, preset : str
        As `presets.settings`.
    overrides : mapping
        Parameters by name; values may be text.
    run_dir : path, optional
        The run folder; by default runs/<dataset>-<preset>, with `overrides` followed by 8 hex digits of all parameters.
    folder : path, optional
        Where the notebooks are; by default those of this source tree.

    Raises
    ------
    ValueError
        For an unknown name or a value of the wrong type, a data set that does not exist, a run folder with other
        parameters (`ParametersDiffer`) or with results whose run.json is gone, one that cannot be written to, or a
        notebook that does not take the parameters.
    OSError
        If a notebook is absent, or the run folder cannot be looked for, such as with a name that is too long.
    """
    if dataset.endswith(":"):
        raise ValueError(f"expected a path after {dataset!r}")
    settings = presets.settings(dataset, preset, overrides)
    presets.require(settings)
    _require_sources(settings)
    target = Path(run_dir).expanduser() if run_dir else _default_dir(settings, named=bool(overrides))
    job = Job(settings, target.resolve(), Path(folder or notebooks.FOLDER), Path.cwd())
    notebooks.require(job.notebooks, STAGES, job.parameters())
    if (job.run_dir / manifest.NAME).exists():
        manifest.require_same(job.run_dir, manifest.read(job.run_dir)["parameters"], settings)
    store.require_fresh(job.run_dir)
    _require_writable(job.run_dir)
    return job


def _require_writable(run_dir: Path) -> None:
    """Raise ValueError unless this process may write in `run_dir`, or make it; OSError where it cannot be one."""
    above = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    if not above.is_dir():
        raise ValueError(f"expected a run folder, got {run_dir}, but {above} is a file; choose another --run-dir")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(
            f"expected a run folder that may be written to, got {run_dir}, but {above} may not; "
            "choose another --run-dir"
        )


def _default_dir(settings: presets.Settings, *, named: bool) -> Path:
    kind, _, path = settings.dataset.partition(":")
    slug = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-") or kind
    values = json.dumps(asdict(settings), sort_keys=True).encode()
    return Path("runs", f"{slug}-{settings.preset}" + (f"-{hashlib.sha256(values).hexdigest()[:8]}" if named else ""))


def _require_sources(s: presets.Settings) -> None:
    """Raise ValueError unless the images and the model are where the settings `s` say."""
    for name, source in (("train_data", s.train_data), ("test_data", s.test_data)):
        kind, colon, path = source.partition(":")
        checks.choice(f"{kind}:PATH" if colon else source, presets.DATASETS, name=name)
        if colon and not Path(path).exists():
            raise ValueError(f"expected {name} {kind}:PATH with a PATH that exists, got {path}")
    for name, model in (("model", s.model), ("pgd_model", s.pgd_model or s.model)):
        package = model.partition(":")[0].partition(".")[0]
        if ":" not in model:
            from nbsupport import models  # which loads torch

            checks.choice(model, models.NAMES, name=name)
        elif importlib.util.find_spec(package) is None and PathFinder.find_spec(package, [str(Path.cwd())]) is None:
            raise ValueError(
                f"expected {name} as package.module:function of a package that is installed, got {model!r}"
            )
    for name, weights in (("weights", s.weights), ("pgd_weights", s.pgd_weights)):
        if weights not in (None, presets.OWN) and not Path(weights).is_file():
            raise ValueError(f"expected {name} as a file of weights, or {presets.OWN!r}, found no file {weights}")


def unfinished(job: Job) -> list[str]:
    """Return the stages of `job` that are not complete, in order."""
    run = _begun(job)
    return [stage for stage in STAGES if run is None or run.state(stage).name != "complete"]


def describe(job: Job) -> str:
    """Return the settings of `job`, what each stage would do, and which claims stay open; values from -p are marked."""
    given, marks = asdict(job.settings), dict.fromkeys(manifest.overrides(job.settings), "    (-p)")
    run = _begun(job)
    settings = [f"  {name:<22}{value}{marks.get(name, '')}" for name, value in given.items()]
    stages = [f"  {stage:<26}{_intent(run.state(stage)) if run else 'runs'}" for stage in STAGES]
    lines = [f"run folder  {job.run_dir}", "settings", *settings, "stages", *stages, *_undecidable(job.settings)]
    return "\n".join(lines)


def _begun(job: Job) -> Run | None:
    """Return the run in the folder of `job`, None where there is none yet."""
    return store.existing_run(job.run_dir) if (job.run_dir / manifest.NAME).exists() else None


def _undecidable(settings: presets.Settings) -> list[str]:
    """Return lines on the claims that a run with these settings leaves open, whatever it measures."""
    from nbsupport import claims  # which loads torch

    found = claims.undecidable(settings)
    return ["claims that stay open", *(f"  {line}" for line in found)] if found else []


def _intent(state: store.StageState) -> str:
    """Return what happens to a stage in this `state`, and why."""
    if state.name == "complete":
        return "complete and verified: reused"
    damaged = f"damaged or missing {', '.join(state.faults)}"
    return f"runs again: {damaged if state.name == 'damaged' else '; '.join(state.faults)}" if state.faults else "runs"


def run(job: Job, echo: report.Echo = print, *, execute: Executor | None = None, bars: bool | None = None) -> None:
    """Run the stages of `job` that are not complete, and print the results; first, which claims will stay open.

    With `execute`, that is called for each stage to run it elsewhere, and takes the lock of the folder there. `bars` is
    whether progress is drawn or told in lines, as `report.Follower`.
    Raises StageFailed, and store.RunInUse where another process runs in the folder.
    """
    opened = job.open()
    for line in (f"run folder {job.run_dir}", *_undecidable(job.settings)):
        echo(line)
    with opened.lock() if execute is None else contextlib.nullcontext():
        for number, stage in enumerate(STAGES, 1):
            title = f"stage {number}/{len(STAGES)} {stage}: "
            state = opened.state(stage)
            if state.name == "complete":
                echo(f"{title}complete and verified, reused")
                continue
            if state.faults:
                echo(f"{title}{_intent(state)}")
            echo(title + notebooks.question(job.notebooks / f"{stage}.ipynb"))
            began = time.monotonic()
            with report.Follower(opened.dir, echo, bars=bars):
                (execute or execute_stage)(job, stage)
            echo(f"  stored after {report.duration(time.monotonic() - began)}")
    echo("\n" + report.results(opened))


def execute_stage(job: Job, stage: str, *, watch: Watch | None = None, scheduler: str | None = None) -> None:
    """Run the notebook of `stage` in a kernel of this process, under `watch`; its shards at `scheduler`, if given.

    Raises StageFailed unless the notebook records its outputs, and CancelledError as `notebooks.execute`.
    """
    opened = job.open()
    copy = opened.path("notebooks", f"{stage}.ipynb")
    for kept in opened.begin(stage):
        opened.warn(stage, [f"the executed notebook was edited since; it is kept as {kept}"])
    opened.journal.append(stage=stage, event="begun")
    try:
        source, own = job.notebooks / f"{stage}.ipynb", {} if scheduler is None else {workers.ADDRESS: scheduler}
        if threads := manifest.read(opened.dir).get("threads"):
            own |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        notebooks.execute(source, copy, job.parameters(), cwd=job.cwd, environment=own, watch=watch)
        state = opened.state(stage)
        if state.name != "complete":
            missing = ", ".join(state.faults) or "it did not record any (Run.finish)"
            raise StageFailed(stage, f"the notebook ended without its outputs: {missing}", "", str(copy))
        manifest.add_output(opened.dir, stage, copy)
    except StageFailed as failure:
        opened.journal.append(stage=stage, event="failed", error=failure.error)
        raise
