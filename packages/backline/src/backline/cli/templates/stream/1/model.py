from collections.abc import Iterator


class Model:
    """Yields one response per word. Clients receive them through generate_stream or ModelStreamInfer."""

    def predict(self, text: str) -> Iterator[str]:
        for word in text.split():
            yield word.upper()
