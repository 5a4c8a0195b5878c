"""The notebooks: their form without running them, and one smoke run of all that the tests look into."""

from __future__ import annotations

import ast
import inspect
import json
import re
import statistics
import struct
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from nbsupport import boundary, claims, detector, presets, runner, runtime, store, suite, tables
from nbsupport.attacks import indicators
from nbsupport.runner import notebooks
from nbsupport.store import STAGES, Run, journal

FOLDER = Path(__file__).parents[1] / "notebooks"
PARAMETERS = {"dataset": "digits", "preset": "standard", "run_dir": "../runs/digits-standard", "overrides": {}}
KERNELS = ("adaptive", "attacks", "boundary", "data", "detector", "models", "region", "train")
TABLES = {
    "attacks": tables.ATTACKS,
    "region": tables.REGION,
    "boundary": tables.BOUNDARY,
    "detector": tables.DETECTOR,
    "claims": claims.COLUMNS,
    "images": tuple(tables.IMAGES),
    "stability": tables.STABILITY,
    "geometry": tables.GEOMETRY,
    "triple": ("model", "examples", "n", "difference", "difference_low", "difference_high", "verdict"),
    "audit": tables.AUDIT,
    "adaptive": tables.ADAPTIVE,
    "adaptive_cost": tables.COST,
    "warnings": ("model", "attack", "indicator", "share", "n", "what_to_do"),
}

every_notebook = pytest.mark.parametrize("stage", STAGES)


def all_cells(stage: str) -> list[tuple[str, str]]:
    """The kind and the text of each cell."""
    contents = json.loads((FOLDER / f"{stage}.ipynb").read_text())
    return [(cell["cell_type"], "".join(cell["source"])) for cell in contents["cells"]]


def cells(stage: str, kind: str) -> list[str]:
    return [text for each, text in all_cells(stage) if each == kind]


def tried(stage: str) -> list[list[str]]:
    """The code cells below each text that asks the reader to try something."""
    found: list[list[str]] = []
    inviting = False
    for kind, text in all_cells(stage):
        if kind == "markdown":
            inviting = "**Try it**" in text
            found += [[]] if inviting else []
        elif inviting:
            found[-1].append(text)
    return found


def kernels_named(code: str) -> list[str]:
    """What `code` takes from the modules of the kernels, such as "attacks.fgsm", once for each time."""
    names = [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    return [name for name in names if name.split(".")[0] in KERNELS]


def test_every_stage_has_one_notebook() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(STAGES)


@every_notebook
def test_notebooks_are_valid_stripped_and_of_little_metadata(stage: str) -> None:
    notebook = nbformat.read(FOLDER / f"{stage}.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert cell.metadata.keys() <= {"tags"}
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@every_notebook
def test_the_parameters_are_four_literals(stage: str) -> None:
    notebook = nbformat.read(FOLDER / f"{stage}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    found = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        (name,) = statement.targets
        assert isinstance(name, ast.Name)
        found[name.id] = ast.literal_eval(statement.value)
    assert found == PARAMETERS
    assert all("  # " in line for line in cell.source.splitlines())


@every_notebook
def test_cells_are_short_and_plain(stage: str) -> None:
    code = cells(stage, "code")
    lengths = [len(cell.splitlines()) for cell in code]
    assert max(lengths) <= 15
    assert statistics.median(lengths) <= 5
    forbidden = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.Try)
    for cell in code:
        assert not re.search(r"^\s*[!%]|\bpip\b", cell, re.MULTILINE)
        nodes = list(ast.walk(ast.parse(cell)))
        inner = [part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values[1:]]
        for node in nodes:
            assert not isinstance(node, forbidden)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
                assert not node.value.startswith(("/", "~"))


@every_notebook
def test_notebooks_are_told_as_a_story(stage: str) -> None:
    prose, code = cells(stage, "markdown"), cells(stage, "code")
    assert prose[0].startswith(f"# {int(stage[:2])} ")
    question = notebooks.question(FOLDER / f"{stage}.ipynb")
    assert question.endswith("?")
    assert question in " ".join(prose[0].split("\n- ")[0].split())
    for entry in ("In the talk", "Reads", "Writes", "Takes"):
        assert f"- **{entry}**" in prose[0]
    assert sum(len(text.split()) for text in prose) > 15 * len(code)
    assert all(text.isascii() for text in prose + code)


@every_notebook
def test_kernels_are_called_in_the_open(stage: str) -> None:
    code = cells(stage, "code")
    imported = {
        alias.name
        for cell in code
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.ImportFrom) and node.module == "nbsupport"
        for alias in node.names
    }
    named = [name for cell in code for name in kernels_named(cell) if name.split(".")[0] in imported]
    assert len(named) >= 2, named


@every_notebook
def test_a_reader_is_asked_to_try_something_that_stores_nothing(stage: str) -> None:
    found = tried(stage)
    assert found
    for each in found:
        assert each, "a text that says **Try it** is followed by the cell to change"
        assert not re.search(r"\brun\.(keep|write|finish|warn)", "\n".join(each))


def stated() -> list[tuple[str, str]]:
    """What the prose says of settings and constants: the notebook, and the words with the value that the code has."""
    every = [presets.settings(name, preset) for name in ("digits", "mnist", "cifar10") for preset in presets.PRESETS]
    (views,), (samples,) = ({getattr(s, name) for s in every} for name in ("views", "samples"))
    votes = [intervals_of_votes(n) for n in (samples // 2 + 1, samples)]
    default = {name: each.default for name, each in inspect.signature(boundary.triple_points).parameters.items()}
    return [
        ("03_attacks", rf"i = 1, \dots, {views} \tag{{1}}"),
        ("03_attacks", rf"$v_1, \dots, v_{{{views - 1}}}$ are random and mutually orthogonal"),
        ("03_attacks", f"with {views} views, a step of `adam` counts {views} or"),
        ("03_attacks", f"DDN with {views} views"),
        ("03_attacks", f"the first {suite.INDICATED} images"),
        ("03_attacks", f"a batch of exactly {indicators.BATCH} rows"),
        (
            "04_region_classification",
            f"with {samples // 2 + 1} votes of {samples // 2 + 1} $\\underline p$ is {votes[0]}",
        ),
        ("04_region_classification", f"with {samples} of {samples} it is {votes[1]}"),
        ("05_boundary_analysis", f"only at one length (`view_eps`) and in {views - 1} of them"),
        ("05_boundary_analysis", f"on a {default['size']} x {default['size']} grid"),
        ("06_detector", f"the first {['one', 'two', 'three'][detector.PURITIES - 1]} purities"),
        ("06_detector", " or ".join(f"{100 * rate:g} %" for rate in suite.TARGETS)),
        ("07_adaptive_attacks", f"at the threshold that flags {100 * suite.TARGETS[0]:g} %"),
    ]


def intervals_of_votes(n: int) -> str:
    """The lower end of the share of the winner of all of `n` votes, as the prose writes it."""
    return f"{0.0005 ** (1 / n):.3f}".lstrip("0")  # Clopper and Pearson's, at alpha .001


@pytest.mark.parametrize(("stage", "words"), stated())
def test_the_settings_that_prose_states_are_those_of_the_code(stage: str, words: str) -> None:
    assert words in " ".join(" ".join(cells(stage, "markdown")).split())


def test_the_command_line_accepts_the_parameters() -> None:
    notebooks.require(FOLDER, STAGES, PARAMETERS)
    with pytest.raises(ValueError, match="did you mean 'preset'"):
        notebooks.require(FOLDER, STAGES, {**PARAMETERS, "presets": "smoke"})


# What follows looks into one smoke run of all notebooks, the fixture `planned`.


def outputs(run: Run, stage: str) -> list[dict[str, Any]]:
    executed = nbformat.read(run.path("notebooks", f"{stage}.ipynb"), as_version=4)
    return [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]


def read(run: Run, name: str) -> pd.DataFrame:
    return pd.read_csv(run.path("tables", f"{name}.csv"), engine="python")  # whose floats are exact


@pytest.mark.slow
@every_notebook
def test_stages_are_complete_and_their_copies_show_figures(smoke: Run, stage: str) -> None:
    assert smoke.state(stage) == store.StageState("complete")
    shown = outputs(smoke, stage)
    assert not [o for o in shown if o.output_type == "error" or o.get("name") == "stderr"]
    assert [o for o in shown if "image/png" in o.get("data", {})]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_tables_have_exactly_the_specified_columns(smoke: Run, name: str) -> None:
    found = read(smoke, name)
    assert tuple(found.columns) == TABLES[name]
    assert len(found)


@pytest.mark.slow
@every_notebook
def test_figures_are_images_of_some_size(smoke: Run, stage: str) -> None:
    figures = list(smoke.path("figures").glob(f"{stage[:2]}_*.png"))
    assert figures
    for path in figures:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", data[16:24])) > 20
        assert len(data) > 1000
        assert path.with_suffix(".pdf").read_bytes()[:5] == b"%PDF-"


@pytest.mark.slow
@every_notebook
def test_the_last_cell_of_a_chapter_says_what_it_stored(smoke: Run, stage: str) -> None:
    printed = [o["text"] for o in outputs(smoke, stage) if o.output_type == "stream"]
    (said,) = re.findall(r"stored in (\S+): (\d+) results, (\d+) tables, (\d+) figures", "".join(printed))
    assert said[0] == str(smoke.dir)
    stored = json.loads(smoke.path("run.json").read_text())["stages"][stage]["outputs"]
    kinds = [sum(name.endswith(kind) for name in stored) for kind in (".safetensors", ".csv", ".png")]
    assert list(map(int, said[1:])) == kinds


@pytest.mark.slow
def test_a_second_run_reuses_everything(planned: runner.Job) -> None:
    lines: list[str] = []
    runner.run(planned, lines.append)
    assert [line for line in lines if line.startswith("stage ")] == [
        f"stage {number}/7 {stage}: complete and verified, reused" for number, stage in enumerate(STAGES, 1)
    ]


@pytest.mark.slow
def test_a_kernel_that_is_kept_again_is_not_computed(smoke: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    few, model = smoke.test.first(smoke.settings.n), smoke.model("normal")
    stored = smoke.path("attacks", "normal", "PGD.safetensors").read_bytes()
    monkeypatch.setattr(runtime, "frozen", None)  # without it no kernel computes
    attack, _ = suite.attacks(smoke.settings, "normal")["PGD"]
    kept = smoke.keep("attacks/normal/PGD", attack, model, few.x, few.y, each={}, seed=("attack", "PGD"))
    assert torch.equal(kept.x_adv, smoke.load("attacks/normal/PGD").x_adv)
    assert smoke.path("attacks", "normal", "PGD.safetensors").read_bytes() == stored


@pytest.fixture(scope="module")
def images(smoke: Run) -> pd.DataFrame:
    """The rows of images.csv, without those of notebook 7."""
    frame = read(smoke, "images")
    return frame[frame.examples != "mimic"]


@pytest.mark.slow
class TestImages:
    """images.csv, and the tables that are counted from it."""

    def test_there_is_a_row_for_every_image_of_every_set(self, smoke: Run, images: pd.DataFrame) -> None:
        assert not images.duplicated(["model", "examples", "index"]).any()
        s = smoke.settings
        expected = {
            ("benign", max(s.n, s.region_n)),
            *((name, n) for name, (_, n) in suite.attacks(s, "normal").items()),
        }
        probed = images[images.examples.isin(suite.CONTROLS)]
        found = smoke.load_all("boundary")
        for (model, name), part in probed.groupby(["model", "examples"]):
            assert part["index"].tolist() == smoke.inputs(f"boundary/{model}/{name}")["index"].tolist()
            assert (part.y == smoke.test.y.numpy()[part["index"]]).all()
            assert (model, name) in found
        images = images.drop(probed.index)
        for _, part in images.groupby("model"):
            assert set(part.examples.value_counts().items()) == expected
        assert set(images.model) == set(store.MODELS)
        for _, part in images.groupby(["model", "examples"]):
            assert part["index"].tolist() == list(range(len(part)))
            assert part.y.tolist() == smoke.test.y[: len(part)].tolist()

    def test_success_rates_are_counted_from_it(self, smoke: Run, images: pd.DataFrame) -> None:
        attacked = images[(images.examples != "benign") & images.correct]
        counted = attacked.groupby(["model", "examples"]).success.agg(lambda part: part.astype(bool).mean())
        table = read(smoke, "attacks").set_index(["model", "attack"])
        for key, row in table.iterrows():
            part = images[(images.model == key[0]) & (images.examples == key[1])]
            assert (row.n, row.n_misclassified) == (part.correct.sum(), (~part.correct).sum())
            assert row.success_rate == pytest.approx(counted.get(key, np.nan), nan_ok=True)
            successes = part.rms[part.success.astype(bool)]
            assert row.mean_rms == pytest.approx(successes.mean(), nan_ok=True)
            assert row.median_rms == pytest.approx(successes.median(), nan_ok=True)
        assert len(table) == 2 * len(suite.attacks(smoke.settings, "normal"))

    def test_region_accuracies_are_counted_from_it(self, smoke: Run, images: pd.DataFrame) -> None:
        counted = images[(images.examples == "benign") | images.correct]
        table = read(smoke, "region").set_index(["model", "examples"])
        assert len(table) == 2 + 2 * len(suite.attacks(smoke.settings, "normal"))
        for key, row in table.iterrows():
            part = counted[(counted.model == key[0]) & (counted.examples == key[1])]
            assert row.n == len(part)
            assert row.point_accuracy == pytest.approx(
                (part.point == part.y).mean() if len(part) else np.nan, nan_ok=True
            )
            assert row.region_accuracy == pytest.approx(
                (part.vote == part.y).mean() if len(part) else np.nan, nan_ok=True
            )
            if key[1] != "benign" and len(part):
                assert row.point_accuracy == pytest.approx(1 - part.success.astype(bool).mean())

    def test_boundary_means_are_counted_from_it(self, smoke: Run, images: pd.DataFrame) -> None:
        means = images.dropna(subset="reached_share").groupby(["model", "examples"])
        table = read(smoke, "boundary").set_index(["model", "examples"])
        assert sorted(table.index) == sorted(means.groups)
        for key, row in table.iterrows():
            part = means.get_group(key)
            assert row.n == len(part)
            for name in ("reached_share", "purity_1", "purity_2", "purity_3"):
                assert row[name] == pytest.approx(part[name].mean())

    def test_every_probed_image_has_a_score_by_the_detector_that_held_it_out(
        self, smoke: Run, images: pd.DataFrame
    ) -> None:
        probed = images[images.reached_share.notna()]
        judges, s = smoke.load_all("detector"), smoke.settings
        profiles = smoke.load_all("boundary")
        assert probed.detector_score.notna().equals(pd.Series(True, index=probed.index))
        for (model, name), part in probed.groupby(["model", "examples"]):
            at = smoke.inputs(f"boundary/{model}/{name}")["index"].tolist()
            for row in part.itertuples():
                assert row.detector_part == suite.folds(s, torch.tensor([row.index]))[0]
                trained_on = name if (model, suite.judge(name, 0)) in judges else "all"
                judge = judges[model, suite.judge(trained_on, int(row.detector_part))]
                score = judge.score(profiles[model, name].take(torch.tensor([at.index(row.index)])))
                assert row.detector_score == pytest.approx(float(score), abs=1e-6)

    def test_what_is_known_of_an_image_agrees(self, images: pd.DataFrame) -> None:
        benign = images[images.examples == "benign"]
        assert (benign.correct == (benign.point == benign.y)).all()
        assert benign.success.isna().all()
        controls = images[images.examples.isin(suite.CONTROLS)]
        assert (controls.correct == (controls.examples == "noise")).all()
        assert controls.success.isna().all()
        adversarial = images[~images.examples.isin(("benign", *suite.CONTROLS))]
        success = adversarial.success.astype(bool)
        assert not success[~adversarial.correct].any()
        assert (adversarial.point[success] != adversarial.y[success]).all()
        assert adversarial.reached_share[~success].isna().all()
        assert adversarial.rms[~adversarial.correct].eq(0).all()
        assert (images.median_distance > 0).sum() == images.reached_share.notna().sum()  # `inf` is a distance too


@pytest.mark.slow
def test_the_accuracy_table_counts_what_the_models_say(smoke: Run) -> None:
    table = read(smoke, "training").set_index("model")
    for name in store.MODELS:
        row = table.loc[name]
        test = smoke.test.first(int(row.n))
        right = runtime.predict(smoke.model(name), test.x) == test.y
        assert row.benign_accuracy == pytest.approx(right.float().mean().item())
        assert row.pgd_accuracy <= row.benign_accuracy
        assert row.benign_accuracy_low < row.benign_accuracy < row.benign_accuracy_high


@pytest.mark.slow
def test_warnings_are_stored_and_told(smoke: Run) -> None:
    table = pd.concat([read(smoke, "warnings"), read(smoke, "adaptive_warnings")])
    told = [entry["message"] for entry in journal.read(smoke.dir) if entry.get("event") == "warning"]
    assert told == (table.attack + " on " + table.model + ": " + table.indicator + ": " + table.what_to_do).tolist()


@pytest.mark.slow
def test_the_attacks_on_the_defences_are_told_by_image(smoke: Run) -> None:
    table, frame = read(smoke, "adaptive"), read(smoke, "images")
    for which in store.MODELS:
        index = smoke.inputs(f"adaptive/{which}/mimic")["index"]
        rows = frame[(frame.model == which) & (frame.examples == "mimic")]
        assert rows["index"].tolist() == index.tolist()
        benign = smoke.inputs(f"boundary/{which}/benign")["index"]
        assert index.tolist() == benign[: smoke.settings.adaptive_n].tolist()  # fixed before looking
        said = smoke.load(f"judged/{which}/EOT")
        y = smoke.test.y[index]
        own = table[(table.model == which) & (table.attack == "EOT") & table.budget_rms.isna()]
        vote = own[own.defence == "vote"].success_rate.item()
        assert vote == pytest.approx(float((said.vote != y).double().mean()))
        least = table[(table.model == which) & (table.attack == "minimum") & table.budget_rms.isna()]
        assert least[least.defence == "vote"].success_rate.item() >= vote


def test_a_notebook_without_its_input_names_the_command(tmp_path: Path) -> None:
    empty = store.open_run(tmp_path / "empty", dataset="digits", preset="smoke")
    with pytest.raises(store.MissingInput, match=r"02_training makes it: run\n.*nbsupport run"):
        empty.model("normal")
