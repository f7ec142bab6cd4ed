"""Tokenizers that only transformers can load: slow ones, and those kept as vocabulary files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hfpipe.errors import UnsupportedModel


def load(folder: Path, *, trust_remote_code: bool) -> Any:
    """A transformers tokenizer from a local folder. Raises UnsupportedModel where transformers cannot make one."""
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    # Tokenizer classes raise whatever their parsers do: OSError, ValueError, ImportError, TypeError, ...
    except Exception as error:
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModel(
            f"transformers cannot load the tokenizer in {folder}: {detail}", hint=_hint(error, trust_remote_code)
        ) from error


def _hint(error: Exception, trust_remote_code: bool) -> str:
    if "trust_remote_code" in str(error) and not trust_remote_code:
        return "Read the code in that folder, and if you trust it, add --trust-remote-code."
    if isinstance(error, ImportError):
        return "Install the package that it names."
    return "A tokenizer.json in the folder would be used as it is."
