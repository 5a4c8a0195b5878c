"""Runs side by side: means, paired differences and verdicts of small tables whose numbers are computed by hand."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from nbsupport import cli, plots, store, tables
from nbsupport.runner import compare
from nbsupport.runner.compare import KEY, headlines, paired, side_by_side
from nbsupport.store import Run, manifest


def claim(
    number: int, examples: str, verdict: str, statement: str = "so it is", statistic: float = 0.5
) -> dict[str, Any]:
    said = {"claim": number, "model": "normal", "examples": examples, "statement": statement}
    return {**said, "statistic": statistic, "verdict": verdict}


def results(success: float, rms: float, *claimed: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables of one run."""
    attack = {"model": "normal", "attack": "FGSM", "success_rate": success, "mean_rms": rms}
    auc = {"model": "normal", "detector": "network", "trained_on": "FGSM", "tested_on": "FGSM", "auc": 0.75}
    other = [{"detector": "one-ray", "auc": 0.1}, {"tested_on": "PGD", "auc": 0.2}]  # which are not compared
    best = {
        "model": "normal",
        "defence": "vote",
        "attack": "minimum",
        "success_rate": 0.5,
        "budget_rms": 0.1,
        "fpr": math.nan,
    }
    flagged = {**best, "defence": "detector", "fpr": 0.05, "success_rate": 0.25}
    return {
        "training": pd.DataFrame([{"model": "normal", "benign_accuracy": 0.9}]),
        "attacks": pd.DataFrame([attack]),
        "region": pd.DataFrame([{"model": "normal", "examples": "FGSM", "region_accuracy": 0.4}]),
        "boundary": pd.DataFrame([{"model": "normal", "examples": "FGSM", "median_distance": math.nan}]),
        "detector": pd.DataFrame(
            [{**auc, "target_fpr": fpr} for fpr in (0.05, 0.5)] + [{**auc, **each} for each in other]
        ),
        "adaptive": pd.DataFrame([best, flagged, {**best, "budget_rms": math.nan}, {**best, "attack": "PGD"}]),
        "claims": pd.DataFrame(list(claimed) or [claim(1, "FGSM", "holds")]),
    }


def row(frame: pd.DataFrame, table: str, quantity: str, **more: Any) -> Any:
    for name, value in {"table": table, "quantity": quantity, **more}.items():
        frame = frame[frame[name] == value]
    [found] = frame.to_dict("records")
    return found


def test_a_row_a_number_with_its_mean_and_standard_deviation() -> None:
    runs = {
        name: headlines(results(share, rms)) for name, share, rms in (("a", 0.2, 1.0), ("b", 0.4, 2.0), ("c", 0.9, 6.0))
    }
    frame = side_by_side(runs)
    success = row(frame, "attacks", "success_rate")
    assert [success[f"value_{name}"] for name in "abc"] == [0.2, 0.4, 0.9]
    assert success["mean"] == pytest.approx(0.5)
    assert success["sd"] == pytest.approx(math.sqrt((0.3**2 + 0.1**2 + 0.4**2) / 2))
    assert row(frame, "attacks", "mean_rms")["sd"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert (success["model"], success["examples"], success["lacking"]) == ("normal", "FGSM", "")
    assert row(frame, "training", "benign_accuracy")["examples"] == "benign"
    assert math.isnan(row(frame, "boundary", "median_distance")["mean"])  # not measured, and not lacking
    assert row(frame, "detector", "auc")["mean"] == 0.75  # once, of the network on its own attack
    assert set(frame.about[frame.table == "adaptive"]) == {"vote", "detector, fpr 5 %"}
    assert list(dict.fromkeys(frame.table)) == list(compare.QUANTITIES)


def test_a_verdict_is_the_same_in_all_runs_or_it_differs() -> None:
    first = results(0.5, 1, claim(1, "FGSM", "holds"), claim(1, "PGD", "holds"), claim(2, "PGD", "fails"))
    other = results(0.5, 1, claim(1, "FGSM", "holds", statistic=math.nan), claim(1, "PGD", "undecided"))
    frame = side_by_side({"a": headlines(first), "b": headlines(other)})
    claimed = frame[frame.table == "claims"].set_index(["about", "examples"])
    assert claimed.same_verdict[:2].tolist() == [True, False]
    assert claimed.same_verdict.isna().tolist() == [False, False, True]
    assert list(claimed.lacking) == ["", "", "b"]
    assert frame.same_verdict[frame.table != "claims"].isna().all()


def test_the_budget_is_no_part_of_a_claims_name() -> None:
    said = [
        f"the vote withstands every attack on most images within an RMS of {budget}" for budget in ("0.0592", "1e-05")
    ]
    runs = {
        name: headlines(results(1, 1, claim(11, "minimum", "fails", text)))
        for name, text in zip("ab", said, strict=True)
    }
    frame = side_by_side(runs)
    assert frame.about[frame.table == "claims"].tolist() == ["11 the vote withstands every attack on most images"]


# Pairs


def images(examples: str, y: Any, **columns: Any) -> pd.DataFrame:
    frame = pd.DataFrame({"model": "normal", "examples": examples, "index": range(len(y)), "y": y, **columns})
    return frame.reindex(columns=list(tables.IMAGES))


def test_benign_images_are_paired_one_by_one() -> None:
    # The first run is right on images 0 to 7 of 10, the other on 0 to 5 and 9, and was given two images more.
    y = np.zeros(10, dtype=int)
    first = images("benign", y, correct=np.arange(10) < 8, vote=y, median_distance=[1.0] * 8 + [math.inf, 2.0])
    right = [True] * 6 + [False] * 3 + [True] * 3
    other = images("benign", np.zeros(12, dtype=int), correct=right, vote=[1, 1] + [0] * 10, median_distance=1.5)
    found = paired(first, other, most=3)
    accuracy = row(found, "training", "benign_accuracy")
    assert (accuracy["difference"], accuracy["n"]) == (pytest.approx(7 / 10 - 8 / 10), 10)
    assert accuracy["low"] < accuracy["difference"] < accuracy["high"]
    vote = row(found, "region", "region_accuracy")
    assert (vote["difference"], vote["n"]) == (pytest.approx(8 / 10 - 1), 10)
    distance = row(found, "boundary", "median_distance")
    changes = np.array([0.5] * 8 + [-0.5])  # image 8 has no boundary in the first run
    half = 2.306 * changes.std(ddof=1) / 3  # Student's t for 8 degrees of freedom
    assert (distance["difference"], distance["n"]) == (pytest.approx(changes.mean()), 9)
    assert (distance["low"], distance["high"]) == pytest.approx(
        (changes.mean() - half, changes.mean() + half), abs=1e-4
    )


def test_attacked_images_are_those_that_both_runs_attacked() -> None:
    y = np.zeros(6, dtype=int)
    before = {"correct": [True] * 5 + [False], "success": [True, True, True, False, False, False]}
    after = {"correct": [False] + [True] * 5, "success": [False, True, True, True, True, True]}
    first = images("FGSM", y, **before, rms=[0.1, 0.2, 0.3, 0.0, 0.0, 0.0], vote=[1] * 6)
    other = images("FGSM", y, **after, rms=[0.0, 0.3, 0.5, 0.4, 0.4, 0.4], vote=[1, 0, 0, 1, 1, 1])
    found = paired(first, other, most=1)
    success = row(found, "attacks", "success_rate")
    assert (success["difference"], success["n"]) == (0.5, 4)  # images 1 to 4: 4 of 4 minus 2 of 4
    rms = row(found, "attacks", "mean_rms")
    assert (rms["difference"], rms["n"]) == (pytest.approx(0.15), 2)  # images 1 and 2
    vote = row(found, "region", "region_accuracy")
    assert (vote["difference"], vote["n"]) == (0.5, 4)
    assert "benign_accuracy" not in set(found.quantity)


def test_the_same_run_differs_by_nothing_and_the_interval_keeps_its_width() -> None:
    y = np.zeros(40, dtype=int)
    one = images("FGSM", y, correct=True, success=True, rms=0.1, vote=1)
    found = paired(one, one, most=1).set_index("quantity")
    assert (found.difference.drop("median_distance") == 0).all()
    assert found.loc[["success_rate", "mean_rms"], "low"].between(-0.1, -0.05).all()  # about 4 of 40
    assert found.n["median_distance"] == 0
    assert math.isnan(found.difference["median_distance"])


def test_sets_of_one_run_alone_have_no_pairs() -> None:
    one, other = (images(name, [0], correct=True, success=True, rms=0.1) for name in ("FGSM", "PGD"))
    assert paired(one, other).empty


# Folders


def copied(run: Run, target: Path, **changed: Any) -> Run:
    """A run in `target` with the tables and run.json of `run`; of `stages` the manifest takes what is `changed`."""
    shutil.copytree(run.path("tables"), target / "tables")
    manifest.write(target, {**manifest.read(run.dir), **changed})
    return store.existing_run(target)


def run_of(run: Run) -> dict[str, Any]:
    return dict(manifest.read(run.dir)["stages"])


def test_finished_runs_side_by_side(smoke: Run, tmp_path: Path) -> None:
    other = copied(smoke, tmp_path / "other")
    table = pd.read_csv(other.path("tables", "attacks.csv"))
    table.loc[0, "mean_rms"] *= 3
    other.write_table("attacks", table.drop(1))
    judged = pd.read_csv(other.path("tables", "claims.csv"))
    judged.loc[0, "verdict"] = "fails"
    other.write_table("claims", judged)
    target = tmp_path / "out"
    result = CliRunner().invoke(cli.main, ["compare", str(smoke.dir), str(other.dir), "--to", str(target)])
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(target / "compared.csv")
    name = smoke.dir.name
    stored = pd.read_csv(smoke.path("tables", "attacks.csv"))
    first = {"model": stored.model[0], "examples": stored.attack[0]}
    rms = row(frame, "attacks", "mean_rms", **first)
    assert (rms[f"value_{name}"], rms["mean"]) == pytest.approx((stored.mean_rms[0], 2 * stored.mean_rms[0]))
    assert rms["difference_other"] == 0  # of the images, which are the same
    assert frame.lacking.notna().sum() == 2  # success and RMS of one attack
    assert f"2 rows are not in other: attacks {stored.model[1]} {stored.attack[1]}" in result.output
    assert f"{len(judged) - 1} of {len(judged)} claim rows have the same verdict in all runs" in result.output
    assert f"{judged.model[0]} {judged.examples[0]}" in result.output
    assert not frame.duplicated(KEY).any()
    assert {path.name for path in target.iterdir()} == {"compared.csv", "compared.png", "compared.pdf"}


def test_other_images_are_compared_by_rates_only(smoke: Run, tmp_path: Path) -> None:
    stages = run_of(smoke)
    for entry in stages.values():
        entry["made_from"] = {**entry["made_from"], "data": {"test": "others"}}
    del stages["07_adaptive_attacks"]["outputs"]["tables/adaptive.csv"]
    lines: list[str] = []
    frame = compare.compare([smoke, copied(smoke, tmp_path / "b", stages=stages)], tmp_path / "out", lines.append)
    assert "difference_b" not in frame
    assert row(frame, "attacks", "success_rate", model="normal", examples="FGSM")["sd"] == 0
    assert math.isnan(row(frame, "attacks", "mean_rms", model="normal", examples="FGSM")["mean"])
    assert f"b has other test images than {smoke.dir.name}: only rates compare, and they are not paired" in lines[0]
    assert "b lacks the table adaptive" in lines[0]
    assert set(frame.lacking[frame.table == "adaptive"]) == {"b"}


def test_runs_in_folders_of_one_name_are_told_apart(smoke: Run, tmp_path: Path) -> None:
    runs = [copied(smoke, tmp_path / parent / "run") for parent in ("x", "y")]
    assert compare._names(runs) == [str(run.dir) for run in runs]


def test_what_cannot_be_compared_is_refused(smoke: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected two runs or more to compare, got 1"):
        compare.compare([smoke], tmp_path)
    with pytest.raises(ValueError, match="expected every run once, got twice: "):
        compare.compare([smoke, smoke], tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder for the comparison, got .*, which holds a run"):
        compare.compare([smoke, copied(smoke, tmp_path / "b")], smoke.dir)
    stages = {stage: entry for stage, entry in run_of(smoke).items() if stage < "06"}
    half = copied(smoke, tmp_path / "half", stages=stages)
    with pytest.raises(
        ValueError, match=r"half is not finished, it lacks 06_detector, 07_adaptive_attacks; finish it:\n"
    ):
        compare.compare([smoke, half], tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [(("compare",), "expected two runs or more to compare, got 0"), (("compare", ".", "."), "is not a run folder")],
)
def test_the_command_line_says_what_is_wrong(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with CliRunner().isolation(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        result = CliRunner().invoke(cli.main, words)
    assert (result.exit_code, message in result.output) == (2, True), result.output


# The figure


def test_each_run_has_its_mark_and_each_claim_its_bar() -> None:
    first = results(0.25, 0.1, claim(1, "FGSM", "holds"), claim(1, "PGD", "holds"), claim(9, "PGD", "fails"))
    other = results(0.75, 0.3, claim(1, "FGSM", "holds"), claim(1, "PGD", "fails"), claim(9, "PGD", "fails"))
    frame = side_by_side({"a": headlines(first), "b": headlines(other)})
    fig = plots.runs_side_by_side(frame, ["a", "b"])
    success, *_, bars = fig.axes
    labels = [text.get_text() for text in success.get_yticklabels()]
    for line, expected in zip(success.lines, (0.25, 0.75), strict=True):
        marks = dict(zip(line.get_ydata(), line.get_xdata(), strict=True))
        assert marks[labels.index("FGSM")] == expected
        assert marks[labels.index("minimum: vote")] == 0.5
        assert marks[labels.index("benign")] == 0.9
    widths = {bar.get_label(): [patch.get_width() for patch in bar] for bar in bars.containers}
    assert widths == {"holds": [1, 0], "fails": [0, 1], "differs": [1, 0]}


def test_a_comparison_without_a_run_is_refused() -> None:
    frame = side_by_side({"a": headlines(results(0.5, 0.1)), "b": headlines(results(0.5, 0.1))})
    with pytest.raises(ValueError, match=r"expected the comparison with the columns .*; missing: value_c, verdict_c"):
        plots.runs_side_by_side(frame, ["a", "c"])
