"""The journal of a run: one JSON line for each step forward, which other processes read while it grows."""

import errno
import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"
_LATELY = 10  # reports that a rate is taken from
_OWN = ("time", "pid", "host", "stage", "what", "done", "total", "unit")


@dataclass(frozen=True)
class Progress:
    """How far one piece of work of a stage has come.

    Parameters
    ----------
    stage, what : str
        The notebook and the piece of work, such as `03_attacks` and `normal/FGSM`.
    done, total : int
        Units finished and units in all.
    unit : str
        What is counted, in the plural.
    time : float
        Seconds since the epoch of the last report.
    pid, host : int, str
        The process that reported, and its machine.
    rate : float or None
        Units a second over the last reports since the work was started or resumed; None before the second.
    extra : dict
        What else the last report said, such as the success so far.
    """

    stage: str
    what: str
    done: int
    total: int
    unit: str
    time: float
    pid: int
    host: str
    rate: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self.total

    @property
    def time_left(self) -> float | None:
        """Seconds left at this rate, None where the rate is not known."""
        if self.complete:
            return 0.0
        return (self.total - self.done) / self.rate if self.rate else None


class Journal:
    """The journal in `run_dir`, to which any number of processes may append.

    Every line is one `write` to a file opened for appending, so lines of several processes never mix. A process
    that is killed, or a disk that is full, can leave half a line at the end: the next writer closes it and
    readers skip it.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / NAME
        self._checked = False

    def report(
        self, stage: str, what: str, done: int, total: int, unit: str = "images", event: str = "progress", **extra: Any
    ) -> None:
        """Append that `done` of `total` units of `what` are finished.

        `event` is "started" or "resumed" (the rate counts from here), "progress", "reused" (found complete),
        "damaged" or "outdated" (what is stored is computed again; `extra` says why). Values in `extra` are numbers or
        text.
        Raises OSError where the disk is full.
        """
        self.append(stage=stage, what=what, done=done, total=total, unit=unit, event=event, **extra)

    def append(self, **entry: Any) -> None:
        """Append one line with the time, the process and `entry`; a `message` of the event "warning" is shown."""
        stamped = {"time": round(time.time(), 6), "pid": os.getpid(), "host": socket.gethostname(), **entry}
        data = json.dumps(stamped).encode() + b"\n"
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if not self._checked and _torn(descriptor):
                data = b"\n" + data
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            self._checked = True
        finally:
            os.close(descriptor)


def _torn(descriptor: int) -> bool:
    if os.fstat(descriptor).st_size == 0:
        return False
    os.lseek(descriptor, -1, os.SEEK_END)
    return os.read(descriptor, 1) != b"\n"


def parse(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return the entries among `lines`, skipping those that are torn or not what `Journal` writes."""
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and _well_formed(entry):
            entries.append(entry)
    return entries


def _well_formed(entry: dict[str, Any]) -> bool:
    """Return whether `entry` has the fields of every line and, where it reports work, those of a report."""
    kinds: dict[str, type | tuple[type, ...]] = {"time": (int, float), "pid": int, "host": str, "stage": str}
    kinds |= {"event": str}
    if "what" in entry:
        kinds |= {"what": str, "done": int, "total": int, "unit": str}
    return all(isinstance(entry.get(name), kind) for name, kind in kinds.items())


def read(run_dir: str | Path) -> list[dict[str, Any]]:
    """Return all entries of the journal in `run_dir`, oldest first; none where there is no journal yet."""
    path = Path(run_dir) / NAME
    return parse(path.read_bytes().splitlines()) if path.exists() else []


class Tracker:
    """The latest progress of each piece of work, from entries given one by one; `latest` keeps their order."""

    def __init__(self) -> None:
        self.latest: dict[tuple[str, str], Progress] = {}
        # The last reports: an epoch may take ten times as long as the ones before it.
        self._lately: dict[tuple[str, str], deque[tuple[float, int]]] = {}

    def update(self, entry: dict[str, Any]) -> Progress | None:
        """Return the progress that `entry` reports, None where it is about something else."""
        if "what" not in entry:
            return None
        key = entry["stage"], entry["what"]
        now, done = entry["time"], entry["done"]
        before = self.latest.get(key)
        anew = before is None or done < before.done or entry["pid"] != before.pid
        if anew or entry["event"] in ("started", "resumed", "reused"):
            self._lately[key] = deque(maxlen=_LATELY)
        self._lately[key].append((now, done))
        since, first = self._lately[key][0]
        rate = (done - first) / (now - since) if done > first and now > since else None
        extra = {name: value for name, value in entry.items() if name not in (*_OWN, "event")}
        self.latest[key] = Progress(**{name: entry[name] for name in _OWN}, rate=rate, extra=extra)
        return self.latest[key]


def summary(entries: Iterable[dict[str, Any]]) -> list[Progress]:
    """Return the latest progress of each piece of work, in the order in which they were first reported."""
    tracker = Tracker()
    for entry in entries:
        tracker.update(entry)
    return list(tracker.latest.values())
