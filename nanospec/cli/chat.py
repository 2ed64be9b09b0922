"""`nanospec chat`: questions from a terminal or a pipe, answers that stream, the conversation so far read once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nanospec.cli.answer_view import view_of_terminal
from nanospec.cli.chat_loop import ChatLoop
from nanospec.cli.errors import one_line_errors
from nanospec.cli.options import (
    AcceptanceOption,
    CompileOption,
    CudaGraphOption,
    DebugOption,
    DeviceOption,
    DraftOption,
    DraftTemperatureOption,
    DtypeOption,
    LookupOption,
    MinPOption,
    NumTopOption,
    RepetitionPenaltyOption,
    StopOption,
    TargetOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    TreeOption,
    VocabOption,
    load_decoder,
)
from nanospec.cli.progress import busy

if TYPE_CHECKING:
    from nanospec.decode import SpeculativeDecoder

PROMPT = "> "


def chat(
    system: Annotated[str | None, typer.Option(help="Instruction that the conversation begins with.")] = None,
    target: TargetOption = None,
    draft: DraftOption = None,
    lookup: LookupOption = False,
    vocab: VocabOption = "in-context",
    max_new_tokens: Annotated[int, typer.Option(help="An answer ends after this many tokens.")] = 512,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the first answer; every further one has the next.")] = None,
    acceptance: AcceptanceOption = "exact",
    stop: StopOption = None,
    tree: TreeOption = None,
    num_top: NumTopOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    draft_temperature: DraftTemperatureOption = None,
    compile: CompileOption = False,
    cuda_graph: CudaGraphOption = None,
    debug: DebugOption = False,
) -> None:
    """Chat: questions from the terminal, or a line each from a pipe; every turn reads only what is new."""
    with one_line_errors(debug):
        options: dict[str, Any] = {"dtype": dtype, "device": device, "num_top": num_top, "compile": compile}
        options |= {"cuda_graph": cuda_graph, "draft_temperature": draft_temperature, "lookup": lookup}
        decoder = load_decoder(target, draft, vocab=vocab, tree=tree, **options)
        from nanospec.conversation import Conversation  # loads transformers, which --help can do without

        settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "acceptance": acceptance,
            "stop_strings": tuple(stop or ()),
        }
        conversation = Conversation(decoder, system)
        decoder.stream([0], **settings)  # bad settings are an error now and not at every turn; nothing is decoded
        if compile:
            with busy("compiling"):
                decoder.warm_up()
        is_terminal = sys.stdin.isatty()
        loop = ChatLoop(conversation, settings, view_of_terminal(), keeps_going=is_terminal)
        if is_terminal:
            loop.view.say(greeting(decoder))
        loop.run(typed_lines() if is_terminal else (line.rstrip("\r\n") for line in sys.stdin))


def greeting(decoder: SpeculativeDecoder) -> str:
    tree = ",".join(map(str, decoder.tree))
    return (
        f"{decoder.drafter.name} drafts from {decoder.vocab.name}, tree {tree}, {decoder.target.device}, "
        f"a context window of {decoder.target.context_window:,} tokens. /help lists what else there is, Ctrl-D leaves."
    )


def typed_lines() -> Iterator[str | None]:
    """Lines from a terminal, to be edited where Python has readline, until Ctrl-D. Ctrl-C and Ctrl-D drop what was
    begun: the line, and by a None the lines that it goes on from."""
    with suppress(ImportError):
        importlib.import_module("readline")  # `input` uses it once it is there
    while True:
        try:
            yield input(PROMPT if sys.stdout.isatty() else "")
        except KeyboardInterrupt:
            typer.echo()
            yield None
        except EOFError:
            typer.echo()
            yield None
            return
