"""Records: rows taken and joined, and their way through a mapping of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nbsupport.record import Record


@dataclass(frozen=True, eq=False)
class Pair(Record):
    """Two columns."""

    first: Tensor
    second: Tensor


def pair() -> Pair:
    return Pair(torch.arange(4), torch.arange(8.0).view(4, 2))


def test_rows_are_taken_by_index_mask_and_slice():
    assert pair().take(torch.tensor([2, 0])).first.tolist() == [2, 0]
    assert pair().take(torch.tensor([True, False, False, True])).second.tolist() == [[0, 1], [6, 7]]
    assert pair().take(slice(1, 3)).first.tolist() == [1, 2]


def test_joined_rows_keep_their_order():
    joined = Pair.cat([pair().take(slice(2, 4)), pair().take(slice(0, 2))])
    assert joined.first.tolist() == [2, 3, 0, 1]
    assert len(joined) == 4
    with pytest.raises(ValueError, match="at least one Pair to join, got none"):
        Pair.cat([])


def test_a_mapping_of_tensors_gives_the_record_back():
    again = Pair.from_tensors({**pair().tensors(), "index": torch.arange(4)})
    assert torch.equal(again.second, pair().second)
    assert again.to("cpu").first.device.type == "cpu"
    with pytest.raises(ValueError, match=r"expected the tensors of Pair, got first; .*second"):
        Pair.from_tensors({"first": torch.arange(4)})
