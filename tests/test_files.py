"""Files are whole or absent, and every altered bit is seen."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from nbsupport import files
from nbsupport.files import DamagedArtifact


def tensors() -> dict[str, torch.Tensor]:
    return {
        "x": torch.arange(12, dtype=torch.float32).view(3, 4),
        "y": torch.tensor([0, 2, 1]),
        "hit": torch.tensor([True, False, True]),
        "none": torch.empty(0, 3),
        "scalar": torch.tensor(float("nan"), dtype=torch.float64),
    }


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    files.save_tensors(path, tensors(), note="why")
    loaded, metadata = files.load_with_metadata(path)
    assert loaded.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].nan_to_num(), tensor.nan_to_num())
    assert metadata["note"] == "why"
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def anonymous() -> int:
    """Return the bytes of this process that no file holds."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not tell them apart")
    return 1024 * int(status.read_text().partition("RssAnon:")[2].split()[0])


def test_what_is_loaded_stays_in_its_file_until_it_is_written_to(tmp_path: Path) -> None:
    path, size = tmp_path / "a.safetensors", 2**23
    files.save_tensors(path, {"x": torch.ones(size)})
    before = anonymous()
    x = files.load_with_metadata(path)[0]["x"]
    assert float(x.sum()) == size
    assert anonymous() - before < x.nbytes / 2
    x[:10] = 2
    assert float(x.sum()) == size + 10
    assert float(files.load_with_metadata(path)[0]["x"].sum()) == size


def test_what_is_loaded_stays_as_it_was_when_its_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, {"x": torch.ones(9)})
    x = files.load_with_metadata(path)[0]["x"]
    files.save_tensors(path, {"x": torch.zeros(2)})
    assert x.tolist() == [1] * 9


def test_without_posix_nothing_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, {"x": torch.ones(2**20)})
    monkeypatch.setattr(files, "os", SimpleNamespace(name="nt"))
    x = files.load_with_metadata(path)[0]["x"]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert float(x.sum()) == 2**20


def test_a_view_that_is_not_contiguous_is_saved_as_it_reads(tmp_path: Path) -> None:
    x = torch.arange(6.0).view(2, 3).t()
    files.save_tensors(tmp_path / "a.safetensors", {"x": x})
    assert torch.equal(files.load_with_metadata(tmp_path / "a.safetensors")[0]["x"], x)


def test_the_contents_digest_is_that_of_the_tensors_alone(tmp_path: Path) -> None:
    digests = []
    for note, tensor in (("1", torch.zeros(2)), ("2", torch.zeros(2)), ("1", torch.zeros(1, 2))):
        files.save_tensors(tmp_path / "a.safetensors", {"x": tensor}, note=note)
        digests.append(files.read_metadata(tmp_path / "a.safetensors")["contents"])
    assert digests[0] == digests[1] != digests[2]


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, {"x": torch.tensor([1.0, 2.0])}, note="why")
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    padding = 8 + len(whole[8 : 8 + header].rstrip())
    for position in range(len(whole)):
        if padding <= position < 8 + header:
            continue  # blanks after the header's JSON mean nothing
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DamagedArtifact, match=r"a\.safetensors is damaged"):
            files.load_with_metadata(path)


def test_every_truncation_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.save_tensors(path, {"x": torch.tensor([1.0, 2.0])})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedArtifact) as caught:
            files.load_with_metadata(path)
        assert caught.value.path == path


def test_a_file_without_checksum_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(DamagedArtifact, match="carries no checksum"):
        files.load_with_metadata(tmp_path / "a.safetensors")


def test_a_header_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(DamagedArtifact, match="header is unreadable"):
        files.load_with_metadata(tmp_path / "a.safetensors")


def test_an_absent_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.load_with_metadata(tmp_path / "a.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.txt", "old")

    def write_half() -> None:
        with files.replacing(tmp_path / "a.txt") as file:
            file.write(b"half of the n")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = 2**22 + 1  # above the largest process number of Linux
    for name in (f".a.csv.{dead}.tmp", f".b.csv.{os.getpid()}.tmp", ".c.csv.word.tmp", "d.tmp"):
        (tmp_path / name).touch()
    files.remove_leftovers(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {f".b.csv.{os.getpid()}.tmp", ".c.csv.word.tmp", "d.tmp"}


def test_this_process_is_alive() -> None:
    assert files.alive(os.getpid())
    assert files.alive(1)
    assert not files.alive(2**22 + 1)


def test_without_posix_a_file_is_still_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "os", SimpleNamespace(name="nt", getpid=os.getpid, fsync=os.fsync))
    files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_equal_figures_are_equal_files(tmp_path: Path, kind: str, begins: bytes) -> None:
    before = dict(matplotlib.rcParams)
    for name in ("a", "b"):
        figure = Figure()
        figure.subplots().plot(np.arange(3))
        files.write_figure(tmp_path / f"{name}.{kind}", figure)
    first, second = (tmp_path / f"{name}.{kind}" for name in ("a", "b"))
    assert first.read_bytes().startswith(begins)
    assert first.read_bytes() == second.read_bytes()
    assert dict(matplotlib.rcParams) == before
    if kind == "pdf":
        assert b"/Subtype /Type3" not in first.read_bytes()
        assert b"/Subtype /Image" not in first.read_bytes(), "lines and text are vectors"
