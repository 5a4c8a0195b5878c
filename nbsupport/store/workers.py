"""Shards of one run on the workers of a dask cluster, where the run was given one; else here, one after another."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nbsupport.record import Record

ADDRESS = "NBSUPPORT_SCHEDULER"  # the environment variable that names the scheduler
_ALONE = threading.Lock()  # a kernel switches the model's mode: one shard at a time in a worker of several threads


@dataclass
class Work:
    """A kernel and all that every shard is given; it may travel to a worker."""

    kernel: Callable[..., Record]
    model: nn.Module
    settings: Mapping[str, Any]
    seed: Sequence[Any] | None  # of the generator that each shard is given anew, so that all share its draws
    device: torch.device | None = None  # where the model and the settings are, once `on` has moved them

    def on(self, device: torch.device) -> Self:
        """Move the model and the settings to `device`: once, since a thousand directions of 3 x 224 x 224 are .6 GB."""
        import torch

        if self.device != device:
            self.model.to(device)
            values = self.settings.items()
            self.settings = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in values}
            self.device = device
        return self

    def compute(self, rows: Sequence[Any], each: Mapping[str, Any]) -> Record:
        """Return what the kernel makes of one shard, on the CPU."""
        from nbsupport import runtime

        options = {**each, **self.settings}
        if self.seed is not None:
            options["generator"] = runtime.seeded(*self.seed)
        return self.kernel(self.model, *rows, **options).to("cpu")


Shard = tuple[Sequence[Any], Mapping[str, Any]]  # what the kernel is given by position (the images first) and by name


def results(work: Work, shards: Sequence[Shard]) -> Iterator[Record]:
    """Yield the result of each of the `shards` in order, on the CPU.

    Where `$NBSUPPORT_SCHEDULER` names a dask scheduler they are computed on its workers, all asked for at once; one
    whose worker dies is computed by another. Raises what the kernel raised.
    """
    import torch

    from nbsupport import runtime

    address = os.environ.get(ADDRESS)
    if address is None or len(shards) < 2:
        for rows, each in shards:
            yield work.on(runtime.device_of(work.model, rows[0])).compute(rows, each)
        return
    import distributed

    here = runtime.best_device().type, torch.get_num_threads()
    with distributed.Client(address, set_as_default=False) as client:
        sent = client.submit(_handed, work, pure=False)  # a task can be repeated where the worker that has it dies
        futures = [client.submit(_there, sent, *here, rows, each, pure=False) for rows, each in shards]
        try:
            yield from (future.result() for future in futures)
        finally:
            with contextlib.suppress(OSError):  # the scheduler is gone, and they with it
                client.cancel(futures)


def _handed(work: Work) -> Work:
    return work


def _there(work: Work, device: str, threads: int, rows: Sequence[Any], each: Mapping[str, Any]) -> Record:
    """Return the result of one shard, computed as the process that asked would have: on so many threads."""
    import torch

    from nbsupport import runtime

    if (own := runtime.best_device()).type != device:
        raise RuntimeError(f"expected workers that compute on {device}, as the notebook does, got one on {own.type}")
    with _ALONE:
        torch.set_num_threads(threads)
        return work.on(own).compute(rows, each)
