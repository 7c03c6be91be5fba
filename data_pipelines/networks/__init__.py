"""Networks of genes: who regulates whom, as files say it, and as edges between the features of a model."""
