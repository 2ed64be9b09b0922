"""One run of the ranks serves all tests, of all of pytest's processes: the first one that comes starts it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tensor_parallel.decoding import save_models
from tests.tensor_parallel.ranks_program import run_on_ranks


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory) -> Callable[[int], tuple[list[dict[str, Any]], Path]]:
    """For a number of ranks: what each rank returned by scenario, and the directory of their models."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def run(size: int) -> tuple[list[dict[str, Any]], Path]:
        directory = shared / f"{size}-ranks"
        directory.mkdir(exist_ok=True)
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            results = directory / "results.pt"
            if not results.exists():
                torch.save(_run(size, directory), results)
            ranks = torch.load(results, weights_only=False)
            assert not isinstance(ranks, str), ranks
            return ranks, directory

    return run


def _run(size: int, directory: Path) -> list[dict[str, Any]] | str:
    """What `run_on_ranks` returns, or the message of its error, which is every test's then."""
    save_models(directory, size)
    try:
        return run_on_ranks(size, directory)
    except AssertionError as error:
        return str(error)
