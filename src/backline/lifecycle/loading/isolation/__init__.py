"""Tries model files in processes of their own, so that a file that crashes its runtime harms only itself."""
