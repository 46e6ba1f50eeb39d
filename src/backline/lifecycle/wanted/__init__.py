"""What should be served: the models that the repositories hold, and which of their versions."""
