"""Write docs/reward_service.json: the OpenAPI description of `rlhf serve-reward`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fresh import DOCS, main

from rlhf_cli.use.score_service import Info, make_app


def render() -> str:
    """Return the description."""
    info = Info(model="", template="", system_prompt=None, dtype="", device="")
    described = make_app(lambda exchanges: [0.0] * len(exchanges), info).openapi()
    return json.dumps(described, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", DOCS / "reward_service.json", render))
