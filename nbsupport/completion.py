"""Which stages of a run are complete: the checksums of all that each has stored, kept in run.json."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbsupport import files, manifest


@dataclass(frozen=True)
class StageState:
    """What is known of a stage: `name`, and `faults`, the outputs that are missing, damaged or out of date.

    `name` is "missing" (never finished), "complete", "damaged" (an output is missing or altered) or "outdated"
    (an earlier stage has since stored something else).
    """

    name: str
    faults: tuple[str, ...] = ()


def finish(run_dir: Path, stage: str, outputs: Sequence[Path], *, seconds: float, device: str) -> None:
    """Record in run.json that `stage` has stored the files `outputs`.

    Raises ValueError where one lies outside the run folder.
    """
    digests = {Path(path).resolve().relative_to(run_dir).as_posix(): files.file_digest(Path(path)) for path in outputs}
    entry = {
        "seconds": seconds,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "outputs": digests,
        "contents": _combined(_content(run_dir / rel) for rel in sorted(digests) if _is_artifact(rel)),
        "made_from": made_from(run_dir, stage),
    }
    manifest.update(run_dir, lambda contents: contents["stages"].update({stage: entry}))


def state(run_dir: Path, stage: str) -> StageState:
    """Return whether `stage` is complete and, where it is not, why."""
    entry = manifest.read(run_dir)["stages"].get(stage)
    if entry is None or not entry["finished"]:
        return StageState("missing")
    faults = [rel for rel, digest in entry["outputs"].items() if not _intact(run_dir / rel, digest)]
    if faults:
        return StageState("damaged", tuple(faults))
    if entry["made_from"] != made_from(run_dir, stage):
        return StageState("outdated", tuple(entry["outputs"]))
    return StageState("complete")


def begin(run_dir: Path, stage: str) -> None:
    """Prepare `stage` to run again, so that nothing an earlier attempt left can pass for a new output.

    Intact files stay, since they are verified when they are read; those at fault, all tables and all figures
    of the stage are removed, and run.json no longer calls it finished.
    """
    faults = state(run_dir, stage).faults

    def change(contents: dict[str, Any]) -> None:
        entry = contents["stages"].get(stage, {"outputs": ()})
        for rel in entry["outputs"]:
            if rel in faults or not _is_artifact(rel):
                (run_dir / rel).unlink(missing_ok=True)
                if rel.endswith(".png"):  # the same figure
                    (run_dir / rel).with_suffix(".pdf").unlink(missing_ok=True)
        entry["finished"] = None

    manifest.update(run_dir, change)


def made_from(run_dir: Path, stage: str) -> str:
    """Return a digest of the files of all stages that come before `stage` by name."""
    stages = manifest.read(run_dir)["stages"]
    return _combined(stages[name]["contents"] for name in sorted(stages) if name < stage)


def _is_artifact(rel: str) -> bool:
    return rel.endswith(".safetensors")


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and files.file_digest(path) == digest


def _content(path: Path) -> str:
    return files.read_metadata(path).get("contents") or files.file_digest(path)


def _combined(digests: Iterable[str]) -> str:
    """Return one digest of all that are not empty; of none, the empty text."""
    joined = "\n".join(digest for digest in digests if digest)
    return hashlib.sha256(joined.encode()).hexdigest() if joined else ""
