"""From arguments to an adapter on a model: a plan, factors, hooks."""
