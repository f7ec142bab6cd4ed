"""A GGUF file -> a transformers folder that loads like any other. Runs in a child process (see process.py).

The weights go through transformers, which dequantizes them right. The tokenizer is built here: transformers reads
byte-level BPE as SentencePiece and says nothing. Only kinds whose token ids were compared with llama.cpp's are built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType, GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from hfpipe.errors import ModelError, UnsupportedModel
from hfpipe.store import writing
from hfpipe.types import Reporter

_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL_TOKENS = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_END_TOKENS = ("eos", "eot", "eom")
_OTHER_WAY = "Use the model's transformers folder or its Hub id."

_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
# By tokenizer.ggml.pre.
_PRE_TOKENIZERS = {
    "gpt-2": _WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _WORDS]),
}

Fields = Mapping[str, Any]


def main(arguments: dict[str, Any], reporter: Reporter) -> None:
    """Convert `arguments["file"]` into the empty folder `arguments["folder"]`."""
    file, folder = Path(arguments["file"]), Path(arguments["folder"])
    with writing(folder.parent):
        reader = _open(file)
        fields = read_fields(reader)
        check(fields, reader, file)
        _write_tokenizer(fields, folder)
        _write_weights(file, folder, fields, dtype_name(reader))


def _open(file: Path) -> GGUFReader:
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
        hint = "It may be half-downloaded: fetch it again."
        raise ModelError(f"{file} cannot be read as GGUF ({error}).", hint=hint) from error


def read_fields(reader: GGUFReader) -> dict[str, Any]:
    """The file's metadata as plain values."""
    return {name: field.contents() for name, field in reader.fields.items()}


def check(fields: Fields, reader: GGUFReader, file: Path) -> None:
    """Refuse, before any weight is read, what would convert into something else than the model."""
    model, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    scaling = fields.get(f"{fields.get('general.architecture')}.rope.scaling.type", "none")
    refusal = None
    if fields.get("general.type", "model") != "model":
        refusal = f"it holds no model but a part of one ({fields['general.type']})"
    elif fields.get("split.count", 1) > 1:
        refusal = f"it is one of {fields['split.count']} parts"
    elif model != "gpt2":
        refusal = f"tokenizers of the kind {model!r} are not known to convert exactly"
    elif pre not in _PRE_TOKENIZERS:
        refusal = f"the pre-tokenizer {pre!r} is not known to convert exactly (known: {', '.join(_PRE_TOKENIZERS)})"
    elif scaling != "none" or any(tensor.name.startswith("rope_") for tensor in reader.tensors):
        # transformers drops it without a word.
        refusal = "its scaled rotary positions would be lost"
    if refusal:
        raise UnsupportedModel(f"{file.name} cannot be converted: {refusal}.", hint=_OTHER_WAY)


def dtype_name(reader: GGUFReader) -> str:
    """The dtype to save in: the file's own where it is a plain one, else bfloat16, which holds what is dequantized."""
    # Norms stay F32 in a file of F16.
    types = {tensor.tensor_type for tensor in reader.tensors} - {GGMLQuantizationType.F32}
    if not types:
        return "float32"
    return "float16" if types == {GGMLQuantizationType.F16} else "bfloat16"


def build_tokenizer(fields: Fields) -> Tokenizer:
    """The byte-level BPE that `tokenizer.ggml.*` describes."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[fields["tokenizer.ggml.pre"]]
    tokenizer.decoder = decoders.ByteLevel()
    types = fields.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, types, strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    if fields.get("tokenizer.ggml.add_bos_token", False):
        bos = fields["tokenizer.ggml.bos_token_id"]
        single, special = [tokens[bos], "$A"], [(tokens[bos], bos)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


def _write_tokenizer(fields: Fields, folder: Path) -> None:
    build_tokenizer(fields).save(str(folder / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields[f"{fields['general.architecture']}.context_length"],
    }
    for name, key in _SPECIAL_TOKENS.items():
        if (number := fields.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            config[key] = tokens[number]
    _write_json(folder / "tokenizer_config.json", config)
    if template := fields.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_weights(file: Path, folder: Path, fields: Fields, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=getattr(torch, dtype), output_loading_info=True
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise UnsupportedModel(f"transformers cannot read {file.name}: {error}", hint=_OTHER_WAY) from error
    if missing := sorted(loading["missing_keys"]):
        raise UnsupportedModel(f"{file.name} lacks weights: {', '.join(missing[:3])}.", hint=_OTHER_WAY)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # general.name: a title, where transformers keeps a path.
    config.pop("_model_name_or_path", None)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_config(fields))


def generation_config(fields: Fields) -> dict[str, Any]:
    """Where generation begins and ends: every end token that the file names."""
    ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS]
    distinct = list(dict.fromkeys(number for number in ends if number is not None))
    config = {
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": distinct[0] if len(distinct) == 1 else distinct or None,
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    return {name: value for name, value in config.items() if value is not None}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
