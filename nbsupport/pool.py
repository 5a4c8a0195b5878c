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


def rows(state: State, keep: Tensor) -> State:
    """Return the rows `keep` (mask or index) of every tensor of `state`."""
    return {name: tensor[keep] for name, tensor in state.items()}


def drain(jobs: Jobs, count: int, *, slots: int, every: int, device: torch.device) -> None:
    """Run jobs 0..count-1 through at most `slots` slots, retiring and refilling after `every` steps.

    The device stays full until no job waits, memory depends on `slots` alone, and the host waits for the device
    once in `every` steps. A job always starts right after a check, so the number of steps spent on it does not
    depend on its neighbours. Returns at once when `count` is 0. Raises ValueError where `slots` or `every` is below 1.
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
        finished = int(done.sum())  # the one synchronisation with the device
        if not finished:
            continue
        jobs.finish(rows(state, done))
        fresh = min(finished, count - started)
        if fresh == 0 and finished == done.numel():
            return
        state = rows(state, ~done)
        if fresh:
            entering = jobs.start(torch.arange(started, started + fresh, device=device))
            state = {name: torch.cat((tensor, entering[name])) for name, tensor in state.items()}
            started += fresh
