"""A run told in text: how far its stages have come, and the tables they stored."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbsupport import completion, files, journal, lock, manifest
from nbsupport.progress import describe, duration
from nbsupport.store import STAGES, Run

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 120
ROWS = 30
_SHORT = {
    "eps_or_confidence": "eps/conf",
    "success_rate": "success",
    "success_rate_low": "low",
    "success_rate_high": "high",
    "forwards_per_image": "forwards",
    "point_accuracy": "point",
    "region_accuracy": "region",
    "region_low": "low",
    "region_high": "high",
    "median_distance": "median distance",
    "reached_share": "reached",
    "false_positive_rate": "fpr",
    "false_negative_rate": "fnr",
}
_COLUMNS = {
    "attacks": "model attack solver variant eps_or_confidence n success_rate success_rate_low success_rate_high "
    "mean_rms median_rms forwards_per_image seconds",
    "detector": "model trained_on tested_on n_benign n_adversarial false_positive_rate false_negative_rate auc auc_low "
    "auc_high",
    "claims": "claim model examples statistic threshold low high n verdict",
}


def status(run: Run, stages: Sequence[str] = STAGES) -> str:
    """Return the state of every stage, and how far each piece of its work has come."""
    entries = journal.read(run.dir)
    works = journal.summary(entries)
    contents = manifest.read(run.dir)
    user = lock.holder(run.dir)
    active = _active_stage(entries, user)
    changed = ", ".join(f"{name}={value}" for name, value in manifest.overrides(run.settings).items())
    lines = [
        f"run folder  {run.dir}",
        f"settings    {run.settings.dataset}, {run.settings.preset}" + (f", with {changed}" if changed else ""),
        f"device      {contents.get('device')}",
        f"in use by   {user or 'nobody'}",
    ]
    for stage in stages:
        state = completion.state(run.dir, stage)
        reported = [entry for entry in entries if entry.get("stage") == stage]
        if stage == active:
            text = "under way"
        elif state.name == "complete":
            text = f"complete, {duration(contents['stages'][stage]['seconds'])}"
        elif state.name != "missing":
            text = f"{state.name}: {', '.join(state.faults)}"
        elif reported and reported[-1].get("event") == "failed":
            text = f"failed: {reported[-1].get('error')}"
        else:
            text = "interrupted" if reported else "missing"
        lines.append(f"{stage:<26}{text}")
        lines += [f"  {describe(work)}" for work in works if work.stage == stage]
    return "\n".join(lines)


def _active_stage(entries: Sequence[dict[str, Any]], user: str | None) -> str | None:
    """Return the stage that a living process reported last, None where it is over or the process is gone."""
    last = entries[-1] if entries else {}
    living = last.get("host") == socket.gethostname() and files.alive(last.get("pid", 0))
    if last.get("event") in ("finished", "failed") or not (user or living):
        return None
    return last.get("stage")


def results(run: Run, stages: Sequence[str] = STAGES) -> str:
    """Return the tables that the stages of `run` have stored, its figures, the seconds, and where to look next."""
    recorded = manifest.read(run.dir)["stages"]
    outputs = [rel for stage in stages if stage in recorded for rel in recorded[stage]["outputs"]]
    lines = []
    for rel in outputs:
        if rel.endswith(".csv"):
            lines += ["", rel, table_text(run.path(rel))]
    figures = [f"  {run.path(rel)}" for rel in outputs if rel.endswith(".png")]
    lines += ["", "figures", *figures] if figures else []
    lines += ["", "seconds"]
    lines += [f"  {stage:<26}{recorded[stage]['seconds']:>9.1f}" for stage in stages if stage in recorded]
    lines += [
        "",
        f"the executed notebooks:  jupyter lab {run.path('notebooks')}",
        f"the run at a glance:     python -m nbsupport status {run.dir}",
    ]
    return "\n".join(lines)


def table_text(path: Path) -> str:
    """Return the key columns of the CSV file `path`, rounded, at most 120 characters wide and 30 rows long."""
    import pandas as pd

    frame = pd.read_csv(path)
    wanted = _COLUMNS.get(path.stem)
    if wanted is not None:
        frame = frame[[name for name in wanted.split() if name in frame]]
    return frame_text(frame.rename(columns=_SHORT), rest=str(path))


def frame_text(frame: pd.DataFrame, *, rest: str = "") -> str:
    """Return `frame` as text, without the last columns that exceed the width; `rest` says where the whole is."""
    if frame.empty:
        return "no rows"
    shown = frame.head(ROWS).map(_cell)
    text = shown.to_string(index=False)
    while shown.shape[1] > 1 and max(map(len, text.splitlines())) > WIDTH:
        shown = shown.iloc[:, :-1]
        text = shown.to_string(index=False)
    if len(frame) > ROWS:
        text += f"\n... {len(frame) - ROWS} more rows in {rest}"
    return text


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN: not measured
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() or abs(value) >= 1000 else f"{value:.3g}"
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
