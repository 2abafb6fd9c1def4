"""The training loops: PPO and the reward model."""
