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
# # 02 · Masks
#
# [All lessons](../00_start_here/00_start_here.ipynb#All-lessons) · before this one: [01, One head](../01_one_head/01_one_head.ipynb)
#
# *About 50 minutes. At the end you can say who may look at whom, you know what a row with nothing to look at should do, and
# you own a detector for cheating.*
#
# Attention looks everywhere. Often it must not: a model that writes must not see the word it is about to write, and nobody
# should look at the padding that fills up short sentences. A **mask** says who may look at whom. Masks are where public code goes
# wrong most often, so this lesson is careful.

# %%
try:
    from mha_course import check, plots
except ModuleNotFoundError as missing:
    says = "The course is not installed here. In its folder: python3 -m mha_course lab"
    missing._render_traceback_ = lambda: [says]
    raise

import torch

_ = torch.manual_seed(0)

# %% [markdown]
# ## The question
#
# You train a model to guess the next word. After an hour its loss is nearly zero: astonishing. Then you let it write, and it
# produces nonsense.
#
# It had found a way to look at the answer. One wrong comparison in a mask, `<` for `<=`, is enough, and no loss curve will
# ever tell you. How do you notice?

# %% [markdown]
# ## Predict
#
# A query has three keys with scores 2, 1 and 3. The last one is the future: it may not be looked at. Somebody hides it by setting
# its **score to 0**. How much attention does the future get: none, a little, or a lot?

# %%
prediction = ...  # your guess, a number from 0 to 1

# %%
hidden_by_zero = torch.tensor([2.0, 1.0, 0.0]).softmax(-1)
hidden_by_infinity = torch.tensor([2.0, 1.0, -torch.inf]).softmax(-1)
print("your guess:        ", "none" if prediction is ... else prediction)
print("score 0 gives      ", [round(w, 2) for w in hidden_by_zero.tolist()])
print("score −∞ gives     ", [round(w, 2) for w in hidden_by_infinity.tolist()])

# %% [markdown]
# $e^0 = 1$ is a weight like any other. $e^{-\infty} = 0$ is none. Masks work with **−∞, before the softmax**.
#
# ## One name for one thing
#
# In this course a boolean mask is called `may_attend`, and **True means: this query may look at this key.** Rows are queries,
# columns are keys. (PyTorch uses both conventions, in two places; lesson 05 deals with that. Inside the course there is only
# this one.)

# %% [markdown]
# ## Build
#
# ### 2.1 Nobody looks into the future
#
# Query $i$ may look at key $j$ if $j$ is not later. If `offset` keys came before the first query (they are kept from earlier
# steps), then query $i$ really stands at place $i + \text{offset}$:
#
# $$\text{may\_attend}_{ij} = \big[\, j \le i + \text{offset} \,\big] \qquad (L, S)$$
#
# By hand, $L = 2$, $S = 4$, `offset=1`: query 0 stands at place 1 and sees keys 0 and 1; query 1 sees keys 0, 1, 2.
#
# ```
# ✓ ✓ · ·
# ✓ ✓ ✓ ·
# ```


# %% nbgrader={"grade": false, "grade_id": "causal_mask", "locked": false, "schema_version": 3, "solution": true, "task": false}
def causal_mask(L, S, offset=0, device=None):
    """bool (L, S), made on `device`: True where key j is at or before the
    place of query i, which is i + offset."""
    ### BEGIN SOLUTION
    query_place = torch.arange(L, device=device).unsqueeze(1) + offset  # (L, 1)
    key_place = torch.arange(S, device=device)  # (S,)
    return key_place <= query_place  # (L, S)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Say the rule for one pair aloud: may query $i$ look at key $j$? At itself, too? Rows are queries.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Lesson 00 compared all rows with all columns by broadcasting (exercise 0.1). A column of query places $(L, 1)$ against a row of
# key places $(S,)$ gives $(L, S)$. The offset moves the queries, not the keys.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `torch.arange(L, device=device).unsqueeze(1) + offset` and `torch.arange(S, device=device)`, compared with `<=`. That is bool
# already.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import causal_mask` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_causal_mask", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(causal_mask)

# %% [markdown]
# ### 2.2 Nobody looks at padding
#
# Sentences of a batch have different lengths; the short ones are filled up on the right. With `lengths = (2, 3)` and $S = 3$:
# sample 0 has keys 0 and 1, sample 1 has all three.
#
# The mask says this for every query alike, so it has a dimension of size 1 where the queries go: $(N, 1, S)$.
# By hand: `[[[True, True, False]], [[True, True, True]]]`.


# %% nbgrader={"grade": false, "grade_id": "padding_mask", "locked": false, "schema_version": 3, "solution": true, "task": false}
def padding_mask(lengths, S):
    """lengths: int64 (N,) → bool (N, 1, S): True at its real keys."""
    ### BEGIN SOLUTION
    places = torch.arange(S, device=lengths.device)  # (S,)
    return (places < lengths.unsqueeze(1)).unsqueeze(1)  # (N, S) → (N, 1, S)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A length of 2 opens places 0 and 1. Which comparison is that?
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Places $(S,)$ against lengths $(N, 1)$ gives $(N, S)$. Then make room for the queries, **between** the two.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `torch.arange(S, device=lengths.device) < lengths.unsqueeze(1)`, and one more `unsqueeze(1)`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import padding_mask` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_padding_mask", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(padding_mask)

# %% [markdown]
# ### 2.3 Both together
#
# A query may look where **every** mask lets it. By hand: (True, True, False) and (True, False, False) together are (True,
# False, False). Shapes may differ as long as they broadcast: $(L, S)$ with $(N, 1, S)$ gives $(N, L, S)$.


# %% nbgrader={"grade": false, "grade_id": "combine_masks", "locked": false, "schema_version": 3, "solution": true, "task": false}
def combine_masks(*masks):
    """Any number of bool masks whose shapes broadcast → one:
    True where all of them are."""
    ### BEGIN SOLUTION
    combined = masks[0]
    for mask in masks[1:]:
        combined = combined & mask
    return combined
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Every mask has a veto. Is that "and" or "or"?
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `masks` is a tuple of one or more. Begin with the first, and let each further one close what it closes. The result is bool.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `combined = combined & mask` in a loop over `masks[1:]`. (`&=` would write into the first mask, which is not yours.)
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import combine_masks` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_combine_masks", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(combine_masks)

# %%
words = ["the", "cat", "sat", "·pad", "·pad"]
causal, padding = causal_mask(5, 5), padding_mask(torch.tensor([3]), 5)[0].expand(5, -1)
plots.show(
    plots.masks.mask_grid(
        {"causal": causal, "padding": padding, "both": combine_masks(causal, padding)},
        words,
        words,
    ),
    alt="Three grids of five queries by five keys. Causal: ticks on and below the diagonal. Padding: ticks in the first three "
    "columns. Both: ticks where both have them, a triangle in the first three columns and full rows below.",
)

# %% [markdown]
# **What to look for.** Padding closes *columns*: nobody looks at it. Its own rows stay open; what padding looks at does not
# matter, because its outputs are thrown away.

# %% [markdown]
# ### 2.4 The same mask, to be added
#
# Some code adds the mask to the scores: 0 where one may look, −∞ where not. By hand: (True, False) → $(0, -\infty)$.


# %% nbgrader={"grade": false, "grade_id": "to_additive", "locked": false, "schema_version": 3, "solution": true, "task": false}
def to_additive(may_attend, dtype):
    """bool → the same shape, of `dtype`: 0 where it may look, −∞ where not."""
    ### BEGIN SOLUTION
    zeros = torch.zeros(may_attend.shape, dtype=dtype, device=may_attend.device)
    return zeros.masked_fill(~may_attend, -torch.inf)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# −∞ is a number in every floating dtype: `-torch.inf`. Which half of the mask gets it?
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Multiplying does not work: $0 \cdot (-\infty)$ is NaN. Choose between the two, and make the result in the dtype that is asked
# for.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `torch.zeros(may_attend.shape, dtype=dtype, device=may_attend.device)` and `.masked_fill(~may_attend, …)`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import to_additive` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_to_additive", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(to_additive)

# %% [markdown]
# ### 2.5 The masked softmax, and a row with nothing to see
#
# Close what is closed with −∞, softmax, done. Except for one row: a query that may look at **nothing**. All its scores are −∞,
# their exponentials are all 0, and 0/0 is NaN. It happens every day: an empty sentence, a window that is all padding.
#
# What should it get? A head cannot look nowhere by itself (lesson 01), so somebody has to decide. In this course: **zeros.** It
# looks at nothing, it gets nothing, and no NaN is born, neither forwards nor in the gradient.
#
# By hand: scores (1, 1, 5), mask (True, True, False) → $(\tfrac12, \tfrac12, 0)$. Mask (False, False, False) → $(0, 0, 0)$.


# %% nbgrader={"grade": false, "grade_id": "masked_softmax", "locked": false, "schema_version": 3, "solution": true, "task": false}
def masked_softmax(scores, may_attend):
    """scores (N, L, S), may_attend: bool that broadcasts to it
    → weights (N, L, S).

    Rows sum to 1; rows that may look at nothing are zeros.
    Gradients are finite everywhere.
    """
    ### BEGIN SOLUTION
    dead = ~may_attend.any(-1, keepdim=True)  # (N, L, 1): rows that may look at nothing
    scores = scores.masked_fill(
        ~(may_attend | dead), -torch.inf
    )  # a dead row stays open for now: no row is all −∞
    return scores.softmax(-1).masked_fill(dead, 0.0)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Before the softmax, not after, and with −∞. Get the ordinary rows right first.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Find the dead rows: those in which not *any* key is open (keep the dimension, with size 1). A row that is all −∞ must never
# reach the softmax. So leave dead rows open, and set their weights to zero afterwards.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# Fill where `~(may_attend | dead)`, softmax over the last dimension, then `.masked_fill(dead, 0.0)`. Mending a NaN afterwards
# (`nan_to_num`) can leave it in the gradient.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import masked_softmax` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_masked_softmax", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(masked_softmax)

# %% [markdown]
# ## See: four treatments of a dead row
#
# The same scores, the same row that may see nothing, four ways people have dealt with it. On the left the weights, on the right
# the gradient that comes back to the scores.

# %%
scores = torch.tensor([[2.0, 1.0, 3.0]])
nothing = torch.tensor([[False, False, False]])
ways = {
    "−∞, unmended": lambda s: s.masked_fill(~nothing, -torch.inf).softmax(-1),
    "−1e9": lambda s: s.masked_fill(~nothing, -1e9).softmax(-1),
    "added −∞, NaN → 0": lambda s: (
        (s + to_additive(nothing, s.dtype)).softmax(-1).nan_to_num(0.0)
    ),
    "yours": lambda s: masked_softmax(s, nothing),
}

# %%
rows = []
for name, way in ways.items():
    s = scores.clone().requires_grad_()
    weights = way(s)
    (weights * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    rows.append((name, weights[0].tolist(), s.grad[0].tolist()))
plots.show(
    plots.masks.treatments(rows, ["key 0", "key 1", "key 2"]),
    alt="Four rows, weights on the left and gradients on the right. Unmended −∞: NaN weights. −1e9: all weights a third. "
    "Added −∞ with NaN replaced: zero weights, but NaN gradients. Yours: zeros on both sides.",
)

# %% [markdown]
# **What to look for.** The second looks harmless and is the most common: the query that may see nothing looks at *everything it
# may not see*. The third is the nastiest: its numbers are right, and its gradient destroys the model at the first step.

# %% [markdown]
# ### 2.6 A leak detector
#
# Back to the question: how do you notice that a model sees the future? Ask its **gradients**. If output $i$ depends on input
# $j$, then $\partial\, \text{out}_i / \partial x_j$ is not zero. For a causal model everything with $j > i$ must vanish:
#
# $$\text{leak}_{ij} = \sum_{f, e} \left| \frac{\partial\, \text{out}_{i f}}{\partial x_{j e}} \right| \qquad (L, L)$$
#
# where $f$ runs over the features of the output and $e$ over those of the input. Absolute values **first**, so that nothing
# cancels.
#
# By hand, one feature: $\text{out}_0 = x_0$ and $\text{out}_1 = 2 x_0 - 3 x_1$ give the map
# $\begin{pmatrix} 1 & 0 \\ 2 & 3 \end{pmatrix}$: nothing above the diagonal, no leak.


# %% nbgrader={"grade": false, "grade_id": "future_leak", "locked": false, "schema_version": 3, "solution": true, "task": false}
def future_leak(fn, x):
    """fn: (L, E) → (L, F); x: (L, E) → (L, L):
    [i, j] = sum over all features of |∂ fn(x)[i] / ∂ x[j]|."""
    ### BEGIN SOLUTION
    jacobian = torch.autograd.functional.jacobian(fn, x)  # (L, F, L, E)
    return jacobian.abs().sum(dim=(1, 3))  # (L, L)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# You need the gradient of **every** number of the output with respect to **every** number of the input. torch has a function for
# the whole table.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `torch.autograd.functional.jacobian` gives that table: the output's dimensions come first, then the input's,
# $(L, F, L, E)$. Tokens stay, features go.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `.abs()` first, then `.sum(dim=(1, 3))`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import future_leak` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_future_leak", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(future_leak)

# %% [markdown]
# ## Break it
#
# Three masked attentions, written after kinds of mistakes that public code has had. Read them. Which one is right?


# %%
def attention_with(weigh):
    """Self-attention of (L, E) tokens with this way from scores to weights."""
    return lambda x: weigh(x @ x.T / x.shape[-1] ** 0.5) @ x


def one_ahead(scores):  # off by one: the diagonal is moved
    return scores.masked_fill(
        torch.ones_like(scores).triu(2).bool(), -torch.inf
    ).softmax(-1)


def after_softmax(scores):  # the mask comes after the softmax
    return scores.softmax(-1) * causal_mask(*scores.shape)


def zero_means_closed(scores):  # multiplies, then asks the *scores* which are 0
    closed = scores.tril()
    return closed.masked_fill(closed == 0, -1e9).softmax(-1)


# %%
def yours(scores):
    return masked_softmax(scores, causal_mask(*scores.shape))


x = torch.randn(6, 4, dtype=torch.float64)
suspects = {
    "one ahead": one_ahead,
    "after the softmax": after_softmax,
    "score == 0": zero_means_closed,
    "yours": yours,
}
maps = {name: future_leak(attention_with(weigh), x) for name, weigh in suspects.items()}
plots.show(
    plots.masks.leak_maps(maps),
    alt="Four leak maps of six outputs by six inputs. 'One ahead' has crosses just above the diagonal. 'After the softmax' has "
    "crosses all over the upper half. 'score == 0' and yours have none.",
)

# %% [markdown]
# The detector sees the first, and the second, although its weights for the future are all exactly 0: the future's scores are still
# in the sum below the fraction bar, and so shift everybody else's share.
#
# The third **passes**. It asks whether a *score* is 0, and on these random numbers no allowed score ever is. A detector can only
# see what its input lets happen. So give it a token whose scores are exactly 0: one that is all zeros, such as the embedding of
# padding.

# %%
with_a_zero = x.clone()
with_a_zero[0] = 0  # token 0: all its scores are exactly 0
maps = {
    name: future_leak(attention_with(suspects[name]), with_a_zero)
    for name in ("score == 0", "yours")
}
plots.show(
    plots.masks.leak_maps(maps),
    alt="Two leak maps for an input whose token 0 is all zeros. 'score == 0' now has crosses along the whole first row: output 0 "
    "depends on every later token. Yours has none.",
)

# %% [markdown]
# Caught. Row 0 found all its scores "closed", filled them with −1e9, and a row of equal numbers is even: token 0 looks at the
# whole future. Three wrong masks, three leaks, and the last one shows only on the right input. **Ask on which input two versions
# differ, and test that one:** it is how every check in this course is made.

# %% [markdown]
# ## In PyTorch
#
# `F.scaled_dot_product_attention` has the same convention as `may_attend`: True = may look.

# %%
import torch.nn.functional as F

q, k, v = torch.randn(2, 5, 4), torch.randn(2, 7, 4), torch.randn(2, 7, 3)
may_attend = combine_masks(
    causal_mask(5, 7, offset=2), padding_mask(torch.tensor([7, 4]), 7)
)
weights = masked_softmax(q @ k.mT / 4**0.5, may_attend)
theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=may_attend)
print("largest difference:", (weights @ v - theirs).abs().max().item())
square = F.scaled_dot_product_attention(q, k, v, is_causal=True)
upper_left = masked_softmax(q @ k.mT / 4**0.5, causal_mask(5, 7)) @ v
print("is_causal=True is offset 0:", torch.allclose(square, upper_left, atol=1e-6))

# %% [markdown]
# Mind the second line: with $L \ne S$, `is_causal=True` means *upper-left*: query 0 stands at key 0. With keys kept from earlier
# steps that is wrong, and nothing complains. (`torch.nn.attention.bias.causal_lower_right` is the other one.)

# %% [markdown]
# ## Recap
#
# - `may_attend`: True = may look. Rows are queries, columns are keys.
# - Masks act on scores, before the softmax, with −∞: not with 0, not with −1e9.
# - Padding closes keys. Masks are combined with *and*.
# - A row that may see nothing gets zeros here, with finite gradients.
# - A leak of the future shows in the gradients, and in no loss curve.

# %% [markdown]
# ### Three quick questions
#
# **Why −∞ and not another number?**
#
# (a) 0 would do as well · (b) −1e9 is the same · (c) exp(−∞) is exactly 0 in every dtype and every row · (d) one can as well set
# the weights to 0 after the softmax

# %% nbgrader={"grade": false, "grade_id": "why_infinity", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: why_infinity = "a", "b", "c" or "d"
### BEGIN SOLUTION
why_infinity = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_why_infinity", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(why_infinity=why_infinity)

# %% [markdown]
# **Ten keys are kept from earlier steps, one new token comes: L = 1, S = 11. Which offset?**
#
# (a) 0 · (b) 10 · (c) 11 · (d) none is needed

# %% nbgrader={"grade": false, "grade_id": "offset_of", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: offset_of = "a", "b", "c" or "d"
### BEGIN SOLUTION
offset_of = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_offset_of", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(offset_of=offset_of)

# %% [markdown]
# **What does a padding mask close?**
#
# (a) keys: nobody looks at padding · (b) queries: padding looks at nobody · (c) both · (d) nothing, padding is zeros anyway

# %% nbgrader={"grade": false, "grade_id": "padding_where", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: padding_where = "a", "b", "c" or "d"
### BEGIN SOLUTION
padding_where = "a"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_padding_where", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(padding_where=padding_where)

# %% [markdown]
# ## Read more
#
# - Vaswani et al. 2017, [*Attention is all you need*](https://arxiv.org/abs/1706.03762), section 3.2.3: masking in the decoder, "setting to −∞".
# - PyTorch's documentation of [`F.scaled_dot_product_attention`](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html)
#   (attn_mask, is_causal) and of [`torch.nn.attention.bias`](https://docs.pytorch.org/docs/stable/nn.attention.bias.html).
# - [rasbt/LLMs-from-scratch issue 1061](https://github.com/rasbt/LLMs-from-scratch/issues/1061) and
#   [pytorch/pytorch issue 110144](https://github.com/pytorch/pytorch/issues/110144): mask conventions, met by others.
# - `mha_course/reference/masks.py`: the course's own answers.
#
# **Next:** [lesson 03, Many heads](../03_many_heads/03_many_heads.ipynb). One head looks in one way. Why not look in several ways at once?
