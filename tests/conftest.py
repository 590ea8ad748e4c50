"""Settings for all tests."""

import pytest
import torch
from hypothesis import settings

# The machine may be busy: a slow example is no failure.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


@pytest.fixture(scope="module")
def one_thread():
    """The same sums in the same order on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
