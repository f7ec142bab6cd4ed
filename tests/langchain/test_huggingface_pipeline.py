"""LangChain's page "Hugging Face Local Pipelines", word for word, with the import changed, against a Hub on this
machine that holds tiny models under the names of the page."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.prompts import PromptTemplate

from hfpipe import HFPipe
from hfpipe.backends.openvino import optimum_cli
from hfpipe.errors import BackendError, UsageError
from hfpipe.generator import find_model
from hfpipe.types import LoadOptions
from tests import tiny
from tests.conftest import once
from tests.hub import LoopbackHub, settings

PAGE = '''
import json
from hfpipe import HFPipe as HuggingFacePipeline
from hfpipe.errors import BackendError

said = {}
hf = HuggingFacePipeline.from_model_id(
    model_id="gpt2",
    task="text-generation",
    pipeline_kwargs={"max_new_tokens": 10},
)

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

model_id = "gpt2"
tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForCausalLM.from_pretrained(model_id)
pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=10)
said["pipeline"] = HuggingFacePipeline(pipeline=pipe).invoke("What is electroencephalography?")

from langchain_core.prompts import PromptTemplate

template = """Question: {question}

Answer: Let's think step by step."""
prompt = PromptTemplate.from_template(template)

chain = prompt | hf

question = "What is electroencephalography?"

said["chain"] = chain.invoke({"question": question})
text = template.format(question=question)
expected = pipe(text, do_sample=False, return_full_text=False)[0]["generated_text"]
said["chain as transformers"] = said["chain"] == expected

gpu = {}
for device in (0, -1):
    try:
        gpu_llm = HuggingFacePipeline.from_model_id(
            model_id="gpt2",
            task="text-generation",
            device=device,  # replace with device_map="auto" to use the accelerate library.
            pipeline_kwargs={"max_new_tokens": 10},
        )
        gpu_chain = prompt | gpu_llm
        gpu[device] = gpu_chain.invoke({"question": question})
    except BackendError as error:
        gpu[device] = str(error)
said["gpu"] = gpu
llm = HuggingFacePipeline.from_model_id(
    model_id="gpt2", task="text-generation", device_map="auto", pipeline_kwargs={"max_new_tokens": 10}
)
said["device_map as device"] = (prompt | llm).invoke({"question": question}) == gpu[-1]

gpu_llm = HuggingFacePipeline.from_model_id(
    model_id="bigscience/bloom-1b7",
    task="text-generation",
    device=-1,  # -1 for CPU
    batch_size=2,  # adjust as needed based on GPU map and model size.
    model_kwargs={"temperature": 0, "max_length": 64},
)

gpu_chain = prompt | gpu_llm.bind(stop=["\\n\\n"])

questions = []
for i in range(4):
    questions.append({"question": f"What is the number {i} in french?"})

said["batch"] = gpu_chain.batch(questions)
print(json.dumps(said))
'''

QUESTION = "What is electroencephalography?"
PROMPT = PromptTemplate.from_template("Question: {question}\n\nAnswer: Let's think step by step.")
OV_CONFIG = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""}
FASTER = {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32", **OV_CONFIG}


def write_models(folder: Path) -> None:
    """gpt2 of a width that the default group size of optimum-cli, 128, divides, and a bloom."""
    from transformers import GPT2Config

    sizes = {"vocab_size": tiny.VOCABULARY, "n_positions": 128, "n_embd": 128, "n_layer": 2, "n_head": 4}
    tiny.save_model(folder / "gpt2", GPT2Config(**sizes, initializer_range=0.4, bos_token_id=0, eos_token_id=0))
    tiny.save_tokenizer(folder / "gpt2", eos_token=tiny.SPECIAL_TOKENS[0])
    tiny.bloom(folder / "bloom")


@pytest.fixture(scope="module")
def models() -> Path:
    return once("page", write_models)


@pytest.fixture(scope="module")
def hub(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a program's environment needs to have the models of the page from a Hub on this machine."""
    with LoopbackHub({"gpt2": models / "gpt2", "bigscience/bloom-1b7": models / "bloom"}) as running:
        home = str(tmp_path_factory.mktemp("hf"))
        yield {"HF_ENDPOINT": running.url, "HF_HUB_OFFLINE": "0", "HF_HOME": home}


@pytest.fixture
def online(hub: dict[str, str]) -> Iterator[None]:
    with settings(**hub):
        yield


@pytest.fixture(scope="module")
def exports(hub: dict[str, str]) -> Path:
    """The commands of the page, by optimum-cli itself."""
    formats = {"plain": [], "int8": ["--weight-format", "int8"], "int4": ["--weight-format", "int4"]}

    def export(folder: Path) -> None:
        commands = [
            ["export", "openvino", "--model", "gpt2", *format, str(folder / name)] for name, format in formats.items()
        ]
        code = f"for words in {commands}: sys.argv[1:] = words; main()"
        code = "import sys; from optimum.commands.optimum_cli import main\n" + code
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **hub}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    return once("page-exports", export)


def test_the_page_runs_from_top_to_bottom_with_only_the_import_changed(hub: dict[str, str], tmp_path: Path) -> None:
    import torch

    said = subprocess.run(
        [sys.executable, "-c", PAGE],
        env={**os.environ, **hub},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    answers = json.loads(said.stdout)
    assert answers["pipeline"]
    assert answers["chain"] == answers["gpu"]["-1"]
    assert answers["chain as transformers"] is answers["device_map as device"] is True
    assert len(answers["batch"]) == 4
    assert all(answer and "\n\n" not in answer and "Question:" not in answer for answer in answers["batch"])
    if not torch.accelerator.is_available():
        assert answers["gpu"]["0"].startswith("There is no device '0' on this machine; available: cpu (1).\nLeave")


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("ov_config", [OV_CONFIG, FASTER], ids=["plain", "faster"])
def test_openvino_takes_its_device_and_properties_from_model_kwargs(ov_config: dict[str, str]) -> None:
    ov_llm = HFPipe.from_model_id(
        model_id="gpt2",
        task="text-generation",
        backend="openvino",
        model_kwargs={"device": "CPU", "ov_config": ov_config},
        pipeline_kwargs={"max_new_tokens": 10},
    )
    assert (PROMPT | ov_llm).invoke({"question": QUESTION})
    detail = ov_llm.generator.backend.info.detail
    assert ov_config.items() <= {**detail, "CACHE_DIR": ""}.items()
    assert ov_llm.generator.backend.info.device == "CPU"


@pytest.mark.usefixtures("online")
def test_a_device_that_is_not_here_is_a_clear_error() -> None:
    import openvino

    if "GPU" not in openvino.Core().available_devices:
        with pytest.raises(BackendError, match=r"Device 'GPU' not found. Available: CPU.*\nLeave device out"):
            HFPipe.from_model_id("gpt2", "text-generation", backend="openvino", model_kwargs={"device": "GPU"})
    with pytest.raises(UsageError, match="device and device_map exclude each other"):
        HFPipe.from_model_id("gpt2", "text-generation", device=0, device_map="auto")
    with pytest.raises(UsageError, match="device is given twice"):
        HFPipe.from_model_id("gpt2", "text-generation", device=-1, model_kwargs={"device": "CPU"})


@pytest.mark.parametrize("name", ["plain", "int8", "int4"])
def test_a_folder_that_optimum_cli_made_runs(exports: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exports)
    ov_llm = HFPipe.from_model_id(
        model_id=name,
        task="text-generation",
        backend="openvino",
        model_kwargs={"device": "CPU", "ov_config": FASTER},
        pipeline_kwargs={"max_new_tokens": 10},
    )
    chain = PROMPT | ov_llm
    assert chain.invoke({"question": QUESTION}) == "".join(chain.stream({"question": QUESTION}))
    info = ov_llm.generator.backend.info
    assert info.dtype == {"plain": "float32", "int8": "int8", "int4": "int4"}[name]


def test_the_default_backend_does_not_depend_on_the_cache(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is torch, also where the cache has an export, which `hfpipe.load` uses."""
    monkeypatch.setattr(optimum_cli, "is_exported", lambda *_: True)
    of_load = find_model(str(tiny_gpt2), LoadOptions())
    with HFPipe.from_model_id(str(tiny_gpt2), "text-generation") as llm:
        assert (of_load.choice.name, llm.generator.info.name) == ("openvino", "torch")
    assert LoadOptions("default", endpoint="http://127.0.0.1:1").backend == "endpoint"
