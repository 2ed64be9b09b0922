"""What errors of the library become on a terminal."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
import typer
from typer.testing import CliRunner

from nanospec.cli.errors import EXIT_BAD_INPUT, REMEDIES, is_out_of_memory, one_line, one_line_errors
from nanospec.cli.main import app
from nanospec.kv_cache import KVCache

TOO_MANY = 1 << 60  # numbers that no machine has room for
OF_A_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 10.00 GiB of which 9.00 GiB is "
    "free. Including non-PyTorch memory, this process has 1.00 GiB memory in use. Of the allocated memory 0 bytes is "
    "allocated by PyTorch. See documentation for Memory Management  (https://pytorch.org)"
)


def lacking(place: str) -> BaseException:
    """An error of memory that ran out there: as it comes, where that can be had on any machine."""
    if place == "gpu":
        return torch.OutOfMemoryError(OF_A_GPU)
    if place == "python":
        return MemoryError()
    cache = KVCache(2, 2, 8, torch.float32, torch.device("cpu"))
    ask = partial(torch.empty, TOO_MANY) if place == "tensor" else partial(cache.reset, TOO_MANY // 64)
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        ask()
    return caught.value


PLACES = {
    "gpu": "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 10.00 GiB of which 9.00 GiB "
    "is free; ",
    "python": "out of memory; ",
    "tensor": "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4611686018427387904 bytes",
    "cache": "a key-value cache of 18014398509481984 tokens needs 4,611,686,018,427,387,904 bytes, which could not",
}


@pytest.mark.parametrize("place", PLACES)
def test_memory_that_runs_out_is_one_line_that_says_where_and_what_to_try(place, capsys):
    with pytest.raises(typer.Exit) as caught, one_line_errors(debug=False):
        raise lacking(place)
    assert caught.value.exit_code == EXIT_BAD_INPUT
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory")
    assert PLACES[place] in line
    assert line.endswith(REMEDIES)
    assert "enforce fail" not in line


def test_with_debug_it_is_raised():
    with pytest.raises(MemoryError), one_line_errors(debug=True):
        raise MemoryError


def test_other_runtime_errors_are_mistakes_of_ours():
    error = RuntimeError("shapes do not fit")
    assert not is_out_of_memory(error)
    with pytest.raises(RuntimeError, match="shapes do not fit"), one_line_errors(debug=False):
        raise error


def test_a_refusal_is_not_taken_for_memory():
    assert one_line(ValueError("a\n b\x1b")) == "a b?"
    assert not is_out_of_memory(NotImplementedError("no"))


@pytest.mark.parametrize(
    "arguments",
    [["generate", "Hi"], ["generate", "Hi", "--json"], ["compare"], ["explain", "Hi", "--out", "page.html"], ["chat"]],
)
@pytest.mark.parametrize("place", ["gpu", "tensor"])
def test_a_command_without_memory_for_the_models_ends_with_one_line(script, arguments, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script.error = lacking(place)
    result = CliRunner().invoke(app, arguments, "Hi\n")
    assert result.exit_code == EXIT_BAD_INPUT, result.output
    assert result.stderr.splitlines()[-1].startswith("error: out of memory: ")
    assert "Traceback" not in result.output


def test_the_text_before_memory_ran_out_stays_and_ends_with_a_line_break(script, monkeypatch):
    from nanospec.decode import SpeculativeDecoder

    complete = SpeculativeDecoder.stream

    def broken(self, input_ids, **settings):
        yield next(complete(self, input_ids, **settings))
        raise lacking("tensor")

    monkeypatch.setattr(SpeculativeDecoder, "stream", broken)
    result = CliRunner().invoke(app, ["generate", "Hi"])
    assert result.exit_code == EXIT_BAD_INPUT
    assert result.stdout == "two \n"
    [line] = result.stderr.splitlines()
    assert line.startswith("error: out of memory: ")


PROGRAM = """
import sys
from nanospec.cli.errors import one_line_errors
with one_line_errors(False):
    try:
        raise MemoryError
    finally:
        print("torch" in sys.modules)
"""


def test_an_error_without_torch_waits_for_none():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.stdout == "False\n"
