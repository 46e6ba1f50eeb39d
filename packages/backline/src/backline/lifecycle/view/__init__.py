"""The stages between the model that a backend loads and the model that clients see."""
