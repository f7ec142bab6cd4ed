"""What a model's own files say is checked where they are read: one line with the file and the key, no traceback."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfpipe.errors import HFPipeError, ModelError, UnsupportedModel
from hfpipe.generator import open_generator
from hfpipe.models.folder import context_length, inspect_folder
from hfpipe.text.templates import prompt_template
from hfpipe.text.tokenizer import load_tokenizer
from hfpipe.types import LoadOptions, TextRequest
from tests import tiny
from tests.fake_models import write_model

DEEP = '{"a": ' * 100_000 + "1" + "}" * 100_000
FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "added_tokens.json")


def make(folder):
    write_model(folder)
    tiny.save_tokenizer(folder, eos_token="<|im_end|>")
    return folder


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "model")


def edit(path, **values):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values))


def read(folder):
    """All that is read before the weights are."""
    source = inspect_folder(folder, "model")
    template = prompt_template(load_tokenizer(folder), "model")
    return source, template.fill(dict.fromkeys(template.template.variables, "Hi"))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "architectures", 5),
        ("config.json", "model_type", ["a"]),
        ("config.json", "eos_token_id", [[1]]),
        ("config.json", "n_layer", 10**9),
        ("config.json", "text_config", [1]),
        ("config.json", "quantization_config", "gptq"),
        ("generation_config.json", "eos_token_id", [[1]]),
        ("generation_config.json", "eos_token_id", "</s>"),
        ("generation_config.json", "temperature", "hot"),
        ("generation_config.json", "temperature", float("nan")),
        ("generation_config.json", "top_p", 1.5),
        ("generation_config.json", "top_k", -1),
        ("generation_config.json", "repetition_penalty", 0.0),
        ("generation_config.json", "max_new_tokens", 0),
        ("generation_config.json", "stop_strings", [""]),
        ("generation_config.json", "do_sample", "false"),
        ("config.json", "max_position_embeddings", "abc"),
        ("tokenizer_config.json", "eos_token", 5),
        ("tokenizer_config.json", "bos_token", {"content": 5}),
        ("tokenizer_config.json", "chat_template", [5]),
        ("tokenizer_config.json", "chat_template", {"default": 5}),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": {"content": "a"}}),
        ("tokenizer_config.json", "added_tokens_decoder", {"7": {}}),
        ("model.safetensors.index.json", "weight_map", {"a": "x" * 5000}),
        ("model.safetensors.index.json", "weight_map", {"a": 5}),
    ],
)
def test_a_key_that_makes_no_sense_is_named_with_its_file(folder, file, key, value):
    if file.startswith("model."):
        (folder / "model.safetensors").unlink()
    edit(folder / file, **{key: value})
    with pytest.raises(ModelError) as caught:
        read(folder)
    assert type(caught.value) is ModelError
    assert caught.value.message.startswith(f"{folder / file}: {key}")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < len(str(folder)) + 250


@pytest.mark.parametrize("content", [DEEP.encode(), b"\xff\xfe{", b"[]", b"{", b""])
@pytest.mark.parametrize("file", FILES[:4])
def test_a_file_that_is_not_an_object_of_json_is_named(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read(folder)
    assert caught.value.message.startswith(f"{folder / file} ")
    assert len(caught.value.message) < len(str(folder)) + 250


def test_a_chat_template_that_is_not_utf_8_is_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\xff")
    with pytest.raises(ModelError, match=r"chat_template.jinja is not UTF-8 text \(byte 14\)"):
        read(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["architectures", "model_type", "eos_token_id", "eos_token", "bos_token", "n_positions", "text_config", "top_k"]
KEYS += ["rope_scaling", "quantization_config", "temperature", "stop_strings", "max_new_tokens", "do_sample"]
KEYS += ["chat_template", "added_tokens_decoder"]


@given(
    file=st.sampled_from(FILES),
    changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3),
    cut=st.integers(0, 300) | st.none(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_files_say_only_our_errors_are_raised(tmp_path_factory, file, changes, cut):
    folder = make(tmp_path_factory.mktemp("mutated") / "model")
    edit(folder / file, **changes)
    if cut is not None:
        (folder / file).write_text((folder / file).read_text()[:cut])
    said = ""
    try:
        source, _ = read(folder)
        with open_generator(str(folder), LoadOptions(backend="echo")) as generator:
            for completion in generator.generate([TextRequest("1", "Hi")]):
                assert completion.finish_reason
        assert source.context_length is None or source.context_length > 0
    except HFPipeError as error:
        said = error.message
    assert "\n" not in said
    shutil.rmtree(folder)


# What they ask for is honoured, or said


def test_the_end_that_only_the_tokenizer_knows(folder):
    with open_generator(str(folder), LoadOptions(backend="echo")) as generator:
        request = generator.prepare(TextRequest("1", "Hi"), "1")
    assert tiny.IM_END in request.eos_token_ids


def test_stop_strings_of_the_model_end_an_answer(folder):
    edit(folder / "generation_config.json", stop_strings=["brown"])
    with open_generator(str(folder), LoadOptions(backend="echo")) as generator:
        (answer,) = generator.generate([TextRequest("1", "the quick brown fox", add_special_tokens=False)])
    assert (answer.text, answer.finish_reason) == ("the quick ", "stop")


def test_tokens_that_only_the_configuration_lists(folder):
    new = tiny.tokenizer().get_vocab_size()
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    listed = {str(new + 1): {"content": "<tool>", "special": False, **plain}}
    listed[str(new)] = {"content": "<|new|>", "special": True, **plain}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=listed)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("<|new|>hi<tool>", False)
    assert (ids[0], ids[-1]) == (new, new + 1)
    assert tokenizer.decode(ids) == "hi<tool>"


def test_tokens_of_added_tokens_json(folder):
    new = tiny.tokenizer().get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({"<b>": new + 1, "<a>": new}))
    assert load_tokenizer(folder).encode("<b><a>", False) == (new + 1, new)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(("kind", "expected"), [("yarn", 256), ("linear", 64)])
def test_a_context_that_yarn_stretches(key, kind, expected):
    rope = {"factor": 4.0, "original_max_position_embeddings": 64, "rope_type": kind}
    assert context_length({"max_position_embeddings": 64, key: rope}) == expected


def test_weights_that_need_a_package_that_is_missing(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedModel, match="is quantized with gptq, and the package gptqmodel"):
        read(folder)


def test_an_adapter_beside_a_model_is_not_left_out_in_silence(folder):
    edit(folder / "adapter_config.json", base_model_name_or_path="org/base", peft_type="LORA")
    with pytest.raises(UnsupportedModel, match="has an adapter beside the model") as caught:
        read(folder)
    # Not "remove its file": from the Hub it would come again.
    assert caught.value.hint == "Merge the adapter with its base model first (peft: merge_and_unload)."
