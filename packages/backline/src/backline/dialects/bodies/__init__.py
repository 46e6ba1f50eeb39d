"""The forms in which bodies carry tensors by name: JSON by columns or rows, CSV and Arrow."""
