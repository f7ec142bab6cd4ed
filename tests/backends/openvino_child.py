"""OpenVINO backends in a process of its own, for settings that may crash it."""

import os
from typing import Any

from hfpipe import backends, models
from hfpipe.errors import HFPipeError
from hfpipe.types import LoadOptions, Reporter, TokenRequest


def main(arguments: dict[str, Any], reporter: Reporter) -> list[dict[str, Any]]:
    """What `tokens` tokens come to with each of `runs`, the options of one load, on the `processors` given."""
    if arguments["processors"]:
        os.sched_setaffinity(0, arguments["processors"])
    request = TokenRequest("a", tuple(range(20, 40)), arguments["tokens"])
    return [_run(arguments["folder"], options, request, reporter) for options in arguments["runs"]]


def _run(folder: str, options: dict[str, Any], request: TokenRequest, reporter: Reporter) -> dict[str, Any]:
    """The greedy ids of one request, what the backend says that it runs on, and what a token takes; or the error."""
    try:
        backend = backends.load("openvino", models.resolve(folder), LoadOptions(**options), reporter)
    except HFPipeError as error:
        return {"error": error.as_data()}
    with backend:
        ids: list[int] = []
        for event in backend.stream([request]):
            assert event.error is None
            ids += event.token_ids
        pipeline = getattr(backend, "_pipeline", None)
        return {
            "ids": ids,
            "detail": dict(backend.info.detail),
            "bytes_per_token": backend._bytes_per_token,
            "cache_size": pipeline.get_metrics().cache_size_in_bytes if pipeline else None,
        }
