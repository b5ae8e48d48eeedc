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
# # 01 · One head
#
# [All lessons](../00_start_here/00_start_here.ipynb#All-lessons) · before this one: [00, Start here](../00_start_here/00_start_here.ipynb)
#
# *About 45 minutes. At the end you have written one attention head, and know why each step is there.*
#
# You will build, in this order: the scores, the softmax, the look-up itself, an experiment that shows what
# $\sqrt D$ is for, a module that learns, and a measurement that finds out what attention cannot see.

# %%
try:
    from mha_course import check, plots
except ModuleNotFoundError as missing:
    says = "The course is not installed here. In its folder: python3 -m mha_course lab"
    missing._render_traceback_ = lambda: [says]
    raise

import math

import torch
from torch import nn

_ = torch.manual_seed(0)

# %% [markdown]
# ## The question
#
# Read this sentence:
#
# > the **cat** sat on the mat because **it** was tired
#
# Who was tired? You did not search a table for "it". You looked back, found that *cat* fits well, *mat* fits a
# little, and *because* not at all, and took most of the meaning from *cat*.
#
# That is a **soft look-up**. A dictionary compares your key with its keys, finds the one that is equal, and gives
# you its value. A soft dictionary compares your **query** with all its **keys**, finds that some are *more alike*
# than others, and gives you a **mixture of the values**, most from the keys that fit best.
#
# Three letters for the whole course, and they will not change:
#
# | | what it is | here |
# |---|---|---|
# | $q$ | query: what I am looking for | "who was tired?" |
# | $k$ | key: what I can be found by | "an animal", "a thing", "a reason" |
# | $v$ | value: what I give when I am found | the meaning of the word |

# %% [markdown]
# ## Predict
#
# A query meets three keys. It is very much like the first, a little like the second, and the opposite of the third.
# The three likenesses are 2, 1 and −1.
#
# How much of the first value will the mixture hold? Write your guess before you go on (any number from 0 to 1).
# There is no mark for it, but a guess makes the answer stick.

# %%
prediction = ...  # your guess: the share of the first value, between 0 and 1

# %%
likeness = torch.tensor([2.0, 1.0, -1.0])
share = likeness.exp() / likeness.exp().sum()
print("your guess:", "none" if prediction is ... else prediction)
print("the shares:", [round(s, 2) for s in share.tolist()])

# %% [markdown]
# More than two thirds, and still a little from the others. By the end of exercise 1.2 you will have written the
# function that turned likeness into shares.

# %% [markdown]
# ## Build
#
# ### 1.1 How alike? The scores
#
# How alike are a query and a key? Multiply them feature by feature and add up: the **dot product**. It is large when
# both are large in the same places, 0 when they have nothing in common, negative when they disagree.
#
# By hand, a query $q = (1, 2)$ and three keys, with two features each:
#
# | key | dot product with $q$ |
# |---|---|
# | $k_1 = (3, 0)$ | $1 \cdot 3 + 2 \cdot 0 = 3$ |
# | $k_2 = (1, 1)$ | $1 \cdot 1 + 2 \cdot 1 = 3$ |
# | $k_3 = (-2, 1)$ | $1 \cdot (-2) + 2 \cdot 1 = 0$ |
#
# The first two keys get 3, for different reasons. The third agrees with the query in one feature and disagrees in the
# other: together 0.
#
# One more thing. A dot product of $D$ features is a sum of $D$ terms, and sums of many random terms get large: like
# $\sqrt D$. So we divide by $\sqrt D$. Why that matters is exercise 1.4; for now, do it:
#
# $$\text{scores}_{n,l,s} = \frac{q_{n,l} \cdot k_{n,s}}{\sqrt D}
# \qquad q: (N, L, D), \quad k: (N, S, D), \quad \text{scores}: (N, L, S).$$
#
# $N$ is the batch, $L$ the number of queries, $S$ the number of keys, $D$ the features. In the example above,
# $D = 2$, so the three scores are $3 / \sqrt 2 \approx 2.12$ twice, and 0.


# %% nbgrader={"grade": false, "grade_id": "attention_scores", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attention_scores(q, k):
    """How alike each query and each key are, divided by √D.

    q: (N, L, D), k: (N, S, D) → (N, L, S): row l holds the scores of query l,
    one for each key.
    """
    ### BEGIN SOLUTION
    return q @ k.mT / math.sqrt(q.shape[-1])  # (N, L, D) @ (N, D, S) → (N, L, S)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# All dot products of rows with rows are one matrix product. Which of the two matrices has to be turned so that the
# $D$s meet? (You did this in lesson 00, exercise 0.2.)
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# $(N, L, D)$ times $(N, D, S)$ gives $(N, L, S)$. The keys come as $(N, S, D)$: their last two dimensions must change
# places, by a transpose, not by a reshape. The number to divide by is the square root of the size of the dimension
# that is summed.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `k.mT` swaps the last two dimensions; `q.shape[-1]` is $D$; `math.sqrt` is what it says. Make new tensors and leave
# `q` and `k` as they are.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import attention_scores` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_attention_scores", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(attention_scores)

# %% [markdown]
# ### 1.2 From scores to shares: a softmax that does not overflow
#
# Scores can be any number. Shares must be positive and sum to 1. The **softmax** does both: take $e$ to the power of
# each number, then divide by their sum.
#
# $$\operatorname{softmax}(x)_i = \frac{e^{x_i}}{\sum_j e^{x_j}}$$
#
# By hand, with numbers that fit in the head: for $x = (\ln 1, \ln 2, \ln 5)$ the exponentials are 1, 2 and 5, their
# sum is 8, and the shares are $\tfrac18, \tfrac28, \tfrac58$.
#
# There is one trap. $e^{100}$ is a number with 44 digits; $e^{1000}$ is more than any float can hold:

# %%
large = torch.tensor([1000.0, 1001.0])
print("exponentials:", large.exp())
print("shares:      ", large.exp() / large.exp().sum())

# %% [markdown]
# The computer says ∞, and ∞ / ∞ is NaN: *not a number*. One NaN, and everything it touches is NaN.
#
# The way out costs nothing: subtract the same number from every $x_i$, and the shares do not change, because
# $e^{x_i - c} = e^{x_i} e^{-c}$ and the $e^{-c}$ cancels above and below the fraction bar. So choose a $c$ for which
# nothing can overflow.


# %% nbgrader={"grade": false, "grade_id": "stable_softmax", "locked": false, "schema_version": 3, "solution": true, "task": false}
def stable_softmax(x, dim):
    """Positive numbers that sum to 1 along `dim`, however large x is
    (1e4, float16 too).

    Any shape → the same shape and dtype. Write it with exp;
    torch's own softmax is not allowed here.
    """
    ### BEGIN SOLUTION
    shifted = x - x.amax(dim, keepdim=True)  # at most 0, so exp gives at most 1
    e = shifted.exp()
    return e / e.sum(dim, keepdim=True)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Write it without any care for large numbers first. `dim` has to appear wherever numbers of a row are put together.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# If $c$ is the **largest** number of the row, then every $x_i - c$ is at most 0, every exponential at most 1, and the
# sum at least 1. Each row along `dim` needs its own $c$, and the same shifted numbers go above and below the bar.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `x.amax(dim, keepdim=True)` is the largest number of each row; `keepdim=True` keeps the dimension (with size 1), so
# that it lines up with `x` when you subtract. The same for `sum`. Write `x - …`, not `x -= …`: x is not yours.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import stable_softmax` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_stable_softmax", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(stable_softmax)

# %% [markdown]
# ### 1.3 The look-up: attend
#
# Now the head itself, in two steps you have already. Each query's scores become its **weights**, a softmax over the
# **keys**: the query has one whole attention to give and shares it among them. Then its output is the mixture:
#
# $$w = \operatorname{softmax}_s(\text{scores}) \;(N, L, S) \qquad \text{output} = w\,v \;(N, L, D_v) \qquad v: (N, S, D_v).$$
#
# By hand: scores 0 and $\ln 3$ have the exponentials 1 and 3, so the weights are $(\tfrac14, \tfrac34)$. With the
# values $(8, 0)$ and $(4, 4)$ the output is $\tfrac14 (8, 0) + \tfrac34 (4, 4) = (5, 3)$. It lies between the two, nearer the second.
#
# Values may have another number of features than keys; nothing in the formula minds.


# %% nbgrader={"grade": false, "grade_id": "attend", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attend(q, k, v):
    """One head of attention.

    q: (N, L, D), k: (N, S, D), v: (N, S, Dv)
    → output (N, L, Dv), weights (N, L, S); each row of weights sums to 1.
    """
    ### BEGIN SOLUTION
    weights = stable_softmax(attention_scores(q, k), dim=-1)  # (N, L, S)
    return weights @ v, weights  # (N, L, S) @ (N, S, Dv) → (N, L, Dv)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Use your two functions. They already do the scaling, so do not scale again. The order of the three arguments: who
# asks, who is compared, who is mixed.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Scores are $(N, L, S)$. A query shares its attention among the keys, so the numbers along the **last** dimension
# must sum to 1. A mixture of rows, with weights in rows, is again one matrix product: $(N, L, S)$ times $(N, S, D_v)$.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `weights = stable_softmax(…, dim=-1)`, then `weights @ v`. Return both, the output first.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import attend` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_attend", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(attend)

# %% [markdown]
# #### A look at your own head
#
# Here is the sentence from the beginning, with keys and queries **made by hand** so that we know what should come out.
# Each word's key has two features: is it an animal, is it a thing? The word *it* asks for animals strongly and for
# things a little; the other words ask for nothing. The picture is drawn from your own `attend`.

# %%
words = "the cat sat on the mat because it was tired".split()
animal = [0, 4, 0, 0, 0, 0, 0, 0, 0, 0]
thing = [0, 0, 0, 0, 0, 4, 0, 0, 0, 0]
keys = torch.tensor([animal, thing], dtype=torch.float32).T.unsqueeze(0)  # (1, 10, 2)
asks = torch.zeros(1, 10, 2)  # (1, 10, 2): most words ask for nothing
asks[0, words.index("it")] = torch.tensor([1.5, 0.8])
output, weights = attend(asks, keys, torch.eye(10).unsqueeze(0))

# %%
shown = ["cat", "it", "tired"]
rows = weights[0, [words.index(word) for word in shown]]
plots.show(
    plots.heat_maps(rows, shown, words),
    alt="Three rows of attention weights over ten words. The row of 'it' gives most of its weight to 'cat' and a "
    "little to 'mat'; the rows of 'cat' and 'tired' are even, one tenth for each word.",
)

# %% [markdown]
# **What to look for.** The row of *it* has its largest number under *cat*, some under *mat*, and little elsewhere. The
# other two rows ask for nothing, so their scores are all 0, and a softmax over equal scores is perfectly even: a tenth
# for everybody. **A head cannot look nowhere.** It always gives away its whole 1.

# %% [markdown]
# ### 1.4 What is √D for?
#
# Now the promised experiment. Draw random queries and keys with $D$ features, each a normal number of variance 1.
# Their dot product is a sum of $D$ products, so its variance is $D$ and its typical size $\sqrt D$: with $D = 64$,
# scores of ±8 are ordinary, and $e^{8}$ is 3000 times $e^0$. One key takes all.
#
# Measure it: how much does a random query give to its **favourite** key, on average? Evenly spread over 16 keys it
# would be $1/16 \approx 0.06$; all on one key is 1.
#
# By hand, with one query and three keys: weights $(0.7, 0.2, 0.1)$ have their largest at 0.7. For two queries with
# largest weights 0.7 and 0.5 the answer is 0.6.


# %% nbgrader={"grade": false, "grade_id": "weight_sharpness", "locked": false, "schema_version": 3, "solution": true, "task": false}
def weight_sharpness(D, scaled, keys=16, queries=500):
    """The largest weight that a random query gives to one of `keys` keys:
    the mean over all queries.

    Queries and keys have D features, normal numbers.
    scaled: with the division by √D, or without.
    Returns a Python float.
    """
    ### BEGIN SOLUTION
    q, k = torch.randn(queries, 1, D), torch.randn(queries, keys, D)
    scores = attention_scores(q, k)  # (queries, 1, keys)
    if not scaled:
        scores = scores * math.sqrt(D)
    return stable_softmax(scores, dim=-1).amax(-1).mean().item()
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Use the batch for the queries: `(queries, 1, D)` and `(queries, keys, D)`. You get one row of weights per query. Take
# the largest of each row first, the mean over the queries after that.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Your `attention_scores` already divides by $\sqrt D$. For `scaled=False` undo it, or compute the plain dot products.
# Only one of the two cases needs a change, and it needs it once.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `torch.randn(…)` draws normal numbers; `.amax(-1)` takes the largest of each row, `.mean()` the mean, `.item()` makes
# a Python number of it.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import weight_sharpness` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_weight_sharpness", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(weight_sharpness)

# %% [markdown]
# **Predict.** With 16 keys, where will the largest weight be at $D = 1024$: without the scale, and with it? Two
# numbers between 0.06 and 1.

# %%
guess = ...  # your guess, two numbers: (raw, scaled)

# %%
sizes = [4, 16, 64, 256, 1024]
raw = [weight_sharpness(D, scaled=False) for D in sizes]
even = [weight_sharpness(D, scaled=True) for D in sizes]
for D, a, b in zip(sizes, raw, even):
    print(f"D = {D:4}   raw {a:.2f}   scaled {b:.2f}")
print("your guess:", "none" if guess is ... else guess)

# %% [markdown]
# ### 1.5 A head that learns
#
# So far q, k and v fell from the sky. In a model there are only tokens $x$, $(N, L, E)$. A head makes all three from
# them, by three matrices it learns: **what do I look for, what can I be found by, what do I give?**
#
# $$q = x W_q^\top, \quad k = x W_k^\top, \quad v = x W_v^\top \qquad x: (N, L, E), \quad W: (D, E), \quad q, k, v: (N, L, D).$$
#
# The tokens attend to one another, so this is called **self-attention**, and here $S = L$.
#
# By hand: a token $x = (2, 1)$ with $W_q = \begin{pmatrix} 1 & 0 \\ 1 & 1 \end{pmatrix}$ asks with $q = (2, 3)$.


# %% nbgrader={"grade": false, "grade_id": "SingleHead", "locked": false, "schema_version": 3, "solution": true, "task": false}
class SingleHead(nn.Module):
    """Self-attention with one head.

    E: size of a token; D: size of its query, key and value.
    Three layers called `query`, `key` and `value`,
    each nn.Linear(E, D) without bias.
    """

    def __init__(self, E, D):
        ### BEGIN SOLUTION
        super().__init__()
        self.query = nn.Linear(E, D, bias=False)
        self.key = nn.Linear(E, D, bias=False)
        self.value = nn.Linear(E, D, bias=False)
        ### END SOLUTION

    def forward(self, x):
        """x: (N, L, E) → output (N, L, D), weights (N, L, L)."""
        ### BEGIN SOLUTION
        return attend(self.query(x), self.key(x), self.value(x))
        ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A module creates its layers in `__init__` (after `super().__init__()`) and uses them in `forward`. `nn.Linear(a, b)`
# goes from $a$ features to $b$.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# All three layers see the same `x`. What the first makes are queries, the second keys, the third values; you already
# have a function that wants exactly these three.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `self.query = nn.Linear(E, D, bias=False)`, the same for `key` and `value`; then
# `attend(self.query(x), …, …)`, which returns the pair that `forward` should return.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import SingleHead` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_SingleHead", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(SingleHead)

# %% [markdown]
# ### 1.6 What attention cannot see
#
# *The dog bit the man* and *the man bit the dog* are the same words. Does your head notice a difference?
#
# Shuffle the tokens, then apply the head; or apply the head, then shuffle its outputs. If both give the same, the head
# **does not know order**. Measure the gap: the largest absolute difference between the two.
#
# By hand, with three tokens of one feature, $x = (5, 7, 9)$, and `perm = (2, 0, 1)`: the shuffled tokens are
# $(9, 5, 7)$. For $fn(x) = 2x$ both ways give $(18, 10, 14)$: gap 0. For "multiply by the place, 1, 2, 3": shuffle first
# gives $(9, 10, 21)$; apply first gives $(5, 14, 27)$, shuffled $(27, 5, 14)$: the gap is 18.


# %% nbgrader={"grade": false, "grade_id": "permutation_gap", "locked": false, "schema_version": 3, "solution": true, "task": false}
def permutation_gap(fn, x, perm):
    """How much `fn` notices in which order the tokens come: 0 if it does not.

    fn: (N, L, E) → (N, L, anything), x: (N, L, E),
    perm: (L,), a permutation of 0 … L-1. Returns a Python float.
    """
    ### BEGIN SOLUTION
    return (fn(x[:, perm]) - fn(x)[:, perm]).abs().max().item()
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Tokens are dimension 1 of $(N, L, E)$. Indexed with `perm` in that dimension, a tensor has token `perm[i]` at place i.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Two ways round: `fn` of the shuffled tokens, and the shuffled result of `fn`. The **same** permutation both times.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# Subtract the two, then `.abs()`, `.max()` and `.item()`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import permutation_gap` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_permutation_gap", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(permutation_gap)

# %%
head = SingleHead(E=6, D=4)
tokens, perm = torch.randn(1, 5, 6), torch.tensor([3, 0, 4, 1, 2])
print("your head:             ", permutation_gap(lambda x: head(x)[0], tokens, perm))
print("a running sum:         ", permutation_gap(lambda x: x.cumsum(1), tokens, perm))
place = torch.arange(5.0).view(1, 5, 1)
print(
    "your head, with places:",
    permutation_gap(lambda x: head(x + place)[0], tokens, perm),
)

# %% [markdown]
# Zero (up to rounding): to your head, a sentence is a *bag* of words. A running sum knows order, and so does your head
# once each token says where it stands. That last line is the idea of lesson 06.

# %% [markdown]
# ## See
#
# Back to $\sqrt D$: what does sharpness cost? Learning needs gradients. This measures how much the weights still move when the scores
# move: the size of the gradient of one weight, averaged over random queries.


# %%
def softmax_gradient(D, scaled, keys=16, queries=500):
    """Mean size of the gradient of the first key's weight by the scores."""
    q, k = torch.randn(queries, 1, D), torch.randn(queries, keys, D)
    scores = attention_scores(q, k) * (1 if scaled else math.sqrt(D))
    scores = scores.detach().requires_grad_()
    stable_softmax(scores, dim=-1)[..., 0].sum().backward()
    return scores.grad.norm(dim=-1).mean().item()


raw_gradient = [softmax_gradient(D, scaled=False) for D in sizes]
even_gradient = [softmax_gradient(D, scaled=True) for D in sizes]

# %%
plots.show(
    plots.one_head.sharpness(sizes, raw, even, raw_gradient, even_gradient, keys=16),
    alt="Two panels over D from 4 to 1024. Above, the largest weight: without the scale it climbs from about 0.4 to "
    "nearly 1, with the scale it stays near 0.25. Below, the gradient of the softmax: without the scale it falls "
    "towards 0, with the scale it stays level.",
)

# %% [markdown]
# **What to look for.** Without the division, a head with many features is decided before it has learned anything: all
# weight on one key (above), and hardly any gradient left to change its mind (below). With it, nothing depends on $D$.
# That is all $\sqrt D$ is for, and it is why the paper has it (Vaswani et al. 2017, section 3.2.1, footnote 4).

# %% [markdown]
# ## Break it
#
# What happens if a piece is missing? Two heads start from the same random queries and keys, with $D = 256$: one with
# your scores, one that forgets $\sqrt D$. Both are asked to learn the simplest thing there is: *look at token 0*.
# Watch the loss, the share of attention that goes elsewhere.


# %%
def learns_to_look_at_token_0(scale, steps=60):
    """Train queries and keys so that every query gives its weight to key 0;
    gives the loss of each step."""
    torch.manual_seed(1)
    q = torch.randn(8, 16, 256).requires_grad_()
    k = torch.randn(8, 16, 256).requires_grad_()
    optimizer, losses = torch.optim.SGD([q, k], lr=1.0), []
    for _ in range(steps):
        weights = stable_softmax(attention_scores(q, k) * scale, dim=-1)  # (8, 16, 16)
        loss = (1 - weights[..., 0]).sum()  # one term for each of the 8 · 16 queries
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / 128)
    return losses


# %%
with_scale = learns_to_look_at_token_0(scale=1)
without = learns_to_look_at_token_0(scale=math.sqrt(256))
plots.show(
    plots.one_head.losses({"without √D": without, "with √D": with_scale}),
    alt="Loss over 60 steps of training. With the scale the loss falls steadily towards 0. Without it, the loss stays "
    "near the top after a small first drop: most queries are stuck on the key they happened to like at the start.",
)
print(
    f"mean loss after {len(without)} steps: "
    f"with √D {with_scale[-1]:.2f}, without {without[-1]:.2f}"
)

# %% [markdown]
# Same start, same learning rate, same number of steps. The head without the scale computes nothing wrong, it is
# **deaf**: nearly all its weights are 0 or 1, and where a softmax is saturated its gradient is nearly nothing.
#
# Is it the learning rate? Try it: give `SGD` above an `lr` of 0.1, or of 10. Each time the head with the scale is far
# ahead; the other one stays above 0.6.

# %% [markdown]
# ## In PyTorch
#
# torch calls this `F.scaled_dot_product_attention`. It returns the output only, and puts batch and heads first; with
# one head our shapes fit as they are.

# %%
import torch.nn.functional as F

q, k, v = torch.randn(2, 5, 4), torch.randn(2, 7, 4), torch.randn(2, 7, 3)
theirs = F.scaled_dot_product_attention(q, k, v)
mine, _ = attend(q, k, v)
print("largest difference:", (mine - theirs).abs().max().item())
print(
    "and your softmax:  ",
    (stable_softmax(q, -1) - torch.softmax(q, -1)).abs().max().item(),
)

# %% [markdown]
# Equal, up to the last digit of float32. You have written what every transformer runs; the rest of the course is about
# masks, many of these side by side, and speed.

# %% [markdown]
# ## Recap
#
# - A **query** is compared with all **keys** by dot products; the softmax of the scores says how to mix the **values**.
# - The softmax runs over the **keys**: each row of weights sums to 1. A head cannot look nowhere.
# - $\sqrt D$ keeps the scores at the same size whatever $D$ is, so that the softmax can still learn.
# - Subtract each row's maximum before `exp`, or large scores become NaN.
# - Attention does not know order: shuffle the tokens, and the outputs are shuffled along.

# %% [markdown]
# ## Four quick questions
#
# Answer with a letter in quotes, such as `"a"`. A wrong letter is explained, and you may try again.
#
# **1.** Why are the scores divided by √D?
#
# * (a) so that they are not negative
# * (b) so that the weights sum to 1
# * (c) so that their size does not grow with D and the softmax can still learn
# * (d) so that the product is faster

# %% nbgrader={"grade": false, "grade_id": "why_scale", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: why_scale = "a", "b", "c" or "d"
### BEGIN SOLUTION
why_scale = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_why_scale", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(why_scale=why_scale)

# %% [markdown]
# **2.** Scores are (N, L, S). Along which dimension does the softmax run?
#
# * (a) the last: over the keys
# * (b) the middle: over the queries
# * (c) the first: over the batch
# * (d) over all of them

# %% nbgrader={"grade": false, "grade_id": "which_dim", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: which_dim = "a", "b", "c" or "d"
### BEGIN SOLUTION
which_dim = "a"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_which_dim", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(which_dim=which_dim)

# %% [markdown]
# **3.** The output of a head is a mixture of…
#
# * (a) queries
# * (b) values
# * (c) keys
# * (d) scores

# %% nbgrader={"grade": false, "grade_id": "what_is_mixed", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: what_is_mixed = "a", "b", "c" or "d"
### BEGIN SOLUTION
what_is_mixed = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_what_is_mixed", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(what_is_mixed=what_is_mixed)

# %% [markdown]
# **4.** You shuffle the tokens of a sentence and run a self-attention head. What happens to its outputs?
#
# * (a) every token gets a different output
# * (b) they are lost
# * (c) they stay in the old order
# * (d) they are the same, shuffled along

# %% nbgrader={"grade": false, "grade_id": "blind_to_order", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: blind_to_order = "a", "b", "c" or "d"
### BEGIN SOLUTION
blind_to_order = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_blind_to_order", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(blind_to_order=blind_to_order)

# %% [markdown]
# ## Read more
#
# - Vaswani et al. 2017, [*Attention is all you need*](https://arxiv.org/abs/1706.03762), section 3.2.1: the formula, and the footnote on $\sqrt D$.
# - Bahdanau, Cho and Bengio 2015, [*Neural machine translation by jointly learning to align and translate*](https://arxiv.org/abs/1409.0473), section 3:
#   where soft look-ups in translation began.
# - Blanchard, Higham and Higham 2021, [*Accurately computing the log-sum-exp and softmax functions*](https://doi.org/10.1093/imanum/draa038): how accurate the
#   shift is.
# - `mha_course/reference/one_head.py`: the course's own answers. Read them after yours; in a cell,
#   `from mha_course.reference import one_head` and then `one_head??` shows them.
#
# **Next:** [lesson 02, Masks](../02_masks/02_masks.ipynb). Which words may be looked at, and what happens to a word that may look at nothing?
