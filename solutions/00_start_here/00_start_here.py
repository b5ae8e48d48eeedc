# %% [markdown]
# # 00 · Start here
#
# *About 30 minutes.* At the end you know how this course talks to you, and you have written three short functions.
# Each of them comes back: in the masks of lesson 02, in the scores of lesson 01, in the heads of lesson 03.
#
# You need a little Python, and to have seen a tensor before. You need no GPU, no internet, and no talent for
# notation.

# %% [markdown]
# ## All lessons
#
# | | lesson | you build |
# |---|---|---|
# | 00 | Start here | a first green tick, and an eye for shapes |
# | 01 | [One head](../01_one_head/01_one_head.ipynb) | scaled scores, a softmax that does not overflow, `attend(q, k, v)` |
# | 02 | [Masks](../02_masks/02_masks.ipynb) | causal and padding masks, a softmax that survives a row with nothing to see, a detector for looking ahead |
# | 03 | [Many heads](../03_many_heads/03_many_heads.ipynb) | splitting and merging, all heads in one product, what they cost, how differently they look |
# | 04 | [The module](../04_module/04_module.ipynb) | `MultiHeadAttention` itself, cross-attention, dropout on weights, a gradient check by hand |
# | 05 | [The drop-in](../05_drop_in/05_drop_in.ipynb) | PyTorch's masks, parameters and whole `forward`: its documented example runs on your class |
# | 06 | [Order and memory](../06_order_and_memory/06_order_and_memory.ipynb) | positions, a key-value cache, decoding with it, shared key-value heads |
# | 07 | [On the GPU](../07_gpu/07_gpu.ipynb) | a stopwatch that is not fooled, the roofline, the fused kernel, 16 bits; no GPU needed |
# | 08 | [Without the L × L matrix](../08_without_the_matrix/08_without_the_matrix.ipynb) | a softmax in one pass, FlashAttention forwards and backwards |
#
# `python3 -m mha_course progress` says how far you are; `python3 -m mha_course lab` opens the lesson that comes next.

# %% [markdown]
# ## Run a cell
#
# The box below is a *cell*. Click into it and press **Shift + Enter**: it runs, and the next one is selected.
# Go on like that from top to bottom. `[*]` at its side means that it is still at work; a number, that it is done.
#
# This one asks the doctor whether everything that the course needs is here. That takes a few seconds.

# %%
try:
    from mha_course import check, doctor, plots
except ModuleNotFoundError as missing:
    says = "The course is not installed here. In its folder: python3 -m mha_course lab"
    missing._render_traceback_ = lambda: [says]
    raise

import torch

problems = doctor.report(brief=True)

# %% [markdown]
# If the doctor found something, it says beside it what to do. (For the long report, run
# `python3 -m mha_course doctor` in a terminal.)

# %% [markdown]
# ## What this course is about
#
# > Ada found the ring where she lost it
#
# Who is *she*? What is *it*? To read those two words, you looked back: once for a person, once for a thing. And all
# the while you kept track of which word follows which.
#
# Attention does this in numbers. Every word looks at all the words, a bit more here, a bit less there. **One**
# way of looking is called a *head*. **Multi-head** attention looks in several ways at once.
#
# Here are two heads at work on that sentence. What they look for was **set by hand** in the lines below: which
# words are a person or a thing, which words ask for one. (A trained model finds such features by itself; you will
# watch it do so.) The weights are then computed with the arithmetic of every transformer: dot products, then a
# softmax. No line of it needs to be clear yet.

# %%
sentence = "Ada found the ring where she lost it"
words = sentence.split()

place = torch.eye(8)  # (8, 8): word i stands at place i
wanted_place = place[[0, 0, 1, 2, 3, 4, 5, 6]]  # (8, 8): wants the place before its own

is_a = torch.zeros(8, 2)  # (8, 2): is a person, is a thing
is_a[0, 0] = is_a[3, 1] = 1  # Ada is a person, ring is a thing
wants_a = torch.zeros(8, 2)  # (8, 2): wants a person, wants a thing
wants_a[5, 0] = wants_a[7, 1] = 1  # "she" wants a person, "it" wants a thing

head_1 = torch.softmax(5 * wanted_place @ place.T, dim=-1)  # (8, 8)
head_2 = torch.softmax(5 * wants_a @ is_a.T, dim=-1)  # (8, 8)

# %%
heads = {"head 1: the word before": head_1, "head 2: who or what is meant": head_2}
fig = plots.arcs(heads, words)
plots.show(
    fig,
    alt="Two heads on the sentence 'Ada found the ring where she lost it'. In head 1 every "
    "word has a thick line to the word before it (Ada, the first, to itself). In head 2 'she' "
    "has a thick line to Ada and 'it' to ring; all other words have faint lines to every word.",
)

# %% [markdown]
# **What to look for.** A line starts at the word that looks, on the left, and is as thick as the attention it pays.
# In head 1 every word looks at the one before it. (*Ada* has none before her, and looks at herself.) In head 2 only
# two words ask for something; each has one thick line. The others ask for nothing, so their attention is spread
# evenly and thinly over all eight words.
#
# Same sentence, same arithmetic, two different looks. By lesson 05 you will have built all of this yourself, down
# to a drop-in for `torch.nn.MultiheadAttention`.

# %% [markdown]
# ## Your first tick
#
# Now *you* answer something, and a **check** says whether it is right. Look at the picture: in head 2, what does
# *it* look at?
#
# * (a) *lost*, the word before it
# * (b) *ring*
# * (c) *Ada*
# * (d) all words, evenly
#
# Let us get to know the check first:
#
# 1. Run the check below as it is (skip the cell in between). It says `○`: *not answered yet*. That is never counted
#    as wrong.
# 2. In the cell in between, write `it_looks_at = "a"` in place of the last line. Run it, then the check: `✗`, and
#    why.
# 3. Now put in the right letter, and run both again.

# %% nbgrader={"grade": false, "grade_id": "it_looks_at", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: it_looks_at = "a", "b", "c" or "d"
### BEGIN SOLUTION
it_looks_at = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_it_looks_at", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(it_looks_at=it_looks_at)

# %% [markdown]
# `○`, `✗`, `✓`: not yet, not right, right. Every check in this course speaks like that.
#
# And that is how head 2 reads the sentence: *she* looks at *Ada*, *it* looks at *ring*.

# %% [markdown]
# ## Shapes
#
# In that code, nearly every line ends in a comment such as `(8, 2)`. This is the **shape** of a tensor: how many
# rows, how many columns. Many mistakes in attention are mistakes of shape, and you find them by saying the shapes
# aloud. So we use the same letters everywhere, the ones of PyTorch's own documentation:
#
# | letter | what it counts |
# |---|---|
# | `N` | samples in a batch |
# | `L` | queries: the words that look |
# | `S` | keys: the words that are looked at |
# | `E` | numbers that describe one word (*embedding*) |
# | `H` | heads |
# | `D` | numbers per head, `E / H` |
#
# To see where numbers go, we *number* them. Here are three words with four features each: `L = 3`, `E = 4`.

# %%
x = torch.arange(12).view(3, 4)  # (L, E)

fig = plots.grid(x, rows=["we", "see", "it"], columns=["0", "1", "2", "3"])
plots.show(
    fig,
    alt="A grid of three rows (we, see, it) and four columns. It holds 0 to 11 in reading order: "
    "0 to 3 in the first row, 4 to 7 in the second, 8 to 11 in the third. The colour goes from "
    "dark for 0 to bright for 11.",
)

# %% [markdown]
# Numbers lie in memory as you read: along a row, then on to the next. Keep that in mind for the third
# exercise.

# %% [markdown]
# ## A column meets a row
#
# Two tensors of different shape can be added or subtracted if their shapes fit. torch writes the shapes one below
# the other,
# **from the right**, and compares:
#
# ```text
#     (4, 1)       a column of 4
#        (3,)      a row of 3; what is missing counts as 1
#     ------
#     (4, 3)       every 1 is stretched to what stands in the other
# ```
#
# This is *broadcasting*: a column and a row make a table. `x[:, None]` makes a column of a one-dimensional `x`:
# shape `(4,)` becomes `(4, 1)`.
#
# **Predict.** Four predictions, and they are exactly right. Their mean squared error should be 0. But the targets
# came out of a file as a column. What will the error be? Write your guess instead of `...`, or leave it.

# %%
guess = ...  # your guess

# %%
predicted = torch.tensor([1.0, 2.0, 3.0, 4.0])  # (4,)
target = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # (4, 1)

difference = predicted - target
print("your guess:", "none" if guess is ... else guess)
print("the error: ", difference.square().mean().item())
print("the shape of the difference:", tuple(difference.shape))

# %% [markdown]
# Not 0. A row of 4 and a column of 4 made a table of 16 differences, and nobody complained. This very bug has
# spoilt many a training run. Broadcasting does what the shapes say, not what you meant.

# %% [markdown]
# ## Exercise 0.1 · How many steps back?
#
# Now use it on purpose. Queries and keys stand at *positions* in a text. How many steps must each query look back
# to reach each key? With queries at 2 and 5, and keys at 0, 2 and 3:
#
# | | key at 0 | key at 2 | key at 3 |
# |---|---|---|---|
# | **query at 2** | 2 | 0 | −1 |
# | **query at 5** | 5 | 3 | 2 |
#
# A negative number says that the key lies *ahead*. (In lesson 02 this table tells a model what it must not see yet:
# the future.)
#
# **First, be wrong on purpose.** Write `return query_positions - key_positions` in place of the function's last
# line, run its cell, and run the check below the hints. It looks reasonable, and it is wrong. Read the card: what
# was tried, what came out, and the likely cause.
#
# Then solve it. If you are stuck, open one hint at a time.


# %% nbgrader={"grade": false, "grade_id": "steps_back", "locked": false, "schema_version": 3, "solution": true, "task": false}
def steps_back(query_positions, key_positions):
    """How many steps back from each query to each key: query minus key.

    query_positions: (L,)
    key_positions: (S,)
    returns: (L, S), a row for each query, a column for each key
    """
    ### BEGIN SOLUTION
    column = query_positions[:, None]  # (L, 1)
    row = key_positions[None, :]  # (1, S)
    return column - row  # (L, S)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Every query meets every key: that is a table. It needs a column and a row. Then a single minus does it, query
# first.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# The result has a row for each query, so the queries must stand upright: as a column, `(L, 1)`. The keys may stay
# as they are, `(S,)`, or lie as a row, `(1, S)`. Broadcasting then makes `(L, S)`.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `query_positions[:, None]` is the column. Subtract the keys from it. (`unsqueeze(1)` makes the same column;
# `unsqueeze_(1)`, with the underscore, would change the tensor of whoever called you.)
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import steps_back` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_steps_back", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(steps_back)

# %% [markdown]
# **A tick?** Well done. The check ran your function on small inputs of many shapes and compared *what it does*:
# values, shapes, dtypes, gradients. How you write it is up to you: with a loop, with `unsqueeze`, in one line or
# in five.
#
# Here is **your** function on the example. Pale cells are the copies that broadcasting thinks up; nothing is
# really copied.

# %%
queries, keys = torch.tensor([2, 5]), torch.tensor([0, 2, 3])

fig = plots.start_here.subtraction(queries, keys, steps_back(queries, keys), at=(1, 2))
plots.show(
    fig,
    alt="The queries 2 and 5 as a column, stretched to three columns by pale copies, minus the keys "
    "0, 2, 3 as a row, stretched to two rows by a pale copy, gives the table 2, 0, −1 and 5, 3, 2. "
    "In each, the cell in row 1, column 2 is framed: 5 − 3 = 2.",
)

# %% [markdown]
# Follow the frame: row 1, column 2 of both stretched tensors, 5 and 3, make the 2 at that same place.

# %% [markdown]
# ## Exercise 0.2 · All dot products at once
#
# The **dot product** of two vectors multiplies entry by entry and adds up. It is large when they point the same
# way, and 0 when they have nothing in common. Attention uses it as its measure of *how well does this key answer
# my query?*, for every query with every key.
#
# By hand, with two features:
#
# $$a = \begin{pmatrix} 1 & 2 \\ 0 & 1 \\ 3 & 1 \end{pmatrix} \quad (3, 2) \qquad
#   b = \begin{pmatrix} 1 & 0 \\ 1 & 1 \\ 2 & 1 \\ 0 & 3 \end{pmatrix} \quad (4, 2)$$
#
# Row 0 of $a$ with row 2 of $b$: $1 \cdot 2 + 2 \cdot 1 = 4$. Row 2 of $a$ with row 3 of $b$: $3 \cdot 0 + 1
# \cdot 3 = 3$. That makes twelve numbers, in a table of three rows and four columns.
#
# Two tools:
#
# * `p @ q` makes the dot products of the **rows** of `p` with the **columns** of `q`. The shapes must touch:
#   `(3, 2) @ (2, 4)` gives `(3, 4)`, and the 2 in the middle is summed away.
# * `q.T` turns rows into columns: `(4, 2)` becomes `(2, 4)`.
#
# `p * q` is something else: entry by entry, and nothing is added up.


# %% nbgrader={"grade": false, "grade_id": "pairwise_dot", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pairwise_dot(a, b):
    """The dot product of every row of a with every row of b.

    a: (L, D)
    b: (S, D)
    returns: (L, S), entry [i, j] belongs to a[i] and b[j]
    """
    ### BEGIN SOLUTION
    return a @ b.T  # (L, D) @ (D, S) → (L, S)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Multiply *and add up*, for every row of `a` with every row of `b`: a matrix product, not `*`.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Write the shapes down: `(L, D)` and `(S, D)`. For a matrix product the two `D` must touch, `(L, D) @ (D, S)`.
# Which of the two has to be turned?
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `b.T` has the shape `(D, S)`, and leaves `b` as it is. `a` comes first.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import pairwise_dot` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_pairwise_dot", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(pairwise_dot)

# %%
a = torch.tensor([[1, 2], [0, 1], [3, 1]])  # (3, 2)
b = torch.tensor([[1, 0], [1, 1], [2, 1], [0, 3]])  # (4, 2)

fig = plots.start_here.dot_products(a, b, pairwise_dot(a, b), at=(0, 2))
plots.show(
    fig,
    alt="The grid a with three rows, matrix product, the grid b.T with four columns, equals a table "
    "of three rows and four columns: 1 3 4 6, 0 1 1 3, 3 4 7 3. Framed are row 0 of a (1, 2), "
    "column 2 of b.T (2, 1), and the entry they make in row 0, column 2: 4.",
)

# %% [markdown]
# **What to look for.** A framed row and a framed column make one framed number: $1 \cdot 2 + 2 \cdot 1 = 4$.
# Which row of `a` and which row of `b` make the 7?
#
# Look once more at the code of the opening picture: `wants_a @ is_a.T`. That was this function. *She* wants a
# person, *Ada* is a person, and their dot product is 1; with every other word it is 0.

# %% [markdown]
# ## Exercise 0.3 · Cut into groups
#
# Two heads share the features of a word: the first half for head 0, the second half for head 1. So each row is
# cut into groups of **neighbouring** features, and the groups come to the front:
#
# ```text
#     x (3, 4)                 result (2, 3, 2)
#
#     we    0  1 |  2  3       [0]   we    0  1        [1]   we    2  3
#     see   4  5 |  6  7             see   4  5              see   6  7
#     it    8  9 | 10 11             it    8  9              it   10 11
# ```
#
# Every group has all the words, and of each word its own share of features.
#
# Two tools, and they are not the same:
#
# * `x.view(...)` gives the **same numbers in the same reading order** another shape. It moves nothing.
# * `x.transpose(0, 1)` lets two dimensions change places: what was `[i, j]` is now `[j, i]`.
#
# **Predict.** The result should have the shape `(2, 3, 2)`, and `x.view(2, 3, 2)` has that shape. What stands in
# its row `[0, 1]`, the place where group 0 keeps the word *see*?

# %%
guess = ...  # your guess, two numbers: [?, ?]

# %%
x = torch.arange(12).view(3, 4)  # (L, E), as above
print("your guess:             ", "none" if guess is ... else guess)
print("x.view(2, 3, 2)[0, 1]:  ", x.view(2, 3, 2)[0, 1].tolist())
print("what should stand there:", [4, 5])

# %% [markdown]
# `[2, 3]` belongs to *we*. The shape is right, no error is raised, and the words are mixed up. So `view` alone
# does not do it.


# %% nbgrader={"grade": false, "grade_id": "regroup", "locked": false, "schema_version": 3, "solution": true, "task": false}
def regroup(x, groups):
    """Cut every row into groups of neighbouring features,
    and bring the groups to the front.

    x: (L, E), a row for each word
    groups: how many groups; divides E
    returns: (groups, L, E // groups)
    """
    ### BEGIN SOLUTION
    L, E = x.shape
    x = x.view(L, groups, E // groups)  # cut each row
    return x.transpose(0, 1)  # (groups, L, E / groups)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Cut the rows, not the list of words: `groups` pieces of `E // groups` numbers each. And the result is one tensor
# with the groups as a dimension of their own.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Two steps. First give each row a dimension for its groups: the words stay in front, and reading order is
# untouched. Then let the words and the groups change places.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `x.view(L, groups, E // groups)` cuts each row. After it, dimension 0 counts the words and dimension 1 the groups:
# `transpose` them.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import regroup` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_regroup", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(regroup)

# %% [markdown]
# ### See the scramble
#
# Each number keeps the colour of the word it came from. In the middle is your `regroup`, on the right `view` alone.

# %%
made = {"your regroup": regroup(x, 2), "only view": x.view(2, 3, 2)}
fig = plots.start_here.regrouped(x, made, ["we", "see", "it"])
plots.show(
    fig,
    alt="Left, x with the rows we (0 to 3), see (4 to 7), it (8 to 11), one colour per row. Middle, "
    "your regroup: two groups, and in both each row has the colour of its word. Right, view alone: "
    "the first group holds 0 to 5, so its row 'see' has the numbers 2 and 3 of 'we', and its row "
    "'it' has 4 and 5 of 'see'.",
)

# %% [markdown]
# **What to look for.** In the middle, each word's row has one colour, in both groups. On the right, the row of
# *see* holds 2 and 3, in the colour of *we*.
#
# In lesson 03 you will train a model *with* this scramble, to 100 %. Training does not find such a bug, since the
# model learns around it. Numbered tensors find it at a glance.

# %% [markdown]
# ## In PyTorch
#
# What you wrote has names in torch, too. Your numbers beside torch's:

# %%
torch.manual_seed(0)
p, q = torch.randn(3, 4), torch.randn(5, 4)

linear = torch.nn.functional.linear(p, q)  # (3, 5)
unflattened = p.unflatten(-1, (2, -1)).movedim(1, 0)  # (2, 3, 2)
print(
    "pairwise_dot is a linear layer:",
    torch.allclose(pairwise_dot(p, q), linear, atol=1e-6),
)
print("regroup is unflatten + movedim:", regroup(p, 2).equal(unflattened))
print("steps_back has the shape that torch.broadcast_shapes tells:")
print("   ", tuple(torch.broadcast_shapes((4, 1), (3,))))
print("   ", tuple(steps_back(torch.arange(4), torch.arange(3)).shape))

# %% [markdown]
# So a linear layer (without its bias) *is* a table of dot products, of every input with every row of its weight
# matrix.

# %% [markdown]
# ## When you are stuck
#
# * **Hints** come in threes: a nudge, the idea, nearly the line. Opening one costs nothing.
# * **Borrow.** Add a cell with `from mha_course.reference import regroup` and go on with ours. Its check then
#   says `◇` *borrowed*, and you can come back later.
# * **Something is odd?** Menu *Kernel → Restart Kernel and Run All Cells…* clears what was left over from earlier
#   tries.
# * **How far am I?** In a terminal: `python3 -m mha_course progress`.
# * **Start a lesson afresh:** `python3 -m mha_course reset 00`. What you wrote is kept in `work/backups/`.
# * **Validate**, the button above the notebook, runs all of it from the top and says whether every check passes.
#   Your instructor's grading does the same.
#
# This notebook is **your own copy**, in the folder `work/`. Write in it what you like, add cells, break things: an
# update of the course never overwrites it.

# %% [markdown]
# ## Recap
#
# * A head is one way of looking; multi-head attention looks in several ways at once.
# * Broadcasting compares shapes from the right and stretches every 1: a column and a row make a table.
# * `a @ b.T` makes all dot products of the rows of `a` with the rows of `b`: `(L, D)`, `(S, D)` → `(L, S)`.
# * `view` keeps the reading order, `transpose` changes it. Same shape does not mean same tensor.
# * Number your tensors when in doubt.

# %% [markdown]
# ## Three quick questions
#
# Answer with a letter in quotes, such as `"a"`. A wrong letter is explained, and you may try again.
#
# **1.** `p` has the shape `(4, 1)` and `q` the shape `(3,)`. What is `p + q`?
#
# * (a) an error
# * (b) a tensor of shape `(4, 3)`
# * (c) a tensor of shape `(3, 4)`
# * (d) a tensor of shape `(12,)`

# %% nbgrader={"grade": false, "grade_id": "broadcast_shape", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: broadcast_shape = "a", "b", "c" or "d"
### BEGIN SOLUTION
broadcast_shape = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_broadcast_shape", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(broadcast_shape=broadcast_shape)

# %% [markdown]
# **2.** Five queries `q` of shape `(5, 4)`, seven keys `k` of shape `(7, 4)`. Which line makes the table of dot
# products with a row for each query?
#
# * (a) `q * k`
# * (b) `q @ k`
# * (c) `q @ k.T`
# * (d) `k @ q.T`

# %% nbgrader={"grade": false, "grade_id": "which_makes_the_table", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: which_makes_the_table = "a", "b", "c" or "d"
### BEGIN SOLUTION
which_makes_the_table = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_which_makes_the_table", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(which_makes_the_table=which_makes_the_table)

# %% [markdown]
# **3.** `x` is `[[0, 1, 2], [3, 4, 5]]`, of shape `(2, 3)`. What are the first rows of `x.view(3, 2)` and of `x.T`?
#
# * (a) `[0, 1, 2]` and `[0, 3]`
# * (b) `[0, 3]` and `[0, 3]`
# * (c) `[0, 1]` and `[0, 1]`
# * (d) `[0, 1]` and `[0, 3]`

# %% nbgrader={"grade": false, "grade_id": "view_or_transpose", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: view_or_transpose = "a", "b", "c" or "d"
### BEGIN SOLUTION
view_or_transpose = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_view_or_transpose", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(view_or_transpose=view_or_transpose)

# %% [markdown]
# ## Read more
#
# * PyTorch, [Broadcasting semantics](https://docs.pytorch.org/docs/stable/notes/broadcasting.html) and
#   [Tensor views](https://docs.pytorch.org/docs/stable/tensor_view.html): two short pages.
# * Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762), figures 3 to 5: what the heads
#   of a trained model look at. They, too, show who *its* refers to.
#
# **Next:** [lesson 01, One head](../01_one_head/01_one_head.ipynb). Where do such weights come from?
