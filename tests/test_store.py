"""The run folder: its parameters, which stages are complete, what changed under them, and who may write."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kernels_for_keep import Weighted, sums
from matplotlib.figure import Figure
from tiny_notebooks import store_something

from nbsupport import files, presets, store
from nbsupport.store import DamagedArtifact, MissingInput, ParametersDiffer, Run, RunInUse, StageState, kept, manifest


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
    root = Path(store.__file__).parents[2]
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


def test_other_settings_are_taken_said_and_put_stages_out_of_date(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("02_training", "03_attacks", "05_boundary_analysis", "06_detector")
    for stage in names:
        store_something(run, stage)
    capsys.readouterr()
    open_run(run.dir, boundary_n=3)
    said = capsys.readouterr().out
    assert f"boundary_n: {run.settings.boundary_n} -> 3" in said
    assert "out of date by this: 05_boundary_analysis, 06_detector; run them again:\n  python -m nbsupport" in said
    assert manifest.read(run.dir)["parameters"]["boundary_n"] == 3
    again = store.existing_run(run.dir)
    assert [again.state(stage).name for stage in names] == ["complete", "complete", "outdated", "outdated"]
    assert again.state("06_detector").faults == (f"boundary_n: {run.settings.boundary_n} -> 3",)
    open_run(run.dir)
    assert again.state("06_detector").name == "complete", "the first settings are back"


@pytest.mark.parametrize("name", ["dataset", "preset"])
def test_another_data_set_or_preset_is_refused(run: Run, name: str) -> None:
    wanted = {"dataset": "digits", "preset": "smoke", name: {"dataset": "mnist", "preset": "standard"}[name]}
    with pytest.raises(ParametersDiffer, match=r"holds a run with other parameters; .*choose another") as caught:
        store.open_run(run.dir, **wanted)
    assert any(line.startswith(f"{name}: ") for line in caught.value.differences)


def test_the_command_line_refuses_other_parameters(run: Run) -> None:
    wanted = presets.settings("digits", "smoke", {"n": 7, "eps": 0.5})
    with pytest.raises(ParametersDiffer) as caught:
        manifest.require_same(run.dir, manifest.read(run.dir)["parameters"], wanted)
    assert caught.value.differences == [f"n: {run.settings.n} -> 7", "eps: 0.15 -> 0.5"]
    assert "\n  eps: 0.15 -> 0.5" in str(caught.value)


def test_settings_do_not_change_under_a_process_that_runs(run: Run) -> None:
    with run.lock(), pytest.raises(RunInUse, match=r"in use by process .* with other settings"):
        open_run(run.dir, n=3)
    assert store.existing_run(run.dir).settings == run.settings


def test_parameters_of_another_version_are_listed(run: Run) -> None:
    def change(contents: dict[str, Any]) -> None:
        contents["parameters"]["old"] = contents["parameters"].pop("seed")

    manifest.update(run.dir, change)
    found = manifest.differences(manifest.read(run.dir)["parameters"], {**vars(run.settings)})
    assert found == ["seed: (not recorded) -> 0", "old: 0 -> (not recorded)"]


def test_a_folder_without_a_run_is_not_opened_as_one(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"is not a run folder: .* run\.json; make one:\n  python -m nbsupport"):
        store.existing_run(tmp_path)


def test_results_without_run_json_are_left_alone(run: Run) -> None:
    store_something(run, "03_attacks")
    (run.dir / "run.json").unlink()
    before = sorted(path for path in run.dir.rglob("*") if path.is_file())
    with pytest.raises(
        ValueError, match=r"holds results \(attacks, tables, figures\) but no run.json.*nothing was chang"
    ):
        open_run(run.dir, n=7)
    assert sorted(path for path in run.dir.rglob("*") if path.is_file()) == before


def test_a_run_keeps_to_the_threads_it_was_created_with(run: Run) -> None:
    before = torch.get_num_threads()
    assert manifest.read(run.dir)["threads"] == before
    manifest.update(run.dir, lambda contents: contents.update(threads=before + 1))
    try:
        store.open_run(run.dir, dataset="digits", preset="smoke")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# run.json, whoever wrote it


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c.pop("stages"), "run.json lacks the entry 'stages'"),
        (lambda c: c.update(threads="two"), "expected run.json.threads as int, got str"),
        (lambda c: c.update(parameters=[]), "expected run.json.parameters as dict, got list"),
        (lambda c: c["stages"].update({"03_attacks": {}}), "stages.03_attacks lacks the entry 'seconds'"),
        (lambda c: c["stages"]["03_attacks"].pop("outputs"), "stages.03_attacks lacks the entry 'outputs'"),
        (lambda c: c["stages"]["03_attacks"].update(seconds="1"), "expected stages.03_attacks.seconds as float"),
        (lambda c: c["stages"]["03_attacks"].update(made_from="old"), "expected stages.03_attacks.made_from as dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_run_json_that_lacks_something_says_what(run: Run, change: Any, why: str) -> None:
    store_something(run, "03_attacks")
    contents = manifest.read(run.dir)
    change(contents)
    manifest.write(run.dir, contents)
    for read in (store.existing_run, open_run):
        with pytest.raises(DamagedArtifact) as caught:
            read(run.dir)
        assert "run.json is damaged" in str(caught.value)
        assert why in str(caught.value)
        assert "choose another run folder" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", '{"parameters": {}'])
def test_an_unreadable_run_json_is_named(run: Run, text: str) -> None:
    (run.dir / "run.json").write_text(text)
    with pytest.raises(DamagedArtifact, match=r"run\.json is damaged .* choose another run folder"):
        open_run(run.dir)


@pytest.mark.parametrize(
    "rel", ["../precious.txt", "a/../../precious.txt", "ABSOLUTE", "C:\\precious.txt", "..\\x", ""]
)
def test_a_foreign_run_json_deletes_nothing_outside(run: Run, tmp_path: Path, rel: str) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("keep me")
    store_something(run, "03_attacks")
    contents = manifest.read(run.dir)
    contents["stages"]["03_attacks"]["outputs"][str(precious) if rel == "ABSOLUTE" else rel] = "0" * 64
    manifest.write(run.dir, contents)
    for attempt in (lambda: run.begin("03_attacks"), lambda: run.state("03_attacks"), lambda: open_run(run.dir)):
        with pytest.raises(DamagedArtifact, match="names a file outside the run folder"):
            attempt()
    assert precious.read_text() == "keep me"


def test_a_run_of_another_version_says_which_parameters_it_lacks(run: Run) -> None:
    contents = manifest.read(run.dir)
    del contents["parameters"]["train_data"]
    manifest.write(run.dir, contents)
    with pytest.raises(DamagedArtifact, match=r"another version .* lacks the parameters train_data"):
        store.existing_run(run.dir)


def test_processes_that_record_at_once_lose_nothing(run: Run) -> None:
    code = """
import sys
from pathlib import Path
from nbsupport.store import manifest
for number in range(10):
    manifest.update(Path(sys.argv[1]), lambda run: run["batch_sizes"].update({f"{sys.argv[2]}{number}": number}))
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, str(run.dir), name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(manifest.read(run.dir)["batch_sizes"]) == 20


def test_the_command_repeats_the_run(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a b", n=7, negate=False)
    assert run.command == (
        f"python -m nbsupport run digits --preset smoke --run-dir '{run.dir}' -p n 7 -p negate False"
    )


def test_run_json_is_for_people(run: Run) -> None:
    text = (run.dir / "run.json").read_text()
    assert len(text.splitlines()) > 40
    assert json.loads(text)["parameters"]["preset"] == "smoke"


# Images, tables, figures


def test_the_images_are_read_once(run: Run) -> None:
    assert run.test is run.test
    assert (len(run.test), len(run.train)) == (500, 1297)


def test_too_few_training_images_are_told(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", train_n=30)
    with pytest.raises(ValueError, match=r"expected at least 400 training images.*got 30; lower .*validation_n"):
        run.train  # noqa: B018


def test_more_directions_than_pixels_are_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", directions=65)
    with pytest.raises(ValueError, match=r"expected at most 64 directions, one for each pixel and channel, got 65"):
        run.train  # noqa: B018


def test_test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    images = {part: np.zeros((20, 6, 6, 1), np.uint8) for part in ("train_x", "test_x")}
    labels = {part: np.arange(20) % 2 for part in ("train_y", "test_y")}
    np.savez(tmp_path / "a.npz", **images, **labels)
    run = open_run(tmp_path / "run", test_data=f"npz:{tmp_path / 'a.npz'}")
    with pytest.raises(ValueError, match=r"expected test images like the training images, \(1, 8, 8\) of 10 classes"):
        run.test  # noqa: B018


def test_tables_are_read_back(run: Run) -> None:
    frame = pd.DataFrame({"model": ["normal"], "rate": [0.1 + 0.2], "empty": [None], "far": [np.inf]})
    assert run.write_table("attacks", frame) == run.path("tables", "attacks.csv")
    assert ",inf\n" in run.path("tables", "attacks.csv").read_text()
    read = run.read_table("attacks", made_by="03_attacks")
    assert read["rate"][0] == 0.1 + 0.2
    assert read["empty"].isna().all()
    assert np.isinf(read["far"][0])


def test_missing_and_damaged_tables_are_told_apart(run: Run) -> None:
    with pytest.raises(MissingInput, match="03_attacks"):
        run.read_table("attacks", made_by="03_attacks")
    files.write_text(run.path("tables/attacks.csv"), "")
    with pytest.raises(DamagedArtifact, match=r"attacks\.csv"):
        run.read_table("attacks", made_by="03_attacks")


def test_figures_are_stored(run: Run) -> None:
    png, pdf = run.write_figure("four", Figure())
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")


# Stages

OUTPUTS = ("attacks/normal/a.safetensors", "tables/03_attacks.csv", "figures/03_attacks.png", "figures/03_attacks.pdf")


def test_a_finished_stage_is_complete(run: Run) -> None:
    assert run.state("03_attacks").name == "missing"
    store_something(run, "03_attacks")
    assert run.state("03_attacks") == StageState("complete")
    entry = manifest.read(run.dir)["stages"]["03_attacks"]
    assert set(entry["outputs"]) == set(OUTPUTS)
    assert entry["seconds"] > 0
    assert entry["device"] == str(run.device)


@pytest.mark.parametrize("rel", OUTPUTS)
@pytest.mark.parametrize("harm", ["remove", "truncate", "flip"])
def test_a_harmed_output_is_named(run: Run, rel: str, harm: str) -> None:
    store_something(run, "03_attacks")
    data = run.path(rel).read_bytes()
    if harm == "remove":
        run.path(rel).unlink()
    else:
        run.path(rel).write_bytes(data[:-1] + (b"" if harm == "truncate" else bytes([data[-1] ^ 1])))
    assert run.state("03_attacks") == StageState("damaged", (rel,))


def test_beginning_again_leaves_nothing_that_passes_for_new(run: Run) -> None:
    store_something(run, "03_attacks")
    assert run.begin("03_attacks") == []
    assert run.state("03_attacks").name == "missing"
    assert not run.path("tables/03_attacks.csv").exists()
    assert not list(run.path("figures").iterdir())
    assert run.path(OUTPUTS[0]).exists()  # intact, and verified when it is read


def test_beginning_again_removes_a_damaged_artifact(run: Run) -> None:
    store_something(run, "03_attacks")
    run.path(OUTPUTS[0]).write_bytes(b"")
    run.begin("03_attacks")
    assert not run.path(OUTPUTS[0]).exists()


def test_beginning_the_first_time_changes_nothing(run: Run) -> None:
    run.begin("03_attacks")
    assert run.state("03_attacks").name == "missing"


def test_an_executed_notebook_that_was_edited_is_kept(run: Run) -> None:
    store_something(run, "03_attacks")
    copy = run.path("notebooks", "03_attacks.ipynb")
    files.write_text(copy, "{}")
    manifest.add_output(run.dir, "03_attacks", copy)
    assert run.state("03_attacks").name == "complete"
    files.write_text(copy, '{"mine": 1}')
    assert run.state("03_attacks") == StageState("damaged", ("notebooks/03_attacks.ipynb",))
    (kept,) = run.begin("03_attacks")
    assert kept.read_text() == '{"mine": 1}'
    assert kept.name.startswith("03_attacks.edited")


def test_a_stage_depends_on_the_files_that_it_read(run: Run) -> None:
    store_something(run, "03_attacks")
    later = store.existing_run(run.dir)
    later.load("attacks/normal/a")
    later.finish("04_region_classification")
    other = store.existing_run(run.dir)
    assert other.state("04_region_classification").name == "complete"
    store_something(store.existing_run(run.dir), "03_attacks")
    assert other.state("04_region_classification").name == "complete", "equal results made again change nothing"
    x = torch.ones(4, 1, 2, 2)
    again = store.existing_run(run.dir)
    again.keep("attacks/normal/a", sums, Weighted(), x, torch.arange(4), shard=2)
    again.finish("03_attacks")
    expected = StageState("outdated", ("attacks/normal/a.safetensors changed",))
    assert other.state("04_region_classification") == expected


def test_a_stage_depends_on_its_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), np.uint8)
    labels = np.arange(40) % 2
    source = tmp_path / "a.npz"
    np.savez(source, train_x=pixels, train_y=labels, test_x=pixels, test_y=labels)
    run = store.open_run(
        tmp_path / "run", dataset=f"npz:{source}", preset="smoke", overrides={"validation_n": 10, "model": "resnet20"}
    )
    run.test  # noqa: B018
    run.finish("01_datasets")
    assert run.state("01_datasets").name == "complete"
    np.savez(source, train_x=pixels, train_y=labels, test_x=255 - pixels, test_y=labels)
    assert run.state("01_datasets") == StageState("outdated", ("the test images changed",))


def test_a_stage_depends_on_the_source_of_its_kernels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbsupport import attacks, models

    model = models.build("digits_cnn", in_shape=(1, 8, 8), num_classes=10)
    run.keep("attacks/normal/FGSM", attacks.fgsm, model, run.test.x[:4], run.test.y[:4], eps=0.1)
    run.finish("03_attacks")
    assert run.state("03_attacks").name == "complete"
    real = kept.source_digest
    edited = "nbsupport.attacks.gradient"
    monkeypatch.setattr(kept, "source_digest", lambda name: "other" if name == edited else real(name))
    assert run.state("03_attacks") == StageState("outdated", (f"{edited} was edited",))


def test_what_is_out_of_date_is_said_when_it_is_read(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    store_something(run, "03_attacks")
    open_run(run.dir, views=3)
    capsys.readouterr()
    store.existing_run(run.dir).load("attacks/normal/a")
    said = capsys.readouterr().out
    assert said == "out of date: the results of 03_attacks (views: 20 -> 3); run that notebook again\n"


# The lock


def test_a_second_process_is_refused_by_name(run: Run) -> None:
    code = """
import sys
from pathlib import Path
from nbsupport.store import manifest
with manifest.held(Path(sys.argv[1])):
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
        holder = manifest.holder(run.dir)
        assert holder is not None
        assert f"process {child.pid} " in holder
        child.kill()  # the lock goes with the process
    with run.lock():
        pass


def test_the_lock_is_free_after_use(run: Run) -> None:
    assert manifest.holder(run.dir) is None
    for _ in range(2):
        with run.lock():
            assert manifest.holder(run.dir) is not None
    assert manifest.holder(run.dir) is None


def test_the_lock_clears_away_what_killed_processes_left(run: Run) -> None:
    run.path("tables").mkdir()
    left = run.path("tables", f".a.csv.1.{2**22 + 1}.tmp")
    left.touch()
    with run.lock():
        assert not left.exists()


@pytest.mark.parametrize("module", ["nbsupport.store", "nbsupport.cli"])
def test_the_imports_are_light(module: str) -> None:
    heavy = {"torch", "papermill", "jupyter_client", "matplotlib", "pandas"}
    heavy |= set() if module == "nbsupport.cli" else {"click"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
