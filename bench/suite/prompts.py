"""What the suite decodes from: Spec-Bench's questions and HumanEval's problems, or the prompts of the repository."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from nanospec import SpeculativeDecoder
from nanospec.cli.documents import read_documents
from nanospec.demo import TARGET_DIRECTORY

# As Spec-Bench and HumanEval name their files, and as they are often kept.
FILE_NAMES = ("question.jsonl", "spec_bench.jsonl", "human_eval.jsonl", "HumanEval.jsonl")
OWN_PROMPTS = TARGET_DIRECTORY.parent / "prompts.jsonl"
TASK_NAMES = {"HumanEval": "human_eval"}


class SuitePrompt(NamedTuple):
    """input_ids int64 [1, P] of a prompt, and the task that it counts for."""

    input_ids: Tensor
    task: str


class PromptSet(NamedTuple):
    """prompts in the order of their files; too_long: by task, those that the target has no room for."""

    prompts: list[SuitePrompt]
    too_long: dict[str, int]

    @property
    def tasks(self) -> dict[str, int]:
        """Prompts by task, in the order of the files."""
        counts: dict[str, int] = defaultdict(int)
        for prompt in self.prompts:
            counts[prompt.task] += 1
        return dict(counts)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(prompt.input_ids.shape[1] for prompt in self.prompts)


def prompt_files(sources: Sequence[Path]) -> list[Path]:
    """Files as they are given, of a directory those with a known name; of nothing the repository's own.

    Raises FileNotFoundError for what does not exist, ValueError for a directory without any of them and for a set that
    is there under two names.
    """
    files = []
    for source in sources or [OWN_PROMPTS]:
        if not source.exists():
            raise FileNotFoundError(f"prompts must be a file of JSON lines or a directory, but {source} does not exist")
        found = [source / name for name in FILE_NAMES if (source / name).exists()] if source.is_dir() else [source]
        if not found:
            raise ValueError(f"prompts must be a directory with one of {', '.join(FILE_NAMES)}, got {source}")
        files += found
    for twins in (FILE_NAMES[:2], FILE_NAMES[2:]):
        if {path.name for path in files} >= set(twins):
            raise ValueError(f"prompts must hold a set once, got {' and '.join(twins)}")
    return files


def read_prompt_set(
    decoder: SpeculativeDecoder, sources: Sequence[Path], per_task: int | None, num_behind: int
) -> PromptSet:
    """Up to `per_task` prompts of every task, spread evenly over those that leave room for `num_behind` tokens.

    Raises as `prompt_files` and `read_documents`, and ValueError for per_task below 1 and where no prompt fits.
    """
    if per_task is not None and per_task < 1:
        raise ValueError(f"per-task must be at least 1, got {per_task}")
    fitting: dict[str, list[SuitePrompt]] = defaultdict(list)
    too_long: dict[str, int] = defaultdict(int)
    for document in read_documents(prompt_files(sources)):
        input_ids, task = decoder.encode(document.prompt), TASK_NAMES.get(document.task, document.task)
        if input_ids.shape[1] + num_behind > decoder.target.context_window:
            too_long[task] += 1
        else:
            fitting[task].append(SuitePrompt(input_ids, task))
    if not fitting:
        raise ValueError(f"prompts must leave room for {num_behind} tokens in the target's window, got none that does")
    chosen = [prompt for prompts in fitting.values() for prompt in spread(prompts, per_task)]
    return PromptSet(chosen, dict(too_long))


def spread(prompts: Sequence[SuitePrompt], count: int | None) -> list[SuitePrompt]:
    """So many at even distances: a task's file may be sorted by kind. Example: 2 of a, b, c, d are a and c."""
    if count is None or count >= len(prompts):
        return list(prompts)
    return [prompts[place * len(prompts) // count] for place in range(count)]


def drawn_order(num_prompts: int, seed: int = 0) -> list[int]:
    """The order in which prompts are decoded, at random, so that the tasks share whatever the machine does."""
    return [int(index) for index in np.random.default_rng(seed).permutation(num_prompts)]
