"""A grid of runs: every combination of data sets, presets and parameters, each in its own run folder.

They run side by side on a dask cluster, of this machine or another, or here one after another. A run is seven tasks,
each depending on the one before, on a file system that all workers see.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nbsupport import checks, files, runner
from nbsupport.runner import Executor, Job, StageFailed, report
from nbsupport.runner.watch import Watch
from nbsupport.store import STAGES, RunInUse

_PATIENCE = 10  # seconds in which a scheduler has to answer
_SHARE = 4 * 2**30  # bytes of memory for a worker of the local cluster


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
    """Run all `points`, here one after another or side by side on a dask `client`, and return them with their errors.

    A run that fails does not stop the others. Side by side, each line begins with the number of its run.
    """

    def follow(number: int, point: Point, execute: Executor | None) -> Point:
        varied = ", ".join(f"{name} {value}" for name, value in point.values.items())
        echo(f"\nrun {number}/{len(points)}: {varied}")

        def told(text: str) -> None:
            echo(textwrap.indent(text, f"[{number}/{len(points)}] ") if client else text)

        try:
            runner.run(point.job, told, execute=execute, bars=False if client else None)
        except (StageFailed, RunInUse, files.DamagedArtifact, OSError) as failure:
            told(str(failure))
            return replace(point, error=str(failure) or type(failure).__name__)
        return point

    with ThreadPoolExecutor(max(1, len(points))) as pool, submit(client, [point.job for point in points]) as executors:
        side_by_side = pool.map if client else map  # without a cluster in this thread, which Ctrl-C interrupts
        return list(side_by_side(follow, itertools.count(1), points, executors))


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


# On a dask cluster


@contextlib.contextmanager
def connect(address: str | None, echo: report.Echo = print) -> Iterator[Any]:
    """Yield a dask client of the scheduler at `address`, such as tcp://head:8786; where that is None, no client.

    Raises NoCluster where dask is absent, or no scheduler has answered within ten seconds.
    """
    if address is None:
        yield None
        return
    try:
        import distributed

        distributed.utils.LoopRunner().run_sync(_require_scheduler, distributed, address)
        client = distributed.Client(address, timeout=_PATIENCE, set_as_default=False)
    except ImportError:
        raise NoCluster('--scheduler needs dask: pip install "nbsupport[cluster]"') from None
    except (OSError, ValueError) as error:
        why = str(error) or f"no word in {_PATIENCE} seconds"
        raise NoCluster(f"no dask scheduler answers at {address}: {why}") from None
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # a lost connection is told by `_wait`
    with client:
        if not client.nthreads():
            echo(f"the scheduler at {address} has no worker yet: waiting for one")
        yield client


async def _require_scheduler(distributed: Any, address: str) -> None:
    """Raise OSError or ValueError unless a scheduler answers at `address`; dask's own Client would wait for ever."""
    arguments = distributed.Security().get_connection_args("client")
    try:
        async with distributed.rpc(address, connection_args=arguments) as server:
            kind = (await asyncio.wait_for(server.identity(), _PATIENCE))["type"]
    except MemoryError:  # the first bytes of another protocol, read as a length
        kind = "server of another kind"
    if kind != "Scheduler":
        raise ValueError(f"a {kind} is there")


@contextlib.contextmanager
def local(runs: int, echo: report.Echo = print) -> Iterator[Any]:
    """Yield a dask client of a cluster on this machine that lasts as long as the block; None where there is none.

    It has a worker process for each core, at most as many as `runs` and none with less than 4 GB of memory, and each
    may take its share of the memory. There is none without dask, on a machine for one worker, and where all would
    compute on one GPU; `echo` is told.
    """
    from nbsupport import runtime

    with contextlib.ExitStack() as stack:
        client, why = None, 'pip install "nbsupport[cluster]" lets them run side by side'
        with contextlib.suppress(ImportError):
            import dask
            import distributed

            memory = distributed.system.MEMORY_LIMIT
            workers = min(runs, dask.system.CPU_COUNT, max(1, memory // _SHARE))
            if runtime.best_device().type != "cpu":
                why = "they share this machine's GPU"
            elif workers < 2:
                why = "nothing would run beside them"
            else:
                options = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL}
                options |= {"n_workers": workers, "memory_limit": memory // workers}
                cluster = stack.enter_context(distributed.LocalCluster(**options))
                cluster.adapt(minimum=workers, maximum=workers)  # one whose nanny gave up is replaced
                client = stack.enter_context(distributed.Client(cluster, set_as_default=False))
                share = f"{memory / workers / 2**30:.1f} GB of memory"
                echo(f"runs go side by side on {workers} workers of this machine, each with {share}")
        if client is None:
            echo(f"runs go one after another in this process: {why}")
        yield client


@contextlib.contextmanager
def submit(client: Any, jobs: Sequence[Job]) -> Iterator[Sequence[Executor | None]]:
    """Yield, for each of `jobs`, what waits for one of its stages, for `runner.run`; without a `client`, None.

    All stages are submitted, each depending on the one before. With more workers than jobs, the shards of a stage are
    computed by all of them. What is still to do when the block ends is cancelled, what runs is stopped, and the folders
    are let go.
    """
    if client is None:
        yield [None] * len(jobs)
        return
    for job in jobs:
        job.open()  # here, so that no two processes make the folder at once, and the threads are those of this machine
    shared = len(jobs) < len(client.nthreads())
    chains = [_chain(client, job, priority=-number, shared=shared) for number, job in enumerate(jobs)]
    try:
        yield [functools.partial(_wait, client, chain) for chain in chains]
    finally:
        pending = [any(future.status == "pending" for future in chain.values()) for chain in chains]
        if any(pending):
            client.cancel([future for chain in chains for future in chain.values()])
        for job in itertools.compress(jobs, pending):
            with contextlib.suppress(RunInUse), job.open().lock(patience=30):
                pass  # the worker has let go


def _chain(client: Any, job: Job, *, priority: int, shared: bool) -> dict[str, Any]:
    """Return a future for each stage of `job`; where workers are few, those of the highest priority come first."""
    futures: dict[str, Any] = {}
    previous = None
    for stage in STAGES:
        previous = futures[stage] = client.submit(_stage, job, stage, previous, shared, pure=False, priority=priority)
    return futures


def _wait(client: Any, futures: Mapping[str, Any], job: Job, stage: str) -> None:
    """Wait until the `stage` of `job` has run; raises what it raised, and OSError where the scheduler is gone."""
    import distributed

    try:
        futures[stage].result()
    except distributed.scheduler.KilledWorker as error:
        why = f"the worker died in it, and so did {error.allowed_failures} that tried again"
        raise StageFailed(stage, why, "", str(job.run_dir / "notebooks" / f"{stage}.ipynb")) from None
    except CancelledError:
        if client.status == "running":  # it was `submit`
            raise
        raise ConnectionError("the dask scheduler is gone") from None


def _stage(job: Job, stage: str, previous: None, shared: bool) -> None:
    """Run `stage` on a worker unless it is complete; the argument `previous` only puts the stages in order.

    If its shards are `shared` by all workers, this one takes others while the stage waits for them.
    """
    import distributed

    opened, watch, scheduler = job.open(), _watch(), None
    if shared:
        scheduler = distributed.get_worker().scheduler.address
        distributed.secede()
    with opened.lock():
        if opened.state(stage).name != "complete":
            runner.execute_stage(job, stage, watch=watch, scheduler=scheduler)


def _watch() -> Watch:
    """Return a watch over the kernel of the task that this thread of a worker runs."""
    import distributed

    worker = distributed.get_worker()
    key, tasks = worker.get_current_task(), worker.state.tasks

    def cancelled() -> bool:  # by its client, or because that is gone
        return getattr(tasks.get(key), "state", "cancelled") == "cancelled"

    return Watch(memory=worker.memory_manager.memory_limit, cancelled=cancelled)
