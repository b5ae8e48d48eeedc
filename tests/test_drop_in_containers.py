"""Inside PyTorch's own containers: whoever swaps the attention modules for ours gets the container's numbers."""

import contextlib
import copy
import itertools
import warnings

import jupytext
import pytest
import torch
from torch import nn

from mha_course import building, reference
from mha_course.reference import MultiheadAttention

SOLUTIONS = building.ROOT / "solutions"
N, L, S, E, H = 3, 5, 4, 8, 2
CONTAINERS = ("EncoderLayer", "Encoder", "DecoderLayer", "Decoder", "Transformer")
PRECISIONS = {  # dtype, under autocast, allowed difference
    "float64": (torch.float64, False, 1e-11),
    "float32": (torch.float32, False, 1e-4),
    "autocast": (torch.float32, True, 0.3),
}
GRADIENTS = {"grad": contextlib.nullcontext, "no grad": torch.no_grad, "inference": torch.inference_mode}


def make(container, nested, dtype, dropout=0.0, **options):
    """A container of PyTorch's with random parameters, biases too."""
    options |= {"dropout": dropout, "dtype": dtype}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor is True, but")
        if "Encoder" in container:
            made = nn.TransformerEncoderLayer(E, H, 12, **options)
        elif "Decoder" in container:
            made = nn.TransformerDecoderLayer(E, H, 12, **options)
        else:
            made = nn.Transformer(E, H, 1, 1, 12, **options)
            made.encoder.use_nested_tensor &= nested
        if container == "Encoder":
            made = nn.TransformerEncoder(made, 1, enable_nested_tensor=nested)
        elif container == "Decoder":
            made = nn.TransformerDecoder(made, 1)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def with_ours(container, cls=MultiheadAttention):
    """A copy of it, each attention module replaced by ours with the same state."""
    container = copy.deepcopy(container)
    for parent in list(container.modules()):
        for name, theirs in list(parent.named_children()):
            if type(theirs) is nn.MultiheadAttention:
                ours = cls(
                    E,
                    H,
                    theirs.dropout,
                    theirs.in_proj_bias is not None,
                    batch_first=theirs.batch_first,
                    dtype=theirs.out_proj.weight.dtype,
                )
                ours.load_state_dict(theirs.state_dict())
                setattr(parent, name, ours)
    assert any(type(module) is cls for module in container.modules())
    return container


def as_numbers(closed, dtype):
    return torch.zeros(closed.shape, dtype=dtype).masked_fill(closed, -torch.inf)


def masks(kind, queries, keys, dtype):
    """attn_mask, key_padding_mask, is_causal."""
    causal = torch.ones(queries, keys).triu(1).bool()
    padding = torch.arange(keys) >= torch.tensor([[keys], [keys - 1], [2]])  # (N, keys)
    random = torch.Generator().manual_seed(queries + keys)
    some = torch.rand(N * H, queries, keys, generator=random) < 0.4
    some[..., 0] = False
    finite = torch.randn(queries, keys, generator=random).to(dtype)
    return {
        "none": (None, None, False),
        "causal": (causal, None, True),
        "causal, numbers": (as_numbers(causal, dtype), None, True),
        "padding": (None, padding, False),
        "padding, numbers": (None, as_numbers(padding, dtype), False),
        "padding, not at the end": (None, padding.flip(1), False),
        "both": (causal, padding, False),
        "both, numbers": (as_numbers(causal, dtype), as_numbers(padding, dtype), True),
        "both, mixed": (causal, as_numbers(padding, dtype), False),
        "per head": (some, None, False),
        "per head, numbers, and padding": (as_numbers(some, dtype) + finite, padding, False),
    }[kind]


MASKS = (
    *("none", "causal, numbers", "padding", "both, mixed", "per head, numbers, and padding"),
    *("causal", "padding, numbers", "padding, not at the end", "both", "both, numbers", "per head"),
)
FEW_MASKS = MASKS[:5]


def call(container, module, source, target, kind, dtype):
    """The container's output with this kind of mask wherever it takes one."""
    mask, padding, causal = masks(kind, L, L, dtype)
    if "Encoder" in container:
        return module(target, mask, padding, is_causal=causal)
    memory_mask, memory_padding, _ = masks(kind, L, S, dtype)
    memory = {"memory_mask": memory_mask, "memory_key_padding_mask": memory_padding}
    ours = {"tgt_mask": mask, "tgt_key_padding_mask": padding, "tgt_is_causal": causal}
    if "Decoder" in container:
        return module(target, source, **memory, **ours)
    mask, padding, causal = masks(kind, S, S, dtype)
    return module(
        source,
        target,
        src_mask=mask,
        src_key_padding_mask=padding,
        src_is_causal=causal,
        **memory,
        **ours,
    )


def call_or_error(*arguments):
    try:
        return call(*arguments)
    except RuntimeError as error:
        return error


def tokens(length, batch_first, dtype):
    x = torch.randn(N, length, E, generator=torch.Generator().manual_seed(length)).to(dtype)
    return x if batch_first else x.transpose(0, 1).contiguous()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_a_container_gives_the_same_numbers_with_our_modules_inside(container, precision):
    dtype, autocast, allowed = PRECISIONS[precision]
    compared, kinds = 0, MASKS if dtype == torch.float64 else FEW_MASKS
    for nested in (True, False) if container in ("Encoder", "Transformer") else (True,):
        for batch_first, norm_first, bias in (
            (True, False, True),
            (True, True, True),
            (False, False, True),
            (True, False, False),
        ):
            theirs = make(container, nested, dtype, batch_first=batch_first, norm_first=norm_first, bias=bias)
            ours = with_ours(theirs)
            inputs = [tokens(length, batch_first, dtype) for length in (S, L)]
            for training, gradients, kind in itertools.product((True, False), GRADIENTS, kinds):
                case = (
                    f"{batch_first=} {norm_first=} {bias=} {nested=} {training=} {gradients}, masks: {kind}"
                )
                results = []
                for module in (theirs.train(training), ours.train(training)):
                    with GRADIENTS[gradients](), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                        results.append(call_or_error(container, module, *inputs, kind, dtype))
                a, b = results
                if isinstance(a, RuntimeError):  # torch's fused kernels do not know autocast on a CPU
                    assert autocast and str(a) == str(b), case
                    continue
                torch.testing.assert_close(b, a, atol=allowed, rtol=0, equal_nan=True, msg=case)
                if training and gradients == "grad" and dtype == torch.float64:
                    pairs = [
                        torch.autograd.grad(
                            output.square().sum(), list(module.parameters()), allow_unused=True
                        )
                        for output, module in ((a, theirs), (b, ours))
                    ]
                    for x, y in zip(*pairs, strict=True):
                        assert x is y is None or (x - y).abs().max() < 1e3 * allowed, case
                compared += 1
    assert compared >= 4 * 5 * len(kinds)


def written_in_lesson_05():
    """The class that learners write, from the lesson's answers."""
    nb = jupytext.read(SOLUTIONS / "05_drop_in" / "05_drop_in.py", fmt="py:percent")
    answers = [cell.source for cell in nb.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    names = {"torch": torch, "F": nn.functional, "nn": nn} | vars(reference)
    for answer in answers:
        exec(answer, names)
    return names["MultiheadAttention"]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_the_class_of_lesson_05_gives_the_containers_numbers_too(container):
    theirs = make(container, True, torch.float64, batch_first=True)
    mine = with_ours(theirs, written_in_lesson_05())
    inputs = [tokens(length, True, torch.float64) for length in (S, L)]
    for training, kind in itertools.product((True, False), MASKS):
        with torch.set_grad_enabled(training):
            results = [
                call(container, module.train(training), *inputs, kind, torch.float64)
                for module in (mine, theirs)
            ]
        torch.testing.assert_close(*results, equal_nan=True, msg=f"{training=}, masks: {kind}")


@pytest.mark.parametrize("container", CONTAINERS)
def test_dropout_falls_on_the_same_numbers_as_in_the_stock_container(container):
    theirs = make(container, True, torch.float64, dropout=0.3, batch_first=False)
    ours = with_ours(theirs)
    outputs = []
    for module in (theirs, ours):
        torch.manual_seed(0)
        outputs.append(
            call(container, module, *(tokens(n, False, torch.float64) for n in (S, L)), "both", torch.float64)
        )
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("container", ["Encoder", "Transformer"])
def test_nested_tensors_reach_our_forward_where_a_hook_keeps_the_layer_off_its_fast_path(container):
    theirs = make(container, True, torch.float64, batch_first=True).eval()
    ours, seen = with_ours(theirs), []
    for module in (theirs, ours):
        for layer in (module if container == "Encoder" else module.encoder).layers:
            layer.linear1.register_forward_hook(lambda *_: None)
            layer.self_attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_nested))
    inputs = [tokens(length, True, torch.float64) for length in (S, L)]
    with torch.no_grad():
        results = [call(container, module, *inputs, "padding", torch.float64) for module in (theirs, ours)]
    torch.testing.assert_close(*results)
    assert seen and all(seen)


@pytest.mark.parametrize("padding", [None, torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)])
@pytest.mark.parametrize(
    "mask", [None, torch.zeros(3, 3), torch.eye(3).bool(), torch.eye(3).bool().expand(4, 3, 3)]
)
def test_merged_masks_have_torchs_shape_and_kind(mask, padding):
    modules = nn.MultiheadAttention(E, H), MultiheadAttention(E, H)
    (a, kind), (b, ours) = (m.merge_masks(mask, padding, torch.zeros(2, 3, E)) for m in modules)
    assert kind == ours
    assert a is b is None or (a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b))
