"""The folder of a run: run.json (what it was made with, what each stage has stored, what from) and who holds it."""

import collections
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from filelock import FileLock, Timeout

from nbsupport import __version__, data, files, presets
from nbsupport.store import kept

STAGES = (
    *("01_datasets", "02_training", "03_attacks", "04_region_classification"),
    *("05_boundary_analysis", "06_detector", "07_adaptive_attacks"),
)
NAME = "run.json"
_READ = {"training": "the training images", "test": "the test images", "weights": "the given weights"}
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
    """Raise ValueError, naming the entry, unless `manifest` is what `create` and `finish` write."""
    _entry({"threads": 1, **manifest}, "run.json", {"parameters": dict, "stages": dict, "threads": int})
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
    path = PureWindowsPath(rel if isinstance(rel, str) else "")  # whose separators are both / and \
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def create(run_dir: Path, settings: presets.Settings, *, device: str, threads: int) -> None:
    """Make the folder of a new run on `device`, which computes on so many `threads` of a CPU, with its run.json."""
    versions = {"python": platform.python_version(), "nbsupport": __version__}
    packages = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "safetensors")
    versions |= {package: importlib.metadata.version(package) for package in packages}  # without importing them
    made_with = {"parameters": dataclasses.asdict(settings), "versions": versions, "commit": commit()}
    write(run_dir, {**made_with, "device": device, "threads": threads, "batch_sizes": {}, "stages": {}})


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
    texts = [{name: repr(value) for name, value in values.items()} for values in (stored, wanted)]
    old, new = (collections.defaultdict(lambda: "(not recorded)", shown) for shown in texts)
    return [f"{name}: {old[name]} -> {new[name]}" for name in {**wanted, **stored} if old[name] != new[name]]


def require_same(run_dir: Path, stored: Mapping[str, Any], settings: presets.Settings) -> None:
    """Raise ParametersDiffer unless the `stored` parameters of `run_dir` are `settings`."""
    if differing := differences(stored, dataclasses.asdict(settings)):
        raise ParametersDiffer(run_dir, differing)


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


def commit() -> str | None:
    """Return the commit of the source tree that this package runs from, None where it is not a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a project that holds a virtual environment has a commit of its own
        return None
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        words = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return None


# Stages


@dataclass(frozen=True)
class StageState:
    """What is known of a stage: `name`, and `faults`, what is missing, damaged or has changed.

    `name` is "missing" (never finished), "complete", "damaged" (an output is missing or altered: `faults` are their
    paths) or "outdated" (something that it was made from has changed: `faults` say what).
    """

    name: str
    faults: tuple[str, ...] = ()


def finish(
    run_dir: Path, stage: str, outputs: Iterable[Path], made_from: Mapping[str, Any], *, seconds: float, device: str
) -> None:
    """Record in run.json that `stage` has stored the files `outputs`, and what they were made from.

    `made_from` maps "data" to fingerprints by part, "files" to the contents of other stages' files by path, and
    "sources" to the digests of modules. Raises ValueError where an output lies outside the run folder.
    """
    paths = {Path(path).resolve().relative_to(run_dir).as_posix(): Path(path) for path in outputs}
    entry = {
        "seconds": seconds,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "outputs": {rel: files.file_digest(path) for rel, path in paths.items()},
        "made_from": {**made_from, "torch": importlib.metadata.version("torch")},
    }

    def change(contents: dict[str, Any]) -> None:
        parameters = {name: contents["parameters"].get(name) for name in presets.used_by(stage)}
        contents["stages"][stage] = {**entry, "parameters": parameters}

    update(run_dir, change)


def add_output(run_dir: Path, stage: str, path: Path) -> None:
    """Record one more output of the finished `stage`: the notebook's executed copy, written when it has ended."""
    rel, digest = path.resolve().relative_to(run_dir).as_posix(), files.file_digest(path)
    update(run_dir, lambda contents: contents["stages"][stage]["outputs"].update({rel: digest}))


def state(run_dir: Path, stage: str) -> StageState:
    """Return whether `stage` is complete and, where it is not, why."""
    contents = read(run_dir)
    entry = contents["stages"].get(stage)
    if entry is None or not entry["finished"]:
        return StageState("missing")
    faults = [rel for rel, digest in entry["outputs"].items() if not _intact(run_dir / rel, digest)]
    if faults:
        return StageState("damaged", tuple(faults))
    changed = tuple(_changed(run_dir, entry, contents["parameters"]))
    return StageState("outdated", changed) if changed else StageState("complete")


def _changed(run_dir: Path, entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> Iterable[str]:
    """Yield what `entry` was made from that is no longer as it was."""
    made_from, used = entry["made_from"], entry.get("parameters", {})
    yield from differences(used, {name: parameters.get(name) for name in used})
    for part, digest in made_from.get("data", {}).items():
        try:
            same = fingerprint(part, parameters) == digest
        except (OSError, ValueError) as error:
            yield f"{_READ[part]} cannot be read ({error})"
        else:
            if not same:
                yield f"{_READ[part]} changed"
    for rel, digest in made_from.get("files", {}).items():
        if not (run_dir / rel).is_file() or content(run_dir / rel) != digest:
            yield f"{rel} changed"
    for module, digest in made_from.get("sources", {}).items():
        if kept.source_digest(module) != digest:
            yield f"{module} was edited"
    if made_from.get("torch") != (version := importlib.metadata.version("torch")):
        yield f"torch {made_from.get('torch')} -> {version}"


def fingerprint(part: str, parameters: Mapping[str, Any]) -> str:
    """Return the digest of the files that the `part` of `_READ` is read from."""
    if part == "weights":
        named = [parameters[name] for name in ("weights", "pgd_weights")]
        return " ".join(str(name if name in (None, presets.OWN) else files.file_digest(Path(name))) for name in named)
    train = part == "training"
    return data.fingerprint(parameters["train_data" if train else "test_data"], train=train, root=parameters["root"])


def begin(run_dir: Path, stage: str) -> list[Path]:
    """Prepare `stage` to run again, so that nothing an earlier attempt left can pass for a new output.

    Intact artifacts stay, since they are verified when they are read; those at fault, all tables and all figures
    of the stage are removed, and run.json no longer calls it finished. An executed notebook that was altered since is
    renamed; the new names are returned.
    """
    kept: list[Path] = []

    def change(contents: dict[str, Any]) -> None:
        entry = contents["stages"].get(stage)
        if entry is None:
            return
        for rel, digest in entry["outputs"].items():
            path, intact = run_dir / rel, _intact(run_dir / rel, digest)
            if path.suffix == ".ipynb" and path.exists() and not intact:
                kept.append(path.with_name(f"{path.stem}.edited-{time.time_ns()}.ipynb"))
                path.replace(kept[-1])
            elif not intact or not is_artifact(rel):
                path.unlink(missing_ok=True)
        entry["finished"] = ""

    update(run_dir, change)
    return kept


def is_artifact(rel: str) -> bool:
    """Return whether the file at `rel` carries its own checksum."""
    return rel.endswith(".safetensors")


def content(path: Path) -> str:
    """Return the digest of the tensors of the file `path` from its header; where it has none, of the file's bytes."""
    return (files.read_metadata(path).get("contents") if is_artifact(path.name) else None) or files.file_digest(path)


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and files.file_digest(path) == digest


# The lock


_LOCK = ".lock"
_HOLDER = ".holder"  # the lock's own file is emptied by whoever tries to take it


class RunInUse(RuntimeError):  # noqa: N818  (read aloud where it is caught)
    """Another process runs in this folder."""


@contextlib.contextmanager
def held(run_dir: Path, *, patience: float = 0.2) -> Iterator[None]:
    """Hold `run_dir` for this process and clear away what killed ones left.

    Raises RunInUse where it is still taken after `patience` seconds; `holder` has it for an instant.
    """
    lock = FileLock(run_dir / _LOCK)
    try:
        lock.acquire(timeout=patience, poll_interval=0.01)
    except Timeout:
        raise RunInUse(
            f"{run_dir} is in use by {_text(run_dir)}; wait for it, stop it, or choose another run folder"
        ) from None
    try:
        files.remove_leftovers(run_dir)
        files.write_text(run_dir / _HOLDER, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        (run_dir / _HOLDER).unlink(missing_ok=True)
        lock.release()


def holder(run_dir: Path) -> str | None:
    """Return which process holds `run_dir`, None where none does."""
    if not (run_dir / _LOCK).exists():
        return None
    try:
        with FileLock(run_dir / _LOCK, timeout=0):
            return None
    except Timeout:
        return _text(run_dir)


def _text(run_dir: Path) -> str:
    try:
        return (run_dir / _HOLDER).read_text()
    except FileNotFoundError:
        return "another process"
