"""Runs scenarios in several gloo processes: `python -m tests.tensor_parallel.ranks_program SIZE DIRECTORY`.

One process imports, its forks are the ranks: an import takes longer than all that they do. They meet in a file, so no
port is taken.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.tensor_parallel import scenarios

SECONDS_TO_WAIT = 120  # for a collective, and for a machine that is busy; then the program is ended
ROOT = Path(__file__).resolve().parents[2]


def run_on_ranks(size: int, directory: Path) -> list[dict[str, Any]]:
    """For each rank, rank 0 first, what every scenario for so many ranks returns there, by its name.

    Raises AssertionError with the output of the processes if one of them fails, or if they hang.
    """
    command = [sys.executable, "-m", "tests.tensor_parallel.ranks_program", str(size), str(directory)]
    (directory / "store").unlink(missing_ok=True)  # of a run that failed
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    program = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = program.communicate(timeout=3 * SECONDS_TO_WAIT)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)  # its forks too
        raise AssertionError(f"ranks hang: {program.communicate()[0]}") from None
    assert program.returncode == 0, output
    return [torch.load(directory / f"rank{rank}.pt", weights_only=False) for rank in range(size)]


def _run_rank(rank: int, size: int, directory: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    store = dist.FileStore(str(directory / "store"), size)
    timeout = timedelta(seconds=SECONDS_TO_WAIT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    results = {scenario.__name__: scenario(directory) for scenario in scenarios.SCENARIOS[size]}
    torch.save(results, directory / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    num_ranks = int(sys.argv[1])
    arguments = (num_ranks, Path(sys.argv[2]))
    torch.multiprocessing.start_processes(_run_rank, arguments, nprocs=num_ranks, start_method="fork")
