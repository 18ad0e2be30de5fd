"""Capture: a module becomes a `Program`, by `torch.export`."""
