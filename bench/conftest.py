"""Options of the benches (`--shape NAME`), and their tables at the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from bench.interleave import HEADER, format_rows, interleave
from bench.shapes import DTYPE, SHAPES, Shape
from nanospec.cli.machine import describe_machine

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LINES = pytest.StashKey[list[str]]()

Compare = Callable[[str, Mapping[str, Callable[[], object]]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shape", action="append", choices=list(SHAPES), help="shape to time, may be repeated; all")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        names = metafunc.config.getoption("--shape") or list(SHAPES)
        metafunc.parametrize("shape", [SHAPES[name] for name in names], ids=names, scope="module")


@pytest.fixture(scope="module")
def device() -> torch.device:
    return DEVICE


@pytest.fixture(scope="module")
def head_weight(shape: Shape, device: torch.device) -> torch.Tensor:
    """[V, D], about the size of a trained head's entries."""
    torch.manual_seed(0)
    return torch.randn(shape.vocab_size, shape.hidden_size, dtype=DTYPE, device=device) * shape.hidden_size**-0.5


@pytest.fixture
def compare(request: pytest.FixtureRequest, device: torch.device) -> Compare:
    """compare(title, sides) times the sides in rotation; the first is what the others are a ratio of."""

    def run(title: str, sides: Mapping[str, Callable[[], object]]) -> None:
        name = request.node.callspec.id
        with torch.inference_mode():
            rows = format_rows(f"{title} [{name}]", interleave(sides, device))
        request.config.stash.setdefault(LINES, []).extend(rows)

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("time per call, sides in rotation; ratio to the first side of the same round")
        machine = describe_machine(DEVICE, DTYPE)
        terminalreporter.write_line(", ".join(f"{key} {value}" for key, value in machine.items()))
        for line in (HEADER, *lines):
            terminalreporter.write_line(line)
