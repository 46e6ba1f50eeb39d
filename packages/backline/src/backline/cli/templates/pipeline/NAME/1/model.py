from backline.model import Models


class Model:
    """Calls another model on the server, and sorts the returned words by length."""

    def predict(self, text: str, models: Models) -> list:
        words = models["words"](text)["output"].item()
        return sorted(words, key=len, reverse=True)
