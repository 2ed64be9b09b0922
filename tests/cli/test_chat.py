"""`nanospec chat` over a tiny pair: from a pipe as a command, from a terminal part by part."""

from __future__ import annotations

import builtins
import io
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from nanospec import Conversation, SpeculativeDecoder
from nanospec.cli.answer_view import LiveView, chat_figures, printable_text
from nanospec.cli.chat import PROMPT, greeting, typed_lines
from nanospec.cli.chat_loop import ChatLoop, joined_lines
from nanospec.cli.main import app
from nanospec.stats import GenerationStats
from tests.pair_on_disk import save_pair

TREE = (3, 3, 10)
STATS = GenerationStats("in-context", "eagle", "cpu", "float32", new_tokens=9, prompt_tokens=30, cached_tokens=20)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def decoder(pair) -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(*pair, tree=TREE)


def run(pair, lines: str | bytes, *options: str):
    tree = ",".join(map(str, TREE))
    return CliRunner().invoke(app, ["chat", "--target", pair[0], "--draft", pair[1], "--tree", tree, *options], lines)


def answers(decoder, *questions: str, system: str | None = None, **settings) -> list[str]:
    conversation = Conversation(decoder, system)
    return ["".join(piece.text for piece in conversation.ask(question, **settings)) for question in questions]


def test_lines_of_a_pipe_are_answered_on_stdout_with_figures_on_stderr(pair, decoder):
    result = run(pair, "Why?\n\nHow\\\nso?\n", "--max-new-tokens", "12", "--system", "Be short.")
    assert result.exit_code == 0, result.stderr
    said = answers(decoder, "Why?", "How\nso?", max_new_tokens=12, system="Be short.")
    assert result.stdout == "".join(text + "\n" for text in said)
    first, second = result.stderr.splitlines()
    assert first.startswith("[12 tokens, ")
    assert first.endswith("reused 0 of 17]")
    num_read, num_reused = 17 + 12 + len("\n\nHow\nso?\n\n"), int(second.split("reused ")[1].split(" of")[0])
    assert second.endswith(f" of {num_read}]")
    assert 17 + 12 - TREE[0] - 2 <= num_reused < 17 + 12


def test_the_last_line_may_lack_its_break_and_others_may_have_those_of_windows(pair, decoder):
    result = run(pair, b"Why?\r\nHow?", "--max-new-tokens", "3")
    assert result.stdout == "".join(text + "\n" for text in answers(decoder, "Why?", "How?", max_new_tokens=3))


def test_commands_take_back_and_begin_anew(pair, decoder):
    lines = "Why?\nHow?\n/undo\nWhen?\n/reset\nWhy?\n/stats\n/help\n/exit\nnever asked\n"
    result = run(pair, lines, "--max-new-tokens", "6")
    assert result.exit_code == 0, result.stderr
    why, how = answers(decoder, "Why?", "How?", max_new_tokens=6)
    _, when = answers(decoder, "Why?", "When?", max_new_tokens=6)
    assert result.stdout == f"{why}\n{how}\n{when}\n{why}\n"
    assert "2 messages are left\n" in result.stderr
    assert "a new conversation\n" in result.stderr
    assert "4 answers, 24 tokens, " in result.stderr
    assert "the context window holds 12 of 256 tokens" in result.stderr
    assert all(f"\n{name} " in result.stderr for name in ("/help", "/regen", "/undo", "/reset", "/stats", "/exit"))


def test_a_seed_is_that_of_the_first_answer_and_every_other_has_the_next(pair, decoder):
    result = run(pair, "Why?\n/regen\n", "--max-new-tokens", "9", "--temperature", "2", "--seed", "5")
    settings = {"max_new_tokens": 9, "temperature": 2.0}
    first, second = (answers(decoder, "Why?", seed=seed, **settings)[0] for seed in (5, 6))
    assert first != second
    assert result.stdout == f"{first}\n{second}\n"


def test_options_of_generation_reach_the_answers(pair, decoder):
    text = answers(decoder, "Why?", max_new_tokens=20)[0]
    stop = text[6:8]
    result = run(pair, "Why?\n", "--max-new-tokens", "20", "--stop", stop, "--vocab", "full")
    assert result.stdout == text[: text.index(stop)] + "\n"
    assert "256 rows, reused 0 of 6]" in result.stderr


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("Why?\n", ["--temperature", "-1"], "temperature must be at least 0, got -1.0"),
        ("Why?\n", ["--max-new-tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        ("x" * 300, [], "conversation must be shorter than the context window of 256 tokens, got 302"),
        ("/undo\n", [], "messages must end with an answer, got 0 of them without one"),
        ("/quit\n", [], "a command must be one of /help, /regen, /undo, /reset, /stats, /exit, got '/quit'"),
        (b"\xff\xfe\n", [], "can't decode byte 0xff"),
    ],
)
def test_what_is_wrong_in_a_pipe_ends_the_command_with_one_line(pair, lines, options, message):
    result = run(pair, lines, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


def live_chat(decoder, **settings) -> tuple[ChatLoop, io.StringIO]:
    screen = io.StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=200, height=12))
    return ChatLoop(Conversation(decoder), {"max_new_tokens": 12, **settings}, view, keeps_going=True), screen


def test_in_a_terminal_what_is_wrong_is_said_and_the_chat_goes_on(decoder):
    loop, screen = live_chat(decoder)
    loop.run(["/nothing", "x" * 300, "Why?", "y" * 240, "/stats"])
    shown = screen.getvalue()
    assert "error: a command must be one of" in shown
    assert "error: conversation must be shorter than the context window of 256 tokens, got 302" in shown
    assert "error: conversation must be shorter than the context window of 256 tokens, got 262" in shown
    assert "1 answers, 12 tokens, " in shown


NO_MEMORY = {
    "python": lambda: MemoryError("none left"),
    "gpu": lambda: torch.OutOfMemoryError("none left"),
    "host": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: none left"),
}


def refuse(decoder, monkeypatch, error: str, place: str, num_calls: int) -> None:
    """The call of that number finds no memory."""
    owner, _, name = place.partition(".")
    part, calls = getattr(decoder, owner), []
    complete = getattr(part, name)

    def refusing(*arguments, **options):
        calls.append(name)
        if len(calls) == num_calls:
            raise NO_MEMORY[error]()
        return complete(*arguments, **options)

    monkeypatch.setattr(part, name, refusing)


@pytest.mark.parametrize("error", NO_MEMORY)
def test_without_memory_for_an_answer_the_chat_goes_on(decoder, monkeypatch, error):
    loop, screen = live_chat(decoder)
    with monkeypatch.context() as patch:
        refuse(decoder, patch, error, "target.prefill", 1)
        loop.run(["Why?"])
    assert "error: out of memory: " in screen.getvalue()
    assert "none left; try a shorter context" in screen.getvalue()
    loop.run(["How?"])
    assert [message["content"] for message in loop.conversation.messages[::2]] == ["How?"]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize(
    ("place", "num_calls"),
    [("target.prefill", 2), ("target.judge", 5), ("drafter.extend", 6), ("drafter.resume", 1), ("target.resume", 1)],
)
def test_after_an_answer_that_ended_without_memory_the_next_one_is_as_it_should_be(
    pair, monkeypatch, error, place, num_calls
):
    decoder, fresh = (SpeculativeDecoder.from_pretrained(*pair, tree=TREE, dtype="float64") for _ in range(2))
    loop, _ = live_chat(decoder)
    with monkeypatch.context() as patch:
        refuse(decoder, patch, error, place, num_calls)
        loop.run(["Why?", "How?"])
    complete, texts = decoder.stream, []
    monkeypatch.setattr(decoder, "stream", lambda ids, **settings: texts.append(ids) or complete(ids, **settings))
    loop.run(["When?"])
    assert loop.conversation.messages[-1]["content"] == fresh.generate_autoregressive(texts[0], max_new_tokens=12).text
    assert decoder.last_stats.new_tokens == 12


@pytest.mark.parametrize("error", NO_MEMORY)
def test_without_memory_a_chat_over_a_pipe_ends_with_one_line_after_what_was_said(pair, decoder, monkeypatch, error):
    from nanospec.target import Target

    complete, calls = Target.judge, []

    def refusing(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 12:
            raise NO_MEMORY[error]()
        return complete(*arguments, **options)

    monkeypatch.setattr(Target, "judge", refusing)
    result = run(pair, "Why?\nHow?\nWhen?\n", "--max-new-tokens", "12")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: out of memory: ")
    assert "Traceback" not in result.output
    monkeypatch.undo()
    why, how = answers(decoder, "Why?", "How?", max_new_tokens=12)
    first, second, rest = result.stdout.split("\n")
    assert first == why
    assert 0 < len(second) < len(how)
    assert how.startswith(second)
    assert rest == ""


def test_an_answer_that_fills_the_context_window_says_so(decoder):
    loop, screen = live_chat(decoder, max_new_tokens=300)
    loop.run(["x" * 230])
    assert "the context window of 256 tokens is full: /undo takes back the last turn" in screen.getvalue()


def test_an_interrupted_answer_stays_as_far_as_it_was_said(decoder, monkeypatch):
    loop, screen = live_chat(decoder)
    judge, calls = decoder.target.judge, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(*arguments, **options)

    monkeypatch.setattr(decoder.target, "judge", interrupted)
    loop.run(["Why?", "How?"])
    assert "stopped: what was said stays" in screen.getvalue()
    kept = loop.conversation.messages[1]["content"]
    assert [message["role"] for message in loop.conversation.messages] == ["user", "assistant"] * 2
    assert 0 < len(kept) < len(answers(decoder, "Why?", max_new_tokens=12)[0])
    assert len(loop.answered) == 2


def test_lines_that_are_whole_are_shown_once_and_figures_stand_below_the_answer():
    screen = io.StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=30, height=8, color_system=None))
    with view.answering() as show:
        for piece in ("one ", "two\nthr", "ee\x1b[2J\n", "a long line " * 20, "end"):
            show(piece, STATS)
    shown = screen.getvalue()
    assert shown.count("one two\n") == 1
    assert shown.count("three?[2J\n") == 1
    assert shown.endswith(f"end\n{chat_figures(STATS)}\n")
    assert "[9 tokens, 0.0 tokens/s, 0.00 per pass, 0 rows, reused 20 of 30]" in shown


def test_what_was_shown_of_an_answer_stays_when_it_is_interrupted():
    screen = io.StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=80, height=8, color_system=None))

    def interrupted() -> None:
        with view.answering() as show:
            show("begun", STATS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert screen.getvalue().endswith(f"begun\n{chat_figures(STATS)}\n")


def test_messages_are_lines_joined_where_one_ends_in_a_backslash():
    assert list(joined_lines(["a\\", "b", "c", "d\\"])) == ["a\nb", "c", "d"]
    assert list(joined_lines(["a\\", None, "b", "c\\", None])) == ["b"]


def test_typed_lines_end_with_the_end_of_the_input_and_an_interrupt_drops_one(monkeypatch, capsys):
    events = iter(["one", KeyboardInterrupt(), "two", EOFError()])

    def typed(prompt: str) -> str:
        asked.append(prompt)
        event = next(events)
        if isinstance(event, BaseException):
            raise event
        return event

    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", typed)
    assert list(typed_lines()) == ["one", None, "two", None]
    assert asked == [""] * 4
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True, write=lambda text: 0, flush=lambda: None))
    events = iter([EOFError()])
    assert list(typed_lines()) == [None]
    assert asked[-1] == PROMPT


@pytest.mark.parametrize(("key", "messages"), [(KeyboardInterrupt, ["hello"]), (EOFError, [])])
def test_ctrl_c_and_ctrl_d_drop_a_message_that_goes_on(monkeypatch, key, messages):
    events = iter(["a draft\\", key(), "hello", EOFError()])

    def typed(prompt: str) -> str:
        event = next(events)
        if isinstance(event, BaseException):
            raise event
        return event

    monkeypatch.setattr(builtins, "input", typed)
    assert list(joined_lines(typed_lines())) == messages


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("你好\u3000世界 10\u202f000\u00a0km", None),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 می\u200cخواهم \u2764\ufe0f", None),
        ("a\tb\nc", None),
        ("\x1b[2J\r\x08\x9b", "?[2J???"),
        ("a\u202eb\u2066c\u200f", "a?b?c?"),
        ("\u2028\u2029\ue000\ud800\uffff", "?????"),
    ],
)
def test_text_of_every_script_is_shown_as_it_is_and_what_moves_a_cursor_is_not(text, shown):
    assert printable_text(text) == (text if shown is None else shown)


def test_the_greeting_says_what_drafts_and_how_to_leave(decoder):
    said = greeting(decoder)
    assert said.startswith("eagle drafts from in-context, tree 3,3,10, cpu, a context window of 256 tokens.")
    assert said.endswith("Ctrl-D leaves.")
