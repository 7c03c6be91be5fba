"""Attention: what a backend is asked, and the backends."""
