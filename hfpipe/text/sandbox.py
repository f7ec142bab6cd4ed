"""The Jinja of chat templates: sandboxed, and bounded in steps, in text and in time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 2_000_000
# Of all the text and lists that one rendering builds, those it drops again included. A template that writes message
# after message behind one text builds about as many texts as there are messages: a long conversation allows more.
SIZE = 256_000_000
_MOST = 4_000_000_000
SECONDS = 10.0
_BITS = 100_000
_EVERY = 256
_WIDTH = re.compile(r"\d{5,}")
# Methods whose answer may be far larger than what they are given; of a long text, any may matter.
_PADDING = frozenset(("center", "ljust", "rjust", "zfill", "to_bytes"))
_GROWING = _PADDING | {"expandtabs", "replace", "join", "translate", "format", "format_map"}
_WIDE = ("center", "indent", "slice", "batch", "wordwrap", "tojson")
_WIDEST = 10_000
_SMALL = 50
# Tuples, as str | bytes would be made anew at every call.
_SIZED = (str, bytes, list, tuple, dict, range)
_HOLDING = (list, tuple, dict)
_SCALAR = (str, int, bytes)
_ITEM, _UNKNOWN = 8, 64


class _Budget:
    """What one rendering may still use. The time is the thread's own, so a busy machine refuses no template."""

    def __init__(self, extra_size: int) -> None:
        self.steps = STEPS
        self._size = SIZE + extra_size
        self._weights: dict[int, tuple[int, object]] = {}
        self._deadline = time.thread_time() + SECONDS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise jinja2.TemplateError(f"it takes more than {STEPS:,} steps, the limit")
        if self.steps % _EVERY == 0:
            self._check_time()

    def charge(self, size: int) -> None:
        self._size -= size
        if self._size < 0 or size > SIZE:
            raise jinja2.TemplateError(f"it builds more than {SIZE:,} characters, the limit")
        if size > _WIDEST:
            self._check_time()

    def hold(self, made: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> None:
        """Charge a list for all it holds, as often as it holds it: written out, it may be exponentially long."""
        size = _ITEM
        for item in made.values() if isinstance(made, dict) else made:
            if isinstance(item, str):
                size += len(item) + _ITEM
            elif isinstance(item, _HOLDING):
                size += self._weights[id(item)][0] if id(item) in self._weights else _UNKNOWN
            else:
                size += _ITEM
        self.charge(size)
        self._weights[id(made)] = size, made  # kept, so that the id stays its own

    def _check_time(self) -> None:
        if time.thread_time() > self._deadline:
            raise jinja2.TemplateError(f"it computes for more than {SECONDS:.0f} seconds, the limit")


_budget: ContextVar[_Budget] = ContextVar("_budget")


def start_budget(messages: Sequence[Mapping[str, Any]] = ()) -> None:
    """Give what this thread renders next, a conversation of `messages`, a full budget."""
    length = sum(_length(message.get("content")) for message in messages)
    _budget.set(_Budget(min(4 * len(messages) * length, _MOST)))


class _Counting(CodeGenerator):
    """Every block that runs, such as the body of a loop or a macro, is a step; what an expression makes is charged."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.step()")
        super().blockvisit(nodes, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        if node.test is not None:
            node.test = nodes.And(nodes.EnvironmentAttribute("counted"), node.test)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        self.write("environment.made(")
        super().visit_Call(node, frame, forward_caller=forward_caller)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._visit_made(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:
        self._visit_made(super().visit_Filter, node, frame)

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:
        self._visit_made(super().visit_Add, node, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._visit_display(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._visit_made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        self._visit_display(super().visit_Tuple, node, frame)

    def _visit_display(self, visit: Callable[[Any, Frame], None], node: nodes.List | nodes.Tuple, frame: Frame) -> None:
        if getattr(node, "ctx", "load") == "store" or all(isinstance(item, nodes.Const) for item in node.items):
            visit(node, frame)
        else:
            self._visit_made(visit, node, frame)

    def _visit_made(self, visit: Callable[[Any, Frame], None], node: nodes.Node, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end. What could grow by more than its parts is charged before it is built, and the
    rest after it. See `start_budget`."""

    code_generator_class = _Counting
    intercepted_binops = frozenset(("*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]

    def guard_filters(self) -> None:
        """To be called once the filters are complete."""
        for name in (*_WIDE, "replace", "join", "format"):
            self.filters[name] = _charged(name, self.filters[name])

    def step(self) -> None:
        _budget.get().step()

    @property
    def counted(self) -> bool:
        """True, and a step: for the test of a loop, which runs before the loop's body does."""
        self.step()
        return True

    def made(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            if len(value) > _SMALL:
                _budget.get().charge(len(value))
        elif kind is list or kind is dict or kind is tuple:
            _budget.get().hold(value)
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """All output, and that of every macro, goes through here."""
        kept = list(pieces)
        size = sum(map(len, kept))
        if size > _SMALL:
            _budget.get().charge(size)
        return "".join(kept)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _budget.get().charge(_size_of_operation(operator, left, right))
        return self.made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Called with every attribute that a template reads, so that methods can be wrapped."""
        if type(value) is not BuiltinMethodType:
            return super().wrap_str_format(value)
        owner, name = value.__self__, value.__name__
        long = isinstance(owner, str) and len(owner) > _WIDEST
        if not isinstance(owner, _SCALAR) or not (name in _GROWING or long):
            return None
        method = super().wrap_str_format(value) or value

        @wraps(method)
        def charged(*args: Any, **kwargs: Any) -> Any:
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
            _budget.get().charge(_size_of_call(name, owner, [*args, *kwargs.values()]))
            return method(*args, **kwargs)

        return charged


def _size_of_operation(operator: str, left: Any, right: Any) -> int:
    """About how large the result will be; 0 where it cannot be large."""
    if operator == "%":
        return _formatted(left, [right]) if isinstance(left, str) else 0
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _BITS:
            raise jinja2.TemplateError(f"it computes a number of more than {_BITS:,} bits, the limit")
        return 0
    pairs = ((left, right), (right, left))
    return max(_length(one) * times if isinstance(times, int) else 0 for one, times in pairs)


def _size_of_call(name: str, owner: str | int | bytes, arguments: Sequence[Any]) -> int:
    """About how large the answer of a method of a text or number will be."""
    if name in ("format", "format_map") and isinstance(owner, str):
        return _formatted(owner, arguments)
    if isinstance(owner, str):
        if name == "replace" and len(arguments) > 1:
            return _replaced(owner, arguments[0], arguments[1])
        if name == "join" and arguments:
            return sum(len(owner) + _length(item) for item in arguments[0])
        if name in ("split", "rsplit", "splitlines"):
            return len(owner) * _ITEM
        if name == "translate":
            return len(owner) * _WIDEST
        if name == "expandtabs" and arguments and isinstance(arguments[0], int):
            return len(owner) + owner.count("\t") * arguments[0]
    width = max((one for one in arguments if isinstance(one, int)), default=0)
    return _length(owner) + (width if name in _PADDING else 0)


def _formatted(form: str, arguments: Sequence[Any]) -> int:
    """A format with a width of five digits or more, or with one that is an argument, could be any size."""
    if _WIDTH.search(form) or re.search(r"%[^a-zA-Z%]*\*|\{[^}]*\{", form):
        raise jinja2.TemplateError(f"it formats text to a width beyond {_WIDEST - 1:,}, the limit, or a computed one")
    return len(form) + sum(map(_length, arguments))


def _replaced(text: str, old: Any, new: Any) -> int:
    return len(text) + (text.count(old) * len(new) if isinstance(old, str) and isinstance(new, str) else 0)


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that charges what it will make. Those that pad or repeat are refused great widths."""
    passes = getattr(function, "jinja_pass_arg", None) is not None

    @wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[1:] if passes else args
        others += kwargs.values()
        budget = _budget.get()
        if name in _WIDE:
            width = max((one if isinstance(one, int) else _length(one) for one in others), default=0)
            if width > _WIDEST:
                raise jinja2.TemplateError(f"the filter {name} is given {width:,}, and {_WIDEST:,} is the limit")
            budget.charge(width * (value.count("\n") + 1 if name == "indent" and isinstance(value, str) else 1))
        elif name == "replace" and len(others) > 1:
            budget.charge(_replaced(str(value), others[0], others[1]))
        elif name == "join" and others:
            value = list(value)
            budget.charge(sum(_length(others[0]) + _length(item) for item in value))
            args = (args[0], value, *args[2:]) if passes else (value, *args[1:])
        elif name == "format":
            budget.charge(_formatted(str(value), others))
        return function(*args, **kwargs)

    return charged


def _length(value: Any) -> int:
    return len(value) if isinstance(value, _SIZED) else 0
