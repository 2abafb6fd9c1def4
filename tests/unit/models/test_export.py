"""The configuration of an exported policy."""

from types import SimpleNamespace

import pytest

from rlhf_cli.data.token_batches import EndTokens
from rlhf_cli.models.export import export_ends


@pytest.mark.parametrize(("pad", "fills", "exported"), [(2, 0, 0), (2, 2, None), (5, 0, 5), (None, 0, None)])
def test_a_pad_token_that_ends_a_response_is_not_exported(pad, fills, exported):
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=2, pad_token_id=pad),
        exported_config=SimpleNamespace(pad_token_id=pad),
    )
    export_ends(model, EndTokens(frozenset({2, 7}), fills))
    assert model.generation_config.eos_token_id == [2, 7]
    assert (model.generation_config.pad_token_id, model.exported_config.pad_token_id) == (exported, exported)
