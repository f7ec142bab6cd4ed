"""How far each candidate is from the model that it comes from: exact, and in its own precision."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hfpipe.bench.candidates import Candidate
from hfpipe.bench.report import Quality
from hfpipe.cache import cache_root, writing
from hfpipe.conversion.child import run_child
from hfpipe.errors import HFPipeError
from hfpipe.quality import Change, Reference, held_out, make_reference
from hfpipe.quality.divergence import common_prefix
from hfpipe.quality.effort import held_out_share, reference_dtype
from hfpipe.types import LoadOptions, ModelSource, Reporter

_PROMPTS = 12
_PROMPT_TOKENS = 64
_ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Judge:
    """`texts` by kind are those to measure on, None for the held-out ones."""

    reporter: Reporter
    texts: Mapping[str, str] | None = None
    verbose: bool = False

    def measure(self, given: Sequence[Candidate]) -> list[str]:
        """Add the quality to the rows of the candidates that have an origin. Gives what could not be measured, and
        why."""
        complaints = []
        sound = [one for one in given if one.row.error is None and one.origin is not None]
        for origin in {one.origin.folder: one.origin for one in sound if one.origin}.values():
            mine = [one for one in sound if one.origin and one.origin.folder == origin.folder]
            try:
                with self._reference(origin, mine[0].loading) as reference:
                    complaints += self._compare(mine, origin, reference)
            except HFPipeError as error:
                complaints.append(f"No quality against {origin.reference}: {error.message}")
        return complaints

    @contextmanager
    def _reference(self, origin: ModelSource, loading: LoadOptions) -> Iterator[Reference]:
        self.reporter.stage(f"Scoring {origin.reference}, exact")
        with writing(cache_root()):
            cache_root().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".reference-", dir=cache_root()) as folder:
                yield make_reference(
                    origin,
                    Path(folder),
                    dtype=reference_dtype(origin),
                    texts=held_out(held_out_share(origin)) if self.texts is None else self.texts,
                    trust_remote_code=loading.trust_remote_code,
                    allow_pickle=loading.allow_pickle,
                    reporter=self.reporter,
                    verbose=self.verbose,
                )

    def _compare(self, given: Sequence[Candidate], origin: ModelSource, reference: Reference) -> list[str]:
        expected = self._heard(origin, _exact(given[0].loading, reference.dtype), reference)["answers"]
        complaints = []
        for one in given:
            self.reporter.stage(f"Comparing {one.row.name}")
            try:
                heard = self._heard(one.source, one.loading, reference, scored=True)
            except HFPipeError as error:
                complaints.append(f"The quality of {one.row.name} could not be measured: {error.message}")
            else:
                one.row.quality = _quality(heard["scores"], heard["answers"], expected)
        self.reporter.stage(None)
        return complaints

    def _heard(
        self, source: ModelSource, loading: LoadOptions, reference: Reference, *, scored: bool = False
    ) -> dict[str, Any]:
        """What judge.py has to say of a model: its answers to beginnings of the reference's windows, and its scores."""
        limit = source.context_length or 2 * (_PROMPT_TOKENS + _ANSWER_TOKENS)
        prompts = _prompts(reference, min(_PROMPT_TOKENS, limit // 2))
        arguments = {
            "reference": source.reference,
            "folder": str(source.folder.absolute()),
            "loading": asdict(replace(loading, batch_size=1)),
            "reference_folder": str(reference.folder.absolute()) if scored else None,
            "prompts": prompts,
            "new_tokens": min(_ANSWER_TOKENS, limit - max(map(len, prompts))),
        }
        what = f"Answering with {source.reference}"
        heard: dict[str, Any] = run_child(
            "hfpipe.bench.judge", arguments, what=what, reporter=self.reporter, verbose=self.verbose
        )
        return heard


def _exact(loading: LoadOptions, dtype: str) -> LoadOptions:
    """How the reference answers: in 32 bits, unless it is too large for that."""
    exact = dtype == "float32"
    return LoadOptions(
        backend="torch",
        device="cpu",
        exact=exact,
        dtype=None if exact else dtype,
        trust_remote_code=loading.trust_remote_code,
        allow_pickle=loading.allow_pickle,
    )


def _prompts(reference: Reference, tokens: int) -> list[tuple[int, ...]]:
    """Beginnings of windows, spread over all of the text."""
    windows = reference.windows
    return [window.token_ids[:tokens] for window in windows[:: max(1, len(windows) // _PROMPTS)][:_PROMPTS]]


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
