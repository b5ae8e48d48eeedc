"""Lesson 06, declared: positions, rotary positions, shared key-value heads, the cache and a step of decoding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from mha_course import reference
from mha_course.checking import (
    Case,
    Exercise,
    Lesson,
    Misconception,
    Named,
    Property,
    Question,
    Step,
    Style,
)

from ._properties import of_shape, sound

FLOAT32 = torch.float32
INF = float("inf")
# Angles worked out in float32 are good enough in practice: up to position 100 they are off by 100 · 6e-8.
ANGLES = 5e-5


def odd_is_accepted(_):
    pass


def odd_is_refused(n):
    if n % 2:
        raise ValueError(f"{n} is odd")


def odd_is_asserted(n):
    assert n % 2 == 0


ODD_ACCEPTED = (
    "An odd number of features is accepted. They come in pairs (a sine and a cosine, or the two that are turned together), "
    "and one would be left over. Say no first: a ValueError that names the number."
)
ODD_ASSERTED = (
    "An odd number of features is refused by an `assert`. `python -O` leaves that out. For what a caller gave you, raise "
    "a ValueError."
)


def its_device(value, inputs):
    return {"device of the result": str(value.device)}


# ----------------------------------------------------------------------- 6.1 sinusoidal_positions


def pair_frequencies(E, device=None):
    """One frequency for each pair of features, (E/2,)."""
    return 10000.0 ** (-torch.arange(0, E, 2, dtype=torch.float64, device=device) / E)


def interleaved(angle):
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def sinusoids_with(
    refusal=odd_is_refused,
    places=lambda L, d: torch.arange(L, dtype=torch.float64, device=d),
    frequencies=pair_frequencies,
    lay=interleaved,
    where=lambda d: d,
):
    """The table from its parts."""

    def sinusoidal_positions(L, E, device=None):
        refusal(E)
        angle = places(L, where(device)).unsqueeze(1) * frequencies(E, where(device))  # (L, E/2)
        return lay(angle).float()

    return sinusoidal_positions


def even_or_one_more(frequencies):
    """Accepts an odd E by making one pair more and cutting."""

    def sinusoidal_positions(L, E, device=None):
        more = E + E % 2
        exponent = torch.arange(0, more, 2, dtype=torch.float64, device=device) / E
        angle = torch.arange(L, device=device).unsqueeze(1) * 10000.0**-exponent
        return interleaved(angle)[:, :E].float()

    return sinusoidal_positions


def feature_frequencies(E, device=None):
    """One for each feature, (E,)."""
    return 10000.0 ** (-torch.arange(E, dtype=torch.float64, device=device) / E)


def alternating(angle):
    """Sines of even features, cosines of odd ones, each of its own angle."""
    even = torch.arange(angle.shape[-1], device=angle.device) % 2 == 0
    return torch.where(even, angle.sin(), angle.cos())


def all_sines(L, E, device=None):
    odd_is_refused(E)
    angle = torch.arange(L, device=device).unsqueeze(1) * pair_frequencies(E, device)
    return angle.sin().repeat_interleave(2, -1).float()


def into_slices(L, E, device=None):
    if E % 2:
        raise ValueError("E must be even")
    table = torch.zeros(L, E, device=device)
    place = torch.arange(L, dtype=torch.float32, device=device).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, E, 2, device=device).float() * (-math.log(10000.0) / E))
    table[:, 0::2] = torch.sin(place * frequency)
    table[:, 1::2] = torch.cos(place * frequency)
    return table


def by_python_loops(L, E, device=None):
    if E % 2 == 1:
        raise ValueError(f"{E} features do not make pairs")
    rows = []
    for p in range(L):
        row = []
        for i in range(E // 2):
            angle = p / 10000 ** (2 * i / E)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    return torch.tensor(rows, device=device)


def by_complex_numbers(L, E, device=None):
    if E % 2:
        raise ValueError("odd E")
    place = torch.arange(L, dtype=torch.float64, device=device)
    turned = torch.polar(
        torch.ones(L, E // 2, dtype=torch.float64, device=device),
        torch.outer(place, pair_frequencies(E, device)),
    )
    return torch.view_as_real(turned).flip(-1).reshape(L, E).float()


def by_where(L, E, device=None):
    if E % 2:
        raise ValueError("odd E")
    j = torch.arange(E, device=device)
    angle = torch.arange(L, device=device)[:, None] / torch.pow(10000, 2 * (j // 2) / E)
    return torch.where(j % 2 == 0, torch.sin(angle), torch.cos(angle))


of_L_and_E = of_shape(lambda inputs: (inputs["L"], inputs["E"]))


@of_L_and_E
def first_row_is_zeros_and_ones(inputs, value):
    if bool(((value[0] - (torch.arange(inputs["E"]) % 2)).abs() > 1e-4).any()):
        return "Row 0 of yours is not (0, 1, 0, 1, …). At position 0 all angles are 0: sin 0 = 0, cos 0 = 1."
    return None


@of_L_and_E
def pairs_lie_on_the_circle(inputs, value):
    if bool(((value[:, 0::2] ** 2 + value[:, 1::2] ** 2 - 1).abs() > 1e-4).any()):
        return (
            "Features 2i and 2i + 1 of yours are not the sine and the cosine of one angle: "
            "their squares should add up to 1."
        )
    return None


SINUSOIDAL_POSITIONS = Exercise(
    name="sinusoidal_positions",
    number="6.1",
    reference=reference.sinusoidal_positions,
    returns=("table (L, E)",),
    assemble=sinusoids_with,
    differentiable=False,
    device_safe=False,  # no input is on a device; the last case asks for one that every machine has
    keywords=("device",),
    cases=(
        Case("L = 7, E = 6", lambda draw: {"L": 7, "E": 6}, tolerance=ANGLES),
        Case("more features than positions", lambda draw: {"L": 3, "E": 10}, tolerance=ANGLES),
        Case("one pair", lambda draw: {"L": 5, "E": 2}, tolerance=ANGLES),
        Case("one position", lambda draw: {"L": 1, "E": 4}),
        Case("an odd E", lambda draw: {"L": 4, "E": 5}, raises=(ValueError,)),
        Case(
            "for another device: meta, which every machine has",
            lambda draw: {"L": 3, "E": 4, "device": torch.device("meta")},
            look_at=its_device,
        ),
    ),
    misconceptions=(
        Misconception(
            "sines-then-cosines",
            "Your first half is all sines, the second all cosines. Some libraries lay them out so; the paper and this "
            "course keep them as neighbours: feature 2i is a sine, feature 2i + 1 its cosine.",
            part={"lay": lambda a: torch.cat([a.sin(), a.cos()], -1)},
            hint=2,
        ),
        Misconception(
            "cosine-first",
            "Sine and cosine have changed places: row 0 of yours begins with 1. Even features are sines.",
            part={"lay": lambda a: torch.stack([a.cos(), a.sin()], -1).flatten(-2)},
            hint=1,
        ),
        Misconception(
            "cosines-then-sines",
            "Your first half is all cosines, the second all sines. Feature 2i is a sine, feature 2i + 1 its cosine.",
            part={"lay": lambda a: torch.cat([a.cos(), a.sin()], -1)},
            hint=2,
        ),
        Misconception(
            "all-sines",
            "Both features of a pair are the sine. The second is the cosine: with both, a step to the right is the same "
            "turn everywhere.",
            wrong=all_sines,
            hint=1,
            also=(
                lambda L, E, device=None: sinusoids_with(
                    lay=lambda a: torch.stack([a.sin(), a.sin()], -1).flatten(-2)
                )(L, E, device),
            ),
        ),
        Misconception(
            "one-frequency-per-feature",
            "Each feature of yours has a frequency of its own. Two neighbours, 2i and 2i + 1, share one: they are the "
            "sine and the cosine of the *same* angle.",
            part={"frequencies": feature_frequencies, "lay": alternating},
            hint=2,
        ),
        Misconception(
            "exponent-half",
            "Your frequencies fall too slowly: pair i has the exponent 2i/E, yours has i/E.",
            part={
                "frequencies": lambda E, d=None: (
                    10000.0 ** (-torch.arange(E // 2, dtype=torch.float64, device=d) / E)
                )
            },
            hint=2,
        ),
        Misconception(
            "exponent-doubled",
            "Your frequencies fall too fast. `arange(0, E, 2)` counts 0, 2, 4, … already: that *is* 2i, once.",
            part={"frequencies": lambda E, d=None: pair_frequencies(E, d) ** 2},
            hint=2,
        ),
        Misconception(
            "frequencies-grow",
            "Your angles grow from pair to pair; they should shrink. The position is *divided* by 10000 to the power 2i/E.",
            part={"frequencies": lambda E, d=None: 1 / pair_frequencies(E, d)},
            hint=2,
        ),
        Misconception(
            "last-is-exactly-a-ten-thousandth",
            "Your last pair has the frequency 1/10000 exactly: you divided by E − 2 (or by E/2 − 1). Some libraries do. "
            "The paper divides 2i by E, so the last pair stays a little above.",
            part={
                "frequencies": lambda E, d=None: (
                    10000.0 ** (-torch.arange(0, E, 2, dtype=torch.float64, device=d) / max(E - 2, 1))
                )
            },
            hint=2,
        ),
        Misconception(
            "same-frequency",
            "All pairs of yours turn equally fast. Each pair has a slower frequency than the one before: that is how both "
            "near and far can be told.",
            part={
                "frequencies": lambda E, d=None: torch.ones(E // 2, dtype=torch.float64, device=d),
            },
            hint=2,
        ),
        Misconception(
            "base-1000",
            "Your frequencies fall too slowly: the base is 10000, with four zeros.",
            part={"frequencies": lambda E, d=None: pair_frequencies(E, d) ** 0.75},
            hint=2,
        ),
        Misconception(
            "natural-base",
            "The base is missing: `exp(−2i/E)` has the base e = 2.718…; 10000^x is exp(x · log 10000).",
            part={"frequencies": lambda E, d=None: pair_frequencies(E, d) ** (1 / math.log(10000))},
            hint=3,
        ),
        Misconception(
            "starts-at-one",
            "Your row 0 is what row 1 should be: the positions start at 1. They are counted from 0.",
            part={"places": lambda L, d: torch.arange(1, L + 1, dtype=torch.float64, device=d)},
            hint=1,
        ),
        Misconception(
            "positions-as-shares",
            "The positions are divided by L, so the same place gets another vector in a longer sentence. Use 0, 1, 2, … "
            "as they are.",
            part={"places": lambda L, d: torch.arange(L, dtype=torch.float64, device=d) / L},
            hint=1,
        ),
        Misconception(
            "transposed",
            "Rows and columns have changed places: yours is (E, L). A row is a position, a column a feature: (L, E).",
            wrong=lambda L, E, device=None: sinusoids_with()(L, E, device).T,
            hint=1,
        ),
        Misconception(
            "with-a-batch",
            "Your table has a batch dimension in front. One table serves every sample: (L, E); adding it broadcasts.",
            wrong=lambda L, E, device=None: sinusoids_with()(L, E, device).unsqueeze(0),
            hint=1,
        ),
        Misconception(
            "float64",
            "The numbers are right, in float64. Added to float32 tokens they would turn everything after them into float64. "
            "Give float32.",
            wrong=lambda L, E, device=None: sinusoids_with(
                lay=lambda a: interleaved(a).double(),
            )(L, E, device).double(),
            hint=3,
        ),
        Misconception(
            "device-ignored",
            "The table is made on the CPU, whatever `device` says. Tokens on a GPU cannot be added to it. Hand `device` on "
            "to what makes a tensor.",
            part={"where": lambda d: None},
            hint=3,
        ),
        Misconception(
            "odd-accepted",
            ODD_ACCEPTED,
            part={"refusal": odd_is_accepted},
            hint=1,
            also=(even_or_one_more(pair_frequencies),),
        ),
        Misconception("odd-asserted", ODD_ASSERTED, part={"refusal": odd_is_asserted}, hint=1),
        Misconception(
            "odd-left-to-torch",
            "An odd E does stop your code, with an error about something else that happened later on. Look at E first, and "
            "say what is wrong with it in a ValueError.",
            wrong=lambda L, E, device=None: _into_slices_unchecked(L, E, device),
            hint=1,
        ),
    ),
    properties=(
        Property("row-0", first_row_is_zeros_and_ones, hint=1),
        Property("circle", pairs_lie_on_the_circle, hint=2),
    ),
    styles=(
        Style("written into slices, in float32", into_slices),
        Style("Python's own sin and cos", by_python_loops),
        Style("complex numbers", by_complex_numbers),
        Style("torch.where over all features", by_where),
        Style("by division", lambda L, E, device=None: sinusoids_by_division(L, E, device)),
    ),
)


def _into_slices_unchecked(L, E, device=None):
    table = torch.zeros(L, E, device=device)
    place = torch.arange(L, dtype=torch.float32, device=device).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, E, 2, device=device).float() * (-math.log(10000.0) / E))
    table[:, 0::2] = torch.sin(place * frequency)
    table[:, 1::2] = torch.cos(place * frequency)
    return table


def sinusoids_by_division(L, E, device=None):
    if E % 2 != 0:
        raise ValueError("an even number of features, please")
    place = torch.arange(L, device=device).reshape(L, 1)
    angle = place / 10000 ** (torch.arange(0, E, 2, device=device) / E)
    return torch.cat([angle.sin().unsqueeze(2), angle.cos().unsqueeze(2)], dim=2).reshape(L, E)


# --------------------------------------------------------------------------------- 6.2 apply_rope


def per_token(positions, x):
    """Positions as (L, 1) or (N, 1, L, 1), to be multiplied by frequencies (D/2,)."""
    p = positions.to(torch.float64).unsqueeze(-1)
    return p if p.dim() == 2 else p.unsqueeze(1)


def neighbours(x):
    return x[..., 0::2], x[..., 1::2]


def turned(a, b, cos, sin):
    return a * cos - b * sin, a * sin + b * cos


def side_by_side(a, b):
    return torch.stack([a, b], -1).flatten(-2)


def rope_with(
    refusal=odd_is_refused,
    places=per_token,
    frequencies=pair_frequencies,
    angles=lambda place, frequency: place * frequency,
    pairs=neighbours,
    turn=turned,
    lay=side_by_side,
):
    """The turn from its parts."""

    def apply_rope(x, positions):
        refusal(x.shape[-1])
        angle = angles(places(positions, x), frequencies(x.shape[-1], x.device))
        a, b = pairs(x)
        return lay(*turn(a, b, angle.cos().to(x.dtype), angle.sin().to(x.dtype)))

    return apply_rope


def rope_in_low_precision(x, positions):
    odd_is_refused(x.shape[-1])
    place = positions.to(x.dtype).unsqueeze(-1)
    place = place if place.dim() == 2 else place.unsqueeze(1)
    angle = place * pair_frequencies(x.shape[-1], x.device).to(x.dtype)
    return side_by_side(*turned(*neighbours(x), angle.cos(), angle.sin()))


def rope_tiled_angles(x, positions):
    """Neighbours are turned, but cos and sin are laid out for halves."""
    odd_is_refused(x.shape[-1])
    angle = per_token(positions, x) * pair_frequencies(x.shape[-1], x.device)
    cos, sin = (torch.cat([f(angle)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
    even, odd = neighbours(x)
    return x * cos + side_by_side(-odd, even) * sin


def rope_halves_by_pair_angles(x, positions):
    """Halves are turned, but cos and sin are laid out for neighbours."""
    odd_is_refused(x.shape[-1])
    angle = per_token(positions, x) * pair_frequencies(x.shape[-1], x.device)
    cos, sin = (f(angle).repeat_interleave(2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def rope_rotate_half(x, positions):
    odd_is_refused(x.shape[-1])
    angle = per_token(positions, x) * pair_frequencies(x.shape[-1], x.device)
    cos, sin = (torch.cat([f(angle)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def rope_cos_first(x, positions):
    """The angles have no place for the heads, and stand first in the product."""
    odd_is_refused(x.shape[-1])
    angle = positions.unsqueeze(-1) * pair_frequencies(x.shape[-1], x.device)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = neighbours(x)
    return side_by_side(cos * a - sin * b, sin * a + cos * b)


def sinusoids_added(x, positions):
    odd_is_refused(x.shape[-1])
    angle = per_token(positions, x) * pair_frequencies(x.shape[-1], x.device)
    return x + interleaved(angle).to(x.dtype)


def sinusoids_multiplied(x, positions):
    odd_is_refused(x.shape[-1])
    angle = per_token(positions, x) * pair_frequencies(x.shape[-1], x.device)
    return x * interleaved(angle).to(x.dtype)


def first_of_the_batch(positions, x):
    return per_token(positions if positions.dim() == 1 else positions[0], x)


def from_zero(positions, x):
    return per_token(positions - positions[..., :1], x)


def counted_anew(positions, x):
    return per_token(torch.arange(x.shape[-2], device=x.device).expand(positions.shape), x)


def rope_by_complex_numbers(x, positions):
    if x.shape[-1] % 2:
        raise ValueError("odd head_dim")
    angle = per_token(positions, x) * pair_frequencies(x.shape[-1], x.device)
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    numbers = torch.complex(*(part.contiguous() for part in neighbours(wide)))
    turn_ = torch.polar(torch.ones_like(angle), angle).to(numbers.dtype)
    return torch.view_as_real(numbers * turn_).flatten(-2).to(x.dtype)


def rope_by_rotate_every_two(x, positions):
    D = x.shape[-1]
    if D % 2:
        raise ValueError(f"D = {D}")
    frequency = 1.0 / (10000 ** (torch.arange(0, D, 2, device=x.device).float() / D))
    angle = (positions.unsqueeze(-1).float() * frequency).repeat_interleave(2, dim=-1)
    if angle.dim() == 3:
        angle = angle[:, None]
    other = torch.empty_like(x)
    other[..., 0::2], other[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return (x * angle.cos() + other * angle.sin()).to(x.dtype)


def rope_by_matrices(x, positions):
    if x.shape[-1] % 2:
        raise ValueError("D must be even")
    angle = per_token(positions, x) * pair_frequencies(x.shape[-1], x.device)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2).to(x.dtype)
    return (matrix @ x.unflatten(-1, (-1, 2)).unsqueeze(-1)).squeeze(-1).flatten(-2)


def rope_in_place_of_a_copy(x, positions):
    if x.shape[-1] % 2 != 0:
        raise ValueError("head_dim must be even")
    place = positions if positions.dim() == 2 else positions[None]
    angle = torch.einsum("nl,d->nld", place.double(), pair_frequencies(x.shape[-1], x.device))[:, None]
    out = x.clone()
    out[..., ::2] = x[..., ::2] * angle.cos() - x[..., 1::2] * angle.sin()
    out[..., 1::2] = x[..., 1::2] * angle.cos() + x[..., ::2] * angle.sin()
    return out


like_x = of_shape(lambda inputs: inputs["x"].shape)


@like_x
def lengths_stay(inputs, value):
    x = inputs["x"].double()
    y = value.double()
    if bool(((x.norm(dim=-1) - y.norm(dim=-1)).abs() > 0.02 * x.norm(dim=-1).clamp_min(1e-6)).any()):
        return "The vectors of yours have become longer or shorter. A turn changes no length."
    return None


@like_x
def position_0_stays(inputs, value):
    places = inputs["positions"]
    if places.dim() == 1 and bool((places == 0).any()):
        at = int((places == 0).nonzero()[0])
        if not torch.allclose(value[:, :, at].double(), inputs["x"][:, :, at].double(), atol=1e-2):
            return "A token at position 0 is turned by the angle 0: nothing should happen to it. In yours it does."
    return None


def draw_rope(draw, N=2, H=3, L=5, D=4, positions=None, dtype=torch.float64):
    places = torch.arange(L) if positions is None else torch.tensor(positions)
    return {"x": draw.normal(N, H, L, D, dtype=dtype), "positions": places}


APPLY_ROPE = Exercise(
    name="apply_rope",
    number="6.2",
    reference=reference.apply_rope,
    returns=("turned (N, H, L, D)",),
    assemble=rope_with,
    cases=(
        Case("positions 0, 1, 2, …", lambda draw: draw_rope(draw, D=6), tolerance=ANGLES),
        Case(
            "positions that go on: 3, 4",
            lambda draw: draw_rope(draw, N=3, H=2, L=2, D=8, positions=[3, 4]),
            tolerance=ANGLES,
        ),
        Case(
            "positions in another order",
            lambda draw: draw_rope(draw, N=1, H=2, L=4, D=6, positions=[9, 2, 0, 70]),
            tolerance=ANGLES,
        ),
        Case(
            "positions of their own for each sample",
            lambda draw: draw_rope(draw, N=2, H=3, L=4, D=2, positions=[[0, 1, 2, 3], [0, 0, 1, 2]]),
            tolerance=ANGLES,
        ),
        Case("float32", lambda draw: draw_rope(draw, N=2, H=4, L=3, D=10, dtype=FLOAT32)),
        Case(
            "bfloat16, far on in a text",
            lambda draw: draw_rope(draw, L=3, D=6, positions=[1000, 1001, 1003], dtype=torch.bfloat16),
            gradients=False,
        ),
        Case("an odd D", lambda draw: draw_rope(draw, D=5), raises=(ValueError,)),
    ),
    misconceptions=(
        Misconception(
            "half-layout",
            "You turn feature i together with feature i + D/2, as some models do (GPT-NeoX, Llama in Hugging Face's "
            "layout). Here *neighbours* belong together: 2i and 2i + 1. Weights trained with one are noise with the other.",
            part={"pairs": lambda x: x.chunk(2, -1), "lay": lambda a, b: torch.cat([a, b], -1)},
            hint=1,
            also=(rope_rotate_half,),
        ),
        Misconception(
            "layouts-mixed",
            "Two layouts are mixed: the vectors are paired one way, the angles are laid out the other way. With "
            "neighbours as pairs the angles go θ0, θ0, θ1, θ1, …: each twice on the spot, not the whole row twice.",
            wrong=rope_tiled_angles,
            hint=2,
            also=(rope_halves_by_pair_angles,),
        ),
        Misconception(
            "turned-backwards",
            "You turn the other way round: the signs of the sines are exchanged. (a, b) becomes "
            "(a cos − b sin, a sin + b cos).",
            part={"turn": lambda a, b, cos, sin: turned(a, b, cos, -sin)},
            hint=2,
        ),
        Misconception(
            "no-turn-but-a-flip",
            "Both of your signs are the same. One of the two sines has a minus: a cos − b sin, a sin + b cos. Otherwise "
            "lengths change.",
            part={"turn": lambda a, b, cos, sin: (a * cos + b * sin, a * sin + b * cos)},
            hint=2,
            also=(rope_with(turn=lambda a, b, cos, sin: (a * cos - b * sin, b * cos - a * sin)),),
        ),
        Misconception(
            "mirrored",
            "The second feature has changed its sign: that is a mirror, no turn. (a, b) becomes "
            "(a cos − b sin, a sin + b cos).",
            part={"turn": lambda a, b, cos, sin: (a * cos + b * sin, a * sin - b * cos)},
            hint=2,
        ),
        Misconception(
            "halves-in-the-result",
            "The result is laid out wrongly: first all first features, then all second ones. Put each pair back where it came "
            "from.",
            part={"lay": lambda a, b: torch.cat([a, b], -1)},
            hint=3,
        ),
        Misconception(
            "positions-ignored",
            "The tokens are counted 0, 1, 2, … from the start of `x`, whatever `positions` says. While decoding, `x` is "
            "one token, and it stands far from 0.",
            part={"places": counted_anew},
            hint=1,
        ),
        Misconception(
            "positions-from-zero",
            "The first position is subtracted from all. Turn by the positions as they are given.",
            part={"places": from_zero},
            hint=1,
        ),
        Misconception(
            "one-too-far",
            "Every token is turned one position too far. Position 0 is turned by nothing.",
            part={"places": lambda p, x: per_token(p + 1, x)},
            hint=1,
        ),
        Misconception(
            "no-place-for-heads",
            "With positions for each sample, (N, L), your angles are (N, L, D/2), and `x` is (N, H, L, D): the heads have no "
            "place. Give the angles one, for all heads alike: (N, 1, L, D/2).",
            part={"places": lambda p, x: p.to(torch.float64).unsqueeze(-1)},
            hint=3,
            also=(rope_cos_first,),
        ),
        Misconception(
            "first-samples-positions",
            "Every sample gets the first sample's positions. `positions` may be (N, L): samples with padding on the left "
            "start later.",
            part={"places": first_of_the_batch},
            hint=3,
        ),
        Misconception(
            "same-frequency",
            "All pairs are turned by the same angle. Pair i turns by position · 10000^(−2i/D): each pair more slowly.",
            part={"frequencies": lambda D, d=None: torch.ones(D // 2, dtype=torch.float64, device=d)},
            hint=2,
        ),
        Misconception(
            "exponent-half",
            "Your frequencies fall too slowly: the exponent of pair i is −2i/D, yours is −i/D.",
            part={
                "frequencies": lambda D, d=None: (
                    10000.0 ** (-torch.arange(D // 2, dtype=torch.float64, device=d) / D)
                )
            },
            hint=2,
        ),
        Misconception(
            "exponent-doubled",
            "Your frequencies fall too fast. `arange(0, D, 2)` is 2i already; the exponent has 2i once.",
            part={"frequencies": lambda D, d=None: pair_frequencies(D, d) ** 2},
            hint=2,
        ),
        Misconception(
            "frequencies-grow",
            "Your angles grow from pair to pair; they should shrink: the exponent is negative.",
            part={"frequencies": lambda D, d=None: 1 / pair_frequencies(D, d)},
            hint=2,
        ),
        Misconception(
            "added",
            "Sines and cosines are *added*. That is exercise 6.1. Here each pair is turned, by products.",
            wrong=sinusoids_added,
            hint=1,
        ),
        Misconception(
            "multiplied",
            "Each feature is multiplied by one sine or cosine. A turn mixes the two of a pair: each result is made of both.",
            wrong=sinusoids_multiplied,
            hint=2,
            also=(rope_with(turn=lambda a, b, cos, sin: (a * cos, b * sin)),),
        ),
        Misconception(
            "cosines-only",
            "Both of a pair are multiplied by the cosine, and the sine is missing: the vectors become shorter instead of "
            "turning.",
            part={"turn": lambda a, b, cos, sin: (a * cos, b * cos)},
            hint=2,
        ),
        Misconception(
            "written-over-too-early",
            "The second line uses the first one's *result*: `a` was already turned when `b` was made from it. Keep the old "
            "ones until both are done.",
            part={
                "turn": lambda a, b, cos, sin: (a * cos - b * sin, (a * cos - b * sin) * sin + b * cos),
            },
            hint=3,
        ),
        Misconception(
            "angles-in-low-precision",
            "In bfloat16 your positions are rounded before they become angles: 1001 and 1003 are the same number there, and "
            "the neighbours cannot be told apart. Make the angles in float32 or better; round cos and sin.",
            wrong=rope_in_low_precision,
            hint=3,
        ),
        Misconception(
            "odd-accepted",
            ODD_ACCEPTED,
            wrong=lambda x, positions: _rope_of_all_pairs(x, positions),
            hint=1,
        ),
        Misconception("odd-asserted", ODD_ASSERTED, part={"refusal": odd_is_asserted}, hint=1),
        Misconception(
            "odd-left-to-torch",
            "An odd D does stop your code, with an error about something else that happened later on. Look at D first, and "
            "say what is wrong with it in a ValueError.",
            part={"refusal": odd_is_accepted},
            hint=1,
        ),
    ),
    properties=(
        Property("lengths", lengths_stay, hint=2),
        Property("position-0", position_0_stays, hint=1),
    ),
    styles=(
        Style("complex numbers", rope_by_complex_numbers),
        Style("rotate every two, float32 angles", rope_by_rotate_every_two),
        Style("2 × 2 matrices", rope_by_matrices),
        Style("into a copy, einsum", rope_in_place_of_a_copy),
        Style("pairs as a last dimension", lambda x, positions: rope_unflattened(x, positions)),
    ),
)


def _rope_of_all_pairs(x, positions):
    """Turns the whole pairs and leaves an odd one over."""
    even = x.shape[-1] // 2 * 2
    return torch.cat([rope_with()(x[..., :even], positions), x[..., even:]], -1)


def rope_unflattened(x, positions):
    if x.shape[-1] % 2:
        raise ValueError("an even number of features")
    half = x.shape[-1] // 2
    x1, x2 = x.unflatten(-1, (half, 2)).unbind(-1)
    theta = torch.pow(10000.0, torch.arange(half, device=x.device) * (-2.0 / x.shape[-1]))
    angle = positions[..., None] * theta
    if positions.dim() == 2:
        angle = angle.unsqueeze(-3)
    cos, sin = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
    return torch.stack((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).reshape(x.shape)


# -------------------------------------------------------------------------- 6.3 grouped_attention


def uneven_is_refused(H, Hkv):
    if H % Hkv:
        raise ValueError(f"{H} query heads cannot share {Hkv} key-value heads")


def uneven_is_asserted(H, Hkv):
    assert H % Hkv == 0


def neighbours_share(x, H):
    return x.repeat_interleave(H // x.shape[1], 1)


def tiled(x, H):
    return x.repeat(1, H // x.shape[1], 1, 1)


def first_for_all(x, H):
    return x[:, :1].expand(-1, H, -1, -1)


def averaged(x, H):
    return x.mean(1, keepdim=True).expand(-1, H, -1, -1)


def masked_rows(scores, may_attend):
    return reference.masked_softmax(
        scores, torch.ones_like(scores, dtype=torch.bool) if may_attend is None else may_attend
    )


def masked_with(fill, dead=None):
    def weights(scores, may_attend):
        if may_attend is None:
            return torch.softmax(scores, -1)
        return torch.softmax(scores.masked_fill(~may_attend, fill), -1)

    return weights


def grouped_with(
    refusal=uneven_is_refused,
    keys=neighbours_share,
    values=neighbours_share,
    scores=lambda q, k: q @ k.mT / math.sqrt(q.shape[-1]),
    weigh=masked_rows,
    give=lambda output, weights, Hkv: (output, weights),
):
    """Attention with shared key-value heads, from its parts."""

    def grouped_attention(q, k, v, may_attend=None):
        H, Hkv = q.shape[1], k.shape[1]
        refusal(H, Hkv)
        weights = weigh(scores(q, keys(k, H)), may_attend)
        return give(weights @ values(v, H), weights, Hkv)

    return grouped_attention


def grouped_from_the_front(q, k, v, may_attend=None):
    """Head h looks at key-value head h % Hkv: the groups are cut the other way round."""
    N, H, L, D = q.shape
    Hkv = k.shape[1]
    uneven_is_refused(H, Hkv)
    grouped = q.reshape(N, H // Hkv, Hkv, L, D)
    scores = grouped @ k.unsqueeze(1).mT / math.sqrt(D)  # (N, G, Hkv, L, S)
    weights = masked_rows(scores.reshape(N, H, L, -1), may_attend)
    return weights @ tiled(v, H), weights


def regrouped_output(output, weights, Hkv):
    """Right groups, and the heads of the result in the order of the groups' members."""
    G = output.shape[1] // Hkv
    return output.unflatten(1, (Hkv, G)).transpose(1, 2).flatten(1, 2), weights


def queries_averaged(q, k, v, may_attend=None):
    """The query heads of a group are averaged: only Hkv heads are left."""
    H, Hkv = q.shape[1], k.shape[1]
    uneven_is_refused(H, Hkv)
    q = q.unflatten(1, (Hkv, H // Hkv)).mean(2)
    if may_attend is not None and may_attend.dim() == 4 and may_attend.shape[1] == H:
        may_attend = may_attend[:, :: H // Hkv]
    weights = masked_rows(q @ k.mT / math.sqrt(q.shape[-1]), may_attend)
    return weights @ v, weights


def grouped_in_five_dimensions(q, k, v, may_attend=None):
    N, H, L, D = q.shape
    Hkv, S = k.shape[1:3]
    if H % Hkv:
        raise ValueError("the heads cannot be shared out")
    grouped = q.reshape(N, Hkv, H // Hkv, L, D)
    scores = (grouped @ k.unsqueeze(2).transpose(-2, -1) / D**0.5).flatten(1, 2)  # (N, H, L, S)
    if may_attend is not None:
        mask = may_attend.expand(N, H, L, S)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, -1) * mask
    else:
        weights = torch.softmax(scores, -1)
    output = weights.unflatten(1, (Hkv, H // Hkv)) @ v.unsqueeze(2)
    return output.flatten(1, 2), weights


def grouped_head_by_head(q, k, v, may_attend=None):
    H, Hkv = q.shape[1], k.shape[1]
    if H % Hkv != 0:
        raise ValueError(f"H={H}, Hkv={Hkv}")
    outputs, all_weights = [], []
    for h in range(H):
        g = h // (H // Hkv)
        scores = q[:, h] @ k[:, g].transpose(1, 2) / math.sqrt(q.shape[-1])
        if may_attend is None:
            weights = scores.softmax(-1)
        else:
            mask = may_attend.expand(q.shape[0], H, *scores.shape[1:])[:, h]
            weights = reference.masked_softmax(scores, mask)
        outputs.append(weights @ v[:, g])
        all_weights.append(weights)
    return torch.stack(outputs, 1), torch.stack(all_weights, 1)


def grouped_by_einsum(q, k, v, may_attend=None):
    N, H, L, D = q.shape
    G = H // k.shape[1]
    if G * k.shape[1] != H:
        raise ValueError("not a multiple")
    q = q.view(N, -1, G, L, D) if q.is_contiguous() else q.reshape(N, -1, G, L, D)
    scores = torch.einsum("nkgld,nksd->nkgls", q, k).reshape(N, H, L, -1) * D**-0.5
    weights = masked_rows(scores, may_attend)
    output = torch.einsum("nkgls,nksd->nkgld", weights.unflatten(1, (-1, G)), v)
    return output.reshape(N, H, L, -1), weights


def grouped_by_expand(q, k, v, may_attend=None):
    N, H = q.shape[:2]
    Hkv, S = k.shape[1:3]
    if H % Hkv:
        raise ValueError("H must be a multiple of Hkv")
    k = k[:, :, None].expand(N, Hkv, H // Hkv, S, k.shape[-1]).reshape(N, H, S, -1)
    v = v[:, :, None].expand(N, Hkv, H // Hkv, S, v.shape[-1]).reshape(N, H, S, -1)
    weights = masked_rows(q @ k.mT / q.shape[-1] ** 0.5, may_attend)
    return weights @ v, weights


def grouped_by_index(q, k, v, may_attend=None):
    H, Hkv = q.shape[1], k.shape[1]
    if H % Hkv:
        raise ValueError("uneven")
    mine = torch.arange(H, device=q.device) // (H // Hkv)
    scores = torch.matmul(q, k[:, mine].transpose(2, 3)).div(math.sqrt(q.shape[-1]))
    if may_attend is not None:
        scores = scores.masked_fill(~may_attend, -INF)
        weights = torch.nan_to_num(
            torch.softmax(scores.masked_fill(~may_attend.any(-1, keepdim=True), 0.0), -1)
        )
        weights = weights * may_attend
    else:
        weights = torch.softmax(scores, -1)
    return weights @ v[:, mine], weights


def draw_grouped(draw, N=2, H=6, Hkv=3, L=5, S=7, D=4, Dv=8, dtype=torch.float64, mask=None):
    inputs = {
        "q": draw.normal(N, H, L, D, dtype=dtype),
        "k": draw.normal(N, Hkv, S, D, dtype=dtype),
        "v": draw.normal(N, Hkv, S, Dv, dtype=dtype),
    }
    if mask is not None:
        inputs["may_attend"] = mask(draw)
    return inputs


def a_dead_row(draw):
    mask = draw.mask(2, 1, 5, 7)
    mask[1, 0, 3] = False
    return mask


@of_shape(
    lambda inputs: (*inputs["q"].shape[:3], inputs["v"].shape[-1]),
    lambda inputs: (*inputs["q"].shape[:3], inputs["k"].shape[-2]),
)
def rows_sum_to_one(inputs, value):
    sums = value[1].double().sum(-1)
    if bool((((sums - 1).abs() > 1e-4) & (sums.abs() > 1e-4)).any()):
        return (
            "The rows of your weights should sum to 1 over the keys (or to 0, where a query may see nothing)."
        )
    return None


GROUPED_ATTENTION = Exercise(
    name="grouped_attention",
    number="6.3",
    reference=reference.grouped_attention,
    returns=("output (N, H, L, Dv)", "weights (N, H, L, S)"),
    assemble=grouped_with,
    forbidden=("ready-made attention",),
    builds_on=(
        "attend",
        "attention_scores",
        "masked_softmax",
        "stable_softmax",
        "combine_masks",
        "to_additive",
    ),
    cases=(
        Case("two query heads for each of three", draw_grouped),
        Case(
            "six query heads, two key-value heads",
            lambda draw: draw_grouped(draw, N=3, Hkv=2, L=2, S=5, Dv=4),
        ),
        Case("one key-value head for all", lambda draw: draw_grouped(draw, H=4, Hkv=1, L=3, S=5, D=6)),
        Case("as many as query heads", lambda draw: draw_grouped(draw, H=3, Hkv=3, L=4, S=6, D=2, Dv=5)),
        Case(
            "a mask for all heads, a query that may see nothing",
            lambda draw: draw_grouped(draw, mask=a_dead_row),
        ),
        Case(
            "a mask of its own for each head",
            lambda draw: draw_grouped(draw, N=3, H=4, Hkv=2, mask=lambda d: d.mask(3, 4, 5, 7)),
        ),
        Case("float32", lambda draw: draw_grouped(draw, N=1, H=8, Hkv=2, L=3, S=5, dtype=FLOAT32)),
        Case(
            "6 query heads, 4 key-value heads",
            lambda draw: draw_grouped(draw, H=6, Hkv=4),
            raises=(ValueError,),
        ),
    ),
    misconceptions=(
        Misconception(
            "tiled-instead-of-neighbours",
            "Query head h of yours looks at key-value head h mod Hkv: `repeat` lays the whole row of heads down again and "
            "again. *Neighbours* share one: the first H / Hkv query heads look at key-value head 0, the next ones at 1.",
            part={"keys": tiled, "values": tiled},
            hint=1,
            also=(
                grouped_from_the_front,
                lambda q, k, v, may_attend=None: grouped_with(
                    keys=lambda x, H: torch.cat([x] * (H // x.shape[1]), 1),
                    values=lambda x, H: torch.cat([x] * (H // x.shape[1]), 1),
                )(q, k, v, may_attend),
            ),
        ),
        Misconception(
            "keys-and-values-differently",
            "Keys and values are shared out in two different ways: one with `repeat`, one with `repeat_interleave`. A "
            "query head must get the values that belong to the keys it looked at.",
            part={"keys": tiled},
            hint=1,
            also=(grouped_with(values=tiled),),
        ),
        Misconception(
            "first-for-all",
            "All query heads look at key-value head 0. Each group of query heads has its own.",
            part={"keys": first_for_all, "values": first_for_all},
            hint=1,
        ),
        Misconception(
            "key-value-heads-averaged",
            "Keys and values are averaged over their heads. Nothing is mixed: each group of query heads has *one* of them.",
            part={"keys": averaged, "values": averaged},
            hint=1,
        ),
        Misconception(
            "query-heads-averaged",
            "Your result has Hkv heads: the queries of each group were averaged. All H query heads stay, and each keeps its "
            "own weights; only keys and values are shared.",
            wrong=queries_averaged,
            hint=1,
        ),
        Misconception(
            "heads-come-back-in-another-order",
            "The heads come back in another order: first the first of each group, then the "
            "second of each. Head h belongs at place h.",
            part={"give": regrouped_output},
            hint=2,
        ),
        Misconception(
            "weights-averaged-over-the-group",
            "Your weights have Hkv heads: they were averaged over each group. Every query head has weights of its own.",
            part={
                "give": lambda output, weights, Hkv: (
                    output,
                    weights.unflatten(1, (Hkv, weights.shape[1] // Hkv)).mean(2),
                )
            },
            hint=2,
        ),
        Misconception(
            "no-scale",
            "Your weights are too sharp: the scores are not divided by √D.",
            part={"scores": lambda q, k: q @ k.mT},
            hint=2,
        ),
        Misconception(
            "root-of-e",
            "Your weights are too even: the scores are divided by √(H·D). Each head sums over its own D features.",
            part={"scores": lambda q, k: q @ k.mT / math.sqrt(q.shape[-1] * q.shape[1])},
            hint=2,
        ),
        Misconception(
            "divided-by-d",
            "Your weights are too even: divided by D where √D is meant.",
            part={"scores": lambda q, k: q @ k.mT / q.shape[-1]},
            hint=2,
        ),
        Misconception(
            "softmax-over-queries",
            "Each *column* of your weights sums to 1, each row should: the softmax ran over the queries.",
            part={"weigh": lambda s, m: torch.softmax(s if m is None else s.masked_fill(~m, -1e30), -2)},
            hint=2,
            also=(
                grouped_with(
                    weigh=lambda s, m: torch.softmax(s if m is None else s.masked_fill(~m, -INF), -2)
                ),
            ),
        ),
        Misconception(
            "mask-ignored",
            "The mask changes nothing.",
            part={"weigh": lambda s, m: torch.softmax(s, -1)},
            hint=3,
        ),
        Misconception(
            "mask-inverted",
            "The mask is read the wrong way round: closed keys get all the attention. True means: this query may look.",
            part={"weigh": lambda s, m: masked_rows(s, None if m is None else ~m)},
            hint=3,
        ),
        Misconception(
            "mask-after-softmax",
            "The mask comes after the softmax: the rows no longer sum to 1.",
            part={"weigh": lambda s, m: torch.softmax(s, -1) if m is None else torch.softmax(s, -1) * m},
            hint=3,
        ),
        Misconception(
            "dead-row-nan",
            "A query that may see nothing gets NaN: its softmax is 0 / 0. `masked_softmax` from lesson 02 gives zeros.",
            part={"weigh": masked_with(-INF)},
            hint=3,
        ),
        Misconception(
            "dead-row-even",
            "A query that may see nothing looks at everything alike: all its scores became the same number, or its weights were "
            "made even afterwards. `masked_softmax` from lesson 02 gives zeros.",
            part={"weigh": masked_with(-1e9)},
            hint=3,
        ),
        Misconception(
            "uneven-accepted",
            "6 query heads and 4 key-value heads are accepted. They cannot be shared out evenly, and the caller has to be told: "
            "a ValueError that names both numbers.",
            wrong=lambda q, k, v, may_attend=None: grouped_somehow(q, k, v, may_attend),
            hint=3,
        ),
        Misconception(
            "uneven-asserted",
            "6 query heads and 4 key-value heads are refused by an `assert`, which `python -O` leaves out. Raise a ValueError.",
            part={"refusal": uneven_is_asserted},
            hint=3,
        ),
        Misconception(
            "uneven-left-to-torch",
            "6 query heads and 4 key-value heads do stop your code, with an error about something else that happened later. "
            "Look at H and Hkv first, and say what is wrong in a ValueError.",
            part={"refusal": lambda H, Hkv: None},
            hint=3,
        ),
    ),
    properties=(Property("rows", rows_sum_to_one, hint=2),),
    styles=(
        Style("five dimensions, finfo.min", grouped_in_five_dimensions),
        Style("head by head", grouped_head_by_head),
        Style("einsum", grouped_by_einsum),
        Style("expand and reshape", grouped_by_expand),
        Style("heads picked by index", grouped_by_index),
    ),
)


def grouped_somehow(q, k, v, may_attend=None):
    """Head h looks at h · Hkv // H: works for any two numbers."""
    H, Hkv = q.shape[1], k.shape[1]
    mine = torch.arange(H, device=q.device) * Hkv // H
    weights = masked_rows(q @ k[:, mine].mT / math.sqrt(q.shape[-1]), may_attend)
    return weights @ v[:, mine], weights


# ------------------------------------------------------------------------------------ 6.4 KVCache


def cache_with(
    join=lambda old, new: torch.cat([old, new], -2),
    keep=lambda cache, k, v: (k, v),
    first=lambda k, v: (k, v),
    give=lambda cache, k, v: (cache.k, cache.v),
    length=lambda cache: 0 if cache.k is None else cache.k.shape[-2],
):
    """A cache from its parts."""

    class KVCache:
        def __init__(self):
            self.k = self.v = None
            self.calls = 0

        def __len__(self):
            return length(self)

        def append(self, k, v):
            self.calls += 1
            if self.k is None:
                self.k, self.v = first(k, v)
            else:
                self.k, self.v = keep(self, join(self.k, k), join(self.v, v))
            return give(self, k, v)

    return KVCache


def cache_along(dim):
    """A cache that joins in a wrong dimension, however the other sizes are."""

    class KVCache:
        def __init__(self):
            self.k = self.v = None

        def __len__(self):
            return 0 if self.k is None else self.k.shape[-2]

        def append(self, k, v):
            self.k = k if self.k is None else torch.cat([self.k, k], dim)
            self.v = v if self.v is None else torch.cat([self.v, v], dim)
            return self.k, self.v

    return KVCache


def cache_that_forgets():
    class KVCache(cache_with()):
        def append(self, k, v):
            if self.k is None:
                self.k, self.v = k, v
                return k, v
            return torch.cat([self.k, k], -2), torch.cat([self.v, v], -2)

    return KVCache


def cache_one_behind():
    class KVCache(cache_with()):
        def append(self, k, v):
            before = (k, v) if self.k is None else (self.k, self.v)
            super().append(k, v)
            return before

    return KVCache


def cache_without_len():
    class KVCache:
        def __init__(self):
            self.k = self.v = None

        append = cache_along(-2).append

    return KVCache


def cache_giving_lists():
    class KVCache:
        def __init__(self):
            self.k, self.v = [], []

        def __len__(self):
            return sum(k.shape[2] for k in self.k)

        def append(self, k, v):
            self.k.append(k)
            self.v.append(v)
            return list(self.k), list(self.v)

    return KVCache


def cache_with_last_values():
    class KVCache(cache_with()):
        def append(self, k, v):
            self.k = k if self.k is None else torch.cat([self.k, k], -2)
            self.v = v
            return self.k, self.v

    return KVCache


class CacheOfLists:
    """Keeps the pieces, joins them when asked."""

    def __init__(self):
        self.pieces = []

    def __len__(self):
        return sum(k.shape[2] for k, _ in self.pieces)

    def append(self, k, v):
        self.pieces.append((k, v))
        return torch.cat([k for k, _ in self.pieces], dim=2), torch.cat([v for _, v in self.pieces], dim=2)


class CacheWithRoom:
    """A buffer that doubles, as fast implementations have it."""

    def __init__(self):
        self.buffers, self.used = None, 0

    def __len__(self):
        return self.used

    def append(self, k, v):
        need = self.used + k.size(2)
        if self.buffers is None or need > self.buffers[0].size(2):
            grown = [x.new_empty(x.size(0), x.size(1), 2 * need, x.size(3)) for x in (k, v)]
            if self.buffers is not None:
                for new, old in zip(grown, self.buffers):
                    new[:, :, : self.used] = old[:, :, : self.used]
            self.buffers = grown
        for buffer, x in zip(self.buffers, (k, v)):
            buffer[:, :, self.used : need] = x
        self.used = need
        return tuple(buffer[:, :, :need] for buffer in self.buffers)


class CacheFromNothing:
    """Starts with no tokens instead of None."""

    def __init__(self):
        self.keys = self.values = None
        self.count = 0

    def __len__(self):
        return self.count

    def append(self, k, v):
        old_k = k[:, :, :0] if self.keys is None else self.keys
        old_v = v[:, :, :0] if self.values is None else self.values
        self.keys = torch.cat((old_k, k), dim=2)
        self.values = torch.cat((old_v, v), dim=2)
        self.count += k.shape[-2]
        return self.keys, self.values


class CacheInADict(dict):
    """Kept by name."""

    def __len__(self):
        return self["k"].size(-2) if "k" in self else 0

    def append(self, k, v):
        for name, new in (("k", k), ("v", v)):
            self[name] = torch.cat([self[name], new], dim=-2) if name in self else new.clone()
        return self["k"], self["v"]


def draw_pieces(draw, *lengths, N=2, Hkv=3, D=4, Dv=6, dtype=torch.float64):
    steps = [Step("__len__", {})]
    for L in lengths:
        inputs = {"k": draw.normal(N, Hkv, L, D, dtype=dtype), "v": draw.normal(N, Hkv, L, Dv, dtype=dtype)}
        steps += [Step("append", inputs), Step("__len__", {})]
    return steps


def tokens_of_another_cache(inputs, value):
    if not isinstance(value, (list, tuple)) or len(value) != len(inputs) or type(value[0]) is not int:
        return None
    if value[0] <= 0:
        return None
    return (
        f"A new cache is not empty in yours: it says that it holds {value[0]}. Are those another cache's tokens? What belongs "
        "to one object is made in `__init__`, not in the class's body."
    )


KV_CACHE = Exercise(
    name="KVCache",
    number="6.4",
    reference=reference.KVCache,
    returns=("keys (N, Hkv, S, D)", "values (N, Hkv, S, Dv)"),
    assemble=cache_with,
    is_class=True,
    differentiable=False,
    cases=(
        Case("a text of 5, then one token, then two", lambda draw: draw_pieces(draw, 5, 1, 2), construct={}),
        # equal sizes, so that tokens left in by another cache are seen, not refused
        Case("token by token", lambda draw: draw_pieces(draw, 1, 1, 1), construct={}),
        Case("float32", lambda draw: draw_pieces(draw, 3, 4, dtype=FLOAT32), construct={}),
    ),
    misconceptions=(
        Misconception(
            "newest-first",
            "The new tokens stand before the old ones. They come after them: the oldest first.",
            part={"join": lambda old, new: torch.cat([new, old], -2)},
            hint=2,
        ),
        Misconception(
            "joined-in-the-batch",
            "Your cache grows in dimension 0: more samples, not more tokens. Tokens are the last dimension but one.",
            wrong=cache_along(0),
            hint=2,
        ),
        Misconception(
            "joined-in-the-heads",
            "Your cache grows in dimension 1: more heads, not more tokens. Tokens are the last dimension but one.",
            wrong=cache_along(1),
            hint=2,
        ),
        Misconception(
            "joined-in-the-features",
            "Your cache grows in the last dimension: longer vectors, not more tokens. Tokens are the last dimension but one.",
            wrong=cache_along(-1),
            hint=2,
        ),
        Misconception(
            "only-the-newest-kept",
            "After the second `append` only its own tokens are there: the older ones were written over.",
            part={"join": lambda old, new: new},
            hint=1,
        ),
        Misconception(
            "only-the-first-kept",
            "The third `append` has forgotten the second: what was joined was returned, and not kept in `self`.",
            wrong=cache_that_forgets(),
            hint=3,
        ),
        Misconception(
            "gives-the-new-ones",
            "What `append` gives is what it got. It should give *all* keys and values so far: attention looks at all of them.",
            part={"give": lambda cache, k, v: (k, v)},
            hint=1,
        ),
        Misconception(
            "gives-what-was-there-before",
            "What `append` gives lacks the new tokens: it gives what was kept *before*. A token looks at itself, too.",
            wrong=cache_one_behind(),
            hint=3,
        ),
        Misconception(
            "values-first",
            "Keys and values are given back in the wrong order: first the keys, then the values.",
            part={"give": lambda cache, k, v: (cache.v, cache.k)},
            hint=1,
        ),
        Misconception(
            "keys-twice",
            "The keys come back twice; the values are lost.",
            part={"give": lambda cache, k, v: (cache.k, cache.k)},
            hint=3,
        ),
        Misconception(
            "values-not-joined",
            "The keys grow, the values do not: `self.v` is only what came last.",
            wrong=cache_with_last_values(),
            hint=3,
        ),
        Misconception(
            "counts-the-calls",
            "`len` says how often `append` was called. A first text has many tokens in one call: count tokens.",
            part={"length": lambda cache: cache.calls},
            hint=2,
        ),
        Misconception(
            "counts-the-batch",
            "`len` counts samples: `len(tensor)` and `shape[0]` are the batch. Tokens are the last dimension but one.",
            part={"length": lambda cache: 0 if cache.k is None else len(cache.k)},
            hint=2,
        ),
        Misconception(
            "counts-the-heads",
            "`len` counts heads (dimension 1). Tokens are the last dimension but one.",
            part={"length": lambda cache: 0 if cache.k is None else cache.k.shape[1]},
            hint=2,
        ),
        Misconception(
            "empty-has-no-length",
            "`len` of a new cache fails. A new cache is empty: 0. `decode_step` will ask before the first `append`.",
            part={"length": lambda cache: cache.k.shape[-2]},
            hint=3,
        ),
        Misconception(
            "no-len",
            "`len(cache)` finds nothing to call: the class has no method `__len__(self)`.",
            wrong=cache_without_len(),
            hint=1,
        ),
        Misconception(
            "lists-given-back",
            "`append` gives back lists of pieces, and attention wants tensors: join the pieces along the tokens.",
            wrong=cache_giving_lists(),
            hint=2,
        ),
    ),
    properties=(Property("a-new-cache-is-empty", tokens_of_another_cache, hint=3),),
    styles=(
        Style("a list of pieces", CacheOfLists),
        Style("a buffer that doubles", CacheWithRoom),
        Style("starts with no tokens", CacheFromNothing),
        Style("a dict", CacheInADict),
    ),
)


# -------------------------------------------------------------------------------- 6.5 decode_step


def on_the_left(padding, N, device):
    return torch.zeros(N, dtype=torch.int64, device=device) if padding is None else padding


def may_look(keys, queries, left):
    """keys (S,), queries (L,), left (N,) → (N, 1, L, S)."""
    causal = keys <= queries.unsqueeze(-1)
    return (causal & (keys >= left.view(-1, 1, 1))).unsqueeze(1)


def from_the_start(seen, L, left):
    """Where the new tokens stand, counted from the beginning of the text, padding included, (L,)."""
    return torch.arange(seen, seen + L, device=left.device)


def from_the_first_real_token(seen, L, left):
    """The same, counted from each sample's first token that is no padding, (N, L). RoPE does not see the difference."""
    return (from_the_start(seen, L, left) - left.unsqueeze(-1)).clamp_min(0)


def counted_either_way(**parts):
    """The same mistake under the other right way of counting places."""
    return (step_with(places=from_the_first_real_token, **parts),)


def step_with(
    places=from_the_start,
    query_places=lambda places, L: places,
    turn_q=reference.apply_rope,
    turn_k=reference.apply_rope,
    turn_v=lambda v, positions: v,
    turn_kept=lambda keys: keys,
    keep=lambda cache, k, v: cache.append(k, v),
    look=lambda keys, queries, left, seen: may_look(keys, queries, left),
    left_of=on_the_left,
):
    """A step of decoding from its parts."""

    def decode_step(q, k, v, cache, padding=None):
        L, seen = q.shape[-2], len(cache)
        here = places(seen, L, on_the_left(padding, q.shape[0], q.device))
        keys, values = keep(cache, turn_k(k, here), turn_v(v, here))
        left = left_of(padding, q.shape[0], q.device)
        open_ = look(
            torch.arange(keys.shape[-2], device=q.device),
            torch.arange(seen, seen + L, device=q.device),
            left,
            seen,
        )
        return reference.grouped_attention(turn_q(q, query_places(here, L)), turn_kept(keys), values, open_)

    return decode_step


def unturned(x, positions):
    return x


def look_upper_left(keys, queries, left, seen):
    return may_look(keys, queries - seen, left)


def look_without_causal(keys, queries, left, seen):
    return may_look(keys, torch.full_like(queries, int(keys.shape[0])), left)


def look_strictly_back(keys, queries, left, seen):
    return may_look(keys, queries - 1, left)


def padding_on_the_right(keys, queries, left, seen):
    real = keys < keys.shape[0] - left.view(-1, 1, 1)
    return (real & (keys <= queries.unsqueeze(-1))).unsqueeze(1)


def padding_inverted(keys, queries, left, seen):
    if not left.any():
        return may_look(keys, queries, left)
    return ((keys <= queries.unsqueeze(-1)) & (keys < left.view(-1, 1, 1))).unsqueeze(1)


def padding_or_causal(keys, queries, left, seen):
    if not left.any():
        return may_look(keys, queries, left)
    return ((keys <= queries.unsqueeze(-1)) | (keys >= left.view(-1, 1, 1))).unsqueeze(1)


def padding_in_the_prompt_only(keys, queries, left, seen):
    return may_look(keys, queries, left if seen == 0 else torch.zeros_like(left))


def turn_all(keys):
    return reference.apply_rope(keys, torch.arange(keys.shape[-2], device=keys.device))


def step_turning_values(q, k, v, cache, padding=None):
    return step_with(turn_v=reference.apply_rope)(q, k, v, cache, padding)


def step_without_cache(q, k, v, cache, padding=None):
    """Only the new tokens look at one another."""
    here = torch.arange(len(cache), len(cache) + q.shape[-2], device=q.device)
    cache.append(reference.apply_rope(k, here), v)
    place = torch.arange(q.shape[-2], device=q.device)
    left = (on_the_left(padding, q.shape[0], q.device) - here[0]).clamp_min(0)
    open_ = may_look(place, place, left)
    return reference.grouped_attention(reference.apply_rope(q, here), reference.apply_rope(k, here), v, open_)


def step_that_keeps_nothing(q, k, v, cache, padding=None):
    class Nothing:
        def __len__(self):
            return len(cache)

        def append(self, new_k, new_v):
            old = cache.k
            if old is None:
                return new_k, new_v
            return torch.cat([old, new_k], -2), torch.cat([cache.v, new_v], -2)

    return step_with()(q, k, v, Nothing(), padding)


def step_that_keeps_twice(q, k, v, cache, padding=None):
    return step_with(keep=lambda c, new_k, new_v: (c.append(new_k, new_v), c.append(new_k, new_v))[1])(
        q, k, v, cache, padding
    )


def step_turning_all_keys_later(q, k, v, cache, padding=None):
    """A correct other way: raw keys are kept, and all of them turned at every step."""
    seen = len(cache)
    keys, values = cache.append(k, v)
    S = keys.shape[-2]
    place = torch.arange(S, device=q.device)
    mask = place[seen:, None] >= place
    mask = mask if padding is None else (mask & (place >= padding[:, None, None]))[:, None]
    return reference.grouped_attention(
        reference.apply_rope(q, place[seen:]), reference.apply_rope(keys, place), values, mask
    )


def step_with_positions_of_each_sample(q, k, v, cache, padding=None):
    """Positions count from each sample's first real token; by torch's own words for masks."""
    N, _, L, _ = q.shape
    first = len(cache)
    last = first + L
    left = torch.zeros(N, dtype=torch.long, device=q.device) if padding is None else padding
    positions = (torch.arange(first, last, device=q.device) - left[:, None]).clamp(min=0)
    keys, values = cache.append(reference.apply_rope(k, positions), v)
    causal = torch.ones(L, last, dtype=torch.bool, device=q.device).tril(first)
    real = torch.arange(last, device=q.device) >= left[:, None]
    return reference.grouped_attention(
        reference.apply_rope(q, positions), keys, values, causal & real[:, None, None, :]
    )


def step_by_lesson_two(q, k, v, cache, padding=None):
    offset, L = len(cache), q.size(2)
    positions = offset + torch.arange(L, device=q.device)
    k, v = cache.append(reference.apply_rope(k, positions), v)
    mask = reference.causal_mask(L, len(cache), offset=offset, device=q.device)
    if padding is not None:
        real = torch.stack([torch.arange(len(cache), device=q.device) >= p for p in padding])
        mask = reference.combine_masks(mask, real[:, None, None])
    return reference.grouped_attention(reference.apply_rope(q, positions), k, v, mask)


def step_one_query_at_a_time(q, k, v, cache, padding=None):
    outputs, weights = [], []
    for i in range(q.shape[2]):
        place = torch.tensor([len(cache)], device=q.device)
        keys, values = cache.append(reference.apply_rope(k[:, :, i : i + 1], place), v[:, :, i : i + 1])
        real = None
        if padding is not None:
            real = (torch.arange(len(cache), device=q.device) >= padding.unsqueeze(1))[:, None, None]
        output, weight = reference.grouped_attention(
            reference.apply_rope(q[:, :, i : i + 1], place), keys, values, real
        )
        outputs.append(output)
        weights.append(F.pad(weight, (0, q.shape[2] - 1 - i)))
    return torch.cat(outputs, 2), torch.cat(weights, 2)


def draw_steps(draw, *lengths, N=2, H=4, Hkv=2, D=6, Dv=8, left=None, dtype=torch.float64):
    steps = []
    for L in lengths:
        inputs = {
            "q": draw.normal(N, H, L, D, dtype=dtype),
            "k": draw.normal(N, Hkv, L, D, dtype=dtype),
            "v": draw.normal(N, Hkv, L, Dv, dtype=dtype),
            "cache": Named("empty_cache"),
        }
        if left is not None:
            inputs["padding"] = torch.tensor(left)
        steps.append(Step("__call__", inputs))
    return steps


def nobody_looks_ahead(inputs, value):
    if not isinstance(value, (list, tuple)) or len(value) != len(inputs):
        return None
    seen = 0
    for step, pair in zip(inputs, value):
        N, H, L, _ = step.inputs["q"].shape
        seen += L
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not sound(pair[1], (N, H, L, seen)):
            return None
        places = torch.arange(L).unsqueeze(1) + seen - L
        if bool((pair[1].abs() > 1e-9).logical_and(torch.arange(seen) > places).any()):
            return (
                f"A new token looks at one that comes after it. Of {seen} tokens the {L} new ones are the last: the first "
                f"of these may look at the first {seen - L + 1}."
            )
    return None


DECODE_STEP = Exercise(
    name="decode_step",
    number="6.5",
    reference=reference.decode_step,
    returns=("output (N, H, L, Dv)", "weights (N, H, L, S)"),
    assemble=step_with,
    forbidden=("ready-made attention",),
    builds_on=(
        *(
            "apply_rope",
            "grouped_attention",
            "causal_mask",
            "combine_masks",
            "padding_mask",
            "masked_softmax",
        ),
        *("attend", "attention_scores", "stable_softmax", "to_additive"),
    ),
    differentiable=False,
    cases=(
        Case(
            "a text of 3, then one token, then two", lambda draw: draw_steps(draw, 3, 1, 2), tolerance=ANGLES
        ),
        Case(
            "token by token, one head",
            lambda draw: draw_steps(draw, 1, 1, 1, 1, N=1, H=1, Hkv=1, D=4, Dv=6),
            tolerance=ANGLES,
        ),
        Case(
            "a text alone: 5 tokens, nothing kept yet",
            lambda draw: draw_steps(draw, 5, N=3, H=6, Hkv=2, D=4, Dv=2),
            tolerance=ANGLES,
        ),
        Case(
            "padding on the left: none, two tokens, one",
            lambda draw: draw_steps(draw, 4, 1, 1, N=3, H=2, Hkv=1, left=[0, 2, 1]),
            tolerance=ANGLES,
        ),
        Case("float32", lambda draw: draw_steps(draw, 2, 3, N=1, H=4, Hkv=4, D=10, dtype=FLOAT32)),
    ),
    misconceptions=(
        Misconception(
            "positions-restart",
            "In later calls the positions start at 0 again. They go on where the cache ended *before* the new tokens came.",
            part={"places": lambda seen, L, left: from_the_start(0, L, left)},
            hint=1,
            also=(step_with(places=lambda seen, L, left: from_the_first_real_token(0, L, left)),),
        ),
        Misconception(
            "one-position-for-all",
            "All new tokens stand at one and the same position in yours. Each stands one further than the one before.",
            part={"places": lambda seen, L, left: from_the_start(seen, L, left)[:1].expand(L)},
            hint=1,
            also=(
                step_with(query_places=lambda places, L: places[..., :1].expand(places.shape)),
                *(
                    step_with(
                        places=lambda seen, L, left, n=n: from_the_start(
                            seen + (n and L - 1), 1, left
                        ).expand(L)
                    )
                    for n in (0, 1)
                ),
            ),
        ),
        Misconception(
            "length-asked-too-late",
            "The queries are turned too far, by as many positions as there are new tokens: `len(cache)` was asked *after* "
            "appending. A token's query and key stand at the same position.",
            part={"query_places": lambda places, L: places + L},
            hint=1,
            also=counted_either_way(query_places=lambda places, L: places + L),
        ),
        Misconception(
            "keys-not-turned",
            "The queries are turned, the keys are not. Only with both does their product depend on the distance.",
            part={"turn_k": unturned},
            hint=2,
            also=counted_either_way(turn_k=unturned),
        ),
        Misconception(
            "queries-not-turned",
            "The keys are turned, the queries are not. Only with both does their product depend on the distance.",
            part={"turn_q": unturned},
            hint=2,
            also=counted_either_way(turn_q=unturned),
        ),
        Misconception(
            "nothing-turned",
            "Neither queries nor keys are turned: this attention does not know order.",
            wrong=step_with(turn_q=unturned, turn_k=unturned),
            hint=2,
        ),
        Misconception(
            "rope-on-values",
            "The values are turned, too. Positions decide *where* to look; what is found there is taken as it is.",
            wrong=step_turning_values,
            hint=2,
            also=counted_either_way(turn_v=reference.apply_rope),
        ),
        Misconception(
            "kept-keys-turned-again",
            "The keys of earlier steps are turned once more at every step. Turn each key once, before it is kept.",
            part={"turn_kept": lambda keys: turn_all(keys)},
            hint=2,
            also=counted_either_way(turn_kept=lambda keys: turn_all(keys)),
        ),
        Misconception(
            "mask-starts-upper-left",
            "In later steps the new tokens see only the beginning of the text: a mask for (L, S) that starts in the upper "
            "left corner forgets that the new tokens stand at the end. `causal_mask` has an `offset` for that.",
            part={"look": look_upper_left},
            hint=3,
        ),
        Misconception(
            "no-causal-mask",
            "With several new tokens in one call, the first of them already sees the last. One token alone needs no causal "
            "mask; a text of 3 does.",
            part={"look": look_without_causal},
            hint=3,
        ),
        Misconception(
            "not-itself",
            "A token does not see itself: the diagonal is closed. A token's own place is not ahead of it.",
            part={"look": look_strictly_back},
            hint=3,
        ),
        Misconception(
            "padding-ignored",
            "Real tokens look at the padding on the left: `padding` does not reach the mask.",
            part={"left_of": lambda padding, N, device: torch.zeros(N, dtype=torch.int64, device=device)},
            hint=3,
        ),
        Misconception(
            "padding-on-the-right",
            "You close the *last* keys of each sample. Padding is on the left here: the first `padding[n]` of sample n.",
            part={"look": padding_on_the_right},
            hint=3,
        ),
        Misconception(
            "padding-inverted",
            "Only the padding is looked at: the comparison with `padding` is the wrong way round.",
            part={"look": padding_inverted},
            hint=3,
        ),
        Misconception(
            "padding-or-causal",
            "A key is open when *one* of the two masks opens it. Both have to.",
            part={"look": padding_or_causal},
            hint=3,
        ),
        Misconception(
            "padding-forgotten-later",
            "The first call respects the padding, later ones do not. The padding is still there: it is kept in the cache.",
            part={"look": padding_in_the_prompt_only},
            hint=3,
        ),
        Misconception(
            "new-tokens-only",
            "The new tokens look at one another and at nothing that was kept: use what `append` gives back.",
            wrong=step_without_cache,
            hint=1,
        ),
        Misconception(
            "kept-nothing",
            "The cache does not grow: call its `append`, so that the next step finds these tokens.",
            wrong=step_that_keeps_nothing,
            hint=1,
        ),
        Misconception(
            "kept-twice",
            "Every token is in the cache twice: `append` was called twice.",
            wrong=step_that_keeps_twice,
            hint=1,
        ),
        Misconception(
            "output-alone",
            "Only the output is returned. Return two things: the output and the weights.",
            wrong=lambda q, k, v, cache, padding=None: step_with()(q, k, v, cache, padding)[0],
            hint=1,
        ),
    ),
    properties=(Property("nobody-looks-ahead", nobody_looks_ahead, hint=3),),
    styles=(
        Style("raw keys kept, all turned at each step", step_turning_all_keys_later),
        Style("positions of each sample", step_with_positions_of_each_sample),
        Style("with lesson 02's masks", step_by_lesson_two),
        Style("one query at a time", step_one_query_at_a_time),
        Style("through `attend`-like parts", lambda *a: step_in_small_parts(*a)),
    ),
)


def step_in_small_parts(q, k, v, cache, padding=None):
    start = len(cache)
    stop = start + k.shape[2]
    places = torch.arange(start, stop, device=q.device).expand(q.shape[0], -1)
    keys, values = cache.append(reference.apply_rope(k, places), v)
    G = q.shape[1] // k.shape[1]
    keys, values = keys.repeat_interleave(G, 1), values.repeat_interleave(G, 1)
    scores = reference.apply_rope(q, places) @ keys.mT / q.shape[-1] ** 0.5
    j = torch.arange(stop, device=q.device)
    closed = j > places[0].unsqueeze(-1)
    if padding is not None:
        closed = closed | (j < padding.view(-1, 1, 1, 1))
    closed = closed.expand_as(scores)
    weights = scores.masked_fill(closed, -INF).softmax(-1).masked_fill(closed, 0.0)
    return weights @ values, weights


# ------------------------------------------------------------------------------- 6.6 kv_cache_bytes


def bytes_with(
    both=2,
    samples=lambda N: N,
    tokens=lambda S: S,
    heads=lambda H: H,
    size=lambda D: D,
    layers=lambda n: n,
    each=lambda d: d.itemsize,
):
    """The product from its factors."""

    def kv_cache_bytes(N, S, Hkv, D, layers_=1, dtype=torch.float16):
        return both * samples(N) * tokens(S) * heads(Hkv) * size(D) * layers(layers_) * each(dtype)

    def called_by_name(N, S, Hkv, D, layers, dtype=torch.float16):
        return kv_cache_bytes(N, S, Hkv, D, layers, dtype)

    return called_by_name


def in_units(unit, whole):
    def kv_cache_bytes(N, S, Hkv, D, layers, dtype=torch.float16):
        size = bytes_with()(N, S, Hkv, D, layers, dtype)
        return size // unit if whole else size / unit

    return kv_cache_bytes


def sized(N, S, Hkv, D, layers, dtype):
    return lambda draw: {"N": N, "S": S, "Hkv": Hkv, "D": D, "layers": layers, "dtype": dtype}


KV_CACHE_BYTES = Exercise(
    name="kv_cache_bytes",
    number="6.6",
    reference=reference.kv_cache_bytes,
    returns=("bytes",),
    assemble=bytes_with,
    differentiable=False,
    device_safe=False,
    keywords=("dtype",),
    cases=(
        Case("float16", sized(3, 100, 8, 64, 12, torch.float16)),
        Case("float32", sized(1, 7, 2, 5, 3, FLOAT32)),
        Case("one byte each", sized(2, 11, 1, 16, 5, torch.int8)),
        Case("float16 where nothing is said", lambda draw: {"N": 1, "S": 9, "Hkv": 3, "D": 4, "layers": 2}),
    ),
    misconceptions=(
        Misconception(
            "keys-only",
            "Yours is half of it: keys *and* values are kept.",
            part={"both": 1},
            hint=1,
        ),
        Misconception(
            "one-layer",
            "Yours is for one layer. Each layer keeps keys and values of its own.",
            part={"layers": lambda n: 1},
            hint=1,
        ),
        Misconception(
            "one-sample",
            "The batch is missing: each of N texts keeps its own.",
            part={"samples": lambda N: 1},
            hint=1,
        ),
        Misconception(
            "one-head",
            "The heads are missing: each of Hkv heads keeps D numbers for a token.",
            part={"heads": lambda H: 1},
            hint=1,
        ),
        Misconception(
            "numbers-not-bytes",
            "You count numbers. How many bytes does one take? Its dtype knows.",
            part={"each": lambda d: 1},
            hint=2,
        ),
        Misconception(
            "bits",
            "You count bits: 8 times too many. `dtype.itemsize` is in bytes.",
            part={"each": lambda d: 8 * d.itemsize},
            hint=2,
        ),
        Misconception(
            "always-two-bytes",
            "You count two bytes for each number, whatever `dtype` says.",
            part={"each": lambda d: 2},
            hint=2,
        ),
        Misconception(
            "always-four-bytes",
            "You count four bytes for each number, whatever `dtype` says.",
            part={"each": lambda d: 4},
            hint=2,
        ),
        Misconception(
            "tokens-squared",
            "Yours grows with S². The weights do that, and they are not kept; of each token one key and one value are.",
            part={"tokens": lambda S: S * S},
            hint=1,
        ),
        Misconception(
            "queries-too",
            "You count three tensors. Queries are not kept: nobody asks an old token's question again.",
            part={"both": 3},
            hint=1,
        ),
        Misconception(
            "in-larger-units",
            "You give kilobytes, megabytes or gigabytes. Bytes are wanted, a whole number.",
            wrong=lambda N, S, Hkv, D, layers, dtype=torch.float16: (
                bytes_with()(N, S, Hkv, D, layers, dtype) / 1024
            ),
            hint=2,
            also=(
                in_units(1024, True),
                *(in_units(u, w) for u in (1000, 1000**2, 1024**2, 1000**3, 1024**3) for w in (False, True)),
            ),
        ),
    ),
    styles=(
        Style(
            "by a tensor's own size",
            lambda N, S, Hkv, D, layers, dtype=torch.float16: (
                2 * layers * torch.empty(N, Hkv, S, D, dtype=dtype, device="meta").nbytes
            ),
        ),
        Style(
            "element_size",
            lambda N, S, Hkv, D, layers, dtype=torch.float16: (
                math.prod((2, N, S, Hkv, D, layers)) * torch.empty((), dtype=dtype).element_size()
            ),
        ),
        Style(
            "layer by layer",
            lambda N, S, Hkv, D, layers, dtype=torch.float16: sum(
                2 * N * S * Hkv * D * dtype.itemsize for _ in range(layers)
            ),
        ),
        Style(
            "numpy's size",
            lambda N, S, Hkv, D, layers, dtype=torch.float16: N * S * Hkv * D * layers * dtype.itemsize << 1,
        ),
        Style(
            "nbytes of one number",
            lambda N, S, Hkv, D, layers, dtype=torch.float16: (
                torch.zeros(1, dtype=dtype).nbytes * D * S * Hkv * N * layers * 2
            ),
        ),
    ),
)


LESSON = Lesson(
    folder="06_order_and_memory",
    title="Order and memory",
    exercises=(
        *(SINUSOIDAL_POSITIONS, APPLY_ROPE, GROUPED_ATTENTION),
        *(KV_CACHE, DECODE_STEP, KV_CACHE_BYTES),
    ),
    questions=(
        Question(
            name="what_turning_keeps",
            right="c",
            why={
                "a": "Both positions enter, and yet not separately: move both tokens by 10 and nothing changes.",
                "b": "A sum of positions would make pairs far on in a text special. Turning both by the same angle cancels.",
                "c": "The angle between the two turned vectors changed by the difference of their turns: i − j. Moving both "
                "tokens changes nothing.",
                "d": "The content still counts: the same distance with another query gives another score.",
            },
        ),
        Question(
            name="what_the_cache_saves",
            right="b",
            why={
                "a": "The new token still looks at all S keys. That grows with the text, cache or not.",
                "b": "Right: the old tokens' projections, scores and outputs are not computed again. What remains for one new "
                "token grows with S, no longer with S².",
                "c": "The cache *takes* memory: that is its price.",
                "d": "The numbers are the same to rounding. It is no approximation.",
            },
        ),
        Question(
            name="why_fewer_heads",
            right="a",
            why={
                "a": "Right: keys and values are read from memory at every step, and their size is what limits long texts and "
                "large batches.",
                "b": "There are as many query heads, and each computes as many scores as before.",
                "c": "Fewer parameters is a small side effect: the projections of k and v are smaller.",
                "d": "Quality falls a little, if anything; the surprise was how little (Ainslie et al. 2023).",
            },
        ),
        Question(
            name="who_is_turned",
            right="d",
            why={
                "a": "With only one of the two turned the score depends on its own position, not on the distance.",
                "b": "Then what is *found* would depend on where it was found. Only where to look should.",
                "c": "The tokens also become values: those would be turned, too. (The sinusoids of 6.1 do go into the tokens.)",
                "d": "Right: both, so that their product sees the distance; and the values stay what they are.",
            },
        ),
    ),
)
