"""Work beside the current stream: in place on a CPU, a branch of its own on CUDA, also inside a captured graph."""

from __future__ import annotations

import copy

import pytest
import torch

from nanospec.side_stream import SideStream


def test_on_a_cpu_work_runs_where_it_stands_and_nothing_is_waited_for():
    side, done = SideStream(torch.device("cpu")), []
    with side.fork():
        done.append("side")
    done.append("main")
    side.join()
    assert done == ["side", "main"]
    assert isinstance(copy.deepcopy(side), SideStream)


def test_an_error_on_the_side_is_raised_where_it_happens():
    with pytest.raises(ZeroDivisionError), SideStream(torch.device("cpu")).fork():
        _ = 1 / 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: runs two streams and captures a graph")
def test_a_captured_branch_reads_what_came_before_it_and_is_there_after_the_join():
    side, x = SideStream(torch.device("cuda")), torch.ones(1 << 20, device="cuda")

    def work() -> torch.Tensor:
        before = x * 2
        for _ in range(3):
            with side.fork():
                branch = (before + 1).sum()
            body = (before * 3).sum()
            side.join()
            before = before + branch / body  # 2 + 3 / 6, and so on
        return before

    expected = work()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = work()
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, expected)
