"""Which cells make step s: why this cell now?"""
