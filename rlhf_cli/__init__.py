"""RLHF from the command line: a reward model from preference pairs, then PPO, sharded by DeepSpeed ZeRO-3."""

__version__ = "0.1.0"
