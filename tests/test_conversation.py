"""A chat: every answer is the target's own to the whole text, of which only what is new is read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanospec import Conversation, SpeculativeDecoder
from nanospec.checkpoints.tokenizer import encode_rendered, render_messages
from nanospec.conversation import FullContextError
from tests.byte_tokenizer import NUM_IDS, byte_tokenizer
from tests.tiny_pair import tiny_drafter, tiny_target

DEPTH = 3
ANSWER = "{% else %}{{ m['content'] }}"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[{{ m['content'] }}]"
    "{% elif m['role'] == 'system' %}({{ m['content'] }})" + ANSWER + "{{ eos_token }}{% endif %}{% endfor %}"
)
UPPER = TEMPLATE.replace(ANSWER, "{% else %}{{ m['content'] | upper }}")  # an answer is rendered as it was not said
TEMPLATES = {"own": TEMPLATE, "upper": UPPER, "none": None}


def chatting_decoder(template: str | None = TEMPLATE, window: int = 400) -> SpeculativeDecoder:
    target, tokenizer = tiny_target(4, NUM_IDS, window=window), byte_tokenizer()
    tokenizer.chat_template = template
    drafter = tiny_drafter(target, 2, std=0.02)
    return SpeculativeDecoder(target, drafter, "in-context", (DEPTH, 3, 10), tokenizer, capacity=60)


def asked_ids(decoder: SpeculativeDecoder) -> list[list[int]]:
    """Collects the texts that the decoder is given from now on."""
    given_ids, stream = [], decoder.stream

    def noted(input_ids, **options):
        given_ids.append(list(input_ids))
        return stream(input_ids, **options)

    decoder.stream = noted  # type: ignore[method-assign]
    return given_ids


def said(pieces) -> list[int]:
    return [token_id for piece in pieces for token_id in piece.token_ids]


QUESTIONS = st.lists(st.text("ab ?é", min_size=1, max_size=6), min_size=2, max_size=4)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=8)
@given(questions=QUESTIONS, max_new_tokens=st.integers(1, 20))
def test_every_answer_is_that_to_the_whole_text(template, questions, max_new_tokens):
    decoder, fresh = chatting_decoder(TEMPLATES[template]), chatting_decoder()
    given_ids, conversation = asked_ids(decoder), Conversation(decoder)
    held: list[int] = []
    for question in questions:
        tokens = said(conversation.ask(question, max_new_tokens=max_new_tokens))
        assert tokens == fresh.generate(given_ids[-1], max_new_tokens=max_new_tokens).token_ids
        rendered = render_messages(decoder.tokenizer, conversation.messages[:-1])
        plain = encode_rendered(decoder.tokenizer, rendered)
        assert decoder.tokenizer.decode(given_ids[-1]) == decoder.tokenizer.decode(plain)
        if template != "upper":
            assert given_ids[-1][: len(held)] == held  # as the target said it, whole characters or not
            assert decoder.last_stats.cached_tokens >= len(held) - DEPTH - 2
        held = [*given_ids[-1], *tokens]
        assert conversation.num_tokens == len(held)
    assert [message["content"] for message in conversation.messages[::2]] == questions


def test_without_a_template_a_blank_line_ends_every_message():
    decoder = chatting_decoder(None)
    conversation = Conversation(decoder, system="Be short.")
    said(conversation.ask("Why?", max_new_tokens=3))
    answer = conversation.messages[-1]["content"]
    rendered = render_messages(decoder.tokenizer, [*conversation.messages, {"role": "user", "content": "How?"}])
    assert rendered == f"Be short.\n\nWhy?\n\n{answer}\n\nHow?\n\n"


@pytest.mark.parametrize("is_rendered", [True, False])
def test_the_token_that_ended_an_answer_stays_where_the_template_writes_it(is_rendered):
    tokens = said(Conversation(chatting_decoder()).ask("Why?", max_new_tokens=60))
    tokenizer = byte_tokenizer()
    end, eos = next(
        (place, token_id)
        for place, token_id in enumerate(tokens)
        if place > 4 and token_id not in tokens[:place] and tokenizer.decode([token_id]).isalpha()
    )
    template = TEMPLATE.replace("{{ eos_token }}", tokenizer.decode([eos]) if is_rendered else "|")
    decoder = chatting_decoder(template)
    decoder.eos_ids = frozenset([eos])
    given_ids, conversation = asked_ids(decoder), Conversation(decoder)
    # Skipped in the text of an answer, as special tokens are.
    tokenizer_decode = decoder.tokenizer.decode
    decoder.tokenizer.decode = lambda ids, skip_special_tokens=False: tokenizer_decode(
        [token_id for token_id in ids if token_id != eos or not skip_special_tokens]
    )
    assert said(conversation.ask("Why?", max_new_tokens=60)) == tokens[: end + 1]
    said(conversation.ask("How?", max_new_tokens=2))
    first, second = given_ids
    assert second[: len(first) + end] == [*first, *tokens[:end]]
    rest = tokenizer_decode(second[len(first) + end :])
    assert rest == ("{}[How?]" if is_rendered else "|[How?]").format(tokenizer_decode([eos]))
    assert decoder.last_stats.cached_tokens >= len(first) + end - DEPTH - 2


def test_an_answer_left_early_stays_as_far_as_it_was_said():
    decoder, fresh = chatting_decoder(), chatting_decoder()
    given_ids, conversation = asked_ids(decoder), Conversation(decoder)
    pieces = conversation.ask("Why?", max_new_tokens=30)
    begun = [next(pieces), next(pieces), next(pieces)]
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(piece.text for piece in begun)}
    tokens = said(conversation.ask("How?", max_new_tokens=9))
    assert given_ids[1][: len(given_ids[0]) + len(said(begun))] == [*given_ids[0], *said(begun)]
    assert decoder.last_stats.cached_tokens > len(given_ids[0])
    assert tokens == fresh.generate(given_ids[1], max_new_tokens=9).token_ids


def test_after_a_stop_string_the_text_goes_on_without_it():
    decoder, fresh = chatting_decoder(), chatting_decoder()
    given_ids, conversation = asked_ids(decoder), Conversation(decoder)
    said(conversation.ask("Why?", max_new_tokens=30))
    text = conversation.messages[-1]["content"]
    said(conversation.regenerate(max_new_tokens=30, stop_strings=[text[6:9]]))
    kept = conversation.messages[-1]["content"]
    assert kept == text[: text.index(text[6:9])]
    tokens = said(conversation.ask("How?", max_new_tokens=9))
    assert decoder.tokenizer.decode(given_ids[-1]) == f"<s>[Why?]{kept}</s>[How?]"
    assert tokens == fresh.generate(given_ids[-1], max_new_tokens=9).token_ids


def test_a_question_ends_the_answer_before_it_and_what_was_not_begun_leaves_nothing():
    decoder = chatting_decoder()
    conversation = Conversation(decoder)
    conversation.ask("never read")
    first = conversation.ask("Why?", max_new_tokens=30)
    next(first)
    second = conversation.ask("How?", max_new_tokens=4)
    with pytest.raises(StopIteration):
        next(first)
    said(second)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert [message["content"] for message in conversation.messages[::2]] == ["Why?", "How?"]


def test_an_interrupt_before_anything_was_said_takes_the_question_back(monkeypatch):
    decoder = chatting_decoder()
    conversation = Conversation(decoder)
    said(conversation.ask("Why?", max_new_tokens=4))
    before = list(conversation.messages)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoder.target, "prefill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(conversation.ask("How?"))
    assert conversation.messages == before
    assert said(conversation.ask("How?", max_new_tokens=4))


def test_another_answer_takes_the_place_of_the_last_and_reads_one_token():
    decoder = chatting_decoder()
    given_ids, conversation = asked_ids(decoder), Conversation(decoder, system="Be short.")
    first = said(conversation.ask("Why?", max_new_tokens=9, temperature=2.0, seed=1))
    other = said(conversation.regenerate(max_new_tokens=9, temperature=2.0, seed=2))
    assert given_ids[0] == given_ids[1]
    assert decoder.last_stats.cached_tokens == len(given_ids[0]) - 1
    assert other != first
    assert len(conversation.messages) == 3
    assert said(conversation.regenerate(max_new_tokens=9, temperature=2.0, seed=1)) == first


def test_what_an_answer_cannot_keep_costs_no_earlier_answer_its_tokens():
    """After a stop string within a token the last answer is read anew; the first stays as it was said."""
    decoder = chatting_decoder()
    given_ids, conversation = asked_ids(decoder), Conversation(decoder)
    first = said(conversation.ask("Why?", max_new_tokens=12, temperature=2.0, seed=1))
    said(conversation.ask("How?", max_new_tokens=12))
    stop = conversation.messages[-1]["content"][3:5]
    said(conversation.regenerate(max_new_tokens=12, stop_strings=[stop]))
    reads = conversation._turns[-1]
    assert decoder.tokenizer.decode(reads[-1].ids) != reads[-1].text, "the answer keeps its tokens: this shows nothing"
    said(conversation.ask("When?", max_new_tokens=4))
    held = [*given_ids[0], *first]
    assert encode_rendered(decoder.tokenizer, decoder.tokenizer.decode(held)) != held, "so is it read anew as well"
    assert given_ids[-1][: len(held)] == held
    assert decoder.last_stats.cached_tokens >= len(given_ids[1]) - DEPTH - 2


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_is_taken_back_leaves_what_was_held_before(template):
    conversation = Conversation(chatting_decoder(TEMPLATES[template]))
    held = []
    for question in ("Why?", "How?", "When?"):
        held.append((conversation.num_tokens, list(conversation.messages)))
        said(conversation.ask(question, max_new_tokens=5))
        said(conversation.regenerate(max_new_tokens=20, temperature=2.0, seed=1))
    first = conversation.messages[1]["content"]
    assert template != "upper" or first.upper() != first, "this shows nothing"
    for before in reversed(held):
        conversation.undo()
        assert (conversation.num_tokens, conversation.messages) == before


def test_what_is_taken_back_leaves_no_trace():
    decoder, other = chatting_decoder(), chatting_decoder()
    given_ids, conversation = asked_ids(decoder), Conversation(decoder)
    said(conversation.ask("Why?", max_new_tokens=9))
    num_tokens, messages = conversation.num_tokens, list(conversation.messages)
    said(conversation.ask("How?", max_new_tokens=9))
    conversation.undo()
    assert (conversation.num_tokens, conversation.messages) == (num_tokens, messages)
    tokens = said(conversation.ask("When?", max_new_tokens=9))
    assert decoder.last_stats.cached_tokens >= num_tokens - DEPTH - 2
    assert tokens == other.generate(given_ids[-1], max_new_tokens=9).token_ids
    conversation.undo()
    conversation.undo()
    assert (conversation.num_tokens, conversation.messages) == (0, [])


def test_a_new_conversation_begins_after_the_system_message():
    decoder = chatting_decoder()
    given_ids, conversation = asked_ids(decoder), Conversation(decoder, system="Be short.")
    said(conversation.ask("Why?", max_new_tokens=9))
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be short."}]
    said(conversation.ask("Why?", max_new_tokens=9))
    assert given_ids[0] == given_ids[1]
    assert decoder.last_stats.cached_tokens == 0


def test_a_full_context_window_is_an_error_of_its_own_and_taking_back_helps():
    decoder = chatting_decoder(window=40)
    conversation = Conversation(decoder)
    said(conversation.ask("Why?", max_new_tokens=90))
    assert conversation.num_tokens == 40
    with pytest.raises(FullContextError, match="shorter than the context window of 40 tokens, got 47: undo takes back"):
        conversation.ask("How?")
    conversation.undo()
    assert said(conversation.ask("How?", max_new_tokens=3))


@pytest.mark.parametrize("method", ["undo", "regenerate"])
def test_without_an_answer_there_is_none_to_take_back(method):
    with pytest.raises(ValueError, match="messages must end with an answer, got 1 of them without one"):
        getattr(Conversation(chatting_decoder(), system="Be short."), method)()


def test_what_cannot_be_asked_is_refused_by_name():
    decoder = chatting_decoder(TEMPLATE.replace("({{ m['content'] }})", "{{ raise_exception('no system role') }}"))
    with pytest.raises(ValueError, match="text must not be empty, got ''"):
        Conversation(decoder).ask("")
    with pytest.raises(ValueError, match="messages must be what .* chat template takes: no system role"):
        Conversation(decoder, system="Be short.").ask("Why?")
    with pytest.raises(ValueError, match="temperature must be at least 0, got -1"):
        Conversation(decoder).ask("Why?", temperature=-1)
    decoder.tokenizer = None
    with pytest.raises(ValueError, match="decoder must have a tokenizer for a conversation, got none"):
        Conversation(decoder)
