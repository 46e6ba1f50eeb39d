class Model:
    """A step of the pipeline: the words of a text."""

    def predict(self, text: str) -> list:
        return text.split()
