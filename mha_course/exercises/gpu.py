"""Lesson 07, declared: mistakes that only a GPU would show, caught on any machine."""

from __future__ import annotations

import functools
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Named, Property, Question, Style

from ._properties import a_number, of_shape

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
            "You give cuda whatever is there. On every machine without one, the next line would stop. (Look at `cuda` and `mps`: "
            "the caller may have said what is there.)",
            wrong=lambda cuda=None, mps=None: torch.device("cuda"),
            hint=1,
            also=(picking(lambda cuda, mps: "cuda:0"),),
        ),
        Misconception(
            "always-cpu",
            "You give cpu whatever is there: right everywhere, and slow everywhere. (Or do you ask torch again? Look at `cuda` and "
            "`mps`: the caller has said what is there.)",
            wrong=lambda cuda=None, mps=None: torch.device("cpu"),
            hint=1,
        ),
        Misconception(
            "no-mps",
            "A Mac with a GPU gets the CPU: nobody asks whether mps is there.",
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


def move_top_level_in_place(batch, device):
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        for key, x in batch.items():
            batch[key] = x.to(device) if isinstance(x, Tensor) else x
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
        moved = map(move_by_map, batch.values(), [device] * len(batch))
        return dict(zip(batch.keys(), moved))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(move_by_map, batch, [device] * len(batch)))
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


def move_dict_for_nothing(batch, device):
    for item in batch.values():
        if isinstance(item, Tensor):
            item.to(device)
    return batch


def move_dict_of_tensors(batch, device):
    return {key: x.to(device) for key, x in batch.items()}


def move_dict_of_anything(batch, device):
    return {key: x.to(device) if isinstance(x, Tensor) else x for key, x in batch.items()}


def what_has_moved(inputs, value):
    """Which of the batch's tensors are where they should be."""
    if isinstance(value, Tensor) != isinstance(inputs["batch"], Tensor):
        return None
    places = [str(x.device) for x in tree_leaves(value) if isinstance(x, Tensor)]
    wanted = str(inputs["device"])
    if not places or set(places) == {wanted}:
        return None
    if wanted not in places:
        return "Nothing has moved. `x.to(device)` does not move x: it gives a *new* tensor. Is that one put into what you return?"
    return (
        "Some tensors have moved, others have not: look into every dict, list and tuple, however deep it lies. For what is inside, "
        "ask the same function again."
    )


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
            also=(move_in_a_loop_for_nothing, rebind_the_loop_variable, move_dict_for_nothing),
        ),
        Misconception(
            "top-level-only",
            "Tensors on the first level have moved, those further in have not: a dict in the dict, a list in the list. "
            "For what is inside, ask the same function again.",
            wrong=move_top_level_only,
            hint=2,
            also=(move_dict_of_anything,),
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
            also=(to_device_with(other=lambda x: x.to("cpu")), move_dict_of_tensors),
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
            "The batch that was given has changed: its own dict now holds the moved tensors. The caller may still need it "
            "where it was. Build a new dict.",
            wrong=move_in_place,
            hint=2,
            also=(move_top_level_in_place,),
        ),
        Misconception(
            "cuda-whatever-device-says",
            "`.cuda()` goes to a CUDA GPU, whatever `device` says, and stops where there is none. The caller has chosen a "
            "device: move to that one.",
            part={"tensor": lambda x, d: x.cuda()},
            hint=1,
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
    properties=(Property("all has moved", what_has_moved, hint=2),),
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


@of_shape(lambda inputs: inputs["scores"].shape, infinite=True)
def future_is_closed(inputs, value):
    scores = inputs["scores"]
    future = ~triangle(scores.shape[-1])
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
            "float16 can hold, and where all keys are closed it makes an average. Here −∞ is wanted.",
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
            "Your mask moves along, good. But it is also in the state dict, so every checkpoint carries it, and one that was saved "
            "with another `longest` no longer loads. (A parameter would even be trained.) `register_buffer` can be told not to save.",
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


@a_number
def plausible(inputs, value):
    truth = {"simulated_gpu": 6.3e-3, "simulated_slow_gpu": 85e-3, "simulated_busy_host": 5e-3}[
        inputs["device"].name
    ]
    if value < 0.99 * truth:
        return (
            f"On this simulated GPU one call usually takes {1000 * truth:g} ms, launching included; you give less. Was something "
            "still in the queue when you read the clock? Or is it a single call, the quickest one, another clock?"
        )
    if value <= 1.01 * truth:
        return None
    return (
        f"On this simulated GPU one call usually takes {1000 * truth:g} ms, launching included; you give more. "
        "Were calls counted that are slow for another reason (the first ones, disturbed ones), or several calls for one?"
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
            "You give the time of all the repeats together; that of one call is wanted.",
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
            "You give all the times. One number is wanted, their median.",
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


# ------------------------------------------------------------------- 7.5 and 7.6: counting work and bytes


def flops_with(
    per_product=2,
    products=2,
    heads=lambda H: H,
    tokens=lambda L: L * L,
    batch=lambda N: N,
    width=lambda H, D: D,
):
    def attention_flops(N, H, L, D):
        return per_product * products * batch(N) * heads(H) * tokens(L) * width(H, D)

    return attention_flops


def flops_by_matrices(N, H, L, D):
    def product(rows, inner, columns):
        return rows * columns * 2 * inner

    return N * H * (product(L, D, L) + product(L, L, D))


def flops_by_loops(N, H, L, D):
    flops = 0
    for _ in range(N * H):
        for _ in range(L):
            flops += 2 * L * D  # a row of scores
            flops += 2 * L * D  # a row of the output
    return flops


def flops_counted(N, H, L, D):
    from torch.utils.flop_counter import FlopCounterMode

    q = torch.empty(N, H, L, D, device="meta")
    with FlopCounterMode(display=False) as counter:
        (q @ q.mT) @ q
    return counter.get_total_flops()


def sizes(N, H, L, D, **more):
    return lambda draw: {"N": N, "H": H, "L": L, "D": D, **more}


ATTENTION_FLOPS = Exercise(
    name="attention_flops",
    number="7.5",
    reference=reference.attention_flops,
    returns=("flops",),
    assemble=flops_with,
    differentiable=False,
    device_safe=False,
    cases=(
        Case("all sizes differ", sizes(2, 3, 7, 5)),
        Case("one head", sizes(3, 1, 5, 4)),
        Case("one token", sizes(5, 2, 1, 3)),
    ),
    misconceptions=(
        Misconception(
            "half-of-it",
            "Half of it. Did you count the multiplications alone? Each comes with an addition, and FLOPs are both. Or one product "
            "alone? There are two: queries with keys, weights with values.",
            part={"per_product": 1},
            hint=1,
            also=(flops_with(products=1),),
        ),
        Misconception(
            "a-quarter-of-it",
            "A quarter of it: one product's multiplications. There are two products, and additions as well.",
            part={"per_product": 1, "products": 1},
            hint=1,
        ),
        Misconception(
            "not-squared",
            "Every query meets every key: the number of tokens counts twice, L · L.",
            part={"tokens": lambda L: L},
            hint=1,
        ),
        Misconception(
            "heads-forgotten",
            "The heads are missing: there are H of them, each with products of its own.",
            part={"heads": lambda H: 1},
            hint=1,
        ),
        Misconception(
            "heads-twice",
            "H times too much: D is a head's features; all the heads' together are H · D, once.",
            part={"width": lambda H, D: H * D},
            hint=1,
        ),
        Misconception(
            "batch-forgotten",
            "The batch is missing: there are N samples.",
            part={"batch": lambda N: 1},
            hint=1,
        ),
        Misconception(
            "width-forgotten",
            "Each score is a sum over D features. Yours has only one multiplication and one addition for each.",
            part={"width": lambda H, D: 1},
            hint=1,
        ),
        Misconception(
            "width-squared",
            "D · D belongs to projections. In attention itself a dot product is D long, and there are L · L of them.",
            part={"width": lambda H, D: D * D, "tokens": lambda L: L},
            hint=1,
            also=(flops_with(width=lambda H, D: D * D),),
        ),
        Misconception(
            "softmax-counted",
            "A little too much: something was added for the softmax (L · L of it). Here the two products count alone; beside L · L · D "
            "the rest is small.",
            wrong=lambda N, H, L, D: 4 * N * H * L * L * D + 5 * N * H * L * L,
            hint=2,
            also=tuple(
                lambda N, H, L, D, c=c: 4 * N * H * L * L * D + c * N * H * L * L for c in (1, 2, 3, 4)
            ),
        ),
        Misconception(
            "minus-one",
            "A little too little: a sum of D numbers has D − 1 additions, true. The field counts D, multiplications and additions "
            "always in pairs.",
            wrong=lambda N, H, L, D: N * H * L * (L * (2 * D - 1) + D * (2 * L - 1)),
            hint=2,
        ),
        Misconception(
            "projections-counted",
            "Too much: the projections of q, k, v (and of the output) are in it. They belong to the layer around attention. Here "
            "q, k and v are given.",
            wrong=lambda N, H, L, D: 4 * N * H * L * L * D + 8 * N * L * (H * D) ** 2,
            hint=1,
            also=(
                lambda N, H, L, D: 4 * N * H * L * L * D + 6 * N * L * (H * D) ** 2,
                lambda N, H, L, D: 4 * N * H * L * L * D + 8 * N * H * L * D * D,
                lambda N, H, L, D: 4 * N * H * L * L * D + 6 * N * H * L * D * D,
            ),
        ),
        Misconception(
            "forward-and-backward",
            "Too much: the backward pass is in it. Count the forward one.",
            wrong=lambda N, H, L, D: 12 * N * H * L * L * D,
            hint=2,
            also=(lambda N, H, L, D: 14 * N * H * L * L * D,),
        ),
    ),
    styles=(
        Style("four times", lambda N, H, L, D: 4 * N * H * L**2 * D),
        Style("two products", flops_by_matrices),
        Style("counted in loops", flops_by_loops),
        Style("math.prod", lambda N, H, L, D: 2 * 2 * math.prod((N, H, L, L, D))),
        Style("torch counts", flops_counted),
        Style("from the whole width", lambda N, H, L, D: 2 * 2 * N * L * L * (H * D)),
    ),
)


def bytes_with(
    ends=4,
    inner=4,
    size=lambda dtype: dtype.itemsize,
    heads=lambda H: H,
    when=lambda fused: not fused,
    square=lambda L: L * L,
):
    def attention_bytes(N, H, L, D, dtype, fused):
        numbers = ends * N * heads(H) * L * D
        if when(fused):
            numbers += inner * N * heads(H) * square(L)
        return numbers * size(dtype)

    return attention_bytes


def bytes_by_steps(N, H, L, D, dtype, fused):
    small, large = N * H * L * D, N * H * L * L
    steps = [("read q, k, v, write output", 3 * small + small)]
    if not fused:
        steps += [("write scores", large), ("softmax", large + large), ("read weights", large)]
    return sum(numbers for _, numbers in steps) * (torch.finfo(dtype).bits // 8)


def bytes_of_real_tensors(N, H, L, D, dtype, fused):
    small = torch.empty(N, H, L, D, dtype=dtype, device="meta")
    large = torch.empty(N, H, L, L, dtype=dtype, device="meta")
    return 4 * small.nbytes + (0 if fused else 4 * large.nbytes)


ATTENTION_BYTES = Exercise(
    name="attention_bytes",
    number="7.6",
    reference=reference.attention_bytes,
    returns=("bytes",),
    assemble=bytes_with,
    keywords=("fused",),
    differentiable=False,
    device_safe=False,
    cases=(
        Case("float32, in three kernels", sizes(2, 3, 7, 5, dtype=FLOAT32, fused=False)),
        Case("float32, in one", sizes(2, 3, 7, 5, dtype=FLOAT32, fused=True)),
        Case("bfloat16, in three kernels", sizes(3, 2, 5, 4, dtype=BFLOAT16, fused=False)),
        Case("bfloat16, in one", sizes(3, 2, 5, 4, dtype=BFLOAT16, fused=True)),
        Case("float64", sizes(1, 2, 3, 4, dtype=torch.float64, fused=False)),
    ),
    misconceptions=(
        Misconception(
            "always-four-bytes",
            "Four bytes for every number, as float32 has. A bfloat16 has 2 bytes and a float64 has 8: ask the dtype.",
            part={"size": lambda dtype: 4},
            hint=2,
        ),
        Misconception(
            "numbers-for-bytes",
            "You counted numbers, and bytes are wanted. How many has one number of this dtype?",
            part={"size": lambda dtype: 1},
            hint=2,
        ),
        Misconception(
            "bits",
            "Eight times too much: bits. A byte has eight of them.",
            part={"size": lambda dtype: torch.finfo(dtype).bits},
            hint=2,
        ),
        Misconception(
            "inputs-only",
            "q, k and v are read, and the output is written, too: four, not three.",
            part={"ends": 3},
            hint=1,
        ),
        Misconception(
            "ends-forgotten",
            "Only the L × L numbers are counted. q, k, v and the output travel as well.",
            part={"ends": 0},
            hint=1,
        ),
        Misconception(
            "squares-forgotten",
            "Fused and unfused are the same in yours. In three kernels the scores and weights, L × L, go to memory and come back.",
            part={"inner": 0},
            hint=1,
        ),
        Misconception(
            "held-once",
            "The L × L numbers are counted once: that is what has to be *held*. Moved they are four times: scores written, read, "
            "weights written, read.",
            part={"inner": 1},
            hint=1,
        ),
        Misconception(
            "written-only",
            "The L × L numbers are counted twice: written as scores and as weights. Each is also read again by the next kernel.",
            part={"inner": 2},
            hint=1,
        ),
        Misconception(
            "softmax-in-place",
            "The L × L numbers are counted three times. Scores are written and read, and weights are written and read: four.",
            part={"inner": 3},
            hint=1,
        ),
        Misconception(
            "fused-inverted",
            "The wrong way round: the *fused* kernel is the one that keeps the L × L numbers to itself.",
            part={"when": lambda fused: fused},
            hint=1,
        ),
        Misconception(
            "fused-ignored",
            "The fused kernel never writes the L × L numbers; yours counts them always.",
            part={"when": lambda fused: True},
            hint=1,
        ),
        Misconception(
            "heads-forgotten",
            "The heads are missing: each of the H heads has tensors of its own.",
            part={"heads": lambda H: 1},
            hint=1,
        ),
        Misconception(
            "heads-share-their-weights",
            "The L × L numbers are counted for one head only; every head has its own.",
            wrong=lambda N, H, L, D, dtype, fused: (
                (4 * N * H * L * D + (0 if fused else 4 * N * L * L)) * dtype.itemsize
            ),
            hint=1,
        ),
        Misconception(
            "not-squared",
            "Scores and weights are L × L for each head; yours grow with L only.",
            part={"square": lambda L: L},
            hint=1,
        ),
    ),
    styles=(
        Style("a sum", bytes_with()),
        Style("step by step", bytes_by_steps),
        Style("nbytes of tensors", bytes_of_real_tensors),
        Style(
            "in one line",
            lambda N, H, L, D, dtype, fused: 4 * N * H * L * (D + (not fused) * L) * dtype.itemsize,
        ),
        Style(
            "element_size",
            lambda N, H, L, D, dtype, fused: (
                (4 * N * H * L * D + (0 if fused else 4 * N * H * L * L))
                * torch.empty((), dtype=dtype).element_size()
            ),
        ),
    ),
)


# ---------------------------------------------------------------------------------------- 7.7 roofline


def roof_with(
    computing=lambda f, m, pf, pb: f / pf,
    moving=lambda f, m, pf, pb: m / pb,
    both=max,
    side=lambda c, m: m > c,
):
    def roofline(flops, moved, peak_flops, peak_bandwidth):
        c = computing(flops, moved, peak_flops, peak_bandwidth)
        m = moving(flops, moved, peak_flops, peak_bandwidth)
        return both(c, m), "memory" if side(c, m) else "compute"

    return roofline


def roof_by_intensity(flops, moved, peak_flops, peak_bandwidth):
    balance = peak_flops / peak_bandwidth
    if flops / moved < balance:
        return moved / peak_bandwidth, "memory"
    return flops / peak_flops, "compute"


def roof_by_height(flops, moved, peak_flops, peak_bandwidth):
    attainable = min(peak_flops, flops / moved * peak_bandwidth)
    return flops / attainable, "compute" if attainable == peak_flops else "memory"


def roof_by_dict(flops, moved, peak_flops, peak_bandwidth):
    times = {"compute": flops / peak_flops, "memory": moved / peak_bandwidth}
    longest = max(times, key=times.get)
    return times[longest], longest


def roof_by_sorting(flops, moved, peak_flops, peak_bandwidth):
    return max((flops / peak_flops, "compute"), (moved / peak_bandwidth, "memory"), key=lambda pair: pair[0])


def work(flops, moved, peak_flops, peak_bandwidth):
    return lambda draw: {
        "flops": flops,
        "moved": moved,
        "peak_flops": peak_flops,
        "peak_bandwidth": peak_bandwidth,
    }


ROOFLINE = Exercise(
    name="roofline",
    number="7.7",
    reference=reference.roofline,
    returns=("seconds", "side"),
    assemble=roof_with,
    differentiable=False,
    device_safe=False,
    cases=(
        Case("much to move", work(1200.0, 600.0, 100.0, 20.0)),
        Case("much to compute", work(6000.0, 100.0, 100.0, 20.0)),
        Case("a real one", work(8.6e9, 2.1e8, 6.0e13, 3.3e12)),
        Case("more to compute than to move, and yet", work(500.0, 400.0, 1000.0, 100.0)),
    ),
    misconceptions=(
        Misconception(
            "sum-for-larger",
            "You add the two times. The machine moves and computes at once: the shorter hides behind the longer.",
            part={"both": lambda c, m: c + m},
            hint=1,
        ),
        Misconception(
            "smaller",
            "You give the shorter of the two times. The work is done when *both* are done.",
            part={"both": min},
            hint=1,
        ),
        Misconception(
            "sides-swapped",
            "The side is the other one: what takes longer is what sets the time.",
            part={"side": lambda c, m: c > m},
            hint=1,
        ),
        Misconception(
            "amounts-compared",
            "FLOPs and bytes are compared as they are. One is not the other: compare the *times* they take.",
            wrong=lambda f, m, pf, pb: (max(f / pf, m / pb), "memory" if m > f else "compute"),
            hint=1,
        ),
        Misconception(
            "ceilings-compared",
            "The side depends on the machine alone in yours: the two ceilings are compared. It depends on the work as well.",
            wrong=lambda f, m, pf, pb: (max(f / pf, m / pb), "memory" if pb < pf else "compute"),
            hint=1,
        ),
        Misconception(
            "ceilings-swapped",
            "FLOPs are divided by the bandwidth, bytes by the FLOP/s: look at the units.",
            part={"computing": lambda f, m, pf, pb: f / pb, "moving": lambda f, m, pf, pb: m / pf},
            hint=1,
        ),
        Misconception(
            "upside-down",
            "The ceiling is divided by the work: that is how often it can be done in a second. Seconds are work divided by ceiling.",
            part={"computing": lambda f, m, pf, pb: pf / f, "moving": lambda f, m, pf, pb: pb / m},
            hint=1,
        ),
        Misconception(
            "multiplied",
            "Work and ceiling are multiplied. FLOPs divided by FLOP/s give seconds.",
            part={"computing": lambda f, m, pf, pb: f * pf, "moving": lambda f, m, pf, pb: m * pb},
            hint=1,
        ),
        Misconception(
            "bytes-ignored",
            "Memory is left out: you give the time of the arithmetic alone.",
            wrong=lambda f, m, pf, pb: (f / pf, "compute"),
            hint=1,
            also=(lambda f, m, pf, pb: (f / pf, "memory" if m / pb > f / pf else "compute"),),
        ),
        Misconception(
            "flops-ignored",
            "The arithmetic is left out: you give the time of moving alone.",
            wrong=lambda f, m, pf, pb: (m / pb, "memory"),
            hint=1,
            also=(lambda f, m, pf, pb: (m / pb, "memory" if m / pb > f / pf else "compute"),),
        ),
        Misconception(
            "flops-per-second",
            "Your first number is a speed, in FLOP/s: the height of the roof. Seconds are wanted.",
            wrong=lambda f, m, pf, pb: (min(pf, f / m * pb), "memory" if f / m < pf / pb else "compute"),
            hint=2,
        ),
        Misconception(
            "intensity",
            "Your first number is FLOPs per byte, the work's intensity. Seconds are wanted.",
            wrong=lambda f, m, pf, pb: (f / m, "memory" if f / m < pf / pb else "compute"),
            hint=2,
        ),
        Misconception(
            "side-first",
            "The two are in the wrong order: seconds, then the side.",
            wrong=lambda f, m, pf, pb: tuple(reversed(reference.roofline(f, m, pf, pb))),
            hint=3,
        ),
    ),
    styles=(
        Style("two times", roof_with()),
        Style("by intensity", roof_by_intensity),
        Style("by the height of the roof", roof_by_height),
        Style("a dict", roof_by_dict),
        Style("the larger pair", roof_by_sorting),
    ),
)


# ---------------------------------------------------------------------------------- 7.8 fused_attention


def sdpa(q, k, v, mask, p, causal):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=causal)


def triangle_for(q, k):
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()


def both_masks(q, k, may_attend, is_causal, triangle=triangle_for):
    if may_attend is None or not is_causal:
        return may_attend
    return may_attend & triangle(q, k)


def fused_with(
    rate=lambda p, training: p if training else 0.0,
    causal=lambda is_causal, training: is_causal,
    mask=lambda m: m,
    merge=both_masks,
    scale=lambda q: q,
    after=lambda output: output,
    hand_on=lambda is_causal, combined: is_causal and combined is None,
):
    """The call of torch's kernel from what is decided before it."""

    def fused_attention(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
        is_causal = causal(is_causal, training)
        combined = merge(q, k, may_attend, is_causal)
        alone = hand_on(is_causal, combined)
        combined = combined if combined is None else mask(combined)
        return after(sdpa(scale(q), k, v, combined, rate(dropout_p, training), alone))

    return fused_attention


def fused_causal_only(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    return sdpa(q, k, v, None if is_causal else may_attend, dropout_p if training else 0.0, is_causal)


def either_mask(q, k, may_attend, is_causal):
    return may_attend if may_attend is None or not is_causal else may_attend | triangle_for(q, k)


def fused_opens_dead_rows(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    combined = both_masks(q, k, may_attend, is_causal)
    if combined is not None:
        combined = combined | ~combined.any(-1, keepdim=True)
    return sdpa(q, k, v, combined, dropout_p if training else 0.0, is_causal and combined is None)


def lower_right(q, k):
    L, S = q.shape[-2], k.shape[-2]
    return torch.ones(L, S, dtype=torch.bool, device=q.device).tril(S - L)


def always_by_mask(triangle):
    """A causal mask built by hand every time, with or without another mask."""

    def merge(q, k, may_attend, is_causal):
        if not is_causal:
            return may_attend
        return triangle(q, k) if may_attend is None else may_attend & triangle(q, k)

    return merge


def fused_average_where_dead(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    combined = both_masks(q, k, may_attend, is_causal)
    if combined is not None:
        low = torch.finfo(q.dtype).min
        combined = torch.zeros_like(combined, dtype=q.dtype).masked_fill(~combined, low)
    return sdpa(q, k, v, combined, dropout_p if training else 0.0, is_causal and combined is None)


def fused_with_a_mask_of_numbers(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    combined = both_masks(q, k, may_attend, is_causal)
    numbers = None if combined is None else combined.to(q.dtype)
    return sdpa(q, k, v, numbers, dropout_p if training else 0.0, is_causal and combined is None)


def fused_asks_first(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    output = fused_with()(q, k, v, may_attend, dropout_p, training, is_causal)
    if may_attend is not None:
        dead = ~both_masks(q, k, may_attend, is_causal).any(-1, keepdim=True)
        if dead.any():
            output = output.masked_fill(dead, 0.0)
    return output


def fused_checks_by_all(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    if may_attend is not None and bool(may_attend.all()):
        may_attend = None
    return fused_with()(q, k, v, may_attend, dropout_p, training, is_causal)


def fused_via_cpu(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    cpu = [x if x is None else x.cpu() for x in (q, k, v, may_attend)]
    return fused_with()(*cpu, dropout_p, training, is_causal).to(q.device)


def fused_from_cpu_mask(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    merge = always_by_mask(lambda q, k: torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril())
    combined = merge(q, k, may_attend, is_causal)
    return sdpa(q, k, v, combined, dropout_p if training else 0.0, False)


def fused_moved_for_nothing(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    if is_causal:
        future = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        future.to(q.device)
        may_attend = future if may_attend is None else future & may_attend
    return sdpa(q, k, v, may_attend, dropout_p if training else 0.0, False)


def fused_careful(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    L, S = q.size(-2), k.size(-2)
    if is_causal:
        causal = reference.causal_mask(L, S, device=q.device)
        may_attend = causal if may_attend is None else torch.logical_and(causal, may_attend)
    if may_attend is None:
        may_attend = torch.ones(L, S, dtype=torch.bool, device=q.device)
    dead = torch.logical_not(may_attend).all(dim=-1, keepdim=True)
    output = F.scaled_dot_product_attention(q, k, v, may_attend.logical_or(dead), dropout_p * training)
    return torch.where(dead, torch.zeros((), dtype=q.dtype, device=q.device), output)


def fused_additive(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    mask = both_masks(q, k, may_attend, is_causal)
    if mask is None:
        return sdpa(q, k, v, None, dropout_p if training else 0.0, is_causal)
    dead = ~mask.any(-1, keepdim=True)
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~(mask | dead), -INF)
    return sdpa(q, k, v, bias, dropout_p if training else 0.0, False) * ~dead


def fused_expanded(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
    N, H, L, S = *q.shape[:3], k.shape[2]
    mask = both_masks(q, k, may_attend, is_causal)
    if mask is None:
        return sdpa(q, k, v, None, dropout_p if training else 0.0, is_causal)
    mask = mask.expand(N, H, L, S)
    zeros = q.new_zeros(())
    return torch.where(
        mask.any(-1, keepdim=True), sdpa(q, k, v, mask, dropout_p if training else 0.0, False), zeros
    )


def draw_attention(draw, dtype=torch.float64, N=2, H=3, L=5, S=7, D=4, **more):
    return {
        "q": draw.normal(N, H, L, D, dtype=dtype),
        "k": draw.normal(N, H, S, D, dtype=dtype),
        "v": draw.normal(N, H, S, D, dtype=dtype),
        "may_attend": None,
        "dropout_p": 0.0,
        "training": False,
        "is_causal": False,
        **more,
    }


def with_mask(draw, dtype=torch.float64, N=2, H=3, L=5, S=7, D=4, dead=None, **more):
    mask = draw.mask(N, 1, L, S)
    if dead is not None:
        mask[dead[0], :, dead[1]] = False
    return draw_attention(draw, dtype, N, H, L, S, D, may_attend=mask, **more)


def left_padded(draw):
    """Padding before the tokens: under a causal mask, the first queries of sample 1 see nothing."""
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., :3] = False
    return draw_attention(draw, L=5, S=6, may_attend=mask, is_causal=True)


def for_dropout(draw, **more):
    """Equal weights of 1/S and values that show which weights are left: output (1, 2, 200, 8)."""
    S = 8
    return {
        "q": torch.zeros(1, 2, 200, S, dtype=torch.float64),
        "k": draw.normal(1, 2, S, S),
        "v": torch.eye(S, dtype=torch.float64).expand(1, 2, S, S).contiguous(),
        "may_attend": None,
        "dropout_p": 0.25,
        "training": True,
        "is_causal": False,
        **more,
    }


def for_dropout_under_masks(draw):
    """Here torch's own code runs, and it is strict: on a CPU the fast kernel takes a mask and is_causal together."""
    return for_dropout(draw, may_attend=torch.ones(1, 1, 1, 8, dtype=torch.bool), is_causal=True)


def shares(value, inputs):
    """The share of weights set to 0, and the mean of all: 3200 draws, 0.04 is five standard deviations."""
    return {
        "share of zeros": float((value == 0).double().mean()),
        "mean weight times S": float(value.mean() * value.shape[-1]),
    }


FUSED_ATTENTION = Exercise(
    name="fused_attention",
    number="7.8",
    reference=reference.fused_attention,
    returns=("output (N, H, L, D)",),
    assemble=fused_with,
    builds_on=("causal_mask", "combine_masks"),
    cases=(
        Case("no mask", draw_attention),
        Case("a mask for each sample, training", lambda draw: with_mask(draw, training=True)),
        Case("causal, L and S differ", lambda draw: draw_attention(draw, is_causal=True)),
        Case("causal, not training", lambda draw: draw_attention(draw, N=1, L=6, S=6, is_causal=True)),
        Case(
            "causal, training",
            lambda draw: draw_attention(draw, N=1, L=6, S=6, is_causal=True, training=True),
        ),
        Case("causal and a mask", left_padded),
        Case("a row that may see nothing", lambda draw: with_mask(draw, dead=(1, 2))),
        Case("dropout 0.5, not training", lambda draw: draw_attention(draw, dropout_p=0.5)),
        Case("float32", lambda draw: with_mask(draw, FLOAT32, N=1, H=2, L=3, S=4, D=6)),
        Case("dropout 0.25, training", for_dropout, look_at=shares, tolerance=0.04, gradients=False),
        Case(
            "the same under two masks",
            for_dropout_under_masks,
            look_at=shares,
            tolerance=0.04,
            gradients=False,
        ),
    ),
    misconceptions=(
        Misconception(
            "dropout-in-eval",
            "With dropout_p = 0.5 and training = False, half of the weights are gone. `F.scaled_dot_product_attention` is a function: "
            "it knows nothing of train and eval, and drops whenever it is told to.",
            part={"rate": lambda p, training: p},
            hint=1,
        ),
        Misconception(
            "dropout-never",
            "In training nothing is dropped: dropout_p does not reach torch's function.",
            part={"rate": lambda p, training: 0.0},
            hint=1,
        ),
        Misconception(
            "dropout-inverted",
            "Weights are dropped outside training, and not in it: the wrong way round.",
            part={"rate": lambda p, training: 0.0 if training else p},
            hint=1,
        ),
        Misconception(
            "probability-of-keeping",
            "In training, three of four weights are gone where one of four should be: p is the probability of being dropped.",
            part={"rate": lambda p, training: 1 - p if training and p else 0.0},
            hint=2,
        ),
        Misconception(
            "causal-in-training-only",
            "Outside training the future is open in yours. Dropout belongs to training, a causal mask to the model.",
            part={"causal": lambda is_causal, training: is_causal and training},
            hint=1,
        ),
        Misconception(
            "causal-by-training",
            "Whether the future is closed depends on `training` in yours, not on `is_causal`.",
            part={"causal": lambda is_causal, training: training},
            hint=1,
        ),
        Misconception(
            "causal-ignored",
            "is_causal has no effect: the future is open.",
            part={"causal": lambda is_causal, training: False},
            hint=1,
        ),
        Misconception(
            "mask-or-causal",
            "With a mask *and* is_causal, only the mask counts in yours: the future is open. Both must let a query look.",
            part={"merge": lambda q, k, may_attend, is_causal: may_attend},
            hint=2,
        ),
        Misconception(
            "causal-or-mask",
            "With a mask *and* is_causal, only is_causal counts in yours: the padding is looked at. Both must let a query look.",
            wrong=fused_causal_only,
            hint=2,
        ),
        Misconception(
            "both-at-once",
            "`attn_mask` and `is_causal` were given together. Some of torch's kernels take both, most refuse (the documentation says: an "
            "error). Where there is a mask, put the causal one into it yourself.",
            part={
                "merge": lambda q, k, may_attend, is_causal: may_attend,
                "hand_on": lambda is_causal, combined: is_causal,
            },
            hint=2,
        ),
        Misconception(
            "mask-ignored",
            "The mask has no effect.",
            part={"merge": lambda q, k, may_attend, is_causal: None},
            hint=1,
        ),
        Misconception(
            "mask-inverted",
            "What should be open is closed, and the other way round. `F.scaled_dot_product_attention` means by True what we mean: may "
            "look. (It is `nn.MultiheadAttention` that means the opposite.)",
            part={"mask": lambda m: ~m},
            hint=1,
        ),
        Misconception(
            "mask-as-numbers",
            "The mask was turned into 0 and 1. A mask of numbers is *added* to the scores: 1 here, 0 there, and everything is open. Give "
            "it as bool.",
            wrong=fused_with_a_mask_of_numbers,
            hint=2,
        ),
        Misconception(
            "scaled-twice",
            "Your weights are too even: the queries were divided by √D, and torch's function divides once more.",
            part={"scale": lambda q: q / math.sqrt(q.shape[-1])},
            hint=1,
        ),
        Misconception(
            "lower-right",
            "Where there are not as many queries as keys, your last query stands at the last key. Here, and in torch's is_causal, "
            "it is the first ones that stand at the same place.",
            part={"merge": always_by_mask(lower_right)},
            hint=2,
            also=(fused_with(merge=functools.partial(both_masks, triangle=lower_right)),),
        ),
        Misconception(
            "either-is-enough",
            "With a mask *and* is_causal, a key is open in yours where *one* of the two opens it. It has to get past both.",
            part={"merge": either_mask},
            hint=2,
        ),
        Misconception(
            "dead-rows-left-open",
            "A query that may see nothing looks at everything, as if there were no mask for it: its row was opened, so that no NaN "
            "can arise, and its output was not set to zeros afterwards.",
            wrong=fused_opens_dead_rows,
            hint=3,
        ),
        Misconception(
            "future-for-past",
            "Under is_causal the past is closed and the future is open: that triangle is the upper one.",
            part={"merge": always_by_mask(lambda q, k: ~triangle_for(q, k))},
            hint=2,
            also=(
                fused_with(
                    merge=always_by_mask(
                        lambda q, k: torch.ones(
                            q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device
                        ).triu(1)
                    )
                ),
            ),
        ),
        Misconception(
            "average-where-nothing-is-open",
            "A query that may see nothing gets the average of all values: closed scores were made very small instead of −∞, and equal "
            "ones share evenly. It should get zeros.",
            wrong=fused_average_where_dead,
            hint=3,
        ),
        Misconception(
            "tokens-before-heads",
            "The output is (N, L, H, D). It should be laid out like the query.",
            part={"after": lambda output: output.transpose(1, 2)},
            hint=1,
        ),
        Misconception(
            "merged",
            "The output is (N, L, E): the heads are merged already. Here they stay apart.",
            part={"after": lambda output: output.transpose(1, 2).flatten(2)},
            hint=1,
        ),
        Misconception(
            "cut-off",
            "Nothing can learn through your result: it was detached (or made under no_grad).",
            part={"after": lambda output: output.detach()},
        ),
        Misconception(
            "mask-made-on-the-cpu",
            "Right on the CPU. But the causal mask you make stays there when the queries are on a GPU. (`mask.to(device)` alone moves "
            "nothing: it gives a new tensor.)",
            wrong=fused_from_cpu_mask,
            hint=3,
            also=(fused_moved_for_nothing,),
        ),
        Misconception(
            "asks-the-device",
            "Right on the CPU. But `if mask.any():` asks for a value, and on a GPU Python then waits until all work before it is done. "
            "Do it without asking: where there is nothing to fill, filling changes nothing.",
            wrong=fused_asks_first,
            hint=3,
            also=(fused_checks_by_all,),
        ),
        Misconception(
            "round-trip",
            "Right on the CPU. But `.cpu()` brings everything from the GPU, computes here, and sends it back.",
            wrong=fused_via_cpu,
            hint=1,
        ),
    ),
    styles=(
        Style("torch alone", fused_with()),
        Style("dead rows by hand", reference.fused_attention),
        Style("always a mask", fused_careful),
        Style("additive", fused_additive),
        Style("expanded, where", fused_expanded),
        Style(
            "float64 inside",
            lambda q, *rest: fused_with()(*(x.double() for x in (q, *rest[:2])), *rest[2:]).to(q.dtype),
        ),
        Style("causal by a mask every time", fused_with(merge=always_by_mask(triangle_for))),
    ),
)


# ------------------------------------------------------------------------------ 7.9 mixed_precision_gap


def gap_with(
    truth=lambda fn, x, dtype: fn(x.double()),
    low=lambda fn, x, dtype: fn(x.to(dtype)).double(),
    compare=lambda low, truth: (low - truth).abs().max(),
    size=lambda truth: truth.abs().max(),
    step=lambda dtype: torch.finfo(dtype).eps,
    number=float,
    overflow=lambda low: INF if not bool(low.isfinite().all()) else None,
):
    """The gap from its parts."""

    def mixed_precision_gap(fn, x, dtype):
        right, rounded = truth(fn, x, dtype), low(fn, x, dtype)
        given = overflow(rounded)
        if given is not None:
            return given
        return number(compare(rounded, right) / size(right) / step(dtype))

    return mixed_precision_gap


def gap_without_what_overflowed(fn, x, dtype):
    truth, low = fn(x.double()), fn(x.to(dtype)).double()
    keep = low.isfinite()
    if not bool(keep.any()):
        return 0.0
    return ((low - truth)[keep].abs().max() / truth.abs().max() / torch.finfo(dtype).eps).item()


def gap_in_nan_to_num(fn, x, dtype):
    truth, low = fn(x.double()), fn(x.to(dtype)).double()
    return (
        torch.nan_to_num(low - truth, 0.0, 0.0, 0.0).abs().max() / truth.abs().max() / torch.finfo(dtype).eps
    ).item()


def gap_each_by_its_own(fn, x, dtype):
    truth, low = fn(x.double()), fn(x.to(dtype)).double()
    if not bool(low.isfinite().all()):
        return INF
    return ((low - truth).abs() / truth.abs()).max().item() / torch.finfo(dtype).eps


def gap_compared_low(fn, x, dtype):
    truth, low = fn(x.double()), fn(x.to(dtype))
    if not bool(low.isfinite().all()):
        return INF
    error = (low - truth.to(dtype)).abs().max().double()
    return (error / truth.abs().max()).item() / torch.finfo(dtype).eps


def gap_by_lists(fn, x, dtype):
    truth, low = fn(x.double()).flatten().tolist(), fn(x.to(dtype)).flatten().tolist()
    if not all(map(math.isfinite, low)):
        return math.inf
    error = max(abs(a - b) for a, b in zip(low, truth))
    return error / max(map(abs, truth)) / torch.finfo(dtype).eps


def gap_by_norms(fn, x, dtype):
    truth, low = fn(x.to(torch.float64)), fn(x.to(dtype)).to(torch.float64)
    if low.isinf().any() or low.isnan().any():
        return float("inf")
    biggest = float("inf")
    return torch.linalg.vector_norm(low - truth, biggest).item() / (
        torch.linalg.vector_norm(truth, biggest).item() * torch.finfo(dtype).eps
    )


def gap_nan_at_the_end(fn, x, dtype):
    truth, low = fn(x.double()), fn(x.to(dtype)).double()
    gap = ((low - truth).abs().amax() / truth.abs().amax()).item() / torch.finfo(dtype).eps
    return gap if math.isfinite(gap) else math.inf


def gap_no_graph(fn, x, dtype):
    with torch.no_grad():
        return gap_with()(fn, x, dtype)


def lowered(name, dtype, *shape, scale=1.0, of=torch.float64):
    def make(draw):
        return {"fn": Named(name), "x": draw.normal(*shape, dtype=of, scale=scale), "dtype": dtype}

    return make


def rounded(number):
    x = torch.full((2, 3), number, dtype=torch.float64)
    return lambda draw: {"fn": Named("squared"), "x": x, "dtype": BFLOAT16}


MIXED_PRECISION_GAP = Exercise(
    name="mixed_precision_gap",
    number="7.9",
    reference=reference.mixed_precision_gap,
    returns=("gap",),
    assemble=gap_with,
    differentiable=False,
    device_safe=False,
    cases=(
        Case("attention in bfloat16", lowered("plain_self_attention", BFLOAT16, 2, 5, 8)),
        Case("attention in float16", lowered("plain_self_attention", FLOAT16, 3, 4, 6, of=FLOAT32)),
        Case("attention in float32", lowered("plain_self_attention", FLOAT32, 2, 6, 4)),
        Case("a single number", lowered("sum_of_cubes", BFLOAT16, 3, 4)),
        Case("large numbers in float16", lowered("squared", FLOAT16, 2, 7, scale=1000.0)),
        Case("∞ / ∞ in float16", lowered("softmax_without_shift", FLOAT16, 3, 5, scale=20.0)),
        Case("the same in bfloat16", lowered("softmax_without_shift", BFLOAT16, 3, 5, scale=20.0)),
        Case("all rounded up: 1.005 becomes 1.0078", rounded(1.005)),
        Case("all rounded down: 1.003 becomes 1", rounded(1.003)),
    ),
    misconceptions=(
        Misconception(
            "not-in-steps",
            "That is a plain relative error; its size says nothing until you know the dtype. Divide it by the dtype's rounding "
            "step.",
            part={"step": lambda dtype: 1.0},
            hint=2,
        ),
        Misconception(
            "float32s-tolerance",
            "You measure with float32's rounding step whatever the dtype is. By that measure every right bfloat16 result is tens of "
            "thousands of steps off: the tolerance is too tight. Each dtype has its own.",
            part={"step": lambda dtype: torch.finfo(FLOAT32).eps},
            hint=2,
            also=(gap_with(step=lambda dtype: 2**-23),),
        ),
        Misconception(
            "float16s-step-for-bfloat16",
            "float16's step is not bfloat16's: that has 3 bits fewer, and its step is 8 times as large. Ask torch about each dtype.",
            part={
                "step": lambda dtype: (
                    max(torch.finfo(dtype).eps, torch.finfo(FLOAT16).eps) if dtype != BFLOAT16 else 2**-10
                )
            },
            hint=2,
        ),
        Misconception(
            "smallest-number-for-eps",
            "`finfo.tiny` and `.smallest_normal` are the smallest numbers near zero. The rounding step near 1 is `.eps`.",
            part={"step": lambda dtype: torch.finfo(dtype).tiny},
            hint=2,
        ),
        Misconception(
            "absolute",
            "You give the absolute error in steps. For large results even perfect rounding is many steps then: divide by the truth's "
            "largest absolute value.",
            part={"size": lambda truth: 1.0},
            hint=2,
        ),
        Misconception(
            "each-by-its-own-size",
            "You divide each error by its own true number. Numbers near 0 then look far off, however well they are rounded. Take the "
            "largest error and the largest number, each by itself.",
            wrong=gap_each_by_its_own,
            hint=2,
        ),
        Misconception(
            "truth-in-x-dtype",
            "Nearly: the truth was computed in x's own dtype. With a float32 x that has rounding of its own. Use float64.",
            part={"truth": lambda fn, x, dtype: fn(x).double()},
            hint=2,
            also=(gap_with(truth=lambda fn, x, dtype: fn(x.float()).double()),),
        ),
        Misconception(
            "truth-in-the-low-dtype",
            "0: you compared the low precision with itself. The truth has to be computed in float64, from x as it was given.",
            part={"truth": lambda fn, x, dtype: fn(x.to(dtype)).double()},
            hint=1,
        ),
        Misconception(
            "input-rounded-first",
            "Too small: the truth was computed from an x that had been rounded already. Rounding the input is part of the damage.",
            part={"truth": lambda fn, x, dtype: fn(x.to(dtype).double())},
            hint=1,
        ),
        Misconception(
            "only-the-output-rounded",
            "Too small: `fn` ran in full precision, and only its result was rounded. Give it x in the low dtype.",
            part={"low": lambda fn, x, dtype: fn(x.double()).to(dtype).double()},
            hint=1,
            also=(gap_with(low=lambda fn, x, dtype: fn(x).to(dtype).double()),),
        ),
        Misconception(
            "only-the-input-rounded",
            "Too small: x was rounded, and then everything ran in float64. `fn` has to run in the low dtype.",
            part={"low": lambda fn, x, dtype: fn(x.to(dtype).double())},
            hint=1,
        ),
        Misconception(
            "compared-in-the-low-dtype",
            "The difference was taken in the low dtype, so it was itself rounded. Bring the result to float64 first.",
            wrong=gap_compared_low,
            hint=2,
        ),
        Misconception(
            "mean-for-largest",
            "You give the mean error. One wrong number among a thousand right ones would vanish in it; take the largest.",
            part={"compare": lambda low, truth: (low - truth).abs().mean()},
            hint=2,
        ),
        Misconception(
            "mean-over-mean",
            "You divide the mean error by the mean size. One wrong number among a thousand right ones would vanish in the first; "
            "take the largest of both.",
            part={
                "compare": lambda low, truth: (low - truth).abs().mean(),
                "size": lambda truth: truth.abs().mean(),
            },
            hint=2,
        ),
        Misconception(
            "sum-for-largest",
            "You give the sum of all errors, which grows with the size of the result; take the largest.",
            part={"compare": lambda low, truth: (low - truth).abs().sum()},
            hint=2,
        ),
        Misconception(
            "no-absolute-value",
            "Errors downwards are overlooked: the largest of the differences was taken without their absolute value.",
            part={"compare": lambda low, truth: (low - truth).max()},
            hint=2,
            also=(gap_with(compare=lambda low, truth: (truth - low).max()),),
        ),
        Misconception(
            "nan-for-inf",
            "Where float16 ends in NaN (∞ / ∞), so do you. NaN compares with nothing: `gap < 10` is False, and so is `gap > 10`. Whatever "
            "is not finite, ∞ or NaN: say inf.",
            part={"overflow": lambda low: None},
            hint=3,
            also=(
                gap_with(overflow=lambda low: math.nan if not bool(low.isfinite().all()) else None),
                gap_with(overflow=lambda low: INF if bool(low.isinf().any()) else None),
            ),
        ),
        Misconception(
            "overflow-overlooked",
            "Where float16 overflows you give a finite number: what became ∞ or NaN was left out of the comparison. That is the worst "
            "error of all. Say inf.",
            wrong=gap_without_what_overflowed,
            hint=3,
            also=(gap_in_nan_to_num,),
        ),
        Misconception(
            "a-tensor",
            "You give a tensor; a Python number is wanted.",
            part={"number": lambda gap: gap},
            hint=3,
        ),
    ),
    styles=(
        Style("largest difference", gap_with()),
        Style("lists", gap_by_lists),
        Style("norms", gap_by_norms),
        Style("not finite, seen at the end", gap_nan_at_the_end),
        Style("without a graph", gap_no_graph),
        Style(
            "eps first",
            gap_with(size=lambda truth: truth.abs().max() * 1.0, step=lambda dtype: torch.finfo(dtype).eps),
        ),
    ),
)


# -------------------------------------------------------------------------------------------- questions

QUESTIONS = (
    Question(
        "why_synchronise",
        right="c",
        why={
            "a": "If it were the kernel being quick, it would stay quick when you wait for its result.",
            "b": "A slow first call makes the measured time longer, not shorter.",
            "c": "Yes: the call only put the work into the queue. Wait until the queue is empty, then read the clock.",
            "d": "The median is over many calls; each of them was read too early.",
        },
    ),
    Question(
        "why_a_buffer",
        right="b",
        why={
            "a": "An optimizer changes parameters; nobody wants to train a mask.",
            "b": "Yes: `module.to(device)` moves parameters and buffers, and nothing else.",
            "c": "The numbers are the same, and so is the time to look them up.",
            "d": "It can be saved with the module, but need not: `persistent=False`.",
        },
    ),
    Question(
        "which_side",
        right="d",
        why={
            "a": "The FLOPs do grow like L², but so do the bytes: their ratio settles.",
            "b": "The machine can do 200 FLOPs in the time of one byte; 32 are not enough to keep it busy.",
            "c": "Longer sequences bring the ratio nearer to 32, never above it.",
            "d": "Yes: at most 32 FLOPs for each byte, and the machine needs 200 to be busy. Only by not moving the L × L numbers can "
            "that be changed.",
        },
    ),
    Question(
        "which_sixteen_bits",
        right="a",
        why={
            "a": "Yes: 8 bits for the exponent as in float32, so hardly anything overflows; 7 for the digits, so the steps are 8 times as "
            "coarse as float16's.",
            "b": "That is float16: finer steps, and an end at 65504.",
            "c": "Both have 16 bits, so both take 2 bytes.",
            "d": "Not with float32's tolerance: right results differ in the third digit.",
        },
    ),
)

LESSON = Lesson(
    folder="07_gpu",
    title="On the GPU",
    exercises=(
        PICK_DEVICE,
        TO_DEVICE,
        CAUSAL_MASK_MODULE,
        BENCHMARK,
        ATTENTION_FLOPS,
        ATTENTION_BYTES,
        ROOFLINE,
        FUSED_ATTENTION,
        MIXED_PRECISION_GAP,
    ),
    questions=QUESTIONS,
)
