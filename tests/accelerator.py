"""A device made of CPU memory: it shows, without a GPU, what a GPU would refuse and where it would make the host wait.

Within `StandIn()` a tensor made on the device "meta", or moved there, holds real numbers and obeys a GPU's rules:

- an operation on tensors of both devices raises `MixedError` (0-d tensors of the host, copies, and indices may mix);
- a generator of the CPU cannot draw on the device, which raises `MixedError` too;
- whatever makes the host wait for the device is recorded, with the line of the package that asked for it: a value read,
  a shape that depends on values (`nonzero`, masks, `repeat_interleave`, `unique`), a copy to the host, and a copy from
  the host that is not `non_blocking`, for which torch waits as well.

It knows no autocast and no inference mode (it is no_grad here), nor TF32, streams, memory or speed.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

import nbsupport
from nbsupport import pool

DEVICE = torch.device("meta")
_PACKAGE = str(Path(nbsupport.__file__).parent)
_READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPIES = {"_to_copy", "copy_"}


class MixedError(Exception):
    """What a GPU refuses: tensors of two devices, or a generator of another one."""


@dataclass(frozen=True)
class Wait:
    """One wait of the host: for what, asked in which line, and where in the pool.

    `within` is the method of a pool's job that asked ("step", "done", "start", "finish"), "drain" for the pool itself,
    and empty outside of it.
    """

    what: str
    line: str
    within: str


class OnDevice(Tensor):
    """A tensor on the device; `host` is the CPU tensor that holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        alike = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        return Tensor._make_wrapper_subclass(cls, host.size(), device=DEVICE, **alike)

    def __init__(self, host: Tensor) -> None:
        self.host = host

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"OnDevice({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of the stand-in after it was left; take its numbers by `host`")


class StandIn(TorchDispatchMode):
    """The context in which the device exists; `waits` are those of the host so far."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __enter__(self) -> StandIn:
        kind = torch.autograd.grad_mode.inference_mode
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(torch, "autocast", _no_autocast))
            stack.enter_context(mock.patch.object(kind, "__enter__", torch.no_grad.__enter__))
            stack.enter_context(mock.patch.object(kind, "__exit__", torch.no_grad.__exit__))
            overwriting = torch.__future__.get_overwrite_module_params_on_conversion()
            stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwriting)
            # Else `double` and the like would change what a parameter says of itself, and leave its numbers.
            torch.__future__.set_overwrite_module_params_on_conversion(True)
            self._patches = stack.pop_all()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def within(self, *names: str) -> Counter[str]:
        """Return the waits by line and kind: all or, with `names`, those within these methods of the pool."""
        asked = [wait for wait in self.waits if not names or wait.within in names]
        return Counter(f"{wait.line} {wait.what}" for wait in asked)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(isinstance(tensor, OnDevice) for tensor in tensors)
        asked = kwargs.get("device")
        there = here if asked is None else torch.device(asked).type == DEVICE.type
        if here or there:
            _refuse(name, args, kwargs, tensors, here, there)
            if what := _waits(name, args, kwargs, here, there):
                self.waits.append(Wait(what, *_asked_by()))
        if asked is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        on_host = tree_map_only(OnDevice, lambda tensor: tensor.host, (args, kwargs))
        out = func(*on_host[0], **on_host[1])
        if not there:
            return out
        out = tree_map_only(Tensor, OnDevice, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if here and name != "_to_copy" else out


def _no_autocast(*args: Any, **kwargs: Any) -> contextlib.nullcontext[None]:
    return contextlib.nullcontext()


def _refuse(name: str, args: Any, kwargs: Any, tensors: list[Tensor], here: bool, there: bool) -> None:
    """Raise MixedError where a GPU would raise an error about devices."""
    if kwargs.get("generator") is not None and there:
        raise MixedError(f"{name} draws on the device from a generator of the CPU, at {_asked_by()[0]}")
    if name in _COPIES or not here:
        return
    if name in _INDEXING:  # indices may lie on the host, what they are indices of may not
        tensors = [args[0], *(leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, Tensor))]
        if not isinstance(args[0], OnDevice):
            raise MixedError(f"{name} of a tensor of the host by indices on the device, at {_asked_by()[0]}")
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim > 0]
    if strangers:
        raise MixedError(f"{name} of tensors of both devices, at {_asked_by()[0]}")


def _waits(name: str, args: Any, kwargs: Any, here: bool, there: bool) -> str:
    """Return for what the host waits; empty where it does not."""
    if name in _COPIES:
        source, target = (args[1], args[0]) if name == "copy_" else (args[0], None)
        arrives = there if target is None else isinstance(target, OnDevice)
        leaves = isinstance(source, OnDevice)
        if leaves and not arrives:
            return "copy to the host"
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        return "copy from the host" if arrives and not leaves and source.ndim and blocking else ""
    if name in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(not isinstance(index, OnDevice) for index in indices):
            return "index from the host"
        filled = name != "index" and len(indices) == 1 and args[2].numel() == 1  # torch makes it a masked_fill
        return "mask" if not filled and any(index.dtype == torch.bool for index in indices) else ""
    if name == "repeat_interleave":
        return "" if kwargs.get("output_size") is not None else name
    return name if name in _READS else ""


def _asked_by() -> tuple[str, str]:
    """Return the line of the package that runs, as file:line, and where in the pool."""
    frame, line, callee = sys._getframe(), "", ""
    while frame is not None:
        code = frame.f_code
        if code is pool.drain.__code__:
            return line or f"pool.py:{frame.f_lineno}", callee or "drain"
        if code.co_filename.startswith(_PACKAGE):
            line = line or f"{code.co_filename.removeprefix(_PACKAGE)[1:]}:{frame.f_lineno}"
            callee = code.co_name
        frame = frame.f_back
    return line or "outside the package", ""
