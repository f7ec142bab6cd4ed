"""Makers of model files that take milliseconds: folders with weights of a few bytes, GGUF files, and wheels of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "Ġt h", "Ġth e", "1 2"]


def write_model(folder: Path, *, shards: int = 1, **config: Any) -> Path:
    """A transformers folder; more than one shard come with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 64, **config}))
    (folder / "tokenizer.json").write_text("{}")
    if shards == 1:
        save_file({"weight": np.zeros(1000, np.float32)}, folder / "model.safetensors")
        return folder
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for number, name in enumerate(names):
        save_file({f"weight{number}": np.full(1000, number, np.float32)}, folder / name)
    weights = {f"weight{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return folder


def byte_characters() -> list[str]:
    """The 256 characters that byte-level BPE writes for bytes, in GPT-2's order."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_gguf(path: Path, *, dtype: str = "F32", weights: bool = True, **fields: Any) -> Path:
    """A Llama of two tiny layers. `fields` replace metadata: tokenizer_ggml_pre="gpt-2"; None leaves one out."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    tokens = [*SPECIAL_TOKENS, *byte_characters(), *(merge.replace(" ", "") for merge in MERGES)]
    for name, value in {**_fields(tokens), **fields}.items():
        _add(writer, name.replace("tokenizer_ggml_", "tokenizer.ggml."), value)
    if weights:
        for name, shape in _shapes(len(tokens)).items():
            data = np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)
            kind = gguf.GGMLQuantizationType[dtype if len(shape) > 1 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _fields(tokens: list[str]) -> dict[str, Any]:
    return {
        "general.name": "Tiny",
        "llama.context_length": 128,
        "llama.embedding_length": 32,
        "llama.block_count": 2,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 8,
        "llama.vocab_size": len(tokens),
        "tokenizer_ggml_model": "gpt2",
        "tokenizer_ggml_pre": "smollm",
        "tokenizer_ggml_tokens": tokens,
        "tokenizer_ggml_token_type": [3] * len(SPECIAL_TOKENS) + [1] * (len(tokens) - len(SPECIAL_TOKENS)),
        "tokenizer_ggml_merges": MERGES,
        "tokenizer_ggml_bos_token_id": 1,
        "tokenizer_ggml_eos_token_id": 2,
        "tokenizer_ggml_padding_token_id": 2,
        "tokenizer_ggml_unknown_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}",
    }


def _add(writer: Any, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(name, value)
    else:
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kinds[type(value)](name, value)


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, 32), "output_norm.weight": (32,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (32,),
                "attn_q": (32, 32),
                "attn_k": (16, 32),
                "attn_v": (16, 32),
                "attn_output": (32, 32),
                "ffn_norm": (32,),
                "ffn_gate": (64, 32),
                "ffn_up": (64, 32),
                "ffn_down": (32, 64),
            }.items()
        }
    return shapes


def write_wheel(folder: Path, files: Mapping[str, bytes], *, name: str = "tiny-model", version: str = "1.0") -> Path:
    """A wheel that pip takes, holding `files` (path in it -> content)."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    information = f"{stem}.dist-info"
    members = {
        **files,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{member},,\n" for member in members) + f"{information}/RECORD,,\n"
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, content in {**members, f"{information}/RECORD": record.encode()}.items():
            archive.writestr(member, content)
    return wheel
