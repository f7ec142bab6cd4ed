"""`hfpipe run`: one prompt in, one answer out, as it appears."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfpipe.cli import options as o
from hfpipe.cli.startup import load_pipe, silence
from hfpipe.cli.terminal import Answer, Terminal, table, tell
from hfpipe.errors import UsageError
from hfpipe.text.templates import PromptTemplate, Template, parse_template
from hfpipe.types import Timing, Usage

if TYPE_CHECKING:
    from hfpipe.generator import Generator


TYPED = "COMMANDLINE"


def run(
    context: typer.Context,
    model: o.ModelOrPromptArg = None,
    prompt: o.PromptArg = None,
    model_option: o.ModelOpt = None,
    backend: o.BackendOpt = "auto",
    device: o.DeviceOpt = None,
    device_map: o.DeviceMapOpt = None,
    dtype: o.DtypeOpt = None,
    attn: o.AttnOpt = None,
    ov_config: o.OvConfigOpt = None,
    model_kwarg: o.ModelKwargOpt = None,
    task: o.TaskOpt = None,
    revision: o.RevisionOpt = None,
    trust_remote_code: o.TrustOpt = False,
    allow_pickle: o.PickleOpt = False,
    exact: o.ExactOpt = False,
    max_tokens: o.MaxTokensOpt = None,
    temperature: o.TemperatureOpt = None,
    top_p: o.TopPOpt = None,
    top_k: o.TopKOpt = None,
    min_p: o.MinPOpt = None,
    repetition_penalty: o.RepetitionPenaltyOpt = None,
    seed: o.SeedOpt = None,
    stop: o.StopOpt = None,
    template: o.TemplateOpt = None,
    var: o.VarOpt = None,
    system: o.SystemOpt = None,
    chat_template_name: o.ChatTemplateNameOpt = None,
    json: o.JsonOpt = False,
    no_stream: o.NoStreamOpt = False,
    stats: o.StatsOpt = False,
    show_prompt: o.ShowPromptOpt = False,
    quiet: o.QuietOpt = False,
    verbose: o.VerboseOpt = False,
) -> None:
    """Stream the answer to one prompt.

    Text on stdin goes before PROMPT, or into {input} of the template.
    """
    given = locals()
    loading = o.load_options(given, batch_size=1)
    generation = o.generation_options(given)
    model_given = context.get_parameter_source("model_option")
    reference, prompt = _model_and_prompt(model, prompt, model_option, typed=getattr(model_given, "name", "") == TYPED)
    spec = prompt_spec(prompt, template, o.parse_variables(var))
    silence(verbose=verbose)
    answer = Answer()
    with Terminal(quiet=quiet, verbose=verbose) as terminal:
        llm = load_pipe(reference, loading, generation, terminal)
    from hfpipe.langchain import Recorder

    used = llm.generator.prompt_template(spec.template, system, spec.variables, chat_template_name)
    text = used.fill(spec.values(used))
    if show_prompt:
        tell(text)
    recorder = Recorder()
    parts = llm.stream(text, {"callbacks": [recorder]}, template="raw", add_special_tokens=used.add_special_tokens)
    with answer:
        text = _write(parts, answer, stream=not (json or no_stream))
    measured = report(llm.generator, recorder.info)
    if json:
        answer.write_json({"text": text, **measured})
    elif no_stream:
        answer.write(text + "\n")
    if measured["finish_reason"] == "length" and not json:
        terminal.note(_why_cut(measured["usage"], llm.generator.source.context_length))
    if stats:
        table(as_rows(measured))


def _model_and_prompt(
    first: str | None, second: str | None, option: str | None, *, typed: bool
) -> tuple[str, str | None]:
    """MODEL and PROMPT. Where `option` (-m, or HFPIPE_MODEL if it was not `typed`) is the model, a lone word is the
    prompt. Raises UsageError where there is no model, or there are two."""
    if option is not None and second is None:
        return option, first
    if first is None:
        raise UsageError("Missing argument 'MODEL'.", hint='Give one, as in: hfpipe run smollm2 "What is EEG?"')
    if option is not None and typed:
        raise UsageError(f"The model is given twice: {first} and --model {option}.", hint="Leave one of them out.")
    return first, second


@dataclass(frozen=True)
class PromptSpec:
    """What the command line says of the prompt before the model is known. A `prompt` of None has no place in the
    template: `variables` fill it. A `template` of None is the model's own."""

    prompt: str | None
    template: Template | None
    variables: Mapping[str, str]

    def values(self, used: PromptTemplate) -> dict[str, str]:
        """The prompt as the variable of the template that it stands for; `used` has the given ones already."""
        if self.prompt is None:
            return {}
        name = used.template.prompt_variable(self.variables)
        if name is None:
            raise _no_place(used.name)
        return {name: self.prompt}


def prompt_spec(prompt: str | None, template: str | None, variables: Mapping[str, str]) -> PromptSpec:
    """Read stdin, and check what can be checked without a model."""
    parsed = None if template is None else parse_template(template)
    typed = None if prompt in (None, "-") else _utf8(os.fsencode(prompt), "The prompt")
    piped = _stdin() if prompt == "-" or not sys.stdin.isatty() else None
    if parsed and piped and "input" in parsed.variables and "input" not in variables:
        variables, piped = {**variables, "input": piped}, None
    # A text that is asked about goes before the question. White space alone is no text.
    parts = [part for part in (piped, typed) if part is not None and (part.strip() or typed is None)]
    text = "\n\n".join(parts) if parts or typed is not None else None
    if parsed is not None and parsed.prompt_variable(variables) is None:
        if text:
            raise _no_place(parsed.name)
        return PromptSpec(None, parsed, variables)
    if text is None:
        raise UsageError(
            "No prompt is given.", hint='Give one, as in: hfpipe run smollm2 "What is EEG?"; or pipe it in.'
        )
    if not text.strip():
        raise UsageError("The prompt is empty.")
    if parsed is not None:
        # Now, not once the model is loaded: a variable may be missing.
        parsed.fill({**variables, parsed.prompt_variable(variables) or "": text})
    return PromptSpec(text, parsed, variables)


def _no_place(template: str) -> UsageError:
    return UsageError(f"The prompt has no place in {template}: --var fills all of its variables.")


def _stdin() -> str:
    """All of stdin, without the byte order mark and the carriage returns of a file from Windows."""
    text = _utf8(sys.stdin.buffer.read(), "The prompt on stdin")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n")


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8 text: byte {data[error.start]:#x} at {error.start:,}.") from error


def _write(parts: Iterator[str], answer: Answer, *, stream: bool) -> str:
    """Join the parts; with `stream`, write them as they come, and a newline after the last."""
    written = []
    for part in parts:
        written.append(part)
        if stream:
            answer.write(part)
    if stream:
        answer.write("\n")
    return "".join(written)


def _why_cut(usage: Mapping[str, int], context_length: int | None) -> str:
    if usage["total_tokens"] == context_length:
        return f"[stopped: the context of {context_length} tokens is full]"
    return f"[stopped at {usage['completion_tokens']} tokens; -n raises it]"


def report(generator: Generator, info: Mapping[str, Any]) -> dict[str, Any]:
    """One flat account of an answer. Times in seconds (`_s`) or milliseconds (`_ms`), rates in tokens a second.

    `load_s` is finding and loading the model; `ttft_ms` runs from the prompt's tokenizing to the first token;
    `cold_ttft_s` from the start of the process; `decode_tps` leaves out the first token.
    """
    # It needs psutil, which takes long.
    from hfpipe.machine import peak_memory

    usage = Usage(info["usage"]["prompt_tokens"], info["usage"]["completion_tokens"])
    timing = Timing(**info["timing"])
    backend = generator.backend.info
    return {
        "finish_reason": info["finish_reason"],
        "usage": info["usage"],
        "seed": info.get("seed"),
        "model": generator.source.reference,
        "backend": backend.name,
        "why": generator.why,
        "device": backend.device,
        "dtype": backend.dtype,
        "detail": dict(backend.detail),
        "load_s": round(generator.load_s, 3),
        "ttft_ms": round(timing.ttft_s * 1000, 1),
        "cold_ttft_s": _rounded(_since_process_start(timing.first_token), 3),
        "prefill_tps": _rounded(timing.prefill_tps(usage), 1),
        "decode_tps": _rounded(timing.decode_tps(usage), 1),
        "peak_rss_mb": round(peak_memory() / 1e6, 1),
    }


def as_rows(measured: Mapping[str, Any]) -> dict[str, str]:
    """The account for a person: names and texts."""
    usage, detail = measured["usage"], "".join(f", {key} {value}" for key, value in measured["detail"].items())
    return {
        "backend": f"{measured['backend']} ({measured['why']})",
        "runs on": f"{measured['device']}, {measured['dtype']}{detail}",
        "load": f"{measured['load_s']:.2f} s",
        "first token": f"{measured['ttft_ms']:.0f} ms" + _cold(measured["cold_ttft_s"]),
        "prompt": f"{usage['prompt_tokens']} tokens" + _rate(measured["prefill_tps"]),
        "completion": f"{usage['completion_tokens']} tokens" + _rate(measured["decode_tps"]),
        "finish reason": measured["finish_reason"],
        "seed": "none, greedy" if measured["seed"] is None else str(measured["seed"]),
        "peak memory": f"{measured['peak_rss_mb']:.0f} MB",
    }


def _cold(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds:.2f} s after the process started"


def _rate(tokens_per_second: float | None) -> str:
    return "" if tokens_per_second is None else f", {tokens_per_second:.1f} a second"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _since_process_start(moment: float) -> float:
    """Seconds from the start of the process to `moment` of time.perf_counter."""
    return _process_age() - (time.perf_counter() - moment)


def _process_age() -> float:
    if sys.platform == "linux":
        # psutil adds these ticks to a boot time that the kernel gives in whole seconds.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    import psutil

    age: float = time.time() - psutil.Process().create_time()
    return age
