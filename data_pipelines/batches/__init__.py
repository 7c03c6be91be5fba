"""From the cells of a step to a CellBatch: why this token?"""
