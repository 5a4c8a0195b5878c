"""run.json: what a run folder was made with, and what each of its stages has stored."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from filelock import FileLock

from nbsupport import __version__, files, presets

NAME = "run.json"
_REMEDY = "choose another run folder, or delete this one"
_STAGE = {"seconds": float, "finished": str, "device": str, "outputs": dict, "made_from": dict}


class ParametersDiffer(ValueError):  # noqa: N818  (read aloud where it is caught)
    """The run folder `folder` was made with other parameters; `differences` has a line `name: old -> new` for each."""

    def __init__(self, folder: Path, differences: list[str]) -> None:
        super().__init__(folder, differences)
        self.folder, self.differences = folder, differences

    def __str__(self) -> str:
        listed = "".join(f"\n  {line}" for line in self.differences)
        return f"{self.folder} holds a run with other parameters; choose another run folder. Differences:{listed}"


def read(run_dir: Path) -> dict[str, Any]:
    """Return the contents of run.json.

    Raises FileNotFoundError, and DamagedArtifact where an entry is missing or of the wrong kind, or where a stage names
    a file outside the run folder.
    """
    path = run_dir / NAME
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        _require(manifest)
    except (ValueError, TypeError) as error:
        raise files.DamagedArtifact(path, f"unreadable: {error}", _REMEDY) from None
    return manifest


def _require(manifest: Any) -> None:
    """Raise ValueError, naming the entry, unless `manifest` is what `create` and `stages.finish` write."""
    _entry(manifest, "run.json", {"parameters": dict, "stages": dict})
    for stage, entry in manifest["stages"].items():
        _entry(entry, f"stages.{stage}", _STAGE)
        for rel in (*entry["outputs"], *entry["made_from"].get("files", {})):
            if not _inside(rel):
                raise ValueError(f"stages.{stage} names a file outside the run folder: {rel!r}")


def _entry(value: Any, where: str, kinds: Mapping[str, type]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping as {where}, got {type(value).__name__}")
    for name, kind in kinds.items():
        if name not in value:
            raise ValueError(f"{where} lacks the entry {name!r}")
        if not isinstance(value[name], (int, float) if kind is float else kind):
            raise ValueError(f"expected {where}.{name} as {kind.__name__}, got {type(value[name]).__name__}")


def _inside(rel: Any) -> bool:
    """Return whether `rel` is a path that stays below the folder that it is joined to, on any system."""
    if not isinstance(rel, str) or not rel:
        return False
    windows = PureWindowsPath(rel)
    outside = PurePosixPath(rel).is_absolute() or windows.is_absolute() or windows.drive or windows.root
    return not outside and ".." not in re.split(r"[/\\]", rel)


def create(run_dir: Path, settings: presets.Settings, device: str) -> dict[str, Any]:
    """Write run.json for a new run on `device` (empty: not known yet) and return its contents."""
    manifest = {
        "parameters": dataclasses.asdict(settings),
        "versions": versions(),
        "commit": commit(),
        "device": device,
        "batch_sizes": {},
        "stages": {},
    }
    write(run_dir, manifest)
    return manifest


def write(run_dir: Path, manifest: Mapping[str, Any]) -> None:
    """Replace run.json."""
    files.write_text(run_dir / NAME, json.dumps(manifest, indent=1) + "\n")


def update(run_dir: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply `change` to the contents of run.json; processes that do so at once take turns."""
    with FileLock(run_dir / ".run.json.lock", poll_interval=0.01):
        manifest = read(run_dir)
        change(manifest)
        write(run_dir, manifest)


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return a line `name: old -> new` for each parameter in which `stored` and `wanted` differ."""
    names = [*wanted, *(name for name in stored if name not in wanted)]
    absent = object()
    return [
        f"{name}: {_shown(stored, name)} -> {_shown(wanted, name)}"
        for name in names
        if stored.get(name, absent) != wanted.get(name, absent)
    ]


def require_same(run_dir: Path, stored: Mapping[str, Any], settings: presets.Settings) -> None:
    """Raise ParametersDiffer unless the `stored` parameters of `run_dir` are `settings`."""
    if differing := differences(stored, dataclasses.asdict(settings)):
        raise ParametersDiffer(run_dir, differing)


def _shown(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "(not recorded)"


def overrides(settings: presets.Settings) -> dict[str, Any]:
    """Return the parameters in which `settings` differ from their preset."""
    preset = dataclasses.asdict(presets.settings(settings.dataset, settings.preset))
    return {name: value for name, value in dataclasses.asdict(settings).items() if value != preset[name]}


def command(settings: presets.Settings, run_dir: Path) -> str:
    """Return the command line that makes, or goes on with, this run."""
    words = ["python", "-m", "nbsupport", "run", settings.dataset, "--preset", settings.preset]
    words += ["--run-dir", str(run_dir)]
    for name, value in overrides(settings).items():
        words += ["-p", name, str(value)]
    return shlex.join(words)


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of the libraries that compute, without importing them."""
    found = {"python": platform.python_version(), "nbsupport": __version__}
    for package in ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "safetensors"):
        found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """Return the commit of the source tree that this package runs from, None where it is not a git checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    top, _, head = answer.stdout.strip().partition("\n")
    return head if Path(top).resolve() == root else None  # not that of a project which holds a virtual environment
