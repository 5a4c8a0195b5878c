"""A computation in small steps between which the kernel answers, so that it can be watched and cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

PAUSE = 0.01  # seconds between two steps, for messages such as the click on a button


class Background:
    """One computation at a time, on the event loop of the kernel: there is no thread that could outlive it.

    `lock` is held while a state is shown, and not while a step is taken.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.lock = lock
        self._turn = 0
        self._task: asyncio.Task[None] | None = None  # the loop itself keeps no task alive

    @property
    def busy(self) -> bool:
        """Whether a computation goes on, or has been cancelled and has not noticed yet."""
        return self._task is not None and not self._task.done()

    def start(self, steps: Iterator[T], show: Callable[[T], None], fail: Callable[[Exception], None]) -> None:
        """Take `steps` one by one and `show` each; call `fail` where one raises. An earlier computation is cancelled.

        Without a running event loop, as in a script, all steps are taken before it returns.
        """
        self.cancel()
        work = self._run(steps, show, fail, self._turn)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(work)
        else:
            self._task = loop.create_task(work)

    def cancel(self) -> None:
        """Take no further step; the one that is being taken ends first, and is not shown."""
        with self.lock:
            self._turn += 1  # a number, and no Task.cancel: the click may come on another thread of the kernel

    async def _run(
        self, steps: Iterator[Any], show: Callable[[Any], None], fail: Callable[[Exception], None], turn: int
    ) -> None:
        if turn != self._turn:
            return
        try:
            for state in steps:
                with self.lock:
                    if turn != self._turn:
                        return
                    show(state)
                await asyncio.sleep(PAUSE)
                if turn != self._turn:
                    return
        except Exception as error:  # whatever it is: nobody reads the exception of a task
            with self.lock:
                if turn == self._turn:
                    fail(error)
