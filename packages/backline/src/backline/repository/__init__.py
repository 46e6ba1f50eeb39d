"""Model repositories: their locations and layouts, and the models, versions and files that they contain."""
