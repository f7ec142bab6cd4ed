"""What is generated: `python -m tests.docs` writes the help blocks of docs/commands.md and the completions anew."""

import os
import re
import subprocess
import sys
from pathlib import Path

from typer._completion_shared import get_completion_script

ROOT = Path(__file__).parents[1]
COMMANDS = ROOT / "docs" / "commands.md"
COMPLETIONS = {"bash": "hfpipe.bash", "zsh": "_hfpipe", "fish": "hfpipe.fish"}
_BLOCK = re.compile(r"(<!-- help: ?(?P<command>.*?) -->\n```text\n).*?(```\n)", re.DOTALL)

# zsh makes the file a function that it calls at every TAB: that has to complete, not only to register itself.
_REGISTER = "compdef _hfpipe_completion hfpipe"
_COMPLETE_OR_REGISTER = f"""\
if [[ $funcstack[1] == _hfpipe ]]; then
  _hfpipe_completion "$@"
else
  {_REGISTER}
fi"""


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


def completion(shell: str) -> str:
    """The script of `shell`: it asks the hfpipe that is on the PATH."""
    made = get_completion_script(prog_name="hfpipe", complete_var="_HFPIPE_COMPLETE", shell=shell)
    return made.strip().replace(_REGISTER, _COMPLETE_OR_REGISTER) + "\n"


if __name__ == "__main__":
    COMMANDS.write_text(generated(COMMANDS.read_text()))
    for _shell, _name in COMPLETIONS.items():
        (ROOT / "completions" / _name).write_text(completion(_shell))
