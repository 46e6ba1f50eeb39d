"""Decides what runs next: pure policies over plain data, and the drivers that carry out their decisions."""
