"""Cell types: classifiers fitted to labelled cells, and what they say of others."""
