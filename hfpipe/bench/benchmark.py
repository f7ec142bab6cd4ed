"""A benchmark from its models to its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hfpipe.batch.records import Record
from hfpipe.bench.candidates import Candidate, candidates
from hfpipe.bench.choices import Choices
from hfpipe.bench.exports import Exports
from hfpipe.bench.host import host
from hfpipe.bench.measure import Prompt
from hfpipe.bench.metrics import Workload
from hfpipe.bench.prompts import tokenized
from hfpipe.bench.quality import Judge
from hfpipe.bench.references import References
from hfpipe.bench.report import Report
from hfpipe.bench.rounds import Rounds
from hfpipe.errors import UsageError
from hfpipe.types import ModelSource, Reporter


@dataclass
class Benchmark:
    """What is to be measured. `records` are the user's own prompts, None for random ones; `texts` those that quality is
    measured on, by kind, None for the held-out ones. `report` grows as `run` goes on, and counts as interrupted until
    its end. `after_each_round` is called as a round ends."""

    choices: Choices
    workload: Workload
    repeats: int = 5
    records: Sequence[Record] | None = None
    quality: bool = True
    texts: Mapping[str, str] | None = None
    verbose: bool = False
    after_each_round: Callable[[], None] = lambda: None
    report: Report = field(init=False)
    _tokenized: dict[Path, list[Prompt]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UsageError(f"--repeats must be at least 1, not {self.repeats}.")
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.report = Report(self._arguments(), host(), created, interrupted=True)

    def _arguments(self) -> dict[str, Any]:
        """All that was asked for, as values of JSON."""
        own = None if self.records is None else [asdict(record) for record in self.records]
        asked = {**asdict(self.workload), "repeats": self.repeats, "prompts": own, **asdict(self.choices)}
        arguments: dict[str, Any] = json.loads(json.dumps(asked))
        return arguments

    def run(self, reporter: Reporter) -> None:
        """Measure. Raises HFPipeError where nothing can be; what is wrong with one candidate is in its row."""
        with References(self.choices.loading, reporter, verbose=self.verbose) as references:
            given = self._candidates(Exports(references if self.quality else None), reporter)
            self._rounds(reporter).measure(given)
            if self.quality:
                Judge(references, reporter, self.report.warnings.append, self.texts, self.verbose).measure(given)
        self.report.interrupted = False

    def _candidates(self, exports: Exports, reporter: Reporter) -> list[Candidate]:
        """Those that can be measured; the others are in the report as well."""
        given, complain = [], self.report.warnings.append
        for one in candidates(self.choices, exports, reporter, check=self._tokenize, complain=complain):
            self.report.configurations.append(one.row if isinstance(one, Candidate) else one)
            if isinstance(one, Candidate):
                given.append(one)
        reporter.stage(None)
        return given

    def _rounds(self, reporter: Reporter) -> Rounds:
        return Rounds(self.workload, self.repeats, reporter, self._prompts, self.after_each_round, self.verbose)

    def _prompts(self, candidate: Candidate) -> list[Prompt] | None:
        return self._tokenize(candidate.source)

    def _tokenize(self, source: ModelSource) -> list[Prompt] | None:
        """Raises HFPipeError where a record does not fit the model."""
        if self.records is None:
            return None
        if source.folder not in self._tokenized:
            self._tokenized[source.folder] = tokenized(
                self.records,
                source,
                self.workload.new_tokens,
                trust_remote_code=self.choices.loading.trust_remote_code,
            )
        return self._tokenized[source.folder]
