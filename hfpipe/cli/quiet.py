"""How hfpipe's own process is set up for the libraries it runs: silent, and telling nobody."""

from __future__ import annotations

import logging
import os
import warnings

from hfpipe.process import telemetry_off_environment

_NO_NOISE = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
    "HF_HUB_VERBOSITY": "critical",
    "TRANSFORMERS_VERBOSITY": "critical",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


def silence(*, verbose: bool) -> None:
    """Call it before a library is imported: most read their environment then. What the user has set stays."""
    os.environ.update(telemetry_off_environment())
    if verbose:
        return
    for name, value in _NO_NOISE.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
