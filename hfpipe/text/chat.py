"""Chat templates: a conversation as the one text that a model was trained on.

A template is a program that came with a model: it runs sandboxed, and bounded in time and in what it builds.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial, wraps
from itertools import chain
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from hfpipe.errors import TemplateError

# Marks the end of a message that is to be continued.
_FINAL = "CONTINUE_FINAL_MESSAGE_TAG "
SECONDS = 10.0
# Of all the text and lists that one rendering builds, those it drops again included. A template that writes message
# after message behind one text builds about as many texts as there are messages: a long conversation allows more.
SIZE = 100_000_000
_ITEM = 8
# Operators, methods and filters that pad or repeat what they are given, by numbers or texts among their arguments.
_WIDENING = {"*", "center", "ljust", "rjust", "zfill", "expandtabs", "translate", "to_bytes"}
_WIDENING |= {"indent", "wordwrap", "slice", "batch", "tojson", "round"}
# In a text to be formatted, a width of three digits, or one that is an argument.
_WIDE = re.compile(r"%(\(.*?\))?[^a-zA-Z%]*?(\d{3}|\*)|\{[^{}]*:[^{}]*\d{3}|\{[^{}]+\{")


@dataclass(frozen=True)
class ChatTemplate:
    """A model's own Jinja template, rendered as transformers' `apply_chat_template(tokenize=False)` does.

    `special_tokens` maps names such as bos_token to their text; `name` is the model's, for error messages.
    """

    source: str
    special_tokens: Mapping[str, str]
    name: str

    def render(self, messages: Sequence[Mapping[str, Any]], **extra: Any) -> str:
        """The conversation as text, up to where the answer begins; a last message of the assistant is continued.
        `extra` are further variables, such as tools.

        Raises TemplateError for a template that does not compile, fails, refuses the conversation, or has no end.
        """
        *before, last = messages
        continued, final = last["role"] == "assistant", str(last["content"])
        variables = {"tools": None, "documents": None, **self.special_tokens, **extra}
        variables["messages"] = [*before, {**last, "content": final + _FINAL}] if continued else list(messages)
        variables["add_generation_prompt"] = not continued
        length = sum(len(message.get("content") or "") for message in messages)
        _budget.set(_Budget(SIZE + 4 * len(messages) * length))
        with self._errors():
            text = _compiled(self.source).render(variables)
        if not continued:
            return text
        end = text.rfind(_FINAL.strip())
        if end < 0 or final.strip() not in text:
            raise TemplateError(
                f"The chat template of {self.name} does not show the last message, so it cannot be continued.",
                hint="End the conversation with a message of the user.",
            )
        # A template that trims messages trims the end of this one too.
        return text[:end] if text.startswith(_FINAL, end) else text[:end].rstrip()

    @property
    def variables(self) -> set[str]:
        """The names of the variables that a caller may set."""
        with self._errors():
            used = find_undeclared_variables(_ENVIRONMENT.parse(self.source))
        return used - {*_ENVIRONMENT.globals, *self.special_tokens, "messages", "add_generation_prompt"}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        # Whatever a template raises is an error of its model.
        except Exception as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            if "MAX_RANGE" in detail:
                detail = f"it makes a range of more than {MAX_RANGE:,} numbers, the limit."
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise TemplateError(
                f"The chat template of {self.name}: {detail}{line}",
                hint="The templates raw and qa, and one of your own, do not need it.",
            ) from error


class _Budget:
    """What one rendering may still build, and the time it has: the thread's own, so a busy machine refuses nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._weights: dict[int, tuple[int, object]] = {}
        self._start, self._thread_start = time.perf_counter(), time.thread_time()

    def charge(self, size: int) -> None:
        self._size -= size
        if self._size < 0 or size > SIZE:
            raise jinja2.TemplateError(f"it builds more than {SIZE:,} characters, the limit.")

    def made(self, value: Any) -> Any:
        """`value`, charged; also where the time is checked."""
        # The thread's time takes longer to read.
        if time.perf_counter() - self._start > SECONDS and time.thread_time() - self._thread_start > SECONDS:
            raise jinja2.TemplateError(f"it computes for more than {SECONDS:g} seconds, the limit.")
        if isinstance(value, (str, list, tuple, dict)):
            self.charge(self.weigh(value))
        return value

    def weigh(self, value: Any) -> int:
        """How long `value` is, written out: a list counts for all that it holds, as often as it holds it."""
        if isinstance(value, (str, bytes)):
            return len(value) + _ITEM
        if not isinstance(value, (list, tuple, dict)):
            return _ITEM
        if id(value) not in self._weights:
            items = chain.from_iterable(value.items()) if isinstance(value, dict) else value
            # With the value itself, so that the id stays its own.
            self._weights[id(value)] = _ITEM + sum(map(self.weigh, items)), value
        return self._weights[id(value)][0]

    def charge_call(self, name: str, value: Any, arguments: Sequence[Any]) -> None:
        """Charge, before it runs, an operator, method or filter whose result may be longer than all it is given."""
        if name in _WIDENING:
            times = (max(one, 1) if isinstance(one, int) else self.weigh(one) for one in arguments)
            self.charge(self.weigh(value) * max(times, default=1))
        elif name == "replace" and len(arguments) > 1:
            self.charge(str(value).count(str(arguments[0])) * self.weigh(arguments[1]))
        elif name == "join" and arguments:
            pieces, glue = (value, arguments[0]) if isinstance(value, list) else (arguments[0], value)
            self.charge(sum(map(self.weigh, pieces)) + len(pieces) * self.weigh(glue))
        elif name in ("format", "format_map", "%") and isinstance(value, str):
            if _WIDE.search(value):
                raise jinja2.TemplateError("it formats text to a computed width or one beyond 99, the limit.")
            self.charge((value.count("%") + value.count("{")) * (99 + sum(map(self.weigh, arguments))))


_budget: ContextVar[_Budget] = ContextVar("_budget")


@pass_context  # so that it is not computed once, when the template is compiled
def _made(context: Context, value: Any) -> Any:
    return _budget.get().made(value)


class _Bounding(NodeTransformer):
    """Has each round of a loop and each call of a macro check the time, and what an expression makes charged; the
    environment sees to calls, filters and operators."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.test is not None:
            node.test = nodes.And(self._made(nodes.Const(True)), node.test)
        return self._visit_body(node)

    def _visit_body(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        node.body.insert(0, nodes.ExprStmt(self._made(nodes.Const(True))))
        return self.generic_visit(node)

    def _visit_making(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else self._made(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        return self._visit_making(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    visit_Macro = visit_CallBlock = _visit_body
    visit_Concat = visit_List = visit_Tuple = visit_Dict = _visit_making

    def _made(self, node: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, "made", [], [], None, None)


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end. What could grow by more than its parts is charged before it is built, and the
    rest after it."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        # JSON for a model to read: Jinja's own filter escapes HTML.
        self.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
        self.filters = {name: _charged(name, function) for name, function in self.filters.items()}
        self.filters["made"] = _made

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        return super()._generate(_Bounding().visit(source), *arguments, **options)

    def concat(self, pieces: Iterable[str]) -> str:
        """All output, and that of every macro, goes through here."""
        kept = list(pieces)
        _budget.get().charge(sum(map(len, kept)))
        return "".join(kept)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        # The sandbox wraps the method format.
        method = getattr(function, "__wrapped__", function)
        if isinstance(method, BuiltinMethodType):
            if method.__name__ == "join" and args:
                args = (list(args[0]),)
            budget.charge_call(method.__name__, method.__self__, [*args, *kwargs.values()])
        return budget.made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget.get()
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            budget.charge(bits * bits)
        elif operator == "*" and isinstance(left, int):
            budget.charge_call(operator, right, [left])
        else:
            budget.charge_call(operator, left, [right])
        return budget.made(super().call_binop(context, operator, left, right))


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that charges what it makes."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        value = list(args[first]) if name == "join" else args[first]
        budget.charge_call(name, value, [*args[first + 1 :], *kwargs.values()])
        return budget.made(function(*args[:first], value, *args[first + 1 :], **kwargs))

    return charged


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training. To render, it is its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


_ENVIRONMENT = _Environment()
_compiled = lru_cache(maxsize=16)(_ENVIRONMENT.from_string)
