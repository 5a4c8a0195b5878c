"""A computation in shards: the same result however often it was stopped, and nothing computed twice."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nbsupport import files, journal, shards

Rows = dict[str, Tensor]


def squares(start: int, stop: int) -> Rows:
    rows = torch.arange(start, stop)
    return {"index": rows, "square": rows.double() ** 2}


class Recorded:
    """`squares`, which remembers its calls and raises in the one that begins at `fail_at`."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[tuple[int, int]] = []
        self.fail_at = fail_at

    def __call__(self, start: int, stop: int) -> Rows:
        if start == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((start, stop))
        return squares(start, stop)


def run(folder: Path, compute: Callable[[int, int], Rows], total: int = 10, shard: int = 3, **options: Any) -> Rows:
    book = journal.Journal(folder)
    return shards.run(folder / "a.safetensors", total, shard, compute, book, stage="03_attacks", what="a", **options)


def assert_squares(result: Rows, total: int = 10) -> None:
    assert torch.equal(result["index"], torch.arange(total))
    assert torch.equal(result["square"], torch.arange(total).double() ** 2)


@pytest.mark.parametrize(("total", "shard"), [(10, 3), (10, 10), (10, 99), (9, 3), (1, 1)])
def test_the_result_does_not_depend_on_the_shards(tmp_path: Path, total: int, shard: int) -> None:
    compute = Recorded()
    assert_squares(run(tmp_path, compute, total, shard), total)
    assert_squares(files.load_tensors(tmp_path / "a.safetensors"), total)
    assert compute.calls == [(start, min(start + shard, total)) for start in range(0, total, shard)]
    assert {file.name for file in tmp_path.iterdir()} == {"a.safetensors", "journal.jsonl"}


def test_a_stored_result_is_reused_and_said_to_be(tmp_path: Path) -> None:
    run(tmp_path, squares)
    again = Recorded()
    assert_squares(run(tmp_path, again))
    assert again.calls == []
    assert journal.read(tmp_path)[-1]["event"] == "reused"


@pytest.mark.parametrize("fail_at", [0, 3, 9])
def test_a_stopped_run_computes_only_what_is_missing(tmp_path: Path, fail_at: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Recorded(fail_at))
    assert not (tmp_path / "a.safetensors").exists()
    again = Recorded()
    assert_squares(run(tmp_path, again))
    assert again.calls[0][0] == fail_at
    assert len(again.calls) == 4 - fail_at // 3


def test_a_killed_process_loses_the_shard_under_way(tmp_path: Path) -> None:
    """The child stores two shards, says so through a pipe, and blocks in the third until it is killed."""
    code = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_shards

def compute(start, stop):
    if start == 6:
        os.write(1, b"x")
        os.read(0, 1)
    return test_shards.squares(start, stop)

test_shards.run(Path(sys.argv[1]), compute)
"""
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(1) == b"x"
        child.send_signal(signal.SIGKILL)
    again = Recorded()
    assert_squares(run(tmp_path, again))
    assert again.calls == [(6, 9), (9, 10)]


@pytest.mark.parametrize("harm", ["truncate", "flip"])
def test_a_damaged_shard_is_named_and_computed_again(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Recorded(fail_at=9))
    damaged = tmp_path / ".a.shards" / "00001.safetensors"
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + (b"" if harm == "truncate" else bytes([data[-1] ^ 4])))
    again = Recorded()
    assert_squares(run(tmp_path, again))
    assert again.calls == [(3, 6), (9, 10)]
    assert f"damaged, computed again: {damaged}" in capsys.readouterr().out
    assert [entry["path"] for entry in journal.read(tmp_path) if entry["event"] == "damaged"] == [str(damaged)]


def test_a_damaged_result_is_named_and_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, squares)
    (tmp_path / "a.safetensors").write_bytes(b"")
    again = Recorded()
    assert_squares(run(tmp_path, again))
    assert len(again.calls) == 4
    assert str(tmp_path / "a.safetensors") in capsys.readouterr().out


def test_what_was_made_from_something_else_is_computed_again(tmp_path: Path) -> None:
    run(tmp_path, squares, made_from="old models")
    again = Recorded()
    run(tmp_path, again, made_from="new models")
    assert len(again.calls) == 4


def test_shards_of_another_size_are_not_mistaken(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Recorded(fail_at=9))
    assert_squares(run(tmp_path, squares, shard=2))


def test_what_a_killed_process_left_beside_a_whole_result_is_removed(tmp_path: Path) -> None:
    run(tmp_path, squares)
    (tmp_path / ".a.shards").mkdir()
    run(tmp_path, squares)
    assert not (tmp_path / ".a.shards").exists()


def test_progress_is_reported_from_where_the_run_resumes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Recorded(fail_at=6))
    run(tmp_path, squares, unit="rays")
    told = [(entry["event"], entry["done"], entry["unit"]) for entry in journal.read(tmp_path)]
    assert told == [
        *[("started", 0, "images"), ("progress", 3, "images"), ("progress", 6, "images")],
        *[("resumed", 3, "rays"), ("resumed", 6, "rays"), ("resumed", 6, "rays"), ("progress", 9, "rays")],
        ("progress", 10, "rays"),
    ]


def test_the_success_and_the_median_rms_so_far_are_reported(tmp_path: Path) -> None:
    correct = torch.tensor([True, True, True, True, False])
    success = torch.tensor([False, True, True, True, False])
    rms = torch.tensor([0.0, 0.5, 0.25, 1.0, 0.0])

    def attack(start: int, stop: int) -> Rows:
        return {"correct": correct[start:stop], "success": success[start:stop], "rms": rms[start:stop]}

    run(tmp_path, attack, total=5, shard=1)
    so_far = [(entry.get("success"), entry.get("median_rms")) for entry in journal.read(tmp_path)]
    assert so_far == [(None, None), (0.0, None), (0.5, 0.5), (2 / 3, 0.25), (0.75, 0.5), (0.75, 0.5)]


def test_seconds_are_the_sum_over_all_processes(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        run(tmp_path, Recorded(fail_at=3), shard=3, total=6)
    first = tmp_path / ".a.shards" / "00000.safetensors"
    tensors, metadata = files.load_with_metadata(first)
    kept = {name: text for name, text in metadata.items() if name not in ("contents", "sha256")}
    files.save_tensors(first, tensors, **{**kept, "seconds": "100"})
    run(tmp_path, squares, shard=3, total=6)
    assert 100 <= float(files.read_metadata(tmp_path / "a.safetensors")["seconds"]) < 110


@pytest.mark.parametrize(("total", "shard", "name"), [(0, 1, "total"), (1, 0, "shard")])
def test_sizes_below_one_are_refused(tmp_path: Path, total: int, shard: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"expected {name} as a whole number of at least 1, got 0"):
        run(tmp_path, squares, total, shard)


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.tensor(1.0)])
def test_a_wrong_number_of_rows_is_refused_before_it_is_stored(tmp_path: Path, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected 3 rows in 'x' of a, got shape"):
        run(tmp_path, lambda start, stop: {"x": wrong})
    assert not (tmp_path / ".a.shards").exists()


def test_readers_see_a_whole_file_or_none(tmp_path: Path) -> None:
    """While one thread replaces an artifact over and over, another never reads a part of it."""
    path, over = tmp_path / "a.safetensors", threading.Event()
    files.save_tensors(path, squares(0, 100))

    def write() -> None:
        for number in range(20):
            files.save_tensors(path, squares(number, number + 100))
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        rows = files.load_tensors(path)
        assert torch.equal(rows["index"].double() ** 2, rows["square"])
    writer.join()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
