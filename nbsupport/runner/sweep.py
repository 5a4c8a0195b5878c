"""A grid of runs: every combination of data sets, presets and parameters, each in its own run folder.

They run here, one after another, or on a dask scheduler: seven tasks a run, one after another, on a file system that
all workers see.
"""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nbsupport import checks, files, runner
from nbsupport.runner import Executor, Job, StageFailed, report
from nbsupport.store import STAGES, RunInUse


class NoCluster(RuntimeError):  # noqa: N818  (read aloud where it is caught)
    """The scheduler cannot be used: dask is not installed, or nobody answers at the address."""


@dataclass(frozen=True)
class Point:
    """One combination: its checked job, the `values` of what the grid varies, and the `error` its run ended with."""

    job: Job
    values: Mapping[str, Any]
    error: str | None = None


def read(path: Path, *, folder: Path | None = None) -> list[Point]:
    """Return the points of the grid in the YAML file `path`, all of them checked.

    The file holds a mapping with `dataset`, `preset` and `parameters`, all optional: a value or a list of values,
    and for `parameters` a mapping from names to such. `folder` is that of the notebooks, as in `runner.plan`.
    Raises ValueError for a file that is not such a mapping, and whatever `runner.plan` raises.
    """
    try:
        grid = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(grid, dict):
        raise ValueError(f"expected a mapping with dataset, preset and parameters in {path}, got {type(grid).__name__}")
    for name in grid:
        checks.choice(name, ("dataset", "preset", "parameters"), name=f"a key of {path}")
    named = grid.pop("parameters", None) or {}
    if not isinstance(named, dict):
        raise ValueError(f"expected a mapping from names to lists under parameters, got {type(named).__name__}")
    axes = {"dataset": "digits", "preset": "standard", **grid, **{str(name): named[name] for name in named}}
    for name, values in axes.items():
        axes[name] = values if isinstance(values, list) else [values]
        if not axes[name] or any(isinstance(value, list | dict) for value in axes[name]):
            got = "an empty list" if values == [] else "a list or mapping inside"  # however large, by YAML's aliases
            raise ValueError(f"expected a value or a list of values for {name}, got {got}")
    points = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        job = runner.plan(str(chosen.pop("dataset")), str(chosen.pop("preset")), chosen, folder=folder)
        points.append(Point(job, {name: getattr(job.settings, name) for name in axes}))
    folders = [str(point.job.run_dir) for point in points]
    if twice := [each for each in dict.fromkeys(folders) if folders.count(each) > 1]:
        raise ValueError(f"expected every combination of {path} once, got the same run twice: {', '.join(twice)}")
    return points


def run(points: Sequence[Point], echo: report.Echo = print, *, client: Any = None) -> list[Point]:
    """Run all `points`, here one after another or on a dask `client`, and return them with their errors.

    A run that fails does not stop the others.
    """
    executors = [submit(client, point.job) for point in points]
    ended = []
    for number, (point, execute) in enumerate(zip(points, executors, strict=True), 1):
        varied = ", ".join(f"{name} {value}" for name, value in point.values.items())
        echo(f"\nrun {number}/{len(points)}: {varied}")
        try:
            runner.run(point.job, echo, execute=execute)
            ended.append(point)
        except (StageFailed, RunInUse) as failure:
            echo(str(failure))
            ended.append(replace(point, error=str(failure)))
    return ended


def combine(points: Sequence[Point], target: Path) -> list[Path]:
    """Write, for each table of the runs, `target`/<table>.csv of all runs that succeeded, and return the paths.

    Its first columns are what the grid varies; a name that the table has itself becomes `parameter_<name>`.
    `runs.csv` lists all runs with their folder and their error, empty for those that succeeded.
    """
    import pandas as pd

    tables: dict[str, list[pd.DataFrame]] = {}
    for point in points:
        for name in () if point.error else report.stored(point.job.run_dir, ".csv"):
            frame = pd.read_csv(point.job.run_dir / "tables" / f"{name}.csv")
            named = {f"parameter_{n}" if n in frame else n: value for n, value in point.values.items()}
            tables.setdefault(name, []).append(frame.assign(**named)[[*named, *frame.columns]])
    tables["runs"] = [pd.DataFrame({**p.values, "run_dir": str(p.job.run_dir), "error": p.error} for p in points)]
    for name, frames in tables.items():
        files.write_text(target / f"{name}.csv", pd.concat(frames, ignore_index=True).to_csv(index=False))
    return [target / f"{name}.csv" for name in tables]


# On a dask scheduler


def connect(address: str | None) -> Any:
    """Return a dask client of the scheduler at `address`, such as tcp://head:8786; None: no client.

    Raises NoCluster.
    """
    if address is None:
        return contextlib.nullcontext()
    try:
        import distributed

        return distributed.Client(address, timeout="10s", set_as_default=False)
    except ImportError:
        raise NoCluster('--scheduler needs dask: pip install "nbsupport[cluster]"') from None
    except (OSError, ValueError) as error:
        raise NoCluster(f"no dask scheduler answers at {address}: {error}") from None


def submit(client: Any, job: Job) -> Executor | None:
    """Submit the stages of `job`, each depending on the one before; return what waits for one, for `runner.run`.

    Where another process runs in the folder, that raises RunInUse. Without a `client` it is None.
    """
    if client is None:
        return None
    job.open()  # here, so that no two processes make the folder at once
    futures: dict[str, Any] = {}
    previous = None
    for stage in STAGES:
        previous = futures[stage] = client.submit(_stage, job, stage, previous, pure=False, retries=0)
    return lambda job, stage: futures[stage].result()


def _stage(job: Job, stage: str, previous: None) -> None:
    """Run `stage` on a worker unless it is complete; the argument `previous` only puts the stages in order."""
    opened = job.open()
    with opened.lock():
        if opened.state(stage).name != "complete":
            runner.execute_stage(job, stage)
