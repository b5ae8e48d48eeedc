"""Lesson 00: subtracting a row from a column, all dot products at once, cutting features into groups."""

import torch
import torch.nn.functional as F

from mha_course import reference
from mha_course.checking import Case, Exercise, Lesson, Misconception, Property, Question, Style

from ._properties import of_shape

LEFT_TORCH = (
    "The numbers are right, but they are cut off from the inputs: a detour through NumPy, `torch.tensor(…)` or `detach()` lets "
    "no gradient through, and nothing before it could learn. Stay with the tensors you were given."
)

# ------------------------------------------------------------------------------- 0.1 steps_back


def positions(L, S, dtype=torch.float64):
    """Positions that are no plain 0, 1, 2, …: whoever counts instead of reading them is found out."""

    def make(draw):
        return {"query_positions": draw.normal(L, dtype=dtype), "key_positions": draw.normal(S, dtype=dtype)}

    return make


def example_positions(draw):
    return {"query_positions": torch.tensor([2, 5]), "key_positions": torch.tensor([0, 2, 3])}


def one_newest_word(draw):
    return {"query_positions": torch.tensor([6]), "key_positions": torch.arange(7)}


def assemble_steps(as_column="queries", combine=torch.sub):
    """`steps_back` from its two decisions: which positions stand as a column, and how two are combined."""

    def steps_back(query_positions, key_positions):
        if as_column == "queries":
            return combine(query_positions[:, None], key_positions[None, :])
        return combine(query_positions[None, :], key_positions[:, None])

    return steps_back


def key_minus_query(query, key):
    return key - query


def distance(query, key):
    return (query - key).abs()


def never_negative(query, key):
    return (query - key).clamp(min=0)


def no_new_dimension(query_positions, key_positions):
    return query_positions - key_positions


def both_as_columns(query_positions, key_positions):
    return query_positions[:, None] - key_positions[:, None]


def both_as_rows(query_positions, key_positions):
    return query_positions[None, :] - key_positions[None, :]


def outer_product(query_positions, key_positions):
    return torch.outer(query_positions, key_positions)


def counted(query_positions, key_positions):
    L, S = len(query_positions), len(key_positions)
    return torch.arange(L)[:, None] - torch.arange(S)[None, :]


def counted_in_their_dtype(query_positions, key_positions):
    return counted(query_positions, key_positions).to(query_positions)


def unsqueezed_in_place(query_positions, key_positions):
    return query_positions.unsqueeze_(1) - key_positions


def by_numpy(query_positions, key_positions):
    import numpy

    q, k = query_positions.detach().numpy(), key_positions.detach().numpy()
    return torch.from_numpy(numpy.subtract.outer(q, k))


def detached_steps(query_positions, key_positions):
    return (query_positions[:, None] - key_positions[None, :]).detach()


def steps_retyped(query_positions, key_positions):
    q, k = query_positions.tolist(), key_positions.tolist()
    return torch.tensor([[a - b for b in k] for a in q])


def steps_as_whole_numbers(query_positions, key_positions):
    return (query_positions[:, None] - key_positions[None, :]).long()


def steps_by_meshgrid(query_positions, key_positions):
    query, key = torch.meshgrid(query_positions, key_positions, indexing="ij")
    return query - key


def steps_row_by_row(query_positions, key_positions):
    return torch.stack([position - key_positions for position in query_positions])


def steps_column_by_column(query_positions, key_positions):
    return torch.stack([query_positions - position for position in key_positions], dim=1)


def steps_into_a_table(query_positions, key_positions):
    table = query_positions.new_empty(len(query_positions), len(key_positions))
    table[:] = query_positions.unsqueeze(-1)
    table -= key_positions
    return table


def steps_expanded(query_positions, key_positions):
    L, S = len(query_positions), len(key_positions)
    return query_positions.view(L, 1).expand(L, S) - key_positions.view(1, S).expand(L, S)


def steps_turned_round(query_positions, key_positions):
    return (query_positions - key_positions.unsqueeze(1)).transpose(0, 1)


@of_shape(lambda inputs: (len(inputs["query_positions"]), len(inputs["key_positions"])))
def first_entry_is_a_difference(inputs, value):
    query, key = float(inputs["query_positions"][0]), float(inputs["key_positions"][0])
    if abs(float(value[0, 0]) - (query - key)) < 1e-6:
        return None
    return (
        f"Entry [0, 0] is query_positions[0] minus key_positions[0]: {query:.2f} − {key:.2f} = {query - key:.2f}. "
        f"Yours is {float(value[0, 0]):.2f}."
    )


STEPS_BACK = Exercise(
    name="steps_back",
    number="0.1",
    reference=reference.steps_back,
    returns=("steps (L, S)",),
    cases=(
        Case("the lesson's own example", example_positions),
        Case("L and S differ", positions(3, 5)),
        Case("as many queries as keys", positions(4, 4)),
        Case("one new word looks back at all seven", one_newest_word),
        Case("float32", positions(2, 6, torch.float32)),
    ),
    assemble=assemble_steps,
    misconceptions=(
        Misconception(
            "no-new-dimension",
            "Both inputs still have one dimension, so entry meets entry: the first with the first, the second with the "
            "second. A table needs every query with every key: one of them must stand as a column.",
            wrong=no_new_dimension,
            hint=1,
        ),
        Misconception(
            "same-dimension",
            "Both inputs got their new dimension on the same side: two columns (or two rows) meet entry by entry and "
            "make no table. One has to stand upright, the other has to lie.",
            wrong=both_as_columns,
            also=(both_as_rows,),
            hint=2,
        ),
        Misconception(
            "table-turned-round",
            "Your table has a row for each key; it should have a row for each query. The positions that go down the "
            "side are the queries'.",
            part={"as_column": "keys"},
            hint=2,
        ),
        Misconception(
            "key-minus-query",
            "Every number has the wrong sign: that is key minus query, how far ahead a key is. "
            "How far *back* it is, is wanted: a key at 2 is 3 steps behind a query at 5.",
            part={"combine": key_minus_query},
            hint=1,
        ),
        Misconception(
            "sign-lost",
            "No number is negative, but a key that lies ahead of its query must give a negative one: lesson 02 uses "
            "the sign to tell future from past. An absolute value loses it.",
            part={"combine": distance},
            hint=1,
        ),
        Misconception(
            "future-cut-to-zero",
            "Keys that lie ahead all give 0 instead of a negative number: now they look as if they stood at the same "
            "place as the query.",
            part={"combine": never_negative},
        ),
        Misconception(
            "added",
            "The numbers are sums of two positions. How far back is a difference.",
            part={"combine": torch.add},
            hint=1,
        ),
        Misconception(
            "outer-product",
            "The numbers are products of two positions. torch.outer makes a table from a column and a row, too, but "
            "it multiplies.",
            wrong=outer_product,
            hint=1,
        ),
        Misconception(
            "counted-not-read",
            "You count 0, 1, 2, … yourself; the positions that are given are never read. A query may stand anywhere, "
            "as the newest word of a long text does.",
            wrong=counted,
            also=(counted_in_their_dtype,),
            hint=2,
        ),
        Misconception(
            "input-turned-in-place",
            "The table is right, but after the call query_positions itself has another shape: unsqueeze_ (with the "
            "underscore) changes the tensor that the caller still holds. The form without it gives a new view.",
            wrong=unsqueezed_in_place,
            hint=3,
        ),
        Misconception(
            "left-torch",
            LEFT_TORCH,
            wrong=by_numpy,
            also=(
                detached_steps,
                lambda q, k: torch.tensor([[a - b for b in k] for a in q], dtype=q.dtype),
            ),
        ),
        Misconception(
            "made-anew-from-numbers",
            "The numbers are right up to rounding, but the tensor was typed anew from Python numbers: it has lost the "
            "dtype of the inputs and every gradient. Let the tensors themselves be subtracted.",
            wrong=steps_retyped,
            hint=2,
        ),
        Misconception(
            "cut-to-whole-numbers",
            "The numbers have lost what stands after the decimal point: positions need not be whole numbers. Keep the "
            "dtype of the inputs.",
            wrong=steps_as_whole_numbers,
        ),
    ),
    properties=(Property("entry [0, 0]", first_entry_is_a_difference, hint=1),),
    styles=(
        Style("unsqueeze both", lambda q, k: q.unsqueeze(1) - k.unsqueeze(0)),
        Style("only the column is made", lambda q, k: q[:, None] - k),
        Style("reshape", lambda q, k: q.reshape(-1, 1) - k.reshape(1, -1)),
        Style("meshgrid", steps_by_meshgrid),
        Style("expand", steps_expanded),
        Style("a loop over the queries", steps_row_by_row),
        Style("a loop over the keys", steps_column_by_column),
        Style("in place in a table of one's own", steps_into_a_table),
        Style("the other way round, then turned (not contiguous)", steps_turned_round),
        Style("key minus query, then minus", lambda q, k: -(k[None, :] - q[:, None])),
        Style("vmap", lambda q, k: torch.vmap(lambda position: position - k)(q)),
    ),
)

# ----------------------------------------------------------------------------- 0.2 pairwise_dot


def example_rows(draw):
    return {
        "a": torch.tensor([[1.0, 2], [0, 1], [3, 1]]),
        "b": torch.tensor([[1.0, 0], [1, 1], [2, 1], [0, 3]]),
    }


def rows(L, S, D, dtype=torch.float64):
    def make(draw):
        return {"a": draw.normal(L, D, dtype=dtype), "b": draw.normal(S, D, dtype=dtype)}

    return make


def not_contiguous(draw):
    return {"a": draw.normal(4, 2).T, "b": draw.normal(4, 6)[:, ::2].T}


def b_first(a, b):
    return b @ a.T


def no_transpose(a, b):
    return a @ b


def both_turned(a, b):
    return a.T @ b


def entry_by_entry(a, b):
    return a * b


def entry_by_entry_turned(a, b):
    return a * b.T


def row_with_its_own_row(a, b):
    return (a * b).sum(-1)


def not_summed(a, b):
    return a[:, None, :] * b[None, :, :]


def averaged(a, b):
    return (a @ b.T) / a.shape[-1]


def averaged_by_mean(a, b):
    return (a[:, None, :] * b[None, :, :]).mean(-1)


def scaled(a, b):
    return (a @ b.T) / a.shape[-1] ** 0.5


def with_softmax(a, b):
    return (a @ b.T).softmax(-1)


def cosine(a, b):
    return F.cosine_similarity(a[:, None, :], b[None, :, :], dim=-1)


def cosine_by_length(a, b):
    return (a / a.norm(dim=-1, keepdim=True)) @ (b / b.norm(dim=-1, keepdim=True)).T


def transposed_in_place(a, b):
    return a @ b.t_()


def dot_by_numpy(a, b):
    return torch.from_numpy(a.detach().numpy() @ b.detach().numpy().T)


def dot_detached(a, b):
    return (a @ b.T).detach()


def dot_retyped(a, b):
    return torch.tensor([[float(torch.dot(row, other)) for other in b] for row in a])


def dot_in_float32(a, b):
    return a.float() @ b.float().T


def dot_by_loops(a, b):
    return torch.stack([torch.stack([torch.dot(row, other) for other in b]) for row in a])


def dot_feature_by_feature(a, b):
    return sum(torch.outer(a[:, d], b[:, d]) for d in range(a.shape[1]))


def dot_in_double(a, b):
    return (a.double() @ b.double().T).to(a.dtype)


def dot_by_baddbmm(a, b):
    nothing = a.new_zeros(1, len(a), len(b))
    return torch.baddbmm(nothing, a.unsqueeze(0), b.T.unsqueeze(0)).squeeze(0)


@of_shape(lambda inputs: (len(inputs["a"]), len(inputs["b"])))
def first_entry_is_a_dot_product(inputs, value):
    dot = float((inputs["a"][0] * inputs["b"][0]).sum())
    if abs(float(value[0, 0]) - dot) < 1e-6:
        return None
    return (
        f"Entry [0, 0] is the dot product of the first row of a and the first row of b, {dot:.2f}; "
        f"yours is {float(value[0, 0]):.2f}."
    )


PAIRWISE_DOT = Exercise(
    name="pairwise_dot",
    number="0.2",
    reference=reference.pairwise_dot,
    returns=("dots (L, S)",),
    cases=(
        Case("the lesson's own example", example_rows),
        Case("L, S and D all differ", rows(3, 5, 4)),
        Case("as many rows as features", rows(4, 4, 4)),
        Case("a single row in a", rows(1, 3, 2)),
        Case("tensors that were transposed before", not_contiguous),
    ),
    misconceptions=(
        Misconception(
            "entry-by-entry",
            "`*` multiplies entry by entry, and asks for two tensors of the same shape. A dot product multiplies and "
            "adds up: that is `@`.",
            wrong=entry_by_entry,
            also=(entry_by_entry_turned,),
            hint=1,
        ),
        Misconception(
            "no-transpose",
            "`a @ b` takes the *columns* of b: it wants as many rows in b as a has columns. Here the rows of b are the "
            "vectors, so b must be turned first.",
            wrong=no_transpose,
            hint=2,
        ),
        Misconception(
            "table-turned-round",
            "The right dot products, but in a table with a row for each row of b. Row i of the result belongs to row "
            "i of *a*: a comes first.",
            wrong=b_first,
            hint=2,
        ),
        Misconception(
            "wrong-one-turned",
            "You turned a instead of b: that sums over the rows, and compares feature with feature. The sum must run "
            "over the D features, the one thing a and b have in common.",
            wrong=both_turned,
            hint=2,
        ),
        Misconception(
            "only-its-own-row",
            "Only row 0 with row 0, row 1 with row 1, …: one number for each, where a whole row of the table is "
            "wanted. Every row of a meets *every* row of b.",
            wrong=row_with_its_own_row,
            hint=1,
        ),
        Misconception(
            "summed-over-everything",
            "A single number came out: everything was added up. A dot product adds up over the features only; the rows of a "
            "and of b stay apart.",
            wrong=lambda a, b: (a[:, None] * b).sum(),
            hint=1,
            also=(lambda a, b: (a @ b.T).sum(),),
        ),
        Misconception(
            "reshape-for-transpose",
            "The shape is right and the numbers are scrambled: `view` and `reshape` keep the reading order, so the rows of b "
            "did not become columns; they were cut up anew.",
            wrong=lambda a, b: a @ b.reshape(b.shape[1], b.shape[0]),
            hint=2,
            also=(lambda a, b: a @ b.view(b.shape[1], b.shape[0]), lambda a, b: a @ b.view(2, 4)),
        ),
        Misconception(
            "not-summed",
            "There are three dimensions, (L, S, D): all products are there, one for each feature. To make a dot "
            "product of them, add them up over the features.",
            wrong=not_summed,
            hint=1,
        ),
        Misconception(
            "averaged",
            "Every number is D times too small: the mean over the features, where the sum is wanted.",
            wrong=averaged,
            also=(averaged_by_mean,),
        ),
        Misconception(
            "scaled-already",
            "Every number is √D times too small. You are one lesson ahead: attention does scale like that, and lesson "
            "01 asks why. Here the plain dot product is wanted.",
            wrong=scaled,
        ),
        Misconception(
            "softmax-already",
            "Each row is positive and sums to 1: that is a softmax. You are one lesson ahead: here the plain dot "
            "products are wanted.",
            wrong=with_softmax,
        ),
        Misconception(
            "cosine",
            "All numbers lie between −1 and 1: the lengths of the vectors were divided out (cosine similarity). A dot "
            "product keeps them.",
            wrong=cosine,
            also=(cosine_by_length,),
        ),
        Misconception(
            "input-turned-in-place",
            "The table is right, but after the call b itself is turned: t_ (with the underscore) changes the tensor "
            "that the caller still holds. There is a form that gives a turned view and leaves b alone.",
            wrong=transposed_in_place,
            hint=3,
        ),
        Misconception(
            "left-torch",
            LEFT_TORCH,
            wrong=dot_by_numpy,
            also=(dot_detached,),
        ),
        Misconception(
            "made-anew-from-numbers",
            "The numbers are right up to rounding, but the tensor was typed anew from Python numbers: it has lost the "
            "dtype of the inputs and every gradient. There is an operator that does all of it at once.",
            wrong=dot_retyped,
            hint=2,
        ),
        Misconception(
            "made-float32",
            "The result is float32 where the inputs are float64: somewhere a .float() rounds. Keep the dtype of the "
            "inputs.",
            wrong=dot_in_float32,
        ),
    ),
    properties=(Property("entry [0, 0]", first_entry_is_a_dot_product, hint=1),),
    styles=(
        Style("transpose", lambda a, b: torch.matmul(a, b.transpose(0, 1))),
        Style("mm and t", lambda a, b: torch.mm(a, b.t())),
        Style("einsum", lambda a, b: torch.einsum("ld,sd->ls", a, b)),
        Style("broadcast and sum", lambda a, b: (a[:, None, :] * b[None, :, :]).sum(-1)),
        Style("loops and torch.dot", dot_by_loops),
        Style("feature by feature", dot_feature_by_feature),
        Style("turned result (not contiguous)", lambda a, b: (b @ a.T).T),
        Style("inner", torch.inner),
        Style("linear", lambda a, b: F.linear(a, b)),
        Style("baddbmm", dot_by_baddbmm),
        Style("float64 inside", dot_in_double),
        Style("tensordot", lambda a, b: torch.tensordot(a, b, dims=([1], [1]))),
    ),
)

# ---------------------------------------------------------------------------------- 0.3 regroup


def features(L, E, groups, dtype=torch.float64):
    def make(draw):
        return {"x": draw.normal(L, E, dtype=dtype), "groups": groups}

    return make


def numbered(draw):
    return {"x": torch.arange(18).view(3, 6), "groups": 2}


def turned_input(draw):
    return {"x": draw.normal(12, 5).T, "groups": 4}


def only_view(x, groups):
    L, E = x.shape
    return x.reshape(groups, L, E // groups)


def only_view_itself(x, groups):
    L, E = x.shape
    return x.view(groups, L, E // groups)


def not_brought_to_the_front(x, groups):
    L, E = x.shape
    return x.view(L, groups, E // groups)


def every_so_many(x, groups):
    L, E = x.shape
    return x.view(L, E // groups, groups).permute(2, 0, 1)


def every_so_many_by_slices(x, groups):
    return torch.stack([x[:, g::groups] for g in range(groups)])


def groups_of_that_size(x, groups):
    L, E = x.shape
    return x.view(L, E // groups, groups).transpose(0, 1)


def features_before_tokens(x, groups):
    L, E = x.shape
    return x.view(L, groups, E // groups).permute(1, 2, 0)


def tokens_cut(x, groups):
    L, E = x.shape
    return x.reshape(groups, L // groups, E)


def tokens_cut_by_view(x, groups):
    L, E = x.shape
    return x.view(groups, L // groups, E)


def tokens_cut_by_chunk(x, groups):
    return torch.stack(x.chunk(groups))


def turned_then_viewed(x, groups):
    L, E = x.shape
    return x.T.reshape(groups, L, E // groups)


def turned_and_viewed(x, groups):
    L, E = x.shape
    return x.T.contiguous().view(groups, L, E // groups)


def turned_first(x, groups):
    L, E = x.shape
    return x.T.view(groups, L, E // groups)


def a_tuple(x, groups):
    return x.chunk(groups, dim=-1)


def a_list(x, groups):
    return list(x.chunk(groups, dim=-1))


def glued(x, groups):
    return torch.cat(x.chunk(groups, dim=-1))


def reshaped_in_place(x, groups):
    L, E = x.shape
    return x.resize_(L, groups, E // groups).transpose(0, 1)


def regroup_by_numpy(x, groups):
    L, E = x.shape
    return torch.from_numpy(x.detach().numpy().reshape(L, groups, E // groups).swapaxes(0, 1).copy())


def regroup_detached(x, groups):
    L, E = x.shape
    return x.detach().view(L, groups, E // groups).transpose(0, 1)


def regroup_by_slices(x, groups):
    D = x.shape[1] // groups
    return torch.stack([x[:, g * D : (g + 1) * D] for g in range(groups)])


def regroup_token_by_token(x, groups):
    return torch.stack([token.view(groups, -1) for token in x], dim=1)


def regroup_by_turning(x, groups):
    L, E = x.shape
    return x.T.reshape(groups, E // groups, L).mT


def regroup_by_index(x, groups):
    D = x.shape[1] // groups
    which = torch.arange(groups * D, device=x.device).view(groups, D)
    return x[:, which].movedim(1, 0)


def regroup_by_einsum(x, groups):
    L, E = x.shape
    return torch.einsum("lgd->gld", x.view(L, groups, E // groups))


def regroup_into_a_table(x, groups):
    L, E = x.shape
    table = x.new_empty(groups, L, E // groups)
    for g, part in enumerate(x.split(E // groups, dim=1)):
        table[g] = part
    return table


@of_shape(lambda inputs: (inputs["groups"], len(inputs["x"]), inputs["x"].shape[1] // inputs["groups"]))
def slices_keep_the_tokens(inputs, value):
    x, groups = inputs["x"], inputs["groups"]
    if sorted(value.flatten().tolist()) != sorted(x.flatten().tolist()):
        return "Regrouping only moves numbers; in yours some are new, changed, or missing."
    for g in range(groups):
        for token in range(x.shape[0]):
            if not bool(torch.isin(value[g, token], x[token]).all()):
                return (
                    f"Row [{g}, {token}] should hold numbers of token {token} only; yours has others in it."
                )
    return None


REGROUP = Exercise(
    name="regroup",
    number="0.3",
    reference=reference.regroup,
    returns=("groups (groups, L, E/groups)",),
    cases=(
        Case("numbered 0 to 17", numbered),
        Case("L, E and groups all differ", features(5, 12, 3)),
        Case("as many tokens as groups", features(2, 8, 2)),
        Case("a tensor that was transposed before", turned_input),
        Case("one group", features(3, 4, 1)),
        Case("float32", features(4, 6, 2, torch.float32)),
    ),
    misconceptions=(
        Misconception(
            "view-without-transpose",
            "The shape is right, the numbers are scrambled: view (or reshape) fills the new shape in reading order, so "
            "the first slice swallowed whole tokens. Cut each token's row first, then move the groups to the front.",
            wrong=only_view,
            also=(only_view_itself,),
            hint=2,
        ),
        Misconception(
            "not-brought-to-the-front",
            "Each token's row is cut correctly, but the tokens are still in front: (L, groups, E/groups). One step is "
            "missing: the groups should be in front.",
            wrong=not_brought_to_the_front,
            hint=2,
        ),
        Misconception(
            "every-so-many-features",
            "Each of your groups takes every so-many-th feature (0, 2, 4, …). A group is a run of *neighbours*: in the "
            "view, the groups come before what is inside a group.",
            wrong=every_so_many,
            also=(every_so_many_by_slices,),
            hint=3,
        ),
        Misconception(
            "number-taken-for-size",
            "The argument `groups` says how *many* groups there are; you made groups of that size.",
            wrong=groups_of_that_size,
            hint=1,
        ),
        Misconception(
            "size-is-a-float",
            "torch got a size with a decimal point: `/` gives 3.0 even where it comes out even. Sizes are whole numbers, and "
            "there is a division that gives those.",
            wrong=lambda x, groups: x.view(x.shape[0], groups, x.shape[1] / groups).transpose(0, 1),
            hint=1,
            also=(
                lambda x, groups: x.reshape(x.shape[0], groups, x.shape[1] / groups).transpose(0, 1),
                lambda x, groups: x.view(groups, x.shape[0], x.shape[1] / groups),
                lambda x, groups: x.reshape(groups, x.shape[0], x.shape[1] / groups),
            ),
        ),
        Misconception(
            "features-before-tokens",
            "Inside each group rows and columns are exchanged: (groups, E/groups, L). Each token should stay a row.",
            wrong=features_before_tokens,
            hint=3,
        ),
        Misconception(
            "tokens-cut",
            "You cut the list of tokens into groups. Every group should have all the tokens, and of each only some "
            "features: the cut goes through the rows.",
            wrong=tokens_cut,
            also=(tokens_cut_by_view, tokens_cut_by_chunk),
            hint=1,
        ),
        Misconception(
            "turned-then-viewed",
            "The shape is right, the numbers are scrambled: you turned x first, and then filled a new shape in reading "
            "order. Turn after the cut, when the groups have a dimension of their own.",
            wrong=turned_then_viewed,
            also=(turned_and_viewed, turned_first),
            hint=2,
        ),
        Misconception(
            "pieces-not-stacked",
            "The groups are right, but in a tuple or a list of tensors. One tensor with the groups as its first "
            "dimension is wanted: stack them.",
            wrong=a_tuple,
            also=(a_list,),
            hint=1,
        ),
        Misconception(
            "glued-end-to-end",
            "The groups are glued end to end, and have no dimension of their own: (groups · L, E/groups). cat lengthens "
            "a dimension; stack makes a new one.",
            wrong=glued,
            hint=1,
        ),
        Misconception(
            "input-reshaped-in-place",
            "The result is right, but after the call x itself has another shape: resize_ (with the underscore) changes "
            "the tensor that the caller still holds. view gives a new one and leaves x alone.",
            wrong=reshaped_in_place,
            hint=3,
        ),
        Misconception(
            "left-torch",
            LEFT_TORCH,
            wrong=regroup_by_numpy,
            also=(regroup_detached,),
        ),
    ),
    properties=(Property("each token stays in its row", slices_keep_the_tokens, hint=2),),
    styles=(
        Style("reshape and permute", lambda x, groups: x.reshape(len(x), groups, -1).permute(1, 0, 2)),
        Style("contiguous", lambda x, groups: reference.regroup(x, groups).contiguous()),
        Style("unflatten", lambda x, groups: x.unflatten(-1, (groups, -1)).movedim(1, 0)),
        Style("chunk and stack", lambda x, groups: torch.stack(x.chunk(groups, dim=-1))),
        Style("slices and stack", regroup_by_slices),
        Style("a loop over the tokens", regroup_token_by_token),
        Style("turn, cut, turn back", regroup_by_turning),
        Style("an index", regroup_by_index),
        Style("einsum", regroup_by_einsum),
        Style("a table of one's own", regroup_into_a_table),
        Style(
            "unfold", lambda x, groups: x.unfold(1, x.shape[1] // groups, x.shape[1] // groups).swapaxes(0, 1)
        ),
    ),
)

# ------------------------------------------------------------------------------------ questions

QUESTIONS = (
    Question(
        "it_looks_at",
        right="b",
        why={
            "a": "That is what *it* looks at in head 1. In head 2, on the right, its thick line goes further up.",
            "b": "Yes: *it* asks for a thing, and the ring is the only thing in the sentence.",
            "c": "That is where the thick line of *she* ends. Follow the line that starts at *it*, at the bottom.",
            "d": "So do the words that ask for nothing: their lines are thin. *It* has a thick one.",
        },
    ),
    Question(
        "broadcast_shape",
        right="b",
        why={
            "a": "Not an error: shapes are compared from the right, 1 against 3 and 4 against nothing. A 1 stretches, "
            "and a missing dimension counts as 1.",
            "b": "Yes. Written one below the other from the right: (4, 1) and (·, 3). The 1 stretches to 3, what is "
            "missing stretches to 4.",
            "c": "The right table, turned: the one with the 1 at the end is the column, and a column of 4 gives 4 rows.",
            "d": "12 is how many numbers there are, but they stand in a table: broadcasting stretches dimensions, it never "
            "joins two of them.",
        },
    ),
    Question(
        "which_makes_the_table",
        right="c",
        why={
            "a": "q * k wants the same shape (or 1s): 5 against 7 is an error. And where it works, it multiplies "
            "entry by entry and adds nothing up.",
            "b": "The inner sizes do not fit: (5, 4) @ (7, 4) would need 4 = 7. The keys must be turned first.",
            "c": "Yes: (5, 4) @ (4, 7) gives (5, 7), a row for each query and a column for each key.",
            "d": "All dot products, but turned: (7, 4) @ (4, 5) gives (7, 5), a row for each key.",
        },
    ),
    Question(
        "view_or_transpose",
        right="d",
        why={
            "a": "x.view(3, 2) has two columns, so no row of it can hold three numbers.",
            "b": "[0, 3] is the first column of x, laid down: .T does that. view never does: it keeps the reading "
            "order 0, 1, 2, 3, 4, 5.",
            "c": "Both have the shape (3, 2), but .T makes rows of the columns: its first row is 0, 3.",
            "d": "Yes: view keeps the reading order, whatever the shape; .T turns the columns into rows.",
        },
    ),
)

LESSON = Lesson(
    folder="00_start_here",
    title="Start here",
    exercises=(STEPS_BACK, PAIRWISE_DOT, REGROUP),
    questions=QUESTIONS,
)
