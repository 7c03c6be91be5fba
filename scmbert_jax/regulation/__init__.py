"""Supervised models of regulatory DNA: promoters, binding, splice sites, accessibility; and what is asked of them."""
