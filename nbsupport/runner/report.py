"""A run told in text: how far its stages have come, what came out of it, and every table that it stored."""

from __future__ import annotations

import math
import re
import shlex
import socket
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbsupport import files
from nbsupport.runner.progress import describe, duration
from nbsupport.store import STAGES, Run, journal, manifest

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 120
LEGEND = (
    "n: images attacked, all classified correctly before (benign: all test images). Brackets: 95 % interval. RMS, and",
    "distance to the boundary, in the data's pixel units. The vote: region classification. Empty: not measured.",
)
CLAIMS = {
    1: "OPTMARGIN's success is high",
    2: "OPTBRITTLE's RMS is smaller",
    3: "PGD training hinders FGSM",
    4: "vote keeps, restores accuracy",
    5: "vote fails most on OPTMARGIN",
    6: "boundaries nearer than benign",
    7: "boundaries purer than benign",
    8: "detector's AUC is high",
    9: "vote mostly undoes OPTBRITTLE",
}


def status(run: Run, stages: Sequence[str] = STAGES) -> str:
    """Return the state of every stage, and how far each piece of its work has come."""
    entries = journal.read(run.dir)
    works = journal.summary(entries)
    contents = manifest.read(run.dir)
    user = manifest.holder(run.dir)
    active = _active_stage(entries, user)
    changed = ", ".join(f"{name}={value}" for name, value in manifest.overrides(run.settings).items())
    lines = [
        f"run folder  {run.dir}",
        f"settings    {run.settings.dataset}, {run.settings.preset}" + (f", with {changed}" if changed else ""),
        f"device      {contents.get('device')}",
        f"in use by   {user or 'nobody'}",
    ]
    for stage in stages:
        state = run.state(stage)
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
    """Return the end of a run: the attacks, a line for each claim, the worst warnings, and where to look next.

    Of the attacks and models of the notebooks it makes at most 40 lines, of at most 120 columns each but for paths.
    """
    stored = {rel: frame for rel, frame in _stored(run, stages).items() if not frame.empty}
    where = [
        f"executed notebooks  jupyter lab {shlex.quote(str(run.path('notebooks')))}",
        f"tables              {run.path('tables')}",
        f"all in full         python -m nbsupport status {shlex.quote(str(run.dir))} --tables",
    ]
    parts = [_attacks(stored), _claims(stored), _warnings(stored), where]
    return "\n\n".join("\n".join(part) for part in parts if part)


def tables(run: Run, stages: Sequence[str] = STAGES) -> str:
    """Return every table that the stages of `run` have stored, whole, its figures' paths, and the seconds."""
    recorded = manifest.read(run.dir)["stages"]
    lines = []
    for rel, frame in _stored(run, stages).items():
        lines += [rel, frame_text(frame), ""]
    outputs = [rel for stage in stages if stage in recorded for rel in recorded[stage]["outputs"]]
    lines += ["figures", *(f"  {run.path(rel)}" for rel in outputs if rel.endswith(".png")), "", "seconds"]
    lines += [f"  {stage:<26}{recorded[stage]['seconds']:>9.1f}" for stage in stages if stage in recorded]
    return "\n".join(lines)


def _stored(run: Run, stages: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the tables that `stages` have recorded, by their paths in the run folder."""
    recorded = manifest.read(run.dir)["stages"]
    return {
        rel: run.read_table(rel.removeprefix("tables/").removesuffix(".csv"), stage)
        for stage in stages
        if stage in recorded
        for rel in recorded[stage]["outputs"]
        if rel.endswith(".csv")
    }


def frame_text(frame: pd.DataFrame) -> str:
    """Return all of `frame` as text of at most 120 columns.

    A wide frame goes into blocks one below the other, each with the columns that name the rows. Longer lines wrap.
    """
    from pandas.api.types import is_float_dtype, is_numeric_dtype

    if frame.empty:
        return "no rows"
    columns: dict[str, list[str]] = {}
    for name in map(str, frame):
        texts = [name, *map(_cell, frame[name])]
        width = max(map(len, texts))
        columns[name] = [text.rjust(width) if is_numeric_dtype(frame[name]) else text.ljust(width) for text in texts]
    widths = {name: len(texts[0]) for name, texts in columns.items()}
    gap = 2 if sum(widths.values()) + 2 * len(widths) <= WIDTH else 1
    keys: list[str] = []
    for name in columns:
        if is_float_dtype(frame[name]) or sum(widths[key] + gap for key in [*keys, name]) > WIDTH // 2:
            break
        keys.append(name)
    blocks = [list(keys)]
    for name in list(columns)[len(keys) :]:
        if blocks[-1] != keys and sum(widths[each] + gap for each in [*blocks[-1], name]) > WIDTH + gap:
            blocks.append(list(keys))
        blocks[-1].append(name)
    lines = []
    for block in blocks:
        for cells in zip(*(columns[name] for name in block), strict=True):
            lines += textwrap.wrap((" " * gap).join(cells).rstrip(), WIDTH, subsequent_indent="    ") or [""]
        lines.append("")
    return "\n".join(lines[:-1])


def _cell(value: Any) -> str:
    if value is None or value != value:  # NaN: not measured
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() or abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def _attacks(stored: Mapping[str, Any]) -> list[str]:
    """Return the main table: a row for each model's benign images and attacks, from three tables."""
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for name in ("attacks", "region", "boundary"):
        frame = stored.get(f"tables/{name}.csv", pd.DataFrame())
        for row in frame.rename(columns={"attack": "examples"}).to_dict("records"):
            key = row["model"], row["examples"]
            if name == "attacks" or key[1] == "benign" or key in rows:
                rows[key] = {**row, **rows.get(key, {})}  # n is that of the first
    models = list(dict.fromkeys(model for model, _ in rows))
    told = [
        {
            "model": model,
            "examples": examples,
            "n": rows[model, examples]["n"],
            "success": _rate(rows[model, examples], "success_rate", "success_rate_low", "success_rate_high"),
            "mean RMS": rows[model, examples].get("mean_rms"),
            "accuracy": _rate(rows[model, examples], "point_accuracy"),
            "accuracy of the vote": _rate(rows[model, examples], "region_accuracy", "region_low", "region_high"),
            "median distance": rows[model, examples].get("median_distance"),
        }
        for model, examples in sorted(rows, key=lambda key: (models.index(key[0]), key[1] != "benign"))
    ]
    return [frame_text(pd.DataFrame(told)), *LEGEND] if told else []


def _rate(row: Mapping[str, Any], *names: str) -> str:
    """Return a share in per cent, such as "98 % [97, 99]" where `names` are those of its value, low and high."""
    value, *interval = (100 * row.get(name, math.nan) for name in names)
    if math.isnan(value):
        return ""
    return f"{value:.0f} %" + (f" [{interval[0]:.0f}, {interval[1]:.0f}]" if interval else "")


def _claims(stored: Mapping[str, Any]) -> list[str]:
    """Return a line for each claim."""
    if "tables/claims.csv" not in stored:
        return []
    deciding = "the row that decides: value [95 % interval] > what is claimed, n; exceptions"
    groups = stored["tables/claims.csv"].groupby("claim")
    return [f"  {'claim':<30}{'verdict':<10}{deciding}", *(_claim(number, rows) for number, rows in groups)]


def _claim(number: int, rows: Any) -> str:
    """Return a claim in one line: the verdict of most rows, the row that decides it, and the rows that differ.

    It is mixed where some rows hold and others fail. A failing row decides, else the one of most rows' verdict whose
    figure is closest to its threshold. Rows that differ are counted where there is no room to name them.
    """
    most = rows.verdict.mode().iloc[-1]  # of two as frequent the later by name: undecided, holds, fails
    given = set(rows.verdict)
    verdict = "mixed" if {"holds", "fails"} <= given else most
    deciding = rows[rows.verdict == ("fails" if "fails" in given else most)]
    row = rows.loc[(deciding.statistic - deciding.threshold).abs().fillna(math.inf).idxmin()]
    figure, low, high, threshold = (_short(row[name]) for name in ("statistic", "low", "high", "threshold"))
    sign = {"holds": ">", "fails": "<"}.get(row.verdict, "vs")
    line = f"{number} {CLAIMS.get(number, row.statement):<30}{verdict:<10}"
    line += f"{row.model} {row.examples}: {figure} [{low}, {high}] {sign} {threshold}, n {row.n}"
    others = rows[(rows.index != row.name) & (rows.verdict != verdict)]
    told = {other: str(count) for other, count in others.verdict.value_counts(ascending=True).items()}
    for other in told:
        of_it = others[others.verdict == other]
        names = sorted(of_it.model + " " + of_it.examples, key=len)  # more of the short ones fit
        for shown in range(len(names), 0, -1):
            more = f" and {len(names) - shown} more" if shown < len(names) else ""
            named = {**told, other: ", ".join(names[:shown]) + more}
            if len(_joined(line, named)) <= WIDTH:
                told = named
                break
    while len(_joined(line, told)) > WIDTH and told:
        told.popitem()
    return _joined(line, told)


def _joined(line: str, told: Mapping[str, str]) -> str:
    return "; ".join([line, *(f"{verdict}: {names}" for verdict, names in told.items())])


def _short(value: float) -> str:
    """Return two significant digits, such as ".95"."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}")


def _warnings(stored: Mapping[str, Any]) -> list[str]:
    """Return the worst warning of each of three kinds, and how many more there are."""
    if "tables/warnings.csv" not in stored:
        return []
    frame = stored["tables/warnings.csv"]
    worst = frame.sort_values("share", ascending=False, kind="stable").drop_duplicates("indicator").head(3)
    more = f"; {len(frame) - len(worst)} more in tables/warnings.csv" if len(frame) > len(worst) else ""
    lines = [f"{len(frame)} warnings that an attack fell short of what it could do, the worst of a kind each{more}"]
    for row in worst.itertuples():
        remedy = row.what_to_do.rpartition("; ")[2].removeprefix("or ")
        text = f"{row.model} {row.attack}: {row.indicator} ({100 * row.share:.0f} % of {row.n}); {remedy}"
        lines.append(textwrap.shorten(text, WIDTH, placeholder=" [...]"))
    return lines
