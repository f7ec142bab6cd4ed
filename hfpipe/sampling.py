"""What is asked for and what the model prefers, resolved into the numbers of one generation."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hfpipe.types import DEFAULT_MAX_TOKENS, GenerationOptions, Sampling

# Keys of generation_config.json that change what is generated and that hfpipe does not apply, with the value at which
# they change nothing.
_NOT_APPLIED = {
    "num_beams": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "top_h": None,
    "min_length": 0,
    "penalty_alpha": None,
    "min_new_tokens": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "guidance_scale": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "token_healing": False,
}


# Some models ask for 1e-6, and mean 0: divided by it, logits overflow.
_GREEDY_BELOW = 1e-3


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it comes from: "option", "generation_config.json" or "default"."""

    value: Any
    source: str


def setting(name: str, options: GenerationOptions, preferred: Mapping[str, Any]) -> Setting:
    """The one rule of precedence: what the user gave, else what the model prefers, else the default."""
    given = getattr(options, name)
    if given is not None:
        return Setting(given, "option")
    key = "max_new_tokens" if name == "max_tokens" else name
    if preferred.get(key) is not None:
        return Setting(preferred[key], "generation_config.json")
    return Setting(DEFAULT_MAX_TOKENS if name == "max_tokens" else _default(name), "default")


def _default(name: str) -> Any:
    return next(field.default for field in fields(Sampling) if field.name == name)


def resolve_max_tokens(options: GenerationOptions, preferred: Mapping[str, Any]) -> int:
    return int(setting("max_tokens", options, preferred).value)


def resolve_sampling(options: GenerationOptions, preferred: Mapping[str, Any]) -> Sampling:
    """How tokens are drawn. Without a temperature, a model that does not ask for sampling is greedy, unless the user
    gave an option that only means something when sampling. A sampling run without a seed gets a random one."""
    temperature = _temperature(options, preferred)
    penalty = float(setting("repetition_penalty", options, preferred).value)
    if temperature < _GREEDY_BELOW:
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        temperature=temperature,
        top_p=float(setting("top_p", options, preferred).value),
        top_k=int(setting("top_k", options, preferred).value),
        min_p=float(setting("min_p", options, preferred).value),
        repetition_penalty=penalty,
        seed=random.SystemRandom().getrandbits(31) if options.seed is None else options.seed,
    )


def _temperature(options: GenerationOptions, preferred: Mapping[str, Any]) -> float:
    if options.temperature is not None:
        return options.temperature
    wants_sampling = any(value is not None for value in (options.top_p, options.top_k, options.min_p))
    if not (preferred.get("do_sample") or wants_sampling):
        return 0.0
    preference = preferred.get("temperature")
    return 1.0 if preference is None else float(preference)


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
