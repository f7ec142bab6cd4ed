"""How far each candidate is from the model that it comes from: exact, and in its own precision.

The source is scored once in a run, for the exports and for the quality; a candidate is scored, and answers, in a
process of its own (`main`; see process.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from hfpipe import backends
from hfpipe.bench.candidates import Candidate, References
from hfpipe.bench.report import Quality
from hfpipe.errors import HFPipeError
from hfpipe.models.folder import inspect_folder
from hfpipe.process import run_child
from hfpipe.quality import compare_source, make_reference
from hfpipe.quality.compare import Change, Reference, common_prefix, read_reference
from hfpipe.store import cache_root, making
from hfpipe.types import LoadOptions, ModelSource, Reporter, TokenRequest

_PROMPTS, _PROMPT_TOKENS, _ANSWER_TOKENS = 12, 64, 64
_SCORED = ("torch", "openvino")
# With fewer tokens a perplexity says little.
_FEW = 500


@contextmanager
def references(loading: LoadOptions, reporter: Reporter, *, verbose: bool = False) -> Iterator[References]:
    """What source models predict for a text, scored at the first call; what fails is tried once. It is kept on disk,
    and removed in the end: it may take gigabytes."""
    made: dict[object, Reference | HFPipeError] = {}

    def score(origin: ModelSource, texts: Mapping[str, str] | None = None) -> Reference:
        key = origin.folder, None if texts is None else tuple(texts.items())
        if key not in made:
            reporter.stage(f"Scoring {origin.reference}")
            # What a failed one wrote is removed at once: it may be what filled the disk.
            with ExitStack() as unfinished:
                try:
                    work = unfinished.enter_context(making(cache_root() / "references" / secrets.token_hex(8)))
                    made[key] = make_reference(
                        origin, work.scratch, texts=texts, reporter=reporter, verbose=verbose,
                        trust_remote_code=loading.trust_remote_code, allow_pickle=loading.allow_pickle,
                    )  # fmt: skip
                    folders.enter_context(unfinished.pop_all())
                except HFPipeError as error:
                    made[key] = error
        found = made[key]
        if isinstance(found, HFPipeError):
            raise found
        return found

    with ExitStack() as folders:
        yield score


def measure_quality(
    given: Sequence[Candidate],
    score: References,
    reporter: Reporter,
    warn: Callable[[str], None],
    *,
    texts: Mapping[str, str] | None = None,
    verbose: bool = False,
) -> None:
    """Add the quality to the rows of the candidates. `warn` is told what could not be measured, and why."""
    by_origin: dict[Path, tuple[ModelSource, list[Candidate]]] = {}
    for one in given:
        if one.row.error is not None:
            continue
        if one.loading.backend not in _SCORED:
            warn(f"No quality of {one.row.name}: only {' and '.join(_SCORED)} can be scored.")
        elif one.origin is None:
            warn(f"No quality of {one.row.name}: its source is unknown; name it with --reference MODEL.")
        else:
            by_origin.setdefault(one.origin.folder, (one.origin, []))[1].append(one)
    for origin, mine in by_origin.values():
        try:
            reference = score(origin, texts)
            if reference.tokens < _FEW:
                warn(f"Quality was measured on only {reference.tokens} tokens, which says little.")
            _compare(mine, origin, reference, reporter, warn, verbose)
        except HFPipeError as error:
            warn(f"No quality against {origin.reference}: {error.message}")
        reporter.stage(None)


def _compare(
    given: Sequence[Candidate],
    origin: ModelSource,
    reference: Reference,
    reporter: Reporter,
    warn: Callable[[str], None],
    verbose: bool,
) -> None:
    sources = [one.source for one in given if isinstance(one.source, ModelSource)]
    prompts, new_tokens = questions(reference, [origin, *sources])

    def ask(name: str, source: ModelSource, loading: LoadOptions, folder: Path | None) -> dict[str, Any]:
        arguments = {
            "reference": name,
            "folder": str(source.folder.absolute()),
            "loading": asdict(replace(loading, batch_size=1)),
            "reference_folder": str(folder.absolute()) if folder else None,
            "prompts": prompts,
            "new_tokens": new_tokens,
        }
        what = f"Answering with {name}"
        return dict(run_child(__name__, arguments, what=what, reporter=reporter, verbose=verbose))

    name, first = f"{origin.reference}, exact", given[0].loading
    reporter.stage(f"Answering with {name}")
    # In 32 bits, unless it is too large for that.
    exact = reference.dtype == "float32"
    trusted = {name: getattr(first, name) for name in ("trust_remote_code", "allow_pickle")}
    dtype = None if exact else reference.dtype
    loading = LoadOptions(backend="torch", device="cpu", exact=exact, dtype=dtype, **trusted)
    expected = ask(name, origin, loading, None)["answers"]
    for one, source in zip(given, sources, strict=True):
        reporter.stage(f"Comparing {one.row.name}")
        try:
            found = ask(one.row.name, source, one.loading, reference.folder)
        except HFPipeError as error:
            warn(f"The quality of {one.row.name} could not be measured: {error.message}")
            continue
        pairs = list(zip(found["answers"], expected, strict=True))
        one.row.quality = Quality(
            **{field.name: found["scores"][field.name] for field in fields(Change)},
            answers=len(pairs),
            same_answers=sum(ours == theirs for ours, theirs in pairs),
            answer_tokens=max(map(len, expected)),
            first_divergence=median(common_prefix(ours, theirs) for ours, theirs in pairs),
        )


def questions(reference: Reference, models: Sequence[ModelSource]) -> tuple[list[tuple[int, ...]], int]:
    """Beginnings of windows, spread over all of the text, and how many tokens all of the models have room to answer."""
    windows = reference.windows
    limit = min([one.context_length for one in models if one.context_length], default=_PROMPT_TOKENS + _ANSWER_TOKENS)
    tokens = min(_PROMPT_TOKENS, limit // 2)
    chosen = windows[:: max(1, len(windows) // _PROMPTS)][:_PROMPTS]
    prompts = [(one.prompt or one.token_ids)[:tokens] for one in chosen]
    return prompts, min(_ANSWER_TOKENS, limit - max(map(len, prompts)))


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Compare the model in `folder`, which the user calls `reference`, loaded with the fields of LoadOptions, with the
    reference in `reference_folder`, unless that is null: `scores` are the fields of hfpipe.quality.compare.Quality.

    `answers` are the `new_tokens` most likely token ids after each of the `prompts`, lists of token ids.
    """
    options = LoadOptions(**arguments["loading"])
    source = inspect_folder(Path(arguments["folder"]), arguments["reference"], allow_pickle=options.allow_pickle)
    scores = None
    if arguments["reference_folder"]:
        reference = read_reference(Path(arguments["reference_folder"]))
        scores = compare_source(source, options, reference, reporter=reporter).as_dict()
    answers, task, total = [], f"Answering with {source.reference}", len(arguments["prompts"])
    with backends.load(options.backend, source, options, reporter) as backend:
        for done, token_ids in enumerate(arguments["prompts"]):
            reporter.progress(task, done, total, "steps")
            events = list(backend.stream([TokenRequest("0", tuple(token_ids), arguments["new_tokens"])]))
            if error := events[-1].error:
                raise error
            answers.append([token for event in events for token in event.token_ids])
    reporter.progress(task, total, total, "steps")
    return {"scores": scores, "answers": answers}
