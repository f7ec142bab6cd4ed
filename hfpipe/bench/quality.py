"""How far each candidate is from the model that it comes from: exact, and in its own precision.

The source is scored once in a run, for the exports and for the quality; a candidate is scored, and answers, in a
process of its own (`main`; see process.py).
"""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from hfpipe import backends
from hfpipe.backends.base import Backend
from hfpipe.bench.candidates import Candidate
from hfpipe.bench.report import Quality
from hfpipe.errors import HFPipeError
from hfpipe.models.folder import inspect_folder
from hfpipe.process import run_child
from hfpipe.quality import Change, Reference, common_prefix, compare_source, make_reference, read_reference
from hfpipe.store import cache_root, making
from hfpipe.types import LoadOptions, ModelSource, Reporter, TokenRequest

_PROMPTS, _PROMPT_TOKENS, _ANSWER_TOKENS = 12, 64, 64
_SCORED = ("torch", "openvino")
# With fewer tokens a perplexity says little.
_FEW = 500


class References:
    """What source models predict for a text. Each is scored at its first call, kept on disk, and removed where the
    `with` ends: it may take gigabytes."""

    def __init__(self, loading: LoadOptions, reporter: Reporter, *, verbose: bool = False) -> None:
        self._loading = loading
        self._reporter = reporter
        self._verbose = verbose
        self._made: dict[object, Reference | HFPipeError] = {}
        self._folders = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folders.close()

    def __call__(self, origin: ModelSource, texts: Mapping[str, str] | None = None) -> Reference:
        """What a transformers model predicts for `texts` by kind, None for the held-out ones.

        Raises HFPipeError where it cannot be scored, which is tried once.
        """
        key = origin.folder, None if texts is None else tuple(texts.items())
        if key not in self._made:
            self._made[key] = self._make(origin, texts)
        made = self._made[key]
        if isinstance(made, HFPipeError):
            raise made
        return made

    def _make(self, origin: ModelSource, texts: Mapping[str, str] | None) -> Reference | HFPipeError:
        self._reporter.stage(f"Scoring {origin.reference}")
        try:
            # What a failed one wrote is removed at once: it may be what filled the disk.
            with ExitStack() as unfinished:
                work = unfinished.enter_context(making(cache_root() / "references" / secrets.token_hex(8)))
                reference = make_reference(
                    origin,
                    work.scratch,
                    texts=texts,
                    trust_remote_code=self._loading.trust_remote_code,
                    allow_pickle=self._loading.allow_pickle,
                    reporter=self._reporter,
                    verbose=self._verbose,
                )
                self._folders.enter_context(unfinished.pop_all())
        except HFPipeError as error:
            return error
        return reference


def measure_quality(
    given: Sequence[Candidate],
    references: References,
    reporter: Reporter,
    warn: Callable[[str], None],
    *,
    texts: Mapping[str, str] | None = None,
    verbose: bool = False,
) -> None:
    """Add the quality to the rows of the candidates. `warn` is told what could not be measured, and why."""
    sound = [one for one in given if one.row.error is None]
    for one in sound:
        if one.loading.backend not in _SCORED:
            warn(f"No quality of {one.row.name}: only {' and '.join(_SCORED)} can be scored.")
        elif one.origin is None:
            warn(f"No quality of {one.row.name}: its source is unknown; name it with --reference MODEL.")
    scored = [one for one in sound if one.loading.backend in _SCORED]
    for origin in {one.origin.folder: one.origin for one in scored if one.origin}.values():
        mine = [one for one in scored if one.origin and one.origin.folder == origin.folder]
        try:
            reference = references(origin, texts)
            if reference.tokens < _FEW:
                warn(f"Quality was measured on only {reference.tokens} tokens, which says little.")
            _compare(mine, origin, reference, reporter, warn, verbose)
        except HFPipeError as error:
            warn(f"No quality against {origin.reference}: {error.message}")
        finally:
            reporter.stage(None)


def _compare(
    given: Sequence[Candidate],
    origin: ModelSource,
    reference: Reference,
    reporter: Reporter,
    warn: Callable[[str], None],
    verbose: bool,
) -> None:
    prompts, new_tokens = questions(reference, [origin, *(one.source for one in given)])

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
        found: dict[str, Any] = run_child(
            "hfpipe.bench.quality", arguments, what=what, reporter=reporter, verbose=verbose
        )
        return found

    name = f"{origin.reference}, exact"
    reporter.stage(f"Answering with {name}")
    expected = ask(name, origin, _exact(given[0].loading, reference.dtype), None)["answers"]
    for one in given:
        reporter.stage(f"Comparing {one.row.name}")
        try:
            found = ask(one.row.name, one.source, one.loading, reference.folder)
        except HFPipeError as error:
            warn(f"The quality of {one.row.name} could not be measured: {error.message}")
        else:
            one.row.quality = _quality(found["scores"], found["answers"], expected)


def _exact(loading: LoadOptions, dtype: str) -> LoadOptions:
    """How the reference answers: in 32 bits, unless it is too large for that."""
    return LoadOptions(
        backend="torch",
        device="cpu",
        exact=dtype == "float32",
        dtype=None if dtype == "float32" else dtype,
        trust_remote_code=loading.trust_remote_code,
        allow_pickle=loading.allow_pickle,
    )


def questions(reference: Reference, models: Sequence[ModelSource]) -> tuple[list[tuple[int, ...]], int]:
    """Beginnings of windows, spread over all of the text, and how many tokens all of the models have room to answer."""
    windows = reference.windows
    limit = min([one.context_length for one in models if one.context_length], default=_PROMPT_TOKENS + _ANSWER_TOKENS)
    tokens = min(_PROMPT_TOKENS, limit // 2)
    prompts = [one.token_ids[:tokens] for one in windows[:: max(1, len(windows) // _PROMPTS)][:_PROMPTS]]
    return prompts, min(_ANSWER_TOKENS, limit - max(map(len, prompts)))


def _quality(scores: Mapping[str, Any], answers: Sequence[list[int]], expected: Sequence[list[int]]) -> Quality:
    pairs = list(zip(answers, expected, strict=True))
    known = {field.name for field in fields(Change)} - {"tokens"}
    return Quality(
        **{name: scores[name] for name in known},
        answers=len(pairs),
        same_answers=sum(ours == theirs for ours, theirs in pairs),
        answer_tokens=max(map(len, expected)),
        first_divergence=statistics.median(common_prefix(ours, theirs) for ours, theirs in pairs),
    )


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Compare the model in `arguments["folder"]`, loaded with `arguments["loading"]`, the fields of LoadOptions, with
    the reference in `reference_folder`, unless that is null: `scores` is Quality.as_dict().

    `answers` are the `new_tokens` most likely token ids after each of the `prompts`, lists of token ids. `reference` is
    what the user calls the model.
    """
    options = LoadOptions(**arguments["loading"])
    source = inspect_folder(Path(arguments["folder"]), arguments["reference"], allow_pickle=options.allow_pickle)
    scores = None
    if arguments["reference_folder"]:
        reference = read_reference(Path(arguments["reference_folder"]))
        scores = compare_source(source, options, reference, reporter=reporter).as_dict()
    answers, task = [], f"Answering with {source.reference}"
    with backends.load(options.backend, source, options, reporter) as backend:
        for done, token_ids in enumerate(arguments["prompts"]):
            reporter.progress(task, done, len(arguments["prompts"]), "steps")
            answers.append(_greedy(backend, tuple(token_ids), arguments["new_tokens"]))
    reporter.progress(task, len(answers), len(answers), "steps")
    return {"scores": scores, "answers": answers}


def _greedy(backend: Backend, token_ids: tuple[int, ...], new_tokens: int) -> list[int]:
    """The most likely tokens after `token_ids`. Raises the HFPipeError of a failure."""
    answer: list[int] = []
    for event in backend.stream([TokenRequest("0", token_ids, new_tokens)]):
        if event.error:
            raise event.error
        answer.extend(event.token_ids)
    return answer
