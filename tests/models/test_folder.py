"""A local folder is a model, or one line says what it lacks."""

import json

import pytest

from hfpipe.errors import ModelError, ModelNotFound, UnsupportedModel
from hfpipe.models.folder import context_length, inspect_folder
from tests.fake_models import write_model


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


@pytest.mark.parametrize(
    ("report", "runtime"),
    [
        ({"runtime": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}),
        ({"runtime": {"CACHE_DIR": "/etc", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}}, {}),
        ({"runtime": ["CACHE_DIR"]}, {}),
        ({}, {}),
    ],
)
def test_an_export_may_bring_arithmetic_and_no_paths(folder, report, runtime):
    (folder / "hfpipe.json").write_text(json.dumps(report))
    assert inspect_folder(folder, "model").runtime == runtime


def test_no_generation_config_is_an_empty_one(folder):
    assert inspect_folder(folder, "model").generation_config == {}


def test_shards(tmp_path):
    folder = write_model(tmp_path / "model", shards=3)
    assert inspect_folder(folder, "model").format == "transformers"
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = error(folder)
    assert "half-downloaded: 1 of 3" in message
    assert "model-00002-of-00003.safetensors" in message


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_an_index_without_a_map(tmp_path, text):
    folder = write_model(tmp_path / "model", shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    assert "index.json: weight_map" in error(folder)


def test_an_openvino_folder(folder):
    (folder / "openvino_model.xml").write_text("<net/>")
    assert "openvino_model.bin is missing" in error(folder)
    (folder / "openvino_model.bin").write_bytes(b"0")
    assert inspect_folder(folder, "model").format == "openvino"


def test_an_openvino_encoder_and_decoder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text('{"is_encoder_decoder": true}')
    for name in ("encoder", "decoder"):
        (folder / f"openvino_{name}_model.xml").write_text("<net/>")
        assert ".bin is missing" in error(folder) or name == "decoder"
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
    assert "adapter for gpt2" in message
    assert "merge" in message
    (tmp_path / "config.json").write_text("{}")
    assert "adapter for gpt2" in error(tmp_path, UnsupportedModel)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("README.md", "it has no config.json"),
        ("model_index.json", "diffusers"),
        ("model.gguf", "Name the file: "),
    ],
)
def test_a_folder_that_is_no_transformers_model(tmp_path, file, words):
    (tmp_path / file).touch()
    message = error(tmp_path, UnsupportedModel if words == "diffusers" else ModelError)
    assert words in message


@pytest.mark.parametrize("file", ["tf_model.h5", "flax_model.msgpack", "model.onnx", "model.gguf"])
def test_weights_of_others_are_named(folder, file):
    (folder / "model.safetensors").rename(folder / file)
    message = error(folder)
    assert "no weights" in message
    assert file in message


def test_a_multimodal_openvino_folder(folder):
    (folder / "model.safetensors").unlink()
    (folder / "openvino_language_model.xml").touch()
    assert "images and text" in error(folder, UnsupportedModel)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"[1]", b"null", b"{", b"", b"\xff\xfe", b'"text"'])
def test_damaged_json_is_named(tmp_path, file, content):
    folder = write_model(tmp_path / "model", shards=2)
    (folder / file).write_bytes(content)
    assert f"{file} " in error(folder)


def test_config_json_that_is_a_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json" in error(folder)


@pytest.mark.parametrize("size", [0, 5, 40, 4000])
def test_weights_that_are_cut_off(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    message = error(folder)
    assert "model.safetensors is" in message
    assert "half-downloaded" in message


@pytest.mark.parametrize("content", [b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x08" + b"\0" * 7 + b'{"a":{}}'])
def test_weights_that_are_no_safetensors(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "not a safetensors file" in error(folder)


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
