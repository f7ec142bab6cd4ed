"""What the LLM and the chat model share: a generator, and generation options that every call may override."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Self

from hfpipe.errors import UsageError
from hfpipe.generator import Generator, open_generator
from hfpipe.types import Completion, GenerationOptions, LoadOptions, Reporter, TextEvent, TextRequest

_GENERATION_FIELDS = frozenset(field.name for field in fields(GenerationOptions))
_LOAD_FIELDS = frozenset(field.name for field in fields(LoadOptions))


class OverGenerator(BaseModel):
    """The fields of a model over a generator. `model` is the reference it was loaded from."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str
    generator: Generator = Field(exclude=True, repr=False)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def load(cls, model: str, *, reporter: Reporter | None = None, **options: Any) -> Self:
        """Load `model` (any reference that `hfpipe run` takes). `options` are the fields of LoadOptions and of
        GenerationOptions. Raises UsageError for one that is neither."""
        loading = {key: value for key, value in options.items() if key in _LOAD_FIELDS}
        rest = {key: value for key, value in options.items() if key not in _LOAD_FIELDS}
        generation = asdict(overridden(GenerationOptions(), rest))
        if isinstance(loading.get("device"), int):
            loading["device"] = str(loading["device"])
        return cls(model=model, generator=open_generator(model, LoadOptions(**loading), reporter), **generation)

    def get_token_ids(self, text: str) -> list[int]:
        """The ids of `text` with the model's own tokenizer, so that get_num_tokens is right."""
        return list(self.generator.tokenizer.encode(text, add_special_tokens=False))

    def _text_request(
        self, request_id: str, prompt: str, stop: Sequence[str] | None, overrides: Mapping[str, Any], special: bool
    ) -> TextRequest:
        given = dict(overrides) if stop is None else {**overrides, "stop": stop}
        return TextRequest(request_id, prompt, overridden(self._options, given), special)

    @property
    def _options(self) -> GenerationOptions:
        return GenerationOptions(**{name: getattr(self, name) for name in _GENERATION_FIELDS})

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """What a cache of answers must tell apart."""
        info = self.generator.backend.info
        return {"model": self.model, "backend": info.name, "dtype": info.dtype, **asdict(self._options)}


def overridden(options: GenerationOptions, overrides: Mapping[str, Any]) -> GenerationOptions:
    """`options` with what `overrides` gives; None gives nothing. Raises UsageError for an option that is not known."""
    unknown = sorted(set(overrides) - _GENERATION_FIELDS)
    if unknown:
        raise UsageError(
            f"Unknown option {', '.join(unknown)}.", hint=f"Known are {', '.join(sorted(_GENERATION_FIELDS))}."
        )
    given = {key: value for key, value in overrides.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    return GenerationOptions(**{**asdict(options), **given, "stop": tuple(given.get("stop", options.stop))})


def generation_info(answer: Completion | TextEvent) -> dict[str, Any]:
    """What LangChain carries beside a text: finish_reason, the seed if it was sampled, usage, and timing in seconds
    of time.perf_counter."""
    info: dict[str, Any] = {"finish_reason": answer.finish_reason}
    if answer.seed is not None:
        info["seed"] = answer.seed
    if answer.error is not None:
        info["error"] = answer.error
    if answer.usage is not None and answer.timing is not None:
        info["usage"] = {**asdict(answer.usage), "total_tokens": answer.usage.total_tokens}
        info["timing"] = asdict(answer.timing)
    return info
