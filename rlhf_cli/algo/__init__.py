"""The mathematics: pure functions of tensors, which import torch and nothing else."""
