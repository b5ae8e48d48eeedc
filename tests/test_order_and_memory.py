"""Lesson 06: its functions against torch and the direct formula, its hand-worked examples, what its cells claim."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import jupytext
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from mha_course import exercises
from mha_course.checking import LocalAnswer, callables, examine
from mha_course.reference import (
    KVCache,
    apply_rope,
    causal_mask,
    decode_step,
    grouped_attention,
    kv_cache_bytes,
    sinusoidal_positions,
)

FOLDER = Path(__file__).parents[1] / "solutions" / "06_order_and_memory"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def code_cells():
    nb = jupytext.reads((FOLDER / "06_order_and_memory.py").read_text(encoding="utf-8"), fmt="py:percent")
    return [cell.source for cell in nb.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def told():
    """What the notebook's cells define, and what they print; pictures and checks left out."""
    torch.manual_seed(0)
    names, printed = {}, io.StringIO()
    for source in code_cells():
        if not source.startswith("check("):
            source = re.sub(r"^plots\.show\(.*?^\)$", "", source, flags=re.DOTALL | re.MULTILINE)
            with redirect_stdout(printed):
                exec(source, names)
    return names, printed.getvalue()


# ------------------------------------------------------------------------------------- positions


def test_sinusoids_are_the_papers():
    table = sinusoidal_positions(50, 8)
    assert table.shape == (50, 8) and table.dtype == torch.float32
    assert table[0].tolist() == [0, 1] * 4
    assert table[3, 2].item() == pytest.approx(torch.tensor(3 / 10000**0.25).sin().item())
    with pytest.raises(ValueError, match="even"):
        sinusoidal_positions(5, 7)


def test_the_hand_worked_tables_hold():
    rows = sinusoidal_positions(3, 4)
    expected = torch.tensor([[0, 1, 0, 1], [0.84, 0.54, 0.01, 1.00], [0.91, -0.42, 0.02, 1.00]])
    assert (rows - expected).abs().max() < 5e-3
    turned = apply_rope(torch.tensor([1.0, 0, 0, 2]).view(1, 1, 1, 4), torch.tensor([3]))
    assert (turned.flatten() - torch.tensor([-0.99, 0.14, -0.06, 2.00])).abs().max() < 5e-3


def test_turned_queries_and_keys_know_only_their_distance():
    q, k = normal(1, 1, 1, 6), normal(1, 1, 1, 6, seed=1)

    def score(i, j):
        return (apply_rope(q, torch.tensor([i])) * apply_rope(k, torch.tensor([j]))).sum()

    exact(score(3, 1), score(103, 101), 1e-9)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    exact(apply_rope(q, torch.tensor([7])).norm(), q.norm())


def test_positions_of_each_sample_and_positions_of_all_agree():
    x = normal(2, 3, 4, 6)
    places = torch.tensor([5, 0, 2, 9])
    exact(apply_rope(x, places), apply_rope(x, places.expand(2, 4)))


# ---------------------------------------------------------------------------------- shared heads


@pytest.mark.parametrize(("H", "Hkv"), [(6, 1), (6, 2), (6, 3), (6, 6), (8, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_shared_heads_equal_torchs_in_values_and_gradients(H, Hkv, masked):
    inputs = [
        normal(2, h, n, 4, seed=s).requires_grad_() for s, (h, n) in enumerate(((H, 5), (Hkv, 7), (Hkv, 7)))
    ]
    mask = causal_mask(5, 7, offset=1) if masked else None
    ours = grouped_attention(*inputs, mask)[0]
    theirs = F.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)
    exact(ours, theirs)
    cotangent = normal(*ours.shape, seed=9)
    for a, b in zip(*(torch.autograd.grad(x, inputs, cotangent) for x in (ours, theirs))):
        exact(a, b)


def test_heads_that_cannot_share_evenly_are_refused():
    q, k = normal(1, 6, 2, 4), normal(1, 4, 2, 4)
    with pytest.raises(ValueError, match="evenly"):
        grouped_attention(q, k, k)


def test_neighbours_share():
    q, k = torch.zeros(1, 4, 1, 2), torch.zeros(1, 2, 1, 2)
    v = torch.tensor([8.0, 4.0]).view(1, 2, 1, 1)
    assert grouped_attention(q, k, v)[0].flatten().tolist() == [8, 8, 4, 4]


# -------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(("H", "Hkv"), [(4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("left", [None, [0, 2, 5]])
def test_decoding_equals_computing_every_prefix_again(H, Hkv, left):
    N, L, D = 3, 9, 6
    q, k, v = (normal(N, h, L, D, seed=s) for s, h in enumerate((H, Hkv, Hkv)))
    padding = None if left is None else torch.tensor(left)
    cache = KVCache()
    for t in range(1, L + 1):
        newest = slice(t - 1, t)
        ours, weights = decode_step(q[:, :, newest], k[:, :, newest], v[:, :, newest], cache, padding)
        whole, all_weights = decode_step(q[:, :, :t], k[:, :, :t], v[:, :, :t], KVCache(), padding)
        exact(ours, whole[:, :, -1:], 1e-13)
        exact(weights, all_weights[:, :, -1:], 1e-13)
        assert len(cache) == t


def test_pieces_of_any_length_give_the_same_as_all_at_once():
    q, k, v = (normal(2, h, 6, 8, seed=s) for s, h in enumerate((4, 2, 2)))
    left = torch.tensor([0, 2])
    whole, _ = decode_step(q, k, v, KVCache(), left)
    for cuts in ((3, 4, 6), (1, 2, 3, 4, 5, 6), (5, 6), (6,)):
        cache, start = KVCache(), 0
        for stop in cuts:
            part = slice(start, stop)
            exact(decode_step(q[:, :, part], k[:, :, part], v[:, :, part], cache, left)[0], whole[:, :, part])
            start = stop


def test_a_real_token_does_not_depend_on_what_stands_in_the_padding():
    q, k, v = (normal(1, 2, 6, 4, seed=s) for s in range(3))
    left = torch.tensor([3])
    before, _ = decode_step(q, k, v, KVCache(), left)
    k[:, :, :3], v[:, :, :3] = 100.0, -100.0
    after, _ = decode_step(q, k, v, KVCache(), left)
    exact(before[:, :, 3:], after[:, :, 3:])
    assert not before[:, :, :3].any()
    alone, _ = decode_step(q[:, :, 3:], k[:, :, 3:], v[:, :, 3:], KVCache())
    exact(before[:, :, 3:], alone, 1e-9)  # only the distance counts: where the positions begin does not


def test_a_step_behind_a_cache_is_torchs_lower_right():
    q, k, v = (normal(1, 2, 7, 4, seed=s) for s in range(3))
    cache = KVCache()
    decode_step(q[:, :, :5], k[:, :, :5], v[:, :, :5], cache)
    ours, _ = decode_step(q[:, :, 5:], k[:, :, 5:], v[:, :, 5:], cache)
    new, kept = apply_rope(q[:, :, 5:], torch.arange(5, 7)), apply_rope(k, torch.arange(7))
    exact(ours, F.scaled_dot_product_attention(new, kept, v, attn_mask=causal_lower_right(2, 7)))


def test_the_cache_of_a_known_model_takes_the_bytes_it_is_known_for():
    # Touvron et al. 2023, Llama 2 70B: 80 layers, 8 key-value heads of 128, 16 bits: 320 KiB a token
    assert kv_cache_bytes(N=1, S=1, Hkv=8, D=128, layers=80) == 320 * 1024
    assert kv_cache_bytes(N=1, S=4096, Hkv=8, D=128, layers=80) == 1.25 * 2**30
    assert kv_cache_bytes(N=1, S=32768, Hkv=64, D=128, layers=80) == 80 * 2**30


# --------------------------------------------------------------------------------- the exercises


def test_the_checks_cache_behaves_as_the_references():
    ours, theirs = callables.empty_cache(), KVCache()
    assert len(ours) == len(theirs) == 0
    for L in (3, 1, 2):
        k, v = normal(2, 3, L, 4, seed=L), normal(2, 3, L, 6, seed=L + 1)
        for a, b in zip(ours.append(k, v), theirs.append(k, v)):
            exact(a, b, 0)
        assert len(ours) == len(theirs)


def test_the_checks_cache_is_no_answer():
    report = examine(exercises.find("KVCache"), LocalAnswer(callables.empty_cache))
    assert report.status == "wrong" and "ready-made" in report.card.headline


def test_a_cache_that_all_objects_share_is_told_so():
    class Shared:
        keys, values = [], []

        def __len__(self):
            return sum(k.shape[2] for k in self.keys)

        def append(self, k, v):
            self.keys.append(k)
            self.values.append(v)
            return torch.cat(self.keys, 2), torch.cat(self.values, 2)

    report = examine(exercises.find("KVCache"), LocalAnswer(Shared))
    assert report.status == "wrong" and "not empty" in report.card.cause


def test_the_step_that_went_wrong_is_named():
    def restarts(q, k, v, cache, padding=None):
        positions = torch.arange(q.shape[-2])
        keys, values = cache.append(apply_rope(k, positions), v)
        return grouped_attention(apply_rope(q, positions), keys, values, causal_mask(q.shape[-2], len(cache)))

    report = examine(exercises.find("decode_step"), LocalAnswer(restarts), reference_allowed=True)
    assert any("call 2 of 3" in line for line in report.card.lines)


# -------------------------------------------------------------------------------- what cells claim


def test_the_notebook_counts_and_compares_what_its_text_says(told):
    names, printed = told
    assert sum(names["again"]) > 20 * sum(names["kept"])  # "more than 20"
    assert max(names["differences"]) < 1e-13
    assert names["spread"][1] < 1e-5 < 1 < names["spread"][0]
    errors = names["errors"]
    assert max(errors["yours"]) < 1e-13
    assert max(errors["positions restart"][:7]) < 1e-13 and min(errors["positions restart"][7:]) > 0.1
    assert min(errors["padding forgotten"]) > 0.05
    off = [float(x) for x in re.findall(r"scores off by, .*?: +(\S+)", printed)]
    assert off[0] > 1 and off[1] < 1e-12
    assert re.search(r"causal_lower_right: \de-1\d +is_causal: \d", printed)
