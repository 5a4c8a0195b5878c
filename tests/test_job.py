"""A run is checked before it starts: names, values, files, notebooks, the run folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_notebooks import PARAMETERS, store_something, write, write_all

from nbsupport import job, notebooks, presets
from nbsupport.job import Job
from nbsupport.store import STAGES, ParametersDiffer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebooks; the working directory is beside them."""
    monkeypatch.chdir(tmp_path)
    return write_all(tmp_path / "notebooks")


def plan(folder: Path, dataset: str = "digits", run_dir: str | None = None, **overrides: Any) -> Job:
    return job.plan(dataset, "smoke", overrides, run_dir, folder=folder)


def test_planning_creates_nothing(folder: Path) -> None:
    planned = plan(folder)
    assert planned.run_dir == folder.parent / "runs" / "digits-smoke"
    assert not planned.run_dir.exists()
    assert planned.parameters() == {
        "dataset": "digits",
        "preset": "smoke",
        "run_dir": str(planned.run_dir),
        "overrides": {},
    }


def test_the_folder_of_named_parameters_depends_on_their_values(folder: Path) -> None:
    names = [plan(folder, **values).run_dir.name for values in ({"n": "7"}, {"n": 7}, {"n": 8}, {"n": 7, "seed": 1})]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"digits-smoke-[0-9a-f]{8}", name) for name in names)


@pytest.mark.parametrize(
    ("name", "slug"), [("My Images (v2)", "my-images-v2"), ("cats", "cats"), ("写真", "folder"), ("a.b", "a")]
)
def test_an_own_data_set_is_named_by_its_path(folder: Path, name: str, slug: str) -> None:
    (folder.parent / name).mkdir()
    planned = plan(folder, f"folder:{name}")
    assert planned.run_dir.name == f"{slug}-smoke"
    assert planned.settings.dataset == f"folder:{folder.parent / name}"


def test_a_run_folder_and_the_root_become_absolute(folder: Path) -> None:
    planned = plan(folder, run_dir="elsewhere", root="files")
    assert planned.run_dir == folder.parent / "elsewhere"
    assert planned.parameters()["overrides"] == {"root": str(folder.parent / "files")}


@pytest.mark.parametrize(
    ("dataset", "overrides", "message"),
    [
        ("digit", {}, "expected data set to be one of .* did you mean 'digits'"),
        ("folder:", {}, "expected a path after 'folder:'"),
        ("folder:absent", {}, "expected train_data folder:PATH with a PATH that exists, got .*absent"),
        ("npz:absent.npz", {}, "expected train_data npz:PATH with a PATH that exists"),
        ("digits", {"test_data": "mnst"}, "expected test_data to be one of .* did you mean 'mnist'"),
        ("digits", {"test_data": "npy:a"}, "expected test_data to be one of .* did you mean 'npz:PATH'"),
        ("digits", {"radios": 1}, "expected parameter to be one of .* did you mean 'radius'"),
        ("digits", {"n": "many"}, "expected n as int, got 'many'"),
        ("digits", {"n": 0}, "expected n as a whole number of at least 1, got 0"),
        ("digits", {"radius": -1}, "expected radius above 0 and at most 1, got -1"),
        ("digits", {"magnitude_step": 0}, "expected magnitude_step above 0"),
        ("digits", {"model": "digits_cn"}, "expected model to be one of .* did you mean 'digits_cnn'"),
        ("digits", {"model": "nowhere.to_be:found"}, "expected model as package.module:function .* got 'nowhere"),
    ],
)
def test_what_cannot_run_is_refused(folder: Path, dataset: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(folder, dataset, **overrides)


def test_a_model_of_the_working_directory_is_found(folder: Path) -> None:
    (folder.parent / "mine_alone.py").touch()
    assert plan(folder, model="mine_alone:build").settings.model == "mine_alone:build"


def test_other_parameters_in_the_folder_are_refused(folder: Path) -> None:
    plan(folder).open()
    with pytest.raises(ParametersDiffer, match="n: 12 -> 7"):
        plan(folder, run_dir="runs/digits-smoke", n=7)


def test_the_description_marks_parameters_and_tells_what_would_run(folder: Path) -> None:
    run = plan(folder, n=7).open()
    for stage in STAGES[:2]:
        store_something(run, stage)
    run.path("tables/02_training.csv").unlink()
    text = job.describe(plan(folder, n=7))
    assert re.search(r"^  n +7 +\(-p\)$", text, re.MULTILINE)
    assert re.search(r"^  seed +0$", text, re.MULTILINE)
    assert re.search(r"^  01_datasets +complete and verified: reused$", text, re.MULTILINE)
    assert re.search(r"^  02_training +runs again: damaged or missing tables/02_training.csv$", text, re.MULTILINE)
    assert re.search(r"^  03_attacks +runs$", text, re.MULTILINE)


# Notebooks


def test_absent_notebooks_are_named(folder: Path) -> None:
    (folder / "03_attacks.ipynb").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no notebooks 03_attacks in .*notebooks: they belong to the source tree"
    ):
        plan(folder)


def test_a_notebook_without_parameters_is_refused(folder: Path) -> None:
    write(folder / "03_attacks.ipynb", [], parameters=None)
    with pytest.raises(ValueError, match="the notebook 03_attacks has no cell tagged `parameters`"):
        plan(folder)


def test_a_notebook_that_lacks_a_parameter_is_refused(folder: Path) -> None:
    write(folder / "03_attacks.ipynb", [], parameters=PARAMETERS.replace("run_dir", "run_folder"))
    with pytest.raises(ValueError, match=r"expected a parameter of the notebook 03_attacks to be one of .*'run_dir'"):
        plan(folder)


def test_the_question_is_the_first_sentence_that_asks(folder: Path) -> None:
    assert notebooks.question(folder / "03_attacks.ipynb") == "What does it ask?"


def test_a_notebook_that_asks_nothing_is_told_by_its_title(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text('{"cells": [{"cell_type": "markdown", "source": ["# The title\\n", "Prose."]}]}')
    assert notebooks.question(path) == "The title"


def test_all_presets_can_be_planned(folder: Path) -> None:
    for dataset in ("digits", "mnist", "cifar10"):
        for preset in presets.PRESETS:
            assert job.plan(dataset, preset, {}, folder=folder).run_dir.name == f"{dataset}-{preset}"
