"""More ways to split a batch than tests/e2e/test_equivalence.py has time for."""

from tests.e2e.series import assert_same_series
from tests.e2e.test_equivalence import ONE_PASS, QUIET, RM_SHAPES, run_shapes, write_rows


def test_scorings_pass_is_made_again_on_two_ranks(run_rlhf, run_all, tmp_path):
    """In micro-batches of which some are for company only, with weights fetched layer by layer."""
    again = ["launch.num_gpus=2", "ppo.gather=false", "ppo.micro_batch_size=3"]
    words = ["train-ppo", "conf=tiny", "ppo.num_steps=2", *ONE_PASS, "eval.num_prompts=0", *QUIET]
    run_shapes(run_rlhf, run_all, words, {"kept": [], "again": again})
    assert_same_series(tmp_path / "outputs/kept", tmp_path / "outputs/again")


def test_pairs_row_by_row_on_two_ranks(run_rlhf, run_all, tmp_path):
    write_rows(tmp_path)
    words = ["train-rm", "conf=tiny", "train.num_steps=3", "data.eval=null", *QUIET]
    run_shapes(run_rlhf, run_all, words, {name: RM_SHAPES[name] for name in ("one-pass", "two-ranks-row-by-row")})
    assert_same_series(tmp_path / "outputs/one-pass", tmp_path / "outputs/two-ranks-row-by-row", rtol=5e-5)
