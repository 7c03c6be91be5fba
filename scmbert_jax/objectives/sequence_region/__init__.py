"""What a model of DNA and of regions is trained to do: GeneBERT's three tasks, and which motifs a sequence has."""
