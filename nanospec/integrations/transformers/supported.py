"""Which calls of `generate` come out as transformers' own would, and the errors for all others."""

from __future__ import annotations

from transformers import DynamicCache, EosTokenCriteria, MaxLengthCriteria
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.stopping_criteria import MaxTimeCriteria

from nanospec.integrations.transformers.call import GenerateCall
from nanospec.tensor_parallel import ranks_of

MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
# Settings that lead to other modes.
MODE_SETTINGS = (
    "assistant_early_exit", "constraints", "dola_layers", "force_words_ids", "num_beam_groups", "num_beams",
    "penalty_alpha", "prompt_lookup_num_tokens", "use_mtp",
)  # fmt: skip
CACHES = (None, "dynamic")
# What a model may be given beside the tokens, by `generate` itself.
MODEL_ARGUMENTS = (
    "attention_mask", "cache_position", "logits_to_keep", "output_attentions", "output_hidden_states",
    "past_key_values", "position_ids", "use_cache",
)  # fmt: skip
STATEFUL = (SynthIDTextWatermarkLogitsProcessor, UnbatchedClassifierFreeGuidanceLogitsProcessor)
# Those that hold something of every row of a batch.
KNOWS_ALL_ROWS = (
    *STATEFUL,
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
)


def refuse_unsupported_call(call: GenerateCall) -> None:
    """Raises NotImplementedError or ValueError naming the argument of `generate`, what it must be and what it was."""
    _refuse_mode(call)
    _refuse_outputs(call)
    _refuse_model_arguments(call)
    if call.withheld.get("assistant_model") is not None:
        raise ValueError("assistant_model must be None here, got a model: the draft is what proposes")
    if call.withheld.get("synced_gpus"):
        raise NotImplementedError(
            "synced_gpus must be off, got True: processes that wait for each other are not supported"
        )
    num_ranks = ranks_of(call.model).size
    if num_ranks > 1:
        raise NotImplementedError(
            f"model must be whole here, got one that is tensor parallel over {num_ranks} ranks: "
            "SpeculativeDecoder takes it"
        )
    for processor in call.processors:
        if isinstance(processor, InfNanRemoveLogitsProcessor):
            raise NotImplementedError(
                "remove_invalid_values must be False, got True: logits that are not finite are an error here"
            )
    if call.batch_size > 1:
        _refuse_batch(call)
    if any(module.training for module in call.model.modules()):
        raise ValueError("model must be in evaluation mode, got one in training mode: call model.eval() first")


def refuse_unsupported_assistance(call: GenerateCall) -> None:
    """As `refuse_unsupported_call`, for transformers' own loop over our candidates.

    That loop asks processors about tokens that it then rejects, and criteria only about whole steps.
    """
    refuse_unsupported_call(call)
    if call.batch_size > 1:
        raise NotImplementedError(
            f"input_ids must hold one sequence with an assistant, got a batch of {call.batch_size}"
        )
    mask = call.model_kwargs.get("attention_mask")
    if mask is not None and not bool((mask == 1).all()):
        raise NotImplementedError("attention_mask must be all ones with an assistant, got padding")
    if not call.config.use_cache:
        raise NotImplementedError("use_cache must be True with an assistant, got False")
    for processor in call.processors:
        if isinstance(processor, STATEFUL):
            raise NotImplementedError(f"logits_processor must not keep state with an assistant, got {_name(processor)}")
    for criterion in call.criteria:
        if not isinstance(criterion, EosTokenCriteria | MaxLengthCriteria | MaxTimeCriteria):
            raise NotImplementedError(
                f"stopping_criteria must be those of length, time and EOS with an assistant, got {_name(criterion)}"
            )


def _refuse_mode(call: GenerateCall) -> None:
    mode = call.config.get_generation_mode()
    if mode not in MODES:
        found = {name: getattr(call.config, name, None) for name in MODE_SETTINGS}
        settings = ", ".join(f"{name}={value}" for name, value in found.items() if _is_set(value))
        raise NotImplementedError(f"generate must be greedy or sample, got {mode.value} ({settings})")
    if call.config.cache_implementation not in CACHES:
        raise NotImplementedError(
            f"cache_implementation must be None or 'dynamic', got {call.config.cache_implementation!r}: "
            "the cache of a tree is nanospec's own"
        )


def _refuse_model_arguments(call: GenerateCall) -> None:
    given = {name: value for name, value in call.model_kwargs.items() if value is not None and value is not False}
    if given.get("mm_encoder_outputs") == {}:  # what `generate` itself gives a model of text and images
        del given["mm_encoder_outputs"]
    token_types = given.pop("token_type_ids", None)
    if token_types is not None and bool(token_types.any()):
        raise NotImplementedError("token_type_ids must be zero, got others: only text is supported")
    others = sorted(given.keys() - set(MODEL_ARGUMENTS))
    if others:
        raise NotImplementedError(f"inputs must be input_ids and attention_mask alone, got {', '.join(others)} besides")
    cache = given.get("past_key_values")
    is_callers = call.withheld.get("past_key_values") is not None or getattr(cache, "_is_user_defined", False)
    if cache is not None and (is_callers or not isinstance(cache, DynamicCache) or cache.get_seq_length() > 0):
        raise NotImplementedError(
            f"past_key_values must be None, got a {type(cache).__name__}: a cache is neither continued nor handed back"
        )


def _refuse_outputs(call: GenerateCall) -> None:
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(call.config, name):
            raise NotImplementedError(f"{name} must be False, got True: passes over trees have none to give")


def _refuse_batch(call: GenerateCall) -> None:
    """Rows are decoded one after the other: what looks at several of them at once cannot be served."""
    size = f"in a batch, got {call.batch_size} rows"
    if call.streamer is not None:
        raise ValueError(f"streamer must be None {size}")
    if call.wants_scores or call.wants_logits:
        raise NotImplementedError(
            f"output_scores and output_logits must be False {size}: rows that have ended would have none"
        )
    for processor in call.processors:
        if isinstance(processor, KNOWS_ALL_ROWS):
            raise NotImplementedError(f"logits_processor must serve a row alone {size} and {_name(processor)}")
    if not any(hasattr(criterion, "eos_token_id") for criterion in call.criteria):
        early = [criterion for criterion in call.criteria if not isinstance(criterion, MaxLengthCriteria)]
        if early:
            raise NotImplementedError(
                f"eos_token_id must be set where other criteria end rows {size} and {_name(early[0])}: "
                "without it, transformers goes on with rows that have ended"
            )


def _is_set(value: object) -> bool:
    return value is True or value not in (None, False, 1)  # 1 beam is none


def _name(part: object) -> str:
    return type(part).__name__
