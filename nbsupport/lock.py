"""One process at a time in a run folder: a lock that ends with the process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from nbsupport import files

NAME = ".lock"


class RunInUse(RuntimeError):  # noqa: N818  (read aloud where it is caught)
    """Another process runs in this folder."""


@contextlib.contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for this process and clear away what killed ones left; raises RunInUse where it is taken."""
    with (run_dir / NAME).open("a+") as file:
        for _ in range(20):  # `holder` has the lock for an instant
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        else:
            raise RunInUse(
                f"{run_dir} is in use by {_text(run_dir)}; wait for it, stop it, or choose another run folder"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        files.remove_leftovers(run_dir)
        try:
            yield
        finally:
            file.truncate(0)


def holder(run_dir: Path) -> str | None:
    """Return which process holds `run_dir`, None where none does."""
    if not (run_dir / NAME).exists():
        return None
    with (run_dir / NAME).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _text(run_dir)
    return None


def _text(run_dir: Path) -> str:
    return (run_dir / NAME).read_text().strip() or "another process"
