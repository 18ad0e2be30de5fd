"""The graph: trace a model, infer its axes, count costs, rewrite it without its zero groups."""
