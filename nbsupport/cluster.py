"""Runs as task graphs on a dask scheduler: six tasks a run, one after another, on a file system all workers see."""

from __future__ import annotations

from typing import Any

from nbsupport import lock, runner
from nbsupport.job import Job


class NoCluster(RuntimeError):  # noqa: N818  (read aloud where it is caught)
    """The scheduler cannot be used: dask is not installed, or nobody answers at the address."""


def connect(address: str) -> Any:
    """Return a dask client of the scheduler at `address`, such as tcp://head:8786; raises NoCluster."""
    try:
        import distributed
    except ImportError:
        raise NoCluster('--scheduler needs dask: pip install "nbsupport[cluster]"') from None
    make_client: Any = distributed.Client
    try:
        return make_client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise NoCluster(f"no dask scheduler answers at {address}: {error}") from None


def submit(client: Any, job: Job) -> dict[str, Any]:
    """Submit the stages of `job`, each depending on the one before, and return their futures by name.

    Raises lock.RunInUse where a process runs in the folder already.
    """
    job.open()
    if user := lock.holder(job.run_dir):
        raise lock.RunInUse(f"{job.run_dir} is in use by {user}; wait for it, or stop it")
    futures: dict[str, Any] = {}
    previous = None
    for stage in job.stages:
        previous = futures[stage] = client.submit(_stage, job, stage, previous, pure=False, retries=0)
    return futures


def wait_for(futures: dict[str, Any]) -> runner.Executor:
    """Return what `runner.run` calls to have a stage executed: it waits for the stage's future."""

    def execute(job: Job, stage: str) -> None:
        futures[stage].result()

    return execute


def _stage(job: Job, stage: str, previous: None) -> None:
    """Run `stage` on a worker unless it is complete; the argument `previous` only puts the stages in order."""
    opened = job.open()
    with opened.lock():
        if not opened.is_complete(stage)[0]:
            runner.execute_stage(job, stage)
