"""Finished runs side by side: what their tables share, its mean and spread, and differences on the same images."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nbsupport import claims, files, intervals, plots, tables
from nbsupport.plots.comparison import SHOWN, of_defence
from nbsupport.runner import report
from nbsupport.store import STAGES, Run, manifest
from nbsupport.suite import BENIGN

KEY = ["table", "quantity", "model", "examples", "about"]
QUANTITIES = {  # of each table, the columns that are compared
    "training": ["benign_accuracy"],
    "attacks": ["success_rate", "mean_rms"],
    "region": ["region_accuracy"],
    "boundary": ["median_distance"],
    "detector": ["auc"],
    "adaptive": ["success_rate"],
    "claims": ["statistic"],
}
LENGTHS = ("mean_rms", "median_distance")  # in the data set's own unit

Frames = Mapping[str, pd.DataFrame]


def compare(runs: Sequence[Run], target: Path, echo: Callable[[str], object] = print) -> pd.DataFrame:
    """Write `compared.csv` and the figure `compared` (PNG, PDF) of finished `runs` to the folder `target`.

    Returns the table, whose columns are those of `side_by_side`, and of each run NAME but the first also those of
    `paired` with "_NAME" after them, where it has the same test images as the first. NAME is the run's folder, or its
    whole path where two folders are called the same. Prints it in short, and what a run lacks.

    Raises ValueError for fewer than two runs, one run twice, one that is not finished, and a `target` that holds a run.
    """
    names = _names(runs)
    for run in runs:
        _require_finished(run)
    if (target / manifest.NAME).exists():
        raise ValueError(f"expected a folder for the comparison, got {target}, which holds a run; choose another --to")
    read = {name: _read(run) for name, run in zip(names, runs, strict=True)}
    lines = [
        f"{name} lacks the table {table}" for name, own in read.items() for table in QUANTITIES if table not in own
    ]
    frame = side_by_side({name: headlines(own) for name, own in read.items()})
    first, data = names[0], [_test_images(run) for run in runs]
    for name, images in zip(names[1:], data[1:], strict=True):
        if images != data[0]:
            lines.append(f"{name} has other test images than {first}: only rates compare, and they are not paired")
        elif lacking := [each for each in (first, name) if "images" not in read[each]]:
            lines.append(f"{name} and {first} are not paired: {', '.join(lacking)} lacks the table images")
        else:
            most = float(read[first]["datasets"].highest_pixel.max()) if "datasets" in read[first] else math.inf
            change = paired(read[first]["images"], read[name]["images"], most=most)
            frame = frame.merge(change.set_index(KEY).add_suffix(f"_{name}"), how="left", on=KEY)
    if len(set(data)) > 1:
        frame.loc[frame.quantity.isin(LENGTHS), ["mean", "sd"]] = math.nan
    files.write_text(target / "compared.csv", frame.to_csv(index=False))
    figure = plots.runs_side_by_side(frame, names)
    for kind in (".png", ".pdf"):
        files.write_figure(target / f"compared{kind}", figure)
    echo(
        "\n".join(
            [*in_words(frame, names), "", *lines, f"written to {target}: compared.csv, compared.png, compared.pdf"]
        )
    )
    return frame


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run; raises ValueError for fewer than two runs, and for one given twice."""
    if len(runs) < 2:
        raise ValueError(f"expected two runs or more to compare, got {len(runs)}; name another run folder")
    paths = [str(run.dir) for run in runs]
    if twice := [path for path in dict.fromkeys(paths) if paths.count(path) > 1]:
        raise ValueError(f"expected every run once, got twice: {', '.join(twice)}")
    names = [run.dir.name for run in runs]
    return names if len(set(names)) == len(names) else paths


def _require_finished(run: Run) -> None:
    stages = manifest.read(run.dir)["stages"]
    if open_ := [stage for stage in STAGES if not stages.get(stage, {}).get("finished")]:
        raise ValueError(f"{run.dir} is not finished, it lacks {', '.join(open_)}; finish it:\n  {run.command}")


def _read(run: Run) -> dict[str, pd.DataFrame]:
    """Return the stored tables that are compared, by name, images.csv and datasets.csv with them."""
    stored = report.stored(run.dir, ".csv")
    return {name: run.read_table(name, stored[name]) for name in (*QUANTITIES, "images", "datasets") if name in stored}


def _test_images(run: Run) -> str:
    """Return the digest of the test images that `run` was made from; where none is recorded, the run's folder."""
    stages = manifest.read(run.dir)["stages"].values()
    found = [entry["made_from"]["data"]["test"] for entry in stages if "test" in entry["made_from"].get("data", {})]
    return str(found[0] if found else run.dir)


# Frames in, frames out


def headlines(read: Frames) -> pd.DataFrame:
    """Return the numbers of one run that are compared: columns `KEY`, value, verdict, one row each.

    `read` are its tables by name; the columns taken are `QUANTITIES`. The detector is the network, tested on the attack
    that it was trained on; adaptive success that of the best attack on each image within the budget. Of other rows than
    claims `verdict` is the empty text. The budget that a claim states is left out of its name: every run has its own.
    """
    parts = [pd.DataFrame(columns=[*KEY, "value", "verdict"])]
    for name in (name for name in QUANTITIES if name in read):
        rows = read[name].assign(table=name, **_named(name, read[name]))
        if name == "detector":
            own = (rows.detector == "network") & (rows.trained_on == rows.tested_on)
            rows = rows[own].drop_duplicates(["model", "examples"])  # the same for each target_fpr
        if name == "adaptive":
            rows = rows[(rows.attack == "minimum") & rows.budget_rms.notna()]
        parts += [rows.assign(quantity=each, value=rows[each])[parts[0].columns] for each in QUANTITIES[name]]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _named(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Return the columns examples, about and verdict of a results table as far as they are not in it."""
    if name == "claims":
        said = table.statement.str.replace(r" within an RMS of \S+$", "", regex=True)
        return {"about": table.claim.astype(str) + " " + said}
    about: Any = ""
    if name == "adaptive":
        flags = table.fpr.map(lambda rate: "" if math.isnan(rate) else f", fpr {100 * rate:g} %")
        about = table.defence + flags
    column = {"attacks": "attack", "adaptive": "attack", "detector": "trained_on", "training": None}.get(
        name, "examples"
    )
    return {"examples": table[column] if column else BENIGN, "about": about, "verdict": ""}


def side_by_side(runs: Frames) -> pd.DataFrame:
    """Return one row a number of any of the `runs`, which are their `headlines` by name.

    Columns: `KEY`; value_NAME of each run; mean and sd (n - 1) over the runs that measured it; verdict_NAME of claims;
    same_verdict, empty where it is no claim or a run lacks the row; lacking, the names of the runs without the row.
    An empty value is not measured.
    """
    rows = pd.concat([frame.assign(run=name) for name, frame in runs.items()])
    order = rows.drop_duplicates(KEY).sort_values(
        "table", key=lambda each: each.map([*QUANTITIES].index), kind="stable"
    )
    wide = rows.pivot(index=KEY, columns="run", values=["value", "verdict"]).reindex(
        pd.MultiIndex.from_frame(order[KEY])
    )
    value = pd.DataFrame(wide["value"])[[*runs]].astype(float)
    verdict = pd.DataFrame(wide["verdict"])[[*runs]]
    claimed, known = (verdict != "").all(axis=1), verdict.notna()
    same = (verdict.nunique(axis=1) == 1).astype("boolean").where(claimed & known.all(axis=1))
    lacking = [", ".join(known.columns[~row]) for row in known.to_numpy()]
    parts = [value.add_prefix("value_"), pd.DataFrame({"mean": value.mean(axis=1), "sd": value.std(axis=1)})]
    parts += [verdict.add_prefix("verdict_"), pd.DataFrame({"same_verdict": same, "lacking": lacking})]
    return pd.concat(parts, axis=1).reset_index()


def paired(first: pd.DataFrame, other: pd.DataFrame, *, most: float = math.inf) -> pd.DataFrame:
    """Return `other` minus `first` on the images that both have: columns `KEY`, difference, low, high, n.

    Both are images.csv of the same test set. Rates are differences of yes/no answers with Newcombe's paired 95 %
    interval: of accuracy and of the vote on benign images over all of them, of an attack over those that both runs
    attacked. Of lengths, at most `most`, it is the mean difference with Student's: of the RMS where both attacks
    succeeded, of the median distance (of the image's own rays) where both are finite. `n` counts the images.

    Areas under the ROC curve and adaptive attacks are not paired: their folds and images are those of the run.
    """
    before, after = (claims.by_set(tables.stacked(frame)) for frame in (first, other))
    rows: list[tuple[Any, ...]] = []
    sets = [(model, name) for model, own in after.items() for name in own if name in before.get(model, {})]
    for model, name in sets:
        both = {label: run[model][name].assign(all=True) for label, run in (("a", after), ("b", before))}
        take, counted = partial(claims.both, both, "a", "b"), "all" if name == BENIGN else "correct"
        rate = intervals.paired_difference_of_rates
        found = {("region", "region_accuracy"): rate(*take("vote", counted=counted))}
        found["boundary", "median_distance"] = _change(*take("median_distance", counted="all"), most=most)
        if name == BENIGN:
            found["training", "benign_accuracy"] = rate(*take("correct", counted="all"))
        else:
            found["attacks", "success_rate"] = rate(*take("success", counted="correct"))
            found["attacks", "mean_rms"] = _change(*take("rms", counted="success"), most=most)
        rows += [(*key, model, name, "", each.value, each.low, each.high, each.n) for key, each in found.items()]
    return pd.DataFrame(rows, columns=[*KEY, "difference", "low", "high", "n"])


def _change(a: Any, b: Any, *, most: float) -> intervals.Rate:
    finite = np.isfinite(a) & np.isfinite(b)
    return intervals.mean(a[finite] - b[finite], bounds=(-most, most))


# For the screen


def in_words(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Return the comparison in short: means, what differs on the same images, rows that are lacking, and verdicts."""
    numbers = frame[frame.table != "claims"]
    cells = numbers.assign(what=numbers.quantity.map(SHOWN), examples=of_defence(numbers), cell=_cells(numbers))
    rows = cells[["model", "examples"]].drop_duplicates().sort_values("model", kind="stable")
    text = cells.pivot(index=["model", "examples"], columns="what", values="cell").fillna("")
    shown = rows.merge(text[[what for what in dict.fromkeys(SHOWN.values()) if what in text]].reset_index())
    lines = [
        f"{len(names)} runs: {', '.join(names)}; mean±standard deviation; of benign images accuracy, not success",
        report.frame_text(shown),
    ]
    for name in [name for name in names if f"difference_{name}" in frame]:
        lines += ["", *_differences(frame, names[0], name)]
    return [*lines, *_lacking(frame), "", *_verdicts(frame[frame.table == "claims"], names)]


def _cells(numbers: pd.DataFrame) -> list[str]:
    texts = []
    for quantity, *found in numbers[["quantity", "mean", "sd"]].itertuples(index=False):
        share = quantity not in (*LENGTHS, "auc")
        value, sd = (f"{100 * each:.1f}" if share else f"{each:.{k}g}" for each, k in zip(found, (3, 2), strict=True))
        text = value if math.isnan(found[1]) else f"{value}±{sd}"
        texts.append("" if math.isnan(found[0]) else text + " %" * share)
    return texts


def _differences(frame: pd.DataFrame, first: str, name: str) -> list[str]:
    """Return which of the differences between two runs have an interval without 0."""
    ends = [f"{end}_{name}" for end in ("difference", "low", "high", "n")]
    known = frame[frame[ends[0]].notna()]
    apart = known[(known[ends[1]] > 0) | (known[ends[2]] < 0)]
    lines = [
        f"{name} - {first} on the same images: 0 is outside the 95 % interval in {len(apart)} of {len(known)} rows"
    ]
    for row, (value, low, high, n) in zip(apart.itertuples(), apart[ends].to_numpy(float), strict=True):
        lines.append(f"  {row.model} {row.examples}: {row.quantity} {value:+.3g} [{low:.3g}, {high:.3g}], n {n:.0f}")
    return lines


def _lacking(frame: pd.DataFrame) -> list[str]:
    """Return which rows a run lacks of a table that others have; see the column `lacking`."""
    lines = []
    for names, rows in frame[frame.lacking != ""].groupby("lacking", sort=False):
        which = [f"{row.table} {row.model} {row.examples}" for row in rows.itertuples()]
        text = f"{len(rows)} rows are not in {names}: {', '.join(dict.fromkeys(which))}"
        lines.append(textwrap.shorten(text, 2 * report.WIDTH, placeholder=" [...]"))
    return lines


def _verdicts(rows: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Return a line for each claim: how many rows have the same verdict in all runs, and which differ."""
    known = rows.dropna(subset="same_verdict").astype({"same_verdict": bool})
    lines = [f"{int(known.same_verdict.sum())} of {len(known)} claim rows have the same verdict in all runs"]
    for number, part in known.groupby(known.about.str.split(" ").str[0].astype(int)):
        counts = part[part.same_verdict][f"verdict_{names[0]}"].value_counts()
        texts = [f"same {verdict} {count}" for verdict, count in counts.items()]
        for verdicts, differing in part[~part.same_verdict].groupby([f"verdict_{name}" for name in names]):
            which = dict.fromkeys(f"{row.model} {row.examples}" for row in differing.itertuples())
            texts.append(f"{' / '.join(map(str, verdicts))}: {', '.join(which)}")
        line = f"{number:>2} {claims.CLAIMS[int(number)]:<30}{'; '.join(texts)}"
        lines.append(textwrap.fill(line, report.WIDTH, subsequent_indent=" " * 33))
    return lines
