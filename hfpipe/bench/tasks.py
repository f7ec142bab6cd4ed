"""What is done with a candidate in each round, every time in a process of its own.

A `heard` reporter gets each line that such a process writes, as a note.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from hfpipe.backends.base import vocabulary_size
from hfpipe.bench.candidates import QUESTION, Candidate, flags
from hfpipe.bench.measure import Prompt
from hfpipe.bench.metrics import Workload
from hfpipe.bench.noise import Watch
from hfpipe.bench.report import Sample
from hfpipe.errors import BackendError
from hfpipe.process import run_child
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import Reporter


@dataclass(frozen=True, slots=True)
class Start:
    """`hfpipe run` from its start to its first token."""

    name = "start"

    def measure(self, candidate: Candidate, number: int, heard: Reporter | None = None) -> Sample:
        # As in process.py: `-m` would import a stray module of the working directory.
        start = f"import sys; sys.path[:] = {sys.path!r}; from hfpipe.cli.main import main; main()"
        command = [sys.executable, "-c", start, "run", str(candidate.source.folder), QUESTION, "--json", "--quiet"]
        command += ["--max-tokens", "1", "--temperature", "0", "--template", "raw", *flags(candidate.loading)]
        watch = Watch()
        ended = subprocess.run(command, capture_output=True, env=_environment(), start_new_session=True, check=False)
        noise = watch.stop()
        said = ended.stderr.decode(errors="replace").strip().splitlines()
        if heard:
            for line in said:
                heard.note(line)
        try:
            values = {"cold_ttft_s": float(json.loads(ended.stdout)["cold_ttft_s"])}
        except (ValueError, TypeError, KeyError) as error:
            reason, *hint = [line.removeprefix("Error: ") for line in said[:2]] or [f"exit status {ended.returncode}"]
            raise BackendError(f"hfpipe run failed: {reason}", hint=" ".join(hint) or None) from error
        return Sample(self.name, number, values, (), noise.others_cpu, noise.frequency_mhz)


def _environment() -> dict[str, str]:
    """This process's, without what would set options of `hfpipe run`."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith("HFPIPE_") or name == "HFPIPE_CACHE"
    }


@dataclass(frozen=True, slots=True)
class Answers:
    """The workload, `batch` answers at once. `prompts` are the user's own, None for random ones."""

    workload: Workload
    batch: int
    prompts: Sequence[Prompt] | None

    @property
    def name(self) -> str:
        return "single" if self.batch == 1 else f"batch{self.batch}"

    def measure(self, candidate: Candidate, number: int, heard: Reporter | None = None) -> Sample:
        """Gives the candidate's row what the engine says of itself, too."""
        arguments = {
            "reference": candidate.row.name,
            "folder": str(candidate.source.folder.absolute()),
            "loading": asdict(replace(candidate.loading, batch_size=self.batch)),
            "batch": self.batch,
            "prompts": None if self.prompts is None else [astuple(one) for one in self.prompts],
            "prompt_tokens": self.workload.prompt_tokens,
            "new_tokens": self.workload.new_tokens,
            # The same for all candidates, and others in each round.
            "seed": f"round {number}",
            "vocabulary": _vocabulary(candidate),
            "metrics": {"prefill": self.workload.prefill, "decode": self.workload.decode},
        }
        what = f"Measuring {candidate.row.name}"
        measured: dict[str, Any] = run_child(
            "hfpipe.bench.worker", arguments, what=what, reporter=heard, verbose=heard is not None
        )
        _describe(candidate, measured["engine"], self.batch)
        return Sample(self.name, number, **measured["sample"])


def _describe(candidate: Candidate, engine: Mapping[str, Any], batch: int) -> None:
    if batch == 1:
        candidate.row.device, candidate.row.dtype = engine["device"], engine["dtype"]
        candidate.row.detail = engine["detail"]


def _vocabulary(candidate: Candidate) -> int:
    source = candidate.source
    known = vocabulary_size(source.config)
    return known or load_tokenizer(source.folder, trust_remote_code=candidate.loading.trust_remote_code).vocab_size
