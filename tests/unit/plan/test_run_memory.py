"""The memory maps of runs: which options put what where."""

from dataclasses import replace

import pytest

from rlhf_cli.config.compose import load
from rlhf_cli.config.errors import InputError
from rlhf_cli.plan.architecture import Architecture
from rlhf_cli.plan.fit import memory_map
from rlhf_cli.plan.memory_map import LIBRARIES, Item, Topology, total
from rlhf_cli.plan.phases import Lengths
from rlhf_cli.plan.plan_command import _update_activations, _with_known_shapes
from rlhf_cli.plan.trace_memory import Texts, decoding, scoring, training
from tests.unit.plan.fake import made_map

GPU = Topology(1, 1, on_gpu=True)
TWO = Topology(2, 2, on_gpu=True)
LENGTHS = Lengths(10, 40, 60)
TINY = ["conf=tiny", "model.dtype=bfloat16", "reward_model.dtype=bfloat16", "ppo.micro_batch_size=4"]
RM = ["conf=tiny", "model.dtype=bfloat16"]
# tiny_llama: embeddings and head 259 x 32 each, 2 layers of 64 + 2 x 32 x 32 + 2 x 32 x 16 + 3 x 32 x 64, a norm of 32
POLICY = 2 * 259 * 32 + 2 * (64 + 2048 + 1024 + 6144) + 32
SCORER = POLICY - 259 * 32 + 32  # a head of one label


def planned(words=(), place=GPU, lengths=LENGTHS, command="train-ppo", base=TINY):
    return memory_map(load(command, [*base, *words]), place, lengths)


def moment(found, phase, name):
    return next(one for one in found.moments if (one.phase, one.name) == (phase, name))


def sizes(items, model):
    return {item.what: item.bytes for item in items if item.model == model}


def test_phases_of_ppo_and_of_a_reward_model():
    assert planned().phases == ["load", "rollout", "score", "update", "save"]
    assert planned(command="train-rm", base=RM).phases == ["load", "score", "update", "save"]


def test_resident_items_are_in_every_moment_of_a_step():
    """One rank, bfloat16: 2 + 4 + 8 bytes per trained weight, 2 per frozen one."""
    found = planned()
    for one in found.moments:
        if one.phase != "load":
            stays = [item for item in one.device if item.what in ("weights", "master weights", "optimizer states")]
            assert total(stays) == 14 * POLICY + 14 * SCORER + 2 * POLICY + 2 * SCORER


def test_a_rollout_holds_the_full_policy_and_the_decoding_state():
    found = planned(place=TWO)
    held = sizes(moment(found, "rollout", "generating 4 responses").device, "policy")
    config = load("train-ppo", TINY)
    assert held["gathered weights"] == 2 * POLICY
    traced = decoding(architecture_of(config), Texts(4, 40, config.rollout.max_new_tokens), 1.0)
    assert held["KV cache"] == traced["KV cache"]
    assert "gathered weights" not in sizes(moment(found, "rollout", "generating 4 responses").device, "value_model")


def architecture_of(config, checkpointing=False):
    return replace(Architecture.of(config.model, "model", scores=False), checkpointing=checkpointing)


def test_models_score_one_after_the_other():
    found = planned(place=TWO)
    for name in ("reference", "value_model", "reward_model"):
        device = moment(found, "score", name).device
        gathered = [item.model for item in device if item.what == "gathered weights"]
        assert gathered == [name]


def test_a_reused_forward_pass_keeps_its_graph_while_others_score():
    """Two ranks of four rows, one minibatch per step: the policy's graph and full weights stay."""
    words = ["ppo.minibatch_size=8", "ppo.batch_size=8"]
    found = planned(words, TWO)
    held = sizes(moment(found, "score", "reference").device, "policy")
    kept = training(architecture_of(load("train-ppo", TINY)), Texts(4, 40, 16)).kept
    assert held["activations kept for the update"] == kept["activations"]
    assert held["gathered weights"] == 2 * POLICY
    for more in (
        ["ppo.reuse_forward=false"],
        ["ppo.micro_batch_size=3"],
        ["ppo.minibatch_size=4"],
        ["ppo.gather=false"],
    ):
        other = planned([*words, *more], TWO)
        assert "activations kept for the update" not in sizes(moment(other, "score", "reference").device, "policy")


def test_a_token_budget_reuses_the_pass_if_all_rows_may_fit():
    """8 rows of the shortest prompt, 10 tokens, and 16 new ones."""
    words = ["ppo.minibatch_size=8", "ppo.batch_size=8"]
    for budget, reuses in ((8 * 26, True), (8 * 26 - 1, False)):
        names = [one.name for one in planned([*words, f"ppo.micro_batch_tokens={budget}"]).moments]
        assert ("policy, graph kept" in names) is reuses


def test_a_token_budget_is_planned_for_long_and_short_texts():
    """224 tokens hold 4 rows of 40 + 16, or 8 of 10 + 16, which have more logits; the fuller one counts."""
    words = ["ppo.batch_size=16", "ppo.minibatch_size=16", "ppo.micro_batch_tokens=224", "ppo.reuse_forward=false"]
    found = planned(words)
    backward = [one for one in found.moments if one.name == "policy, backward"]
    held = [sum(sizes(one.device, "policy").get(kind, 0) for kind in ("activations", "logits")) for one in backward]
    passes = [training(architecture_of(load("train-ppo", TINY)), Texts(*texts)) for texts in ((4, 40, 16), (8, 10, 16))]
    assert held == [max(one.head.total(), one.layers.total()) for one in passes]


def test_later_micro_batches_hold_the_gradients_of_earlier_ones():
    """4 rows per pass. In the first pass, gradients grow while activations shrink. The second pass starts
    with one pass's gradients in bfloat16, the third with their sums in float32.
    """
    runs = [planned([f"ppo.batch_size={rows}", f"ppo.minibatch_size={rows}"]) for rows in (4, 8, 12)]
    backward = [sizes(moment(found, "update", "value_model, backward").device, "value_model") for found in runs]
    assert backward[0].get("gradients", 0) < 2 * SCORER
    assert [found["gradients"] for found in backward[1:]] == [2 * SCORER, 4 * SCORER]
    optimizer = [sizes(moment(found, "update", "value_model, optimizer").device, "value_model") for found in runs]
    assert [found["gradients"] for found in optimizer] == [2 * SCORER, 4 * SCORER, 4 * SCORER]


def test_checkpointing_changes_only_the_update():
    found, recomputed = planned(), planned(["model.gradient_checkpointing=true"])
    assert recomputed.device_peak("update").bytes < found.device_peak("update").bytes
    assert recomputed.device_peak("score").bytes == found.device_peak("score").bytes


def test_activations_with_and_without_checkpointing():
    for words in ([], ["model.gradient_checkpointing=true"]):
        without, recomputed = _update_activations(load("train-ppo", [*TINY, *words]), GPU)
        assert recomputed < 0.6 * without  # of two layers


def test_offloaded_states_are_in_host_memory():
    config = load("train-ppo", [*TINY, "deepspeed=zero3_offload_optimizer"])
    found = memory_map(config, TWO, LENGTHS)
    one = moment(found, "update", "policy, optimizer")
    assert "optimizer states" not in sizes(one.device, "policy")
    assert sizes(one.host, "policy")["optimizer states"] == 8 * POLICY // 2
    assert sizes(one.device, "reference")["weights"] == 2 * POLICY // 2


def test_only_offloaded_frozen_models_are_in_host_memory():
    found = planned(["ppo.offload_frozen=true"], TWO)
    one = moment(found, "update", "policy, optimizer")
    for model, size in (("reference", POLICY), ("reward_model", SCORER)):
        assert "weights" not in sizes(one.device, model)
        assert sizes(one.host, model)["weights"] == size // 2 * 2
    assert sizes(one.device, "policy")["weights"] == POLICY
    assert not sizes(one.host, "policy")


def test_three_models_are_loaded_before_the_first_is_moved():
    """Host memory first holds the full policy, value and reward model; the reference is loaded later."""
    found = planned(place=TWO)
    first = moment(found, "load", "reward_model loaded")
    assert total(first.host) == 2 * (POLICY + 2 * SCORER)
    assert total(moment(found, "load", "reference loaded").host) == 2 * POLICY
    assert sizes(moment(found, "load", "policy moved to the device").device, "policy") == {
        "unsharded weights": 2 * POLICY
    }


def test_zero3_creates_optimizer_states_only_in_the_first_update():
    for place, expected in ((GPU, 8 * POLICY), (TWO, None)):
        last = moment(planned(place=place), "load", "matrix products timed")
        assert sizes(last.device, "policy").get("optimizer states") == expected
        assert sizes(last.device, "policy")["master weights"] == 4 * POLICY // place.num_ranks
        assert "optimizer states" not in sizes(last.device, "reference")


def test_only_rank_0_holds_exported_weights():
    export = moment(planned(["ppo.ema_decay=0.9"], TWO), "save", "export")
    assert [(item.model, item.bytes) for item in export.host_of_rank_0] == [
        ("policy", 4 * POLICY),
        ("value_model", 2 * SCORER),
    ]


def test_the_disk_holds_checkpoints_and_exports():
    found = planned(["checkpoint.every_steps=2", "checkpoint.keep_last=1", "ppo.num_steps=9"])
    assert (found.num_checkpoints, found.checkpoint) == (2, 12 * (POLICY + SCORER))
    assert found.exports == 2 * (POLICY + SCORER)
    assert found.disk_bytes == 2 * found.checkpoint + found.exports


def test_a_reward_model_reads_all_answers_of_its_rows():
    """2 rows per pass are 4 texts with two answers per row, and 6 texts with three."""
    for answers in (2, 3):
        lengths = Lengths(1, 1, 60, answers)
        config = load("train-rm", [*RM, "train.eval_micro_batch_size=2"])
        found = memory_map(config, GPU, lengths)
        read = scoring(scorer_of(config), Texts(2 * answers, 60, 0))
        assert sizes(moment(found, "score", "held-out rows").device, "model")["activations"] == read.total()


def scorer_of(config):
    return replace(architecture_of(config), scores=True)


def test_pretraining_blocks_have_their_own_passes(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("word " * 1000)
    words = [f"pretrain.path={text}", "pretrain.max_tokens=500", "pretrain.batch_size=4"]
    with_blocks = planned(words, lengths=replace(LENGTHS, longest_text=500))
    assert with_blocks.device_peak("update").bytes > planned().device_peak("update").bytes


def test_allowed_lengths():
    assert Lengths.allowed(load("train-ppo", TINY)) == Lengths(1, 512, 0)
    assert Lengths.allowed(load("train-rm", RM)) == Lengths(1, 1, 1024)


def test_a_missing_reward_model_gets_the_policy_s_shape(tmp_path):
    words = ["reward_model.from_config=null", "reward_model.tokenizer=null", "model.dtype=bfloat16"]
    config = load("train-ppo", ["conf=tiny", *words, f"reward_model.path={tmp_path}/not/there"])
    changed, notes = _with_known_shapes(config)
    assert changed.reward_model.from_config == config.model.from_config
    assert changed.reward_model.dtype is config.reward_model.dtype
    assert notes == [f"reward_model.path={tmp_path}/not/there does not exist yet: planned with the policy's shape"]
    near = replace(config, reward_model=replace(config.reward_model, path="outputs/rm"))
    assert _with_known_shapes(near)[0].reward_model.from_config == config.model.from_config
    hub = replace(config, reward_model=replace(config.reward_model, path="owner/rm"))
    assert _with_known_shapes(hub) == (hub, [])
    there = replace(config, reward_model=replace(config.reward_model, path=str(tmp_path)))
    assert _with_known_shapes(there) == (there, [])


def test_a_missing_policy_is_an_error(tmp_path):
    words = ["model.from_config=null", f"model.path={tmp_path}/not/there"]
    with pytest.raises(InputError, match="no such file or folder"):
        memory_map(load("train-ppo", ["conf=tiny", *words]), GPU)


def test_peaks():
    found = made_map(device_gib=2, host_gib=0.5, context=100)
    peak = found.device_peak()
    assert (peak.bytes, peak.largest) == (2 * 2**30, Item("policy", "weights", 2 * 2**30))
    assert found.gpu_bytes() == peak.bytes + 100
    assert found.host_peak().bytes == 2**29 + LIBRARIES
    assert made_map(on_gpu=False).rank_peak() == 5 * 2**29 + LIBRARIES


def test_a_reward_model_s_budget_is_limited_by_its_rows():
    """4 rows per step of two answers each, with any budget."""
    words = ["train.batch_size=4", "train.eval_micro_batch_size=1"]
    of_all = memory_map(load("train-rm", [*RM, *words, "train.micro_batch_size=4"]), GPU, Lengths(1, 1, 60))
    budget = memory_map(load("train-rm", [*RM, *words, "train.micro_batch_tokens=1000000"]), GPU, Lengths(1, 1, 60))
    assert budget.running_peak == of_all.running_peak


def test_a_reward_model_s_checkpoints_follow_from_its_steps():
    config = load("train-rm", [*RM, "train.num_steps=null", "checkpoint.every_steps=100"])
    assert memory_map(config, GPU).num_checkpoints == 3
    assert memory_map(config, GPU, num_steps=50).num_checkpoints == 1


def test_a_rollout_s_budget_is_planned_for_short_prompts_too():
    """560 tokens hold 10 rows of 40 + 16, or 21 of 10 + 16."""
    words = ["ppo.batch_size=32", "ppo.minibatch_size=32", "rollout.micro_batch_tokens=560"]
    names = [one.name for one in planned(words).moments if one.phase == "rollout"]
    assert names[0] in ("generating 10 responses", "generating 21 responses")
    texts = {name: Texts(rows, prompt, 16) for name, rows, prompt in ((10, 10, 40), (21, 21, 10))}
    fuller = max(texts, key=lambda name: decoding(architecture_of(load("train-ppo", TINY)), texts[name], 1.0).total())
    assert names[0] == f"generating {fuller} responses"


def test_zero3_keeps_the_gradients_of_one_layer():
    """A layer of tiny_llama: 64 + 2048 + 1024 + 6144 weights of 2 bytes."""
    held = sizes(moment(planned(place=TWO), "update", "value_model, backward").device, "value_model")
    assert held["gradients of a layer"] == 2 * (64 + 2048 + 1024 + 6144)
    assert "gradients of a layer" not in sizes(moment(planned(), "update", "policy, backward").device, "policy")


def test_a_checkpoint_file_from_a_gpu_is_twice_in_host_memory():
    """12 bytes per weight, less than a file holds; from host memory it is copied once."""
    for place, times in ((GPU, 2), (Topology(1, 1, on_gpu=False), 1)):
        (written,) = [item for item in moment(planned(place=place), "save", "checkpoint").host if not item.model]
        assert written.bytes == times * 12 * (POLICY + SCORER)


OWN = "{model_type: llama, hidden_size: 64, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 4}"


def test_models_of_reward_sources_are_resident_and_score_in_their_own_batches():
    """259 x 64 embeddings, a layer of 128 + 4 x 64 x 64 + 3 x 64 x 64, a norm and a head of 64 each; 2 bytes each."""
    own = 259 * 64 + 128 + 7 * 64 * 64 + 64 + 64
    source = f"{{name: judge, model: {{from_config: {OWN}, tokenizer: bytes}}, batch_size: 3}}"
    found = planned([f"reward=[{{name: rm}}, {source}]"])
    asked = moment(found, "score", "reward judge")
    assert sizes(asked.device, "reward judge")["weights"] == 2 * own
    assert sizes(asked.device, "reward_model")["weights"] == 2 * SCORER
    more = planned([f"reward=[{{name: rm}}, {source.replace('batch_size: 3', 'batch_size: 6')}]"])
    read, twice = (
        sizes(moment(one, "score", "reward judge").device, "reward judge")["activations"] for one in (found, more)
    )
    assert 1.8 * read < twice < 2.2 * read


def test_without_the_reward_model_nothing_is_planned_for_it():
    alone = ["reward=[{name: far, url: 'http://127.0.0.1:1'}]", "value_model.init=policy"]
    found = planned([*alone, "reward_model.from_config=null"])
    assert not any(item.model == "reward_model" for one in found.moments for item in one.device)
    score = moment(found, "score", "value_model")
    assert sizes(score.device, "value_model")["weights"] == 2 * SCORER


def test_a_source_s_model_can_be_offloaded():
    source = f"{{name: judge, model: {{from_config: {OWN}, tokenizer: bytes}}, offload: true}}"
    found = planned([f"reward=[{{name: rm}}, {source}]"])
    assert "weights" not in sizes(moment(found, "update", "policy, optimizer").device, "reward judge")
    assert "weights" in sizes(moment(found, "update", "policy, optimizer").host, "reward judge")


def test_a_source_s_texts_are_cut_to_its_positions():
    source = f"{{name: judge, model: {{from_config: {OWN[:-1]}, max_position_embeddings: 24}}, tokenizer: bytes}}}}"
    found = planned([f"reward=[{{name: rm}}, {source}]"])
    assert sizes(moment(found, "score", "reward judge").device, "reward judge")["activations"] > 0
