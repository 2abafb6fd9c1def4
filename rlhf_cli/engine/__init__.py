"""Shards models and saves checkpoints. The only package that imports deepspeed and torch.distributed."""
