"""What every method shares: the loop, objectives, optimizers, the memory plan, checkpoint and resume."""
