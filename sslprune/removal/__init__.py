"""Removal: zero groups leave the graph, and it is proven that nothing changed. (`sslprune.repack` is the function.)"""
