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
# # 08 · Without the L × L matrix
#
# [All lessons](../00_start_here/00_start_here.ipynb#All-lessons) · before this one: [07, On the GPU](../07_gpu/07_gpu.ipynb)
#
# *About 60 minutes. At the end you have written FlashAttention in plain PyTorch, forwards and backwards, exact to rounding, and the
# L × L matrix never existed.*
#
# You will build, in this order: a softmax in one pass; the merge of two results; attention in tiles; its gradients, in tiles; and
# three small functions that change a score, for torch's FlexAttention.

# %%
try:
    from mha_course import check, flex, plots
except ModuleNotFoundError as missing:
    says = "The course is not installed here. In its folder: python3 -m mha_course lab"
    missing._render_traceback_ = lambda: [says]
    raise

import math

import torch
import torch.nn.functional as F

from mha_course.counting import peak_bytes
from mha_course.reference import attend, causal_mask, padding_mask
from mha_course.watching import score_tiles

_ = torch.manual_seed(0)

# %% [markdown]
# `attend`, `causal_mask` and `padding_mask` are what you wrote in lessons 01 and 02; here they come from the course.
#
# ## The question
#
# A text of $L$ tokens has $L \times L$ scores, for every head. They are only there to become weights, and the weights are only there
# to mix values. How much room does this stopover take, if each number has 4 bytes and there are 32 heads?

# %%
for L in (1024, 4096, 16384, 65536):
    print(
        f"L = {L:6,}:  q, k, v and output of all heads "
        f"{4 * 4 * 32 * L * 128 / 2**30:5.2f} GiB,  "
        f"the scores {4 * 32 * L**2 / 2**30:7.2f} GiB"
    )

# %% [markdown]
# What goes in and what comes out grows with $L$. What lies between grows with $L^2$, and in lesson 07 you saw that filling and
# fetching it is where the time goes. **Must it ever exist?** A softmax needs the whole row, it seems: its largest number, and the
# sum of all exponentials, before it can give the first weight.
#
# ## Predict
#
# One head, $D = 32$, $L = 8192$, float32. How many times as much memory does `attend` need, at its highest, as a version that never
# holds more than a tile of 256 × 256 scores? Commit yourself; you will count it.

# %%
times_the_memory = ...  # your guess

# %% [markdown]
# ## Build
#
# ### 8.1 A softmax in one pass
#
# A row of numbers passes by in blocks, each seen once. Keep two numbers: the largest so far, $m$, and the sum so far,
# $\ell = \sum \exp(x - m)$. A new block arrives with its own largest number:
#
# - The new maximum is the larger of the two, $m' = \max(m, \max x)$.
# - What was summed so far was relative to the *old* maximum. One factor mends it, since
#   $\exp(x - m') = \exp(x - m) \cdot \exp(m - m')$:
#
# $$\ell' = \ell \cdot \exp(m - m') + \sum_{x \in \text{block}} \exp(x - m')$$
#
# At the end every weight of the row is $\exp(x - m) / \ell$.
#
# By hand: the row $1, 3 \mid 2 \mid 5$ in three blocks.
#
# ```text
#     block 1, 3      m = 3      sum = exp(−2) + exp(0)           = 1.14
#     block 2         m = 3      sum = 1.14 · exp(0) + exp(−1)    = 1.50
#     block 5         m = 5      sum = 1.50 · exp(−2) + exp(0)    = 1.20
# ```
#
# Start with $m = -\infty$ and $\ell = 0$. One trap: where everything so far is $-\infty$ (a query that may see nothing), $m' = -\infty$ as
# well, and $-\infty - (-\infty)$ is NaN. Subtract 0 there instead of $m'$; then $\exp(-\infty) = 0$ does the rest.


# %% nbgrader={"grade": false, "grade_id": "online_softmax", "locked": false, "schema_version": 3, "solution": true, "task": false}
def online_softmax(blocks):
    """Maximum and sum of exponentials of rows that pass by in blocks,
    each seen once.

    blocks: tensors (..., any length), the pieces of the rows in order
    → maximum (...), sum of exp(x - maximum) (...).
    Rows of nothing but -inf: maximum -inf, sum 0.
    """
    ### BEGIN SOLUTION
    m = None
    for block in blocks:
        top = block.amax(-1)
        if m is None:
            m, l = torch.full_like(top, -torch.inf), torch.zeros_like(top)
        new = torch.maximum(m, top)
        safe = new.masked_fill(new == -torch.inf, 0.0)  # what can be subtracted
        l = l * (m - safe).exp() + (block - safe.unsqueeze(-1)).exp().sum(-1)
        m = new
    return m, l
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A loop over the blocks with two tensors that are brought up to date: the maximum, then the sum. Blocks have rows: the maximum of a
# block is taken over its last dimension, and every row has its own.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# In each turn: the new maximum is the larger of the old one and the block's (`torch.maximum`). What was summed before shrinks
# by exp(old − new), and the block's own sum is added, of exponentials relative to the *new* maximum. Then the new maximum
# becomes the old one.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `safe = new.masked_fill(new == -torch.inf, 0.0)` is what you subtract; `l = l * (m - safe).exp() + (block -
# safe.unsqueeze(-1)).exp().sum(-1)`. At the first block: `m` full of `-torch.inf`, `l` full of 0, in the shape of `top`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import online_softmax` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_online_softmax", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(online_softmax)

# %% [markdown]
# ### 8.2 Two results become one
#
# The same idea, a level higher. Somebody attended to the first half of the keys and has an output, somebody else to the second half.
# Each output is a weighted mean over its own keys. What is the mean over all?
#
# Each half also says how much weight it had to give: the sum of its exponentials. As its logarithm, so that nothing overflows:
# $\text{lse} = \log \sum_j \exp(s_j)$. The common sum is the sum of both, and each half's share is its part of it:
#
# $$\text{lse} = \log(e^{\text{lse}_a} + e^{\text{lse}_b}) \qquad
# \text{output} = e^{\text{lse}_a - \text{lse}} \cdot \text{output}_a + e^{\text{lse}_b - \text{lse}} \cdot \text{output}_b$$
#
# By hand: $\text{output}_a = 4$ with $\text{lse}_a = \log 1$, $\text{output}_b = 8$ with $\text{lse}_b = \log 3$. The shares are
# $\tfrac14$ and $\tfrac34$: the output is $1 + 6 = 7$, and $\text{lse} = \log 4$.
#
# A half in which a query may see nothing has $\text{lse} = -\infty$ and output 0. If both are so: zeros and $-\infty$, not NaN.


# %% nbgrader={"grade": false, "grade_id": "logsumexp_merge", "locked": false, "schema_version": 3, "solution": true, "task": false}
def logsumexp_merge(out_a, lse_a, out_b, lse_b):
    """Attention over all keys, from the attention over each of two halves.

    out_a, out_b: (N, H, L, Dv),
    lse_a, lse_b: (N, H, L), log of the sum of exponentials,
    -inf where nothing may be seen
    → output (N, H, L, Dv), lse (N, H, L).
    """
    ### BEGIN SOLUTION
    lse = torch.logaddexp(lse_a, lse_b)  # (N, H, L)
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    share_a, share_b = (lse_a - safe).exp(), (lse_b - safe).exp()  # they sum to 1
    return out_a * share_a.unsqueeze(-1) + out_b * share_b.unsqueeze(-1), lse
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# First the common lse. Then the two shares, each relative to it; they sum to 1. Then the weighted mean of the two outputs.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `torch.logaddexp(a, b)` is $\log(e^a + e^b)$, without overflow. A share is exp of how far a half's lse lies below it: subtract
# *inside* the exponential.
# It has one number for each query; the output has Dv: it needs a last dimension.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `safe = lse.masked_fill(lse == -torch.inf, 0.0)` for subtracting; `share_a = (lse_a - safe).exp()`, and
# `out_a * share_a.unsqueeze(-1)`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import logsumexp_merge` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_logsumexp_merge", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(logsumexp_merge)

# %% [markdown]
# ### 8.3 Attention in tiles
#
# Now put both together, and do not even keep the weights: multiply every tile of them with its values at once. For one block of
# queries, with an accumulator $a$ that becomes the output:
#
# ```text
#     m = −∞,  sum = 0,  a = 0                                a: (…, B, Dv)
#     for each block of keys and values:
#         scores = q · kᵀ / √D                                one tile: (…, B, B)
#         m' = the larger of m and the tile's maximum
#         p = exp(scores − m')
#         sum = sum · exp(m − m') + p's row sums
#         a   = a · exp(m − m') + p · v                       the same factor
#         m = m'
#     output = a / sum,   lse = m + log sum
# ```
#
# Divide **once**, at the end. The blocks of queries do not know of one another; their outputs are put one below the other.
#
# By hand, one query, scores $0, \log 3 \mid \log 4$, values $8, 0 \mid 2$:
#
# ```text
#     first block    m = log 3    sum = 1/3 + 1 = 4/3       a = 8/3
#     second block   m = log 4    sum = 4/3 · 3/4 + 1 = 2   a = 8/3 · 3/4 + 2 = 4
#     output = 4 / 2 = 2          lse = log 4 + log 2 = log 8
# ```
#
# Directly: the weights are $\tfrac18, \tfrac38, \tfrac48$, and $\tfrac88 + 0 + \tfrac88 = 2$.
#
# The last block may be smaller: $L$ and $S$ need not be multiples of `block_size`. A mask is cut into tiles like the scores; a mask
# $(N, 1, 1, S)$ has only one row, for all queries. A query that may see nothing gets zeros, and $\text{lse} = -\infty$.


# %% nbgrader={"grade": false, "grade_id": "flash_forward", "locked": false, "schema_version": 3, "solution": true, "task": false}
def flash_forward(q, k, v, block_size, may_attend=None):
    """Exact attention, a tile of block_size × block_size scores at a time.

    q: (N, H, L, D), k: (N, H, S, D), v: (N, H, S, Dv),
    may_attend: bool, broadcastable to (N, H, L, S), or None
    → output (N, H, L, Dv), lse (N, H, L).
    """
    ### BEGIN SOLUTION
    L, S, D = q.shape[-2], k.shape[-2], q.shape[-1]
    if may_attend is not None:
        # a view: nothing is copied
        may_attend = may_attend.expand(*may_attend.shape[:-2], L, S)
    outputs, lses = [], []
    for i in range(0, L, block_size):
        rows = q[..., i : i + block_size, :] / math.sqrt(D)  # (N, H, B, D)
        m = torch.full_like(rows[..., 0], -torch.inf)  # (N, H, B)
        total = torch.zeros_like(m)
        acc = rows.new_zeros(*m.shape, v.shape[-1])  # (N, H, B, Dv)
        for j in range(0, S, block_size):
            scores = rows @ k[..., j : j + block_size, :].mT  # (N, H, B, B)
            if may_attend is not None:
                tile = may_attend[..., i : i + block_size, j : j + block_size]
                scores = scores.masked_fill(~tile, -torch.inf)
            new = torch.maximum(m, scores.amax(-1))
            safe = new.masked_fill(new == -torch.inf, 0.0)
            p, shrink = (scores - safe.unsqueeze(-1)).exp(), (m - safe).exp()
            total = total * shrink + p.sum(-1)
            acc = acc * shrink.unsqueeze(-1) + p @ v[..., j : j + block_size, :]
            m = new
        outputs.append(acc / total.masked_fill(total == 0, 1.0).unsqueeze(-1))
        lses.append(m + total.log())
    return torch.cat(outputs, dim=-2), torch.cat(lses, dim=-1)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two loops: outside over blocks of queries, inside over blocks of keys. `range` with a step gives
# where they start; a slice that would reach beyond the end is simply shorter, and that is the last block. Collect outputs and
# lses in lists, and join them.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Inside, it is `online_softmax` with one thing more: the accumulator shrinks by the same factor as the sum, then `p @ values` is
# added. Without a mask first. Then the mask: its tile has the rows of this block of queries and the columns of this block of keys.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `may_attend.expand(*may_attend.shape[:-2], L, S)` gives every mask full rows and columns, without copying. Subtract `safe`, as in
# 8.1. At the end `acc / total.masked_fill(total == 0, 1.0).unsqueeze(-1)`, and `m + total.log()` (which is $-\infty$ where nothing
# was seen, as it should be).
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import flash_forward` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_flash_forward", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
check(flash_forward)

# %% [markdown]
# ## See: the order of the visits
#
# Your function at work. It gets queries and keys whose scores say which query and key they belong to; so whatever it computes can be
# recognised. The numbers say in which order it visited the tiles. On the right, for query 4, its maximum and its sum after each of
# its tiles, from your `online_softmax`.

# %%
L, S, block = 10, 14, 4
visited = score_tiles(lambda q, k, v: flash_forward(q, k, v, block), L, S)
row = torch.randn(S, dtype=torch.float64) + torch.arange(S) / 4  # the scores of query 4
pieces = row.split(block)
seen = [online_softmax(pieces[:n]) for n in range(1, len(pieces) + 1)]
plots.show(
    plots.without_the_matrix.tiles(
        visited, L, S, 4, [m.item() for m, _ in seen], [l.item() for _, l in seen]
    ),
    alt="Left, a grid of 10 queries by 14 keys in tiles of 4, numbered 1 to 12 row by row from the upper left; those at the right "
    "and lower edges are smaller. A dashed line marks query 4, in tiles 5 to 8. Right, its maximum, which never falls, and its sum, "
    "which falls when the maximum rises and grows otherwise.",
)

# %% [markdown]
# **What to look for.** At no time is there more than one tile. The maximum only ever rises; when it does, the sum shrinks, and that
# is the factor at work. The tiles at the edges are smaller, and nothing had to be filled up.
#
# How far is it from the direct formula, with masks and a query that may see nothing? And is the memory what you expected?

# %%
q, k, v = (
    torch.randn(2, 3, n, d, dtype=torch.float64) for n, d in ((50, 8), (70, 8), (70, 6))
)
masks = {
    "no mask": None,
    "causal": causal_mask(50, 70),
    "padding": padding_mask(torch.tensor([70, 41]), 70).unsqueeze(1),
    "a dead row": (torch.rand(2, 3, 50, 70) < 0.5).index_fill(
        2, torch.tensor([7]), False
    ),
}
for name, mask in masks.items():
    scores = q @ k.mT / math.sqrt(8)
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    direct = torch.softmax(scores, -1).nan_to_num() @ v
    print(
        f"{name:12} largest difference "
        f"{(flash_forward(q, k, v, 16, mask)[0] - direct).abs().max():.1e}"
    )

# %% tags=["not-when-graded"]
lengths, D, block = (512, 1024, 2048, 4096, 8192), 32, 256
peaks = {"attend": [], "your flash_forward": []}
for L in lengths:
    q, k, v = torch.randn(3, 1, 1, L, D)  # float32
    peaks["attend"].append(
        peak_bytes(lambda q=q, k=k, v=v: attend(q[0], k[0], v[0])[0])
    )
    peaks["your flash_forward"].append(
        peak_bytes(lambda q=q, k=k, v=v: flash_forward(q, k, v, block))
    )
plots.show(
    plots.without_the_matrix.memory(lengths, peaks),
    alt="Memory at its highest against L, both axes logarithmic. attend rises by four when L doubles, up to 1 GiB at 8192. "
    "Your flash_forward stays near 1 MiB at first and rises at most by two when L doubles; at 8192 it needs a few MiB.",
)
ratio = peaks["attend"][-1] / peaks["your flash_forward"][-1]
print(
    f"at L = {L}: {ratio:.0f} times as much; your guess: "
    f"{'none' if times_the_memory is ... else times_the_memory}"
)

# %% [markdown]
# **What to look for.** Every doubling of $L$ takes the upper line up by four, the lower one by two: it is output and accumulators, no
# matrix. (Counted is what tensors hold, the same way on every machine, not what a clock says.)
#
# ### 8.4 Backwards, in tiles
#
# Training needs gradients, and they need the weights $P$. Keep them? That would be the matrix again. **Compute them again**, tile by
# tile: $P = \exp(\text{scores} - \text{lse})$, and that is why `lse` was worth returning. From the gradient of the output, $dO$:
#
# $$dV = P^\top dO \qquad dP = dO\, V^\top \qquad dS = P \circ (dP - \delta) \qquad
# dQ = \frac{dS\, K}{\sqrt D} \qquad dK = \frac{dS^\top Q}{\sqrt D}$$
#
# The $\delta$ comes from the softmax: raise one weight and the others fall, so of each row of $dP$ its weighted mean is subtracted,
# $\delta_i = \sum_j P_{ij}\, dP_{ij}$. That seems to need a whole row. But put $dP = dO\,V^\top$ in, and it is
# $\delta_i = \sum_d dO_{id}\, O_{id}$: known before the first tile.
#
# By hand: one query, weights $\tfrac14, \tfrac34$, values $8, 0$, so the output is 2; and $dO = 1$. Then $dP = (8, 0)$ and
# $\delta = 1 \cdot 2 = 2$ (indeed $\tfrac14 \cdot 8 + \tfrac34 \cdot 0$), and $dS = (\tfrac14 \cdot 6,\; \tfrac34 \cdot (-2)) = (1.5, -1.5)$.
#
# Every tile *adds* to the gradients of its queries, its keys and its values.


# %% nbgrader={"grade": false, "grade_id": "flash_backward", "locked": false, "schema_version": 3, "solution": true, "task": false}
def flash_backward(q, k, v, output, lse, grad_output, block_size, may_attend=None):
    """The gradients of flash_forward; every tile of weights is computed again.

    q, k, v, block_size, may_attend: as for flash_forward.
    output, lse: what it gave.
    grad_output: (N, H, L, Dv)
    → gradients of q, k and v, shaped like them.
    """
    ### BEGIN SOLUTION
    L, S, scale = q.shape[-2], k.shape[-2], q.shape[-1] ** -0.5
    if may_attend is not None:
        may_attend = may_attend.expand(*may_attend.shape[:-2], L, S)
    grad_q, grad_k, grad_v = (
        torch.zeros_like(q),
        torch.zeros_like(k),
        torch.zeros_like(v),
    )
    delta = (grad_output * output).sum(-1, keepdim=True)  # (N, H, L, 1)
    safe = lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)  # (N, H, L, 1)
    for i in range(0, L, block_size):
        rows = slice(i, i + block_size)
        for j in range(0, S, block_size):
            columns = slice(j, j + block_size)
            scores = q[..., rows, :] @ k[..., columns, :].mT * scale  # (N, H, B, B)
            if may_attend is not None:
                scores = scores.masked_fill(~may_attend[..., rows, columns], -torch.inf)
            p = (scores - safe[..., rows, :]).exp()
            grad_p = grad_output[..., rows, :] @ v[..., columns, :].mT
            grad_scores = p * (grad_p - delta[..., rows, :]) * scale
            grad_v[..., columns, :] += p.mT @ grad_output[..., rows, :]
            grad_q[..., rows, :] += grad_scores @ k[..., columns, :]
            grad_k[..., columns, :] += grad_scores.mT @ q[..., rows, :]
    return grad_q, grad_k, grad_v
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The same two loops, the same tiles of scores with the same scale and mask. Three tables of zeros for the gradients; every tile adds
# its share. Before the loops: $\delta$, one number for each query.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# The weights of a tile are exponentials of the scores relative to lse (which needs a last dimension for that); no maximum and
# no sum is needed any more. Then line by line what the formulas say: in the gradient of the scores the brackets matter.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `delta = (grad_output * output).sum(-1, keepdim=True)`. Where `lse` is $-\infty$ subtract 0, as before. `grad_q[..., rows, :] +=
# grad_scores @ k[..., columns, :] * scale`, and for the keys `grad_scores.mT @ q[..., rows, :] * scale`: the factor $1/\sqrt D$ of the
# scores comes along.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import flash_backward` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_flash_backward", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
check(flash_backward)

# %% [markdown]
# ## Break it
#
# What if the rescaling is forgotten? Here it is left out, and for good measure there is the idea of simply averaging what the blocks
# give. The same 64 keys, cut into 1, 2, 4, … blocks.


# %%
def without_rescaling(q, k, v, block_size):
    """Sums and outputs added up, each relative to its own block's maximum."""
    total, acc = 0, 0
    for keys, values in zip(k.split(block_size, -2), v.split(block_size, -2)):
        scores = q @ keys.mT / math.sqrt(q.shape[-1])
        p = (scores - scores.amax(-1, keepdim=True)).exp()
        total, acc = total + p.sum(-1, keepdim=True), acc + p @ values
    return acc / total


def averaged(q, k, v, block_size):
    """Attention to each block of keys by itself, then the mean of them."""
    parts = zip(k.split(block_size, -2), v.split(block_size, -2))
    return torch.stack([attend(q, keys, values)[0] for keys, values in parts]).mean(0)


# %%
q, k, v = torch.randn(3, 4, 64, 8, dtype=torch.float64)  # each (4, 64, 8)
right, blocks = attend(q, k, v)[0], (1, 2, 4, 8, 16)
ways = {
    "yours": lambda size: flash_forward(q[None], k[None], v[None], size)[0][0],
    "not rescaled": lambda size: without_rescaling(q, k, v, size),
    "averaged": lambda size: averaged(q, k, v, size),
}
errors = {
    name: [(way(64 // n) - right).abs().max().item() for n in blocks]
    for name, way in ways.items()
}
plots.show(
    plots.without_the_matrix.errors_by_blocks(blocks, errors),
    alt="Largest error against the number of blocks, both axes logarithmic. Yours stays near 1e-15 throughout. Not rescaled and "
    "averaged are as exact with one block, and off by 0.1 and more from two blocks on.",
)

# %% [markdown]
# **What to look for.** With one block all three are right. A test with short inputs and a large block never leaves that block, and
# finds nothing. Test with several blocks, and with one that is not full.

# %% [markdown]
# ### 8.5 to 8.7 Three functions that change a score
#
# Nobody writes a new kernel for each kind of mask. torch has one kernel, FlexAttention, and you hand it a function that changes *one*
# score: `score_mod(score, n, h, i, j)` gets a score (already divided by $\sqrt D$) and which sample, head, query and key it belongs
# to, and gives back the score to use instead. Compiled, that function becomes part of the kernel, and no matrix is made.
#
# Write it as if for one score. But `i` and `j` are tensors, and may stand for many at once: decide with
# `torch.where(condition, one, other)`, not with `if`.
#
# **8.5** `causal`: query $i$ may look at key $j \le i$; everything else gets $-\infty$.


# %% nbgrader={"grade": false, "grade_id": "causal", "locked": false, "schema_version": 3, "solution": true, "task": false}
def causal(score, n, h, i, j):
    """Query i may look at key j <= i: the score there, -inf elsewhere."""
    ### BEGIN SOLUTION
    return torch.where(j <= i, score, -torch.inf)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# One line: the score where the key is open, something else where it is closed.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# A closed key's score is $-\infty$; 0 would still be looked at.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `torch.where(condition, score, -torch.inf)`, with the condition that is `True` where the key is *open*.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import causal` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_causal", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(causal)

# %% [markdown]
# **8.6** `sliding_window`: a query sees itself and what lies close behind it, `width` keys in all. By hand, with `width = 3`: query 5
# sees keys 3, 4 and 5.


# %% nbgrader={"grade": false, "grade_id": "sliding_window", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sliding_window(score, n, h, i, j, width):
    """Query i sees itself and the width - 1 keys before it:
    the score there, -inf elsewhere."""
    ### BEGIN SOLUTION
    return torch.where((j <= i) & (i - j < width), score, -torch.inf)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two conditions: not ahead, and not too far behind.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# The distance is $i - j$. It is 0 for the query's own place, and the farthest open key is at distance `width - 1`. Both conditions
# must hold.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# Between tensors "and" is `&`, and each side needs brackets: `(j <= i) & (i - j < width)`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import sliding_window` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_sliding_window", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(sliding_window)

# %% [markdown]
# **8.7** `alibi`: no positions at all in the tokens; instead every place of distance costs. Head $h$ of $H$ takes off
# $2^{-8(h+1)/H}$ for each place, so head 0 looks near and the last head looks far:
#
# $$\text{score} - 2^{-8(h + 1)/H} \cdot |i - j|$$
#
# By hand, with $H = 4$ the slopes are $\tfrac14, \tfrac1{16}, \tfrac1{64}, \tfrac1{256}$: for head 0 a key at distance 6 loses 1.5.


# %% nbgrader={"grade": false, "grade_id": "alibi", "locked": false, "schema_version": 3, "solution": true, "task": false}
def alibi(score, n, h, i, j, H):
    """Distance costs: head h takes 2^(-8(h + 1)/H) off the score for each
    place between i and j."""
    ### BEGIN SOLUTION
    slope = torch.exp2(-8 * (h + 1) / H)
    return score - slope * (i - j).abs()
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# First the slope of head `h`, then the distance, then what is left of the score.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# A distance has no sign: `.abs()`. The slope is a power of 2, and its exponent is negative.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `torch.exp2(-8 * (h + 1) / H)`
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import alibi` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_alibi", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(alibi)

# %% [markdown]
# The three at work on the same scores, 10 queries and 10 keys, as weights:

# %%
scores = torch.randn(10, 10, dtype=torch.float64)
i, j, zero = torch.arange(10).unsqueeze(1), torch.arange(10), torch.tensor(0)
changed = {
    "causal": causal(scores, zero, zero, i, j),
    "sliding window, width 4": sliding_window(scores, zero, zero, i, j, 4),
    "ALiBi, head 0 of 4": alibi(scores, zero, zero, i, j, 4),
}
plots.show(
    plots.heat_maps(
        {name: torch.softmax(x, -1) for name, x in changed.items()}, largest=0.6
    ),
    alt="Three heat maps of weights, 10 queries by 10 keys. Causal: the lower left triangle. Sliding window: a band of four keys "
    "ending on the diagonal. ALiBi: brightest near the diagonal, fading to both sides.",
)

# %% [markdown]
# Are they what the masks of lesson 02 say? FlexAttention with your functions, beside your own tiles with explicit masks:

# %%
H = 4
q, k, v = torch.randn(3, 2, H, 40, 16, dtype=torch.float64)
i, j = torch.arange(40).unsqueeze(1), torch.arange(40)
slopes = torch.exp2(-8 * (torch.arange(H) + 1) / H).view(H, 1, 1)
explicit = {
    "causal": flash_forward(q, k, v, 16, causal_mask(40, 40))[0],
    "window": flash_forward(
        q, k, v, 16, causal_mask(40, 40) & ~causal_mask(40, 40, offset=-7)
    )[0],
    "ALiBi": torch.softmax(q @ k.mT / 4 - slopes * (i - j).abs(), -1) @ v,
}
mods = {
    "causal": causal,
    "window": lambda score, n, h, i, j: sliding_window(score, n, h, i, j, 7),
    "ALiBi": lambda score, n, h, i, j: alibi(score, n, h, i, j, H),
}
for name, mod in mods.items():
    print(
        f"{name:8} largest difference "
        f"{(flex.eager(q, k, v, mod) - explicit[name]).abs().max():.1e}"
    )

# %% [markdown]
# That was FlexAttention run eagerly: right, and with the matrix. Its point is to be *compiled*: then your function becomes a part of
# the kernel, and the scores stay in it. On a GPU this cell compiles; on a CPU it would take about 15 seconds the first time, so there
# you decide. Where compiling is not possible, it runs eagerly and says why.

# %% tags=["not-when-graded"]
# True works on a CPU, too, if there is a C++ compiler
compile_it = torch.cuda.is_available()
device = "cuda" if torch.cuda.is_available() else "cpu"
inputs = [x.float().to(device) for x in (q, k, v)]
output, which_way = flex.attention(*inputs, mods["ALiBi"], compiled=compile_it)
print(which_way)
print(
    f"ALiBi    largest difference "
    f"{(output.cpu() - explicit['ALiBi']).abs().max():.1e}  (float32)"
)

# %% [markdown]
# ## In PyTorch
#
# - `F.scaled_dot_product_attention` is your `flash_forward`, written for the hardware; with `is_causal=True` it does not even visit
#   the tiles that are closed.
# - `torch.nn.attention.flex_attention.flex_attention` takes your `score_mod`s.
# - Your pair of functions becomes a layer that autograd can use, by `torch.autograd.Function`. It keeps `q, k, v, output, lse`, and
#   no matrix. torch's own `gradcheck` compares its gradients with differences:


# %%
class Flash(torch.autograd.Function):
    """Your two functions as one operation that autograd knows."""

    @staticmethod
    def forward(ctx, q, k, v, block_size, may_attend):
        output, lse = flash_forward(q, k, v, block_size, may_attend)
        ctx.save_for_backward(q, k, v, output, lse)
        ctx.others = block_size, may_attend
        return output

    @staticmethod
    def backward(ctx, grad_output):
        return (
            *flash_backward(*ctx.saved_tensors, grad_output, *ctx.others),
            None,
            None,
        )


# %%
small = [
    torch.randn(1, 2, n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 7, 7)
]
print(
    "gradcheck:",
    torch.autograd.gradcheck(
        lambda q, k, v: Flash.apply(q, k, v, 3, causal_mask(5, 7)), small
    ),
)

q, k, v = (
    x.requires_grad_() for x in torch.randn(3, 2, 4, 100, 16, dtype=torch.float64)
)
yours, theirs = Flash.apply(q, k, v, 32, None), F.scaled_dot_product_attention(q, k, v)
weight = torch.randn_like(yours)
gradients = [
    torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (yours, theirs)
]
print(f"output:    largest difference from torch {(yours - theirs).abs().max():.1e}")
print(
    "gradients: largest difference from torch "
    f"{max((a - b).abs().max() for a, b in zip(*gradients)):.1e}"
)

# %% [markdown]
# ## Recap
#
# - Maximum and sum of a row can be kept up to date block by block. When the maximum grows, what was summed shrinks by
#   $\exp(m - m')$.
# - Attention needs no matrix: each tile of weights is used at once. Divide once, at the end.
# - Backwards, tiles are computed again from `lse`. More arithmetic, far less memory to fill and fetch.
# - It is exact. The order of adding is another; nothing is approximated.
# - Closed tiles and dead rows: never subtract $-\infty$ from $-\infty$. Test with several blocks, and one that is not full.
#
# ### Four quick questions

# %% [markdown]
# **What does FlashAttention compute?**
#
# (a) the same as the direct formula, up to rounding · (b) an approximation that leaves out small weights · (c) the same, but only in
# bfloat16 · (d) attention to a part of the keys

# %% nbgrader={"grade": false, "grade_id": "is_it_exact", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: is_it_exact = "a", "b", "c" or "d"
### BEGIN SOLUTION
is_it_exact = "a"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_is_it_exact", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(is_it_exact=is_it_exact)

# %% [markdown]
# **A block brings a larger maximum. Why does everything summed so far have to shrink?**
#
# (a) the scores must not be negative · (b) the weights must sum to 1 · (c) otherwise exp overflows · (d) it was relative to the old
# maximum

# %% nbgrader={"grade": false, "grade_id": "why_shrink", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: why_shrink = "a", "b", "c" or "d"
### BEGIN SOLUTION
why_shrink = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_why_shrink", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(why_shrink=why_shrink)

# %% [markdown]
# **What does the forward pass keep for the backward pass, besides q, k, v and the output?**
#
# (a) the weights · (b) one number for each query: lse · (c) one number for each query: the maximum · (d) nothing

# %% nbgrader={"grade": false, "grade_id": "what_is_kept", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: what_is_kept = "a", "b", "c" or "d"
### BEGIN SOLUTION
what_is_kept = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_what_is_kept", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(what_is_kept=what_is_kept)

# %% [markdown]
# **What is the price?**
#
# (a) nothing: there are fewer multiplications · (b) more memory · (c) the scores are computed once more backwards · (d) less exact
# gradients

# %% nbgrader={"grade": false, "grade_id": "what_it_costs", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: what_it_costs = "a", "b", "c" or "d"
### BEGIN SOLUTION
what_it_costs = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_what_it_costs", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(what_it_costs=what_it_costs)

# %% [markdown]
# ## Read more
#
# - Milakov and Gimelshein 2018, [*Online normalizer calculation for softmax*](https://arxiv.org/abs/1805.02867), section 3: exercise 8.1 as an algorithm, with a proof.
# - Dao et al. 2022, [*FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness*](https://arxiv.org/abs/2205.14135), algorithms 1 and 4, and
#   theorem 2: how much less has to be fetched.
# - Dao 2023, [*FlashAttention-2*](https://arxiv.org/abs/2307.08691), section 3.1: dividing once, and keeping lse alone.
# - Rabe and Staats 2021, [*Self-attention Does Not Need O(n²) Memory*](https://arxiv.org/abs/2112.05682): the same thought in plain array code.
# - Press et al. 2022, [*Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation*](https://arxiv.org/abs/2108.12409), section 3: ALiBi.
# - Beltagy et al. 2020, [*Longformer*](https://arxiv.org/abs/2004.05150), section 3.1: the sliding window.
#
# **That was the last lesson.** [All lessons](../00_start_here/00_start_here.ipynb#All-lessons)
