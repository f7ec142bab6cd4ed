"""The values that pass between the floors: frozen, plain, and checked where they are made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, cast

from hfpipe.errors import HFPipeError, UsageError, nearest

FinishReason = Literal["stop", "length", "error"]
ModelFormat = Literal["transformers", "openvino"]
Unit = Literal["bytes", "steps", "records"]

DEFAULT_MAX_TOKENS = 256
# Tokens that prompt lookup proposes at a time where nobody says how many, and the most.
PROMPT_LOOKUP, MOST_PROPOSED = 5, 64
# Backends that are none: each has one chosen by the model; see hfpipe.backends.choose.
CHOSEN = ("auto", "default")
TASKS = ("text-generation", "text2text-generation", "summarization", "translation")
# The task of one direction, as transformers has named it and T5's config.json does.
DIRECTION = re.compile(r"translation_(\w+)_to_(\w+)")
_KINDS = {str: "text", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


class Reporter(Protocol):
    """Receives the progress of slow work. The command line draws it; the library is silent."""

    def note(self, text: str) -> None:
        """Say one thing that the user should know."""

    def progress(self, task: str, done: int, total: int | None, unit: Unit = "bytes", detail: str = "") -> None:
        """`done` of `total` of `task`. A total of None is unknown; done == total ends it. `detail` is its part."""

    def stage(self, text: str | None) -> None:
        """Name the work that begins now, and end the work named before; None only ends it."""


class Silent:
    """The reporter that says nothing."""

    def note(self, *_: Any, **__: Any) -> None:
        pass

    progress = stage = note


@dataclass(frozen=True, slots=True)
class Task:
    """What a model does. `prefix` goes before each prompt; the languages are those of a translation where the model
    can choose, by its own names or the beginnings of them."""

    name: str = "text-generation"
    prefix: str = ""
    source_lang: str | None = None
    target_lang: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model in a local folder, ready to be loaded.

    `reference` is what the user wrote; `revision` a commit hash where it is known; `config` and `generation_config` are
    the files of that name, the latter may be empty; `context_length` counts tokens, None where the model sets no limit.
    Of an encoder-decoder model, prompt and answer have that limit each.
    """

    reference: str
    folder: Path
    format: ModelFormat
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    context_length: int | None
    revision: str | None = None
    task: Task = Task()

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.config.get("is_encoder_decoder", False))

    @property
    def decoder_start(self) -> tuple[int, ...]:
        """What the answers of an encoder-decoder model begin with where nobody chooses a language, empty for others."""
        if not self.is_encoder_decoder:
            return ()
        settings, names = (self.generation_config, self.config), ("decoder_start_token_id", "bos_token_id")
        start = next((one[name] for name in names for one in settings if one.get(name) is not None), 0)
        forced = self.generation_config.get("forced_bos_token_id")
        return (start,) if forced is None else (start, forced)

    @property
    def plain_template(self) -> str:
        """The template of prompts where there is no chat template."""
        return "raw" if self.is_encoder_decoder else "qa"


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model that a server runs. `reference` is what the user wrote, and the server's name of the model; `url` is the
    server's, without what may be secret in it."""

    reference: str
    url: str
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    context_length: int | None = None
    task: Task = Task()
    plain_template: str = "qa"


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How the Hub is asked for one model, beside what the environment says. With a `token` of False none is sent.

    A pickle has no token: where it is read, that of the environment holds.
    """

    token: str | Literal[False] | None = field(default=None, repr=False)
    cache_dir: Path | None = None
    local_files_only: bool = False

    def __reduce__(self) -> Any:
        return HubAccess, (False if self.token is False else None, self.cache_dir, self.local_files_only)


class ModelArguments(dict[str, Any]):
    """The arguments of from_pretrained. Those that say how the Hub is asked are `hub` and no items: what shows, sends
    or stores the items has no token. Raises UsageError for a wrong value, which it does not show of a token."""

    def __init__(self, given: Any = (), hub: HubAccess | None = None) -> None:
        super().__init__(given)
        token, older = self.pop("token", None), self.pop("use_auth_token", None)
        if token is not None and older is not None and token != older:
            raise UsageError("token and use_auth_token in model_kwargs exclude each other.")
        token = older if token is None else token
        if token is not None and not isinstance(token, str | bool):
            raise UsageError(f"token in model_kwargs must be text or a boolean, not {kind_of(token)}.")
        if not isinstance(folder := self.pop("cache_dir", None), str | PathLike | None):
            raise UsageError(f"cache_dir in model_kwargs must be a folder, not {folder!r}.")
        if not isinstance(local := self.pop("local_files_only", None), bool | None):
            raise UsageError(f"local_files_only in model_kwargs must be a boolean, not {local!r}.")
        said = token.strip() or None if isinstance(token, str) else None if token else token
        cache = Path(folder).expanduser().absolute() if folder else None
        self.hub = hub or HubAccess(cast(Any, said), cache, bool(local))

    def __reduce__(self) -> Any:
        return ModelArguments, (dict(self), self.hub)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded. None means: the backend's own default.

    `batch_size` is the number of requests in flight at once; 1 tells the backend to favour the first token's latency.
    `endpoint` is the URL of a server that runs the model, and makes "endpoint" of a backend that is not named;
    `timeout` is how many seconds one of its answers may take. `prompt_lookup` is how many tokens that followed the
    same words before are proposed at a time, and checked in one step; 0 or None for none, True for the usual number.
    `prompt_tokens` is about how long prompts will be, on which the fastest settings of a machine may depend; `tuned`
    are those of another run, None for this machine's own.
    """

    backend: str = "auto"
    device: str | None = None
    device_map: str | None = None
    dtype: str | None = None
    attn: str | None = None
    batch_size: int | None = None
    ov_config: Mapping[str, Any] = field(default_factory=dict)
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    exact: bool = False
    endpoint: str | None = None
    timeout: float | None = None
    prompt_tokens: int | None = None
    prompt_lookup: int | None = None
    tuned: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model_kwargs, Mapping):
            raise UsageError(f"model_kwargs must be a dict of options by name, not {kind_of(self.model_kwargs)}.")
        if not isinstance(self.model_kwargs, ModelArguments):
            object.__setattr__(self, "model_kwargs", ModelArguments(self.model_kwargs))
        if self.endpoint is not None and self.backend in CHOSEN:
            object.__setattr__(self, "backend", "endpoint")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UsageError(f"timeout must be a number of seconds above 0, not {self.timeout}.")
        if self.device is not None and self.device_map is not None:
            raise UsageError(
                "device and device_map exclude each other.",
                hint="device_map auto lets Accelerate place the model; device names one place.",
            )
        if self.task not in (None, *TASKS) and not DIRECTION.fullmatch(self.task or ""):
            raise UsageError(f"hfpipe does not do --task {self.task}.", hint=f"It does {', '.join(TASKS)}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {self.batch_size}.")
        lookup = PROMPT_LOOKUP if self.prompt_lookup is True else self.prompt_lookup or None
        if lookup is not None and not (isinstance(lookup, int) and 1 <= lookup <= MOST_PROPOSED):
            raise UsageError(f"prompt_lookup must be a number from 0 (off) to {MOST_PROPOSED}, not {lookup!r}.")
        object.__setattr__(self, "prompt_lookup", lookup)

    @property
    def hub(self) -> HubAccess:
        """What `model_kwargs` say of the Hub, with their `token`, `cache_dir` and `local_files_only`."""
        return cast(ModelArguments, self.model_kwargs).hub


_RANGES: Mapping[str, tuple[type, str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("max_tokens", "max_length"), (Integral, "a whole number from 1 to 2**31 - 1", lambda n: 1 <= n < 2**31)
    ),
    "temperature": (Real, "from 0 (greedy) to 1000", lambda t: 0 <= t <= 1000),
    "top_p": (Real, "above 0 and at most 1", lambda p: 0 < p <= 1),
    "top_k": (Integral, "a whole number from 0 (off) to 2**31 - 1", lambda k: 0 <= k < 2**31),
    "min_p": (Real, "at least 0 and below 1", lambda p: 0 <= p < 1),
    "repetition_penalty": (Real, "from 0.01 to 100", lambda p: 0.01 <= p <= 100),
    "seed": (Integral, "a whole number from 0 to 2**63 - 1", lambda n: 0 <= n < 2**63),
}


def _check_ranges(options: GenerationOptions | Sampling) -> None:
    for name, (kind, meaning, holds) in _RANGES.items():
        if (value := getattr(options, name, None)) is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real) or value != value:
            raise UsageError(f"{name} must be a number, not {kind_of(value)}.")
        if not (isinstance(value, kind) and holds(value)):
            raise UsageError(f"{name} must be {meaning}, not {value}.")


def kind_of(value: Any) -> str:
    """What JSON calls it."""
    if isinstance(value, Real) and value != value:
        return "NaN"
    return _KINDS.get(type(value), "null" if value is None else type(value).__name__)


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """What the user asked of a generation. None means: what the model's generation_config.json says.

    `max_length` counts the prompt too, and says nothing where max_tokens is given. With `do_sample` False the answer is
    greedy whatever the temperature. `eos_token_id`, one or several, takes the place of the model's own.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_length: int | None = None
    do_sample: bool | None = None
    eos_token_id: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        _check_ranges(self)
        if self.do_sample not in (None, True, False):
            raise UsageError(f"do_sample must be true or false, not {self.do_sample!r}.")
        ends = self.eos_token_id if isinstance(self.eos_token_id, list | tuple) else [self.eos_token_id or 0]
        if not all(isinstance(end, int) and not isinstance(end, bool) and 0 <= end < 2**31 for end in ends):
            raise UsageError(f"eos_token_id must be a token id or a list of them, not {self.eos_token_id!r}.")
        if not all(isinstance(stop, str) for stop in self.stop):
            raise UsageError(f"stop must be strings, not {self.stop}.")
        if "" in self.stop:
            raise UsageError("A stop string cannot be empty.")


OF_LOADING = frozenset(one.name for one in fields(LoadOptions))
OF_GENERATION = frozenset(one.name for one in fields(GenerationOptions))


# Names of from_pretrained that users of transformers give beside the model.
_OF_FROM_PRETRAINED = frozenset(
    (
        *("token", "use_auth_token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder"),
        *("torch_dtype", "attn_implementation", "use_safetensors", "quantization_config", "load_in_8bit"),
        *("load_in_4bit", "low_cpu_mem_usage", "variant", "code_revision", "max_memory", "offload_folder"),
        *("offload_buffers", "offload_state_dict", "tp_plan", "config", "key_mapping", "weights_only"),
    )
)


def keyword_options(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """A caller's keyword arguments as the values that options hold: torch's device and dtype are text, a device_map of
    parts is one of model_kwargs, stops are a tuple, and None gives no option of generation. Raises UsageError for one
    that is not `known`."""
    if unknown := sorted(given.keys() - known):
        hint = nearest(unknown[0], known) or f"Options: {', '.join(sorted(known))}."
        hint = "Give it in model_kwargs." if unknown[0] in _OF_FROM_PRETRAINED and "model_kwargs" in known else hint
        raise UsageError(f"Unknown option {', '.join(unknown)}.", hint=hint)
    options = {name: value for name, value in given.items() if value is not None or name not in OF_GENERATION}
    for name in ("device", "dtype"):
        if isinstance(value := options.get(name), int) or type(value).__module__ == "torch":
            options[name] = str(value).removeprefix("torch.")
    theirs = options.get("model_kwargs") or {}
    if isinstance(options.get("device_map"), Mapping) and isinstance(theirs, Mapping):
        places = options.pop("device_map")
        if theirs.get("device_map", places) != places:
            raise UsageError(f"device_map is given twice, as {places} and as {theirs['device_map']}.")
        options["model_kwargs"] = {**theirs, "device_map": places}
    if "stop" in options:
        stop = options["stop"]
        options["stop"] = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
    return options


class LoadFields(TypedDict, total=False):
    """The fields of LoadOptions as keyword arguments, for type checkers."""

    backend: str
    device: str | int | None
    device_map: str | Mapping[str, Any] | None
    dtype: str | None
    attn: str | None
    batch_size: int | None
    ov_config: Mapping[str, Any]
    model_kwargs: Mapping[str, Any]
    task: str | None
    source_lang: str | None
    target_lang: str | None
    revision: str | None
    trust_remote_code: bool
    allow_pickle: bool
    exact: bool
    endpoint: str | None
    timeout: float | None
    prompt_tokens: int | None
    prompt_lookup: int | None
    tuned: Mapping[str, str] | None


class GenerationFields(TypedDict, total=False):
    """The fields of GenerationOptions as keyword arguments, for type checkers."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    max_length: int | None
    do_sample: bool | None
    eos_token_id: int | Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn, resolved: the same numbers mean the same on every backend.

    Order: repetition penalty, temperature, top-k, top-p, min-p. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and
    repetition_penalty 1 are off.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_ranges(self)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One prompt as token ids. Generation ends at `max_tokens`, at one of `eos_token_ids`, or by `cancel`.

    For an encoder-decoder model `token_ids` are what is encoded, and `decoder_ids` what the decoder begins with, which
    is no part of the answer; where they are empty, it is what the model itself says.
    """

    id: str
    token_ids: tuple[int, ...]
    max_tokens: int
    eos_token_ids: frozenset[int] = frozenset()
    sampling: Sampling = Sampling()
    decoder_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New tokens of one request. The last event of a request, and only that, has a finish_reason.

    An end-of-sequence token is among the token_ids (it was generated, and counts). A cancelled request ends with
    finish_reason "stop". `same_step` says that the step of the engine which gave the event before gave this one, too.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: HFPipeError | None = None
    same_step: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens. The end-of-sequence token and those of a stop string count, since they were generated, and the
    forced first token of some encoder-decoder models, such as a language, since transformers counts it."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timing:
    """Moments of one request, in seconds of time.perf_counter: taken by the backend, first token, last token. Its
    tokens came in `steps` of the engine; 0 where they are not counted."""

    start: float
    first_token: float
    end: float
    steps: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to first token, from the moment the backend took the request."""
        return self.first_token - self.start

    def prefill_tps(self, usage: Usage) -> float | None:
        """Prompt tokens a second up to the first token."""
        return usage.prompt_tokens / self.ttft_s if self.ttft_s > 0 else None

    def decode_tps(self, usage: Usage) -> float | None:
        """Generated tokens a second, the first token excluded; None where there was only one."""
        seconds, tokens = self.end - self.first_token, usage.completion_tokens - 1
        return tokens / seconds if tokens > 0 and seconds > 0 else None


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One prompt as text, already filled into its template.

    `add_special_tokens` is False where the text holds its own beginning-of-sequence token, as a chat template's does.
    """

    id: str
    prompt: str
    options: GenerationOptions = GenerationOptions()
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TextEvent:
    """New text of one request. Its last event has a finish_reason, and usage and timing unless it failed early; `seed`
    is what a sampled answer was drawn with, None for a greedy one. A server may not tell the usage."""

    id: str
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    error: HFPipeError | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion(TextEvent):
    """A whole answer: a request's text events, joined."""

    finish_reason: FinishReason = "stop"


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What a loaded backend runs on, for --stats: `detail` holds the engine's own settings worth showing."""

    name: str
    device: str
    dtype: str
    detail: Mapping[str, str] = field(default_factory=dict)
