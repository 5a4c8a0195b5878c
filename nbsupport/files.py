"""Files that are whole or absent: each is written under a temporary name, renamed, and verified when it is read."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:  # torch is loaded when tensors are handled: `nbsupport status` answers without it
    from matplotlib.figure import Figure
    from torch import Tensor

DPI = 150  # of a figure's PNG

FULL = {  # what an OSError says where nothing more can be written, and what to do
    errno.ENOSPC: "The disk is full: free some space first.",
    errno.EDQUOT: "The disk quota is used up: free some space first, or ask for more.",
}


class DamagedArtifact(RuntimeError):  # noqa: N818  (an artifact is damaged whether or not that is an error)
    """A stored file that is truncated or altered; `path` and `why` say which and how it was seen."""

    def __init__(self, path: Path, why: str, remedy: str = "delete it and run its notebook again") -> None:
        super().__init__(path, why, remedy)
        self.path, self.why, self.remedy = path, why, remedy

    def __str__(self) -> str:
        return f"{self.path} is damaged ({self.why}); {self.remedy}"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes `path` when the block ends without an exception, and is removed otherwise.

    The temporary name ends in the process number, so that `remove_leftovers` can tell what a dead process left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself survives a power cut
        finally:
            os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files under `folder` whose process, killed while it wrote them, is gone."""
    for temporary in folder.rglob(".*.tmp"):
        number = temporary.name.split(".")[-2]
        if number.isdecimal() and not alive(int(number)):
            temporary.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Return whether process `pid` of this machine exists."""
    import psutil

    return psutil.pid_exists(pid)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write `tensors` and the texts `metadata` to the safetensors file `path`, whole or not at all.

    Two checksums stand in the header: `contents`, of the tensors alone, and `sha256`, of those and the metadata.
    """
    from safetensors.torch import save

    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata["contents"] = tensors_digest(stored)
    metadata["sha256"] = _signature(metadata)
    data = save(stored, metadata)
    with replacing(path) as file:
        file.write(data)


def load_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file of `save_tensors`.

    Raises DamagedArtifact when the file is truncated, altered, or carries no checksum.

    The tensors are the file itself, mapped into memory: the system reads what is used and lets go of it when memory is
    short, so that a chapter may hold profiles that are larger than memory. Writing to a tensor leaves the file alone.
    A file is replaced, never rewritten, so that what was loaded stays as it was.
    """
    from safetensors import SafetensorError, safe_open

    read_metadata(path)  # says what is wrong with the header
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedArtifact(path, f"unreadable: {error}") from None
    if os.name != "posix":  # elsewhere a mapped file cannot be replaced
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = metadata.get("sha256")
    signed = {name: text for name, text in metadata.items() if name != "sha256"}
    if expected is None:
        raise DamagedArtifact(path, "it carries no checksum")
    if signed.get("contents") != tensors_digest(tensors) or expected != _signature(signed):
        raise DamagedArtifact(path, "its checksum differs")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file, without verifying the tensors."""
    with path.open("rb") as file:
        size = file.read(8)
        return _metadata(path, size + file.read(min(int.from_bytes(size, "little"), path.stat().st_size)))


def _metadata(path: Path, data: bytes) -> dict[str, str]:
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data) - 8:
        raise DamagedArtifact(path, "truncated")
    try:
        metadata: dict[str, str] = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, AttributeError):
        raise DamagedArtifact(path, "its header is unreadable") from None
    return metadata


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def write_figure(path: Path, figure: Figure) -> None:
    """Write the matplotlib `figure` to the PNG or PDF file `path`, whole or not at all; the figure stays open.

    Equal figures are equal files. In a PDF lines and text are vectors, the text in fonts that can be edited.
    """
    kind = path.suffix[1:]
    png = getattr(figure, "png", None)  # the suite's own are drawn once, for the notebook and for the file
    data = png() if png and kind == "png" else rendered(figure, kind)
    with replacing(path) as file:
        file.write(data)


def rendered(figure: Figure, kind: str) -> bytes:
    """Return the matplotlib `figure` as the bytes of a "png" or "pdf", without its date or the program's name."""
    import matplotlib

    undated = {"png": "Software", "pdf": "CreationDate"}[kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format=kind, dpi=DPI, bbox_inches="tight", metadata={undated: None})
    return buffer.getvalue()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the bytes of `path`, in hex; a file is read once, as long as its size and time stay."""
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=2**18)
def _digest_of(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of `tensors`, wherever they lie."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        flat = flat.as_strided(flat.shape, (1,))  # a single element may have any stride
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _signature(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
