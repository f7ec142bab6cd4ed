"""What is asked for and what the model prefers, resolved into the numbers of one generation."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from hfpipe.types import DEFAULT_MAX_TOKENS, GenerationOptions, Sampling

# Keys of generation_config.json that change what is generated and that hfpipe does not apply, with the value at which
# they change nothing.
_NOT_APPLIED = {
    **dict.fromkeys(("num_beams", "typical_p"), 1),
    **dict.fromkeys(("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "token_healing"), 0),
    **dict.fromkeys(("top_h", "penalty_alpha", "exponential_decay_length_penalty", "min_new_tokens"), None),
    **dict.fromkeys(("guidance_scale", "sequence_bias", "watermarking_config", "bad_words_ids"), None),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), None),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), None),
}

# Some models ask for 1e-6, and mean 0: divided by it, logits overflow.
_GREEDY_BELOW = 1e-3


def setting(name: str, options: GenerationOptions, preferred: Mapping[str, Any]) -> Any:
    """The one rule of precedence: what the user gave, else what the model prefers, else the default."""
    given = getattr(options, name)
    if given is None:
        given = preferred.get("max_new_tokens" if name == "max_tokens" else name)
    if given is None:
        given = DEFAULT_MAX_TOKENS if name == "max_tokens" else getattr(Sampling(), name)
    return given


def resolve_sampling(options: GenerationOptions, preferred: Mapping[str, Any]) -> Sampling:
    """How tokens are drawn. Without a temperature, a model that does not ask for sampling is greedy, unless the user
    gave an option that only means something when sampling. A sampling run without a seed gets a random one."""
    temperature = options.temperature
    if temperature is None:
        wanted = (options.top_p, options.top_k, options.min_p)
        samples = preferred.get("do_sample") or any(value is not None for value in wanted)
        liked = preferred.get("temperature")
        temperature = 0.0 if not samples else 1.0 if liked is None else float(liked)
    penalty = float(setting("repetition_penalty", options, preferred))
    if temperature < _GREEDY_BELOW:
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        temperature=temperature,
        top_p=float(setting("top_p", options, preferred)),
        top_k=int(setting("top_k", options, preferred)),
        min_p=float(setting("min_p", options, preferred)),
        repetition_penalty=penalty,
        seed=random.SystemRandom().getrandbits(31) if options.seed is None else options.seed,
    )


def not_applied(preferred: Mapping[str, Any]) -> list[str]:
    """The settings of generation_config.json that would change the answer and are not applied."""
    return [
        f"{key}={preferred[key]}"
        for key, neutral in _NOT_APPLIED.items()
        if preferred.get(key) is not None and preferred[key] != neutral
    ]


def end_token_ids(*configs: Mapping[str, Any]) -> frozenset[int]:
    """The end-of-sequence ids that any config names: only one may know what ends a turn."""
    found = [config.get("eos_token_id") for config in configs]
    return frozenset(one for ids in found if ids is not None for one in (ids if isinstance(ids, list) else [ids]))


def stop_strings(preferred: Mapping[str, Any]) -> tuple[str, ...]:
    """The stop strings of the model itself."""
    stops = preferred.get("stop_strings") or ()
    return (stops,) if isinstance(stops, str) else tuple(stops)
