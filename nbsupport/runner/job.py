"""A run as plain values: what it computes, where it stores that, and whether it can start at all."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from nbsupport import checks, presets, store
from nbsupport.runner import notebooks
from nbsupport.store import STAGES, Run, manifest


@dataclass(frozen=True)
class Job:
    """Everything a run needs, as plain values that may travel to another machine; made and checked by `plan`."""

    settings: presets.Settings
    run_dir: Path
    notebooks: Path
    cwd: Path
    stages: tuple[str, ...] = STAGES

    def parameters(self) -> dict[str, Any]:
        """Return what is injected into each notebook."""
        return {
            "dataset": self.settings.dataset,
            "preset": self.settings.preset,
            "run_dir": str(self.run_dir),
            "overrides": manifest.overrides(self.settings),
        }

    def open(self) -> Run:
        """Return the run, creating its folder."""
        return store.open_run(**self.parameters())


def default_run_dir(settings: presets.Settings, *, named: bool) -> Path:
    """Return runs/<dataset>-<preset>; with parameters that the user `named`, -<8 hex digits of all parameters>."""
    kind, _, path = settings.dataset.partition(":")
    slug = (re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-") or kind) if path else kind
    name = f"{slug}-{settings.preset}"
    if named:
        values = json.dumps(dataclasses.asdict(settings), sort_keys=True)
        name += f"-{hashlib.sha256(values.encode()).hexdigest()[:8]}"
    return Path("runs", name).resolve()


def plan(
    dataset: str,
    preset: str,
    overrides: Mapping[str, Any],
    run_dir: str | Path | None = None,
    *,
    folder: Path | None = None,
) -> Job:
    """Return the checked job of a run; nothing is created.

    Parameters
    ----------
    dataset, preset : str
        As `presets.settings`.
    overrides : mapping
        Parameters by name; values may be text.
    run_dir : path, optional
        The run folder; by default `default_run_dir`.
    folder : Path, optional
        Where the notebooks are; by default those of this source tree.

    Raises
    ------
    ValueError
        For an unknown name or a value of the wrong type, a data set that does not exist, a run folder with other
        parameters (`ParametersDiffer`) or with results whose run.json is gone, or a notebook that does not take the
        parameters.
    FileNotFoundError
        If a notebook is absent.
    """
    if dataset.endswith(":"):
        raise ValueError(f"expected a path after {dataset!r}")
    settings = presets.settings(dataset, preset, overrides)
    presets.require(settings)
    _require_data(settings)
    _require_model(settings.model)
    target = Path(run_dir).expanduser().resolve() if run_dir else default_run_dir(settings, named=bool(overrides))
    job = Job(settings, target, folder or notebooks.FOLDER, Path.cwd(), STAGES)
    notebooks.require(job.notebooks, job.stages, job.parameters())
    if (target / manifest.NAME).exists():
        manifest.require_same(target, manifest.read(target)["parameters"], settings)
    store.require_fresh(target)
    return job


def _require_data(settings: presets.Settings) -> None:
    for name in ("train_data", "test_data"):
        source: str = getattr(settings, name)
        kind, colon, path = source.partition(":")
        checks.choice(f"{kind}:PATH" if colon else source, presets.DATASETS, name=name)
        if colon and not Path(path).exists():
            raise ValueError(f"expected {name} {kind}:PATH with a PATH that exists, got {path}")


def _require_model(name: str) -> None:
    module, colon, _ = name.partition(":")
    if not colon:
        from nbsupport import models

        checks.choice(name, models.NAMES, name="model")
        return
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None and PathFinder.find_spec(package, [str(Path.cwd())]) is None:
        raise ValueError(f"expected model as package.module:function of a package that is installed, got {name!r}")


def describe(job: Job) -> str:
    """Return the settings of `job`, those that differ from the preset marked, and what each stage would do."""
    changed = manifest.overrides(job.settings)
    lines = [f"run folder  {job.run_dir}", "settings"]
    for name, value in dataclasses.asdict(job.settings).items():
        lines.append(f"  {name:<22}{value}" + ("    (-p)" if name in changed else ""))
    lines.append("stages")
    run = store.existing_run(job.run_dir) if (job.run_dir / manifest.NAME).exists() else None
    for stage in job.stages:
        state = run.state(stage) if run else store.StageState("missing")
        lines.append(f"  {stage:<26}{intent(state)}")
    return "\n".join(lines)


def intent(state: store.StageState) -> str:
    """Return what happens to a stage in this `state`, and why."""
    if state.name == "complete":
        return "complete and verified: reused"
    if state.name == "damaged":
        return f"runs again: damaged or missing {', '.join(state.faults)}"
    if state.name == "outdated":
        return f"runs again: {'; '.join(state.faults)}"
    return "runs"
