"""The command before any of its sub-commands runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nanospec

PROGRAM = """
import sys
from nanospec.cli.main import app
try:
    app(sys.argv[1:])
finally:
    print("slow:", sorted({"torch", "transformers", "numpy"} & set(sys.modules)))
"""


@pytest.mark.parametrize(("arguments", "status"), [(["plan", "--help"], 0), (["compare", "--promts", "x"], 2)])
def test_help_and_a_mistyped_option_wait_for_no_torch(arguments, status):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == status
    assert done.stdout.splitlines()[-1] == "slow: []"


def test_every_public_name_is_found_where_it_lies():
    assert {*nanospec.__all__} == {*nanospec._PLACES} <= {*dir(nanospec)}
    assert all(getattr(nanospec, name).__name__ == name for name in nanospec.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Decoder'"):
        nanospec.Decoder  # noqa: B018
