"""DNA: genomes, regions of them, variants, motifs, and tokens of bases."""
