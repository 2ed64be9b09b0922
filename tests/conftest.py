"""Settings of every test run: no network, few threads, and properties that never fail for being slow."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import torch
from hypothesis import settings

MAX_THREADS = 2  # the tests' tensors are tiny: more threads only wait for each other

torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
settings.register_profile("default", deadline=None, max_examples=50)
settings.load_profile("default")
