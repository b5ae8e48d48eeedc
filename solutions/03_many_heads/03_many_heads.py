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
# # 03 · Many heads
#
# [All lessons](../00_start_here/00_start_here.ipynb#All-lessons) · before this one: [02, Masks](../02_masks/02_masks.ipynb)
#
# *About 55 minutes. At the end you have written multi-head attention, all heads in one product, and you have seen a bug
# that trains happily to 100 %.*
#
# You will build, in this order: the heads one after the other in a loop; the split that puts them side by side; the
# merge that undoes it; all heads at once; a count of what they cost; and a measure of how differently they look.

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
from torch import nn

from mha_course.progress_bar import progress_bar
from mha_course.reference import attend, causal_mask, future_leak, masked_softmax

_ = torch.manual_seed(0)

# %% [markdown]
# `attend`, `causal_mask`, `future_leak` and `masked_softmax` are what you wrote in the last two lessons. Here they come
# from the course, so that you can start wherever you are; paste your own over them if you like.

# %% [markdown]
# ## The question
#
# > Ada thanked Bo.
# >
# > Bo thanked Ada.
#
# The word *thanked* should look at two others: at **who** did it, and at **whom** it was done to. It has one head, so
# it gives half its attention to each. Say *Ada* has the value $(8, 0)$ and *Bo* has $(0, 4)$. What does *thanked* get?

# %%
ada, bo = torch.tensor([8.0, 0.0]), torch.tensor([0.0, 4.0])
print("Ada thanked Bo: ", (0.5 * ada + 0.5 * bo).tolist())
print("Bo thanked Ada: ", (0.5 * bo + 0.5 * ada).tolist())

# %% [markdown]
# The same. One head can look at two words, but it **mixes** what it finds, and in the mixture nobody can tell any more
# what came from where.
#
# So let there be two heads. Head 0 asks *who?*, head 1 asks *whom?* Each has its own weights, and each its own
# **place** in the result:

# %%
print("Ada thanked Bo: ", torch.cat([ada, bo]).tolist())
print("Bo thanked Ada: ", torch.cat([bo, ada]).tolist())

# %% [markdown]
# Side by side, not mixed. That is the whole idea of multi-head attention.

# %% [markdown]
# ## Predict
#
# A layer has $E = 64$ features and one head. You give it **eight heads** instead, still with 64 features in and out.
# How many times as many parameters does it have now? And how many times as many multiplications does it make?
#
# Commit yourself; you will count both in exercise 3.5.

# %%
times_the_parameters = ...  # your guess
times_the_multiplications = ...  # your guess

# %% [markdown]
# ## Build
#
# ### 3.1 One head after the other
#
# Two heads with places of their own: then each gets a **share** of the features. With $E$ features and $H$ heads, each
# has $D = E / H$ of them, and they are neighbours: head 0 owns features $0 \dots D-1$, head 1 owns $D \dots 2D-1$, and
# so on.
#
# Each head attends with its own share of $q$, $k$ and $v$, by the formula that you know. It sums over $D$ features, so
# it divides by $\sqrt D$. The heads' outputs stand side by side and make $E$ features again:
#
# $$o^{(h)} = \operatorname{softmax}\!\left(\frac{q^{(h)} {k^{(h)}}^\top}{\sqrt D}\right) v^{(h)}
# \qquad \text{output} = [\,o^{(0)}, o^{(1)}, \dots, o^{(H-1)}\,]$$
#
# with $q: (N, L, E)$, $k, v: (N, S, E)$, every $q^{(h)}: (N, L, D)$, every $o^{(h)}: (N, L, D)$, the output
# $(N, L, E)$.
#
# By hand, with $E = 4$, $H = 2$, and two keys. Say head 0's weights are $(\tfrac34, \tfrac14)$ and head 1's
# $(\tfrac14, \tfrac34)$; the values are $(4, 8 \mid 0, 4)$ and $(0, 0 \mid 8, 0)$:
#
# $$\text{head 0: } \tfrac34 (4, 8) + \tfrac14 (0, 0) = (3, 6) \qquad \text{head 1: } \tfrac14 (0, 4) + \tfrac34 (8, 0) = (6, 1)
# \qquad \text{output: } (3, 6, 6, 1).$$
#
# One more thing. Ten features cannot be shared out among three heads. `10 // 3` is 3, and a loop that trusts it loses
# a feature without a word. Whoever calls your function must hear of it: raise a `ValueError` that says what is wrong.


# %% nbgrader={"grade": false, "grade_id": "attend_by_loop", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attend_by_loop(q, k, v, H):
    """Every head by itself, one after the other.

    q: (N, L, E), k and v: (N, S, E) → output (N, L, E), weights (N, H, L, S).
    ValueError if H does not divide E.
    """
    ### BEGIN SOLUTION
    E, D = q.shape[-1], q.shape[-1] // H
    if E % H:
        raise ValueError(f"{E} features cannot be shared out evenly among {H} heads")
    outputs, weights = [], []
    for h in range(H):
        mine = slice(h * D, (h + 1) * D)
        o, w = attend(q[..., mine], k[..., mine], v[..., mine])  # (N, L, D), (N, L, S)
        outputs.append(o)
        weights.append(w)
    output = torch.cat(outputs, dim=-1)  # (N, L, E)
    return output, torch.stack(weights, dim=1)  # (N, H, L, S)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# For each head: cut its share out of `q`, `k` and `v`, hand the three to `attend`, and keep both results in lists.
# After the loop, make one tensor of each list. A share is a run of $D$ neighbouring features, and all the tokens.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Head $h$ starts at feature $h \cdot D$ and ends before $(h + 1) \cdot D$. `attend` divides by the root of the size it
# is given, which is $D$ by then. The outputs go side by side along the **features**. `E % H` is what is left over when
# $E$ is divided by $H$: look at it before anything else.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `x[..., a:b]` takes features `a` to `b - 1` and everything of the other dimensions. `torch.cat(list, dim=-1)`
# lengthens the last dimension; `torch.stack(list, dim=1)` makes a new dimension 1. Return the output, then the
# weights.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import attend_by_loop` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_attend_by_loop", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(attend_by_loop)

# %% [markdown]
# ### 3.2 Side by side: split
#
# The loop is right, and easy to believe. It is also slow: a GPU would rather do one large product than $H$ small
# ones. And `@` can do many products at once: it multiplies the **last two** dimensions and leaves all those before them
# alone. You have used that all the time, for the batch.
#
# So put the heads where the batch is: $(N, L, E)$ becomes $(N, H, L, D)$, and each head is then a batch of its own.
#
# By hand, with one sample of three tokens, $E = 4$ and $H = 2$, numbered in reading order:
#
# ```text
#     x[0]  (3, 4)             heads[0]  (2, 3, 2)
#
#     token 0    0  1 |  2  3      head 0    0  1     head 1    2  3
#     token 1    4  5 |  6  7                4  5               6  7
#     token 2    8  9 | 10 11                8  9              10 11
# ```
#
# You know this from lesson 00, where you cut features into groups. New is only the batch in front, and that an $H$
# which does not divide $E$ is refused.


# %% nbgrader={"grade": false, "grade_id": "split_heads", "locked": false, "schema_version": 3, "solution": true, "task": false}
def split_heads(x, H):
    """Give each head its own D = E / H features of every token.

    x: (N, L, E) → (N, H, L, D); head h gets features h·D … (h+1)·D − 1.
    ValueError if H does not divide E.
    """
    ### BEGIN SOLUTION
    N, L, E = x.shape
    if E % H:
        raise ValueError(f"{E} features cannot be shared out evenly among {H} heads")
    heads = x.view(N, L, H, E // H)  # (N, L, H, D)
    return heads.transpose(1, 2)  # (N, H, L, D): the heads beside the batch
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two steps: cut every token's row into $H$ pieces, then bring the heads to their place. Which of the two can `view` do?
# All the tokens stay, and all the samples.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# A row of $E$ numbers becomes $H$ rows of $D$ when the **last** dimension is cut: $(N, L, E)$ to $(N, L, H, D)$. That
# moves nothing. Then tokens and heads change places, by a transpose.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `x.view(N, L, H, E // H)`, with `//` for a whole number; then `.transpose(1, 2)`. Before both: `if E % H:` and a
# `raise ValueError(...)` that names the two numbers.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import split_heads` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_split_heads", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(split_heads)

# %% [markdown]
# ## See: where every number goes
#
# Why not `x.view(N, H, L, D)` at once? It has the right shape, and torch says nothing.
#
# Look at it number by number. Here are four tokens with six features; the label **2,5** says *token 2, feature 5*, and
# each token has a colour. On the left the tokens, in the middle **your** `split_heads` (`[0]` and `[1]` are the
# heads), on the right `view` alone. Row 0 belongs to token 0, row 1 to token 1, and so on; a thick frame is around
# every number that stands in another token's row.

# %%
x = plots.many_heads.numbered(L=4, E=6)  # (1, 4, 6)
made = {
    "tokens": x,
    "your split_heads": split_heads(x, 2),
    "view alone": x.view(1, 2, 4, 3),
}
plots.show(
    plots.many_heads.where_numbers_go(made, E=6),
    alt="Three grids. Tokens: four rows of six numbers labelled token,feature, each row one colour. Your split_heads: "
    "two heads, each with four rows in the four tokens' colours, head 0 with features 0 to 2, head 1 with features 3 to "
    "5. View alone: head 0 has tokens 0 and 1 cut in halves, head 1 has tokens 2 and 3; 18 of the 24 numbers are framed "
    "because they stand in another token's row.",
)

# %% [markdown]
# **What to look for.** In the middle, both heads have four rows in four colours: every head sees **every** token, half
# of its features. On the right, head 0 got tokens 0 and 1 *whole*, cut in two and laid one below the other; it will
# never hear of tokens 2 and 3. Its "row 1" is the second half of token 0.
#
# Same shape. No error. This is *the* classic bug of hand-written attention.

# %% [markdown]
# ### 3.3 And back again: merge
#
# After attending, each token's results lie in $H$ different places. Put them side by side again: $(N, H, L, D)$ becomes
# $(N, L, E)$, the exact inverse of the split. What you learned in the picture holds in this direction, too.
#
# By hand, with the heads from above: head 0 has $(0, 1), (4, 5), (8, 9)$ and head 1 has $(2, 3), (6, 7), (10, 11)$.
# Token 0 is $(0, 1)$ from head 0 and $(2, 3)$ from head 1: $(0, 1, 2, 3)$. A plain `reshape` would read on in head 0
# and give token 0 the numbers $(0, 1, 4, 5)$.


# %% nbgrader={"grade": false, "grade_id": "merge_heads", "locked": false, "schema_version": 3, "solution": true, "task": false}
def merge_heads(x):
    """Undo split_heads: put the heads' features side by side again.

    x: (N, H, L, D) → (N, L, E), E = H · D.
    """
    ### BEGIN SOLUTION
    return x.transpose(1, 2).flatten(2)  # (N, L, H, D) → (N, L, E)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The split had two steps. Undo the last one first. Nothing is added up: every number of the input is in the result.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# First the tokens must stand before the heads again: dimensions 1 and 2 change places. Then the last two dimensions,
# heads and features in that order, become one.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `.transpose(1, 2)`, then `.flatten(2)`, which makes one dimension of number 2 and all that follow. (`.reshape(N, L,
# -1)` does, too; `.view` would refuse here: after a transpose the numbers do not lie in reading order.) The input's
# shape is `N, H, L, D`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import merge_heads` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_merge_heads", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(merge_heads)

# %%
heads = split_heads(x, 2)  # (1, 2, 4, 3)
made = {
    "heads": heads,
    "your merge_heads": merge_heads(heads),
    "reshape alone": heads.reshape(1, 4, 6),
}
plots.show(
    plots.many_heads.where_numbers_go(made, E=6),
    alt="Three grids. Two heads of four rows each. Your merge_heads: four rows, each in the colour of one token, with "
    "features 0 to 5 in order. Reshape alone: row 0 has features 0 to 2 of tokens 0 and 1, row 1 those of tokens 2 and "
    "3, rows 2 and 3 have features 3 to 5 in the same way; 18 of the 24 numbers are framed.",
)

# %% [markdown]
# **What to look for.** Your merge gives every token its own numbers back, in order. `reshape` alone gives row 0 the
# first halves of tokens 0 *and* 1. Keep this right-hand picture in mind: you will train a model with it below.

# %% [markdown]
# ### 3.4 All heads at once
#
# Now the loop can go. Split $q$, $k$ and $v$; score, softmax and mix for all heads in one go; merge. The shapes, with
# $N, H, L, S, D = 2, 3, 5, 7, 4$:
#
# ```text
#     q  (2, 5, 12) → (2, 3, 5, 4)  ┐
#     k  (2, 7, 12) → (2, 3, 7, 4)  ┴ weights (2, 3, 5, 7)  ┐
#     v  (2, 7, 12) → (2, 3, 7, 4)                          ┴ mixed (2, 3, 5, 4)
#                                                     merged: output (2, 5, 12)
# ```
#
# The numbers are those of the loop; the example of 3.1 is an example of this, too.
#
# And a mask may come along: `may_attend`, boolean, True = may look, of any shape that **broadcasts to $(N, H, L, S)$**:
#
# | mask | what it says |
# |---|---|
# | `(L, S)` | one for everybody, e.g. the causal mask |
# | `(N, 1, 1, S)` | a sample's padding, the same for its heads and queries |
# | `(N, 1, L, S)` | one for each sample |
# | `(N, H, L, S)` | one for each sample and head |
#
# (Lesson 02's padding mask is $(N, 1, S)$. There is no place for heads in it yet; `mask.unsqueeze(1)` makes one. That is
# up to whoever calls your function.)
#
# As everywhere in the course, a query that may see nothing gets zeros. Your `masked_softmax` sees to that, with any
# number of dimensions in front.


# %% nbgrader={"grade": false, "grade_id": "attend_in_parallel", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attend_in_parallel(q, k, v, H, may_attend=None):
    """All heads in one batched product.

    q: (N, L, E), k and v: (N, S, E),
    may_attend: bool, broadcastable to (N, H, L, S), True = may look, or None
    → output (N, L, E), weights (N, H, L, S).
    A query that may see nothing gets zeros.
    """
    ### BEGIN SOLUTION
    q, k, v = (split_heads(x, H) for x in (q, k, v))  # (N, H, L or S, D)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (N, H, L, S)
    if may_attend is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        weights = masked_softmax(scores, may_attend)
    return merge_heads(weights @ v), weights  # (N, H, L, D) → (N, L, E)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# There is no loop in it, and nothing about heads but at the two ends: your `split_heads` at the beginning (three
# times; it also refuses a wrong $H$), your `merge_heads` at the end. Between them it is one head's attention.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# A matrix product of $(N, H, L, D)$ with $(N, H, D, S)$ gives $(N, H, L, S)$. The keys are the last dimension, so that is
# where the softmax runs; after the split, the last dimension of `q` is $D$. Return the masked weights, one set for each head.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `scores = q @ k.mT / math.sqrt(q.shape[-1])`. If `may_attend is None`, `torch.softmax(scores, dim=-1)`; otherwise
# `masked_softmax(scores, may_attend)`, with the mask as it comes. Last, `weights @ v`, merged.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import attend_in_parallel` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_attend_in_parallel", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(attend_in_parallel)

# %% [markdown]
# The slow way and the fast way, on the same random tokens:

# %%
q, k, v = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
slow, slow_weights = attend_by_loop(q, k, v, H=3)
fast, fast_weights = attend_in_parallel(q, k, v, H=3)
print("largest difference of the outputs:", (slow - fast).abs().max().item())
print(
    "largest difference of the weights:",
    (slow_weights - fast_weights).abs().max().item(),
)

# %% [markdown]
# ### The promise of lesson 00
#
# The first picture of this course showed two heads on one sentence: one looks at the word before, one at who or what
# is meant. Here it is again, from **your** function, in a single call. Features 0 to 7 say *where* a word stands and
# belong to head 0; features 8 and 9 say *what* it is and belong, with six unused ones, to head 1.

# %%
words = "Ada found the ring where she lost it".split()
place = torch.eye(8)
keys, asks = torch.zeros(1, 8, 16), torch.zeros(1, 8, 16)  # (1, L, E)
keys[0, :, :8] = place
asks[0, :, :8] = place[[0, 0, 1, 2, 3, 4, 5, 6]]  # asks for the place before its own
keys[0, 0, 8] = keys[0, 3, 9] = 1  # Ada is a person, ring is a thing
asks[0, 5, 8] = asks[0, 7, 9] = 1  # "she" asks for a person, "it" for a thing
_, two_heads = attend_in_parallel(14 * asks, keys, keys, H=2)  # (1, 2, 8, 8)

# %%
fig = plots.arcs(
    {
        "head 0: the word before": two_heads[0, 0],
        "head 1: who or what": two_heads[0, 1],
    },
    words,
)
plots.show(
    fig,
    alt="Two heads on 'Ada found the ring where she lost it'. Head 0: every word has a thick line to the word before it, Ada to "
    "herself. Head 1: she has a thick line to Ada, it has one to ring; all others have faint lines to everybody.",
)

# %% [markdown]
# **What to look for.** *she* looks at *where* in head 0 and at *Ada* in head 1, both with nearly all its attention.
# One head would have had to divide its 1 between them.

# %% [markdown]
# ### 3.5 What does it cost?
#
# In a model, $q$, $k$ and $v$ come from tokens by learned **projections**, as in lesson 01. Each head has three of its
# own: from the whole token, $E$ features, to its $D$. And after the merge there is a fourth one for all heads
# together, $E$ to $E$, that mixes what they have found.
#
# A projection from $a$ to $b$ features has $a \cdot b$ weights and, if it has a bias, $b$ numbers more.
#
# By hand, with $E = 4$ and $H = 2$, so $D = 2$: each head's three projections have $3 \cdot (4 \cdot 2) = 24$ weights,
# both heads 48; the output projection has $4 \cdot 4 = 16$. Together 64. With biases, $3 \cdot 2 = 6$ more for each
# head and 4 for the output: $64 + 12 + 4 = 80$.


# %% nbgrader={"grade": false, "grade_id": "projection_parameters", "locked": false, "schema_version": 3, "solution": true, "task": false}
def projection_parameters(E, H, bias):
    """How many parameters multi-head attention has:
    H heads with three projections each, and one output projection.

    E: features of a token, H: heads (divides E), bias: True or False.
    Returns a Python int.
    """
    ### BEGIN SOLUTION
    D = E // H
    per_head = 3 * (E * D + (D if bias else 0))
    output = E * E + (E if bias else 0)
    return H * per_head + output
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Count one head's three projections, take that times $H$, and add the fourth, which reads all the heads side by side.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# A head's projection reads all $E$ features of a token and gives $D = E / H$. The output projection reads $E$ and
# gives $E$.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# One head: `3 * (E * D + (D if bias else 0))`. The output projection: `E * E`, and `E` more with a bias.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import projection_parameters` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_projection_parameters", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(projection_parameters)

# %% [markdown]
# Now the multiplications. torch can count them while **your** function runs (it reports additions and multiplications
# together, so half of that). $L = S = 16$ tokens of $E = 64$ features:

# %%
from torch.utils.flop_counter import FlopCounterMode

tokens = torch.randn(1, 16, 64)
print("heads   parameters   multiplications   weights to keep")
for H in (1, 2, 4, 8):
    with FlopCounterMode(display=False) as counter:
        _, weights = attend_in_parallel(tokens, tokens, tokens, H)
    products = counter.get_total_flops() // 2
    parameters = projection_parameters(64, H, bias=True)
    print(f"{H:5} {parameters:12} {products:17} {weights.numel():17}")
guesses = times_the_parameters, times_the_multiplications
p, m = ["none" if guess is ... else guess for guess in guesses]
print(f"\nyour guess, times as many: parameters {p} and multiplications {m}")

# %% [markdown]
# **Times one, both.** More heads are narrower heads: $H$ heads of $D$ features are $H \cdot D = E$ features, whatever
# $H$ is. Scores cost $H \cdot L \cdot S \cdot D = L \cdot S \cdot E$ multiplications, and so does the mixing.
#
# One thing does grow: the weights themselves. There are $H \cdot L \cdot S$ of them, to be kept and to be put through
# a softmax. For long sequences that is what hurts, and lesson 08 is about it.

# %% [markdown]
# ### 3.6 Do they look at different things?
#
# Nothing forces two heads to look differently. To see whether they do, measure it.
#
# Take one query's row in head $i$ and in head $j$. How much attention would have to be moved to turn one into the
# other? Add up the absolute differences, and halve: what one key gains, another key has lost, so each shift is counted
# twice. (Its name is *total variation*.) Then average over all queries and samples:
#
# $$d_{ij} = \operatorname{mean}_{n,\,l}\; \tfrac12 \sum_s \bigl|\, w_{n,i,l,s} - w_{n,j,l,s} \bigr|
# \qquad w: (N, H, L, S), \quad d: (H, H).$$
#
# It is 0 for heads that look alike and 1 for heads that never look at the same key.
#
# By hand: $(\tfrac12, \tfrac12, 0)$ and $(\tfrac12, 0, \tfrac12)$ differ by $0, \tfrac12, \tfrac12$; the sum is 1,
# half of it $\tfrac12$: half of the attention would have to move.


# %% nbgrader={"grade": false, "grade_id": "head_distance", "locked": false, "schema_version": 3, "solution": true, "task": false}
def head_distance(weights):
    """How differently every two heads look: total variation of their rows,
    averaged over samples and queries.

    weights: (N, H, L, S), rows sum to 1 → (H, H), between 0 and 1.
    """
    ### BEGIN SOLUTION
    gap = weights.unsqueeze(2) - weights.unsqueeze(1)  # (N, H, H, L, S)
    moved = gap.abs().sum(-1) / 2  # (N, H, H, L)
    return moved.mean(dim=(0, 3))  # (H, H)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Every head with every head is a table, as in lesson 00: one copy of the weights gets a new dimension on one side of $H$, one on the other.
# (Two loops over the heads do as well.)
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# First compare, row by row; average last. The order of steps is: difference, absolute value, **sum** over the keys,
# half, **mean** over queries and samples.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `weights.unsqueeze(2) - weights.unsqueeze(1)` is $(N, H, H, L, S)$. `.mean(dim=(0, 3))` averages over two dimensions
# at once. With loops, fill both `[i, j]` and `[j, i]`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import head_distance` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_head_distance", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(head_distance)

# %%
print(
    "the two heads of the sentence:      ",
    round(head_distance(two_heads)[0, 1].item(), 2),
)
print(
    "two heads with the same weights:    ",
    head_distance(two_heads[:, [0, 0]])[0, 1].item(),
)
_, untrained = attend_in_parallel(*torch.randn(3, 4, 16, 64), H=8)  # (4, 8, 16, 16)
apart = head_distance(untrained)[~torch.eye(8, dtype=torch.bool)]
print(f"eight heads of random tokens:        {apart.min():.2f} to {apart.max():.2f}")

# %% [markdown]
# ## Break it
#
# Now the promised bug. Merge the heads by `reshape` alone: right shape, no error, every token gets numbers of other
# tokens. Surely no model can learn anything with *that*?
#
# The task is the simplest there is: **copy**. Eight random words in, the same eight words out. The model is one
# attention layer, and there is no way around it: all that the output knows has passed through the merge.


# %%
def scrambled_merge(x):
    """The bug: (N, H, L, D) → (N, L, E) without the transpose."""
    return x.reshape(x.shape[0], x.shape[2], -1)


# %%
class Copier(nn.Module):
    """Words (N, L) in, scores for the same words (N, L, 10) out;
    also the weights of its 4 heads."""

    def __init__(self, merge, E=32):
        super().__init__()
        self.merge = merge
        self.word, self.place = nn.Embedding(10, E), nn.Embedding(8, E)
        self.query, self.key, self.value = (nn.Linear(E, E) for _ in range(3))
        self.out = nn.Linear(E, 10)

    def forward(self, words):
        x = self.word(words) + self.place.weight[: words.shape[1]]  # (N, L, E)
        v = self.value(x)
        q, k = self.query(x), self.key(x)
        _, weights = attend_in_parallel(q, k, v, H=4)  # (N, 4, L, L)
        return self.out(self.merge(weights @ split_heads(v, 4))), weights


# %%
def accuracy(model, L, samples=100):
    """Share of words copied rightly, on sequences of length L,
    the same every time."""
    words = torch.randint(10, (samples, L), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (model(words)[0].argmax(-1) == words).float().mean().item()


# %%
def train(merge, name, steps=120):
    torch.manual_seed(0)
    model, seen = Copier(merge), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in progress_bar(steps, name):
        words = torch.randint(10, (32, 8))  # (N, L)
        loss = F.cross_entropy(model(words)[0].flatten(0, 1), words.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 4:
            seen.append(accuracy(model, L=8))
    return model, seen


# %% [markdown]
# Which of the two will learn to copy? Guess, then run.

# %%
right, right_seen = train(merge_heads, "your merge")
wrong, wrong_seen = train(scrambled_merge, "scrambled merge")
print(
    f"words copied rightly: your merge {right_seen[-1]:.1%}, "
    f"scrambled merge {wrong_seen[-1]:.1%}"
)

# %% [markdown]
# Both. **Training does not find this bug.** The loss falls, the accuracy is perfect, every shape is right.
#
# How does the scrambled model do it? Look at where its heads look. (For each head: a row for each query, averaged over
# many sequences.)

# %%
_, weights = wrong(torch.randint(10, (200, 8)))
maps = {f"head {h}": weights.mean(0)[h] for h in range(4)}
plots.show(
    plots.heat_maps(maps),
    alt="Weights of four heads of the scrambled model as heat maps of eight queries by eight keys. In head 0, queries 0 to 3 look at "
    "token 0 and queries 4 to 7 at token 1. In head 1 they look at tokens 2 and 3, in head 2 at 4 and 5, in head 3 at 6 and 7.",
)

# %% [markdown]
# **What to look for.** To copy, token $i$ should look at token $i$. Here, in head 0 queries 0 to 3 all look at token
# **0**, and queries 4 to 7 at token **1**; head 1 serves tokens 2 and 3, and so on. Why? `reshape` makes row 0 of the
# output from what *head 0* found for *queries 0, 1, 2 and 3*, eight features each. So the model has learned to fetch
# token 0 with just those four. **It has learned its way around the bug.**
#
# But the detour was built for length 8. `reshape` deals out rows by counting, and with another length it counts
# otherwise. Give both models shorter sequences; neither has ever seen one.

# %%
lengths = [5, 6, 7, 8]
by_length = {
    "your merge": [accuracy(right, L, 500) for L in lengths],
    "scrambled merge": [accuracy(wrong, L, 500) for L in lengths],
}
while_training = {"your merge": right_seen, "scrambled merge": wrong_seen}
plots.show(
    plots.many_heads.training_and_lengths(
        range(5, 121, 5), while_training, lengths, by_length
    ),
    alt="Left: accuracy during training; both models climb to 1 within about 30 steps. Right: accuracy by length of the "
    "sequence. Your merge stays near 1 for lengths 5 to 8; the scrambled merge is at 1 for length 8, at about two thirds "
    "for 7, and below one half for 6 and 5.",
)

# %% [markdown]
# **What to look for.** On the left, after some thirty steps, nobody could tell them apart. On the right, the model with your merge hardly minds;
# the scrambled one works at length 8 only. In a real project that reads: *"great in training, strange in use."*

# %% [markdown]
# And one thing is worse. Let the queries look back only, by lesson 02's causal mask, and hold lesson 02's leak
# detector against both merges. Output $i$ must not depend on any token after $i$.


# %%
def attend_causally(x, merge):
    """Self-attention of tokens x (L, E) under a causal mask,
    with either merge."""
    L, _ = x.shape
    _, weights = attend_in_parallel(
        x[None], x[None], x[None], H=2, may_attend=causal_mask(L, L)
    )
    return merge(weights @ split_heads(x[None], 2))[0]  # (L, E)


tokens = torch.randn(6, 4)
leak = {
    name: future_leak(lambda x, merge=merge: attend_causally(x, merge), tokens)
    for name, merge in (
        ("your merge", merge_heads),
        ("scrambled merge", scrambled_merge),
    )
}

# %%
plots.show(
    plots.many_heads.leaks(leak),
    alt="Two 6 by 6 tables of how much each output (row) depends on each token (column). With your merge everything above the "
    "diagonal is a dot, nothing. With the scrambled merge rows 0, 1 and 2 have framed numbers above the diagonal: outputs 0, 1 and 2 "
    "depend on later tokens.",
)

# %% [markdown]
# The mask is right, the weights are right, and still the future leaks: output 0 of the scrambled merge is made of the
# results of queries 0 *and* 1, and query 1 was allowed to see token 1. A language model with this bug has a wonderful
# training loss, because it peeks.

# %% [markdown]
# **So what does find it?** Numbers of which you know where they belong. But be careful with the round trip:

# %%
x = plots.many_heads.numbered(L=4, E=6)
scrambled_split = x.view(1, 2, 4, 3)
print(
    "your split, your merge:          back again?",
    merge_heads(split_heads(x, 2)).equal(x),
)
print(
    "your split, scrambled merge:     back again?",
    scrambled_merge(split_heads(x, 2)).equal(x),
)
print(
    "scrambled split, scrambled merge: back again?",
    scrambled_merge(scrambled_split).equal(x),
)

# %% [markdown]
# If **both** are wrong in the same way, they undo each other, and the round trip looks perfect. Compare with something
# slow that is easy to believe: that is what `attend_by_loop` was for.

# %% [markdown]
# ## In PyTorch
#
# `F.scaled_dot_product_attention` takes $(N, H, L, D)$ as it is. Between your split and your merge, it is your
# attention:

# %%
mask = causal_mask(5, 7, offset=2)  # (L, S)
split = [split_heads(x, 3) for x in (q, k, v)]
theirs = merge_heads(F.scaled_dot_product_attention(*split, attn_mask=mask))
mine, weights = attend_in_parallel(q, k, v, H=3, may_attend=mask)
print("largest difference:", (mine - theirs).abs().max().item())

# %% [markdown]
# And `torch.nn.MultiheadAttention` is this with the four projections around it. Set all of them to the identity, and
# nothing but your function is left. (It calls a mask `attn_mask` and means the opposite by True: *may not*. Lesson 05
# is about that.)

# %%
torchs = nn.MultiheadAttention(12, num_heads=3, bias=False, batch_first=True)
with torch.no_grad():
    torchs.in_proj_weight.copy_(torch.eye(12).repeat(3, 1))
    torchs.out_proj.weight.copy_(torch.eye(12))
    theirs, their_weights = torchs(q, k, v, attn_mask=~mask, average_attn_weights=False)
gap = (mine - theirs).abs().max().item()
print("outputs:", gap, "  weights:", (weights - their_weights).abs().max().item())
for H in (1, 2, 4, 8):
    count = sum(p.numel() for p in nn.MultiheadAttention(64, H).parameters())
    yours = projection_parameters(64, H, bias=True)
    print(f"{H} heads: torch has {count} parameters, you counted {yours}")

# %% [markdown]
# ## Recap
#
# - One head mixes what it finds. Many heads keep their findings **side by side**, each with a whole 1 of attention to
#   give.
# - Head $h$ owns features $h D \dots (h+1) D - 1$. Split is `view`, then `transpose`; merge is `transpose`, then
#   `flatten`.
# - `view` and `reshape` keep the reading order. Without the transpose the shape is right and the tokens are scrambled.
# - $H$ heads cost what one costs, in parameters and multiplications; only the weights to keep grow,
#   $H \cdot L \cdot S$.
# - Training does not find a scrambled merge. A slow version that is easy to believe does.

# %% [markdown]
# ### Four quick questions
#
# **What can two heads do that one cannot?**
#
# (a) use twice the parameters · (b) look at two things and keep apart what came from which · (c) look at more than
# one key · (d) notice the order of the tokens

# %% nbgrader={"grade": false, "grade_id": "why_many_heads", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: why_many_heads = "a", "b", "c" or "d"
### BEGIN SOLUTION
why_many_heads = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_why_many_heads", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(why_many_heads=why_many_heads)

# %% [markdown]
# **x is (N, L, E). What is wrong with `x.view(N, H, L, D)`?**
#
# (a) torch raises an error · (b) some numbers are lost · (c) head 0 gets the first tokens whole instead of its features of
# all tokens · (d) it copies the whole tensor

# %% nbgrader={"grade": false, "grade_id": "what_view_does", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: what_view_does = "a", "b", "c" or "d"
### BEGIN SOLUTION
what_view_does = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_what_view_does", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(what_view_does=what_view_does)

# %% [markdown]
# **Eight heads instead of one, E stays. The multiplications of attention…**
#
# (a) stay the same · (b) become 8 times as many · (c) become an eighth · (d) depend on whether there is an output projection

# %% nbgrader={"grade": false, "grade_id": "cost_of_heads", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: cost_of_heads = "a", "b", "c" or "d"
### BEGIN SOLUTION
cost_of_heads = "a"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_cost_of_heads", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(cost_of_heads=cost_of_heads)

# %% [markdown]
# **Which of these is sure to find a scrambled split and merge?**
#
# (a) training until the loss is 0 · (b) looking at the shapes · (c) testing that merge(split(x)) gives x back · (d) comparing with
# a loop over the heads

# %% nbgrader={"grade": false, "grade_id": "what_finds_it", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: what_finds_it = "a", "b", "c" or "d"
### BEGIN SOLUTION
what_finds_it = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_what_finds_it", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(what_finds_it=what_finds_it)

# %% [markdown]
# ## Read more
#
# - Vaswani et al. 2017, [*Attention is all you need*](https://arxiv.org/abs/1706.03762), section 3.2.2: multi-head attention in half a page, and why its
#   cost "is similar to that of single-head attention with full dimensionality".
# - Michel, Levy and Neubig 2019, [*Are sixteen heads really better than one?*](https://arxiv.org/abs/1905.10650), sections 3 and 4: how many heads a
#   trained model can do without.
# - Clark et al. 2019, [*What does BERT look at?*](https://arxiv.org/abs/1906.04341), section 3: what single heads were found to look at; section 6
#   measures how far apart they are.
# - `mha_course/reference/many_heads.py`: the course's own answers. Read them after yours.
#
# **Next:** [lesson 04, The module](../04_module/04_module.ipynb). All of this in one module, with parameters that can be learned.
