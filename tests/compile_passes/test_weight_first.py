"""Heads of models whose layers read their weights first."""

from __future__ import annotations

from unittest.mock import patch

import torch

from nanospec.ops import weight_first
from nanospec.ops.weight_first import use_weight_first
from tests.compile_passes.test_backend import ACTIVE, D, Model, check_restricted, draft_vocabulary, restrict


def test_the_head_of_a_model_whose_weights_come_first_is_restricted_too() -> None:
    """As of every model that is loaded here, on a CPU with AMX."""
    model, hidden = Model().bfloat16(), torch.randn(2, D).bfloat16()
    expected = model(hidden)
    use_weight_first(model)
    with patch.multiple(weight_first, HAS_AMX=True, LEAST_WEIGHTS=1, INPUTS_PER_TOKEN=1):
        check_restricted(restrict(model, draft_vocabulary())(hidden), expected, ACTIVE)
