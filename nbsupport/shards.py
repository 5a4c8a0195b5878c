"""Long computations in shards: each is stored when it is done, so that a killed process loses one at most."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nbsupport import checks, files
from nbsupport.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

Compute = Callable[[int, int], "Mapping[str, Tensor]"]


def run(
    path: Path,
    total: int,
    shard: int,
    compute: Compute,
    journal: Journal,
    *,
    stage: str,
    what: str,
    unit: str = "images",
    made_from: str = "",
) -> dict[str, Tensor]:
    """Return the tensors stored in `path`, computing those shards that are not stored yet.

    Parameters
    ----------
    path : Path
        The safetensors file of the whole result. Until it is complete, the shards lie beside it in `.NAME.shards`.
    total : int
        Rows of the result.
    shard : int
        Rows of one shard. It must not depend on the number of workers, so that results repeat.
    compute : callable
        `compute(start, stop)` returns a mapping from names to tensors of `stop - start` rows each. It is called
        in order, and must not depend on which shards were computed before.
    journal : Journal
        Progress is reported here after every shard.
    stage, what, unit : str
        The notebook, the piece of work and what is counted.
    made_from : str
        A digest of what the result depends on: a stored file with another one is computed again.

    Returns
    -------
    dict of str to Tensor
        Each tensor has `total` rows and lies on the CPU. The file's metadata hold the seconds it took.

    Raises
    ------
    ValueError
        If `total` or `shard` is below 1, or if `compute` returns tensors with another number of rows.
    """
    checks.count(total, name="total")
    checks.count(shard, name="shard")

    def report(done: int, event: str = "progress", **extra: float | str) -> None:
        journal.report(stage, what, done, total, unit, event=event, **extra)

    def stored(file: Path, start: int, stop: int) -> tuple[dict[str, Tensor], float] | None:
        """Return the rows in `file` and the seconds they took, None where they must be computed."""
        try:
            tensors, metadata = files.load_with_metadata(file)
        except FileNotFoundError:
            return None
        except files.DamagedArtifact as error:
            print(f"damaged, computed again: {file} ({error.why})")
            report(start, "damaged", path=str(file), why=error.why)
            return None
        if metadata.get("rows") != f"{start}:{stop}" or metadata.get("made_from") != made_from:
            return None
        return tensors, float(metadata["seconds"])

    folder = path.with_name(f".{path.stem}.shards")
    whole = stored(path, 0, total)
    if whole is not None:
        shutil.rmtree(folder, ignore_errors=True)
        report(total, "reused", **_so_far([whole[0]]))
        return whole[0]

    parts: list[dict[str, Tensor]] = []
    spent, computing = 0.0, False
    for number, start in enumerate(range(0, total, shard)):
        stop = min(start + shard, total)
        file = folder / f"{number:05d}.safetensors"
        part = stored(file, start, stop)
        if part is None:
            if not computing:
                report(start, "resumed" if start else "started", **_so_far(parts))
            computing = True
            began = time.monotonic()
            tensors = {name: tensor.detach().cpu() for name, tensor in compute(start, stop).items()}
            _require_rows(tensors, stop - start, what)
            part = tensors, time.monotonic() - began
            files.save_tensors(file, tensors, rows=f"{start}:{stop}", made_from=made_from, seconds=f"{part[1]:.3f}")
        parts.append(part[0])
        spent += part[1]
        report(stop, "progress" if computing else "resumed", **_so_far(parts))
    result = _joined(parts)
    files.save_tensors(path, result, rows=f"0:{total}", made_from=made_from, seconds=f"{spent:.3f}")
    shutil.rmtree(folder)
    return result


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    import torch

    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _require_rows(tensors: Mapping[str, Tensor], rows: int, what: str) -> None:
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.shape[0] != rows:
            raise ValueError(f"expected {rows} rows in {name!r} of {what}, got shape {tuple(tensor.shape)}")


def _so_far(parts: list[dict[str, Tensor]]) -> dict[str, float]:
    """Return the success rate and the median RMS of an attack's rows, nothing for other results."""
    if not parts or not {"success", "correct", "rms"} <= parts[0].keys():
        return {}
    rows = _joined([{name: part[name] for name in ("success", "correct", "rms")} for part in parts])
    attacked, success = int(rows["correct"].sum()), rows["success"]
    shown = {"success": int(success.sum()) / attacked} if attacked else {}
    if success.any():
        shown["median_rms"] = float(rows["rms"][success].median())
    return shown
