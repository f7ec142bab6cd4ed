"""The model card, README.md: what an export was made from and how, what was measured, and how to run it.

It is written from the report alone, so that what is published can name the repository in place of the folder.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from hfpipe.models.folder import CARD
from hfpipe.quality.compare import change_text
from hfpipe.store import size_text
from hfpipe.types import ModelSource

_CARRIED = ("license", "license_name", "license_link", "language")
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LONGEST = 200
# A path of a file system in a text: what is published says the last part alone.
_PATH = re.compile(r"""(?<![\w:/\\.~-])(?:~|[A-Za-z]:)?(?:[/\\][^/\\\s'"`:;,()]+)+[/\\]?""")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&$])")
_RUN = """\
```sh
hfpipe run {typed} "What is EEG?"
```

```python
import openvino_genai{fetch}

pipe = openvino_genai.LLMPipeline({folder}, "CPU")
print(pipe.generate("What is EEG?", max_new_tokens=100))
```

```python
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

model = OVModelForCausalLM.from_pretrained({name})
tokenizer = AutoTokenizer.from_pretrained({name})
```
"""
_RUN_SEQ2SEQ = """\
```sh
hfpipe run {typed} "What is EEG?"
```

```python
from optimum.intel import OVModelForSeq2SeqLM
from transformers import AutoTokenizer

model = OVModelForSeq2SeqLM.from_pretrained({name})
tokenizer = AutoTokenizer.from_pretrained({name})
```
"""


def carried(source: ModelSource) -> dict[str, Any]:
    """The license and the languages of a model, as its own card has them; else the license of its configuration."""
    file = source.folder / CARD
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    said = _front_matter(text) or {"license": source.config.get("license")}
    return {name: said[name] for name in _CARRIED if _is_plain(said.get(name))}


def _front_matter(text: str) -> dict[str, Any]:
    found = _FRONT_MATTER.match(text)
    try:
        # All scalars stay text: `no` is a language.
        data = yaml.load(found[1], Loader=yaml.BaseLoader) if found else None
    except (yaml.YAMLError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_plain(value: Any) -> bool:
    """Whether it is a short text in one line, or a list of such."""
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(one, str) and one.isprintable() and 0 < len(one) <= _LONGEST for one in texts)


def source_name(source: Mapping[str, Any]) -> str:
    """What the report calls its source, and of a local folder or file the last part alone."""
    named = str(source["model"])
    is_name = source.get("revision") is not None or named.startswith("pypi:")
    return named if is_name else os.path.basename(os.path.normpath(named))


def without_paths(text: str) -> str:
    """A text for others, in which paths of this machine are their last parts."""
    if os.path.isabs(text):
        return os.path.basename(os.path.normpath(text))
    return _PATH.sub(lambda path: re.split(r"[/\\]", path[0].rstrip("/\\"))[-1], text)


def card(report: Mapping[str, Any], name: str, *, published: bool = False) -> str:
    """The text of README.md for the export that `report` describes: `name` is that of its folder or, where it is
    `published`, of its repository."""
    front = yaml.safe_dump(_metadata(report), sort_keys=False, allow_unicode=True)
    title = _text(name.rpartition("/")[2])
    sections = [
        f"# {title}\n\n{_summary(report)}\n",
        f"## How to run it\n\n{_commands(report, name, published)}",
        "## What was measured\n\n" + "\n".join(_measured(report)) + "\n",
        "## How it was made\n\n" + _table(("", ""), _making(report)) + "\n",
    ]
    return f"---\n{front}---\n\n" + "\n".join(sections)


def _metadata(report: Mapping[str, Any]) -> dict[str, Any]:
    """The front matter, in the Hub's own names."""
    source, bits = report["source"], _bits(report)
    data = {}
    if source.get("revision") is not None:
        data = {"base_model": source["model"]} | ({"base_model_relation": "quantized"} if bits else {})
    data |= {name: source[name] for name in _CARRIED if name in source}
    data["library_name"] = "openvino"
    if not _is_seq2seq(report):
        data["pipeline_tag"] = "text-generation"
    return data | {"tags": ["openvino", *(["nncf", f"{bits}-bit"] if bits else [])]}


def _bits(report: Mapping[str, Any]) -> str | None:
    """Of quantized weights."""
    weight_format = str(report["weight_format"])
    found = re.search(r"\d", weight_format)
    return found[0] if found and weight_format not in ("fp32", "fp16") else None


def _is_seq2seq(report: Mapping[str, Any]) -> bool:
    return "text2text-generation-with-past" in report["optimum_cli"]


def _summary(report: Mapping[str, Any]) -> str:
    source = report["source"]
    name = _text(source_name(source))
    if source.get("revision") is not None:
        name = f"[{name}](https://huggingface.co/{source['model']})"
    version = _text(report["versions"]["hfpipe"])
    text = f"{name} for OpenVINO, with weights in {_text(report['weight_format'])}, exported by hfpipe {version}."
    license = f"The license is the source's: {_words(source['license'])}." if "license" in source else _NO_LICENSE
    return f"{text} {license}"


_NO_LICENSE = "The license is the source's, whose files do not name it."


def _commands(report: Mapping[str, Any], name: str, published: bool) -> str:
    name = _line(name)
    fetch = "\nfrom huggingface_hub import snapshot_download" if published else ""
    folder = f"snapshot_download({name!r})" if published else repr(name)
    template = _RUN_SEQ2SEQ if _is_seq2seq(report) else _RUN
    typed = shlex.quote(name) + (" --target-lang LANG" if report.get("needs_target_lang") else "")
    return template.format(typed=typed, name=repr(name), folder=folder, fetch=fetch)


def _measured(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"Size: {size_text(report['size'])}."
    if shares := report.get("weights"):
        yield f"Weights: {', '.join(f'{share:.1%} {_text(name)}' for name, share in shares.items())}."
    yield ""
    if quality := report.get("quality"):
        yield "Loaded afresh and compared with its source, on texts that it was not calibrated on:"
        yield ""
        rows = [(_text(kind), *_change(change)) for kind, change in [("all", quality), *quality["kinds"].items()]]
        yield _table(("text", "change of perplexity", "KL divergence", "equal next token"), rows)
    else:
        yield "It was not compared with its source."
    for warning in report.get("warnings", ()):
        yield f"\nWarning: {_text(without_paths(warning))}"


def _change(change: Mapping[str, Any]) -> tuple[str, str, str]:
    text, error = change_text(change["perplexity_change"]), change.get("perplexity_change_error")
    margin = f" (±{error:.1%})" if error and not text.startswith("over") else ""
    return f"{text}{margin}", f"{change['mean_kl']:.4f}", f"{change['same_top']:.1%}"


def _making(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    source, request = report["source"], report.get("made_with", report["request"])
    yield "source", _code(source_name(source))
    if source.get("revision") is not None:
        yield "its revision", _code(source["revision"])
    yield "sha256 of its files", _code(source["sha256"])
    yield "options", _code(shlex.join(map(without_paths, request["options"])))
    if request.get("in_8_bits"):
        yield "in 8 bits", ", ".join(map(_code, request["in_8_bits"]))
    if request.get("rounded_by"):
        yield "rounded", "by GPTQ of hfpipe"
    if report.get("calibration"):
        yield "calibration", _text(without_paths(os.path.basename(report["calibration"])))
    yield "made", _text(report["created"])
    yield "with", ", ".join(f"{_text(package)} {_text(version)}" for package, version in report["versions"].items())


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: Any) -> str:
    """Any text as one line of Markdown that shows it."""
    return _SPECIAL.sub(r"\\\1", _line(value))


def _words(value: Any) -> str:
    return ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _code(value: Any) -> str:
    """Any text as code within a line, also of a table."""
    text = _line(value).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if "`" in text else f"{ticks}{text}{ticks}"


def _line(value: Any) -> str:
    return "".join(character if character.isprintable() else " " for character in str(value))
