"""A draft whose head holds chosen rows only, on disk: VocabTrim (Goel et al. 2025, arXiv 2506.22694).

Out of the files of a draft come files of the same layout, under the names that they had, in which

    lm_head.weight [N, D]  the rows of the chosen ids, ascending
    d2t int64 [N]          offsets: row i scores id i + d2t[i]
    t2d bool [V]           which ids those are

That is EAGLE-3's own format, so that engines read a trimmed EAGLE-3 as they read any. EAGLE-1/2 has no head in its
files: the target's rows are written beside it, which `load_drafter` reads; engines take a token map instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanospec.all_or_nothing import new_directory
from nanospec.checkpoints.detect import Family, detect_family, normalise_names
from nanospec.checkpoints.draft_config import layer_settings
from nanospec.checkpoints.draft_vocab_map import MAPS, read_vocab_map, vocab_maps
from nanospec.checkpoints.drafter import load_drafter
from nanospec.checkpoints.eagle import write_checkpoint
from nanospec.checkpoints.files import check_weights, read_config, read_tensors, resolve_checkpoint
from nanospec.target import Target
from nanospec.untrusted_files import shown_names
from nanospec.vocab.reduced import head_positions
from nanospec.vocab.static_list import check_token_ids

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
KEPT_FILES = ("generation_config.json", "frequent_ids.safetensors")
WHY_NOT = {
    Family.CAUSAL_LM: "its format has one vocab_size for embedding and head",
    Family.MEDUSA: "every head has rows of its own",
}


class DraftHead(NamedTuple):
    """A draft on disk and the head that it drafts with.

    tensors     the draft's, under their stored names
    weight      [R, D], its own head or the target's; ids int64 [R], the id that each row scores
    vocab_size  ids of the target (V)
    target      the target to draft for, which has weights if the head is its own; None: not given
    """

    directory: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    family: Family
    weight: Tensor
    ids: Tensor
    vocab_size: int
    target: Target | None


@dataclass(frozen=True)
class TrimReport:
    """What was cut: rows of the head and their bytes, and weights that a pass of the draft reads (no embedding)."""

    family: str
    rows: int
    trimmed_rows: int
    head_bytes: int
    trimmed_head_bytes: int
    params: int
    trimmed_params: int


def has_own_head(directory: Path) -> bool:
    """Whether the draft in `directory` holds the rows that it drafts with; no weights are read."""
    return HEAD in normalise_names(read_tensors(directory, specs_only=True))


def read_draft_head(draft: str | Path, target: Target | None = None) -> DraftHead:
    """The draft in `draft` (directory or hub id) and its head.

    target: needed, with its weights, by a draft that has no head of its own, which is every untrimmed EAGLE-1/2.

    Raises NotImplementedError for a draft that is not EAGLE and for a target's head with a bias; FileNotFoundError;
    ValueError for a missing target and for files that are no draft, or not of that target.
    """
    directory = resolve_checkpoint(draft, "draft")
    tensors = read_tensors(directory)
    named = normalise_names(tensors)
    config = read_config(directory)
    family = detect_family(named, config)
    if family not in (Family.EAGLE, Family.EAGLE3):
        reason = WHY_NOT.get(family, f"its tensors are {shown_names(named)}")
        raise NotImplementedError(
            f"draft must be {Family.EAGLE} or {Family.EAGLE3} to be trimmed, got {family} in {directory}: {reason}. "
            "The vocabulary static:FILE drafts from the same rows of any draft"
        )
    if family == Family.EAGLE and HEAD in named and named.keys().isdisjoint(MAPS):
        raise ValueError(f"draft must not hold {HEAD!r} without 'd2t' or 't2d', got that in {directory}")
    own = named.get(HEAD)
    weight = _head_of_target(target, directory) if own is None else own
    check_weights({HEAD: weight}, directory)
    vocab_size = _vocab_size(config, named, target)
    ids = read_vocab_map(named.get("d2t"), named.get("t2d"), weight.shape[0], vocab_size)
    return DraftHead(
        directory, config, tensors, family, weight, torch.arange(vocab_size) if ids is None else ids, vocab_size, target
    )


def choose_ids(listed: Tensor, head: DraftHead, num_ids: int | None = None, kept_ids: Sequence[int] = ()) -> Tensor:
    """int64 [N], distinct: `kept_ids` and then the first of `listed`, ids that the draft cannot say left out.

    num_ids: N; None: all of them. Raises ValueError unless N has room for the kept ids and leaves a row out.
    """
    sayable = set(head.ids.tolist())
    kept = [token_id for token_id in dict.fromkeys(kept_ids) if token_id in sayable]
    ids = list(dict.fromkeys([*kept, *(token_id for token_id in listed.tolist() if token_id in sayable)]))
    least, most = max(1, len(kept)), min(len(ids), len(sayable) - 1)
    num_ids = len(ids) if num_ids is None else num_ids
    if not least <= num_ids <= most:
        raise ValueError(
            f"num_ids must be between {least} and {most}, as the draft has {len(sayable)} rows, of which the list "
            f"names {len(ids)}, {len(kept)} of them always kept, got {num_ids}"
        )
    return torch.tensor(ids[:num_ids])


def trim_draft(head: DraftHead, ids: Tensor, out: str | Path) -> TrimReport:
    """Write the draft with the rows of `ids` [N] only, distinct ids in any order, as the new directory `out`.

    With a target the result is loaded for it before it appears. Raises ValueError for an `out` that is taken and for
    ids that repeat or that the draft cannot say, and what `load_drafter` raises; nothing is written then.
    """
    if ids.dim() != 1 or ids.shape[0] == 0:
        raise ValueError(f"ids must be 1-D and not empty, got shape {tuple(ids.shape)}")
    check_token_ids(ids.tolist(), head.vocab_size, "ids")
    chosen = ids.long().sort().values
    head_pos = head_positions(head.ids, head.vocab_size)[chosen]
    if (head_pos < 0).any():
        raise ValueError(f"ids must be ids that the draft scores, got {int(chosen[head_pos < 0][0])}")
    weight = head.weight[head_pos]
    with new_directory(out) as partial:
        config = {**head.config, "draft_vocab_size": chosen.shape[0]}
        write_checkpoint(partial, _with_head(head, weight, vocab_maps(chosen, head.vocab_size)), config)
        for name in KEPT_FILES:
            if (head.directory / name).exists():
                shutil.copyfile(head.directory / name, partial / name)
        if head.target is not None:
            load_drafter(partial, head.target)
    body = _body_params(head.tensors)
    return TrimReport(
        family=head.family.value,
        rows=head.weight.shape[0],
        trimmed_rows=weight.shape[0],
        head_bytes=head.weight.nbytes,
        trimmed_head_bytes=weight.nbytes,
        params=body + head.weight.numel(),
        trimmed_params=body + weight.numel(),
    )


def _head_of_target(target: Target | None, directory: Path) -> Tensor:
    if target is None:
        raise ValueError(f"target must be given for a draft without a head of its own, got none for {directory}")
    if target.head_bias is not None:
        raise NotImplementedError("target must have a head without a bias: a trimmed draft has no room for one")
    assert not target.head_weight.is_meta, "the rows are read from the target's weights"
    return target.head_weight.detach().cpu()


def _vocab_size(config: dict[str, Any], named: dict[str, Tensor], target: Target | None) -> int:
    """V, by the target, the mask of ids, the embedding or the config."""
    sizes = [target.vocab_size] if target is not None else []
    sizes += [named[name].shape[0] for name in ("t2d", EMBEDDING) if name in named and named[name].dim()]
    stated = layer_settings(config).get("vocab_size")
    sizes += [stated] if isinstance(stated, int) else []
    if not sizes:
        raise ValueError("target must be given for a draft whose files do not say how many ids there are, got none")
    return sizes[0]


def _with_head(head: DraftHead, weight: Tensor, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """The draft's tensors under their stored names, its head and maps replaced or added."""
    replaced = {HEAD: weight, **maps}
    kept = {name: tensor for name, tensor in head.tensors.items() if _normal(name) not in replaced}
    stored = {_normal(name): name for name in head.tensors}
    return {**kept, **{stored.get(name, name): tensor for name, tensor in replaced.items()}}


def _body_params(tensors: dict[str, Tensor]) -> int:
    apart = (HEAD, EMBEDDING, *MAPS)
    return sum(tensor.numel() for name, tensor in tensors.items() if _normal(name) not in apart)


def _normal(name: str) -> str:
    return next(iter(normalise_names({name: torch.empty(0)})))
