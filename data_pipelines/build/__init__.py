"""From data sets to a corpus."""
