"""Names that do not exist, and what was meant by them."""

from __future__ import annotations

import re

import pytest

from nanospec.keyword_names import check_names

KNOWN = ("top_p", "temperature", "stop_strings", "vocab")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temprature", ": did you mean 'temperature'?"),
        ("stop", ": did you mean 'stop_strings'?"),  # its beginning, though "top_p" has more letters in common
        ("vocabulary", ": did you mean 'vocab'?"),
        ("t", ""),
        ("colour", ""),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_exist_and_the_one_meant(name: str, hint: str) -> None:
    message = f"settings must be among top_p, temperature, stop_strings, vocab, got {name!r}{hint}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        check_names("settings", ["vocab", name], KNOWN)


def test_known_names_pass() -> None:
    check_names("settings", KNOWN, KNOWN)
    check_names("settings", [], KNOWN)
