"""Lesson 02, declared: who may look at whom, and a detector for those who look anyway."""

from __future__ import annotations

import functools
import math

import torch

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Named, Property, Question, Style

from ._properties import of_shape

FLOAT32 = torch.float32
INF = torch.inf


NUMBERS_FOR_BOOLS = (
    "Your mask is made of numbers. A mask is made of bools, True and False: with 0 and 1 of another dtype `~mask` means "
    "something else, and `masked_fill` refuses them."
)


# ------------------------------------------------------------------------------- 2.1 causal_mask


def causal_with(
    place=lambda i, j, offset: j <= i + offset, offset=lambda o: o, where=lambda d: d, turn=lambda mask: mask
):
    """A mask from the rule that query i and key j follow."""

    def causal_mask(L, S, offset_=0, device=None):
        i = torch.arange(L, device=where(device)).unsqueeze(1)  # (L, 1)
        j = torch.arange(S, device=where(device))  # (S,)
        return turn(place(i, j, offset(offset_)))

    def called_by_name(L, S, offset=0, device=None):
        return causal_mask(L, S, offset, device)

    return called_by_name


def causal_lower_right(L, S, offset=0, device=None):
    return torch.ones(L, S, dtype=torch.bool, device=device).tril(S - L)


def causal_by_loops(L, S, offset=0, device=None):
    return torch.tensor([[j <= i + offset for j in range(S)] for i in range(L)], device=device)


def causal_filled(L, S, offset=0, device=None):
    mask = torch.zeros(L, S, dtype=torch.bool, device=device)
    for i in range(L):
        mask[i, : max(0, i + offset + 1)] = True
    return mask


def causal_additive(L, S, offset=0, device=None):
    return torch.zeros(L, S, device=device).masked_fill(~causal_with()(L, S, offset, device), -INF)


def causal_case(name, L, S, offset):
    return Case(name, lambda draw: {"L": L, "S": S, "offset": offset})


def its_device(value, inputs):
    return {"device of the mask": str(value.device)}


CAUSAL_MASK = Exercise(
    name="causal_mask",
    number="2.1",
    reference=reference.causal_mask,
    returns=("may_attend (L, S)",),
    assemble=causal_with,
    keywords=("offset", "device"),
    differentiable=False,
    device_safe=False,  # no input is on a device; the last case asks for one that every machine has
    cases=(
        causal_case("a square", 4, 4, 0),
        causal_case("more keys than queries", 3, 5, 0),
        causal_case("two keys came before", 3, 5, 2),
        causal_case("more queries than keys", 5, 3, 0),
        causal_case("one new query, six keys kept", 1, 7, 6),
        Case(
            "for another device: meta, which every machine has",
            lambda draw: {"L": 3, "S": 5, "offset": 1, "device": torch.device("meta")},
            look_at=its_device,
        ),
    ),
    misconceptions=(
        Misconception(
            "inverted",
            "Everything is the wrong way round: yours is True where a query may *not* look. Here True means may look.",
            part={"turn": lambda mask: ~mask},
            hint=1,
            also=(
                lambda L, S, offset=0, device=None: torch.ones(L, S, dtype=torch.bool, device=device).triu(
                    1 + offset
                ),
                *(
                    causal_with(turn=turn, offset=offset, where=where)  # and more besides: this is said first
                    for turn in (lambda m: ~m, lambda m: (~m).float())
                    for offset in (lambda o: 0, lambda o: o)
                    for where in (lambda d: None, lambda d: d)
                ),
            ),
        ),
        Misconception(
            "not-itself",
            "Off by one: a query may not look at its own place in yours (the diagonal is False). It may; it is the present.",
            part={"place": lambda i, j, offset: j < i + offset},
            hint=1,
            also=(
                lambda L, S, offset=0, device=None: torch.ones(L, S, dtype=torch.bool, device=device).tril(
                    offset - 1
                ),
            ),
        ),
        Misconception(
            "one-step-ahead",
            "Off by one: every query also sees the next token, which is the one a language model should guess.",
            part={"place": lambda i, j, offset: j <= i + offset + 1},
            hint=1,
            also=(
                lambda L, S, offset=0, device=None: torch.ones(L, S, dtype=torch.bool, device=device).tril(
                    offset + 1
                ),
            ),
        ),
        Misconception(
            "transposed",
            "The mask is mirrored at the diagonal: early queries see the future, late ones do not see the past. Rows are "
            "queries, columns are keys.",
            part={"place": lambda i, j, offset: j >= i + offset},
            hint=1,
            also=(
                lambda L, S, offset=0, device=None: torch.ones(L, S, dtype=torch.bool, device=device).triu(
                    offset
                ),
            ),
        ),
        Misconception(
            "offset-ignored",
            "The offset changes nothing. It says how many keys came before query 0, so it moves the queries.",
            part={"offset": lambda o: 0},
            hint=2,
            also=(
                lambda L, S, offset=0, device=None: torch.tril(
                    torch.ones(L, S, dtype=torch.bool, device=device)
                ),
            ),
        ),
        Misconception(
            "offset-backwards",
            "The offset works backwards: keys that came before the queries are closed instead of open.",
            part={"offset": lambda o: -o},
            hint=2,
        ),
        Misconception(
            "device-ignored",
            "The mask is made on the CPU, whatever `device` says. Scores on a GPU cannot use it. Hand `device` on to what "
            "makes the tensor.",
            part={"where": lambda d: None},
            hint=3,
            also=(
                lambda L, S, offset=0, device=None: torch.ones(L, S, dtype=torch.bool).tril(offset),
                lambda L, S, offset=0, device=None: torch.ones(L, S).tril(offset).bool(),
            ),
        ),
        Misconception(
            "square-for-all",
            "Your mask is always a square, (L, L). There are S keys, and S need not be L: (L, S).",
            wrong=lambda L, S, offset=0, device=None: causal_with()(L, L, offset, device),
            hint=1,
            also=(lambda L, S, offset=0, device=None: causal_with()(S, S, offset, device),),
        ),
        Misconception(
            "made-to-be-added",
            "You made a mask of 0 and −∞, to be *added* to the scores. That is exercise 2.4. Here True and False are wanted: may "
            "this query look at this key?",
            wrong=causal_additive,
            hint=1,
        ),
        Misconception(
            "lower-right",
            "With more keys than queries and no offset, your queries stand at the *end* of the keys (lower-right). How many keys "
            "came before is what `offset` says; without it, query 0 stands at key 0.",
            wrong=causal_lower_right,
            hint=2,
        ),
        Misconception(
            "numbers-for-bools",
            NUMBERS_FOR_BOOLS,
            wrong=lambda L, S, offset=0, device=None: torch.ones(L, S, device=device).tril(offset),
            hint=3,
            also=tuple(
                causal_with(turn=turn, offset=offset, where=where)
                for turn in (lambda m: m.float(), lambda m: m.long())
                for offset in (lambda o: o, lambda o: 0)
                for where in (lambda d: d, lambda d: None)
            ),
        ),
        Misconception(
            "keys-by-queries",
            "Your mask is (S, L). Rows are queries: (L, S).",
            wrong=lambda L, S, offset=0, device=None: causal_with()(L, S, offset, device).T,
            hint=1,
        ),
    ),
    styles=(
        Style(
            "tril",
            lambda L, S, offset=0, device=None: torch.ones(L, S, dtype=torch.bool, device=device).tril(
                offset
            ),
        ),
        Style(
            "not triu",
            lambda L, S, offset=0, device=None: (
                ~torch.triu(torch.ones(L, S, dtype=torch.bool, device=device), diagonal=offset + 1)
            ),
        ),
        Style("arange", causal_with()),
        Style("loops", causal_by_loops),
        Style("filled row by row", causal_filled),
        Style(
            "numbers, then compared",
            lambda L, S, offset=0, device=None: torch.ones(L, S, device=device).tril(offset) == 1,
        ),
        Style(
            "cumulative sum",
            lambda L, S, offset=0, device=None: (
                torch.ones(L, S, device=device).cumsum(1)
                <= torch.arange(1, L + 1, device=device)[:, None] + offset
            ),
        ),
    ),
)


# ------------------------------------------------------------------------------- 2.2 padding_mask


def padding_with(
    rule=lambda place, lengths: place < lengths.unsqueeze(1), shape=lambda mask: mask.unsqueeze(1)
):
    def padding_mask(lengths, S):
        return shape(rule(torch.arange(S, device=lengths.device), lengths))

    return padding_mask


def padding_by_loops(lengths, S):
    mask = torch.zeros(lengths.shape[0], 1, S, dtype=torch.bool, device=lengths.device)
    for s in range(S):
        mask[:, 0, s] = lengths > s
    return mask


PADDING_MASK = Exercise(
    name="padding_mask",
    number="2.2",
    reference=reference.padding_mask,
    returns=("may_attend (N, 1, S)",),
    assemble=padding_with,
    differentiable=False,
    cases=(
        Case("three samples of different lengths", lambda draw: {"lengths": torch.tensor([2, 5, 3]), "S": 5}),
        Case("a full one and an empty one", lambda draw: {"lengths": torch.tensor([4, 0]), "S": 4}),
        Case("drawn at random", lambda draw: {"lengths": draw.integers(1, 8, 4), "S": 7}),
    ),
    misconceptions=(
        Misconception(
            "numbers-for-bools",
            NUMBERS_FOR_BOOLS,
            part={"shape": lambda mask: mask.unsqueeze(1).float()},
            hint=2,
            also=(padding_with(shape=lambda mask: mask.unsqueeze(1).long()),),
        ),
        Misconception(
            "inverted",
            "True stands at the padding in yours. Here True means may look, and that is at real tokens.",
            part={"rule": lambda place, lengths: place >= lengths.unsqueeze(1)},
            hint=1,
        ),
        Misconception(
            "one-too-many",
            "Off by one: one padding token is still open. A length of 2 opens places 0 and 1.",
            part={"rule": lambda place, lengths: place <= lengths.unsqueeze(1)},
            hint=1,
        ),
        Misconception(
            "one-too-few",
            "Off by one: the last real token is closed. A length of 2 opens places 0 and 1.",
            part={"rule": lambda place, lengths: place < lengths.unsqueeze(1) - 1},
            hint=1,
        ),
        Misconception(
            "padding-on-the-left",
            "The *last* tokens are open in yours, as if the padding stood on the left. It is on the right here.",
            part={"rule": lambda place, lengths: place >= place.numel() - lengths.unsqueeze(1)},
            hint=1,
        ),
        Misconception(
            "no-room-for-queries",
            "The shape of yours is (N, S). Between the two there must be room for the queries, (N, 1, S), or it will "
            "line up with the wrong dimension.",
            part={"shape": lambda mask: mask},
            hint=2,
        ),
        Misconception(
            "queries-masked",
            "Your shape is (N, S, 1): that closes *queries*. Padding is what nobody should look at: keys, the last dimension.",
            part={"shape": lambda mask: mask.unsqueeze(-1)},
            hint=2,
        ),
        Misconception(
            "one-length-for-all",
            "Every sample got the same mask, that of the first (or longest) sample.",
            part={"rule": lambda place, lengths: (place < lengths[0]).expand(lengths.numel(), -1)},
            hint=2,
        ),
        Misconception(
            "longest-for-all",
            "Every sample got the mask of the longest one; each has its own length.",
            part={"rule": lambda place, lengths: (place < lengths.max()).expand(lengths.numel(), -1)},
            hint=2,
        ),
        Misconception(
            "only-the-last-real-token",
            "Only one token per sample is open: compared with ==. All real tokens are open, not the last one alone.",
            part={"rule": lambda place, lengths: place == lengths.unsqueeze(1) - 1},
            hint=2,
        ),
        Misconception(
            "a-square",
            "Your shape is (N, S, S): padding was closed for queries and keys together. Only keys matter: (N, 1, S).",
            part={"shape": lambda mask: mask.unsqueeze(1) & mask.unsqueeze(2)},
            hint=2,
        ),
    ),
    styles=(
        Style("arange", padding_with()),
        Style(
            "None for a dimension",
            lambda lengths, S: (torch.arange(S, device=lengths.device)[None, :] < lengths[:, None])[
                :, None, :
            ],
        ),
        Style("view", lambda lengths, S: torch.arange(S, device=lengths.device) < lengths.view(-1, 1, 1)),
        Style("place by place", padding_by_loops),
        Style(
            "cumulative",
            lambda lengths, S: (
                torch.ones(lengths.shape[0], 1, S, device=lengths.device).cumsum(-1) <= lengths.view(-1, 1, 1)
            ),
        ),
        Style(
            "not padding",
            lambda lengths, S: (
                ~(
                    torch.arange(S, device=lengths.device).expand(lengths.shape[0], 1, S)
                    >= lengths[:, None, None]
                )
            ),
        ),
    ),
)


# ------------------------------------------------------------------------------ 2.3 combine_masks


def three_masks(draw):
    return {
        "first": draw.mask(5, 7, p=0.7),
        "second": draw.mask(2, 1, 7, p=0.7),
        "third": draw.mask(2, 1, 5, 7, p=0.7).squeeze(1),
    }


def combine_in_place(*masks):
    combined = masks[0]
    for mask in masks[1:]:
        combined &= mask
    return combined


def combine_by_counting(*masks):
    return sum(mask.int() for mask in masks) == len(masks)


COMBINE_MASKS = Exercise(
    name="combine_masks",
    number="2.3",
    reference=reference.combine_masks,
    returns=("may_attend (broadcast)",),
    differentiable=False,
    cases=(
        Case(
            "causal (L, S) with padding (N, 1, S)",
            lambda draw: {"first": causal_with()(5, 7, 2), "second": draw.mask(2, 1, 7)},
        ),
        Case("three masks", three_masks),
        Case("one mask alone", lambda draw: {"first": draw.mask(3, 4)}),
    ),
    misconceptions=(
        Misconception(
            "or-for-and",
            "A look is open where *any* mask opens it. A query may look where *every* mask lets it.",
            wrong=lambda *masks: functools.reduce(torch.logical_or, masks),
            hint=1,
            also=(lambda *masks: sum(mask.int() for mask in masks) > 0,),
        ),
        Misconception(
            "first-two-only",
            "With three masks the third is ignored: `*masks` may be any number.",
            wrong=lambda *masks: masks[0] & masks[1] if len(masks) > 1 else masks[0],
            hint=2,
            also=(lambda *masks: masks[0] & masks[1],),
        ),
        Misconception(
            "written-into-the-first",
            "`&=` writes into the first mask: it cannot grow to (N, L, S) there, and it would change the caller's mask. The same "
            "operator without the = makes a new one.",
            wrong=combine_in_place,
            hint=2,
        ),
        Misconception(
            "first-only",
            "Only the first mask counts.",
            wrong=lambda *masks: masks[0],
            hint=1,
        ),
        Misconception(
            "last-only",
            "Only the last mask counts.",
            wrong=lambda *masks: masks[-1],
            hint=1,
        ),
        Misconception(
            "exactly-one",
            "Where both masks are open yours is closed: ^ (or !=) asks whether they *differ*.",
            wrong=lambda *masks: functools.reduce(torch.logical_xor, masks),
            hint=1,
        ),
        Misconception(
            "inverted",
            "Everything is the wrong way round: yours says where a query may *not* look.",
            wrong=lambda *masks: ~reference.combine_masks(*masks),
            hint=1,
        ),
        Misconception(
            "numbers-for-bools",
            "Multiplied or added masks are numbers. The result should be of bools, as the masks are.",
            wrong=lambda *masks: math.prod(mask.float() for mask in masks),
            hint=2,
            also=(
                lambda *masks: math.prod(mask.int() for mask in masks),
                lambda *masks: math.prod(mask.long() for mask in masks),
            ),
        ),
        Misconception(
            "pythons-and",
            "Python's `and` (and `or`, `all`, `if`) wants one True or False for a whole tensor, and torch cannot say. Tensors "
            "have an operator of their own that decides for each place.",
            wrong=lambda *masks: functools.reduce(lambda a, b: a and b, masks),
            hint=1,
            also=(
                lambda *masks: functools.reduce(lambda a, b: a or b, masks),
                lambda *masks: all(masks),
                lambda *masks: masks[0] and masks[1],
            ),
        ),
    ),
    styles=(
        Style("&", reference.combine_masks),
        Style("counting", combine_by_counting),
        Style("reduce", lambda *masks: functools.reduce(torch.logical_and, masks)),
        Style("all of a stack", lambda *masks: torch.stack(torch.broadcast_tensors(*masks)).all(0)),
        Style("product of bools", lambda *masks: math.prod(mask.float() for mask in masks).bool()),
        Style("De Morgan", lambda *masks: ~functools.reduce(torch.logical_or, [~mask for mask in masks])),
    ),
)


# -------------------------------------------------------------------------------- 2.4 to_additive


def additive_with(low=lambda dtype: -INF, where=lambda m: ~m, dtype=lambda wanted: wanted):
    def to_additive(may_attend, dtype_):
        chosen = dtype(dtype_)
        return torch.zeros(may_attend.shape, dtype=chosen, device=may_attend.device).masked_fill(
            where(may_attend), low(chosen)
        )

    return to_additive


def additive_case(name, dtype):
    return Case(name, lambda draw: {"may_attend": draw.mask(2, 5, 7), "dtype": dtype})


TO_ADDITIVE = Exercise(
    name="to_additive",
    number="2.4",
    reference=reference.to_additive,
    returns=("additive (as the mask)",),
    assemble=additive_with,
    differentiable=False,
    cases=(
        additive_case("float64", torch.float64),
        additive_case("float32", FLOAT32),
        additive_case("float16", torch.float16),
    ),
    misconceptions=(
        Misconception(
            "inverted",
            "−∞ stands where a query *may* look, and 0 where it may not.",
            part={"where": lambda m: m},
            hint=1,
        ),
        Misconception(
            "large-negative-number",
            "You used a large negative number for −∞. A row of nothing but such numbers is even again (all weights alike), "
            "and −1e9 does not exist in float16. −∞ itself exists in every floating dtype.",
            part={"low": lambda dtype: max(-1e9, torch.finfo(dtype).min)},
            hint=1,
            also=(
                lambda may_attend, dtype: torch.zeros(may_attend.shape, dtype=dtype).masked_fill(
                    ~may_attend, torch.finfo(dtype).min
                ),
                lambda may_attend, dtype: torch.zeros(may_attend.shape, dtype=dtype).masked_fill(
                    ~may_attend, -1e4
                ),
                lambda may_attend, dtype: (~may_attend).to(dtype) * -1e9,
                lambda may_attend, dtype: (1 - may_attend.to(dtype)) * -1e4,
                additive_with(low=lambda dtype: -1e9),  # torch refuses it in float16
                additive_with(low=lambda dtype: -1e10),
            ),
        ),
        Misconception(
            "a-small-number",
            "The numbers for what is closed are hardly below 0: added to a score they change nothing. (−1e-9 is not −1e9.)",
            part={"low": lambda dtype: -1e-4},
            hint=1,
            also=(
                lambda may_attend, dtype: torch.zeros(may_attend.shape, dtype=dtype).masked_fill(
                    ~may_attend, -1.0
                ),
            ),
        ),
        Misconception(
            "zero-times-infinity",
            "NaN stands where 0 should: 0 · (−∞) is NaN. Choose between 0 and −∞ instead of multiplying.",
            wrong=lambda may_attend, dtype: (~may_attend).to(dtype) * -INF,
            hint=2,
            also=(lambda may_attend, dtype: (1 - may_attend.to(dtype)) * -INF,),
        ),
        Misconception(
            "one-for-zero",
            "What is open gets 1 instead of 0: all open scores grow by 1.",
            wrong=lambda may_attend, dtype: may_attend.to(dtype).masked_fill(~may_attend, -INF),
            hint=2,
        ),
        Misconception(
            "dtype-ignored",
            "The result is always float32, whatever `dtype` says. It should be possible to add it to scores of that type.",
            part={"dtype": lambda wanted: FLOAT32},
            hint=2,
        ),
        Misconception(
            "plus-infinity",
            "+∞ for what is closed: the softmax would look nowhere else.",
            part={"low": lambda dtype: INF},
            hint=1,
        ),
    ),
    styles=(
        Style("masked_fill", additive_with()),
        Style("where", lambda may_attend, dtype: torch.where(may_attend, 0.0, -INF).to(dtype)),
        Style(
            "full and assignment",
            lambda may_attend, dtype: torch.full(
                may_attend.shape, -INF, dtype=dtype, device=may_attend.device
            ).masked_fill_(may_attend, 0),
        ),
        Style("logarithm", lambda may_attend, dtype: may_attend.to(dtype).log()),
        Style(
            "zeros_like",
            lambda may_attend, dtype: torch.zeros_like(may_attend, dtype=dtype).masked_fill_(
                ~may_attend, float("-inf")
            ),
        ),
        Style(
            "float64 inside",
            lambda may_attend, dtype: torch.where(
                may_attend, torch.zeros((), dtype=torch.float64, device=may_attend.device), -INF
            ).to(dtype),
        ),
    ),
)


# ----------------------------------------------------------------------------- 2.5 masked_softmax


def softmax_parts(
    close=lambda s, m: s.masked_fill(~(m | ~m.any(-1, keepdim=True)), -INF),
    softmax=lambda s: torch.softmax(s, -1),
    after=lambda w, m: w.masked_fill(~m.any(-1, keepdim=True), 0.0),
):
    """Close, softmax, mend what came of dead rows."""

    def masked_softmax(scores, may_attend):
        return after(softmax(close(scores, may_attend)), may_attend)

    return masked_softmax


def by_own_exp(scores, may_attend):
    top = scores.masked_fill(~may_attend, -INF).amax(-1, keepdim=True).detach()
    top = top.masked_fill(top == -INF, 0.0)
    e = (scores.masked_fill(~may_attend, 0.0) - top).masked_fill(~may_attend, -INF).exp()
    total = e.sum(-1, keepdim=True)
    return e / total.masked_fill(total == 0, 1.0)


def by_rows(scores, may_attend):
    mask = may_attend.expand_as(scores).reshape(-1, scores.shape[-1])
    rows = []
    for row, open_ in zip(scores.reshape(-1, scores.shape[-1]), mask):
        closed = row.masked_fill(~open_, -INF)
        fair = torch.where(open_.any(), closed, torch.zeros_like(row))
        rows.append(torch.softmax(fair, 0) * open_.any())
    return torch.stack(rows).view_as(scores)


def nan_to_zero(scores, may_attend):
    return scores.masked_fill(~may_attend, -INF).softmax(-1).nan_to_num(0.0)


def scores_and_mask(draw, mask, dtype=torch.float64, scale=1.0):
    return {"scores": draw.normal(2, 5, 7, dtype=dtype, scale=scale), "may_attend": mask(draw)}


def far_below(draw):
    """Below any "large" negative number that is not large enough."""
    return {"scores": (draw.normal(2, 5, 7) - 5e4).to(FLOAT32), "may_attend": draw.mask(2, 1, 7)}


def with_a_dead_row(draw):
    mask = draw.mask(2, 5, 7)
    mask[0, 3], mask[1, 0] = False, False
    return mask


@of_shape(lambda inputs: inputs["scores"].shape)
def rows_and_holes(inputs, value):
    mask = inputs["may_attend"].expand_as(value)
    alive = mask.any(-1)
    if bool(((value.double().sum(-1) - 1).abs() > 1e-3)[alive].any()):
        return "Rows that may look at something should sum to 1; some of yours do not."
    lost = value.masked_fill(mask, 0)[alive].abs()
    if bool((lost > 0).any()):
        return f"Some weight (up to {float(lost.max()):.1g}) goes to keys that are closed; it should be exactly 0."
    if bool((value != 0)[~alive].any()):
        return "A row that may look at nothing should be zeros; yours has weights in it."
    return None


MASKED_SOFTMAX = Exercise(
    name="masked_softmax",
    number="2.5",
    reference=reference.masked_softmax,
    returns=("weights (N, L, S)",),
    assemble=softmax_parts,
    forbidden=("ready-made attention",),
    builds_on=("stable_softmax", "to_additive", "combine_masks"),
    cases=(
        Case("a mask for each sample", lambda draw: scores_and_mask(draw, lambda d: d.mask(2, 5, 7))),
        Case("two rows may look at nothing", lambda draw: scores_and_mask(draw, with_a_dead_row)),
        Case("one mask (L, S) for all", lambda draw: scores_and_mask(draw, lambda d: d.mask(5, 7))),
        Case("scores around −50 000, float32", far_below, gradients=False),
    ),
    misconceptions=(
        Misconception(
            "dead-row-is-nan",
            "A row that may look at nothing is NaN: a softmax over nothing but −∞ is 0/0. It should be zeros.",
            part={"close": lambda s, m: s.masked_fill(~m, -INF), "after": lambda w, m: w},
            hint=2,
        ),
        Misconception(
            "dead-row-mended-too-late",
            "The numbers are right, the gradient is NaN: the row was NaN inside and only replaced afterwards (`nan_to_num`, "
            "`where`). On the way back a NaN times 0 is still NaN. Do not let it arise.",
            wrong=lambda s, m: (s + reference.to_additive(m, s.dtype)).softmax(-1).nan_to_num(0.0),
            hint=3,
            also=(
                softmax_parts(close=lambda s, m: s + torch.zeros_like(s).masked_fill(~m, -INF)),
                lambda s, m: (lambda w: torch.where(w.isnan(), 0.0, w))(
                    (s + reference.to_additive(m, s.dtype)).softmax(-1)
                ),
            ),
        ),
        Misconception(
            "large-negative-number",
            "A row that may look at nothing looks everywhere alike: all its scores became the same number, or its weights were "
            "made even afterwards. It should be zeros.",
            part={"close": lambda s, m: s.masked_fill(~m, -1e9), "after": lambda w, m: w},
            hint=2,
            also=(
                lambda s, m: torch.softmax(s.masked_fill(~m, torch.finfo(s.dtype).min), -1),
                lambda s, m: s.masked_fill(~m, -1e20).softmax(-1),
            ),
        ),
        Misconception(
            "not-low-enough",
            "Some weight goes to keys that are closed: the number that stands for −∞ is not low enough. Next to open scores "
            "that are low themselves, it even takes all of it.",
            part={
                "close": lambda s, m: s.masked_fill(~m, -1e4),
                "after": lambda w, m: w.masked_fill(~m.any(-1, keepdim=True), 0),
            },
            hint=2,
            also=tuple(
                softmax_parts(close=lambda s, m, low=low: s.masked_fill(~m, low), after=after)
                for low in (-1e4, -1e3, -100.0, -50.0, -20.0, -10.0)
                for after in (lambda w, m: w.masked_fill(~m.any(-1, keepdim=True), 0), lambda w, m: w)
            ),
        ),
        Misconception(
            "keepdim-forgotten",
            "`any(-1)` takes the last dimension away: (N, L) no longer lines up with (N, L, S). Keep it, with size 1.",
            part={"close": lambda s, m: s.masked_fill(~(m | ~m.any(-1)), -INF)},
            hint=2,
            also=(
                softmax_parts(after=lambda w, m: w.masked_fill(~m.any(-1), 0.0)),
                softmax_parts(after=lambda w, m: w * m.any(-1)),
            ),
        ),
        Misconception(
            "zero-is-not-closed",
            "What is closed gets weight like the rest: its score was made 0 (scores times mask) or hardly less (−1e-9), and "
            "exp(0) is 1. Only −∞ gives a weight of 0.",
            part={"close": lambda s, m: s * m},
            hint=1,
            also=(
                softmax_parts(close=lambda s, m: s.masked_fill(~m, -1e-9)),
                softmax_parts(close=lambda s, m: s * m, after=lambda w, m: w * m),
                softmax_parts(close=lambda s, m: s * m, after=lambda w, m: w),
            ),
        ),
        Misconception(
            "minus-one-is-not-closed",
            "What is closed still gets weight: its score was made −1, and exp(−1) is about a third. Only −∞ gives 0.",
            part={"close": lambda s, m: s.masked_fill(~m, -1.0)},
            hint=1,
        ),
        Misconception(
            "inverted",
            "The mask works the wrong way round: True means *may* look, and you close what is True.",
            part={"close": lambda s, m: s.masked_fill(m & ~m.all(-1, keepdim=True), -INF)},
            hint=1,
        ),
        Misconception(
            "inverted-and-dead",
            "The mask works the wrong way round: True means *may* look, and you close what is True (and so other rows die).",
            part={"close": lambda s, m: s.masked_fill(m, -INF), "after": lambda w, m: w},
            hint=1,
            also=(softmax_parts(close=lambda s, m: s.masked_fill(m, -1e9), after=lambda w, m: w),),
        ),
        Misconception(
            "after-the-softmax",
            "What remains of a row does not sum to 1: the mask came after the softmax, and what it took away is lost.",
            part={"close": lambda s, m: s, "after": lambda w, m: w * m},
            hint=1,
            also=(lambda s, m: s.softmax(-1).masked_fill(~m, 0.0),),
        ),
        Misconception(
            "mask-ignored",
            "The mask changes nothing.",
            wrong=lambda s, m: s.softmax(-1),
            hint=1,
        ),
        Misconception(
            "zero-scores-closed",
            "Nothing is closed: `scores == 0` was asked, and a score is hardly ever exactly 0. It is the *mask* that says.",
            wrong=lambda s, m: s.masked_fill(s == 0, -INF).softmax(-1) * m.any(-1, keepdim=True),
            hint=1,
            also=(lambda s, m: (s * m.any(-1, keepdim=True)).softmax(-1) * m.any(-1, keepdim=True),),
        ),
        Misconception(
            "softmax-over-queries",
            "Each *column* sums to 1: the softmax ran over the queries.",
            wrong=lambda s, m: s.masked_fill(~m, -INF).softmax(-2).nan_to_num(0.0),
            hint=1,
        ),
        Misconception(
            "dead-row-sums-to-one",
            "A row that may look at nothing is as if there were no mask. It should be zeros.",
            part={"after": lambda w, m: w},
            hint=2,
        ),
        Misconception(
            "epsilon-below",
            "Very nearly right: a small number stands under the fraction bar to avoid 0/0, and every row sums to a little less "
            "than 1.",
            wrong=lambda s, m: (lambda e: e / (e.sum(-1, keepdim=True) + 1e-6))(
                (s - s.amax(-1, keepdim=True)).exp() * m
            ),
            hint=3,
            also=tuple(
                lambda s, m, small=small: (lambda w: w / (w.sum(-1, keepdim=True) + small))(s.softmax(-1) * m)
                for small in (1e-6, 1e-8, 1e-9)
            ),
        ),
        Misconception(
            "exp-without-a-shift",
            "Large scores break it: exp of a score of −50 000 is 0 and of 50 000 infinite. Take the largest score of each row "
            "away first, as in lesson 01.",
            wrong=lambda s, m: (lambda e: e / e.sum(-1, keepdim=True).clamp_min(1e-30))(s.exp() * m),
            hint=3,
            also=(
                lambda s, m: (
                    lambda e: e / e.sum(-1, keepdim=True).masked_fill(e.sum(-1, keepdim=True) == 0, 1.0)
                )(s.exp() * m),
            ),
        ),
        Misconception(
            "writes-into-scores",
            "The weights are right, but the scores are not what they were: `masked_fill_` writes into the caller's tensor.",
            wrong=lambda s, m: (
                s.masked_fill_(~(m | ~m.any(-1, keepdim=True)), -INF)
                .softmax(-1)
                .masked_fill(~m.any(-1, keepdim=True), 0.0)
            ),
            hint=3,
        ),
    ),
    properties=(Property("rows and holes", rows_and_holes, hint=2),),
    styles=(
        Style("in parts", softmax_parts()),
        # masked_fill's own gradient is exactly 0 where it filled: the NaN cannot pass it
        Style("masked_fill, then nan_to_num", nan_to_zero),
        Style("own exp", by_own_exp),
        Style("row by row", by_rows),
        Style(
            "times alive",
            lambda s, m: (
                torch.softmax(s.masked_fill(~(m | ~m.any(-1, keepdim=True)), -INF), -1)
                * m.any(-1, keepdim=True)
            ),
        ),
        Style(
            "where",
            lambda s, m: (
                lambda alive: torch.where(alive, torch.where(m | ~alive, s, -INF).softmax(-1), 0.0)
            )(m.any(-1, keepdim=True)),
        ),
        Style(
            "additive",
            lambda s, m: (
                (s + reference.to_additive(m | ~m.any(-1, keepdim=True), s.dtype))
                .softmax(-1)
                .masked_fill(~m.any(-1, keepdim=True), 0)
            ),
        ),
        Style(
            "mask again after",
            lambda s, m: torch.softmax(s.masked_fill(~(m | ~m.any(-1, keepdim=True)), -INF), -1) * m,
        ),
        Style("float64 inside", lambda s, m: softmax_parts()(s.double(), m).to(s.dtype)),
    ),
)


# -------------------------------------------------------------------------------- 2.6 future_leak


def leak_with(absolute=lambda j: j.abs(), gather=lambda j: j.sum(dim=(1, 3)), turn=lambda leak: leak):
    def future_leak(fn, x):
        return turn(gather(absolute(torch.autograd.functional.jacobian(fn, x))))

    return future_leak


def leak_by_rows(fn, x):
    x = x.detach().clone().requires_grad_()
    y = fn(x)
    rows = []
    for i in range(y.shape[0]):
        row = torch.zeros(x.shape[0], dtype=x.dtype)
        for f in range(y.shape[1]):
            row = row + torch.autograd.grad(y[i, f], x, retain_graph=True)[0].abs().sum(-1)
        rows.append(row)
    return torch.stack(rows)


def leak_of_sums(fn, x):
    """Adds an output's features before the gradient: they can cancel."""
    x = x.detach().clone().requires_grad_()
    y = fn(x)
    return torch.stack(
        [torch.autograd.grad(y[i].sum(), x, retain_graph=True)[0].abs().sum(-1) for i in range(y.shape[0])]
    )


def leak_of_the_whole_sum(fn, x):
    x = x.detach().clone().requires_grad_()
    fn(x).sum().backward()
    return x.grad


def leak_by_trying(fn, x):
    """Moves every number a little, both ways."""
    L, E = x.shape
    leak, step = torch.zeros(L, L, dtype=x.dtype), 1e-6
    for j in range(L):
        for e in range(E):
            move = torch.zeros_like(x)
            move[j, e] = step
            leak[:, j] += ((fn(x + move) - fn(x - move)) / (2 * step)).abs().sum(-1)
    return leak


def leak_case(name, fn):
    # a gradient by trying is right to about 1e-9 for these; 1e-6 lets it pass
    return Case(name, lambda draw: {"fn": Named(fn), "x": draw.normal(5, 3)}, tolerance=1e-6)


FUTURE_LEAK = Exercise(
    name="future_leak",
    number="2.6",
    reference=reference.future_leak,
    returns=("leak (L, L)",),
    assemble=leak_with,
    differentiable=False,
    device_safe=False,  # it needs real gradients
    cases=(
        leak_case("a running sum, which never looks ahead", "cumulative_sum"),
        leak_case("a function that peeks one ahead", "peek_one_ahead"),
        leak_case("attention without a mask", "plain_self_attention"),
    ),
    misconceptions=(
        Misconception(
            "transposed",
            "Rows and columns have changed places: [i, j] should say how output i depends on input j. As it is, a leak of "
            "the future looks like memory of the past.",
            part={"turn": lambda leak: leak.T},
            hint=2,
        ),
        Misconception(
            "outputs-added-first",
            "An output's features were added up before the gradient was taken: where they pull in opposite directions they "
            "cancel, and a leak can hide. Take the gradient of each feature by itself, absolute values, then add.",
            wrong=leak_of_sums,
            hint=2,
            also=(lambda fn, x: torch.autograd.functional.jacobian(fn, x).sum(1).abs().sum(-1),),
        ),
        Misconception(
            "no-absolute-value",
            "Positive and negative gradients cancel in your sums, so a leak can hide. Absolute values first.",
            part={"absolute": lambda j: j},
            hint=2,
        ),
        Misconception(
            "absolute-value-too-late",
            "Absolute values come after the sum: by then positive and negative gradients have cancelled.",
            part={"absolute": lambda j: j, "turn": lambda leak: leak.abs()},
            hint=2,
        ),
        Misconception(
            "a-verdict",
            "You give only yes or no. Give the numbers; what counts as a leak is for the reader.",
            wrong=lambda fn, x: leak_with()(fn, x) > 0,
            hint=3,
        ),
        Misconception(
            "largest-for-sum",
            "The largest gradient of each pair is given; the sum over all features is wanted.",
            part={"gather": lambda j: j.amax(dim=(1, 3))},
            hint=3,
        ),
        Misconception(
            "mean-for-sum",
            "The mean over the features is given; the sum is wanted.",
            part={"gather": lambda j: j.mean(dim=(1, 3))},
            hint=3,
        ),
        Misconception(
            "squared",
            "Squares were added; absolute values are wanted.",
            part={"absolute": lambda j: j.pow(2)},
            hint=3,
        ),
        Misconception(
            "upper-half-only",
            "Only what lies above the diagonal is left. Give the whole map; where to look is for the reader.",
            part={"turn": lambda leak: leak.triu(1)},
            hint=1,
        ),
        Misconception(
            "of-everything-at-once",
            "All rows are alike: the gradient of the *whole* output was taken. Each output i needs its own.",
            wrong=lambda fn, x: (
                torch.autograd.functional.jacobian(fn, x).abs().sum(dim=(0, 1, 3)).expand(x.shape[0], -1)
            ),
            hint=1,
        ),
        Misconception(
            "gradient-of-the-sum",
            "Your shape is that of x (or of its tokens): `.sum().backward()` gives one gradient, that of the sum of *all* "
            "outputs. Each output needs a row of its own.",
            wrong=leak_of_the_whole_sum,
            hint=1,
            also=(
                lambda fn, x: leak_of_the_whole_sum(fn, x).abs(),
                lambda fn, x: leak_of_the_whole_sum(fn, x).sum(-1),
                lambda fn, x: leak_of_the_whole_sum(fn, x).abs().sum(-1),
            ),
        ),
        Misconception(
            "feature-for-token",
            "Your map is over features, (E, E): the sums ran over the tokens. Tokens stay, features are summed.",
            wrong=lambda fn, x: torch.autograd.functional.jacobian(fn, x).abs().sum(dim=(0, 2)),
            hint=2,
        ),
    ),
    styles=(
        Style("jacobian", leak_with()),
        Style("row by row", leak_by_rows),
        Style("by trying", leak_by_trying),
        Style("einsum", leak_with(gather=lambda j: torch.einsum("ifje->ij", j))),
        Style("two sums", leak_with(gather=lambda j: j.sum(-1).sum(1))),
        Style("norm", leak_with(gather=lambda j: j.transpose(1, 2).flatten(2).norm(p=1, dim=-1))),
    ),
)


# ----------------------------------------------------------------------------------------- questions

WHY_INFINITY = Question(
    "why_infinity",
    right="c",
    why={
        "a": "exp(0) is 1: a score of 0 gets a weight like any other.",
        "b": "−1e9 does it as long as one score of the row is open; in a row with nothing open it makes all weights equal, and "
        "float16 cannot hold it.",
        "c": "Yes: exp(−∞) is exactly 0, in every dtype, whatever the other scores are.",
        "d": "Then what is left of the row no longer sums to 1.",
    },
)
OFFSET_OF = Question(
    "offset_of",
    right="b",
    why={
        "a": "Then the new token would see only the first key.",
        "b": "Yes: ten keys came before, so query 0 stands at place 10 and sees keys 0 to 10.",
        "c": "11 would let it see one key ahead of itself, if there were one.",
        "d": "Lower-right alignment gives the same here; but it is the offset that says why.",
    },
)
PADDING_WHERE = Question(
    "padding_where",
    right="a",
    why={
        "a": "Yes: nobody should *look at* padding. What padding itself looks at does not matter: its outputs are thrown away.",
        "b": "That closes what padding looks at, and leaves it open for everybody else to look at.",
        "c": "Closing queries, too, makes rows that may look at nothing, for no gain.",
        "d": "The values of padding are numbers like any other: they would be mixed in.",
    },
)

LESSON = Lesson(
    folder="02_masks",
    title="Masks",
    exercises=(CAUSAL_MASK, PADDING_MASK, COMBINE_MASKS, TO_ADDITIVE, MASKED_SOFTMAX, FUTURE_LEAK),
    questions=(WHY_INFINITY, OFFSET_OF, PADDING_WHERE),
)
