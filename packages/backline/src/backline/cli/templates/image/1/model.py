import numpy as np

from backline.model import Image


class Model:
    """Names the main colour of a picture."""

    def load(self) -> None:
        self.colours = {
            "black": (0, 0, 0),
            "white": (255, 255, 255),
            "red": (220, 30, 30),
            "green": (30, 160, 60),
            "blue": (40, 80, 220),
            "yellow": (240, 220, 60),
        }

    def predict(self, image: Image["RGB"]) -> dict:
        # A JPEG, PNG or WebP file arrives as uint8 [height, width, 3].
        height, width, _ = image.shape
        mean = image.reshape(-1, 3).mean(axis=0)
        distances = {name: np.linalg.norm(mean - colour) for name, colour in self.colours.items()}
        return {"width": width, "height": height, "colour": min(distances, key=distances.__getitem__)}
