"""`rlhf plan`: its output, its exit codes, and the plans of the presets."""

import json
import re

import pytest

from rlhf_cli.cli import main
from rlhf_cli.config.compose import load
from rlhf_cli.config.option_docs import experiments
from rlhf_cli.plan.architecture import Architecture, parameter_sizes
from rlhf_cli.plan.plan_command import _SHAPES, _with_shape
from tests.conftest import REPOSITORY

TINY = ["plan", "train-ppo", "conf=tiny", "data.max_prompt_tokens=40"]
GIB = 2**30
PRESETS = [(one.command, one.name) for one in experiments() if one.name.endswith("a100")]


def run(capsys, *args):
    code = main(args)
    return code, capsys.readouterr()


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_plan_that_fits(capsys):
    code, output = run(capsys, *TINY, "plan.gpu_memory=8GiB")
    assert code == 0
    lines = output.out.splitlines()
    assert lines[0] == "prompts per step: 8 = 1 rank x 8, one response each"
    for phase in ("load", "rollout", "score", "update", "save"):
        bar = next(line for line in lines if line.startswith(f"{phase:8}"))
        assert "|" in bar  # the limit
        assert bar.rstrip().endswith("GiB")
    assert any(
        "P policy, V value model, R reference, W reward model, c context; | limit 8.0 GiB" in line for line in lines
    )
    assert any(line.startswith("activations of an update: ") for line in lines)
    assert any(line.startswith("host memory: ") for line in lines)
    assert any(line.startswith("disk: ") and "x" in line for line in lines)
    assert any(line.startswith("assumed, not measured: 1.5 GiB per rank for the CUDA context") for line in lines)
    assert any(line.startswith("fits: 2.3 GiB of 8.0 GiB per GPU, 72% to spare; peak in load") for line in lines)


def test_a_plan_that_does_not_fit(capsys):
    code, output = run(capsys, *TINY, "plan.gpu_memory=1600MiB", "ppo.micro_batch_size=4")
    assert code == 7
    assert "does not fit: GPU: needs 2.3 GiB, 1.5 GiB usable (1.6 GiB less 4%); peak in load (matrix" in output.out
    assert "no option makes it fit" in output.out


def test_bars_show_each_model_in_proportion(capsys):
    wide = ["model.from_config.hidden_size=512", "reward_model.from_config.hidden_size=512"]
    _, output = run(capsys, *TINY, "plan.gpu_memory=100MiB", "plan.gpu_overhead=1MiB", *wide)
    update = next(line for line in output.out.splitlines() if line.startswith("update "))
    assert update.count("P") > update.count("R") > 0
    assert update.count("V") > update.count("W") > 0


def test_json_has_everything_in_bytes(capsys):
    code, output = run(capsys, *TINY, "plan.gpu_memory=8GiB", "plan.host_memory=64GiB", "plan.gpus=2", "--json")
    found = json.loads(output.out)
    assert code == 0
    assert found["fits"] is True
    assert found["machine"] == {"gpu": 8 * GIB, "host": 64 * GIB, "disk": None}
    assert found["batches"]["prompts_per_step"] == 8
    memory = found["memory"]
    assert (memory["ranks"], memory["device"]) == (2, "gpu")
    assert memory["peak"]["bytes"] == max(one["device_total"] for one in memory["moments"])
    assert memory["peak"]["with_context"] == memory["peak"]["bytes"] + memory["context"]
    for one in memory["moments"]:
        assert one["device_total"] == sum(item["bytes"] for item in one["device"])
    assert {one["phase"] for one in memory["moments"]} == {"load", "rollout", "score", "update", "save"}


def test_without_a_gpu_host_memory_is_the_limit(capsys):
    _, output = run(capsys, *TINY)
    assert output.out.startswith(
        "no GPU here: planned for ranks in host memory; set plan.gpu_memory=80GiB to plan for GPUs\n"
    )
    assert "of host memory for 1 rank, " in output.out
    assert "CUDA" not in output.out


def test_a_sweep_is_a_table_with_the_errors_below(capsys):
    code, output = run(capsys, *TINY, "plan.gpu_memory=8GiB", "--sweep", "gpus=1,2,3")
    assert code == 0
    head, one, two, three = output.out.splitlines()
    assert head.split()[:2] == ["plan.gpus", "peak"]
    assert one.split()[0] == "1"
    assert "fits" in one
    assert "fits" in two
    assert "ppo.batch_size must be a multiple of the number of ranks" in three


def test_any_option_can_be_swept(capsys):
    words = [*TINY, "plan.gpu_memory=8GiB", "--json", "--sweep=ppo.micro_batch_size=1,4"]
    code, output = run(capsys, *words)
    small, large = json.loads(output.out)
    assert code == 0
    assert (small["ppo.micro_batch_size"], large["ppo.micro_batch_size"]) == ("1", "4")

    def update(found):
        return max(one["device_total"] for one in found["memory"]["moments"] if one["phase"] == "update")

    assert update(small) < update(large)


def test_the_largest_model_that_fits(capsys):
    words = ["data.max_prompt_tokens=64", "model.dtype=bfloat16", "reward_model.dtype=bfloat16"]
    code, output = run(capsys, "plan", "train-ppo", "conf=tiny", *words, "plan.gpu_memory=40GiB", "--max-model")
    assert code == 0
    lines = output.out.splitlines()
    verdicts = {line.split()[0]: "does not fit" not in line for line in lines[1:-1]}
    assert verdicts["0.5B"]
    assert not verdicts["7B"]
    assert (
        lines[-1]
        == f"largest policy that fits with these options: {[name for name, fits in verdicts.items() if fits][-1]}"
    )


def test_shapes_have_the_size_of_their_names():
    config = load("train-ppo", ["conf=tiny"])
    for name in _SHAPES:
        architecture = Architecture.of(_with_shape(config, name).model, "model", scores=False)
        assert sum(parameter_sizes(architecture)) / 1e9 == pytest.approx(float(name[:-1]), rel=0.35)


def test_a_shape_replaces_all_models():
    config = _with_shape(load("train-ppo", ["conf=tiny"]), "7B")
    assert config.model.from_config == config.reward_model.from_config
    assert config.model.from_config["hidden_size"] == 4096


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "rlhf plan needs a command (train-rm or train-ppo), got none"),
        (["train"], "rlhf plan needs a command (train-rm or train-ppo), got train"),
        (["train-ppo", "conf=tiny", "--sweep", "gpus"], "--sweep must be key=value,value,..."),
        (["train-ppo", "conf=tiny", "--sweep", "gpus=1,,2"], "--sweep must be key=value,value,..."),
        (
            ["train-ppo", "conf=tiny", "--sweep", "gpus=1", "--max-model"],
            "argument --max-model: not allowed with argument --sweep",
        ),
        (["train-ppo", "conf=tiny", "--sweep", "ppo.kl=1,2"], "ppo.kl=1: unknown key ppo.kl"),
        (["train-ppo", "conf=tiny", "plan.gpus=3"], "ppo.batch_size must be a multiple of the number of ranks"),
        (["train-ppo", "conf=tiny", "plan.gpus=4", "plan.gpus_per_node=3"], "plan.gpus must be a multiple"),
        (["train-ppo", "conf=tiny", "plan.gpu_memory=lots"], "plan.gpu_memory must be a size such as 80GiB"),
        (
            ["train-ppo", "conf=tiny", "+deepspeed.zero_optimization.reduce_bucket_size=auto"],
            "deepspeed.zero_optimization.reduce_bucket_size must be a number of elements, got auto",
        ),
        (
            ["train-ppo", "conf=tiny", "+deepspeed.zero_optimization.offload_param=cpu"],
            "deepspeed.zero_optimization.offload_param must be a mapping: {device: cpu}, got cpu",
        ),
        (["train-ppo", "conf=tiny", "--jason"], "unknown option --jason"),
        (["train-ppo", "conf=tiny", "model.from_config.hidden_size=0"], "cannot build a llama model for the plan"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, args, message):
    code, output = run(capsys, "plan", *args)
    assert code == 2
    assert message in output.err
    assert output.err.count("\n") == 1


def test_help(capsys):
    code, output = run(capsys, "plan", "--help")
    assert code == 0
    assert output.out.startswith("usage: rlhf plan")


@pytest.mark.parametrize(("command", "name"), PRESETS)
def test_a_preset_fits_its_machine(command, name):
    """At least 8 % of each GPU are left at the peak, context included; `make docs` keeps the page fresh."""
    page = (REPOSITORY / "docs/presets.md").read_text("utf-8")
    section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
    (spare,) = re.findall(r"^fits: .* of 79\.0 GiB per GPU, (\d+)% to spare", section, flags=re.MULTILINE)
    assert int(spare) >= 8
    ranks = load(command, [f"conf={name}"]).launch.num_gpus
    assert name.endswith(f"_{ranks}xa100")


def test_the_presets_are_those_in_the_docs():
    assert sorted(name for _, name in PRESETS) == [
        "ppo_1b_1xa100",
        "ppo_7b_2xa100",
        "ppo_7b_4xa100",
        "rm_7b_2xa100",
        "rm_7b_4xa100",
    ]
