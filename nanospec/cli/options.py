"""Options that the commands share, and the decoder that they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.progress import busy
from nanospec.demo import DRAFT_DIRECTORIES
from nanospec.drafters.prompt_lookup import PROMPT_LOOKUP
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
TreeOption = Annotated[
    str | None,
    typer.Option(metavar="auto|DEPTH,BRANCHING,NODES", help="Tree to draft; auto measures at start-up."),
]
DtypeOption = Annotated[
    str | None, typer.Option(metavar="float32|bfloat16|float16|float64", help="Default: as in the checkpoint.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", envvar="NANOSPEC_DEBUG", help="Show the traceback of an error.")]


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
VOCAB_METAVAR = "in-context|full|static:N|static:FILE|hybrid:N|hybrid:auto|routed:FILE|hybrid:N+routed:FILE:N[+prior]"


def load_decoder(
    target: str | None, draft: str | None, *, vocab: str, tree: str | None, **options: Any
) -> SpeculativeDecoder:
    """The decoder of `target` and `draft`, or of the embedded target and one of its drafts; options as it takes them.

    Raises ValueError when only one of them is given otherwise, and for a tree that cannot be read.
    """
    is_demo = target is None and draft in (None, *DRAFT_DIRECTORIES, PROMPT_LOOKUP)
    if not is_demo and (target is None or draft is None):
        given, missing = ("--draft", "--target") if target is None else ("--target", "--draft")
        raise ValueError(f"--target and --draft must be given together, got {given} without {missing}")
    shape: TreeShape | str | None = tree if tree is None or tree == "auto" else parse_tree_shape(tree)
    from nanospec.decode import SpeculativeDecoder  # loads transformers, which --help can do without

    options |= {"vocab": vocab, "tree": shape}
    with busy("loading, measuring trees" if tree == "auto" else "loading"):
        if target is None or draft is None:
            return SpeculativeDecoder.from_demo(draft or "eagle", **options)
        return SpeculativeDecoder.from_pretrained(target, draft, **options)
