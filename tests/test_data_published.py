"""MNIST and CIFAR-10: every pixel, and an error that helps where they cannot be had."""

from __future__ import annotations

import hashlib
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from random_images import Array, random_bytes

from nbsupport import data


def idx(path: Path) -> Array:
    """Read a file of the MNIST format: magic number 0, 0, 8 (bytes), rank; the sizes; the bytes."""
    content = path.read_bytes()
    zero, kind, rank = struct.unpack(">HBB", content[:4])
    assert (zero, kind) == (0, 8)
    sizes = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes)


@pytest.mark.parametrize(
    ("train", "stem", "counts"),
    [
        (True, "train", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        (False, "t10k", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
    ],
)
def test_every_image_of_mnist(train: bool, stem: str, counts: list[int], mnist_root: Path) -> None:
    images = data.load("mnist", train=train, root=mnist_root)
    pixels = idx(mnist_root / "MNIST" / "raw" / f"{stem}-images-idx3-ubyte")
    labels = idx(mnist_root / "MNIST" / "raw" / f"{stem}-labels-idx1-ubyte")
    assert images.x.shape == (sum(counts), 1, 28, 28)
    assert np.array_equal(images.x[:, 0].numpy(), pixels.astype(np.float32) / np.float32(255))
    assert np.array_equal(images.y.numpy(), labels)
    assert images.y.bincount().tolist() == counts
    assert (float(images.x.min()), float(images.x.max())) == (0, 1)
    assert (images.classes, images.pixel_max, images.name) == (tuple("0123456789"), 1.0, "mnist")
    few = data.load("mnist", train=train, root=mnist_root, limit=3)
    assert torch.equal(few.x, images.x[:3])


def write_mnist(root: Path, n: int = 4) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        pixels = random_bytes(n, 28, 28)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">HBBIII", 0, 8, 3, n, 28, 28) + pixels.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, n) + bytes(range(n)))


def test_mnist_is_read_from_the_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path))
    images = data.load("mnist", train=True)
    assert np.array_equal(images.x[:, 0].numpy(), random_bytes(4, 28, 28).astype(np.float32) / np.float32(255))
    assert images.y.tolist() == [0, 1, 2, 3]


def test_a_truncated_file_of_mnist_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    damaged = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"MNIST in .* cannot be read: one of .*train-images-idx3-ubyte.* is damaged"):
        data.load("mnist", train=True, root=tmp_path)


class PythonTwoDtype:
    """Pickles as a dtype did in Python 2, with whole numbers where numpy 2.4 wants booleans."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("u1", 2, 1), (3, "|", None, None, None, -1, -1, 0)


class PythonTwoArray:
    """Pickles as an array of bytes did in Python 2."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def __reduce__(self) -> tuple[Any, ...]:
        reduced = self.values.__reduce__()
        assert isinstance(reduced, tuple)
        make, arguments = reduced[:2]
        return make, arguments, (1, self.values.shape, PythonTwoDtype(), False, self.values.tobytes())


CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def cifar10_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with an archive of 4 images a batch, of which torchvision is told the checksums."""
    cifar10 = data.torchvision_datasets().CIFAR10
    unpacked = tmp_path / "unpacked" / "cifar-10-batches-py"
    unpacked.mkdir(parents=True)
    checksums = {}
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]):
        batch = {"data": PythonTwoArray(random_bytes(4, 3072, seed=seed)), "labels": [seed, 9, 0, 1]}
        content = pickle.dumps(batch if name != "batches.meta" else {"label_names": CIFAR10_CLASSES}, protocol=2)
        (unpacked / name).write_bytes(content)
        checksums[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    root = tmp_path / "root"
    root.mkdir()
    archive = root / cifar10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(unpacked, "cifar-10-batches-py")
    monkeypatch.setattr(cifar10, "tgz_md5", hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest())
    for listing in ("train_list", "test_list"):
        monkeypatch.setattr(cifar10, listing, [[name, checksums[name]] for name, _ in getattr(cifar10, listing)])
    monkeypatch.setattr(cifar10, "meta", {**cifar10.meta, "md5": checksums["batches.meta"]})
    return root


@pytest.mark.parametrize("train", [True, False])
def test_cifar10_is_unpacked_and_read(train: bool, cifar10_root: Path) -> None:
    images = data.load("cifar10", train=train, root=cifar10_root)
    assert images.x.is_contiguous()
    batches = range(5) if train else [5]
    pixels = np.concatenate([random_bytes(4, 3, 32, 32, seed=seed) for seed in batches])
    assert np.array_equal(images.x.numpy(), pixels.astype(np.float32) / np.float32(255))
    assert images.y.tolist() == [label for seed in batches for label in (seed, 9, 0, 1)]
    assert (images.classes, images.pixel_max, images.name) == (tuple(CIFAR10_CLASSES), 255.0, "cifar10")
    few = data.load("cifar10", train=train, root=cifar10_root, limit=3)
    assert torch.equal(few.x, images.x[:3])
    assert torch.equal(few.y, images.y[:3])


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        (
            "mnist",
            "MNIST",
            ["train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte",
             "MNIST/raw", "t10k-labels-idx1-ubyte.gz"],
        ),
        ("cifar10", "CIFAR10", ["data_batch_1, ", "test_batch, batches.meta", "cifar-10-python.tar.gz in "]),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "failure", [URLError("no route"), RuntimeError("File not found or corrupted."), EOFError("short")]
)
def test_what_to_do_without_a_network(
    name: str, kind: str, expected: list[str], failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []

    def download(self: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise failure

    monkeypatch.setattr(getattr(data.torchvision_datasets(), kind), "download", download)
    before = socket.getdefaulttimeout()
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, train=True, root=tmp_path)
    message = str(caught.value)
    for part in [
        *expected,
        f"{kind} is not in {tmp_path}",
        "NBSUPPORT_DATA",
        "`digits` needs no file",
        str(failure.args[0]),
    ]:
        assert part in message
    assert timeouts == [data.NETWORK_TIMEOUT]  # a silent server does not hold up the error
    assert socket.getdefaulttimeout() == before


def test_only_the_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: object) -> None:
        raise URLError("no route")

    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    monkeypatch.setattr(data.torchvision_datasets().MNIST, "download", download)
    with pytest.raises(FileNotFoundError, match=r"(?m)^Missing or damaged: t10k-labels-idx1-ubyte, expected in "):
        data.load("mnist", train=False, root=tmp_path)


def test_torchvision_is_imported_late_and_without_warnings() -> None:
    program = """
import importlib, sys
from nbsupport import data
assert not {"torchvision", "sklearn"} & set(sys.modules), "imported too early"
try:
    import torchvision
except RuntimeError:
    pass
first = data.torchvision_datasets()
assert first is data.torchvision_datasets()
importlib.reload(data)
assert data.torchvision_datasets().MNIST is first.MNIST
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that are declared; none has been so far."""
    found: list[str] = []

    class Library:
        def __init__(self, namespace: str, kind: str) -> None:
            assert (namespace, kind) == ("torchvision", "FRAGMENT")

        def define(self, schema: str) -> None:
            found.append(schema.split("(")[0])

    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(data, "_DECLARED", {})
    return found


@pytest.mark.parametrize("missed", [[], ["nms"], ["qnms"], ["nms", "qnms"]])
def test_operators_are_declared_only_where_they_are_missed(
    missed: list[str], declared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, waiting = ModuleType("datasets"), list(missed)

    def import_module(name: str) -> ModuleType:
        if waiting:
            raise RuntimeError(f"operator torchvision::{waiting.pop(0)} does not exist")
        return module

    monkeypatch.setattr("importlib.import_module", import_module)
    assert data.torchvision_datasets() is module
    assert declared == missed


def test_an_operator_that_is_still_missed_is_not_declared_again(
    declared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", import_module)
    with pytest.raises(RuntimeError, match="torchvision::nms"):
        data.torchvision_datasets()
    assert declared == ["nms"]


def test_any_other_failure_of_the_import_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        raise RuntimeError("compiled with different CUDA major versions")

    monkeypatch.setattr("importlib.import_module", import_module)
    with pytest.raises(RuntimeError, match="CUDA major versions"):
        data.torchvision_datasets()
