"""Lesson 07, declared: mistakes that only a GPU would show, caught on any machine."""

from __future__ import annotations

import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Named, Property, Question, Style

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
INF = torch.inf


# ------------------------------------------------------------------------------------ 7.1 pick_device


def its_name(value, inputs):
    """A device, or its name: both are taken by everything in torch."""
    return {"the device": str(value).removesuffix(":0")}


def picking(choose):
    """`pick_device` from the choice that it makes once it knows what is there."""

    def pick_device(cuda=None, mps=None):
        cuda = torch.cuda.is_available() if cuda is None else cuda
        mps = torch.backends.mps.is_available() if mps is None else mps
        return choose(cuda, mps)

    return pick_device


def pick_by_ifs(cuda=None, mps=None):
    if cuda or (cuda is None and torch.cuda.is_available()):
        return torch.device("cuda")
    if mps or (mps is None and torch.backends.mps.is_available()):
        return torch.device("mps")
    return torch.device("cpu")


def pick_from_a_list(cuda, mps):
    return next(torch.device(name) for name, there in (("cuda", cuda), ("mps", mps), ("cpu", True)) if there)


def there(cuda, mps):
    return lambda draw: {"cuda": cuda, "mps": mps}


PICK_DEVICE = Exercise(
    name="pick_device",
    number="7.1",
    reference=reference.pick_device,
    returns=("device",),
    differentiable=False,
    device_safe=False,
    cases=(
        Case("a CUDA machine", there(True, False), look_at=its_name),
        Case("a Mac", there(False, True), look_at=its_name),
        Case("neither", there(False, False), look_at=its_name),
        Case("both", there(True, True), look_at=its_name),
        Case("ask torch", there(None, None), look_at=its_name),
    ),
    misconceptions=(
        Misconception(
            "always-cuda",
            "You give cuda whatever is there. On every machine without one, the next line would stop.",
            wrong=lambda cuda=None, mps=None: torch.device("cuda"),
            hint=1,
            also=(picking(lambda cuda, mps: "cuda:0"),),
        ),
        Misconception(
            "always-cpu",
            "You give cpu whatever is there: right everywhere, and slow everywhere.",
            wrong=lambda cuda=None, mps=None: torch.device("cpu"),
            hint=1,
        ),
        Misconception(
            "no-mps",
            "A Mac with a GPU gets the CPU: mps is not asked for.",
            wrong=picking(lambda cuda, mps: torch.device("cuda" if cuda else "cpu")),
            hint=2,
        ),
        Misconception(
            "mps-first",
            "Where both are there you give mps. CUDA comes first.",
            wrong=picking(lambda cuda, mps: torch.device("mps" if mps else "cuda" if cuda else "cpu")),
            hint=2,
        ),
        Misconception(
            "no-cpu",
            "Where neither is there you give mps. What is always there comes last: cpu.",
            wrong=picking(lambda cuda, mps: torch.device("cuda" if cuda else "mps")),
            hint=2,
        ),
        Misconception(
            "inverted",
            "The choice is the wrong way round: you give cpu where a GPU is there.",
            wrong=picking(lambda cuda, mps: torch.device("cpu" if cuda else "mps" if mps else "cuda")),
            hint=2,
        ),
        Misconception(
            "no-such-name",
            "There is no device called gpu in torch. The names are cuda, mps and cpu.",
            wrong=picking(lambda cuda, mps: "gpu" if cuda else "mps" if mps else "cpu"),
            hint=3,
            also=(picking(lambda cuda, mps: "gpu" if cuda or mps else "cpu"),),
        ),
    ),
    styles=(
        Style("one line", reference.pick_device),
        Style("ifs", pick_by_ifs),
        Style(
            "names instead of devices", picking(lambda cuda, mps: "cuda" if cuda else "mps" if mps else "cpu")
        ),
        Style("a list of what is there", picking(pick_from_a_list)),
        Style(
            "with a number",
            picking(lambda cuda, mps: torch.device("cuda:0" if cuda else "mps" if mps else "cpu")),
        ),
    ),
)


# -------------------------------------------------------------------------------------- 7.2 to_device


def described(value, inputs):
    """The batch with every tensor told in words, its device above all: that is what is compared."""

    def tell(x):
        if isinstance(x, dict):
            return {key: tell(item) for key, item in x.items()}
        if isinstance(x, (list, tuple)):
            return [tell(item) for item in x]
        if isinstance(x, Tensor):
            return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)} on {x.device}"
        return x

    told = tell(value)
    return told if isinstance(told, dict) else {"batch": told}


def to_device_with(tensor=lambda x, d: x.to(d), dicts=True, lists=True, other=lambda x: x):
    """The recursion, from what it does with each kind of thing."""

    def to_device(batch, device):
        if isinstance(batch, Tensor):
            return tensor(batch, device)
        if dicts and isinstance(batch, dict):
            return {key: to_device(value, device) for key, value in batch.items()}
        if lists and isinstance(batch, (list, tuple)):
            return type(batch)([to_device(value, device) for value in batch])
        return other(batch)

    return to_device


def move_top_level_only(batch, device):
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: x.to(device) if isinstance(x, Tensor) else x for key, x in batch.items()}
    return type(batch)(x.to(device) if isinstance(x, Tensor) else x for x in batch)


def move_in_a_loop_for_nothing(batch, device):
    if isinstance(batch, Tensor):
        batch.to(device)
    elif isinstance(batch, dict):
        for item in batch.values():
            move_in_a_loop_for_nothing(item, device)
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            move_in_a_loop_for_nothing(item, device)
    return batch


def rebind_the_loop_variable(batch, device):
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        for _, item in batch.items():
            item = rebind_the_loop_variable(item, device)
        return batch
    if isinstance(batch, (list, tuple)):
        for item in batch:
            item = rebind_the_loop_variable(item, device)
        return batch
    return batch


def move_in_place(batch, device):
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        for key in batch:
            batch[key] = move_in_place(batch[key], device)
    elif isinstance(batch, list):
        batch[:] = [move_in_place(item, device) for item in batch]
    elif isinstance(batch, tuple):
        return tuple(move_in_place(item, device) for item in batch)
    return batch


def move_and_drop(batch, device):
    if isinstance(batch, Tensor):
        return batch.to(device)
    kept = (Tensor, dict, list, tuple)
    if isinstance(batch, dict):
        return {key: move_and_drop(x, device) for key, x in batch.items() if isinstance(x, kept)}
    return [move_and_drop(x, device) for x in batch if isinstance(x, kept)]


def move_all_or_fail(batch, device):
    if isinstance(batch, dict):
        return {key: move_all_or_fail(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [move_all_or_fail(value, device) for value in batch]
    return batch.to(device)


def flatten_into_a_list(batch, device):
    if isinstance(batch, dict):
        return [flatten_into_a_list(value, device) for value in batch.values()]
    return to_device_with()(batch, device)


def move_by_match(batch, device):
    match batch:
        case Tensor():
            return batch.to(device)
        case dict():
            return dict(zip(batch, (move_by_match(x, device) for x in batch.values())))
        case list():
            return [move_by_match(x, device) for x in batch]
        case tuple():
            return tuple(move_by_match(x, device) for x in batch)
        case _:
            return batch


def move_by_map(batch, device):
    if isinstance(batch, dict):
        return dict(map(lambda pair: (pair[0], move_by_map(pair[1], device)), batch.items()))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(lambda x: move_by_map(x, device), batch))
    return batch.to(device) if hasattr(batch, "to") else batch


def move_into_a_copy(batch, device):
    if torch.is_tensor(batch):
        return batch.to(device=device)
    if isinstance(batch, dict):
        moved = batch.copy()
        for key in moved:
            moved[key] = move_into_a_copy(moved[key], device)
        return moved
    if isinstance(batch, (list, tuple)):
        moved = []
        for item in batch:
            moved.append(move_into_a_copy(item, device))
        return tuple(moved) if isinstance(batch, tuple) else moved
    return batch


def draw_batch(draw, device="meta"):
    """What a data loader gives: tensors of several dtypes, nested, and things that are no tensors."""
    return {
        "batch": {
            "words": draw.integers(0, 10, 2, 5),
            "masks": [draw.mask(2, 1, 5), draw.normal(2, 3, dtype=FLOAT32)],
            "targets": {"first": draw.integers(0, 10, 2, 4), "name": "copy", "count": 2},
            "pair": (draw.normal(3), None),
        },
        "device": device,
    }


def draw_flat(draw, device="meta"):
    return {"batch": {"x": draw.normal(2, 3), "y": draw.integers(0, 5, 2)}, "device": device}


TO_DEVICE = Exercise(
    name="to_device",
    number="7.2",
    reference=reference.to_device,
    returns=("batch",),
    assemble=to_device_with,
    differentiable=False,
    device_safe=False,  # it is given a device; the cases use one that every machine has, "meta"
    cases=(
        Case("two tensors in a dict", draw_flat, look_at=described),
        Case("dicts, lists, a tuple, a text and a number", draw_batch, look_at=described),
        Case(
            "a tensor alone", lambda draw: {"batch": draw.normal(2, 3), "device": "meta"}, look_at=described
        ),
        Case(
            "a list of lists",
            lambda draw: {"batch": [[draw.normal(2), 7], draw.normal(3)], "device": "meta"},
            look_at=described,
        ),
        Case("it is there already", lambda draw: draw_flat(draw, "cpu")),
    ),
    misconceptions=(
        Misconception(
            "to-thrown-away",
            "Nothing has moved. `x.to(device)` does not move x: it gives a *new* tensor, and yours is thrown away. "
            "Keep what it returns. (Modules are the exception: `module.to(device)` does change the module.)",
            part={"tensor": lambda x, d: (x.to(d), x)[1]},
            hint=1,
            also=(move_in_a_loop_for_nothing, rebind_the_loop_variable),
        ),
        Misconception(
            "top-level-only",
            "Tensors on the first level have moved, those further in have not: a dict in the dict, a list in the list. "
            "For what is inside, ask the same function again.",
            wrong=move_top_level_only,
            hint=2,
        ),
        Misconception(
            "lists-forgotten",
            "Tensors in lists and tuples have stayed where they were; only dicts are looked into.",
            part={"lists": False},
            hint=2,
        ),
        Misconception(
            "dicts-forgotten",
            "Tensors in dicts have stayed where they were; only lists and tuples are looked into.",
            part={"dicts": False},
            hint=2,
        ),
        Misconception(
            "everything-must-be-a-tensor",
            "There are a text, a number and a None in the batch, and they have no `.to`. What is no tensor is passed on as it is.",
            wrong=move_all_or_fail,
            hint=2,
            also=(to_device_with(other=lambda x: x.to("cpu")),),
        ),
        Misconception(
            "others-dropped",
            "The text and the number are gone. What is no tensor is passed on as it is.",
            wrong=move_and_drop,
            hint=2,
            also=(to_device_with(other=lambda x: None),),
        ),
        Misconception(
            "in-place",
            "The batch that was given has changed: its own dict now holds the moved tensors. Whoever gave it may need it "
            "where it was. Build a new dict.",
            wrong=move_in_place,
            hint=2,
        ),
        Misconception(
            "cast-to-float",
            "The tensors have moved, and the whole numbers and masks have become floats on the way. Only the place should "
            "change.",
            part={"tensor": lambda x, d: x.to(d, FLOAT32)},
            hint=3,
            also=(to_device_with(tensor=lambda x, d: x.float().to(d)),),
        ),
        Misconception(
            "dict-became-a-list",
            "A dict came back as a list: its names are lost.",
            wrong=flatten_into_a_list,
            hint=3,
        ),
    ),
    styles=(
        Style("comprehensions", to_device_with()),
        Style("match", move_by_match),
        Style("map, and whatever has a .to", move_by_map),
        Style("into a copy", move_into_a_copy),
        Style(
            "torch's own tree_map",
            lambda batch, device: tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, batch),
        ),
        Style("lists for tuples", to_device_with(tensor=lambda x, d: x.to(d, non_blocking=True))),
    ),
)


# -------------------------------------------------------------------------------------- 7.3 CausalMask


def mask_with(
    rule=lambda i, j: j <= i,
    fill=lambda dtype: -INF,
    cut=lambda mask, L: mask[:L, :L],
    close=lambda scores, closed, low: scores.masked_fill(closed, low),
):
    """The module from its parts; the mask is a buffer that is not saved."""

    class CausalMask(nn.Module):
        def __init__(self, longest):
            super().__init__()
            i = torch.arange(longest)
            self.register_buffer("mask", rule(i.unsqueeze(1), i), persistent=False)

        def forward(self, scores):
            return close(scores, ~cut(self.mask, scores.shape[-1]), fill(scores.dtype))

    return CausalMask


def triangle(L, device=None):
    return torch.ones(L, L, dtype=torch.bool, device=device).tril()


def keeping(keep, look):
    """A module that keeps its mask by ``keep(self, longest)`` and finds it again by ``look(self, scores)``."""

    class CausalMask(nn.Module):
        def __init__(self, longest):
            super().__init__()
            keep(self, longest)

        def forward(self, scores):
            L = scores.shape[-1]
            return scores.masked_fill(~look(self, scores)[:L, :L], -INF)

    return CausalMask


def keep_plainly(self, longest):
    self.mask = triangle(longest)


def keep_as_buffer(self, longest):
    self.register_buffer("mask", triangle(longest), persistent=False)


def keep_nothing(self, longest):
    pass


def to_for_nothing(self, scores):
    self.mask.to(scores.device)
    return self.mask


def made_and_moved_for_nothing(self, scores):
    mask = triangle(scores.shape[-1])
    mask.to(scores.device)
    return mask


def saved_as(name):
    return keeping(
        lambda self, longest: self.register_buffer(name, triangle(longest)),
        lambda self, scores: getattr(self, name),
    )


class AdditiveBuffer(nn.Module):
    def __init__(self, longest):
        super().__init__()
        mask = torch.zeros(longest, longest).masked_fill(~triangle(longest), -INF)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, scores):
        L = scores.shape[-1]
        return scores + self.mask[:L, :L]


class AdditiveInItsDtype(AdditiveBuffer):
    def forward(self, scores):
        L = scores.shape[-1]
        return scores + self.mask[:L, :L].to(scores.dtype)


class AsksWhetherAnythingIsOpen(nn.Module):
    def __init__(self, longest):
        super().__init__()
        keep_as_buffer(self, longest)

    def forward(self, scores):
        L = scores.shape[-1]
        closed = ~self.mask[:L, :L]
        if closed.any():
            return scores.masked_fill(closed, -INF)
        return scores


class RowByRow(nn.Module):
    """Knows how many keys are open from a tensor, and asks it for every row."""

    def __init__(self, longest):
        super().__init__()
        self.register_buffer("open", torch.arange(1, longest + 1), persistent=False)

    def forward(self, scores):
        scores = scores.clone()
        for i in range(scores.shape[-2]):
            scores[..., i, self.open[i].item() :] = -INF
        return scores


class ViaTheCpu(nn.Module):
    def __init__(self, longest):
        super().__init__()
        self.longest = longest

    def forward(self, scores):
        closed = ~triangle(scores.shape[-1])
        return scores.cpu().masked_fill(closed, -INF).to(scores.device)


class ByWhere(nn.Module):
    def __init__(self, longest):
        super().__init__()
        places = torch.arange(longest)
        self.register_buffer("closed", places > places[:, None], persistent=False)

    def forward(self, scores):
        L = scores.size(-1)
        return torch.where(self.closed[:L, :L], scores.new_tensor(-INF), scores)


class InForward(nn.Module):
    def __init__(self, longest):
        super().__init__()

    def forward(self, scores):
        L = scores.shape[-1]
        return scores.masked_fill(torch.ones(L, L, dtype=torch.bool, device=scores.device).triu(1), -INF)


class RowsAsSlices(nn.Module):
    def __init__(self, longest):
        super().__init__()

    def forward(self, scores):
        scores = scores.clone()
        for i in range(scores.shape[-1]):
            scores[..., i, i + 1 :] = -INF
        return scores


class PlacesAsBuffer(nn.Module):
    def __init__(self, longest):
        super().__init__()
        self.register_buffer("places", torch.arange(longest), persistent=False)

    def forward(self, scores):
        here = self.places[: scores.shape[-1]]
        return scores.masked_fill(here[None, :] > here[:, None], float("-inf"))


def draw_scores(draw, dtype=torch.float64, N=2, H=3, L=5):
    return {"scores": draw.normal(N, H, L, L, dtype=dtype)}


def longest(L):
    return {"longest": L}


def future_is_closed(inputs, value):
    scores = inputs["scores"]
    future = ~triangle(scores.shape[-1])
    if value.shape != scores.shape:
        return None
    if bool((value == -INF).all(-1).any()):
        return "There is a row of yours that is −∞ from end to end. Every query may at least look at itself."
    if not bool((value[..., future] == -INF).all()):
        return "Above the diagonal every score should be −∞; some of yours are not."
    if not bool((value[..., ~future] == scores[..., ~future]).all()):
        return "On and below the diagonal the scores should be what they were; some of yours are not."
    return None


CAUSAL_MASK_MODULE = Exercise(
    name="CausalMask",
    number="7.3",
    reference=reference.CausalMask,
    returns=("scores (N, H, L, L)",),
    assemble=mask_with,
    is_class=True,
    builds_on=("causal_mask",),
    differentiable=False,  # filled or added, the weights' gradients are the same; those of the scores are not
    cases=(
        Case("shorter than the longest", draw_scores, construct=longest(8)),
        Case("as long as the longest", lambda draw: draw_scores(draw, N=3, H=2, L=4), construct=longest(4)),
        Case("float32", lambda draw: draw_scores(draw, FLOAT32, N=1, H=2, L=6), construct=longest(7)),
        Case("float16", lambda draw: draw_scores(draw, FLOAT16, N=2, H=1, L=3), construct=longest(6)),
        Case("bfloat16", lambda draw: draw_scores(draw, BFLOAT16, N=1, H=3, L=4), construct=longest(5)),
    ),
    misconceptions=(
        Misconception(
            "inverted",
            "The past is closed and the future is open: the mask is the wrong way round. True means may look, so what is "
            "filled is where it is *not* True.",
            part={"rule": lambda i, j: j > i},
            hint=2,
        ),
        Misconception(
            "not-itself",
            "Off by one: a query may not look at its own place in yours, and query 0 at nothing at all.",
            part={"rule": lambda i, j: j < i},
            hint=2,
        ),
        Misconception(
            "one-step-ahead",
            "Off by one: every query also sees the next token.",
            part={"rule": lambda i, j: j <= i + 1},
            hint=2,
        ),
        Misconception(
            "transposed",
            "The mask is mirrored at the diagonal: rows are queries, columns are keys.",
            part={"rule": lambda i, j: j >= i},
            hint=2,
        ),
        Misconception(
            "minus-1e9",
            "You fill with −1e9. In float64 that is only untidy; float16 ends at 65504 and refuses it with an error. "
            "−∞ exists in every dtype.",
            part={"fill": lambda dtype: -1e9},
            hint=2,
            also=(mask_with(close=lambda scores, closed, low: torch.where(closed, -1e9, scores)),),
        ),
        Misconception(
            "minus-1e4",
            "You fill with −1e4: it fits into float16, and a score can still beat it once others are smaller. −∞ cannot be beaten, "
            "and exists in every dtype.",
            part={"fill": lambda dtype: -1e4},
            hint=2,
        ),
        Misconception(
            "smallest-number",
            "You fill with the smallest number of the dtype. It is finite: the next thing that is added to it may be more than "
            "float16 can hold, and where all keys are closed it makes an average. Here −∞ is asked for.",
            part={"fill": lambda dtype: torch.finfo(dtype).min},
            hint=2,
        ),
        Misconception(
            "zeros",
            "Closed scores are 0 in yours, and exp(0) is 1: those keys still get attention. (Multiplied by the mask?)",
            part={"fill": lambda dtype: 0.0},
            hint=2,
            also=(mask_with(close=lambda scores, closed, low: scores * ~closed),),
        ),
        Misconception(
            "zero-times-infinity",
            "There is NaN in yours: 0 · −∞ is NaN, so a mask of 0 and 1 cannot be multiplied by −∞. Fill instead.",
            part={"close": lambda scores, closed, low: scores + closed.to(scores.dtype) * low},
            hint=2,
        ),
        Misconception(
            "not-cut",
            "The mask is for the longest sequence, the scores are shorter, and the two do not fit. Cut the mask to the scores.",
            part={"cut": lambda mask, L: mask},
            hint=2,
        ),
        Misconception(
            "lower-right-corner",
            "For sequences shorter than the longest, the wrong corner of the mask is used: your first query stands in the middle. "
            "Cut from the beginning.",
            part={"cut": lambda mask, L: mask[-L:, :L]},
            hint=2,
        ),
        Misconception(
            "float32-mask",
            "The result is float32 where the scores were float16: a mask of float32 numbers was added, and the wider dtype wins. "
            "A boolean mask has no such opinion.",
            wrong=AdditiveBuffer,
            hint=2,
        ),
        Misconception(
            "saved-with-the-parameters",
            "Your mask is a buffer, good. But it is also in the state dict, so every checkpoint carries it, and one that was saved "
            "with another `longest` no longer loads. `register_buffer` can be told not to save.",
            wrong=saved_as("mask"),
            hint=2,
            also=tuple(saved_as(name) for name in ("causal_mask", "causal", "tril", "may_attend", "bias")),
        ),
        Misconception(
            "plain-attribute",
            'Right on the CPU. But `self.mask = …` is a plain attribute: `module.to("cuda")` moves parameters and buffers, and '
            "your mask stays behind. Make it a buffer.",
            wrong=keeping(keep_plainly, lambda self, scores: self.mask),
            hint=1,
            also=(keeping(keep_plainly, to_for_nothing),),
        ),
        Misconception(
            "made-on-the-cpu",
            "Right on the CPU. But the mask you make in `forward` is made there always, and the scores may be on a GPU. (And "
            "`mask.to(…)` alone moves nothing: it gives a new tensor.) Make it where the scores are, or keep it as a buffer.",
            wrong=keeping(keep_nothing, lambda self, scores: triangle(scores.shape[-1])),
            hint=1,
            also=(
                keeping(keep_nothing, made_and_moved_for_nothing),
                keeping(keep_as_buffer, lambda self, scores: self.mask & triangle(self.mask.shape[0])),
            ),
        ),
        Misconception(
            "asks-the-device",
            "Right on the CPU. But `if tensor:` and `.item()` ask for a number's *value*, and on a GPU Python then waits until all "
            "work before it is done, in every layer, at every step. Fill without asking; filling nothing costs nothing.",
            wrong=AsksWhetherAnythingIsOpen,
            hint=3,
            also=(RowByRow,),
        ),
        Misconception(
            "round-trip",
            "Right on the CPU. But `.cpu()` in `forward` brings all scores from the GPU and sends them back again: Python waits, "
            "and the copies take longer than the attention. Bring the mask to the scores, once.",
            wrong=ViaTheCpu,
            hint=1,
        ),
    ),
    properties=(Property("the future is closed", future_is_closed, hint=2),),
    styles=(
        Style("a buffer, cut", mask_with()),
        Style("made in forward, on the scores' device", InForward),
        Style("where", ByWhere),
        Style("row by row", RowsAsSlices),
        Style("places as a buffer", PlacesAsBuffer),
        Style("additive, in the scores' dtype", AdditiveInItsDtype),
        Style("fetched each time", keeping(keep_plainly, lambda self, scores: self.mask.to(scores.device))),
        Style(
            "with lesson 02's mask",
            keeping(
                keep_nothing,
                lambda self, scores: reference.causal_mask(
                    scores.shape[-2], scores.shape[-1], device=scores.device
                ),
            ),
        ),
    ),
)


# -------------------------------------------------------------------------------------- 7.4 benchmark


def bench_with(
    warm=lambda fn, device, warmup: [fn() for _ in range(warmup)],
    before=lambda device: device.synchronize(),
    call=lambda fn: fn(),
    after=lambda device: device.synchronize(),
    clock=lambda device: device.clock(),
    summary=statistics.median,
):
    """The measurement from its parts."""

    def benchmark(fn, device, repeats=20, warmup=3):
        warm(fn, device, warmup)
        before(device)
        times = []
        for _ in range(repeats):
            started = clock(device)
            call(fn)
            after(device)
            times.append(clock(device) - started)
        return summary(times)

    return benchmark


def nothing(*_):
    pass


def bench_whole_loop(fn, device, repeats=20, warmup=3, wait=True, divide=True):
    for _ in range(warmup):
        fn()
    device.synchronize()
    started = device.clock()
    for _ in range(repeats):
        fn()
    if wait:
        device.synchronize()
    return (device.clock() - started) / (repeats if divide else 1)


def bench_all_then_wait(fn, device, repeats=20, warmup=3):
    for _ in range(warmup):
        fn()
    device.synchronize()
    times = []
    for _ in range(repeats):
        started = device.clock()
        fn()
        times.append(device.clock() - started)
    device.synchronize()
    return statistics.median(times)


def bench_starting_late(fn, device, repeats=20, warmup=3):
    for _ in range(warmup):
        fn()
    times = []
    for _ in range(repeats):
        device.synchronize()
        fn()
        started = device.clock()
        device.synchronize()
        times.append(device.clock() - started)
    return statistics.median(times)


def bench_one_call(fn, device, repeats=20, warmup=3, warm=False, wait=True):
    for _ in range(warmup if warm else 0):
        fn()
    device.synchronize()
    started = device.clock()
    fn()
    if wait:
        device.synchronize()
    return device.clock() - started


def bench_without_first(fn, device, repeats=20, warmup=3):
    times = []
    for _ in range(repeats):
        started = device.clock()
        fn()
        device.synchronize()
        times.append(device.clock() - started)
    return statistics.median(times[1:])


def bench_with_torch(fn, device, repeats=20, warmup=3):
    for _ in range(warmup):
        fn()
        device.synchronize()
    stamps = torch.zeros(repeats, 2, dtype=torch.float64)
    for row in stamps:
        device.synchronize()
        row[0] = device.clock()
        fn()
        device.synchronize()
        row[1] = device.clock()
    return stamps.diff(dim=1).median().item()


def bench_by_one_list(fn, device, repeats=20, warmup=3):
    stamps = []
    for _ in range(warmup + repeats):
        device.synchronize()
        started = device.clock()
        fn()
        device.synchronize()
        stamps.append(device.clock() - started)
    timed = sorted(stamps[warmup:])
    middle = len(timed) // 2
    return timed[middle] if len(timed) % 2 else (timed[middle - 1] + timed[middle]) / 2


def bench_by_inner_function(fn, device, repeats=20, warmup=3):
    def once():
        device.synchronize()
        started = device.clock()
        fn()
        device.synchronize()
        return device.clock() - started

    for _ in range(max(1, warmup)):
        once()
    return statistics.median(once() for _ in range(repeats))


def simulated(name, repeats, warmup=3, tolerance=1e-4):
    """A simulated GPU with a clock of its own; the tolerance is a sixtieth of the kernel or less."""
    return {
        "make": lambda draw: {
            "fn": Named("simulated_kernel"),
            "device": Named(name),
            "repeats": repeats,
            "warmup": warmup,
        },
        "tolerance": tolerance,
    }


def almost_nothing(value, inputs):
    """Tells a clock that stood still from one that was not the device's: 0 and a few microseconds."""
    value = float(value)
    return {"seconds": -1.0 if 0 < value < 1e-4 else value}


def plausible(inputs, value):
    if not isinstance(value, float):
        return None
    truth = {"simulated_gpu": 6.3e-3, "simulated_slow_gpu": 85e-3, "simulated_busy_host": 5e-3}[
        inputs["device"].name
    ]
    if value < 0.99 * truth:
        return (
            f"On this simulated GPU one call takes {1000 * truth:g} ms, launching included; you measured less: something was "
            "still in the queue when you read the clock."
        )
    return (
        f"On this simulated GPU one call usually takes {1000 * truth:g} ms, launching included; you measured more: "
        "calls that are slow for another reason were counted."
    )


BENCHMARK = Exercise(
    name="benchmark",
    number="7.4",
    reference=reference.benchmark,
    returns=("seconds",),
    assemble=bench_with,
    keywords=("repeats", "warmup"),
    differentiable=False,
    device_safe=False,
    cases=(
        Case("5 repeats after 3 calls to warm up", **simulated("simulated_gpu", 5)),
        Case("3 repeats", **simulated("simulated_gpu", 3)),
        Case(
            "an even number of repeats, another GPU",
            **simulated("simulated_slow_gpu", 8, warmup=4, tolerance=1e-3),
        ),
        Case("many repeats", **simulated("simulated_gpu", 30)),
        Case("launching takes longer than the work", **simulated("simulated_busy_host", 7)),
        Case("9 repeats", **simulated("simulated_gpu", 9, tolerance=1e-7), look_at=almost_nothing),
    ),
    misconceptions=(
        Misconception(
            "no-synchronise",
            "Far too fast: you measured how long it takes to *ask* for the work. The call came back at once, and the GPU had "
            "hardly begun when you read the clock. Wait for it first.",
            part={"after": nothing},
            hint=1,
            also=(
                bench_with(before=nothing, after=nothing),
                bench_all_then_wait,
                lambda fn, device, repeats=20, warmup=3: bench_whole_loop(
                    fn, device, repeats, warmup, wait=False
                ),
                bench_with(after=lambda device: device.synchronize),
                lambda fn, device, repeats=20, warmup=3: bench_one_call(fn, device, wait=False),
            ),
        ),
        Misconception(
            "clock-read-too-late",
            "Too fast: the call that puts the work into the queue came before you read the clock the first time. Start the clock, "
            "then call.",
            wrong=bench_starting_late,
            hint=2,
        ),
        Misconception(
            "not-called",
            "Nothing happened: 0 seconds. `fn` without parentheses is only the function's name; or your clock was read twice in a row.",
            part={"call": nothing},
            hint=1,
        ),
        Misconception(
            "another-clock",
            "You read another clock than the device's (`time.time()`, `time.perf_counter()`?). `device.clock()` is the one that "
            "counts here; on a real device it is `time.perf_counter`.",
            part={"clock": lambda device: time.perf_counter()},
            hint=1,
        ),
        Misconception(
            "first-call-only",
            "Far too slow: you timed the very first call. The first ones load kernels, choose algorithms, fill caches; some calls "
            "to warm up must come before and not count.",
            wrong=bench_one_call,
            hint=2,
            also=(bench_with(summary=lambda times: times[0], warm=nothing),),
        ),
        Misconception(
            "no-warm-up",
            "Too slow with few repeats: the first calls are among those you timed, and there the median is one of *them*. Make "
            "`warmup` calls first that do not count.",
            part={"warm": nothing},
            hint=2,
        ),
        Misconception(
            "one-call-to-warm-up",
            "Too slow with few repeats: only one call came before. This GPU is slow more than once; `warmup` says how many do not count.",
            part={"warm": lambda fn, device, warmup: fn()},
            hint=2,
            also=(bench_without_first,),
        ),
        Misconception(
            "mean-for-median",
            "You give the mean. One call in six is disturbed here (ten times as long), and the mean counts it in full. The median, "
            "the middle one of the sorted times, does not mind.",
            part={"summary": statistics.fmean},
            hint=2,
        ),
        Misconception(
            "mean-of-three",
            "You timed three calls and gave the mean: as good as drawing lots, one disturbed call among them decides. Time `repeats` "
            "calls, and take the median.",
            wrong=lambda fn, device, repeats=20, warmup=3: bench_with(summary=statistics.fmean)(
                fn, device, 3, warmup
            ),
            hint=2,
            also=(
                lambda fn, device, repeats=20, warmup=3: bench_with(summary=lambda t: sum(t) / 3)(
                    fn, device, 3, warmup
                ),
            ),
        ),
        Misconception(
            "whole-loop",
            "You timed the whole loop and divided: that is a mean, so every disturbed call is in it, and the waiting for single calls "
            "is not. Time each call by itself.",
            wrong=bench_whole_loop,
            hint=2,
        ),
        Misconception(
            "not-divided",
            "You give the time of all the repeats together; asked for is one call.",
            wrong=lambda fn, device, repeats=20, warmup=3: bench_whole_loop(
                fn, device, repeats, warmup, divide=False
            ),
            hint=2,
            also=(bench_with(summary=sum),),
        ),
        Misconception(
            "smallest",
            "You give the smallest time. On a GPU a call is now and then quicker than usual (here everything was in the cache); the "
            "median says what is usual.",
            part={"summary": min},
            hint=2,
        ),
        Misconception(
            "largest",
            "You give the largest time: that is the worst disturbance, not the usual.",
            part={"summary": max},
            hint=2,
        ),
        Misconception(
            "one-call",
            "You timed a single call (or gave a single one of the times). It may be the lucky or the disturbed one. Take the median "
            "of all.",
            wrong=lambda fn, device, repeats=20, warmup=3: bench_one_call(
                fn, device, warmup=warmup, warm=True
            ),
            hint=2,
            also=(bench_with(summary=lambda times: times[0]),),
        ),
        Misconception(
            "last-one",
            "You give the last of the times. It may be the lucky or the disturbed one. Take the median of all.",
            part={"summary": lambda times: times[-1]},
            hint=2,
        ),
        Misconception(
            "not-sorted",
            "You give the one that stands in the middle of the list. The median is the middle one of the *sorted* times.",
            part={"summary": lambda times: times[len(times) // 2]},
            hint=3,
        ),
        Misconception(
            "milliseconds",
            "A thousand times too much: milliseconds. Give seconds.",
            part={"summary": lambda times: 1000 * statistics.median(times)},
            hint=3,
        ),
        Misconception(
            "backwards",
            "Your time is negative: start minus stop.",
            part={"summary": lambda times: -statistics.median(times)},
            hint=3,
        ),
        Misconception(
            "all-of-them",
            "You give all the times. Asked for is one number, their median.",
            part={"summary": list},
            hint=3,
        ),
    ),
    properties=(Property("plausible", plausible, hint=1),),
    styles=(
        Style("synchronise after each call", reference.benchmark),
        Style("synchronise before and after", bench_by_one_list),
        Style("an inner function", bench_by_inner_function),
        Style("a tensor of times", bench_with_torch),
        Style("no wait after the warm-up", bench_with(before=nothing)),
        Style(
            "more warm-up than asked for",
            bench_with(warm=lambda fn, device, warmup: [fn() for _ in range(12)]),
        ),
        Style(
            "lower middle of the sorted times",
            bench_with(summary=lambda times: sorted(times)[(len(times) - 1) // 2]),
        ),
    ),
)

LESSON = Lesson(
    folder="07_gpu",
    title="On the GPU",
    exercises=(PICK_DEVICE, TO_DEVICE, CAUSAL_MASK_MODULE, BENCHMARK),
)
