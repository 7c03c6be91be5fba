"""The report of a run or a suite as one HTML page, and its figures."""
