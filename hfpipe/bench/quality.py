"""How far each candidate is from the model that it comes from: exact, and in its own precision."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from hfpipe.bench.candidates import Candidate
from hfpipe.bench.references import References
from hfpipe.bench.report import Quality
from hfpipe.errors import HFPipeError
from hfpipe.process import run_child
from hfpipe.quality import Change, Reference
from hfpipe.quality.divergence import common_prefix
from hfpipe.types import LoadOptions, ModelSource, Reporter

_PROMPTS = 12
_PROMPT_TOKENS = 64
_ANSWER_TOKENS = 64
_SCORED = ("torch", "openvino")
# With fewer tokens a perplexity says little.
_FEW = 500


@dataclass(frozen=True, slots=True)
class Judge:
    """`references` are of the models that candidates come from. `texts` by kind are those to measure on, None for the
    held-out ones. `complain` is told what could not be measured, and why."""

    references: References
    reporter: Reporter
    complain: Callable[[str], None]
    texts: Mapping[str, str] | None = None
    verbose: bool = False

    def measure(self, given: Sequence[Candidate]) -> None:
        """Add the quality to the rows of the candidates."""
        sound = [one for one in given if one.row.error is None]
        for one in sound:
            if one.loading.backend not in _SCORED:
                self.complain(f"No quality of {one.row.name}: that is for {' and '.join(_SCORED)}.")
            elif one.origin is None:
                self.complain(f"No quality of {one.row.name}: --reference MODEL names what it was made of.")
        scored = [one for one in sound if one.loading.backend in _SCORED]
        for origin in {one.origin.folder: one.origin for one in scored if one.origin}.values():
            mine = [one for one in scored if one.origin and one.origin.folder == origin.folder]
            try:
                reference = self.references.of(origin, self.texts)
                if reference.tokens < _FEW:
                    self.complain(f"Quality is measured on {reference.tokens} tokens, which says little.")
                self._compare(mine, origin, reference)
            except HFPipeError as error:
                self.complain(f"No quality against {origin.reference}: {error.message}")
            finally:
                self.reporter.stage(None)

    def _compare(self, given: Sequence[Candidate], origin: ModelSource, reference: Reference) -> None:
        prompts, new_tokens = _questions(reference, [origin, *(one.source for one in given)])
        exact = _exact(given[0].loading, reference.dtype)
        name = f"{origin.reference}, exact"
        self.reporter.stage(f"Answering with {name}")
        expected = self._heard(name, origin, exact, prompts, new_tokens)["answers"]
        for one in given:
            self.reporter.stage(f"Comparing {one.row.name}")
            try:
                heard = self._heard(one.row.name, one.source, one.loading, prompts, new_tokens, reference)
            except HFPipeError as error:
                self.complain(f"The quality of {one.row.name} could not be measured: {error.message}")
            else:
                one.row.quality = _quality(heard["scores"], heard["answers"], expected)

    def _heard(
        self,
        name: str,
        source: ModelSource,
        loading: LoadOptions,
        prompts: Sequence[tuple[int, ...]],
        new_tokens: int,
        reference: Reference | None = None,
    ) -> dict[str, Any]:
        """What judge.py has to say of a model: its answers, and its scores against a reference."""
        arguments = {
            "reference": name,
            "folder": str(source.folder.absolute()),
            "loading": asdict(replace(loading, batch_size=1)),
            "reference_folder": str(reference.folder.absolute()) if reference else None,
            "prompts": prompts,
            "new_tokens": new_tokens,
        }
        what = f"Answering with {name}"
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


def _questions(reference: Reference, asked: Sequence[ModelSource]) -> tuple[list[tuple[int, ...]], int]:
    """Beginnings of windows, spread over all of the text, and how many tokens all of the models have room to answer."""
    windows = reference.windows
    limit = min([one.context_length for one in asked if one.context_length], default=_PROMPT_TOKENS + _ANSWER_TOKENS)
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
