"""docs/drop-in.md: every row of its table, "where it differs, and why", is held by one test here."""

import copy
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from mha_course.reference import MultiheadAttention

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "drop-in.md").read_text(encoding="utf-8")
HELD = []  # the rows that a test below holds

SMALLEST = torch.finfo(torch.float32).min
NAN = "nan"


def holds(row):
    HELD.append(row)
    return lambda test: test


def pair(E=8, H=2, **options):
    """PyTorch's module and ours, batch first, with the same random parameters."""
    theirs = nn.MultiheadAttention(E, H, batch_first=True, **options)
    torch.manual_seed(5)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = MultiheadAttention(E, H, batch_first=True, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def on_the_fast_path(module, *inputs, **call):
    with torch.no_grad():
        return module.eval()(*inputs, **call)


def nothing_but(x, what):
    """Whether all of x is NaN, or one vector over and over."""
    return x.isnan().all() if what is NAN else torch.allclose(x, what.expand_as(x))


def test_every_row_of_the_table_is_held_by_a_test_and_every_test_holds_a_row():
    rows = re.findall(r"^\| (.+?) \|.*\|$", PAGE, re.MULTILINE)
    assert rows[0] == "what"
    assert sorted(rows[1:]) == sorted(HELD)


# ------------------------------------------------------------------------------------------ the numbers


@holds("A query that may look at nothing")
def test_a_query_that_may_look_at_nothing_gets_the_bias_here_and_mostly_nan_there():
    theirs, ours = pair()
    x, empty = tokens(2, 3, 8), torch.tensor([[False] * 3, [True] * 3])
    for need_weights, answer in ((True, NAN), (False, theirs.out_proj.bias)):
        for module, expected in ((theirs, answer), (ours, ours.out_proj.bias)):
            output, weights = module(x, x, x, key_padding_mask=empty, need_weights=need_weights)
            assert nothing_but(output[1], expected)
            if module is ours and need_weights:
                assert not weights[1].any()
            module.zero_grad()
            output.sum().backward()
            finite = all(parameter.grad.isfinite().all() for parameter in module.parameters())
            assert finite == (module is ours or not need_weights)
        for module, expected in ((theirs, NAN), (ours, ours.out_proj.bias)):
            output, _ = on_the_fast_path(
                copy.deepcopy(module), x, x, x, key_padding_mask=empty, need_weights=need_weights
            )
            assert nothing_but(output[1], expected)


@holds("Finite numbers in masks that become −∞")
def test_finite_numbers_that_become_minus_infinity_close_the_look_here():
    theirs, ours = pair()
    x = tokens(2, 3, 8)
    row = torch.zeros(3, 3)
    row[1] = SMALLEST  # query 1 may look nowhere, by both masks together
    masks = {"attn_mask": row, "key_padding_mask": torch.full((2, 3), SMALLEST)}
    assert theirs(x, x, x, **masks)[0][:, 1].isnan().all()
    for need_weights in (True, False):
        output, weights = ours(x, x, x, need_weights=need_weights, **masks)
        assert nothing_but(output[:, 1], ours.out_proj.bias)
        output.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())
        assert weights is None or not weights[:, 1].any()

    mask = torch.zeros(3, 3).masked_fill(torch.tensor([[False], [True], [False]]), -1e9)
    with torch.autocast("cpu", dtype=torch.float16):
        assert theirs(x, x, x, attn_mask=mask)[0][:, 1].isnan().all()
        for need_weights in (True, False):
            output, _ = ours(x, x, x, attn_mask=mask, need_weights=need_weights)
            torch.testing.assert_close(output[:, 1], ours.out_proj.bias.half().expand(2, 8))


def test_a_score_and_a_mask_that_add_up_to_minus_infinity_are_nan_in_both():
    query, key = tokens(2, 3, 8) * 1e36, tokens(2, 4, 8)
    for module in pair():
        output, _ = module(query, key, key, attn_mask=torch.full((3, 4), SMALLEST))
        assert output.isnan().any()


@holds("A mask of numbers in another precision")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_a_mask_in_another_precision_is_converted_here_and_refused_there(dtype, name):
    theirs, ours = pair()
    x, mask = tokens(3, 3, 8), tokens(3, 3).to(dtype)
    with pytest.raises(RuntimeError, match="dtypes must be the same"):
        theirs(x, x, x, **{name: mask})
    for need_weights in (True, False):
        output, _ = ours(x, x, x, need_weights=need_weights, **{name: mask})
        expected, _ = theirs(x, x, x, need_weights=need_weights, **{name: mask.float()})
        torch.testing.assert_close(output, expected)


@holds("`is_causal=True` without `attn_mask`")
@pytest.mark.parametrize("need_weights", [True, False])
def test_is_causal_without_a_mask_is_always_refused_here_and_forgotten_on_torchs_fast_path(need_weights):
    theirs, ours = pair()
    x = tokens(2, 3, 8)
    for module in (theirs, ours):
        with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
            module(x, x, x, is_causal=True, need_weights=need_weights)
    output, _ = on_the_fast_path(theirs, x, x, x, is_causal=True, need_weights=need_weights)
    torch.testing.assert_close(output, theirs(x, x, x)[0])  # everybody saw everything
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        on_the_fast_path(ours, x, x, x, is_causal=True, need_weights=need_weights)


@holds("`is_causal=True` with a mask that is not causal")
def test_a_promise_of_causality_counts_here_and_on_torchs_fast_path_the_mask_does():
    theirs, ours = pair()
    x, mask = tokens(2, 3, 8), torch.tensor([[False] * 3, [True, False, False], [True, False, False]])
    call = {"attn_mask": mask, "is_causal": True, "need_weights": False}
    causal, _ = theirs(x, x, x, attn_mask=torch.ones(3, 3).triu(1).bool())
    masked, _ = theirs(x, x, x, attn_mask=mask)
    for module in (theirs, ours):
        torch.testing.assert_close(module(x, x, x, **call)[0], causal)
    torch.testing.assert_close(on_the_fast_path(ours, x, x, x, **call)[0], causal)
    torch.testing.assert_close(on_the_fast_path(theirs, x, x, x, **call)[0], masked)


@holds("No samples, or no keys, with a mask and without weights")
@pytest.mark.parametrize(("N", "S"), [(0, 4), (2, 0)])
def test_an_empty_batch_or_memory_with_a_mask_is_refused_there_and_not_here(N, S):
    theirs, ours = pair()
    query, memory = torch.ones(N, 3, 8), torch.ones(N, S, 8)
    call = {"attn_mask": torch.zeros(3, S), "key_padding_mask": torch.zeros(N, S), "need_weights": False}
    with pytest.raises(RuntimeError, match="cannot reshape tensor of 0 elements"):
        theirs(query, memory, memory, **call)
    assert ours(query, memory, memory, **call)[0].shape == (N, 3, 8)


@holds("The output's order in memory, batch first")
@pytest.mark.parametrize("need_weights", [True, False])
def test_the_output_is_contiguous_here_and_a_transposed_view_there(need_weights):
    theirs, ours = (module(*[tokens(2, 3, 8)] * 3, need_weights=need_weights)[0] for module in pair())
    torch.testing.assert_close(theirs, ours)
    assert ours.view(-1).shape == (48,)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        theirs.view(-1)
    dropped = []
    for output in (theirs, ours):
        torch.manual_seed(0)
        dropped.append(nn.functional.dropout(output, 0.5) == 0)
    assert not torch.equal(*dropped)


# ------------------------------------------------------------------------------------------- the inputs


def nested(*lengths, layout=torch.strided):
    return torch.nested.nested_tensor([tokens(length, 8) for length in lengths], layout=layout)


@holds("NestedTensor")
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_nested_tensors_are_taken_in_training_and_with_other_keys_here(training, average):
    theirs, ours = pair()
    call = {"average_attn_weights": average}
    x, memory = nested(3, 1, 4), nested(2, 5, 1)
    output, weights = on_the_fast_path(theirs, x, x, x, **call)
    ours.train(training)
    for a, b in zip(ours(x, x, x, **call)[0].unbind(), output.unbind(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours(x, x, x, **call)[1], weights)
    assert ours(x, x, x, need_weights=False)[1] is None
    for module in (theirs, ours):
        module.train(training)
        module.zero_grad()
    together = ours(x, memory, memory, **call)
    for number, (one, other) in enumerate(zip(x.unbind(), memory.unbind())):  # one sample at a time
        alone, its_weights = theirs(one, other, other, **call)
        torch.testing.assert_close(together[0][number], alone)
        torch.testing.assert_close(together[1][number, ..., : len(one), : len(other)], its_weights)
        alone.square().sum().backward()
    sum(sequence.square().sum() for sequence in together[0].unbind()).backward()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    with pytest.raises(AssertionError, match="does not support NestedTensor outside of its fast path"):
        theirs(x, x, x, **call)
    with pytest.raises(AssertionError, match="does not support NestedTensor outside of its fast path"):
        on_the_fast_path(theirs, x, memory, memory, **call)


@pytest.mark.parametrize(
    ("inputs", "call", "why"),
    [
        ("xxx", {"key_padding_mask": torch.zeros(2, 3, dtype=torch.bool)}, "masks do not fit"),
        ("xxx", {"attn_mask": torch.zeros(3, 3, dtype=torch.bool)}, "masks do not fit"),
        ("xxx", {"attn_mask": torch.zeros(3, 3), "is_causal": True}, "masks do not fit"),
        ("jjj", {}, "all be nested, in the strided layout"),
        ("xpp", {}, "all be nested, in the strided layout"),
        ("pxx", {}, "all be nested, in the strided layout"),
        ("xxy", {}, "key and value have different lengths"),
    ],
)
def test_nested_tensors_that_do_not_fit_are_refused_by_both_and_the_error_says_what_to_do(inputs, call, why):
    there = {
        "x": nested(3, 2),
        "y": nested(3, 1),
        "j": nested(3, 2, layout=torch.jagged),
        "p": tokens(2, 3, 8),
    }
    theirs, ours = pair()
    with pytest.raises(AssertionError, match=f"{why}.* Pad it .* and pass key_padding_mask"):
        ours(*(there[letter] for letter in inputs), **call)
    with pytest.raises((AssertionError, RuntimeError)):
        on_the_fast_path(theirs, *(there[letter] for letter in inputs), **call)


def test_nested_tensors_are_batch_first():
    module = MultiheadAttention(8, 2)
    with pytest.raises(AssertionError, match="batch_first is False"):
        module(*[nested(3, 2)] * 3)


# ------------------------------------------------------------------------------- what is done to modules


def trained(module, steps=2):
    """The output after some steps of training."""
    x = tokens(2, 3, 8)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        module(x, x, x)[0].square().mean().backward()
        optimizer.step()
    return module(x, x, x)[0]


@holds("Hooks on `out_proj`")
def test_hooks_on_out_proj_are_called_here_and_never_there():
    for module, expected in zip(pair(), ([], ["called"])):
        calls = []
        module.out_proj.register_forward_hook(lambda *_, calls=calls: calls.append("called"))
        module(*[tokens(2, 3, 8)] * 3)
        assert calls == expected
    for module in pair():  # pruning multiplies with its mask in a hook before the layer
        prune.l1_unstructured(module.out_proj, "weight", amount=0.5)
        if isinstance(module, MultiheadAttention):
            assert trained(module).isfinite().all()
            assert (module.out_proj.weight == 0).sum() == 32
        else:
            with pytest.raises(RuntimeError, match="backward through the graph a second time"):
                trained(module)
    for module, factor in zip(pair(bias=False), (1, 2)):  # an adapter around the layer
        x = tokens(2, 3, 8)
        before = module(x, x, x)[0]
        module.out_proj = Doubled(module.out_proj)
        torch.testing.assert_close(module(x, x, x)[0], before * factor)


class Doubled(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x):
        return 2 * self.layer(x)


@holds("Dynamic quantisation")
def test_out_proj_is_an_ordinary_linear_layer_here():
    theirs, ours = pair()
    assert type(ours.out_proj) is nn.Linear
    assert type(theirs.out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear


@holds("`isinstance(module, nn.MultiheadAttention)`")
def test_ours_is_no_instance_of_torchs():
    theirs, ours = pair()
    assert isinstance(theirs, nn.MultiheadAttention)
    assert not isinstance(ours, nn.MultiheadAttention)


class Around(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention, self.last = attention, nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self.attention(x, x, x)[0])


@holds("`torch.jit.script`")
def test_torchscript_compiles_torchs_and_not_ours():
    theirs, ours = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(theirs)
        with pytest.raises(RuntimeError):
            torch.jit.script(ours)


@holds("`torch.fx.symbolic_trace` of a model around it")
def test_fx_keeps_torchs_as_one_node_and_needs_to_be_told_for_ours():
    theirs, ours = pair()
    torch.fx.symbolic_trace(Around(theirs))
    model = Around(ours)
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(model)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, MultiheadAttention) or super().is_leaf_module(module, name)

    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    x = tokens(2, 3, 8)
    torch.testing.assert_close(traced(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@holds("Eval mode without gradients")
def test_torchs_is_one_fused_call_in_eval_mode_and_ours_what_it_is_in_training():
    theirs, ours = pair()
    x, seen = tokens(2, 3, 8), {}
    for name, module in (("theirs", theirs), ("ours", ours)):
        with Operations() as operations:
            on_the_fast_path(module, x, x, x)
        seen[name] = operations.names
    assert seen["theirs"] == ["_native_multi_head_attention"]
    with Operations() as operations:  # autograd looks at some results a second time
        ours.train()(x, x, x)
    assert [name for name in operations.names if name != "detach"] == seen["ours"]


@holds("The words of an error")
def test_an_error_says_which_argument_does_not_fit():
    theirs, ours = pair()
    query, key = tokens(2, 3, 8), tokens(1, 4, 8)
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        theirs(query, key, key)
    with pytest.raises(RuntimeError, match="query has a batch of 2, but key and value have one of 1"):
        ours(query, key, key)
    for module in (theirs, ours):
        with pytest.raises(TypeError, match=r"must be (a )?Tensor, not list"):
            module(query, query, query, attn_mask=[[False]])


def test_an_encoder_layer_in_eval_mode_calls_nobodys_attention(monkeypatch):
    calls = []
    monkeypatch.setattr(MultiheadAttention, "__call__", lambda *_, **__: calls.append("called"))
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    layer.self_attn = pair()[1].eval()
    x, empty = tokens(2, 3, 8), torch.tensor([[False] * 3, [True] * 3])
    with torch.no_grad():
        assert layer(x, src_key_padding_mask=empty)[1].isnan().all()
    assert calls == []
    monkeypatch.undo()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            assert layer(x, src_key_padding_mask=empty).isfinite().all()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
