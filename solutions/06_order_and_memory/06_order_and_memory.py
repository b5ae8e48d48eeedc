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
# # 06 · Order and memory
#
# [All lessons](../00_start_here/00_start_here.ipynb#All-lessons) · before this one: [05, The drop-in](../05_drop_in/05_drop_in.ipynb)
#
# *About 60 minutes. At the end your attention knows where each token stands, writes a text token by token without doing any
# work twice, and needs a fraction of the memory for it.*
#
# You will build, in this order: positions as vectors; positions as angles; heads that share their keys and values; a memory
# for what was computed; one step of writing; and a count of what that memory takes.

# %%
try:
    from mha_course import check, plots
except ModuleNotFoundError as missing:
    says = "The course is not installed here. In its folder: python3 -m mha_course lab"
    missing._render_traceback_ = lambda: [says]
    raise

import math

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mha_course.reference import (
    attend,
    causal_mask,
    masked_softmax,
    permutation_gap,
    split_heads,
)

_ = torch.manual_seed(0)

# %% [markdown]
# `attend`, `causal_mask`, `masked_softmax`, `permutation_gap` and `split_heads` are what you wrote in lessons 01 to 03. Here they
# come from the course, so that you can start wherever you are; paste your own over them if you like.
#
# ## The question
#
# > Ada thanked Bo.
# >
# > Bo thanked Ada.
#
# In lesson 03 *thanked* had two heads, one for *who?* and one for *whom?* But how should a head know who did it? The same three
# words are there both times. Let us ask attention itself: shuffle the words, and see whether anybody notices.

# %%
words = torch.randn(1, 3, 8, dtype=torch.float64)  # (N, L, E): Ada, thanked, Bo
shuffled = torch.tensor([2, 1, 0])
gap = permutation_gap(lambda x: attend(x, x, x)[0], words, shuffled)
print(f"the largest difference between the two sentences: {gap:.1e}")

# %% [markdown]
# Nothing but rounding. Every word gets the same result in both sentences. **Attention does not know order**: it looks at all
# words alike, wherever they stand. So the place of a word must be put *into* the numbers that attention sees.
#
# ## Predict
#
# You write a text of 40 tokens, one after the other. A model that keeps nothing looks at the whole text again for each new token.
# One that keeps what it computed does not.
#
# How many times as many multiplications does the first one make, all 40 steps together? Commit yourself; you will count both.

# %%
times_the_work = ...  # your guess

# %% [markdown]
# ## Build
#
# ### 6.1 Positions as vectors
#
# Give each position a vector of its own, and *add* it to the token that stands there. Which vectors? Think of a clock: one hand
# turns fast, one slowly, and together they tell any time of the day. Here are $E/2$ hands, each slower than the one before. Hand
# $i$ turns by the frequency $\omega_i$ from one position to the next, and of each hand the table has the sine and the cosine:
#
# $$\omega_i = 10000^{-2i/E} \qquad \text{table}[p, 2i] = \sin(p \, \omega_i) \qquad \text{table}[p, 2i + 1] = \cos(p \, \omega_i)$$
#
# By hand, with $E = 4$: the two frequencies are $10000^0 = 1$ and $10000^{-2/4} = 1/100$. So
#
# ```text
#     position 0      0      1      0      1    sin 0, cos 0, sin 0,    cos 0
#     position 1    0.84   0.54   0.01   1.00   sin 1, cos 1, sin 0.01, cos 0.01
#     position 2    0.91  −0.42   0.02   1.00   sin 2, cos 2, sin 0.02, cos 0.02
# ```
#
# Sines and cosines come in pairs. An odd $E$ has one feature without a partner: a `ValueError`, please.


# %% nbgrader={"grade": false, "grade_id": "sinusoidal_positions", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sinusoidal_positions(L, E, device=None):
    """Position vectors of sines and cosines, for positions 0 … L − 1.

    → (L, E), float32, on `device`;
    features 2i and 2i + 1 are sine and cosine of one angle.
    ValueError if E is odd.
    """
    ### BEGIN SOLUTION
    if E % 2:
        raise ValueError(f"sines and cosines come in pairs: E must be even, not {E}")
    position = torch.arange(L, device=device).unsqueeze(1)  # (L, 1)
    frequency = 10000 ** (-torch.arange(0, E, 2, device=device) / E)  # (E/2,)
    angle = position * frequency  # (L, E/2)
    both = torch.stack([angle.sin(), angle.cos()], dim=-1)  # (L, E/2, 2)
    return both.flatten(1)  # (L, E)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# First make all angles at once: a table (L, E/2), a row for each position, a column for each pair. Positions as a column times
# frequencies as a row broadcast to it, as in lesson 00.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `torch.arange(0, E, 2)` is $0, 2, 4, \dots$: that is $2i$ already. Every angle gives two neighbours: its sine, then its cosine.
# Either stack the two in a new last dimension and flatten, or write them into every second column of a table of zeros.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `10000 ** (-torch.arange(0, E, 2, device=device) / E)` are the frequencies.
# `torch.stack([angle.sin(), angle.cos()], dim=-1)` is (L, E/2, 2), and `.flatten(1)` makes (L, E) of it. Before all that, look at
# `E % 2`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import sinusoidal_positions` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_sinusoidal_positions", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(sinusoidal_positions)

# %% [markdown]
# ## See: a clock with many hands

# %%
table = sinusoidal_positions(64, 32)
plots.show(
    plots.order_and_memory.position_vectors(table, near=(8, 24, 48)),
    alt="Left, the table as a heat map, 64 positions by 32 features: stripes that change fast in the first features and hardly at "
    "all in the last. Right, the dot product of rows 8, 24 and 48 with every row: each curve has its peak at its own position and "
    "falls off alike on both sides.",
)

# %% [markdown]
# **What to look for.** On the left, the first columns flicker from row to row, the last ones hardly move: fast hands tell
# neighbours apart, slow ones tell the beginning from the end. On the right, a position's vector is most like itself and like its
# neighbours, *wherever* it stands: the three curves have the same shape.
#
# Does it help? The same question as above, with positions added:

# %%
places = sinusoidal_positions(3, 8).double()
gap = permutation_gap(
    lambda x: attend(x + places, x + places, x + places)[0], words, shuffled
)
print(f"the largest difference between the two sentences: {gap:.2f}")

# %% [markdown]
# ### 6.2 Positions as angles
#
# Adding has two blemishes. The place of a token is mixed into what it *says*, and is looked up with it. And what matters is mostly
# not *where* two words stand but *how far apart* they are: "the word before me" is the same question everywhere.
#
# So do not add: **turn**. Take a query's features in pairs of neighbours, $(x_0, x_1), (x_2, x_3), \dots$, each pair an arrow in a
# plane, and turn the arrow of pair $i$ by the angle $\theta = p \cdot 10000^{-2i/D}$, where $p$ is the position:
#
# $$(a, b) \;\to\; (a \cos\theta - b \sin\theta,\; a \sin\theta + b \cos\theta)$$
#
# Do it to queries and keys, not to values. The dot product of two arrows depends on the angle between them; turn both, and that
# angle changes by the *difference* of their turns: by the distance, and by nothing else. This is RoPE, *rotary position embedding*.
#
# By hand, with $D = 4$ at position 3: pair 0 turns by $3 \cdot 1 = 3$, pair 1 by $3 \cdot \tfrac{1}{100} = 0.03$. The query
# $(1, 0 \mid 0, 2)$ becomes
#
# $$(\cos 3,\; \sin 3 \mid -2 \sin 0.03,\; 2 \cos 0.03) = (-0.99,\; 0.14 \mid -0.06,\; 2.00).$$
#
# At position 0 nothing turns. And no arrow becomes longer or shorter.
#
# `positions` says where each token stands: $(L,)$ for all samples alike, or $(N, L)$, for each sample its own. It is *not* always
# $0, 1, 2, \dots$: you will need that soon. In bfloat16 there is no 1001 (the numbers there go 1000, 1004, 1008): make the angles
# in float32 or better, whatever `x` is, and give back `x`'s dtype.


# %% nbgrader={"grade": false, "grade_id": "apply_rope", "locked": false, "schema_version": 3, "solution": true, "task": false}
def apply_rope(x, positions):
    """Turn each pair of neighbouring features, more at later positions.

    x: (N, H, L, D), queries or keys. positions: int64, (L,) or (N, L)
    → the same shape and dtype as x. ValueError if D is odd.
    """
    ### BEGIN SOLUTION
    D = x.shape[-1]
    if D % 2:
        raise ValueError(f"features are turned in pairs: D must be even, not {D}")
    frequency = 10000 ** (-torch.arange(0, D, 2, device=x.device) / D)  # (D/2,)
    angle = positions.unsqueeze(-1) * frequency  # (L, D/2) or (N, L, D/2)
    if positions.dim() == 2:
        angle = angle.unsqueeze(1)  # (N, 1, L, D/2): for all heads alike
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]  # (N, H, L, D/2)
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return turned.flatten(-2)  # (N, H, L, D)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The angles are made as in 6.1, with `positions` in place of `arange(L)`. Then cut `x` into the first and the second of each pair,
# turn, and put the pairs together again.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# A slice with a step of 2 takes every second feature: beginning at 0 the first ones of all pairs, beginning at 1 the second
# ones, both (N, H, L, D/2). The angles (L, D/2) broadcast
# over samples and heads. Keep both old halves until both new ones are done; then stack them in a new last dimension and flatten.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `angle = positions.unsqueeze(-1) * frequency`; with positions (N, L) it is (N, L, D/2), and the heads need a place:
# `angle.unsqueeze(1)`. `cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)`. The result:
# `torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import apply_rope` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_apply_rope", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(apply_rope)

# %% [markdown]
# ## See: only the distance counts
#
# One query and one key, with the same content wherever they stand. What is their score when the query stands at place $i$ and the
# key at place $j$? On the left their places are *added*, on the right they are *turned*, by your functions.

# %%
L, D = 24, 32
q, k = torch.randn(2, 1, 1, 1, D, dtype=torch.float64)  # one query, one key
everywhere = torch.arange(L)
table = sinusoidal_positions(L, D).double()
added = (q + table) @ (k + table).mT  # (1, 1, L, L)
turned = (
    apply_rope(q.expand(1, 1, L, D), everywhere)
    @ apply_rope(k.expand(1, 1, L, D), everywhere).mT
)
plots.show(
    plots.order_and_memory.by_distance(
        {"places added": added[0, 0], "places turned": turned[0, 0]}
    ),
    alt="Two heat maps of the score against both places, and below each the scores against the distance. Places added: a blurred "
    "diagonal with horizontal and vertical stripes; below, many different scores for each distance. Places turned: every diagonal "
    "has one colour; below, exactly one score for each distance.",
)

# %%
spread = [
    max(d.max() - d.min() for d in (x[0, 0].diagonal(o) for o in range(-5, 6))).item()
    for x in (added, turned)
]
print(
    f"scores of the same distance differ by up to {spread[0]:.1f} "
    "where places are added,"
)
print(f"and by up to {spread[1]:.0e} where they are turned")

# %% [markdown]
# **What to look for.** Above right, every diagonal has a single colour: $i - j$ is constant along it. Below right, for each distance
# there is one score. Below left there are many: stripes from "what I say" times "where you stand".
#
# ### 6.3 Heads that share
#
# Now to memory. Whoever writes a text token by token keeps the keys and values of all tokens so far. Most of that is not needed:
# several query heads can share **one** key-value head. With $H$ query heads and $H_{kv}$ key-value heads, neighbours share:
# query head $h$ looks at key-value head $\lfloor h / (H / H_{kv}) \rfloor$.
#
# ```text
#     query heads        0   1   2 │ 3   4   5      H = 6
#     key-value heads        0     │     1          Hkv = 2: three heads for each
# ```
#
# $H_{kv} = H$ is what you know; $H_{kv} = 1$ is called *multi-query attention*, everything between *grouped-query attention*.
#
# By hand, with $H = 4$, $H_{kv} = 2$, one token and one key: all weights are 1. If key-value head 0 has the value $8$ and head 1
# the value $4$, the four query heads get $8, 8, 4, 4$. (Not $8, 4, 8, 4$: a trained model's heads are stored as neighbours.)
#
# An $H$ that $H_{kv}$ does not divide: a `ValueError`. A query that may see nothing gets zeros, as ever.


# %% nbgrader={"grade": false, "grade_id": "grouped_attention", "locked": false, "schema_version": 3, "solution": true, "task": false}
def grouped_attention(q, k, v, may_attend=None):
    """Attention in which neighbouring query heads share one key-value head.

    q: (N, H, L, D), k: (N, Hkv, S, D), v: (N, Hkv, S, Dv),
    may_attend: bool, broadcastable to (N, H, L, S), or None
    → output (N, H, L, Dv), weights (N, H, L, S).
    ValueError if Hkv does not divide H.
    """
    ### BEGIN SOLUTION
    H, Hkv = q.shape[1], k.shape[1]
    if H % Hkv:
        raise ValueError(f"{H} query heads cannot share {Hkv} key-value heads evenly")
    k = k.repeat_interleave(H // Hkv, dim=1)  # (N, H, S, D)
    v = v.repeat_interleave(H // Hkv, dim=1)  # (N, H, S, Dv)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (N, H, L, S)
    if may_attend is None:
        weights = torch.softmax(scores, -1)
    else:
        weights = masked_softmax(scores, may_attend)
    return weights @ v, weights
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Make $H$ key-value heads of the $H_{kv}$, each one $H / H_{kv}$ times, and the rest is what you wrote in lessons 01 and 02. There
# are two functions that repeat; one lays the whole row down again and again (0 1 0 1), the other repeats each one on the spot
# (0 0 1 1).
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `repeat_interleave` repeats on the spot. Do it to the keys and to the values, in dimension 1. The scores are divided by $\sqrt D$;
# the softmax runs over the keys; all $H$ heads keep their own weights, and come back in their own order.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `k.repeat_interleave(H // Hkv, dim=1)`, the same for `v`; `scores = q @ k.mT / math.sqrt(q.shape[-1])`. Without a mask
# `torch.softmax(scores, -1)`, with one `masked_softmax(scores, may_attend)`. First of all: `if H % Hkv:`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import grouped_attention` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_grouped_attention", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(grouped_attention)

# %% [markdown]
# torch has this, too: `enable_gqa=True`. The two results should be equal to rounding:

# %%
q = torch.randn(2, 6, 5, 8, dtype=torch.float64)  # (N, H, L, D)
k, v = torch.randn(2, 2, 2, 7, 8, dtype=torch.float64)  # each (N, Hkv, S, D)
theirs = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
print(
    "largest difference from torch: "
    f"{(grouped_attention(q, k, v)[0] - theirs).abs().max():.1e}"
)

# %% [markdown]
# ### 6.4 A memory for keys and values
#
# A new token asks: its query looks at the keys of all tokens. The old tokens' *queries* are not needed any more, their keys and
# values are, and those do not change: a causal mask kept everything later away from them. So **keep them**.
#
# That memory is a class with one method. `append` takes the keys and values of one or more new tokens, puts them behind the old
# ones, and gives back all keys and all values so far. And `len(cache)` says how many tokens are in it. (Python calls the method
# `__len__` for that.)
#
# By hand: append the keys and values of a text of 3 tokens, and get them back; `len(cache)` is 3. Append those of one token more,
# $(N, H_{kv}, 1, D)$: you get $(N, H_{kv}, 4, D)$ of both, the new one last, and `len(cache)` is 4. Of a new cache it is 0.


# %% nbgrader={"grade": false, "grade_id": "KVCache", "locked": false, "schema_version": 3, "solution": true, "task": false}
class KVCache:
    """The keys and values of all tokens so far.

    append(k, v): k (N, Hkv, L, D), v (N, Hkv, L, Dv), of L new tokens
    → all keys (N, Hkv, S, D), all values (N, Hkv, S, Dv).
    len(cache): S, the number of tokens so far; 0 at first.
    """

    ### BEGIN SOLUTION
    def __init__(self):
        self.k = None
        self.v = None

    def __len__(self):
        return 0 if self.k is None else self.k.shape[-2]

    def append(self, k, v):
        self.k = k if self.k is None else torch.cat([self.k, k], dim=-2)
        self.v = v if self.v is None else torch.cat([self.v, v], dim=-2)
        return self.k, self.v

    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Three methods: `__init__(self)` makes an empty one, `append(self, k, v)` adds and gives back everything, `__len__(self)` counts the
# tokens. What belongs to *one* cache is made in `__init__`.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Tokens are the last dimension but one. `torch.cat([old, new], dim=-2)` puts the new ones behind the old ones. The number of tokens is
# that dimension's size, not how often `append` was called.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `self.k = k if self.k is None else torch.cat([self.k, k], dim=-2)`, the same for `v`, then `return self.k, self.v`. And
# `__len__` returns `0 if self.k is None else self.k.shape[-2]`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import KVCache` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_KVCache", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(KVCache)

# %% [markdown]
# ### 6.5 One step of writing
#
# Everything comes together. New tokens arrive, one or several, as queries, keys and values that are not turned yet. One step:
#
# 1. **Where do they stand?** After everything that is kept: at `len(cache)`, `len(cache) + 1`, …
# 2. **Turn** the new queries and keys to these positions, and keep keys and values. (Kept keys are turned already.)
# 3. **What may they see?** Query $i$ of the new ones stands at place `len(cache) + i` and sees the keys up to there: what is kept,
#    the new ones before it, itself.
# 4. **Attend**, with shared heads.
#
# By hand, 3 tokens kept and 2 new: positions 3 and 4, five keys, and the mask (2, 5)
#
# ```text
#     1  1  1  1  0        place 3 sees 0, 1, 2, 3
#     1  1  1  1  1        place 4 sees all
# ```
#
# The zero stands in the lower right corner's triangle, not in the upper left's: `offset`, in lesson 02.
#
# One thing more. Texts of different lengths in one batch are padded **on the left** here, so that all of them end at the same place and
# go on together. `padding` says how many tokens of padding each sample has, $(N,)$; nobody looks at those, ever.
# (Should positions then count from each sample's first real token? With RoPE you need not care: only the distance counts.)


# %% nbgrader={"grade": false, "grade_id": "decode_step", "locked": false, "schema_version": 3, "solution": true, "task": false}
def decode_step(q, k, v, cache, padding=None):
    """New tokens look at everything kept and at themselves, never ahead.

    q: (N, H, L, D), k: (N, Hkv, L, D), v: (N, Hkv, L, Dv), of L new tokens,
    not yet turned.
    cache: a KVCache; it grows by L.
    padding: int64 (N,), tokens of padding on the left of each sample, or None
    → output (N, H, L, Dv), weights (N, H, L, S), S = tokens so far,
    the new ones included.
    """
    ### BEGIN SOLUTION
    seen, L = len(cache), q.shape[-2]
    positions = torch.arange(seen, seen + L, device=q.device)  # (L,): they go on
    keys, values = cache.append(apply_rope(k, positions), v)
    may_attend = causal_mask(L, seen + L, offset=seen, device=q.device)  # (L, S)
    if padding is not None:
        places = torch.arange(seen + L, device=q.device)
        real = places >= padding.unsqueeze(-1)  # (N, S)
        may_attend = may_attend & real[:, None, None, :]  # (N, 1, L, S)
    return grouped_attention(apply_rope(q, positions), keys, values, may_attend)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Ask `len(cache)` before you append: after it, the new tokens are counted already. The positions are as many numbers as there are
# new tokens, starting there. What `append` gives back is what the queries look at.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `apply_rope` for the new queries and for the new keys, with the same positions; never for values, and never for a key that is
# kept. Then `cache.append(...)`, then `grouped_attention` with all keys, all values and a mask.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `causal_mask(L, seen + L, offset=seen, device=q.device)`, where `seen` was asked before appending. A key is real where its place,
# `torch.arange(seen + L, device=q.device)`, is at least `padding.unsqueeze(-1)`: (N, S), and it needs places for heads and queries:
# `[:, None, None, :]`. Both masks must agree: `&`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import decode_step` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_decode_step", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(decode_step)

# %% [markdown]
# ## See: the same numbers, a fraction of the work
#
# A layer with 6 query heads, 2 key-value heads and rotary positions writes 40 tokens for two texts; the second one has 5 tokens of
# padding on its left. Once token by token with a cache; once with the whole text computed again for each token.

# %%
N, L, E, H, Hkv, D = 2, 40, 48, 6, 2, 8
wq, wk, wv = (
    torch.randn(E, h * D, dtype=torch.float64) / math.sqrt(E) for h in (H, Hkv, Hkv)
)
tokens = torch.randn(N, L, E, dtype=torch.float64)
padding = torch.tensor([0, 5])


def project(x):
    """Tokens (N, L, E) → queries (N, H, L, D), keys, values (N, Hkv, L, D)."""
    return split_heads(x @ wq, H), split_heads(x @ wk, Hkv), split_heads(x @ wv, Hkv)


def count(work):
    """What work() gives, and how many multiplications it took."""
    with FlopCounterMode(display=False) as counter:
        result = work()
    # it counts additions, too: one for each multiplication
    return result, counter.get_total_flops() // 2


# %%
cache, differences, again, kept = KVCache(), [], [], []
for t in range(1, L + 1):
    all_t, newest_one = tokens[:, :t], tokens[:, t - 1 : t]
    whole, works = count(
        lambda x=all_t: decode_step(*project(x), KVCache(), padding)[0]
    )
    again.append(works)
    newest, works = count(
        lambda x=newest_one: decode_step(*project(x), cache, padding)[0]
    )
    kept.append(works)
    differences.append((newest - whole[:, :, -1:]).abs().max().item())
print(f"largest difference over all {L} steps: {max(differences):.1e}")

# %%
plots.show(
    plots.order_and_memory.work(
        range(1, L + 1), {"computed again": again, "with your cache": kept}
    ),
    alt="Left, multiplications of one step against the tokens so far, logarithmic: computed again, they rise steeply; with the "
    "cache they are far fewer and rise slowly. Right, the ratio of all steps together: it grows with the text, to more than 20 "
    "at 40 tokens.",
)
print(
    f"all {L} steps: {sum(again):,} and {sum(kept):,} multiplications, "
    f"{sum(again) / sum(kept):.1f} times as many"
)
print(f"your guess: {'none' if times_the_work is ... else times_the_work}")

# %% [markdown]
# **What to look for.** The difference is rounding: this is no approximation. On the left, a step with the cache still costs more
# with every token (there are more keys to look at), but by a straight line; computed again, projections and all old queries come
# on top. On the right the ratio keeps growing: a text of 1000 tokens would be in the hundreds.
#
# ### 6.6 What the memory takes
#
# Nothing is free: what is kept needs memory. Every layer keeps keys and values of its own, for each token of each sample.
#
# By hand, for *Llama 2 70B*: 80 layers, 8 key-value heads with 128 features each, 2 bytes for each number (float16). For one token
# that is $2 \cdot 80 \cdot 8 \cdot 128 \cdot 2 = 327\,680$ bytes: 320 KiB. A text of 4096 tokens takes 1.25 GiB.


# %% nbgrader={"grade": false, "grade_id": "kv_cache_bytes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def kv_cache_bytes(N, S, Hkv, D, layers, dtype=torch.float16):
    """Memory for the keys and values of N texts of S tokens,
    with Hkv key-value heads of D features in each layer, in bytes."""
    ### BEGIN SOLUTION
    return 2 * layers * N * Hkv * S * D * dtype.itemsize
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Count the numbers in one key tensor of one layer, (N, Hkv, S, D). What else is kept, and how often?
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Keys *and* values, in every layer. How many bytes a number takes depends on its dtype: `dtype.itemsize`.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `2 * layers * N * Hkv * S * D * dtype.itemsize`
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import kv_cache_bytes` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_kv_cache_bytes", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(kv_cache_bytes)

# %%
lengths = [1024 * 2**n for n in range(11)]
sizes = {
    f"{Hkv} key-value head{'s' * (Hkv > 1)}": [
        kv_cache_bytes(1, S, Hkv, D=128, layers=80) for S in lengths
    ]
    for Hkv in (64, 8, 1)
}
plots.show(
    plots.order_and_memory.cache_sizes(
        lengths, sizes, limit=("80 GiB: one large GPU", 80 * 2**30)
    ),
    alt="Memory against tokens, both axes logarithmic, three parallel lines for 64, 8 and 1 key-value heads, each 8 times below "
    "the one before. A level line at 80 GiB is crossed by the first at 32 768 tokens, by the second at 262 144, by the third "
    "beyond a million.",
)

# %% [markdown]
# **What to look for.** One text, a model with 80 layers and 64 query heads of 128 features. With as many key-value heads, a single
# text of 32 768 tokens fills a whole GPU, and the model itself is not in it yet. Eight heads make room for eight such texts. This
# is why nearly every large model shares.
#
# ## Break it
#
# Two slips that no error message will tell you about. In the first, positions start at 0 again in every call. In the second, the
# padding is forgotten. A text of 12 tokens goes in at once, then 28 more one by one; how far off is each token's output?


# %%
def forgetful_step(q, k, v, cache, padding=None):
    """Positions start at 0 in every call; all else is right."""
    seen, L = len(cache), q.shape[-2]
    positions = torch.arange(L)
    keys, values = cache.append(apply_rope(k, positions), v)
    real = torch.arange(seen + L) >= padding.unsqueeze(-1)
    mask = causal_mask(L, seen + L, offset=seen) & real[:, None, None]
    return grouped_attention(apply_rope(q, positions), keys, values, mask)


def write(step, padding):
    """The outputs of 40 tokens (N, H, L, D): 12 at once, then one by one."""
    cache = KVCache()
    parts = [tokens[:, :12], *tokens[:, 12:].split(1, dim=1)]
    return torch.cat([step(*project(x), cache, padding)[0] for x in parts], dim=-2)


# %%
right = decode_step(*project(tokens), KVCache(), padding)[0]
slips = {
    "yours": write(decode_step, padding),
    "positions restart": write(forgetful_step, padding),
    "padding forgotten": write(decode_step, None),
}
errors = {
    name: (x - right)[:, :, 5:].abs().amax((0, 1, 3)).tolist()
    for name, x in slips.items()
}
plots.show(
    plots.order_and_memory.errors_by_step(range(5, L), errors),
    alt="The largest difference from the right output for tokens 5 to 39, logarithmic. Yours stays at rounding, below 1e-14. "
    "Positions restart: at rounding up to token 11, then of the order of 1 from token 12 on. Padding forgotten: of the order of 1 "
    "from the first token on.",
)

# %% [markdown]
# **What to look for.** With restarting positions the text that went in at once is perfect, and so is every test that looks at that
# alone. The first *written* token is wrong. A test of a cache has to call it twice.
#
# ### Two layouts of the same turn
#
# Some models pair neighbours, as you did; others pair feature $i$ with feature $i + D/2$ (GPT-NeoX, and Llama's weights in Hugging
# Face's form). Both are right. Weights trained with one and run with the other are noise. How do you convert? Not the function:
# the *weights*. Put the features into another order once.


# %%
def apply_rope_to_halves(x, positions):
    """The other layout: feature i is paired with feature i + D/2."""
    pairs = torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)  # neighbours now
    return torch.stack(
        apply_rope(pairs, positions).unflatten(-1, (-1, 2)).unbind(-1), dim=-2
    ).flatten(-2)


# %%
places = torch.arange(L)
q, k, _ = project(tokens)
k = k.repeat_interleave(H // Hkv, dim=1)
# a model that was trained so
theirs = apply_rope_to_halves(q, places) @ apply_rope_to_halves(k, places).mT
order = torch.arange(D).view(2, D // 2).T.flatten()  # 0, D/2, 1, D/2 + 1, …
print(
    "scores off by, as they are:  ",
    f"{(apply_rope(q, places) @ apply_rope(k, places).mT - theirs).abs().max():.1f}",
)
q, k = q[..., order], k[..., order]
print(
    "scores off by, reordered:    ",
    f"{(apply_rope(q, places) @ apply_rope(k, places).mT - theirs).abs().max():.0e}",
)

# %% [markdown]
# ## In PyTorch
#
# - Shared heads: `F.scaled_dot_product_attention(..., enable_gqa=True)`, as seen above.
# - `is_causal=True` means the triangle in the **upper left**, which is wrong for new tokens behind a cache.
#   `torch.nn.attention.bias.causal_lower_right(L, S)` is the one you built.
# - `nn.MultiheadAttention` has no positions, no cache and no shared heads. Models bring their own.
#
# Five tokens are kept and two are new. torch with `causal_lower_right`, torch with `is_causal`, and your step:

# %%
from torch.nn.attention.bias import causal_lower_right

q, k, v = (split_heads(tokens[:1, :7] @ w, Hkv) for w in (wk, wk, wv))  # (1, Hkv, 7, D)
cache = KVCache()
decode_step(q[:, :, :5], k[:, :, :5], v[:, :, :5], cache)
yours, _ = decode_step(q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], cache)
new, keys = apply_rope(q[:, :, 5:], torch.arange(5, 7)), apply_rope(k, torch.arange(7))
lower_right = F.scaled_dot_product_attention(
    new, keys, v, attn_mask=causal_lower_right(2, 7)
)
upper_left = F.scaled_dot_product_attention(new, keys, v, is_causal=True)
print(
    f"causal_lower_right: {(lower_right - yours).abs().max():.0e}      "
    f"is_causal: {(upper_left - yours).abs().max():.1f}"
)

# %% [markdown]
# ## Recap
#
# - Attention does not know order. Positions are added to the tokens (sinusoids), or queries and keys are turned by them (RoPE): then
#   only the distance counts.
# - Values are never turned. Two layouts of pairs are in use; weights belong to one of them.
# - A cache keeps keys and values; a step then costs a line instead of a square, and gives the same numbers.
# - Positions go on at `len(cache)`, and the causal mask sits in the lower right. Test a cache by calling it twice.
# - Neighbouring query heads can share a key-value head. What is kept shrinks by $H / H_{kv}$.
#
# ### Four quick questions

# %% [markdown]
# **Queries and keys are turned by their positions. On what does the score of a pair depend, besides their contents?**
#
# (a) on the query's place and on the key's place, separately · (b) on the sum of the two places · (c) on the difference of the two
# places · (d) on that difference alone, whatever the contents are

# %% nbgrader={"grade": false, "grade_id": "what_turning_keeps", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: what_turning_keeps = "a", "b", "c" or "d"
### BEGIN SOLUTION
what_turning_keeps = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_what_turning_keeps", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(what_turning_keeps=what_turning_keeps)

# %% [markdown]
# **What is turned?**
#
# (a) the queries · (b) queries, keys and values · (c) the tokens, before they are projected · (d) queries and keys

# %% nbgrader={"grade": false, "grade_id": "who_is_turned", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: who_is_turned = "a", "b", "c" or "d"
### BEGIN SOLUTION
who_is_turned = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_who_is_turned", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(who_is_turned=who_is_turned)

# %% [markdown]
# **What does a key-value cache save?**
#
# (a) looking at the old keys · (b) computing anything again for the old tokens · (c) memory · (d) some precision is given up for
# speed

# %% nbgrader={"grade": false, "grade_id": "what_the_cache_saves", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: what_the_cache_saves = "a", "b", "c" or "d"
### BEGIN SOLUTION
what_the_cache_saves = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_what_the_cache_saves", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(what_the_cache_saves=what_the_cache_saves)

# %% [markdown]
# **Why do large models have fewer key-value heads than query heads?**
#
# (a) what is kept, and read again for every token, becomes smaller · (b) fewer scores have to be computed · (c) there are fewer
# parameters · (d) the outputs become better

# %% nbgrader={"grade": false, "grade_id": "why_fewer_heads", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: why_fewer_heads = "a", "b", "c" or "d"
### BEGIN SOLUTION
why_fewer_heads = "a"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_why_fewer_heads", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(why_fewer_heads=why_fewer_heads)

# %% [markdown]
# ## Read more
#
# - Vaswani et al. 2017, [*Attention is all you need*](https://arxiv.org/abs/1706.03762), section 3.5: the sinusoids, and why sine *and* cosine.
# - Su et al. 2021, [*RoFormer: Enhanced Transformer with Rotary Position Embedding*](https://arxiv.org/abs/2104.09864), section 3.2: turning, for two features and for many.
# - Shazeer 2019, [*Fast Transformer Decoding: One Write-Head is All You Need*](https://arxiv.org/abs/1911.02150), section 3: one key-value head, and why memory is what
#   decoding waits for.
# - Ainslie et al. 2023, [*GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*](https://arxiv.org/abs/2305.13245): groups in between.
# - Touvron et al. 2023, [*Llama 2*](https://arxiv.org/abs/2307.09288), appendix A.2.1: the figures used in 6.6, and what sharing cost in quality.
#
# **Next:** [lesson 07, On the GPU](../07_gpu/07_gpu.ipynb). How fast is it, how fast could it be, and what holds it back?
