# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · The drop-in
#
# [All lessons](../00_start_here/00_start_here.ipynb#All-lessons) · before this one: [04, The module](../04_module/04_module.ipynb)
#
# *About 60 minutes. At the end, PyTorch's own documented example runs unchanged on a class that you wrote, with the same
# numbers.*
#
# You have a module. PyTorch has one, too: `torch.nn.MultiheadAttention`, with years of other people's habits in its
# arguments. To take its place, yours has to speak its language: its masks, its parameters, its shapes, its odd corners.
# Nothing here is new mathematics. All of it is what breaks in practice.

# %%
try:
    from mha_course import check, plots
except ModuleNotFoundError as missing:
    says = "The course is not installed here. In its folder: python3 -m mha_course lab"
    missing._render_traceback_ = lambda: [says]
    raise

import torch
import torch.nn.functional as F
from torch import nn

from mha_course.reference import (  # from lessons 02 to 04
    attention_dropout,
    masked_softmax,
    merge_heads,
    split_heads,
    unpack_projections,
)

_ = torch.manual_seed(0)

# %% [markdown]
# ## The question
#
# This is the kind of example that PyTorch's documentation gives: an embedding of 8, two heads, a sequence of 4 tokens,
# batch first.


# %%
def documented_example(MultiheadAttention):
    """The documented use: a module, one input three times,
    an output and its weights."""
    torch.manual_seed(0)
    multihead_attn = MultiheadAttention(embed_dim=8, num_heads=2, batch_first=True)
    x = torch.rand(1, 4, 8)
    attn_output, attn_output_weights = multihead_attn(x, x, x)
    return attn_output, attn_output_weights


attn_output, attn_output_weights = documented_example(nn.MultiheadAttention)
print(tuple(attn_output.shape), tuple(attn_output_weights.shape))

# %% [markdown]
# Can you hand your own class to `documented_example`, change nothing else, and get the same numbers?

# %% [markdown]
# ## Predict
#
# A mask for 4 queries and 4 keys, `torch.ones(4, 4).triu(1).bool()`: True above the diagonal. In
# `nn.MultiheadAttention(attn_mask=…)`, does True mean "may look" or "may not look"? And in
# `F.scaled_dot_product_attention(attn_mask=…)`?

# %%
prediction = ...  # your guess: (module, function)

# %%
mask = torch.ones(4, 4).triu(1).bool()
module = nn.MultiheadAttention(8, 2, batch_first=True)
x = torch.rand(1, 4, 8)
by_module = module(x, x, x, attn_mask=mask)[1][0, 0]
values = torch.eye(4).view(1, 1, 4, 4)
by_function = F.scaled_dot_product_attention(
    torch.rand(1, 1, 4, 2), torch.rand(1, 1, 4, 2), values, attn_mask=mask
)[0, 0, 0]
print(
    "your guess:                           ",
    "none" if prediction is ... else prediction,
)
print("module, where query 0 looks:  ", [round(w, 2) for w in by_module.tolist()])
print("function, where query 0 looks:", [round(w, 2) for w in by_function.tolist()])

# %% [markdown]
# **The same mask, opposite meanings, in one library.** In the module True *blocks*; in the function True *lets through*.
# That is why this course has one name for one meaning: `may_attend`, True = may look.

# %% [markdown]
# ## Build
#
# ### 5.1 torch's masks as ours
#
# The module takes two masks:
#
# | argument | shape | bool | floating |
# |---|---|---|---|
# | `attn_mask` | $(L, S)$ or $(N \cdot H, L, S)$ | True = blocked | added to the scores; −∞ blocks |
# | `key_padding_mask` | $(N, S)$ | True = blocked (padding) | added to the scores; −∞ blocks |
#
# The three-dimensional one has batch and heads folded into its first dimension, with the heads of one sample **next to one
# another**: row $n \cdot H + h$ belongs to sample $n$, head $h$.
#
# By hand, $N = 1$, $H = 2$, $S = 3$: `key_padding_mask = [[False, False, True]]` says that the third key is padding. Ours is
# `[[True, True, False]]`, for both heads and every query. If besides `attn_mask = [[True, False, False]]`, query 0 may look
# at key 1 only.


# %% nbgrader={"grade": false, "grade_id": "to_may_attend", "locked": false, "schema_version": 3, "solution": true, "task": false}
def to_may_attend(attn_mask, key_padding_mask, N, H):
    """torch's masks (each may be None) → bool that broadcasts to (N, H, L, S),
    True = may look; None without masks.

    attn_mask: (L, S) or (N·H, L, S); key_padding_mask: (N, S).
    bool: True = blocked. Floating: only −inf blocks.
    """

    ### BEGIN SOLUTION
    def is_open(mask):
        return ~mask if mask.dtype == torch.bool else mask != -torch.inf

    may_attend = None
    if attn_mask is not None:
        may_attend = is_open(attn_mask)  # (L, S) broadcasts as it is
        if attn_mask.dim() == 3:
            may_attend = may_attend.unflatten(0, (N, H))  # (N·H, L, S) → (N, H, L, S)
    if key_padding_mask is not None:
        real = is_open(key_padding_mask)[:, None, None, :]  # (N, S) → (N, 1, 1, S)
        may_attend = real if may_attend is None else may_attend & real
    return may_attend
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# One mask at a time. Turn each into "True = may look" first; bool and floating masks need a different question for that.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# A floating mask blocks where it is −∞ and nowhere else. $(N \cdot H, L, S)$ becomes $(N, H, L, S)$: the sample is the slow
# index. $(N, S)$ has to count for every head and query: $(N, 1, 1, S)$. A look must get past **both** masks.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `~mask` for bool, `mask != -torch.inf` for numbers; `mask.unflatten(0, (N, H))`; `mask[:, None, None, :]`; join with `&`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import to_may_attend` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_to_may_attend", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(to_may_attend)

# %% [markdown]
# ### 5.2 torch's parameters as ours
#
# torch keeps its three projections packed (lesson 04): `in_proj_weight` $(3E, E)$ and `in_proj_bias` $(3E)$, query first.
# If `kdim` or `vdim` differ from $E$, they cannot be packed, and torch keeps `q_proj_weight`, `k_proj_weight` and
# `v_proj_weight` instead; the biases stay packed. The output projection is `out_proj`.
#
# Your module of lesson 04 says `query`, `key`, `value` and `out`. By hand: `in_proj_bias = (1, 2, 3, 4, 5, 6)` with $E = 2$
# gives `query.bias = (1, 2)`, `key.bias = (3, 4)`, `value.bias = (5, 6)`.


# %% nbgrader={"grade": false, "grade_id": "load_from_torch", "locked": false, "schema_version": 3, "solution": true, "task": false}
def load_from_torch(state):
    """torch's state dict → ours: query.weight, key.weight, value.weight,
    out.weight, and the biases if there are any."""
    ### BEGIN SOLUTION
    if "in_proj_weight" in state:
        weights = unpack_projections(state["in_proj_weight"])
    else:
        weights = [state[f"{letter}_proj_weight"] for letter in "qkv"]
    names = ("query", "key", "value")
    ours = {f"{name}.weight": weight for name, weight in zip(names, weights)}
    ours["out.weight"] = state["out_proj.weight"]
    if "in_proj_bias" in state:
        ours |= {
            f"{name}.bias": bias
            for name, bias in zip(names, state["in_proj_bias"].chunk(3))
        }
        ours["out.bias"] = state["out_proj.bias"]
    return ours
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Make a new dict with our names. For the packed matrix you have `unpack_projections` from lesson 04: query, key, value.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Two questions decide what there is: is `"in_proj_weight"` in the dict? Is `"in_proj_bias"`? Nothing is transposed.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `zip(("query", "key", "value"), state["in_proj_weight"].chunk(3))` gives names and matrices together; the same with the bias.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import load_from_torch` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_load_from_torch", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(load_from_torch)

# %% [markdown]
# ### 5.3 And back
#
# A model trained with your module should be usable by people who have never heard of it.
#
# By hand, with $E = 1$: `query.weight` $(2)$, `key.weight` $(5)$ and `value.weight` $(7)$ become `in_proj_weight`, the column
# $(2, 5, 7)$. With `kdim = 2`, `key.weight` is $(5, 6)$. It does not fit on that column, so torch gets three entries:
# `q_proj_weight` $(2)$, `k_proj_weight` $(5, 6)$, `v_proj_weight` $(7)$.


# %% nbgrader={"grade": false, "grade_id": "export_to_torch", "locked": false, "schema_version": 3, "solution": true, "task": false}
def export_to_torch(state):
    """Our state dict → torch's: packed where all three projections are (E, E),
    apart otherwise."""
    ### BEGIN SOLUTION
    weights = [state[f"{name}.weight"] for name in ("query", "key", "value")]
    if all(weight.shape == weights[0].shape for weight in weights):
        theirs = {"in_proj_weight": torch.cat(weights)}
    else:
        theirs = {
            f"{letter}_proj_weight": weight for letter, weight in zip("qkv", weights)
        }
    theirs["out_proj.weight"] = state["out.weight"]
    if "out.bias" in state:
        theirs["in_proj_bias"] = torch.cat(
            [state[f"{name}.bias"] for name in ("query", "key", "value")]
        )
        theirs["out_proj.bias"] = state["out.bias"]
    return theirs
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The same two questions, from the other side. The packed order is query, key, value.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Pack (stack rows on top of one another) if the three weights have the same shape; otherwise use torch's three names. The
# biases are always packed.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `torch.cat([...])` of three; the names are `in_proj_weight`, `in_proj_bias`, `out_proj.weight`, `out_proj.bias`, and
# `q_proj_weight`, `k_proj_weight`, `v_proj_weight`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import export_to_torch` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_export_to_torch", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(export_to_torch)

# %% [markdown]
# ### 5.4 A key that nobody sent
#
# With `add_bias_kv=True` the module **learns** one more key and value, the same for every sample, appended after the real
# ones: a place to look when no word fits. So everything that has $S$ columns now needs $S + 1$: **the mask, too.** Everybody
# may look there.
#
# By hand: keys $(3), (7)$, learned key $(5)$ → $(3), (7), (5)$; a mask row (True, False) → (True, False, **True**). If there
# are no other keys ($S = 0$), the learned one stands alone, and so does the mask's new column.


# %% nbgrader={"grade": false, "grade_id": "add_bias_kv", "locked": false, "schema_version": 3, "solution": true, "task": false}
def add_bias_kv(k, v, bias_k, bias_v, may_attend):
    """k, v: (N, S, E); bias_k, bias_v: (1, 1, E);
    may_attend: bool (…, S), or None
    → k, v (N, S + 1, E), may_attend (…, S + 1) or None."""
    ### BEGIN SOLUTION
    N = k.shape[0]
    k = torch.cat([k, bias_k.expand(N, -1, -1)], dim=1)
    v = torch.cat([v, bias_v.expand(N, -1, -1)], dim=1)
    if may_attend is not None:
        may_attend = F.pad(may_attend, (0, 1), value=True)
    return k, v, may_attend
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Append, do not add. The keys get `bias_k`, the values `bias_v`, after the others.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Every sample gets the same one, so $(1, 1, E)$ has to become $(N, 1, E)$ before it can be joined along dimension 1. The mask
# gets one more column at its end, all True, if there is a mask.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `bias_k.expand(N, -1, -1)` and `torch.cat([...], dim=1)`; `F.pad(may_attend, (0, 1), value=True)` adds a last column.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import add_bias_kv` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_add_bias_kv", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(add_bias_kv)

# %% [markdown]
# ### 5.5 A key of zeros
#
# `add_zero_attn=True` appends a key and a value of **zeros** in every head. Its score is 0 for every query and what one gets
# there is nothing: a way to look nowhere. (Lesson 01 said a head cannot. This is how people let it.)
#
# By hand: one key $(2)$ with value $(8)$, and the query $(0)$. Alone, the key gets all the weight and the output is 8. With the
# zeros beside it, keys $(2), (0)$ and values $(8), (0)$, both scores are 0: weights $(\tfrac12, \tfrac12)$, output 4. And if the
# mask closes the real key, the row $(\text{False}, \textbf{True})$ gives weights $(0, 1)$ and output 0. With no real keys at
# all ($S = 0$) the zeros are the only key, and the output is 0 as well.


# %% nbgrader={"grade": false, "grade_id": "add_zero_attn", "locked": false, "schema_version": 3, "solution": true, "task": false}
def add_zero_attn(k, v, may_attend):
    """k: (N, H, S, D), v: (N, H, S, Dv), may_attend: bool (…, S), or None
    → the same with S + 1 keys, zeros last."""
    ### BEGIN SOLUTION
    k = F.pad(k, (0, 0, 0, 1))  # one more row in dimension 2
    v = F.pad(v, (0, 0, 0, 1))
    if may_attend is not None:
        may_attend = F.pad(may_attend, (0, 1), value=True)
    return k, v, may_attend
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A key is a row: dimension 2 of $(N, H, S, D)$. One more row of zeros, after the others.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# k and v may have different numbers of features. Make the zeros from the tensor itself, so that dtype and device fit. And
# the mask grows, as before.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `k.new_zeros(N, H, 1, D)` is one key of zeros per head, also where there is no key yet; `torch.cat([k, …], dim=2)`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import add_zero_attn` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_add_zero_attn", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(add_zero_attn)

# %% [markdown]
# ### 5.6 The whole forward
#
# Now put it together. **Keep torch's constructor**, by inheriting from it: then the parameters, their names and their first
# values are torch's. Write the `forward` yourself, all of it. What a constructed module has:
#
# | attribute | what it is |
# |---|---|
# | `embed_dim`, `num_heads`, `dropout`, `batch_first`, `add_zero_attn` | as given |
# | `in_proj_weight` or `q_proj_weight` …, `in_proj_bias`, `out_proj` | parameters, `None` where there are none |
# | `bias_k`, `bias_v` | $(1, 1, E)$, or `None` |
#
# The order of things:
#
# 1. **Shapes in.** $(L, E)$ without a batch, $(L, N, E)$ by default, $(N, L, E)$ with `batch_first=True`. Make it $(N, L, E)$.
# 2. **Project.** `load_from_torch(dict(self.named_parameters()))` gives the weights under our names, still attached.
# 3. **Masks and extra keys.** Your functions 5.1, 5.4, 5.5: the learned key before splitting into heads, the zeros after.
# 4. **Attend.** A floating mask is also *added* to the scores: its finite numbers, since −∞ is in `may_attend` already. In
#    training, dropout acts on the weights (`attention_dropout` of lesson 04); torch returns them as they are after it.
# 5. **Shapes out.** Undo step 1. Weights: averaged over the heads by default; `None` with `need_weights=False`.
#
# `is_causal` is a hint that the mask you were given is causal; the mask is there, so you may ignore the hint.
#
# By hand, the shapes. Three heads, $E = 12$, the layout that torch has by default, and `add_bias_kv=True`:
#
# | step | query | key and value | mask |
# |---|---|---|---|
# | given | $(5, 2, 12)$ | $(7, 2, 12)$ | `attn_mask` $(5, 7)$ |
# | 1, 2 and the mask | $(2, 5, 12)$ | $(2, 7, 12)$ | $(5, 7)$ |
# | the learned key | $(2, 5, 12)$ | $(2, 8, 12)$ | $(5, 8)$ |
# | into heads | $(2, 3, 5, 4)$ | $(2, 3, 8, 4)$ | $(5, 8)$ |
#
# Scores $(2, 3, 5, 8)$, output $(5, 2, 12)$ again, and weights $(2, 5, 8)$: they always come batch first.


# %% nbgrader={"grade": false, "grade_id": "MultiheadAttention", "locked": false, "schema_version": 3, "solution": true, "task": false}
class MultiheadAttention(nn.MultiheadAttention):
    """torch's constructor and parameters, our own forward.
    A query that may see nothing gets the bias of out_proj."""

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
        ### BEGIN SOLUTION
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]  # (1, L, E)
            key_padding_mask = (
                None if key_padding_mask is None else key_padding_mask[None]
            )
        elif not self.batch_first:
            # (L, N, E) → (N, L, E)
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        N, H = query.shape[0], self.num_heads

        p = load_from_torch(dict(self.named_parameters()))
        q, k, v = (
            F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
            for name, x in (("query", query), ("key", key), ("value", value))
        )
        may_attend = to_may_attend(attn_mask, key_padding_mask, N, H)
        if self.bias_k is not None:
            k, v, may_attend = add_bias_kv(k, v, self.bias_k, self.bias_v, may_attend)
        q, k, v = (split_heads(x, H) for x in (q, k, v))  # (N, H, L or S, D)
        if self.add_zero_attn:
            k, v, may_attend = add_zero_attn(k, v, may_attend)

        scores = q @ k.mT / q.shape[-1] ** 0.5  # (N, H, L, S)
        for mask in (attn_mask, key_padding_mask):
            if mask is not None and mask.is_floating_point():
                bias = mask.masked_fill(mask == -torch.inf, 0)
                if mask is key_padding_mask:
                    bias = bias[:, None, None, :]
                elif mask.dim() == 3:
                    bias = bias.unflatten(0, (N, H))
                scores = scores + F.pad(bias, (0, scores.shape[-1] - bias.shape[-1]))
        if may_attend is None:
            weights = scores.softmax(-1)
        else:
            weights = masked_softmax(scores, may_attend)
        weights = attention_dropout(weights, self.dropout, self.training)
        output = self.out_proj(merge_heads(weights @ v))  # (N, L, E)

        weights = weights.mean(1) if average_attn_weights else weights
        if not batched:
            output, weights = output[0], weights[0]
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, weights if need_weights else None
        ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Write it for a batch that comes first and no masks, and run the check. Its card says in which situation it first goes
# wrong (*Tried with …*), and the situations come in a good order to add the options: a mask, sequence first, …
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Shapes: remember whether there was a batch, for the way out; a single sequence becomes a batch of 1. Scale by
# $\sqrt D$, one head's features. With extra keys a floating mask is S wide and the scores are wider: pad it with zeros.
# `masked_softmax` gives zeros where nothing may be seen.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `F.linear(query, p["query.weight"], p.get("query.bias"))`, the same for key and value. At the end
# `weights.mean(1)` if they are to be averaged, `output.transpose(0, 1)` if the sequence came first, and
# `return output, weights if need_weights else None`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import MultiheadAttention` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_MultiheadAttention", "locked": true, "points": 5, "schema_version": 3, "solution": false, "task": false}
check(MultiheadAttention)

# %% [markdown]
# ## See: the parity table
#
# Every option, against torch, from your own class: float64, random parameters (biases too), and masks that differ from sample to
# sample. A square is a ✓ if the largest difference is below 1e-9.

# %%
options = {
    "plain": ({}, {}),
    "batch_first": ({"batch_first": True}, {}),
    "no bias": ({"bias": False}, {}),
    "kdim, vdim": ({"kdim": 5, "vdim": 9}, {}),
    "add_bias_kv": ({"add_bias_kv": True}, {}),
    "add_zero_attn": ({"add_zero_attn": True}, {}),
    "attn_mask (L, S)": ({}, {"attn_mask": torch.ones(5, 7).triu(3).bool()}),
    "attn_mask (N·H, L, S)": ({}, {"attn_mask": torch.rand(6, 5, 7) > 0.7}),
    "attn_mask of numbers": ({}, {"attn_mask": torch.randn(5, 7, dtype=torch.float64)}),
    "key_padding_mask": (
        {},
        {"key_padding_mask": torch.arange(7) >= torch.tensor([[7], [4]])},
    ),
    "weights per head": ({}, {"average_attn_weights": False}),
}


# %%
def inputs_for(kwargs):
    """Three different inputs in the shapes that this module takes."""
    sizes = (5, 12), (7, kwargs.get("kdim", 12)), (7, kwargs.get("vdim", 12))
    shapes = [(2, n, e) if kwargs.get("batch_first") else (n, 2, e) for n, e in sizes]
    return [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes
    ]


def differences(mine_class, kwargs, call):
    """Largest differences between a class and torch's:
    output, weights, gradients."""
    theirs = nn.MultiheadAttention(12, 3, **kwargs, dtype=torch.float64)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    mine = mine_class(12, 3, **kwargs, dtype=torch.float64)
    mine.load_state_dict(theirs.state_dict())
    inputs, results = inputs_for(kwargs), []
    for module in (mine, theirs):
        output, weights = module(*inputs, **call)
        wanted = [*inputs, *module.parameters()]
        gradients = torch.autograd.grad(
            output.sin().sum(), wanted, materialize_grads=True
        )
        results.append((output, weights, *gradients))
    gaps = [
        (a - b).abs().max().item() if a.shape == b.shape else torch.inf
        for a, b in zip(*results)
    ]
    return {"output": gaps[0], "weights": gaps[1], "gradients": max(gaps[2:])}


def parity_table():
    return {
        name: differences(MultiheadAttention, *case) for name, case in options.items()
    }


# %%
plots.show(
    plots.drop_in.parity(parity_table(), allowed=1e-9),
    alt="A table with a row for each of eleven options and columns for output, weights and gradients. Every square has a "
    "tick; the differences are far below 1e-9.",
)

# %% [markdown]
# **What to look for.** No crosses. If you comment out a line of your forward and run these cells again, you see which options
# it was for.

# %% [markdown]
# ### How it filled up
#
# Take three of your functions away again: no masks, no extra keys, as at the end of lesson 04. Then give them back, one by
# one, and measure the whole table each time. (Only what your forward *calls* can be taken away. If you wrote a step into the
# forward itself, its squares are green from the start.)

# %%
nothing_done = {
    "to_may_attend": lambda attn_mask, key_padding_mask, N, H: None,
    "add_bias_kv": lambda k, v, bias_k, bias_v, may_attend: (k, v, may_attend),
    "add_zero_attn": lambda k, v, may_attend: (k, v, may_attend),
}
yours = {name: globals()[name] for name in nothing_done}
try:
    globals().update(nothing_done)
    stages = {"as in lesson 04": parity_table()}
    for name in yours:
        globals()[name] = yours[name]
        stages["+ " + name] = parity_table()
finally:
    globals().update(yours)  # whatever happens, you get all of them back

# %%
plots.show(
    plots.drop_in.filling_up(stages, allowed=1e-9),
    alt="The parity table four times. As in lesson 04: crosses at the boolean masks and at both kinds of extra keys. With "
    "to_may_attend the masks turn to ticks, with add_bias_kv and add_zero_attn their own rows; in the last table all are ticks.",
)

# %% [markdown]
# **What to look for.** Each function turns its own rows and no others, and always all three squares of a row at once: when the
# output is right but a gradient is not, something was cut off from the graph.

# %% [markdown]
# ## Break it
#
# **Does torch agree with itself?** Give it a sample that is nothing but padding: an empty sentence in a batch, as happens every
# day. One module, the same weights, three ways to call it.

# %%
torch.manual_seed(0)
theirs = nn.MultiheadAttention(8, 2, batch_first=True)
nn.init.normal_(theirs.out_proj.bias)
mine = MultiheadAttention(8, 2, batch_first=True)
mine.load_state_dict(theirs.state_dict())
x = torch.randn(2, 3, 8)
# the second sample is all padding
empty = torch.tensor([[False, False, True], [True, True, True]])


# %%
def for_nothing(module, **options):
    """What query 0 of the empty sample gets."""
    return module(x, x, x, key_padding_mask=empty, **options)[0][1, 0].tolist()


ways = [
    ("torch, with weights", for_nothing(theirs)),
    ("torch, without weights", for_nothing(theirs, need_weights=False)),
]
theirs.eval()
with torch.no_grad():
    ways.append(("torch, eval, no_grad", for_nothing(theirs, need_weights=False)))
ways += [
    ("yours, with weights", for_nothing(mine)),
    ("yours, without", for_nothing(mine, need_weights=False)),
]
plots.show(
    plots.drop_in.answers(ways, theirs.out_proj.bias.tolist()),
    alt="Six rows of eight numbers. First the bias of the output projection. torch with weights gives NaN everywhere, torch "
    "without weights gives the bias, torch in eval mode without gradients gives NaN again; yours gives the bias both times.",
)

# %% [markdown]
# Three calls, two answers, and which one you get depends on whether somebody wanted to look at the weights, or on a fast path
# that is taken in eval mode. In this course it is decided **once**: a query that may see nothing gets zeros from attention, so the
# output is the bias of the output projection, and no NaN ever reaches a gradient:

# %%
mine.zero_grad()
mine(x, x, x, key_padding_mask=empty)[0].sum().backward()
print(
    "yours: all gradients finite?",
    all(p.grad.isfinite().all().item() for p in mine.parameters()),
)
theirs.train().zero_grad()
theirs(x, x, x, key_padding_mask=empty)[0].sum().backward()
print(
    "torch: all gradients finite?",
    all(p.grad.isfinite().all().item() for p in theirs.parameters()),
)

# %% [markdown]
# One empty sentence, and with torch's module the whole training step is lost.

# %% [markdown]
# ## In PyTorch
#
# The example from the beginning, unchanged, on your class:

# %%
mine_output, mine_weights = documented_example(MultiheadAttention)
print("shapes:            ", tuple(mine_output.shape), tuple(mine_weights.shape))
print("output difference: ", (mine_output - attn_output).abs().max().item())
print("weights difference:", (mine_weights - attn_output_weights).abs().max().item())

# %% [markdown]
# And inside a bigger module that expects torch's: a decoder layer does not notice that both its attentions are yours.

# %%
layer = nn.TransformerDecoderLayer(d_model=8, nhead=2, batch_first=True, dropout=0.0)
target, memory = torch.rand(2, 5, 8), torch.rand(2, 7, 8)
before = layer(target, memory)
for name in ("self_attn", "multihead_attn"):
    yours = MultiheadAttention(8, 2, batch_first=True)
    yours.load_state_dict(getattr(layer, name).state_dict())
    setattr(layer, name, yours)
print("difference:", (layer(target, memory) - before).abs().max().item())

# %% [markdown]
# An *encoder* layer in eval mode, without gradients, is another matter: it takes the parameters of `self_attn` and computes
# everything in one fused kernel. Your `forward` is not called there, and an empty sentence is NaN again
# (`torch.backends.mha.set_fastpath_enabled(False)` turns that off). This and every other place where the course's version
# and torch's differ is in `docs/drop-in.md`.

# %% [markdown]
# ## Recap
#
# - In `nn.MultiheadAttention` True blocks; in `F.scaled_dot_product_attention` True lets through.
# - A floating mask is added to the scores; only −∞ closes a look.
# - In $(N \cdot H, L, S)$ the heads of one sample are neighbours: `repeat_interleave`, not `repeat`.
# - Whatever adds a key must add a column to the mask.
# - A query that may see nothing: decide once what it gets, and test it.

# %% [markdown]
# ### Three quick questions
#
# **In `nn.MultiheadAttention`, what does True in a bool mask mean?**
#
# (a) may look · (b) may not look · (c) it is added as 1 · (d) it is not documented

# %% nbgrader={"grade": false, "grade_id": "true_means", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: true_means = "a", "b", "c" or "d"
### BEGIN SOLUTION
true_means = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_true_means", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(true_means=true_means)

# %% [markdown]
# **You have one mask per sample, (N, L, S), for all H heads. Which row of the (N·H, L, S) mask belongs to sample n, head h?**
#
# (a) n·H + h · (b) h·N + n · (c) h · (d) it does not matter

# %% nbgrader={"grade": false, "grade_id": "nh_order", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: nh_order = "a", "b", "c" or "d"
### BEGIN SOLUTION
nh_order = "a"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_nh_order", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(nh_order=nh_order)

# %% [markdown]
# **In this course, what does a query get that may look at nothing?**
#
# (a) NaN · (b) the mean of all values · (c) the bias of the output projection · (d) an error

# %% nbgrader={"grade": false, "grade_id": "dead_row", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: dead_row = "a", "b", "c" or "d"
### BEGIN SOLUTION
dead_row = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_dead_row", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(dead_row=dead_row)

# %% [markdown]
# ## Read more
#
# - PyTorch's documentation of [`torch.nn.MultiheadAttention`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html) (every
#   argument above) and of [`F.scaled_dot_product_attention`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html).
# - pytorch/pytorch issues [21518](https://github.com/pytorch/pytorch/issues/21518) and
#   [110144](https://github.com/pytorch/pytorch/issues/110144): the two polarities, met by others.
# - `mha_course/reference/drop_in.py`: a full replacement, constructor included, written to be read.
#
# **Next:** [lesson 06, Order and memory](../06_order_and_memory/06_order_and_memory.ipynb). Where does a token stand, and must everything be computed again for each new one?
