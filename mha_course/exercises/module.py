"""Lesson 04, declared: packing projections, dropout on weights, the module, a gradient by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Named, Question, Style

FLOAT32 = torch.float32


# ------------------------------------------------------------------------- 4.1 and 4.2 packing


def three_matrices(draw, E=4, dtype=torch.float64):
    return {name: draw.normal(E, E, dtype=dtype) for name in ("wq", "wk", "wv")}


def packed_matrix(draw, E=4, dtype=torch.float64):
    return {"packed": draw.normal(3 * E, E, dtype=dtype)}


def pack_into_empty(wq, wk, wv):
    packed = torch.zeros(3 * wq.shape[0], wq.shape[1], dtype=wq.dtype, device=wq.device)
    packed[: wq.shape[0]] = wq
    packed[wq.shape[0] : 2 * wq.shape[0]] = wk
    packed[2 * wq.shape[0] :] = wv
    return packed


PACK = Exercise(
    name="pack_projections",
    number="4.1",
    reference=reference.pack_projections,
    returns=("packed (3E, E)",),
    cases=(
        Case("E = 4", three_matrices),
        Case("float32, E = 6", lambda draw: three_matrices(draw, 6, FLOAT32)),
    ),
    misconceptions=(
        Misconception(
            "side-by-side",
            "Your result is (E, 3E): the matrices stand side by side. The rows of a Linear's weight are its outputs, "
            "and it is outputs we want more of: stack them on top of one another.",
            wrong=lambda wq, wk, wv: torch.cat([wq, wk, wv], dim=1),
            hint=2,
            also=(lambda wq, wk, wv: torch.hstack([wq, wk, wv]),),
        ),
        Misconception(
            "a-new-dimension",
            "Your result is (3, E, E): `stack` makes a new dimension. Put the rows into one matrix of 3E rows.",
            wrong=lambda wq, wk, wv: torch.stack([wq, wk, wv]),
            hint=2,
        ),
        Misconception(
            "backwards",
            "All rows are there, in the order value, key, query. The agreed order is query, key, value: every saved model "
            "depends on it.",
            wrong=lambda wq, wk, wv: torch.cat([wv, wk, wq]),
            hint=1,
        ),
        Misconception(
            "key-first",
            "All rows are there, in the order key, query, value. The agreed order is query, key, value.",
            wrong=lambda wq, wk, wv: torch.cat([wk, wq, wv]),
            hint=1,
        ),
        Misconception(
            "value-before-key",
            "All rows are there, in the order query, value, key. The agreed order is query, key, value.",
            wrong=lambda wq, wk, wv: torch.cat([wq, wv, wk]),
            hint=1,
        ),
        Misconception(
            "rows-interleaved",
            "All rows are there, but dealt out like cards: one query row, one key row, one value row, and so on. "
            "The three blocks stay whole.",
            wrong=lambda wq, wk, wv: torch.stack([wq, wk, wv], dim=1).flatten(0, 1),
            hint=2,
        ),
        Misconception(
            "transposed",
            "Each matrix was transposed first. `nn.Linear.weight` is (out, in) already and multiplies as x @ weight.T.",
            wrong=lambda wq, wk, wv: torch.cat([wq.T, wk.T, wv.T]),
            hint=2,
        ),
        Misconception(
            "query-three-times",
            "The query matrix stands there three times.",
            wrong=lambda wq, wk, wv: wq.repeat(3, 1),
            hint=1,
        ),
        Misconception(
            "cut-off",
            "The right matrix, cut off from the three it was made of: loading it would be fine, training through it not.",
            wrong=lambda wq, wk, wv: torch.cat([wq, wk, wv]).detach(),
            hint=3,
        ),
    ),
    styles=(
        Style("cat", lambda wq, wk, wv: torch.cat((wq, wk, wv), 0)),
        Style("vstack", lambda wq, wk, wv: torch.vstack([wq, wk, wv])),
        Style("stack and flatten", lambda wq, wk, wv: torch.stack([wq, wk, wv]).flatten(0, 1)),
        Style("into zeros", pack_into_empty),
        Style("from the columns", lambda wq, wk, wv: torch.cat([wq.T, wk.T, wv.T], dim=1).T),
    ),
)

UNPACK = Exercise(
    name="unpack_projections",
    number="4.2",
    reference=reference.unpack_projections,
    returns=("wq (E, E)", "wk (E, E)", "wv (E, E)"),
    cases=(
        Case("E = 4", packed_matrix),
        Case("float32, E = 6", lambda draw: packed_matrix(draw, 6, FLOAT32)),
    ),
    misconceptions=(
        Misconception(
            "backwards",
            "The three blocks come out as value, key, query; the agreed order is query, key, value.",
            wrong=lambda packed: packed.chunk(3)[::-1],
            hint=1,
        ),
        Misconception(
            "key-first",
            "The first two blocks have changed places: query comes first, then key.",
            wrong=lambda packed: (packed.chunk(3)[1], packed.chunk(3)[0], packed.chunk(3)[2]),
            hint=1,
        ),
        Misconception(
            "value-before-key",
            "The last two blocks have changed places: key comes second, value last.",
            wrong=lambda packed: (packed.chunk(3)[0], packed.chunk(3)[2], packed.chunk(3)[1]),
            hint=1,
        ),
        Misconception(
            "a-row-lost-in-between",
            "The second and third block start a row too late. A slice leaves out its end, so the next one begins *at* that "
            "number, not after it.",
            wrong=lambda packed: (lambda E: (packed[:E], packed[E + 1 : 2 * E + 1], packed[2 * E + 1 :]))(
                packed.shape[1]
            ),
            hint=2,
            also=(
                lambda packed: (lambda E: (packed[:E], packed[E + 1 : 2 * E], packed[2 * E + 1 :]))(
                    packed.shape[1]
                ),
            ),
        ),
        Misconception(
            "every-third-row",
            "Each of yours has every third row. The blocks are whole: rows 0 … E−1, E … 2E−1, 2E … 3E−1.",
            wrong=lambda packed: (packed[0::3], packed[1::3], packed[2::3]),
            hint=2,
            also=(lambda packed: packed.view(-1, 3, packed.shape[1]).unbind(1),),
        ),
        Misconception(
            "cut-the-columns",
            "The *columns* were cut in three. The packed matrix is (3E, E): cut its rows.",
            wrong=lambda packed: packed.tensor_split(3, dim=1),
            hint=2,
            also=(lambda packed: packed.chunk(3, dim=1),),
        ),
        Misconception(
            "transposed",
            "The blocks are right, and transposed. Leave them as they lie: (out, in).",
            wrong=lambda packed: tuple(block.T for block in packed.chunk(3)),
            hint=2,
        ),
        Misconception(
            "one-tensor",
            "One tensor of shape (3, E, E) came back; return three matrices.",
            wrong=lambda packed: packed.view(3, -1, packed.shape[1]),
            hint=3,
        ),
        Misconception(
            "the-same-three-times",
            "All three are the query block.",
            wrong=lambda packed: (packed.chunk(3)[0],) * 3,
            hint=1,
        ),
    ),
    styles=(
        Style("chunk", lambda packed: packed.chunk(3)),
        Style("split", lambda packed: packed.split(packed.shape[1])),
        Style(
            "slices",
            lambda packed: [packed[i * packed.shape[1] : (i + 1) * packed.shape[1]] for i in range(3)],
        ),
        Style("view and unbind", lambda packed: packed.view(3, -1, packed.shape[1]).unbind(0)),
        Style("tensor_split", lambda packed: torch.tensor_split(packed, 3)),
    ),
)


# ------------------------------------------------------------------------- 4.3 attention_dropout


def dropout_with(
    keep=lambda w, p: (torch.rand_like(w) >= p).to(w.dtype),
    rescale=lambda kept, w, p: kept / (1 - p),
    when=lambda training: training,
    otherwise=lambda w, p: w,
):
    def attention_dropout(weights, p, training):
        if not when(training):
            return otherwise(weights, p)
        return rescale(weights * keep(weights, p), weights, p)

    return attention_dropout


def dropout_in_place(weights, p, training):
    if not training:
        return weights
    weights *= torch.rand_like(weights) >= p
    return weights / (1 - p)


def attention_rows(draw, p, training, shape=(50, 20, 40)):
    return {"weights": draw.normal(*shape).softmax(-1), "p": p, "training": training}


def dropped_out(value, inputs):
    """What can be said of a random result: how much is 0, how the rest was scaled, what vanishes together."""
    zero = value == 0
    factor = (value / inputs["weights"])[~zero]
    even = bool(factor.numel()) and bool((factor - factor[0]).abs().max() < 1e-6 * factor[0].abs())
    return {
        "the share of zeros": zero.double().mean().item(),
        "the factor of what is kept": factor.median().item() if factor.numel() else 0.0,
        "whether all that is kept has one factor": even,
        "the share of empty rows": zero.all(-1).double().mean().item(),
        "the share of empty columns": zero.all(-2).double().mean().item(),
        "the share of places that are empty in every sample": zero.all(0).double().mean().item(),
    }


# Shares of 40 000 weights scatter by 0.002; where whole rows vanish together there are only 1000 of them, and two
# such shares differ by 0.02. 0.08 is four times that.
SCATTER = 0.08


def dropout_case(name, p, training, **more):
    return Case(
        name,
        lambda draw: attention_rows(draw, p, training),
        look_at=dropped_out,
        tolerance=SCATTER,
        gradients=False,
        **more,
    )


ATTENTION_DROPOUT = Exercise(
    name="attention_dropout",
    number="4.3",
    reference=reference.attention_dropout,
    returns=("weights (as given)",),
    assemble=dropout_with,
    cases=(
        dropout_case("training, p = 0.25", 0.25, True),
        dropout_case("training, p = 0.6", 0.6, True),
        Case("not training", lambda draw: attention_rows(draw, 0.5, False, (2, 3, 4))),
        Case("training, p = 0", lambda draw: attention_rows(draw, 0.0, True, (2, 3, 4))),
    ),
    misconceptions=(
        Misconception(
            "no-rescale",
            "What is kept was not made stronger: on average the rows now sum to 1 − p, and in eval mode everything would be "
            "larger than in training.",
            part={"rescale": lambda kept, w, p: kept},
            hint=2,
        ),
        Misconception(
            "rescaled-by-p",
            "The rest was divided by p. What is kept has probability 1 − p: divide by that.",
            part={"rescale": lambda kept, w, p: kept / p if p else kept},
            hint=2,
            also=(dropout_with(rescale=lambda kept, w, p: kept / p),),
        ),
        Misconception(
            "multiplied-by-the-keep-probability",
            "The rest was made *weaker*, by 1 − p. It has to make up for what was dropped: divide.",
            part={"rescale": lambda kept, w, p: kept * (1 - p)},
            hint=2,
        ),
        Misconception(
            "rows-renormalised",
            "The rows were made to sum to 1 again. Dropout lets each row's sum scatter around 1; only the mean is kept.",
            part={
                "rescale": lambda kept, w, p: (
                    kept / kept.sum(-1, keepdim=True).clamp_min(1e-30) * w.sum(-1, keepdim=True)
                )
            },
            hint=2,
            also=(dropout_with(rescale=lambda kept, w, p: kept / kept.sum(-1, keepdim=True)),),
        ),
        Misconception(
            "keeps-with-probability-p",
            "The share of zeros is 1 − p, and should be p: p is the probability of being *dropped*.",
            part={"keep": lambda w, p: (torch.rand_like(w) < p).to(w.dtype) if p else torch.ones_like(w)},
            hint=1,
            also=(dropout_with(keep=lambda w, p: (torch.rand_like(w) < p).to(w.dtype)),),
        ),
        Misconception(
            "p-for-keeping",
            "You took p for the probability of being *kept*, twice: in the coin and in the division. It is the probability of "
            "being dropped, so 1 − p are kept.",
            wrong=dropout_with(
                keep=lambda w, p: (torch.rand_like(w) < p).to(w.dtype), rescale=lambda kept, w, p: kept / p
            ),
            hint=1,
        ),
        Misconception(
            "softmax-again",
            "The dropped weights got −∞ and a second softmax ran over *weights*. Dropout comes after the softmax: a weight "
            "becomes 0, and the others are divided by 1 − p.",
            wrong=lambda weights, p, training: (
                weights.masked_fill(torch.rand_like(weights) < p, -torch.inf).softmax(-1)
                if training
                else weights
            ),
            hint=2,
        ),
        Misconception(
            "one-sample-for-all",
            "The same places vanish in every sample: one coin was thrown for the whole batch. Throw one for every weight.",
            part={"keep": lambda w, p: (torch.rand_like(w[:1]) >= p).to(w.dtype)},
            hint=2,
        ),
        Misconception(
            "also-in-eval",
            "Weights are dropped although `training` is False. A trained model must give the same answer twice.",
            part={"when": lambda training: True},
            hint=1,
            also=(lambda weights, p, training: F.dropout(weights, p),),
        ),
        Misconception(
            "never",
            "Nothing is dropped in training either.",
            part={"when": lambda training: False},
            hint=1,
        ),
        Misconception(
            "only-in-eval",
            "It drops when `training` is False, and not when it is True: the wrong way round.",
            part={"when": lambda training: not training},
            hint=1,
        ),
        Misconception(
            "weaker-in-eval",
            "In eval mode the weights are multiplied by 1 − p: the old way, which makes up at the other end. Here "
            "training makes up (divides by 1 − p), and eval leaves the weights alone.",
            part={"rescale": lambda kept, w, p: kept, "otherwise": lambda w, p: w * (1 - p)},
            hint=2,
        ),
        Misconception(
            "whole-queries",
            "Whole rows vanish: one coin was thrown per query. Throw one for every weight.",
            part={"keep": lambda w, p: (torch.rand_like(w[..., :1]) >= p).to(w.dtype)},
            hint=2,
        ),
        Misconception(
            "whole-keys",
            "Whole columns vanish: one coin was thrown per key. Throw one for every weight.",
            part={"keep": lambda w, p: (torch.rand_like(w[..., :1, :]) >= p).to(w.dtype)},
            hint=2,
            also=(dropout_with(keep=lambda w, p: torch.rand(w.shape[-1], device=w.device) >= p),),
        ),
        Misconception(
            "writes-into-weights",
            "The weights that were given have changed: `*=` writes into the caller's tensor, and those are the weights "
            "we want to look at.",
            wrong=dropout_in_place,
            hint=3,
        ),
    ),
    styles=(
        Style(
            "rand and where",
            lambda weights, p, training: (
                torch.where(torch.rand_like(weights) < p, 0.0, weights / (1 - p)) if training else weights
            ),
        ),
        Style("F.dropout", lambda weights, p, training: F.dropout(weights, p, training)),
        Style(
            "bernoulli",
            lambda weights, p, training: (
                weights * torch.bernoulli(torch.full_like(weights, 1 - p)) / (1 - p) if training else weights
            ),
        ),
        Style(
            "masked_fill",
            lambda weights, p, training: (
                weights.masked_fill(torch.rand(weights.shape, device=weights.device) < p, 0) * (1 / (1 - p))
                if training
                else weights
            ),
        ),
        Style("a copy in eval", lambda weights, p, training: dropout_with()(weights, p, training).clone()),
        Style("nn.Dropout", lambda weights, p, training: nn.Dropout(p).train(training)(weights)),
    ),
)


# ------------------------------------------------------------------------- 4.4 MultiHeadAttention


def keep_dead_rows_at_zero(scores, may_attend):
    return torch.softmax(scores, -1) if may_attend is None else reference.masked_softmax(scores, may_attend)


def module_with(
    check_sizes=True,
    with_bias=lambda bias: bias,
    out_bias=lambda bias: bias,
    features=lambda E, kdim, vdim: (kdim or E, vdim or E),
    keys=lambda query, key, value: key,
    values=lambda query, key, value: value,
    split=reference.split_heads,
    merge=reference.merge_heads,
    scale=lambda D, E: 1 / math.sqrt(D),
    weigh=keep_dead_rows_at_zero,
    drop=reference.attention_dropout,
    drop_scores=False,
    finish=lambda module, merged: module.out(merged),
    shown=lambda before, after: before,
    average=lambda weights: weights.mean(1),
    when=lambda average_weights: average_weights,
    answer=lambda output, weights, need, averaged: (output, weights if need else None),
):
    """The module from its parts."""

    class MultiHeadAttention(nn.Module):
        def __init__(self, E, H, dropout=0.0, bias=True, kdim=None, vdim=None):
            super().__init__()
            if check_sizes and E % H:
                raise ValueError("H must divide E")
            self.E, self.H, self.dropout = E, H, dropout
            (key_features, value_features), bias = features(E, kdim, vdim), with_bias(bias)
            self.query = nn.Linear(E, E, bias=bias)
            self.key = nn.Linear(key_features, E, bias=bias)
            self.value = nn.Linear(value_features, E, bias=bias)
            self.out = nn.Linear(E, E, bias=out_bias(bias))

        def forward(self, query, key, value, may_attend=None, need_weights=False, average_weights=True):
            q = split(self.query(query), self.H)
            k = split(self.key(keys(query, key, value)), self.H)
            v = split(self.value(values(query, key, value)), self.H)
            scores = q @ k.mT * scale(q.shape[-1], self.E)
            if drop_scores:
                scores = F.dropout(scores, self.dropout, self.training)
            weights = weigh(scores, may_attend)
            dropped = drop(weights, self.dropout, self.training)
            output = finish(self, merge(dropped @ v))
            seen = shown(weights, dropped)
            return answer(
                output, average(seen) if when(average_weights) else seen, need_weights, average_weights
            )

    return MultiHeadAttention


class ModuleByEinsum(reference.MultiHeadAttention):
    def forward(self, query, key, value, may_attend=None, need_weights=False, average_weights=True):
        D = query.shape[-1] // self.H
        q, k, v = (
            part(x).unflatten(-1, (self.H, D))
            for part, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        scores = torch.einsum("nlhd,nshd->nhls", q, k) / D**0.5
        if may_attend is not None:
            dead = ~may_attend.any(-1, keepdim=True)
            scores = scores + torch.zeros_like(scores).masked_fill(~(may_attend | dead), -torch.inf)
        weights = scores.softmax(-1)
        if may_attend is not None:
            weights = weights * ~dead
        dropped = F.dropout(weights, self.dropout, self.training)
        output = self.out(torch.einsum("nhls,nshd->nlhd", dropped, v).flatten(2))
        return output, (weights.mean(dim=1) if average_weights else weights) if need_weights else None


class ModuleByLoop(reference.MultiHeadAttention):
    def forward(self, query, key, value, may_attend=None, need_weights=False, average_weights=True):
        q, k, v = self.query(query), self.key(key), self.value(value)
        mask = None if may_attend is None else may_attend.expand(q.shape[0], self.H, q.shape[1], k.shape[1])
        outputs, looks = [], []
        for h, (qh, kh, vh) in enumerate(zip(*(x.chunk(self.H, -1) for x in (q, k, v)))):
            scores = torch.bmm(qh, kh.transpose(1, 2)) * qh.shape[-1] ** -0.5
            w = keep_dead_rows_at_zero(scores, None if mask is None else mask[:, h])
            looks.append(w)
            outputs.append(torch.bmm(F.dropout(w, self.dropout, self.training), vh))
        weights = torch.stack(looks, 1)
        return self.out(torch.cat(outputs, -1)), (
            weights.mean(1) if average_weights else weights
        ) if need_weights else None


class ModuleWithHeadsInTheBatch(reference.MultiHeadAttention):
    def forward(self, query, key, value, may_attend=None, need_weights=False, average_weights=True):
        N, L, E = query.shape
        q, k, v = (
            part(x).view(N, -1, self.H, E // self.H).transpose(1, 2).reshape(N * self.H, -1, E // self.H)
            for part, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        scores = torch.baddbmm(q.new_zeros(N * self.H, L, k.shape[1]), q, k.mT, alpha=(E // self.H) ** -0.5)
        scores = scores.view(N, self.H, L, -1)
        weights = keep_dead_rows_at_zero(scores, may_attend)
        dropped = F.dropout(weights, self.dropout, self.training).flatten(0, 1)
        merged = torch.bmm(dropped, v).view(N, self.H, L, -1).permute(0, 2, 1, 3).reshape(N, L, E)
        shown = (weights.mean(1) if average_weights else weights) if need_weights else None
        return self.out(merged), shown


def cross(draw, N=2, L=5, S=7, E=12, kdim=12, vdim=12, mask=None, dtype=torch.float64, **options):
    inputs = {
        "query": draw.normal(N, L, E, dtype=dtype),
        "key": draw.normal(N, S, kdim, dtype=dtype),
        "value": draw.normal(N, S, vdim, dtype=dtype),
    }
    if mask is not None:
        inputs["may_attend"] = mask(draw)
    return {**inputs, **options}


def causal_self_attention(draw):
    x = draw.normal(3, 4, 8)
    return {"query": x, "key": x.clone(), "value": x.clone(), "may_attend": reference.causal_mask(4, 4)}


def one_dead_row(draw):
    mask = draw.mask(2, 1, 5, 7)
    mask[1, 0, 3] = False
    return mask


def many_copies(draw):
    """One small sample, two thousand times: what scatters between the copies is the dropout."""
    x = {
        name: draw.normal(1, size, 6).expand(2000, -1, -1).contiguous()
        for name, size in (("query", 2), ("key", 4), ("value", 4))
    }
    return {**x, "need_weights": True, "average_weights": False}


def over_copies(value, inputs):
    output, weights = value
    # a coin for each of 4 keys in each of 2 heads makes 2⁸ outputs, and each of them is drawn about 8 times
    different = len(output[:, 0].mul(1e6).round().unique(dim=0))
    spread = max(output.std(0).mean().item(), 1e-9)
    return {
        "the mean output, in units of its spread,": output.mean(0) / spread,
        "the logarithm of the outputs' spread": math.log(spread),
        "the share of zeros in the output": (output == 0).double().mean().item(),
        "how many outputs one query can get, as a power of 2,": math.log2(different),
        "the mean weights": weights.mean(0),
        "the share of zeros in the weights": (weights == 0).double().mean().item(),
    }


MULTI_HEAD_ATTENTION = Exercise(
    name="MultiHeadAttention",
    number="4.4",
    reference=reference.MultiHeadAttention,
    returns=("output (N, L, E)", "weights (N, L, S) or (N, H, L, S)"),
    is_class=True,
    keywords=("may_attend", "need_weights", "average_weights", "dropout", "bias", "kdim", "vdim"),
    assemble=module_with,
    forbidden=("ready-made attention",),
    builds_on=("attend_in_parallel", "split_heads", "merge_heads", "masked_softmax", "attention_dropout"),
    cases=(
        Case("cross-attention, nothing else", cross, construct={"E": 12, "H": 3}),
        Case(
            "a causal mask (L, S) in training", causal_self_attention, construct={"E": 8, "H": 2}, train=True
        ),
        Case(
            "weights per head",
            lambda draw: cross(draw, need_weights=True, average_weights=False),
            construct={"E": 12, "H": 3},
        ),
        Case(
            "no bias",
            lambda draw: cross(draw, N=3, L=4, S=6, E=8, kdim=8, vdim=8),
            construct={"E": 8, "H": 2, "bias": False},
        ),
        Case(
            "three different inputs, weights averaged",
            lambda draw: cross(draw, kdim=5, vdim=8, need_weights=True),
            construct={"E": 12, "H": 3, "kdim": 5, "vdim": 8},
        ),
        Case(
            "a mask for each sample, one row may see nothing",
            lambda draw: cross(draw, mask=one_dead_row, need_weights=True, average_weights=False),
            construct={"E": 12, "H": 3},
        ),
        # in units of its own spread the mean over 2000 copies scatters by 1/√2000 = 0.022, the logarithm of the spread
        # by 0.016; 0.25 is eight times the difference of two such means
        Case(
            "dropout in training",
            many_copies,
            construct={"E": 6, "H": 2, "dropout": 0.5},
            train=True,
            look_at=over_copies,
            tolerance=0.25,
            gradients=False,
        ),
        Case(
            "dropout, but not training",
            lambda draw: cross(draw, N=1, L=3, S=4, E=6, kdim=6, vdim=6, dtype=FLOAT32),
            construct={"E": 6, "H": 2, "dropout": 0.5},
        ),
        Case(
            "E = 10 and H = 3",
            lambda draw: cross(draw, E=10, kdim=10, vdim=10),
            construct={"E": 10, "H": 3},
            raises=(ValueError,),
        ),
    ),
    misconceptions=(
        Misconception(
            "output-projection-forgotten",
            "The heads' results come back as they are: `out` gets no gradient. The output projection is where the heads "
            "are mixed.",
            part={"finish": lambda module, merged: merged},
            hint=2,
        ),
        Misconception(
            "self-attention-only",
            "`key` and `value` are not used: everything is made from `query`. With three different inputs the query "
            "looks elsewhere.",
            wrong=module_with(keys=lambda q, k, v: q, values=lambda q, k, v: q),
            hint=1,
        ),
        Misconception(
            "keys-from-query",
            "The keys are made from `query`; the input `key` is never used. With as many queries as keys you would hardly "
            "notice; here the two sizes differ.",
            part={"keys": lambda q, k, v: q},
            hint=1,
        ),
        Misconception(
            "values-from-query",
            "The values are made from `query`; the input `value` is never used. With as many queries as keys you would hardly "
            "notice; here the two sizes differ.",
            part={"values": lambda q, k, v: q},
            hint=1,
        ),
        Misconception(
            "values-from-key",
            "The values are made from `key`; the input `value` is never used.",
            part={"values": lambda q, k, v: k},
            hint=1,
        ),
        Misconception(
            "bias-ignored",
            "`bias=False` does not reach every layer: there are still biases. All four layers should have none.",
            part={"with_bias": lambda bias: True},
            hint=1,
            also=(module_with(out_bias=lambda bias: True),),
        ),
        Misconception(
            "kdim-and-vdim-ignored",
            "`key` and `value` take E features whatever `kdim` and `vdim` say. Keys have kdim features and values vdim, where "
            "they are given.",
            part={"features": lambda E, kdim, vdim: (E, E)},
            hint=1,
        ),
        Misconception(
            "none-for-a-size",
            "`kdim` and `vdim` are None where nobody gives them, and None is no size for a layer. Then keys and values have E "
            "features, like the queries.",
            part={"features": lambda E, kdim, vdim: (kdim, vdim)},
            hint=1,
        ),
        Misconception(
            "kdim-for-vdim",
            "kdim and vdim have changed places: `key` takes kdim features, `value` vdim.",
            part={"features": lambda E, kdim, vdim: (vdim or E, kdim or E)},
            hint=1,
        ),
        Misconception(
            "keys-from-value",
            "The keys are made from `value`; the input `key` is never used.",
            part={"keys": lambda q, k, v: v},
            hint=1,
        ),
        Misconception(
            "root-of-e",
            "Your weights are too even: divided by √E. What is summed in one head's dot product are D = E/H features.",
            part={"scale": lambda D, E: 1 / math.sqrt(E)},
            hint=2,
        ),
        Misconception(
            "no-scale",
            "Your weights are too sharp: the scores are not divided by √D.",
            part={"scale": lambda D, E: 1.0},
            hint=2,
        ),
        Misconception(
            "split-without-transpose",
            "The heads are scrambled: splitting took a plain view to (N, H, L, D), which cuts the tokens up. Your "
            "`split_heads` of lesson 03 has the transpose.",
            part={"split": lambda x, H: x.reshape(x.shape[0], H, x.shape[1], -1)},
            hint=2,
        ),
        Misconception(
            "merge-without-transpose",
            "The heads are put together wrongly: (N, H, L, D) was reshaped to (N, L, E) without bringing H and D together "
            "first.",
            part={"merge": lambda x: x.reshape(x.shape[0], x.shape[2], -1)},
            hint=2,
        ),
        Misconception(
            "mask-ignored",
            "`may_attend` changes nothing: it is accepted and not passed on.",
            part={"weigh": lambda scores, may_attend: torch.softmax(scores, -1)},
            hint=2,
        ),
        Misconception(
            "mask-inverted",
            "The mask works the wrong way round: True means *may* look here, and you close what is True.",
            part={"weigh": lambda scores, m: keep_dead_rows_at_zero(scores, None if m is None else ~m)},
            hint=2,
        ),
        Misconception(
            "dead-row-is-nan",
            "A query that may see nothing gives NaN: a softmax over nothing but −∞. Use your `masked_softmax` of lesson "
            "02, which gives zeros there.",
            part={
                "weigh": lambda scores, m: torch.softmax(
                    scores if m is None else scores.masked_fill(~m, -torch.inf), -1
                )
            },
            hint=2,
        ),
        Misconception(
            "large-negative-fill",
            "A query that may see nothing looks everywhere alike: all its scores became the same number, or its weights were "
            "made even afterwards. It should get zeros.",
            part={
                "weigh": lambda scores, m: torch.softmax(
                    scores if m is None else scores.masked_fill(~m, -1e9), -1
                )
            },
            hint=2,
        ),
        Misconception(
            "mask-always-needed",
            "Without a mask, `may_attend` is None, and your code stops: it uses the mask before it has asked whether there is "
            "one. Without one, every query may see every key.",
            part={"weigh": reference.masked_softmax},
            hint=2,
            also=(module_with(weigh=lambda s, m: torch.softmax(s.masked_fill(~m, -torch.inf), -1)),),
        ),
        Misconception(
            "mask-after-softmax",
            "The mask comes after the softmax: what remains of a row does not sum to 1.",
            part={"weigh": lambda scores, m: torch.softmax(scores, -1) * (1 if m is None else m)},
            hint=2,
        ),
        Misconception(
            "softmax-over-heads",
            "The softmax ran over the heads (dim 1): for each query and key the heads' weights sum to 1.",
            part={
                "weigh": lambda scores, m: torch.softmax(
                    scores if m is None else scores.masked_fill(~m, -torch.inf), 1
                ).nan_to_num()
            },
            hint=2,
        ),
        Misconception(
            "no-dropout",
            "In training nothing scatters: the dropout is missing.",
            part={"drop": lambda w, p, training: w},
            hint=3,
        ),
        Misconception(
            "dropout-without-rescale",
            "In training the output is too small on average: weights are dropped, and those that are kept are not made "
            "stronger for it. Your `attention_dropout` does both.",
            part={"drop": lambda w, p, training: w * (torch.rand_like(w) >= p) if training else w},
            hint=3,
        ),
        Misconception(
            "dropout-twice",
            "In training more is dropped than p says: the weights go through the dropout twice, or the output once more.",
            part={"drop": lambda w, p, training: F.dropout(F.dropout(w, p, training), p, training)},
            hint=3,
            also=(
                module_with(
                    finish=lambda module, merged: F.dropout(
                        module.out(merged), module.dropout, module.training
                    )
                ),
            ),
        ),
        Misconception(
            "dropout-on-the-scores",
            "The dropout acts on the scores, before the softmax: a score of 0 is no closed look, and no weight becomes 0. It "
            "belongs on the weights.",
            wrong=module_with(drop=lambda w, p, training: w, drop_scores=True),
            hint=3,
        ),
        Misconception(
            "dropout-in-eval",
            "The output changes from call to call although the module is in eval mode: use `self.training`.",
            part={"drop": lambda w, p, training: F.dropout(w, p, True)},
            hint=3,
        ),
        Misconception(
            "dropout-on-the-output",
            "Zeros appear in the output: the dropout is applied there. It belongs on the weights: a head misses a word.",
            wrong=module_with(
                drop=lambda w, p, training: w,
                finish=lambda module, merged: F.dropout(module.out(merged), module.dropout, module.training),
            ),
            hint=3,
        ),
        Misconception(
            "dropout-on-the-merged-heads",
            "The dropout acts on the merged heads, before `out`. It belongs on the weights: a head misses a word, not a "
            "feature.",
            wrong=module_with(
                drop=lambda w, p, training: w,
                finish=lambda module, merged: module.out(F.dropout(merged, module.dropout, module.training)),
            ),
            hint=3,
        ),
        Misconception(
            "weights-after-dropout",
            "In training the weights you return have holes: they are shown after the dropout. Show them as they were before.",
            part={"shown": lambda before, after: after},
            hint=3,
        ),
        Misconception(
            "averaged-over-the-batch",
            "The weights were averaged over the batch (dim 0): samples have nothing to do with one another. The heads are dim 1.",
            part={"average": lambda weights: weights.mean(0)},
            hint=3,
        ),
        Misconception(
            "summed-over-heads",
            "The weights are H times too large: summed over the heads, not averaged.",
            part={"average": lambda weights: weights.sum(1)},
            hint=3,
        ),
        Misconception(
            "never-averaged",
            "Where the average over the heads is wanted, you return every head's weights.",
            part={"average": lambda weights: weights},
            hint=3,
        ),
        Misconception(
            "always-averaged",
            "`average_weights=False` asks for every head's weights, (N, H, L, S); yours are always averaged.",
            part={"when": lambda average_weights: True},
            hint=3,
        ),
        Misconception(
            "average-turned-round",
            "`average_weights` works the wrong way round.",
            part={"when": lambda average_weights: not average_weights},
            hint=3,
        ),
        Misconception(
            "one-head-for-the-average",
            "Where the average over the heads is wanted, you return the weights of a single head.",
            part={"average": lambda weights: weights[:, 0]},
            hint=3,
            also=(module_with(average=lambda weights: weights[:, -1]),),
        ),
        Misconception(
            "weights-always",
            "Weights come back although `need_weights` is False; return `None` in their place.",
            part={"answer": lambda output, weights, need, averaged: (output, weights)},
            hint=3,
        ),
        Misconception(
            "output-alone",
            "Without weights you return the output alone. Always return a pair; None stands in the place of the weights.",
            part={"answer": lambda output, weights, need, averaged: (output, weights) if need else output},
            hint=3,
        ),
        Misconception(
            "any-h-accepted",
            "E = 10 cannot be shared out evenly among 3 heads, and your module does not say so.",
            part={"check_sizes": False},
            hint=1,
        ),
    ),
    styles=(
        Style("in parts", module_with()),
        Style("einsum", ModuleByEinsum),
        Style("a loop over heads", ModuleByLoop),
        Style("heads in the batch, baddbmm", ModuleWithHeadsInTheBatch),
        Style(
            "float64 inside",
            module_with(weigh=lambda scores, m: keep_dead_rows_at_zero(scores.double(), m).to(scores.dtype)),
        ),
        Style("nn.Dropout's function", module_with(drop=F.dropout)),
    ),
)


# ------------------------------------------------------------------------- 4.5 numerical_gradient


def gradient_with(quotient=lambda fn, x, move, step: (fn(x + move) - fn(x - move)) / (2 * step)):
    def numerical_gradient(fn, x, step=1e-5):
        gradient = torch.zeros_like(x)
        for index in range(x.numel()):
            move = torch.zeros_like(x)
            move.view(-1)[index] = step
            gradient.view(-1)[index] = quotient(fn, x, move, step)
        return gradient

    return numerical_gradient


def gradient_that_leaves_traces(fn, x, step=1e-5):
    gradient = torch.zeros_like(x)
    for index in range(x.numel()):
        x.view(-1)[index] += step
        above = fn(x)
        x.view(-1)[index] -= 2 * step
        gradient.view(-1)[index] = (above - fn(x)) / (2 * step)
    return gradient


def gradient_by_identity(fn, x, step=1e-5):
    moves = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape) * step
    return torch.stack([(fn(x + move) - fn(x - move)) / (2 * step) for move in moves]).view(x.shape)


def gradient_on_a_copy(fn, x, step=1e-5):
    y, found = x.clone(), []
    flat = y.view(-1)
    for index in range(flat.numel()):
        old = flat[index].item()
        flat[index] = old + step
        above = fn(y).item()
        flat[index] = old - step
        found.append((above - fn(y).item()) / (2 * step))
        flat[index] = old
    return torch.tensor(found, dtype=x.dtype).view_as(x)


def gradient_by_rows(fn, x, step=1e-5):
    gradient = torch.zeros_like(x)
    for i in range(len(x)):
        move = torch.zeros_like(x)
        move[i] = step
        gradient[i] = (fn(x + move) - fn(x - move)) / (2 * step)
    return gradient


def gradient_of_all_at_every_turn(fn, x, step=1e-5):
    gradient = torch.zeros_like(x)
    for i in range(len(x)):
        gradient[i] = (fn(x + step) - fn(x - step)) / (2 * step)
    return gradient


def gradient_by_autograd(fn, x, step=1e-5):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(fn(x), x)[0]


def gradient_case(name, fn, step, *shape):
    # rounding in fn is divided by the step: 1e-15 / 1e-5
    return Case(
        name,
        lambda draw: {"fn": Named(fn), "x": draw.normal(*shape), "step": step},
        tolerance=1e-6,
        gradients=False,
    )


NUMERICAL_GRADIENT = Exercise(
    name="numerical_gradient",
    number="4.5",
    reference=reference.numerical_gradient,
    returns=("gradient (as x)",),
    assemble=gradient_with,
    differentiable=False,
    device_safe=False,  # goes through x number by number, on the CPU, by its nature
    cases=(
        gradient_case("a sum of cubes", "sum_of_cubes", 1e-5, 3, 4),
        gradient_case("numbers that meet their neighbours", "chained_products", 1e-5, 2, 3, 2),
        gradient_case("a large step", "sum_of_cubes", 0.1, 5),
    ),
    misconceptions=(
        Misconception(
            "one-sided",
            "Your numbers are off, and the more so the larger the step is: you look at one side only, from x to x + step. "
            "From both sides the largest error cancels.",
            part={"quotient": lambda fn, x, move, step: (fn(x + move) - fn(x)) / step},
            hint=2,
        ),
        Misconception(
            "backward-only",
            "Your numbers are off, and the more so the larger the step is: you look back only, from x to x − step. From both "
            "sides the largest error cancels.",
            part={"quotient": lambda fn, x, move, step: (fn(x) - fn(x - move)) / step},
            hint=2,
        ),
        Misconception(
            "two-forgotten",
            "Every number is twice too large: x − step and x + step are *two* steps apart.",
            part={"quotient": lambda fn, x, move, step: (fn(x + move) - fn(x - move)) / step},
            hint=2,
        ),
        Misconception(
            "not-divided",
            "Your numbers are tiny: the difference is not divided by how far x was moved.",
            part={"quotient": lambda fn, x, move, step: fn(x + move) - fn(x - move)},
            hint=2,
        ),
        Misconception(
            "backwards",
            "Every sign is wrong: fn(x − step) − fn(x + step).",
            part={"quotient": lambda fn, x, move, step: (fn(x - move) - fn(x + move)) / (2 * step)},
            hint=2,
        ),
        Misconception(
            "all-at-once",
            "There is one number for the whole of x (perhaps many times over): all of x was moved at once. Move one number at "
            "a time.",
            wrong=lambda fn, x, step=1e-5: torch.full_like(
                x, ((fn(x + step) - fn(x - step)) / (2 * step)).item()
            ),
            hint=1,
            also=(
                lambda fn, x, step=1e-5: (fn(x + step) - fn(x - step)) / (2 * step),
                lambda fn, x, step=1e-5: ((fn(x + step) - fn(x - step)) / (2 * step)).item(),
                gradient_of_all_at_every_turn,
            ),
        ),
        Misconception(
            "a-row-at-a-time",
            "All numbers of a row are the same: `len(x)` and `x[i]` go through the *rows* of x, so a whole row was moved at "
            "once. Move one number at a time, whatever the shape of x.",
            wrong=gradient_by_rows,
            hint=2,
        ),
        Misconception(
            "step-without-effect",
            "With a large step the result should be visibly off, and yours is exact: either `step` is not used, or these "
            "are autograd's numbers. The point is a second opinion that does not come from autograd.",
            wrong=gradient_by_autograd,
            hint=1,
            also=(lambda fn, x, step=1e-5: gradient_with()(fn, x, 1e-5),),
        ),
        Misconception(
            "one-long-row",
            "The numbers are right, in one long row. The gradient has the shape of x.",
            wrong=lambda fn, x, step=1e-5: gradient_with()(fn, x, step).flatten(),
            hint=2,
        ),
        Misconception(
            "x-not-put-back",
            "x is not what it was: every number stays moved, so each next one is measured at another place, and the "
            "caller's x is changed.",
            wrong=gradient_that_leaves_traces,
            hint=3,
        ),
    ),
    styles=(
        Style("a move at a time", gradient_with()),
        Style("rows of the identity", gradient_by_identity),
        Style("on a copy, put back", gradient_on_a_copy),
        Style(
            "a flat list",
            lambda fn, x, step=1e-5: torch.stack(
                [
                    (fn((x.flatten() + step * e).view_as(x)) - fn((x.flatten() - step * e).view_as(x)))
                    / (2 * step)
                    for e in torch.eye(x.numel(), dtype=x.dtype)
                ]
            ).view_as(x),
        ),
        Style(
            "two halves",
            gradient_with(
                lambda fn, x, move, step: ((fn(x + move) - fn(x)) + (fn(x) - fn(x - move))) / step / 2
            ),
        ),
    ),
)


# ----------------------------------------------------------------------------------------- questions

WHY_RESCALE = Question(
    "why_rescale",
    right="b",
    why={
        "a": "They do not, row by row: in training the sums scatter. That was the picture.",
        "b": "Yes: kept with probability 1 − p and made 1/(1 − p) times as strong, a weight is right on average, so eval needs no change.",
        "c": "It adds one division; it saves nothing.",
        "d": "The gradient of what was dropped is 0, with or without it.",
    },
)
CROSS_SHAPE = Question(
    "cross_shape",
    right="a",
    why={
        "a": "Yes: one output per *query*, and of the query's size E. The keys only decide what goes into it.",
        "b": "One output per key would mean that the keys ask.",
        "c": "kdim is the size of what comes in as a key; the key projection takes it to E.",
        "d": "The heads are merged before the output projection.",
    },
)
WHAT_OUT_DOES = Question(
    "what_out_does",
    right="d",
    why={
        "a": "The sizes are right without it: H heads of D features are E features.",
        "b": "The weights of each head sum to 1 by the softmax.",
        "c": "Nothing in it is non-linear.",
        "d": "Yes: until then each feature comes from one head alone. `out` is the only place where heads meet.",
    },
)

LESSON = Lesson(
    folder="04_module",
    title="The module",
    exercises=(PACK, UNPACK, ATTENTION_DROPOUT, MULTI_HEAD_ATTENTION, NUMERICAL_GRADIENT),
    questions=(WHY_RESCALE, CROSS_SHAPE, WHAT_OUT_DOES),
)
