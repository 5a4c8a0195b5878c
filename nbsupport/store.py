"""The run folder: everything a run stores, found again, verified, and resumed where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbsupport import completion, files, lock, manifest, presets, shards
from nbsupport.completion import StageState
from nbsupport.files import DamagedArtifact, load_tensors, save_tensors, write_figure, write_text
from nbsupport.journal import Journal
from nbsupport.lock import RunInUse
from nbsupport.manifest import ParametersDiffer

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = [
    "STAGES",
    "DamagedArtifact",
    "MissingInput",
    "ParametersDiffer",
    "Run",
    "RunInUse",
    "StageState",
    "existing_run",
    "load_tensors",
    "open_run",
    "save_tensors",
    "write_figure",
    "write_text",
]

STAGES = (
    "01_datasets",
    "02_training",
    "03_attacks",
    "04_region_classification",
    "05_boundary_analysis",
    "06_detector",
)


class MissingInput(FileNotFoundError):  # noqa: N818  (the name says what is wrong)
    """A file that another notebook makes is not there; the message says which notebook and how to run it."""


class Run:
    """One run folder with its settings; made by `open_run`.

    Attributes
    ----------
    dir : Path
        The absolute path of the folder.
    settings : presets.Settings
        The parameters of the run.
    journal : Journal
        Where progress is reported.
    """

    def __init__(self, run_dir: Path, settings: presets.Settings) -> None:
        self.dir, self.settings, self.journal = run_dir, settings, Journal(run_dir)
        self._opened = time.monotonic()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        from nbsupport import runtime

        return runtime.best_device()

    @property
    def command(self) -> str:
        """The command line that goes on with this run."""
        return manifest.command(self.settings, self.dir)

    def path(self, *parts: str) -> Path:
        """Return the absolute path of a file in the folder; nothing is created."""
        return self.dir.joinpath(*parts)

    # Artifacts

    def save(self, rel: str, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
        """Store `tensors` in `rel`, such as "detector/FGSM.safetensors", and return its path."""
        save_tensors(self.path(rel), tensors, **metadata)
        return self.path(rel)

    def load(self, rel: str, made_by: str) -> dict[str, Tensor]:
        """Return the tensors of `rel`, which the notebook `made_by` stores.

        Raises MissingInput where it is absent and DamagedArtifact where it is truncated or altered.
        """
        return load_tensors(self.require(rel, made_by))

    def sharded(
        self,
        rel: str,
        total: int,
        shard: int,
        compute: Callable[[int, int], Mapping[str, Tensor]],
        *,
        stage: str,
        what: str,
        unit: str = "images",
    ) -> dict[str, Tensor]:
        """Return the tensors of `rel`, computed in shards that are stored one by one: see `shards.run`."""
        return shards.run(
            self.path(rel),
            total,
            shard,
            compute,
            self.journal,
            stage=stage,
            what=what,
            unit=unit,
            made_from=completion.made_from(self.dir, stage),
        )

    def seconds(self, rel: str) -> float:
        """Return the seconds that computing `rel` took, over all processes that had a part in it."""
        return float(files.read_metadata(self.path(rel))["seconds"])

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Store `frame` as tables/`name`.csv and return its path."""
        write_text(path := self.path("tables", f"{name}.csv"), frame.to_csv(index=False))
        return path

    def read_table(self, name: str, made_by: str) -> pd.DataFrame:
        """Return tables/`name`.csv; raises MissingInput or DamagedArtifact as `load`."""
        import pandas as pd

        path = self.require(f"tables/{name}.csv", made_by)
        try:
            return pd.read_csv(path)
        except ValueError as error:
            raise DamagedArtifact(path, f"unreadable: {error}") from None

    def write_figure(self, name: str, figure: Figure) -> Path:
        """Store `figure` as figures/`name`.png and return its path; for papers it is stored as .pdf as well."""
        path = self.path("figures", f"{name}.png")
        for each in (path, path.with_suffix(".pdf")):
            write_figure(each, figure)
        return path

    def require(self, rel: str, made_by: str) -> Path:
        """Return the path of `rel`, which the notebook `made_by` stores; raises MissingInput where it is absent."""
        path = self.path(rel)
        if not path.exists():
            raise MissingInput(f"{path} is missing; the notebook {made_by} makes it: run\n  {self.command}")
        return path

    # Stages

    def report(self, stage: str, what: str, done: int, total: int, unit: str = "images", **extra: Any) -> None:
        """Report progress to the journal: see `Journal.report`."""
        self.journal.report(stage, what, done, total, unit, **extra)

    def record(self, **entries: Any) -> None:
        """Write `entries` into run.json; a mapping is merged with what stands there, such as `batch_sizes`."""

        def change(contents: dict[str, Any]) -> None:
            for name, value in entries.items():
                contents[name] = {**contents.get(name, {}), **value} if isinstance(value, Mapping) else value

        manifest.update(self.dir, change)

    def finish(self, stage: str, outputs: Sequence[Path]) -> None:
        """Record that `stage` has stored `outputs`, with their checksums and the seconds since the run was opened.

        Raises MissingInput where one of them does not exist and ValueError where one lies outside the run folder.
        """
        for path in outputs:
            if not Path(path).is_file():
                raise MissingInput(f"{stage} ends without its output {path}")
        seconds = round(time.monotonic() - self._opened, 3)
        completion.finish(self.dir, stage, outputs, seconds=seconds, device=str(self.device))
        self.journal.append(stage=stage, event="finished", seconds=seconds)

    def state(self, stage: str) -> StageState:
        """Return whether `stage` is complete, from the checksums of everything it has stored."""
        return completion.state(self.dir, stage)

    def is_complete(self, stage: str) -> tuple[bool, list[str]]:
        """Return whether `stage` is complete, and its outputs that are damaged, missing or out of date."""
        state = self.state(stage)
        return state.name == "complete", list(state.faults)

    def begin(self, stage: str) -> None:
        """Prepare `stage` to run again: what an earlier attempt left cannot pass for the new outputs."""
        completion.begin(self.dir, stage)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run folder for this process; raises RunInUse, which names the process that has it."""
        return lock.held(self.dir)


def open_run(
    run_dir: str | Path, *, dataset: str, preset: str = "standard", overrides: Mapping[str, Any] | None = None
) -> Run:
    """Return the run in `run_dir`, which is created where it does not exist.

    Raises ValueError as `presets.settings` does, and ParametersDiffer where the folder holds a run with other
    parameters.
    """
    settings = presets.settings(dataset, preset, overrides)
    run = Run(Path(run_dir).expanduser().resolve(), settings)
    if run.path(manifest.NAME).exists():
        manifest.require_same(run.dir, manifest.read(run.dir)["parameters"], settings)
    else:
        run.dir.mkdir(parents=True, exist_ok=True)
        manifest.create(run.dir, settings, str(run.device))
    return run


def existing_run(run_dir: str | Path) -> Run:
    """Return the run in `run_dir` with the parameters stored there.

    Raises MissingInput where there is none and DamagedArtifact where parameters are lacking.
    """
    folder = Path(run_dir).expanduser().resolve()
    if not (folder / manifest.NAME).exists():
        raise MissingInput(
            f"{folder} is not a run folder: it holds no {manifest.NAME}; make one:\n"
            f"  {shlex.join(['python', '-m', 'nbsupport', 'run', presets.DATASETS[0], '--run-dir', str(folder)])}"
        )
    stored = manifest.read(folder)["parameters"]
    fields = presets.Settings.__dataclass_fields__
    lacking = [name for name, entry in fields.items() if entry.default is dataclasses.MISSING and name not in stored]
    if lacking:
        why = f"made by another version of nbsupport: it lacks the parameters {', '.join(lacking)}"
        raise DamagedArtifact(folder / manifest.NAME, why, "choose another run folder, or delete this one")
    return Run(folder, presets.Settings(**{name: value for name, value in stored.items() if name in fields}))
