"""Lesson 03, declared: how its six exercises are tried, and which mistakes are recognised in them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Property, Question, Style

from ._properties import a_number, of_shape

FLOAT32 = torch.float32


# -------------------------------------------------------------------- heads that do not divide E evenly


def refuse(E, H):
    """What is right: say no, and why."""
    if E % H:
        raise ValueError(f"E = {E} cannot be shared out evenly among H = {H} heads")


def refuse_by_assert(E, H):
    assert E % H == 0, f"{E} is not divisible by {H}"


def refuse_wrongly(E, H):
    if E % H:
        raise RuntimeError(f"{E} is not divisible by {H}")


def accept(E, H):
    pass


UNEVEN_ACCEPTED = (
    "10 features and 3 heads are accepted in silence: 10 // 3 is 3, and the tenth feature is lost or somebody gets "
    "less than the others. The caller would never know. Say no first, with a ValueError that names both numbers."
)
UNEVEN_TO_TORCH = (
    "10 features and 3 heads do stop your code, with an error about something else that happened later on. "
    "Look at E and H yourself before any cutting, and say what is wrong with them in a ValueError."
)
UNEVEN_ASSERT = (
    "10 features and 3 heads are refused by an `assert`. That is for your own slips while you write, and `python -O` "
    "leaves it out. For what a caller gave you, raise a ValueError."
)


def uneven(hint, cut=None):
    """The three mistakes about an H that does not divide E.

    Args:
        hint: number of the hint to open.
        cut: a part that accepts such an H without torch stopping it, where the usual one does not.
    """
    return (
        Misconception(
            "uneven-heads-accepted", UNEVEN_ACCEPTED, part={"refusal": accept, **(cut or {})}, hint=hint
        ),
        Misconception("uneven-heads-asserted", UNEVEN_ASSERT, part={"refusal": refuse_by_assert}, hint=hint),
        Misconception(
            "uneven-heads-left-to-torch", UNEVEN_TO_TORCH, part={"refusal": refuse_wrongly}, hint=hint
        ),
    )


# ---------------------------------------------------------------------------------- 3.1 attend_by_loop


def share_of_head(x, h, H):
    D = x.shape[-1] // H
    return x[..., h * D : (h + 1) * D]


def scaled(q, k, E):
    return q @ k.mT / math.sqrt(q.shape[-1])


def over_keys(scores):
    return torch.softmax(scores, -1)


def loop_with(
    refusal=refuse,
    share=share_of_head,
    scores=scaled,
    softmax=over_keys,
    join=lambda outputs: torch.cat(outputs, -1),
    gather=lambda weights: torch.stack(weights, 1),
    give=lambda output, weights: (output, weights),
):
    """The loop over heads from its parts."""

    def attend_by_loop(q, k, v, H):
        E = q.shape[-1]
        refusal(E, H)
        outputs, weights = [], []
        for h in range(H):
            w = softmax(scores(share(q, h, H), share(k, h, H), E))
            outputs.append(w @ share(v, h, H))
            weights.append(w)
        return give(join(outputs), gather(weights))

    return attend_by_loop


def loop_whole(*whole):
    """A loop in which some of q, k, v are not cut."""

    def attend_by_loop(q, k, v, H):
        refuse(q.shape[-1], H)
        outputs, weights = [], []
        for h in range(H):
            qh, kh, vh = (x if name in whole else share_of_head(x, h, H) for name, x in zip("qkv", (q, k, v)))
            w = torch.softmax(qh @ kh.mT / math.sqrt(q.shape[-1] // H), -1)
            outputs.append(w @ vh)
            weights.append(w)
        return torch.cat(outputs, -1), torch.stack(weights, 1)

    return attend_by_loop


def loop_strided_in_and_out(q, k, v, H):
    refuse(q.shape[-1], H)
    output, weights = torch.zeros_like(q), []
    for h in range(H):
        o, w = reference.attend(q[..., h::H], k[..., h::H], v[..., h::H])
        output[..., h::H] = o
        weights.append(w)
    return output, torch.stack(weights, 1)


def loop_returns_inside(q, k, v, H):
    refuse(q.shape[-1], H)
    for h in range(H):
        return reference.attend(*(share_of_head(x, h, H) for x in (q, k, v)))


def loop_keeps_the_last(q, k, v, H):
    refuse(q.shape[-1], H)
    for h in range(H):
        output, weights = reference.attend(*(share_of_head(x, h, H) for x in (q, k, v)))
    return output, weights


def loop_over_token_slices(q, k, v, H):
    D, outputs, weights = q.shape[-1] // H, [], []
    for h in range(H):
        part = slice(h * D, (h + 1) * D)
        o, w = reference.attend(q[:, part], k[:, part], v[:, part])
        outputs.append(o)
        weights.append(w)
    return torch.cat(outputs, -1), torch.stack(weights, 1)


def loop_cut_off(q, k, v, H):
    output, weights = loop_with()(q, k, v, H)
    return output.detach(), weights.detach()


def loop_values_from_keys(q, k, v, H):
    return loop_with()(q, k, k, H)


def loop_into_table(q, k, v, H):
    if q.shape[-1] % H != 0:
        raise ValueError("E must be a multiple of H")
    N, L, E = q.shape
    D, S = E // H, k.shape[1]
    output, weights = q.new_zeros(N, L, E), q.new_zeros(N, H, L, S)
    for h in range(H):
        part = slice(h * D, h * D + D)
        weights[:, h] = F.softmax(torch.bmm(q[:, :, part], k[:, :, part].transpose(1, 2)) * D**-0.5, dim=2)
        output[:, :, part] = torch.bmm(weights[:, h].clone(), v[:, :, part])
    return output, weights


def loop_over_chunks(q, k, v, H):
    refuse(q.shape[-1], H)
    pairs = [reference.attend(*parts) for parts in zip(*(x.chunk(H, dim=-1) for x in (q, k, v)))]
    outputs, weights = zip(*pairs)
    return torch.cat(outputs, dim=2), torch.stack(weights, dim=1)


def loop_over_views(q, k, v, H):
    D, left = divmod(q.shape[-1], H)
    if left:
        raise ValueError(f"{left} features would be left over")
    q, k, v = (x.reshape(*x.shape[:2], H, D) for x in (q, k, v))
    results = []
    for h in range(H):
        e = torch.einsum("nld,nsd->nls", q[:, :, h], k[:, :, h]).div(math.sqrt(D)).exp()
        w = e / e.sum(2, keepdim=True)
        results.append((torch.einsum("nls,nsd->nld", w, v[:, :, h]), w))
    return (
        torch.stack([o for o, _ in results], dim=2).flatten(2),
        torch.cat([w.unsqueeze(1) for _, w in results], dim=1),
    )


def loop_over_samples_too(q, k, v, H):
    refuse(q.shape[-1], H)
    D, outputs, weights = q.shape[-1] // H, [], []
    for n in range(len(q)):
        rows = [
            torch.softmax(q[n][:, h * D :][:, :D] @ k[n][:, h * D :][:, :D].T / D**0.5, 1) for h in range(H)
        ]
        outputs.append(torch.cat([w @ v[n][:, h * D : h * D + D] for h, w in enumerate(rows)], dim=1))
        weights.append(torch.stack(rows))
    return torch.stack(outputs), torch.stack(weights)


def loop_in_float64(q, k, v, H):
    output, weights = loop_with()(q.double(), k.double(), v.double(), H)
    return output.to(q.dtype), weights.to(q.dtype)


def loop_by_masking_features(q, k, v, H):
    refuse(q.shape[-1], H)
    D = q.shape[-1] // H
    owner = torch.arange(q.shape[-1], device=q.device) // D  # (E,)
    weights = [torch.softmax((q * (owner == h)) @ k.mT / math.sqrt(D), -1) for h in range(H)]
    return sum(w @ (v * (owner == h)) for h, w in enumerate(weights)), torch.stack(weights, 1)


def draw_heads(draw, dtype=torch.float64, N=2, L=5, S=7, H=3, D=4, E=None):
    E = H * D if E is None else E
    return {
        "q": draw.normal(N, L, E, dtype=dtype),
        "k": draw.normal(N, S, E, dtype=dtype),
        "v": draw.normal(N, S, E, dtype=dtype),
        "H": H,
    }


an_output_and_weights = of_shape(
    lambda inputs: inputs["q"].shape,
    lambda inputs: (len(inputs["q"]), inputs["H"], inputs["q"].shape[1], inputs["k"].shape[1]),
)


@an_output_and_weights
def rows_of_each_head(inputs, value):
    weights = value[1].double()
    sums = {d: weights.sum(d) for d in range(weights.dim())}
    # a row that may see nothing sums to 0
    if bool(((sums[weights.dim() - 1] - 1).abs().minimum(sums[weights.dim() - 1].abs()) < 1e-4).all()):
        return None
    names = {0: "the batch", 1: "the heads", 2: "the queries"}
    for d, name in names.items():
        if d < weights.dim() - 1 and bool(((sums[d] - 1).abs() < 1e-4).all()):
            return f"Your weights sum to 1 over {name}. Each query of each head has a whole 1 for its *keys*."
    return "The rows of your weights should sum to 1 (or to 0, where nothing may be seen), for every head and every query."


@an_output_and_weights
def heads_stay_apart(inputs, value):
    """Output features h·D … of a right answer are mixtures of the values' same features."""
    v, output = inputs["v"], value[0]
    low, high = v.amin(-2, keepdim=True) - 1e-4, v.amax(-2, keepdim=True) + 1e-4
    if inputs.get("may_attend") is not None or not bool(((output < low) | (output > high)).any()):
        return None
    return (
        "Feature j of your output lies outside the range of feature j of the values. A head's output is a weighted mean of "
        "its own values, and belongs where those came from."
    )


ATTEND_BY_LOOP = Exercise(
    name="attend_by_loop",
    number="3.1",
    reference=reference.attend_by_loop,
    returns=("output (N, L, E)", "weights (N, H, L, S)"),
    assemble=loop_with,
    forbidden=("ready-made attention",),
    builds_on=("attend", "attention_scores", "stable_softmax"),
    cases=(
        Case("N, H, L, S and D all differ", draw_heads),
        Case("one head", lambda draw: draw_heads(draw, N=3, L=2, S=4, H=1, D=5)),
        Case("one feature per head", lambda draw: draw_heads(draw, N=2, L=3, S=4, H=5, D=1)),
        Case("float32", lambda draw: draw_heads(draw, FLOAT32, N=3, L=4, S=5, H=2, D=6)),
        Case("H does not divide E", lambda draw: draw_heads(draw, H=3, E=10), raises=(ValueError,)),
    ),
    misconceptions=(
        Misconception(
            "root-of-e",
            "Your weights are too even: the scores are divided by √E. Each head sums over its own D features only, "
            "so its scores grow like √D.",
            part={"scores": lambda q, k, E: q @ k.mT / math.sqrt(E)},
            hint=2,
        ),
        Misconception(
            "no-scale",
            "Your weights are too sharp: the scores are not divided by √D.",
            part={"scores": lambda q, k, E: q @ k.mT},
            hint=2,
        ),
        Misconception(
            "divided-by-d",
            "Your weights are too even: divided by D where √D is meant. (`attend` divides already; then you once more?)",
            part={"scores": lambda q, k, E: q @ k.mT / q.shape[-1]},
            hint=2,
        ),
        Misconception(
            "softmax-over-queries",
            "Each *column* of your weights sums to 1, each row should: the softmax ran over the queries.",
            part={"softmax": lambda s: torch.softmax(s, -2)},
            hint=2,
        ),
        Misconception(
            "strided-heads",
            "Head 0 of yours has features 0, H, 2H, …: every H-th. A head owns a run of D *neighbours*: 0 … D−1 are "
            "head 0's. (That is how trained weights are stored; another order would scramble them.)",
            part={"share": lambda x, h, H: x[..., h::H]},
            hint=1,
            also=(
                loop_strided_in_and_out,
                lambda q, k, v, H: loop_with(
                    share=lambda x, h, H: x.reshape(*x.shape[:2], -1, H)[..., h],
                    join=lambda outputs: torch.stack(outputs, -1).flatten(2),
                )(q, k, v, H),
            ),
        ),
        Misconception(
            "windows-overlap",
            "Head h starts at feature h in yours. Each head has D features, so head h starts where h whole heads end.",
            part={"share": lambda x, h, H: x[..., h : h + x.shape[-1] // H]},
            hint=2,
        ),
        Misconception(
            "first-share-for-all",
            "All heads are equal: each got the first D features. The cut has to move on with h.",
            part={"share": lambda x, h, H: x[..., : x.shape[-1] // H]},
            hint=2,
        ),
        Misconception(
            "nothing-cut",
            "Every head got all E features, so all heads see the same and the output is H times too wide. Each head "
            "gets its own D of them.",
            part={"share": lambda x, h, H: x},
            hint=1,
        ),
        Misconception(
            "values-not-cut",
            "The weights are right, the output is H times too wide: q and k were cut, v was not.",
            wrong=loop_whole("v"),
            hint=2,
        ),
        Misconception(
            "keys-not-cut",
            "The queries have D features and the keys still E (or the other way round): they cannot be multiplied. "
            "All three are cut, in the same way.",
            wrong=loop_whole("k", "v"),
            hint=2,
            also=(loop_whole("k"), loop_whole("q"), loop_whole("q", "v")),
        ),
        Misconception(
            "tokens-cut",
            "The cut goes through the *tokens*: dimension 1 was cut, the features are the last one. Every head sees all "
            "the tokens, and of each only some features.",
            part={"share": lambda x, h, H: x[:, h * (x.shape[-1] // H) : (h + 1) * (x.shape[-1] // H)]},
            hint=1,
            also=(
                loop_over_token_slices,
                lambda q, k, v, H: (refuse(q.shape[-1], H), loop_of_token_parts(q, k, v, H))[1],
            ),
        ),
        Misconception(
            "one-wide-head",
            "There is only one head, with all E features: q, k and v were never cut.",
            wrong=lambda q, k, v, H: (refuse(q.shape[-1], H), reference.attend(q, k, v))[1],
            hint=1,
            also=(lambda q, k, v, H: (lambda o, w: (o, w.unsqueeze(1)))(*reference.attend(q, k, v)),),
        ),
        Misconception(
            "heads-summed",
            "Your output has D features: the heads were added up. Side by side they make E again, and nobody's answer "
            "is lost in the sum.",
            part={"join": sum},
            hint=2,
        ),
        Misconception(
            "heads-averaged",
            "Your output has D features: the heads were averaged. Put them side by side; they make E features again.",
            part={"join": lambda outputs: torch.stack(outputs).mean(0)},
            hint=2,
        ),
        Misconception(
            "outputs-not-joined",
            "The output still has a dimension for the heads (`stack` makes a new one). Join them along the features, "
            "so that each token has E numbers again.",
            part={"join": lambda outputs: torch.stack(outputs, 1)},
            hint=2,
            also=(
                loop_with(join=lambda outputs: torch.stack(outputs, 0)),
                loop_with(join=lambda outputs: torch.stack(outputs, 2)),
                loop_with(join=list),
            ),
        ),
        Misconception(
            "outputs-joined-along-the-tokens",
            "The output has H times too many tokens: `cat` glued the heads together along the wrong dimension. "
            "It is the features that go side by side.",
            part={"join": lambda outputs: torch.cat(outputs, 1)},
            hint=3,
        ),
        Misconception(
            "outputs-interleaved",
            "In the output the heads' features take turns: first feature of each head, then the "
            "second of each … Whole heads go side by side.",
            part={"join": lambda outputs: torch.stack(outputs, -1).flatten(2)},
            hint=2,
        ),
        Misconception(
            "weights-averaged",
            "Your weights are averaged over the heads: (N, L, S). Keep each head's own.",
            part={"gather": lambda weights: torch.stack(weights).mean(0)},
            hint=3,
        ),
        Misconception(
            "weights-of-one-head",
            "The weights you return are those of a single head; keep all of them, in a list.",
            part={"gather": lambda weights: weights[-1]},
            hint=3,
            also=(loop_with(gather=lambda weights: weights[0]),),
        ),
        Misconception(
            "weights-dimension-elsewhere",
            "The heads are not dimension 1 of your weights: (N, H, L, S) is wanted. `stack` can be told "
            "where the new dimension goes.",
            part={"gather": lambda weights: torch.stack(weights, 0)},
            hint=3,
            also=(
                loop_with(gather=lambda weights: torch.stack(weights, 2)),
                loop_with(gather=lambda weights: torch.stack(weights, 3)),
            ),
        ),
        Misconception(
            "weights-glued",
            "Your weights have no dimension for the heads: `cat` lengthens one that is there; "
            "`stack` makes a new one.",
            part={"gather": lambda weights: torch.cat(weights, -1)},
            hint=3,
            also=(
                loop_with(gather=lambda weights: torch.cat(weights, 1)),
                loop_with(gather=lambda weights: torch.cat(weights, 0)),
            ),
        ),
        Misconception(
            "weights-in-a-list",
            "The weights are still a Python list, a tensor for each head: stack them.",
            part={"gather": list},
            hint=3,
            also=(loop_with(gather=tuple),),
        ),
        Misconception(
            "one-head-only",
            "Only one head came back. Either `return` stands inside the loop, or each round overwrites the one before: "
            "collect the results in lists and join them after the loop.",
            wrong=loop_returns_inside,
            also=(loop_keeps_the_last,),
            hint=1,
        ),
        Misconception(
            "keys-mixed-instead-of-values",
            "The weights are right, but they mix the *keys*. What a query gets are the values.",
            wrong=loop_values_from_keys,
            hint=2,
        ),
        Misconception(
            "output-only",
            "Only the output is returned. Return two things: output, then weights.",
            part={"give": lambda output, weights: output},
            hint=3,
        ),
        Misconception(
            "weights-first",
            "Two results are there, in the wrong order: the output comes first.",
            part={"give": lambda output, weights: (weights, output)},
            hint=3,
        ),
        Misconception(
            "cut-off",
            "Right numbers, cut off from q, k and v (`detach`, `.data`, NumPy, `no_grad`): nothing could learn.",
            wrong=loop_cut_off,
            hint=3,
        ),
        *uneven(2),
    ),
    properties=(
        Property("rows sum to 1", rows_of_each_head, hint=2),
        Property("heads stay apart", heads_stay_apart, hint=2),
    ),
    styles=(
        Style("slices", loop_with()),
        Style("chunks and attend", loop_over_chunks),
        Style("views, einsum and own exp", loop_over_views),
        Style("into tables of its own", loop_into_table),
        Style("a loop over the samples, too", loop_over_samples_too),
        Style("float64 inside", loop_in_float64),
        Style("everybody else's features set to 0", loop_by_masking_features),
        Style(
            "not contiguous",
            loop_with(
                join=lambda outputs: torch.cat([o.mT for o in outputs], 1).mT,
                gather=lambda weights: torch.stack([w.mT for w in weights], -1).permute(0, 3, 2, 1),
            ),
        ),
    ),
)


def loop_of_token_parts(q, k, v, H):
    parts = [reference.attend(*x) for x in zip(*(t.chunk(H, dim=1) for t in (q, k, v)))]
    return torch.cat([o for o, _ in parts], 1), torch.stack([w for _, w in parts], 1)


# ------------------------------------------------------------------------------------- 3.2 split_heads


def cut_and_turn(x, H):
    N, L, E = x.shape
    return x.reshape(N, L, H, E // H).transpose(1, 2)


def split_with(refusal=refuse, cut=cut_and_turn):
    """A split from its two parts: what is refused, and how it cuts."""

    def split_heads(x, H):
        refusal(x.shape[-1], H)
        return cut(x, H)

    return split_heads


def cut_by_slices(x, H):
    D = x.shape[-1] // H
    return torch.stack([x[..., h * D : (h + 1) * D] for h in range(H)], dim=1)


def cut_into_table(x, H):
    N, L, E = x.shape
    table = torch.empty(N, H, L, E // H, dtype=x.dtype, device=x.device)
    for h, part in enumerate(x.split(E // H, dim=-1)):
        table[:, h] = part
    return table


def cut_token_by_token(x, H):
    return torch.stack([torch.stack([token.view(H, -1) for token in sample.unbind(0)], 1) for sample in x])


def cut_strided(x, H):
    N, L, E = x.shape
    return x.reshape(N, L, E // H, H).permute(0, 3, 1, 2)


def cut_tokens(x, H):
    N, L, E = x.shape
    return x.view(N, H, L // H, E)


def cut_with_float_size(x, H):
    N, L, E = x.shape
    return x.view(N, L, H, E / H).transpose(1, 2)


@of_shape(
    lambda inputs: (
        *(len(inputs["x"]), inputs["H"]),
        *(inputs["x"].shape[1], inputs["x"].shape[2] // inputs["H"]),
    )
)
def is_split(inputs, value):
    x, H = inputs["x"], inputs["H"]
    N, L, _ = x.shape
    if torch.equal(value, cut_and_turn(x, H)):
        return None
    if sorted(value.flatten().tolist()) != sorted(x.flatten().tolist()):
        return "Splitting only moves numbers; in yours some are new, changed or missing."
    for n in range(N):
        for h in range(H):
            for token in range(L):
                if not bool(torch.isin(value[n, h, token], x[n, token]).all()):
                    return f"Entry [{n}, {h}, {token}] should hold numbers of token {token} only; yours has others."
    return (
        "Each token's numbers are where that token is, but not with the right head or not in the right order."
    )


def tokens(N, L, H, D, dtype=torch.float64):
    return lambda draw: {"x": draw.normal(N, L, H * D, dtype=dtype), "H": H}


SPLIT_HEADS = Exercise(
    name="split_heads",
    number="3.2",
    reference=reference.split_heads,
    returns=("heads (N, H, L, D)",),
    assemble=split_with,
    cases=(
        Case("N, H, L and D all differ", tokens(2, 5, 3, 4)),
        Case("as many tokens as heads", tokens(2, 4, 4, 3)),
        Case("as many features as heads", tokens(2, 5, 3, 3)),
        Case("four heads, three samples", tokens(3, 5, 4, 2)),
        Case("one head, float32", tokens(2, 3, 1, 5, FLOAT32)),
        Case("numbered 0 to 23", lambda draw: {"x": torch.arange(24).view(1, 4, 6), "H": 2}),
        Case("H does not divide E", lambda draw: {"x": draw.normal(2, 6, 10), "H": 3}, raises=(ValueError,)),
    ),
    misconceptions=(
        Misconception(
            "view-without-transpose",
            "The numbers are scrambled: `view` (or `reshape`) fills the new shape in reading order, "
            "so head 0 swallowed the first tokens whole. Cut each token first, then bring the heads forward.",
            part={"cut": lambda x, H: x.reshape(len(x), H, x.shape[1], -1)},
            hint=2,
        ),
        Misconception(
            "heads-not-brought-forward",
            "Each token is cut, and the heads still stand behind the tokens: (N, L, H, D). Two dimensions have to change "
            "places.",
            part={"cut": lambda x, H: x.reshape(*x.shape[:2], H, -1)},
            hint=2,
        ),
        Misconception(
            "strided-heads",
            "Head 0 of yours has features 0, H, 2H, …: you made D groups of H features. H groups of D "
            "are wanted: in the view, the heads come before what is inside a head.",
            part={"cut": cut_strided},
            hint=3,
            also=(
                lambda x, H: (refuse(x.shape[-1], H), torch.stack([x[..., h::H] for h in range(H)], 1))[1],
                lambda x, H: (refuse(x.shape[-1], H), x.unflatten(-1, (-1, H)).movedim(-1, 1))[1],
            ),
        ),
        Misconception(
            "h-taken-for-d",
            "Your heads have H features each, and there are D of them: the two numbers have changed places in the view. "
            "H says how *many* heads.",
            part={"cut": lambda x, H: x.reshape(*x.shape[:2], -1, H).transpose(1, 2)},
            hint=3,
        ),
        Misconception(
            "features-before-tokens",
            "Inside each head rows and columns are exchanged: (N, H, D, L). Each token should stay a row.",
            part={"cut": lambda x, H: cut_and_turn(x, H).mT},
            hint=2,
            also=(lambda x, H: (refuse(x.shape[-1], H), x.mT.reshape(len(x), H, -1, x.shape[1]))[1],),
        ),
        Misconception(
            "wrong-pair-exchanged",
            "The last two dimensions were exchanged, (N, L, D, H). The heads have to change places with the *tokens*.",
            part={"cut": lambda x, H: x.reshape(*x.shape[:2], H, -1).transpose(2, 3)},
            hint=2,
        ),
        Misconception(
            "batch-and-tokens-exchanged",
            "The batch is no longer in front: (L, N, H, D). The dimensions that change places are tokens and heads.",
            part={"cut": lambda x, H: x.reshape(*x.shape[:2], H, -1).transpose(0, 1)},
            hint=2,
        ),
        Misconception(
            "heads-before-the-batch",
            "The heads stand before the batch: (H, N, L, D). (N, H, L, D) is wanted.",
            part={"cut": lambda x, H: cut_and_turn(x, H).transpose(0, 1)},
            hint=2,
            also=(lambda x, H: (refuse(x.shape[-1], H), torch.stack(x.chunk(H, -1)))[1],),
        ),
        Misconception(
            "heads-mixed-into-the-batch",
            "Batch and heads are one dimension, (N·H, L, D). Some code does that; here they stay two, so that a mask "
            "can still tell samples from heads.",
            part={"cut": lambda x, H: cut_and_turn(x, H).flatten(0, 1)},
            hint=1,
            also=(lambda x, H: (refuse(x.shape[-1], H), torch.cat(x.chunk(H, -1), 0))[1],),
        ),
        Misconception(
            "turned-then-viewed",
            "The numbers are scrambled: tokens and features changed places first, and then a new "
            "shape was filled in reading order. Cut first; exchange when the heads have a dimension of their own.",
            part={"cut": lambda x, H: x.mT.reshape(len(x), H, x.shape[1], -1)},
            hint=2,
        ),
        Misconception(
            "tokens-cut",
            "The list of tokens was cut among the heads. Every head sees all the tokens, and of each only D features.",
            part={"cut": cut_tokens},
            hint=1,
            also=(lambda x, H: (refuse(x.shape[-1], H), torch.stack(x.chunk(H, dim=1), 1))[1],),
        ),
        Misconception(
            "size-is-a-float",
            "torch got a size with a decimal point: `E / H` gives 4.0 even where it comes out even. There is a division that "
            "gives whole numbers.",
            part={"cut": cut_with_float_size},
            hint=3,
            also=(
                lambda x, H: (
                    refuse(x.shape[-1], H),
                    x.reshape(x.shape[0], x.shape[1], H, x.shape[-1] / H).transpose(1, 2),
                )[1],
            ),
        ),
        Misconception(
            "pieces-not-stacked",
            "The heads come in a tuple or list of tensors. One tensor is wanted, with the heads as its "
            "dimension 1.",
            part={"cut": lambda x, H: x.chunk(H, dim=-1)},
            hint=1,
            also=(lambda x, H: (refuse(x.shape[-1], H), list(x.chunk(H, -1)))[1],),
        ),
        Misconception(
            "glued-end-to-end",
            "The heads have no dimension of their own: they are glued end to end, (N, H·L, D). `cat` lengthens a "
            "dimension that is there, `stack` makes a new one.",
            part={"cut": lambda x, H: torch.cat(x.chunk(H, dim=-1), 1)},
            hint=1,
        ),
        Misconception(
            "cut-off",
            "The heads are cut off from x (`detach`, `.data`, NumPy): nothing before this line could learn.",
            part={"cut": lambda x, H: cut_and_turn(x, H).detach()},
            hint=2,
        ),
        Misconception(
            "input-reshaped-in-place",
            "x itself has another shape afterwards: an operation with an underscore "
            "(`resize_`, `unsqueeze_`, `transpose_`) changes the tensor that your caller still holds.",
            part={"cut": lambda x, H: x.unsqueeze_(2).reshape(len(x), x.shape[1], H, -1).transpose(1, 2)},
            hint=3,
        ),
        *uneven(3, {"cut": cut_by_slices}),
    ),
    properties=(Property("a token's numbers stay with the token", is_split, hint=2),),
    styles=(
        Style("view and transpose", split_with()),
        Style("unflatten and movedim", split_with(cut=lambda x, H: x.unflatten(-1, (H, -1)).movedim(2, 1))),
        Style("slices, stacked", split_with(cut=cut_by_slices)),
        Style("chunks, stacked", split_with(cut=lambda x, H: torch.stack(x.chunk(H, -1), 1))),
        Style("a table of its own", split_with(cut=cut_into_table)),
        Style("token by token", split_with(cut=cut_token_by_token)),
        Style(
            "einsum that only names",
            split_with(cut=lambda x, H: torch.einsum("nlhd->nhld", x.unflatten(2, (H, x.shape[2] // H)))),
        ),
        Style(
            "by turning twice",
            split_with(cut=lambda x, H: x.mT.reshape(len(x), H, x.shape[2] // H, -1).transpose(2, 3)),
        ),
        Style("contiguous", split_with(cut=lambda x, H: cut_and_turn(x, H).contiguous())),
        Style("permute", split_with(cut=lambda x, H: x.reshape(*x.shape[:2], H, -1).permute(0, 2, 1, 3))),
    ),
)


# ------------------------------------------------------------------------------------- 3.3 merge_heads


def merge_after_misreading(x):
    N, L, H, D = x.shape  # it is (N, H, L, D)
    return x.transpose(1, 2).reshape(N, L, H * D)


def merge_into_table(x):
    N, H, L, D = x.shape
    table = x.new_empty(N, L, H * D)
    for h in range(H):
        table[:, :, h * D : (h + 1) * D] = x[:, h]
    return table


@of_shape(
    lambda inputs: (len(inputs["x"]), inputs["x"].shape[2], inputs["x"].shape[1] * inputs["x"].shape[3])
)
def is_merged(inputs, value):
    x = inputs["x"]
    N, _, L, _ = x.shape
    if torch.equal(value, x.transpose(1, 2).flatten(2)):
        return None
    if sorted(value.flatten().tolist()) != sorted(x.flatten().tolist()):
        return "Merging only moves numbers; in yours some are new, changed or missing."
    for n in range(N):
        for token in range(L):
            if not bool(torch.isin(value[n, token], x[n, :, token].flatten()).all()):
                return (
                    f"Row [{n}, {token}] should hold numbers of token {token} only; yours has others in it."
                )
    return "Each token has its own numbers, but the heads do not stand side by side in their order."


def heads(N, H, L, D, dtype=torch.float64):
    return lambda draw: {"x": draw.normal(N, H, L, D, dtype=dtype)}


MERGE_HEADS = Exercise(
    name="merge_heads",
    number="3.3",
    reference=reference.merge_heads,
    returns=("tokens (N, L, E)",),
    builds_on=("split_heads",),
    cases=(
        Case("N, H, L and D all differ", heads(2, 3, 5, 4)),
        Case("as many tokens as heads", heads(2, 4, 4, 3)),
        Case("as many features as heads", heads(2, 3, 5, 3)),
        Case("four heads, three samples", heads(3, 4, 5, 2)),
        Case("one token, float32", heads(3, 2, 1, 4, FLOAT32)),
        Case("numbered 0 to 23", lambda draw: {"x": torch.arange(24).view(1, 2, 4, 3)}),
    ),
    misconceptions=(
        Misconception(
            "reshape-without-transpose",
            "The shape is right, the numbers are scrambled: `reshape` reads head 0 to its end before it comes to head "
            "1, so a token of yours has numbers of several tokens. The tokens must come before the heads first.",
            wrong=lambda x: x.reshape(len(x), x.shape[2], -1),
            hint=2,
        ),
        Misconception(
            "view-after-transpose",
            "torch refuses: after a transpose the numbers no longer lie in memory in reading order, and `view` cannot "
            "move them. `reshape` and `flatten` copy where they must.",
            wrong=lambda x: x.transpose(1, 2).view(len(x), x.shape[2], -1),
            hint=3,
        ),
        Misconception(
            "features-of-heads-take-turns",
            "The shape is right, but the heads' features take turns: first feature of every head, then the second of "
            "every head. D was put before H; the heads come first, each with its D.",
            wrong=lambda x: x.permute(0, 2, 3, 1).flatten(2),
            hint=2,
            also=(lambda x: torch.stack(x.unbind(1), -1).reshape(len(x), x.shape[2], -1),),
        ),
        Misconception(
            "wrong-pair-exchanged",
            "The shape is right, the numbers are scrambled: other dimensions changed places than tokens and heads. In "
            "(N, H, L, D) those are 1 and 2.",
            wrong=lambda x: x.transpose(2, 3).reshape(len(x), x.shape[2], -1),
            hint=2,
            also=(
                lambda x: x.permute(0, 3, 2, 1).reshape(len(x), x.shape[2], -1),
                lambda x: x.permute(0, 3, 1, 2).reshape(len(x), x.shape[2], -1),
                lambda x: x.permute(2, 0, 1, 3).reshape(len(x), x.shape[2], -1),
                lambda x: x.transpose(0, 2).reshape(len(x), x.shape[2], -1),
            ),
        ),
        Misconception(
            "not-flattened",
            "The tokens stand before the heads now, and one step is missing: heads and features are still two "
            "dimensions, (N, L, H, D). Make them one.",
            wrong=lambda x: x.transpose(1, 2),
            hint=2,
        ),
        Misconception(
            "heads-summed",
            "Each token has D numbers: the heads were added up. Side by side they make E, and nothing is lost.",
            wrong=lambda x: x.sum(1),
            hint=1,
        ),
        Misconception(
            "heads-averaged",
            "Each token has D numbers: the heads were averaged. Side by side they make E, and nothing is lost.",
            wrong=lambda x: x.mean(1) if x.is_floating_point() else x.float().mean(1),
            hint=1,
            also=(lambda x: x.sum(1) / x.shape[1],),
        ),
        Misconception(
            "heads-joined-along-the-tokens",
            "There are H times too many tokens: the heads were put one below the other, (N, H·L, D). They go side by "
            "side.",
            wrong=lambda x: x.flatten(1, 2),
            hint=1,
            also=(lambda x: torch.cat(x.unbind(1), 1), lambda x: x.transpose(1, 2).flatten(1, 2)),
        ),
        Misconception(
            "tokens-and-features-joined",
            "Your result is (N, H, L·D): tokens and features became one dimension. It is heads and features that "
            "belong together.",
            wrong=lambda x: x.flatten(2),
            hint=2,
            also=(lambda x: x.transpose(2, 3).flatten(2),),
        ),
        Misconception(
            "shape-misread",
            "Your result is (N, H, L·D): the shape was read as N, L, H, D, but the tokens come in as (N, H, L, D). The "
            "second number is H.",
            wrong=merge_after_misreading,
            hint=3,
        ),
        Misconception(
            "tokens-last",
            "Your result is (N, E, L): the features stand before the tokens. Each token should be a row.",
            wrong=lambda x: x.transpose(2, 3).flatten(1, 2),
            hint=2,
        ),
        Misconception(
            "batch-swallowed",
            "The batch is gone: samples and tokens are one dimension, (N·L, E). Flatten the last two dimensions only.",
            wrong=lambda x: x.transpose(1, 2).reshape(-1, x.shape[1] * x.shape[3]),
            hint=3,
        ),
        Misconception(
            "batch-and-heads-exchanged",
            "The first dimension is no longer the batch: heads and batch changed places. Exchange 1 and 2; counting "
            "starts at 0.",
            wrong=lambda x: x.transpose(0, 1).flatten(2),
            hint=2,
        ),
        Misconception(
            "first-head-only",
            "Each token has the D numbers of a single head; all H belong side by side.",
            wrong=lambda x: x[:, 0],
            also=(lambda x: x[:, -1],),
            hint=1,
        ),
        Misconception(
            "cut-off",
            "Right numbers, cut off from x (`detach`, `.data`, NumPy): no head could ever learn.",
            wrong=lambda x: x.transpose(1, 2).flatten(2).detach(),
            hint=2,
        ),
    ),
    properties=(Property("a token's numbers stay with the token", is_merged, hint=2),),
    styles=(
        Style("reshape", lambda x: x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)),
        Style("contiguous, then view", lambda x: x.transpose(1, 2).contiguous().view(len(x), x.shape[2], -1)),
        Style("cat of the heads", lambda x: torch.cat(x.unbind(1), dim=-1)),
        Style("cat of slices", lambda x: torch.cat([x[:, h] for h in range(x.shape[1])], 2)),
        Style("a table of its own", merge_into_table),
        Style("einsum that only names", lambda x: torch.einsum("nhld->nlhd", x).flatten(-2)),
        Style("by turning twice (not contiguous)", lambda x: x.mT.flatten(1, 2).mT),
        Style("movedim and flatten", lambda x: x.movedim(1, 2).flatten(2)),
        Style(
            "hstack of tokens", lambda x: torch.stack([x[:, :, i].flatten(1) for i in range(x.shape[2])], 1)
        ),
    ),
)


# ------------------------------------------------------------------------------ 3.4 attend_in_parallel


def keys_that_may_be_seen(scores, may_attend):
    return torch.softmax(scores, -1) if may_attend is None else reference.masked_softmax(scores, may_attend)


def parallel_with(
    split=reference.split_heads,
    scores=lambda q, k, E: q @ k.mT / math.sqrt(q.shape[-1]),
    weights=keys_that_may_be_seen,
    mix=lambda w, q, k, v: w @ v,
    merge=reference.merge_heads,
    result=lambda output, w: (output, w),
):
    """All heads at once, from the parts."""

    def attend_in_parallel(q, k, v, H, may_attend=None):
        E = q.shape[-1]
        q, k, v = split(q, H), split(k, H), split(v, H)
        w = weights(scores(q, k, E), may_attend)
        return result(merge(mix(w, q, k, v)), w)

    return attend_in_parallel


def scrambled_split(x, H):
    refuse(x.shape[-1], H)
    return x.reshape(len(x), H, x.shape[1], -1)


def softmax_along(dim):
    """A softmax over another dimension than the keys; with a mask filled in first."""

    def weights(scores, may_attend):
        if may_attend is not None:
            scores = scores.masked_fill(~may_attend, -torch.inf)
        return torch.softmax(scores, dim)

    return weights


def softmax_along_without_mask(dim):
    """The same where only the branch without a mask has a softmax of its own."""

    def weights(scores, may_attend):
        if may_attend is None:
            return torch.softmax(scores, dim)
        return reference.masked_softmax(scores, may_attend)

    return weights


def filled(number, which=lambda may_attend: ~may_attend):
    def weights(scores, may_attend):
        if may_attend is not None:
            scores = scores.masked_fill(which(may_attend), number)
        return torch.softmax(scores, -1)

    return weights


def added(number):
    """The mask as a number that is added to the scores of hidden keys."""

    def weights(scores, may_attend):
        if may_attend is not None:
            scores = scores + (~may_attend).to(scores.dtype) * number
        return torch.softmax(scores, -1)

    return weights


def after_the_softmax(scores, may_attend):
    weights = torch.softmax(scores, -1)
    return weights if may_attend is None else weights * may_attend


def after_and_renormalised(scores, may_attend):
    weights = torch.softmax(scores, -1)
    if may_attend is None:
        return weights
    weights = weights * may_attend
    return weights / weights.sum(-1, keepdim=True)


def scores_times_mask(scores, may_attend):
    return torch.softmax(scores if may_attend is None else scores * may_attend, -1)


def scores_plus_mask(scores, may_attend):
    return torch.softmax(scores if may_attend is None else scores + may_attend, -1)


def truth_of_mask(scores, may_attend):
    return reference.masked_softmax(scores, may_attend) if may_attend else torch.softmax(scores, -1)


def mask_needed(scores, may_attend):
    return reference.masked_softmax(scores, may_attend)


def mask_with_a_place_for_heads(scores, may_attend):
    if may_attend is None:
        return torch.softmax(scores, -1)
    return reference.masked_softmax(scores, may_attend.unsqueeze(1))


def one_dimension_more(may_attend):
    return ~may_attend.unsqueeze(1)


MERGES = (  # which say different things of a dimension too many
    reference.merge_heads,
    lambda x: x.transpose(1, 2).flatten(2),
    lambda x: x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1),
    lambda x: torch.cat(x.unbind(1), -1),
    lambda x: torch.cat([x[:, h] for h in range(x.shape[1])], -1),
)


def transposed_mask(scores, may_attend):
    return keys_that_may_be_seen(scores, None if may_attend is None else may_attend.mT)


def inverted_mask(scores, may_attend):
    return keys_that_may_be_seen(scores, None if may_attend is None else ~may_attend)


def mask_of_sample_0(scores, may_attend):
    if may_attend is not None and may_attend.dim() > 2:
        may_attend = may_attend[:1]
    return keys_that_may_be_seen(scores, may_attend)


def mask_of_head_0(scores, may_attend):
    if may_attend is not None and may_attend.dim() == 4:
        may_attend = may_attend[:, :1]
    return keys_that_may_be_seen(scores, may_attend)


def heads_in_the_batch(q, k, v, H, may_attend=None, scale=None, give_back=True):
    N, L, E = q.shape
    q, k, v = (reference.split_heads(x, H).flatten(0, 1) for x in (q, k, v))  # (N·H, L or S, D)
    scores = torch.bmm(q, k.mT) / math.sqrt(E // H)
    if may_attend is None:
        weights = torch.softmax(scores, -1)
    else:
        weights = reference.masked_softmax(scores, may_attend.expand(N, H, L, k.shape[1]).flatten(0, 1))
    output = torch.bmm(weights, v).unflatten(0, (N, H)).transpose(1, 2).reshape(N, L, E)
    return output, weights.unflatten(0, (N, H)) if give_back else weights


def one_wide_head(q, k, v, H, may_attend=None):
    refuse(q.shape[-1], H)
    return parallel_with()(q, k, v, 1, may_attend)


def not_forward(x, H):
    refuse(x.shape[-1], H)
    return x.unflatten(-1, (H, -1))


def heads_not_forward(q, k, v, H, may_attend=None):
    """The heads stay behind the tokens, so the product is between the heads of one token."""
    q, k, v = (not_forward(x, H) for x in (q, k, v))
    weights = keys_that_may_be_seen(q @ k.mT / math.sqrt(q.shape[-1]), may_attend)
    return (weights @ v).flatten(2), weights


def weights_before_the_mask(q, k, v, H, may_attend=None):
    return parallel_with()(q, k, v, H, may_attend)[0], parallel_with()(q, k, v, H)[1]


def output_without_the_mask(q, k, v, H, may_attend=None):
    return parallel_with()(q, k, v, H)[0], parallel_with()(q, k, v, H, may_attend)[1]


def scores_given_back(q, k, v, H, may_attend=None):
    scores = parallel_with(weights=lambda s, m: s, mix=lambda w, q, k, v: q)(q, k, v, H)[1]
    return parallel_with()(q, k, v, H, may_attend)[0], scores


def parallel_cut_off(q, k, v, H, may_attend=None):
    output, weights = parallel_with()(q, k, v, H, may_attend)
    return output.detach(), weights.detach()


def parallel_einsum(q, k, v, H, may_attend=None):
    if q.shape[-1] % H:
        raise ValueError("E is no multiple of H")
    q, k, v = (x.unflatten(-1, (H, x.shape[-1] // H)) for x in (q, k, v))  # (N, L or S, H, D)
    scores = torch.einsum("nlhd,nshd->nhls", q, k) * q.shape[-1] ** -0.5
    weights = keys_that_may_be_seen(scores, may_attend)
    return torch.einsum("nhls,nshd->nlhd", weights, v).flatten(2), weights


def parallel_own_exp(q, k, v, H, may_attend=None):
    q, k, v = (reference.split_heads(x, H) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    if may_attend is not None:
        e = e * may_attend
    total = e.sum(-1, keepdim=True)
    weights = e / torch.where(total == 0, torch.ones_like(total), total)
    return reference.merge_heads(weights @ v), weights


def parallel_nan_to_num(q, k, v, H, may_attend=None):
    q, k, v = (reference.split_heads(x, H) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if may_attend is not None:
        scores = scores.masked_fill(may_attend.logical_not(), float("-inf"))
    weights = F.softmax(scores, dim=-1).nan_to_num(0.0)
    return (weights @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1), weights


def parallel_head_by_head(q, k, v, H, may_attend=None):
    q, k, v = (reference.split_heads(x, H) for x in (q, k, v))
    full = None if may_attend is None else may_attend.expand(*q.shape[:3], k.shape[2])
    weights = torch.stack(
        [
            keys_that_may_be_seen(
                q[:, h] @ k[:, h].mT / math.sqrt(q.shape[-1]), None if full is None else full[:, h]
            )
            for h in range(H)
        ],
        1,
    )
    return torch.cat([weights[:, h] @ v[:, h] for h in range(H)], -1), weights


def parallel_baddbmm(q, k, v, H, may_attend=None):
    N, L, E = q.shape
    q, k, v = (reference.split_heads(x, H).flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.mT, alpha=(E // H) ** -0.5).unflatten(0, (N, H))
    weights = keys_that_may_be_seen(scores, may_attend)
    return reference.merge_heads((weights.flatten(0, 1) @ v).unflatten(0, (N, H))), weights


def parallel_float64(q, k, v, H, may_attend=None):
    output, weights = parallel_with()(q.double(), k.double(), v.double(), H, may_attend)
    return output.to(q.dtype), weights.to(q.dtype)


def draw_masked(shape, **sizes):
    """q, k, v, H and a mask of the given shape in letters ("N1LS"); query 1 of the last sample may see nothing."""

    def make(draw):
        inputs = draw_heads(draw, **sizes)
        N, L, _ = inputs["q"].shape
        size = {"N": N, "1": 1, "H": inputs["H"], "L": L, "S": inputs["k"].shape[1]}
        mask = draw.mask(*(size[letter] for letter in shape))
        if len(shape) == 4 and shape[2] == "L":
            mask[-1, -1, 1] = False
        return {**inputs, "may_attend": mask}

    return make


ATTEND_IN_PARALLEL = Exercise(
    name="attend_in_parallel",
    number="3.4",
    reference=reference.attend_in_parallel,
    returns=("output (N, L, E)", "weights (N, H, L, S)"),
    assemble=parallel_with,
    forbidden=("ready-made attention",),
    builds_on=(
        "split_heads",
        "merge_heads",
        "masked_softmax",
        "attend",
        "attention_scores",
        "stable_softmax",
    ),
    cases=(
        Case("no mask; N, H, L, S and D all differ", draw_heads),
        Case("a mask per sample, one row that may see nothing", draw_masked("N1LS")),
        Case("a mask per sample and head", draw_masked("NHLS", N=3, L=4, S=5, H=2, D=3)),
        Case("a mask for padding: per sample, the same for all queries", draw_masked("N11S", N=3, L=2)),
        Case("one (L, S) mask for all", draw_masked("LS", N=4, L=6, S=5, H=3, D=2)),
        Case("float32", draw_masked("N1LS", dtype=FLOAT32, N=3, L=4, S=6, H=2, D=5)),
        Case("H does not divide E", lambda draw: draw_heads(draw, H=3, E=10), raises=(ValueError,)),
    ),
    misconceptions=(
        Misconception(
            "scrambled-split",
            "The numbers are scrambled: q, k and v were cut by `view` or `reshape` alone, so a head "
            "sees pieces of different tokens as if they were one. Use your `split_heads`.",
            part={"split": scrambled_split},
            hint=2,
        ),
        Misconception(
            "scrambled-merge",
            "The output is scrambled: on the way back the heads were reshaped without the "
            "tokens coming first. Use your `merge_heads`.",
            part={"merge": lambda x: x.reshape(len(x), x.shape[2], -1)},
            hint=2,
        ),
        Misconception(
            "scrambled-both-ways",
            "The shapes are right, the numbers are not: on the way in and on the way out, `view` or `reshape` was used "
            "without a transpose. The two undo each other, so a round trip looks fine; between them, heads see pieces "
            "of tokens. Use your `split_heads` and `merge_heads`.",
            wrong=parallel_with(split=scrambled_split, merge=lambda x: x.reshape(len(x), x.shape[2], -1)),
            hint=2,
        ),
        Misconception(
            "heads-take-turns-in-the-merge",
            "In the output the heads' features take turns. Whole heads go side by side: use "
            "your `merge_heads`.",
            part={"merge": lambda x: x.permute(0, 2, 3, 1).flatten(2)},
            hint=2,
        ),
        Misconception(
            "strided-heads",
            "Your heads have every H-th feature. A head owns D neighbours: use your `split_heads`.",
            part={"split": lambda x, H: (refuse(x.shape[-1], H), cut_strided(x, H))[1]},
            hint=2,
            also=(
                parallel_with(
                    split=lambda x, H: (refuse(x.shape[-1], H), cut_strided(x, H))[1],
                    merge=lambda x: x.permute(0, 2, 3, 1).flatten(2),
                ),
            ),
        ),
        Misconception(
            "one-wide-head",
            "Your weights have one head: q, k and v were never split. Each of the H heads makes its own weights from "
            "its own D features.",
            wrong=one_wide_head,
            hint=1,
        ),
        Misconception(
            "heads-meet-instead-of-tokens",
            "Your weights are (…, H, H): the heads of one token were compared with one another. `@` multiplies the "
            "*last two* dimensions, so those must be tokens and features.",
            wrong=heads_not_forward,
            hint=2,
        ),
        Misconception(
            "root-of-e",
            "Your weights are too even: the scores are divided by √E. What is summed in each head are its D features. "
            "(After the split, the last dimension *is* D.)",
            part={"scores": lambda q, k, E: q @ k.mT / math.sqrt(E)},
            hint=2,
        ),
        Misconception(
            "no-scale",
            "Your weights are too sharp: the scores are not divided by √D.",
            part={"scores": lambda q, k, E: q @ k.mT},
            hint=2,
        ),
        Misconception(
            "divided-by-d",
            "Your weights are too even: divided by D where √D is meant, or by √D twice.",
            part={"scores": lambda q, k, E: q @ k.mT / q.shape[-1]},
            hint=2,
        ),
        Misconception(
            "root-of-an-int",
            "`torch.sqrt` takes a tensor, and a size is a Python int. Python has roots of its own for numbers.",
            part={"scores": lambda q, k, E: q @ k.mT / torch.sqrt(q.shape[-1])},
            hint=2,
        ),
        Misconception(
            "root-of-h",
            "The scores are divided by √H: `shape[1]` is the number of heads now. The D features are the last dimension.",
            part={"scores": lambda q, k, E: q @ k.mT / math.sqrt(q.shape[1])},
            hint=2,
        ),
        Misconception(
            "softmax-over-heads",
            "Your weights sum to 1 across the *heads*: dim=1 is no longer what it was without heads. Each head gives "
            "away a whole 1 of its own, over the keys.",
            part={"weights": softmax_along(1)},
            also=(parallel_with(weights=softmax_along_without_mask(1)),),
            hint=2,
        ),
        Misconception(
            "softmax-over-queries",
            "Your weights sum to 1 over the *queries* (dim=2). The keys are the last dimension.",
            part={"weights": softmax_along(2)},
            also=(parallel_with(weights=softmax_along_without_mask(2)),),
            hint=2,
        ),
        Misconception(
            "mask-ignored",
            "With a mask nothing changes: `may_attend` is not used.",
            part={"weights": lambda scores, may_attend: torch.softmax(scores, -1)},
            hint=3,
        ),
        Misconception(
            "inverted-mask",
            "The mask works the wrong way round: True means *may* look.",
            part={"weights": inverted_mask},
            also=(parallel_with(weights=filled(-torch.inf, lambda m: m)),),
            hint=3,
        ),
        Misconception(
            "dead-row-nan",
            "A query that may see nothing gives NaN: all its scores are −∞, and the softmax divides 0 by 0. Lesson 02's "
            "`masked_softmax` gives zeros there.",
            part={"weights": filled(-torch.inf)},
            also=(parallel_with(weights=after_and_renormalised),),
            hint=3,
        ),
        Misconception(
            "dead-row-even",
            "A query that may see nothing looks at everything evenly: all its scores became the same number, or its weights "
            "were made even afterwards. Lesson 02's `masked_softmax` gives zeros there.",
            part={"weights": filled(-1e9)},
            also=(
                parallel_with(weights=filled(-1e20)),
                parallel_with(weights=filled(-1e4)),
                parallel_with(
                    weights=lambda s, m: torch.softmax(
                        s if m is None else s.masked_fill(~m, torch.finfo(s.dtype).min), -1
                    )
                ),
            ),
            hint=3,
        ),
        Misconception(
            "dead-row-unmasked",
            "A query that may see nothing looks at everything, as if there were no mask: a large negative number was "
            "*added* to all its scores alike, and a softmax does not notice that. Lesson 02's `masked_softmax` gives "
            "zeros there.",
            part={"weights": added(-1e9)},
            also=(parallel_with(weights=added(-1e4)), parallel_with(weights=added(-1e6))),
            hint=3,
        ),
        Misconception(
            "zero-times-infinity",
            "With a mask everything is NaN: −∞ was *multiplied* with the mask, and 0 · ∞ is NaN. Put −∞ only where a key "
            "is hidden.",
            part={"weights": added(-torch.inf)},
            hint=3,
        ),
        Misconception(
            "mask-after-the-softmax",
            "Hidden keys get 0, but what they had is not given to the others: rows no longer sum to 1. The mask acts "
            "before the softmax.",
            part={"weights": after_the_softmax},
            hint=3,
        ),
        Misconception(
            "scores-times-mask",
            "Hidden keys still get attention: their scores became 0, and e⁰ is 1. Only −∞ gives weight 0.",
            part={"weights": scores_times_mask},
            hint=3,
        ),
        Misconception(
            "mask-added-as-numbers",
            "The mask was added to the scores as it is: True counts 1, False 0. Hidden keys need −∞.",
            part={"weights": scores_plus_mask},
            hint=3,
        ),
        Misconception(
            "transposed-mask",
            "The mask acts on keys and queries the wrong way round: its rows are the queries as it comes.",
            part={"weights": transposed_mask},
            hint=3,
        ),
        Misconception(
            "mask-of-sample-0",
            "All samples have the mask of sample 0: every sample brings its own.",
            part={"weights": mask_of_sample_0},
            hint=3,
        ),
        Misconception(
            "mask-of-head-0",
            "A mask with a part for each head is used for head 0 only, and every head gets that part.",
            part={"weights": mask_of_head_0},
            hint=3,
        ),
        Misconception(
            "mask-given-another-dimension",
            "`may_attend` got one dimension more than it came with. It comes ready to broadcast against (N, H, L, S); if a "
            "caller's mask has no place for heads, the caller puts one in.",
            part={"weights": mask_with_a_place_for_heads},
            hint=3,
            also=tuple(
                parallel_with(weights=weights, merge=merge)
                for weights in (
                    mask_with_a_place_for_heads,
                    filled(-torch.inf, one_dimension_more),
                    filled(-1e9, one_dimension_more),
                )
                for merge in MERGES
            ),
        ),
        Misconception(
            "mask-as-a-truth-value",
            "`if may_attend:` asks a whole tensor whether it is true, and torch cannot say. Whether there *is* a mask "
            "is another question.",
            part={"weights": truth_of_mask},
            hint=3,
        ),
        Misconception(
            "mask-always-needed",
            "Without a mask, `may_attend` is None, and your code stops: it uses the mask before it has asked whether there is "
            "one. Without one, every query may see every key.",
            part={"weights": mask_needed},
            hint=3,
            also=(parallel_with(weights=lambda s, m: torch.softmax(s.masked_fill(~m, -torch.inf), -1)),),
        ),
        Misconception(
            "weights-without-the-mask",
            "The output is right. The weights you return are those before the mask.",
            wrong=weights_before_the_mask,
            hint=3,
        ),
        Misconception(
            "output-without-the-mask",
            "The weights you return know the mask; those that made the output did not.",
            wrong=output_without_the_mask,
            hint=3,
        ),
        Misconception(
            "scores-returned",
            "The output is right. The second thing you return is the scores; the weights are wanted.",
            wrong=scores_given_back,
            hint=2,
        ),
        Misconception(
            "keys-mixed-instead-of-values",
            "Your weights mix the *keys*. What a query gets are the values.",
            part={"mix": lambda w, q, k, v: w @ k},
            hint=2,
        ),
        Misconception(
            "heads-not-merged",
            "The output still has its heads, (N, H, L, D). One more of your functions is missing.",
            part={"merge": lambda x: x},
            hint=1,
            also=(parallel_with(merge=lambda x: x.transpose(1, 2)),),
        ),
        Misconception(
            "heads-summed",
            "Each token of your output has D numbers: the heads were added up instead of put side by side.",
            part={"merge": lambda x: x.sum(1)},
            hint=1,
        ),
        Misconception(
            "heads-averaged",
            "Each token of your output has D numbers: the heads were averaged instead of put side by side.",
            part={"merge": lambda x: x.mean(1)},
            hint=1,
        ),
        Misconception(
            "weights-averaged",
            "Your weights are averaged over the heads: (N, L, S). Here we want to see each head.",
            part={"result": lambda output, w: (output, w.mean(1))},
            hint=2,
        ),
        Misconception(
            "heads-left-in-the-batch",
            "The output is right. In your weights batch and heads are still one dimension, (N·H, L, S).",
            wrong=lambda q, k, v, H, may_attend=None: heads_in_the_batch(
                q, k, v, H, may_attend, give_back=False
            ),
            hint=2,
        ),
        Misconception(
            "output-only",
            "Only the output is returned. Return two things: output, then weights.",
            part={"result": lambda output, w: output},
            hint=2,
        ),
        Misconception(
            "weights-first",
            "Two results are there, in the wrong order: the output comes first.",
            part={"result": lambda output, w: (w, output)},
            hint=2,
        ),
        Misconception(
            "cut-off",
            "Right numbers, cut off from q, k and v (`detach`, `.data`, NumPy, `no_grad`): nothing could learn.",
            wrong=parallel_cut_off,
            hint=2,
        ),
        Misconception(
            "uneven-heads-accepted",
            UNEVEN_ACCEPTED,
            wrong=parallel_with(split=cut_by_slices),
            hint=1,
        ),
        Misconception(
            "uneven-heads-left-to-torch",
            UNEVEN_TO_TORCH,
            wrong=parallel_with(split=cut_and_turn),
            hint=1,
        ),
        Misconception(
            "uneven-heads-asserted",
            UNEVEN_ASSERT,
            wrong=parallel_with(split=split_with(refuse_by_assert)),
            hint=1,
        ),
    ),
    properties=(
        Property("rows sum to 1", rows_of_each_head, hint=2),
        Property("heads stay apart", heads_stay_apart, hint=2),
    ),
    styles=(
        Style("split, attend, merge", parallel_with()),
        Style("einsum, nothing transposed", parallel_einsum),
        Style("heads in the batch, bmm", heads_in_the_batch),
        Style("baddbmm", parallel_baddbmm),
        Style("own exp, mask multiplied in", parallel_own_exp),
        Style("−∞, then nan_to_num", parallel_nan_to_num),
        Style("a loop over the heads", parallel_head_by_head),
        Style("float64 inside", parallel_float64),
        Style(
            "attention_scores and stable_softmax",
            parallel_with(
                scores=lambda q, k, E: reference.attention_scores(q, k),
                weights=lambda s, m: (
                    reference.stable_softmax(s, -1) if m is None else reference.masked_softmax(s, m)
                ),
            ),
        ),
        Style(
            "an all-True mask where there is none",
            parallel_with(
                weights=lambda s, m: reference.masked_softmax(
                    s, torch.ones_like(s, dtype=torch.bool) if m is None else m
                )
            ),
        ),
        Style("a list", parallel_with(result=lambda output, w: [output, w])),
    ),
)


# --------------------------------------------------------------------------- 3.5 projection_parameters


def count_with(
    into_heads=lambda E, H, D: 3 * H * D * E,
    their_biases=lambda E, H, D: 3 * H * D,
    out=lambda E, H, D: E * E,
    its_bias=lambda E, H, D: E,
    wants_bias=lambda bias: bias,
):
    """The count from its parts: the heads' projections, their biases, the output projection, its bias."""

    def projection_parameters(E, H, bias):
        D = E // H
        count = into_heads(E, H, D) + out(E, H, D)
        return count + (their_biases(E, H, D) + its_bias(E, H, D) if wants_bias(bias) else 0)

    return projection_parameters


def count_by_modules(E, H, bias):
    parts = [torch.nn.Linear(E, E // H, bias=bias) for _ in range(3 * H)] + [torch.nn.Linear(E, E, bias=bias)]
    return sum(p.numel() for part in parts for p in part.parameters())


def count_by_loop(E, H, bias):
    total = 0
    for _ in range(H):
        for _ in ("query", "key", "value"):
            total += E * (E // H)
            if bias:
                total += E // H
    return total + E * E + (E if bias else 0)


def sizes(E, H, bias):
    return lambda draw: {"E": E, "H": H, "bias": bias}


@a_number
def grows_with_heads(inputs, value):
    E, bias = inputs["E"], inputs["bias"]
    right = 4 * E * E + 4 * E * bias
    if value == right:
        return None
    per = f"With E = {E}, one square projection has {E} · {E} = {E * E} weights"
    return f"{per}{f' and {E} biases' if bias else ''}. Yours is {value / (E * E):.3g} times {E * E}."


PROJECTION_PARAMETERS = Exercise(
    name="projection_parameters",
    number="3.5",
    reference=reference.projection_parameters,
    returns=("count",),
    assemble=count_with,
    differentiable=False,
    device_safe=False,
    cases=(
        Case("three heads, no bias", sizes(12, 3, False)),
        Case("three heads, with bias", sizes(12, 3, True)),
        Case("one head", sizes(10, 1, True)),
        Case("as many heads as features", sizes(7, 7, True)),
        Case("a large model", sizes(512, 8, False)),
    ),
    misconceptions=(
        Misconception(
            "every-head-full-size",
            "The count grows with H: each of your heads projects to all E features. A head needs D = E / H of them only.",
            part={"into_heads": lambda E, H, D: 3 * H * E * E},
            hint=2,
            also=(count_with(lambda E, H, D: 3 * H * E * E, lambda E, H, D: 3 * H * E),),
        ),
        Misconception(
            "everything-times-heads",
            "The count is H times too large: four projections of E × E belong to all the heads *together*.",
            wrong=lambda E, H, bias: H * (4 * E * E + (4 * E if bias else 0)),
            hint=2,
            also=(lambda E, H, bias: H * 4 * E * E,),
        ),
        Misconception(
            "shrinks-with-heads",
            "Your count shrinks as H grows. Either the projections of one head were counted (there are H), or a head "
            "reads only D features of a token. It reads *all* E, and gives D.",
            part={"into_heads": lambda E, H, D: 3 * D * E},
            hint=2,
            also=(
                count_with(lambda E, H, D: 3 * D * E, lambda E, H, D: 3 * D),
                count_with(lambda E, H, D: 3 * H * D * D, out=lambda E, H, D: H * D * D),
                count_with(
                    lambda E, H, D: 3 * D * E, lambda E, H, D: 3 * D, lambda E, H, D: D * E, lambda E, H, D: D
                ),
                lambda E, H, bias: 4 * E * (E // H),
            ),
        ),
        Misconception(
            "output-projection-forgotten",
            "One projection is missing: after the merge, a fourth one mixes what the heads have found, E to E.",
            part={"out": lambda E, H, D: 0},
            hint=1,
            also=(count_with(out=lambda E, H, D: 0, its_bias=lambda E, H, D: 0),),
        ),
        Misconception(
            "output-projection-from-one-head",
            "The output projection reads all the heads side by side, E features, not the D of one.",
            part={"out": lambda E, H, D: D * E},
            hint=2,
        ),
        Misconception(
            "one-projection-for-all-three",
            "Query, key and value have a projection each; one was counted.",
            part={"into_heads": lambda E, H, D: H * D * E},
            hint=1,
            also=(count_with(lambda E, H, D: H * D * E, lambda E, H, D: H * D),),
        ),
        Misconception(
            "bias-ignored",
            "With bias you give the same number as without. A bias has one number for each feature that "
            "comes out.",
            part={"wants_bias": lambda bias: False},
            hint=3,
        ),
        Misconception(
            "bias-always",
            "Without bias you count biases all the same.",
            part={"wants_bias": lambda bias: True},
            hint=3,
        ),
        Misconception(
            "bias-inverted",
            "Biases are counted when there are none, and left out when there are.",
            part={"wants_bias": lambda bias: not bias},
            hint=3,
        ),
        Misconception(
            "output-bias-forgotten",
            "The fourth projection's bias is missing: E numbers.",
            part={"its_bias": lambda E, H, D: 0},
            hint=3,
        ),
        Misconception(
            "only-the-output-bias",
            "Only one bias was counted; each projection has its own.",
            part={"their_biases": lambda E, H, D: 0},
            hint=3,
        ),
        Misconception(
            "one-number-per-bias",
            "A bias was counted as a single number. It is a vector: one number for each feature that comes out.",
            part={"their_biases": lambda E, H, D: 3, "its_bias": lambda E, H, D: 1},
            hint=3,
            also=(count_with(their_biases=lambda E, H, D: 3 * H, its_bias=lambda E, H, D: 1),),
        ),
        Misconception(
            "bias-not-shared-out",
            "With bias your count grows with H: each head's bias has D numbers, as many as come out, not E.",
            part={"their_biases": lambda E, H, D: 3 * H * E},
            hint=3,
        ),
        Misconception(
            "tensor-for-number",
            "The count is right, but it is a tensor; a plain Python number is wanted.",
            wrong=lambda E, H, bias: torch.tensor(count_with()(E, H, bias)),
            hint=3,
        ),
    ),
    properties=(Property("four square projections", grows_with_heads, hint=2),),
    styles=(
        Style("the short formula", lambda E, H, bias: 4 * E * E + (4 * E if bias else 0)),
        Style("with + bias", lambda E, H, bias: 4 * E * (E + bias)),
        Style("counted in torch's modules", count_by_modules),
        Style("in loops", count_by_loop),
        Style("packed", lambda E, H, bias: 3 * E * E + E * E + int(bias) * (3 * E + E)),
        Style("head by head", count_with()),
    ),
)


# ------------------------------------------------------------------------------------ 3.6 head_distance


def distance_with(
    gap=lambda a, b: (a - b).abs(),
    over_keys=lambda gap: gap.sum(-1),
    factor=0.5,
    average=lambda x: x.mean(dim=(0, 3)),
):
    """How differently heads look, from its parts."""

    def head_distance(weights):
        pairs = gap(weights.unsqueeze(2), weights.unsqueeze(1))  # (N, H, H, L, S)
        return average(over_keys(pairs) * factor)

    return head_distance


def distance_by_loops(weights):
    H = weights.shape[1]
    table = torch.zeros(H, H, dtype=weights.dtype, device=weights.device)
    for i in range(H):
        for j in range(H):
            table[i, j] = (weights[:, i] - weights[:, j]).abs().sum(-1).mean() / 2
    return table


def distance_upper_half(weights):
    return distance_by_loops(weights).triu()


def distance_by_cdist(weights):
    N, H, L, S = weights.shape
    rows = weights.permute(0, 2, 1, 3).reshape(N * L, H, S)
    return torch.cdist(rows, rows, p=1).mean(0) / 2


def draw_weights(draw, dtype=torch.float64, N=2, H=3, L=5, S=7, scale=2.0):
    return {"weights": torch.softmax(draw.normal(N, H, L, S, scale=scale), -1).to(dtype)}


def heads_alike(draw):
    weights = draw_weights(draw, N=3, H=4, L=2, S=5)["weights"]
    weights[:, 3] = weights[:, 1]
    return {"weights": weights}


def never_the_same_key(draw):
    weights = torch.zeros(2, 2, 3, 4, dtype=torch.float64)
    weights[:, 0, :, 0] = 1
    weights[:, 1, :, 2] = 1
    return {"weights": weights}


@of_shape(lambda inputs: (inputs["weights"].shape[1],) * 2)
def is_a_distance(inputs, value):
    if bool((value.diagonal().abs() > 1e-6).any()):
        return "The diagonal should be 0: a head looks exactly like itself."
    if bool(((value - value.mT).abs() > 1e-6).any()):
        return "Your table is not symmetric; two heads are as far apart one way as the other."
    if bool((value > 1 + 1e-6).any()) or bool((value < -1e-6).any()):
        return "Every number should lie between 0 and 1."
    return None


HEAD_DISTANCE = Exercise(
    name="head_distance",
    number="3.6",
    reference=reference.head_distance,
    returns=("distance (H, H)",),
    assemble=distance_with,
    differentiable=False,  # it measures; nobody trains through it
    cases=(
        Case("N, H, L and S all differ", draw_weights),
        Case("two heads alike", heads_alike),
        Case("heads that never look at the same key", never_the_same_key),
        Case("one head", lambda draw: draw_weights(draw, N=3, H=1, L=2, S=4)),
        Case("float32", lambda draw: draw_weights(draw, FLOAT32, N=3, H=2, L=4, S=6)),
    ),
    misconceptions=(
        Misconception(
            "not-halved",
            "Every number is twice the expected one: what one head has more, the other has less, so each shift of "
            "attention is counted at both its ends.",
            part={"factor": 1.0},
            hint=2,
        ),
        Misconception(
            "no-absolute-value",
            "All your numbers are 0: both rows sum to 1, so plain differences cancel. Count how much differs, "
            "whatever the sign.",
            part={"gap": lambda a, b: a - b},
            hint=2,
        ),
        Misconception(
            "squared",
            "Differences were squared. Small ones then count for nearly nothing; here a difference counts as it is.",
            part={"gap": lambda a, b: (a - b) ** 2},
            hint=2,
        ),
        Misconception(
            "euclidean",
            "These are Euclidean distances (squares, sum, root). Here the absolute differences are added up.",
            part={"gap": lambda a, b: (a - b) ** 2, "over_keys": lambda g: g.sum(-1).sqrt()},
            hint=2,
            also=(
                lambda weights: torch.cdist(weights.movedim(1, 2), weights.movedim(1, 2)).mean((0, 1)) / 2,
                distance_with(lambda a, b: (a - b) ** 2, lambda g: g.sum(-1).sqrt(), 1.0),
            ),
        ),
        Misconception(
            "mean-over-keys",
            "The numbers are S times too small: over the keys the differences are *added*; the mean is taken over "
            "queries and samples.",
            part={"over_keys": lambda gap: gap.mean(-1)},
            hint=2,
        ),
        Misconception(
            "largest-over-keys",
            "Of each row only the largest difference was taken. Add up all of them.",
            part={"over_keys": lambda gap: gap.amax(-1)},
            hint=2,
            also=(distance_with(over_keys=lambda gap: gap.amax(-1), factor=1.0),),
        ),
        Misconception(
            "sum-over-queries",
            "The numbers grow with the number of queries or samples: over those the *mean* is taken.",
            part={"average": lambda x: x.sum(dim=(0, 3))},
            hint=2,
            also=(
                distance_with(average=lambda x: x.sum(3).mean(0)),
                distance_with(average=lambda x: x.mean(3).sum(0)),
            ),
        ),
        Misconception(
            "largest-over-queries",
            "The largest distance of any query was taken; the mean over queries and samples is wanted.",
            part={"average": lambda x: x.amax(dim=(0, 3))},
            hint=2,
        ),
        Misconception(
            "averaged-before-comparing",
            "Your numbers are too small: the weights were averaged over queries or samples first, and compared "
            "afterwards. Two heads that differ in every row can have the same average. Compare first.",
            wrong=lambda weights: distance_with()(weights.mean((0, 2), keepdim=True)),
            also=(
                lambda weights: distance_with()(weights.mean(0, keepdim=True)),
                lambda weights: distance_with()(weights.mean(2, keepdim=True)),
            ),
            hint=2,
        ),
        Misconception(
            "likeness",
            "Your diagonal is 1: that is how *alike* heads look. A distance is 0 for a head and itself.",
            wrong=lambda weights: 1 - distance_with()(weights),
            hint=1,
            also=(
                lambda weights: F.cosine_similarity(
                    weights.flatten(2).unsqueeze(2), weights.flatten(2).unsqueeze(1), dim=-1
                ).mean(0),
            ),
        ),
        Misconception(
            "batch-left-in",
            "There is one table for each sample: (N, H, H). Average over the samples, too.",
            part={"average": lambda x: x.mean(-1)},
            hint=2,
        ),
        Misconception(
            "queries-left-in",
            "The queries (or samples and queries) are still there. Average over both; only heads by heads stays.",
            part={"average": lambda x: x.mean(0)},
            hint=2,
            also=(distance_with(average=lambda x: x),),
        ),
        Misconception(
            "first-sample-only",
            "Only the first sample was looked at; average over all of them.",
            part={"average": lambda x: x[0].mean(-1)},
            hint=2,
        ),
        Misconception(
            "queries-compared",
            "Your table is (L, L): the *queries* of a head were compared with one another. Compare heads, dimension 1.",
            wrong=lambda weights: distance_with()(weights.transpose(1, 2)),
            hint=1,
        ),
        Misconception(
            "samples-compared",
            "Your table is (N, N): the *samples* were compared with one another. Compare heads, dimension 1.",
            wrong=lambda weights: distance_with()(weights.transpose(0, 1)),
            hint=1,
        ),
        Misconception(
            "half-the-table",
            "Half of your table is 0: each pair was entered once. It has two places, [i, j] and [j, i].",
            wrong=distance_upper_half,
            also=(lambda weights: distance_by_loops(weights).tril(),),
            hint=3,
        ),
        Misconception(
            "one-number",
            "One number came out: the mean over all pairs. Keep a row and a column for each head.",
            part={"average": lambda x: x.mean()},
            hint=2,
        ),
    ),
    properties=(Property("a distance", is_a_distance, hint=2),),
    styles=(
        Style("broadcast", distance_with()),
        Style("None for unsqueeze", lambda w: (w[:, :, None] - w[:, None]).abs().sum(-1).mean((0, -1)) / 2),
        Style("loops", distance_by_loops),
        Style("cdist", distance_by_cdist),
        Style(
            "what they share",
            lambda w: 1 - torch.minimum(w.unsqueeze(2), w.unsqueeze(1)).sum(-1).mean(dim=(0, 3)),
        ),
        Style("positive part", distance_with(gap=lambda a, b: (a - b).clamp(min=0), factor=1.0)),
        Style("float64 inside", lambda w: distance_with()(w.double()).to(w.dtype)),
        Style(
            "rows of a table",
            lambda w: torch.stack(
                [(w - w[:, h : h + 1]).abs().sum(-1).mean(dim=(0, 2)) / 2 for h in range(w.shape[1])]
            ),
        ),
    ),
)


# -------------------------------------------------------------------------------------------- questions

QUESTIONS = (
    Question(
        "why_many_heads",
        right="b",
        why={
            "a": "The number of parameters is the same for any H; exercise 3.5 counted them.",
            "b": "Yes: every head has a whole 1 to give away, and its answer keeps a place of its own in the output.",
            "c": "One head can look at several keys. But it mixes what it finds, and cannot tell afterwards what came "
            "from where.",
            "d": "Order is as invisible to many heads as to one; lesson 06 does something about it.",
        },
    ),
    Question(
        "what_view_does",
        right="c",
        why={
            "a": "It has the right shape, and torch says nothing. That is what makes it dangerous.",
            "b": "Nothing is lost or repeated: view only gives the same numbers new places.",
            "c": "Yes: view keeps the reading order, so head 0 is filled with the first tokens, features of all heads "
            "included.",
            "d": "view does not move anything in memory; for that the dimensions have to be exchanged.",
        },
    ),
    Question(
        "cost_of_heads",
        right="a",
        why={
            "a": "Yes: more heads are narrower heads, and H · D is always E. Only the number of weights, N·H·L·S, grows.",
            "b": "That would be so if each head had all E features. It has E / 8.",
            "c": "Each head is smaller by 8, and there are 8 of them.",
            "d": "Every projection reads all E features and all heads together give E: E · E, whatever H is.",
        },
    ),
    Question(
        "what_finds_it",
        right="d",
        why={
            "a": "The scrambled model trained to 100 % as well: it learned its way around the bug.",
            "b": "The shapes are right with and without the transpose.",
            "c": "If both are wrong in the same way, they undo each other: the round trip is perfect, the heads are not.",
            "d": "Yes: numbers of which you know where they belong, or a slow version that is easy to believe.",
        },
    ),
)

LESSON = Lesson(
    folder="03_many_heads",
    title="Many heads",
    exercises=(
        ATTEND_BY_LOOP,
        SPLIT_HEADS,
        MERGE_HEADS,
        ATTEND_IN_PARALLEL,
        PROJECTION_PARAMETERS,
        HEAD_DISTANCE,
    ),
    questions=QUESTIONS,
)
