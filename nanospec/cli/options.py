"""Options that the commands share, and the decoder that they describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.progress import busy
from nanospec.demo import DRAFT_DIRECTORIES, TARGET_DIRECTORY
from nanospec.draft_names import PROMPT_LOOKUP
from nanospec.tree_shape import TreeShape, parse_tree_shape

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

TargetOption = Annotated[str | None, typer.Option(help="Target model: path or hub id. Default: the embedded pair.")]
DraftOption = Annotated[
    str | None,
    typer.Option(
        help="Draft of that target: path or hub id; mtp, the native MTP modules in its checkpoint; or prompt-lookup, "
        "which needs no weights. Of the embedded target: eagle, eagle3, medusa or prompt-lookup."
    ),
]
VOCAB_METAVAR = "in-context|full|static:N|static:FILE|hybrid:N|hybrid:auto|routed:FILE|hybrid:N+routed:FILE:N[+prior]"
VocabOption = Annotated[str, typer.Option(metavar=VOCAB_METAVAR, help="Vocabulary to draft from.")]
TreeOption = Annotated[
    str | None,
    typer.Option(metavar="auto|DEPTH,BRANCHING,NODES", help="Tree to draft; auto measures at start-up."),
]
DTYPE_ALIASES = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _dtype_name(name: str | None) -> str | None:
    return DTYPE_ALIASES.get(name, name) if name is not None else None


DtypeOption = Annotated[
    str | None,
    typer.Option(
        metavar="float32|bfloat16|float16|float64",
        callback=_dtype_name,
        help="Default: as in the checkpoint. Also fp32, bf16, fp16, fp64.",
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", envvar="NANOSPEC_DEBUG", help="Show the traceback of an error.")]


TemperatureOption = Annotated[float, typer.Option(help="0 decodes greedily.")]
TopKOption = Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0: from all.")]
TopPOption = Annotated[float, typer.Option(help="Sample from the likeliest tokens of this mass.")]
MinPOption = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one.")]
RepetitionPenaltyOption = Annotated[float, typer.Option(help="Above 1 makes tokens seen before less likely.")]
AcceptanceOption = Annotated[
    str, typer.Option(metavar="exact|typical", help="typical is lossy: keeps any likely drafted token.")
]
StopOption = Annotated[list[str] | None, typer.Option(help="Stop at this text; may be repeated.")]
NumTopOption = Annotated[
    int | None,
    typer.Option(help="Suggestions of the target per position that enter an in-context vocabulary. Default: 16."),
]


CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile",
        help="Draft and verify through torch.compile: the same tokens, after a minute or so of compilation.",
    ),
]

CudaGraphOption = Annotated[
    bool | None,
    typer.Option(
        "--cuda-graph/--no-cuda-graph",
        help="Replay decoding steps as CUDA graphs. Default: on CUDA, where the draft allows it.",
        show_default=False,
    ),
]
DraftTemperatureOption = Annotated[
    float | None,
    typer.Option(help="Divides the draft's logits when a tree is grown. Default: 0.5, or 1 where text is sampled."),
]
LookupOption = Annotated[
    bool,
    typer.Option("--lookup", help="Prompt lookup joins the draft: what followed the same tokens earlier."),
]


def load_decoder(
    target: str | None, draft: str | None, *, vocab: str, tree: str | None, **options: Any
) -> SpeculativeDecoder:
    """The decoder of `target` and `draft`, or of the embedded target and one of its drafts; options as it takes them.

    Raises ValueError when only one of them is given otherwise, for a tree that cannot be read, and for a target without
    a tokenizer, which every command needs.
    """
    own_drafts = (*DRAFT_DIRECTORIES, PROMPT_LOOKUP)
    is_demo = target is None and draft in (None, *own_drafts)
    if not is_demo and (target is None or draft is None):
        given, missing = ("--draft", "--target") if target is None else ("--target", "--draft")
        names = "" if target else f"; without --target, --draft must be one of {', '.join(own_drafts)}, got {draft!r}"
        raise ValueError(f"--target and --draft must be given together, got {given} without {missing}{names}")
    shape: TreeShape | str | None = tree if tree is None or tree == "auto" else parse_tree_shape(tree)
    from nanospec.decode import SpeculativeDecoder  # loads transformers, which --help can do without

    options |= {"vocab": vocab, "tree": shape}
    with busy("loading, measuring trees" if tree == "auto" else "loading"):
        if target is None or draft is None:
            return SpeculativeDecoder.from_demo(draft or "eagle", **options)
        decoder = SpeculativeDecoder.from_pretrained(target, draft, **options)
    if decoder.tokenizer is None:
        raise ValueError(f"--target must hold a tokenizer beside its weights, got none in {target!r}")
    return decoder


def find_embedded_draft(draft: str, target: str | None) -> tuple[str, str | None]:
    """Directories of the embedded draft of that name and, where no target is given, of its target; both as they are
    for anything else."""
    if draft not in DRAFT_DIRECTORIES or Path(draft).is_dir():
        return draft, target
    return str(DRAFT_DIRECTORIES[draft]), str(TARGET_DIRECTORY) if target is None else target
