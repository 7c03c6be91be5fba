"""The verbs of the command line: their arguments, and which function does the work. They hold no logic of their own.

Heavy libraries are imported inside the functions, so that `scmbert --help` answers at once.
"""
