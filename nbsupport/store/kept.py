"""What is kept of a computation: in shards, each stored when it is done, with a digest of all that it depends on.

Equal parts (`parts`), equal result: what is stored with other parts is computed again, and said so.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbsupport import checks, files

if TYPE_CHECKING:
    from torch import Tensor

Stored = tuple[dict[str, "Tensor"], dict[str, str]]  # tensors and metadata

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
    now = time.time()
    for name in closure(module):
        if (path := _file(name)) and _STARTED < path.stat().st_mtime <= now:
            raise ValueError(f"{path} was edited after this process started, which still runs the old one; restart it")
    return {name: source_digest(name) for name in closure(module)}


def source_digest(module: str) -> str:
    """Return the digest of the source of a module of this package; empty where there is none any more."""
    path = _file(module)
    return "" if path is None else _text_digest(path.read_text(encoding="utf-8"))


@functools.cache
def closure(module: str) -> tuple[str, ...]:
    """Return `module` and all modules of this package that it imports, directly or through others, by name."""
    found, waiting = {module}, [module]
    while waiting:
        new = {_defining(source, name) for source, name, _ in _imports(waiting.pop())} - {*found, _PACKAGE}
        found |= new
        waiting += new
    return tuple(sorted(found))


@functools.cache
def _imports(module: str) -> list[tuple[str, str, str]]:
    """Return what `module` imports from this package, anywhere in it: from which module, the name, and as what."""
    path, found = _file(module), []
    for node in ast.walk(ast.parse("" if path is None else path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(*alias.name.rpartition(".")[::2], alias.asname or alias.name) for alias in node.names]
    return [each for each in found if each[0].split(".")[0] == _PACKAGE]


def _defining(module: str, name: str) -> str:
    """Return the module that `from module import name` comes from: a package's __init__ hands on what others define."""
    if _file(f"{module}.{name}"):
        return f"{module}.{name}"
    path = _file(module)
    handed_on = path is not None and path.name == "__init__.py"
    own = [(source, what) for source, what, known in _imports(module) if handed_on and known == name]
    return _defining(*own[0]) if own else module


def _file(module: str) -> Path | None:
    """Return the source file of a module of this package, None where it has none."""
    stem = _ROOT.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


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
        return files.tensors_digest({"": value})
    if isinstance(value, nn.Module):
        for kind in {type(module) for module in value.modules() if not type(module).__module__.startswith("torch.")}:
            found |= {f"source {module}": digest for module, digest in sources(kind).items()}
        weights = files.tensors_digest({**dict(value.named_parameters()), **dict(value.named_buffers())})
        return f"{type(value).__module__}:{type(value).__qualname__} {_text_digest(repr(value) + weights)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return f"{type(value).__qualname__} {_described(values, name, found)}"
    if isinstance(value, Mapping):
        return _listed([f"{key}={_described(entry, f'{name}.{key}', found)}" for key, entry in value.items()])
    if isinstance(value, list | tuple | range):
        return _listed([_described(entry, name, found) for entry in value])
    if callable(value):
        kernel, settings = _unwrapped(value)
        found |= {f"source {module}": digest for module, digest in sources(kernel).items()}
        return f"{name_of(kernel)} {_described(settings, name, found)}"
    raise ValueError(f"expected {name} as a number, text, tensor, module or function, got {type(value).__name__}")


def _listed(texts: list[str]) -> str:
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


# Shards


def computed(
    name: str,
    path: Path,
    total: int,
    shard: int,
    compute: Callable[[Sequence[slice]], Iterator[tuple[Any, Mapping[str, Tensor]]]],
    made_from: Mapping[str, str],
    report: Callable[..., None],
) -> Stored:
    """Return the tensors stored in `path` and their metadata, computing those shards that are not stored yet.

    Parameters
    ----------
    name, path : str, Path
        What is computed, and the safetensors file of the whole result. Until it is complete, the shards lie beside it
        in `.NAME.shards`.
    total : int
        Rows of the result.
    shard : int
        Rows of one shard. It must not depend on the number of workers, so that results repeat.
    compute : callable
        `compute(shards)` yields, for each of these slices in order, a Record and what else is stored beside it: tensors
        of so many rows each (with a single shard, of any number of rows). It must not depend on which shards were
        computed before.
    made_from : mapping
        As `parts` returns it.
    report : callable
        `report(done, event=..., **extra)` is called after every shard: see `Journal.report`.

    Returns
    -------
    tensors, metadata
        Each tensor has `total` rows and stays in the file (`files.load_with_metadata`). The metadata hold `seconds`,
        what it took, and `record`, the class of the result.

    Raises
    ------
    ValueError
        If `total` or `shard` is below 1, or if `compute` returns tensors with another number of rows.
    """
    checks.count(total, name="total")
    checks.count(shard, name="shard")
    folder = path.with_name(f".{path.stem}.shards")
    told: set[str] = set()

    def stored(file: Path, start: int, stop: int) -> Stored | None:
        """Return what is in `file`, None where it must be computed."""
        try:
            tensors, metadata = files.load_with_metadata(file)
        except FileNotFoundError:
            return None
        except files.DamagedArtifact as error:
            print(f"damaged, computed again: {file} ({error.why})")
            report(start, event="damaged", path=str(file), why=error.why)
            return None
        why = changed(metadata, made_from)
        if why and why not in told:
            told.add(why)
            print(f"out of date, computed again: {name} ({why})")
            report(start, event="outdated", path=str(path), why=why)
        return None if why or metadata.get("rows") != f"{start}:{stop}" else (tensors, metadata)

    whole = stored(path, 0, total)
    if whole is not None:
        shutil.rmtree(folder, ignore_errors=True)
        report(total, event="reused", **_so_far([whole[0]]))
        return whole
    signed = {"made_from": json.dumps(made_from)}
    parts: list[dict[str, Tensor]] = []
    spent, computing, record = 0.0, False, ""
    shards = {
        folder / f"{number:05d}.safetensors": slice(start, min(start + shard, total))
        for number, start in enumerate(range(0, total, shard))
    }
    found = {file: stored(file, rows.start, rows.stop) for file, rows in shards.items()}
    results = compute([rows for file, rows in shards.items() if found[file] is None])
    for file, rows in shards.items():
        start, stop = rows.start, rows.stop
        part = found.pop(file)
        if part is None:
            if not computing:
                report(start, event="resumed" if start else "started", **_so_far(parts))
            computing, began = True, time.monotonic()
            result, beside = next(results)
            tensors = {name: tensor.detach().cpu() for name, tensor in {**beside, **result.tensors()}.items()}
            for label, tensor in tensors.items() if shard < total else ():
                if tensor.ndim == 0 or len(tensor) != stop - start:
                    shape = tuple(tensor.shape)
                    raise ValueError(f"expected {stop - start} rows in {label!r} of {name}, got shape {shape}")
            spent_here = f"{time.monotonic() - began:.3f}"
            part = tensors, {"record": name_of(type(result)), "seconds": spent_here}
            files.save_tensors(file, tensors, rows=f"{start}:{stop}", **part[1], **signed)
        parts.append(part[0])
        record, spent = part[1]["record"], spent + float(part[1]["seconds"])
        report(stop, event="progress" if computing else "resumed", **_so_far(parts))
    files.save_tensors(path, _joined(parts), rows=f"0:{total}", record=record, seconds=f"{spent:.3f}", **signed)
    shutil.rmtree(folder)
    return files.load_with_metadata(path)


def short(made_from: Mapping[str, str]) -> str:
    """Return eight hex digits that stand for all parts."""
    return _text_digest(json.dumps(made_from))[:8]


def changed(metadata: Mapping[str, str], made_from: Mapping[str, str]) -> str:
    """Return in what parts a file with these `metadata` was made from something else; empty: in none."""
    stored = json.loads(metadata.get("made_from", "{}"))
    names = [name for name in {**made_from, **stored} if stored.get(name) != made_from.get(name)]
    return f"changed: {', '.join(names)}" if names else ""


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    import torch

    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _so_far(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Return the success rate and the median RMS of an attack's rows, nothing for other results."""
    if not parts or not {"success", "correct", "rms"} <= parts[0].keys():
        return {}
    rows = _joined([{name: part[name] for name in ("success", "correct", "rms")} for part in parts])
    attacked, success = int(rows["correct"].sum()), rows["success"]
    shown = {"success": int(success.sum()) / attacked} if attacked else {}
    if success.any():
        shown["median_rms"] = float(rows["rms"][success].median())
    return shown
