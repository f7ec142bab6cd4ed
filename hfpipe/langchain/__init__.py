"""hfpipe as LangChain Runnables, over a generator."""

from hfpipe.langchain.chain import Recorder, chain
from hfpipe.langchain.llm import HFPipe

__all__ = ["HFPipe", "Recorder", "chain"]
