"""What tests of training have in common."""

from collections.abc import Iterator

import pytest
import torch

from tests.runtime.cases import in_double


@pytest.fixture
def double() -> Iterator[None]:
    """New floating-point tensors are float64, drawn by a fixed seed and added up by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with in_double():
        yield
    torch.set_num_threads(threads)
