"""What a vLLM user may set, by environment or in vLLM's `additional_config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

CONFIG_KEY = "nanospec"
PREFIX = "NANOSPEC_"
FREQUENT_IDS_FILE = "frequent_ids.safetensors"
VOCABS = "'in-context', 'hybrid:N' (the N most frequent ids and in-context), 'hybrid:FILE' or 'off'"
OFF = ("off", "full")
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
MAX_TOP = 64
# Frequent ids are most of what suggestions would add; what these add then is rows to score.
HYBRID_DEFAULTS = {"num_top": 16, "prompt_positions": 0}


@dataclass(frozen=True)
class VllmSettings:
    """Checked settings of the plugin, the defaults those of 'in-context'.

    vocab             'in-context', 'hybrid:N', 'hybrid:FILE'; 'off' or 'full': vLLM drafts as without the plugin
    capacity          most ids of one request's draft vocabulary
    num_top           of the target's best ids at every verified position, how many enter it; 0: none
    prompt_positions  at how many of a prompt's last positions the target's head runs for half as many, too; 0: none
    frequent_ids      the list behind 'hybrid:N'; None: `frequent_ids.safetensors` beside the draft's weights
    off               the switch: as vocab 'off'
    is_asked_for      something was set by name: what cannot be done is then an error, not a warning
    """

    vocab: str = "in-context"
    capacity: int = 3072
    num_top: int = 64
    prompt_positions: int = 128
    frequent_ids: Path | None = None
    off: bool = False
    is_asked_for: bool = False

    @property
    def is_on(self) -> bool:
        return not self.off and self.vocab not in OFF


def read_settings(environment: Mapping[str, str], config: object = None) -> VllmSettings:
    """Settings from `environment` (NANOSPEC_VOCAB, NANOSPEC_CAPACITY, NANOSPEC_NUM_TOP, NANOSPEC_PROMPT_POSITIONS,
    NANOSPEC_FREQUENT_IDS, NANOSPEC_OFF), overridden one by one by the dictionary "nanospec" in vLLM's
    `additional_config` (`config`), whose keys are the same in small letters without the prefix.

    Raises ValueError or TypeError naming the variable or key, what it must be and what it was.
    """
    given: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        variable = PREFIX + name.upper()
        if variable in environment:
            given[name] = parse(environment[variable], variable)
    for name, value in _section(config).items():
        label = f"additional_config[{CONFIG_KEY!r}][{name!r}]"
        if name not in _PARSERS:
            raise ValueError(f"{label} must be one of {', '.join(_PARSERS)}, got {name!r}")
        given[name] = _PARSERS[name](value, label)
    defaults = HYBRID_DEFAULTS if given.get("vocab", "").startswith("hybrid:") else {}
    return VllmSettings(**(defaults | given), is_asked_for=bool(given))


def _section(config: object) -> Mapping[str, Any]:
    section = config.get(CONFIG_KEY, {}) if isinstance(config, Mapping) else {}
    if not isinstance(section, Mapping):
        raise TypeError(f"additional_config[{CONFIG_KEY!r}] must be a dictionary, got {type(section).__name__}")
    return section


def _parse_vocab(value: object, label: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{label} must be {VOCABS}, got {type(value).__name__}")
    vocab = value.strip()
    kind, _, argument = vocab.partition(":")
    is_count = argument.removeprefix("-").isdecimal()
    if vocab not in ("in-context", *OFF) and (kind != "hybrid" or not argument or (is_count and int(argument) < 1)):
        raise ValueError(f"{label} must be {VOCABS}, got {value!r}")
    return vocab


def _parse_integer(least: int, most: int | None = None) -> Callable[[object, str], int]:
    def parse(value: object, label: str) -> int:
        wanted = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError(f"{label} must be {wanted}, got {type(value).__name__}")
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"{label} must be {wanted}, got {value!r}") from None
        if number < least or (most is not None and number > most):
            raise ValueError(f"{label} must be {wanted}, got {number}")
        return number

    return parse


def _parse_path(value: object, label: str) -> Path:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{label} must be the path of a list of ids, got {value!r}")
    return Path(value)


def _parse_switch(value: object, label: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in YES + NO:
        raise ValueError(f"{label} must be one of {', '.join(YES + NO[:-1])}, got {value!r}")
    return text in YES


_PARSERS: dict[str, Callable[[object, str], Any]] = {
    "vocab": _parse_vocab,
    "capacity": _parse_integer(1),
    "num_top": _parse_integer(0, MAX_TOP),
    "prompt_positions": _parse_integer(0),
    "frequent_ids": _parse_path,
    "off": _parse_switch,
}
assert set(_PARSERS) | {"is_asked_for"} == {field.name for field in fields(VllmSettings)}, "a parser for every setting"
