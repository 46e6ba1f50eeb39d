class Model:
    """A step of the pipeline: splits a text into words."""

    def predict(self, text: str) -> list:
        return text.split()
