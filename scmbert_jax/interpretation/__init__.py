"""Why an annotator says what it says: which features of a cell a type comes from, and whether to believe that."""
