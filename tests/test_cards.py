"""What a card says is true, and leads on: properties that keep silent, causes that have a name, hints that stay hints."""

import functools
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mha_course import exercises, reference
from mha_course.checking import LocalAnswer, examine
from mha_course.checking.examine import prepare
from mha_course.exercises import _properties

EVERY = [exercise for lesson in exercises.lessons() for exercise in lesson.exercises]
SPOKEN = [
    pytest.param(exercise, rule, id=f"{exercise.name}: {rule.name}")
    for exercise in EVERY
    for rule in exercise.properties
]
INF = torch.inf
SOLUTIONS = Path(__file__).parents[1] / "solutions"


# ------------------------------------------------------------------------------------- properties


def everywhere(change, value):
    """The value with every tensor in it changed; numbers become NaN where the change is to NaN."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(everywhere(change, item) for item in value)
    if change is all_nan and isinstance(value, float):
        return math.nan
    return value


def all_nan(x):
    return x * math.nan if x.is_floating_point() else x


def one_nan(x):
    if not x.is_floating_point() or not x.numel():
        return x
    return torch.where(torch.arange(x.numel(), device=x.device).view(x.shape) == x.numel() - 1, math.nan, x)


WRONG_SHAPES = {
    "a dimension more": lambda x: x.unsqueeze(0),
    "one long row": lambda x: torch.cat([x.flatten()] * 2),
    "twice as wide": lambda x: torch.cat([x, x], -1) if x.dim() else x.expand(2),
    "a row less": lambda x: x[:-1] if x.dim() else x.expand(3),
    "nothing in it": lambda x: x.flatten()[:0],
}


@functools.cache
def of_every_case(exercise_name):
    """What the right answer gets and gives, case by case."""
    trials = [trial for trial in prepare(exercises.find(exercise_name), 0) if not trial.case.raises]
    return [(trial.case.name, trial.call.inputs, trial.expected.value) for trial in trials]


@pytest.mark.parametrize(("exercise", "rule"), SPOKEN)
def test_a_property_has_nothing_to_say_of_the_right_answer(exercise, rule):
    for name, inputs, value in of_every_case(exercise.name):
        assert rule.fails(inputs, value) is None, name


# What 7.2 gives is a batch of any shape; its property asks where tensors are, not what is in them.
ABOUT_NUMBERS = [param for param in SPOKEN if param.values[0].name != "to_device"]


@pytest.mark.parametrize(("exercise", "rule"), ABOUT_NUMBERS)
def test_a_property_has_nothing_to_say_of_a_wrong_shape(exercise, rule):
    for name, inputs, value in of_every_case(exercise.name):
        for how, change in WRONG_SHAPES.items():
            assert rule.fails(inputs, everywhere(change, value)) is None, f"{name}, {how}"


@pytest.mark.parametrize(("exercise", "rule"), ABOUT_NUMBERS)
def test_a_property_has_nothing_to_say_of_nan(exercise, rule):
    for name, inputs, value in of_every_case(exercise.name):
        for change in (all_nan, one_nan):
            assert rule.fails(inputs, everywhere(change, value)) is None, f"{name}, {change.__name__}"


@pytest.mark.parametrize(("exercise", "rule"), ABOUT_NUMBERS)
def test_a_property_has_nothing_to_say_of_results_that_have_changed_places(exercise, rule):
    for name, inputs, value in of_every_case(exercise.name):
        if isinstance(value, tuple):
            assert rule.fails(inputs, value[::-1]) is None, name
        if isinstance(value, list):  # an object that was called several times
            turned = [step[::-1] if isinstance(step, tuple) else step for step in value]
            assert rule.fails(inputs, turned) is None, name


@pytest.mark.parametrize(("exercise", "rule"), SPOKEN)
def test_a_property_has_nothing_to_say_of_something_else_altogether(exercise, rule):
    for name, inputs, right in of_every_case(exercise.name):
        for value in (None, "abc", [], (), {}, (None, None), True, object(), torch.zeros(()), [3, None]):
            if type(value) is not type(right):
                assert rule.fails(inputs, value) is None, f"{name}, {value!r}"


def test_shapes_are_looked_at_before_a_property_speaks():
    speaks = _properties.of_shape(lambda inputs: (2, None))(lambda inputs, value: "wrong")
    assert speaks({}, torch.zeros(2, 5)) == "wrong"
    for other in (
        torch.zeros(3, 5),
        torch.zeros(2),
        torch.full((2, 5), math.nan),
        torch.full((2, 5), INF),
        1.0,
    ):
        assert speaks({}, other) is None
    assert speaks({}, torch.zeros(2, 5, device="meta")) is None


# ----------------------------------------------------------------------- the wrong answer and its card


def card_of(name, answer):
    """What a learner sees who wrote this answer, in one string, and the cause's id."""
    report = examine(exercises.find(name), LocalAnswer(answer), reference_allowed=True)
    assert report.status == "wrong"
    card = report.card
    return report.cause, "\n".join((card.headline, *card.lines, card.cause, card.hint))


def masked(scores, may_attend):
    return torch.softmax(scores, -1) if may_attend is None else reference.masked_softmax(scores, may_attend)


class Head(nn.Module):
    """1.5 as it should be; the wrong ones below change one thing."""

    def __init__(self, E, D):
        super().__init__()
        self.query = nn.Linear(E, D, bias=False)
        self.key = nn.Linear(E, D, bias=False)
        self.value = nn.Linear(E, D, bias=False)

    def forward(self, x):
        return reference.attend(self.query(x), self.key(x), self.value(x))


class OneLayerForAll(Head):
    def __init__(self, E, D):
        super().__init__(E, D)
        self.query = self.key = self.value = nn.Linear(E, D, bias=False)


class KeyIsQuery(Head):
    def __init__(self, E, D):
        super().__init__(E, D)
        self.key = self.query


class QueryIsKey(Head):
    def __init__(self, E, D):
        super().__init__(E, D)
        self.query = self.key


class ValueIsKey(Head):
    def __init__(self, E, D):
        super().__init__(E, D)
        self.value = self.key


class Module(nn.Module):
    """4.4, from methods that the wrong ones below replace."""

    def __init__(self, E, H, dropout=0.0, bias=True, kdim=None, vdim=None):
        super().__init__()
        if E % H:
            raise ValueError(f"{E} features, {H} heads")
        self.H, self.dropout = H, dropout
        self.query = nn.Linear(E, E, bias=bias)
        self.key = nn.Linear(self.size(kdim, E), E, bias=bias)
        self.value = nn.Linear(self.size(vdim, E), E, bias=bias)
        self.out = nn.Linear(E, E, bias=self.out_bias(bias))

    def size(self, wanted, E):
        return E if wanted is None else wanted

    def out_bias(self, bias):
        return bias

    def inputs(self, query, key, value):
        return query, key, value

    def weigh(self, scores, may_attend):
        return masked(scores, may_attend)

    def drop(self, weights):
        return reference.attention_dropout(weights, self.dropout, self.training)

    def finish(self, merged):
        return self.out(merged)

    def show(self, weights, average):
        return weights.mean(1) if average else weights

    def forward(self, query, key, value, may_attend=None, need_weights=False, average_weights=True):
        query, key, value = self.inputs(query, key, value)
        q, k, v = (
            reference.split_heads(layer(x), self.H)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        weights = self.weigh(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, may_attend)
        output = self.finish(reference.merge_heads(self.drop(weights) @ v))
        return output, self.show(weights, average_weights) if need_weights else None


def module(**methods):
    return type("Mine", (Module,), methods)


def head_swapped(q, k, v):
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=1)
    return weights, weights @ v


def steps_by_torch_tensor(query_positions, key_positions):
    return torch.tensor([[q - k for k in key_positions] for q in query_positions])


def leak_backward(fn, x):
    x = x.clone().requires_grad_(True)
    fn(x).sum().backward()
    return x.grad


def sharpness_scaled_once_more(D, scaled, keys=16, queries=500):
    scores = reference.attention_scores(torch.randn(queries, 1, D), torch.randn(queries, keys, D))
    if scaled:
        scores = scores / math.sqrt(D)
    return torch.softmax(scores, -1).amax(-1).mean().item()


def and_of_masks(*masks):
    m = masks[0]
    for x in masks[1:]:
        m = m and x
    return m


def tril_of_ones(L, S, offset=0, device=None):
    return torch.tril(torch.ones(L, S))


def triu_of_ones(L, S, offset=0, device=None):
    return torch.triu(torch.ones(L, S), diagonal=1).bool()


def padding_of_floats(lengths, S):
    return (torch.arange(S, device=lengths.device) < lengths[:, None]).unsqueeze(1).float()


def softmax_filled(low, dead=None):
    def masked_softmax(scores, may_attend):
        w = torch.softmax(torch.where(may_attend, scores, low), dim=-1)
        return w if dead is None else torch.where(may_attend.any(-1, keepdim=True), w, dead(w))

    return masked_softmax


def even_rows(w):
    return torch.full_like(w, 1 / w.shape[-1])


def softmax_lost_dimension(scores, may_attend):
    dead = ~may_attend.any(-1)
    w = scores.masked_fill(~(may_attend | dead), -INF).softmax(-1)
    return w.masked_fill(dead, 0.0)


def parallel_unsqueezed(q, k, v, H, may_attend=None):
    q, k, v = (reference.split_heads(x, H) for x in (q, k, v))
    if may_attend is not None:
        may_attend = may_attend.unsqueeze(1)
    w = masked(q @ k.mT / math.sqrt(q.shape[-1]), may_attend)
    return torch.cat((w @ v).unbind(1), dim=-1), w


def dropout_per_key(weights, p, training):
    if not training:
        return weights
    return weights * (torch.rand(weights.shape[-1], device=weights.device) >= p) / (1 - p)


def gradient_all_at_once(fn, x, step=1e-5):
    return (fn(x + step) - fn(x - step)) / (2 * step)


def gradient_over_rows(fn, x, step=1e-5):
    g = torch.zeros_like(x)
    for i in range(len(x)):
        d = torch.zeros_like(x)
        d[i] = step
        g[i] = (fn(x + d) - fn(x - d)) / (2 * step)
    return g


def gradient_one_sided(fn, x, step=1e-5):
    g = torch.zeros_like(x)
    for i in range(x.numel()):
        d = torch.zeros_like(x)
        d.view(-1)[i] = step
        g.view(-1)[i] = (fn(x + d) - fn(x)) / step
    return g


def blocked_never_turned(attn_mask, key_padding_mask, N, H):
    def closed(m):
        return m if m.dtype == torch.bool else m == -INF

    blocked = None
    if attn_mask is not None:
        blocked = closed(attn_mask)
        blocked = blocked.view(N, H, *blocked.shape[1:]) if blocked.dim() == 3 else blocked[None, None]
    if key_padding_mask is not None:
        padding = closed(key_padding_mask)[:, None, None, :]
        blocked = padding if blocked is None else blocked | padding
    return blocked  # the final ~ is missing


def load_in_order(*names):
    def load_from_torch(state):
        ours = {"out.weight": state["out_proj.weight"]}
        if "in_proj_weight" in state:
            for name, w in zip(names, state["in_proj_weight"].chunk(3)):
                ours[f"{name}.weight"] = w
        else:
            for name in ("query", "key", "value"):
                ours[f"{name}.weight"] = state[f"{name[0]}_proj_weight"]
        if "in_proj_bias" in state:
            for name, b in zip(names, state["in_proj_bias"].chunk(3)):
                ours[f"{name}.bias"] = b
            ours["out.bias"] = state["out_proj.bias"]
        return ours

    return load_from_torch


def export_in_order(*names):
    def export_to_torch(state):
        theirs = {"out_proj.weight": state["out.weight"]}
        ours = [state[f"{name}.weight"] for name in names]
        if len({w.shape for w in ours}) == 1:
            theirs["in_proj_weight"] = torch.cat(ours)
        else:
            for name in ("query", "key", "value"):
                theirs[f"{name[0]}_proj_weight"] = state[f"{name}.weight"]
        if "out.bias" in state:
            theirs["in_proj_bias"] = torch.cat([state[f"{name}.bias"] for name in names])
            theirs["out_proj.bias"] = state["out.bias"]
        return theirs

    return export_to_torch


def step_from_the_first_real_token(turn_q=reference.apply_rope, turn_k=reference.apply_rope, restart=False):
    """6.5 as the lesson's closing question suggests: places count from each sample's first real token."""

    def decode_step(q, k, v, cache, padding=None):
        seen, L = len(cache), q.shape[2]
        left = torch.zeros(len(q), dtype=torch.long, device=q.device) if padding is None else padding
        here = torch.arange(0 if restart else seen, (0 if restart else seen) + L, device=q.device)
        here = (here - left[:, None]).clamp(min=0)
        keys, values = cache.append(turn_k(k, here), v)
        j = torch.arange(seen + L, device=q.device)
        open_ = (j <= torch.arange(seen, seen + L, device=q.device)[:, None]) & (j >= left[:, None, None])
        return reference.grouped_attention(turn_q(q, here), keys, values, open_[:, None])

    return decode_step


def not_turned(x, positions):
    return x


def step_with_one_position(q, k, v, cache, padding=None):
    seen, L = len(cache), q.shape[2]
    here = torch.arange(seen, seen + L, device=q.device)
    keys, values = cache.append(reference.apply_rope(k, here), v)
    j = torch.arange(seen + L, device=q.device)
    open_ = j <= here[:, None]
    if padding is not None:
        open_ = open_ & (j >= padding[:, None, None, None])
    return reference.grouped_attention(
        reference.apply_rope(q, torch.full((L,), seen, device=q.device)), keys, values, open_
    )


def move_by_cuda(batch, device):
    if isinstance(batch, Tensor):
        return batch.cuda()
    if isinstance(batch, dict):
        return {key: move_by_cuda(x, device) for key, x in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [move_by_cuda(x, device) for x in batch]
    return batch


def move_into_the_given_dict(batch, device):
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        for key in batch:
            if isinstance(batch[key], Tensor):
                batch[key] = batch[key].to(device)
    return batch


def fused(merge, fill=True):
    def fused_attention(q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False):
        L, S = q.shape[-2], k.shape[-2]
        if may_attend is not None and is_causal:
            may_attend, is_causal = (
                merge(may_attend, torch.ones(L, S, dtype=torch.bool, device=q.device)),
                False,
            )
        if not fill and may_attend is not None:
            may_attend = may_attend | ~may_attend.any(-1, keepdim=True)
        p = dropout_p if training else 0.0
        return F.scaled_dot_product_attention(q, k, v, may_attend, p, is_causal)

    return fused_attention


def flash(low=-INF, whole=False, scale=1.0, more=0.0):
    """8.3 with a finite fill, without the last block, with other scores, or with something added to lse."""

    def flash_forward(q, k, v, block_size, may_attend=None):
        B, L, S = block_size, q.shape[-2], k.shape[-2]
        mask = None if may_attend is None else may_attend.expand(*q.shape[:2], L, S)
        output, lse = [], []
        for i in range(0, L, B):
            rows = q[..., i : i + B, :] / q.shape[-1] ** 0.5 * scale
            m = torch.full(rows.shape[:-1], -INF, dtype=q.dtype, device=q.device)
            l, acc = torch.zeros_like(m), rows.new_zeros(*rows.shape[:-1], v.shape[-1])
            for j in range(0, S // B * B if whole else S, B):
                scores = rows @ k[..., j : j + B, :].mT
                if mask is not None:
                    scores = scores.masked_fill(~mask[..., i : i + B, j : j + B], low)
                new = torch.maximum(m, scores.amax(-1))
                at = new.masked_fill(new == -INF, 0.0)
                p, less = (scores - at[..., None]).exp(), (m - at).exp()
                l, acc, m = l * less + p.sum(-1), acc * less[..., None] + p @ v[..., j : j + B, :], new
            output.append(acc / l.masked_fill(l == 0, 1.0)[..., None])
            lse.append(m + l.log() + more)
        return torch.cat(output, -2), torch.cat(lse, -1)

    return flash_forward


def backward(delta=1.0, weights=1.0, values_from_output=False):
    def flash_backward(q, k, v, output, lse, grad_output, block_size, may_attend=None):
        B, L, S = block_size, q.shape[-2], k.shape[-2]
        mask = None if may_attend is None else may_attend.expand(*q.shape[:2], L, S)
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        for i in range(0, L, B):
            a = slice(i, i + B)
            d = (grad_output[..., a, :] * output[..., a, :]).sum(-1, keepdim=True) * delta
            for j in range(0, S, B):
                b = slice(j, j + B)
                s = q[..., a, :] @ k[..., b, :].mT * q.shape[-1] ** -0.5
                if mask is not None:
                    s = s.masked_fill(~mask[..., a, b], -INF)
                p = weights * (s - lse[..., a, None].nan_to_num(neginf=0.0)).exp()
                grad_v[..., b, :] += p.mT @ (output if values_from_output else grad_output)[..., a, :]
                g = p * (grad_output[..., a, :] @ v[..., b, :].mT - d) * q.shape[-1] ** -0.5
                grad_q[..., a, :] += g @ k[..., b, :]
                grad_k[..., b, :] += g.mT @ q[..., a, :]
        return grad_q, grad_k, grad_v

    return flash_backward


def online(swapped=False, own=False):
    def online_softmax(blocks):
        m = l = None
        for block in blocks:
            top = block.amax(-1)
            if m is None:
                m, l = torch.full_like(top, -INF), torch.zeros_like(top)
            new = torch.maximum(m, top)
            at = new if own else new.masked_fill(new == -INF, 0.0)
            l = l * (m - at).exp() + (block - (top if own else at)[..., None]).exp().sum(-1)
            m = new
        return (l, m) if swapped else (m, l)

    return online_softmax


CARDS = [
    # exercise, what the learner wrote, the cause that is named, what is not said
    ("pairwise_dot", lambda a, b: (a[:, None] * b).sum(), "summed-over-everything", ""),
    ("pairwise_dot", lambda a, b: a @ b.view(2, 4), "reshape-for-transpose", "not `*`"),
    (
        "regroup",
        lambda x, groups: x.view(x.shape[0], groups, x.shape[1] / groups).transpose(0, 1),
        "size-is-a-float",
        "",
    ),
    ("attention_scores", lambda q, k: q @ k.mT / torch.sqrt(q.shape[-1]), "root-of-an-int", ""),
    (
        "stable_softmax",
        lambda x, dim: x.exp() / x.exp().sum(),
        "no-shift + sum-over-everything",
        "Small numbers come out right",
    ),
    ("attend", head_swapped, "softmax-over-queries + weights-first", "The rows of your weights"),
    (
        "attend",
        lambda q, k, v: (lambda w: (w * v, w))(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1)),
        "entry-by-entry",
        "outside the range",
    ),
    ("weight_sharpness", sharpness_scaled_once_more, "scaled-once-more", ""),
    ("SingleHead", OneLayerForAll, "one-projection-for-all", ""),
    ("SingleHead", KeyIsQuery, "queries-from-the-key-projection", "queries are made with"),
    ("SingleHead", QueryIsKey, "queries-from-the-key-projection", "queries are made with"),
    ("SingleHead", ValueIsKey, "keys-from-the-value-projection", "keys are made with"),
    ("causal_mask", tril_of_ones, "numbers-for-bools", ""),
    ("causal_mask", triu_of_ones, "inverted", ""),
    ("padding_mask", padding_of_floats, "numbers-for-bools", ""),
    ("combine_masks", and_of_masks, "pythons-and", ""),
    ("combine_masks", lambda *masks: functools.reduce(torch.logical_or, masks), "or-for-and", "**"),
    (
        "to_additive",
        lambda m, dtype: torch.zeros(m.shape, dtype=dtype, device=m.device).masked_fill(~m, -1e9),
        "large-negative-number",
        "overflows in float16",
    ),
    ("masked_softmax", softmax_filled(-20.0, dead=torch.zeros_like), "not-low-enough", "nobody may look"),
    ("masked_softmax", softmax_filled(-20.0), "not-low-enough", "nobody may look"),
    (
        "masked_softmax",
        softmax_filled(-INF, dead=even_rows),
        "large-negative-number",
        "filled with one large",
    ),
    ("masked_softmax", softmax_lost_dimension, "keepdim-forgotten", ""),
    ("future_leak", leak_backward, "gradient-of-the-sum", ""),
    ("attend_in_parallel", parallel_unsqueezed, "mask-given-another-dimension", ""),
    ("attention_dropout", dropout_per_key, "whole-keys", ""),
    ("MultiHeadAttention", module(inputs=lambda self, q, k, v: (q, q, v)), "keys-from-query", ""),
    ("MultiHeadAttention", module(inputs=lambda self, q, k, v: (q, k, q)), "values-from-query", ""),
    ("MultiHeadAttention", module(size=lambda self, wanted, E: wanted), "none-for-a-size", ""),
    (
        "MultiHeadAttention",
        module(weigh=lambda self, scores, m: reference.masked_softmax(scores, m)),
        "mask-always-needed",
        "",
    ),
    ("MultiHeadAttention", module(show=lambda self, w, average: w.mean(1)), "always-averaged", ""),
    (
        "MultiHeadAttention",
        module(show=lambda self, w, average: w[:, 0] if average else w),
        "one-head-for-the-average",
        "",
    ),
    ("MultiHeadAttention", module(out_bias=lambda self, bias: True), "bias-ignored", "all four layers still"),
    (
        "MultiHeadAttention",
        module(drop=lambda self, w: w * (torch.rand_like(w) >= self.dropout) if self.training else w),
        "dropout-without-rescale",
        "",
    ),
    (
        "MultiHeadAttention",
        module(
            drop=lambda self, w: w,
            finish=lambda self, merged: self.out(F.dropout(merged, self.dropout, self.training)),
        ),
        "dropout-on-the-merged-heads",
        "",
    ),
    (
        "MultiHeadAttention",
        module(finish=lambda self, merged: F.dropout(self.out(merged), self.dropout, self.training)),
        "dropout-twice",
        "",
    ),
    (
        "MultiHeadAttention",
        module(
            weigh=lambda self, scores, m: masked(F.dropout(scores, self.dropout, self.training), m),
            drop=lambda self, w: w,
        ),
        "dropout-on-the-scores",
        "",
    ),
    ("numerical_gradient", gradient_all_at_once, "all-at-once", ""),
    ("numerical_gradient", gradient_over_rows, "a-row-at-a-time", ""),
    ("numerical_gradient", gradient_one_sided, "one-sided", "With a large step"),
    ("to_may_attend", blocked_never_turned, "polarity-kept", "*one* of the masks"),
    ("load_from_torch", load_in_order("key", "query", "value"), "key-first", ""),
    ("load_from_torch", load_in_order("query", "value", "key"), "value-before-key", ""),
    ("export_to_torch", export_in_order("query", "value", "key"), "value-before-key", ""),
    ("export_to_torch", export_in_order("key", "query", "value"), "key-first", ""),
    ("decode_step", step_from_the_first_real_token(turn_k=not_turned), "keys-not-turned", ""),
    ("decode_step", step_from_the_first_real_token(turn_q=not_turned), "queries-not-turned", ""),
    ("decode_step", step_from_the_first_real_token(restart=True), "positions-restart", ""),
    ("decode_step", step_with_one_position, "one-position-for-all", ""),
    ("to_device", move_by_cuda, "cuda-whatever-device-says", ""),
    ("to_device", move_into_the_given_dict, "in-place", "underscore"),
    (
        "attention_flops",
        lambda N, H, L, D: 4 * N * H * L * L * D + 8 * N * L * (H * D) ** 2,
        "projections-counted",
        "",
    ),
    (
        "fused_attention",
        fused(lambda m, ones: m & ones.tril(ones.shape[1] - ones.shape[0])),
        "lower-right",
        "mean weight",
    ),
    ("fused_attention", fused(lambda m, ones: m | ones.tril()), "either-is-enough", ""),
    ("fused_attention", fused(lambda m, ones: m & ones.tril(), fill=False), "dead-rows-left-open", ""),
    (
        "mixed_precision_gap",
        lambda fn, x, dtype: (
            (fn(x.to(dtype)).double() - fn(x.double())).abs().mean()
            / fn(x.double()).abs().mean()
            / torch.finfo(dtype).eps
        ).item(),
        "mean-over-mean + nan-for-inf",
        "",
    ),
    ("online_softmax", online(swapped=True), "sum-first", "not the largest"),
    ("online_softmax", online(own=True), "block-relative-to-itself", ""),
    *(
        ("flash_forward", flash(low=low), "large-negative-number", "m + log")
        for low in (-1e4, -1e6, -1e9, torch.finfo(torch.float64).min)
    ),
    ("flash_forward", flash(whole=True), "last-keys-lost", "lse is not"),
    ("flash_backward", backward(values_from_output=True), "values-from-the-output", ""),
]


@pytest.mark.parametrize(
    ("name", "answer", "cause", "never"), CARDS, ids=[f"{name}: {cause}" for name, _, cause, _ in CARDS]
)
def test_the_card_names_the_cause_and_says_nothing_false(name, answer, cause, never):
    named, said = card_of(name, answer)
    assert named == cause, said
    assert not never or never not in said


# ------------------------------------------------------- what is said where no known mistake explains it


@pytest.mark.parametrize(
    ("name", "answer", "says", "never"),
    [
        # scores twice as large, a sum that is right for them: the formula for lse is not to blame
        ("flash_forward", flash(scale=2.0), "", "lse is"),
        ("flash_forward", flash(more=1.0), "Your output is right, your lse is not", "m + log"),
        ("flash_backward", backward(delta=2.0), "grad_v is right", "None of the three"),
        ("flash_backward", backward(weights=2.0), "None of the three is right", "grad_v is right"),
        ("masked_softmax", softmax_filled(-15.0, dead=torch.zeros_like), "goes to keys that are closed", ""),
        (
            "masked_softmax",
            softmax_filled(-INF, dead=lambda w: w.clone().fill_(0.5)),
            "should be zeros",
            "filled",
        ),
        (
            "benchmark",
            lambda fn, device, repeats=20, warmup=3: 0.001,
            "you give less",
            "was still in the queue when you",
        ),
        ("steps_back", steps_by_torch_tensor, "`torch.tensor(…)`", ""),
    ],
)
def test_a_card_without_a_known_cause_says_what_is_seen(name, answer, says, never):
    _, said = card_of(name, answer)
    assert says in said
    assert not never or never not in said.replace("Was something still", "")


# ------------------------------------------------------------------------------------------- wording


def squeezed(text):
    return re.sub(r"\s+", "", text)


@functools.cache
def lesson_text(folder):
    """A lesson's source: by exercise, its solution and its hints; and the names that the lesson knows."""
    text = (SOLUTIONS / folder / f"{folder}.py").read_text(encoding="utf-8")
    solutions, hints, last = {}, {}, ""
    for cell in re.split(r"(?m)^# %%", text):
        if "### BEGIN SOLUTION" in cell:
            last = re.search(r'"grade_id": "(\w+)"', cell)[1]
            body = re.search(r"### BEGIN SOLUTION(.*?)### END SOLUTION", cell, re.S)[1]
            solutions[last] = squeezed(re.sub(r"#.*", "", body))
        for number, hint in re.findall(r"Hint (\d): [^<]*</summary>\n#\n(.*?)# </details>", cell, re.S):
            hints.setdefault(last, {})[int(number)] = re.sub(r"\n# ?", " ", hint)
    code = re.sub(r"(?m)^#.*", "", text)
    return solutions, hints, set(re.findall(r"\w+", code))


def lesson_of(exercise):
    return next(lesson.folder for lesson in exercises.lessons() if exercise in lesson.exercises)


def pieces_of_code(text):
    """What stands in backticks and computes something: no mere name, no shape, no call without arguments."""
    for code in re.findall(r"`([^`]+)`", text):
        arguments = re.sub(r"\w+ ?= ?[\w.\[\]-]+(?=[,)])", "", code)  # keyword arguments are no statements
        if re.search(r"\w.*( [-+*/@&|] |//|\*\*| = |<=|>=|==)|~\w|\w\[.*:", arguments):
            yield squeezed(code)


LEARNERS_OWN = {  # said of what the learner wrote, and it happens to be a part of the right line
    ("pairwise_dot", "a@b"),
    ("regroup", "E//groups"),  # a size, and the docstring says it
}


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.name)
def test_nothing_before_hint_3_gives_the_line_away(exercise):
    solutions, hints, _ = lesson_text(lesson_of(exercise))
    said = [(m.id, m.says) for m in exercise.misconceptions]
    said += [(f"hint {number}", hint) for number, hint in hints[exercise.name].items() if number < 3]
    assert {1, 2, 3} <= set(hints[exercise.name])
    for where, text in said:
        for code in pieces_of_code(text):
            assert code not in solutions[exercise.name] or (exercise.name, code) in LEARNERS_OWN, (
                f"{where}: {code}"
            )


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.name)
def test_hints_name_only_functions_that_the_lesson_has(exercise):
    _, hints, known = lesson_text(lesson_of(exercise))
    ours = {name for name in vars(reference) if not name.startswith("_")}
    for number, hint in hints[exercise.name].items():
        for code in re.findall(r"`([^`]+)`", hint):
            missing = ours & set(re.findall(r"\w+", code)) - known
            assert not missing, f"hint {number} names {missing}, which nobody imported"


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.name)
def test_sentences_are_english_and_free_of_markup(exercise):
    for misconception in exercise.misconceptions:
        says = misconception.says
        assert "**" not in re.sub(r"`[^`]*`", "", says), misconception.id
        assert not re.search(r"[Aa]sked (for|is|are)\b|[Aa]greed was|lead on|rightly", says), misconception.id


@pytest.mark.parametrize("exercise", EVERY, ids=lambda exercise: exercise.name)
def test_a_mistake_that_may_come_with_another_claims_nothing_about_the_rest(exercise):
    """Two at once are said together: "the weights are right, but …" would then be false."""
    claims = r"\b(is|are|was|come out|comes out) right\b|^Right\b|[Rr]ight (where|numbers|shape)"
    for misconception in exercise.misconceptions:
        if misconception.part:
            assert not re.search(claims, misconception.says), f"{misconception.id}: {misconception.says}"
