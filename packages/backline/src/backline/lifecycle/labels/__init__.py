"""Labels that requests set and move: how labels are stored, and how servers that share labels follow each
other's changes.
"""
