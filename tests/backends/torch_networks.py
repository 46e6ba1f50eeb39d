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


class Repeated(torch.nn.Module):
    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        for _ in range(int(times)):
            x = self.step(x)
        return x

    def step(self, x: torch.Tensor) -> torch.Tensor:
        return -x


class Nested(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Repeated()

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            x = self.inner(x, times)
        return x
