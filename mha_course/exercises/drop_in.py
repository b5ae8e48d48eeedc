"""Lesson 05, declared: torch's masks, torch's parameters, keys that nobody sent, and torch's whole forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Question, Style

FLOAT32 = torch.float32
INF = torch.inf


# ------------------------------------------------------------------------------- 5.1 to_may_attend


def is_blocked(mask):
    return mask if mask.dtype == torch.bool else mask == -INF


def may_attend_with(
    blocked=is_blocked,
    turn=lambda blocked: ~blocked,
    heads=lambda mask, N, H: mask.unflatten(0, (N, H)),
    padding=lambda mask: mask[:, None, None, :],
    both=lambda a, b: a & b,
    for_all=lambda mask: mask[None, None],
):
    def to_may_attend(attn_mask, key_padding_mask, N, H):
        found = []
        if attn_mask is not None:
            mask = turn(blocked(attn_mask))
            found.append(heads(mask, N, H) if mask.dim() == 3 else for_all(mask))
        if key_padding_mask is not None:
            found.append(padding(turn(blocked(key_padding_mask))))
        return both(*found) if len(found) == 2 else found[0]

    return to_may_attend


def may_attend_filled(attn_mask, key_padding_mask, N, H):
    """Begin with everything open, close what is closed."""
    L = 1 if attn_mask is None else attn_mask.shape[-2]
    mask = attn_mask if attn_mask is not None else key_padding_mask
    open_ = torch.ones(N, H, L, mask.shape[-1], dtype=torch.bool, device=mask.device)
    if attn_mask is not None:
        shaped = attn_mask.reshape(N, H, L, -1) if attn_mask.dim() == 3 else attn_mask
        open_ = open_.masked_fill(is_blocked(shaped), False)
    if key_padding_mask is not None:
        open_ = open_.masked_fill(is_blocked(key_padding_mask).view(N, 1, 1, -1), False)
    return open_


def may_attend_by_scores(attn_mask, key_padding_mask, N, H):
    """As additive masks: add them up, and see what is not −∞."""

    def additive(mask):
        return (
            torch.zeros_like(mask, dtype=FLOAT32).masked_fill(mask, -INF)
            if mask.dtype == torch.bool
            else mask
        )

    total = torch.zeros(
        (), dtype=torch.float64, device=(attn_mask if attn_mask is not None else key_padding_mask).device
    )
    if attn_mask is not None:
        mask = additive(attn_mask)
        total = total + (mask.view(N, H, *mask.shape[-2:]) if mask.dim() == 3 else mask)
    if key_padding_mask is not None:
        total = total + additive(key_padding_mask)[:, None, None]
    return total != -INF


def may_attend_by_sample(attn_mask, key_padding_mask, N, H):
    rows = []
    for n in range(N):
        for h in range(H):
            mask = None
            if attn_mask is not None:
                mask = ~is_blocked(attn_mask[n * H + h] if attn_mask.dim() == 3 else attn_mask)
            if key_padding_mask is not None:
                real = (~is_blocked(key_padding_mask[n])).unsqueeze(0)
                mask = real if mask is None else mask & real
            rows.append(mask)
    return torch.stack(rows).unflatten(0, (N, H))


def broadcast(value, inputs):
    """Any mask that broadcasts to (N, H, L, S) is right; compared is what it broadcasts to."""
    attn, padding = inputs["attn_mask"], inputs["key_padding_mask"]
    L, S = attn.shape[-2:] if attn is not None else (1, padding.shape[-1])
    return value.expand(inputs["N"], inputs["H"], L, S)


def mask_case(name, attn_mask, key_padding_mask):
    def make(draw):
        N, H, L, S = 2, 3, 5, 7
        made = {
            "bool (L, S)": lambda: ~draw.mask(L, S),
            "bool (N·H, L, S)": lambda: ~draw.mask(N * H, L, S),
            "float (L, S)": lambda: draw.normal(L, S).masked_fill(~draw.mask(L, S), -INF),
            "with zeros": lambda: torch.zeros(L, S).masked_fill(~draw.mask(L, S), -INF),
            "bool (N, S)": lambda: ~draw.mask(N, S),
            "float (N, S)": lambda: draw.normal(N, S).masked_fill(~draw.mask(N, S), -INF),
            "": lambda: None,
        }
        return {"attn_mask": made[attn_mask](), "key_padding_mask": made[key_padding_mask](), "N": N, "H": H}

    return Case(name, make, look_at=broadcast)


TO_MAY_ATTEND = Exercise(
    name="to_may_attend",
    number="5.1",
    reference=reference.to_may_attend,
    returns=("may_attend (N, H, L, S)",),
    assemble=may_attend_with,
    differentiable=False,
    cases=(
        mask_case("attn_mask (L, S), bool", "bool (L, S)", ""),
        mask_case("key_padding_mask alone", "", "bool (N, S)"),
        mask_case("attn_mask (N·H, L, S) and padding", "bool (N·H, L, S)", "bool (N, S)"),
        mask_case("attn_mask of numbers, −∞ among them", "float (L, S)", ""),
        mask_case("attn_mask of 0 and −∞, padding of numbers", "with zeros", "float (N, S)"),
    ),
    misconceptions=(
        Misconception(
            "polarity-kept",
            "Everything is the wrong way round: torch's bool masks say True = blocked, ours True = may look.",
            part={"turn": lambda blocked: blocked},
            hint=1,
            also=(
                may_attend_with(turn=lambda blocked: blocked, both=lambda a, b: a | b),
            ),  # not turned at the end
        ),
        Misconception(
            "polarity-kept-for-padding",
            "key_padding_mask is the wrong way round: in torch True means blocked there, too (this is padding).",
            part={"padding": lambda mask: ~mask[:, None, None, :]},
            hint=1,
        ),
        Misconception(
            "polarity-kept-for-attn-mask",
            "key_padding_mask is right, attn_mask the wrong way round: in torch True means blocked in both.",
            wrong=lambda attn_mask, key_padding_mask, N, H: may_attend_with(
                turn=lambda b: b, padding=lambda m: ~m[:, None, None, :]
            )(attn_mask, key_padding_mask, N, H),
            hint=1,
        ),
        Misconception(
            "heads-before-samples",
            "The (N·H, L, S) mask was taken apart in the wrong order. The heads of one sample stand next to one another: "
            "N is the slow index, H the fast one.",
            part={"heads": lambda mask, N, H: mask.unflatten(0, (H, N)).transpose(0, 1)},
            hint=2,
            also=(may_attend_with(heads=lambda mask, N, H: torch.stack([mask[n::N] for n in range(N)])),),
        ),
        Misconception(
            "first-head-for-all",
            "Every head got the mask of its sample's first head.",
            part={"heads": lambda mask, N, H: mask[::H].unsqueeze(1)},
            hint=2,
        ),
        Misconception(
            "either-is-enough",
            "A look is open where *one* of the masks opens it. It has to get past both.",
            part={"both": lambda a, b: a | b},
            hint=2,
        ),
        Misconception(
            "padding-ignored",
            "With both masks given, the padding is ignored.",
            part={"both": lambda a, b: a},
            hint=2,
        ),
        Misconception(
            "attn-mask-ignored",
            "With both masks given, attn_mask is ignored.",
            part={"both": lambda a, b: b.expand(-1, -1, a.shape[-2], -1)},
            hint=2,
        ),
        Misconception(
            "numbers-block-unless-zero",
            "In a mask of numbers you block everything that is not 0. Such a mask is *added* to the scores: a finite number "
            "makes a look more or less likely, only −∞ closes it.",
            part={"blocked": lambda mask: mask if mask.dtype == torch.bool else mask != 0},
            hint=2,
            also=(may_attend_with(blocked=lambda mask: mask.bool()),),
        ),
        Misconception(
            "negative-numbers-block",
            "In a mask of numbers you block everything negative. Only −∞ closes a look; −2 makes it less likely.",
            part={"blocked": lambda mask: mask if mask.dtype == torch.bool else mask < 0},
            hint=2,
        ),
        Misconception(
            "numbers-never-block",
            "A mask of numbers blocks nothing in your version, not even where it is −∞.",
            part={
                "blocked": lambda mask: (
                    mask if mask.dtype == torch.bool else torch.zeros_like(mask, dtype=torch.bool)
                )
            },
            hint=2,
        ),
        Misconception(
            "numbers-turned",
            "In a mask of numbers the closed looks are the open ones: −∞ blocks there.",
            part={"blocked": lambda mask: mask if mask.dtype == torch.bool else mask > -INF},
            hint=2,
        ),
        Misconception(
            "heads-still-folded",
            "The (N·H, L, S) mask was left as it is. Our shape is (N, H, L, S): its first dimension has to be taken apart into "
            "samples and heads.",
            part={"heads": lambda mask, N, H: mask},
            hint=2,
        ),
        Misconception(
            "bool-only",
            "Only bool masks were thought of: `~` stops at numbers. A mask of numbers is asked another question: where is it −∞?",
            part={"blocked": lambda mask: mask},
            hint=2,
        ),
        Misconception(
            "padding-of-three-dimensions",
            "The padding mask became (N, 1, S). There are four dimensions, (N, H, L, S), and broadcasting counts from the right: "
            "your N stands where the heads are.",
            part={"padding": lambda mask: mask[:, None, :]},
            hint=2,
            also=(may_attend_with(padding=lambda mask: mask[:, None, :], for_all=lambda mask: mask),),
        ),
        Misconception(
            "padding-on-heads",
            "The padding mask does not line up: (N, S) has to become (N, 1, 1, S), so that it counts for every head and "
            "every query.",
            part={"padding": lambda mask: mask},
            hint=2,
        ),
        Misconception(
            "padding-on-queries",
            "The padding mask closes *queries*: (N, S) became (N, 1, S, 1). It is keys that are padding: (N, 1, 1, S).",
            part={"padding": lambda mask: mask[:, None, :, None]},
            hint=2,
        ),
    ),
    styles=(
        Style("in parts", may_attend_with()),
        Style("everything open, then closed", may_attend_filled),
        Style("as numbers, added up", may_attend_by_scores),
        Style("sample by sample", may_attend_by_sample),
        Style("logical functions", may_attend_with(turn=torch.logical_not, both=torch.logical_and)),
        Style(
            "view and isneginf",
            may_attend_with(
                blocked=lambda m: m if m.dtype == torch.bool else m.isneginf(),
                heads=lambda m, N, H: m.view(N, H, *m.shape[1:]),
            ),
        ),
        Style(
            "written out in full",
            lambda attn_mask, key_padding_mask, N, H: broadcast(
                may_attend_with()(attn_mask, key_padding_mask, N, H),
                {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask, "N": N, "H": H},
            ).clone(),
        ),
    ),
)


# ----------------------------------------------------- 5.2 load_from_torch, 5.3 export_to_torch


def torch_state(draw, E=4, kdim=None, vdim=None, bias=True):
    state = {}
    if kdim is None:
        state["in_proj_weight"] = draw.normal(3 * E, E)
    else:
        state |= {
            "q_proj_weight": draw.normal(E, E),
            "k_proj_weight": draw.normal(E, kdim),
            "v_proj_weight": draw.normal(E, vdim),
        }
    if bias:
        state["in_proj_bias"] = draw.normal(3 * E)
    state["out_proj.weight"] = draw.normal(E, E)
    if bias:
        state["out_proj.bias"] = draw.normal(E)
    return state


NAMES = ("query", "key", "value")


def load_with(
    packed=lambda weight: weight.chunk(3),
    names=NAMES,
    biases=lambda bias: bias.chunk(3),
    out=lambda weight: weight,
    with_out_bias=True,
    out_name="out",
    there=lambda name, state: name in state,
    bias_there=lambda name, state: name in state,
):
    def load_from_torch(state):
        weights = (
            packed(state["in_proj_weight"])
            if there("in_proj_weight", state)
            else [state[f"{x}_proj_weight"] for x in "qkv"]
        )
        ours = {f"{name}.weight": weight for name, weight in zip(names, weights)}
        ours[f"{out_name}.weight"] = out(state["out_proj.weight"])
        if bias_there("in_proj_bias", state):
            ours.update({f"{name}.bias": bias for name, bias in zip(names, biases(state["in_proj_bias"]))})
            if with_out_bias:
                ours[f"{out_name}.bias"] = state["out_proj.bias"]
        return ours

    return load_from_torch


def in_another_order(*order):
    """The packed blocks taken in another order: of the weights, of the biases, or of both."""

    def take(packed):
        return [packed.chunk(3)[i] for i in order]

    return load_with(packed=take, biases=take), load_with(packed=take), load_with(biases=take)


def load_by_slices(state):
    E = state["out_proj.weight"].shape[0]
    ours = {}
    for i, (letter, name) in enumerate(zip("qkv", NAMES)):
        rows = slice(i * E, (i + 1) * E)
        packed = state.get("in_proj_weight")
        ours[name + ".weight"] = packed[rows] if packed is not None else state[letter + "_proj_weight"]
        if state.get("in_proj_bias") is not None:
            ours[name + ".bias"] = state["in_proj_bias"][rows]
    ours.update(
        {key.replace("_proj", ""): value for key, value in state.items() if key.startswith("out_proj")}
    )
    return ours


def load_all_transposed(state):
    return {name: x.T if x.dim() == 2 else x for name, x in load_with()(state).items()}


LOAD = Exercise(
    name="load_from_torch",
    number="5.2",
    reference=reference.load_from_torch,
    returns=("our state dict",),
    assemble=load_with,
    differentiable=False,
    builds_on=("unpack_projections", "pack_projections"),
    cases=(
        Case("packed, with biases", lambda draw: {"state": torch_state(draw)}),
        Case("kdim and vdim of their own", lambda draw: {"state": torch_state(draw, 4, 3, 5)}),
        Case("no biases", lambda draw: {"state": torch_state(draw, 6, bias=False)}),
    ),
    misconceptions=(
        Misconception(
            "key-first",
            "Query and key have changed places. The packed order is query, key, value.",
            part={"names": ("key", "query", "value")},
            hint=1,
            also=in_another_order(1, 0, 2),
        ),
        Misconception(
            "value-before-key",
            "Key and value have changed places. The packed order is query, key, value.",
            part={"names": ("query", "value", "key")},
            hint=1,
            also=in_another_order(0, 2, 1),
        ),
        Misconception(
            "backwards",
            "The three come out as value, key, query. The packed order is query, key, value.",
            part={"names": ("value", "key", "query")},
            hint=1,
            also=in_another_order(2, 1, 0),
        ),
        Misconception(
            "every-third-row",
            "Each projection got every third row; the packed blocks are whole: query rows, key rows, value rows.",
            part={"packed": lambda weight: [weight[i::3] for i in range(3)]},
            hint=1,
        ),
        Misconception(
            "transposed",
            "The packed blocks were transposed; torch's and ours are both (out, in).",
            part={"packed": lambda weight: [block.T for block in weight.chunk(3)]},
            hint=2,
            also=(load_all_transposed,),
        ),
        Misconception(
            "output-transposed",
            "The output projection was transposed; torch's and ours are both (out, in).",
            part={"out": lambda weight: weight.T},
            hint=2,
        ),
        Misconception(
            "biases-forgotten",
            "The weights are all there; the biases are missing.",
            wrong=lambda state: {
                name: x for name, x in load_with()(state).items() if name.endswith("weight")
            },
            hint=2,
        ),
        Misconception(
            "one-bias-for-all",
            "All three projections got the query's bias. `in_proj_bias` is packed like the weights: (3E,).",
            part={"biases": lambda bias: [bias.chunk(3)[0]] * 3},
            hint=2,
        ),
        Misconception(
            "output-bias-forgotten",
            "The bias of the output projection is missing.",
            part={"with_out_bias": False},
            hint=2,
        ),
        Misconception(
            "packed-only",
            "With kdim and vdim of their own there is no `in_proj_weight`: torch then keeps `q_proj_weight`, `k_proj_weight` "
            "and `v_proj_weight` apart.",
            part={"there": lambda name, state: True},
            hint=2,
        ),
        Misconception(
            "always-a-bias",
            "A module with `bias=False` has no `in_proj_bias` and no `out_proj.bias`. Ask whether they are there.",
            part={"bias_there": lambda name, state: True},
            hint=2,
        ),
        Misconception(
            "torchs-name-kept",
            "Our output projection is called `out`; yours still has torch's name, `out_proj`.",
            part={"out_name": "out_proj"},
            hint=1,
        ),
    ),
    styles=(
        Style("in parts", load_with()),
        Style("slices", load_by_slices),
        Style("unpack_projections", load_with(packed=reference.unpack_projections)),
        Style(
            "split",
            load_with(
                packed=lambda weight: weight.split(weight.shape[0] // 3),
                biases=lambda bias: bias.view(3, -1).unbind(),
            ),
        ),
        Style("copies", lambda state: {name: x.clone() for name, x in load_with()(state).items()}),
    ),
)


def our_state(draw, E=4, kdim=None, vdim=None, bias=True):
    return reference.load_from_torch(torch_state(draw, E, kdim, vdim, bias))


def export_with(
    order=NAMES,
    join=torch.cat,
    keep_apart=True,
    biases=lambda state: "out.bias" in state,
    bias=lambda found: {"in_proj_bias": torch.cat(found)},
    out_name="out_proj",
):
    def export_to_torch(state):
        weights = [state[f"{name}.weight"] for name in order]
        if keep_apart and len({tuple(weight.shape) for weight in weights}) > 1:
            theirs = {f"{x}_proj_weight": weight for x, weight in zip("qkv", weights)}
        else:
            theirs = {"in_proj_weight": join(weights)}
        theirs[f"{out_name}.weight"] = state["out.weight"]
        if biases(state):
            theirs |= bias([state[f"{name}.bias"] for name in order])
            theirs[f"{out_name}.bias"] = state["out.bias"]
        return theirs

    return export_to_torch


def packed_in_another_order(*order):
    """Only what is packed has another order: the weights, the biases, or both."""

    def put(found):
        return torch.cat([found[i] for i in order])

    def put_biases(found):
        return {"in_proj_bias": put(found)}

    return export_with(join=put, bias=put_biases), export_with(join=put), export_with(bias=put_biases)


EXPORT = Exercise(
    name="export_to_torch",
    number="5.3",
    reference=reference.export_to_torch,
    returns=("torch's state dict",),
    assemble=export_with,
    differentiable=False,
    builds_on=("unpack_projections", "pack_projections"),
    cases=(
        Case("all (E, E), with biases", lambda draw: {"state": our_state(draw)}),
        Case("kdim and vdim of their own", lambda draw: {"state": our_state(draw, 4, 3, 5)}),
        Case("no biases", lambda draw: {"state": our_state(draw, 6, bias=False)}),
    ),
    misconceptions=(
        Misconception(
            "key-first",
            "Query and key have changed places. The packed order is query, key, value.",
            part={"order": ("key", "query", "value")},
            hint=1,
            also=packed_in_another_order(1, 0, 2),
        ),
        Misconception(
            "value-before-key",
            "Packed as query, value, key. The order is query, key, value.",
            part={"order": ("query", "value", "key")},
            hint=1,
            also=packed_in_another_order(0, 2, 1),
        ),
        Misconception(
            "backwards",
            "Packed as value, key, query. The order is query, key, value.",
            part={"order": ("value", "key", "query")},
            hint=1,
            also=packed_in_another_order(2, 1, 0),
        ),
        Misconception(
            "side-by-side",
            "`in_proj_weight` is (E, 3E): the blocks stand side by side. They stand on top of one another, (3E, E).",
            part={"join": lambda weights: torch.cat(weights, dim=1)},
            hint=1,
        ),
        Misconception(
            "always-packed",
            "Matrices of different sizes cannot be packed: with kdim and vdim of their own torch wants `q_proj_weight`, "
            "`k_proj_weight` and `v_proj_weight`.",
            part={"keep_apart": False},
            hint=2,
        ),
        Misconception(
            "biases-forgotten",
            "The weights are all there; the biases are missing.",
            part={"biases": lambda state: False},
            hint=2,
        ),
        Misconception(
            "always-a-bias",
            "A module with `bias=False` has no biases to export. Ask whether they are there.",
            part={"biases": lambda state: True},
            hint=2,
        ),
        Misconception(
            "biases-apart",
            "The three biases came out under names of their own. torch packs them into one, `in_proj_bias`, even where the "
            "weights are apart.",
            part={"bias": lambda found: {f"{x}_proj_bias": b for x, b in zip("qkv", found)}},
            hint=2,
        ),
        Misconception(
            "our-name-kept",
            "torch's output projection is called `out_proj`; yours still has our name, `out`.",
            part={"out_name": "out"},
            hint=2,
        ),
    ),
    styles=(
        Style("in parts", export_with()),
        Style("vstack", export_with(join=torch.vstack)),
        Style("pack_projections", export_with(join=lambda weights: reference.pack_projections(*weights))),
        Style("stack and flatten", export_with(join=lambda weights: torch.stack(weights).flatten(0, 1))),
        Style("copies", lambda state: {name: x.clone() for name, x in export_with()(state).items()}),
    ),
)


# ----------------------------------------------------- 5.4 add_bias_kv, 5.5 add_zero_attn


def pad_true(mask):
    return None if mask is None else F.pad(mask, (0, 1), value=True)


def pad_true_first(mask):
    return None if mask is None else F.pad(mask, (1, 0), value=True)


def pad_false(mask):
    return None if mask is None else F.pad(mask, (0, 1), value=False)


def bias_kv_with(where="last", same=lambda x, N: x.expand(N, -1, -1), mask=pad_true, dim=1, swapped=False):
    def add_bias_kv(k, v, bias_k, bias_v, may_attend):
        def join(x, extra):
            extra = same(extra, x.shape[0])
            return torch.cat([x, extra] if where == "last" else [extra, x], dim=dim)

        if swapped:
            bias_k, bias_v = bias_v, bias_k
        return join(k, bias_k), join(v, bias_v), mask(may_attend)

    return add_bias_kv


def mask_over(draw, S):
    """bool (2, 1, 3, S), another for every sample; S may be 0."""
    return draw.mask(2, 1, 3, S) if S else torch.ones(2, 1, 3, 0, dtype=torch.bool)


def keys_and_biases(draw, with_mask=True, dtype=torch.float64, S=5):
    N, E = 2, 4
    return {
        "k": draw.normal(N, S, E, dtype=dtype),
        "v": draw.normal(N, S, E, dtype=dtype),
        "bias_k": draw.normal(1, 1, E, dtype=dtype),
        "bias_v": draw.normal(1, 1, E, dtype=dtype),
        "may_attend": mask_over(draw, S) if with_mask else None,
    }


def bias_kv_into_zeros(k, v, bias_k, bias_v, may_attend, mask=pad_true):
    N, S, E = k.shape
    made = []
    for x, extra in ((k, bias_k), (v, bias_v)):
        room = torch.zeros(N, S + 1, E, dtype=x.dtype, device=x.device)
        room[:, :S] = x
        room[:, S:] = extra
        made.append(room)
    return (*made, mask(may_attend))


def pad_like_first_column(mask):
    return None if mask is None else torch.cat([mask, torch.ones_like(mask[..., :1])], -1)


ADD_BIAS_KV = Exercise(
    name="add_bias_kv",
    number="5.4",
    reference=reference.add_bias_kv,
    returns=("k (N, S + 1, E)", "v (N, S + 1, E)", "may_attend (…, S + 1)"),
    assemble=bias_kv_with,
    cases=(
        Case("with a mask", keys_and_biases),
        Case("without a mask, float32", lambda draw: keys_and_biases(draw, False, FLOAT32)),
        Case("no keys at all, S = 0", lambda draw: keys_and_biases(draw, S=0)),
    ),
    misconceptions=(
        Misconception(
            "mask-not-extended",
            "There is one key more, and the mask still has the old number of columns.",
            part={"mask": lambda mask: mask},
            hint=2,
        ),
        Misconception(
            "a-mask-always",
            "Without a mask `may_attend` is None: then there is nothing to extend, and None goes back.",
            part={"mask": lambda mask: F.pad(mask, (0, 1), value=True)},
            hint=2,
        ),
        Misconception(
            "mask-of-numbers",
            "The mask came back as numbers: True and False joined with 1.0 become 1.0 and 0.0. The new column is of bools, too.",
            part={
                "mask": lambda mask: (
                    None if mask is None else torch.cat([mask, torch.ones(*mask.shape[:-1], 1)], dim=-1)
                )
            },
            hint=2,
        ),
        Misconception(
            "one-more-sample",
            "A *sample* was added (dimension 0). Each sample gets one more key: dimension 1 of (N, S, E).",
            wrong=lambda k, v, bias_k, bias_v, may_attend: (
                torch.cat([k, bias_k.expand(1, k.shape[1], -1)]),
                torch.cat([v, bias_v.expand(1, v.shape[1], -1)]),
                pad_true(may_attend),
            ),
            hint=2,
        ),
        Misconception(
            "new-key-closed",
            "The mask has its new column, and it is False: nobody may look at the new key. Everybody may.",
            part={"mask": pad_false},
            hint=2,
        ),
        Misconception(
            "mask-column-first",
            "The new column of the mask stands first; the new key stands last.",
            part={"mask": pad_true_first},
            hint=2,
        ),
        Misconception(
            "new-key-first",
            "The new key stands before the others; as in torch, it comes after them.",
            part={"where": "first"},
            hint=1,
            also=(bias_kv_with(where="first", mask=pad_true_first),),
        ),
        Misconception(
            "added-not-appended",
            "The biases were *added* to every key and value. They are a key and a value of their own.",
            wrong=lambda k, v, bias_k, bias_v, may_attend: (k + bias_k, v + bias_v, may_attend),
            hint=1,
        ),
        Misconception(
            "biases-swapped",
            "bias_k went to the values and bias_v to the keys.",
            part={"swapped": True},
            hint=1,
        ),
        Misconception(
            "not-for-every-sample",
            "(1, 1, E) cannot be joined to (N, S, E) as it stands: each of the N samples gets the same one, so expand it first.",
            part={"same": lambda x, N: x},
            hint=3,
        ),
        Misconception(
            "made-like-the-first",
            "With no keys at all (S = 0) something is not added: it was made like the first key, or like the first column "
            "of the mask, and there is none.",
            wrong=lambda k, v, bias_k, bias_v, may_attend: (
                torch.hstack([k, bias_k.expand_as(k[:, :1])]),
                torch.hstack([v, bias_v.expand_as(v[:, :1])]),
                pad_true(may_attend),
            ),
            hint=3,
            also=(
                bias_kv_with(mask=pad_like_first_column),
                lambda k, v, bias_k, bias_v, may_attend: (
                    torch.hstack([k, bias_k.expand_as(k[:, :1])]),
                    torch.hstack([v, bias_v.expand_as(v[:, :1])]),
                    pad_like_first_column(may_attend),
                ),
            ),
        ),
        Misconception(
            "key-only",
            "The keys have one more, the values do not.",
            wrong=lambda k, v, bias_k, bias_v, may_attend: (
                bias_kv_with()(k, v, bias_k, bias_v, None)[0],
                v,
                pad_true(may_attend),
            ),
            hint=1,
        ),
    ),
    styles=(
        Style("cat and expand", bias_kv_with()),
        Style("repeat", bias_kv_with(same=lambda x, N: x.repeat(N, 1, 1))),
        Style("into zeros", bias_kv_into_zeros),
        Style(
            "hstack",
            lambda k, v, bias_k, bias_v, may_attend: (
                torch.hstack([k, bias_k.tile(len(k), 1, 1)]),
                torch.hstack([v, bias_v.tile(len(v), 1, 1)]),
                pad_true(may_attend),
            ),
        ),
        Style(
            "padded, then filled",
            lambda k, v, bias_k, bias_v, may_attend: (
                F.pad(k, (0, 0, 0, 1)) + F.pad(bias_k, (0, 0, k.shape[1], 0)),
                F.pad(v, (0, 0, 0, 1)) + F.pad(bias_v, (0, 0, v.shape[1], 0)),
                pad_true(may_attend),
            ),
        ),
    ),
)


def zero_attn_with(value=0.0, dim=2, mask=pad_true, where="last"):
    def add_zero_attn(k, v, may_attend):
        def join(x):
            shape = [1 if number == dim else size for number, size in enumerate(x.shape)]
            extra = x.new_full(shape, value)
            return torch.cat([x, extra] if where == "last" else [extra, x], dim=dim)

        return join(k), join(v), mask(may_attend)

    return add_zero_attn


def zeros_like_first_key(k, v, may_attend, mask=pad_true):
    k, v = (torch.cat([x, torch.zeros_like(x[:, :, :1])], dim=2) for x in (k, v))
    return k, v, mask(may_attend)


def heads_of_keys(draw, with_mask=True, dtype=torch.float64, S=5):
    N, H, D = 2, 3, 4
    return {
        "k": draw.normal(N, H, S, D, dtype=dtype),
        "v": draw.normal(N, H, S, D + 2, dtype=dtype),
        "may_attend": mask_over(draw, S) if with_mask else None,
    }


ADD_ZERO_ATTN = Exercise(
    name="add_zero_attn",
    number="5.5",
    reference=reference.add_zero_attn,
    returns=("k (N, H, S + 1, D)", "v (N, H, S + 1, Dv)", "may_attend (…, S + 1)"),
    assemble=zero_attn_with,
    cases=(
        Case("with a mask", heads_of_keys),
        Case("without a mask, float32", lambda draw: heads_of_keys(draw, False, FLOAT32)),
        Case("no keys at all, S = 0", lambda draw: heads_of_keys(draw, S=0)),
    ),
    misconceptions=(
        Misconception(
            "mask-not-extended",
            "There is one key more, and the mask still has the old number of columns.",
            part={"mask": lambda mask: mask},
            hint=2,
        ),
        Misconception(
            "a-mask-always",
            "Without a mask `may_attend` is None: then there is nothing to extend, and None goes back.",
            part={"mask": lambda mask: F.pad(mask, (0, 1), value=True)},
            hint=2,
        ),
        Misconception(
            "mask-of-numbers",
            "The mask came back as numbers: True and False joined with 1.0 become 1.0 and 0.0. The new column is of bools, too.",
            part={
                "mask": lambda mask: (
                    None if mask is None else torch.cat([mask, torch.ones(*mask.shape[:-1], 1)], dim=-1)
                )
            },
            hint=2,
        ),
        Misconception(
            "new-key-closed",
            "The mask's new column is False: nobody may look at the zeros. Everybody may.",
            part={"mask": pad_false},
            hint=2,
        ),
        Misconception(
            "zeros-first",
            "The zeros stand before the other keys; as in torch, they come after them.",
            part={"where": "first"},
            hint=1,
            also=(zero_attn_with(where="first", mask=pad_true_first),),
        ),
        Misconception(
            "one-more-head",
            "A *head* of zeros was added (dim 1). Each head gets a key of zeros: dim 2 of (N, H, S, D).",
            part={"dim": 1},
            hint=1,
        ),
        Misconception(
            "one-more-feature",
            "A *feature* of zeros was added (the last dimension). A new key is a new row: dim 2 of (N, H, S, D).",
            part={"dim": 3},
            hint=1,
        ),
        Misconception(
            "ones",
            "The new key and value are ones; they should be zeros, so that looking there adds nothing.",
            part={"value": 1.0},
            hint=1,
        ),
        Misconception(
            "made-like-the-first",
            "With no keys at all (S = 0) something is not added: it was made like the first key, or like the first column "
            "of the mask, and there is none.",
            wrong=zeros_like_first_key,
            hint=3,
            also=(
                zero_attn_with(mask=pad_like_first_column),
                lambda k, v, may_attend: zeros_like_first_key(k, v, may_attend, mask=pad_like_first_column),
            ),
        ),
        Misconception(
            "keys-only",
            "The keys have one more, the values do not: then the weights no longer fit them.",
            wrong=lambda k, v, may_attend: (zero_attn_with()(k, v, None)[0], v, pad_true(may_attend)),
            hint=1,
        ),
    ),
    styles=(
        Style("new_full", zero_attn_with()),
        Style(
            "F.pad",
            lambda k, v, may_attend: (F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), pad_true(may_attend)),
        ),
        Style(
            "new_zeros",
            lambda k, v, may_attend: (
                torch.cat([k, k.new_zeros(*k.shape[:2], 1, k.shape[3])], 2),
                torch.cat([v, v.new_zeros(*v.shape[:2], 1, v.shape[3])], 2),
                pad_true(may_attend),
            ),
        ),
        Style(
            "times zero",
            lambda k, v, may_attend: (
                torch.cat([k, torch.ones_like(k).sum(-2, keepdim=True) * 0], -2),
                torch.cat([v, torch.ones_like(v).sum(-2, keepdim=True) * 0], -2),
                None
                if may_attend is None
                else torch.cat([may_attend, may_attend.new_ones(*may_attend.shape[:-1], 1)], -1),
            ),
        ),
        Style(
            "head by head",
            lambda k, v, may_attend: (
                torch.stack([F.pad(head, (0, 0, 0, 1)) for head in k.unbind(1)], 1),
                torch.stack([F.pad(head, (0, 0, 0, 1)) for head in v.unbind(1)], 1),
                pad_true(may_attend),
            ),
        ),
    ),
)


# ------------------------------------------------------------------------- 5.6 MultiheadAttention


def finite(mask):
    """The part of a floating mask that is added to the scores; what is closed is dealt with elsewhere."""
    return mask.masked_fill(mask == -INF, 0.0)


def drop_in_with(
    layout=lambda module: module.batch_first,
    unbatched=True,
    may_attend=reference.to_may_attend,
    added=finite,
    scale=lambda D, E: D**-0.5,
    bias_kv=reference.add_bias_kv,
    zero_attn=reference.add_zero_attn,
    weigh=lambda scores, m: scores.softmax(-1) if m is None else reference.masked_softmax(scores, m),
    drop=F.dropout,
    shown=lambda before, after: after,
    finish=lambda module, merged: module.out_proj(merged),
    average=lambda weights: weights.mean(1),
    need=lambda need_weights: need_weights,
    flip_average=False,
    turn_back=True,
):
    """torch's forward from its parts, on torch's own constructor."""

    class MultiheadAttention(nn.MultiheadAttention):
        def forward(
            self,
            query,
            key,
            value,
            key_padding_mask=None,
            need_weights=True,
            attn_mask=None,
            average_attn_weights=True,
            is_causal=False,
        ):
            batched = query.dim() == 3 or not unbatched
            if not batched:
                query, key, value = query[None], key[None], value[None]
                key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
            elif not layout(self):
                query, key, value = (x.transpose(0, 1) for x in (query, key, value))
            N, H = query.shape[0], self.num_heads
            p = reference.load_from_torch(dict(self.named_parameters()))
            q, k, v = (
                F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
                for x, name in ((query, "query"), (key, "key"), (value, "value"))
            )
            mask = may_attend(attn_mask, key_padding_mask, N, H)
            extra = 0
            if self.bias_k is not None:
                k, v, mask = bias_kv(k, v, self.bias_k, self.bias_v, mask)
                extra += 1
            q, k, v = (reference.split_heads(x, H) for x in (q, k, v))
            if self.add_zero_attn:
                k, v, mask = zero_attn(k, v, mask)
                extra += 1
            scores = q @ k.mT * scale(q.shape[-1], self.embed_dim)
            if attn_mask is not None and attn_mask.is_floating_point():
                bias = added(attn_mask)
                scores = scores + F.pad(bias.unflatten(0, (N, H)) if bias.dim() == 3 else bias, (0, extra))
            if key_padding_mask is not None and key_padding_mask.is_floating_point():
                scores = scores + F.pad(added(key_padding_mask)[:, None, None], (0, extra))
            before = weigh(scores, mask)
            weights = drop(before, self.dropout, self.training)
            output = finish(self, reference.merge_heads(weights @ v))
            weights = shown(before, weights)
            weights = average(weights) if average_attn_weights != flip_average else weights
            if not batched:
                output, weights = output[0], weights[0]
            elif not layout(self) and turn_back:
                output = output.transpose(0, 1)
            return output, weights if need(need_weights) else None

    return MultiheadAttention


class AlwaysAveraged(drop_in_with()):
    def forward(self, *inputs, average_attn_weights=True, **options):
        return super().forward(*inputs, **options)


def sent(draw, N=2, L=5, S=7, E=12, kdim=12, vdim=12, first=True, dtype=torch.float64, **options):
    """Query, key and value, batch first or not, and the options, which may be drawn."""
    inputs = {
        "query": draw.normal(N, L, E, dtype=dtype),
        "key": draw.normal(N, S, kdim, dtype=dtype),
        "value": draw.normal(N, S, vdim, dtype=dtype),
    }
    if not first:
        inputs = {name: x.transpose(0, 1).contiguous() for name, x in inputs.items()}
    return inputs | {name: option(draw) if callable(option) else option for name, option in options.items()}


def small(draw):
    x = {"query": draw.normal(5, 12), "key": draw.normal(7, 12), "value": draw.normal(7, 12)}
    return x | {"attn_mask": draw.normal(5, 7).masked_fill(~draw.mask(5, 7), -INF)}


def all_padding_in_one(draw):
    mask = ~draw.mask(2, 7)
    mask[1] = True
    return mask


def many_copies(draw):
    """One sample forty times: what scatters between the copies is the dropout."""
    one = sent(draw, N=1, L=20, S=25, E=8, kdim=8, vdim=8)
    return {name: x.expand(40, -1, -1).contiguous() for name, x in one.items()} | {
        "average_attn_weights": False
    }


def what_dropout_did(value, inputs):
    """Half of 40 000 weights are 0, give or take 0.003; what is left was doubled, so the mean row still sums to 1."""
    output, weights = value
    return {
        "the share of zeros in the weights": (weights == 0).double().mean().item(),
        "the mean sum of a row of weights": weights.sum(-1).mean().item(),
        "whether copies of one sample get different outputs": bool(output.std(0).min() > 0),
    }


MULTIHEAD_ATTENTION = Exercise(
    name="MultiheadAttention",
    number="5.6",
    reference=reference.MultiheadAttention,
    returns=("output (N, L, E)", "weights (N, L, S)"),
    is_class=True,
    keywords=(
        "dropout",
        "bias",
        "add_bias_kv",
        "add_zero_attn",
        "kdim",
        "vdim",
        "batch_first",
        "key_padding_mask",
        "need_weights",
        "attn_mask",
        "average_attn_weights",
        "is_causal",
    ),
    assemble=drop_in_with,
    forbidden=("ready-made attention",),
    builds_on=(
        "to_may_attend",
        "load_from_torch",
        "add_bias_kv",
        "add_zero_attn",
        "split_heads",
        "merge_heads",
        "masked_softmax",
        "attention_dropout",
        "attend_in_parallel",
        "unpack_projections",
    ),
    cases=(
        Case(
            "batch first, no mask",
            lambda draw: sent(draw),
            construct={"embed_dim": 12, "num_heads": 3, "batch_first": True},
        ),
        Case(
            "batch first, attn_mask (L, S)",
            lambda draw: sent(draw, attn_mask=lambda d: ~d.mask(5, 7)),
            construct={"embed_dim": 12, "num_heads": 3, "batch_first": True},
        ),
        Case(
            "sequence first (the default), weights per head",
            lambda draw: sent(draw, first=False, average_attn_weights=False),
            construct={"embed_dim": 12, "num_heads": 3},
        ),
        Case(
            "kdim, vdim, a padding mask; no weights wanted",
            lambda draw: sent(
                draw, kdim=5, vdim=8, key_padding_mask=lambda d: ~d.mask(2, 7), need_weights=False
            ),
            construct={"embed_dim": 12, "num_heads": 3, "kdim": 5, "vdim": 8, "batch_first": True},
        ),
        Case(
            "attn_mask (N·H, L, S) and padding, no biases",
            lambda draw: sent(
                draw,
                attn_mask=lambda d: ~d.mask(6, 5, 7),
                key_padding_mask=lambda d: torch.tensor([[False] * 7, [False] * 6 + [True]]),
            ),
            construct={"embed_dim": 12, "num_heads": 3, "bias": False, "batch_first": True},
        ),
        Case(
            "add_bias_kv and add_zero_attn, with padding",
            lambda draw: sent(draw, key_padding_mask=lambda d: ~d.mask(2, 7)),
            construct={
                "embed_dim": 12,
                "num_heads": 3,
                "add_bias_kv": True,
                "add_zero_attn": True,
                "batch_first": True,
            },
        ),
        Case("no batch at all, a mask of numbers", small, construct={"embed_dim": 12, "num_heads": 3}),
        Case(
            "dropout in training",
            many_copies,
            construct={"embed_dim": 8, "num_heads": 2, "batch_first": True, "dropout": 0.5},
            train=True,
            look_at=what_dropout_did,
            tolerance=0.05,
            gradients=False,
        ),
        Case(
            "one sample is nothing but padding",
            lambda draw: sent(draw, key_padding_mask=all_padding_in_one),
            construct={"embed_dim": 12, "num_heads": 3, "batch_first": True, "dropout": 0.5},
        ),
    ),
    misconceptions=(
        Misconception(
            "always-batch-first",
            "`batch_first=False` is the default, and your module takes dimension 0 for the batch all the same: sequence "
            "and batch are mixed up.",
            part={"layout": lambda module: True},
            hint=1,
        ),
        Misconception(
            "never-batch-first",
            "With `batch_first=True` sequence and batch are mixed up: the flag is not used.",
            part={"layout": lambda module: False},
            hint=1,
        ),
        Misconception(
            "not-turned-back",
            "Sequence first comes in and batch first goes out: the output should have the layout of the query.",
            part={"turn_back": False},
            hint=1,
        ),
        Misconception(
            "always-a-batch",
            "A single sequence (L, E) without a batch is refused; torch takes it. Give it a batch of 1 and take that away "
            "at the end.",
            part={"unbatched": False},
            hint=1,
        ),
        Misconception(
            "polarity-kept",
            "The masks work the wrong way round: torch's True means blocked.",
            part={
                "may_attend": lambda a, p, N, H: (
                    None
                    if (m := reference.to_may_attend(a, p, N, H)) is None
                    else (~m if (a is None or a.dtype == torch.bool) else m)
                )
            },
            hint=2,
        ),
        Misconception(
            "padding-ignored",
            "`key_padding_mask` is accepted and not passed on.",
            part={"may_attend": lambda a, p, N, H: reference.to_may_attend(a, None, N, H)},
            hint=2,
        ),
        Misconception(
            "attn-mask-ignored",
            "`attn_mask` is accepted and not passed on.",
            part={
                "may_attend": lambda a, p, N, H: reference.to_may_attend(None, p, N, H),
                "added": lambda mask: mask * 0 if mask.isfinite().all() else torch.zeros_like(mask),
            },
            hint=2,
        ),
        Misconception(
            "heads-before-samples",
            "An attn_mask of (N·H, L, S) is taken apart in the wrong order: the heads of one sample are neighbours.",
            part={
                "may_attend": lambda a, p, N, H: reference.to_may_attend(
                    a.unflatten(0, (H, N)).transpose(0, 1).flatten(0, 1)
                    if a is not None and a.dim() == 3
                    else a,
                    p,
                    N,
                    H,
                )
            },
            hint=2,
        ),
        Misconception(
            "numbers-not-added",
            "A mask of numbers closes what is −∞, and its other numbers are lost: they are to be added to the scores.",
            part={"added": torch.zeros_like},
            hint=2,
        ),
        Misconception(
            "root-of-e",
            "Your weights are too even: divided by √E. What is summed in one head's dot product are D = E/H features.",
            part={"scale": lambda D, E: E**-0.5},
            hint=2,
        ),
        Misconception(
            "no-scale",
            "Your weights are too sharp: the scores are not divided by √D.",
            part={"scale": lambda D, E: 1.0},
            hint=2,
        ),
        Misconception(
            "zeros-forgotten",
            "`add_zero_attn` adds nothing: one key of zeros is missing.",
            part={"zero_attn": lambda k, v, m: (k, v, pad_true(m)[..., :-1] if m is not None else None)},
            hint=2,
        ),
        Misconception(
            "zeros-closed",
            "The key of zeros is there, and nobody may look at it: the mask's new column is False.",
            part={"zero_attn": zero_attn_with(mask=pad_false)},
            hint=2,
        ),
        Misconception(
            "learned-key-closed",
            "The learned key is there, and nobody may look at it: the mask's new column is False.",
            part={"bias_kv": bias_kv_with(mask=pad_false)},
            hint=2,
        ),
        Misconception(
            "learned-key-first",
            "The learned key stands before the others; in torch it comes after them.",
            part={"bias_kv": bias_kv_with(where="first")},
            hint=2,
        ),
        Misconception(
            "dead-row-is-nan",
            "The sample that is nothing but padding gives NaN. In this course a query that may see nothing gets zeros, so "
            "its output is the bias of `out_proj`.",
            part={"weigh": lambda s, m: (s if m is None else s.masked_fill(~m, -INF)).softmax(-1)},
            hint=2,
        ),
        Misconception(
            "large-negative-fill",
            "The sample that is nothing but padding looks everywhere alike: all its scores became the same number, or its "
            "weights were made even afterwards. It should get zeros.",
            part={"weigh": lambda s, m: (s if m is None else s.masked_fill(~m, -1e9)).softmax(-1)},
            hint=2,
        ),
        Misconception(
            "no-dropout",
            "Nothing is dropped in training: `self.dropout` is the probability, `self.training` says whether it counts.",
            part={"drop": lambda weights, p, training: weights},
            hint=3,
        ),
        Misconception(
            "dropout-in-eval",
            "Weights are dropped in eval mode, too. Dropout is for training: ask `self.training`.",
            part={"drop": lambda weights, p, training: F.dropout(weights, p)},
            hint=3,
        ),
        Misconception(
            "shown-before-dropout",
            "You return the weights as they were before dropout. Your module of lesson 04 does so; torch's shows what was used.",
            part={"shown": lambda before, after: before},
            hint=3,
        ),
        Misconception(
            "output-projection-forgotten",
            "The heads' results come back as they are: `out_proj` gets no gradient.",
            part={"finish": lambda module, merged: merged},
            hint=2,
        ),
        Misconception(
            "never-averaged",
            "By default torch averages the weights over the heads; yours come for every head.",
            part={"average": lambda weights: weights},
            hint=3,
        ),
        Misconception(
            "always-averaged",
            "`average_attn_weights=False` asks for every head's weights; yours are always averaged.",
            wrong=AlwaysAveraged,
            hint=3,
        ),
        Misconception(
            "average-turned-round",
            "`average_attn_weights` works the wrong way round.",
            part={"flip_average": True},
            hint=3,
        ),
        Misconception(
            "summed-over-heads",
            "The averaged weights are H times too large: a sum over the heads.",
            part={"average": lambda weights: weights.sum(1)},
            hint=3,
        ),
        Misconception(
            "weights-always",
            "Weights come back although `need_weights` is False; return `None` in their place.",
            part={"need": lambda need_weights: True},
            hint=3,
        ),
        Misconception(
            "weights-never",
            "`need_weights` is True by default; no weights come back.",
            part={"need": lambda need_weights: False},
            hint=3,
        ),
    ),
    styles=(
        Style("on torch's constructor", drop_in_with()),
        Style(
            "additive masks",
            drop_in_with(
                weigh=lambda s, m: (
                    s.softmax(-1)
                    if m is None
                    else (s + torch.zeros_like(s).masked_fill(~(m | ~m.any(-1, keepdim=True)), -INF)).softmax(
                        -1
                    )
                    * m.any(-1, keepdim=True)
                )
            ),
        ),
        Style(
            "masks written out",
            drop_in_with(
                may_attend=lambda a, p, N, H: (
                    None if a is None and p is None else may_attend_filled(a, p, N, H)
                )
            ),
        ),
        Style(
            "float64 inside",
            drop_in_with(
                weigh=lambda s, m: (
                    s.double().softmax(-1) if m is None else reference.masked_softmax(s.double(), m)
                ).to(s.dtype)
            ),
        ),
        Style(
            "other helpers",
            drop_in_with(
                bias_kv=bias_kv_into_zeros,
                zero_attn=lambda k, v, m: (F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), pad_true(m)),
            ),
        ),
    ),
)


# ----------------------------------------------------------------------------------------- questions

TRUE_MEANS = Question(
    "true_means",
    right="b",
    why={
        "a": "That is `F.scaled_dot_product_attention`, and our `may_attend`. The module means the opposite.",
        "b": "Yes: in `nn.MultiheadAttention`, both in attn_mask and in key_padding_mask. Two conventions in one library.",
        "c": "A bool mask is not added; −∞ is added for its True, which closes the look.",
        "d": "It is documented, and it has been the other way round in F.scaled_dot_product_attention from the start.",
    },
)
NH_ORDER = Question(
    "nh_order",
    right="a",
    why={
        "a": "Yes: n · H + h. `repeat_interleave(H, dim=0)` makes it of one mask per sample; `repeat` would mix them up.",
        "b": "That would be heads first, h · N + n, which is what `repeat` makes: the classic mistake.",
        "c": "There is no head dimension left in a 3-D mask; it is folded into the first.",
        "d": "It matters as soon as two samples have different masks.",
    },
)
DEAD_ROW = Question(
    "dead_row",
    right="c",
    why={
        "a": "torch gives NaN with need_weights=True only; without weights it gives the bias.",
        "b": "An even row is what a fill with −1e9 gives: the query then looks at everything it may not see.",
        "c": "Yes: zeros from attention, so what is left is the output projection's bias, and no gradient is poisoned.",
        "d": "An empty sentence in a batch is ordinary, not an error.",
    },
)

LESSON = Lesson(
    folder="05_drop_in",
    title="The drop-in",
    exercises=(TO_MAY_ATTEND, LOAD, EXPORT, ADD_BIAS_KV, ADD_ZERO_ATTN, MULTIHEAD_ATTENTION),
    questions=(TRUE_MEANS, NH_ORDER, DEAD_ROW),
)
