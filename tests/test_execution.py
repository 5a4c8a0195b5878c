"""A notebook in a fresh kernel, and what becomes of the kernel when its parent ends."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_notebooks import write

from nbsupport import execution
from nbsupport.execution import NotebookFailed

BLOCK = """
import os
pipe = os.open({pipe!r}, os.O_WRONLY)
os.write(pipe, b"x")
os.read(os.open({never!r}, os.O_RDONLY), 1)
"""


@pytest.mark.slow
def test_a_kernel_that_dies_is_told(tmp_path: Path) -> None:
    source = write(tmp_path / "a.ipynb", ["import os; os.write(2, b'last words'); os._exit(9)"])
    with pytest.raises(NotebookFailed, match="the kernel died, out of memory perhaps") as caught:
        execution.execute(source, tmp_path / "out" / "a.ipynb", {"dataset": "digits"}, cwd=tmp_path)
    assert caught.value.traceback == "last words"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.ipynb"]


def test_a_full_disk_leaves_no_half_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import papermill

    def execute(source: str, target: str, **options: object) -> None:
        Path(target).write_text("half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    with pytest.raises(OSError, match="No space left"):
        execution.execute(write(tmp_path / "a.ipynb", []), tmp_path / "out" / "a.ipynb", {}, cwd=tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def read(pipe: int) -> bytes:
    """Return what is written to `pipe`, or nothing when its last writer is gone; fails when neither happens."""
    assert select.select([pipe], [], [], 60)[0], "the kernel neither started nor ended within a minute"
    return os.read(pipe, 1)


@pytest.fixture
def blocked(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command line whose first notebook blocks, and a pipe that its kernel holds open as long as it lives."""
    for name in ("pipe", "never"):
        os.mkfifo(tmp_path / name)
    cell = BLOCK.format(pipe=str(tmp_path / "pipe"), never=str(tmp_path / "never"))
    write(tmp_path / "notebooks" / "01_datasets.ipynb", [cell])
    code = f"""
import signal
from pathlib import Path
from nbsupport import cli, job, notebooks
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
job.STAGES = ("01_datasets",)
notebooks.FOLDER = Path({str(tmp_path / "notebooks")!r})
cli.main(["run", "--preset", "smoke", "--run-dir", "run"])
"""
    root = str(Path(execution.__file__).parents[1])
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": root}, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    ) as child:
        pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        assert read(pipe) == b"x"
        yield child, pipe
        os.close(pipe)
        child.kill()


@pytest.mark.slow
def test_the_kernel_of_a_killed_run_ends(blocked: tuple[subprocess.Popen[str], int]) -> None:
    child, pipe = blocked
    child.send_signal(signal.SIGKILL)
    assert read(pipe) == b""  # the end of the pipe: nobody holds it open


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(blocked: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    child, pipe = blocked
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=120)
    assert child.returncode == 130
    assert told.strip() == "Interrupted. To go on where it stopped, give the same command again."
    assert read(pipe) == b""
    assert not [path.name for path in (tmp_path / "run" / "notebooks").iterdir() if path.name.startswith(".")]
