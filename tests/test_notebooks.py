"""The six notebooks: their form without running them, and one smoke run of all that the tests look into."""

from __future__ import annotations

import ast
import json
import re
import statistics
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch

from nbsupport import claims, journal, runner, runtime, stages, store, tables, tables_geometry
from nbsupport.runner import notebooks
from nbsupport.store import STAGES, Run

FOLDER = Path(__file__).parents[1] / "notebooks"
PARAMETERS = {"dataset": "digits", "preset": "standard", "run_dir": "../runs/digits-standard", "overrides": {}}
TABLES = {
    "attacks": tables.ATTACKS,
    "stability": tables.STABILITY,
    "region": tables.REGION,
    "boundary": tables.BOUNDARY,
    "detector": tables.DETECTOR,
    "claims": claims.COLUMNS,
    "geometry": tables_geometry.GEOMETRY,
    "audit": tables_geometry.AUDIT,
}

WARNINGS = ("model", "attack", "indicator", "share", "n", "what_to_do")

every_notebook = pytest.mark.parametrize("stage", STAGES)


def cells(stage: str, kind: str) -> list[str]:
    contents = json.loads((FOLDER / f"{stage}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in contents["cells"] if cell["cell_type"] == kind]


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
        for node in ast.walk(ast.parse(cell)):
            assert not isinstance(node, forbidden)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
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


def test_the_command_line_accepts_the_parameters() -> None:
    notebooks.require(FOLDER, STAGES, PARAMETERS)
    with pytest.raises(ValueError, match="did you mean 'preset'"):
        notebooks.require(FOLDER, STAGES, {**PARAMETERS, "presets": "smoke"})


# What follows looks into one smoke run of all six notebooks, the fixture `planned`.


def outputs(run: Run, stage: str) -> list[dict[str, Any]]:
    executed = nbformat.read(run.path("notebooks", f"{stage}.ipynb"), as_version=4)
    return [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.slow
@every_notebook
def test_stages_are_complete_and_their_copies_show_figures(smoke: Run, stage: str) -> None:
    assert smoke.is_complete(stage) == (True, [])
    shown = outputs(smoke, stage)
    assert not [o for o in shown if o.output_type == "error" or o.get("name") == "stderr"]
    assert [o for o in shown if "image/png" in o.get("data", {})]


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_tables_have_exactly_the_specified_columns(smoke: Run, name: str) -> None:
    found = pd.read_csv(smoke.path("tables", f"{name}.csv"))
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


@pytest.mark.slow
def test_a_second_run_reuses_everything(planned: runner.Job) -> None:
    lines: list[str] = []
    runner.run(planned, lines.append)
    assert [line for line in lines if line.startswith("stage ")] == [
        f"stage {number}/6 {stage}: complete and verified, reused" for number, stage in enumerate(STAGES, 1)
    ]


@pytest.mark.slow
def test_the_accuracy_table_counts_what_the_models_say(smoke: Run) -> None:
    table = pd.read_csv(smoke.path("tables", "training.csv")).set_index("model")
    for name in stages.MODELS:
        row = table.loc[name]
        test = stages.evaluation_data(smoke, limit=int(row.n))
        right = runtime.predict(stages.load_model(smoke, name), test.x) == test.y
        assert row.benign_accuracy == pytest.approx(right.float().mean().item())
        assert row.pgd_accuracy <= row.benign_accuracy
        assert row.benign_accuracy_low < row.benign_accuracy < row.benign_accuracy_high


@pytest.mark.slow
def test_only_rounding_to_pixels_undoes_successes(smoke: Run) -> None:
    table = pd.read_csv(smoke.path("tables", "stability.csv")).set_index(["model", "examples"])
    found = stages.load_examples(smoke)
    assert list(table.index) == list(found)
    assert table.n.tolist() == [int(examples.result.success.sum()) for examples in found.values()]
    for column in ("flips_alone", "flips_batch", "flips_float64"):
        assert table[column].dropna().eq(0).all()
    assert table.flips_8bit.xs("OPTBRITTLE", level="examples").max() > 0
    assert table.flips_8bit.isna().equals(table.n == 0)


@pytest.mark.slow
def test_warnings_are_stored_and_told(smoke: Run) -> None:
    table = pd.read_csv(smoke.path("tables", "warnings.csv"))
    assert tuple(table.columns) == WARNINGS
    told = [entry["message"] for entry in journal.read(smoke.dir) if entry.get("event") == "warning"]
    assert told == (table.attack + " on " + table.model + ": " + table.indicator + ": " + table.what_to_do).tolist()


@pytest.mark.slow
def test_every_sign_of_failure_is_a_row_and_a_warning(planned: runner.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned.open()
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(run.journal, "append", lambda **entry: told.append(entry))
    found = {
        key: replace(examples, result=replace(examples.result, falling=examples.result.correct))
        for key, examples in stages.load_examples(run).items()
        if key[1] in ("FGSM", "PGD", "OPTMARGIN-authors") and examples.result.correct.any()
    }
    table = stages.attack_warnings(run, found)
    rows = table[table.indicator == "still falling"]
    assert list(zip(rows.model, rows.attack, strict=True)) == list(found)
    assert rows.share.eq(1).all()
    assert rows.n.tolist() == [int(examples.result.correct.sum()) for examples in found.values()]
    assert [entry["event"] for entry in told] == ["warning"] * len(table)
    assert {entry["stage"] for entry in told} == {"03_attacks"}


@pytest.mark.slow
def test_a_slice_agrees_with_the_model_where_its_images_lie(smoke: Run) -> None:
    found = stages.load_examples(smoke)
    plane = stages.slice_through(smoke, found, "normal", "OPTBRITTLE")
    length = float(plane.points["OPTBRITTLE"][0])
    attacked = found["normal", "OPTBRITTLE"]
    distances = attacked.result.rms.masked_fill(~attacked.result.success, torch.nan)
    row = int(distances.nanmedian(0).indices)
    assert length == pytest.approx(float(attacked.result.rms[row]), rel=1e-4)
    torch.testing.assert_close(attacked.x[row].flatten() + length * plane.u, attacked.result.x_adv[row].flatten())
    dim = plane.u.numel()
    assert float(plane.u @ plane.v) / dim == pytest.approx(0, abs=1e-5)
    assert float(plane.v @ plane.v) / dim == pytest.approx(1, abs=1e-5)
    assert {len(plane.up), len(plane.across)} == set(plane.labels.shape)
    # Wherever the grid is, a place far inside one of the classes has that class.
    middle = (int((plane.across - 0).abs().argmin()), int(plane.up.abs().argmin()))
    x = attacked.x[row].flatten() + plane.across[middle[0]].float() * plane.u + plane.up[middle[1]].float() * plane.v
    network = stages.load_model(smoke, "normal")
    label = runtime.predict(network, x.clamp(0, 1).view(1, *attacked.x.shape[1:]))
    assert int(plane.labels[middle[1], middle[0]]) == int(label)


@pytest.mark.slow
def test_a_gallery_shows_attacked_images_and_their_labels(smoke: Run) -> None:
    found = stages.load_examples(smoke)
    shown = stages.gallery(smoke, found, "normal", count=3)
    assert (shown.before == shown.y).all()
    assert list(shown.adversarial) == [name for model, name in found if model == "normal"]
    assert len(shown.x) <= 3
    both = stages.gallery(smoke, found, "normal", names=["OPTBRITTLE", "OPTMARGIN"], succeeded=True)
    success = found["normal", "OPTBRITTLE"].result.success & found["normal", "OPTMARGIN"].result.success
    assert len(both.x) == int(success.sum())
    assert all((after != both.y).all() for after in both.after.values())
    assert {rate.n for rate in stages.region_accuracy(smoke, both).values()} == {len(both.x)}


@pytest.mark.slow
def test_instances_are_versions_of_one_image(smoke: Run) -> None:
    profiles = stages.load_profiles(smoke)
    shown = stages.instances(smoke, profiles, "normal")
    assert list(shown.profiles) == ["benign", "OPTBRITTLE", "OPTMARGIN"]
    assert {len(profile.center) for profile in shown.profiles.values()} == {1}
    bound = smoke.settings.radius / 3**0.5
    assert all(0.3 * bound < value < bound * 1.02 for value in shown.clipped_rms.values())
    assert stages.instances(smoke, {}, "normal").profiles == {}


@pytest.mark.slow
def test_a_notebook_without_its_input_names_the_command(smoke: Run, tmp_path: Path) -> None:
    empty = store.open_run(tmp_path / "empty", dataset="digits", preset="smoke")
    with pytest.raises(store.MissingInput, match=r"02_training makes it: run\n.*nbsupport run"):
        stages.load_model(empty, "normal")


def test_the_last_of_the_best_epochs_is_kept() -> None:
    accuracies = {"benign_accuracy": [0.5, 0.9, 0.9, 0.8], "pgd_accuracy": [0.3, 0.1, 0.2, float("nan")]}
    parts = [pd.DataFrame({"model": name, "epoch": range(4), **accuracies}) for name in stages.MODELS]
    assert stages.kept_epochs(pd.concat(parts)) == {"normal": 2, "pgd": 0}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 1, 1)])
def test_distortions_have_the_length_that_was_asked_for(shape: tuple[int, int, int]) -> None:
    lengths = [0.01, 0.02]
    grey = torch.full(shape, 0.5)
    versions = stages.distorted(grey, lengths, generator=runtime.seeded(0))
    assert list(versions) == ["random noise", "random signs", "a constant", "a square"]
    for batch in versions.values():
        rms = (batch - grey).square().flatten(1).mean(1).sqrt()
        torch.testing.assert_close(rms, torch.tensor(lengths), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close((versions["random signs"] - grey).abs().amax((1, 2, 3)), torch.tensor(lengths))


def test_distortions_are_clipped_to_pixels() -> None:
    for batch in stages.distorted(torch.rand(1, 8, 8, generator=runtime.seeded(1)), [0.6]).values():
        assert 0 <= float(batch.min()) <= float(batch.max()) <= 1


@pytest.mark.parametrize("length", [0.0, -1.0, float("nan")])
def test_a_distortion_needs_a_length(length: float) -> None:
    with pytest.raises(ValueError, match="length"):
        stages.distorted(torch.zeros(1, 2, 2), [length])
