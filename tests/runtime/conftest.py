"""What tests of training have in common."""

from collections.abc import Iterator

import pytest
import torch

from soaprl.runtime.threads import one_thread
from tests.runtime.cases import in_double


@pytest.fixture
def double() -> Iterator[None]:
    """New floating-point tensors are float64, drawn by a fixed seed and added up by one thread."""
    torch.manual_seed(0)
    with one_thread(), in_double():
        yield
