"""Long computations in shards: each is stored when it is done, so that a killed process loses one at most."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nbsupport import checks, files
from nbsupport.store import digests
from nbsupport.store.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

Compute = Callable[[int, int], "Mapping[str, Tensor]"]
Stored = tuple["dict[str, Tensor]", dict[str, str]]  # tensors and metadata


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
    made_from: Mapping[str, str],
    record: Callable[[], str] = str,
) -> Stored:
    """Return the tensors stored in `path` and their metadata, computing those shards that are not stored yet.

    Parameters
    ----------
    path : Path
        The safetensors file of the whole result. Until it is complete, the shards lie beside it in `.NAME.shards`.
    total : int
        Rows of the result.
    shard : int
        Rows of one shard. It must not depend on the number of workers, so that results repeat.
    compute : callable
        `compute(start, stop)` returns a mapping from names to tensors of `stop - start` rows each (with a single
        shard, of any number of rows). It is called in order, and must not depend on which shards were computed before.
    journal : Journal
        Progress is reported here after every shard.
    stage, what, unit : str
        The notebook, the piece of work and what is counted.
    made_from : mapping
        The parts that the result depends on: what is stored with other parts is computed again, and said so.
    record : callable
        Called after the first shard was computed: the name of the class that the tensors are of.

    Returns
    -------
    tensors, metadata
        Each tensor has `total` rows and lies on the CPU. The metadata hold `seconds`, what it took, and `record`.

    Raises
    ------
    ValueError
        If `total` or `shard` is below 1, or if `compute` returns tensors with another number of rows.
    """
    checks.count(total, name="total")
    checks.count(shard, name="shard")
    told: set[tuple[str, ...]] = set()

    def report(done: int, event: str = "progress", **extra: float | str) -> None:
        journal.report(stage, what, done, total, unit, event=event, **extra)

    def stored(file: Path, start: int, stop: int) -> Stored | None:
        """Return what is in `file`, None where it must be computed."""
        try:
            tensors, metadata = files.load_with_metadata(file)
        except FileNotFoundError:
            return None
        except files.DamagedArtifact as error:
            print(f"damaged, computed again: {file} ({error.why})")
            report(start, "damaged", path=str(file), why=error.why)
            return None
        changed = digests.changes(json.loads(metadata.get("made_from", "{}")), made_from)
        if changed and tuple(changed) not in told:
            told.add(tuple(changed))
            why = f"changed: {', '.join(changed)}"
            print(f"out of date, computed again: {what} ({why})")
            report(start, "outdated", path=str(path), why=why)
        return None if changed or metadata.get("rows") != f"{start}:{stop}" else (tensors, metadata)

    folder = path.with_name(f".{path.stem}.shards")
    whole = stored(path, 0, total)
    if whole is not None:
        shutil.rmtree(folder, ignore_errors=True)
        report(total, "reused", **_so_far([whole[0]]))
        return whole

    signed = {"made_from": json.dumps(made_from)}
    parts: list[dict[str, Tensor]] = []
    spent, computing, name = 0.0, False, ""
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
            if shard < total:
                _require_rows(tensors, stop - start, what)
            seconds = f"{time.monotonic() - began:.3f}"
            part = tensors, {"record": record(), "seconds": seconds}
            files.save_tensors(file, tensors, rows=f"{start}:{stop}", **part[1], **signed)
        parts.append(part[0])
        name = part[1].get("record", "")
        spent += float(part[1]["seconds"])
        report(stop, "progress" if computing else "resumed", **_so_far(parts))
    result, metadata = _joined(parts), {"record": name, "seconds": f"{spent:.3f}", **signed}
    files.save_tensors(path, result, rows=f"0:{total}", **metadata)
    shutil.rmtree(folder)
    return result, files.read_metadata(path)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    import torch

    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
