"""What kernels return: frozen dataclasses of tensors with one row an image."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Record:
    """The base of all results of kernels: every field is a tensor with one row an image (or one row a ray)."""

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> Self:
        """Return the record whose fields are in `named`, which may hold other tensors too.

        Raises ValueError where a field is missing that has no default.
        """
        known = {field.name: named[field.name] for field in dataclasses.fields(cls) if field.name in named}
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(f"expected the tensors of {cls.__name__}, got {', '.join(named)}; {error}") from None

    def take(self, rows: Tensor | slice) -> Self:
        """Return the rows `rows`: an index (M,) int64, a mask (N,) bool, or a slice."""
        return type(self)(**{name: tensor[rows] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> Self:
        """Return the record with all tensors on `device`."""
        return type(self)(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @classmethod
    def cat(cls, records: Sequence[Self]) -> Self:
        """Return the rows of all `records`, one below the other; raises ValueError where there is none."""
        if not records:
            raise ValueError(f"expected at least one {cls.__name__} to join, got none")
        parts = [record.tensors() for record in records]
        return cls(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
