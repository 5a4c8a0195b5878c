"""What papers and other tools take from a run: LaTeX tables, adversarial examples as arrays and images, references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbsupport import files
from nbsupport.runner import report
from nbsupport.store import Run, manifest

REFERENCES = Path(__file__).with_name("references.bib")


def export(run: Run, target: Path, echo: Callable[[str], object] = print) -> None:
    """Write what `run` has stored to the folder `target`, where files of the same names are replaced.

    - `tables/NAME.tex`: each table with booktabs, rates with their interval in one cell, and published numbers (see
      `report.referenced`); a comment says which data and settings they are of. Of tables with one row an image there
      is the CSV file of the run.
    - `examples/MODEL-ATTACK.npz`: `index` (position in the test set), `y`, `x` and `x_adv` (N, C, H, W) float32 in
      [0, 1], `success`, `correct`, `rms`, of all images that the attack was given.
    - `examples/MODEL-ATTACK/INDEX.png`: the successful ones, rounded to 8 bits, as which some may be classified
      correctly again (see stability.csv).
    - `references.bib`: BibTeX of the methods.

    Raises ValueError where `target` is a run folder and as `report.referenced`, MissingInput where the run has stored
    no attack, and DamagedArtifact.
    """
    if (target / manifest.NAME).exists():
        raise ValueError(f"expected a folder for the export, got {target}, which holds a run; choose one inside it")
    from nbsupport import tables  # which loads torch

    told = {"tables": 0, "npz": 0, "png": 0}
    for name, stage in report.stored(run.dir, ".csv").items():
        if not name.startswith("images"):
            text = tables.latex(report.referenced(run, name, stage))
            files.write_text(target / "tables" / f"{name}.tex", f"% {report.about(run)}\n{text}")
            told["tables"] += 1
    for model, name in run.stored("attacks"):
        kept, stem = f"attacks/{model}/{name}", target / "examples" / f"{model}-{name}"
        attack, given = run.load(kept), run.inputs(kept)
        result = {label: getattr(attack, label) for label in ("x_adv", "success", "correct", "rms")}
        _write_arrays(stem.with_name(f"{stem.name}.npz"), {**given, **result})
        rows = attack.success.nonzero().squeeze(1).tolist()
        for row in rows:
            _write_png(stem / f"{int(given['index'][row]):05d}.png", attack.x_adv[row])
        told["npz"] += 1
        told["png"] += len(rows)
    files.write_text(target / REFERENCES.name, REFERENCES.read_text(encoding="utf-8"))
    echo(f"{told['tables']} tables, {told['npz']} sets of examples ({told['png']} images), references: {target}")


def _write_arrays(path: Path, tensors: dict[str, Any]) -> None:
    import numpy as np

    with files.replacing(path) as file:
        np.savez_compressed(file, **{name: tensor.cpu().numpy() for name, tensor in tensors.items()})


def _write_png(path: Path, x: Any) -> None:
    """Write the image `x` (C, H, W) in [0, 1], grey or RGB; of more channels only the first three."""
    from PIL import Image

    pixels = (255 * x).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3])
    with files.replacing(path) as file:
        image.save(file, format="PNG")
