"""A newcomer's walk: from cli/run.py to a token, few frames of ours."""

import json
import sys

from tests.cli.shell import run_hfpipe

SCRIPT = """
import json, os, sys
from hfpipe.backends.scheduling import Flight
from hfpipe.cli.main import main

def take(flight, token):
    frame, walk = sys._getframe(1), []
    while frame:
        if "hfpipe" in frame.f_globals.get("__name__", ""):
            walk.append(f"{frame.f_globals['__name__']}:{frame.f_code.co_name}")
        frame = frame.f_back
    print(json.dumps(walk), file=sys.stderr, flush=True)
    os._exit(0)

Flight.take = take
sys.argv[0] = "hfpipe"
main()
"""


def test_from_the_command_to_a_token_are_at_most_twelve_frames(plain_model):
    ended = run_hfpipe("run", plain_model, "hi", "-b", "echo", command=[sys.executable, "-c", SCRIPT])
    walk = json.loads(ended.err.decode().splitlines()[-1])
    walk = walk[: walk.index("hfpipe.cli.run:run") + 1]
    assert walk[0] == "hfpipe.backends.echo:_generate"
    assert "hfpipe.langchain.base:_stream" in walk
    assert len(walk) <= 12, walk
