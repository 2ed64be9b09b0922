"""`nanospec plan`: what each draft vocabulary would cost and bring for a pair, from two configs, without weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
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
    "vocabulary", "rows\nscored", "accept\nlength", "level\nms", "level vs\nno head", "draft\nms", "draft\nof full",
    "verify\nms", "step\nms", "floor\nms", "tokens/s", "vs plain\ndecoding", "vs\nfull",
    "floor vs\nplain\ndecoding",
)  # fmt: skip
INDEPENDENT = (
    "--accept-length gives your own; level, verify and their ratios do not depend on it, draft and step hardly do"
)


def plan(
    target: Annotated[str, typer.Option(metavar="CONFIG", help="config.json, a directory that holds it, or a hub id.")],
    draft: Annotated[
        str,
        typer.Option(
            metavar="CONFIG|eagle|eagle3", help="The same of the draft; eagle, eagle3: a layer as the target's."
        ),
    ] = "eagle",
    device: Annotated[
        str | None,
        typer.Option(
            metavar="h200|cpu|measured|NAME",
            help="measured: this machine's CPU, in about 20 seconds. Any other: with --bandwidth and --tflops. "
            "Default: h200.",
        ),
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(metavar="TB/s", help="Of another GPU, from its data sheet; with --tflops.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(metavar="TFLOP/s", help="Of its dense 16-bit products; with --bandwidth.")
    ] = None,
    vocab: Annotated[
        list[str] | None,
        typer.Option(metavar="full|in-context[:ROWS]|static:N|hybrid:N", help="May be repeated."),
    ] = None,
    accept_length: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKENS|VOCAB=TOKENS",
            help="Tokens per target pass. Default: published figures; none under a language-model draft.",
        ),
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
        runs_on = find_device(device, bandwidth, tflops)
        pair = _read_pair(target, draft, runs_on, shape, (context_length, batch, tp), vocab_size)
        pair = pair._replace(device=measured(runs_on))
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
    target: str,
    draft: str,
    device: Device,
    tree: TreeShape | None,
    sizes: tuple[int, int, int],
    vocab_size: int | None,
) -> Pair:
    """sizes: context length, batch, devices."""
    from nanospec.planning.read_sizes import read_draft, read_target
    from nanospec.planning.step_cost import Pair, Setting, check_pair

    wanted = target_sizes = read_target(target)
    draft_sizes = read_draft(draft, target_sizes, any_vocab_size=vocab_size is not None)
    if vocab_size is not None:
        if vocab_size < 1:
            raise ValueError(f"vocab-size must be at least 1, got {vocab_size}")
        wanted, draft_sizes = target_sizes.with_num_ids(vocab_size), draft_sizes.with_num_ids(vocab_size)
    shape = tree or default_tree(device.name, wanted.num_ids, draft_sizes.max_depth)
    context_length, batch, tp = sizes
    if min(batch, tp) < 1:
        raise ValueError(f"batch and tp must be at least 1, got {batch} and {tp}")
    if tp > 1 and device.exchange_s is None:
        raise ValueError(f"tp must be 1 with device {device.name}, which stands alone, got {tp}")
    pair = Pair(device, wanted, draft_sizes, Setting(shape, context_length, batch, tp, accept_length=1.0))
    check_pair(pair)
    return pair


def find_device(name: str | None, bandwidth: float | None, tflops: float | None) -> Device:
    """The device of that name, or of these numbers of a data sheet, TB/s and TFLOP/s. "measured" is the CPU that is
    known, under that name, to check a request with before `measured` takes its time.

    Raises ValueError listing the choices, and for numbers that are not for both or for a device that is known."""
    from nanospec.planning.devices import CPU, DEVICES, H200, device_of_data_sheet

    if bandwidth is not None and tflops is not None:
        if name in DEVICES:
            raise ValueError(f"--bandwidth and --tflops must be left out with --device {name}, which is known")
        return device_of_data_sheet(name or "of a data sheet", bandwidth, tflops)
    if bandwidth is not None or tflops is not None:
        raise ValueError(f"--bandwidth and --tflops must be given together, got {bandwidth} and {tflops}")
    if name is not None and name not in DEVICES:
        others = "any other needs --bandwidth TB/s and --tflops, from its data sheet"
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}: {others}")
    return replace(CPU, name=name) if name in ("cpu", "measured") else H200


def measured(device: Device) -> Device:
    """The device, or this machine's CPU measured where that was asked for."""
    if device.name != "measured":
        return device
    from nanospec.planning.calibrate import measure_cpu

    with busy("measuring this machine"):
        return measure_cpu()


def default_tree(device: str, num_rows: int, max_depth: int | None) -> TreeShape:
    """As a decoder's on such a device."""
    import torch

    from nanospec.tree_shape import default_tree_shape

    kind = "cpu" if device in ("cpu", "measured") else "cuda"
    return default_tree_shape(torch.device(kind), num_rows, max_depth)


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
        "notes": [*(f"target {note}" for note in target.notes), *(f"draft {note}" for note in body.notes)],
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
    for line in (*_accept_length_lines(plans, about["draft_family"]), *(f"note: {one}" for one in about["notes"])):
        console.print(line, markup=False, soft_wrap=not console.is_terminal)


def _accept_length_lines(plans: Sequence[PolicyPlan], family: str) -> Iterator[str]:
    """Where accept lengths come from, and what they are worth for drafts of this family."""
    from nanospec.planning.policies import PUBLISHED_OF

    sources = [one.accept_length_source for one in plans]
    for source in dict.fromkeys(sources):
        names = ", ".join(one.policy for one in plans if one.accept_length_source == source)
        if source is not None:
            yield f"accept length of {names}: {source}"
    if None in sources:
        yield f"no accept length of a {family} as draft is known: {INDEPENDENT}"
    elif family != PUBLISHED_OF and set(sources) != {"given"}:
        yield f"these accept lengths are an {PUBLISHED_OF} draft's, and yours is {family}: {INDEPENDENT}"


def _cells(one: PolicyPlan) -> tuple[str, ...]:
    return (
        one.policy,
        f"{one.rows:,}",
        _told(one.accept_length, 2),
        f"{one.level_ms:.3f}",
        f"{one.level_vs_headless:.2f}x",
        f"{one.draft_ms:.2f}",
        percent(one.draft_vs_full),
        f"{one.verify_ms:.2f}",
        f"{one.step_ms:.2f}",
        f"{one.floor_ms:.2f}",
        _told(one.tokens_per_second, 1),
        _told(one.speedup_vs_autoregressive, 2, "x"),
        _told(one.speedup_vs_full, 2, "x"),
        _told(one.floor_speedup, 2, "x"),
    )


def _told(value: float | None, digits: int, unit: str = "") -> str:
    """Blank where an accept length would be needed."""
    return "" if value is None else f"{value:,.{digits}f}{unit}"
