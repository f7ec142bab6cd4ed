"""What is fetched of a repository, chosen over names; a local folder is a model, or one line says what it lacks."""

import json

import pytest

from hfpipe.errors import ModelError, ModelNotFound, UnsupportedModel
from hfpipe.models.folder import choose, context_length, inspect_folder
from tests.fake_models import write_model

SMALL = [
    "README.md",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
]
OTHERS = [
    ".gitattributes",
    "NOTES.md",
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
def test_pickles_are_chosen_only_where_they_are_allowed(weights):
    names = [*SMALL, *OTHERS, *weights]
    with pytest.raises(UnsupportedModel, match="org/name has its weights as pickles only") as caught:
        choose(names, "org/name", allow_pickle=False)
    assert "--allow-pickle" in caught.value.hint
    assert choose(names, "org/name", allow_pickle=True) == sorted([*SMALL, *weights])


def test_no_weights_that_can_be_read():
    with pytest.raises(UnsupportedModel, match="org/name is an adapter") as caught:
        choose(["adapter_config.json", "adapter_model.safetensors"], "org/name", allow_pickle=False)
    assert "merge_and_unload" in caught.value.hint
    with pytest.raises(UnsupportedModel, match=r"org/name has no weights that hfpipe reads, only flax_model.msgpack"):
        choose([*SMALL, *OTHERS], "org/name", allow_pickle=True)
    with pytest.raises(ModelError, match=r"(?m)org/name has no weights: neither model.safetensors nor "):
        choose([], "org/name", allow_pickle=True)


def test_what_a_model_may_need_besides():
    extra = ["chat_template.jinja", "modeling_x.py", "spiece.model", "tekken.json", "qwen.tiktoken"]
    assert choose(["model.safetensors", *extra], "x", allow_pickle=False) == sorted(["model.safetensors", *extra])


# A local folder


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


def error(folder, kind=ModelError, **options):
    with pytest.raises(ModelError) as caught:
        inspect_folder(folder, "model", **options)
    assert type(caught.value) is kind
    assert "\n" not in caught.value.message
    return f"{caught.value.message} {caught.value.hint}"


def test_a_transformers_folder(folder):
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    source = inspect_folder(folder, "model", revision="abc")
    assert source.format == "transformers"
    assert source.folder == folder
    assert source.reference == "model"
    assert source.revision == "abc"
    assert source.config["model_type"] == "gpt2"
    assert source.generation_config == {"temperature": 0.6}
    assert source.context_length == 64
    assert not source.is_encoder_decoder


def test_shards(tmp_path):
    folder = write_model(tmp_path / "model", shards=3)
    assert inspect_folder(folder, "model").format == "transformers"
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = error(folder)
    assert "half-downloaded: 1 of 3" in message
    assert "model-00002-of-00003.safetensors" in message


def test_an_index_without_a_map(tmp_path):
    folder = write_model(tmp_path / "model", shards=2)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "index.json: weight_map is missing" in error(folder)


def test_an_openvino_folder(folder):
    (folder / "openvino_model.xml").write_text("<net/>")
    assert "1 of 2 weight files are missing (openvino_model.bin)" in error(folder)
    (folder / "openvino_model.bin").write_bytes(b"0")
    assert inspect_folder(folder, "model").format == "openvino"


def test_an_openvino_encoder_and_decoder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text('{"is_encoder_decoder": true}')
    for name in ("encoder", "decoder"):
        (folder / f"openvino_{name}_model.xml").write_text("<net/>")
        assert "weight files are missing" in error(folder)
        (folder / f"openvino_{name}_model.bin").write_bytes(b"0")
    source = inspect_folder(folder, "model")
    assert source.format == "openvino"
    assert source.is_encoder_decoder


@pytest.mark.parametrize(
    "names", [["pytorch_model.bin"], ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]]
)
def test_pickles_only_where_they_are_allowed(folder, names):
    (folder / "model.safetensors").unlink()
    for name in names:
        (folder / name).write_text(json.dumps({"weight_map": {"a": names[0]}}))
    message = error(folder, UnsupportedModel)
    assert "pickles only" in message
    assert "--allow-pickle" in message
    assert inspect_folder(folder, "model", allow_pickle=True).format == "transformers"
    (folder / names[0]).unlink()
    error(folder, allow_pickle=True)


def test_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    message = error(tmp_path, UnsupportedModel)
    assert "is an adapter" in message
    assert "merge" in message
    (tmp_path / "config.json").write_text("{}")
    assert message == error(tmp_path, UnsupportedModel)


@pytest.mark.parametrize(
    ("file", "words"), [("README.md", "is not a model: it has no config.json"), ("model.gguf", "Name the file: ")]
)
def test_a_folder_that_is_no_transformers_model(tmp_path, file, words):
    (tmp_path / file).touch()
    assert words in error(tmp_path)


@pytest.mark.parametrize("file", ["tf_model.h5", "model.gguf", "openvino_language_model.xml"])
def test_weights_of_others_are_named(folder, file):
    (folder / "model.safetensors").rename(folder / file)
    assert f"no weights that hfpipe reads, only {file}" in error(folder, UnsupportedModel)


def test_config_json_that_is_a_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json" in error(folder)


DEEP = b'{"a": ' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize("size", [0, 5, 40, 4000])
def test_weights_that_are_cut_off(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "model.safetensors is not a whole safetensors file: " in error(folder)


@pytest.mark.parametrize("header", [b"\xff" * 64, b"[]", b'{"a":{}}', DEEP])
def test_weights_that_are_no_safetensors(folder, header):
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "is not a whole safetensors file: " in error(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "openvino_model.bin", "openvino_model.xml"])
def test_a_git_lfs_pointer(folder, name):
    for file in ("openvino_model.xml", "openvino_model.bin") if "openvino" in name else ():
        (folder / file).touch()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    message = error(folder)
    assert name in message
    assert "git lfs pull" in message


def test_no_folder(tmp_path):
    assert "no folder" in error(tmp_path / "none", ModelNotFound)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 8192, "n_positions": 5}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"n_ctx": 512}, 512),
        ({"max_seq_len": 2048}, 2048),
        ({"max_sequence_length": 2048}, 2048),
        ({"seq_length": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 131072}}, 131072),
        ({"max_position_embeddings": None, "n_ctx": 7}, 7),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": "many"}, None),
        ({"text_config": "none"}, None),
        ({"n_positions": 512, "relative_attention_num_buckets": 32}, None),
        ({}, None),
    ],
)
def test_context_length(config, expected):
    assert context_length(config) == expected
