"""Lesson 01, declared: how its six exercises are tried, and which mistakes are recognised in them."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Named, Property, Question, Style

from ._properties import of_shape

FLOAT32 = torch.float32

# `torch.sqrt(torch.tensor(D))` is a float32 number and a right answer. In the float64 cases D is a square
# (4, 9), so that even float32 has its root exactly.


# ------------------------------------------------------------------------------- 1.1 attention_scores


def scores_with(product=lambda q, k: q @ k.mT, scale=lambda q, k: 1 / math.sqrt(q.shape[-1])):
    """Scores from two parts: how likeness is measured, and what it is multiplied with."""

    def attention_scores(q, k):
        return product(q, k) * scale(q, k)

    return attention_scores


def scores_in_place(q, k):
    q /= math.sqrt(q.shape[-1])
    return q @ k.mT


def scores_by_loops(q, k):
    rows = [
        torch.stack(
            [torch.stack([q[n, i].dot(k[n, j]) for j in range(k.shape[1])]) for i in range(q.shape[1])]
        )
        for n in range(q.shape[0])
    ]
    return torch.stack(rows) / q.shape[-1] ** 0.5


def scores_baddbmm(q, k):
    empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    return torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)


def scores_into_zeros(q, k):
    out = torch.zeros(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    for j in range(k.shape[1]):
        out[:, :, j] = (q * k[:, j : j + 1]).sum(-1)
    return out / math.sqrt(q.shape[-1])


def draw_qk(draw, dtype=torch.float64, N=2, L=5, S=7, D=4):
    return {"q": draw.normal(N, L, D, dtype=dtype), "k": draw.normal(N, S, D, dtype=dtype)}


def example_qk(draw):
    return {"q": torch.tensor([[[1.0, 2.0]]]), "k": torch.tensor([[[3.0, 0.0], [1.0, 1.0], [-2.0, 1.0]]])}


ATTENTION_SCORES = Exercise(
    name="attention_scores",
    number="1.1",
    reference=reference.attention_scores,
    returns=("scores (N, L, S)",),
    assemble=scores_with,
    forbidden=("ready-made attention",),
    cases=(
        Case("the lesson's own example", example_qk),
        Case("L and S differ", draw_qk),
        Case("another D, one query", lambda draw: draw_qk(draw, N=3, L=1, S=5, D=9)),
        Case("float32", lambda draw: draw_qk(draw, FLOAT32, N=4, L=3, S=6, D=8)),
    ),
    misconceptions=(
        Misconception(
            "no-scale",
            "Every score is √D times too large: these are the dot products, and the division by √D is missing.",
            part={"scale": lambda q, k: 1.0},
            hint=2,
            also=(lambda q, k: torch.einsum("nld,nsd->nls", q, k),),
        ),
        Misconception(
            "divided-by-d",
            "Every score is √D times too small: divided by D, not by its square root. (Scaling q and k by √D each "
            "does the same; so does a mean over the features.)",
            part={"scale": lambda q, k: 1 / q.shape[-1]},
            hint=2,
            also=(
                lambda q, k: (q.unsqueeze(2) * k.unsqueeze(1)).mean(-1),
                lambda q, k: (q / q.shape[-1] ** 0.5) @ (k / k.shape[-1] ** 0.5).mT,
            ),
        ),
        Misconception(
            "times-root-d",
            "Every score is D times too large: multiplied by √D where it should be divided.",
            part={"scale": lambda q, k: math.sqrt(q.shape[-1])},
            hint=2,
        ),
        Misconception(
            "root-of-keys",
            "The scores are divided by √S, the number of keys. What makes dot products large is the number of "
            "features that are summed: D.",
            part={"scale": lambda q, k: 1 / math.sqrt(k.shape[-2])},
            hint=2,
            also=(lambda q, k: (q @ k.mT) / (q @ k.mT).shape[-1] ** 0.5,),
        ),
        Misconception(
            "root-of-queries",
            "The scores are divided by √L, the number of queries. What makes dot products large is the number of "
            "features that are summed: D.",
            part={"scale": lambda q, k: 1 / math.sqrt(q.shape[-2])},
            hint=2,
        ),
        Misconception(
            "root-of-batch",
            "The scores are divided by √N: `shape[0]` is the batch. The features are the last dimension.",
            part={"scale": lambda q, k: 1 / math.sqrt(q.shape[0])},
            hint=2,
        ),
        Misconception(
            "number-for-root",
            "Divided by 2, whatever D is: that is √D where D is 4. Take D from the shape of q.",
            part={"scale": lambda q, k: 1 / 2},
            hint=2,
        ),
        Misconception(
            "keys-ask-queries",
            "Your result is (N, S, L): one row per key. Here the queries ask, so each query gets a row: (N, L, S).",
            wrong=lambda q, k: k @ q.mT / math.sqrt(q.shape[-1]),
            hint=1,
            also=(
                lambda q, k: torch.einsum("nld,nsd->nsl", q, k) / math.sqrt(k.shape[-1]),
                lambda q, k: k @ q.mT,
            ),
        ),
        Misconception(
            "nothing-transposed",
            "The shapes do not fit: (L, D) meets (S, D), so D stands beside S in the middle. Which of the two must be "
            "turned for D to meet D?",
            wrong=lambda q, k: q @ k / math.sqrt(q.shape[-1]),
            hint=1,
        ),
        Misconception(
            "features-meet-features",
            "The shapes do not fit: q is turned, (D, L), so what would be summed are the *tokens*, and there are L "
            "queries and S keys. The features are summed; it is the keys that turn.",
            wrong=lambda q, k: q.mT @ k / math.sqrt(q.shape[-1]),
            hint=1,
        ),
        Misconception(
            "keys-first-features-meet",
            "The shapes do not fit: k is turned and stands first, (D, S), so what would be summed are the *tokens*, and "
            "there are S keys and L queries. The queries stand first, and the features are summed.",
            wrong=lambda q, k: k.mT @ q / math.sqrt(q.shape[-1]),
            hint=1,
        ),
        Misconception(
            "everything-turned",
            "The shapes do not fit: `k.T` turns *all* dimensions around, (D, S, N), the batch with them. Only the last "
            "two should change places.",
            wrong=lambda q, k: q @ k.permute(2, 1, 0) / math.sqrt(q.shape[-1]),
            hint=2,
            also=(lambda q, k: torch.matmul(q, k.transpose(0, 2)),),
        ),
        Misconception(
            "reshape-for-transpose",
            "The numbers are scrambled: k was reshaped to (N, D, S). `view` and `reshape` "
            "keep the order in memory; only a transpose turns rows into columns.",
            part={"product": lambda q, k: q @ k.reshape(k.shape[0], k.shape[2], k.shape[1])},
            hint=2,
            also=(
                lambda q, k: (
                    torch.bmm(q, k.contiguous().view(k.shape[0], -1, k.shape[1])) / q.shape[-1] ** 0.5
                ),
            ),
        ),
        Misconception(
            "softmax-already",
            "Each row sums to 1 already: a softmax is applied here. Scores come before the softmax; that is the "
            "next exercise.",
            wrong=lambda q, k: torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1),
            hint=1,
            also=(lambda q, k: torch.softmax(q @ k.mT, -1),),
        ),
        Misconception(
            "cosine",
            "Your scores all lie between −1 and 1: they are cosines, the lengths of q and k are divided out. Here "
            "the length counts: a long query is a decided one.",
            wrong=lambda q, k: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT,
            hint=1,
            also=(lambda q, k: F.cosine_similarity(q.unsqueeze(2), k.unsqueeze(1), dim=-1),),
        ),
        Misconception(
            "distance",
            "These are distances (squared, or with a minus) between queries and keys, not dot products.",
            wrong=lambda q, k: torch.cdist(q, k),
            hint=1,
            also=(
                lambda q, k: (q.unsqueeze(2) - k.unsqueeze(1)).pow(2).sum(-1).sqrt(),
                lambda q, k: -torch.cdist(q, k),
                lambda q, k: -torch.cdist(q, k).square(),
            ),
        ),
        Misconception(
            "root-of-an-int",
            "`torch.sqrt` takes a tensor, and a size is a Python int. Python has roots of its own for numbers.",
            wrong=lambda q, k: q @ k.mT / torch.sqrt(q.shape[-1]),
            hint=3,
        ),
        Misconception(
            "batch-mixed",
            "The samples of the batch are mixed: a query meets the keys of every sample. Each n stays by itself.",
            part={"product": lambda q, k: torch.einsum("nld,msd->nls", q, k)},
            hint=2,
        ),
        Misconception(
            "first-sample-for-all",
            "All samples meet the keys of sample 0.",
            part={"product": lambda q, k: q @ k[0].T},
            hint=2,
        ),
        Misconception(
            "writes-into-q",
            "The scores are right, but q is not what it was: `q /= …` writes into the caller's tensor. Make a new one, or "
            "divide the product.",
            wrong=scores_in_place,
            hint=3,
        ),
        Misconception(
            "cut-off",
            "The scores are right but cut off from q and k (by `detach`, `.data`, `torch.tensor(…)`, NumPy or `no_grad`): "
            "nothing could ever learn through them. Compute with q and k themselves, in torch.",
            wrong=lambda q, k: (q.detach() @ k.detach().mT) / math.sqrt(q.shape[-1]),
            hint=3,
            also=(lambda q, k: q.data @ k.data.mT / q.shape[-1] ** 0.5,),
        ),
    ),
    styles=(
        Style("matmul", lambda q, k: torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))),
        Style("einsum", lambda q, k: torch.einsum("nld,nsd->nls", q, k) / q.shape[-1] ** 0.5),
        Style("torch.sqrt", lambda q, k: q @ k.mT / torch.sqrt(torch.tensor(q.shape[-1]))),
        Style("bmm, scaled first", lambda q, k: torch.bmm(q * q.shape[-1] ** -0.5, k.permute(0, 2, 1))),
        Style("baddbmm", scores_baddbmm),
        Style("loops", scores_by_loops),
        Style("column by column into zeros", scores_into_zeros),
        Style("float64 inside", lambda q, k: (q.double() @ k.double().mT / q.shape[-1] ** 0.5).to(q.dtype)),
        Style("not contiguous", lambda q, k: (k @ q.mT / math.sqrt(q.shape[-1])).mT),
        Style(
            "both by the fourth root", lambda q, k: (q / q.shape[-1] ** 0.25) @ (k / k.shape[-1] ** 0.25).mT
        ),
    ),
)


# --------------------------------------------------------------------------------- 1.2 stable_softmax


def softmax_with(
    shift=lambda x, dim: x.amax(dim, keepdim=True), total=lambda e, dim: e.sum(dim, keepdim=True)
):
    """A softmax from two parts: what is subtracted first, and what the exponentials are divided by."""

    def stable_softmax(x, dim):
        e = (x - shift(x, dim)).exp()
        return e / total(e, dim)

    return stable_softmax


def softmax_in_place(x, dim):
    x -= x.amax(dim, keepdim=True)
    e = x.exp()
    return e / e.sum(dim, keepdim=True)


def softmax_half_shifted(x, dim):
    return (x - x.amax(dim, keepdim=True)).exp() / x.exp().sum(dim, keepdim=True)


def softmax_by_slices(x, dim):
    slices = [(piece - piece.max()).exp() for piece in x.movedim(dim, -1).reshape(-1, x.shape[dim]).unbind(0)]
    rows = torch.stack([piece / piece.sum() for piece in slices])
    return rows.reshape(x.movedim(dim, -1).shape).movedim(-1, dim)


def uneven_rows(draw, dtype=FLOAT32):
    """Rows around +10⁴, 0 and −10⁴: a shift by one number for all of them is not enough."""
    level = torch.tensor([1e4, 0.0, -1e4], dtype=torch.float64).view(1, 3, 1)
    return {"x": (draw.normal(2, 3, 7, scale=2.0) + level).to(dtype), "dim": -1}


def partly_closed(draw):
    x = draw.normal(2, 5, 4)
    return {"x": x.masked_fill(~draw.mask(2, 5, 4), -torch.inf), "dim": -1}


@of_shape(lambda inputs: inputs["x"].shape)
def sums_along_dim(inputs, value):
    sums = value.double().sum(inputs["dim"])
    if bool((sums - 1).abs().max() < 1e-2):
        return None
    others = [d for d in range(value.dim()) if d != inputs["dim"] % value.dim()]
    for d in others:
        if bool((value.double().sum(d) - 1).abs().max() < 1e-2):
            return f"Your numbers sum to 1 along dimension {d}; here dim = {inputs['dim']} is wanted."
    return "Along `dim` your numbers do not sum to 1, as they do after a softmax."


STABLE_SOFTMAX = Exercise(
    name="stable_softmax",
    number="1.2",
    reference=reference.stable_softmax,
    returns=("softmax (as x)",),
    assemble=softmax_with,
    forbidden=("ready-made softmax", "ready-made attention"),
    cases=(
        Case(
            "the lesson's own example",
            lambda draw: {"x": torch.tensor([1.0, 2.0, 5.0]).double().log(), "dim": 0},
        ),
        Case("softmax over the last dimension", lambda draw: {"x": draw.normal(2, 5, 7), "dim": -1}),
        Case("softmax over the middle", lambda draw: {"x": draw.normal(3, 4, 6), "dim": 1}),
        Case("four dimensions, over the first", lambda draw: {"x": draw.normal(3, 2, 4, 5), "dim": 0}),
        # float32 has steps of 0.001 near 10⁴, and x − logsumexp(x) is a right answer that meets them
        Case("rows near 10⁴, 0 and −10⁴", uneven_rows, gradients=False, tolerance=2e-3),
        Case("some entries −∞", partly_closed, gradients=False),
        Case(
            "float16, up to 6·10⁴",
            lambda draw: {"x": draw.normal(2, 6, scale=2e4).clamp(-6e4, 6e4).half(), "dim": 1},
            gradients=False,
        ),
    ),
    misconceptions=(
        Misconception(
            "no-shift",
            "At 10⁴ you get NaN: exp(10⁴) is too large for any float, and ∞ / ∞ is no number. Subtracting the same number from "
            "a whole row changes nothing, so choose one that helps.",
            part={"shift": lambda x, dim: 0.0},
            hint=2,
            also=(lambda x, dim: torch.exp(x) / torch.exp(x).sum(dim, keepdim=True),),
        ),
        Misconception(
            "one-maximum-for-all",
            "Rows far below the largest number of all become NaN: one maximum was subtracted everywhere, so their "
            "exponentials all underflow to 0. Every row needs its own maximum.",
            part={"shift": lambda x, dim: x.max()},
            hint=2,
        ),
        Misconception(
            "mean-for-maximum",
            "The *mean* was subtracted. That often helps, but one number far above the mean still overflows.",
            part={"shift": lambda x, dim: x.mean(dim, keepdim=True)},
            hint=2,
        ),
        Misconception(
            "minimum-for-maximum",
            "The *minimum* was subtracted: everything is now ≥ 0, and exp of the largest overflows all the same.",
            part={"shift": lambda x, dim: x.amin(dim, keepdim=True)},
            hint=2,
        ),
        Misconception(
            "absolute-maximum",
            "Rows of large *negative* numbers become NaN: the largest absolute value was subtracted, so they are "
            "pushed further down and all their exponentials are 0.",
            part={"shift": lambda x, dim: x.abs().amax(dim, keepdim=True)},
            hint=2,
        ),
        Misconception(
            "maximum-along-a-fixed-dim",
            "The maximum is always taken along the same dimension, whatever `dim` says. What is subtracted must be one number "
            "for each row *along dim*, or it does not cancel.",
            part={"shift": lambda x, dim: x.amax(-1, keepdim=True)},
            hint=2,
            also=(softmax_with(shift=lambda x, dim: x.amax(0, keepdim=True)),),
        ),
        Misconception(
            "sum-along-a-fixed-dim",
            "The sum is always taken along the same dimension, whatever `dim` says.",
            part={"total": lambda e, dim: e.sum(-1, keepdim=True)},
            hint=2,
            also=(softmax_with(total=lambda e, dim: e.sum(0, keepdim=True)),),
        ),
        Misconception(
            "naive-logsumexp",
            "Numbers near 10⁴ come out as 0 and near −10⁴ as ∞: `x - log(sum(exp(x)))` is a good way, but its exp "
            "meets the large numbers first. Shift before it, too.",
            wrong=lambda x, dim: (x - x.exp().sum(dim, keepdim=True).log()).exp(),
            hint=2,
        ),
        Misconception(
            "half-shifted",
            "The maximum was subtracted above the fraction bar and not below it: the two no longer cancel.",
            wrong=softmax_half_shifted,
            hint=2,
        ),
        Misconception(
            "dim-ignored",
            "Right for dim=-1, wrong for another: the parameter `dim` is not used everywhere.",
            wrong=lambda x, dim: softmax_with()(x, -1),
            hint=1,
        ),
        Misconception(
            "sum-over-everything",
            "All your numbers together sum to 1: divided by the sum over the whole tensor, not along `dim`.",
            part={"total": lambda e, dim: e.sum()},
            hint=2,
        ),
        Misconception(
            "not-normalised",
            "The exponentials are not divided by their sum: the largest of each row is exactly 1.",
            part={"total": lambda e, dim: 1.0},
            hint=1,
        ),
        Misconception(
            "mean-below",
            "Divided by the *mean* of the exponentials: each row sums to its length instead of 1.",
            part={"total": lambda e, dim: e.mean(dim, keepdim=True)},
            hint=2,
        ),
        Misconception(
            "epsilon-below",
            "Very nearly right: a small number is added to the sum. After the shift the sum is at least 1, so it can "
            "never be 0 and needs no help.",
            part={"total": lambda e, dim: e.sum(dim, keepdim=True) + 1e-6},
            hint=3,
            also=(
                lambda x, dim: (lambda e: e / (e.sum(dim, keepdim=True) + 1e-8))(
                    (x - x.amax(dim, keepdim=True)).exp()
                ),
            ),
        ),
        Misconception(
            "keepdim-forgotten",
            "A row's maximum (or sum) has lost its dimension, so it no longer lines up with the row it came from.",
            wrong=lambda x, dim: x.sub(x.amax(dim)).exp(),
            hint=3,
            also=(lambda x, dim: (lambda e: e / e.sum(dim))((x - x.amax(dim, keepdim=True)).exp()),),
        ),
        Misconception(
            "log-softmax",
            "All your numbers are ≤ 0: this is the *logarithm* of the softmax.",
            wrong=lambda x, dim: x - torch.logsumexp(x, dim, keepdim=True),
            hint=1,
        ),
        Misconception(
            "no-exponential",
            "The numbers are divided by their sum without exp: negative ones stay negative, which no weight may be.",
            wrong=lambda x, dim: x / x.sum(dim, keepdim=True),
            hint=1,
        ),
        Misconception(
            "sigmoid",
            "Each number was squashed by itself (a sigmoid); in a softmax the numbers of a row compete for one whole.",
            wrong=lambda x, dim: torch.sigmoid(x),
            hint=1,
            also=(lambda x, dim: 1 / (1 + (-x).exp()),),
        ),
        Misconception(
            "powers-of-two",
            "The proportions are those of 2ˣ, not of eˣ.",
            wrong=lambda x, dim: (lambda e: e / e.sum(dim, keepdim=True))(
                torch.exp2(x - x.amax(dim, keepdim=True))
            ),
            hint=1,
        ),
        Misconception(
            "clamped",
            "Large numbers are cut off before exp: 10⁴ and 10⁴ + 5 then count the same. A shift keeps their difference.",
            wrong=lambda x, dim: (lambda e: e / e.sum(dim, keepdim=True))(x.clamp(max=80).exp()),
            hint=2,
            also=(lambda x, dim: (lambda e: e / e.sum(dim, keepdim=True))(x.clamp(-80, 80).exp()),),
        ),
        Misconception(
            "writes-into-x",
            "The result is right, but x is not what it was: `x -= …` writes into the caller's tensor. Make a new one.",
            wrong=softmax_in_place,
            hint=3,
        ),
    ),
    properties=(Property("sums to 1 along dim", sums_along_dim, hint=2),),
    styles=(
        Style("logsumexp", lambda x, dim: (x - torch.logsumexp(x, dim, keepdim=True)).exp()),
        Style(
            "max with values",
            lambda x, dim: (lambda e: e / e.sum(dim, keepdim=True))(
                torch.exp(x - x.max(dim, keepdim=True).values)
            ),
        ),
        Style(
            "unsqueeze by hand",
            lambda x, dim: (lambda e: e / e.sum(dim).unsqueeze(dim))((x - x.amax(dim).unsqueeze(dim)).exp()),
        ),
        Style(
            "detached shift",
            lambda x, dim: (lambda e: e / e.sum(dim, keepdim=True))(
                (x - x.detach().amax(dim, keepdim=True)).exp()
            ),
        ),
        Style("float64 inside", lambda x, dim: softmax_with()(x.double(), dim).to(x.dtype)),
        Style(
            "in place on its own copy",
            lambda x, dim: (lambda y: y / y.sum(dim, keepdim=True))(
                x.sub(x.detach().amax(dim, keepdim=True)).exp_()
            ),
        ),
        Style("slice by slice", softmax_by_slices),
        Style(
            "moved to the front and back", lambda x, dim: softmax_with()(x.movedim(dim, 0), 0).movedim(0, dim)
        ),
    ),
)


# ----------------------------------------------------------------------------------------- 1.3 attend


def over_rows(scores):
    return torch.softmax(scores, dim=-1)


def attend_with(
    scores=reference.attention_scores,
    softmax=over_rows,
    mix=lambda w, q, k, v: w @ v,
    give=lambda output, weights: (output, weights),
):
    """One head from its parts: scores, what makes weights of them, what the weights mix, what is given back."""

    def attend(q, k, v):
        weights = softmax(scores(q, k))
        return give(mix(weights, q, k, v), weights)

    return attend


def attend_by_loops(q, k, v):
    outputs, rows = [], []
    for n in range(q.shape[0]):
        for i in range(q.shape[1]):
            row = torch.softmax(torch.stack([q[n, i] @ key for key in k[n]]) / math.sqrt(q.shape[2]), 0)
            rows.append(row)
            outputs.append(sum(w * value for w, value in zip(row, v[n])))
    return torch.stack(outputs).view(*q.shape[:2], -1), torch.stack(rows).view(*q.shape[:2], -1)


def attend_own_exp(q, k, v):
    e = torch.exp(q @ k.mT / q.shape[-1] ** 0.5)
    e = e / e.sum(-1, keepdim=True)
    return e @ v, e


def attend_in_place(q, k, v):
    scores = torch.bmm(q, k.transpose(1, 2))
    scores /= math.sqrt(q.shape[-1])
    weights = F.softmax(scores, dim=2)
    output = torch.zeros(*q.shape[:2], v.shape[-1], dtype=v.dtype, device=v.device)
    for s in range(k.shape[1]):
        output += weights[:, :, s : s + 1] * v[:, s : s + 1]
    return output, weights


def attend_float64(q, k, v):
    return tuple(x.to(q.dtype) for x in attend_with()(q.double(), k.double(), v.double()))


def attend_baddbmm(q, k, v):
    zeros = q.new_zeros(q.shape[0], q.shape[1], k.shape[1])
    weights = torch.baddbmm(zeros, q, k.mT, alpha=1 / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.bmm(weights, v), weights


def attend_not_contiguous(q, k, v):
    weights = (k @ q.mT / math.sqrt(q.shape[-1])).softmax(-2).mT
    return (v.mT @ weights.mT).mT, weights


def attend_cut_off(q, k, v):
    output, weights = attend_with()(q, k, v)
    return output.detach(), weights.detach()


def attend_in_place_on_inputs(q, k, v):
    q /= math.sqrt(q.shape[-1])
    weights = torch.softmax(q @ k.mT, -1)
    return weights @ v, weights


def draw_qkv(draw, dtype=torch.float64, N=2, L=5, S=7, D=4, Dv=3, scale=1.0):
    return {
        "q": draw.normal(N, L, D, dtype=dtype, scale=scale),
        "k": draw.normal(N, S, D, dtype=dtype),
        "v": draw.normal(N, S, Dv, dtype=dtype),
    }


def sizes_of_one_head(inputs):
    """The shapes of output and weights: of q, k and v, or of a module's tokens x (D is the module's own)."""
    if "x" in inputs:
        N, L, _ = inputs["x"].shape
        return (N, L, None), (N, L, L)
    (N, L, _), (_, S, Dv) = inputs["q"].shape, inputs["v"].shape
    return (N, L, Dv), (N, L, S)


def an_output_and_weights(fails):
    """Of the right shapes, and not with their places changed where both have the same one."""
    shaped = of_shape(*(lambda inputs, i=i: sizes_of_one_head(inputs)[i] for i in (0, 1)))

    def in_order(inputs, value):
        changed = value[0].shape == value[1].shape and bool(((value[0].sum(-1) - 1).abs() < 1e-4).all())
        return None if changed else fails(inputs, value)

    return shaped(in_order)


@an_output_and_weights
def rows_or_columns(inputs, value):
    weights = value[1]
    rows, columns = (weights.double().sum(d) for d in (-1, -2))
    if bool((rows - 1).abs().max() < 1e-4):
        return None
    if bool((columns - 1).abs().max() < 1e-4):
        return "Each *column* of your weights sums to 1, each row should."
    return f"The rows of your weights should sum to 1; yours sum to {float(rows.min()):.3g} … {float(rows.max()):.3g}."


@an_output_and_weights
def is_a_mixture(inputs, value):
    low, high = inputs["v"].amin(-2, keepdim=True), inputs["v"].amax(-2, keepdim=True)
    small = 1e-4 * inputs["v"].abs().amax()
    if not bool(((value[0] < low - small) | (value[0] > high + small)).any()):
        return None
    return "Some of your outputs lie outside the range of the values. A weighted mean of them cannot."


def example_qkv(draw):
    """One query whose scores are 0 and ln 3: its weights are ¼ and ¾."""
    k = torch.tensor([1.0, 3.0], dtype=torch.float64).log().view(1, 2, 1)
    v = torch.tensor([[[8.0, 0.0], [4.0, 4.0]]], dtype=torch.float64)
    return {"q": torch.ones(1, 1, 1, dtype=torch.float64), "k": k, "v": v}


ATTEND = Exercise(
    name="attend",
    number="1.3",
    reference=reference.attend,
    returns=("output (N, L, Dv)", "weights (N, L, S)"),
    assemble=attend_with,
    forbidden=("ready-made attention",),
    builds_on=("attention_scores", "stable_softmax"),
    cases=(
        Case("the lesson's own example", example_qkv),
        Case("L, S and all other sizes differ", draw_qkv),
        Case("one query, other D", lambda draw: draw_qkv(draw, N=3, L=1, S=4, D=9, Dv=5)),
        Case("float32", lambda draw: draw_qkv(draw, FLOAT32, N=4, L=3, S=6, D=8, Dv=2)),
        Case("large queries", lambda draw: draw_qkv(draw, scale=5e3), gradients=False),
    ),
    misconceptions=(
        Misconception(
            "no-scale",
            "Your weights are too sharp: the softmax saw the dot products without the division by √D.",
            part={"scores": lambda q, k: q @ k.mT},
            hint=1,
        ),
        Misconception(
            "divided-by-d",
            "Your weights are too even: the dot products are divided by D, not by √D. (Does `attention_scores` divide "
            "already, and then you once more?)",
            part={"scores": lambda q, k: q @ k.mT / q.shape[-1]},
            hint=1,
        ),
        Misconception(
            "times-root-d",
            "Your weights are far too sharp: the dot products are multiplied by √D instead of divided.",
            part={"scores": lambda q, k: q @ k.mT * math.sqrt(q.shape[-1])},
            hint=1,
        ),
        Misconception(
            "root-of-keys",
            "The scores are divided by √S, the number of keys; what is summed in a dot product are the D features.",
            part={"scores": lambda q, k: q @ k.mT / math.sqrt(k.shape[-2])},
            hint=1,
        ),
        Misconception(
            "root-of-queries",
            "The scores are divided by √L, the number of queries; what is summed in a dot product are the D features.",
            part={"scores": lambda q, k: q @ k.mT / math.sqrt(q.shape[-2])},
            hint=1,
        ),
        Misconception(
            "root-of-value-features",
            "The scores are divided by √Dv, the size of a value; what is summed in a dot product are the D features "
            "of q and k.",
            wrong=lambda q, k, v: attend_with(scores=lambda q, k: q @ k.mT / math.sqrt(v.shape[-1]))(q, k, v),
            hint=1,
        ),
        Misconception(
            "cosine",
            "Your weights are too even: q and k were brought to length 1 first (cosines). Here the length counts: a "
            "long query is a decided one.",
            part={"scores": lambda q, k: F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT},
            hint=1,
        ),
        Misconception(
            "reshape-for-transpose",
            "The keys were reshaped instead of transposed: that scrambles the numbers.",
            part={
                "scores": lambda q, k: (
                    q @ k.reshape(k.shape[0], k.shape[2], k.shape[1]) / math.sqrt(q.shape[-1])
                )
            },
            hint=1,
        ),
        Misconception(
            "softmax-over-queries",
            "Each *column* of your weights sums to 1, each row should: the softmax ran over the queries (dim 1). "
            "A query shares its attention among the keys.",
            part={"softmax": lambda s: torch.softmax(s, -2)},
            hint=2,
        ),
        Misconception(
            "softmax-over-batch",
            "The softmax ran over the batch (dim 0): your weights sum to 1 across samples that have nothing to do "
            "with one another. A query shares its attention among its own keys.",
            part={"softmax": lambda s: torch.softmax(s, 0)},
            hint=2,
        ),
        Misconception(
            "softmax-over-everything",
            "All weights of a sample (or of the whole batch) together sum to 1. Every *row* should: each query has a "
            "whole attention of its own to give.",
            part={"softmax": lambda s: torch.softmax(s.flatten(1), -1).view_as(s)},
            hint=2,
        ),
        Misconception(
            "softmax-over-the-whole-batch",
            "All your weights together sum to 1, across samples and queries. Every *row* should: each query has a "
            "whole attention of its own to give.",
            part={"softmax": lambda s: torch.softmax(s.flatten(), 0).view_as(s)},
            hint=2,
        ),
        Misconception(
            "no-softmax",
            "Your weights have negative numbers in them: the raw scores were used, the softmax is missing.",
            part={"softmax": lambda s: s},
            hint=2,
        ),
        Misconception(
            "log-softmax",
            "All your weights are ≤ 0: `log_softmax` gives logarithms of weights.",
            part={"softmax": lambda s: torch.log_softmax(s, -1)},
            hint=2,
        ),
        Misconception(
            "sigmoid",
            "Each weight was made by itself (a sigmoid), so the rows do not sum to 1: the keys do not compete.",
            part={"softmax": torch.sigmoid},
            hint=2,
        ),
        Misconception(
            "exp-without-shift",
            "Large scores give NaN: exp overflows. You have written a function that was made for this.",
            part={"softmax": lambda s: s.exp() / s.exp().sum(-1, keepdim=True)},
            hint=2,
        ),
        Misconception(
            "hard-attention",
            "Each query looks at its one favourite key only: an argmax, which also lets no gradient through.",
            part={"softmax": lambda s: F.one_hot(s.argmax(-1), s.shape[-1]).to(s.dtype)},
            hint=2,
        ),
        Misconception(
            "scaled-after-the-softmax",
            "The rows of your weights sum to 1/√D: the scores were made without the scale, and the *weights* divided.",
            wrong=lambda q, k, v: (
                torch.softmax(q @ k.mT, -1) / math.sqrt(q.shape[-1]) @ v,
                torch.softmax(q @ k.mT, -1) / math.sqrt(q.shape[-1]),
            ),
            hint=1,
        ),
        Misconception(
            "keys-mixed-instead-of-values",
            "The weights mix the *keys*. Keys are for being found; what a query gets are the values.",
            part={"mix": lambda w, q, k, v: w @ k},
            hint=2,
        ),
        Misconception(
            "entry-by-entry",
            "`*` multiplies the weights with the values entry by entry, and mixes nothing. Each output is a *sum* over the "
            "keys: weight times value, added up.",
            part={"mix": lambda w, q, k, v: w * v},
            hint=2,
        ),
        Misconception(
            "plain-mean",
            "Every query gets the same: the plain mean of the values. The weights are not used.",
            part={"mix": lambda w, q, k, v: v.mean(-2, keepdim=True).expand(-1, w.shape[-2], -1)},
            hint=2,
        ),
        Misconception(
            "mean-for-sum",
            "The output is S times too small: a mean over the keys where the weighted *sum* belongs. The weights "
            "already sum to 1.",
            part={"mix": lambda w, q, k, v: w @ v / v.shape[-2]},
            hint=2,
            also=(
                lambda q, k, v: (lambda w: ((w.unsqueeze(-1) * v.unsqueeze(1)).mean(2), w))(
                    attend_with()(q, k, v)[1]
                ),
            ),
        ),
        Misconception(
            "one-row-per-key",
            "Your weights are (N, S, L), one row per key, and do not fit the values. Either q and k have changed "
            "places, or a transpose is one too many: the queries ask, so each query has a row.",
            wrong=lambda q, k, v: attend_with()(k, q, v),
            hint=1,
            also=(lambda q, k, v: (lambda w: (w.mT @ v, w))(attend_with()(q, k, v)[1]),),
        ),
        Misconception(
            "keys-and-values-swapped",
            "k and v have changed places: the queries are compared with the values. Queries meet keys, weights meet values.",
            wrong=lambda q, k, v: attend_with()(q, v, k),
            hint=1,
        ),
        Misconception(
            "scores-returned",
            "The output is right. The second thing you return is the scores; the weights are wanted, what the softmax made of "
            "them.",
            wrong=lambda q, k, v: (attend_with()(q, k, v)[0], reference.attention_scores(q, k)),
            hint=3,
        ),
        Misconception(
            "weights-first",
            "Two results are there, in the wrong order: the output comes first, then the weights.",
            part={"give": lambda output, weights: (weights, output)},
            hint=3,
        ),
        Misconception(
            "output-only",
            "Only the output is returned. Return two things: we want to look at the weights, too.",
            part={"give": lambda output, weights: output},
            hint=3,
        ),
        Misconception(
            "cut-off",
            "Right numbers, cut off from q, k and v (by `detach`, `.data`, NumPy or `no_grad`): nothing could ever learn "
            "through them. Compute with q, k and v themselves, in torch.",
            wrong=attend_cut_off,
            hint=3,
        ),
        Misconception(
            "weights-detached",
            "The output is right, but its weights are detached: v can learn, q and k cannot. Leave the `detach` out.",
            wrong=lambda q, k, v: (lambda w: (w.detach() @ v, w.detach()))(attend_with()(q, k, v)[1]),
            hint=3,
        ),
        Misconception(
            "writes-into-q",
            "Right numbers, but q is not what it was: `q /= …` writes into the caller's tensor. Make a new one.",
            wrong=attend_in_place_on_inputs,
            hint=3,
        ),
    ),
    properties=(
        Property("rows sum to 1", rows_or_columns, hint=2),
        Property("a mixture of values", is_a_mixture, hint=2),
    ),
    styles=(
        Style("own softmax", attend_with(softmax=lambda s: reference.stable_softmax(s, -1))),
        Style(
            "einsum",
            lambda q, k, v: (lambda w: (torch.einsum("nls,nsd->nld", w, v), w))(
                torch.einsum("nld,nsd->nls", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
            ),
        ),
        Style("bmm and F.softmax, in place on its own", attend_in_place),
        Style("baddbmm", attend_baddbmm),
        Style("loops", attend_by_loops),
        Style(
            "torch.sqrt", attend_with(scores=lambda q, k: q @ k.mT / torch.sqrt(torch.tensor(q.shape[-1])))
        ),
        Style("float64 inside", attend_float64),
        Style("not contiguous", attend_not_contiguous),
        Style("a list instead of a tuple", lambda q, k, v: list(attend_with()(q, k, v))),
        Style(
            "nn.Softmax",
            lambda q, k, v: (lambda w: (w @ v, w))(nn.Softmax(dim=-1)(q @ k.mT / math.sqrt(k.shape[-1]))),
        ),
    ),
)


# -------------------------------------------------------------------------------- 1.4 weight_sharpness


def own_keys(queries, keys, D, random=torch.randn):
    """Queries in the batch, each with keys of its own: (queries, 1, D), (queries, keys, D)."""
    return random(queries, 1, D), random(queries, keys, D)


def shared_keys(queries, keys, D):
    """One draw of keys for all queries: (1, queries, D), (1, keys, D)."""
    return torch.randn(1, queries, D), torch.randn(1, keys, D)


def sharpness_with(
    scale=lambda scores, D, scaled: scores / math.sqrt(D) if scaled else scores,
    draw=own_keys,
    normal=lambda scores: torch.softmax(scores, -1),
    measure=lambda weights: weights.amax(-1).mean(),
):
    """The experiment from its parts."""

    def weight_sharpness(D, scaled, keys=16, queries=500):
        q, k = draw(queries, keys, D)
        return measure(normal(scale(q @ k.mT, D, scaled))).item()

    return weight_sharpness


def sharpness_by_twenties(D, scaled, keys=16, queries=500):
    total = 0.0
    for _ in range(queries // 20):  # fresh keys for every 20 queries
        scores = torch.randn(20, D) @ torch.randn(keys, D).T
        total += torch.softmax(scores / (D**0.5 if scaled else 1), -1).amax(-1).mean().item()
    return total / (queries // 20)


# The largest weight of one query scatters by less than 0.2 here, so the mean of 1000 by less than 0.0065. Where all
# queries share one draw of keys (a right answer, too) the mean scatters by up to 0.012: measured, and the reason why
# no D is small; at D = 4 it would be 0.04. Two experiments then differ by 0.0125, and by 0.06 about once in a million.
SHARPNESS_TOLERANCE = 0.06


def sharpness_case(name, D, scaled, keys=16):
    return Case(
        name,
        lambda draw: {"D": D, "scaled": scaled, "keys": keys, "queries": 1000},
        tolerance=SHARPNESS_TOLERANCE,
    )


WEIGHT_SHARPNESS = Exercise(
    name="weight_sharpness",
    number="1.4",
    reference=reference.weight_sharpness,
    returns=("sharpness",),
    assemble=sharpness_with,
    builds_on=("attention_scores", "stable_softmax", "attend"),
    differentiable=False,
    device_safe=False,  # it draws its own numbers and gives a Python float
    cases=(
        sharpness_case("raw, D = 64", 64, False),
        sharpness_case("scaled, D = 16", 16, True),
        sharpness_case("scaled, D = 400, 2 keys", 400, True, keys=2),
    ),
    misconceptions=(
        Misconception(
            "never-scaled",
            "`scaled=True` changes nothing.",
            part={"scale": lambda scores, D, scaled: scores},
            hint=2,
        ),
        Misconception(
            "always-scaled",
            "The scores are divided by √D even for `scaled=False`. (Your `attention_scores` already divides.)",
            part={"scale": lambda scores, D, scaled: scores / math.sqrt(D)},
            hint=2,
        ),
        Misconception(
            "scaled-once-more",
            "Too even, raw and scaled: `attention_scores` divides by √D already, so raw is scaled in yours, and scaled is "
            "scaled twice.",
            part={"scale": lambda scores, D, scaled: scores / D if scaled else scores / math.sqrt(D)},
            hint=2,
        ),
        Misconception(
            "the-other-way-round",
            "Raw and scaled have changed places.",
            part={"scale": lambda scores, D, scaled: scores if scaled else scores / math.sqrt(D)},
            hint=2,
        ),
        Misconception(
            "scaled-twice",
            "Scaled comes out too even: √D was divided out twice, once in `attention_scores` and once here.",
            part={"scale": lambda scores, D, scaled: scores / D if scaled else scores},
            hint=2,
        ),
        Misconception(
            "mean-weight",
            "You always get 1/keys: the mean of *all* weights of a row that sums to 1. Take the largest of each row "
            "first, then the mean of those.",
            part={"measure": lambda weights: weights.mean()},
            hint=1,
        ),
        Misconception(
            "largest-of-all",
            "Nearly 1 every time: the single largest weight of all queries. Take the largest of each row, then the mean.",
            part={"measure": lambda weights: weights.max()},
            hint=1,
        ),
        Misconception(
            "smallest-weight",
            "Nearly 0: the *smallest* weight of each row.",
            part={"measure": lambda weights: weights.amin(-1).mean()},
            hint=1,
        ),
        Misconception(
            "sum-for-mean",
            "Far above 1: the largest weights were summed over the queries, not averaged.",
            part={"measure": lambda weights: weights.amax(-1).sum()},
            hint=1,
        ),
        Misconception(
            "largest-score",
            "Above 1: the largest *score* was measured; the softmax is missing.",
            part={"normal": lambda scores: scores},
            hint=1,
        ),
        Misconception(
            "softmax-not-over-keys",
            "The weights of a query do not sum to 1 over its keys: the softmax ran along another dimension. The keys "
            "are the last one, in `(queries, 1, keys)` too.",
            part={"normal": lambda scores: torch.softmax(scores, 1)},
            hint=1,
            also=(
                sharpness_with(normal=lambda scores: torch.softmax(scores, 0)),
                sharpness_with(draw=shared_keys, normal=lambda scores: torch.softmax(scores, 1)),
            ),
        ),
        Misconception(
            "number-of-keys-ignored",
            "Right for 16 keys, wrong for another number: `keys` is not used.",
            wrong=lambda D, scaled, keys, queries: sharpness_with()(D, scaled, 16, queries),
            hint=1,
        ),
        Misconception(
            "uniform-numbers",
            "Your numbers lie between 0 and 1, all of them positive: `torch.rand`. Normal numbers are wanted.",
            part={"draw": functools.partial(own_keys, random=torch.rand)},
            hint=3,
        ),
    ),
    styles=(
        Style("in parts", sharpness_with()),
        Style("max with values", sharpness_with(measure=lambda weights: weights.max(dim=-1).values.mean())),
        Style(
            "scores taken back",
            lambda D, scaled, keys=16, queries=500: (
                reference.stable_softmax(
                    reference.attention_scores(torch.randn(queries, 1, D), torch.randn(queries, keys, D))
                    * (1 if scaled else D**0.5),
                    -1,
                )
                .amax(-1)
                .mean()
                .item()
            ),
        ),
        Style(
            "float()",
            lambda D, scaled, keys=16, queries=500: float(sharpness_with()(D, scaled, keys, queries)),
        ),
        Style("keys shared by some queries", sharpness_by_twenties),
        Style("keys shared by all queries", sharpness_with(draw=shared_keys)),
        Style(
            "float64",
            sharpness_with(
                draw=functools.partial(own_keys, random=functools.partial(torch.randn, dtype=torch.float64))
            ),
        ),
        Style(
            "einsum",
            lambda D, scaled, keys=16, queries=500: (
                torch.einsum("qd,qkd->qk", torch.randn(queries, D), torch.randn(queries, keys, D))
                .div(D**0.5 if scaled else 1)
                .softmax(-1)
                .max(-1)[0]
                .mean()
                .item()
            ),
        ),
    ),
)


# -------------------------------------------------------------------------------------- 1.5 SingleHead


def head_with(
    ask=lambda m, x: m.query(x),
    offer=lambda m, x: m.key(x),
    give=lambda m, x: m.value(x),
    attention=reference.attend,
    result=lambda output, weights: (output, weights),
    bias=False,
):
    """A module from its parts."""

    class SingleHead(nn.Module):
        def __init__(self, E, D):
            super().__init__()
            self.query = nn.Linear(E, D, bias=bias)
            self.key = nn.Linear(E, D, bias=bias)
            self.value = nn.Linear(E, D, bias=bias)

        def forward(self, x):
            return result(*attention(ask(self, x), offer(self, x), give(self, x)))

    return SingleHead


class HeadWithParameters(nn.Module):
    """The same names, without ``forward`` of nn.Linear."""

    def __init__(self, E, D):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(E, D, bias=False) for _ in range(3))
        self.D = D

    def forward(self, x):
        q, k, v = (torch.einsum("nle,de->nld", x, part.weight) for part in (self.query, self.key, self.value))
        weights = F.softmax(torch.bmm(q, k.transpose(1, 2)) / self.D**0.5, dim=-1)
        return torch.bmm(weights, v), weights


class HeadByOneProduct(HeadWithParameters):
    def forward(self, x):
        packed = torch.cat([self.query.weight, self.key.weight, self.value.weight])  # (3D, E)
        q, k, v = (x @ packed.T).chunk(3, dim=-1)
        return attend_own_exp(q, k, v)


class HeadFolded(HeadWithParameters):
    """Query and key weights multiplied first: the scores depend on their product only."""

    def forward(self, x):
        scores = x @ (self.query.weight.T @ self.key.weight) @ x.mT / math.sqrt(self.D)
        weights = scores.softmax(-1)
        return weights @ x @ self.value.weight.T, weights


class HeadWithOneLayer(HeadWithParameters):
    def __init__(self, E, D):
        super().__init__(E, D)
        self.query = self.key = self.value


class HeadWrongSizes(nn.Module):
    def __init__(self, E, D):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(D, E, bias=False) for _ in range(3))

    def forward(self, x):
        return reference.attend(self.query(x), self.key(x), self.value(x))


def draw_tokens(draw, dtype=torch.float64, N=2, L=5, E=6):
    return {"x": draw.normal(N, L, E, dtype=dtype)}


SINGLE_HEAD = Exercise(
    name="SingleHead",
    number="1.5",
    reference=reference.SingleHead,
    returns=("output (N, L, D)", "weights (N, L, L)"),
    is_class=True,
    assemble=head_with,
    forbidden=("ready-made attention",),
    builds_on=("attend", "attention_scores", "stable_softmax"),
    cases=(
        Case("E and D differ", draw_tokens, construct={"E": 6, "D": 4}),
        Case("D larger than E", lambda draw: draw_tokens(draw, N=3, L=4, E=5), construct={"E": 5, "D": 9}),
        Case("float32", lambda draw: draw_tokens(draw, FLOAT32, N=4, L=3, E=7), construct={"E": 7, "D": 2}),
    ),
    misconceptions=(
        Misconception(
            "keys-from-the-query-projection",
            "Queries and keys come out of one and the same layer: either `self.query` makes both, or the two names stand for "
            "one layer. Each of the three has a projection of its own.",
            part={"offer": lambda m, x: m.query(x)},
            hint=2,
        ),
        Misconception(
            "queries-from-the-key-projection",
            "Queries and keys come out of one and the same layer: either `self.key` makes both, or the two names stand for "
            "one layer. Each of the three has a projection of its own.",
            part={"ask": lambda m, x: m.key(x)},
            hint=2,
        ),
        Misconception(
            "values-from-the-key-projection",
            "Keys and values come out of one and the same layer: either `self.key` makes both, or the two names stand for "
            "one layer. Each of the three has a projection of its own.",
            part={"give": lambda m, x: m.key(x)},
            hint=2,
        ),
        Misconception(
            "values-from-the-query-projection",
            "Queries and values come out of one and the same layer: either `self.query` makes both, or the two names stand "
            "for one layer. Each of the three has a projection of its own.",
            part={"give": lambda m, x: m.query(x)},
            hint=2,
        ),
        Misconception(
            "keys-from-the-value-projection",
            "Keys and values come out of one and the same layer: either `self.value` makes both, or the two names stand for "
            "one layer. Each of the three has a projection of its own.",
            part={"offer": lambda m, x: m.value(x)},
            hint=2,
        ),
        Misconception(
            "queries-from-the-value-projection",
            "Queries and values come out of one and the same layer: either `self.value` makes both, or the two names stand "
            "for one layer. Each of the three has a projection of its own.",
            part={"ask": lambda m, x: m.value(x)},
            hint=2,
        ),
        Misconception(
            "one-projection-for-all",
            "Queries, keys and values come out of one and the same layer: one projection is used for all, or the three names "
            "stand for one layer. Each of the three has a projection of its own.",
            wrong=head_with(offer=lambda m, x: m.query(x), give=lambda m, x: m.query(x)),
            hint=2,
            also=(HeadWithOneLayer,),
        ),
        Misconception(
            "query-and-key-swapped",
            "`self.key` makes the queries and `self.query` the keys: the weights come out as if transposed before the softmax.",
            wrong=head_with(ask=lambda m, x: m.key(x), offer=lambda m, x: m.query(x)),
            hint=2,
        ),
        Misconception(
            "key-and-value-swapped",
            "`self.value` makes the keys and `self.key` the values.",
            wrong=head_with(offer=lambda m, x: m.value(x), give=lambda m, x: m.key(x)),
            hint=2,
        ),
        Misconception(
            "tokens-not-projected",
            "The output has E features, expected D: the weights mix the tokens themselves. Project them to values first.",
            part={"give": lambda m, x: x},
            hint=2,
        ),
        Misconception(
            "no-scale",
            "Your weights are too sharp: the scores are not divided by √D.",
            part={"attention": attend_with(scores=lambda q, k: q @ k.mT)},
            hint=2,
        ),
        Misconception(
            "root-of-embed-dim",
            "Your scores are divided by √E, the size of a token. What is summed in a dot product are the D features of "
            "a query.",
            part={"ask": lambda m, x: m.query(x) * math.sqrt(m.query.out_features / x.shape[-1])},
            hint=2,
        ),
        Misconception(
            "root-of-tokens",
            "Your scores are divided by √L, the number of tokens. What is summed in a dot product are the D features "
            "of a query.",
            part={"attention": attend_with(scores=lambda q, k: q @ k.mT / math.sqrt(k.shape[-2]))},
            hint=2,
        ),
        Misconception(
            "divided-by-d",
            "Your weights are too even: the scores are divided by D, not by √D. (`attend` divides already.)",
            part={"attention": attend_with(scores=lambda q, k: q @ k.mT / q.shape[-1])},
            hint=2,
        ),
        Misconception(
            "softmax-over-batch",
            "Your weights sum to 1 across the samples of the batch: the softmax ran over dim 0. Each *row* should sum "
            "to 1.",
            part={"attention": attend_with(softmax=lambda s: torch.softmax(s, 0))},
            hint=2,
        ),
        Misconception(
            "softmax-over-queries",
            "Each *column* of your weights sums to 1, each row should. With L = S nothing else shows it: the softmax ran "
            "over the queries.",
            part={"attention": attend_with(softmax=lambda s: torch.softmax(s, -2))},
            hint=2,
        ),
        Misconception(
            "with-bias",
            "The projections have biases; in this module they have none. `nn.Linear` makes one unless it is told not to.",
            wrong=head_with(bias=True),
            hint=1,
        ),
        Misconception(
            "sizes-swapped",
            "The projections go from D to E; tokens have E features and queries D. `nn.Linear(in, out)`.",
            wrong=HeadWrongSizes,
            hint=1,
        ),
        Misconception(
            "output-only",
            "Only the output is returned. Return two things, as `attend` does.",
            part={"result": lambda output, weights: output},
            hint=3,
        ),
        Misconception(
            "weights-first",
            "Both results are there, in the wrong order: the output comes first.",
            part={"result": lambda output, weights: (weights, output)},
            hint=3,
        ),
    ),
    properties=(Property("rows sum to 1", rows_or_columns, hint=2),),
    styles=(
        Style("attend inside", head_with()),
        Style("own softmax and bmm", HeadWithParameters),
        Style("one product for all three", HeadByOneProduct),
        Style("weights multiplied first", HeadFolded),
        Style("float64 inside", head_with(attention=attend_float64)),
        Style("loops", head_with(attention=attend_by_loops)),
    ),
)


# --------------------------------------------------------------------------------- 1.6 permutation_gap


def gap_with(
    before=lambda x, perm: x[:, perm],
    after=lambda y, perm: y[:, perm],
    measure=lambda gap: gap.abs().max(),
):
    """The comparison from its parts."""

    def permutation_gap(fn, x, perm):
        return measure(fn(before(x, perm)) - after(fn(x), perm)).item()

    return permutation_gap


def gap_by_tokens(fn, x, perm):
    shuffled = torch.stack([x[:, p] for p in perm.tolist()], dim=1)
    largest, plain, mixed = 0.0, fn(x), fn(shuffled)
    for place, p in enumerate(perm.tolist()):
        largest = max(largest, float((mixed[:, place] - plain[:, p]).abs().max()))
    return largest


def gap_with_a_matrix(fn, x, perm):
    P = torch.eye(len(perm), dtype=x.dtype)[perm]  # (L, L): row i has its 1 at perm[i]
    return (fn(P @ x) - P @ fn(x)).abs().amax().item()


def gap_undone(fn, x, perm):
    """Shuffle, apply, shuffle back."""
    return float((fn(x[:, perm])[:, perm.argsort()] - fn(x)).abs().max())


def gap_case(name, fn):
    return Case(name, lambda draw: {"fn": Named(fn), "x": draw.normal(3, 5, 6), "perm": draw.permutation(5)})


def only_negative(draw):
    """Token 0 is zero and moves to the end, the others move one place forward: every product gets smaller."""
    x = draw.uniform(2, 4, 3) + 0.5
    x[:, 0] = 0
    return {"fn": Named("weighted_by_position"), "x": x, "perm": torch.tensor([1, 2, 3, 0])}


def example_tokens(draw):
    x = torch.tensor([5.0, 7.0, 9.0], dtype=torch.float64).view(1, 3, 1)
    return {"fn": Named("weighted_by_position"), "x": x, "perm": torch.tensor([2, 0, 1])}


PERMUTATION_GAP = Exercise(
    name="permutation_gap",
    number="1.6",
    reference=reference.permutation_gap,
    returns=("gap",),
    assemble=gap_with,
    differentiable=False,
    device_safe=False,  # gives a Python float
    cases=(
        Case("the lesson's own example", example_tokens),
        gap_case("fn = attention, which does not know order", "plain_self_attention"),
        gap_case("fn = a running mean, which does", "cumulative_mean"),
        gap_case("fn = a weight for each place", "weighted_by_position"),
        Case("all differences negative", only_negative),
    ),
    misconceptions=(
        Misconception(
            "output-not-shuffled",
            "Even a function that ignores order gets a gap from you: fn(shuffled x) is compared with fn(x) as it stands. "
            "Token 3's result has moved to another row; compare it with itself.",
            part={"after": lambda y, perm: y},
            hint=2,
        ),
        Misconception(
            "shuffled-back-wrongly",
            "The output is shuffled by the *inverse* permutation. Shuffle the input and the output the same way.",
            part={"after": lambda y, perm: y[:, perm.argsort()]},
            hint=2,
        ),
        Misconception(
            "nothing-shuffled",
            "Your gap is 0 even for functions that know order: both sides are the same.",
            wrong=lambda fn, x, perm: (fn(x[:, perm]) - fn(x[:, perm])).abs().max().item(),
            hint=1,
        ),
        Misconception(
            "input-not-shuffled",
            "fn(x) is compared with its own shuffled result: the input was never shuffled.",
            part={"before": lambda x, perm: x},
            hint=2,
        ),
        Misconception(
            "features-shuffled",
            "The *features* were shuffled (the last dimension). Tokens are dimension 1.",
            wrong=lambda fn, x, perm: (fn(x[..., perm]) - fn(x)[..., perm]).abs().max().item(),
            hint=1,
        ),
        Misconception(
            "batch-shuffled",
            "`x[perm]` shuffles the batch (dimension 0), and there are fewer samples than tokens. Tokens are dimension 1.",
            wrong=lambda fn, x, perm: (fn(x[perm]) - fn(x)[perm]).abs().max().item(),
            hint=1,
        ),
        Misconception(
            "yes-or-no",
            "You answer *whether* the two differ (True or False). *How much* they differ is wanted: the largest difference.",
            wrong=lambda fn, x, perm: torch.allclose(fn(x[:, perm]), fn(x)[:, perm]),
            hint=3,
            also=(lambda fn, x, perm: not torch.allclose(fn(x[:, perm]), fn(x)[:, perm]),),
        ),
        Misconception(
            "mean-for-largest",
            "The *mean* difference is given; the largest is wanted.",
            part={"measure": lambda gap: gap.abs().mean()},
            hint=3,
        ),
        Misconception(
            "sum-for-largest",
            "The *sum* of the differences is given; the largest is wanted.",
            part={"measure": lambda gap: gap.abs().sum()},
            hint=3,
        ),
        Misconception(
            "squared",
            "The differences are squared; the largest absolute one is wanted.",
            part={"measure": lambda gap: gap.pow(2).max()},
            hint=3,
        ),
        Misconception(
            "no-absolute-value",
            "The largest difference is taken with its sign: a large negative one is overlooked.",
            part={"measure": lambda gap: gap.max()},
            hint=3,
        ),
        Misconception(
            "root-mean-square",
            "A norm of all differences is given; the largest absolute one is wanted.",
            part={"measure": lambda gap: gap.norm()},
            hint=3,
        ),
    ),
    styles=(
        Style("in parts", gap_with()),
        Style("token by token", gap_by_tokens),
        Style("a permutation matrix", gap_with_a_matrix),
        Style("shuffled and back", gap_undone),
        Style(
            "index_select",
            gap_with(
                before=lambda x, perm: x.index_select(1, perm), after=lambda y, perm: y.index_select(1, perm)
            ),
        ),
        Style(
            "gather and float()",
            lambda fn, x, perm: float(
                (fn(x.take_along_dim(perm.view(1, -1, 1), 1)) - fn(x).take_along_dim(perm.view(1, -1, 1), 1))
                .abs()
                .max()
            ),
        ),
    ),
)


# ----------------------------------------------------------------------------------------- questions

WHY_SCALE = Question(
    "why_scale",
    right="c",
    why={
        "a": "They may well be negative, and stay so: dividing by a positive number changes no sign.",
        "b": "It is the softmax that makes rows sum to 1, with or without the scale.",
        "c": "Yes. D products of variance 1 add up to variance D, so scores grow like √D; undivided, the softmax "
        "saturates and its gradient vanishes: that was the picture.",
        "d": "A division costs a little time; it saves none.",
    },
)
WHICH_DIM = Question(
    "which_dim",
    right="a",
    why={
        "a": "Yes: the keys are the last dimension of (N, L, S). Each query shares 1 among them.",
        "b": "That is dimension 1, the queries: then each *key* would be shared among the queries.",
        "c": "Dimension 0 is the batch: samples have nothing to do with one another.",
        "d": "Then all rows would share a single 1, and a sentence of twice the length would get half the output.",
    },
)
WHAT_IS_MIXED = Question(
    "what_is_mixed",
    right="b",
    why={
        "a": "Queries only ask. They decide the weights and are then forgotten.",
        "b": "Yes: the output is a weighted mean of the values, so it always lies between them.",
        "c": "Keys are what the queries are compared with; what they stand for is in the values.",
        "d": "Scores become weights; they say how much, not what.",
    },
)
BLIND_TO_ORDER = Question(
    "blind_to_order",
    right="d",
    why={
        "a": "That would be so if attention knew order; your own permutation_gap measured 0.",
        "b": "Each token's output is the same vector as before. It is not lost, it has moved.",
        "c": "The softmax is over the keys, and a sum does not care in which order they come.",
        "d": "Yes: shuffle the tokens and the outputs are shuffled along. Where order matters (it usually does), "
        "positions must be put in: lesson 06.",
    },
)

LESSON = Lesson(
    folder="01_one_head",
    title="One head",
    exercises=(ATTENTION_SCORES, STABLE_SOFTMAX, ATTEND, WEIGHT_SHARPNESS, SINGLE_HEAD, PERMUTATION_GAP),
    questions=(WHY_SCALE, WHICH_DIM, WHAT_IS_MIXED, BLIND_TO_ORDER),
)
