"""Write the completion scripts of the shells: `python -m hfpipe.cli.completions completions/`.

bash    source completions/hfpipe.bash, in ~/.bashrc
zsh     put completions/_hfpipe into a folder of $fpath, before compinit
fish    put completions/hfpipe.fish into ~/.config/fish/completions
"""

from __future__ import annotations

import sys
from pathlib import Path

from typer._completion_shared import get_completion_script

from hfpipe.cli.app import COMPLETE

FILES = {"bash": "hfpipe.bash", "zsh": "_hfpipe", "fish": "hfpipe.fish"}

# zsh makes the file a function that it calls at every TAB: that has to complete, not only to register itself.
_REGISTER = "compdef _hfpipe_completion hfpipe"
_COMPLETE_OR_REGISTER = f"""\
if [[ $funcstack[1] == _hfpipe ]]; then
  _hfpipe_completion "$@"
else
  {_REGISTER}
fi"""


def script(shell: str) -> str:
    """The script of `shell`: it asks the hfpipe that is on the PATH."""
    made = get_completion_script(prog_name="hfpipe", complete_var=COMPLETE, shell=shell)
    return made.strip().replace(_REGISTER, _COMPLETE_OR_REGISTER) + "\n"


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shell, name in FILES.items():
        (folder / name).write_text(script(shell))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
