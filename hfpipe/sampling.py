"""What is asked for and what the model prefers, resolved into the numbers of one generation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from typing_extensions import Self

from hfpipe.types import DEFAULT_MAX_TOKENS, GenerationOptions, Sampling, TokenRequest

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
        given = DEFAULT_MAX_TOKENS if name == "max_tokens" else getattr(Sampling(), name, None)
    return given


def resolve_sampling(options: GenerationOptions, preferred: Mapping[str, Any]) -> Sampling:
    """How tokens are drawn. Without a temperature, a model that does not ask for sampling is greedy, unless the user
    gave do_sample, or an option that only means something when sampling. A sampling run without a seed gets a random
    one."""
    temperature = 0.0 if options.do_sample is False else options.temperature
    if temperature is None:
        wanted = options.top_p not in (None, 1) or options.top_k or options.min_p
        samples = options.do_sample or preferred.get("do_sample") or wanted
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


def not_applied(preferred: Mapping[str, Any], *, encoder_decoder: bool = False) -> list[str]:
    """The settings of generation_config.json that would change the answer and are not applied."""
    applied = {"forced_bos_token_id", *(field.name for field in fields(Rules))} if encoder_decoder else set[str]()
    return [
        f"{key}={preferred[key]}"
        for key, neutral in _NOT_APPLIED.items()
        if preferred.get(key) is not None and preferred[key] != neutral and key not in applied
    ]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the generation_config.json of an encoder-decoder model forbids and forces, by its names and with the meaning
    that transformers gives them. Lengths count what the decoder begins with."""

    bad_words_ids: Sequence[Sequence[int]] = ()
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int = 0
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    forced_eos_token_id: int | None = None

    @classmethod
    def of(cls, preferred: Mapping[str, Any]) -> Self:
        return cls(**{field.name: value for field in fields(cls) if (value := preferred.get(field.name)) is not None})

    def banned(self, request: TokenRequest, token_ids: Sequence[int]) -> set[int]:
        """The tokens that may not follow `token_ids`, which are the answer so far."""
        whole, ends = (*request.decoder_ids, *token_ids), request.eos_token_ids
        banned = {*self.suppress_tokens, *(() if token_ids else self.begin_suppress_tokens)}
        for words in self.bad_words_ids:
            *before, last = words
            if (before or last not in ends) and whole[len(whole) - len(before) :] == tuple(before):
                banned.add(last)
        # The first token that a decoder begins with is none that was generated.
        if len(whole) < max(self.min_length, self.min_new_tokens and 1 + self.min_new_tokens):
            banned |= ends
        for size, text in ((self.no_repeat_ngram_size, whole), (self.encoder_no_repeat_ngram_size, request.token_ids)):
            if 0 < size <= len(whole) + 1:
                ngram = whole[len(whole) - size + 1 :]
                starts = range(len(text) - size + 1)
                banned.update(text[start + size - 1] for start in starts if text[start : start + size - 1] == ngram)
        return banned


NO_RULES = Rules()


def end_token_ids(*configs: Mapping[str, Any]) -> frozenset[int]:
    """The end-of-sequence ids that any config names: only one may know what ends a turn."""
    found = [config.get("eos_token_id") for config in configs]
    return frozenset(
        one for ids in found if ids is not None for one in (ids if isinstance(ids, list | tuple) else [ids])
    )


def stop_strings(preferred: Mapping[str, Any]) -> tuple[str, ...]:
    """The stop strings of the model itself."""
    stops = preferred.get("stop_strings") or ()
    return (stops,) if isinstance(stops, str) else tuple(stops)
