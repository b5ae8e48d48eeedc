"""Lesson 08, declared: the softmax in one pass, merging, flash attention forwards and backwards, score_mods."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Property, Question, Style

from ._properties import of_shape

FLOAT32 = torch.float32
INF = float("inf")


def finite(x):
    """x, with −∞ replaced by 0: for subtracting a maximum that may not exist."""
    return x.masked_fill(x == -INF, 0.0)


# ----------------------------------------------------------------------------- 8.1 online_softmax


def grown(m, top):
    return torch.maximum(m, top)


def shrunk(l, old, new):
    return l * (old - new).exp()


def relative(block, new, top):
    return (block - new.unsqueeze(-1)).exp().sum(-1)


def online_with(
    first=lambda top: torch.full_like(top, -INF),
    highest=grown,
    old_sum=shrunk,
    new_sum=relative,
    safe=finite,
    give=lambda m, l: (m, l),
):
    """One pass from its parts."""

    def online_softmax(blocks):
        m = l = None
        for block in blocks:
            top = block.amax(-1)
            if m is None:
                m, l = first(top), torch.zeros_like(top)
            new = highest(m, top)
            l = old_sum(l, m, safe(new)) + new_sum(block, safe(new), top)
            m = new
        return give(m, l)

    return online_softmax


def online_keeps_old_sum():
    """Written as a difference of maxima that is never used."""

    def online_softmax(blocks):
        m = l = None
        for block in blocks:
            top = block.amax(-1)
            m = top if m is None else torch.maximum(m, top)
            part = (block - finite(m).unsqueeze(-1)).exp().sum(-1)
            l = part if l is None else l + part
        return m, l

    return online_softmax


def online_from_one():
    def online_softmax(blocks):
        m = l = None
        for block in blocks:
            top = block.amax(-1)
            if m is None:
                m, l = top, torch.ones_like(top)
            new = torch.maximum(m, top)
            l = shrunk(l, finite(m), finite(new)) + relative(block, finite(new), top)
            m = new
        return m, l

    return online_softmax


def all_blocks_joined(blocks):
    """One long row again, and nothing done about rows of −∞."""
    x = torch.cat(list(blocks), -1)
    m = x.amax(-1)
    return m, (x - m.unsqueeze(-1)).exp().sum(-1)


def online_mended_late(blocks):
    m, l = online_with(safe=lambda x: x)(blocks)
    return m, torch.nan_to_num(l, nan=0.0)


def all_at_once_wrong(blocks):
    """Sums without subtracting anything."""
    m, l = None, 0.0
    for block in blocks:
        top = block.amax(-1)
        m = top if m is None else torch.maximum(m, top)
        l = l + block.exp().sum(-1)
    return m, l


def online_number_by_number(blocks):
    m = l = None
    for block in blocks:
        for x in block.unbind(-1):
            if m is None:
                m, l = torch.full_like(x, -INF), torch.zeros_like(x)
            new = torch.maximum(m, x)
            shift = torch.where(new == -INF, torch.zeros_like(new), new)
            l = l * torch.exp(m - shift) + torch.exp(x - shift)
            m = new
    return m, l


def online_by_logsumexp(blocks):
    m = lse = None
    for block in blocks:
        top, here = block.amax(-1), block.logsumexp(-1)
        m = top if m is None else torch.maximum(m, top)
        lse = here if lse is None else torch.logaddexp(lse, here)
    return m, torch.where(m == -INF, torch.zeros_like(m), (lse - finite(m)).exp())


def online_by_merging_pairs(blocks):
    pairs = []
    for block in blocks:
        top = block.max(dim=-1).values
        pairs.append((top, (block - finite(top)[..., None]).exp().sum(dim=-1)))
    m, l = pairs[0]
    for top, part in pairs[1:]:
        new = torch.maximum(m, top)
        l = l * torch.exp(m - finite(new)) + part * torch.exp(top - finite(new))
        m = new
    return m, l


def online_with_nan_to_num(blocks):
    running_max, running_sum = None, None
    for block in blocks:
        block_max = block.amax(dim=-1, keepdim=True)
        if running_max is None:
            running_max = torch.full_like(block_max, float("-inf"))
            running_sum = torch.zeros_like(block_max)
        new_max = torch.maximum(running_max, block_max)
        scale = torch.nan_to_num(torch.exp(running_max - new_max), nan=0.0)
        running_sum = running_sum * scale
        running_sum = running_sum + torch.nan_to_num(torch.exp(block - new_max), nan=0.0).sum(
            -1, keepdim=True
        )
        running_max = new_max
    return running_max.squeeze(-1), running_sum.squeeze(-1)


def online_starting_with_the_first(blocks):
    blocks = iter(blocks)
    block = next(blocks)
    m = block.amax(-1)
    l = torch.exp(block - finite(m).unsqueeze(-1)).sum(-1)
    for block in blocks:
        new = torch.stack([m, block.amax(-1)]).amax(0)
        l = l.mul(torch.exp(m - finite(new))).add(torch.exp(block - finite(new).unsqueeze(-1)).sum(-1))
        m = new
    return m, l


def draw_blocks(draw, lengths, N=3, scale=3.0, dtype=torch.float64, shift=0.0):
    return {"blocks": [draw.normal(N, n, dtype=dtype, scale=scale) + shift for n in lengths]}


def with_closed(draw):
    """Row 0: nothing may be seen; row 1: not in the first block; row 2: not in the second."""
    blocks = draw_blocks(draw, (2, 4, 3))["blocks"]
    for block in blocks:
        block[0] = -INF
    blocks[0][1] = -INF
    blocks[1][2] = -INF
    return {"blocks": blocks}


def rising(draw):
    blocks = draw_blocks(draw, (4, 3, 5), N=2)["blocks"]
    return {"blocks": [block + 10.0 * i for i, block in enumerate(blocks)]}


def falling(draw):
    blocks = draw_blocks(draw, (2, 5, 3), N=4)["blocks"]
    return {"blocks": [block - 10.0 * i for i, block in enumerate(blocks)]}


def largest(inputs):
    return torch.cat(inputs["blocks"], -1).amax(-1)


a_number_per_row = of_shape(
    *[lambda inputs: torch.broadcast_shapes(*(b.shape[:-1] for b in inputs["blocks"]))] * 2, infinite=True
)


@a_number_per_row
def at_least_one(inputs, value):
    m, l = value
    if torch.equal(m, largest(inputs)) and bool(((m > -INF) & (l < 1 - 1e-4)).any()):
        return (
            "The maxima are right, and a sum of yours is below 1. The largest number itself gives exp(0) = 1, so relative to "
            "the *largest* the sum is at least 1."
        )
    return None


@a_number_per_row
def largest_of_all(inputs, value):
    top = largest(inputs)
    if torch.equal(value[1], top):  # the two have changed places: that is said elsewhere
        return None
    if not torch.equal(value[0], top):
        return "Your maximum is not the largest number of all blocks together."
    return None


ONLINE_SOFTMAX = Exercise(
    name="online_softmax",
    number="8.1",
    reference=reference.online_softmax,
    returns=("maximum (N,)", "sum (N,)"),
    assemble=online_with,
    differentiable=False,
    forbidden=("ready-made softmax",),
    cases=(
        Case("blocks of 4, 1 and 5 numbers", lambda draw: draw_blocks(draw, (4, 1, 5))),
        Case("every block larger than those before", rising),
        Case("the largest first", falling),
        Case("one block", lambda draw: draw_blocks(draw, (6,), N=2)),
        Case("large numbers: around 1000", lambda draw: draw_blocks(draw, (3, 2), N=4, shift=1000.0)),
        Case("negative numbers: around −1000", lambda draw: draw_blocks(draw, (2, 3), N=5, shift=-1000.0)),
        Case("rows, and blocks, of −∞", with_closed),
        Case(
            "float32, two dimensions in front",
            lambda draw: {"blocks": [draw.normal(2, 3, n, dtype=FLOAT32) for n in (4, 5)]},
        ),
    ),
    misconceptions=(
        Misconception(
            "not-rescaled",
            "What was summed so far is relative to the *old* maximum. When a larger number comes, that sum has to shrink. By how "
            "much does exp(x − maximum) change when the maximum does?",
            part={"old_sum": lambda l, old, new: l},
            hint=2,
            also=(online_keeps_old_sum(),),
        ),
        Misconception(
            "rescaled-the-wrong-way",
            "The old sum grows where it should shrink: when the maximum grows, the factor has to be below 1.",
            part={"old_sum": lambda l, old, new: l * (new - old).exp()},
            hint=2,
            also=(online_with(old_sum=lambda l, old, new: l / (old - new).exp()),),
        ),
        Misconception(
            "maximum-of-the-last-block",
            "Your maximum is the last block's. It is the largest so far: of the old one and the block's.",
            part={"highest": lambda m, top: top},
            hint=1,
        ),
        Misconception(
            "maximum-of-the-first-block",
            "Your maximum is the first block's and never changes: a later, larger number overflows.",
            part={"highest": lambda m, top: torch.where(m == -INF, top, m)},
            hint=1,
        ),
        Misconception(
            "block-relative-to-itself",
            "The new block's exponentials are relative to its *own* maximum, the old sum to the common one. Both must be "
            "relative to the same number.",
            part={"new_sum": lambda block, new, top: (block - finite(top).unsqueeze(-1)).exp().sum(-1)},
            hint=2,
            also=(
                online_with(
                    new_sum=lambda block, new, top: (block - top.unsqueeze(-1)).exp().sum(-1),
                    safe=lambda x: x,
                ),
            ),
        ),
        Misconception(
            "nothing-subtracted",
            "The exponentials are not relative to anything: exp(1000) is ∞, exp(−1000) is 0. Subtract the maximum first.",
            wrong=all_at_once_wrong,
            hint=1,
        ),
        Misconception(
            "starts-at-zero",
            "Your maximum starts at 0, so rows of negative numbers keep 0 as their maximum. Start at −∞.",
            part={"first": torch.zeros_like},
            hint=1,
        ),
        Misconception(
            "sum-starts-at-one",
            "There is 1 too much in your sum: it starts at 1. Start at 0.",
            wrong=online_from_one(),
            hint=1,
        ),
        Misconception(
            "nan-where-nothing-is-open",
            "Where all numbers so far are −∞ you compute −∞ − (−∞): NaN. Subtract 0 there instead of a maximum that does not "
            "exist.",
            part={"safe": lambda x: x},
            hint=3,
            also=(all_blocks_joined,),
        ),
        Misconception(
            "nan-replaced-at-the-end",
            "NaN is only mended at the end. A block of −∞ at the start has made a NaN of the whole row by then: mend it where it "
            "arises.",
            wrong=online_mended_late,
            hint=3,
        ),
        Misconception(
            "only-the-last-block",
            "Your sum is the last block's alone: the old sum is not added.",
            part={"old_sum": lambda l, old, new: torch.zeros_like(l)},
            hint=1,
        ),
        Misconception(
            "logarithm",
            "You give the logarithm of the sum. The sum itself is wanted, relative to the maximum.",
            part={"give": lambda m, l: (m, l.log())},
            hint=1,
        ),
        Misconception(
            "logsumexp",
            "Your second number is maximum + log(sum). The sum itself is wanted, relative to the maximum.",
            part={"give": lambda m, l: (m, m + l.log())},
            hint=1,
        ),
        Misconception(
            "sum-first",
            "Two results are there, in the wrong order: the maximum comes first, then the sum.",
            part={"give": lambda m, l: (l, m)},
            hint=1,
        ),
        Misconception(
            "over-the-wrong-dimension",
            "The maxima and sums run over the rows. A block is a piece of every *row*: the last dimension.",
            wrong=lambda blocks: online_with()([block.mT for block in blocks]),
            hint=1,
        ),
    ),
    properties=(
        Property("maximum", largest_of_all, hint=1),
        Property("at-least-one", at_least_one, hint=2),
    ),
    styles=(
        Style("number by number", online_number_by_number),
        Style("logaddexp", online_by_logsumexp),
        Style("pairs, merged", online_by_merging_pairs),
        Style("nan_to_num at each step", online_with_nan_to_num),
        Style("starts with the first block", online_starting_with_the_first),
    ),
)


# ---------------------------------------------------------------------------- 8.2 logsumexp_merge


def lse_of_both(a, b):
    return torch.logaddexp(a, b)


def shares_of(a, b, lse):
    safe = finite(lse)
    return (a - safe).exp(), (b - safe).exp()


def merge_with(
    both=lse_of_both,
    shares=shares_of,
    mix=lambda x, y, a, b: x * a.unsqueeze(-1) + y * b.unsqueeze(-1),
    give=lambda out, lse: (out, lse),
):
    """The merge from its parts."""

    def logsumexp_merge(out_a, lse_a, out_b, lse_b):
        lse = both(lse_a, lse_b)
        a, b = shares(lse_a, lse_b, lse_of_both(lse_a, lse_b))
        return give(mix(out_a, out_b, a, b), lse)

    return logsumexp_merge


def merge_unnormalised(out_a, lse_a, out_b, lse_b):
    """Right on paper; overflows where a logarithm is large."""
    a, b = lse_a.exp(), lse_b.exp()
    total = a + b
    out = (out_a * a.unsqueeze(-1) + out_b * b.unsqueeze(-1)) / total.unsqueeze(-1)
    return out, total.log()


def merge_by_sigmoid(out_a, lse_a, out_b, lse_b):
    share = torch.sigmoid(lse_a - lse_b)
    both_closed = (lse_a == -INF) & (lse_b == -INF)
    share = share.masked_fill(both_closed, 0.0).unsqueeze(-1)
    return torch.lerp(out_b, out_a, share), torch.logaddexp(lse_a, lse_b)


def merge_by_maximum(out_a, lse_a, out_b, lse_b):
    m = torch.maximum(lse_a, lse_b)
    m = torch.where(m == -INF, 0.0, m)
    a, b = torch.exp(lse_a - m), torch.exp(lse_b - m)
    total = a + b
    out = (a[..., None] * out_a + b[..., None] * out_b) / torch.where(total == 0, 1.0, total)[..., None]
    return out, m + torch.log(total)


def merge_by_stack(out_a, lse_a, out_b, lse_b):
    both = torch.stack([lse_a, lse_b])
    lse = both.logsumexp(0)
    shares = torch.exp(both - torch.where(lse.isinf(), torch.zeros_like(lse), lse))
    return (shares.unsqueeze(-1) * torch.stack([out_a, out_b])).sum(0), lse


def merge_by_softmax(out_a, lse_a, out_b, lse_b):
    both = torch.stack([lse_a, lse_b], -1)
    shares = torch.nan_to_num(torch.softmax(both, -1), nan=0.0)
    out = torch.einsum("...k,...kd->...d", shares, torch.stack([out_a, out_b], -2))
    return out, torch.logsumexp(both, -1)


def merge_in_place_of_copies(out_a, lse_a, out_b, lse_b):
    high, low = torch.maximum(lse_a, lse_b), torch.minimum(lse_a, lse_b)
    gap = torch.nan_to_num(low - high, nan=0.0, neginf=-INF)
    lse = high + torch.log1p(gap.exp())
    out = out_a.mul((lse_a - finite(lse)).exp()[..., None])
    out += out_b * (lse_b - finite(lse)).exp()[..., None]
    return out, lse


def draw_halves(draw, N=2, H=3, L=5, Dv=4, dtype=torch.float64, shift=0.0, closed=()):
    inputs = {}
    for name in "ab":
        lse = draw.normal(N, H, L, dtype=dtype, scale=2.0) + shift
        out = draw.normal(N, H, L, Dv, dtype=dtype)
        for which, row in closed:
            if which == name:
                lse[..., row] = -INF
                out[..., row, :] = 0.0
        inputs |= {f"out_{name}": out, f"lse_{name}": lse}
    return inputs


an_output_and_lse = of_shape(
    lambda inputs: inputs["out_a"].shape, lambda inputs: inputs["lse_a"].shape, infinite=True
)


@an_output_and_lse
def between_the_two(inputs, value):
    low = torch.minimum(inputs["out_a"], inputs["out_b"]) - 1e-6
    high = torch.maximum(inputs["out_a"], inputs["out_b"]) + 1e-6
    if bool(((value[0] < low) | (value[0] > high)).any()):
        return "Your output lies outside the two it was merged from: the two shares should sum to 1."
    return None


@an_output_and_lse
def not_below_either(inputs, value):
    if bool((value[1] < torch.maximum(inputs["lse_a"], inputs["lse_b"]) - 1e-6).any()):
        return (
            "Your lse is smaller than one of the two: over more keys the sum of exponentials can only grow."
        )
    return None


LOGSUMEXP_MERGE = Exercise(
    name="logsumexp_merge",
    number="8.2",
    reference=reference.logsumexp_merge,
    returns=("output (N, H, L, Dv)", "lse (N, H, L)"),
    assemble=merge_with,
    builds_on=("online_softmax",),
    cases=(
        Case("two halves", draw_halves),
        Case("large: around 1000", lambda draw: draw_halves(draw, N=3, H=2, L=4, Dv=6, shift=1000.0)),
        Case("small: around −1000", lambda draw: draw_halves(draw, N=1, H=2, L=3, Dv=5, shift=-1000.0)),
        Case("float32", lambda draw: draw_halves(draw, N=1, H=4, L=2, Dv=3, dtype=FLOAT32)),
        Case(
            "rows that may see nothing in one half",
            lambda draw: draw_halves(draw, closed=(("a", 1), ("b", 3))),
            gradients=False,
        ),
        Case(
            "a row that may see nothing at all",
            lambda draw: draw_halves(draw, closed=(("a", 2), ("b", 2), ("b", 0))),
            gradients=False,
        ),
    ),
    misconceptions=(
        Misconception(
            "plain-average",
            "The two outputs are averaged evenly. The half with more weight to give counts more: how much it has, its lse "
            "says, beside the common one.",
            part={"shares": lambda a, b, lse: (torch.full_like(a, 0.5), torch.full_like(b, 0.5))},
            hint=1,
        ),
        Misconception(
            "added",
            "The two outputs are added. Each is a whole average already; their shares have to sum to 1.",
            part={"shares": lambda a, b, lse: (torch.ones_like(a), torch.ones_like(b))},
            hint=1,
        ),
        Misconception(
            "shares-exchanged",
            "Each half gets the other's share.",
            part={"shares": lambda a, b, lse: shares_of(b, a, lse)},
            hint=2,
        ),
        Misconception(
            "weighted-by-the-logarithms",
            "The halves are weighted by their lse itself. lse is a logarithm: the sums are exp(lse).",
            part={"shares": lambda a, b, lse: (a / (a + b), b / (a + b))},
            hint=2,
        ),
        Misconception(
            "overflow",
            "exp(lse) is taken as it is: exp(1000) is ∞, exp(−1000) is 0, and their ratio NaN. Subtract the common lse inside "
            "the exponential.",
            wrong=merge_unnormalised,
            hint=2,
        ),
        Misconception(
            "shares-do-not-sum-to-one",
            "Your shares are relative to the larger lse and are not divided by their sum: together they are more than 1.",
            part={"shares": lambda a, b, lse: shares_of(a, b, torch.maximum(a, b))},
            hint=2,
        ),
        Misconception(
            "lse-added",
            "The two lse are added: that multiplies the sums. It is the sums of exponentials that are added, and an lse is the "
            "logarithm of one.",
            part={"both": lambda a, b: a + b},
            hint=1,
        ),
        Misconception(
            "lse-maximum",
            "Your lse is the larger of the two. The smaller one's keys count, too.",
            part={"both": torch.maximum},
            hint=1,
        ),
        Misconception(
            "lse-averaged",
            "Your lse is an average. Over more keys the sum of exponentials grows, and with it its logarithm.",
            part={"both": lambda a, b: (a + b) / 2},
            hint=1,
            also=(merge_with(both=lambda a, b: torch.logaddexp(a, b) - math.log(2)),),
        ),
        Misconception(
            "sum-instead-of-its-logarithm",
            "Your second result is the sum of exponentials. Its logarithm is wanted.",
            part={"both": lambda a, b: torch.logaddexp(a, b).exp()},
            hint=1,
        ),
        Misconception(
            "nan-where-nothing-is-open",
            "A row that may see nothing in either half gives NaN: −∞ − (−∞). What could be subtracted there, so that both shares "
            "become 0?",
            part={"shares": lambda a, b, lse: ((a - lse).exp(), (b - lse).exp())},
            hint=3,
        ),
        Misconception(
            "only-the-first-lse",
            "Your lse is the first half's. It belongs to both halves together.",
            part={"both": lambda a, b: a},
            hint=1,
        ),
    ),
    properties=(
        Property("between", between_the_two, hint=2),
        Property("lse-grows", not_below_either, hint=1),
    ),
    styles=(
        Style("sigmoid and lerp", merge_by_sigmoid),
        Style("relative to the larger one", merge_by_maximum),
        Style("stacked, logsumexp", merge_by_stack),
        Style("softmax of the two", merge_by_softmax),
        Style("log1p", merge_in_place_of_copies),
    ),
)


# ------------------------------------------------------------------------------ 8.3 flash_forward


def starts(length, block_size):
    return range(0, length, block_size)


def whole_blocks(length, block_size):
    return range(0, length // block_size * block_size, block_size)


def tile_of(may_attend, i, j, block_size):
    """The part of a mask that belongs to one tile; dimensions of size 1 stay."""
    rows = slice(i, i + block_size) if may_attend.shape[-2] > 1 else slice(None)
    columns = slice(j, j + block_size) if may_attend.shape[-1] > 1 else slice(None)
    return may_attend[..., rows, columns]


def plainly_divided(acc, l):
    return acc / l.unsqueeze(-1)


def divided_at_the_end(acc, l):
    return acc / l.masked_fill(l == 0, 1.0).unsqueeze(-1)


def flash_with(
    rows=starts,
    columns=starts,
    scale=lambda D: 1 / math.sqrt(D),
    tile=tile_of,
    closed=lambda tile: ~tile,
    low=-INF,
    highest=grown,
    shrink=lambda m, new: (m - finite(new)).exp(),
    shrink_acc=lambda shrink: shrink,
    shrink_sum=lambda shrink: shrink,
    safe=finite,
    finish=divided_at_the_end,
    lse=lambda m, l: m + l.log(),
    size=lambda block_size, length: block_size,
):
    """Attention in tiles from its parts."""

    def flash_forward(q, k, v, block_size, may_attend=None):
        L, S, D = q.shape[-2], k.shape[-2], q.shape[-1]
        B, C = size(block_size, L), size(block_size, S)
        outputs, sums = [], []
        for i in rows(L, B):
            part = q[..., i : i + B, :] * scale(D)
            m = torch.full(part.shape[:-1], -INF, dtype=q.dtype, device=q.device)
            l = torch.zeros_like(m)
            acc = part.new_zeros(*part.shape[:-1], v.shape[-1])
            for j in columns(S, C):
                scores = part @ k[..., j : j + C, :].mT
                if may_attend is not None:
                    scores = scores.masked_fill(closed(tile(may_attend, i, j, B)), low)
                new = highest(m, scores.amax(-1))
                p = (scores - safe(new).unsqueeze(-1)).exp()
                less = shrink(m, new)
                l = l * shrink_sum(less) + p.sum(-1)
                acc = acc * shrink_acc(less).unsqueeze(-1) + p @ v[..., j : j + C, :]
                m = new
            outputs.append(finish(acc, l))
            sums.append(lse(m, l))
        return torch.cat(outputs, -2), torch.cat(sums, -1)

    return flash_forward


def flash_divided_in_every_tile(q, k, v, block_size, may_attend=None):
    """acc is divided by l after every tile, and shrunk as if it were not."""
    outputs, sums = [], []
    for i in range(0, q.shape[-2], block_size):
        part = q[..., i : i + block_size, :] / math.sqrt(q.shape[-1])
        m = torch.full(part.shape[:-1], -INF, dtype=q.dtype, device=q.device)
        l = torch.zeros_like(m)
        acc = part.new_zeros(*part.shape[:-1], v.shape[-1])
        for j in range(0, k.shape[-2], block_size):
            scores = part @ k[..., j : j + block_size, :].mT
            if may_attend is not None:
                scores = scores.masked_fill(~tile_of(may_attend, i, j, block_size), -INF)
            new = torch.maximum(m, scores.amax(-1))
            p = (scores - finite(new).unsqueeze(-1)).exp()
            less = (m - finite(new)).exp()
            l = l * less + p.sum(-1)
            acc = divided_at_the_end(acc * less.unsqueeze(-1) + p @ v[..., j : j + block_size, :], l)
            m = new
        outputs.append(acc)
        sums.append(m + l.log())
    return torch.cat(outputs, -2), torch.cat(sums, -1)


def flash_tiles_averaged(q, k, v, block_size, may_attend=None):
    """Attention over each block of keys by itself, the results averaged."""
    parts, sums = [], []
    for j in range(0, k.shape[-2], block_size):
        mask = None if may_attend is None else tile_of(may_attend, 0, j, block_size)
        if may_attend is not None:
            columns = slice(j, j + block_size) if may_attend.shape[-1] > 1 else slice(None)
            mask = may_attend[..., columns]
        out, lse = direct(q, k[..., j : j + block_size, :], v[..., j : j + block_size, :], mask)
        parts.append(out)
        sums.append(lse)
    return torch.stack(parts).mean(0), torch.stack(sums).logsumexp(0)


def direct(q, k, v, may_attend=None):
    """The whole matrix at once."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, -INF)
    lse = scores.logsumexp(-1)
    return (scores - finite(lse).unsqueeze(-1)).exp() @ v, lse


def flash_of_the_whole(q, k, v, block_size, may_attend=None):
    return direct(q, k, v, may_attend)


def flash_of_all_rows_in_key_blocks_kept(q, k, v, block_size, may_attend=None):
    """In blocks, and all of them kept until the end."""
    scores = torch.cat(
        [q @ k[..., j : j + block_size, :].mT for j in range(0, k.shape[-2], block_size)], -1
    ) / math.sqrt(q.shape[-1])
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, -INF)
    lse = scores.logsumexp(-1)
    return (scores - finite(lse).unsqueeze(-1)).exp() @ v, lse


def flash_with_padded_keys(q, k, v, block_size, may_attend=None):
    """The last block is filled up with zeros, and they count."""
    more = -k.shape[-2] % block_size
    k, v = F.pad(k, (0, 0, 0, more)), F.pad(v, (0, 0, 0, more))
    if may_attend is not None and may_attend.shape[-1] > 1:
        may_attend = F.pad(may_attend, (0, more), value=True)
    return flash_with()(q, k, v, block_size, may_attend)


def flash_with_padded_tiles(q, k, v, block_size, may_attend=None):
    """Keys, values and mask are filled up with zeros, so that the filling is closed where there is a mask."""
    more = -k.shape[-2] % block_size
    k, v = F.pad(k, (0, 0, 0, more)), F.pad(v, (0, 0, 0, more))
    if may_attend is not None and may_attend.shape[-1] > 1:
        may_attend = F.pad(may_attend, (0, more), value=False)
    return flash_with()(q, k, v, block_size, may_attend)


def first_corner(may_attend, i, j, block_size):
    return tile_of(may_attend, 0, 0, block_size)


def first_columns(may_attend, i, j, block_size):
    return tile_of(may_attend, i, 0, block_size)


def first_rows(may_attend, i, j, block_size):
    return tile_of(may_attend, 0, j, block_size)


def sliced_whatever_the_size(may_attend, i, j, block_size):
    return may_attend[..., i : i + block_size, j : j + block_size]


# correct styles


def flash_by_key_blocks(q, k, v, block_size, may_attend=None):
    """All queries at once, keys in blocks."""
    q = q / math.sqrt(q.shape[-1])
    m = torch.full((*q.shape[:-1], 1), -INF, dtype=q.dtype, device=q.device)
    l, acc = torch.zeros_like(m), None
    for j in range(0, k.shape[2], block_size):
        scores = torch.einsum("nhld,nhsd->nhls", q, k[:, :, j : j + block_size])
        if may_attend is not None:
            columns = slice(j, j + block_size) if may_attend.shape[-1] > 1 else slice(None)
            scores = scores.masked_fill(may_attend[..., columns].logical_not(), -INF)
        new = torch.maximum(m, scores.amax(-1, keepdim=True))
        shift = torch.where(new == -INF, torch.zeros_like(new), new)
        p, less = torch.exp(scores - shift), torch.exp(m - shift)
        part = torch.einsum("nhls,nhsd->nhld", p, v[:, :, j : j + block_size])
        l = l * less + p.sum(-1, keepdim=True)
        acc = part if acc is None else acc * less + part
        m = new
    return torch.where(l > 0, acc / l.clamp_min(1e-300 if q.dtype == torch.float64 else 1e-30), 0.0), (
        m + l.log()
    ).squeeze(-1)


def flash_by_merging(q, k, v, block_size, may_attend=None):
    """Each tile is attention of its own; the results are merged."""
    rows = []
    for i in range(0, q.shape[-2], block_size):
        out = lse = None
        for j in range(0, k.shape[-2], block_size):
            mask = None if may_attend is None else tile_of(may_attend, i, j, block_size)
            part = direct(
                q[..., i : i + block_size, :],
                k[..., j : j + block_size, :],
                v[..., j : j + block_size, :],
                mask,
            )
            out, lse = part if out is None else reference.logsumexp_merge(out, lse, *part)
        rows.append((out, lse))
    return torch.cat([out for out, _ in rows], dim=2), torch.cat([lse for _, lse in rows], dim=2)


def flash_into_tables(q, k, v, block_size, may_attend=None):
    """Results are written into tables made beforehand; blocks from split."""
    N, H, L, D = q.shape
    S = k.shape[2]
    output, lse = q.new_zeros(N, H, L, v.shape[3]), q.new_zeros(N, H, L)
    mask = (
        None
        if may_attend is None
        else may_attend.expand(-1, -1, L, S)
        if may_attend.dim() == 4
        else may_attend.expand(L, S)
    )
    for rows in torch.arange(L, device=q.device).split(block_size):
        m, l, acc = -INF, 0.0, 0.0
        for columns in torch.arange(S, device=q.device).split(block_size):
            scores = q[:, :, rows] @ k[:, :, columns].transpose(2, 3) * D**-0.5
            if mask is not None:
                scores = scores.masked_fill(~mask[..., rows[:, None], columns], -INF)
            top = scores.max(dim=-1, keepdim=True).values
            new = top if isinstance(m, float) else torch.maximum(m, top)
            shift = torch.nan_to_num(new, neginf=0.0)
            p = (scores - shift).exp()
            less = torch.exp(m - shift)
            l, acc, m = l * less + p.sum(-1, keepdim=True), acc * less + p @ v[:, :, columns], new
        output[:, :, rows] = acc / torch.where(l == 0, torch.ones_like(l), l)
        lse[:, :, rows] = (m + l.log()).squeeze(-1)
    return output, lse


def flash_with_chunks(q, k, v, block_size, may_attend=None):
    """split() for the blocks, a running offset for the mask, addcmul for the update."""
    outputs, sums, i = [], [], 0
    for part in (q * q.shape[-1] ** -0.5).split(block_size, dim=-2):
        m = part.new_full(part.shape[:-1], -INF)
        l, acc, j = torch.zeros_like(m), part.new_zeros(*part.shape[:-1], v.shape[-1]), 0
        for keys, values in zip(k.split(block_size, -2), v.split(block_size, -2)):
            scores = torch.matmul(part, keys.transpose(-1, -2))
            if may_attend is not None:
                open_ = tile_of(may_attend, i, j, block_size)
                scores = torch.where(open_, scores, torch.full_like(scores, -INF))
            new = torch.maximum(m, scores.amax(dim=-1))
            shift = torch.where(torch.isinf(new), 0.0, new)
            p, less = torch.exp(scores - shift[..., None]), torch.exp(m - shift)
            l = torch.addcmul(p.sum(dim=-1), l, less)
            acc = torch.addcmul(p @ values, acc, less[..., None])
            m, j = new, j + block_size
        outputs.append(torch.nan_to_num(acc / l[..., None]))
        sums.append(torch.log(l) + m)
        i += block_size
    return torch.cat(outputs, dim=-2), torch.cat(sums, dim=-1)


def draw_tiles(draw, N=2, H=3, L=7, S=10, D=4, Dv=6, block_size=4, dtype=torch.float64, mask=None, scale=1.0):
    inputs = {
        "q": draw.normal(N, H, L, D, dtype=dtype, scale=scale),
        "k": draw.normal(N, H, S, D, dtype=dtype, scale=scale),
        "v": draw.normal(N, H, S, Dv, dtype=dtype),
        "block_size": block_size,
    }
    if mask is not None:
        inputs["may_attend"] = mask(draw)
    return inputs


def causal_mask_of(L, S):
    return lambda draw: torch.arange(S) <= torch.arange(L).unsqueeze(1)


def padded_keys(draw):
    return (torch.arange(10) < torch.tensor([10, 4]).unsqueeze(1))[:, None, None]  # (2, 1, 1, 10)


def with_dead_row(draw):
    mask = draw.mask(2, 3, 7, 10)
    mask[1, 2, 4] = False
    mask[0, 1, 5, :6] = False  # its first two blocks are closed, the later ones are not
    return mask


def no_matrix(inputs):
    """No tensor larger than one block beside all of the longer side."""
    q, k, v, block = inputs["q"], inputs["k"], inputs["v"], inputs["block_size"]
    longest = max(q.shape[-2], k.shape[-2]) + block
    return q.shape[0] * q.shape[1] * longest * max(q.shape[-1], v.shape[-1], block)


an_output_and_an_lse = of_shape(
    lambda inputs: (*inputs["q"].shape[:-1], inputs["v"].shape[-1]),
    lambda inputs: inputs["q"].shape[:-1],
    infinite=True,
)


@an_output_and_an_lse
def like_any_average(inputs, value):
    v, output = inputs["v"], value[0]
    low, high = v.amin(-2, keepdim=True) - 1e-6, v.amax(-2, keepdim=True) + 1e-6
    alive = output.abs().sum(-1, keepdim=True) > 0
    if bool((((output < low) | (output > high)) & alive).any()):
        return (
            "Your output lies outside the values it is an average of: the weights of a row should sum to 1."
        )
    return None


@an_output_and_an_lse
def lse_is_enough(inputs, value):
    """Speaks only where the output is right: then scores, mask and sums are, too."""
    output, lse = direct(inputs["q"], inputs["k"], inputs["v"], inputs.get("may_attend"))
    if torch.allclose(value[0], output, atol=1e-3) and not torch.allclose(value[1], lse, atol=1e-3):
        return (
            "Your output is right, your lse is not. It is one number for each query: the logarithm of what all its "
            "exponentials sum to, not relative to anything."
        )
    return None


LONG = {"N": 1, "H": 1, "L": 4096, "S": 4096, "block_size": 512}  # the whole matrix has 128 MiB, a tile 2 MiB
FLASH_FORWARD = Exercise(
    name="flash_forward",
    large=Case("L = S = 4096", lambda draw: draw_tiles(draw, **LONG), gradients=False),
    number="8.3",
    reference=reference.flash_forward,
    returns=("output (N, H, L, Dv)", "lse (N, H, L)"),
    assemble=flash_with,
    forbidden=("ready-made attention",),
    builds_on=("online_softmax", "logsumexp_merge"),
    cases=(
        Case("blocks of 4, L = 7, S = 10", draw_tiles, gradients=False),
        Case(
            "one block is enough",
            lambda draw: draw_tiles(draw, N=1, L=3, S=5, block_size=8),
            on_gpu=False,
            gradients=False,
        ),
        Case(
            "blocks that divide L and S",
            lambda draw: draw_tiles(draw, N=1, H=2, L=4, S=6, block_size=2),
            on_gpu=False,
            gradients=False,
        ),
        Case(
            "large scores",
            lambda draw: draw_tiles(draw, N=1, H=2, L=5, S=9, block_size=4, scale=6.0),
            on_gpu=False,
            gradients=False,
        ),
        Case(
            "a mask, and blocks that divide L and S",
            lambda draw: draw_tiles(
                draw, N=1, H=2, L=4, S=6, block_size=2, mask=lambda d: d.mask(1, 1, 4, 6)
            ),
            on_gpu=False,
            gradients=False,
        ),
        Case(
            "causal", lambda draw: draw_tiles(draw, mask=causal_mask_of(7, 10)), gradients=False, on_gpu=False
        ),
        Case("padding (N, 1, 1, S)", lambda draw: draw_tiles(draw, mask=padded_keys), gradients=False),
        Case(
            "a query that may see nothing, and closed blocks",
            lambda draw: draw_tiles(draw, mask=with_dead_row),
            gradients=False,
        ),
        Case(
            "longer: L = 40, S = 50, blocks of 16",
            lambda draw: draw_tiles(draw, N=1, H=2, L=40, S=50, D=4, Dv=3, block_size=16),
            on_gpu=False,
            gradients=False,
            largest=no_matrix,
        ),
        Case(
            "float32",
            lambda draw: draw_tiles(draw, N=1, H=2, L=5, S=6, block_size=4, dtype=FLOAT32),
            gradients=False,
        ),
    ),
    misconceptions=(
        Misconception(
            "whole-matrix",
            "Right numbers, and the whole (L, S) matrix was made for them. Here at most one tile of scores may exist at a "
            "time.",
            wrong=flash_of_the_whole,
            hint=1,
            also=(flash_of_all_rows_in_key_blocks_kept,),
        ),
        Misconception(
            "nothing-rescaled",
            "With several blocks, what was summed so far is relative to the old maximum. When the maximum grows, the sum *and* "
            "the output so far have to shrink.",
            part={"shrink": lambda m, new: torch.ones_like(m)},
            hint=2,
        ),
        Misconception(
            "output-not-rescaled",
            "The sum shrinks when the maximum grows, the output so far does not. It was summed relative to the same old "
            "maximum.",
            part={"shrink_acc": torch.ones_like},
            hint=2,
        ),
        Misconception(
            "sum-not-rescaled",
            "The output so far shrinks when the maximum grows, the sum does not. Both are relative to the old maximum.",
            part={"shrink_sum": torch.ones_like},
            hint=2,
        ),
        Misconception(
            "divided-too-early",
            "The output is divided by the sum in every block, and the next block adds to it as if it were not. Divide once, "
            "after the last block.",
            wrong=flash_divided_in_every_tile,
            hint=2,
        ),
        Misconception(
            "blocks-averaged",
            "Every block of keys is attended to by itself, and the results are averaged evenly. A block with larger scores "
            "counts more.",
            wrong=flash_tiles_averaged,
            hint=2,
        ),
        Misconception(
            "never-divided",
            "The output is not divided by the sum of its weights.",
            part={"finish": lambda acc, l: acc},
            hint=2,
        ),
        Misconception(
            "last-keys-lost",
            "Where the block size does not divide S, the last keys are never looked at. The last block may be smaller.",
            part={"columns": lambda S, B: range(0, S - S % B if S >= B else S, B)},
            hint=1,
            also=(
                flash_with(columns=whole_blocks),
                flash_with(columns=whole_blocks, finish=plainly_divided),
                flash_with(columns=whole_blocks, lse=lambda m, l: finite(m) + l.log()),
            ),
        ),
        Misconception(
            "last-queries-lost",
            "Where the block size does not divide L (or S), the last rows are missing. The last block may be smaller.",
            wrong=flash_with(rows=whole_blocks),
            hint=1,
            also=(
                flash_with(rows=whole_blocks, columns=whole_blocks),
                flash_with(rows=lambda L, B: range(0, L - L % B if L >= B else L, B)),
                flash_with(
                    rows=lambda L, B: range(0, L - L % B if L >= B else L, B),
                    columns=lambda L, B: range(0, L - L % B if L >= B else L, B),
                ),
            ),
        ),
        Misconception(
            "last-block-filled-up",
            "The last block is filled up with zeros, and the zeros are looked at: a score of 0 has the weight exp(0) = 1.",
            wrong=flash_with_padded_keys,
            hint=1,
            also=(flash_with_padded_tiles,),
        ),
        Misconception(
            "number-of-blocks",
            "`block_size` is taken as the *number* of blocks. It is how many rows a block has.",
            wrong=flash_with(size=lambda block, length: -(-length // block)),
            hint=1,
        ),
        Misconception(
            "no-scale",
            "The scores are not divided by √D.",
            part={"scale": lambda D: 1.0},
            hint=3,
        ),
        Misconception(
            "divided-by-d",
            "The scores are divided by D where √D is meant (or by √D twice: once in `q`, once in the scores).",
            part={"scale": lambda D: 1 / D},
            hint=3,
        ),
        Misconception(
            "maximum-of-the-last-block",
            "The maximum is the last block's, not the largest so far.",
            part={"highest": lambda m, top: top},
            hint=2,
        ),
        Misconception(
            "nan-from-a-closed-block",
            "A block in which a query may see nothing gives NaN: −∞ − (−∞). A maximum of −∞ is none that can be subtracted.",
            part={"safe": lambda new: new, "shrink": lambda m, new: (m - new).exp()},
            hint=3,
        ),
        Misconception(
            "dead-row-nan",
            "A query that may see nothing gets 0 / 0. Its output should be zeros: what may be divided by where the sum is 0?",
            part={"finish": lambda acc, l: acc / l.unsqueeze(-1)},
            hint=3,
        ),
        Misconception(
            "large-negative-number",
            "A query that may see nothing gets the average of all values: its scores were filled with one large negative "
            "number, and equal scores share evenly. Closed is −∞; then its sum is 0, and its output zeros.",
            part={"low": -1e9},
            hint=3,
            also=tuple(
                flash_with(low=low, safe=safe, finish=finish)
                for low in (
                    -1e4,
                    -1e5,
                    -1e6,
                    -1e9,
                    -1e20,
                    *(torch.finfo(d).min for d in (FLOAT32, torch.float64)),
                )
                for safe, finish in ((finite, divided_at_the_end), (lambda new: new, plainly_divided))
            ),
        ),
        Misconception(
            "mask-ignored",
            "The mask changes nothing.",
            part={"closed": lambda tile: torch.zeros_like(tile)},
            hint=3,
        ),
        Misconception(
            "mask-inverted",
            "The mask is read the wrong way round. True means: this query may look.",
            part={"closed": lambda tile: tile},
            hint=3,
        ),
        Misconception(
            "same-mask-for-every-tile",
            "Every tile gets the mask's first corner. Tile (i, j) has its own rows and columns.",
            part={"tile": first_corner},
            hint=3,
        ),
        Misconception(
            "mask-of-the-first-keys",
            "The mask's rows move on with the queries, its columns do not move on with the keys.",
            part={"tile": first_columns},
            hint=3,
        ),
        Misconception(
            "mask-of-the-first-queries",
            "The mask's columns move on with the keys, its rows do not move on with the queries.",
            part={"tile": first_rows},
            hint=3,
        ),
        Misconception(
            "mask-that-broadcasts",
            "A mask (N, 1, 1, S) has one row for all queries. Rows 4 to 6 of it do not exist: leave a dimension of size 1 "
            "whole, or expand the mask first.",
            part={"tile": sliced_whatever_the_size},
            hint=3,
        ),
        Misconception(
            "sum-instead-of-lse",
            "Your second result is the sum. It is relative to the maximum, and worth nothing without it: lse says both in one, "
            "as a logarithm.",
            part={"lse": lambda m, l: l},
            hint=3,
        ),
        Misconception(
            "log-without-maximum",
            "Your lse lacks the maximum: the sum is relative to it, so its logarithm is, too.",
            part={"lse": lambda m, l: l.log()},
            hint=3,
        ),
        Misconception(
            "maximum-as-lse",
            "Your lse is the maximum alone; the other keys count as well.",
            part={"lse": lambda m, l: m},
            hint=3,
        ),
        Misconception(
            "output-alone",
            "Only the output is returned. The backward pass needs lse, too.",
            wrong=lambda q, k, v, block_size, may_attend=None: flash_with()(q, k, v, block_size, may_attend)[
                0
            ],
            hint=1,
        ),
    ),
    properties=(
        Property("average", like_any_average, hint=2),
        Property("lse", lse_is_enough, hint=3),
    ),
    styles=(
        Style("all queries, keys in blocks", flash_by_key_blocks),
        Style("tiles merged", flash_by_merging),
        Style("into tables", flash_into_tables),
        Style("split and addcmul", flash_with_chunks),
        Style("numbers of the course", lambda *a, **b: flash_with()(*a, **b)),
    ),
)


# ----------------------------------------------------------------------------- 8.4 flash_backward


def weights_again(scores, lse):
    return (scores - finite(lse).unsqueeze(-1)).exp()


def backward_with(
    weights=weights_again,
    delta=lambda grad, output, p, grad_p: (grad * output).sum(-1),
    of_scores=lambda p, grad_p, delta: p * (grad_p - delta.unsqueeze(-1)),
    scale=lambda D: D**-0.5,
    scale_back=lambda D: D**-0.5,
    closed=lambda tile: ~tile,
    tile=tile_of,
    add=lambda table, part, new: table[..., part, :].add_(new),
    add_rows=lambda table, part, new: table[..., part, :].add_(new),
    columns=starts,
    give=lambda q, k, v: (q, k, v),
    of_values=lambda p, grad, output: p.mT @ grad,
):
    """The gradients in tiles from their parts."""

    def flash_backward(q, k, v, output, lse, grad_output, block_size, may_attend=None):
        D = q.shape[-1]
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        for i in range(0, q.shape[-2], block_size):
            rows = slice(i, i + block_size)
            for j in columns(k.shape[-2], block_size):
                part = slice(j, j + block_size)
                scores = q[..., rows, :] @ k[..., part, :].mT * scale(D)
                if may_attend is not None:
                    scores = scores.masked_fill(closed(tile(may_attend, i, j, block_size)), -INF)
                p = weights(scores, lse[..., rows])
                grad = grad_output[..., rows, :]
                add(grad_v, part, of_values(p, grad, output[..., rows, :]))
                grad_p = grad @ v[..., part, :].mT
                d = delta(grad, output[..., rows, :], p, grad_p)
                grad_scores = of_scores(p, grad_p, d) * scale_back(D)
                add_rows(grad_q, rows, grad_scores @ k[..., part, :])
                add(grad_k, part, grad_scores.mT @ q[..., rows, :])
        return give(grad_q, grad_k, grad_v)

    return flash_backward


def put(table, part, new):
    table[..., part, :] = new


def backward_by_autograd(q, k, v, output, lse, grad_output, block_size, may_attend=None):
    """The whole matrix again, and autograd."""
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        out, _ = direct(*leaves, may_attend)
        return torch.autograd.grad(out, leaves, grad_output)


def backward_of_the_whole(q, k, v, output, lse, grad_output, block_size, may_attend=None):
    return backward_with()(q, k, v, output, lse, grad_output, max(q.shape[-2], k.shape[-2]), may_attend)


# correct styles


def backward_columns_outside(q, k, v, output, lse, grad_output, block_size, may_attend=None):
    """Keys in the outer loop, as the paper has it; lists instead of tables for k and v."""
    scale = 1 / math.sqrt(q.shape[-1])
    delta = torch.einsum("nhld,nhld->nhl", grad_output, output)
    grad_q, grads_k, grads_v = torch.zeros_like(q), [], []
    for j in range(0, k.shape[2], block_size):
        keys, values = k[:, :, j : j + block_size], v[:, :, j : j + block_size]
        grad_k, grad_v = 0, 0
        for i in range(0, q.shape[2], block_size):
            rows = slice(i, i + block_size)
            scores = q[:, :, rows] @ keys.transpose(2, 3) * scale
            p = torch.exp(scores - torch.nan_to_num(lse[:, :, rows, None], neginf=0.0))
            if may_attend is not None:
                p = p * tile_of(may_attend, i, j, block_size)
            grad_v = grad_v + p.transpose(2, 3) @ grad_output[:, :, rows]
            grad_scores = p * (grad_output[:, :, rows] @ values.transpose(2, 3) - delta[:, :, rows, None])
            grad_q[:, :, rows] += grad_scores @ keys * scale
            grad_k = grad_k + grad_scores.transpose(2, 3) @ q[:, :, rows] * scale
        grads_k.append(grad_k)
        grads_v.append(grad_v)
    return grad_q, torch.cat(grads_k, 2), torch.cat(grads_v, 2)


def backward_by_einsum(q, k, v, output, lse, grad_output, block_size, may_attend=None):
    D = q.shape[-1]
    grads = [x.new_zeros(x.shape) for x in (q, k, v)]
    delta = (grad_output * output).sum(dim=-1, keepdim=True)
    for i in range(0, q.shape[-2], block_size):
        for j in range(0, k.shape[-2], block_size):
            a, b = slice(i, i + block_size), slice(j, j + block_size)
            s = torch.einsum("nhid,nhjd->nhij", q[..., a, :], k[..., b, :]) / D**0.5
            if may_attend is not None:
                s = torch.where(tile_of(may_attend, i, j, block_size), s, torch.full_like(s, -INF))
            p = torch.exp(s - finite(lse[..., a]).unsqueeze(-1))
            g = torch.einsum("nhie,nhje->nhij", grad_output[..., a, :], v[..., b, :])
            ds = p * (g - delta[..., a, :]) / D**0.5
            grads[0][..., a, :] += torch.einsum("nhij,nhjd->nhid", ds, k[..., b, :])
            grads[1][..., b, :] += torch.einsum("nhij,nhid->nhjd", ds, q[..., a, :])
            grads[2][..., b, :] += torch.einsum("nhij,nhie->nhje", p, grad_output[..., a, :])
    return tuple(grads)


def backward_in_tiles_of_two(q, k, v, output, lse, grad_output, block_size, may_attend=None):
    """Smaller tiles than asked for."""
    return backward_with()(q, k, v, output, lse, grad_output, max(block_size // 2, 1), may_attend)


def backward_by_autograd_in_tiles(q, k, v, output, lse, grad_output, block_size, may_attend=None):
    """autograd for the scores of one row of tiles at a time is not needed: the formula by vjp of each tile."""
    scale = q.shape[-1] ** -0.5
    delta = (grad_output * output).sum(-1)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for i in range(0, q.shape[-2], block_size):
        rows = slice(i, i + block_size)
        for j in range(0, k.shape[-2], block_size):
            part = slice(j, j + block_size)
            with torch.enable_grad():
                a, b = (x.detach().requires_grad_() for x in (q[..., rows, :], k[..., part, :]))
                scores = a @ b.mT * scale
            p = (scores.detach() - finite(lse[..., rows]).unsqueeze(-1)).exp()
            if may_attend is not None:
                p = p.masked_fill(~tile_of(may_attend, i, j, block_size), 0.0)
            grad_scores = p * (
                grad_output[..., rows, :] @ v[..., part, :].mT - delta[..., rows].unsqueeze(-1)
            )
            for table, where, new in zip(
                (grad_q, grad_k), (rows, part), torch.autograd.grad(scores, (a, b), grad_scores)
            ):
                table[..., where, :] += new
            grad_v[..., part, :] += p.mT @ grad_output[..., rows, :]
    return grad_q, grad_k, grad_v


def by_tiles(q, k, v, mask):
    return reference.flash_forward(q, k, v, LONG["block_size"], mask)


def draw_backward(draw, how=direct, **sizes):
    inputs = draw_tiles(draw, **sizes)
    block, mask = inputs.pop("block_size"), inputs.pop("may_attend", None)
    output, lse = how(inputs["q"], inputs["k"], inputs["v"], mask)
    grad = draw.normal(*output.shape, dtype=output.dtype)
    inputs |= {"output": output, "lse": lse, "grad_output": grad, "block_size": block}
    return inputs if mask is None else {**inputs, "may_attend": mask}


gradients_of_qkv = of_shape(*(lambda inputs, name=name: inputs[name].shape for name in "qkv"))
WHAT_IS_WRONG = {  # whether the gradients of q, k and v are right → where to look
    (
        False,
        False,
        True,
    ): "grad_v is right, so the weights of every tile are. grad_q and grad_k are not: look at what "
    "stands between the weights and them, the gradient of the weights, delta, the gradient of the scores, the scale.",
    (
        True,
        True,
        False,
    ): "grad_q and grad_k are right, so the weights are, too. Only grad_v is not: what is mixed into "
    "it, and is it added up over the blocks of queries?",
    (
        False,
        True,
        True,
    ): "grad_k and grad_v are right, grad_q is not: what is multiplied with the gradient of the "
    "scores, and is it added up over the blocks of keys?",
    (
        True,
        False,
        True,
    ): "grad_q and grad_v are right, grad_k is not: what is multiplied with the gradient of the "
    "scores, and is it added up over the blocks of queries?",
    (
        True,
        False,
        False,
    ): "grad_q is right, grad_k and grad_v are not: both are added up over the blocks of queries.",
    (
        False,
        False,
        False,
    ): "None of the three is right. grad_v needs nothing but the weights, so begin with those: are "
    "they made with the scale, the mask and lse?",
}


@gradients_of_qkv
def which_of_the_three(inputs, value):
    with torch.enable_grad():
        leaves = [inputs[name].detach().clone().requires_grad_() for name in "qkv"]
        output, _ = direct(*leaves, inputs.get("may_attend"))
        right = torch.autograd.grad(output, leaves, inputs["grad_output"])
    return WHAT_IS_WRONG.get(tuple(torch.allclose(a, b, atol=1e-4) for a, b in zip(value, right)))


@gradients_of_qkv
def only_their_product_counts(inputs, value):
    """Adding a number to a row of scores changes nothing: q · grad_q summed up is k · grad_k summed up."""
    one = (inputs["q"] * value[0]).sum()
    other = (inputs["k"] * value[1]).sum()
    if bool((one - other).abs() > 1e-3 * (1 + one.abs())):
        return (
            "grad_q and grad_k do not belong to the same scores: Σ q · grad_q should equal Σ k · grad_k, since q and k "
            "enter only by their product."
        )
    return None


FLASH_BACKWARD = Exercise(
    name="flash_backward",
    number="8.4",
    reference=reference.flash_backward,
    large=Case("L = S = 4096", lambda draw: draw_backward(draw, how=by_tiles, **LONG)),
    returns=("grad_q (N, H, L, D)", "grad_k (N, H, S, D)", "grad_v (N, H, S, Dv)"),
    assemble=backward_with,
    differentiable=False,
    forbidden=("ready-made attention",),
    builds_on=("flash_forward", "online_softmax", "logsumexp_merge"),
    cases=(
        Case("blocks of 4, L = 7, S = 10", draw_backward),
        Case(
            "one block is enough", lambda draw: draw_backward(draw, N=1, L=3, S=5, block_size=8), on_gpu=False
        ),
        Case(
            "blocks that divide L and S", lambda draw: draw_backward(draw, N=1, H=2, L=4, S=6, block_size=2)
        ),
        Case(
            "a mask, and blocks that divide L and S",
            lambda draw: draw_backward(
                draw, N=1, H=2, L=4, S=6, block_size=2, mask=lambda d: d.mask(1, 1, 4, 6)
            ),
            on_gpu=False,
        ),
        Case("causal", lambda draw: draw_backward(draw, mask=causal_mask_of(7, 10)), on_gpu=False),
        Case("padding (N, 1, 1, S)", lambda draw: draw_backward(draw, mask=padded_keys)),
        Case("a query that may see nothing", lambda draw: draw_backward(draw, mask=with_dead_row)),
        Case(
            "longer: L = 40, S = 50, blocks of 16",
            lambda draw: draw_backward(draw, N=1, H=2, L=40, S=50, D=4, Dv=3, block_size=16),
            on_gpu=False,
            largest=no_matrix,
        ),
        Case(
            "float32",
            lambda draw: draw_backward(draw, N=1, H=2, L=5, S=6, block_size=4, dtype=FLOAT32),
            on_gpu=False,
        ),
    ),
    misconceptions=(
        Misconception(
            "whole-matrix",
            "Right numbers, and the whole (L, S) matrix was made again for them. Compute it in tiles again, one at a time.",
            wrong=backward_by_autograd,
            hint=1,
            also=(backward_of_the_whole,),
        ),
        Misconception(
            "softmax-as-if-alone",
            "The gradient of the softmax lacks its second term, so grad_q and grad_k are off. From each row of "
            "the weights' gradient its weighted mean, delta, is taken away.",
            part={"delta": lambda grad, output, p, grad_p: torch.zeros_like(grad[..., 0])},
            hint=2,
        ),
        Misconception(
            "mean-over-one-tile",
            "What you subtract is a mean over this tile's keys alone. It runs over all keys, and can be known before the "
            "loops begin.",
            part={"delta": lambda grad, output, p, grad_p: (p * grad_p).sum(-1)},
            hint=2,
        ),
        Misconception(
            "delta-without-output",
            "The number to subtract is the sum of grad_output *times output*, for every query.",
            part={"delta": lambda grad, output, p, grad_p: grad.sum(-1)},
            hint=2,
        ),
        Misconception(
            "weights-left-out",
            "The gradient of the scores lacks the weights: a key with hardly any weight has hardly any gradient.",
            part={"of_scores": lambda p, grad_p, delta: grad_p - delta.unsqueeze(-1)},
            hint=2,
        ),
        Misconception(
            "subtracted-outside-the-product",
            "Brackets are missing in the gradient of the scores: the weights multiply the difference, delta included.",
            part={"of_scores": lambda p, grad_p, delta: p * grad_p - delta.unsqueeze(-1)},
            hint=2,
        ),
        Misconception(
            "values-from-the-output",
            "For grad_v the weights are multiplied with the output. What goes back to the "
            "values is the output's *gradient*.",
            part={"of_values": lambda p, grad, output: p.mT @ output},
            hint=2,
        ),
        Misconception(
            "softmax-of-the-tile",
            "The weights of a tile are a softmax over that tile: too large. Relative to *lse* they are the whole row's.",
            part={"weights": lambda scores, lse: (scores - finite(scores.logsumexp(-1, keepdim=True))).exp()},
            hint=1,
        ),
        Misconception(
            "exponentials-alone",
            "Not even grad_v comes out: the weights are bare exponentials, not divided by their sum. lse is the logarithm of "
            "that sum.",
            part={"weights": lambda scores, lse: scores.exp()},
            hint=1,
            also=(
                backward_with(
                    weights=lambda scores, lse: (scores - finite(scores.amax(-1, keepdim=True))).exp()
                ),
            ),
        ),
        Misconception(
            "no-scale-again",
            "The scores are computed again without 1/√D: other weights than forwards.",
            part={"scale": lambda D: 1.0},
            hint=1,
        ),
        Misconception(
            "no-scale-back",
            "The gradients of q and k are √D times too large: the factor by which the scores were divided comes along on the way "
            "back.",
            part={"scale_back": lambda D: 1.0},
            hint=3,
        ),
        Misconception(
            "scaled-back-twice",
            "The gradients of q and k are divided by √D twice.",
            part={"scale_back": lambda D: 1 / D},
            hint=3,
        ),
        Misconception(
            "not-added-up",
            "Only the last tile's share is left in the gradients of k and v: every block of queries adds its own.",
            part={"add": put},
            hint=3,
        ),
        Misconception(
            "query-gradients-not-added-up",
            "Only the last tile's share is left in the gradient of q: every block of keys adds its own.",
            part={"add_rows": put},
            hint=3,
        ),
        Misconception(
            "last-keys-lost",
            "Where the block size does not divide S, the last keys get no gradient. The last block may be smaller.",
            part={"columns": lambda S, B: range(0, S - S % B if S >= B else S, B)},
            hint=1,
        ),
        Misconception(
            "mask-ignored",
            "Closed keys get gradients: the mask changes nothing.",
            part={"closed": torch.zeros_like},
            hint=3,
        ),
        Misconception(
            "mask-inverted",
            "The mask is read the wrong way round. True means: this query may look.",
            part={"closed": lambda tile: tile},
            hint=3,
        ),
        Misconception(
            "same-mask-for-every-tile",
            "Every tile gets the mask's first corner. Tile (i, j) has its own rows and columns.",
            part={"tile": first_corner},
            hint=3,
        ),
        Misconception(
            "mask-that-broadcasts",
            "A mask (N, 1, 1, S) has one row for all queries. Leave a dimension of size 1 whole, or expand the mask first.",
            part={"tile": sliced_whatever_the_size},
            hint=3,
        ),
        Misconception(
            "dead-row-nan",
            "A query that may see nothing gives NaN: its lse is −∞, and −∞ − (−∞) is no number. Such an lse cannot be "
            "subtracted.",
            part={"weights": lambda scores, lse: (scores - lse.unsqueeze(-1)).exp()},
            hint=3,
        ),
        Misconception(
            "another-order",
            "The gradients come back in another order. They belong to q, k and v, in this order.",
            part={"give": lambda q, k, v: (v, k, q)},
            hint=1,
            also=(
                backward_with(give=lambda q, k, v: (k, v, q)),
                backward_with(give=lambda q, k, v: (k, q, v)),
            ),
        ),
    ),
    properties=(
        Property("which-of-the-three", which_of_the_three, hint=2),
        Property("only-their-product", only_their_product_counts, hint=3),
    ),
    styles=(
        Style("keys in the outer loop", backward_columns_outside),
        Style("einsum", backward_by_einsum),
        Style("smaller tiles", backward_in_tiles_of_two),
        Style("autograd inside each tile", backward_by_autograd_in_tiles),
        Style("delta from the weights, all tiles first", lambda *a: backward_in_two_passes(*a)),
    ),
)


def backward_in_two_passes(q, k, v, output, lse, grad_output, block_size, may_attend=None):
    """First the means, tile by tile, from the weights; then the gradients."""
    scale = q.shape[-1] ** -0.5
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

    def tile_weights(i, j):
        a, b = slice(i, i + block_size), slice(j, j + block_size)
        s = q[..., a, :] @ k[..., b, :].mT * scale
        if may_attend is not None:
            s = s.masked_fill(~tile_of(may_attend, i, j, block_size), -INF)
        return a, b, (s - finite(lse[..., a]).unsqueeze(-1)).exp()

    for i in range(0, q.shape[-2], block_size):
        mean = 0
        for j in range(0, k.shape[-2], block_size):
            a, b, p = tile_weights(i, j)
            mean = mean + (p * (grad_output[..., a, :] @ v[..., b, :].mT)).sum(-1, keepdim=True)
        for j in range(0, k.shape[-2], block_size):
            a, b, p = tile_weights(i, j)
            ds = p * (grad_output[..., a, :] @ v[..., b, :].mT - mean) * scale
            grad_q[..., a, :] += ds @ k[..., b, :]
            grad_k[..., b, :] += ds.mT @ q[..., a, :]
            grad_v[..., b, :] += p.mT @ grad_output[..., a, :]
    return grad_q, grad_k, grad_v


# -------------------------------------------------------------------------- 8.5–8.7 score_mods


def places(draw, N=2, H=4, L=5, S=7, dtype=torch.float64, **more):
    """All scores at once, and beside them, broadcastable, which sample, head, query and key each belongs to."""
    return {
        "score": draw.normal(N, H, L, S, dtype=dtype),
        "n": torch.arange(N).view(N, 1, 1, 1),
        "h": torch.arange(H).view(H, 1, 1),
        "i": torch.arange(L).view(L, 1),
        "j": torch.arange(S),
        **more,
    }


def one_score(draw, i, j, h=1, **more):
    """A single score and whole numbers as tensors without dimensions: as FlexAttention calls it."""
    number = {name: torch.tensor(value) for name, value in (("n", 0), ("h", h), ("i", i), ("j", j))}
    return {"score": draw.normal(1)[0], **number, **more}


def open_where(rule):
    """A score_mod that closes everything else."""

    def score_mod(score, n, h, i, j, *more):
        return torch.where(rule(i, j, *more), score, -INF)

    return score_mod


PYTHON_IF = (
    "`if`, `and` and `or` need one True or False, and here `i` and `j` stand for many queries and keys at once. torch has a "
    "function that decides for each of them, and an operator that joins two conditions place by place."
)
MASK_RETURNED = "You give back True and False. The *score* to use is wanted: the old one where the key is open, −∞ where it is closed."
ZERO_SCORE = (
    "Closed keys get the score 0, and exp(0) = 1: they are still looked at. A closed key's score is −∞."
)
LARGE_NUMBER = "Closed keys get a large negative number. −∞ is exact, in every dtype, and cannot be beaten."
ADDED_MASK = "Closed keys get −∞, and the open ones lost their scores: 0 instead. Keep the score where the key is open."


def score_mod_mistakes(rule, hint=1):
    """Those that every closing score_mod knows, for a rule of (i, j, …)."""
    mod = open_where(rule)

    def as_mask(score, n, h, i, j, *more):
        return rule(i, j, *more).expand(score.shape) if score.dim() else rule(i, j, *more)

    def with_if(score, n, h, i, j, *more):
        if rule(i, j, *more):
            return score
        return torch.full_like(score, -INF)

    return (
        Misconception(
            "python-if",
            PYTHON_IF,
            wrong=with_if,
            hint=3,
            also=(lambda score, n, h, i, j, *more: score if rule(i, j, *more) else -INF,),
        ),
        Misconception(
            "mask-returned",
            MASK_RETURNED,
            wrong=as_mask,
            hint=2,
            also=(lambda score, n, h, i, j, *more: rule(i, j, *more),),
        ),
        Misconception(
            "closed-gets-zero",
            ZERO_SCORE,
            wrong=lambda score, n, h, i, j, *more: torch.where(rule(i, j, *more), score, 0.0),
            hint=2,
            also=(lambda score, n, h, i, j, *more: score * rule(i, j, *more),),
        ),
        Misconception(
            "large-number",
            LARGE_NUMBER,
            wrong=lambda score, n, h, i, j, *more: torch.where(rule(i, j, *more), score, -1e9),
            hint=2,
            also=tuple(
                lambda score, n, h, i, j, *more, far=far: torch.where(rule(i, j, *more), score, far)
                for far in (-1e4, -1e10, -1e30, float(torch.finfo(torch.float32).min))
            ),
        ),
        Misconception(
            "score-lost",
            ADDED_MASK,
            wrong=lambda score, n, h, i, j, *more: torch.where(
                rule(i, j, *more), torch.zeros_like(score), torch.full_like(score, -INF)
            ),
            hint=2,
        ),
        Misconception(
            "inverted",
            "What should be open is closed, and the other way round.",
            wrong=lambda score, n, h, i, j, *more: torch.where(rule(i, j, *more), -INF, score),
            hint=1,
        ),
        Misconception(
            "nothing-changed",
            "The score comes back unchanged: every query still looks at every key.",
            wrong=lambda score, n, h, i, j, *more: score,
            hint=1,
        ),
    ), mod


CAUSAL_MISTAKES, CAUSAL = score_mod_mistakes(lambda i, j: j <= i)

CAUSAL_MOD = Exercise(
    name="causal",
    number="8.5",
    reference=reference.causal,
    returns=("score (N, H, L, S)",),
    builds_on=("causal_mask",),
    cases=(
        Case("all scores at once", places, gradients=False),
        Case("more queries than keys", lambda draw: places(draw, N=1, H=2, L=6, S=3), gradients=False),
        Case("float32", lambda draw: places(draw, N=1, H=3, L=4, S=5, dtype=FLOAT32), gradients=False),
        Case("one score alone: query 2, key 3", lambda draw: one_score(draw, 2, 3), gradients=False),
        Case("one score alone: query 3, key 3", lambda draw: one_score(draw, 3, 3), gradients=False),
    ),
    misconceptions=(
        *CAUSAL_MISTAKES,
        Misconception(
            "not-itself",
            "A query does not see its own place. It may: its own place is not ahead of it.",
            wrong=open_where(lambda i, j: j < i),
            hint=1,
        ),
        Misconception(
            "looks-ahead",
            "The queries see what comes and not what was. i is the query, j the key: which of the two may be larger?",
            wrong=open_where(lambda i, j: j >= i),
            hint=1,
        ),
        Misconception(
            "one-ahead",
            "Each query sees one key too many, the next one.",
            wrong=open_where(lambda i, j: j <= i + 1),
            hint=1,
        ),
    ),
    styles=(
        Style("masked_fill", lambda score, n, h, i, j: score.masked_fill(j > i, -INF)),
        Style("where, closed first", lambda score, n, h, i, j: torch.where(i < j, float("-inf"), score)),
        Style(
            "plus a penalty", lambda score, n, h, i, j: score + torch.where(j > i, -INF, 0.0).to(score.dtype)
        ),
        Style(
            "where with a tensor",
            lambda score, n, h, i, j: torch.where(i - j >= 0, score, torch.full_like(score, -INF)),
        ),
        Style("where(~…)", lambda score, n, h, i, j: torch.where(~(j <= i), -torch.inf, score)),
    ),
)

WINDOW_MISTAKES, WINDOW = score_mod_mistakes(lambda i, j, width: (j <= i) & (i - j < width))


def window(
    behind=lambda distance: distance >= 0, far=lambda distance: distance, near=lambda far, width: far < width
):
    """The window from its parts."""
    return open_where(lambda i, j, width: behind(i - j) & near(far(i - j), width))


SLIDING_WINDOW = Exercise(
    name="sliding_window",
    number="8.6",
    reference=reference.sliding_window,
    assemble=window,
    returns=("score (N, H, L, S)",),
    builds_on=("causal",),
    cases=(
        Case("the last 3 keys", lambda draw: places(draw, width=3), gradients=False),
        Case("only itself: width 1", lambda draw: places(draw, N=1, H=2, L=6, S=5, width=1), gradients=False),
        Case("wider than the text", lambda draw: places(draw, N=1, H=3, L=4, S=6, width=20), gradients=False),
        Case(
            "float32", lambda draw: places(draw, N=3, H=1, L=7, S=8, dtype=FLOAT32, width=4), gradients=False
        ),
        Case(
            "one score alone: query 6, key 3, width 3",
            lambda draw: one_score(draw, 6, 3, width=3),
            gradients=False,
        ),
        Case(
            "one score alone: query 6, key 4, width 3",
            lambda draw: one_score(draw, 6, 4, width=3),
            gradients=False,
        ),
    ),
    misconceptions=(
        *WINDOW_MISTAKES,
        Misconception(
            "one-key-too-many",
            "Each query sees `width` keys *beside* itself. With width 3 it sees 3, itself included.",
            part={"near": lambda far, width: far <= width},
            hint=2,
        ),
        Misconception(
            "one-key-too-few",
            "Each query sees one key too few: width 1 is the query's own place.",
            part={"near": lambda far, width: far < width - 1},
            hint=2,
        ),
        Misconception(
            "both-sides",
            "The window reaches into the future as well. It lies behind the query.",
            part={"behind": torch.isfinite, "far": torch.abs},
            hint=1,
        ),
        Misconception(
            "open-ahead",
            "Keys far behind are closed, the future is not: i − j is negative there, and smaller than any width.",
            part={"behind": torch.isfinite},
            hint=1,
        ),
        Misconception(
            "causal-alone",
            "That is `causal`: the window has no end at the back.",
            wrong=open_where(lambda i, j, width: j <= i),
            hint=1,
        ),
        Misconception(
            "window-ahead",
            "The window lies in front of the query. i and j are exchanged: i is the query, j the key.",
            wrong=open_where(lambda i, j, width: (j >= i) & (j - i < width)),
            hint=1,
        ),
        Misconception(
            "either-or",
            "A key is open when one of the two conditions holds. Both must.",
            wrong=open_where(lambda i, j, width: (j <= i) | ((i - j).abs() < width)),
            hint=2,
        ),
    ),
    styles=(
        Style(
            "masked_fill",
            lambda score, n, h, i, j, width: score.masked_fill((j > i) | (j <= i - width), -INF),
        ),
        Style(
            "logical_and",
            lambda score, n, h, i, j, width: torch.where(
                torch.logical_and(i >= j, j > i - width), score, -INF
            ),
        ),
        Style(
            "on top of causal",
            lambda score, n, h, i, j, width: torch.where(
                i - j < width, reference.causal(score, n, h, i, j), -INF
            ),
        ),
        Style(
            "product of conditions",
            lambda score, n, h, i, j, width: torch.where(
                (i - j >= 0) * (i - j < width), score, float("-inf")
            ),
        ),
        Style(
            "clamped distance",
            lambda score, n, h, i, j, width: torch.where((i - j).clamp(0, width - 1) == i - j, score, -INF),
        ),
    ),
)


def penalty(
    slope=lambda h, H: torch.exp2(-8.0 * (h + 1) / H), distance=lambda i, j: (i - j).abs(), apply=torch.sub
):
    """A score_mod that takes off a price for distance, from its parts."""

    def alibi(score, n, h, i, j, H):
        return apply(score, slope(h, H) * distance(i, j))

    return alibi


ALIBI = Exercise(
    name="alibi",
    number="8.7",
    reference=reference.alibi,
    returns=("score (N, H, L, S)",),
    assemble=penalty,
    cases=(
        Case("four heads", lambda draw: places(draw, H=4) | {"H": 4}, tolerance=1e-6),
        Case("eight heads", lambda draw: places(draw, N=1, H=8, L=6, S=3) | {"H": 8}, tolerance=1e-6),
        Case("three heads", lambda draw: places(draw, N=3, H=3, L=4, S=9) | {"H": 3}, tolerance=1e-6),
        Case(
            "one score alone: head 1 of 4, query 6, key 2",
            lambda draw: one_score(draw, 6, 2) | {"H": 4},
            tolerance=1e-6,
            gradients=False,
        ),
        Case(
            "one score alone: head 0 of 4, query 1, key 5",
            lambda draw: one_score(draw, 1, 5, h=0) | {"H": 4},
            tolerance=1e-6,
            gradients=False,
        ),
    ),
    misconceptions=(
        Misconception(
            "reward-for-distance",
            "Far keys get *more*: the price is added. Take it off.",
            part={"apply": torch.add},
            hint=1,
        ),
        Misconception(
            "multiplied",
            "The score is multiplied by the price. A price is taken off.",
            part={"apply": torch.mul},
            hint=1,
        ),
        Misconception(
            "sign-of-the-distance",
            "Keys ahead of the query are rewarded: i − j is negative there. A distance has no sign.",
            part={"distance": lambda i, j: i - j},
            hint=2,
            also=(penalty(distance=lambda i, j: j - i),),
        ),
        Misconception(
            "future-for-free",
            "Keys ahead of the query cost nothing. Here distance counts on both sides. (A causal mask, where one is wanted, is "
            "another function.)",
            part={"distance": lambda i, j: (i - j).clamp_min(0)},
            hint=2,
        ),
        Misconception(
            "heads-from-zero",
            "Your slopes are one head late: head 0 pays a full step already, and counting heads starts at 0.",
            part={"slope": lambda h, H: torch.exp2(-8.0 * h / H)},
            hint=2,
        ),
        Misconception(
            "one-slope-for-all",
            "All heads have the same slope. Each has its own, from steep to nearly flat.",
            part={"slope": lambda h, H: torch.full_like(h, 1, dtype=torch.float32) * 2.0 ** (-8.0 / H)},
            hint=1,
        ),
        Misconception(
            "heads-not-counted",
            "The exponent is not divided by H: with few heads all slopes are tiny.",
            part={"slope": lambda h, H: torch.exp2(-8.0 * (h + 1))},
            hint=2,
        ),
        Misconception(
            "without-the-eight",
            "Your slopes fall too slowly: the exponent of the last head is −8, yours is −1.",
            part={"slope": lambda h, H: torch.exp2(-1.0 * (h + 1) / H)},
            hint=2,
        ),
        Misconception(
            "natural-base",
            "The slopes are powers of e. They are powers of 2.",
            part={"slope": lambda h, H: torch.exp(-8.0 * (h + 1) / H)},
            hint=3,
        ),
        Misconception(
            "slopes-grow",
            "Your slopes grow: the exponent is negative.",
            part={"slope": lambda h, H: torch.exp2(8.0 * (h + 1) / H)},
            hint=2,
        ),
        Misconception(
            "slopes-backwards",
            "The heads are in the other order: head 0 is the steepest.",
            part={"slope": lambda h, H: torch.exp2(-8.0 * (H - h) / H)},
            hint=2,
        ),
        Misconception(
            "distance-squared",
            "The price grows with the square of the distance. It grows by the same step for each place.",
            part={"distance": lambda i, j: (i - j) ** 2},
            hint=1,
        ),
        Misconception(
            "price-alone",
            "You give the price. The score is wanted, with the price taken off.",
            part={"apply": lambda score, price: price.expand(score.shape) + 0 * score},
            hint=1,
            also=(penalty(apply=lambda score, price: -price + 0 * score),),
        ),
    ),
    styles=(
        Style("2 ** …", lambda score, n, h, i, j, H: score - 2.0 ** (-8 * (h + 1) / H) * abs(i - j)),
        Style(
            "exp and log",
            lambda score, n, h, i, j, H: score - torch.exp(-8 * (h + 1) / H * math.log(2)) * (j - i).abs(),
        ),
        Style("pow", lambda score, n, h, i, j, H: score - torch.pow(2 ** (-8 / H), h + 1) * torch.abs(i - j)),
        Style(
            "larger minus smaller",
            lambda score, n, h, i, j, H: (
                score - (torch.maximum(i, j) - torch.minimum(i, j)) * torch.exp2(-(h + 1) * 8 / H)
            ),
        ),
        Style(
            "by where",
            lambda score, n, h, i, j, H: (
                score + torch.exp2(-8.0 * (h + 1) / H) * torch.where(i > j, j - i, i - j)
            ),
        ),
    ),
)


LESSON = Lesson(
    folder="08_without_the_matrix",
    title="Without the L × L matrix",
    exercises=(
        ONLINE_SOFTMAX,
        LOGSUMEXP_MERGE,
        FLASH_FORWARD,
        FLASH_BACKWARD,
        CAUSAL_MOD,
        SLIDING_WINDOW,
        ALIBI,
    ),
    questions=(
        Question(
            name="is_it_exact",
            right="a",
            why={
                "a": "Right: the same numbers in another order of adding. Nothing is left out, nothing is approximated.",
                "b": "Small weights are computed like large ones.",
                "c": "bfloat16 is a choice of its own; in float64 it is exact to 1e-12.",
                "d": "Every tile of scores is computed, once forwards and once more backwards.",
            },
        ),
        Question(
            name="why_shrink",
            right="d",
            why={
                "a": "They may be any numbers; their softmax is what is wanted.",
                "b": "That is the division at the end.",
                "c": "exp(x − m) with the row's maximum m never overflows; the rescaling is about what came *before* m grew.",
                "d": "Right: exp(x − old maximum) = exp(x − new maximum) · exp(new − old). One factor mends everything so far.",
            },
        ),
        Question(
            name="what_is_kept",
            right="b",
            why={
                "a": "That would be the L × L matrix again.",
                "b": "Right: with q, k, v and lse every tile of weights can be made again.",
                "c": "A maximum alone does not say what the sum was; lse = m + log l says both in one.",
                "d": "Without lse every row would have to be summed again before its weights are known.",
            },
        ),
        Question(
            name="what_it_costs",
            right="c",
            why={
                "a": "Forwards it makes the same multiplications, and backwards *more*: the scores are computed again.",
                "b": "The memory is what shrinks.",
                "c": "Right: more arithmetic, far less memory to fill and to fetch. On a GPU the fetching was the slow part.",
                "d": "The gradients are those of the direct formula.",
            },
        ),
    ),
)
