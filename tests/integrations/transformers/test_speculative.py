"""`generate` with our loop: transformers' own output, greedy and sampled, whatever processes, stops or streams it."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
)

import nanospec
from nanospec import SpeculativeDecoder
from nanospec.target import Target
from tests.byte_tokenizer import NUM_IDS, byte_tokenizer
from tests.integrations.transformers.generate_calls import (
    EOS,
    FIVE,
    PAD,
    TREE,
    both,
    cached_model,
    cached_speculative,
    prompt_of,
)
from tests.tiny_families import VOCAB_SIZE
from tests.tiny_language_models import noisy_copy, tiny_language_model
from tests.tiny_pair import tiny_drafter, tiny_eagle3_drafter, tiny_eagle3_target, tiny_model

NEW = 16
PROMPT = prompt_of(3, 1, 4, 1, 5, 9, 2, 6)
RULES = (
    {},
    {"do_sample": True},
    {"do_sample": True, "temperature": 0.7, "top_k": 7, "top_p": 0.9, "min_p": 0.05},
    {"do_sample": True, "repetition_penalty": 1.3, "typical_p": 0.9},
    {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    {"min_new_tokens": 6, "suppress_tokens": [3, 7], "sequence_bias": [[[4], 2.0], [[1, 5], -3.0]]},
    {"guidance_scale": 1.5},
    {"do_sample": True, "renormalize_logits": True, "exponential_decay_length_penalty": (4, 1.2)},
)


class Alternating(LogitsProcessor):
    """Keeps state: every second call favours ids above the middle; changes what it is given."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids, scores):
        self.lengths.append(input_ids.shape[1])
        if len(self.lengths) % 2:
            scores[:, VOCAB_SIZE // 2 :] += 2.0
        return scores


class AfterRepeat(StoppingCriteria):
    """Ends a row whose last token stands in it four times."""

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids == input_ids[:, -1:]).sum(1) >= 4


@settings(max_examples=30)
@given(
    name=st.sampled_from(FIVE),
    prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=10),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 99),
    eos=st.sampled_from((None, EOS, [EOS, 4])),
)
def test_tokens_are_those_of_plain_generate(name, prompt, rule, seed, eos):
    if rule.get("exponential_decay_length_penalty") or rule.get("min_new_tokens"):
        eos = eos or EOS
    settings = {"max_new_tokens": NEW, "eos_token_id": eos, "pad_token_id": PAD, **rule}
    ids = prompt_of(*prompt)
    settings["attention_mask"] = torch.ones_like(ids)
    plain, ours = both(cached_model(name), cached_speculative(name), ids, seed, **settings)
    assert ours.tolist() == plain.tolist()


@pytest.mark.parametrize("name", [*FIVE, "gemma3"])
def test_bare_greedy_tokens_are_those_of_plain_generate(name):
    model, speculative = cached_model(name, torch.float32), cached_speculative(name, torch.float32)
    if name == "mixtral":
        model.set_experts_implementation("batched_mm")
    for prompt in (PROMPT, prompt_of(1)):
        plain, ours = both(model, speculative, prompt, max_new_tokens=NEW, eos_token_id=EOS, pad_token_id=PAD)
        assert ours.tolist() == plain.tolist()
    assert ours.dtype == plain.dtype


def test_trees_are_accepted_at_all():
    speculative = cached_speculative("llama-tied")
    cached_model("llama-tied").generate(PROMPT, custom_generate=speculative, max_new_tokens=NEW)
    (stats,) = speculative.last_stats
    assert stats.new_tokens == NEW
    assert stats.mean_accept_length > 1


def test_the_generator_is_left_where_plain_generate_leaves_it():
    numbers = []
    for custom in (None, cached_speculative("llama-tied")):
        torch.manual_seed(5)
        cached_model("llama-tied").generate(
            PROMPT, custom_generate=custom, do_sample=True, max_new_tokens=NEW, eos_token_id=EOS, pad_token_id=PAD
        )
        numbers.append(torch.rand(3).tolist())
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("rule", [{}, {"do_sample": True}])
def test_processors_with_state_see_every_token_once(rule):
    tokens, lengths = [], []
    for custom in (None, cached_speculative("qwen3-window")):
        torch.manual_seed(1)
        processor = Alternating()
        tokens.append(
            cached_model("qwen3-window").generate(
                PROMPT, custom_generate=custom, logits_processor=LogitsProcessorList([processor]),
                max_new_tokens=NEW, **rule,
            ).tolist()
        )  # fmt: skip
        lengths.append(processor.lengths)
    assert tokens[0] == tokens[1]
    assert lengths[0] == lengths[1] == list(range(8, 8 + NEW))


def test_processors_may_keep_what_they_are_shown():
    kept = []

    class Keeps(LogitsProcessor):
        def __call__(self, input_ids, scores):
            kept.append((input_ids, scores))
            return scores

    cached_model("gemma2").generate(
        PROMPT, custom_generate=cached_speculative("gemma2"), logits_processor=LogitsProcessorList([Keeps()]),
        max_new_tokens=4,
    )  # fmt: skip
    assert not any(tensor.is_inference() for pair in kept for tensor in pair)


def test_prefix_allowed_tokens_are_kept_to():
    def allowed(batch_id, sentence):
        return [3, 4, 5] if sentence[-1] % 2 else [6, 7]

    plain, ours = both(
        cached_model("mixtral"), cached_speculative("mixtral"), PROMPT, prefix_allowed_tokens_fn=allowed,
        max_new_tokens=NEW,
    )  # fmt: skip
    assert ours.tolist() == plain.tolist()
    assert set(ours[0, 8:].tolist()) <= {3, 4, 5, 6, 7}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [{"max_length": 11}, {"max_new_tokens": 1}, {"max_time": 1e-9}, {}])
def test_lengths_are_those_of_plain_generate(limit, dtype):
    criteria = {} if limit else {"stopping_criteria": StoppingCriteriaList([AfterRepeat()])}
    plain, ours = both(cached_model("gemma2", dtype), cached_speculative("gemma2", dtype), PROMPT, **limit, **criteria)
    assert ours.tolist() == plain.tolist()
    assert limit or ours.shape[1] < 28, "the criterion must end it before the default of 20 tokens"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stop_strings_end_the_output_as_a_criterion(dtype):
    tokenizer, model = byte_tokenizer(), tiny_model(2, NUM_IDS, dtype).eval()  # it says "?<" over and over
    speculative = nanospec.generate_with(tiny_drafter(Target(model), 2, std=0.02), tree=TREE)
    prompt = torch.tensor([tokenizer("ab")["input_ids"]])
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, ["?<"])])
    settings = {"stopping_criteria": criteria, "max_new_tokens": NEW, "pad_token_id": PAD}
    plain, ours = both(model, speculative, prompt, **settings)
    assert ours.tolist() == plain.tolist()
    assert tokenizer.decode(ours[0]).endswith("?<")
    assert ours.shape[1] < 2 + NEW


def test_a_streamer_gets_the_text_and_its_end():
    model, tokenizer = tiny_model(3, NUM_IDS).eval(), byte_tokenizer()
    speculative = nanospec.generate_with(tiny_drafter(Target(model), 2, std=0.02), tree=TREE)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    prompt = torch.tensor([tokenizer("ab")["input_ids"]])
    tokens = []

    def work():
        tokens.append(model.generate(prompt, custom_generate=speculative, streamer=streamer, max_new_tokens=NEW))

    thread = threading.Thread(target=work)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(tokens[0][0, 2:])


@pytest.mark.parametrize("rule", [{}, {"do_sample": True, "temperature": 0.8}])
def test_the_dictionary_holds_scores_and_logits(rule):
    settings = {
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": NEW,
        "repetition_penalty": 1.2, "eos_token_id": EOS, "pad_token_id": PAD, **rule,
    }  # fmt: skip
    model = cached_model("llama-tied")
    plain, ours = both(model, cached_speculative("llama-tied"), PROMPT, **settings)
    assert type(ours) is type(plain)
    assert ours.sequences.tolist() == plain.sequences.tolist()
    assert ours.past_key_values is None
    for name in ("scores", "logits"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name))
        assert not any(row.is_inference() for row in getattr(ours, name))
    transitions = [model.compute_transition_scores(out.sequences, out.scores) for out in (plain, ours)]
    torch.testing.assert_close(*transitions)


BATCH = torch.tensor([[0, 0, 0, 7, 8], [3, 1, 4, 1, 5], [0, 0, 2, 6, 11]])
MASK = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("rule", [{}, {"repetition_penalty": 8.0}])
def test_left_padded_batches_are_those_of_plain_generate(name, rule):
    settings = {"attention_mask": MASK, "max_new_tokens": NEW, "eos_token_id": [EOS, 4, 7], "pad_token_id": PAD, **rule}
    dtype = torch.float32 if name == "gemma2" else torch.float64  # eager attention of padding is NaN in float64
    plain, ours = both(cached_model(name, dtype), cached_speculative(name, dtype), BATCH, **settings)
    assert ours.tolist() == plain.tolist()


def test_sampled_rows_are_what_plain_generate_draws_one_after_the_other():
    model, settings = cached_model("llama-tied"), {"do_sample": True, "max_new_tokens": NEW, "pad_token_id": PAD}
    speculative = cached_speculative("llama-tied")
    torch.manual_seed(3)
    expected = [
        model.generate(row[mask.bool()][None], **settings)[0, -NEW:].tolist()
        for row, mask in zip(BATCH, MASK, strict=True)
    ]
    torch.manual_seed(3)
    ours = model.generate(BATCH, attention_mask=MASK, custom_generate=speculative, **settings)
    assert ours[:, BATCH.shape[1] :].tolist() == expected


def test_returned_sequences_are_drawn_one_after_the_other():
    model, settings = cached_model("gemma2"), {"do_sample": True, "max_new_tokens": NEW}
    speculative = cached_speculative("gemma2")
    torch.manual_seed(3)
    expected = [model.generate(PROMPT, **settings)[0].tolist() for _ in range(3)]
    torch.manual_seed(3)
    ours = model.generate(PROMPT, num_return_sequences=3, custom_generate=speculative, **settings)
    assert ours.tolist() == expected


def test_the_decoder_is_kept_and_the_model_left_alone():
    model = tiny_model(3).eval()
    speculative = nanospec.generate_with(tiny_drafter(Target(model), 2), tree=TREE)
    before = set(vars(model)), model.config.to_dict(), model.generation_config.to_dict(), dict(model.named_modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = model.generate(PROMPT, custom_generate=speculative, max_new_tokens=NEW)
    decoder = speculative.decoder_for(model)
    assert model.generate(PROMPT, custom_generate=speculative, max_new_tokens=NEW).tolist() == first.tolist()
    assert speculative.decoder_for(model) is decoder
    after = set(vars(model)), model.config.to_dict(), model.generation_config.to_dict(), dict(model.named_modules())
    assert after == before
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()] == hooks
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert model.generate(PROMPT, max_new_tokens=NEW).tolist() == first.tolist()


def test_a_model_in_another_dtype_gets_another_decoder():
    model = tiny_language_model("llama", 3)
    speculative = nanospec.generate_with("prompt-lookup", tree=TREE)
    first = speculative.decoder_for(model)
    model.float()
    assert speculative.decoder_for(model) is not first
    plain, ours = both(model, speculative, PROMPT, max_new_tokens=NEW)
    assert ours.tolist() == plain.tolist()


def test_a_model_with_another_weight_in_any_layer_gets_another_decoder():
    model = tiny_language_model("llama", 3)
    speculative = nanospec.generate_with("prompt-lookup", tree=TREE)
    first = speculative.decoder_for(model)
    down = model.model.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight + 1)
    assert speculative.decoder_for(model) is not first
    plain, ours = both(model, speculative, PROMPT, max_new_tokens=NEW)
    assert ours.tolist() == plain.tolist()


@pytest.mark.parametrize("vocab", ["full", "in-context+prior"])
def test_language_models_draft_too(vocab):
    model = tiny_language_model("qwen3", 5)
    speculative = nanospec.generate_with(noisy_copy(model, 0.05), vocab, lookup=True)
    for rule in ({}, {"do_sample": True}):
        plain, ours = both(model, speculative, PROMPT, max_new_tokens=NEW, **rule)
        assert ours.tolist() == plain.tolist()
    assert isinstance(speculative.decoder_for(model), SpeculativeDecoder)


def test_drafts_that_read_several_layers_draft_too():
    target = tiny_eagle3_target(1)
    speculative = nanospec.generate_with(tiny_eagle3_drafter(target, 2), tree=TREE)
    for rule in ({}, {"do_sample": True}):
        plain, ours = both(target.model, speculative, PROMPT, max_new_tokens=NEW, **rule)
        assert ours.tolist() == plain.tolist()


def test_a_processor_that_fails_leaves_the_next_call_as_it_was():
    class Fails(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if input_ids.shape[1] > 11:
                raise KeyError("no such state")
            return scores

    model, speculative = cached_model("gemma2"), cached_speculative("gemma2")
    plain = model.generate(PROMPT, max_new_tokens=NEW)
    with pytest.raises(KeyError, match="no such state"):
        model.generate(
            PROMPT, custom_generate=speculative, max_new_tokens=NEW, logits_processor=LogitsProcessorList([Fails()])
        )
    assert model.generate(PROMPT, custom_generate=speculative, max_new_tokens=NEW).tolist() == plain.tolist()


def test_calls_of_several_threads_wait_for_each_other():
    model, speculative = cached_model("gemma2"), cached_speculative("gemma2")
    prompts = [prompt_of(first, 2, 3) for first in range(1, 6)]
    expected = [model.generate(prompt, max_new_tokens=NEW).tolist() for prompt in prompts]
    found: dict[int, list] = {}

    def work(number):
        found[number] = model.generate(prompts[number], custom_generate=speculative, max_new_tokens=NEW).tolist()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(prompts))] == expected


def test_logits_that_are_not_finite_are_an_error_that_names_the_position():
    model = tiny_model(3).eval()
    speculative = nanospec.generate_with("prompt-lookup", tree=TREE)
    with torch.no_grad():
        model.lm_head.weight[:] = float("nan")
    for rule in ({}, {"do_sample": True}):
        with pytest.raises(ValueError, match="must be finite, got NaN or infinity after position 7"):
            model.generate(PROMPT, custom_generate=speculative, **rule)
