"""What uses the doors: each folder could be deleted, or leave as a distribution of its own."""
