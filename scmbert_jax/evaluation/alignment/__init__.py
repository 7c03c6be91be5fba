"""Are cells of two modalities matched, and are technical batches mixed?"""
