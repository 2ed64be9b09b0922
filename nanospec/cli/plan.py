"""`nanospec plan`: what each draft vocabulary would cost and bring for a pair, from two configs, without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from nanospec.cli.errors import one_line_errors
from nanospec.cli.options import DebugOption, JsonOption
from nanospec.cli.progress import busy
from nanospec.cli.table import number_table, percent
from nanospec.tree_shape import TreeShape, parse_tree_shape

if TYPE_CHECKING:
    from nanospec.planning.device import Device
    from nanospec.planning.policies import AcceptLength, PolicyPlan
    from nanospec.planning.step_cost import Pair

PLAIN_WIDTH = 140  # of a file or pipe, which has no width of its own
HEADINGS = (
    "vocabulary", "rows", "accept\nlength", "level\nms", "level vs\nno head", "draft\nms", "draft\nof full",
    "verify\nms", "step\nms", "floor\nms", "tokens/s", "vs\nautoregr.", "vs\nfull", "floor vs\nautoregr.",
)  # fmt: skip


def plan(
    target: Annotated[str, typer.Option(metavar="CONFIG", help="config.json, a directory that holds it, or a hub id.")],
    draft: Annotated[
        str,
        typer.Option(
            metavar="CONFIG|eagle|eagle3", help="The same of the draft; eagle, eagle3: a layer as the target's."
        ),
    ] = "eagle",
    device: Annotated[
        str, typer.Option(metavar="h200|cpu|measured", help="measured: this machine's CPU, in about 20 seconds.")
    ] = "h200",
    vocab: Annotated[
        list[str] | None,
        typer.Option(metavar="full|in-context[:ROWS]|static:N|hybrid:N", help="May be repeated."),
    ] = None,
    accept_length: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKENS|VOCAB=TOKENS", help="Tokens per target pass. Default: published figures."),
    ] = None,
    tree: Annotated[
        str | None, typer.Option(metavar="DEPTH,BRANCHING,NODES", help="Default: the device's, as in generate.")
    ] = None,
    context_length: Annotated[int, typer.Option(help="Tokens in the caches.")] = 512,
    batch: Annotated[int, typer.Option(help="Sequences decoded together.")] = 1,
    tp: Annotated[int, typer.Option(help="Devices that share all matrices, the head by its rows.")] = 1,
    vocab_size: Annotated[int | None, typer.Option(help="As if both had so many ids.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Predict draft time, step time and speed of each draft vocabulary from two configs. No weights are read.

    The floor counts weights alone, each read once per pass; everything else is expected from what the device does per
    second. Accept lengths are never predicted: they are published figures, or yours.
    """
    with one_line_errors(debug):
        from nanospec.planning.policies import DEFAULT_POLICIES, parse_policy, plan_policies
        from nanospec.planning.step_cost import plain_seconds

        shape = None if tree is None else parse_tree_shape(tree)
        pair = _read_pair(target, draft, device, shape, (context_length, batch, tp), vocab_size)
        num_ids, can_pack = pair.draft.body.num_ids, pair.draft.can_pack
        names = vocab or [name for name in DEFAULT_POLICIES if name != "static:32768" or num_ids > 32_768]
        policies = [parse_policy(name, num_ids, can_pack and pair.device.gather_s > 0) for name in names]
        lengths = parse_accept_lengths(accept_length or [], [policy.name for policy in policies])
        plans = plan_policies(pair, policies, lengths)
        about = describe_pair(pair, plain_seconds(pair))
    if json_output:
        typer.echo(json.dumps({**about, "policies": [asdict(one) for one in plans]}, indent=2))
    else:
        _print(plans, about)


def parse_accept_lengths(texts: Sequence[str], policies: Sequence[str]) -> dict[str, AcceptLength]:
    """By policy: a plain number holds for all of them, "VOCAB=NUMBER" for one and goes before it.

    Raises ValueError for anything else.
    """
    from nanospec.planning.policies import AcceptLength

    lengths: dict[str, AcceptLength] = {}
    named: dict[str, AcceptLength] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            length = AcceptLength(float(number), "given")
        except ValueError:
            raise ValueError(f"accept-length must be TOKENS or VOCAB=TOKENS, got {text!r}") from None
        if name and name not in (*policies, "full"):
            raise ValueError(f"accept-length must name one of {', '.join(policies)}, got {name!r}")
        if name:
            named[name] = length
        else:
            lengths |= dict.fromkeys((*policies, "full"), length)
    return lengths | named


def _read_pair(
    target: str, draft: str, device: str, tree: TreeShape | None, sizes: tuple[int, int, int], vocab_size: int | None
) -> Pair:
    """sizes: context length, batch, devices."""
    from nanospec.planning.read_sizes import read_draft, read_target
    from nanospec.planning.step_cost import Pair, Setting, check_pair

    wanted = target_sizes = read_target(target)
    draft_sizes = read_draft(draft, target_sizes)
    if vocab_size is not None:
        if vocab_size < 1:
            raise ValueError(f"vocab-size must be at least 1, got {vocab_size}")
        wanted, draft_sizes = target_sizes.with_num_ids(vocab_size), draft_sizes.with_num_ids(vocab_size)
    shape = tree or default_tree(device, wanted.num_ids, draft_sizes.max_depth)
    context_length, batch, tp = sizes
    if min(batch, tp) < 1:
        raise ValueError(f"batch and tp must be at least 1, got {batch} and {tp}")
    if tp > 1 and known_device(device, measure=False).exchange_s is None:
        raise ValueError(f"tp must be 1 with device {device}, which stands alone, got {tp}")
    setting = Setting(shape, context_length, batch, tp, accept_length=1.0)
    pair = Pair(known_device(device, measure=False), wanted, draft_sizes, setting)
    check_pair(pair)
    return pair._replace(device=known_device(device))


def known_device(name: str, measure: bool = True) -> Device:
    """The device of that name. measure False: for "measured" the CPU that is known, to check a request with.

    Raises ValueError listing the choices."""
    from nanospec.planning.devices import CPU, DEVICES, H200

    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    if name == "measured" and measure:
        from nanospec.planning.calibrate import measure_cpu

        with busy("measuring this machine"):
            return measure_cpu()
    return H200 if name == "h200" else CPU


def default_tree(device: str, num_rows: int, max_depth: int | None) -> TreeShape:
    """As a decoder's on such a device."""
    import torch

    from nanospec.tree_shape import default_tree_shape

    return default_tree_shape(torch.device("cuda" if device == "h200" else "cpu"), num_rows, max_depth)


def describe_pair(pair: Pair, plain_s: float) -> dict[str, Any]:
    """What was planned, as one JSON object."""
    from nanospec.planning.model_sizes import BYTES_PER_WEIGHT

    target, body, setting = pair.target, pair.draft.body, pair.setting
    return {
        "device": pair.device.name,
        "device_source": pair.device.source,
        "target_bytes": round(BYTES_PER_WEIGHT * (target.num_weights(1) + target.hidden_size * target.num_ids)),
        "draft_family": pair.draft.family,
        "draft_body_bytes": round(BYTES_PER_WEIGHT * body.num_weights(1)),
        "draft_head_bytes": BYTES_PER_WEIGHT * body.hidden_size * body.num_ids,
        "vocab_size": target.num_ids,
        "tree": setting.tree._asdict(),
        "context_length": setting.context_length,
        "batch": setting.batch_size,
        "tp": setting.num_shards,
        "autoregressive_ms": 1e3 * plain_s,
        "autoregressive_tokens_per_second": setting.batch_size / plain_s,
    }


def _print(plans: Sequence[PolicyPlan], about: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    depth, branching, num_nodes = about["tree"].values()
    lines = [
        f"target {about['target_bytes'] / 1e9:.2f} GB per pass, {about['vocab_size']:,} ids; {about['draft_family']} "
        f"draft {about['draft_body_bytes'] / 1e9:.3f} GB per level, {about['draft_head_bytes'] / 1e9:.3f} GB of head; "
        "16 bits",
        f"tree: depth {depth}, branching {branching}, {num_nodes} nodes; context {about['context_length']}, "
        f"batch {about['batch']}, {about['tp']} device(s)",
        f"plain decoding: {about['autoregressive_ms']:.2f} ms a token, "
        f"{about['autoregressive_tokens_per_second']:.1f} tokens/s",
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=not console.is_terminal)
    console.print(number_table([HEADINGS, *map(_cells, plans)]))
    console.print(f"device {about['device']}: {about['device_source']}", markup=False)
    for source in dict.fromkeys(one.accept_length_source for one in plans):
        names = ", ".join(one.policy for one in plans if one.accept_length_source == source)
        console.print(f"accept length of {names}: {source}", markup=False)


def _cells(one: PolicyPlan) -> tuple[str, ...]:
    return (
        one.policy,
        f"{one.rows:,}",
        f"{one.accept_length:.2f}",
        f"{one.level_ms:.3f}",
        f"{one.level_vs_headless:.2f}x",
        f"{one.draft_ms:.2f}",
        percent(one.draft_vs_full),
        f"{one.verify_ms:.2f}",
        f"{one.step_ms:.2f}",
        f"{one.floor_ms:.2f}",
        f"{one.tokens_per_second:,.1f}",
        f"{one.speedup_vs_autoregressive:.2f}x",
        f"{one.speedup_vs_full:.2f}x",
        f"{one.floor_speedup:.2f}x",
    )
