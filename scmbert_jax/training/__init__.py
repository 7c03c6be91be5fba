"""Train state, optimizer, the jitted step, the loop, checkpoints."""
