"""The exports that are measured: in the cache, made where they do not stand there yet."""

from __future__ import annotations

from dataclasses import dataclass

from hfpipe import store
from hfpipe.bench.references import References
from hfpipe.export import ExportOptions, Report, exporter
from hfpipe.types import LoadOptions, ModelSource, Reporter


@dataclass(frozen=True, slots=True)
class Exports:
    """They are verified against the `references` of their sources; not at all where these are None."""

    references: References | None

    def make(self, source: ModelSource, weight_format: str, loading: LoadOptions, reporter: Reporter) -> Report:
        """The export of a model. Raises HFPipeError where it fails."""
        references = self.references
        options = ExportOptions(
            weight_format, trust_remote_code=loading.trust_remote_code, allow_pickle=loading.allow_pickle
        )
        plan = exporter.plan_to_cache(source, options, verify=references is not None)
        if cached := exporter.find(plan, verify=references is not None):
            return cached
        if plan.output.exists():
            # It is damaged.
            store.remove(plan.output)
        for warning in plan.warnings:
            reporter.note(f"Warning: {warning}")
        return exporter.export(
            plan,
            verify=references is not None,
            reference=(lambda: references.of(source)) if references else None,
            reporter=reporter,
        )
