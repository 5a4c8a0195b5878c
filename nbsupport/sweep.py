"""A grid of runs: every combination of data sets, presets and parameters, each in its own run folder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nbsupport import checks, cluster, files, lock, manifest, runner
from nbsupport.job import Job, plan
from nbsupport.progress import Echo

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Point:
    """One combination: its checked job, the `values` of what the grid varies, and the `error` its run ended with."""

    job: Job
    values: Mapping[str, Any]
    error: str | None = None


def read(path: Path, *, folder: Path | None = None) -> list[Point]:
    """Return the points of the grid in the YAML file `path`, all of them checked.

    The file holds a mapping with `dataset`, `preset` and `parameters`, all optional: a value or a list of values,
    and for `parameters` a mapping from names to such. `folder` is that of the notebooks, as in `job.plan`.
    Raises ValueError for a file that is not such a mapping, and whatever `job.plan` raises.
    """
    try:
        grid = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(grid, dict):
        raise ValueError(f"expected a mapping with dataset, preset and parameters in {path}, got {type(grid).__name__}")
    for name in grid:
        checks.choice(name, ("dataset", "preset", "parameters"), name=f"a key of {path}")
    named = grid.get("parameters") or {}
    if not isinstance(named, dict):
        raise ValueError(f"expected a mapping from names to lists under parameters, got {type(named).__name__}")
    axes = {
        "dataset": _values("dataset", grid.get("dataset", "digits")),
        "preset": _values("preset", grid.get("preset", "standard")),
        **{str(name): _values(str(name), values) for name, values in named.items()},
    }
    points = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        overrides = {name: value for name, value in values.items() if name in named}
        job = plan(str(values["dataset"]), str(values["preset"]), overrides, folder=folder)
        points.append(Point(job, {name: getattr(job.settings, name) for name in axes}))
    folders = [point.job.run_dir for point in points]
    twice = [str(folder) for folder in dict.fromkeys(folders) if folders.count(folder) > 1]
    if twice:
        raise ValueError(f"expected every combination of {path} once, got the same run twice: {', '.join(twice)}")
    return points


def _values(name: str, values: Any) -> list[Any]:
    listed = values if isinstance(values, list) else [values]
    if not listed or any(isinstance(value, list | dict) for value in listed):
        raise ValueError(f"expected a value or a list of values for {name}, got {values!r}")
    return listed


def run(points: Sequence[Point], echo: Echo = print, *, client: Any = None) -> list[Point]:
    """Run all `points`, here one after another or on a dask `client`, and return them with their errors.

    A run that fails does not stop the others.
    """
    errors: dict[int, str] = {}
    executors: dict[int, runner.Executor] = {}
    for number, point in enumerate(points if client is not None else ()):
        try:
            executors[number] = cluster.wait_for(cluster.submit(client, point.job))
        except lock.RunInUse as failure:
            errors[number] = str(failure)
    for number, point in enumerate(points):
        varied = ", ".join(f"{name} {value}" for name, value in point.values.items())
        echo(f"\nrun {number + 1}/{len(points)}: {varied}")
        if number not in errors:
            try:
                runner.run(point.job, echo, execute=executors.get(number))
            except (runner.StageFailed, lock.RunInUse) as failure:
                errors[number] = str(failure)
        if number in errors:
            echo(errors[number])
    return [Point(point.job, point.values, errors.get(number)) for number, point in enumerate(points)]


def combine(points: Sequence[Point], target: Path) -> list[Path]:
    """Write, for each table of the runs, `target`/<table>.csv of all runs that succeeded, and return the paths.

    Its first columns are what the grid varies; a name that the table has itself becomes `parameter_<name>`.
    `runs.csv` lists all runs with their folder and their error, empty for those that succeeded.
    """
    import pandas as pd

    tables: dict[str, list[pd.DataFrame]] = {}
    for point in points:
        if point.error is None:
            for path in _tables(point.job):
                tables.setdefault(path.stem, []).append(_with_values(pd.read_csv(path), point.values))
    listed = [{**point.values, "run_dir": str(point.job.run_dir), "error": point.error} for point in points]
    tables["runs"] = [pd.DataFrame(listed)]
    written = []
    for name, frames in tables.items():
        files.write_text(target / f"{name}.csv", pd.concat(frames, ignore_index=True).to_csv(index=False))
        written.append(target / f"{name}.csv")
    return written


def _tables(job: Job) -> list[Path]:
    recorded = manifest.read(job.run_dir)["stages"]
    outputs = [rel for stage in job.stages if stage in recorded for rel in recorded[stage]["outputs"]]
    return [job.run_dir / rel for rel in outputs if rel.endswith(".csv")]


def _with_values(frame: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame:
    named = {f"parameter_{name}" if name in frame else name: value for name, value in values.items()}
    return frame.assign(**named)[[*named, *frame.columns]]
