"""What the tests of weights and of loading share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch


@pytest.fixture(scope="session")
def same() -> Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], bool]:
    """Whether two sets of tensors have the same names and values."""

    def compare(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
        return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)

    return compare
