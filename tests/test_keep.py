"""What a run keeps: the same result however often it was stopped, and nothing stale shown as new."""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerator import DEVICE, StandIn
from kernels_for_keep import Calls, Other, Sums, Weighted, each_total, keeps, one_row, placed, slowly, sums, total_of
from torch import Tensor, nn

from nbsupport import files, models, runtime, store, suite, train
from nbsupport.store import DamagedArtifact, MissingInput, Run, journal

NAME = "attacks/normal/a"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    Calls.made.clear()
    Calls.given.clear()
    Calls.stop_at = None
    yield
    Calls.stop_at = None


def reopened(folder: Path) -> Run:
    return store.open_run(folder, dataset="digits", preset="smoke")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return reopened(tmp_path / "run")


X = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 2, 2).contiguous()
Y = torch.arange(10)


def keep(run: Run, model: nn.Module | None = None, x: Tensor = X, y: Tensor = Y, **options: Any) -> Any:
    return run.keep(NAME, sums, model or Weighted(), x, y, **{"shard": 3, "seed": ("a",), **options})


def assert_sums(result: Sums, scale: float = 1.0) -> None:
    assert isinstance(result, Sums)
    assert torch.equal(result.total, scale * 4 * torch.arange(10.0) + Y)


# The same result, computed once


def test_what_all_shards_share_is_moved_to_the_model_s_device_once(run: Run, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "device_of", lambda model, x: torch.device("meta"))
    for _ in range(2):
        run.keep(NAME, keeps, Weighted(), X, shard=3, directions=torch.ones(2, 4))
    assert len(Calls.given) == 4
    assert all(directions is Calls.given[0] for directions in Calls.given)
    assert Calls.given[0].device.type == "meta"


@pytest.mark.parametrize("shard", [1, 3, 10, 99])
def test_the_result_does_not_depend_on_the_shards(run: Run, shard: int) -> None:
    result = keep(run, shard=shard)
    assert_sums(result)
    assert Calls.made == [min(shard, 10 - start) for start in range(0, 10, shard)]
    assert result.noise.unique().numel() == 1, "every shard starts with the same generator"
    assert torch.equal(result.noise[0], torch.rand((), generator=run.generator("a")))
    assert not list(run.path("attacks", "normal").glob(".*"))


def test_what_is_kept_is_loaded_with_what_it_is_about(run: Run) -> None:
    keep(run, index=torch.arange(10) * 7)
    again = reopened(run.dir)
    assert_sums(again.load(NAME))
    beside = again.inputs(NAME)
    assert sorted(beside) == ["index", "x", "y"]
    assert torch.equal(beside["index"], torch.arange(10) * 7)
    assert torch.equal(beside["x"], X)
    assert torch.equal(beside["y"], Y)


def test_a_stored_result_is_reused_and_said_to_be(run: Run) -> None:
    keep(run)
    Calls.made.clear()
    assert_sums(keep(reopened(run.dir)))
    assert Calls.made == []
    assert journal.read(run.dir)[-1]["event"] == "reused"


def test_a_file_is_read_once_in_a_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(run)
    again, reads = reopened(run.dir), []
    load = files.load_with_metadata
    monkeypatch.setattr(files, "load_with_metadata", lambda path: (reads.append(path), load(path))[1])
    for _ in range(2):
        keep(again)
        again.load(NAME)
        again.inputs(NAME)
        again.seconds(NAME)
    assert reads == [run.path(f"{NAME}.safetensors")]


def test_rows_by_name_are_cut_like_those_by_position(run: Run) -> None:
    assert torch.equal(keep(run, each={"targets": 100 * Y}).total, 4 * torch.arange(10.0) + 101 * Y)


def test_a_record_is_cut_into_rows_too(run: Run) -> None:
    record = keep(run)
    kept = run.keep("geometry/normal/a", double, Weighted(), X, shard=4, each={"record": record})
    assert torch.equal(kept.value, 2 * record.total)


def double(model: nn.Module, x: Tensor, *, record: Sums) -> Other:
    assert len(record) == len(x)
    return Other(2 * record.total)


# Nothing stale


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"x": X + 1}, "x"),
        ({"y": Y + 1}, "y"),
        ({"model": Weighted(2.0)}, "model"),
        ({"scale": 2.0}, "scale"),
        ({"seed": ("b",)}, "seed"),
        ({"index": Y + 1}, "index"),
        ({"each": {"targets": Y}}, "targets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_changes_is_computed_again_and_named(
    run: Run, change: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(run)
    Calls.made.clear()
    keep(reopened(run.dir), **change)
    assert Calls.made == [3, 3, 3, 1]
    assert f"out of date, computed again: {NAME} (changed: {named})" in capsys.readouterr().out
    told = [entry for entry in journal.read(run.dir) if entry["event"] == "outdated"]
    assert [entry["why"] for entry in told] == [f"changed: {named}"]


def test_a_changed_kernel_is_computed_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with another version of the module that the kernel stands in does not take the old result."""
    monkeypatch.syspath_prepend(tmp_path)
    code = """
import sys, torch
from kernels_for_keep import Other, Weighted
from nbsupport import store
import own_kernel
run = store.open_run(sys.argv[1], dataset="digits", preset="smoke")
kept = run.keep("attacks/normal/own", own_kernel.kernel, Weighted(), torch.zeros(4, 1, 2, 2))
print(kept.value.tolist())
"""
    outputs = []
    for value in (1, 1, 2):
        (tmp_path / "own_kernel.py").write_text(
            f"import torch\nfrom kernels_for_keep import Other\n"
            f"def kernel(model, x):\n    return Other(torch.full((len(x),), {value}.0))\n"
        )
        path = f"{tmp_path}:{Path(__file__).parent}:{Path(store.__file__).parents[2]}"
        done = subprocess.run(
            [sys.executable, "-c", code, str(run.dir)], env={"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] == "[1.0, 1.0, 1.0, 1.0]\n"
    assert "changed: source own_kernel)" in outputs[2]
    assert outputs[2].endswith("[2.0, 2.0, 2.0, 2.0]\n")


def test_a_partial_counts_with_its_settings(run: Run) -> None:
    run.keep(NAME, functools.partial(sums, scale=2.0), Weighted(), X, Y, shard=3, seed=("a",))
    Calls.made.clear()
    assert_sums(keep(reopened(run.dir), scale=2.0), scale=2.0)
    assert Calls.made == []


@pytest.mark.parametrize("make", [lambda: lambda model, x: None, lambda: functools.partial(lambda model, x: None)])
def test_a_kernel_without_a_name_is_refused(run: Run, make: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a function that has a name in a module .*define it with `def`"):
        run.keep(NAME, make(), Weighted(), X)
    assert not run.path("attacks").exists()


def test_inputs_that_cannot_be_told_apart_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="expected scale as a number, text, tensor, module or function, got object"):
        keep(run, scale=object())


def test_shards_of_another_model_are_not_taken_up(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Calls.stop_at = 7.0
    with pytest.raises(KeyboardInterrupt):
        keep(run)
    Calls.stop_at = None
    Calls.made.clear()
    keep(reopened(run.dir), model=Weighted(3.0))
    assert Calls.made == [3, 3, 3, 1]
    assert capsys.readouterr().out.count("changed: model") == 1, "said once"


# Interruptions and damage


@pytest.mark.parametrize("stop_at", [0.0, 3.0, 9.0])
def test_a_stopped_run_computes_only_what_is_missing(run: Run, stop_at: float) -> None:
    Calls.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        keep(run)
    assert not run.path(f"{NAME}.safetensors").exists()
    Calls.stop_at = None
    Calls.made.clear()
    assert_sums(keep(reopened(run.dir)))
    assert len(Calls.made) == 4 - int(stop_at) // 3


def test_a_killed_process_loses_the_shard_under_way(run: Run) -> None:
    """The child stores two shards, says so through a pipe, and blocks in the third until it is killed."""
    code = """
import os, sys
import kernels_for_keep as k
import test_keep as t
from nbsupport import store

class Blocking(k.Weighted):
    def forward(self, x):
        if float(x.max()) == 8:
            os.write(1, b"x")
            os.read(0, 1)
        return super().forward(x)

k.Weighted.forward, forward = Blocking.forward, k.Weighted.forward
super_forward = forward
def patched(self, x):
    if float(x.max()) == 8:
        os.write(1, b"x")
        os.read(0, 1)
    return super_forward(self, x)
k.Weighted.forward = patched
t.keep(store.open_run(sys.argv[1], dataset="digits", preset="smoke"))
"""
    path = f"{Path(__file__).parent}:{Path(store.__file__).parents[2]}"
    command = [sys.executable, "-c", code, str(run.dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": path}) as child:
        assert child.stdout is not None
        assert child.stdout.read(1) == b"x"
        child.send_signal(signal.SIGKILL)
    assert_sums(keep(reopened(run.dir)))
    assert Calls.made == [3, 1]


@pytest.mark.parametrize("harm", ["truncate", "flip"])
@pytest.mark.parametrize("rel", [".a.shards/00001.safetensors", "a.safetensors"])
def test_damage_is_named_and_computed_again(run: Run, harm: str, rel: str, capsys: pytest.CaptureFixture[str]) -> None:
    if rel.startswith("."):
        Calls.stop_at = 9.0
    with contextlib.suppress(KeyboardInterrupt):
        keep(run)
    Calls.stop_at = None
    Calls.made.clear()
    damaged = run.path("attacks", "normal", rel)
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + (b"" if harm == "truncate" else bytes([data[-1] ^ 4])))
    assert_sums(keep(reopened(run.dir)))
    assert Calls.made == ([3, 1] if rel.startswith(".") else [3, 3, 3, 1])
    assert f"damaged, computed again: {damaged}" in capsys.readouterr().out
    assert [entry["path"] for entry in journal.read(run.dir) if entry["event"] == "damaged"] == [str(damaged)]


def test_shards_of_another_size_are_not_mistaken(run: Run) -> None:
    Calls.stop_at = 9.0
    with pytest.raises(KeyboardInterrupt):
        keep(run)
    Calls.stop_at = None
    assert_sums(keep(reopened(run.dir), shard=2))


def test_what_a_killed_process_left_beside_a_whole_result_is_removed(run: Run) -> None:
    keep(run)
    run.path("attacks/normal/.a.shards").mkdir()
    keep(reopened(run.dir))
    assert not run.path("attacks/normal/.a.shards").exists()


def test_progress_is_reported_from_where_the_run_resumes(run: Run) -> None:
    Calls.stop_at = 6.0
    with pytest.raises(KeyboardInterrupt):
        keep(run)
    Calls.stop_at = None
    keep(reopened(run.dir))
    told = [(entry["event"], entry["done"]) for entry in journal.read(run.dir)]
    assert told == [
        *[("started", 0), ("progress", 3), ("progress", 6)],
        *[("resumed", 3), ("resumed", 6), ("resumed", 6), ("progress", 9), ("progress", 10)],
    ]
    assert {(entry["stage"], entry["what"]) for entry in journal.read(run.dir)} == {("03_attacks", NAME)}


def test_seconds_are_the_sum_over_all_processes(run: Run) -> None:
    Calls.stop_at = 3.0
    with pytest.raises(KeyboardInterrupt):
        keep(run)
    Calls.stop_at = None
    first = run.path("attacks/normal/.a.shards/00000.safetensors")
    tensors, metadata = files.load_with_metadata(first)
    kept = {name: text for name, text in metadata.items() if name not in ("contents", "sha256")}
    files.save_tensors(first, tensors, **{**kept, "seconds": "100"})
    keep(run := reopened(run.dir))
    assert 100 <= run.seconds(NAME) < 110


def test_a_wrong_number_of_rows_is_refused_before_it_is_stored(run: Run) -> None:
    with pytest.raises(ValueError, match=r"expected 3 rows in 'value' of .*, got shape \(1,\)"):
        run.keep("attacks/normal/b", one_row, Weighted(), X, shard=3)
    assert not run.path("attacks/normal/.b.shards").exists()


def test_rows_that_do_not_agree_with_the_images_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="expected y with one row for each of 10 images, got 9"):
        keep(run, y=Y[:9])
    with pytest.raises(ValueError, match="expected total as a whole number of at least 1, got 0"):
        keep(run, x=X[:0], y=Y[:0])


def test_the_size_of_shards_is_noted(run: Run) -> None:
    run.keep(NAME, sums, Weighted(), X, Y, seed=("a",))
    sizes = store.manifest.read(run.dir)["batch_sizes"]
    assert sizes["images_per_shard_attacks"] == max(32, sizes["rows"])


def test_shards_grow_with_the_batches_of_a_gpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """4096 times 3 images where a batch of the GPU holds 4096 times as many."""
    monkeypatch.setattr(runtime, "best_device", lambda: DEVICE)
    model = Weighted()
    vars(model)["batch_rows"] = {"cpu": 4, DEVICE.type: 16384}
    for shard, expected in ((3, 3 * 4096), (None, 16384)):
        keep(run, model, shard=shard)
        assert store.manifest.read(run.dir)["batch_sizes"]["images_per_shard_attacks"] == expected


def test_records_are_brought_to_where_a_run_computes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "best_device", lambda: DEVICE)
    monkeypatch.setattr(Calls, "seen", seen := [])
    record = Sums(torch.arange(3.0), torch.zeros(3))
    with StandIn():
        stored = run.keep_result("audit/normal/a", placed, record)
    assert seen == [DEVICE]
    assert stored.value.tolist() == [3.0]


# Reading


def test_a_missing_result_names_its_notebook_and_the_command(run: Run) -> None:
    with pytest.raises(MissingInput) as caught:
        run.load("attacks/normal/FGSM")
    text = str(caught.value)
    assert str(run.path("attacks/normal/FGSM.safetensors")) in text
    assert "03_attacks" in text
    assert run.command in text


def test_all_results_of_a_finished_notebook_are_loaded(run: Run) -> None:
    keep(run)
    with pytest.raises(MissingInput, match="attacks is not complete; the notebook 03_attacks makes it"):
        run.load_all("attacks")
    run.finish("03_attacks")
    run.path("attacks/normal/left_over.safetensors").write_bytes(b"")
    again = reopened(run.dir)
    assert list(again.load_all("attacks")) == [("normal", "a")]


def test_a_file_that_names_no_kind_of_result_is_refused(run: Run) -> None:
    for record in ("os:system", "nbsupport.store.run:MADE_BY", ""):
        path = run.path(f"{NAME}.safetensors")
        files.save_tensors(path, {"total": torch.zeros(1)}, record=record, made_from="{}", seconds="0", rows="0:1")
        with pytest.raises(DamagedArtifact, match="which is no kind of result"):
            reopened(run.dir).load(NAME)


# One piece, and models


def test_one_piece_is_kept_and_found_again(run: Run) -> None:
    record = keep(run)
    first = run.keep_result("audit/normal/a", total_of, record, plus=1.0, seed=("t",))
    Calls.made.clear()
    again = reopened(run.dir).keep_result("audit/normal/a", total_of, record, plus=1.0, seed=("t",))
    assert Calls.made == []
    assert torch.equal(first.value, again.value)
    reopened(run.dir).keep_result("audit/normal/a", total_of, record, plus=2.0, seed=("t",))
    assert Calls.made == [-1]


def test_the_seconds_of_one_piece_are_those_of_its_computation(run: Run) -> None:
    run.keep_result("audit/normal/a", slowly, Sums(torch.arange(3.0), torch.zeros(3)))
    assert run.seconds("audit/normal/a") >= 0.05


def test_results_made_together_are_kept_one_by_one(run: Run) -> None:
    names = ["audit/normal/a", "audit/normal/b"]
    record = Sums(torch.arange(3.0), torch.zeros(3))
    assert [one.value.tolist() for one in run.keep_results(names, each_total, record, plus=1.0)] == [[4.0], [5.0]]
    assert Calls.made == [-2], "made once"
    run.path(f"{names[1]}.safetensors").unlink()
    Calls.made.clear()
    again = reopened(run.dir).keep_results(names, each_total, record, plus=1.0)
    assert [one.value.tolist() for one in again] == [[4.0], [5.0]]
    assert Calls.made == [-2]
    Calls.made.clear()
    assert reopened(run.dir).keep_results(names, each_total, record, plus=1.0)[1].value.tolist() == [5.0]
    assert Calls.made == []


class TestModel:
    """Training in place, kept."""

    def train(self, run: Run, *, epochs: int = 2, skip: int = 0) -> tuple[nn.Module, Any]:
        images = run.train.first(96 + skip)
        model = suite.new_model(run.settings, images, "normal")
        images = replace(images, x=images.x[skip:], y=images.y[skip:])
        history = run.keep_model("normal", train.fit, model, images, seed=("training",), epochs=epochs)
        return model, history

    def batches(self, run: Run) -> int:
        return sum(entry.get("unit") == "batches" and entry["event"] == "progress" for entry in journal.read(run.dir))

    def test_a_model_is_trained_once(self, run: Run) -> None:
        trained, history = self.train(run)
        told = self.batches(run)
        found, again = self.train(reopened(run.dir))
        assert history.equals(again)
        assert self.batches(run) == told, "nothing was trained"
        stored = reopened(run.dir).model("normal")
        for name, weight in trained.state_dict().items():
            assert torch.equal(weight, found.state_dict()[name])
            assert torch.equal(weight, stored.state_dict()[name])

    def test_other_images_or_settings_train_it_again(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        first, _ = self.train(run)
        second, _ = self.train(reopened(run.dir), skip=1)
        assert "out of date, made again: normal model (changed: train_set)" in capsys.readouterr().out
        _, history = self.train(reopened(run.dir), epochs=3, skip=1)
        assert "out of date, made again: normal model (changed: epochs)" in capsys.readouterr().out
        assert not torch.equal(next(first.parameters()), next(second.parameters()))
        assert len(history) == 3
        assert len(list(run.path("models").glob(".normal.*.checkpoint"))) == 1, "old checkpoints are gone"

    def test_a_replaced_model_file_is_made_again(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        trained, _ = self.train(run)
        other = suite.new_model(run.settings, run.train, "normal")
        models.save(other, run.path("models/normal.safetensors"))
        self.train(reopened(run.dir))
        assert "out of date, made again: normal model" in capsys.readouterr().out
        again = reopened(run.dir).model("normal")
        assert torch.equal(next(again.parameters()), next(trained.parameters()))

    def test_given_weights_that_change_are_noticed(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "w.pt"
        for seed in (0, 1):
            torch.manual_seed(seed)
            torch.save(models.build("digits_cnn", in_shape=(1, 8, 8), num_classes=10).state_dict(), path)
            given = store.open_run(run.dir, dataset="digits", preset="smoke", overrides={"weights": str(path)})
            model, recipe = (
                suite.new_model(given.settings, given.train, "normal"),
                suite.training(given.settings)["normal"],
            )
            state = given.state("02_training")
            assert state.name == ("outdated" if seed else "missing")
            assert ("the given weights changed" in state.faults) == bool(seed)
            given.keep_model("normal", train.fit_schedule, model, given.train, given.train.first(50), **recipe)
            given.finish("02_training")
            assert given.state("02_training").name == "complete"
            stored = store.existing_run(run.dir).model("normal").state_dict()
            assert all(
                torch.equal(stored[name], tensor) for name, tensor in torch.load(path, weights_only=True).items()
            )
