"""The engine inside a program, filled from repositories, and the client's way to it."""
