"""What is taken from a run: arrays and images against what it stored, tables as LaTeX, references."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from nbsupport import tables
from nbsupport.runner.export import REFERENCES, export
from nbsupport.store import Run


@pytest.fixture(scope="module")
def exported(smoke: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("export") / "out"
    export(smoke, target, lambda line: None)
    return target


def test_the_examples_are_those_of_the_run(smoke: Run, exported: Path) -> None:
    stored = smoke.stored("attacks")
    assert {path.stem for path in (exported / "examples").glob("*.npz")} == {"-".join(key) for key in stored}
    for model, name in stored:
        attack = smoke.load(f"attacks/{model}/{name}")
        with np.load(exported / "examples" / f"{model}-{name}.npz", allow_pickle=False) as found:
            assert np.array_equal(found["x_adv"], attack.x_adv.numpy())
            assert np.array_equal(found["success"], attack.success.numpy())
            assert np.array_equal(found["x"], smoke.test.x[found["index"]].numpy())
            assert np.array_equal(found["y"], smoke.test.y[found["index"]].numpy())
            successes = found["index"][found["success"]].tolist()
        pictures = {int(path.stem): path for path in (exported / "examples" / f"{model}-{name}").glob("*.png")}
        assert sorted(pictures) == successes
        for index, path in pictures.items():
            pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).float() / 255
            assert (pixels - attack.x_adv[index, 0]).abs().max() <= 0.5 / 255 + 1e-6


def test_every_table_is_there_but_those_of_images(smoke: Run, exported: Path) -> None:
    stored = {path.stem for path in smoke.path("tables").glob("*.csv")}
    assert {path.stem for path in (exported / "tables").glob("*.tex")} == {
        name for name in stored if not name.startswith("images")
    }
    text = (exported / "tables" / "attacks.tex").read_text()
    body = text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    assert len(body) == len(pd.read_csv(smoke.path("tables", "attacks.csv")))
    assert "\\toprule" in text
    assert text.startswith("% digits, smoke")


def test_a_cell_of_latex_has_the_interval_and_no_bare_sign() -> None:
    frame = pd.DataFrame({"a_b": ["x & y"], "rate": [0.5], "rate_low": [0.25], "rate_high": [0.75], "n": [4]})
    lines = tables.latex(frame).splitlines()
    assert lines[2] == r"a\_b & rate & n \\"
    assert lines[4] == r"x \& y & 50 \% [25, 75] & 4 \\"


def test_published_numbers_stand_in_the_latex_table() -> None:
    frame = pd.DataFrame({"a": ["x", "y"], "success_rate": [0.5, 1.0], "success_rate_reference": [0.25, np.nan]})
    lines = tables.latex(frame.assign(reference_source=["Table 1", np.nan])).splitlines()
    assert lines[2] == r"a & success\_rate & success\_rate\_reference & reference\_source \\"
    assert lines[4:6] == [r"x & 50 \% & 25 \% & Table 1 \\", r"y & 100 \% &  &  \\"]


def test_colour_images_stay_in_colour(tmp_path: Path) -> None:
    from nbsupport.runner.export import _write_png

    x = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    _write_png(tmp_path / "a.png", x)
    found = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(found, (x * 255).round().byte().permute(1, 2, 0).numpy())


def test_the_references_are_whole(exported: Path) -> None:
    text = (exported / "references.bib").read_text()
    assert text == REFERENCES.read_text()
    entries = re.findall(r"@inproceedings\{(\w+),(.*?)\n\}", text, re.DOTALL)
    assert len({key for key, _ in entries}) == len(entries) == text.count("@")
    for _, fields in entries:
        assert {name for name in ("title", "author", "booktitle", "year") if f"\n  {name} " in fields} == {
            *("title", "author", "booktitle", "year")
        }


def test_a_run_folder_is_not_written_over(smoke: Run) -> None:
    with pytest.raises(ValueError, match=r"expected a folder for the export, got .*, which holds a run"):
        export(smoke, smoke.dir)
