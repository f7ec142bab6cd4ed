"""`hfpipe run`: one prompt in, one answer out, as it appears."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hfpipe.cli import options as o
from hfpipe.cli.startup import load_pipe, silence
from hfpipe.cli.terminal import Answer, Terminal, table, tell
from hfpipe.errors import UsageError
from hfpipe.text.templates import PromptTemplate, Template, parse_template


def run(
    model: o.ModelArg,
    prompt: o.PromptArg = None,
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
    """Stream the answer to one prompt."""
    given = locals()
    loading = o.load_options(given, batch_size=1)
    generation = o.generation_options(given)
    asked = ask(prompt, template, o.parse_variables(var))
    silence(verbose=verbose)
    answer = Answer()
    with Terminal(quiet=quiet, verbose=verbose) as talk:
        llm = load_pipe(model, loading, generation, talk)
    from hfpipe.cli.stats import as_rows, report
    from hfpipe.langchain import Recorder, chain

    recorder = Recorder(on_prompt=tell if show_prompt else None)
    used = llm.generator.prompt_template(asked.template, system, asked.given, chat_template_name)
    parts = chain(llm, used).stream(asked.variables(used), {"callbacks": [recorder]})
    with answer:
        text = _write(parts, answer, stream=not (json or no_stream))
    measured = report(llm.generator, recorder.info)
    if json:
        answer.write_json({"text": text, **measured})
    elif no_stream:
        answer.write(text + "\n")
    if stats:
        table(as_rows(measured))


@dataclass(frozen=True)
class Asked:
    """What the command line says of the prompt before the model is known. `template` is None for the model's own."""

    prompt: str | None
    template: Template | None
    given: Mapping[str, str]

    def variables(self, used: PromptTemplate) -> dict[str, str]:
        """The prompt as the variable of the template that it stands for; `used` has the given ones already."""
        if self.prompt is None:
            return {}
        name = used.template.prompt_variable(self.given)
        if name is None:
            raise _no_place(used.name)
        return {name: self.prompt}


def ask(prompt: str | None, template: str | None, given: Mapping[str, str]) -> Asked:
    """Check what can be checked without a model. Reads stdin where the prompt is to come from there."""
    parsed = None if template is None else parse_template(template)
    if parsed is not None and parsed.prompt_variable(given) is None:
        if prompt is not None:
            raise _no_place(parsed.name)
        return Asked(None, parsed, given)
    text = read_prompt(prompt)
    if not text.strip():
        raise UsageError("The prompt is empty.")
    if parsed is not None:
        # Now, not once the model is loaded: a variable may be missing.
        parsed.fill({**given, parsed.prompt_variable(given) or "": text})
    return Asked(text, parsed, given)


def _no_place(template: str) -> UsageError:
    return UsageError(f"There is no place for the prompt in {template}: --var fills all of it.")


def read_prompt(prompt: str | None) -> str:
    """The argument, or all of stdin for `-` and for nothing where stdin is no terminal."""
    if prompt not in (None, "-"):
        return _utf8(os.fsencode(prompt), "The prompt")
    if prompt is None and sys.stdin.isatty():
        raise UsageError(
            "There is no prompt.", hint='Give one, as in: hfpipe run smollm2 "What is EEG?"; or pipe it in.'
        )
    return _utf8(sys.stdin.buffer.read(), "The prompt on stdin").removesuffix("\n")


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
