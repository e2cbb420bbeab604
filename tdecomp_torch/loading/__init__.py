"""Models of transformers and texts from files, for the commands that run models."""
