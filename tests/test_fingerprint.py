"""The fingerprint of a data set: it changes with what `load` reads and with nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_images import random_bytes

from nbsupport import data


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # file systems may count time coarsely


def both(name: str, root: Path | None = None) -> list[str]:
    return [data.fingerprint(name, train=train, root=root) for train in (True, False)]


def grey_tree(root: Path) -> Path:
    for number, place in enumerate(("train/a/0", "train/a/1", "train/b/0", "test/a/0", "test/b/0")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_bytes(4, 4, seed=number)).save(root / f"{place}.bmp")
    return root


def test_one_byte_of_an_npz_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **{f"{part}_{name}": np.zeros(3) for part in ("train", "test") for name in "xy"})
    train, test = before = both(f"npz:{path}")
    assert train != test
    assert both(f"npz:{path}") == before
    flip_a_bit(path)
    assert not set(both(f"npz:{path}")) & set(before)


def test_one_byte_of_an_image_changes_its_part_alone(tmp_path: Path) -> None:
    name = f"folder:{grey_tree(tmp_path)}"
    train, test = both(name)
    flip_a_bit(tmp_path / "test/b/0.bmp")
    assert data.fingerprint(name, train=True) == train
    assert data.fingerprint(name, train=False) != test


def test_the_order_of_a_folder_counts_and_its_place_does_not(tmp_path: Path) -> None:
    one, other = grey_tree(tmp_path / "one"), grey_tree(tmp_path / "other")
    assert both(f"folder:{one}") == both(f"folder:{other}")
    (other / "notes.txt").touch()
    (other / "train/a/.hidden.bmp").touch()
    assert both(f"folder:{one}") == both(f"folder:{other}")
    (other / "train/a/0.bmp").rename(other / "train/a/2.bmp")
    assert data.fingerprint(f"folder:{one}", train=True) != data.fingerprint(f"folder:{other}", train=True)


def test_colour_in_one_part_makes_both_parts_colour(tmp_path: Path) -> None:
    name = f"folder:{grey_tree(tmp_path)}"
    before = both(name)
    Image.fromarray(random_bytes(4, 4, 3)).save(tmp_path / "test/b/1.bmp")
    assert data.load(name, train=True).in_shape == (3, 4, 4)
    assert not set(both(name)) & set(before)


def named_by_torchvision(kind: str, root: Path) -> set[Path]:
    published = getattr(data.torchvision_datasets(), kind)
    if kind == "MNIST":
        return {root / "MNIST" / "raw" / Path(name).stem for name, _ in published.resources}
    names = [name for name, _ in [*published.train_list, *published.test_list]] + [published.meta["filename"]]
    return {root / published.base_folder / name for name in names}


@pytest.mark.parametrize(("name", "kind"), [("mnist", "MNIST"), ("cifar10", "CIFAR10")])
def test_published_files_are_those_of_torchvision(name: str, kind: str, tmp_path: Path) -> None:
    absent = both(name, tmp_path)
    named = named_by_torchvision(kind, tmp_path)
    assert set(data.files_of(name, ["train", "test"], tmp_path)) == named
    for file in named:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0")
    present = both(name, tmp_path)
    assert len({*absent, *present}) == 4
    flip_a_bit(data.files_of(name, ["test"], tmp_path)[0])
    assert data.fingerprint(name, train=True, root=tmp_path) == present[0]
    assert data.fingerprint(name, train=False, root=tmp_path) != present[1]


def test_digits_depend_on_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    before = both("digits")
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"another {name}")
    assert len({*before, *both("digits")}) == 4


def test_what_cannot_be_read_is_said_as_by_load(tmp_path: Path) -> None:
    for name in ("digit", "folder:", f"folder:{tmp_path}/a", f"npz:{tmp_path}/a.npz"):
        with pytest.raises((ValueError, FileNotFoundError)) as expected:
            data.load(name, train=True)
        with pytest.raises(type(expected.value)) as got:
            data.fingerprint(name, train=True)
        assert str(got.value) == str(expected.value)


def test_it_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None; from nbsupport import data; "
        f"print([data.fingerprint(name, train=True) for name in ('digits', 'mnist', 'folder:{grey_tree(tmp_path)}')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
