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
# # 04 · The module
#
# [All lessons](../00_start_here/00_start_here.ipynb#All-lessons) · before this one: [03, Many heads](../03_many_heads/03_many_heads.ipynb)
#
# *About 50 minutes. At the end you have a complete multi-head attention module: three inputs, masks, dropout, weights
# on request, and a second opinion on its gradients.*
#
# In lessons 01 to 03 you wrote functions. A model needs a **module**: something that owns its parameters, knows whether
# it is training, and can be put into a bigger module. Most of it is joining what you have. The new things are small, and
# each has a classic way to go wrong.

# %%
try:
    from mha_course import check, plots
except ModuleNotFoundError as missing:
    says = "The course is not installed here. In its folder: python3 -m mha_course lab"
    missing._render_traceback_ = lambda: [says]
    raise

import torch
from torch import nn

_ = torch.manual_seed(0)

# %% [markdown]
# You bring these along from lessons 02 and 03. They are the course's own versions; if you are fond of yours, paste them
# over these.

# %%
from mha_course.reference import masked_softmax, merge_heads, split_heads

# %% [markdown]
# ## The question
#
# A translator reads a German sentence of 7 words and writes an English one, 5 words so far. Each English word should
# look at the **German** words. So queries come from one sentence, keys and values from another: this is
# **cross-attention**, and $L = 5$, $S = 7$.
#
# Nothing in `attend_in_parallel` minds. But a surprising number of modules were written with self-attention in mind,
# pass every test with `x, x, x`, and are wrong the first time somebody gives them two different sentences.

# %% [markdown]
# ## Predict
#
# A row of attention weights sums to 1. While training, we will set each weight to 0 with probability $p = 0.5$ and
# double the others. What will the rows sum to then: always 1, always 0.5, or something else? And in eval mode?

# %%
prediction = ...  # your guess, in a few words

# %% [markdown]
# ## Build
#
# ### 4.1 Three projections in one
#
# A head makes q, k and v with three matrices $W_q, W_k, W_v$, each $(E, E)$. Three small products are slower than one
# big one, so PyTorch (and nearly everybody) keeps them **packed** on top of one another in one matrix of $3E$ rows:
# first the query rows, then the key rows, then the value rows.
#
# By hand, with $E = 1$: $W_q = (2)$, $W_k = (5)$, $W_v = (7)$ pack to the column $(2, 5, 7)$, a $(3, 1)$ matrix, and a
# token $x = (10)$ gives $x\,W^\top = (20, 50, 70)$: query, key and value side by side.
#
# The order is a convention. Get it wrong and everything still runs: a model loaded from somebody's file then asks with
# its keys.


# %% nbgrader={"grade": false, "grade_id": "pack_projections", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pack_projections(wq, wk, wv):
    """(E, E) each → (3E, E): the query rows first, then the key rows,
    then the value rows."""
    ### BEGIN SOLUTION
    return torch.cat([wq, wk, wv], dim=0)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The order is in the sentence above: query, key, value. Blocks stay whole.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# A Linear's weight is (out, in): its **rows** are the outputs. More outputs means more rows, so the three stand on top
# of one another, dimension 0. No transpose, no new dimension.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `torch.cat` of a list of three, with `dim=0`. Plain torch, nothing detached.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import pack_projections` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_pack_projections", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(pack_projections)

# %% [markdown]
# ### 4.2 And back
#
# To load somebody's weights you need the way back. By hand: the column $(2, 5, 7)$ gives $(2)$, $(5)$, $(7)$.


# %% nbgrader={"grade": false, "grade_id": "unpack_projections", "locked": false, "schema_version": 3, "solution": true, "task": false}
def unpack_projections(packed):
    """(3E, E) → wq, wk, wv, each (E, E): the inverse of pack_projections."""
    ### BEGIN SOLUTION
    wq, wk, wv = packed.chunk(3, dim=0)
    return wq, wk, wv
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Three whole blocks, in the order query, key, value.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# The blocks are rows 0 to E−1, E to 2E−1 and 2E to 3E−1. Cut dimension 0 into three; leave the columns alone.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `packed.chunk(3, dim=0)` gives the three blocks; return them as three things.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import unpack_projections` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_unpack_projections", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(unpack_projections)

# %% [markdown]
# ### 4.3 Dropout on the weights
#
# A model that always relies on the same word is fragile. **Attention dropout** closes each look with probability $p$
# while training, so that no word can be relied on:
#
# $$w'_{ls} = \begin{cases} 0 & \text{with probability } p \\ w_{ls} / (1 - p) & \text{otherwise.} \end{cases}$$
#
# Why the division? On average a weight is then $(1-p) \cdot w/(1-p) = w$, as it was. So eval mode needs no correction:
# there, the weights stay exactly as they are.
#
# By hand, $p = 0.5$: the row $(0.5, 0.3, 0.2)$ becomes $(1.0, 0, 0.4)$ if the coin closes the second look. It sums to
# 1.4; another throw gives $(0, 0.6, 0.4)$, which sums to 1.


# %% nbgrader={"grade": false, "grade_id": "attention_dropout", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attention_dropout(weights, p, training):
    """Weights of any shape → the same shape.

    Training: 0 with probability p, otherwise divided by 1 - p.
    Not training: as they are. p is at least 0 and less than 1.
    """
    ### BEGIN SOLUTION
    if not training or p == 0:
        return weights
    keep = torch.rand_like(weights) >= p  # a coin for every weight
    return weights * keep / (1 - p)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two questions first: are we training at all? And is $p$ the probability of being *dropped* or of being *kept*?
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `torch.rand_like(weights)` throws a coin between 0 and 1 for **every** weight: it is below $p$ with probability $p$.
# Multiply by "kept or not", and divide by the probability of being kept. Rows need not sum to 1 afterwards.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `keep = torch.rand_like(weights) >= p`, then `weights * keep / (1 - p)`; without training return `weights`. Write no
# `*=`: the weights are still needed as they were.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import attention_dropout` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_attention_dropout", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(attention_dropout)

# %% [markdown]
# ## See: what dropout does to the rows
#
# From your own `attention_dropout`: 2000 rows of weights over 12 keys, and what each row sums to.

# %%
weights = torch.randn(2000, 12).softmax(-1)
p = 0.5
plots.show(
    plots.module.row_sums(
        attention_dropout(weights, p, True).sum(-1),
        attention_dropout(weights, p, False).sum(-1),
        p,
    ),
    alt="Two histograms of row sums. In train mode they scatter between about 0 and 2 around a mean of 1; in eval "
    "mode all are exactly 1.",
)
print("your guess:", "none" if prediction is ... else prediction)

# %% [markdown]
# **What to look for.** In training the sums scatter widely *around* 1 and in eval mode every single one is exactly 1. If
# you ever see row sums scatter at test time, somebody forgot `model.eval()`.

# %% [markdown]
# ### 4.4 The module
#
# Now put it together. This is figure 2 of *Attention is all you need*:
#
# $$\text{output} = \operatorname{merge}\big(\operatorname{dropout}(w)\; v_{\text{heads}}\big)\, W_o^\top + b_o,
# \qquad w = \operatorname{softmax}\!\Big(\frac{q_{\text{heads}}\, k_{\text{heads}}^\top}{\sqrt D}\Big)$$
#
# with query $(N, L, E)$, key $(N, S, \text{kdim})$, value $(N, S, \text{vdim})$, and $q, k, v$ made by three projections to $E$
# features each. What to keep in mind:
#
# - Three **different** inputs. Queries from `query`, keys from `key`, values from `value`.
# - A query that may see nothing gets zeros from attention, so its output is the bias of `out`.
# - Dropout acts on the weights, after the softmax, in train mode (`self.training`).
# - `need_weights=True` shows the weights **before** dropout, averaged over the heads unless `average_weights=False`.
# - Always return a pair; without weights the second is `None`.
# - $E$ must be divisible by $H$; say so with a `ValueError`.
#
# By hand, with $E = H = 2$, so $D = 1$; all four matrices are the identity, and the bias of `out` is $(1, 1)$. The query
# $(0, 0)$ has score 0 with every key. The values are $(4, 10)$ and $(8, 2)$:
#
# | may look at | weights of each head | heads, merged | output |
# |---|---|---|---|
# | both keys | $(\tfrac12, \tfrac12)$ | $(6, 6)$ | $(7, 7)$ |
# | the second | $(0, 1)$ | $(8, 2)$ | $(9, 3)$ |
# | none | $(0, 0)$ | $(0, 0)$ | $(1, 1)$ |


# %% nbgrader={"grade": false, "grade_id": "MultiHeadAttention", "locked": false, "schema_version": 3, "solution": true, "task": false}
class MultiHeadAttention(nn.Module):
    """Multi-head attention.

    Layers `query` (E → E), `key` (kdim → E), `value` (vdim → E),
    `out` (E → E).
    kdim and vdim are E where they are None.
    Raises ValueError if H does not divide E.
    """

    def __init__(self, E, H, dropout=0.0, bias=True, kdim=None, vdim=None):
        ### BEGIN SOLUTION
        super().__init__()
        if E % H:
            raise ValueError(f"embed_dim {E} cannot be split evenly among {H} heads")
        self.H, self.dropout = H, dropout
        self.query = nn.Linear(E, E, bias=bias)
        self.key = nn.Linear(E if kdim is None else kdim, E, bias=bias)
        self.value = nn.Linear(E if vdim is None else vdim, E, bias=bias)
        self.out = nn.Linear(E, E, bias=bias)
        ### END SOLUTION

    def forward(
        self,
        query,
        key,
        value,
        may_attend=None,
        need_weights=False,
        average_weights=True,
    ):
        """query (N, L, E), key (N, S, kdim), value (N, S, vdim),
        may_attend bool, broadcastable to (N, H, L, S)
        → output (N, L, E), weights: None, or (N, L, S),
        or (N, H, L, S) where they are not averaged."""
        ### BEGIN SOLUTION
        q = split_heads(self.query(query), self.H)  # (N, H, L, D)
        k = split_heads(self.key(key), self.H)  # (N, H, S, D)
        v = split_heads(self.value(value), self.H)  # (N, H, S, D)
        scores = q @ k.mT / q.shape[-1] ** 0.5  # (N, H, L, S)
        if may_attend is None:
            weights = scores.softmax(-1)
        else:
            weights = masked_softmax(scores, may_attend)
        dropped = attention_dropout(weights, self.dropout, self.training)
        output = self.out(merge_heads(dropped @ v))  # (N, L, E)
        if not need_weights:
            return output, None
        return output, weights.mean(dim=1) if average_weights else weights
        ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Write `__init__` first: one check, four layers. In `forward`, say for each of the three projections aloud which input
# it gets. Begin without mask and dropout: the check tries it plain first, then adds one thing after the other.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Project, split all three into heads $(N, H, \cdot, D)$, scores divided by $\sqrt D$ (one head's features, not $E$),
# `masked_softmax` where there is a mask, dropout, times v, `merge_heads`, and `out` at the very end: it is the only place
# where heads meet.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# Keep two names: `weights` (what you show) and `dropped = attention_dropout(weights, self.dropout, self.training)` (what
# mixes the values). The heads are dimension 1: `weights.mean(dim=1)`. Last line without weights: `return output, None`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import MultiHeadAttention` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_MultiHeadAttention", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
check(MultiHeadAttention)

# %% [markdown]
# ## See: the way through the module
#
# The shapes below were recorded while your own module ran, on a cross-attention with three different inputs.

# %%
module = MultiHeadAttention(E=12, H=3, kdim=5, vdim=8)
seen = {}
for name in ("query", "key", "value", "out"):
    layer = getattr(module, name)
    layer.register_forward_hook(
        lambda layer, given, made, name=name: seen.update(
            {name: (given[0].shape, made.shape)}
        )
    )
output, weights = module(
    torch.randn(2, 5, 12),
    torch.randn(2, 7, 5),
    torch.randn(2, 7, 8),
    need_weights=True,
    average_weights=False,
)

# %%
steps = [
    ("what comes in", [(name, seen[name][0]) for name in ("query", "key", "value")]),
    ("projected", [(name, seen[name][1]) for name in ("query", "key", "value")]),
    ("split, compared, softmax", [("weights", weights.shape)]),
    ("mixed and merged", [("into out", seen["out"][0])]),
    ("what comes out", [("output", output.shape)]),
]
arrows = [((0, i), (1, i)) for i in range(3)] + [
    ((1, 0), (2, 0)),
    ((1, 1), (2, 0)),
    ((1, 2), (3, 0)),
]
arrows += [((2, 0), (3, 0)), ((3, 0), (4, 0))]
plots.show(
    plots.module.flow(steps, arrows),
    alt="Five rows of boxes from top to bottom: query (2, 5, 12), key (2, 7, 5) and value (2, 7, 8) come in; projected they "
    "all have 12 features; the weights are (2, 3, 5, 7); merged (2, 5, 12); the output is (2, 5, 12).",
)

# %% [markdown]
# **What to look for.** Follow the 5 and the 7. The 7 (keys) appears in the middle and is gone at the end: it was summed
# over. The output has as many rows as the **query**, 5, whatever the keys were.

# %% [markdown]
# ### 4.5 A second opinion on the gradients
#
# Your module learns by autograd's gradients. Are they right? There is a slow way to find out that needs no calculus:
# move one number a little both ways, and look what the result does.
#
# $$\frac{\partial f}{\partial x_i} \approx \frac{f(x + h\,e_i) - f(x - h\,e_i)}{2h}$$
#
# where $e_i$ is 1 at place $i$ and 0 elsewhere. Both ways, because then the largest part of the error cancels.
#
# By hand: $f(x) = x^3$ at $x = 2$ with $h = 1$: $(27 - 1)/2 = 13$. The truth is $3 \cdot 2^2 = 12$. One-sided it would
# have been $27 - 8 = 19$.


# %% nbgrader={"grade": false, "grade_id": "numerical_gradient", "locked": false, "schema_version": 3, "solution": true, "task": false}
def numerical_gradient(fn, x, step=1e-5):
    """fn: x → a single number. x: float64, any shape
    → the gradient, shaped like x; autograd is not used."""
    ### BEGIN SOLUTION
    gradient = torch.zeros_like(x)
    for index in range(x.numel()):
        move = torch.zeros_like(x)
        move.view(-1)[index] = step
        gradient.view(-1)[index] = (fn(x + move) - fn(x - move)) / (2 * step)
    return gradient
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A loop over all numbers of x, one at a time. `step` decides how far each is moved.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `x - step` and `x + step` are two steps apart: divide by that. For any shape: `.view(-1)` shows a tensor as one long row,
# and writing into that view writes into the tensor.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# Make `move = torch.zeros_like(x)` with a single `step` in it, and compute `fn(x + move) - fn(x - move)`. x itself is
# never written into, so there is nothing to put back.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import numerical_gradient` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_numerical_gradient", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(numerical_gradient)

# %%
module = MultiHeadAttention(E=4, H=2).double()
x = torch.randn(1, 3, 4, dtype=torch.float64)
memory = torch.randn(1, 5, 4, dtype=torch.float64)


def summed(x):
    return module(x, memory, memory)[0].pow(2).sum()


x.requires_grad_()
autograd = torch.autograd.grad(summed(x), x)[0]
with torch.no_grad():
    by_hand = numerical_gradient(summed, x)
print("largest difference:", (autograd - by_hand).abs().max().item())
print(
    "torch's own test: ",
    torch.autograd.gradcheck(lambda x: module(x, memory, memory)[0], x),
)

# %% [markdown]
# Two ways that share nothing agree to about nine digits. `torch.autograd.gradcheck` is the same idea, and you now know what
# it does. It wants float64, for the reason in the formula: a difference of two nearly equal numbers is divided by something
# tiny.

# %% [markdown]
# ## Break it
#
# **Two tests of the same wrong module.** Here is a module that makes keys and values from `query`: the bug of the first
# question. Watch what a self-attention test says about it, and then a cross-attention test.


# %%
class OnlySelf(MultiHeadAttention):
    def forward(self, query, key, value, **options):
        # key and value are accepted, and not used
        return super().forward(query, query, query, **options)


right, wrong = MultiHeadAttention(E=12, H=3), OnlySelf(E=12, H=3)
wrong.load_state_dict(right.state_dict())
x, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
for name, arguments in (
    ("self-attention ", (x, x, x)),
    ("cross-attention", (x, memory, memory)),
):
    gap = (right(*arguments)[0] - wrong(*arguments)[0]).abs().max().item()
    print(f"{name}: largest difference {gap:.3f}")

# %% [markdown]
# The first test finds nothing, because there is nothing to find: with `x, x, x` the bug does not exist. **Test with three
# different inputs, and with L ≠ S.** Every check in this course does.
#
# **Forgetting `eval()`.** The same sentence twice, through a module with dropout:

# %%
module = MultiHeadAttention(E=12, H=3, dropout=0.3)
for mode in (True, False):
    module.train(mode)
    once, again = module(x, x, x)[0], module(x, x, x)[0]
    print(
        f"{'train' if mode else 'eval '}: the two answers differ by "
        f"{(once - again).abs().max().item():.3f}"
    )

# %% [markdown]
# ## In PyTorch
#
# torch's module is `nn.MultiheadAttention`. It packs the three projections as you did in 4.1, so your parameters fit:

# %%
mine = MultiHeadAttention(E=12, H=3)
theirs = nn.MultiheadAttention(embed_dim=12, num_heads=3, batch_first=True)
with torch.no_grad():
    theirs.in_proj_weight.copy_(
        pack_projections(mine.query.weight, mine.key.weight, mine.value.weight)
    )
    theirs.in_proj_bias.copy_(
        torch.cat([mine.query.bias, mine.key.bias, mine.value.bias])
    )
    theirs.out_proj.load_state_dict(mine.out.state_dict())
output, weights = mine(x, memory, memory, need_weights=True)
expected, expected_weights = theirs(x, memory, memory)
print("outputs:", (output - expected).abs().max().item())
print("weights:", (weights - expected_weights).abs().max().item())

# %% [markdown]
# Equal. Two differences to remember for lesson 05: torch's masks mean the **opposite** of ours, and in train mode torch shows
# the weights *after* dropout.

# %% [markdown]
# ## Recap
#
# - Queries come from one input, keys and values from others: cross-attention is the general case, self-attention a special one.
# - The packed order is query, key, value; wrong orders run without complaint.
# - Dropout acts on the weights, in train mode only, and divides by $1 - p$, so that the mean stays right.
# - The output projection is the only place where heads meet.
# - A gradient can be checked by moving one number at a time.

# %% [markdown]
# ### Three quick questions
#
# **Why are the weights that survive dropout divided by 1 − p?**
#
# (a) so that each row sums to 1 · (b) so that each weight is right on average and eval needs no change · (c) to save
# time · (d) so that dropped weights get a gradient

# %% nbgrader={"grade": false, "grade_id": "why_rescale", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: why_rescale = "a", "b", "c" or "d"
### BEGIN SOLUTION
why_rescale = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_why_rescale", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(why_rescale=why_rescale)

# %% [markdown]
# **Cross-attention with query (2, 5, 12), key (2, 7, 4), value (2, 7, 9), E = 12. The shape of the output?**
#
# (a) (2, 5, 12) · (b) (2, 7, 12) · (c) (2, 5, 4) · (d) (2, 3, 5, 4)

# %% nbgrader={"grade": false, "grade_id": "cross_shape", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: cross_shape = "a", "b", "c" or "d"
### BEGIN SOLUTION
cross_shape = "a"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_cross_shape", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(cross_shape=cross_shape)

# %% [markdown]
# **What is the output projection for?**
#
# (a) to bring the sizes back to E · (b) to make the weights sum to 1 · (c) to make the module non-linear · (d) to let the
# heads' results mix

# %% nbgrader={"grade": false, "grade_id": "what_out_does", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: what_out_does = "a", "b", "c" or "d"
### BEGIN SOLUTION
what_out_does = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_what_out_does", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(what_out_does=what_out_does)

# %% [markdown]
# ## Read more
#
# - Vaswani et al. 2017, [*Attention is all you need*](https://arxiv.org/abs/1706.03762), section 3.2.2 and figure 2; section 5.4 for dropout.
# - Srivastava et al. 2014, [*Dropout: a simple way to prevent neural networks from overfitting*](https://jmlr.org/papers/v15/srivastava14a.html), section 4.
# - PyTorch's documentation of [`nn.MultiheadAttention`](https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html) and of
#   [`torch.autograd.gradcheck`](https://docs.pytorch.org/docs/stable/generated/torch.autograd.gradcheck.gradcheck.html).
# - `mha_course/reference/module.py`: the course's own answers.
#
# **Next:** [lesson 05, The drop-in](../05_drop_in/05_drop_in.ipynb). Your module in the place of PyTorch's.
