"""hfpipe as LangChain Runnables, over a generator."""

from hfpipe.langchain.llm import HFPipe, Recorder

__all__ = ["HFPipe", "Recorder"]
