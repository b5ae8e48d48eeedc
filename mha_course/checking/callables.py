"""Functions that an exercise may take as an argument, known by name.

``Named("softmax_rows")`` in a case becomes the function of that name on the answer's side of the
process boundary: a function cannot cross it, its name can. Nothing here is an answer to anything.

Some arguments keep a state (a clock, a queue) and must be new for every call: those are registered by
`made_anew`, and their name stands for what the registered function gives when the call is made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mha_course.devices import SimulatedDevice

KNOWN: dict[str, Callable] = {}
MADE_ANEW: set[str] = set()


def known(function: Callable) -> Callable:
    """Make a function available to cases as ``Named(function.__name__)``."""
    if function.__name__ in KNOWN:
        raise ValueError(f"two known callables are called {function.__name__!r}")
    KNOWN[function.__name__] = function
    return function


def made_anew(make: Callable) -> Callable:
    """Make ``Named(make.__name__)`` stand for ``make()``, a new one for every call of an answer."""
    MADE_ANEW.add(known(make).__name__)
    return make


def resolve(name: str) -> Callable:
    """What a call of an answer gets for ``Named(name)``."""
    return KNOWN[name]() if name in MADE_ANEW else KNOWN[name]


@known
def cumulative_sum(x: Tensor) -> Tensor:
    """Each token becomes the sum of itself and those before it: looks back, never ahead. (N, L, E) or (L, E)."""
    return x.cumsum(-2)


@known
def cumulative_mean(x: Tensor) -> Tensor:
    """Each token becomes the mean of itself and those before it: order matters. (…, L, E) → same."""
    count = torch.arange(1, x.shape[-2] + 1, dtype=x.dtype, device=x.device)
    return x.cumsum(-2) / count.unsqueeze(-1)


@known
def weighted_by_position(x: Tensor) -> Tensor:
    """Token i is multiplied by i + 1: order matters, tokens do not mix. (…, L, E) → same."""
    return x * torch.arange(1, x.shape[-2] + 1, dtype=x.dtype, device=x.device).unsqueeze(-1)


@known
def squared(x: Tensor) -> Tensor:
    """Each token on its own, squared: order does not matter. Any shape → same."""
    return x * x


@known
def centred(x: Tensor) -> Tensor:
    """Subtracts the mean token: tokens mix, order does not matter. (…, L, E) → same."""
    return x - x.mean(-2, keepdim=True)


@known
def peek_one_ahead(x: Tensor) -> Tensor:
    """Each token also sees the next one: the smallest leak of the future. (…, L, E) → same."""
    ahead = torch.cat([x[..., 1:, :], torch.zeros_like(x[..., :1, :])], -2)
    return x + 0.5 * ahead


@known
def plain_self_attention(x: Tensor) -> Tensor:
    """Attention of the tokens to one another, no mask, no parameters. (…, L, E) → same."""
    return torch.softmax(x @ x.mT / x.shape[-1] ** 0.5, -1) @ x


@known
def sum_of_cubes(x: Tensor) -> Tensor:
    """A single number: Σ x³. Any shape → ()."""
    return x.pow(3).sum()


@known
def chained_products(x: Tensor) -> Tensor:
    """A single number in which neighbours meet: Σ xᵢ · xᵢ₊₁². Any shape → ()."""
    flat = x.flatten()
    return (flat[:-1] * flat[1:].pow(2)).sum()


@known
def softmax_without_shift(x: Tensor) -> Tensor:
    """exp(x) shared out over the last dimension, with nothing done against overflow. Any shape → same."""
    e = x.exp()
    return e / e.sum(-1, keepdim=True)


# ------------------------------------------------------------- a GPU that is not there, and its work

_simulated = SimulatedDevice()


def _simulate(**settings) -> SimulatedDevice:
    global _simulated
    _simulated = SimulatedDevice(**settings)
    return _simulated


@known
def simulated_kernel() -> None:
    """Queues work on the simulated device that was made last."""
    _simulated.kernel()


@made_anew
def simulated_gpu() -> SimulatedDevice:
    """A kernel of 6 ms that takes 0.3 ms to launch."""
    return _simulate()


@made_anew
def simulated_slow_gpu() -> SimulatedDevice:
    """A kernel of 80 ms, 5 ms to launch; one more slow call at first."""
    return _simulate(seconds=0.08, launch=5e-3, slow=4)


@made_anew
def simulated_busy_host() -> SimulatedDevice:
    """A kernel of 2 ms that takes longer to launch, 3 ms, than to run; the first call that counts is disturbed."""
    return _simulate(seconds=2e-3, launch=3e-3, disturbed=(0, 5), lucky=(3, 8))


@made_anew
def empty_cache() -> object:
    """Keeps keys and values: ``append(k, v)`` with (N, Hkv, L, D) and (N, Hkv, L, Dv) gives all so far; ``len``."""

    class Cache:
        room = 64

        def __init__(self):
            self.seen, self.kept = 0, ()

        def __len__(self):
            return self.seen

        def append(self, *new):
            if not self.kept:
                shapes = [(*x.shape[:2], self.room, x.shape[3]) for x in new]
                self.kept = tuple(x.new_zeros(shape) for x, shape in zip(new, shapes))
            self.seen += new[0].shape[2]
            places = torch.arange(self.seen - new[0].shape[2], self.seen, device=new[0].device)
            self.kept = tuple(old.index_copy(2, places, x) for old, x in zip(self.kept, new))
            return tuple(x[:, :, : self.seen] for x in self.kept)

        @property
        def k(self):
            return self.kept[0][:, :, : self.seen] if self.seen else None

        @property
        def v(self):
            return self.kept[1][:, :, : self.seen] if self.seen else None

    return Cache()
