"""What a stored result depends on, each part as a digest: equal parts, equal result."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbsupport.files import tensors_digest

if TYPE_CHECKING:
    from torch import nn

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = "nbsupport"
_STARTED = time.time()  # what is edited later is not what this process runs


def parts(function: Callable[..., Any], inputs: Mapping[str, Any], device: str) -> dict[str, str]:
    """Return everything that `function(**inputs)` on a `device` of this kind depends on, by name.

    `inputs` are numbers, texts, tensors, modules, records, other frozen dataclasses, functions, and lists or mappings
    of these. A module counts with its weights, its structure and the source of its class; a function with its source
    and that of every module of this package that it imports.

    Raises ValueError for a function that is not found by its name in a module, such as a lambda, for an input of
    another kind, and where the source was edited after this process started.
    """
    kernel, settings = _unwrapped(function)
    found = {"kernel": name_of(kernel), "torch": importlib.metadata.version("torch"), "device": device}
    found |= {f"source {module}": digest for module, digest in sources(kernel).items()}
    for name, value in {**settings, **inputs}.items():
        found[name] = _described(value, name, found)
    return found


def changes(stored: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Return the names of the parts in which `stored` and `wanted` differ."""
    return [name for name in {**wanted, **stored} if stored.get(name) != wanted.get(name)]


def name_of(function: Callable[..., Any]) -> str:
    """Return `module:name` of a function that is found there; raises ValueError for any other."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not name or getattr(sys.modules.get(module or ""), name, None) is not function:
        raise ValueError(
            f"expected a function that has a name in a module (or a functools.partial of one), got {function!r}; "
            "define it with `def` at the top of a module, so that what it computes can be found again"
        )
    return f"{module}:{name}"


def sources(function: Callable[..., Any]) -> dict[str, str]:
    """Return a digest of the source of the module of a function or class, and of all of this package that it imports.

    Raises ValueError where one was edited after this process started, which runs the old one.
    """
    module = function.__module__
    if not module.startswith(f"{_PACKAGE}."):
        return {module: _text_digest(_source(function))}
    found = {}
    for name in closure(module):
        path = _file(name)
        assert path is not None
        if _STARTED < path.stat().st_mtime <= time.time():
            raise ValueError(f"{path} was edited after this process started, which still runs the old one; restart it")
        found[name] = source_digest(name)
    return found


def source_digest(module: str) -> str:
    """Return the digest of the source of a module of this package; empty where there is none any more."""
    path = _file(module)
    return "" if path is None else _text_digest(path.read_text(encoding="utf-8"))


@functools.cache
def closure(module: str) -> tuple[str, ...]:
    """Return `module` and all modules of this package that it imports, directly or through others, by name."""
    found, waiting = {module}, [module]
    while waiting:
        new = set(_imported(waiting.pop())) - found
        found |= new
        waiting += new
    return tuple(sorted(found))


def _imported(module: str) -> Iterator[str]:
    """Yield the modules of this package that define what `module` imports from it."""
    path = _file(module)
    assert path is not None
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == _PACKAGE:
            for alias in node.names:
                yield from _defining(node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith(f"{_PACKAGE}.") and _file(a.name))


def _defining(module: str, name: str) -> Iterator[str]:
    """Yield the module that `from module import name` comes from: a package's __init__ hands on what others define."""
    if _file(f"{module}.{name}"):
        yield f"{module}.{name}"
        return
    path = _file(module)
    if path is None:
        return
    if path.name == "__init__.py":
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == _PACKAGE:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        yield from _defining(node.module, alias.name)
                        return
    if module != _PACKAGE:
        yield module


def _file(module: str) -> Path | None:
    """Return the source file of a module of this package, None where it has none."""
    stem = _ROOT.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _unwrapped(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function within `functools.partial`s, and the settings that they give it."""
    settings: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        if function.args:
            raise ValueError(f"expected a functools.partial with keywords alone, got the values {function.args}")
        settings = {**function.keywords, **settings}
        function = function.func
    return function, settings


def _described(value: Any, name: str, found: dict[str, str]) -> str:
    """Return a text that stands for `value`; what code it needs is added to `found`."""
    import torch
    from torch import nn

    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return tensors_digest({"": value})
    if isinstance(value, nn.Module):
        for kind in {type(module) for module in value.modules()}:
            if not kind.__module__.startswith("torch."):
                found |= {f"source {module}": digest for module, digest in sources(kind).items()}
        return module_digest(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return f"{type(value).__qualname__} {_described(values, name, found)}"
    if isinstance(value, Mapping):
        return _joined([f"{key}={_described(entry, f'{name}.{key}', found)}" for key, entry in value.items()])
    if isinstance(value, list | tuple | range):
        return _joined([_described(entry, name, found) for entry in value])
    if callable(value):
        kernel, settings = _unwrapped(value)
        found |= {f"source {module}": digest for module, digest in sources(kernel).items()}
        return f"{name_of(kernel)} {_described(settings, name, found)}"
    raise ValueError(f"expected {name} as a number, text, tensor, module or function, got {type(value).__name__}")


def module_digest(module: nn.Module) -> str:
    """Return the digest of a network: its class, its structure as it prints itself, its weights and buffers."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return (
        f"{type(module).__module__}:{type(module).__qualname__} {_text_digest(repr(module) + tensors_digest(tensors))}"
    )


def _joined(texts: list[str]) -> str:
    """Return the list `texts`, or its digest where it is long."""
    whole = f"[{', '.join(texts)}]"
    return whole if len(whole) <= 200 else _text_digest(whole)


def _source(function: Any) -> str:
    """Return the source of a user's own module or, where that is a notebook, of the function or class alone."""
    own = vars(function).values() if isinstance(function, type) else [function]
    for found in ([sys.modules[function.__module__]], [each for each in own if inspect.isfunction(each)]):
        with contextlib.suppress(OSError, TypeError):
            return "\n".join(map(inspect.getsource, found))
    raise ValueError(f"expected {function!r} with its source at hand; define it in a file or a cell")


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
