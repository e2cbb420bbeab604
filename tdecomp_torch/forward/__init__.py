"""The forward pass of an adapted model: factors, what is computed when, hooks."""
