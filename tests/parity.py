"""`mha_course.reference.MultiheadAttention` beside ``torch.nn.MultiheadAttention``, on random configurations.

Run ``python tests/parity.py --configurations 5000`` for the figures: how many configurations, and the largest
difference in outputs, weights and gradients, in float64.
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mha_course.reference import MultiheadAttention

QUANTITIES = ("outputs", "weights", "gradients")


@dataclass
class Configuration:
    """Everything that one comparison needs. ``dead`` (N, L) marks the queries that may look at nothing."""

    constructor: dict
    call: dict
    inputs: tuple[Tensor, Tensor, Tensor]
    dead: Tensor
    training: bool
    with_gradient: bool
    seed: int
    options: list[str] = field(default_factory=list)


def draw(seed: int) -> Configuration:
    """A random configuration; the same for the same seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    N, L, S, H, D = (rng.randint(1, top) for top in (4, 6, 7, 4, 5))
    E = H * D
    batched, batch_first = rng.random() < 0.8, rng.random() < 0.5
    N = N if batched else 1
    kdim, vdim = rng.choice(
        [(None, None), (None, None), (E, E), (rng.randint(1, 9), None), (3, rng.randint(1, 9))]
    )
    constructor = {
        "embed_dim": E,
        "num_heads": H,
        "dropout": rng.choice([0.0, 0.0, 0.3]),
        "bias": rng.random() < 0.8,
        "add_bias_kv": rng.random() < 0.25,
        "add_zero_attn": rng.random() < 0.25,
        "kdim": kdim,
        "vdim": vdim,
        "batch_first": batch_first,
        "dtype": torch.float64,
    }

    def tokens(length: int, features: int) -> Tensor:
        shape = ((N, length) if batch_first else (length, N)) if batched else (length,)
        return torch.randn(*shape, features, dtype=torch.float64)

    same = kdim in (None, E) and vdim in (None, E)
    sharing = rng.choice(["self", "memory", "apart", "query is key"] if same else ["apart"])
    query, key, value = tokens(L, E), tokens(S, kdim or E), tokens(S, vdim or E)
    if sharing in ("self", "query is key"):
        S, key, value = L, query, tokens(L, E)
    if sharing in ("self", "memory"):
        value = key

    call, dead = _draw_masks(rng, N, H, L, S)
    if constructor["add_bias_kv"] or constructor["add_zero_attn"]:
        dead = torch.zeros_like(dead)  # the extra key can always be seen
    if not batched and "key_padding_mask" in call:
        call["key_padding_mask"] = call["key_padding_mask"][0]
    call |= {"need_weights": rng.random() < 0.5, "average_attn_weights": rng.random() < 0.5}
    given = [name for name in ("attn_mask", "key_padding_mask", "is_causal") if call.get(name) is not None]
    described = [f"{name} {call[name].dim()}-D {call[name].dtype}" for name in given if name != "is_causal"]
    chosen = [k for k, v in (constructor | call).items() if v is True]
    return Configuration(
        constructor,
        call,
        (query, key, value),
        dead,
        training=rng.random() < 0.6,
        with_gradient=rng.random() < 0.8,
        seed=seed,
        options=[sharing, "batched" if batched else "unbatched", *described, *chosen]
        + (["dead rows"] if dead.any() else []),
    )


def _draw_masks(rng: random.Random, N: int, H: int, L: int, S: int) -> tuple[dict, Tensor]:
    """Masks in PyTorch's sense (True = may not look), another for every sample, and the (N, L) rows they kill."""
    if rng.random() < 0.15:  # the causal mask, with the hint
        closed = torch.ones(L, S, dtype=torch.bool).triu(1)
        mask = _as_float(closed, noise=False) if rng.random() < 0.5 else closed
        return {"attn_mask": mask, "is_causal": True}, torch.zeros(N, L, dtype=torch.bool)

    call = {}
    open_key = torch.randint(S, (N, 1, L))  # every query may look at least here
    kind = rng.choice([None, "2-D", "3-D"])
    padded = torch.rand(N, S) < 0.4 if rng.random() < 0.5 else None
    as_float = [rng.random() < 0.5] * 2 if rng.random() < 0.8 else [True, False]
    dead = torch.zeros(N, L, dtype=torch.bool)
    kill = rng.random() < 0.2
    if padded is not None:
        padded.scatter_(1, open_key[:, 0], False)
        if kill and rng.random() < 0.5:
            padded[0], dead[0] = True, True
        call["key_padding_mask"] = _as_float(padded, noise=True) if as_float[0] else padded
    if kind == "2-D":
        closed = torch.rand(L, S) < 0.4
        closed[torch.arange(L), open_key[0, 0]] = False
        closed[:, open_key.flatten()] = closed[:, open_key.flatten()] & (N == 1)
        if kill:
            closed[0], dead[:, 0] = True, True
    elif kind == "3-D":
        closed = torch.rand(N, H, L, S) < 0.4
        closed.scatter_(3, open_key.unsqueeze(-1).expand(N, H, L, 1), False)
        if kill:
            closed[-1, :, -1], dead[-1, -1] = True, True
        closed = closed.flatten(0, 1)
    if kind:
        call["attn_mask"] = _as_float(closed, noise=True) if as_float[1] else closed
    return call, dead


def _as_float(closed: Tensor, noise: bool) -> Tensor:
    mask = torch.randn(closed.shape, dtype=torch.float64) * noise
    return mask.masked_fill(closed, -torch.inf)


def compare(configuration: Configuration) -> dict[str, float]:
    """The largest absolute difference per quantity; raises AssertionError where even the structure differs.

    Dead rows are PyTorch's to do as it likes (NaN, mostly): PyTorch is given the same masks with these rows opened,
    nothing is compared there, and no gradient comes from there. Ours must give the bias of the output there.
    """
    c = configuration
    torch.manual_seed(c.seed)
    theirs = nn.MultiheadAttention(**c.constructor)
    torch.manual_seed(c.seed)
    ours = MultiheadAttention(**c.constructor)
    for (name, a), (other, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b), f"{name} starts with other values"
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours.load_state_dict(theirs.state_dict())

    live = ~c.dead  # (N, L)
    if c.inputs[0].dim() == 2:
        live_tokens = live[0].unsqueeze(-1)
    else:
        live_tokens = (live if c.constructor["batch_first"] else live.T).unsqueeze(
            -1
        )  # like the output's first two
    results = []
    for module, call in ((theirs, _with_rows_opened(c)), (ours, c.call)):
        results.append(_run(module.train(c.training), c, call, live, live_tokens))
    (a_out, a_weights, a_grads), (b_out, b_weights, b_grads) = results

    assert a_out.shape == b_out.shape and a_out.dtype == b_out.dtype
    assert (a_weights is None) == (b_weights is None)
    if c.dead.any():
        bias = 0.0 if ours.out_proj.bias is None else ours.out_proj.bias
        assert torch.equal(
            b_out.masked_fill(live_tokens, 0), (torch.zeros_like(b_out) + bias).masked_fill(live_tokens, 0)
        )
    found = {"outputs": _largest((a_out - b_out).masked_fill(~live_tokens, 0))}
    if a_weights is not None:
        assert a_weights.shape == b_weights.shape and a_weights.dtype == b_weights.dtype
        found["weights"] = _largest((a_weights - b_weights) * _live_weights(live, a_weights, c))
        assert not (b_weights * ~_live_weights(live, a_weights, c)).any(), "weights in a dead row"
    if c.with_gradient:
        assert a_grads.keys() == b_grads.keys()
        for name, a in a_grads.items():
            b = b_grads[name]
            assert (a is None) == (b is None), f"gradient of {name}: {a} against {b}"
            if a is not None:
                found["gradients"] = max(found.get("gradients", 0.0), _largest(a - b))
    return found


def _largest(difference: Tensor) -> float:
    assert difference.isfinite().all(), "not finite"
    return difference.abs().max().item() if difference.numel() else 0.0


def _live_weights(live: Tensor, weights: Tensor, c: Configuration) -> Tensor:
    live = live.unsqueeze(-1)  # (N, L, 1)
    live = live if c.call["average_attn_weights"] else live.unsqueeze(1)  # (N, 1, L, 1)
    return (live if c.inputs[0].dim() == 3 else live[0]).expand_as(weights)


def _with_rows_opened(c: Configuration) -> dict:
    """The call for PyTorch, the dead rows open to everything: as one mask per head, since rows differ per sample."""
    if not c.dead.any():
        return c.call
    N, L = c.dead.shape
    H = c.constructor["num_heads"]
    call = dict(c.call)
    total = torch.zeros(N, 1, L, 1, dtype=torch.float64)
    for name in ("attn_mask", "key_padding_mask"):
        mask = call.pop(name, None)
        if mask is None:
            continue
        mask = mask if mask.is_floating_point() else _as_float(mask, noise=False)
        if name == "key_padding_mask":
            mask = mask.reshape(N, 1, 1, -1)
        elif mask.dim() == 3:
            mask = mask.view(N, H, L, -1)
        total = total + mask
    total = total.masked_fill(c.dead.view(N, 1, L, 1), 0.0).expand(N, H, L, -1)
    return call | {"attn_mask": total.flatten(0, 1)}


def _run(module, c: Configuration, call: dict, live: Tensor, live_tokens: Tensor):
    """Output, weights, and the gradients of inputs and parameters for a random linear loss over the live rows."""
    leaves = {id(x): x.clone().requires_grad_(c.with_gradient) for x in c.inputs}
    inputs = [leaves[id(x)] for x in c.inputs]  # what was one tensor stays one
    masks = {name: call[name] for name in ("attn_mask", "key_padding_mask") if name in call}
    if c.with_gradient and c.seed % 2 and not c.dead.any():  # masks of numbers may be learned
        masks = {
            name: m.clone().requires_grad_() if m.is_floating_point() else m for name, m in masks.items()
        }
    torch.manual_seed(c.seed + 1)  # dropout's
    with torch.set_grad_enabled(c.with_gradient), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output, weights = module(*inputs, **(call | masks))
    if not c.with_gradient:
        return output, weights, {}
    torch.manual_seed(c.seed + 2)
    loss = (output.masked_fill(~live_tokens, 0) * torch.randn(output.shape, dtype=torch.float64)).sum()
    if weights is not None:
        loss = (
            loss
            + (
                weights * _live_weights(live, weights, c) * torch.randn(weights.shape, dtype=torch.float64)
            ).sum()
        )
    loss.backward()
    grads = {f"input {i}": x.grad for i, x in enumerate(inputs)} | {
        n: m.grad for n, m in masks.items() if m.requires_grad
    }
    return output, weights, grads | {name: p.grad for name, p in module.named_parameters()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    worst, compared, options = dict.fromkeys(QUANTITIES, 0.0), Counter(), Counter()
    for seed in range(arguments.first, arguments.first + arguments.configurations):
        configuration = draw(seed)
        options.update(set(configuration.options))
        for quantity, difference in compare(configuration).items():
            worst[quantity] = max(worst[quantity], difference)
            compared[quantity] += 1
    print(f"{arguments.configurations} random configurations, float64")
    for quantity in QUANTITIES:
        print(
            f"  {quantity:<10} compared in {compared[quantity]:>5}, largest difference {worst[quantity]:.1e}"
        )
    print("  options met: " + ", ".join(f"{name} {count}" for name, count in options.most_common()))


if __name__ == "__main__":
    main()
