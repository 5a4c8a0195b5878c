"""A run told in text: how far its stages have come, also while they run, what came out of it, and its tables."""

from __future__ import annotations

import math
import os
import shlex
import socket
import sys
import textwrap
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tqdm import tqdm

from nbsupport import checks, files
from nbsupport.store import STAGES, Run, journal, manifest

if TYPE_CHECKING:  # pandas is loaded where tables are told: `nbsupport --help` answers without it
    import pandas as pd

Echo = Callable[[str], None]
WIDTH = 120
PUBLISHED = "published.csv"
REFERENCE = ("table", "quantity", "value", "source")  # its columns, beside those that name a row of the table
MAIN = ("attacks", "region", "boundary")  # the tables that the main one is made of
LEGEND = """\
n: images attacked: right before, or not at their target (benign: all test images). Brackets: 95 % interval. RMS and
distance to the boundary, in the data's pixel units. The vote: region classification. Empty: not measured."""
_LINES = {  # of the events that are told at once, also on a terminal
    "warning": "  warning: {message}",
    "damaged": "  damaged, computed again: {path} ({why})",
    "outdated": "  out of date, computed again: {what} ({why})",
    "reused": "  {what:<28} {total} {unit}, reused",
}


def about(run: Run) -> str:
    """Return the data set, the preset and what differs from it, such as "mnist, standard, with seed=1"."""
    changed = ", ".join(f"{name}={value}" for name, value in manifest.overrides(run.settings).items())
    return f"{run.settings.dataset}, {run.settings.preset}" + (f", with {changed}" if changed else "")


# How far it has come


def status(run: Run) -> str:
    """Return the state of every stage, and how far each piece of its work has come."""
    entries, contents, user = journal.read(run.dir), manifest.read(run.dir), manifest.holder(run.dir)
    last = entries[-1] if entries else {}
    living = user or (last.get("host") == socket.gethostname() and files.alive(last["pid"]))
    active = last.get("stage") if living and last.get("event") not in ("finished", "failed") else None
    lines = [
        f"run folder  {run.dir}",
        f"settings    {about(run)}",
        f"device      {contents.get('device')}",
        f"in use by   {user or 'nobody'}",
    ]
    for stage in STAGES:
        state = run.state(stage)
        reported = [entry for entry in entries if entry["stage"] == stage]
        if stage == active:
            text = "under way"
        elif state.name == "complete":
            text = f"complete, {duration(contents['stages'][stage]['seconds'])}"
        elif state.name != "missing":
            text = f"{state.name}: {', '.join(state.faults)}"
        elif reported and reported[-1]["event"] == "failed":
            text = f"failed: {reported[-1].get('error')}"
        else:
            text = "interrupted" if reported else "missing"
        lines.append(f"{stage:<26}{text}")
        lines += [f"  {describe(work)}" for work in journal.summary(entries) if work.stage == stage]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Return `seconds` for people, such as "12 s" or "1 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def describe(progress: journal.Progress) -> str:
    """Return one line: what, units done, rate and time left (while it goes on), and what else was reported."""
    parts = [f"{progress.what:<28} {progress.done}/{progress.total} {progress.unit}"]
    if progress.rate and not progress.complete:
        parts += [f"{progress.rate:.3g}/s", f"{duration(progress.time_left or 0)} left"]
    return ", ".join(parts + extras(progress))


def extras(progress: journal.Progress) -> list[str]:
    """Return what else was reported, such as "success 0.95" and "median rms 0.12" ([0, 1] units)."""
    numbers = {name: value for name, value in progress.extra.items() if isinstance(value, int | float)}
    return [f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items()]


def _has_room() -> bool:
    """Return whether the errors go to a terminal with lines and columns; some have none, and would show no bar."""
    return sys.stderr.isatty() and 0 not in os.get_terminal_size(sys.stderr.fileno())


class Follower:
    """A context in which the terminal follows the journal of `run_dir`, from its present end on.

    On a terminal every piece of work has a progress bar; elsewhere, such as in a log file, it has a plain line
    when it is finished and one every `every` seconds before.
    """

    def __init__(self, run_dir: Path, echo: Echo = print, *, bars: bool | None = None, every: float = 5.0) -> None:
        self._path, self._echo, self._every = run_dir / journal.NAME, echo, every
        self._bars = _has_room() if bars is None else bars
        self._tracker, self._rest = journal.Tracker(), b""
        self._bar: tqdm[Any] = tqdm(disable=True)  # as one that is closed
        self._last_line = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._file = self._path.open("a+b")  # which is read from its end on
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.poll()
        self._bar.close()
        self._file.close()

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            self.poll()

    def poll(self) -> None:
        """Show what the journal has gained; half a line waits for its other half."""
        lines, _, self._rest = (self._rest + self._file.read()).rpartition(b"\n")
        for entry in journal.parse(lines.splitlines()):
            progress = self._tracker.update(entry)
            if entry["event"] in _LINES:
                self._line(_LINES[entry["event"]].format_map(defaultdict(str, entry)))
            elif progress is not None and self._bars:
                self._draw(progress)
            elif progress is not None and (progress.complete or time.monotonic() - self._last_line >= self._every):
                self._line(f"  {describe(progress)}")

    def _draw(self, progress: journal.Progress) -> None:
        title, unit = f"  {progress.what}", f" {progress.unit}"
        if self._bar.disable or self._bar.desc != title:
            self._bar.close()
            self._bar = tqdm(desc=title, total=progress.total, initial=progress.done, unit=unit, dynamic_ncols=True)
        self._bar.n = progress.done
        self._bar.set_postfix_str(", ".join(extras(progress)), refresh=True)
        if progress.complete:
            self._bar.close()

    def _line(self, text: str) -> None:
        self._bar.close()
        self._echo(text)
        self._last_line = time.monotonic()


# What came out of it


def results(run: Run, *, where: bool = True) -> str:
    """Return the end of a run: the attacks, a line for each claim, the worst warnings, and `where` to look next.

    With the notebooks' attacks this is about 45 lines of at most 120 columns; only paths may be longer.
    """
    told = {"claims": _claims, "warnings": _warnings}
    kept = {name: stage for name, stage in stored(run.dir, ".csv").items() if name in (*told, *MAIN)}
    read = {name: run.read_table(name, stage) for name, stage in kept.items()}
    frames = {name: frame for name, frame in read.items() if not frame.empty}
    paths = [
        f"executed notebooks  jupyter lab {shlex.quote(str(run.path('notebooks')))}",
        f"tables              {run.path('tables')}",
        f"all in full         python -m nbsupport status {shlex.quote(str(run.dir))} --tables",
    ]
    parts = [_attacks(frames), *(tell(frames[name]) for name, tell in told.items() if name in frames)]
    parts += [paths] if where else []
    return "\n\n".join("\n".join(part) for part in parts if part)


def tables(run: Run) -> str:
    """Return every table that `run` has stored, whole, its figures' paths, and the seconds; raises as `referenced`.

    Of the tables with one row an image, thousands of lines, it returns the paths only.
    """
    lines = []
    for name, stage in stored(run.dir, ".csv").items():
        path = run.path("tables", f"{name}.csv")
        text = f"one row an image: {path}" if name.startswith("images") else frame_text(referenced(run, name, stage))
        lines += [f"tables/{name}.csv", text, ""]
    lines += ["figures", *(f"  {run.path('figures', name)}.png" for name in stored(run.dir, ".png")), "", "seconds"]
    entries = sorted(manifest.read(run.dir)["stages"].items())
    return "\n".join(lines + [f"  {stage:<26}{entry['seconds']:>9.1f}" for stage, entry in entries])


def referenced(run: Run, name: str, stage: str) -> pd.DataFrame:
    """Return the table `name`, which `stage` stores, with the reference numbers that published.csv has for it.

    That file may lie in the run folder. A row of it: `table`, the columns of the table that name one of its rows,
    such as model and attack (empty: not needed), `quantity`, which is a column of numbers, `value` in the unit of the
    table, and `source`. The table gains a column QUANTITY_reference for each quantity, and `reference_source`.

    Raises ValueError, which names the row, for a table that the finished run has not stored, a column that the table
    does not have, a row that it has not or has twice, and a cell that is empty or no number.
    """
    import pandas as pd

    table, path = run.read_table(name, stage), run.path(PUBLISHED)
    if not path.exists():
        return table
    published = pd.read_csv(path, engine="python")  # whose floats are exact
    if lacking := [column for column in REFERENCE if column not in published]:
        raise ValueError(f"expected {path} with the columns {', '.join(REFERENCE)}; missing: {', '.join(lacking)}")
    known, finished = stored(run.dir, ".csv"), len(manifest.read(run.dir)["stages"]) == len(STAGES)
    numbers, sources = table.select_dtypes("number").columns, dict[Any, dict[str, None]]()
    for line, row in enumerate(published.to_dict("records"), 2):
        where = f"line {line} of {path}"
        if finished:
            checks.choice(row["table"], known, name=f"table in {where}")
        if row["table"] == name:
            checks.choice(row["quantity"], numbers, name=f"quantity in {where}")
            value = pd.to_numeric(row["value"], errors="coerce")
            if math.isnan(value) or pd.isna(row["source"]):
                raise ValueError(
                    f"expected a number and its source in {where}, got {row['value']!r}, {row['source']!r}"
                )
            keys = {key: row[key] for key in row if key not in REFERENCE and not pd.isna(row[key])}
            at = _row_named(table, keys, where)
            table.loc[at, f"{row['quantity']}_reference"] = float(value)
            sources.setdefault(at, {})[str(row["source"])] = None  # each once
    said = pd.Series({at: "; ".join(names) for at, names in sources.items()}, dtype=object)
    return table.assign(reference_source=said) if sources else table


def _row_named(table: pd.DataFrame, keys: Mapping[Any, Any], where: str) -> Any:
    """Return the label of the one row of `table` that `keys` name."""
    for key in keys:
        checks.choice(key, table.columns, name=f"column in {where}")
    found = table.index[[all(row[key] == value for key, value in keys.items()) for row in table.to_dict("records")]]
    if len(found) != 1:
        named = ", ".join(f"{key} {value}" for key, value in keys.items()) or "no key"
        raise ValueError(f"expected {where} to name one row of the table, got {len(found)} for {named}")
    return found[0]


def stored(run_dir: Path, kind: str) -> dict[str, str]:
    """Return the names of the recorded files that end with `kind`, such as ".csv", and the stage that each is of."""
    recorded = sorted(manifest.read(run_dir)["stages"].items())
    return {Path(rel).stem: stage for stage, entry in recorded for rel in entry["outputs"] if rel.endswith(kind)}


def frame_text(frame: pd.DataFrame) -> str:
    """Return all of `frame` as text of at most 120 columns.

    A wide frame goes into blocks one below the other, each with the columns that name the rows: the first ones, up to
    the first of floats. Longer lines wrap.
    """
    import pandas as pd

    if frame.empty:
        return "no rows"
    numbers, floats = frame.select_dtypes("number"), frame.select_dtypes("float")
    text = pd.DataFrame({name: [str(name), *map(_cell, frame[name])] for name in frame})
    width = text.map(len).max()
    text = text.apply(lambda cells: cells.str.pad(width[cells.name], "left" if cells.name in numbers else "right"))
    keys = (frame.columns.isin(floats.columns).cumsum() == 0) & ((width + 2).cumsum() <= WIDTH // 2)
    keys.iloc[-1] = False
    text.index = ["  ".join(names) for names in text.loc[:, keys].itertuples(index=False)]
    lines = text.loc[:, ~keys].to_string(header=False, line_width=WIDTH).splitlines()
    return "\n".join(textwrap.fill(line.rstrip(" \\"), WIDTH, subsequent_indent="    ") for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float) and not math.isnan(value):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None or value != value else str(value)  # not measured


def _attacks(frames: Mapping[str, Any]) -> list[str]:
    """Return the main table: a row for each model's benign images and attacks, from three tables."""
    import pandas as pd

    from nbsupport import tables  # which loads torch

    parts = [frames[name] for name in MAIN if name in frames]
    if not parts:
        return []
    rows = pd.concat([part.rename(columns={"attack": "examples"}) for part in parts])
    rows = rows[~rows.examples.isin(("noise", "errors"))]  # the controls
    rows = rows.assign(first=rows.examples == "benign").sort_values(["model", "first"], ascending=[True, False])
    rows = rows.groupby(["model", "examples"], sort=False).first().reset_index()  # n is that of the first

    def shares(*names: str) -> list[str]:
        return tables.in_words(rows.reindex(columns=names), names[0])

    told = {
        "model": rows.model,
        "examples": rows.examples,
        "n": rows.n,
        "success": shares("success_rate", "success_rate_low", "success_rate_high"),
        "mean RMS": rows.get("mean_rms"),
        "accuracy": shares("point_accuracy"),
        "accuracy of the vote": shares("region_accuracy", "region_low", "region_high"),
        "median distance": rows.get("median_distance"),
    }
    return [frame_text(pd.DataFrame(told)), LEGEND]


def _claims(frame: Any) -> list[str]:
    """Return a line for each claim: its verdict, the row that decides it, and how many rows differ.

    Rows that are true by construction, and rows beside the claim, are only counted.
    """
    from nbsupport import claims  # which loads torch

    lines = [f"   {'claim':<30}verdict   the row that decides: value [95 % interval] > what is claimed, n; other rows"]
    for number, of_claim in frame.groupby("claim"):
        rows, others = of_claim[of_claim.decides], of_claim[~of_claim.decides]
        verdict, texts = "-", []
        if len(rows):
            verdict, row = claims.overall(rows)
            texts = [_figures(row), *_counts(rows.drop(row.name).query("verdict != @verdict"))]
            corrected = int((rows.verdict_holm != rows.verdict).sum())
            texts += [f"Holm undecided: {corrected}"] * (corrected > 0)
        known = others.by_construction.notna()
        for name, part in (("by construction", others[known]), ("beside it", others[~known])):
            texts += [f"{name} {', '.join(_counts(part))}"] * (len(part) > 0)
        line = f"{number:>2} {claims.CLAIMS[number]:<30}{verdict:<10}{'; '.join(texts)}"
        lines.append(textwrap.fill(line, WIDTH, subsequent_indent=" " * 43))
    return lines


def _figures(row: Any) -> str:
    numbers = row[["statistic", "low", "high", "threshold"]]
    figure, low, high, threshold = (f"{number:.2g}".replace("0.", ".") for number in numbers)
    sign = {"holds": ">", "fails": "<"}.get(row.verdict, "vs")
    return f"{row.model} {row.examples}: {figure} [{low}, {high}] {sign} {threshold}, n {row.n}"


def _counts(rows: Any) -> list[str]:
    return [f"{verdict}: {count}" for verdict, count in rows.verdict.value_counts().items()]


def _warnings(frame: Any) -> list[str]:
    """Return the worst warning of each of three kinds, and how many more there are."""
    worst = frame.sort_values("share", ascending=False, kind="stable").drop_duplicates("indicator").head(3)
    more = f"; {len(frame) - len(worst)} more in tables/warnings.csv" if len(frame) > len(worst) else ""
    lines = [f"{len(frame)} warnings that an attack fell short of what it could do, the worst of a kind each{more}"]
    for row in worst.itertuples():
        remedy = row.what_to_do.rpartition("; ")[2].removeprefix("or ")
        text = f"{row.model} {row.attack}: {row.indicator} ({100 * row.share:.0f} % of {row.n}); {remedy}"
        lines.append(textwrap.shorten(text, WIDTH, placeholder=" [...]"))
    return lines
