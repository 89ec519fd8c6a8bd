"""Every test starts from the same seed and leaves torch and the process as it found them."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

collect_ignore = ["scripts"]  # run by tests, in processes of their own


@pytest.fixture(autouse=True)
def isolated():
    dtype, grad, threads = torch.get_default_dtype(), torch.is_grad_enabled(), set(threading.enumerate())
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    left = [thread.name for thread in threading.enumerate() if thread not in threads and not thread.daemon]
    assert not left, f"threads were left over: {left}"
