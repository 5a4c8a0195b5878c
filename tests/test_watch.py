"""A kernel that will never answer is given up and leaves no process, one that takes long is let be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tiny_notebooks import write

from nbsupport.runner import StageFailed, notebooks, watch
from nbsupport.runner.watch import IDLE, SILENT, Watch


def looked(monkeypatch: pytest.MonkeyPatch, subject: Watch, looks: Sequence[tuple[bool, float]]) -> list[bool]:
    """Return what `subject` says of a kernel of 3 GB, 1 GB of them mapped, that beats and computes as `looks` say."""
    answers = []
    for beats, seconds in looks:
        memory, times = SimpleNamespace(rss=3 * 2**30, shared=2**30), SimpleNamespace(user=seconds, system=0)
        process = SimpleNamespace(memory_info=lambda: memory, cpu_times=lambda: times)  # noqa: B023
        monkeypatch.setattr(psutil, "Process", lambda pid: process)  # noqa: B023
        answers.append(subject.gives_up(1, beats=beats))
    return answers


BUSY = [(True, float(second)) for second in range(3 * IDLE)]
DEAF = [(False, float(second)) for second in range(SILENT)]
ASLEEP = [(True, 1.5)] * (IDLE + 1)


@pytest.mark.parametrize(
    ("looks", "why"),
    [
        (BUSY, ""),
        (DEAF, "the kernel did not answer for 120 seconds"),
        ([*DEAF[1:], (True, 0.0), *DEAF[1:]], ""),
        (ASLEEP, "the kernel computed nothing for 30 minutes"),
        ([*ASLEEP[1:], (True, 2.6), *ASLEEP[1:-1]], ""),
    ],
    ids=["busy", "deaf", "deaf for a while", "asleep", "awake once"],
)
def test_what_is_past_hope(monkeypatch: pytest.MonkeyPatch, looks: Sequence[tuple[bool, float]], why: str) -> None:
    subject = Watch()
    answers = looked(monkeypatch, subject, looks)
    assert answers == [False] * (len(looks) - 1) + [bool(why)]
    assert subject.why.startswith(why)


def test_memory_is_bounded_without_the_files_that_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Watch(memory=2**31)
    assert looked(monkeypatch, subject, [(True, 0)]) == [False]
    subject.memory = 2**31 - 1
    assert looked(monkeypatch, subject, [(True, 0)]) == [True]
    assert subject.why == "the kernel held 2.0 GB of memory, its worker has 2.0 GB"


def test_a_kernel_that_has_ended_is_not_watched() -> None:
    assert not Watch(memory=0, cancelled=lambda: True).gives_up(2**22 + 1, beats=False)


def execute(tmp_path: Path, cell: str, subject: Watch) -> None:
    """Run `cell` in a kernel that leaves its number in the file `pid`."""
    source = write(
        tmp_path / "a.ipynb", [f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))", cell]
    )
    notebooks.execute(source, tmp_path / "out" / "a.ipynb", {}, cwd=tmp_path, watch=subject)


def gone(tmp_path: Path) -> bool:
    return not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_a_stopped_kernel_is_told_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SILENT", 3)
    with pytest.raises(StageFailed, match="did not answer for 3 seconds: it was stopped"):
        execute(tmp_path, "import signal; os.kill(os.getpid(), signal.SIGSTOP)", Watch())
    assert gone(tmp_path)


HOLDS_THE_INTERPRETER = """
import ctypes
handle = os.open({pipe!r}, os.O_RDWR)
ctypes.PyDLL(None).read(handle, ctypes.create_string_buffer(1), 1)
"""


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.slow
def test_a_kernel_that_holds_the_interpreter_answers_and_is_let_be(tmp_path: Path, pipe: Path) -> None:
    class Recording(Watch):
        answered = 0

        def gives_up(self, pid: int, **look: Any) -> bool:
            self.answered += look["beats"]
            if self.answered == 3:
                pipe.write_bytes(b"x")  # what the cell waits for
            return super().gives_up(pid, **look)

    subject = Recording()
    execute(tmp_path, HOLDS_THE_INTERPRETER.format(pipe=str(pipe)), subject)
    assert subject.answered >= 3


@pytest.mark.slow
def test_a_kernel_that_waits_for_ever_is_told_and_killed(
    tmp_path: Path, pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "IDLE", 3)
    with pytest.raises(StageFailed, match="computed nothing for"):
        execute(tmp_path, HOLDS_THE_INTERPRETER.format(pipe=str(pipe)), Watch())
    assert gone(tmp_path)


@pytest.mark.slow
def test_a_notebook_that_nobody_waits_for_is_ended(tmp_path: Path, pipe: Path) -> None:
    with pytest.raises(CancelledError):
        execute(tmp_path, f"open({str(pipe)!r}).read()", Watch(cancelled=(tmp_path / "pid").exists))
    assert gone(tmp_path)
