import json

from backline.model import Models


class Model:
    """Asks another model of the server, and goes on with its answer: the longest words of a text first."""

    def predict(self, text: str, models: Models) -> list:
        words = json.loads(models["words"](text)["output"].item())
        return sorted(words, key=len, reverse=True)
