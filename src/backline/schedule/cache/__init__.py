"""Answers that are kept: where they lie, under which key, and the queue that asks for them first."""
