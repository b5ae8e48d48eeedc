"""Lesson 08: exact against the direct formula, hand-worked examples, memory counted, what its cells claim."""

import io
import math
import re
from contextlib import redirect_stdout
from pathlib import Path

import jupytext
import pytest
import torch

from mha_course import exercises, flex
from mha_course.checking import Case, Exercise, LocalAnswer, examine
from mha_course.counting import peak_bytes
from mha_course.reference import attend
from mha_course.reference import order_and_memory as om
from mha_course.reference import without_the_matrix as wm
from mha_course.watching import score_tiles


def exact(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def masks(N, L, S):
    causal = torch.arange(S) <= torch.arange(L).unsqueeze(1)
    padding = (torch.arange(S) < torch.tensor([S, 2]).unsqueeze(1))[:, None, None]
    dead = torch.ones(N, 1, L, S, dtype=torch.bool)
    dead[1, 0, 3] = False
    return {"none": None, "causal": causal, "padding": padding, "a dead row": dead}


def direct(q, k, v, may_attend):
    return om.grouped_attention(q, k, v, may_attend)[0]


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "a dead row"])
def test_attention_in_tiles_is_exact_forwards_and_backwards(mask, block_size):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, n, d, dtype=torch.float64, requires_grad=True) for n, d in ((5, 4), (7, 4), (7, 6))
    )
    may_attend = masks(2, 5, 7)[mask]
    expected = direct(q, k, v, may_attend)
    output, lse = wm.flash_forward(q, k, v, block_size, may_attend)
    exact(output, expected)
    grad = torch.randn_like(expected)
    found = wm.flash_backward(*(x.detach() for x in (q, k, v, output, lse)), grad, block_size, may_attend)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (q, k, v), grad)):
        exact(ours, theirs)


def test_two_halves_of_the_keys_merge_into_the_whole():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 7, 7))
    halves = [wm.flash_forward(q, k[:, :, part], v[:, :, part], 2) for part in (slice(0, 3), slice(3, 7))]
    whole = wm.flash_forward(q, k, v, 4)
    for ours, theirs in zip(wm.logsumexp_merge(*halves[0], *halves[1]), whole):
        exact(ours, theirs)


def test_a_softmax_in_one_pass_has_the_maximum_and_the_sum():
    x = torch.randn(3, 10, dtype=torch.float64) * 50
    x[1] = -torch.inf
    m, total = wm.online_softmax(x.split([4, 1, 5], dim=-1))
    exact(m + total.log(), x.logsumexp(-1))
    with pytest.raises(ValueError, match="at least one block"):
        wm.online_softmax([])


def test_score_mods_equal_explicit_masks():
    scores = torch.randn(6, 6, dtype=torch.float64)
    i, j = torch.arange(6).unsqueeze(1), torch.arange(6)
    zero = torch.zeros((), dtype=torch.int64)
    assert torch.equal(wm.causal(scores, zero, zero, i, j).isinf(), j > i)
    window = wm.sliding_window(scores, zero, zero, i, j, 3)
    assert torch.equal(window.isinf(), (j > i) | (i - j >= 3))
    head = torch.tensor(1)
    exact(wm.alibi(scores, zero, head, i, j, 4), scores - 2.0**-4 * (i - j).abs())


# ------------------------------------------------------------------------ hand-worked examples


def test_the_hand_worked_examples_hold():
    row = torch.tensor([[1.0, 3, 2, 5]])
    expected = {2: (3, 1.14), 3: (3, 1.50), 4: (5, 1.20)}
    for n, (maximum, total) in expected.items():
        m, l = wm.online_softmax([x[:, : max(0, n)] for x in row[:, :n].split([2, 1, 1][: n - 1], -1)])
        assert m.item() == maximum and l.item() == pytest.approx(total, abs=5e-3)
    out, lse = wm.logsumexp_merge(
        *(torch.tensor(x) for x in ([[4.0]], [0.0], [[8.0]], [math.log(3)]))  # shares 1/4 and 3/4
    )
    assert out.item() == pytest.approx(7) and lse.item() == pytest.approx(math.log(4))
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([0, math.log(3), math.log(4)]).view(1, 1, 3, 1)
    v = torch.tensor([8.0, 0, 2]).view(1, 1, 3, 1)
    output, lse = wm.flash_forward(q, k, v, 2)
    assert output.item() == pytest.approx(2) and lse.item() == pytest.approx(math.log(8))
    k, v = torch.tensor([0, math.log(3)]).view(1, 1, 2, 1), torch.tensor([8.0, 0]).view(1, 1, 2, 1)
    output, lse = wm.flash_forward(q, k, v, 2)
    grad_q, _, grad_v = wm.flash_backward(q, k, v, output, lse, torch.ones_like(output), 2)
    assert output.item() == pytest.approx(2) and grad_v.flatten().tolist() == pytest.approx([0.25, 0.75])
    assert grad_q.item() == pytest.approx(-1.5 * math.log(3))  # 1.5 · 0 − 1.5 · log 3


def test_alibis_slopes_are_the_papers():
    i, j, zero = torch.tensor(0), torch.tensor(6), torch.tensor(0.0)
    costs = [-wm.alibi(zero, None, torch.tensor(h), i, j, 4).item() / 6 for h in range(4)]
    assert costs == pytest.approx([1 / 4, 1 / 16, 1 / 64, 1 / 256])


# --------------------------------------------------------------------------------------- memory


def test_at_8192_tiles_need_less_than_a_tenth_of_the_memory_and_grow_with_the_length():
    def peaks(L):
        q, k, v = torch.empty(3, 1, 1, L, 32, device="meta")  # counted, not computed
        whole = peak_bytes(lambda: attend(q[0], k[0], v[0])[0])
        return whole, peak_bytes(lambda: wm.flash_forward(q, k, v, 256))

    (whole, tiled), (whole_2, tiled_2) = peaks(4096), peaks(8192)
    assert tiled_2 < whole_2 / 10
    assert whole_2 > 3.9 * whole
    assert tiled_2 < 2.1 * tiled


def test_backwards_no_matrix_is_kept_either():
    L = 2048
    q, k, v = torch.randn(3, 1, 1, L, 16)
    output, lse = wm.flash_forward(q, k, v, 128)
    peak = peak_bytes(lambda: wm.flash_backward(q, k, v, output, lse, torch.ones_like(output), 128))
    assert peak < L * L * 4 / 10


# ---------------------------------------------------------------------------- FlexAttention


def mods(H, width):
    return {
        "causal": wm.causal,
        "window": lambda score, n, h, i, j: wm.sliding_window(score, n, h, i, j, width),
        "alibi": lambda score, n, h, i, j: wm.alibi(score, n, h, i, j, H),
    }


@pytest.mark.parametrize("name", ["causal", "window", "alibi"])
def test_flex_attention_with_a_score_mod_equals_the_explicit_formula(name):
    q, k, v = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    i, j = torch.arange(9).unsqueeze(1), torch.arange(9)
    change = {
        "causal": torch.where(j <= i, 0.0, -torch.inf),
        "window": torch.where((j <= i) & (j > i - 3), 0.0, -torch.inf),
        "alibi": -torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256]).view(4, 1, 1) * (i - j).abs(),
    }[name]
    expected = torch.softmax(q @ k.mT / math.sqrt(8) + change, -1) @ v
    output, how = flex.attention(q, k, v, mods(4, 3)[name], compiled=False)
    exact(output, expected)
    assert "eagerly" in how and "not asked" in how


def test_where_compiling_fails_flex_attention_runs_eagerly_and_says_so(monkeypatch):
    def cannot(*args, **kwargs):
        raise RuntimeError("no compiler was found\nand more")

    monkeypatch.setattr(flex, "_compiled", lambda: cannot)
    q = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    output, how = flex.attention(q, q, q, wm.causal)
    exact(output, direct(q, q, q, torch.arange(5) <= torch.arange(5).unsqueeze(1)))
    assert "eagerly" in how and "no compiler was found" in how and "and more" not in how


def test_where_compiling_works_flex_attention_says_so(monkeypatch):
    monkeypatch.setattr(flex, "_compiled", lambda: flex.eager)
    q = torch.randn(1, 2, 5, 4)
    assert "compiled, on cpu" in flex.attention(q, q, q, wm.causal)[1]


# ------------------------------------------------------------------------------ looking at work


def test_the_tiles_of_a_function_are_seen_in_their_order():
    seen = score_tiles(lambda q, k, v: wm.flash_forward(q, k, v, 4), 10, 14)
    assert seen[:2] == [(0, 4, 0, 4), (0, 4, 4, 8)] and seen[-1] == (8, 10, 12, 14) and len(seen) == 12
    whole = score_tiles(lambda q, k, v: attend(q[0], k[0], v[0]), 10, 14)
    assert whole == [(0, 10, 0, 14)]
    assert score_tiles(lambda q, k, v: v, 10, 14) == []


def test_every_correct_style_is_seen_to_make_only_tiles():
    for style in exercises.find("flash_forward").styles:
        seen = score_tiles(lambda q, k, v, answer=style.answer: answer(q, k, v, 4), 10, 14)
        cells = sum((b - a) * (d - c) for a, b, c, d in set(seen))
        assert cells == 140 and len(seen) > 1, style.name


def test_an_answer_that_makes_a_larger_tensor_than_allowed_is_told_so():
    case = Case("long", lambda draw: {"x": draw.normal(8)}, largest=lambda inputs: 8, gradients=False)
    exercise = Exercise("squares", "0.1", lambda x: x * x, ("y (L,)",), (case,))
    assert examine(exercise, LocalAnswer(lambda x: x * x)).status == "right"
    assert examine(exercise, LocalAnswer(lambda x: x.expand(8, 8)[0] ** 2)).status == "right"  # a view
    report = examine(exercise, LocalAnswer(lambda x: torch.outer(x, x).diagonal().clone()))
    assert report.status == "wrong" and "(8, 8)" in report.card.headline


# -------------------------------------------------------------------------------- what cells claim


@pytest.fixture(scope="module")
def told():
    """What the notebook's cells define, and what they print; pictures, checks and the large measurement left out."""
    folder = Path(__file__).parents[1] / "solutions" / "08_without_the_matrix"
    nb = jupytext.reads((folder / "08_without_the_matrix.py").read_text(encoding="utf-8"), fmt="py:percent")
    torch.manual_seed(0)
    names, printed = {}, io.StringIO()
    for cell in nb.cells:
        if (
            cell.cell_type == "code"
            and not cell.source.startswith("check(")
            and "peak_bytes(" not in cell.source
        ):
            source = re.sub(r"^plots\.show\(.*?^\)$", "", cell.source, flags=re.DOTALL | re.MULTILINE)
            with redirect_stdout(printed):
                exec(source, names)
    return names, printed.getvalue()


def test_the_notebook_shows_what_its_text_says(told):
    names, printed = told
    differences = [float(x) for x in re.findall(r"largest difference (?:from torch )?(\S+)", printed)]
    assert (
        len(differences) == 10 and sorted(differences)[-2] < 1e-12 and max(differences) < 1e-5
    )  # one is float32
    assert "gradcheck: True" in printed
    errors = names["errors"]
    assert (
        max(errors["yours"]) < 1e-13 and errors["not rescaled"][0] < 1e-13 and errors["averaged"][0] < 1e-13
    )
    assert min(errors["not rescaled"][1:]) > 0.1 and min(errors["averaged"][1:]) > 0.1
    assert len(names["visited"]) == 12
