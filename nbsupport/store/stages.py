"""Which stages of a run are complete: what each has stored and what that was made from, kept in run.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbsupport import data, files, presets
from nbsupport.store import digests, manifest

NAMES = (
    "01_datasets",
    "02_training",
    "03_attacks",
    "04_region_classification",
    "05_boundary_analysis",
    "06_detector",
)


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

    manifest.update(run_dir, change)


def add_output(run_dir: Path, stage: str, path: Path) -> None:
    """Record one more output of the finished `stage`: the notebook's executed copy, written when it has ended."""
    rel, digest = path.resolve().relative_to(run_dir).as_posix(), files.file_digest(path)
    manifest.update(run_dir, lambda contents: contents["stages"][stage]["outputs"].update({rel: digest}))


def state(run_dir: Path, stage: str) -> StageState:
    """Return whether `stage` is complete and, where it is not, why."""
    contents = manifest.read(run_dir)
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
    yield from manifest.differences(used, {name: parameters.get(name) for name in used})
    for part, digest in made_from.get("data", {}).items():
        if fingerprint(part, parameters) != digest:
            yield f"the {part} images changed"
    for rel, digest in made_from.get("files", {}).items():
        if not (run_dir / rel).is_file() or content(run_dir / rel) != digest:
            yield f"{rel} changed"
    for module, digest in made_from.get("sources", {}).items():
        if digests.source_digest(module) != digest:
            yield f"{module} was edited"
    if made_from.get("torch") != (version := importlib.metadata.version("torch")):
        yield f"torch {made_from.get('torch')} -> {version}"


def fingerprint(part: str, parameters: Mapping[str, Any]) -> str:
    """Return the digest of the files that the images of `part` ("training" or "test") are read from."""
    name = parameters["train_data" if part == "training" else "test_data"]
    return data.fingerprint(name, train=part == "training", root=parameters["root"])


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

    manifest.update(run_dir, change)
    return kept


def is_artifact(rel: str) -> bool:
    """Return whether the file at `rel` carries its own checksum."""
    return rel.endswith(".safetensors")


def content(path: Path) -> str:
    """Return the digest of the tensors of the file `path` from its header; where it has none, of the file's bytes."""
    return (files.read_metadata(path).get("contents") if is_artifact(path.name) else None) or files.file_digest(path)


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and files.file_digest(path) == digest
