"""Any file to a Dataset: can it read mine?"""
