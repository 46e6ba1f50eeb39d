"""Networks for the tests of the PyTorch backend, in a separate file because they need torch when imported."""

from __future__ import annotations

import torch


class Add(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + 2 * y


class Parts(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"first": x[:, :1], "rest": x[:, 1:]}


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, factor: int, words: list[str]) -> tuple[torch.Tensor, list[str]]:
        return x * factor, [word + "!" for word in words]


class Overwriting(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)
