"""The run folder: its parameters, its files, which stages are complete, and who may write."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from tiny_notebooks import store_something

from nbsupport import completion, lock, manifest, store
from nbsupport.store import DamagedArtifact, MissingInput, ParametersDiffer, Run, RunInUse


def open_run(folder: Path, **overrides: Any) -> Run:
    return store.open_run(folder, dataset="digits", preset="smoke", overrides=overrides)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(tmp_path / "run")


# Parameters


def test_a_new_run_says_what_it_was_made_with(run: Run) -> None:
    contents = manifest.read(run.dir)
    assert contents["parameters"]["dataset"] == "digits"
    assert contents["parameters"]["n"] == run.settings.n
    assert contents["versions"]["torch"] == importlib.metadata.version("torch")
    assert contents["device"] == str(run.device)
    assert contents["stages"] == contents["batch_sizes"] == {}


def test_the_commit_is_that_of_the_source_tree() -> None:
    root = Path(store.__file__).parents[1]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    inside = (root / ".git").exists() and head.returncode == 0
    assert manifest.commit() == (head.stdout.strip() if inside else None)


def test_no_git_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert manifest.commit() is None


def test_a_run_is_opened_again_with_the_same_parameters(run: Run) -> None:
    before = (run.dir / "run.json").read_bytes()
    assert open_run(run.dir).settings == run.settings
    assert store.existing_run(run.dir).settings == run.settings
    assert (run.dir / "run.json").read_bytes() == before


def test_other_parameters_are_refused_with_the_differences(run: Run) -> None:
    with pytest.raises(ParametersDiffer) as caught:
        open_run(run.dir, n="7", eps=0.5)
    assert caught.value.differences == [f"n: {run.settings.n} -> 7", "eps: 0.15 -> 0.5"]
    assert f"{run.dir} holds a run with other parameters" in str(caught.value)
    assert "\n  eps: 0.15 -> 0.5" in str(caught.value)


def test_parameters_of_another_version_are_listed(run: Run) -> None:
    def change(contents: dict[str, Any]) -> None:
        contents["parameters"]["old"] = contents["parameters"].pop("seed")

    manifest.update(run.dir, change)
    with pytest.raises(ParametersDiffer) as caught:
        open_run(run.dir)
    assert caught.value.differences == ["seed: (not recorded) -> 0", "old: 0 -> (not recorded)"]


def test_an_unreadable_manifest_is_named(run: Run) -> None:
    (run.dir / "run.json").write_text("{}")
    with pytest.raises(DamagedArtifact, match=r"run\.json is damaged .* choose another run folder"):
        open_run(run.dir)


def test_a_folder_without_a_run_is_not_opened_as_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"is not a run folder: .* run\.json; make one:\n  python -m nbsupport"):
        store.existing_run(tmp_path)


def test_a_run_of_another_version_says_which_parameters_it_lacks(run: Run) -> None:
    contents = manifest.read(run.dir)
    del contents["parameters"]["train_data"]
    manifest.write(run.dir, contents)
    with pytest.raises(DamagedArtifact, match=r"another version .* lacks the parameters train_data"):
        store.existing_run(run.dir)


def test_entries_are_recorded_and_mappings_merged(run: Run) -> None:
    run.record(batch_sizes={"normal": 64}, note="a")
    run.record(batch_sizes={"pgd": 32}, note="b")
    contents = manifest.read(run.dir)
    assert contents["batch_sizes"] == {"normal": 64, "pgd": 32}
    assert contents["note"] == "b"


def test_processes_that_record_at_once_lose_nothing(run: Run) -> None:
    code = """
import sys
from nbsupport import store
for number in range(10):
    store.existing_run(sys.argv[1]).record(batch_sizes={f"{sys.argv[2]}{number}": number})
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(run.dir), name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(manifest.read(run.dir)["batch_sizes"]) == 20


def test_the_command_repeats_the_run(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a b", n=7, negate=False)
    assert run.command == (
        f"python -m nbsupport run digits --preset smoke --run-dir '{run.dir}' -p n 7 -p negate False"
    )


# Artifacts


def test_what_was_saved_is_loaded(run: Run) -> None:
    path = run.save("detector/FGSM.safetensors", {"x": torch.ones(2)})
    assert path == run.path("detector", "FGSM.safetensors")
    assert torch.equal(run.load("detector/FGSM.safetensors", made_by="06_detector")["x"], torch.ones(2))


def test_a_missing_input_names_its_notebook_and_the_command(run: Run) -> None:
    with pytest.raises(MissingInput) as caught:
        run.load("attacks/normal/FGSM.safetensors", made_by="03_attacks")
    text = str(caught.value)
    assert str(run.path("attacks/normal/FGSM.safetensors")) in text
    assert "03_attacks" in text
    assert run.command in text


def test_tables_are_read_back(run: Run) -> None:
    frame = pd.DataFrame({"model": ["normal"], "rate": [0.1 + 0.2], "empty": [None]})
    assert run.write_table("attacks", frame) == run.path("tables", "attacks.csv")
    read = run.read_table("attacks", made_by="03_attacks")
    assert read["rate"][0] == 0.1 + 0.2
    assert read["empty"].isna().all()


def test_missing_and_damaged_tables_are_told_apart(run: Run) -> None:
    with pytest.raises(MissingInput, match="03_attacks"):
        run.read_table("attacks", made_by="03_attacks")
    store.write_text(run.path("tables/attacks.csv"), "")
    with pytest.raises(DamagedArtifact, match=r"attacks\.csv"):
        run.read_table("attacks", made_by="03_attacks")


def test_figures_are_stored(run: Run) -> None:
    path = run.write_figure("four", Figure())
    assert path == run.path("figures", "four.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert run.path("figures", "four.pdf").read_bytes().startswith(b"%PDF")


def test_seconds_of_an_artifact(run: Run) -> None:
    run.sharded("a.safetensors", 2, 1, lambda start, stop: {"x": torch.zeros(1)}, stage="03_attacks", what="a")
    assert 0 <= run.seconds("a.safetensors") < 10


# Stages


def finished(run: Run, *stages: str) -> None:
    for stage in stages:
        store_something(run, stage)


def test_a_finished_stage_is_complete(run: Run) -> None:
    assert run.is_complete("03_attacks") == (False, [])
    finished(run, "03_attacks")
    assert run.is_complete("03_attacks") == (True, [])
    entry = manifest.read(run.dir)["stages"]["03_attacks"]
    assert set(entry["outputs"]) == {"attacks/a.safetensors", "tables/03_attacks.csv", "figures/03_attacks.png"}
    assert entry["seconds"] > 0
    assert entry["device"] == str(run.device)


@pytest.mark.parametrize("rel", ["attacks/a.safetensors", "tables/03_attacks.csv", "figures/03_attacks.png"])
@pytest.mark.parametrize("harm", ["remove", "truncate", "flip"])
def test_a_harmed_output_is_named(run: Run, rel: str, harm: str) -> None:
    finished(run, "03_attacks")
    data = run.path(rel).read_bytes()
    if harm == "remove":
        run.path(rel).unlink()
    else:
        run.path(rel).write_bytes(data[:-1] + (b"" if harm == "truncate" else bytes([data[-1] ^ 1])))
    assert run.is_complete("03_attacks") == (False, [rel])
    assert run.state("03_attacks").name == "damaged"


def test_a_missing_output_is_refused(run: Run) -> None:
    with pytest.raises(MissingInput, match=r"03_attacks ends without its output .*attacks\.csv"):
        run.finish("03_attacks", [run.path("tables/attacks.csv")])
    assert run.is_complete("03_attacks") == (False, [])


def test_an_output_elsewhere_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(ValueError, match="is not in the subpath"):
        run.finish("03_attacks", [tmp_path / "a.csv"])


def test_beginning_again_leaves_nothing_that_passes_for_new(run: Run) -> None:
    finished(run, "03_attacks")
    run.begin("03_attacks")
    assert run.is_complete("03_attacks") == (False, [])
    assert not run.path("tables/03_attacks.csv").exists()
    assert not list(run.path("figures").iterdir())
    assert run.path("attacks/a.safetensors").exists()  # intact, and verified when it is read


def test_beginning_again_removes_a_damaged_artifact(run: Run) -> None:
    finished(run, "03_attacks")
    run.path("attacks/a.safetensors").write_bytes(b"")
    run.begin("03_attacks")
    assert not run.path("attacks/a.safetensors").exists()


def test_beginning_the_first_time_changes_nothing(run: Run) -> None:
    run.begin("03_attacks")
    assert run.is_complete("03_attacks") == (False, [])


def test_other_models_put_what_was_made_from_them_out_of_date(run: Run) -> None:
    stages = ("01_datasets", "02_training", "03_attacks", "04_region_classification")
    finished(run, *stages)
    models = run.save("training/a.safetensors", {"rows": torch.zeros(4)})
    run.finish("02_training", [models])
    assert [run.state(stage).name for stage in stages] == ["complete", "complete", "outdated", "outdated"]
    run.begin("03_attacks")
    assert not run.path("attacks/a.safetensors").exists()
    finished(run, "03_attacks")
    assert run.state("03_attacks").name == "complete"


def test_equal_models_made_again_change_nothing_for_later_stages(run: Run) -> None:
    finished(run, "02_training", "03_attacks")
    run.begin("02_training")
    assert run.state("03_attacks").name == "complete"
    run.path("training/a.safetensors").unlink()
    finished(run, "02_training")
    assert run.state("03_attacks").name == "complete"


def test_an_earlier_stage_without_artifacts_changes_nothing_for_later_ones(run: Run) -> None:
    finished(run, "02_training")
    run.finish("01_datasets", [run.write_table("datasets", pd.DataFrame({"n": [1]}))])
    assert run.state("02_training").name == "complete"


def test_an_artifact_of_another_writer_counts_by_its_bytes(run: Run) -> None:
    from safetensors.torch import save_file

    for value in (0.0, 1.0):
        save_file({"w": torch.tensor([value])}, run.path("normal.safetensors"))
        run.finish("02_training", [run.path("normal.safetensors")])
        if value == 0:
            finished(run, "03_attacks")
    assert completion.state(run.dir, "03_attacks").name == "outdated"


# The lock


def test_a_second_process_is_refused_by_name(run: Run) -> None:
    code = """
import sys
from pathlib import Path
from nbsupport import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(run.dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        with pytest.raises(RunInUse, match=f"is in use by process {child.pid} on .*choose another"), run.lock():
            pass
        holder = lock.holder(run.dir)
        assert holder is not None
        assert f"process {child.pid} " in holder
        child.kill()  # the lock goes with the process
    with run.lock():
        pass


def test_the_lock_is_free_after_use(run: Run) -> None:
    assert lock.holder(run.dir) is None
    for _ in range(2):
        with run.lock():
            assert lock.holder(run.dir) is not None
    assert lock.holder(run.dir) is None


def test_the_lock_clears_away_what_killed_processes_left(run: Run) -> None:
    run.path("tables").mkdir()
    left = run.path("tables", f".a.csv.1.{2**22 + 1}.tmp")
    left.touch()
    with run.lock():
        assert not left.exists()


@pytest.mark.parametrize("module", ["nbsupport.store", "nbsupport.journal", "nbsupport.cli"])
def test_the_imports_are_light(module: str) -> None:
    heavy = {"torch", "papermill", "jupyter_client", "matplotlib", "pandas"}
    heavy |= set() if module == "nbsupport.cli" else {"click"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_run_json_is_for_people(run: Run) -> None:
    text = (run.dir / "run.json").read_text()
    assert len(text.splitlines()) > 40
    assert json.loads(text)["parameters"]["preset"] == "smoke"
