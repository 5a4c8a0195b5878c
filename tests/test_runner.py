"""A run: checked before it starts, its stages in order, each notebook in a fresh kernel."""

from __future__ import annotations

import errno
import os
import pickle
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from tiny_notebooks import PARAMETERS, STORE, FakeKernel, store_something, write, write_all

import nbsupport
from nbsupport import presets, runner
from nbsupport.runner import Job, StageFailed, notebooks
from nbsupport.store import STAGES, ParametersDiffer, RunInUse, journal, manifest

BLOCK = """
import os
pipe = os.open({pipe!r}, os.O_WRONLY)
os.write(pipe, b"x")
os.read(os.open({never!r}, os.O_RDONLY), 1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebooks; the working directory is beside them."""
    monkeypatch.chdir(tmp_path)
    return write_all(tmp_path / "notebooks")


def plan(folder: Path, dataset: str = "digits", run_dir: str | None = None, **overrides: Any) -> Job:
    return runner.plan(dataset, "smoke", overrides, run_dir, folder=folder)


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
        ("digits", {"pgd_model": "resnet2"}, "expected pgd_model to be one of .* did you mean 'resnet20'"),
        (
            "digits",
            {"weights": "absent.pt"},
            "expected weights as a file of weights, or 'own', found no file .*absent.pt",
        ),
        ("digits", {"pgd_weights": "absent.pt"}, "expected pgd_weights as a file of weights"),
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


def test_a_folder_that_may_not_be_written_to_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = folder.parent / "locked" / "run"
    target.parent.mkdir()
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))  # root may write everywhere
    with pytest.raises(
        ValueError, match=r"expected a run folder that may be written to, got .*/locked/run, but .*/locked"
    ):
        runner.plan("digits", "smoke", {}, target, folder=folder)
    assert asked == [(target.parent, os.W_OK | os.X_OK)]


def test_the_description_marks_parameters_and_tells_what_would_run(folder: Path) -> None:
    run = plan(folder, n=7).open()
    for stage in STAGES[:2]:
        store_something(run, stage)
    run.path("tables/02_training.csv").unlink()
    text = runner.describe(plan(folder, n=7))
    assert re.search(r"^  n +7 +\(-p\)$", text, re.MULTILINE)
    assert re.search(r"^  seed +0$", text, re.MULTILINE)
    assert re.search(r"^  01_datasets +complete and verified: reused$", text, re.MULTILINE)
    assert re.search(r"^  02_training +runs again: damaged or missing tables/02_training.csv$", text, re.MULTILINE)
    assert re.search(r"^  03_attacks +runs$", text, re.MULTILINE)
    assert re.search(r"^claims that stay open\n  no verdict on FGSM, .*: 7 images, 30 are needed$", text, re.MULTILINE)


def test_where_every_claim_may_be_decided_nothing_is_said_to_stay_open(folder: Path) -> None:
    enough = dict.fromkeys(("n", "strong_n", "adam_n", "region_n", "boundary_n", "adaptive_n"), 80)
    assert "stay open" not in runner.describe(plan(folder, **enough))


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
            assert runner.plan(dataset, preset, {}, folder=folder).run_dir.name == f"{dataset}-{preset}"


# A run from end to end


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return runner.plan("digits", "smoke", {"n": 7}, "run", folder=write_all(tmp_path / "notebooks"))


def run(planned: Job, monkeypatch: pytest.MonkeyPatch, fake: FakeKernel) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(runner, "execute_stage", fake)
    runner.run(planned, lines.append)
    return lines


def test_all_stages_run_in_order_and_the_results_are_told(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeKernel()
    lines = run(planned, monkeypatch, fake)
    assert fake.calls == list(STAGES)
    assert lines[:3] == [
        f"run folder {planned.run_dir}",
        "claims that stay open",
        "  no verdict on FGSM, PGD, OPTBRITTLE, OPTMARGIN: 7 images, 30 are needed",
    ]
    titles = [line for line in lines if line.startswith("stage ")]
    assert titles == [f"stage {number}/7 {stage}: What does it ask?" for number, stage in enumerate(STAGES, 1)]
    assert f"python -m nbsupport status {planned.run_dir} --tables" in lines[-1]


def test_a_complete_run_is_reused(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run(planned, monkeypatch, FakeKernel())
    fake = FakeKernel()
    lines = run(planned, monkeypatch, fake)
    assert fake.calls == []
    assert [line for line in lines if line.startswith("stage ")] == [
        f"stage {number}/7 {stage}: complete and verified, reused" for number, stage in enumerate(STAGES, 1)
    ]


def test_a_damaged_output_is_named_and_its_stage_alone_runs_again(
    planned: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(planned, monkeypatch, FakeKernel())
    artifact = planned.run_dir / "attacks" / "normal" / "a.safetensors"
    before = artifact.read_bytes()
    artifact.write_bytes(before[:-1])
    fake = FakeKernel()
    lines = run(planned, monkeypatch, fake)
    assert fake.calls == ["03_attacks"]
    assert "stage 3/7 03_attacks: runs again: damaged or missing attacks/normal/a.safetensors" in lines
    assert len(artifact.read_bytes()) == len(before)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StageFailed("04", "no", "", "copy")])
def test_a_stopped_run_goes_on_with_the_stage_it_was_in(
    planned: Job, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        run(planned, monkeypatch, FakeKernel("04_region_classification", error))
    fake = FakeKernel()
    run(planned, monkeypatch, fake)
    assert fake.calls == list(STAGES[3:])


def test_two_runs_in_one_folder_are_refused(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with planned.open().lock(), pytest.raises(RunInUse, match="is in use by process"):
        run(planned, monkeypatch, FakeKernel())


def test_a_failure_tells_the_error_the_last_lines_and_the_copy() -> None:
    error = StageFailed("03_attacks", "ValueError: no", "\n".join(map(str, range(30))), "/a/03_attacks.ipynb")
    lines = str(error).splitlines()
    assert lines[0] == "stage 03_attacks failed: ValueError: no"
    assert lines[1:-1] == [f"    {number}" for number in range(18, 30)]
    assert lines[-1] == "executed notebook: /a/03_attacks.ipynb"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # it travels from a worker of a cluster


def fake_notebook(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    def execute(*arguments: object, **named: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(notebooks, "execute", execute)


def test_a_notebook_that_fails_is_told(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_notebook(monkeypatch, StageFailed("03_attacks", "ValueError: no", "the last line", "copy"))
    with pytest.raises(StageFailed) as caught:
        runner.execute_stage(planned, "03_attacks")
    assert str(caught.value).splitlines() == [
        "stage 03_attacks failed: ValueError: no",
        "    the last line",
        "executed notebook: copy",
    ]
    assert journal.read(planned.run_dir)[-1]["error"] == "ValueError: no"


def test_a_notebook_that_records_nothing_has_failed(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_notebook(monkeypatch)
    with pytest.raises(StageFailed, match=r"ended without its outputs: it did not record any \(Run\.finish\)"):
        runner.execute_stage(planned, "03_attacks")


def test_old_outputs_do_not_pass_for_new_ones(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run(planned, monkeypatch, FakeKernel())
    monkeypatch.undo()
    fake_notebook(monkeypatch)
    with pytest.raises(StageFailed, match="ended without its outputs"):
        runner.execute_stage(planned, "03_attacks")
    assert not (planned.run_dir / "tables" / "03_attacks.csv").exists()


@pytest.mark.slow
def test_real_kernels_get_the_parameters_and_leave_executed_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = ("01_datasets", "02_training")
    monkeypatch.setattr(runner, "STAGES", stages)
    folder = tmp_path / "notebooks"
    write(folder / "01_datasets.ipynb", [STORE.format(stage="01_datasets")])
    write(
        folder / "02_training.ipynb",
        ["import sys, os; print(sys.executable, os.getcwd(), os.environ['OMP_NUM_THREADS'])", "1 / 0"],
    )
    planned = runner.plan("digits", "smoke", {"n": 7}, "run", folder=folder)
    lines: list[str] = []
    with pytest.raises(StageFailed) as caught:
        runner.run(planned, lines.append)
    assert caught.value.stage == "02_training"
    assert caught.value.error == "ZeroDivisionError: division by zero"
    assert "----> 1 1 / 0" in str(caught.value)
    assert (planned.run_dir / "tables" / "01_datasets.csv").read_text() == "n\n7\n"

    executed = nbformat.read(planned.run_dir / "notebooks" / "02_training.ipynb", as_version=4)
    printed = "".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    threads = manifest.read(planned.run_dir)["threads"]
    assert f"{sys.executable} {tmp_path} {threads}" in printed
    assert not [path for path in (planned.run_dir / "notebooks").iterdir() if path.name.startswith(".")]


# A notebook in a fresh kernel, and what becomes of the kernel when its parent ends


@pytest.mark.slow
def test_a_kernel_that_dies_is_told(tmp_path: Path) -> None:
    source = write(tmp_path / "a.ipynb", ["import os; os.write(2, b'last words'); os._exit(9)"])
    with pytest.raises(StageFailed, match="the kernel died, out of memory perhaps") as caught:
        notebooks.execute(source, tmp_path / "out" / "a.ipynb", {"dataset": "digits"}, cwd=tmp_path)
    assert caught.value.traceback == "last words"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.ipynb"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_no_half_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    import papermill

    def execute(source: str, target: str, **options: object) -> None:
        Path(target).write_text("half of")
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    with pytest.raises(OSError, match="No space left"):
        notebooks.execute(write(tmp_path / "a.ipynb", []), tmp_path / "out" / "a.ipynb", {}, cwd=tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def read(pipe: int) -> bytes:
    """Return what is written to `pipe`, or nothing when its last writer is gone; fails when neither happens."""
    assert select.select([pipe], [], [], 60)[0], "the kernel neither started nor ended within a minute"
    return os.read(pipe, 1)


@pytest.fixture
def blocked(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A command line whose first notebook blocks, and a pipe that its kernel holds open as long as it lives."""
    for name in ("pipe", "never"):
        os.mkfifo(tmp_path / name)
    cell = BLOCK.format(pipe=str(tmp_path / "pipe"), never=str(tmp_path / "never"))
    write(tmp_path / "notebooks" / "01_datasets.ipynb", [cell])
    code = f"""
import signal
from pathlib import Path
from nbsupport import cli
from nbsupport import runner
from nbsupport.runner import notebooks
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background has it ignored
runner.STAGES = ("01_datasets",)
notebooks.FOLDER = Path({str(tmp_path / "notebooks")!r})
cli.main(["run", "--preset", "smoke", "--run-dir", "run"])
"""
    root = str(Path(nbsupport.__file__).parents[1])
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": root}, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    ) as child:
        pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        assert read(pipe) == b"x"
        yield child, pipe
        os.close(pipe)
        child.kill()


@pytest.mark.slow
def test_the_kernel_of_a_killed_run_ends(blocked: tuple[subprocess.Popen[str], int]) -> None:
    child, pipe = blocked
    child.send_signal(signal.SIGKILL)
    assert read(pipe) == b""  # the end of the pipe: nobody holds it open


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(blocked: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    child, pipe = blocked
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=120)
    assert child.returncode == 130
    assert told.strip() == "Interrupted. To go on where it stopped, give the same command again."
    assert read(pipe) == b""
    assert not [path.name for path in (tmp_path / "run" / "notebooks").iterdir() if path.name.startswith(".")]
