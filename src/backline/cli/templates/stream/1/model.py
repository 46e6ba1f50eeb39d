from collections.abc import Iterator


class Model:
    """Gives a response for each word, as soon as it is there, over generate_stream and ModelStreamInfer."""

    def predict(self, text: str) -> Iterator[str]:
        for word in text.split():
            yield word.upper()
