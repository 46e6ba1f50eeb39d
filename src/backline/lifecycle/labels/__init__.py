"""Labels that requests move: where they are stored, and how servers that share them follow each other."""
