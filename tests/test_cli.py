"""The command line: what it refuses, what it prints, and its exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_notebooks import FakeKernel, write_all

from nbsupport import __version__, bench, cli, runner
from nbsupport.bench import estimate
from nbsupport.runner import StageFailed, notebooks, report
from nbsupport.store import STAGES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with notebooks that need no kernel."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebooks, "FOLDER", write_all(tmp_path / "notebooks"))
    monkeypatch.setattr(runner, "execute_stage", FakeKernel())
    return tmp_path


def call(*words: str) -> Result:
    return CliRunner().invoke(cli.main, words)


def raising(error: Exception) -> Callable[..., str]:
    def fail(*given: object) -> str:
        raise error

    return fail


def test_the_default_is_all_of_digits_standard(here: Path) -> None:
    result = call("run")
    assert result.exit_code == 0, result.output
    assert f"run folder {here / 'runs' / 'digits-standard'}" in result.output
    assert "stage 7/7 07_adaptive_attacks" in result.output
    assert "jupyter lab" in result.output


def test_parameters_name_the_folder_and_reach_the_run(here: Path) -> None:
    result = call("run", "--preset", "smoke", "-p", "n", "7", "-p", "seed", "3")
    assert result.exit_code == 0, result.output
    [folder] = (here / "runs").iterdir()
    assert folder.name.startswith("digits-smoke-")
    stored = json.loads((folder / "run.json").read_text())["parameters"]
    assert (stored["n"], stored["seed"]) == (7, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "digit"), "did you mean 'digits'"),
        (("run", "--preset", "smoek"), "did you mean 'smoke'"),
        (("run", "-p", "radios", "1"), "did you mean 'radius'"),
        (("run", "-p", "n", "many"), "expected n as int, got 'many'"),
        (("run", "-p", "n", "1.5"), "expected n as int, got '1.5'"),
        (("run", "-p", "n"), "requires 2 arguments"),
        (("run", "-p", "n", "1", "-p", "n", "2"), "expected every parameter once"),
        (("run", "--run-dir", "notebooks/03_attacks.ipynb"), "is a file"),
        (
            ("run", "--run-dir", "notebooks/03_attacks.ipynb/run"),
            "03_attacks.ipynb is a file; choose another --run-dir",
        ),
        (("run", "--run-dir", "x" * 300), "File name too long"),
        (("run", "folder:absent"), "with a PATH that exists"),
        (("status", "absent"), "does not exist"),
        (("status", "."), "is not a run folder: it holds no run.json"),
        (("export", "."), "is not a run folder: it holds no run.json"),
        (("sweep", "absent.yaml"), "does not exist"),
        (("bench", "everything"), "'attacks', 'boundary', 'region', 'published', 'all'"),
        (("bench", "region", "--images", "0"), "0 is not in the range x>=1"),
        (("bench", "region", "--model", "absent"), "does not exist"),
        (("walk",), "No such command"),
    ],
)
def test_bad_usage_exits_with_2_and_starts_nothing(here: Path, words: tuple[str, ...], message: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert not (here / "runs").exists()


def test_other_parameters_in_the_folder_exit_with_2_and_the_differences(here: Path) -> None:
    assert call("run", "--preset", "smoke", "--run-dir", "a").exit_code == 0
    result = call("run", "--preset", "smoke", "--run-dir", "a", "-p", "n", "7")
    assert result.exit_code == 2
    assert "n: 12 -> 7" in result.output


def test_a_folder_in_use_exits_with_2(here: Path) -> None:
    from nbsupport import store

    with store.open_run("a", dataset="digits", preset="smoke").lock():
        result = call("run", "--preset", "smoke", "--run-dir", "a")
    assert result.exit_code == 2
    assert f"is in use by process {os.getpid()}" in result.output


def test_no_notebooks_exit_with_2(here: Path) -> None:
    (here / "notebooks" / "01_datasets.ipynb").unlink()
    result = call("run")
    assert result.exit_code == 2
    assert "no notebooks 01_datasets" in result.output


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StageFailed("02_training", "ValueError: no", "", "a.ipynb"), 1, "stage 02_training failed: ValueError: no"),
        (
            StageFailed("02_training", f"OSError: [Errno {errno.ENOSPC}] No space", "", "a.ipynb"),
            1,
            "The disk is full: free some space first.",
        ),
        (OSError(errno.ENOSPC, "No space"), 1, "The disk is full: free some space first."),
        (OSError(errno.EDQUOT, "Quota exceeded"), 1, "The disk quota is used up: free some space first"),
        (PermissionError(errno.EACCES, "Permission denied", "a.csv"), 1, "[Errno 13] Permission denied: 'a.csv'"),
        (OSError(errno.EIO, "Input/output error"), 1, "[Errno 5] Input/output error"),
        (TimeoutError(), 1, "TimeoutError"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_a_stopped_run_says_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(runner, "execute_stage", FakeKernel("02_training", error))
    result = call("run")
    assert result.exit_code == code
    assert message in result.output
    assert "To go on where it stopped, give the same command again." in result.output


def test_an_unreadable_run_json_exits_with_1(here: Path) -> None:
    (here / "a").mkdir()
    (here / "a" / "run.json").write_text("{")
    for words in (("run", "--run-dir", "a"), ("status", "a")):
        result = call(*words)
        assert result.exit_code == 1
        assert "run.json is damaged" in result.output


def test_another_error_is_not_hidden(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "execute_stage", FakeKernel("02_training", KeyError("a defect")))
    assert isinstance(call("run").exception, KeyError)


def test_a_reader_that_has_seen_enough_is_told_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("run", "--preset", "smoke", "--run-dir", "a")
    monkeypatch.setattr(report, "status", raising(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    result = call("status", "a")
    assert (result.exit_code, result.output) == (1, "")


def test_a_dry_run_creates_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "as_text", lambda s, stages: f"{s.n} images, {len(stages)} stages")
    result = call("run", "--preset", "smoke", "-p", "n", "7", "--dry-run")
    assert result.exit_code == 0
    assert not (here / "runs").exists()
    assert "(-p)" in result.output
    assert all(stage in result.output for stage in STAGES)
    assert result.output.endswith("7 images, 7 stages\n")


def test_a_dry_run_expects_nothing_of_stages_that_are_there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "as_text", lambda s, stages: " ".join(stages))
    call("run", "--preset", "smoke")
    (here / "runs" / "digits-smoke" / "tables" / "03_attacks.csv").unlink()
    assert call("run", "--preset", "smoke", "--dry-run").output.splitlines()[-1] == "03_attacks"


def test_the_status_of_a_run(here: Path) -> None:
    call("run", "--preset", "smoke", "--run-dir", "a")
    result = call("status", "a")
    assert result.exit_code == 0
    assert result.output.count("complete, ") == 7
    assert "tables/03_attacks.csv" not in result.output
    whole = call("status", "a", "--tables")
    assert whole.output.startswith(result.output)
    assert "\ntables/03_attacks.csv\n n  share\n12  0.333\n" in whole.output
    assert str(here / "a" / "figures" / "07_adaptive_attacks.png") in whole.output
    assert whole.output.splitlines()[-1].startswith("  07_adaptive_attacks ")


def test_an_export_goes_into_the_run_folder_and_not_over_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("run", "--preset", "smoke", "--run-dir", "a")
    given: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr("nbsupport.runner.export.export", lambda run, target, echo: given.append(target))
        assert call("export", "a").exit_code == call("export", "a", "--to", "b").exit_code == 0
    assert given == [here / "a" / "export", Path("b")]
    result = call("export", "a", "--to", "a")
    assert result.exit_code == 2
    assert "which holds a run" in result.output


def test_a_file_that_cannot_be_read_exits_with_1(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("run", "--preset", "smoke", "--run-dir", "a")
    monkeypatch.setattr(report, "tables", raising(PermissionError(errno.EACCES, "Permission denied", "a.csv")))
    result = call("status", "a", "--tables")
    assert result.exit_code == 1
    assert result.stderr == "[Errno 13] Permission denied: 'a.csv'\n"  # nothing stopped, nothing goes on


def test_a_sweep_combines_its_tables(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    Path("mine.yaml").write_text("preset: smoke\nparameters: {n: [5, 6]}")
    result = call("sweep", "mine.yaml")
    assert result.exit_code == 0, result.output
    assert (here / "runs" / "mine" / "03_attacks.csv").exists()
    assert str(here / "runs" / "mine" / "runs.csv") in result.output
    assert f"side by side: nbsupport compare {here / 'runs' / 'digits-smoke-'}" in result.output


def test_a_sweep_with_a_failure_exits_with_1(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_text("preset: smoke")
    error = StageFailed("02_training", f"OSError: [Errno {errno.EDQUOT}] no", "", "a.ipynb")
    monkeypatch.setattr(runner, "execute_stage", FakeKernel("02_training", error))
    result = call("sweep", "mine.yaml")
    assert result.exit_code == 1
    assert result.output.splitlines()[-3:] == [
        f"failed: {here / 'runs' / 'digits-smoke'}: stage 02_training failed: OSError: [Errno {errno.EDQUOT}] no",
        "The disk quota is used up: free some space first, or ask for more.",
        "The same command runs only what is missing.",
    ]
    assert (here / "runs" / "mine" / "runs.csv").exists()


def test_a_sweep_does_not_write_into_a_run(here: Path) -> None:
    call("run", "--preset", "smoke", "--run-dir", "runs/mine")
    Path("mine.yaml").write_text("preset: smoke")
    result = call("sweep", "mine.yaml")
    assert result.exit_code == 2
    assert "which holds a run; rename mine.yaml" in result.output


def test_a_scheduler_without_dask_exits_with_2(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = call("run", "--scheduler", "tcp://localhost:1")
    assert result.exit_code == 2
    assert 'pip install "nbsupport[cluster]"' in result.output


def measured(what: str, subject: object, narrator: bench.Narrator, **options: Any) -> bench.Results:
    """One row, kept as soon as it is there."""
    narrator.say(f"{what} on {subject}, {options['images']} images")
    results = bench.Results("digits_cnn on digits", {"device_name": "cpu", "threads": 2, "torch": "2.9"}, [])
    results.rows.append({"bench": what, "what": "all", "seconds": 12.5})
    if options["keep"] is not None:
        options["keep"].write_text(results.as_json())
    return results


def test_bench_prints_a_table_and_writes_the_rows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "obtain", lambda images, model, narrator: f"{images} of {model}")
    monkeypatch.setattr(bench, "run", measured)
    Path("m.safetensors").touch()
    result = call("bench", "attacks", "--json", "rows.json", "--images", "9", "--model", "m.safetensors")
    assert result.exit_code == 0, result.output
    assert result.stderr == "attacks on 9 of m.safetensors, 9 images\n"
    assert result.stdout.splitlines()[-3:] == ["attacks", "what  seconds", "all      12.5"]
    stored = json.loads(Path("rows.json").read_text())
    assert stored["rows"] == [{"bench": "attacks", "what": "all", "seconds": 12.5}]
    assert stored["machine"]["threads"] == 2


def test_bench_takes_as_many_images_as_its_parts_need(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "obtain", lambda images, model, narrator: images)
    monkeypatch.setattr(bench, "run", measured)
    assert call("bench", "boundary").stderr == "boundary on 20, None images\n"
    assert call("bench", "all").stderr == "all on 1000, None images\n"
    assert not Path("rows.json").exists()


def test_an_interrupted_bench_says_where_its_rows_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any, **options: Any) -> None:
        measured(*given, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "obtain", lambda images, model, narrator: images)
    monkeypatch.setattr(bench, "run", interrupted)
    result = call("bench", "region", "--json", "rows.json")
    assert result.exit_code == 130
    assert "The same command begins anew. Rows are in rows.json as soon as they are measured." in result.stderr
    assert len(json.loads(Path("rows.json").read_text())["rows"]) == 1


@pytest.mark.parametrize("words", [(), ("run",), ("status",), ("export",), ("sweep",), ("bench",)])
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    result = call(*words, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_the_module_is_the_command_line() -> None:
    root = Path(cli.__file__).parents[1]
    answer = subprocess.run(
        [sys.executable, "-m", "nbsupport", "--version"], cwd=root, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == f"nbsupport, version {__version__}"
