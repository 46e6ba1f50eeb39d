"""Labels that requests move: how they are stored, and how servers that share them follow each other."""
