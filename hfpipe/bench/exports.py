"""The exports that are measured: in the cache, made where they do not stand there yet."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from hfpipe.bench.references import References
from hfpipe.cache import cache_root
from hfpipe.export import exporter
from hfpipe.export.exporter import Exported
from hfpipe.export.options import ExportOptions
from hfpipe.export.plan import default_output, make_plan
from hfpipe.sources.fingerprint import fingerprint
from hfpipe.types import LoadOptions, ModelSource, Reporter


@dataclass(frozen=True, slots=True)
class Exports:
    """They are compared with the `references` of their sources."""

    references: References

    def make(self, source: ModelSource, weight_format: str, loading: LoadOptions, reporter: Reporter) -> Exported:
        """The export of a model. Raises HFPipeError where it fails."""
        options = ExportOptions(
            weight_format, trust_remote_code=loading.trust_remote_code, allow_pickle=loading.allow_pickle
        )
        exports = cache_root() / "exports"
        plan = make_plan(source, exports / default_output(source.reference, weight_format).name, options)
        identity = json.dumps([fingerprint(source.folder), plan.request()])
        place = exports / hashlib.sha256(identity.encode()).hexdigest()[:24] / plan.output.name
        for warning in plan.warnings if not place.exists() else ():
            reporter.note(f"Warning: {warning}")
        return exporter.export(
            replace(plan, output=place), reference=lambda: self.references.of(source), reporter=reporter
        )
