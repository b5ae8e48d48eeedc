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
# # 07 · On the GPU
#
# [All lessons](../00_start_here/00_start_here.ipynb#All-lessons) · before this one: [06, Order and memory](../06_order_and_memory/06_order_and_memory.ipynb)
#
# *About 75 minutes, with a good place for a break in the middle. At the end your attention runs on whatever device
# there is, and you can say how fast it is, how fast it could be, and what holds it back. **You need no GPU**: what only
# a GPU would show is simulated, or measured in small on your CPU.*
#
# You will build, in this order: a choice of device; a way to move a whole batch; a mask that moves along with its module;
# a stopwatch that is not fooled; the two numbers that say how fast attention can be at best; attention by torch's fused
# kernel; and a measure of what 16 bits do to it.

# %%
try:
    from mha_course import check, measuring, plots
except ModuleNotFoundError as missing:
    says = "The course is not installed here. In its folder: python3 -m mha_course lab"
    missing._render_traceback_ = lambda: [says]
    raise

import math
import statistics

import torch
import torch.nn.functional as F
from torch import nn

from mha_course.devices import RealDevice, SimulatedDevice
from mha_course.progress_bar import progress_bar
from mha_course.reference import attend, causal_mask, future_leak  # lessons 01 and 02

_ = torch.manual_seed(0)

# %% [markdown]
# ## The question
#
# Somebody times attention on a GPU: once a short sequence, once one with ten times the work. Here it is, on a
# **simulated** GPU: its `kernel()` starts a piece of work, and its `clock()` says what time it is.

# %%
short, long = SimulatedDevice(seconds=0.006), SimulatedDevice(seconds=0.060)
for name, gpu in (("a short sequence", short), ("ten times the work", long)):
    started = gpu.clock()
    gpu.kernel()
    print(f"{name}: {1000 * (gpu.clock() - started):.1f} ms")

# %% [markdown]
# Ten times the work in the same time. What a wonderful machine!
#
# The numbers are wrong, of course; nothing is easier than to measure such numbers. Before you go on: what do you think was
# measured?

# %% [markdown]
# ## Predict
#
# Two guesses. You will work out both in this lesson.
#
# 1. One sequence of $L = 16384$ tokens, 16 heads, bfloat16 (2 bytes for a number). How many **GiB** do the attention
#    weights take, all heads together? (One GiB is $2^{30}$ bytes.)
# 2. A large GPU can do about 200 additions and multiplications in the time in which it fetches *one* byte from its memory.
#    What holds back attention that writes out its $L \times L$ weights, for long sequences: `"compute"` or `"memory"`?

# %%
gib_of_weights = ...  # your guess
what_holds_it_back = ...  # your guess: "compute" or "memory"

# %% [markdown]
# ## Build: where tensors live
#
# ### 7.1 Pick a device
#
# A tensor lives on a **device**: `"cpu"`, `"cuda"` (an NVIDIA or AMD GPU), `"mps"` (the GPU of a Mac). Two tensors can meet
# only where both are. So a program decides once, at the beginning, and everything goes there.
#
# CUDA if there is one, else MPS if there is one, else the CPU. The two lines that ask torch are written for you; they are
# skipped where the caller has said what is there, so that your choice can be tried on any machine:
#
# | `pick_device(cuda, mps)` | gives |
# |---|---|
# | `(True, False)` | `torch.device("cuda")` |
# | `(False, True)` | `torch.device("mps")` |
# | `(False, False)` | `torch.device("cpu")` |


# %% nbgrader={"grade": false, "grade_id": "pick_device", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pick_device(cuda=None, mps=None):
    """The fastest device there is: CUDA before MPS before the CPU.

    cuda, mps: True or False, whether such a device is there; None: ask torch.
    → a torch.device.
    """
    if cuda is None:
        cuda = torch.cuda.is_available()
    if mps is None:
        mps = torch.backends.mps.is_available()
    ### BEGIN SOLUTION
    if cuda:
        return torch.device("cuda")
    if mps:
        return torch.device("mps")
    return torch.device("cpu")
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Three devices, in the order in which you would like to have them. The one that is always there comes last.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# `if cuda:` return one, `if mps:` return another, and after both the third.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `return torch.device("cuda")`. There is no device called `"gpu"`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import pick_device` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_pick_device", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(pick_device)

# %%
device = pick_device()
print("this notebook runs on:", device)

# %% [markdown]
# ### 7.2 Move a batch
#
# A data loader hands you a *batch*: tensors in a dict, in lists, in dicts in lists, and between them things that are no
# tensors (a name, a count, `None`). All the tensors should go to the device, and nothing else should change.
#
# One thing to know. `x.to(device)` does **not** move `x`. It makes a new tensor there and hands it to you; `x` stays where it
# was. Whoever writes `x.to(device)` on a line of its own has done nothing at all:


# %%
x = torch.ones(2, 3)
# "meta" is a device on every machine: its tensors have a shape and no numbers
x.to("meta")
print("after x.to('meta') alone:  ", x.device)
x = x.to("meta")
print("after x = x.to('meta'):    ", x.device)

# %% [markdown]
# By hand: `{"words": a, "masks": [b, (c, 3)], "name": "train"}` becomes
# `{"words": a', "masks": [b', (c', 3)], "name": "train"}`, where a' is a on the device. The dict that was given stays as it
# was: somebody may need it there.


# %% nbgrader={"grade": false, "grade_id": "to_device", "locked": false, "schema_version": 3, "solution": true, "task": false}
def to_device(batch, device):
    """Every tensor in a batch on a device; the batch given stays as it is.

    batch: a tensor, or dicts, lists and tuples of batches, nested;
    anything else is passed on. → the same structure.
    """
    ### BEGIN SOLUTION
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# What is it? A tensor: give what `.to` *returns*. Something that holds others: build a new one, with every part moved.
# Anything else: give it back as it is.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# The parts of a dict are batches themselves, so the function can call **itself** for each. `isinstance(batch, dict)` tells what
# it is; `isinstance(batch, (list, tuple))` asks for two kinds at once.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# For a dict: `{key: to_device(value, device) for key, value in batch.items()}`. For lists and tuples the same with `[…]`; to keep
# a tuple a tuple, `type(batch)(…)` around it. Only the place changes: no `.float()`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import to_device` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_to_device", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(to_device)

# %% [markdown]
# ### 7.3 A mask that moves along
#
# Modules are the exception: `model.to(device)` *does* change the model. It moves all the **parameters**, and all the
# **buffers**: tensors that belong to the module and are not trained. It moves nothing else. A tensor that you keep as a plain
# attribute stays behind:


# %%
class Forgetful(nn.Module):
    def __init__(self, longest):
        super().__init__()
        self.kept = causal_mask(longest, longest)  # a plain attribute
        self.register_buffer("moved", causal_mask(longest, longest))


module = Forgetful(4).to("meta")
print("the plain attribute is on:", module.kept.device)
print("the buffer is on:         ", module.moved.device)
print("and what is saved:        ", list(module.state_dict()))

# %% [markdown]
# On a CPU nobody ever notices. On the first GPU it stops: *"Expected all tensors to be on the same device"*.
#
# The last line shows a second thing: a buffer is **saved** with the module. A mask need not be; it can be made again, and a
# saved one would refuse to load into a module with another `longest`. `register_buffer` can be told so: `persistent=False`.
#
# Write a module that closes the future. It gets scores $(N, H, L, L)$ with $L \le$ `longest`, of any floating dtype, on any
# device, and gives the same with $-\infty$ wherever key $j$ comes after query $i$, that is where $j > i$:
#
# $$\begin{pmatrix} 1 & 2 & 3 \\ 4 & 5 & 6 \\ 7 & 8 & 9 \end{pmatrix} \;\longrightarrow\;
# \begin{pmatrix} 1 & -\infty & -\infty \\ 4 & 5 & -\infty \\ 7 & 8 & 9 \end{pmatrix}$$
#
# Lesson 02's `causal_mask` may help. The check puts your module on a **pretended GPU**, too: its tensors have shapes and a
# device, but no numbers. That is enough to see what would stop there, and what would make everything wait.


# %% nbgrader={"grade": false, "grade_id": "CausalMask", "locked": false, "schema_version": 3, "solution": true, "task": false}
class CausalMask(nn.Module):
    """Closes the future in scores, wherever the scores are.

    CausalMask(longest)(scores): (N, H, L, L), L ≤ longest
    → the same shape, dtype and device, −∞ where key j > query i.
    What it keeps moves along with the module, and is not in its state dict.
    """

    def __init__(self, longest):
        super().__init__()
        ### BEGIN SOLUTION
        self.register_buffer(
            "may_attend", causal_mask(longest, longest), persistent=False
        )  # (longest, longest)
        ### END SOLUTION

    def forward(self, scores):
        ### BEGIN SOLUTION
        L = scores.shape[-1]
        return scores.masked_fill(~self.may_attend[:L, :L], -torch.inf)
        ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Where is the mask when the scores are on a GPU? Either it is a buffer and went there with the module, or it is made in
# `forward`, where the scores are. Never bring the scores to the mask.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# In `__init__`, `self.register_buffer(name, tensor, persistent=False)` instead of `self.name = tensor`. In `forward`, cut the
# mask to the scores, from its beginning, and **fill** with −∞ where it is not True. −∞ exists in every floating dtype; −1e9
# does not.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `scores.masked_fill(~mask[:L, :L], -torch.inf)` with `L = scores.shape[-1]`. A plain Python number like `scores.shape[-1]` may be
# asked for freely; the *value* of a tensor (`if mask.any():`, `.item()`) may not.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import CausalMask` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_CausalMask", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(CausalMask)

# %% [markdown]
# All of it together, on the device you picked. The same lines run on all three kinds:

# %%
batch = {"q": torch.randn(2, 3, 4, 8), "k": torch.randn(2, 3, 4, 8)}  # (N, H, L, D)
batch = to_device(batch, device)
mask = CausalMask(longest=16).to(device)
weights = mask(batch["q"] @ batch["k"].mT / math.sqrt(8)).softmax(-1)
print("weights on", weights.device, "\n", weights[0, 0].cpu())

# %% [markdown]
# ## Build: a stopwatch that is not fooled
#
# ### 7.4 Benchmark
#
# Back to the wonderful machine. A GPU works **asynchronously**. When Python calls an operation, it only puts the work into
# a queue, and goes on at once; the GPU takes its orders from the queue, one after the other. That is why it is fast, and
# it is why the clock lied:

# %%
gpu = SimulatedDevice(seconds=0.006, launch=0.001, slow=0, disturbed=(), lucky=())
for _ in range(3):
    gpu.kernel()
at_once = gpu.clock()
gpu.synchronize()  # wait here until the queue is empty
plots.show(
    plots.gpu.timeline(
        gpu.log,
        {
            "the clock, read at once": at_once,
            "the clock, after synchronize()": gpu.clock(),
        },
    ),
    alt="Two rows over time. Python asks: three short blocks, done after 3 milliseconds. The GPU works: three long blocks one after "
    "the other, from 1 to 19 milliseconds. The clock read at once stands at 3 ms, in the middle of the first work; the clock after "
    "synchronize stands at 19 ms, at the end.",
)

# %% [markdown]
# **What to look for.** Three pieces of work of 6 ms, and asking for one takes 1 ms. Read at once, the clock says 3 ms: that is
# how long it took to *ask*. After `synchronize()` it says 19 ms.
#
# A device has more surprises. The **first calls** are slow: kernels are loaded and chosen, memory is set up. And any call may
# be **disturbed**, or lucky. Here are fourteen calls in a row on the simulated GPU as it usually is, each timed by itself:

# %%
gpu, times = SimulatedDevice(), []
for _ in range(14):
    started = gpu.clock()
    gpu.kernel()
    gpu.synchronize()
    times.append(gpu.clock() - started)
print("ms:", ", ".join(f"{1000 * t:.1f}" for t in times))

# %% [markdown]
# Usually 6.3 ms (0.3 to ask, 6 to work). The first three take 120, now and then one takes 60, now and then one takes 4.
#
# Write a stopwatch that says 6.3. It makes `warmup` calls that do not count, then times `repeats` calls, each by itself,
# *from before it is asked for until it is done*, and gives the **median** of the times, in seconds.
#
# By hand: of 6, 60, 6, 4, 6 the mean is $82 / 5 = 16.4$. Sorted they are 4, 6, **6**, 6, 60, and the middle one is 6. One
# disturbed call moves the mean by as much as it likes, and the median not at all.


# %% nbgrader={"grade": false, "grade_id": "benchmark", "locked": false, "schema_version": 3, "solution": true, "task": false}
def benchmark(fn, device, repeats=20, warmup=3):
    """How long one call of fn takes, its work on the device included:
    the median, in seconds.

    fn: called without arguments. device: device.clock() gives seconds,
    device.synchronize() waits for the queue.
    repeats: how many calls are timed, each by itself.
    warmup: how many come before them and do not count.
    """
    ### BEGIN SOLUTION
    for _ in range(warmup):
        fn()
    device.synchronize()
    times = []
    for _ in range(repeats):
        started = device.clock()
        fn()
        device.synchronize()
        times.append(device.clock() - started)
    return statistics.median(times)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Between asking for the work and reading the clock the second time, something has to happen. And it is `device.clock()` that
# counts, not Python's own clock: the simulated GPU lives in a time of its own.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# First `warmup` calls whose times nobody looks at. Then a loop: clock, call, synchronise, clock; keep the difference in a
# list. After the loop, the median of the list.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `fn()` and `device.synchronize()`, both with parentheses. `statistics.median(times)` sorts by itself. Seconds, and stop minus
# start.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import benchmark` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_benchmark", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(benchmark)

# %% [markdown]
# Now the question can be answered, and your stopwatch can be held against a **real** device. `RealDevice` has the same two
# methods; its clock is `time.perf_counter()`, and its `synchronize()` is `torch.cuda.synchronize()`, `torch.mps.synchronize()`, or
# on a CPU nothing at all.

# %%
for name, seconds in (("a short sequence", 0.006), ("ten times the work", 0.060)):
    gpu = SimulatedDevice(seconds)
    print(f"{name}: {1000 * benchmark(gpu.kernel, gpu):.1f} ms")

here = RealDevice(device)
a = torch.randn(512, 512, device=device)
print(
    f"\na product of 512 × 512 on {device}: "
    f"{1e6 * benchmark(lambda: a @ a, here):.0f} µs"
)

# %% [markdown]
# And what would happen on your own device *without* the wait? Here is a stopwatch that forgets it:


# %%
class Impatient(RealDevice):
    def synchronize(self):
        pass  # does not wait


big = torch.randn(1024, 1024, device=device)
waits, does_not = (
    benchmark(lambda: big @ big, one(device)) for one in (RealDevice, Impatient)
)
print(
    f"a product of 1024 × 1024 on {device}: {1e3 * waits:.2f} ms, "
    f"without waiting {1e3 * does_not:.2f} ms"
)

# %% [markdown]
# On a CPU the two agree, up to noise: a CPU has no queue. That is why this mistake survives until the first GPU. (On a GPU the
# second number is some hundredths of a millisecond, whatever the size of the matrices.)
#
# *This is a good place for a break.*

# %% [markdown]
# ## Build: how fast can it be?
#
# A measured time means little by itself. Is 4 ms good? To know, work out the least that it *could* take.
#
# Attention has to do two things: **compute**, and **move** numbers between the device's large memory and the units that
# compute. Each takes time, and the two happen at once, so the longer one sets the time:
#
# $$t \;\ge\; \max\left( \frac{\text{FLOPs}}{\text{FLOP/s}}, \; \frac{\text{bytes}}{\text{bytes/s}} \right)$$
#
# Above the lines: what the work needs; you can count it, on paper. Below the lines: what the machine can do at best, its two
# **ceilings**; you can measure them. Together that is the *roofline* model.
#
# ### 7.5 The first term: what is computed
#
# A FLOP is one addition or one multiplication of floating-point numbers. A dot product of length $D$ takes $D$
# multiplications and (nearly) $D$ additions: $2D$ FLOPs.
#
# Self-attention makes two products, for each of $N$ samples and $H$ heads:
#
# - queries with keys: $L \cdot L$ scores, each a dot product of length $D$;
# - weights with values: $L \cdot D$ numbers, each a dot product of length $L$.
#
# (What the softmax adds is $L \cdot L$ times a little, and not $D$ times as much. It does not count here.)
#
# By hand: one sample, one head, $L = 4$, $D = 2$. 16 scores of $2 \cdot 2 = 4$ FLOPs are 64; 8 outputs of $2 \cdot 4 = 8$
# FLOPs are 64. Together **128**.


# %% nbgrader={"grade": false, "grade_id": "attention_flops", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attention_flops(N, H, L, D):
    """Additions and multiplications of self-attention's two products, forward:
    a Python int.

    N samples, H heads, L tokens, D features per head.
    """
    ### BEGIN SOLUTION
    scores = N * H * L * L * 2 * D
    mixing = N * H * L * D * 2 * L
    return scores + mixing
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two products; in each, count how many numbers come out, and how long the dot product is for each of them. Every dot product
# of length $n$ takes $2n$ FLOPs. Then for all heads of all samples.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# $L \cdot L$ numbers of $2D$ each, and $L \cdot D$ numbers of $2L$ each: both are $2 L^2 D$. Nothing for the softmax, and no
# $D - 1$.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# $4 \cdot N \cdot H \cdot L^2 \cdot D$.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import attention_flops` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_attention_flops", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(attention_flops)

# %% [markdown]
# ### 7.6 The second term: what is moved
#
# Written in three steps, attention runs as three **kernels**, programs on the device. Each reads its inputs from memory and
# writes its result there, for the next one to read:
#
# | kernel | reads | writes |
# |---|---|---|
# | scores | q, k | scores, $L \times L$ |
# | softmax | scores, $L \times L$ | weights, $L \times L$ |
# | mixing | weights, $L \times L$, and v | output |
#
# So the large matrix travels **four times**, and q, k, v and the output once each. A **fused** kernel does all three steps in
# one go, tile by tile (lesson 08 builds one): only q, k, v and the output travel. The $L \times L$ numbers never leave the chip.
#
# Each of q, k, v and the output has $N \cdot H \cdot L \cdot D$ numbers, each large matrix $N \cdot H \cdot L \cdot L$. A number
# has `dtype.itemsize` bytes: 4 in float32, 2 in bfloat16.
#
# By hand, as before: $L = 4$, $D = 2$, one head, float32. q, k, v and the output: $4 \cdot 8 = 32$ numbers, **128** bytes; that
# is all if it is fused. In three kernels $4 \cdot 16 = 64$ numbers more: 96 numbers, **384** bytes.


# %% nbgrader={"grade": false, "grade_id": "attention_bytes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attention_bytes(N, H, L, D, dtype, fused):
    """What self-attention moves to and from memory, at the least, in bytes:
    a Python int.

    N samples, H heads, L tokens, D features per head, all tensors of a dtype.
    fused: True or False.
    """
    ### BEGIN SOLUTION
    numbers = 4 * N * H * L * D  # q, k, v are read, the output is written
    if not fused:
        numbers += 4 * N * H * L * L  # scores and weights, each written and read
    return numbers * dtype.itemsize
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Four small tensors, always. Four journeys of the large matrix, if it is not fused: go through the table's columns and count
# where $L \times L$ stands. Every head of every sample has its own.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Count *numbers* first, and turn them into bytes at the end: `dtype.itemsize` bytes for each, whatever the dtype is.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `numbers = 4 * N * H * L * D`; `if not fused:` add `4 * N * H * L * L`; return `numbers * dtype.itemsize`.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import attention_bytes` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_attention_bytes", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(attention_bytes)

# %% [markdown]
# Your first prediction: 16 heads, $L = 16384$, bfloat16. The weights themselves, held once:

# %%
weights_held = 16 * 16384 * 16384 * torch.bfloat16.itemsize
print(
    f"weights: {weights_held / 2**30:.0f} GiB; your guess: "
    f"{'none' if gib_of_weights is ... else gib_of_weights}"
)
for fused in (False, True):
    moved = attention_bytes(1, 16, 16384, 128, torch.bfloat16, fused)
    print(f"moved, {'fused' if fused else 'in three kernels'}: {moved / 2**30:.2f} GiB")

# %% [markdown]
# ### 7.7 The longer of the two
#
# Now put the two terms together: the least time the work can take, and which of the two sets it.
#
# By hand: 128 FLOPs and 384 bytes on a toy machine that does 100 FLOP/s and moves 20 bytes/s. Computing takes
# $128 / 100 = 1.28$ s, moving $384 / 20 = 19.2$ s. So at least **19.2 s**, because of **memory**. Fused, moving takes
# $128 / 20 = 6.4$ s: still memory, and three times as fast, with the same arithmetic.


# %% nbgrader={"grade": false, "grade_id": "roofline", "locked": false, "schema_version": 3, "solution": true, "task": false}
def roofline(flops, moved, peak_flops, peak_bandwidth):
    """The shortest time that work can take, and what sets it.

    flops: FLOPs, moved: bytes, peak_flops: FLOP/s, peak_bandwidth: bytes/s
    → (seconds, "compute" or "memory").
    """
    ### BEGIN SOLUTION
    computing, moving = flops / peak_flops, moved / peak_bandwidth
    return max(computing, moving), "memory" if moving > computing else "compute"
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two times, each work divided by what can be done in a second. They pass at once, so it is not their sum. What takes longer is
# what holds the other back.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Each work divided by the ceiling that holds it back gives seconds. Return two things: the larger one, and its name.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `return max(computing, moving), "memory" if moving > computing else "compute"`
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import roofline` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_roofline", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(roofline)

# %% [markdown]
# ### Where is the crossover? On paper first
#
# Divide what is computed by what is moved: FLOPs per byte, the work's **intensity**. With $b$ bytes per number:
#
# $$\text{fused: } \frac{4 N H L^2 D}{4 N H L D\, b} = \frac{L}{b}
# \qquad\qquad \text{in three kernels: } \frac{4 N H L^2 D}{4 N H (L D + L^2)\, b} = \frac{1}{b} \cdot \frac{L D}{L + D}
# \;<\; \frac{D}{b}$$
#
# Do the same with the machine's two ceilings: FLOP/s divided by bytes/s is the intensity at which both take the same time,
# the **ridge**. Work below it waits for memory; work above it is held back by the arithmetic alone.
#
# - The **fused** intensity grows with $L$. It reaches the ridge at $L = b \cdot \text{ridge}$, and from there on the machine is
#   busy computing. That is the crossover.
# - In **three kernels** the intensity never gets above $D / b$, however long the sequence is. With $D = 64$ in bfloat16 that is 32
#   FLOPs per byte. A large GPU's ridge is near 200 (an H200, by its data sheet: 989 TFLOP/s over 4.8 TB/s makes 206). So it
#   waits for memory **at every length**: the $L^2$ FLOPs bring $L^2$ bytes along. That was the second prediction.
#
# ### On your machine
#
# Measure the two ceilings with your stopwatch: a large product for the FLOP/s ($2 n^3$ FLOPs), a large copy for the bytes/s (read
# once, written once).


# %%
def ceilings(device):
    """The most that a device can do: FLOP/s of a large product,
    bytes/s of a large copy."""
    here, large = RealDevice(device), device.type == "cuda"
    n = 8192 if large else 1024
    a, b = torch.randn(2, n, n, device=device)
    flops_per_s = 2 * n**3 / benchmark(lambda: a @ b, here)
    source = torch.randn(2**28 if large else 2**24, device=device)
    target = torch.empty_like(source)
    return flops_per_s, 2 * source.nbytes / benchmark(
        lambda: target.copy_(source), here
    )


peak_flops, peak_bandwidth = ceilings(device)
ridge = peak_flops / peak_bandwidth
print(
    f"{peak_flops / 1e9:.0f} GFLOP/s, {peak_bandwidth / 1e9:.0f} GB/s: "
    f"the ridge is at {ridge:.1f} FLOPs per byte"
)

# %% [markdown]
# Now predict. For every length, both terms, with **your** functions and **your** ceilings, in float32 ($b = 4$):

# %%
N, H, D = (2, 16, 64) if device.type == "cuda" else (1, 4, 16)
lengths = [2**i for i in range(1, 12)]
parts = {}
for title, fused in (("with the L × L matrix", False), ("fused", True)):
    computing = [attention_flops(N, H, L, D) / peak_flops for L in lengths]
    moving = [
        attention_bytes(N, H, L, D, torch.float32, fused) / peak_bandwidth
        for L in lengths
    ]
    parts[title] = {"computing": computing, "moving": moving}
print(f"fused: compute from L = 4 · {ridge:.1f} = {4 * ridge:.0f} on")
print(
    f"with the L × L matrix: at most D / 4 = {D / 4:.0f} FLOPs per byte; "
    f"the ridge is at {ridge:.1f}"
)
print("your second guess:", "none" if what_holds_it_back is ... else what_holds_it_back)

# %%
plots.show(
    plots.gpu.two_terms(lengths, parts),
    alt="Two pictures, time against length, both axes logarithmic; in each a line for computing, one for moving, and the longer one "
    "marked broadly. With the L by L matrix both lines rise alike and lie close together. Fused, the line for moving rises half "
    "as steeply: it is above at short lengths, the two cross, and beyond that computing sets the time.",
)

# %% [markdown]
# **What to look for.** On the left both lines become parallel: longer sequences do not help. (On a CPU they may lie close
# together, and even cross: it computes little for each byte it fetches, so its ridge is low. On a large GPU, moving is far above
# computing.) On the right they cross at $L = 4 \cdot \text{ridge}$; the dotted line is at the first of our lengths beyond it. The
# fused kernel computes exactly the same; it only moves less.

# %% [markdown]
# ### 7.8 The fused kernel, and what it does not do for you
#
# torch has the fused kernel: `F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal)`, with q
# $(N, H, L, D)$ and k, v $(N, H, S, D)$. It divides by $\sqrt D$ by itself, and a boolean `attn_mask` means what we mean: True =
# may look. Three things it leaves to you, and each of them is forgotten again and again:
#
# - **It is a function; it knows nothing of `train()` and `eval()`.** It drops whenever `dropout_p` is not 0. Dropout belongs to
#   training; so the rate must be 0 out of it. The causal mask does *not* belong to training: the future stays closed, always.
# - **A mask or `is_causal`, not both** (so its documentation says). Where both are wanted, put the causal mask into the other one.
#   `is_causal` means: key $j$ is open to query $i$ where $j \le i$, also with $S \ne L$: `causal_mask(L, S)`.
# - **A query that may see nothing.** What it gets has differed from kernel to kernel and from version to version. In this course
#   it is zeros.
#
# By hand: $D = 1$, two queries $(0)$ and $(0)$, two keys, values $(4)$ and $(8)$; all scores are 0. Without a mask both get
# $(6)$. Causal: query 0 sees key 0 only and gets $(4)$, query 1 gets $(6)$. With key 0 closed by a mask as well, query 0 may see
# nothing and gets $(0)$, query 1 gets $(8)$.


# %% nbgrader={"grade": false, "grade_id": "fused_attention", "locked": false, "schema_version": 3, "solution": true, "task": false}
def fused_attention(
    q, k, v, may_attend=None, dropout_p=0.0, training=False, is_causal=False
):
    """Attention by F.scaled_dot_product_attention, under the course's rules.

    q: (N, H, L, D), k and v: (N, H, S, D),
    may_attend: bool, broadcastable to (N, H, L, S), True = may look, or None
    → (N, H, L, D). dropout_p: in training only.
    A query that may see nothing gets zeros.
    """
    ### BEGIN SOLUTION
    p = dropout_p if training else 0.0
    if may_attend is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=is_causal)
    if is_causal:
        may_attend = may_attend & causal_mask(q.shape[-2], k.shape[-2], device=q.device)
    dead = ~may_attend.any(-1, keepdim=True)  # (…, L, 1): queries that may see nothing
    output = F.scaled_dot_product_attention(
        q, k, v, attn_mask=may_attend | dead, dropout_p=p
    )
    return output.masked_fill(dead, 0.0)
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# First decide what to tell torch: which rate, which mask, `is_causal` or not. Then it is one call. `training` decides about the
# rate, and about nothing else.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Without a mask, hand `is_causal` on. With a mask *and* `is_causal`, open is what both open: `&`, as in lesson 02; and then do not
# hand `is_causal` on. The mask stays boolean: as numbers it would be *added* to the scores.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `causal_mask(q.shape[-2], k.shape[-2], device=q.device)`: made where q is. Queries that may see nothing:
# `dead = ~may_attend.any(-1, keepdim=True)`; open them for torch (`may_attend | dead`) and fill their output with 0 afterwards,
# without asking whether there are any.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import fused_attention` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_fused_attention", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check(fused_attention)

# %% [markdown]
# ## See: predicted and measured
#
# Everything is there: attention with the $L \times L$ matrix (lesson 01's `attend`), your `fused_attention`, and the course's tiled
# version in plain PyTorch (lesson 08 builds it). Measure them on your machine, for growing $L$. This takes a few seconds.

# %% tags=["not-when-graded"]
line = progress_bar(6, "measuring")
own = {
    "by hand": lambda q, k, v: attend(q, k, v)[0],
    "your fused_attention": fused_attention,
}
record = measuring.measure(
    device,
    sizes=None if device.type == "cuda" else (4, 16, 64, 256, 1024),
    shape=(N, H, D),
    own=own,
    ways=("tiles",),
    directions=("forward",),
    precisions=("float32",),
    budget_s=20,
    says=lambda _: next(line, None),
)
for _ in line:
    pass

# %% tags=["not-when-graded"]
names = {
    "by hand": "with the L × L matrix",
    "tiles": "tiled, in plain PyTorch",
    "your fused_attention": "your fused_attention",
}
plots.show(
    plots.gpu.attention_curves(record, names),
    alt="Two pictures against the length L, both axes logarithmic. Left, the time of one call: all lines rise, the one of your "
    "fused_attention is the lowest. Right, the memory at its highest: with the L by L matrix it grows by sixteen when L grows by "
    "four; of your fused_attention, by four.",
)

# %% [markdown]
# **What to look for.** On the right, the memory that a call takes beyond its inputs: with the matrix it grows with $L^2$, and one
# day it is more than there is; fused it grows with $L$. On the left, time: the fused kernel does the same arithmetic, and still
# needs less. At the short end all lines flatten: there the time goes into *asking* for the work, a third term that the roofline
# does not know.
#
# And now your prediction beside the fact. The bound is *at the least*, so no factor should be (much) below 1:

# %% tags=["not-when-graded"]
for way, fused in (("by hand", False), ("your fused_attention", True)):
    print(f"\n{names[way]}:\n      L   at the least   measured   factor   held back by")
    for point in measuring.points(record, way):
        L, measured = point["L"], point["seconds"]["median"]
        moved = attention_bytes(N, H, L, D, torch.float32, fused)
        bound, side = roofline(
            attention_flops(N, H, L, D), moved, peak_flops, peak_bandwidth
        )
        print(
            f"{L:7} {1e6 * bound:11.1f} µs {1e6 * measured:7.0f} µs "
            f"{measured / bound:8.1f}   {side}"
        )

# %% [markdown]
# Where does the factor come from? By hand there are more than three kernels (the scaling is one more), and every one of them
# comes with its own asking. A factor *below* 1 is possible as well: while all the matrices fit into the processor's cache, they do
# not travel to memory at all, and our count of bytes is too high.
#
# The last column comes from our count of bytes, which is the least. Where both terms are near one another, what really travels
# decides: look at the next picture.
#
# The same figures as a roofline: the black line is the most that this machine can do at each intensity. (The bytes are
# those that the kernels really moved, counted while they ran.)

# %% tags=["not-when-graded"]
plots.show(
    plots.gpu.roofline(record, names),
    alt="A roofline: achieved FLOP per second against FLOP per byte, both logarithmic. A black line rises up to the ridge and is flat "
    "beyond it. The marks of attention with the L by L matrix and of the tiled version stay on the rising side, however large L "
    "is; those of your fused_attention move to the right with L, past the ridge, and come near the flat ceiling.",
)

# %% [markdown]
# **What to look for.** With growing $L$ the marks of the matrix version pile up at one intensity, below the slanting ceiling: memory.
# Those of the fused kernel wander to the right, past the ridge: crossover. That wandering is all that "FlashAttention" is about.

# %% [markdown]
# ### On a large GPU
#
# The same command measures everything on a GPU: all of torch's kernels, compiled ones too, forward and backward, up to
# $L = 16384$. If a recording ships with this course, here it is, with its machine and date:

# %% tags=["not-when-graded"]
recorded = measuring.latest_record("cuda")
if recorded is None:
    print("No GPU has been recorded yet, so there is no picture here.")
    print("It would show the two pictures from above, with lengths up to 16384.")
    print("With a CUDA device:   mha-course gpu --record   (about 7 minutes) makes it.")
else:
    plots.show(
        plots.gpu.attention_curves(recorded, precision="bfloat16"),
        alt=f"Time and memory against the length on {plots.gpu.origin(recorded)}, in bfloat16: the version with the L by L matrix "
        "rises most steeply in memory, the fused kernel is the fastest at long lengths.",
    )

# %% tags=["not-when-graded"]
if recorded is not None:
    plots.show(
        plots.gpu.roofline(recorded, precision="bfloat16"),
        alt=f"The roofline of {plots.gpu.origin(recorded)}, in bfloat16: the version with the L by L matrix stays left of the ridge, "
        "the fused kernel passes it.",
    )

# %% [markdown]
# ## Build: sixteen bits
#
# ### 7.9 How wrong is it?
#
# Half the bytes, half the time to move them; and a GPU has units that multiply 16-bit numbers many times as fast. So models run
# in 16 bits. There are two kinds:
#
# | | largest number | next number after 1 (`eps` away) |
# |---|---|---|
# | float32 | $3.4 \cdot 10^{38}$ | $1.00000012$ |
# | **bfloat16** | $3.4 \cdot 10^{38}$ | $1.0078$ |
# | **float16** | $65504$ | $1.00098$ |
#
# bfloat16 reaches as far as float32, in coarse steps. float16 has finer steps and ends at 65504.
#
# So a right result in bfloat16 differs from the truth in the third digit. Is a difference of 0.01 a bug, then, or is it
# rounding? Count in **rounding steps** of the dtype:
#
# $$\text{gap} = \frac{\max |\text{low} - \text{truth}|}{\max |\text{truth}|} \cdot \frac{1}{\text{eps}}$$
#
# where *low* is `fn` of `x` in the low dtype, and *truth* is `fn` of `x` in float64. A gap of about 1 is rounding, in every dtype. A
# gap of 10 asks for a closer look, one of 100 for a bug report. If anything in *low* is not finite (∞ or NaN), the gap is `inf`: nothing is worse.
#
# By hand: the truth is $(2, 4)$, bfloat16 gave $(2, 4.03125)$, and eps is $0.0078125$. The largest error is $0.03125$; divided by the
# largest number, $0.0078125$: one step. The gap is **1**.


# %% nbgrader={"grade": false, "grade_id": "mixed_precision_gap", "locked": false, "schema_version": 3, "solution": true, "task": false}
def mixed_precision_gap(fn, x, dtype):
    """How far fn computed in dtype is from the truth,
    in rounding steps of that dtype: a Python float.

    fn: takes a tensor and gives a tensor, in the dtype it is given.
    The truth is fn in float64.
    inf if anything in the low result is not finite.
    """
    ### BEGIN SOLUTION
    truth = fn(x.double())
    low = fn(x.to(dtype)).double()
    if not low.isfinite().all():
        return math.inf
    error = (low - truth).abs().max() / truth.abs().max()
    return error.item() / torch.finfo(dtype).eps
    ### END SOLUTION


# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Call `fn` twice: once with `x` in float64, once with `x` in the low dtype, so that everything inside is rounded, too.
# </details>
#
# <details><summary>Hint 2: the idea</summary>
#
# Bring the low result to float64 **before** you subtract, or the difference itself is rounded. Largest absolute error, divided by
# the truth's largest absolute value, divided by `torch.finfo(dtype).eps`: each dtype has its own.
# </details>
#
# <details><summary>Hint 3: nearly the line</summary>
#
# `low = fn(x.to(dtype)).double()`. If `low.isfinite().all()` is not so, return `math.inf`, before anything else. At the end,
# `.item()`: here a measurement asks for a value, and waiting is right.
# </details>
#
# <details><summary>Stuck? Go on with the course's version</summary>
#
# Try once more tomorrow; for tonight, run `from mha_course.reference import mixed_precision_gap` in a cell of its own. The rest of the
# lesson works with it. `check` marks it ◇ *borrowed*, and so does your progress, until you write your own.
# </details>

# %% nbgrader={"grade": true, "grade_id": "check_mixed_precision_gap", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check(mixed_precision_gap)


# %%
def self_attention(x):
    return attend(x, x, x)[0]


x = 0.5 * torch.randn(4, 32, 64, dtype=torch.float64)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    print(f"{dtype!s:15} {mixed_precision_gap(self_attention, x, dtype):5.1f} steps")

# %% [markdown]
# A few steps, in every dtype. That is what rounding looks like.

# %% [markdown]
# ## Break it
#
# ### A tolerance for another dtype
#
# Compare bfloat16 with the truth by `torch.allclose`, with the tolerance that is usual in float32, and a **right** result fails. Make
# it generous until that passes, and a **wrong** one passes, too: here a softmax over the queries. Counted in steps, the two are
# far apart:


# %%
def over_the_queries(x):
    return torch.softmax(x @ x.mT / math.sqrt(x.shape[-1]), dim=-2) @ x


truth = self_attention(x)
for name, fn in (
    ("right, in bfloat16   ", self_attention),
    ("wrong, in bfloat16   ", over_the_queries),
):
    result = fn(x.to(torch.bfloat16)).double()
    usual, generous = (
        torch.allclose(result, truth),
        torch.allclose(result, truth, atol=0.1),
    )
    steps = (
        (result - truth).abs().max()
        / truth.abs().max()
        / torch.finfo(torch.bfloat16).eps
    )
    print(
        f"{name} usual tolerance: {usual!s:5}   within 0.1: {generous!s:5}   "
        f"off by {steps:.0f} steps"
    )

# %% [markdown]
# ### −1e9 in float16
#
# The large negative number that "is as good as −∞" in so much public code:

# %%
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    scores, closed = torch.zeros(1, 2, dtype=dtype), torch.tensor([[True, False]])
    try:
        print(dtype, scores.masked_fill(closed, -1e9).tolist())
    except RuntimeError as error:
        print(dtype, "RuntimeError:", error)
print(
    torch.float16,
    torch.zeros(1, 2, dtype=torch.float16).masked_fill(closed, -math.inf).tolist(),
    "with −∞",
)

# %% [markdown]
# ### Overflow in float16
#
# Scores first, scale afterwards: on paper the same as scaling first. But a sum of 64 products of numbers like 50 is beyond 65504, and
# what has become ∞ stays ∞, however it is divided:


# %%
def scaled_last(x):
    return x @ x.mT / math.sqrt(x.shape[-1])


def scaled_first(x):
    return (x / math.sqrt(x.shape[-1])) @ x.mT


large = 50 * torch.randn(2, 8, 64, dtype=torch.float64)
for fn in (scaled_last, scaled_first):
    gaps = [
        mixed_precision_gap(fn, large, dtype)
        for dtype in (torch.bfloat16, torch.float16)
    ]
    print(f"{fn.__name__:13} bfloat16 {gaps[0]:5.1f}   float16 {gaps[1]:5.1f} steps")

# %% [markdown]
# ### Dropout that never stops, a future that opens
#
# Two mistakes in one line. `dropout_p` is handed on whether or not the model trains; and `is_causal` depends on training, where only
# the dropout should:


# %%
def careless(q, k, v, dropout_p, training):
    return F.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout_p, is_causal=training
    )


ways = {
    "careless, training": lambda q, k, v: careless(q, k, v, 0.0, training=True),
    "careless, in use": lambda q, k, v: careless(q, k, v, 0.0, training=False),
    "yours, in use": lambda q, k, v: fused_attention(
        q, k, v, training=False, is_causal=True
    ),
}
tokens = torch.randn(6, 8, dtype=torch.float64)  # (L, E)
for name, attention in ways.items():

    def one(x, attention=attention):
        return attention(*[x[None, None]] * 3)[0, 0]

    leak = future_leak(one, tokens)  # (L, L)
    print(f"{name:20} largest dependence on the future: {leak.triu(1).max():.3f}")

# %%
q = torch.randn(1, 2, 6, 8)
same = careless(q, q, q, 0.1, False).equal(careless(q, q, q, 0.1, False))
print("careless, in use: the same input twice gives the same output:", same)
same = fused_attention(q, q, q, dropout_p=0.1).equal(
    fused_attention(q, q, q, dropout_p=0.1)
)
print("yours, in use:    the same input twice gives the same output:", same)

# %% [markdown]
# In training the careless one is perfect: the loss falls, nothing leaks. In use every answer is a little different, and every token
# sees the ones to come.
#
# ### Five ways to time
#
# The simulated GPU knows the truth, 6.3 ms. What do the usual ways to measure make of it?


# %%
def timed(calls, warm, wait, summary):
    gpu, times = SimulatedDevice(), []
    for _ in range(warm):
        gpu.kernel()
    gpu.synchronize()
    for _ in range(calls):
        started = gpu.clock()
        gpu.kernel()
        if wait:
            gpu.synchronize()
        times.append(gpu.clock() - started)
    return 1000 * summary(times)


# %%
print(f"no synchronise:             {timed(20, 3, False, statistics.median):6.1f} ms")
print(f"the first call:             {timed(1, 0, True, statistics.median):6.1f} ms")
print(f"mean of three, warmed up:   {timed(3, 3, True, statistics.mean):6.1f} ms")
print(f"mean of twenty, warmed up:  {timed(20, 3, True, statistics.mean):6.1f} ms")
print(f"median of twenty:           {timed(20, 3, True, statistics.median):6.1f} ms")

# %% [markdown]
# ## In PyTorch
#
# **The same numbers.** Your `fused_attention` against the attention that you know, causal and not; and torch's own count against
# yours:

# %%
from torch.utils.flop_counter import FlopCounterMode

q, k, v = torch.randn(3, 2, 3, 5, 8, dtype=torch.float64)  # (N, H, L, D) each
print(
    "largest difference:       ",
    (fused_attention(q, k, v) - attend(q, k, v)[0]).abs().max().item(),
)
closed = CausalMask(5)(q @ k.mT / math.sqrt(8)).softmax(-1) @ v
print(
    "largest difference, causal:",
    (fused_attention(q, k, v, is_causal=True) - closed).abs().max().item(),
)
with FlopCounterMode(display=False) as counter:
    attend(q, k, v)
print(
    "FLOPs: torch counts",
    counter.get_total_flops(),
    "and you",
    attention_flops(2, 3, 5, 8),
)

# %% [markdown]
# **Which kernel?** `F.scaled_dot_product_attention` chooses one of several **backends**. `sdpa_kernel` narrows the choice; what
# cannot run here says so. (On a CUDA device there are more than on a CPU.)

# %%
import warnings

from torch.nn.attention import SDPBackend, sdpa_kernel

q = torch.randn(1, 4, 256, 32, device=device)
for name in ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
    try:
        with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, name)):
            warnings.simplefilter("ignore")
            seconds = benchmark(lambda: F.scaled_dot_product_attention(q, q, q), here)
        print(f"{name:20} {1e6 * seconds:6.0f} µs")
    except RuntimeError:
        print(f"{name:20} not on {device}, or not for these inputs")

# %% [markdown]
# **Timing.** `torch.utils.benchmark.Timer` warms up, synchronises, and takes a median, as you do. (On CUDA there is also
# `torch.cuda.Event`, a clock that stands in the queue itself.)

# %%
from torch.utils.benchmark import Timer

theirs = (
    Timer("attend(q, q, q)", globals={"attend": fused_attention, "q": q})
    .blocked_autorange(min_run_time=0.2)
    .median
)
mine = benchmark(lambda: fused_attention(q, q, q), here)
print(f"torch's timer: {1e6 * theirs:.0f} µs, yours: {1e6 * mine:.0f} µs")

# %% [markdown]
# **Sixteen bits where they are safe.** `torch.autocast` is *mixed* precision: it runs the products in bfloat16, while the parameters
# stay in float32. Which other operations go back to float32 is written in a list for each device: on CUDA the softmax does, on a
# CPU it does not. So look, instead of trusting.

# %%
with torch.autocast(device.type, dtype=torch.bfloat16):
    tokens = torch.randn(2, 5, 8, device=device)
    scores = tokens @ tokens.mT
    weights = torch.softmax(scores, dim=-1)
print(
    "tokens:",
    tokens.dtype,
    "  scores:",
    scores.dtype,
    f"  weights: {weights.dtype} on {device}",
)

# %% [markdown]
# ## Recap
#
# - `x = x.to(device)` for tensors; `model.to(device)` for modules, which takes parameters and **buffers** along and nothing else.
# - A GPU works asynchronously: **warm up, synchronise, median**. And do not ask for values (`.item()`, `if tensor:`, `.cpu()`) on the
#   way: everything waits.
# - Work takes at least $\max(\text{FLOPs} / \text{FLOP/s}, \text{bytes} / \text{bytes/s})$. With the $L \times L$ matrix attention has at
#   most $D / b$ FLOPs per byte and waits for memory; fused it has $L / b$.
# - The fused kernel drops whenever it is told to, in use as well; the causal mask must not depend on training.
# - bfloat16 is coarse, float16 ends at 65504; count errors in rounding steps of the dtype, and close with −∞.

# %% [markdown]
# ### Four quick questions
#
# **A kernel takes 6 ms. Somebody measures 0.3 ms, again and again, with the median of 100 calls. Why?**
#
# (a) the kernel is quicker when it is called often · (b) the first call was slow · (c) the clock was read while the work was still in
# the queue · (d) the median hides the slow calls

# %% nbgrader={"grade": false, "grade_id": "why_synchronise", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: why_synchronise = "a", "b", "c" or "d"
### BEGIN SOLUTION
why_synchronise = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_why_synchronise", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(why_synchronise=why_synchronise)

# %% [markdown]
# **Why is a mask kept as a buffer and not as a plain attribute?**
#
# (a) so that the optimizer finds it · (b) so that it moves along with the module · (c) because it is quicker to read · (d) because it
# has to be saved

# %% nbgrader={"grade": false, "grade_id": "why_a_buffer", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: why_a_buffer = "a", "b", "c" or "d"
### BEGIN SOLUTION
why_a_buffer = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_why_a_buffer", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(why_a_buffer=why_a_buffer)

# %% [markdown]
# **Attention with the L × L matrix, D = 64, bfloat16, on a machine whose ridge is at 200 FLOPs per byte. What sets the time?**
#
# (a) computing, because of the L² FLOPs · (b) computing, since 32 is less than 200 · (c) memory for short sequences, computing for
# long ones · (d) memory, at every length

# %% nbgrader={"grade": false, "grade_id": "which_side", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: which_side = "a", "b", "c" or "d"
### BEGIN SOLUTION
which_side = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_which_side", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(which_side=which_side)

# %% [markdown]
# **bfloat16 instead of float16: what do you gain, and what do you pay?**
#
# (a) hardly anything overflows, in coarser steps · (b) finer steps, and an end at 65504 · (c) half the bytes · (d) nothing has to
# be changed in the tests

# %% nbgrader={"grade": false, "grade_id": "which_sixteen_bits", "locked": false, "schema_version": 3, "solution": true, "task": false}
# Your answer: which_sixteen_bits = "a", "b", "c" or "d"
### BEGIN SOLUTION
which_sixteen_bits = "a"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check_which_sixteen_bits", "locked": true, "points": 1, "schema_version": 3, "solution": false, "task": false}
check(which_sixteen_bits=which_sixteen_bits)

# %% [markdown]
# ## Read more
#
# - Williams, Waterman and Patterson 2009, [*Roofline: an insightful visual performance model for multicore architectures*](https://doi.org/10.1145/1498765.1498785): the picture,
#   by those who first drew it.
# - Dao, Fu, Ermon, Rudra and Ré 2022, [*FlashAttention*](https://arxiv.org/abs/2205.14135), sections 2 and 3.1: attention's bytes, counted as you did, and what to do about
#   them.
# - Micikevicius et al. 2018, [*Mixed precision training*](https://arxiv.org/abs/1710.03740), section 3: what goes wrong in float16, and three remedies.
# - PyTorch's notes [*CUDA semantics*](https://docs.pytorch.org/docs/stable/notes/cuda.html#asynchronous-execution), "Asynchronous execution", and
#   [*Numerical accuracy*](https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html).
# - `mha_course/reference/gpu.py` and `mha_course/devices.py`: the course's own answers, and the simulated GPU.
#
# **Next:** [lesson 08, Without the L × L matrix](../08_without_the_matrix/08_without_the_matrix.ipynb). Exact attention, and the big matrix never exists.
