"""LangChain's own suite for chat models, units and integration, on models constructed as LangChain's classes are. It
has none for LLMs: HFPipe is in it under a ChatHFPipe."""

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests.chat_models import ChatModelTests, ChatModelUnitTests

from hfpipe import ChatHFPipe, HFPipe

# Tools, structured output and media; another model in a call; settings from the environment, serialization; a
# recorder of HTTP calls, and what is measured elsewhere (tests/test_import_time.py).
NOT_OF_HFPIPE = re.compile(
    "tool|structured|json_mode|image|pdf|audio|anthropic|agent_loop|model_override|from_env|serdes|_time$"
)


class _Suite(ChatModelTests):
    """Both suites, but for what is not of hfpipe."""

    @property
    def chat_model_class(self) -> type[ChatHFPipe]:
        return ChatHFPipe

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 30, "stop": []}


for _suite in (ChatModelUnitTests, ChatModelIntegrationTests):
    for _name, _test in vars(_suite).items():
        if _name.startswith("test_") and not NOT_OF_HFPIPE.search(_name):
            setattr(_Suite, _name, _test)


def test_the_suites_are_nearly_whole() -> None:
    """Also where a new version of them has other names."""
    ours = {name for name in dir(_Suite) if name.startswith("test_")}
    core = (
        "invoke",
        "ainvoke",
        "stream",
        "astream",
        "batch",
        "abatch",
        "conversation",
        "usage_metadata",
        "stop_sequence",
    )
    assert {f"test_{name}" for name in (*core, "init", "init_streaming", "standard_params")} <= ours
    assert len(ours) >= 18


class TestTiny(_Suite):
    folder: Path

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(self.folder), "batch_size": 4}


class TestOverAnLLM(TestTiny):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"llm": HFPipe(model=str(self.folder), batch_size=4)}


@pytest.mark.model
class TestSmolLM2(_Suite):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smollm2"}


@pytest.fixture(scope="module", autouse=True)
def _exported(tiny_llama_ov: Path) -> None:
    TestTiny.folder = tiny_llama_ov
