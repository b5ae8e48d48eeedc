"""What answers do, done once in the parent of learners' processes: first calls are slow, and forked processes inherit them.

torch looks operators up, imports what they need and remembers shapes when something is called for the first time:
on the CPU, backwards, watched, and on the pretended GPU. Nothing here is an answer to an exercise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mha_course.checking import calls


class Everything(nn.Module):
    """Calls what lessons call, in no sensible order. For x of shape (N, L, E)."""

    def __init__(self, E, H, bias=True):
        super().__init__()
        self.H = H
        self.weight = nn.Parameter(torch.zeros(E, E))
        self.linear, self.norm = nn.Linear(E, E, bias=bias), nn.LayerNorm(E)
        self.register_buffer("table", torch.arange(16.0).reshape(16, 1), persistent=False)

    def forward(self, x, mask, flag=True):
        N, L, E = x.shape
        y = self.linear(x) + x @ self.weight + F.linear(x, self.weight) + self.table[:L]
        a, b, c = torch.cat([y, y, y], dim=-1).chunk(3, dim=-1)
        a = a.reshape(N, L, self.H, -1).transpose(1, 2)
        b = b.view(N, L, self.H, E // self.H).permute(0, 2, 1, 3).contiguous()
        c = torch.stack([c, c]).unbind(0)[0].unflatten(-1, (self.H, -1)).movedim(1, 2)
        s = (
            a @ b.transpose(-2, -1) / b.shape[-1] ** 0.5
            + torch.matmul(a, b.mT)
            + torch.einsum("nhld,nhsd->nhls", a, b)
        )
        later = torch.arange(L, device=x.device)[:, None] < torch.arange(L, device=x.device)
        later = (
            later
            | torch.ones(L, L, dtype=torch.bool, device=x.device).triu(1)
            | ~torch.ones_like(later).tril()
        )
        s = s.masked_fill(later, float("-inf")) + torch.zeros_like(s)
        s = (
            torch.where(mask[:, None, None, :], s, torch.full_like(s, -1e4))
            - s.amax(-1, keepdim=True).detach()
        )
        e = torch.exp(s - s.max(dim=-1, keepdim=True).values)
        w = (e / e.sum(dim=-1, keepdim=True)).nan_to_num(0.0)
        w = (
            w.masked_fill((~mask).all(-1)[:, None, None, None], 0.0) * 1.0
            + torch.logsumexp(e, -1, keepdim=True) * 0
        )
        w = F.dropout(w, 0.0, self.training)
        o = (w @ c).transpose(1, 2).reshape(N, L, E).flatten(0, 1).unflatten(0, (N, L))
        o = (
            o
            + torch.einsum("nhls,nhsd->nlhd", w, c).flatten(-2)
            + torch.bmm(w.flatten(0, 1), c.flatten(0, 1)).sum()
        )
        o = (
            self.norm(o + self.table.new_zeros(1).expand(N, L, 1))
            .clone()
            .to(x.dtype)
            .squeeze(0)
            .unsqueeze(0)
            .view(N, L, E)
        )
        o = (
            torch.relu(o)
            + F.gelu(o)
            + o.float().mean().to(o.dtype)
            + o.std()
            + o.var(-1, keepdim=True).sqrt()
            + o.pow(2).log1p()
        )
        o = (
            torch.cat([o[:, ::2], o[:, 1::2]], dim=1)
            + torch.outer(o[0, 0], o[0, 0]).cos().sum()
            + o.roll(1, 0).sin()
        )
        return o, w.mean(1) if flag else w


def softened(x, dim=-1):
    """What torch's own softmax does first, and what `masked_softmax` in some learner's notebook looks like."""
    return torch.softmax(x, dim) + F.softmax(x, dim=dim) + x.softmax(dim).argmax(dim, keepdim=True)


def rehearse(*devices: str) -> None:
    """Everything once, as a check calls it, on "cpu" or "fake cuda"."""
    attention = ("ready-made attention",)
    x, mask = torch.ones(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)
    torch.manual_seed(0)
    torch.randn(2, 3).normal_()
    for device in devices:
        whole = calls.Call(
            {"x": x, "mask": mask, "flag": True},
            keywords=("flag",),
            construct={"E": 6, "H": 2},
            state=Everything(6, 2).state_dict(),
            gradients=("x",),
            device=device,
            forbidden=attention,
            reference_allowed=(),
        )
        calls.LocalAnswer(Everything).observe(whole)
        calls.LocalAnswer(softened).observe(calls.Call({"x": x}, gradients=("x",), device=device))
        wrong = calls.Call(
            {"x": x, "y": mask.to(torch.int64)}, device=device, forbidden=(*attention, "ready-made softmax")
        )
        calls.LocalAnswer(lambda x, y: x @ y).observe(wrong)
