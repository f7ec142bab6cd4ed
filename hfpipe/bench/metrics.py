"""What is measured: names as the field has them, units, which way is better, and what exactly is timed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` is its key everywhere: in samples, tables, CSV and JSON. `meaning` says what is timed."""

    name: str
    unit: str
    higher_is_better: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured: random prompts of `prompt_tokens`, or prompts of the user's where that is None, with answers of
    `new_tokens`; and all of them again at once for each of `batches` above 1."""

    prompt_tokens: int | None
    new_tokens: int
    batches: tuple[int, ...] = (1,)

    @property
    def prefill(self) -> str:
        """The metric of reading prompts: pp512, as llama-bench names it."""
        return "prefill_tps" if self.prompt_tokens is None else f"pp{self.prompt_tokens}"

    @property
    def decode(self) -> str:
        """The metric of generating: tg128, as llama-bench names it."""
        return "decode_tps" if self.prompt_tokens is None else f"tg{self.new_tokens}"

    @property
    def speeds(self) -> tuple[str, ...]:
        """Prefill, decode, and batches from the smallest on."""
        return (self.prefill, self.decode, *(batch_metric(size) for size in sorted(self.batches) if size > 1))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All there are, in the order of a table."""
        prompt = "a prompt" if self.prompt_tokens is None else f"{self.prompt_tokens} tokens"
        decoded = "an answer" if self.prompt_tokens is None else f"{self.new_tokens} tokens after a prompt of one"
        return (
            Metric("load_s", "s", False, "reading the weights and making the engine ready, without imports"),
            Metric("cold_ttft_s", "s", False, "from the start of an `hfpipe run` process to its first token"),
            Metric("ttft_ms", "ms", False, f"from handing over {prompt} to the first token"),
            Metric("tpot_ms", "ms", False, "each further token of that answer: (end - first token) / (tokens - 1)"),
            Metric("itl_ms_p50", "ms", False, "between two tokens of that answer, median"),
            Metric("itl_ms_p95", "ms", False, "between two tokens of that answer, 95th percentile"),
            Metric("itl_ms_p99", "ms", False, "between two tokens of that answer, 99th percentile"),
            Metric(self.prefill, "tokens/s", True, "tokens of the prompt / ttft"),
            Metric(self.decode, "tokens/s", True, f"{decoded}, its first token excluded"),
            *(Metric(batch_metric(size), "tokens/s", True, _AT_ONCE.format(size)) for size in self.batches if size > 1),
            Metric("peak_rss_mb", "MB", False, "the most memory of the process that measured one answer at a time"),
            Metric("peak_gpu_mb", "MB", False, "the most memory that it had on the GPU"),
        )


_AT_ONCE = "generated tokens of {} answers at once, from handing over their prompts to the last token"


def batch_metric(size: int) -> str:
    return f"batch{size}_tps"
