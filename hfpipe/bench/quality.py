"""How far each candidate is from the model that it comes from: exact, and in its own precision."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from hfpipe.bench.candidates import Candidate
from hfpipe.bench.report import Quality
from hfpipe.cache import cache_root, writing
from hfpipe.conversion.child import run_child
from hfpipe.errors import HFPipeError
from hfpipe.quality import Reference, compare_source, held_out, make_reference
from hfpipe.quality.divergence import common_prefix
from hfpipe.quality.effort import held_out_share, reference_dtype
from hfpipe.types import LoadOptions, ModelSource, Reporter

_PROMPTS = 12
_PROMPT_TOKENS = 64
_ANSWER_TOKENS = 64


def measure_quality(
    given: Sequence[Candidate], texts: Mapping[str, str] | None, reporter: Reporter, *, verbose: bool = False
) -> list[str]:
    """Add the quality to the rows of the candidates that have an origin, over `texts` by kind, None for the held-out
    ones. Gives what could not be measured and why."""
    complaints = []
    origins = {one.origin.folder: one.origin for one in given if one.origin}
    for folder, origin in origins.items():
        mine = [one for one in given if one.origin and one.origin.folder == folder and one.row.error is None]
        if not mine:
            continue
        try:
            with _reference(origin, mine[0].loading, texts, reporter, verbose) as reference:
                complaints += _compare_all(mine, origin, reference, reporter, verbose)
        except HFPipeError as error:
            complaints.append(f"No quality against {origin.reference}: {error.message}")
    return complaints


@contextmanager
def _reference(
    origin: ModelSource, loading: LoadOptions, texts: Mapping[str, str] | None, reporter: Reporter, verbose: bool
) -> Iterator[Reference]:
    with writing(cache_root()):
        cache_root().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".reference-", dir=cache_root()) as folder:
            reporter.stage(f"Scoring {origin.reference}, exact")
            yield make_reference(
                origin,
                Path(folder),
                dtype=reference_dtype(origin),
                texts=held_out(held_out_share(origin)) if texts is None else texts,
                trust_remote_code=loading.trust_remote_code,
                allow_pickle=loading.allow_pickle,
                reporter=reporter,
                verbose=verbose,
            )


def _compare_all(
    given: Sequence[Candidate], origin: ModelSource, reference: Reference, reporter: Reporter, verbose: bool
) -> list[str]:
    exact = LoadOptions(
        backend="torch",
        device="cpu",
        exact=reference.dtype == "float32",
        dtype=None if reference.dtype == "float32" else reference.dtype,
        trust_remote_code=given[0].loading.trust_remote_code,
        allow_pickle=given[0].loading.allow_pickle,
    )
    complaints = []
    expected = _answers(origin, exact, reference, reporter, verbose)
    for one in given:
        reporter.stage(f"Comparing {one.row.name}")
        try:
            scores = compare_source(one.source, one.loading, reference, reporter=reporter, verbose=verbose)
            answers = _answers(one.source, one.loading, reference, reporter, verbose)
        except HFPipeError as error:
            complaints.append(f"The quality of {one.row.name} could not be measured: {error.message}")
            continue
        equal = [common_prefix(ours, theirs) for ours, theirs in zip(answers, expected, strict=True)]
        one.row.quality = Quality(
            perplexity=scores.perplexity,
            reference_perplexity=scores.reference_perplexity,
            perplexity_change=scores.perplexity_change,
            perplexity_change_error=scores.perplexity_change_error,
            same_top=scores.same_top,
            mean_kl=scores.mean_kl,
            answers=len(expected),
            same_answers=sum(ours == theirs for ours, theirs in zip(answers, expected, strict=True)),
            answer_tokens=max(map(len, expected)),
            first_divergence=statistics.median(equal),
        )
    return complaints


def _answers(
    source: ModelSource, loading: LoadOptions, reference: Reference, reporter: Reporter, verbose: bool
) -> list[list[int]]:
    """Greedy answers to the beginnings of some of the reference's windows."""
    limit = source.context_length or 2 * (_PROMPT_TOKENS + _ANSWER_TOKENS)
    prompts = _prompts(reference, min(_PROMPT_TOKENS, limit // 2))
    arguments = {
        "reference": source.reference,
        "folder": str(source.folder.absolute()),
        "loading": asdict(loading),
        "prompts": prompts,
        "new_tokens": min(_ANSWER_TOKENS, limit - max(map(len, prompts))),
    }
    what = f"Answering with {source.reference}"
    answers: list[list[int]] = run_child(
        "hfpipe.bench.answers", arguments, what=what, reporter=reporter, verbose=verbose
    )
    return answers


def _prompts(reference: Reference, tokens: int) -> list[tuple[int, ...]]:
    """Beginnings of windows, spread over all of the text."""
    windows = reference.windows
    step = max(1, len(windows) // _PROMPTS)
    return [window.token_ids[:tokens] for window in windows[::step][:_PROMPTS]]
