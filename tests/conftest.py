"""Fixtures that the tests of several modules share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import makes
import pytest
import torch
from torch import nn

from nbsupport import data, runner, runtime
from nbsupport.data import ImageSet
from nbsupport.store import Run

MNIST_FILES = ("train-images", "train-labels", "t10k-images", "t10k-labels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep on one worker (`-n 2 --dist loadgroup`) the tests that read the smoke run, and those of a file."""
    for item in items:
        reads = {"smoke", "planned"} & {*getattr(item, "fixturenames", ())}
        item.add_marker(pytest.mark.xdist_group("smoke" if reads else item.path.stem))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that NBSUPPORT_DATA names; skips where there is none."""
    named = os.environ.get("NBSUPPORT_DATA")
    if not named:
        pytest.skip("NBSUPPORT_DATA is not set: no data sets to read")
    if not Path(named).is_dir():
        pytest.skip(f"NBSUPPORT_DATA names {named}, which is no folder")
    return Path(named)


@pytest.fixture(scope="session")
def mnist_root(data_folder: Path) -> Path:
    """The `root` of MNIST; skips where a file of it is absent."""
    for stem in MNIST_FILES:
        if not list((data_folder / "MNIST" / "raw").glob(f"{stem}-idx?-ubyte")):
            pytest.skip(f"NBSUPPORT_DATA names {data_folder}, which lacks MNIST/raw/{stem}-*-ubyte")
    return data_folder


@pytest.fixture(scope="session")
def cifar10_npz(data_folder: Path) -> Path:
    """An npz file of original CIFAR-10 images; skips where it is absent."""
    path = data_folder / "cifar10_lossless.npz"
    if not path.is_file():
        pytest.skip(f"NBSUPPORT_DATA names {data_folder}, which lacks {path.name}")
    return path


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    """The test part of `digits`, 500 images of 1x8x8."""
    return data.load("digits", train=False)


@pytest.fixture(scope="session")
def digits_train() -> ImageSet:
    """The training part of `digits`, 1297 images of 1x8x8."""
    return data.load("digits", train=True)


@pytest.fixture(scope="session")
def plain(digits_train: ImageSet) -> nn.Module:
    """A narrow network without batch-norm, trained well on `digits`."""
    return makes.trained("plain", digits_train, epochs=20)


@pytest.fixture(scope="session")
def normed(digits_train: ImageSet) -> nn.Module:
    """A network with batch-norm, trained for a moment on digits in colour."""
    return makes.trained("normed", makes.tinted(digits_train), epochs=4)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let runs that are created inside compute on one thread: twice as fast where other processes compute as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def bfloat16_as_if_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision is tested also on a machine where it would not be worth its while."""
    monkeypatch.setattr(runtime, "fast_bfloat16", lambda device: device.type in {"cpu", "cuda"})


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The CUDA device; skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> runner.Job:
    """The job of one smoke run of all notebooks on `digits`, which is done."""
    planned = runner.plan("digits", "smoke", {}, tmp_path_factory.mktemp("smoke") / "run")
    with one_thread():
        runner.run(planned, lambda line: None)
    return planned


@pytest.fixture(scope="session")
def smoke(planned: runner.Job) -> Run:
    """The smoke run, not to be changed."""
    return planned.open()
