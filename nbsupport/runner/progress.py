"""The progress of a run in the terminal, told from its journal while another process writes it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nbsupport.store import journal

Echo = Callable[[str], None]


def duration(seconds: float) -> str:
    """Return `seconds` for people, such as "12 s" or "1 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def describe(progress: journal.Progress) -> str:
    """Return one line: what, units done, rate and time left (while it goes on), and what else was reported."""
    parts = [f"{progress.what:<28} {progress.done}/{progress.total} {progress.unit}"]
    if progress.rate and not progress.complete:
        parts.append(f"{progress.rate:.3g}/s")
    if progress.time_left:
        parts.append(f"{duration(progress.time_left)} left")
    return ", ".join(parts + extras(progress))


def extras(progress: journal.Progress) -> list[str]:
    """Return what else was reported, such as "success 0.95" and "median rms 0.12" ([0, 1] units)."""
    return [
        f"{name.replace('_', ' ')} {value:.3g}"
        for name, value in progress.extra.items()
        if isinstance(value, int | float)
    ]


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
        self._tracker = journal.Tracker()
        self._bar: tqdm[Any] | None = None
        self._last_line = time.monotonic()
        self._rest = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Follower:
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.poll()
        self._close()

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self.poll()

    def poll(self) -> None:
        """Show what the journal has gained; half a line waits for its other half."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            gained = file.read()
        self._offset += len(gained)
        *lines, self._rest = (self._rest + gained).split(b"\n")
        for entry in journal.parse(lines):
            if entry.get("event") == "warning":
                self._line(f"  warning: {entry.get('message')}")
            progress = self._tracker.update(entry)
            if progress is not None:
                self._show(progress, entry)

    def _show(self, progress: journal.Progress, entry: dict[str, Any]) -> None:
        if entry["event"] == "damaged":
            self._line(f"  damaged, computed again: {entry.get('path')} ({entry.get('why')})")
        elif entry["event"] == "outdated":
            self._line(f"  out of date, computed again: {progress.what} ({entry.get('why')})")
        elif entry["event"] == "reused":
            self._line(f"  {progress.what:<28} {progress.total} {progress.unit}, reused")
        elif self._bars:
            self._draw(progress)
        elif progress.complete or time.monotonic() - self._last_line >= self._every:
            self._line(f"  {describe(progress)}")

    def _draw(self, progress: journal.Progress) -> None:
        title = f"  {progress.what}"
        if self._bar is None or self._bar.desc != title:
            self._close()
            unit = f" {progress.unit}"
            self._bar = tqdm(desc=title, total=progress.total, initial=progress.done, unit=unit, dynamic_ncols=True)
        self._bar.n = progress.done
        self._bar.set_postfix_str(", ".join(extras(progress)), refresh=True)
        if progress.complete:
            self._close()

    def _line(self, text: str) -> None:
        self._close()
        self._echo(text)
        self._last_line = time.monotonic()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
