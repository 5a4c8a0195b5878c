"""A pool of slots: many independent jobs share one batch; finished jobs leave and waiting ones take their place."""

from typing import Protocol

import torch
from torch import Tensor

from nbsupport import checks

State = dict[str, Tensor]  # one row of every tensor for each occupied slot


class Jobs(Protocol):
    """What a pool needs to know of its jobs. A job's rows must not depend on what else is in the batch."""

    def start(self, index: Tensor) -> State:
        """Return the initial state of the jobs `index` (rows,) int64."""

    def step(self, state: State) -> object:
        """Advance every row of `state` by one step, in place; rows already done must keep their result."""

    def done(self, state: State) -> Tensor:
        """Return which rows (rows,) bool are finished."""

    def finish(self, state: State) -> None:
        """Store the results of the finished rows of `state`."""


def rows(state: State, index: Tensor) -> State:
    """Return the rows `index` (R,) int64 of every tensor of `state`."""
    return {name: tensor.index_select(0, index) for name, tensor in state.items()}


def drain(jobs: Jobs, count: int, *, slots: int, every: int, device: torch.device) -> None:
    """Run jobs 0..count-1 through at most `slots` slots, retiring and refilling after `every` steps.

    The device stays full until no job waits, memory depends on `slots` alone, and the host waits for the device
    once in `every` steps, where it looks who is finished. A job always starts right after a look, so the number of
    steps spent on it does not depend on its neighbours. Returns at once when `count` is 0. Raises ValueError where
    `slots` or `every` is below 1.
    """
    checks.count(slots, name="slots")
    checks.count(every, name="every")
    if count == 0:
        return
    started = min(slots, count)
    state = jobs.start(torch.arange(started, device=device))
    while True:
        for _ in range(every):
            jobs.step(state)
        done = jobs.done(state)
        finished = int(done.sum())  # the one wait for the device
        if not finished:
            continue
        running = done.numel() - finished
        # An index, made without waiting: to pick rows by a mask waits once for every tensor of the state.
        order = done.byte().argsort(stable=True)
        jobs.finish(rows(state, order[running:]))
        fresh = min(finished, count - started)
        if fresh == 0 and running == 0:
            return
        state = rows(state, order[:running])
        if fresh:
            entering = jobs.start(torch.arange(started, started + fresh, device=device))
            state = {name: torch.cat((tensor, entering[name])) for name, tensor in state.items()}
            started += fresh
