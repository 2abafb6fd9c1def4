"""ZeRO-3 on two gloo ranks does what plain torch does, and gives back what it borrows."""

import pytest

pytestmark = pytest.mark.xdist_group("ranks")  # one launch runs the workers of all tests


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_updates_match_plain_torch(on_ranks, num_ranks):
    on_ranks("updates", num_ranks)


def test_updates_match_plain_torch_with_offload(on_ranks):
    on_ranks("offloaded_updates")


def test_generation_gathers_once_and_gives_back(on_ranks):
    assert on_ranks("generation") == ["True\n", "True\n"]


def test_what_is_gathered_gives_the_same_numbers_and_is_given_back_also_after_a_failure(on_ranks):
    on_ranks("gathering")


def test_layers_are_fetched_whole(on_ranks):
    on_ranks("layers")


def test_sampling_layer_by_layer_gives_the_same_responses(on_ranks):
    on_ranks("layerwise")


def test_a_frozen_engine_scores_like_the_plain_model(on_ranks):
    on_ranks("frozen")


def test_gradient_checkpointing_changes_nothing(on_ranks):
    on_ranks("checkpointing")


def test_updates_that_are_not_finite_are_skipped_and_stop_the_run(on_ranks):
    on_ranks("skipping")


def test_frozen_models_stay_bit_identical_through_training(on_ranks):
    on_ranks("frozen_through_training")


@pytest.mark.xdist_group("oracle")  # slow, and needs no launch of the others
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_trainers_agree_with_the_oracle(on_ranks, num_ranks):
    on_ranks("oracle", num_ranks)


def test_bfloat16_keeps_float32_masters(on_ranks):
    on_ranks("bfloat16")


def test_bfloat16_states_go_on_bit_for_bit(on_ranks):
    on_ranks("bfloat16_states")


def test_many_groups_of_weights_go_on_bit_for_bit(on_ranks):
    on_ranks("small_groups")
