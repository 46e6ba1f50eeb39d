class Model:
    """Tags the words of a text. The type hints of `predict` are what clients see of it."""

    def load(self) -> None:
        self.tags = {"backline": "name", "serves": "verb", "models": "noun"}

    def predict(self, text: str) -> dict:
        return {word: self.tags.get(word.lower(), "unknown") for word in text.split()}
