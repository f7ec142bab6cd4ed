"""An OpenVINO backend in a process of its own, for settings that may crash it."""

import os
from typing import Any

from hfpipe import backends, models
from hfpipe.types import LoadOptions, Reporter, TokenRequest


def main(arguments: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """The greedy ids of one request, and what the backend says that it runs on."""
    if arguments["processors"]:
        os.sched_setaffinity(0, arguments["processors"])
    options = LoadOptions(**arguments["options"])
    with backends.load("openvino", models.resolve(arguments["folder"]), options, reporter) as backend:
        ids: dict[str, list[int]] = {}
        for event in backend.stream([TokenRequest("a", (20, 30, 40), 5)]):
            assert event.error is None
            ids.setdefault(event.request_id, []).extend(event.token_ids)
        return {"ids": ids, "detail": dict(backend.info.detail)}
