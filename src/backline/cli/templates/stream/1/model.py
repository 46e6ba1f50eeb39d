from collections.abc import Iterator


class Model:
    """Yields a response per word; clients stream them with generate_stream or ModelStreamInfer."""

    def predict(self, text: str) -> Iterator[str]:
        for word in text.split():
            yield word.upper()
