"""`hfpipe run`: one prompt in, one answer out, as it appears."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hfpipe import backends, store
from hfpipe.cli import options as o
from hfpipe.cli.startup import load_pipe, silence
from hfpipe.cli.terminal import Answer, Terminal, columns, tell
from hfpipe.errors import HFPipeError, UsageError
from hfpipe.text.templates import Conversation, PromptTemplate, Template, parse_template, prompt_template
from hfpipe.types import GenerationOptions, LoadOptions, ModelSource, Timing, Usage

if TYPE_CHECKING:
    from hfpipe.generator import TextGenerator

# Of a token, about.
_CHARACTERS = 4
_AS_IN = 'Give one, as in: hfpipe run smollm2 "What is EEG?"'


def run(
    context: typer.Context,
    *,
    model: o.ModelOrPromptArg = None,
    prompt: o.PromptArg = None,
    model_option: o.ModelOpt = None,
    backend: o.BackendOpt = "auto",
    loading: LoadOptions,
    generation: GenerationOptions,
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
    typed = getattr(context.get_parameter_source("model_option"), "name", "") == "COMMANDLINE"
    reference, prompt = _model_and_prompt(model, prompt, model_option, typed=typed)
    parsed = None if template is None else parse_template(template)
    text, variables = _read_prompt(prompt, parsed, o.pairs("--var", var or ()))
    silence(verbose=verbose)
    answer = Answer()
    with Terminal(quiet=quiet, verbose=verbose) as terminal:
        loading = replace(loading, backend=backend, batch_size=1, prompt_tokens=len(text or "") // _CHARACTERS)
        llm = load_pipe(reference, loading, generation, terminal)
    from hfpipe.langchain import Recorder

    generator, plain = llm.generator, llm.generator.source.plain_template
    used = prompt_template(generator.tokenizer, reference, parsed, system, variables, chat_template_name, plain)
    values = {**variables, **_as_variable(text, used.template, variables)}
    filled = used.fill(values)
    if show_prompt:
        tell(generator.prefix + filled)
    asked: dict[str, Any] = {"template": "raw", "add_special_tokens": used.add_special_tokens}
    if isinstance(filled, Conversation):
        # A server gets messages, and not the text that they make.
        filled = values.pop("prompt")
        asked = {"template": "chat", "system": system, "variables": values}
    recorder = Recorder()
    streams = not (json or no_stream)
    written = []
    with answer:
        for part in llm.stream(filled, {"callbacks": [recorder]}, **asked):
            written.append(part)
            if streams:
                answer.write(part)
        if not json:
            answer.write("\n" if streams else "".join(written) + "\n")
    measured = report(llm.generator, recorder.info)
    if json:
        answer.write_json({"text": "".join(written), **measured})
    elif measured["finish_reason"] == "length":
        terminal.note(_why_cut(measured["usage"], generator))
    if stats:
        tell(columns(as_rows(measured)))
    if backend == "auto" and isinstance(generator.source, ModelSource) and generator.info.name == "torch":
        _advise(generator.source, loading, terminal)


def _advise(source: ModelSource, loading: LoadOptions, terminal: Terminal) -> None:
    """Say once for each model what would be faster on a CPU."""
    if terminal.is_seen and backends.fits_openvino(loading):
        with suppress(HFPipeError, OSError):
            if store.first_time("openvino", source.reference):
                name = source.reference
                terminal.note(
                    f"OpenVINO is usually faster on a CPU. Run once with --backend openvino to export {name}; "
                    "later runs then use the export."
                )


def _model_and_prompt(
    first: str | None, second: str | None, option: str | None, *, typed: bool
) -> tuple[str, str | None]:
    """MODEL and PROMPT. Where `option` (-m, or HFPIPE_MODEL if it was not `typed`) is the model, a lone word is the
    prompt. Raises UsageError where there is no model, or there are two."""
    if option is not None and second is None:
        return option, first
    if first is None:
        raise UsageError("Missing argument 'MODEL'.", hint=_AS_IN)
    if option is not None and typed:
        raise UsageError(f"The model is given twice: {first} and --model {option}.", hint="Leave one of them out.")
    return first, second


def _read_prompt(
    prompt: str | None, template: Template | None, variables: Mapping[str, str]
) -> tuple[str | None, Mapping[str, str]]:
    """The prompt and the variables of the template, with what is on stdin. What can be checked before the model is
    loaded is checked."""
    typed = None if prompt in (None, "-") else _utf8(os.fsencode(prompt), "The prompt")
    piped = None
    if prompt == "-" or not sys.stdin.isatty():
        # Without the byte order mark and the carriage returns of a file from Windows.
        piped = _utf8(sys.stdin.buffer.read(), "The prompt on stdin").removeprefix("\ufeff").replace("\r\n", "\n")
        piped = piped.removesuffix("\n")
    if template and piped and "input" in template.variables and "input" not in variables:
        variables, piped = {**variables, "input": piped}, None
    # A text that is asked about goes before the question. White space alone is no text.
    text = piped if typed is None else "\n\n".join(part for part in (piped, typed) if part and part.strip())
    checked = template or parse_template("raw")
    filled = {**variables, **_as_variable(text, checked, variables)}
    if checked.kind != "chat":
        PromptTemplate(checked, "").fill(filled)
    return text, variables


def _as_variable(text: str | None, template: Template, variables: Mapping[str, str]) -> Mapping[str, str]:
    """The prompt as the variable of `template` that it stands for: the one that `variables` leave."""
    name = template.prompt_variable(variables)
    if name is None:
        if text:
            hint = "Write {prompt} into the template where PROMPT goes; stdin fills {input}."
            raise UsageError(f"The prompt has no place in {template.name}: its variables have values.", hint=hint)
        return {}
    if text is None:
        raise UsageError("No prompt is given.", hint=f"{_AS_IN}; or pipe it in.")
    if not text.strip():
        raise UsageError("The prompt is empty.")
    return {name: text}


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8 text: byte {data[error.start]:#x} at {error.start:,}.") from error


def _why_cut(usage: Mapping[str, int] | None, generator: TextGenerator) -> str:
    limit = generator.source.context_length
    if usage and (len(generator.decoder_ids[:1]) or usage["prompt_tokens"]) + usage["completion_tokens"] == limit:
        return f"[stopped: the context of {limit} tokens is full]"
    return f"[stopped at {usage['completion_tokens'] if usage else 'the most'} tokens; -n raises it]"


def report(generator: TextGenerator, info: Mapping[str, Any]) -> dict[str, Any]:
    """One flat account of an answer. Times in seconds (`_s`) or milliseconds (`_ms`), rates in tokens a second.

    `load_s` is finding and loading the model; `ttft_ms` runs from the prompt's tokenizing to the first token;
    `cold_ttft_s` from the start of the process; `decode_tps` leaves out the first token.
    """
    # It needs psutil, which takes long.
    from hfpipe.machine import peak_memory

    counts, timing = info.get("usage"), Timing(**info["timing"])
    # Rates leave out what the model did not generate.
    usage = counts and Usage(counts["prompt_tokens"], counts["completion_tokens"] - len(generator.decoder_ids[1:]))
    prefill, decode = (timing.prefill_tps(usage), timing.decode_tps(usage)) if usage else (None, None)
    backend = generator.info
    return {
        "finish_reason": info["finish_reason"],
        "usage": counts,
        "seed": info.get("seed"),
        "model": generator.source.reference,
        "backend": backend.name,
        "why": generator.why,
        "device": backend.device,
        "dtype": backend.dtype,
        "detail": dict(backend.detail),
        "load_s": round(generator.load_s, 3),
        "ttft_ms": round(timing.ttft_s * 1000, 1),
        "cold_ttft_s": round(_process_age() - (time.perf_counter() - timing.first_token), 3),
        "prefill_tps": prefill and round(prefill, 1),
        "decode_tps": decode and round(decode, 1),
        "tokens_per_step": round(usage.completion_tokens / timing.steps, 2) if usage and timing.steps else None,
        "peak_rss_mb": round(peak_memory() / 1e6, 1),
    }


def as_rows(measured: Mapping[str, Any]) -> dict[str, str]:
    """The account for a person: names and texts."""
    usage, detail = measured["usage"], "".join(f", {key} {value}" for key, value in measured["detail"].items())
    prefill, decode = (
        f", {rate} a second" if (rate := measured[f"{part}_tps"]) else "" for part in ("prefill", "decode")
    )
    counts = {
        name: f"{usage[f'{name}_tokens']} tokens" if usage else "not counted by the server"
        for name in ("prompt", "completion")
    }
    if "prompt lookup" in measured["detail"]:
        decode += f", {measured['tokens_per_step']} a step"
    return {
        "backend": f"{measured['backend']} ({measured['why']})",
        "runs on": f"{measured['device']}, {measured['dtype']}{detail}",
        "load": f"{measured['load_s']:.2f} s",
        "first token": f"{measured['ttft_ms']:.0f} ms, {measured['cold_ttft_s']:.2f} s after the process started",
        "prompt": counts["prompt"] + prefill,
        "completion": counts["completion"] + decode,
        "finish reason": measured["finish_reason"],
        "seed": _seed(measured),
        "peak memory": f"{measured['peak_rss_mb']:.0f} MB",
    }


def _seed(measured: Mapping[str, Any]) -> str:
    if measured["seed"] is not None:
        return str(measured["seed"])
    return "none was sent" if measured["backend"] == "endpoint" else "none, greedy"


def _process_age() -> float:
    if sys.platform == "linux":
        # psutil adds these ticks to a boot time that the kernel gives in whole seconds.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    import psutil

    age: float = time.time() - psutil.Process().create_time()
    return age
