from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from bench.domain_change.__main__ import JSON_NAME, PLOT_NAME, STATE_NAME, main
from bench.domain_change.report import STEADY_FROM, Drafted, find_twin, recovered_after, summarize
from bench.domain_change.switches import EDGES, Domain, find_domain, glue
from nanospec.coverage.documents import TextDocument
from tests.pair_on_disk import save_pair

ROOM = 1000


def byte_tokenizer(chat_template):
    """A byte is a token; a chat is "<user>" and "assistant." in turns."""

    def encode(text, add_special_tokens=True):
        return {"input_ids": list(text.encode())}

    class Tokenizer(SimpleNamespace):
        __call__ = staticmethod(encode)

        def apply_chat_template(self, messages, **settings):
            turns = {"user": "<{}>", "assistant": "{}."}
            return "".join(turns[message["role"]].format(message["content"]) for message in messages)

    return Tokenizer(chat_template=chat_template)


OLD = Domain("chat", [TextDocument("old?", "o" * 80, "chat")])
NEW = Domain("code", [TextDocument("new?", "n" * 90, "code"), TextDocument("new!", "m" * 90, "code")] * 2)


@pytest.mark.parametrize(
    ("is_turn", "template", "before"),
    [
        (True, "chat", "<old?>" + "o" * 80 + ".<new"),
        (False, "chat", "<old?>" + "o" * 80 + "\n\n"),
        (True, None, "old?\n\n" + "o" * 80 + "\n\nnew"),
    ],
)
def test_the_new_domain_follows_the_old_with_a_prompt_or_a_paragraph(is_turn, template, before):
    switch = glue(byte_tokenizer(template), OLD, NEW, is_turn, ROOM, [0])
    text = bytes(switch.token_ids[0].tolist()).decode()
    assert text.startswith(before)
    answer = text[-EDGES[-1] :]
    assert set(answer) == {"n", "m", "\n"}
    assert [len(part) for part in answer.split("\n\n")] == [90, 90, 256 - 2 * 92]


def test_every_bin_has_one_place_and_its_tokens_are_counted_from_the_change():
    for draw in range(20):
        switch = glue(byte_tokenizer("chat"), OLD, NEW, True, ROOM, [draw])
        change, old_end = switch.token_ids.shape[1] - EDGES[-1], len("<old?>") + 80
        assert list(switch.cuts) == list(EDGES[:-1])
        for (first, cut), end in zip(switch.cuts.items(), EDGES[1:], strict=True):
            assert first <= cut - (change if first >= 0 else old_end) < end


def test_a_conversation_that_does_not_fit_is_none():
    tokenizer = byte_tokenizer("chat")
    length = glue(tokenizer, OLD, NEW, True, ROOM, [0]).token_ids.shape[1]
    assert glue(tokenizer, OLD, NEW, True, length, [0]) is not None
    assert glue(tokenizer, OLD, NEW, True, length - 1, [0]) is None
    assert glue(tokenizer, Domain("short", [TextDocument("old?", "o" * 63, "chat")]), NEW, True, ROOM, [0]) is None
    assert glue(tokenizer, OLD, Domain("short", NEW.documents[:2]), True, ROOM, [0]) is None


def test_a_domain_is_a_category_and_words_of_the_prompt():
    documents = [
        TextDocument("to German: a", "b", "translation"),
        TextDocument("to Czech: a", "b", "translation"),
        TextDocument("", "b", "chat"),
        TextDocument("a", None, "chat"),
    ]
    assert find_domain("translation", documents).documents == documents[:2]
    assert find_domain("translation:to German", documents).documents == documents[:1]
    with pytest.raises(
        ValueError, match=r"domain must be CATEGORY\[:WORDS OF THE PROMPT\] over chat, translation, got"
    ):
        find_domain("chat", documents)


def test_recovery_is_the_first_bin_from_which_on_none_falls_short():
    assert recovered_after({-32: 0.2, 0: 0.5, 8: 0.98, 16: 1.1, 128: 0.2}) == 8
    assert recovered_after({0: 1.0, 8: 0.96, 16: 1.0}) == 16
    assert recovered_after({0: 1.0, 96: 0.96}) == STEADY_FROM
    assert recovered_after({0: 0.97, 8: 1.0}) == 0


DRAFTED = [
    Drafted("full", "full", 1.0),
    Drafted("full+prior", "full+prior", 0.5),
    Drafted("hybrid-9+prior", "hybrid:9+prior", 0.5),
    Drafted("in-context", "in-context", 0.5),
]


def test_a_twin_drafts_alike_from_all_ids():
    assert [find_twin(DRAFTED, index) for index in range(4)] == [0, 1, 1, 0]
    assert find_twin([*DRAFTED, Drafted("full,temperature=0.5", "full", 0.5)], 3) == 4


def switch(accepted: dict[int, tuple[int, ...]]) -> dict:
    """A record with these accept lengths of the policies by the first token of a bin; 4 where none is named."""
    bins = {first: accepted.get(first, (4, 4, 4, 4)) for first in EDGES[:-1]}
    figures = {"covered": [1], "rows": 9}
    return {"bins": {str(first): [{"accept": a, **figures} for a in lengths] for first, lengths in bins.items()}}


def test_what_the_twin_loses_too_is_no_loss_of_the_policy():
    records = [switch({0: (4, 2, 2, 2), 8: (4, 4, 3, 4), 32: (4, 4, 4, a)}) for a in (2, 6) * 20]
    summary = summarize(records, DRAFTED)["hybrid-9+prior"]
    first, second = summary["bins"][2:4]
    assert (summary["twin"], first["from_token"], second["from_token"]) == ("full+prior", 0, 8)
    assert (first["of_steady"], first["of_steady_95"]) == (0.5, [0.5, 0.5])
    assert (first["vs_twin_of_steady"], second["vs_twin_of_steady"]) == (1.0, 0.75)
    assert summary["recovered_after"] == {"of_steady": 16, "vs_twin_of_steady": 16}
    assert summary["steady"]["vs_twin"] == 1.0
    noisy = summarize(records, DRAFTED)["in-context"]["bins"][5]
    low, high = noisy["of_steady_95"]
    assert (noisy["from_token"], noisy["of_steady"]) == (32, 1.0)
    assert 0.8 < low < 0.95 < 1.05 < high < 1.2  # 40 switches of 2 or 6: a deviation of 2 / sqrt(40), 8 %


def test_only_what_an_interval_rules_out_is_surely_short():
    records = [switch({16: (4, 4, 4, a), 32: (4, 4, 2, 4)}) for a in (2, 5) * 100]
    summary = summarize(records, DRAFTED)
    assert summary["in-context"]["recovered_after"]["of_steady"] == 32
    assert summary["in-context"]["surely_short_until"]["of_steady"] == 32
    assert summary["hybrid-9+prior"]["surely_short_until"]["of_steady"] == 48
    few = summarize(records[:4], DRAFTED)["in-context"]
    assert (few["recovered_after"]["of_steady"], few["surely_short_until"]["of_steady"]) == (32, 0)


def test_a_run_on_a_tiny_pair_leaves_figures_and_a_picture_and_can_be_continued(tmp_path):
    pytest.importorskip("matplotlib")
    target, draft = save_pair(tmp_path, window=600)
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "out"
    records = [{"prompt": "old?", "response": "old answer " * 8, "category": "chat"}]
    records += [
        {"prompt": f"new {n}", "response": f"{n} def f(x): return {n} * x " * 6, "category": "code"} for n in "ab"
    ]
    corpus.write_text("\n".join(map(json.dumps, records)))
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    arguments = ["--corpus", str(corpus), "--out", str(out), "--target", target, "--draft", draft, "--new", "code"]
    arguments += ["--tree", "3,3,8", "--vocab", "in-context", "--dtype", "float64"]

    def run(switches: int) -> dict:
        result = CliRunner().invoke(app, [*arguments, "--switches", str(switches)])
        assert result.exit_code == 0, result.output
        assert "in-context" in result.output
        return json.loads((out / JSON_NAME).read_text())

    run(1)
    first = (out / STATE_NAME).read_text()
    report = run(2)
    assert (out / STATE_NAME).read_text().startswith(first)
    assert (out / PLOT_NAME).read_text().count("<svg") == 1
    full, in_context = report["changes"]["chat -> code"].values()
    assert [part["from_token"] for part in in_context["bins"]] == list(EDGES[:-1])
    assert all(part["vs_full"] == 1 and part["coverage"] == 1 for part in full["bins"])
    assert in_context["steady"]["accept_length"] == pytest.approx(
        sum(part["accept_length"] for part in in_context["bins"][-2:]) / 2
    )
