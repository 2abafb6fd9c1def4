"""`python -m rlhf_cli`, which the deepspeed launcher and torchrun start."""

import sys

from rlhf_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
