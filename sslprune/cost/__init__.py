"""Cost: multiply-accumulates, parameters and latency of what stays."""
