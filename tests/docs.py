"""The generated help blocks of docs/commands.md: `python -m tests.docs` writes them anew."""

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = Path(__file__).parents[1] / "docs" / "commands.md"
_BLOCK = re.compile(r"(<!-- help: ?(?P<command>.*?) -->\n```text\n).*?(```\n)", re.DOTALL)


def help_text(*command: str) -> str:
    """What `hfpipe COMMAND --help` prints on a terminal of 80 columns."""
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    arguments = [sys.executable, "-m", "hfpipe", *command, "--help"]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout
    return "\n".join(line.rstrip() for line in printed.strip().splitlines()) + "\n"


def commands(text: str) -> list[str]:
    """The commands whose help `text` shows; the empty one is hfpipe itself."""
    return [match["command"] for match in _BLOCK.finditer(text)]


def generated(text: str) -> str:
    """`text` with every help block as it should be."""
    return _BLOCK.sub(lambda match: match[1] + help_text(*match["command"].split()) + match[3], text)


if __name__ == "__main__":
    COMMANDS.write_text(generated(COMMANDS.read_text()))
