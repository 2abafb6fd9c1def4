"""Compose options from command lines, and refuse wrong ones."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf_cli.config.compose import as_text, compose_yaml, load, read_composed, to_object
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.objectives import KLEstimator
from rlhf_cli.config.option_docs import all_keys, experiments, groups, options
from rlhf_cli.config.schema import COMMANDS, RENAMED, TrainPPOConfig

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("experiment", experiments(), ids=lambda e: f"{e.command}-{e.name}")
def test_every_experiment_composes_and_states_its_purpose(experiment):
    config = load(experiment.command, [f"conf={experiment.name}"])
    assert isinstance(config, COMMANDS[experiment.command])
    assert experiment.purpose


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("group", "option"), [(group, name) for group, names in groups().items() for name in names])
def test_every_group_option_composes(command, group, option):
    wrong_kind = {"train-rm": "demo_prompts", "train-ppo": "demo_preferences"}[command]
    if option != wrong_kind:
        path = ["model.path=FOLDER"] if option == "pretrained" else []
        load(command, ["conf=tiny", f"{group}={option}", *path])


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("conf/**/*.yaml")), ids=lambda p: str(p.relative_to(REPOSITORY))
)
def test_every_yaml_file_starts_with_its_purpose(path):
    assert path.read_text("utf-8").startswith("#")


@pytest.mark.parametrize("args", [["conf=tiny", "ppo.kl_coef=0.3"], ["ppo.kl_coef=0.3", "conf=tiny"]])
def test_overrides_win_in_any_order(args):
    config = load("train-ppo", args)
    assert isinstance(config, TrainPPOConfig)
    assert config.ppo.kl_coef == 0.3
    assert config.ppo.num_steps == 4


def test_a_file_of_the_users_own_can_use_packaged_groups(tmp_path):
    file = tmp_path / "tiny.yaml"  # the name of a packaged experiment: the file must win
    file.write_text(
        "defaults:\n  - override /model: tiny_gpt2\n  - override /model@reward_model: tiny_gpt2\n"
        "run: {name: mine}\ndata: {train: mine.jsonl}\nppo: {kl_estimator: k3}\n"
    )
    config = load("train-ppo", [f"conf={file}", "model.dtype=bfloat16", "+deepspeed.steps_per_print=10"])
    assert isinstance(config, TrainPPOConfig)
    assert config.run.name == "mine"
    assert config.ppo.kl_estimator is KLEstimator.k3
    assert config.model.from_config is not None
    assert config.model.from_config["model_type"] == "gpt2"
    assert config.deepspeed["steps_per_print"] == 10


def test_ranks_read_the_options_that_the_parent_composed(tmp_path):
    args = ["conf=tiny", "ppo.cliprange=0.3"]
    OmegaConf.save(compose_yaml("train-ppo", args), tmp_path / "composed.yaml")
    assert to_object(read_composed("train-ppo", str(tmp_path / "composed.yaml"))) == load("train-ppo", args)


WRONG = {
    "ppo.cliprang=0.1": "unknown key ppo.cliprang (got 0.1); did you mean ppo.cliprange?",
    "ppoo.cliprange=0.1": "unknown key ppoo.cliprange (got 0.1); did you mean ppo.cliprange?",
    "ppo.kl_coef=abc": "ppo.kl_coef: Value 'abc' of type 'str' could not be converted to Float",
    "ppo.num_steps=1.5": "ppo.num_steps: Value '1.5' of type 'float' could not be converted to Integer",
    "ppo.kl_estimator=k9": "ppo.kl_estimator: Invalid value 'k9', expected one of [k1, k2, k3]",
    "ppo.cliprange=2": "ppo.cliprange must be in (0, 1), got 2.0",
    "ppo.kl_coef=-1": "ppo.kl_coef must be between 0 and 100, got -1.0",
    "ppo.kl_coef=nan": "ppo.kl_coef must be between 0 and 100, got nan",
    "optim.learning_rate=7": "optim.learning_rate must be between 0 and 1, got 7.0",
    "value_optim.beta1=1": "value_optim.beta1 must be in [0, 1), got 1.0",
    "rollout.temperature=0": "rollout.temperature must be in (0, 10], got 0.0",
    "rollout.micro_batch_tokens=0": "rollout.micro_batch_tokens must be 1 or more, got 0",
    "optim.state_dtype=bfloat16": "optim.state_dtype must be float32 for a model in float32, got bfloat16",
    "value_optim.state_dtype=bfloat16": "value_optim.state_dtype must be float32 for a model in float32, got bfloat16",
    "run.name=a/b": "run.name must be a folder name: not empty, '.' or '..', and without '/', got a/b",
    "ppo.batch_size=6": "ppo.batch_size must be a multiple of ppo.minibatch_size, got 6 = 1.50 x minibatch_size 4",
    "model=tiny_lama": "model=tiny_lama: no such option; did you mean tiny_llama?",
    "model.path=gpt2": (
        "model must be set by either model.path or model.from_config (to replace a preset's from_config by weights, "
        "add model=pretrained), got path and from_config"
    ),
    "deepspeed.x=1": "deepspeed.x is not in the composed options of deepspeed; write +deepspeed.x=1 to add it",
    "+deepspeed.bf16=true": "deepspeed.bf16 cannot be set: it follows from other options; set model.dtype",
    "deepspeed.zero_optimization.stage=2": "deepspeed.zero_optimization.stage must be 3, got 2",
    "+deepspeed.zero_optimization.offload_param={device: nvme}": (
        "deepspeed.zero_optimization.offload_param.device must be cpu or none: "
        "checkpoints do not support nvme, got nvme"
    ),
    "+deepspeed.zero_optimization.offload_optimizer={device: cpu, ratio: 0.3}": (
        "deepspeed.zero_optimization.offload_optimizer.ratio must be 1.0: "
        "checkpoints do not support partial offload, got 0.3"
    ),
    "deepspeed.zero_optimization=3": "deepspeed.zero_optimization must be a mapping, got 3",
    "+ppo.x=1": "+ppo.x=1: '+' and '~' are only for deepspeed.*; remove the '+'",
    "model._target_=os.system": "model._target_=os.system: _target_ is not allowed; options cannot run code",
    "ppo.dual_clip=1": "ppo.dual_clip must be above 1 or null, got 1.0",
    "ppo.ema_decay=1": "ppo.ema_decay must be in (0, 1) or null, got 1.0",
    "ppo.kl_target=0": "ppo.kl_target must be positive or null, got 0.0",
    "ppo.value_warmup_steps=4": "ppo.value_warmup_steps must be below ppo.num_steps 4, got 4",
    "ppo.min_length=4": "ppo.min_length_penalty must be set together with ppo.min_length, got 0.0",
    "ppo.missing_eos=replace": (
        "ppo.missing_eos_penalty must be positive with ppo.missing_eos=replace, which makes it the score, got 0"
    ),
    "check.num_prompts=1": ("check.num_prompts must be 0, or 2 or more: the padding check needs two prompts, got 1"),
    "pretrain.max_tokens=1": "pretrain.max_tokens must be 2 or more, got 1",
    "ppo.target_kl=1": "ppo.target_kl: renamed to ppo.early_stop_kl",
    "plan.context=1GiB": "plan.context: renamed to plan.gpu_overhead",
    "conf=tiny": "conf= was given twice; give it once and override single keys",
    "--resume": "unknown option --resume; options have the form key=value, see `rlhf train-ppo --help`",
    "resume": "options must have the form key=value, got 'resume'; see `rlhf train-ppo --help`",
}


@pytest.mark.parametrize(("argument", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_argument_gets_one_line(argument, message):
    with pytest.raises(InputError) as caught:
        load("train-ppo", ["conf=tiny", argument])
    assert str(caught.value) == message


def test_wrong_conf_values(tmp_path):
    with pytest.raises(InputError, match=r"conf=tinny: no such experiment; did you mean tiny\?"):
        load("train-ppo", ["conf=tinny"])
    with pytest.raises(InputError, match=r"cannot read .*nope.yaml: No such file or directory"):
        load("train-ppo", ["conf=nope.yaml"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("ppo: [1\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load("train-ppo", [f"conf={broken}"])
    typo = tmp_path / "typo.yaml"
    typo.write_text("ppo: {kl_coeff: 1}\n")
    with pytest.raises(InputError, match=r"unknown key ppo.kl_coeff.*did you mean ppo.kl_coef\?"):
        load("train-ppo", [f"conf={typo}"])
    with pytest.raises(InputError, match=r"not set: data.train; add data.train=VALUE"):
        load("train-ppo", [])
    with pytest.raises(InputError, match=r"model must be set by either model.path or model.from_config, got neither"):
        load("train-rm", ["data.train=a.jsonl"])
    with pytest.raises(InputError, match="Config group override must be a string or a list"):
        load("train-rm", ["model=3"])
    broken.write_bytes(b"ppo: \xff\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load("train-ppo", [f"conf={broken}"])


def test_a_renamed_option_is_refused_with_its_new_name(tmp_path):
    known = {key for command in COMMANDS for key in all_keys(command)}
    for old, new in RENAMED.items():
        assert old not in known
        assert new in known
        section, _, name = old.partition(".")
        (tmp_path / "old.yaml").write_text(f"{section}: {{{name}: 1}}\n")
        with pytest.raises(InputError) as caught:
            load("train-ppo", [f"conf={tmp_path}/old.yaml"])
        assert str(caught.value) == f"{old}: renamed to {new}"


def test_a_users_run_uses_no_demo_data(tmp_path):
    config = load("train-rm", ["model.path=some/model", "data.train=pairs.jsonl"])
    assert config.data.eval is None
    assert config.data.system_prompt is None


def test_batches_that_do_not_divide_by_the_ranks_are_refused_with_the_arithmetic():
    with pytest.raises(InputError, match=r"ppo.batch_size .* such as 9, got 8 = 2.67 x 3 ranks"):
        load("train-ppo", ["conf=tiny"]).check_ranks(3)
    with pytest.raises(InputError, match=r"train.batch_size .* such as 9, got 8 = 2.67 x 3 ranks"):
        load("train-rm", ["conf=tiny"]).check_ranks(3)
    with pytest.raises(InputError, match=r"pretrain.batch_size .* such as 4, got 3 = 1.50 x 2 ranks"):
        load("train-ppo", ["conf=tiny", "pretrain.path=a.txt", "pretrain.batch_size=3"]).check_ranks(2)


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        (
            "train-ppo",
            ["ppo.kl_target=6", "ppo.kl_coef=0"],
            "ppo.kl_coef must be positive with ppo.kl_target, which adapts it",
        ),
        ("train-ppo", ["ppo.kl_target=6", "ppo.kl_horizon=7"], "ppo.kl_horizon must be at least ppo.batch_size, got 7"),
        (
            "train-ppo",
            ["ppo.min_length=17", "ppo.min_length_penalty=1"],
            "ppo.min_length must be at most rollout.max_new_tokens 16, got 17",
        ),
        ("train-rm", ["train.label_smoothing=0.1", "data.confidence_column=c"], "train.label_smoothing must be 0 with"),
        ("train-rm", ["data.ranking_column=a", "data.margin_column=m"], "data.margin_column must be unset with"),
        ("train-rm", ["train.label_smoothing=0.5"], r"train.label_smoothing must be in \[0, 0.5\)"),
    ],
)
def test_options_that_exclude_each_other(command, args, message):
    with pytest.raises(InputError, match=message):
        load(command, ["conf=tiny", *args])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_doc(command):
    described = options(command)
    assert [option.key for option in described] == all_keys(command)
    assert all(option.doc.endswith(".") for option in described)


@pytest.mark.parametrize("command", ["train-ppo", "train-rm"])
def test_the_saved_options_of_a_run_start_the_same_run(command, tmp_path):
    args = ["conf=demo", "run.seed=7", "+deepspeed.wall_clock_breakdown=true"]
    (tmp_path / "config.yaml").write_text(as_text(compose_yaml(command, args)))
    assert load(command, [f"conf={tmp_path}/config.yaml"]) == load(command, args)


@pytest.mark.parametrize("command", ["train-rm", "train-ppo"])
def test_bfloat16_optimizer_states_cannot_be_offloaded(command):
    """DeepSpeed would fail with an assertion on every rank, after minutes of loading."""
    words = ["conf=tiny", "model.dtype=bfloat16", "optim.state_dtype=bfloat16"]
    load(command, words)
    with pytest.raises(InputError, match=r"optim\.state_dtype must be float32 with offload_optimizer, got bfloat16"):
        load(command, [*words, "deepspeed=zero3_offload"])


def test_from_config_on_the_command_line_replaces_weights_or_changes_a_shape():
    """Hydra itself fails if null becomes a mapping."""
    words = ["conf=demo", "model.path=null", "model.tokenizer=bytes", "model.from_config={model_type: gpt2, n_embd: 8}"]
    config = load("train-ppo", words)
    assert config.model.from_config == {"model_type": "gpt2", "n_embd": 8}
    tiny = load("train-ppo", ["conf=tiny"]).model.from_config
    assert load("train-ppo", ["conf=tiny", "model.from_config={hidden_size: 64}"]).model.from_config == {
        **(tiny or {}),
        "hidden_size": 64,
    }
    with pytest.raises(
        InputError,
        match=r"model.from_config must be a mapping: model.from_config=\{key: value, ...\}, got model.from",
    ):
        load("train-ppo", ["conf=tiny", "model.from_config={a: "])
    with pytest.raises(InputError, match="nothing"):
        load("train-ppo", ["conf=tiny", "nothing.from_config={a: 1}"])
