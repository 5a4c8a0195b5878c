"""A run from end to end: stages in order, skipped when verified, run again when damaged, resumed when stopped."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tiny_notebooks import STORE, FakeKernel, write, write_all

from nbsupport import execution, job, runner
from nbsupport.job import Job
from nbsupport.runner import StageFailed
from nbsupport.store import STAGES, RunInUse


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return job.plan("digits", "smoke", {"n": 7}, "run", folder=write_all(tmp_path / "notebooks"))


def run(planned: Job, monkeypatch: pytest.MonkeyPatch, fake: FakeKernel) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(runner, "execute_stage", fake)
    runner.run(planned, lines.append)
    return lines


def test_all_stages_run_in_order_and_the_results_are_told(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeKernel()
    lines = run(planned, monkeypatch, fake)
    assert fake.calls == list(STAGES)
    assert lines[0] == f"run folder {planned.run_dir}"
    titles = [line for line in lines if line.startswith("stage ")]
    assert titles == [f"stage {number}/6 {stage}: What does it ask?" for number, stage in enumerate(STAGES, 1)]
    assert "tables/06_detector.csv" in lines[-1]


def test_a_complete_run_is_reused(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    run(planned, monkeypatch, FakeKernel())
    fake = FakeKernel()
    lines = run(planned, monkeypatch, fake)
    assert fake.calls == []
    assert lines[1:7] == [
        f"stage {number}/6 {stage}: complete and verified, reused" for number, stage in enumerate(STAGES, 1)
    ]


def test_a_damaged_output_is_named_and_its_stage_alone_runs_again(
    planned: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(planned, monkeypatch, FakeKernel())
    artifact = planned.run_dir / "attacks" / "a.safetensors"
    before = artifact.read_bytes()
    artifact.write_bytes(before[:-1])
    fake = FakeKernel()
    lines = run(planned, monkeypatch, fake)
    assert fake.calls == ["03_attacks"]
    assert "stage 3/6 03_attacks: runs again: damaged or missing attacks/a.safetensors" in lines
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

    monkeypatch.setattr(execution, "execute", execute)


def test_a_notebook_that_fails_is_told(planned: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_notebook(monkeypatch, execution.NotebookFailed("ValueError: no", "the last line"))
    with pytest.raises(StageFailed) as caught:
        runner.execute_stage(planned, "03_attacks")
    assert str(caught.value).splitlines() == [
        "stage 03_attacks failed: ValueError: no",
        "    the last line",
        f"executed notebook: {planned.run_dir / 'notebooks' / '03_attacks.ipynb'}",
    ]


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
    import nbformat

    monkeypatch.chdir(tmp_path)
    stages = ("01_datasets", "02_training")
    monkeypatch.setattr(job, "STAGES", stages)
    folder = tmp_path / "notebooks"
    write(folder / "01_datasets.ipynb", [STORE.format(stage="01_datasets")])
    write(folder / "02_training.ipynb", ["import sys, os; print(sys.executable, os.getcwd())", "1 / 0"])
    planned = job.plan("digits", "smoke", {"n": 7}, "run", folder=folder)
    lines: list[str] = []
    with pytest.raises(StageFailed) as caught:
        runner.run(planned, lines.append)
    assert caught.value.stage == "02_training"
    assert caught.value.error == "ZeroDivisionError: division by zero"
    assert "----> 1 1 / 0" in str(caught.value)
    assert (planned.run_dir / "tables" / "01_datasets.csv").read_text() == "n\n7\n"

    import sys

    executed = nbformat.read(planned.run_dir / "notebooks" / "02_training.ipynb", as_version=4)
    printed = "".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert f"{sys.executable} {tmp_path}" in printed
    assert not [path for path in (planned.run_dir / "notebooks").iterdir() if path.name.startswith(".")]
