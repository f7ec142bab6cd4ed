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


def metrics(prompt_tokens: int, new_tokens: int, batches: tuple[int, ...]) -> tuple[Metric, ...]:
    """All metrics of a run over prompts of `prompt_tokens` with answers of `new_tokens`, in the order of a table.

    A batch of 1 is what the first ones are measured with; each larger one has its throughput.
    """
    return (
        Metric("load_s", "s", False, "reading the weights and making the engine ready, without imports"),
        Metric("cold_ttft_s", "s", False, "from the start of an `hfpipe run` process to its first token"),
        Metric("ttft_ms", "ms", False, f"from handing over {prompt_tokens} tokens to the first token"),
        Metric("tpot_ms", "ms", False, "each further token of that answer: (end - first token) / (tokens - 1)"),
        Metric("itl_ms_p50", "ms", False, "between two tokens of that answer, median"),
        Metric("itl_ms_p95", "ms", False, "between two tokens of that answer, 95th percentile"),
        Metric("itl_ms_p99", "ms", False, "between two tokens of that answer, 99th percentile"),
        Metric(f"pp{prompt_tokens}", "tokens/s", True, f"{prompt_tokens} prompt tokens / ttft"),
        Metric(f"tg{new_tokens}", "tokens/s", True, f"{new_tokens} tokens after a prompt of one, without the first"),
        *(
            Metric(
                f"batch{size}_tps",
                "tokens/s",
                True,
                f"generated tokens of {size} answers at once, from handing over their prompts to the last token",
            )
            for size in batches
            if size > 1
        ),
        Metric("peak_rss_mb", "MB", False, "the most memory of the process that measured one answer at a time"),
        Metric("peak_gpu_mb", "MB", False, "the most memory that it had on the GPU"),
    )
