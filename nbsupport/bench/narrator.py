"""What the terminal is told while a benchmark runs: what comes, how long it may take, how far it has come."""

from __future__ import annotations

import os
import time

from nbsupport.bench.counting import Tick
from nbsupport.journal import Progress
from nbsupport.runner.progress import Echo, describe, duration


class Narrator:
    """Tells `echo` what comes, and at most every `every` seconds how far it is."""

    def __init__(self, echo: Echo, *, every: float = 5.0) -> None:
        self.say, self._every = echo, every
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Say `text` and keep it for the results."""
        self.notes.append(text)
        self.say(f"  {text}")

    def coming(self, what: str, seconds: float) -> None:
        """Say that `what` comes and takes `seconds` at most, as far as one can tell from the model's pace."""
        self.say(f"  {what}: up to about {duration(max(seconds, 0.1))}")

    def ticker(self, what: str, total: int, unit: str) -> Tick:
        """Return what is to be called with the units done of the `total`, from now on."""
        begun = told = time.monotonic()

        def tick(done: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told < self._every:
                return
            told = now
            rate = done / (now - begun)
            self.say(f"    {describe(Progress('bench', what, done, total, unit, time.time(), os.getpid(), '', rate))}")

        return tick
