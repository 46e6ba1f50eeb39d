"""What should be served: the models in the repositories, and which of their versions."""
