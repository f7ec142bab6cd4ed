"""The exports that are measured: in the cache, made where they do not stand there yet."""

from __future__ import annotations

from dataclasses import dataclass

from hfpipe.bench.references import References
from hfpipe.export import exporter
from hfpipe.export.exporter import Exported
from hfpipe.export.kept import find, plan_to_keep
from hfpipe.export.options import ExportOptions
from hfpipe.types import LoadOptions, ModelSource, Reporter


@dataclass(frozen=True, slots=True)
class Exports:
    """They are verified against the `references` of their sources; not at all where these are None."""

    references: References | None

    def make(self, source: ModelSource, weight_format: str, loading: LoadOptions, reporter: Reporter) -> Exported:
        """The export of a model. Raises HFPipeError where it fails."""
        references = self.references
        options = ExportOptions(
            weight_format, trust_remote_code=loading.trust_remote_code, allow_pickle=loading.allow_pickle
        )
        plan = plan_to_keep(source, options, verify=references is not None)
        if kept := find(plan, verify=references is not None):
            return Exported(kept.folder, kept.report, made=False)
        for warning in plan.warnings:
            reporter.note(f"Warning: {warning}")
        return exporter.export(
            plan,
            # What stands there is broken.
            force=plan.output.exists(),
            verify=references is not None,
            reference=(lambda: references.of(source)) if references else None,
            reporter=reporter,
        )
