"""One event of a widget at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Locked(Protocol):
    """What has a lock."""

    @property
    def lock(self) -> threading.RLock:
        """Held while an event is answered."""


S = TypeVar("S", bound=Locked)


def in_turn(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Return `method` such that it waits until no other event is answered under the same lock.

    JupyterLab sends the events of widgets to a subshell of the kernel, which is a thread beside the one of the cells.
    """

    @functools.wraps(method)
    def alone(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    return alone
