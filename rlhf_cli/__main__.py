"""`python -m rlhf_cli`, which the deepspeed launcher and torchrun start."""

from rlhf_cli.cli import entry

if __name__ == "__main__":
    entry()
