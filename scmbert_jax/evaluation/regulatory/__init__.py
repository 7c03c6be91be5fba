"""The suite `regulatory`: models of DNA beside the simplest things that know the same."""
