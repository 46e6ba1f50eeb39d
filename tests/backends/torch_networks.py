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


class Length(torch.nn.Module):
    """Refuses texts that are no JSON objects, with the same error for each of them."""

    def forward(self, texts: list[str]) -> torch.Tensor:
        for text in texts:
            if not text.startswith("{"):
                raise RuntimeError("not a JSON object")
        return torch.tensor([float(len(text)) for text in texts])


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


class Counting(torch.nn.Module):
    def forward(self, n: torch.Tensor) -> torch.Tensor:
        from torch._higher_order_ops.while_loop import while_loop

        zero = torch.zeros(1, dtype=torch.int64)
        return while_loop(lambda i, n: (i < n).all(), lambda i, n: (i + 1, n.clone()), (zero, n))[0]


@torch.jit.interface
class Steps(torch.nn.Module):
    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        pass


class ThroughInterface(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.jit.script(Repeated())

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return self.inner.forward(x, times)


ThroughInterface.__annotations__ = {"inner": Steps}  # PyTorch does not resolve an annotation that is a text


def negate(
    self: torch.nn.Module, given: tuple[torch.Tensor, torch.Tensor], result: torch.Tensor
) -> torch.Tensor:
    for _ in range(int(given[1])):
        result = -result
    return result


class Hooked(Add):
    def __init__(self) -> None:
        super().__init__()
        self.register_forward_hook(negate)
