"""Shards of one run on the workers of a dask cluster, where the run was given one; else here, one after another."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from nbsupport.record import Record

ADDRESS = "NBSUPPORT_SCHEDULER"  # the environment variable that names the scheduler


@dataclass
class Work:
    """A kernel and all that every shard is given; it may travel to a worker."""

    kernel: Callable[..., Record]
    model: nn.Module
    settings: Mapping[str, Any]  # tensors are moved once to the device of the model
    seed: Sequence[object] | None  # of the generator that each shard is given anew, so that all share its draws

    def __post_init__(self) -> None:
        self.device: Any = None

    def __call__(self, x: Any, *rows: Any, **each: Any) -> Record:
        """Return what the kernel makes of the images `x` and of what belongs to them."""
        import torch

        from nbsupport import runtime

        device = runtime.device_of(self.model, x)
        if self.device != device:  # a thousand directions of 3 x 224 x 224 are .6 GB: not moved for every shard
            values = self.settings.items()
            self.settings = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in values}
            self.device = device
        options = {**each, **self.settings}
        if self.seed is not None:
            options["generator"] = runtime.seeded(*self.seed)  # type: ignore[arg-type]
        return self.kernel(self.model, x, *rows, **options)


Shard = tuple[Sequence[Any], Mapping[str, Any]]  # what one call of a `Work` is given, by position and by name


def results(work: Work, shards: Sequence[Shard]) -> Iterator[Record]:
    """Yield the result of each of the `shards` in order, on the CPU.

    Where `$NBSUPPORT_SCHEDULER` names a dask scheduler they are computed on its workers, all asked for at once; one
    whose worker dies is computed by another. Raises what the kernel raised.
    """
    address = os.environ.get(ADDRESS)
    if address is None or len(shards) < 2:
        yield from (work(*rows, **each).to("cpu") for rows, each in shards)
        return
    import distributed
    import torch

    from nbsupport import runtime

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
    torch.set_num_threads(threads)
    work.model.to(own)
    return work(*rows, **each).to("cpu")
