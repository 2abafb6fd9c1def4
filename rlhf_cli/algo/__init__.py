"""The mathematics: pure functions of tensors; imports torch and nothing else."""
