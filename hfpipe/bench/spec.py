"""What is measured: the metrics with their names, units and meanings, and all that a user may choose, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import StrictInt

from hfpipe import backends
from hfpipe.batch.formats import Format
from hfpipe.batch.lines import Lines, open_input
from hfpipe.batch.records import Record
from hfpipe.errors import UnsupportedOption, UsageError, nearest
from hfpipe.export import WEIGHT_FORMATS
from hfpipe.models import is_hub_id
from hfpipe.quality.tasks import BUILTIN, OWN, Item, parse
from hfpipe.types import LoadOptions

_BACKENDS = ("torch", "openvino")
_VARIABLES = frozenset({"prompt", "question"})
_AT_ONCE = "generated tokens of {} answers at once, from handing over their prompts to the last token"


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` is its key everywhere: in samples, tables, CSV and JSON. `meaning` says what is timed."""

    name: str
    unit: str
    higher_is_better: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Workload:
    """Random prompts of `prompt_tokens`, or prompts of the user's where that is None, with answers of `new_tokens`; and
    all of them again at once for each of `batches` above 1. Random ones of each of `depths` tell how fast it decodes
    after so many tokens. Raises UsageError for numbers below 1."""

    prompt_tokens: StrictInt | None
    new_tokens: StrictInt
    batches: tuple[StrictInt, ...] = (1,)
    depths: tuple[StrictInt, ...] = ()

    def __post_init__(self) -> None:
        if self.depths and self.prompt_tokens is None:
            raise UsageError("depths (--depth) cannot be combined with prompts (--prompts).")
        for name, value in [("prompt_tokens", self.prompt_tokens), ("new_tokens", self.new_tokens)]:
            if value is not None and value < 1:
                raise UsageError(f"{name} (--{name.replace('_', '-')}) must be at least 1, not {value}.")
        for option, numbers in [("batches (--batch)", self.batches), ("depths (--depth)", self.depths)]:
            if any(number < 1 for number in numbers):
                raise UsageError(f"{option} must be numbers from 1, not {', '.join(map(str, numbers))}.")

    @property
    def prefill(self) -> str:
        """The metric of reading prompts: pp512, as llama-bench names it."""
        return "prefill_tps" if self.prompt_tokens is None else f"pp{self.prompt_tokens}"

    @property
    def decode(self) -> str:
        """The metric of generating: tg128, as llama-bench names it."""
        return "decode_tps" if self.prompt_tokens is None else f"tg{self.new_tokens}"

    def deep(self, depth: int) -> str:
        """The metric of generating after a prompt of `depth`."""
        return f"{self.decode}@d{depth}"

    @property
    def speeds(self) -> tuple[str, ...]:
        """Prefill, decode, and batches from the smallest."""
        return (self.prefill, self.decode, *(f"batch{size}_tps" for size in sorted(self.batches) if size > 1))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All of them, in the order of a table."""
        prompt = "a prompt" if self.prompt_tokens is None else f"{self.prompt_tokens} tokens"
        decoded = "an answer" if self.prompt_tokens is None else f"{self.new_tokens} tokens after a prompt of one"
        return (
            Metric("load_s", "s", False, "reading the weights and making the engine ready, without imports"),
            Metric("cold_ttft_s", "s", False, "from the start of a process, as `hfpipe run`, to its first token"),
            Metric("ttft_ms", "ms", False, f"from handing over {prompt} to the first token"),
            Metric("tpot_ms", "ms", False, "each further token of that answer: (end - first token) / (tokens - 1)"),
            Metric("itl_ms_p50", "ms", False, "between two tokens of that answer, median"),
            Metric("itl_ms_p95", "ms", False, "between two tokens of that answer, 95th percentile"),
            Metric("itl_ms_p99", "ms", False, "between two tokens of that answer, 99th percentile"),
            Metric(self.prefill, "tokens/s", True, "tokens of the prompt / ttft"),
            Metric(self.decode, "tokens/s", True, f"{decoded}, its first token excluded"),
            *(Metric(self.deep(one), "tokens/s", True, f"the same after a prompt of {one}") for one in self.depths),
            *(Metric(f"batch{size}_tps", "tokens/s", True, _AT_ONCE.format(size)) for size in self.batches if size > 1),
            Metric("peak_rss_mb", "MB", False, "the most memory of the process that measured one answer at a time"),
            Metric("peak_gpu_mb", "MB", False, "the most memory that it had on the GPU"),
        )


@dataclass(frozen=True, slots=True)
class Spec:
    """What is to be measured and compared.

    Empty `backends` are torch and OpenVINO where they fit; empty `weight_formats` the model's own precision, int8 and
    int4. `loading` is for all, and each engine takes the options that it knows. `prompts` are the user's own, None for
    random ones. `reference` is the transformers model that OpenVINO folders are compared with, where hfpipe.json names
    none of `models`; `texts` by kind are those to measure quality on, None for the held-out ones. `tasks` are to be
    answered, too.
    Raises UsageError for what cannot be chosen, and UnsupportedOption for an option that no engine can honour.
    """

    models: tuple[str, ...]
    workload: Workload
    backends: tuple[str, ...] = ()
    weight_formats: tuple[str, ...] = ()
    loading: LoadOptions = field(default_factory=LoadOptions)
    repeats: int = 5
    prompts: Sequence[Record] | None = None
    quality: bool = True
    texts: Mapping[str, str] | None = None
    reference: str | None = None
    tasks: Sequence[Item] = ()

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("No model to measure.")
        if self.repeats < 1:
            raise UsageError(f"repeats (--repeats) must be at least 1, not {self.repeats}.")
        if not self.quality and (self.texts or self.reference):
            raise UsageError("quality=False (--no-quality) cannot be combined with --text or --reference.")
        for name in self.weight_formats:
            if name not in WEIGHT_FORMATS:
                hint = nearest(name, WEIGHT_FORMATS) or f"Available: {', '.join(WEIGHT_FORMATS)}."
                raise UsageError(f"Unknown weight format {name!r}.", hint=hint)
        if self.weight_formats and self.backends and "openvino" not in self.backends:
            names = " and ".join(self.backends)
            raise UsageError(f"{names} cannot honour weight_formats (--weight-format); only openvino can.")
        if self.workload.depths and "endpoint" in self.engines:
            raise UnsupportedOption("endpoint cannot honour depths (--depth).", hint="Only its server counts tokens.")
        unable = [name for name in self.engines if name not in _BACKENDS]
        if unable and any(item.choices for item in self.tasks):
            raise UnsupportedOption(
                f"{unable[0]} cannot honour multiple choice in tasks (--tasks): it gives no log-probabilities.",
                hint="Use a file of tasks without choices.",
            )
        honoured = frozenset().union(*(backends.honoured(name) for name in self.engines))
        # What is measured is the same task on all of them.
        others = {name: getattr(LoadOptions(), name) for name in honoured - {"task"}}
        for name in self.engines:
            backends.check_options(name, replace(self.loading, **others))
        count = sum(self.revision(model) is not None for model in {*self.models, self.reference or ""})
        if self.loading.revision is not None and count != 1:
            raise UsageError(f"revision (--revision) needs exactly one Hub model, got {count}.")

    @property
    def engines(self) -> Sequence[str]:
        return self.backends or _BACKENDS

    def revision(self, model: str) -> str | None:
        """The revision of the one Hub model; the other models have none."""
        return self.loading.revision if is_hub_id(model) else None


def read_prompts(path: Path) -> list[Record]:
    """The prompts of a file, as `hfpipe batch` reads it. Raises UsageError for an invalid line and an empty file."""
    form = Format(_VARIABLES)
    with open_input(path) as stream:
        records = [form.read_record(line) for line in Lines(stream, str(path))]
    for record in records:
        if record.error:
            raise UsageError(f"Invalid prompt in line {record.number} of {path}: {record.error.message}")
    if not records:
        raise UsageError(f"{path} has no prompts.")
    return records


def read_tasks(path: Path) -> tuple[Item, ...]:
    """The items of a file of tasks, hfpipe's own for BUILTIN where no file has that name. Raises UsageError for an
    invalid line and an empty file."""
    own = str(path) == BUILTIN and not path.exists()
    with open_input(OWN if own else path) as stream:
        return parse(((line.number, line.content) for line in Lines(stream, str(path))), str(path))


def read_text(path: Path) -> dict[str, str]:
    """The user's text, by the name of its file. Raises UsageError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"Cannot read {path}: {reason}.") from error
    if not text.strip():
        raise UsageError(f"{path} is empty.")
    return {path.name: text}
