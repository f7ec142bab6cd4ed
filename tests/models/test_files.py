"""What is fetched of a repository, chosen over names."""

import pytest

from hfpipe.errors import ModelError, UnsupportedModel
from hfpipe.models.files import choose

SMALL = ["config.json", "generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
OTHERS = [
    ".gitattributes",
    "README.md",
    "64.tflite",
    "coreml/model.mlpackage",
    "flax_model.msgpack",
    "model.gguf",
    "onnx/config.json",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "rust_model.ot",
    "tf_model.h5",
    "training_args.bin",
]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
PICKLES = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"]
OPENVINO = ["openvino_model.bin", "openvino_model.xml", "openvino_tokenizer.bin", "openvino_tokenizer.xml"]


@pytest.mark.parametrize(
    ("weights", "decoys"),
    [
        (["model.safetensors"], ["pytorch_model.bin", "consolidated.safetensors"]),
        (["model.safetensors"], SHARDS),
        (SHARDS, [*PICKLES, "consolidated.safetensors", "adapter_model.safetensors"]),
        (OPENVINO, ["model.safetensors", "pytorch_model.bin"]),
        (["openvino_encoder_model.xml", "openvino_encoder_model.bin", "openvino_decoder_model.xml"], []),
    ],
)
def test_one_set_of_weights_and_the_small_files(weights, decoys):
    names = [*SMALL, *OTHERS, *weights, *decoys]
    for allow_pickle in (False, True):
        assert choose(names, "org/name", allow_pickle=allow_pickle) == sorted([*SMALL, *weights])


@pytest.mark.parametrize("weights", [["pytorch_model.bin"], PICKLES])
def test_pickles_only_where_they_are_allowed(weights):
    names = [*SMALL, *OTHERS, *weights]
    with pytest.raises(UnsupportedModel, match="org/name has its weights as pickles only") as caught:
        choose(names, "org/name", allow_pickle=False)
    assert "--allow-pickle" in caught.value.hint
    assert choose(names, "org/name", allow_pickle=True) == sorted([*SMALL, *weights])


def test_an_adapter_is_refused():
    with pytest.raises(UnsupportedModel, match="org/name is an adapter"):
        choose(["adapter_config.json", "adapter_model.safetensors"], "org/name", allow_pickle=False)


def test_no_weights():
    with pytest.raises(ModelError, match=r"org/name has no model.safetensors, only flax_model.msgpack"):
        choose([*SMALL, *OTHERS], "org/name", allow_pickle=True)
    with pytest.raises(ModelError, match=r"(?m)org/name has no model.safetensors\.$"):
        choose([], "org/name", allow_pickle=True)


def test_what_a_model_may_need_besides():
    extra = [
        "chat_template.jinja",
        "modeling_x.py",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "qwen.tiktoken",
    ]
    assert choose(["model.safetensors", *extra], "x", allow_pickle=False) == sorted(["model.safetensors", *extra])
