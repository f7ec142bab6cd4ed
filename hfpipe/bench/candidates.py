"""Each model on each engine in each format, as rows of the report: found, exported where needed, and named."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path, PurePath

from hfpipe import backends, endpoint, models, store
from hfpipe.backends.openvino.optimum_cli import own_format
from hfpipe.bench import hosted
from hfpipe.bench.report import Configuration, Report
from hfpipe.bench.spec import Spec
from hfpipe.errors import ContextLengthError, HFPipeError, UsageError
from hfpipe.export import ExportOptions, exporter
from hfpipe.export import report as reports
from hfpipe.export.plan import default_output
from hfpipe.process import run_child
from hfpipe.quality.compare import Reference
from hfpipe.text.tasks import PromptEncoder, for_task
from hfpipe.text.templates import Conversation, prompt_template
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import GenerationOptions, HostedModel, LoadOptions, ModelSource, Reporter

_QUANTIZED = ("int8", "int4")
# What a transformers model is loaded from.
_FILES = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.model", "*.jinja", "*.txt", "*.py")
# What an export keeps of the config.json of its source.
_KEPT = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
QUESTION = "What is EEG?"
_HOSTED = "endpoint"

# What a source model predicts for texts by kind, None for the held-out ones. Raises HFPipeError where it cannot.
References = Callable[[ModelSource, "Mapping[str, str] | None"], Reference]
# Token ids, and how many tokens are to follow.
Prompt = tuple[Sequence[int], int]


@dataclass(slots=True)
class Candidate:
    """A row of the report, and what it takes to measure it: the `source` that is used with `loading`; the user's own
    `prompts`, None for random ones; and `origin`, the transformers model that it comes from, None where not known."""

    row: Configuration
    source: ModelSource | HostedModel
    loading: LoadOptions
    origin: ModelSource | None
    prompts: Sequence[Prompt] | Sequence[hosted.Prompt] | None = None


def candidates(spec: Spec, report: Report, references: References | None, reporter: Reporter) -> list[Candidate]:
    """Those that are ready; what is not exported yet is. All of them are rows of the `report`, with the error of what
    cannot be made; it also gets warnings of what is doubtful.

    Exports are verified against the `references` of their sources, or not at all. Raises HFPipeError for a model that
    does not exist, and for a reference that cannot be one.
    """
    refused = _without_device(spec)
    loads = any(name != _HOSTED for name in spec.engines)
    found = [_resolve(model, spec, reporter) for model in spec.models] if loads else []
    if spec.weight_formats and all(source.format == "openvino" for source in found):
        raise UsageError(
            "weight_formats (--weight-format) need a model that can be exported.",
            hint="An OpenVINO folder is measured as it is.",
        )
    reference = _resolve(spec.reference, spec, reporter) if spec.reference else None
    if reference:
        compared = [source for source in found if origin_of(source, found, reference) is reference]
        report.warnings += check_reference(reference, compared)
    name_of = _names(found)
    wanted = [(source, *variant) for source in found for variant in _variants(source, spec)]
    number, total = 0, sum(weight_format is not None for *_, weight_format in wanted)
    ready: list[Candidate] = []
    tokenized: dict[Path, list[Prompt] | None] = {}
    for source, backend, weight_format in wanted:
        loading = _known_options(spec.loading, backend)
        row = _row(name_of(source, backend, weight_format), source, weight_format, spec, loading)
        report.configurations.append(row)
        number += weight_format is not None
        try:
            if backend in refused:
                raise refused[backend]
            check_room(source, spec.workload.prompt_tokens or 0, spec.workload.new_tokens)
            room = (source.context_length or math.inf) - spec.workload.new_tokens
            if deep := [depth for depth in spec.workload.depths if depth > room]:
                report.warnings.append(f"{row.name} has no room for a depth of {' and '.join(map(str, deep))}.")
            if source.folder not in tokenized:
                tokenized[source.folder] = tokenize(spec, source)
            backends.check_format(backend, source.format)
            loaded = source
            if weight_format:
                label = f"{row.name} ({number} of {total})"
                trust, pickles = loading.trust_remote_code, loading.allow_pickle
                options = ExportOptions(weight_format, trust_remote_code=trust, allow_pickle=pickles)
                reference_of = partial(references, source, None) if references else None
                export = exporter.export_to_cache(source, options, reference_of, reporter, label)
                # The user is to get what was measured: a verification also finds what this machine runs it best with.
                row.prepare = [*row.prepare, *([] if export.verified else ["--no-verify"])]
                loaded = models.resolve(str(export.folder))
            row.size_mb = _size(loaded) / 1e6
            origin = origin_of(source, found, reference)
            ready.append(Candidate(row, loaded, loading, origin, tokenized[source.folder]))
        except HFPipeError as error:
            row.error = reason(error)
    reporter.stage(None)
    return ready + (_hosted(spec, report) if _HOSTED in spec.engines else [])


def _hosted(spec: Spec, report: Report) -> list[Candidate]:
    """The models as a server runs them."""
    loading, ready = _known_options(spec.loading, _HOSTED), list[Candidate]()
    sources = [endpoint.find(model, loading) for model in spec.models]
    name_of, shown = _names(sources), replace(loading, endpoint=loading.endpoint and sources[0].url)
    for source in sources:
        row = _row(name_of(source, f"{_HOSTED} (network)", None), source, None, spec, shown)
        report.configurations.append(row)
        report.warnings.append(
            f"{row.name} measures the network and what is behind {source.url}, from text to text; prompts of random "
            "words are about as long as asked for, answers may be shorter, and tokens are what the server counts."
        )
        try:
            backends.check_options(_HOSTED, loading)
            ready.append(Candidate(row, source, loading, None, _conversations(spec, source)))
        except HFPipeError as error:
            row.error = reason(error)
    return ready


def _conversations(spec: Spec, source: HostedModel) -> list[hosted.Prompt] | None:
    """The user's own prompts as `hfpipe batch` puts them to a server, None where they are random."""
    if spec.prompts is None:
        return None
    template = prompt_template(None, source.reference)
    options = GenerationOptions(max_tokens=spec.workload.new_tokens)
    asked = [record.request(template, options) for record in spec.prompts]
    texts = [one.prompt.messages if isinstance(one.prompt, Conversation) else one.prompt for one in asked]
    return [(text, one.options.max_tokens or 0) for text, one in zip(texts, asked, strict=True)]


def reason(error: HFPipeError) -> str:
    """An error in one line, for a row."""
    return f"{error.message} {error.hint}" if error.hint else error.message


def check_room(source: ModelSource, prompt_tokens: int, new_tokens: int) -> None:
    """Raise ContextLengthError: some models continue beyond their context, and answer noise."""
    limit, tokens = source.context_length, prompt_tokens + new_tokens
    if source.is_encoder_decoder:
        tokens = max(prompt_tokens, new_tokens + len(source.decoder_start))
    if limit is not None and tokens > limit:
        raise ContextLengthError(f"A prompt and its answer have {tokens} tokens, and the model's context is {limit}.")


def tokenize(spec: Spec, source: ModelSource) -> list[Prompt] | None:
    """The user's own prompts as `hfpipe batch` puts them to a model, None where they are random.

    Raises HFPipeError, with its line, for one that does not fit the model's template or context.
    """
    if spec.prompts is None:
        return None
    tokenizer = load_tokenizer(source.folder, trust_remote_code=spec.loading.trust_remote_code)
    template, encoder = (
        prompt_template(tokenizer, source.reference, plain=source.plain_template),
        PromptEncoder(tokenizer, source),
    )
    options, prompts = GenerationOptions(max_tokens=spec.workload.new_tokens), list[Prompt]()
    for record in spec.prompts:
        try:
            request = record.request(template, options)
            token_ids = encoder.encode(request.prompt, request.add_special_tokens)
            new_tokens = request.options.max_tokens or 0
            check_room(source, len(token_ids), new_tokens)
        except HFPipeError as error:
            # Hints of other commands would not help.
            raise type(error)(f"Line {record.number} of the prompts: {error.message}") from error
        prompts.append((token_ids, new_tokens))
    return prompts


def _resolve(model: str, spec: Spec, reporter: Reporter) -> ModelSource:
    revision, pickles, access = spec.revision(model), spec.loading.allow_pickle, spec.loading.hub
    source = models.resolve(model, revision=revision, allow_pickle=pickles, reporter=reporter, access=access)
    return for_task(source, spec.loading)


def _variants(source: ModelSource, spec: Spec) -> Iterator[tuple[str, str | None]]:
    """The engines and the weight formats for a model. A transformers model is exported for OpenVINO."""
    for backend in spec.engines:
        if backend == _HOSTED:
            continue
        if source.format not in backends.spec(backend).formats and not spec.backends:
            continue
        if backend == "openvino" and source.format == "transformers":
            yield from ((backend, name) for name in spec.weight_formats or (own_format(source), *_QUANTIZED))
        else:
            yield backend, None


def _size(source: ModelSource) -> int:
    """Bytes of a model, and of its tokenizer; a folder may have more in it."""
    patterns = ("*",) if source.format == "openvino" else _FILES
    files = {path for pattern in patterns for path in source.folder.glob(pattern) if path.is_file()}
    return sum(path.stat().st_size for path in files)


def _known_options(loading: LoadOptions, backend: str) -> LoadOptions:
    """The options, less those that only other engines know, and the revision: what is measured is a folder."""
    default = LoadOptions()
    of_others = frozenset().union(*map(backends.honoured, backends.BACKENDS)) - backends.honoured(backend)
    return replace(loading, backend=backend, **{name: getattr(default, name) for name in {*of_others, "revision"}})


# Names, and commands for a person


def _names(
    found: Sequence[ModelSource] | Sequence[HostedModel],
) -> Callable[[ModelSource | HostedModel, str, str | None], str]:
    """What names the rows, each differently: with the model's last part where there are several models, or with all of
    it where another one ends like it."""
    lasts = Counter(PurePath(one).name for one in {source.reference for source in found})
    made: Counter[str] = Counter()

    def name(source: ModelSource | HostedModel, backend: str, weight_format: str | None) -> str:
        last = PurePath(source.reference).name
        model = "" if len(found) == 1 else last if lasts[last] == 1 else source.reference
        text = " ".join(filter(None, [model, backend, weight_format]))
        made[text] += 1
        return text if made[text] == 1 else f"{text} ({made[text]})"

    return name


def _row(
    name: str, source: ModelSource | HostedModel, weight_format: str | None, spec: Spec, loading: LoadOptions
) -> Configuration:
    """A row without measurements, with the commands that a person runs it with."""
    model, prepare, revision = source.reference, list[str](), spec.revision(source.reference)
    common = ["--revision", revision] if revision else []
    command = ["hfpipe", "run", model, *common]
    if weight_format:
        common += [_flag(name) for name in ("trust_remote_code", "allow_pickle") if getattr(loading, name)]
        prepare = ["hfpipe", "export", model, "--weight-format", weight_format, *common]
        command = ["hfpipe", "run", str(default_output(model, weight_format))]
    command += [*flags(loading), QUESTION]
    return Configuration(name, model, loading.backend, weight_format, prepare, command)


def flags(loading: LoadOptions) -> list[str]:
    """The options of `hfpipe run` that mean `loading`, but the revision, for a person."""
    words: list[str] = []
    for one in fields(LoadOptions):
        value, flag = getattr(loading, one.name), _flag(one.name)
        if not value or one.name in ("batch_size", "revision"):
            continue
        if one.name == "model_kwargs":
            words += [word for key, each in value.items() for word in ("--model-kwarg", f"{key}={json.dumps(each)}")]
        elif value is True:
            words.append(flag)
        else:
            words += [flag, json.dumps(dict(value)) if one.name == "ov_config" else str(value)]
    return words


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# Devices and references


def _without_device(spec: Spec) -> dict[str, HFPipeError]:
    """Why engines cannot have the device that is asked for. Raises that where none of them can.

    It is asked before hours of exports, and in a child: importing an engine takes seconds, and memory.
    """
    refused: dict[str, HFPipeError] = {}
    device = spec.loading.device
    for name in [name for name in spec.engines if device and "device" in backends.spec(name).honours]:
        given = {"task": "device", "backend": name, "device": device}
        try:
            run_child("hfpipe.bench.measure", given, what=f"Looking for {device}")
        except HFPipeError as error:
            refused[name] = error
    if len(refused) == len(spec.engines):
        raise next(iter(refused.values()))
    return refused


def origin_of(source: ModelSource, found: Sequence[ModelSource], reference: ModelSource | None) -> ModelSource | None:
    """What `source` is, or was made of: one of `found`, where its hfpipe.json names that, else the reference. Another
    may be worth a download, but not unasked."""
    if source.format == "transformers":
        return source
    made = reports.read(source.folder)
    of = made["source"].get("model") if made else None
    return next((one for one in found if one.format == "transformers" and one.reference == of), reference)


def check_reference(reference: ModelSource, compared: Sequence[ModelSource]) -> list[str]:
    """Reasons to doubt that the models were made of the reference. Raises UsageError where they cannot have been."""
    if reference.format != "transformers":
        raise UsageError(f"The reference {reference.reference} is not a transformers model.")
    doubts = []
    for source in compared:
        for key in _KEPT:
            theirs, ours = reference.config.get(key), source.config.get(key)
            if theirs is not None and ours is not None and theirs != ours:
                raise UsageError(
                    f"{source.reference} was not made of {reference.reference}: its {key} is {ours}, not {theirs}.",
                    hint="Name the transformers model that it was made of as reference (--reference).",
                )
        made = reports.read(source.folder)
        digest = made["source"].get("sha256") if made else None
        if digest is not None and digest != store.identity(reference.folder):
            doubts.append(
                f"{source.reference} was made of another model than {reference.reference}, or of another state of it, "
                "says its hfpipe.json: losses are against something that it does not come from."
            )
    return doubts
