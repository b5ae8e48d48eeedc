"""`mha_course.reference.MultiheadAttention` takes the place of ``torch.nn.MultiheadAttention``."""

import copy
import io
import os
import pickle
import shutil
import sys
import warnings

import parity
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from mha_course.reference import MultiheadAttention, drop_in

CONFIGURATIONS = int(os.environ.get("MHA_PARITY_CONFIGURATIONS", "400"))
MASKS = {
    "none": {},
    "bool": {"attn_mask": torch.tensor([[False, True, False]] * 4)},
    "float": {"attn_mask": torch.tensor([[0.5, -torch.inf, -1.0]] * 4)},
    "padding": {"key_padding_mask": torch.tensor([[False, True, False], [False, False, True]])},
}


def pair(*args, **kwargs):
    """PyTorch's module and ours, with the same random parameters (biases, too)."""
    theirs, ours = nn.MultiheadAttention(*args, **kwargs), MultiheadAttention(*args, **kwargs)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tokens(*shape, dtype=None):
    torch.manual_seed(sum(shape))
    return torch.randn(*shape, dtype=dtype)


def test_random_configurations_give_torchs_outputs_weights_and_gradients():
    compared = dict.fromkeys(parity.QUANTITIES, 0)
    for seed in range(CONFIGURATIONS):
        configuration = parity.draw(seed)
        for quantity, difference in parity.compare(configuration).items():
            assert difference < 1e-9, (
                f"seed {seed}, {quantity}: {difference:.1e} ({', '.join(configuration.options)})"
            )
            compared[quantity] += 1
    assert all(count > CONFIGURATIONS / 3 for count in compared.values())


@pytest.mark.parametrize(
    "kwargs", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 5, "vdim": 3, "add_bias_kv": True}]
)
def test_the_same_seed_gives_torchs_initial_values_in_torchs_order(kwargs):
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(12, 4, **kwargs)
    next_theirs = torch.rand(1)
    torch.manual_seed(3)
    ours = MultiheadAttention(12, 4, **kwargs)
    assert torch.equal(next_theirs, torch.rand(1))  # as many random numbers were drawn
    assert list(theirs.state_dict()) == list(ours.state_dict())
    assert [name for name, _ in theirs.named_parameters()] == [name for name, _ in ours.named_parameters()]
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])


def test_every_attribute_of_torchs_module_is_there():
    theirs, ours = pair(12, 4, add_bias_kv=True, batch_first=True, dropout=0.1)
    for name in vars(theirs):
        assert hasattr(ours, name)
    for name in (
        "embed_dim",
        "kdim",
        "vdim",
        "num_heads",
        "head_dim",
        "dropout",
        "batch_first",
        "add_zero_attn",
    ):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours._qkv_same_embed_dim and not MultiheadAttention(12, 4, kdim=3)._qkv_same_embed_dim


@pytest.mark.parametrize(("E", "H"), [(0, 1), (-4, 2), (4, 0), (4, -2), (5, 2)])
def test_sizes_that_cannot_be_are_refused_as_by_torch(E, H):
    with pytest.raises((ValueError, AssertionError)) as theirs:
        nn.MultiheadAttention(E, H)
    with pytest.raises(theirs.type):
        MultiheadAttention(E, H)


MISUSES = {
    "1-D query": ([4], [4], [4], {}, "query should be unbatched 2D or batched 3D tensor but received 1-D query tensor"),
    "4-D query": ([2, 3, 4, 4], [3, 4, 4], [3, 4, 4], {}, "received 4-D query tensor"),
    "2-D key": ([5, 2, 4], [3, 4], [3, 2, 4], {}, "`key` and `value` to be 3-D but found 2-D and 3-D tensors respectively"),
    "2-D value": ([5, 2, 4], [3, 2, 4], [3, 4], {}, "to be 3-D but found 3-D and 2-D tensors respectively"),
    "3-D key, unbatched": ([5, 4], [3, 2, 4], [3, 4], {}, "to be 2-D but found 3-D and 2-D tensors respectively"),
    "embed_dim": ([5, 2, 3], [3, 2, 4], [3, 2, 4], {}, "was expecting embedding dimension of 4, but got 3"),
    "key and value": ([5, 2, 4], [3, 2, 4], [6, 2, 4], {}, "does not match value"),
    "key features": ([5, 2, 4], [3, 2, 3], [3, 2, 3], {}, None),
    "batch of keys": ([5, 2, 4], [3, 1, 4], [3, 1, 4], {}, None),
    "batch of queries": ([5, 1, 4], [3, 2, 4], [3, 2, 4], {}, None),
    "1-D padding": (None, None, None, {"key_padding_mask": [3]}, "`key_padding_mask` to be `None` or 2-D but found 1-D"),
    "2-D padding, unbatched": ([5, 4], [3, 4], [3, 4], {"key_padding_mask": [1, 3]}, "to be `None` or 1-D but found 2-D"),
    "padding's batch": (None, None, None, {"key_padding_mask": [3, 3]}, "Expected key_padd"),
    "padding's length": (None, None, None, {"key_padding_mask": [2, 4]}, "Expected key_padd"),
    "1-D mask": (None, None, None, {"attn_mask": [3]}, "`attn_mask` to be `None`, 2-D or 3-D but found 1-D tensor instead"),
    "2-D mask": (None, None, None, {"attn_mask": [3, 5]}, r"The shape of the 2D attn_mask is .* but should be \(5, 3\)"),
    "3-D mask": (None, None, None, {"attn_mask": [2, 5, 3]}, r"The shape of the 3D attn_mask is .* but should be \(4, 5, 3\)"),
    "3-D mask, unbatched": ([5, 4], [3, 4], [3, 4], {"attn_mask": [4, 5, 3]}, r"Expected `attn_mask` shape to be \(2, 5, 3\)"),
    "causal without mask": (None, None, None, {"is_causal": True}, "Need attn_mask if specifying the is_causal hint"),
}  # fmt: skip


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_refused_as_by_torch(name, need_weights):
    query, key, value, call, says = MISUSES[name]
    query, key, value = (
        tokens(*(shape or default))
        for shape, default in zip((query, key, value), ([5, 2, 4], [3, 2, 4], [3, 2, 4]))
    )
    call = {k: torch.zeros(v, dtype=torch.bool) if isinstance(v, list) else v for k, v in call.items()}
    theirs, ours = pair(4, 2)
    with pytest.raises((AssertionError, RuntimeError), match=says) as raised:
        theirs(query, key, value, need_weights=need_weights, **call)
    with pytest.raises(raised.type, match=says):
        ours(query, key, value, need_weights=need_weights, **call)


@pytest.mark.parametrize(
    ("key", "value"), [((3, 2, 4), (3, 2, 6)), ((3, 2, 5), (3, 2, 4)), ((3, 2, 5), (2, 2, 6))]
)
def test_wrong_features_of_key_and_value_are_refused_as_by_torch(key, value):
    for module in pair(4, 2, kdim=5, vdim=6):
        with pytest.raises(AssertionError):
            module(tokens(5, 2, 4), tokens(*key), tokens(*value))


@pytest.mark.parametrize("name", ["attn_mask", "key_padding_mask"])
def test_masks_of_whole_numbers_are_refused_as_by_torch(name):
    x = tokens(3, 2, 4)
    mask = torch.zeros(3, 3) if name == "attn_mask" else torch.zeros(2, 3)
    for module in pair(4, 2):
        with pytest.raises(AssertionError, match=f"only bool and floating types of {name} are supported"):
            module(x, x, x, **{name: mask.long()})


def test_two_kinds_of_mask_at_once_are_warned_of_as_by_torch():
    x = tokens(3, 2, 4)
    for module in pair(4, 2):
        with pytest.warns(UserWarning, match="mismatched key_padding_mask and attn_mask"):
            module(x, x, x, attn_mask=torch.zeros(3, 3), key_padding_mask=torch.zeros(2, 3, dtype=torch.bool))


# ------------------------------------------------------------------------------------------ dead rows


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float", "padding", "per head", "both"])
def test_a_dead_row_gives_the_output_bias_and_finite_gradients(kind, need_weights):
    N, L, S, H = 2, 3, 4, 2
    closed = torch.zeros(N, H, L, S, dtype=torch.bool)
    padded = torch.zeros(N, S, dtype=torch.bool)
    call, dead = (
        {"need_weights": need_weights, "average_attn_weights": False},
        torch.zeros(N, L, dtype=torch.bool),
    )
    if kind in ("bool", "float"):
        closed[:, :, 1], dead[:, 1] = True, True
        call["attn_mask"] = (
            closed[0, 0] if kind == "bool" else torch.zeros(L, S).masked_fill(closed[0, 0], -torch.inf)
        )
    elif kind == "padding":
        padded[1], dead[1] = True, True
        call["key_padding_mask"] = padded
    elif kind == "per head":
        closed[0, :, 2], dead[0, 2] = True, True
        call["attn_mask"] = closed.flatten(0, 1)
    else:  # neither mask alone closes the row
        closed[:, :, 0, :2], padded[1, 2:], dead[1, 0] = True, True, True
        call |= {"attn_mask": closed[0, 0], "key_padding_mask": padded}
    _, module = pair(6, H, batch_first=True)
    query, memory = tokens(N, L, 6).requires_grad_(), tokens(N, S, 6).requires_grad_()
    output, weights = module(query, memory, memory, **call)
    assert torch.equal(output[dead], module.out_proj.bias.expand_as(output[dead]))
    assert not torch.isclose(output[~dead], module.out_proj.bias).all(-1).any()
    if need_weights:
        assert not weights.transpose(1, 2)[dead].any()
        assert torch.allclose(weights.transpose(1, 2)[~dead].sum(-1), torch.ones(()))
    (output.square().sum() + (weights.square().sum() if need_weights else 0)).backward()
    for tensor in (query, memory, *module.parameters()):
        assert tensor.grad.isfinite().all()
    assert not query.grad[dead].any()


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_row_may_be_dead_in_one_head_and_alive_in_the_other(need_weights):
    torch.manual_seed(0)
    closed = torch.tensor([[[True, True, True]], [[False, True, False]]])  # (H, L, S)
    theirs, ours = pair(4, 2, batch_first=True)
    query, memory = tokens(1, 1, 4), tokens(1, 3, 4)
    output, weights = ours(
        query, memory, memory, attn_mask=closed, need_weights=need_weights, average_attn_weights=False
    )
    with torch.no_grad():
        value = memory @ theirs.in_proj_weight[8:].T + theirs.in_proj_bias[8:]  # (1, 3, E)
        q = query @ theirs.in_proj_weight[2:4].T + theirs.in_proj_bias[2:4]  # (1, 1, D), of head 1
        k = memory @ theirs.in_proj_weight[6:8].T + theirs.in_proj_bias[6:8]
        w = torch.softmax((q @ k.mT / 2**0.5).masked_fill(closed[1], -torch.inf), -1)
        expected = theirs.out_proj(torch.cat([torch.zeros(1, 1, 2), w @ value[..., 2:]], dim=-1))
    torch.testing.assert_close(output, expected)
    if need_weights:
        torch.testing.assert_close(weights, torch.stack([torch.zeros(1, 1, 3), w], dim=1))


# -------------------------------------------------------------------------- what PyTorch does with modules


def test_copies_and_pickles_are_equal():
    _, ours = pair(6, 3, add_bias_kv=True)
    x = tokens(4, 2, 6)
    expected = ours(x, x, x)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        for a, b in zip(expected, twin(x, x, x)):
            assert torch.equal(a, b)


def test_the_meta_device_gives_shapes_without_memory():
    module = MultiheadAttention(6, 3, device="meta", dtype=torch.float16, batch_first=True)
    x = torch.empty(2, 4, 6, device="meta", dtype=torch.float16)
    for dtype in (torch.bool, torch.float16):
        output, weights = module(x, x, x, attn_mask=torch.empty(4, 4, device="meta", dtype=dtype))
        assert output.is_meta and output.shape == (2, 4, 6) and weights.shape == (2, 4, 4)


@pytest.mark.parametrize("mask", ["none", "bool", "float", "both"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_it_exports_with_every_size_left_open(mask, need_weights):
    theirs, ours = pair(6, 3, batch_first=True)

    class CrossAttention(nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.attention = attention

        def forward(self, query, memory, masks):
            return self.attention(query, memory, memory, need_weights=need_weights, **masks)

    def inputs(N, L, S):
        closed = torch.zeros(L, S, dtype=torch.bool).index_fill_(1, torch.tensor(0), True)
        masks = {"attn_mask": closed.float() if mask == "float" else closed} if mask != "none" else {}
        if mask == "both":
            masks["key_padding_mask"] = torch.zeros(N, S, dtype=torch.bool)
        return tokens(N, L, 6), tokens(N, S, 6), masks

    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    example, other = inputs(2, 4, 3), inputs(5, 7, 6)
    exported = torch.export.export(
        CrossAttention(ours),
        example,
        dynamic_shapes=(any_size, any_size, dict.fromkeys(example[2], any_size)),
    ).module()
    for a, b in zip(exported(*other), CrossAttention(theirs)(*other)):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform == "win32", reason="torch.compile needs a C++ compiler"
)
@pytest.mark.parametrize("need_weights", [True, False])
def test_it_compiles_in_one_piece(need_weights):
    theirs, ours = pair(6, 3, batch_first=True)
    compiled = torch.compile(ours, fullgraph=True)
    for mask in ("none", "padding"):
        query, memory = tokens(2, 4, 6).requires_grad_(), tokens(2, 3, 6)
        output, _ = compiled(query, memory, memory, need_weights=need_weights, **MASKS[mask])
        expected, _ = theirs(query, memory, memory, need_weights=need_weights, **MASKS[mask])
        torch.testing.assert_close(output, expected)
        a, b = (torch.autograd.grad(x.square().sum(), query)[0] for x in (output, expected))
        torch.testing.assert_close(a, b)


def recorded_with_open_sizes(how, attention, query, memory):
    """The module as a recording made with these inputs; it shall work for inputs of other sizes."""

    def call(parameters, query, memory):
        return functional_call(attention, parameters, (query, memory, memory))

    if how == "torch.jit.trace":
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", torch.jit.TracerWarning
            )  # of the questions that refuse wrong inputs
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.trace(attention, (query, memory, memory))
    parameters = dict(attention.named_parameters())
    recorded = make_fx(call, tracing_mode="symbolic")(parameters, query, memory)
    return lambda query, memory, _: recorded(parameters, query, memory)


@pytest.mark.parametrize(
    ("how", "scores_at_once"), [("torch.jit.trace", 1), ("torch.jit.trace", 2**22), ("make_fx", 1)]
)
@pytest.mark.parametrize("kwargs", [{}, {"add_zero_attn": True, "add_bias_kv": True}])
def test_a_recording_keeps_no_sizes_however_many_scores_there_were(how, scores_at_once, kwargs, monkeypatch):
    monkeypatch.setattr(drop_in, "SCORES_AT_ONCE", scores_at_once)
    theirs, ours = pair(6, 3, batch_first=True, **kwargs)
    recorded = recorded_with_open_sizes(how, ours, tokens(2, 5, 6), tokens(2, 3, 6))
    query, memory = tokens(4, 9, 6), tokens(4, 7, 6)
    for a, b in zip(recorded(query, memory, memory), theirs(query, memory, memory)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kwargs", [{}, {"add_zero_attn": True, "add_bias_kv": True}])
def test_the_older_onnx_exporter_knows_every_operation(mask, need_weights, kwargs):
    class CrossAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = MultiheadAttention(6, 3, batch_first=True, **kwargs)

        def forward(self, query, memory):
            return self.attention(query, memory, memory, need_weights=need_weights, **MASKS[mask])[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and records with torch.jit.trace
        try:
            inputs = tokens(2, 4, 6), tokens(2, 3, 6)
            torch.onnx.export(CrossAttention(), inputs, io.BytesIO(), dynamo=False)
        except torch.onnx.OnnxExporterError as error:
            if "onnx is not installed" not in str(error):  # asked for last, when all is translated
                raise


def weight_norm(module):
    nn.utils.parametrizations.weight_norm(module.out_proj)
    nn.utils.parametrizations.weight_norm(module, "in_proj_weight")


def spectral_norm(module):
    for part, name in ((module.out_proj, "weight"), (module, "in_proj_weight")):
        torch.manual_seed(0)
        nn.utils.parametrizations.spectral_norm(part, name)


def prune_projections(module):
    prune.l1_unstructured(module, "in_proj_weight", amount=0.5)
    prune.l1_unstructured(module, "in_proj_bias", amount=0.5)


def freeze(module):
    module.requires_grad_(False)
    module.out_proj.requires_grad_(True)


def hook(module):
    module.register_forward_pre_hook(lambda _, inputs: tuple(2 * x for x in inputs))
    module.register_forward_hook(lambda *call: (call[2][0] + 1, call[2][1]))
    module.register_state_dict_post_hook(lambda _, state, prefix, __: state.update({prefix + "more": 1}))


@pytest.mark.parametrize("treat", [weight_norm, spectral_norm, prune_projections, freeze, hook])
def test_a_treated_module_trains_as_torchs_does(treat):
    x, results = tokens(4, 2, 6), []
    for module in pair(6, 3):
        treat(module)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x, x, x)[0].square().mean().backward()
            optimizer.step()
        results.append((module(x, x, x)[0], module.state_dict()))
    (theirs, their_state), (ours, our_state) = results
    torch.testing.assert_close(ours, theirs)
    assert list(their_state) == list(our_state)


@pytest.mark.parametrize(
    "kwargs", [{"kdim": 5}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 6, "vdim": 2}]
)
@pytest.mark.parametrize("turned", [True, False])
def test_a_state_of_another_kind_of_module_is_refused_in_torchs_words(kwargs, turned):
    said = []
    for cls in (nn.MultiheadAttention, MultiheadAttention):
        one, other = cls(6, 3), cls(6, 3, **kwargs)
        with pytest.raises(RuntimeError) as raised:
            (one if turned else other).load_state_dict((other if turned else one).state_dict())
        said.append(str(raised.value))
    assert said[0] == said[1]


def test_gradients_of_gradients_and_forward_gradients_are_torchs():
    theirs, ours = (module.double() for module in pair(4, 2))
    x, direction = tokens(3, 1, 4, dtype=torch.float64), tokens(1, 3, 4, dtype=torch.float64).transpose(0, 1)
    for derive in (
        lambda f: torch.func.hessian(lambda x: f(x).square().sum())(x),
        lambda f: torch.func.jvp(f, (x,), (direction,))[1],
    ):
        a, b = (derive(lambda x, module=module: module(x, x, x)[0]) for module in (ours, theirs))
        torch.testing.assert_close(a, b)


def test_recomputing_and_deterministic_mode_change_nothing():
    _, ours = pair(6, 3)
    x = tokens(4, 2, 6).requires_grad_()
    (expected,) = torch.autograd.grad(ours(x, x, x)[0].square().sum(), x)
    again = checkpoint(ours, x, x, x, use_reentrant=False)[0].square().sum()
    torch.testing.assert_close(torch.autograd.grad(again, x)[0], expected)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(torch.autograd.grad(ours(x, x, x)[0].square().sum(), x)[0], expected)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
def test_vmap_over_inputs_equals_a_loop(mask, need_weights):
    _, ours = pair(6, 3)
    query, memory = tokens(5, 4, 2, 6), tokens(5, 3, 2, 6)

    def call(q, m):
        return tuple(x for x in ours(q, m, m, need_weights=need_weights, **MASKS[mask]) if x is not None)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        results = vmap(call)(query, memory)
    for many, single in zip(results, zip(*(call(q, m) for q, m in zip(query, memory)))):
        torch.testing.assert_close(many, torch.stack(single))


@pytest.mark.parametrize("need_weights", [True, False])
def test_vmap_over_masks_alone_equals_a_loop(need_weights):
    _, ours = pair(6, 3)
    query, memory = tokens(4, 2, 6), tokens(3, 2, 6)
    masks = torch.rand(5, 4, 3) < 0.6  # some rows are dead

    def call(mask):
        return ours(query, memory, memory, attn_mask=mask, need_weights=need_weights)[0]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        many = vmap(call)(masks)
    torch.testing.assert_close(many, torch.stack([call(mask) for mask in masks]))


def test_an_ensemble_runs_as_one_with_gradients():
    modules = [MultiheadAttention(6, 3, batch_first=True) for _ in range(4)]
    parameters, buffers = stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta")
    x = tokens(2, 5, 6)

    def loss(p, b):
        return functional_call(skeleton, (p, b), (x, x, x))[0].square().sum()

    many = vmap(torch.func.grad(loss))(parameters, buffers)
    for index, module in enumerate(modules):
        module(x, x, x)[0].square().sum().backward()
        torch.testing.assert_close(many["in_proj_weight"][index], module.in_proj_weight.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_half_types_stay_half(dtype, need_weights, mask):
    theirs, ours = (module.to(dtype) for module in pair(8, 2, batch_first=True))
    query, memory = tokens(2, 4, 8, dtype=dtype), tokens(2, 3, 8, dtype=dtype)
    masks = {name: x.to(dtype) if x.is_floating_point() else x for name, x in MASKS[mask].items()}
    results = [module(query, memory, memory, need_weights=need_weights, **masks) for module in (ours, theirs)]
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=3e-2, rtol=3e-2)  # checks the dtype, too


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kwargs", [{}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_autocast_gives_the_types_and_nearly_the_numbers_of_torch(need_weights, mask, kwargs):
    theirs, ours = pair(8, 2, batch_first=True, **kwargs)
    query, memory = tokens(2, 4, 8), tokens(2, 3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [
            module(query, memory, memory, need_weights=need_weights, **MASKS[mask])
            for module in (ours, theirs)
        ]
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=3e-2, rtol=3e-2)


@torch.no_grad()
def test_a_bias_may_be_kept_in_another_precision():
    for module in pair(4, 2, batch_first=True, dtype=torch.float64):
        module.in_proj_bias = nn.Parameter(module.in_proj_bias.half())
        x = tokens(2, 3, 4, dtype=torch.float64)
        assert module.eval()(x, x, x)[0].dtype == torch.float64


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("mask", [*MASKS, "3-D"])
def test_many_queries_are_worked_through_some_at_a_time_with_the_same_result(monkeypatch, average, mask):
    _, ours = pair(6, 3, batch_first=True)
    torch.manual_seed(1)
    masks = MASKS | {"3-D": {"attn_mask": torch.rand(6, 4, 3) < 0.5}}
    query, memory = tokens(2, 4, 6).requires_grad_(), tokens(2, 3, 6)

    def run():
        output, weights = ours(query, memory, memory, average_attn_weights=average, **masks[mask])
        return output, weights, torch.autograd.grad(output.square().sum() + weights.square().sum(), query)[0]

    at_once = run()
    monkeypatch.setattr(drop_in, "SCORES_AT_ONCE", 2 * 3 * 3 * 3)  # three queries, then one
    calls = []
    rows = drop_in._attend_rows
    monkeypatch.setattr(drop_in, "_attend_rows", lambda q, *rest: calls.append(q.shape[2]) or rows(q, *rest))
    for a, b in zip(run(), at_once):
        torch.testing.assert_close(a, b)
    assert calls == [3, 1]


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_results_can_be_viewed_flat_where_torchs_can(need_weights, batch_first):
    for module in pair(6, 3, batch_first=batch_first):
        x = tokens(2, 4, 6)
        output, _ = module(x, x, x, need_weights=need_weights)
        assert output.is_contiguous() or (batch_first and isinstance(module, nn.MultiheadAttention))


@pytest.mark.parametrize(("N", "L", "S"), [(0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("extra", ["nothing", "add_bias_kv", "add_zero_attn", "both"])
@pytest.mark.parametrize("masked", [True, False])
def test_nothing_to_do_is_done_as_by_torch(N, L, S, need_weights, extra, masked):
    names = {"nothing": (), "both": ("add_bias_kv", "add_zero_attn")}.get(extra, (extra,))
    theirs, ours = pair(6, 3, batch_first=True, **dict.fromkeys(names, True))
    query, memory = torch.randn(N, L, 6), torch.randn(N, S, 6)
    masks = {"attn_mask": torch.zeros(L, S), "key_padding_mask": torch.zeros(N, S)} if masked else {}
    results = ours(query, memory, memory, need_weights=need_weights, **masks)
    if masked and not need_weights and (N == 0 or (S == 0 and not names)):
        return  # torch has no answer: docs/drop-in.md
    for a, b in zip(results, theirs(query, memory, memory, need_weights=need_weights, **masks)):
        assert a is b is None or (a.shape == b.shape and torch.allclose(a, b))
