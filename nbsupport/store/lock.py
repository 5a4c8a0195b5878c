"""One process at a time in a run folder: a lock that ends with the process, however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nbsupport import files

NAME = ".lock"
_HOLDER = ".holder"  # the lock's own file is emptied by whoever tries to take it


class RunInUse(RuntimeError):  # noqa: N818  (read aloud where it is caught)
    """Another process runs in this folder."""


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process and clear away what killed ones left; raises RunInUse where it is taken."""
    lock = FileLock(run_dir / NAME)
    try:
        lock.acquire(timeout=0.2, poll_interval=0.01)  # `holder` has it for an instant
    except Timeout:
        raise RunInUse(
            f"{run_dir} is in use by {_text(run_dir)}; wait for it, stop it, or choose another run folder"
        ) from None
    try:
        files.remove_leftovers(run_dir)
        files.write_text(run_dir / _HOLDER, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        (run_dir / _HOLDER).unlink(missing_ok=True)
        lock.release()


def holder(run_dir: Path) -> str | None:
    """Return which process holds `run_dir`, None where none does."""
    if not (run_dir / NAME).exists():
        return None
    try:
        with FileLock(run_dir / NAME, timeout=0):
            return None
    except Timeout:
        return _text(run_dir)


def _text(run_dir: Path) -> str:
    try:
        return (run_dir / _HOLDER).read_text()
    except FileNotFoundError:
        return "another process"
