"""The progress of a run in the terminal, told from its journal while another process writes it."""

import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from nbsupport.store import journal

Echo = Callable[[str], None]
_LINES = {  # of the events that are told at once, also on a terminal
    "warning": "  warning: {message}",
    "damaged": "  damaged, computed again: {path} ({why})",
    "outdated": "  out of date, computed again: {what} ({why})",
    "reused": "  {what:<28} {total} {unit}, reused",
}


def duration(seconds: float) -> str:
    """Return `seconds` for people, such as "12 s" or "1 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe(progress: journal.Progress) -> str:
    """Return one line: what, units done, rate and time left (while it goes on), and what else was reported."""
    parts = [f"{progress.what:<28} {progress.done}/{progress.total} {progress.unit}"]
    if progress.rate and not progress.complete:
        parts += [f"{progress.rate:.3g}/s", f"{duration(progress.time_left or 0)} left"]
    return ", ".join(parts + extras(progress))


def extras(progress: journal.Progress) -> list[str]:
    """Return what else was reported, such as "success 0.95" and "median rms 0.12" ([0, 1] units)."""
    numbers = {name: value for name, value in progress.extra.items() if isinstance(value, int | float)}
    return [f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items()]


def _has_room() -> bool:
    """Return whether the errors go to a terminal with lines and columns; some have none, and would show no bar."""
    return sys.stderr.isatty() and 0 not in os.get_terminal_size(sys.stderr.fileno())


class Follower:
    """A context in which the terminal follows the journal of `run_dir`, from its present end on.

    On a terminal every piece of work has a progress bar; elsewhere, such as in a log file, it has a plain line
    when it is finished and one every `every` seconds before.
    """

    def __init__(self, run_dir: Path, echo: Echo = print, *, bars: bool | None = None, every: float = 5.0) -> None:
        self._path, self._echo, self._every = run_dir / journal.NAME, echo, every
        self._bars = _has_room() if bars is None else bars
        self._tracker, self._rest = journal.Tracker(), b""
        self._bar: tqdm[Any] = tqdm(disable=True)  # as one that is closed
        self._last_line = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._file = self._path.open("a+b")  # which is read from its end on
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.poll()
        self._bar.close()
        self._file.close()

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self.poll()

    def poll(self) -> None:
        """Show what the journal has gained; half a line waits for its other half."""
        lines, _, self._rest = (self._rest + self._file.read()).rpartition(b"\n")
        for entry in journal.parse(lines.splitlines()):
            progress = self._tracker.update(entry)
            if entry["event"] in _LINES:
                self._line(_LINES[entry["event"]].format_map(defaultdict(str, entry)))
            elif progress is not None and self._bars:
                self._draw(progress)
            elif progress is not None and (progress.complete or time.monotonic() - self._last_line >= self._every):
                self._line(f"  {describe(progress)}")

    def _draw(self, progress: journal.Progress) -> None:
        title, unit = f"  {progress.what}", f" {progress.unit}"
        if self._bar.disable or self._bar.desc != title:
            self._bar.close()
            self._bar = tqdm(desc=title, total=progress.total, initial=progress.done, unit=unit, dynamic_ncols=True)
        self._bar.n = progress.done
        self._bar.set_postfix_str(", ".join(extras(progress)), refresh=True)
        if progress.complete:
            self._bar.close()

    def _line(self, text: str) -> None:
        self._bar.close()
        self._echo(text)
        self._last_line = time.monotonic()
