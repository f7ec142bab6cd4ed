"""What users of LangChain's HuggingFacePipeline write, in hfpipe's words: every argument of a transformers pipeline, of
`generate` and of GenerationConfig is honoured, or refused by its name with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfpipe.errors import UnsupportedOption, UsageError
from hfpipe.types import CHOSEN, OF_GENERATION, OF_LOADING

_RENAMED = {"max_new_tokens": "max_tokens", "stop_strings": "stop", "stop_sequence": "stop"}
_RENAMED |= {"src_lang": "source_lang", "tgt_lang": "target_lang"}
STOPS = frozenset(("stop", *(name for name, known in _RENAMED.items() if known == "stop")))
# They change no answer, whatever their value: of beam search and of drafts, which are refused themselves; how batches
# are padded and computed; what is a matter of course here.
_HARMLESS = frozenset(
    (
        *("length_penalty", "early_stopping", "low_memory", "renormalize_logits", "remove_invalid_values"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "max_matching_ngram_size"),
        *("is_assistant", "pad_token_id", "bos_token_id", "padding", "num_workers", "synced_gpus"),
        *("compile_config", "disable_compile", "prefill_chunk_size", "continuous_batching_config"),
        *("clean_up_tokenization_spaces", "use_model_defaults", "transformers_version", "_from_model_config"),
    )
)

_BEAMS = "hfpipe has no beam search: leave it out, or sample (do_sample=True) and choose among several answers."
_PENALTY = "hfpipe does not change logits in this way: use repetition_penalty, or stop."
_TRUNCATION = "hfpipe has temperature, top_k, top_p and min_p."
_TEXT = "An answer is its new text alone, without special tokens."
_NUMBERS = "An answer is text: for scores and states call the model's own generate."
_DRAFT = "hfpipe does not generate with drafts: leave it out, the answer is the same."
_LOOKUP = "prompt_lookup_num_tokens"
_CACHE = "The engine has its own KV cache: leave it out."
_TEMPLATE = "Write it into the prompt, or use template= and ChatHFPipe."
# What to do instead, for each name that is refused unless its value is this one, None or empty: those ask for nothing.
_REFUSED: Mapping[str, tuple[Any, str]] = {
    "num_return_sequences": (1, "Ask for the prompt several times: llm.batch([prompt] * 3, temperature=0.8)."),
    **dict.fromkeys(("num_beams", "num_beam_groups"), (1, _BEAMS)),
    **dict.fromkeys(("constraints", "force_words_ids"), (None, _BEAMS)),
    "diversity_penalty": (0, _BEAMS),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0, _PENALTY)),
    "encoder_repetition_penalty": (1, _PENALTY),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), (None, _PENALTY)),
    **dict.fromkeys(("logits_processor", "exponential_decay_length_penalty"), (None, _PENALTY)),
    **dict.fromkeys(("min_length", "min_new_tokens"), (0, "There is no least length here: leave it out.")),
    **dict.fromkeys(("prefix_allowed_tokens_fn", "watermarking_config"), (None, _PENALTY)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), (None, "Begin the answer in the prompt.")),
    "guidance_scale": (1, _PENALTY),
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask", "dola_layers"), (None, _PENALTY)),
    "typical_p": (1, _TRUNCATION),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), (0, _TRUNCATION)),
    **dict.fromkeys(("top_h", "penalty_alpha"), (None, _TRUNCATION)),
    "token_healing": (False, "End the prompt with a whole word, without a space after it."),
    "max_time": (None, "Leave llm.stream(...) when the time is over: generation then ends."),
    "stopping_criteria": (None, "Use stop=[...] (text) or eos_token_id, or leave llm.stream(...)."),
    "streamer": (None, "Iterate over llm.stream(prompt), or pass callbacks."),
    **dict.fromkeys(("assistant_model", "assistant_tokenizer"), (None, _DRAFT)),
    _LOOKUP: (None, "Give it when the model is loaded: prompt_lookup=5."),
    "custom_generate": (None, "Call the model's own generate."),
    "use_cache": (True, _CACHE),
    **dict.fromkeys(("cache_implementation", "cache_config"), (None, _CACHE)),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores"), (False, _NUMBERS)),
    **dict.fromkeys(("output_logits", "return_dict_in_generate", "return_tensors"), (False, _NUMBERS)),
    "return_full_text": (False, "An answer never repeats the prompt: prompt + llm.invoke(prompt) does."),
    "skip_prompt": (True, "An answer never repeats the prompt: prompt + llm.invoke(prompt) does."),
    "return_text": (True, _NUMBERS),
    "return_type": ("NEW_TEXT", _TEXT),
    "skip_special_tokens": (True, _TEXT),
    **dict.fromkeys(("prefix", "continue_final_message", "tools", "documents"), (None, _TEMPLATE)),
    "tokenizer_encode_kwargs": (None, "hfpipe has add_special_tokens."),
    "truncation": (False, "A prompt that is too long is an error: shorten it."),
    "handle_long_generation": (None, "A prompt that is too long is an error: shorten it."),
    "decoder_start_token_id": (None, "It is the model's own."),
}

# Every name of generation that is known here.
OF_TRANSFORMERS = OF_GENERATION | _RENAMED.keys() | _HARMLESS | _REFUSED.keys()

_EXPORT = "Export with `hfpipe export MODEL --weight-format int8` (or int4), and load that folder."
# Of from_pretrained: what hfpipe has another way for.
_NOT_OF_LOADING = {
    "force_download": "`hfpipe models rm NAME` removes the copy in the cache.",
    "proxies": "Set HTTPS_PROXY.",
    "subfolder": "Name the folder itself as the model.",
    "use_safetensors": "allow_pickle=True loads pickled weights.",
    "load_in_8bit": "On torch: quantization_config=BitsAndBytesConfig(load_in_8bit=True). For OpenVINO: " + _EXPORT,
    "load_in_4bit": "On torch: quantization_config=BitsAndBytesConfig(load_in_4bit=True). For OpenVINO: " + _EXPORT,
}
_NOT_OF_OPENVINO = {
    "quantization_config": _EXPORT,
    **dict.fromkeys(("dtype", "torch_dtype"), 'Use ov_config={"INFERENCE_PRECISION_HINT": "f32"}, or export again.'),
    "attn_implementation": "OpenVINO has its own attention: leave it out.",
}
# Values that ask for what hfpipe does anyway: it exports where that is needed, and loads in little memory.
_OF_COURSE = {"use_safetensors": (None, True)}
# Of loading: what model_kwargs may hold beside the arguments of from_pretrained, and what pipeline_kwargs may not.
_OF_LOADING = ("device", "ov_config", "trust_remote_code", "revision", "batch_size", "prompt_lookup")
_MISPLACED = frozenset(("model", "model_kwargs", "generator", "pipeline", "reporter"))
_IGNORED = ("low_cpu_mem_usage", "export", "compile", "dynamic_shapes")


def translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a model or of a call by hfpipe's names, None for what asks for nothing; a name that is not known here
    stays as it is. `pipeline_kwargs` wins over what stands beside it, and that over `generation_config`.

    Raises UnsupportedOption for what hfpipe cannot honour, UsageError for what is given twice."""
    own: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {"generation_config": {}, "pipeline_kwargs": {}}
    for name, value in options.items():
        if name in inside:
            if value is not None:
                values = value.to_diff_dict() if hasattr(value, "to_diff_dict") else _named(name, value)
                inside[name] = translated(values)
        elif name in _REFUSED:
            neutral, hint = _REFUSED[name]
            is_empty = isinstance(value, str | list | tuple | dict) and not value
            if value is not None and not is_empty and value != neutral:
                raise UnsupportedOption(f"{name}={value!r} is not supported.", hint=hint)
        elif name not in _HARMLESS:
            known = _RENAMED.get(name, name)
            if own.get(known) is not None and value is not None and own[known] != value:
                if known != "stop":
                    raise UsageError(f"{known} is given twice, as {own[known]} and as {value}.")
                value = [*_texts(own[known]), *_texts(value)]
            own[known] = own.get(known) if value is None else value
    return over(over(inside["generation_config"], own), inside["pipeline_kwargs"])


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Options by hfpipe's names, of which those `above` win, max_length over a max_tokens that would hide it."""
    hidden = {"max_tokens": None} if above.get("max_length") is not None and "max_tokens" in below else {}
    return {
        **below,
        **hidden,
        **{name: value for name, value in above.items() if value is not None or name not in below},
    }


def as_pipeline_kwargs(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Options of generation that say something, by transformers' names."""
    names = {known: name for name, known in reversed(_RENAMED.items())}
    return {names.get(name, name): value for name, value in generation.items() if value not in (None, ())}


def _named(name: str, value: Any) -> dict[str, Any]:
    # The keys of a dict, whose values may be secret.
    wrong = [key for key in value if not isinstance(key, str)] if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or wrong:
        raise UsageError(f"{name} must be a dict of options by name, not {wrong!r}.")
    return dict(value)


def _once(name: str, *said: Any) -> Any:
    """The value of an option of loading, said in several places. Raises UsageError where they differ."""
    first, *others = [value for value in said if value is not None] or [None]
    for other in others:
        if str(first).removeprefix("torch.") != str(other).removeprefix("torch."):
            raise UsageError(f"{name} is given twice, as {first!r} and as {other!r}.", hint="Leave one of them out.")
    return first


def _texts(stop: Any) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop)


def of_constructor(options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a constructor, `model_kwargs` and `pipeline_kwargs` among them, in hfpipe's words.

    Arguments of generation among `model_kwargs` are honoured, as transformers once did, and yield to those beside it,
    and these to `pipeline_kwargs`. Each of loading may be in any of the three, but not with another value in another.
    Raises UnsupportedOption for what hfpipe cannot honour, or does in another way, and UsageError.
    """
    arguments = dict(options)
    left = _named("model_kwargs", arguments.pop("model_kwargs", None) or {})
    inside = _named("pipeline_kwargs", arguments.pop("pipeline_kwargs", None) or {})
    for place in (arguments, left, inside):
        if (lookup := place.pop(_LOOKUP, None)) is not None:
            place["prompt_lookup"] = _once("prompt_lookup", place.get("prompt_lookup"), lookup)
    inside = translated(inside)
    own = translated(arguments)
    if misplaced := sorted(inside.keys() & _MISPLACED):
        raise UsageError(f"{', '.join(misplaced)} in pipeline_kwargs has no place.", hint="Give it as an argument.")
    generation = translated({name: left.pop(name) for name in tuple(left) if name in OF_TRANSFORMERS})
    said = {name: left.pop(name) for name in _OF_LOADING if name in left}
    for one in (own, inside):
        one["dtype"] = _once("dtype", one.get("dtype"), one.pop("torch_dtype", None))
    if own.get("backend") in CHOSEN and inside.get("backend"):
        # The name of one wins over the lack of it, which from_model_id has as a value.
        del own["backend"]
    both = own.keys() | said.keys() | inside.keys()
    loading = {name: _once(name, own.get(name), said.get(name), inside.get(name)) for name in OF_LOADING & both}
    for names in (("dtype", "torch_dtype"), ("device_map",)):
        # Other places say these as text; from_pretrained takes more.
        elsewhere, theirs = loading.get(names[0]), [left.get(name) for name in names]
        _once(names[0], elsewhere, *theirs)
        if elsewhere is not None:
            left = {name: value for name, value in left.items() if name not in names}
    hints = _NOT_OF_LOADING | (_NOT_OF_OPENVINO if loading.get("backend") == "openvino" else {})
    for name, hint in hints.items():
        value = left.pop(name, None)
        if value not in _OF_COURSE.get(name, (None, False)):
            raise UnsupportedOption(f"{name} in model_kwargs is not supported.", hint=hint)
    for name in _IGNORED:
        left.pop(name, None)
    given = over(over(generation, own), inside) | loading | {"model_kwargs": left or None}
    return {name: value for name, value in given.items() if value is not None or name not in OF_LOADING}


def of_pipeline(pipeline: Any) -> dict[str, Any]:
    """The options of a transformers pipeline that its generation config does not say to a generator. Raises
    UnsupportedOption for a setting that hfpipe cannot honour."""
    settings = {name: value for name, value in pipeline.generation_config.to_dict().items() if value is not None}
    if "max_new_tokens" in settings:
        settings.pop("max_length", None)
    # Private to transformers' pipelines; tried with 5.5.
    settings |= pipeline._preprocess_params | pipeline._forward_params | pipeline._postprocess_params
    settings["return_type"] = getattr(settings.get("return_type"), "name", None)
    options = translated(settings)
    return {name: options[name] for name in ("max_length", "eos_token_id", "add_special_tokens") if name in options}
