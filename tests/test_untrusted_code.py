"""No file brings code along: how the source reads pickles, models and arrays, call by call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = ("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "marshal.loads", "torch.hub.load")
# What a call must say, for calls that would run code, or ask at the terminal whether to, without it.
REQUIRED = {
    "torch.load": ("weights_only", True), "np.load": ("allow_pickle", False),
    "AutoConfig.from_pretrained": ("trust_remote_code", False),
    "AutoTokenizer.from_pretrained": ("trust_remote_code", False),
    "AutoModelForCausalLM.from_pretrained": ("trust_remote_code", False),
    "AutoModelForCausalLM.from_config": ("trust_remote_code", False),
}  # fmt: skip


def calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def faults(source: str) -> list[str]:
    found = []
    for call in calls(source):
        name, said = ast.unparse(call.func), {keyword.arg: keyword.value for keyword in call.keywords}
        if name in FORBIDDEN:
            found.append(name)
        if name in REQUIRED:
            argument, value = REQUIRED[name]
            if argument not in said or ast.unparse(said[argument]) != str(value):
                found.append(f"{name} without {argument}={value}")
    return found


@pytest.mark.parametrize("package", ["nanospec", "compile_passes"])
def test_nothing_that_is_read_is_run(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert {str(file.relative_to(ROOT)): found for file in files if (found := faults(file.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("x = pickle.loads(y)", "pickle.loads"),
        ("AutoTokenizer.from_pretrained(p, trust_remote_code=True)", "AutoTokenizer.from_pretrained without"),
    ],
)
def test_a_call_that_would_run_something_is_found(source: str, fault: str) -> None:
    (found,) = faults(source)
    assert found.startswith(fault)
