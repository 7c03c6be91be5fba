"""What can be measured: genes, proteins and regions, and what names mean."""
