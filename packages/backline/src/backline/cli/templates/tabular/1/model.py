class Model:
    """Estimates a rent from the columns of a table. Each column is an input with a name and a type."""

    def load(self) -> None:
        # Load your own model here, for example joblib.load(Path(__file__).with_name("model.joblib")).
        self.per_square_metre = {"centre": 19.5, "suburb": 12.0}

    def predict(self, area: float, rooms: int, district: str, furnished: bool = False) -> dict:
        rent = area * self.per_square_metre.get(district, 10.0) + 40 * rooms
        return {"rent": round(rent * (1.2 if furnished else 1.0), 2)}
