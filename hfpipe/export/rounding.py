"""Weights in few bits that change least what a model computes: GPTQ (https://arxiv.org/abs/2210.17323), block by block.

Each layer is fitted to what the unchanged model computes, on the inputs that it gets now that the layers before it are
rounded: so it makes up for their errors, too, as in GPTAQ (https://arxiv.org/abs/2504.02692). nncf's GPTQ looks at the
inputs of the unchanged model, and loses more. `main` runs in a child process (see process.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from hfpipe.backends.torch.decoding import TorchBackend
from hfpipe.backends.torch.loading import forward_parameters, has_bfloat16, load_model
from hfpipe.errors import TemplateError, UnsupportedModel, UsageError
from hfpipe.machine import peak_memory
from hfpipe.models.folder import inspect_folder
from hfpipe.quality.compare import start_tokens
from hfpipe.quality.score_layers import found_weight
from hfpipe.store import writing
from hfpipe.text.templates import prompt_template
from hfpipe.text.tokenizer import Tokenizer, load_tokenizer
from hfpipe.types import LoadOptions, ModelSource, Reporter, Sampling, TokenRequest

# Tokens that are seen in all, those of a row, and rows that are seen at once.
_TOKENS, _LENGTH, _ROWS = 16_384, 256, 4
# What the texts lack of them the model writes: on SmolLM2 a text of its own kinds has it lose a third less in a chat.
_WRITTEN_ROWS, _BEGINNING, _TEMPERATURE = 32, 8, 0.9
_MESSAGE = "HFPIPE-MESSAGE"
# Of the mean of what the inputs' squares add up to: for inputs that hardly occur.
_DAMPING = 0.05
# Columns that are rounded before the rest is changed for them.
_COLUMNS = 64
# How much of the range of a group its 16 numbers may cover: large weights are few.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def main(arguments: dict[str, Any], reporter: Reporter) -> int:
    """Round the weights of the model in `arguments["source"]`, and write what they have become into the file
    `arguments["output"]`: for each layer, by its module's name, uint8 [out, groups, size] of numbers, and uint8 and
    float16 [out, groups, 1] of zero points and scales; of a layer in 8 bits the group is a row.

    `in_4_bits` and `in_8_bits` have the names of weights in the files, and whether one is stored as [in, out]. `texts`
    are what the model reads; of `sym`metric numbers in 4 bits the zero point is 8. Gives this process's peak memory in
    bytes. Raises UnsupportedModel for a model that is not a chain of blocks which hold the layers.
    """
    trust, pickles = arguments["trust_remote_code"], arguments["allow_pickle"]
    source = inspect_folder(Path(arguments["source"]), arguments["reference"], allow_pickle=pickles)
    options = LoadOptions(device="cpu", dtype=arguments["dtype"], trust_remote_code=trust, allow_pickle=pickles)
    model = load_model(source, options, reporter).requires_grad_(False)
    layers = [_layer(model, name, 4, turned) for name, turned in arguments["in_4_bits"].items()]
    layers += [_layer(model, name, 8, turned) for name, turned in arguments["in_8_bits"].items()]
    tokenizer = load_tokenizer(source.folder, trust_remote_code=trust)
    batches = _batches(model, tokenizer, source, arguments["texts"], reporter)
    try:
        rounded = _rounded(model, layers, batches, arguments["group_size"], arguments["sym"], reporter)
        arrays = {f"{name}:{part}": one for name, parts in rounded for part, one in parts.items()}
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        # The code of a model that nobody has tried, or numbers that are none.
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedModel(f"hfpipe cannot round this model ({type(error).__name__}: {reason}).") from error
    output = Path(arguments["output"])
    with writing(output.parent), output.open("wb") as file:
        np.savez(file, **arrays)
    return peak_memory()


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """`weight` is a view, [out, in]."""

    name: str
    module: torch.nn.Module
    weight: torch.Tensor
    bits: int


def _layer(model: Any, name: str, bits: int, is_transposed: bool) -> _Layer:
    own, weight = found_weight(model, name, is_transposed)
    path = own.rpartition(".")[0]
    module = model.get_submodule(path)
    if not isinstance(module, Conv1D if is_transposed else torch.nn.Linear):
        raise UnsupportedModel(f"{path} is no layer that hfpipe knows ({type(module).__name__}).")
    return _Layer(path, module, weight, bits)


def _batches(
    model: Any, tokenizer: Tokenizer, source: ModelSource, texts: Sequence[str], reporter: Reporter
) -> list[torch.Tensor]:
    """The texts one after another, and what the model writes, in batches of ids of one shape [rows, tokens]."""
    prefix = start_tokens(tokenizer)
    ids = [number for text in texts for number in tokenizer.encode(text, False)]
    if not ids:
        raise UsageError("The text to calibrate on holds no token of this model.", hint="Give other text.")
    length = min(_LENGTH, source.context_length or _LENGTH)
    room, most = length - len(prefix), _TOKENS // length
    rows = [(*prefix, *ids[start : start + room]) for start in range(0, len(ids) - room + 1, room)]
    if len(rows) > most:
        rows = [rows[number * len(rows) // most] for number in range(most)]
    rows += _written(model, tokenizer, source, ids, length, most - len(rows), reporter)
    return [torch.tensor(rows[start : start + _ROWS]) for start in range(0, len(rows) - _ROWS + 1, _ROWS)]


def _written(
    model: Any,
    tokenizer: Tokenizer,
    source: ModelSource,
    ids: Sequence[int],
    length: int,
    count: int,
    reporter: Reporter,
) -> list[tuple[int, ...]]:
    """What the model writes, in rows of one length: to half of it what begins a user's message in its chat template, to
    the other half the beginning of a text."""
    try:
        chat = prompt_template(tokenizer, source.reference, plain="raw").render([{"role": "user", "content": _MESSAGE}])
    except TemplateError:
        # One that takes no message alone, or is not the only one.
        chat = ""
    # The template holds what begins a text.
    begun = tokenizer.encode(chat.partition(_MESSAGE)[0], False)
    backend = TorchBackend(model, batch_size=_WRITTEN_ROWS)
    backend.begin_as(source)
    requests = []
    for number in range(count):
        start = number * len(ids) // count
        prompt = begun if begun and number % 2 else (*start_tokens(tokenizer), *ids[start : start + _BEGINNING])
        prompt = prompt[: length - 1]
        sampling = Sampling(temperature=_TEMPERATURE, seed=number)
        requests.append(TokenRequest(str(number), prompt, length - len(prompt), sampling=sampling))
    rows = {request.id: [*request.token_ids] for request in requests}
    for event in backend.stream(iter(requests)):
        if event.error:
            raise event.error
        rows[event.request_id] += event.token_ids
        reporter.progress("Writing text to calibrate on", sum(map(len, rows.values())), count * length, "steps")
    return [tuple(row) for row in rows.values()]


@torch.inference_mode()
def _rounded(
    model: Any,
    layers: Sequence[_Layer],
    batches: Sequence[torch.Tensor],
    group_size: int,
    sym: bool,
    reporter: Reporter,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each layer its name, and what `main` writes of it."""
    blocks = _Blocks(model, layers, batches)
    plain, changed = blocks.inputs, list(blocks.inputs)
    for number, block in enumerate(blocks.modules):
        reporter.progress("Rounding the weights", number, len(blocks.modules), "steps")
        modules = set(block.modules())
        inside = [layer for layer in layers if layer.module in modules]
        wanted = []
        for row, one in enumerate(plain):
            plain[row], given = blocks.run(number, one, inside)
            wanted.append(given)
        if any(set(inside) != set(given) for given in wanted):
            raise UnsupportedModel("Not all layers of this model are asked about each token.")
        for together in _by_input(wanted[0]):
            squares = errors = torch.zeros(())
            for one, given in zip(changed, wanted, strict=True):
                now, before = _rows(blocks.input_of(number, one, together[0])), _rows(given[together[0]])
                if now.shape != before.shape:
                    raise UnsupportedModel("Which layers of this model are asked depends on what others give.")
                squares, errors = squares + now.T @ now, errors + (before - now).T @ now
            for layer in together:
                size = group_size if layer.bits == 4 else -1
                symmetric = sym and layer.bits == 4
                weight, parts = fit(layer.weight.float(), squares, errors, layer.bits, size, sym=symmetric)
                layer.weight.copy_(weight)
                yield layer.name, {part: one.numpy() for part, one in parts.items()}
        changed = [blocks.run(number, one)[0] for one in changed]
    reporter.progress("Rounding the weights", len(blocks.modules), len(blocks.modules), "steps")


class _Blocks:
    """The blocks that a model is a chain of, and what the first one gets for each batch."""

    def __init__(self, model: Any, layers: Sequence[_Layer], batches: Sequence[torch.Tensor]) -> None:
        lists = [
            part
            for part in model.modules()
            if isinstance(part, torch.nn.ModuleList) and {layer.module for layer in layers} <= set(part.modules())
        ]
        if not lists:
            raise UnsupportedModel("The layers of this model are not all in one list of blocks.")
        # The outermost one comes first.
        self.modules = list(lists[0])
        self.inputs: list[torch.Tensor] = []
        self._arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        keep = {"logits_to_keep": 1} if "logits_to_keep" in forward_parameters(model) else {}
        passed: list[torch.Tensor] = []
        for batch in batches:
            passed.clear()
            hook = _hooked(self.modules, lambda _, args, kwargs: passed.append(self._received(args, kwargs)))
            with hook, _quick():
                model(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False, **keep)
            self.inputs.append(passed[0])
        if len(passed) != len(self.modules):
            raise UnsupportedModel("The blocks of this model are not called once each.")
        hidden = passed[0]
        for number, given in enumerate(passed):
            if not torch.equal(hidden, given):
                raise UnsupportedModel("The blocks of this model are no chain.")
            hidden, _ = self.run(number, hidden)

    def _received(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """Keep, of the first batch, what a block gets beside the hidden states: it is the same for all of one shape."""
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        if len(self._arguments) < len(self.modules):
            self._arguments.append((args[1:], rest))
        hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        return hidden

    def run(
        self, number: int, hidden: torch.Tensor, layers: Sequence[_Layer] = ()
    ) -> tuple[torch.Tensor, dict[_Layer, torch.Tensor]]:
        """What a block gives, and the inputs of the `layers` in it, in the order in which it calls them."""
        given: dict[_Layer, torch.Tensor] = {}
        of = {layer.module: layer for layer in layers}
        with _hooked(of, lambda module, args, _: given.setdefault(of[module], args[0])):
            output = self._call(number, hidden)
        return output, given

    def input_of(self, number: int, hidden: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """What a layer in a block gets; the block goes no further."""

        def stop(_: Any, args: Any, __: Any) -> None:
            raise _Reached(args[0])

        try:
            with _hooked([layer.module], stop):
                self._call(number, hidden)
        except _Reached as reached:
            found: torch.Tensor = reached.args[0]
            return found
        raise UnsupportedModel("Which layers of this model are asked depends on what others give.")

    def _call(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        rest, named = self._arguments[number]
        with _quick():
            output = self.modules[number](hidden, *rest, **named)
        found: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return found


def _quick() -> AbstractContextManager[Any]:
    """Products of bfloat16 where the processor has them: twice as fast, and rounded no worse."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16())


class _Reached(Exception):
    """A layer that was waited for has got its input."""


@contextmanager
def _hooked(modules: Iterable[torch.nn.Module], hook: Callable[[Any, Any, Any], object]) -> Iterator[None]:
    """Have `hook` called with each of the modules, its arguments and its named ones, before it is."""

    def called(module: Any, args: Any, kwargs: Any) -> None:
        hook(module, args, kwargs)

    handles = [module.register_forward_pre_hook(called, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_input(given: Mapping[_Layer, torch.Tensor]) -> list[list[_Layer]]:
    """The layers that get one tensor together, in their order."""
    found: dict[int, list[_Layer]] = {}
    for layer, one in given.items():
        found.setdefault(id(one), []).append(layer)
    return list(found.values())


def _rows(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, values.shape[-1]).float()


def fit(
    weight: torch.Tensor, squares: torch.Tensor, errors: torch.Tensor, bits: int, group_size: int, *, sym: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`weight`, floats [out, in], in so many bits, so that its products with the inputs that it has now are as near as
    can be to those that it had; and the parts that it is made of (see `main`).

    With X the inputs that it had and X' those that it has, [in, tokens], `squares` is X' X'^T and `errors` is
    (X - X') X'^T, both [in, in]. The weight W becomes W + W (X - X') X'^T (X' X'^T)^-1, the solution of least squares.
    GPTQ rounds it to 4 bits: column by column, those of large inputs first, each error made up for by the columns after
    it; to 8 bits it is rounded to the nearest.
    """
    rows, width = weight.shape
    diagonal = squares.diagonal()
    damped = squares + torch.diag(torch.where(diagonal == 0, 1.0, _DAMPING * diagonal.mean()))
    factor = torch.linalg.cholesky(damped.double())
    weight = weight + torch.cholesky_solve((weight @ errors).T.double(), factor).T.float()
    groups = weight.reshape(rows, -1, group_size if group_size > 0 else width)
    scale, zero = _grid(groups, diagonal, bits, sym=sym)
    most = 2**bits - 1
    if bits == 8:
        numbers = _numbers(groups, scale, zero, most)
    else:
        numbers = _gptq(weight, damped, *(one.expand_as(groups).reshape(rows, width) for one in (scale, zero)))
        numbers = numbers.reshape(groups.shape)
    parts = {"numbers": numbers.to(torch.uint8), "zeros": zero.to(torch.uint8), "scales": scale.half()}
    return ((numbers - zero) * scale).reshape(rows, width), parts


def _gptq(weight: torch.Tensor, squares: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """The numbers, floats [out, in] from 0 to 15, of a weight; scale and zero point of each are given."""
    width = weight.shape[1]
    order = squares.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(squares[order][:, order].double()))
    # Row k: how the columns after k make up for an error in k.
    shares = torch.linalg.cholesky(inverse, upper=True).float()
    # A row for each input: rows are read at once.
    left, scale, zero = (one.T[order].contiguous() for one in (weight, scale, zero))
    found = torch.empty_like(left)
    for start in range(0, width, _COLUMNS):
        end = min(start + _COLUMNS, width)
        lost = torch.empty(end - start, left.shape[1])
        for at in range(start, end):
            found[at] = _numbers(left[at], scale[at], zero[at], 15)
            error = (left[at] - (found[at] - zero[at]) * scale[at]) / shares[at, at]
            lost[at - start] = error
            left[at + 1 : end].addr_(shares[at, at + 1 : end], error, alpha=-1)
        left[end:].addmm_(shares[start:end, end:].T, lost, alpha=-1)
    numbers = torch.empty_like(found)
    numbers[order] = found
    return numbers.T


def _grid(groups: torch.Tensor, squares: torch.Tensor, bits: int, *, sym: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points, floats [out, groups, 1], with which the rounded groups [out, groups, size] lose least, an
    input counting by its `squares`."""
    most = 2**bits - 1
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    weights = squares.reshape(1, *groups.shape[1:])
    scale = zero = least = torch.empty(0)
    for share in _SHARES if bits == 4 else _SHARES[:1]:
        # Of symmetric ones there is one negative number more: it is for the largest weight, whatever its sign.
        step = torch.where(-low >= high, -low, -high) / 2 ** (bits - 1) if sym else (high - low) / most
        tried = (share * step).half().float()
        tried = torch.where(tried == 0, torch.ones_like(tried), tried)
        point = torch.full_like(tried, 2 ** (bits - 1)) if sym else (-share * low / tried).round().clamp(0, most)
        rounded = (_numbers(groups, tried, point, most) - point) * tried
        lost = ((rounded - groups).square() * weights).sum(-1, keepdim=True)
        if least.numel():
            better = lost < least
            tried, point = torch.where(better, tried, scale), torch.where(better, point, zero)
            lost = torch.minimum(lost, least)
        scale, zero, least = tried, point, lost
    return scale, zero


def _numbers(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, most: int) -> torch.Tensor:
    return (weight / scale + zero).round().clamp(0, most)
