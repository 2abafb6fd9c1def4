"""Mutants of the mathematics: one token is changed, the unit tests run, and one of them has to fail.

usage: python scripts/mutate.py [PATH ...] [--jobs 2] [--list]

A PATH keeps the files whose names contain it. No file is written: torch, transformers and DeepSpeed are imported once,
the package is not; each mutant is compiled in memory by a fork that runs pytest on the tests of its file, the fastest
first, up to the first failure. A mutant that no test can tell from the original stands in EQUIVALENT, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.util
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import CodeType
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
HEAVY = ("torch", "deepspeed", "datasets", "hydra", "transformers", "rich.progress", "pytest")
SLOW_IMPORTS = tuple(f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "gpt_neox", "llama", "qwen2"))

# plain assertions: to rewrite those of plugins is too late, and pytest warns of it
PYTEST = ("-x", "-q", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
ALGO = "tests/unit/algo"
TRAIN = tuple(
    f"tests/unit/train/test_{name}.py" for name in ("ppo_estimate", "update", "first_pass", "oracle", "correctness")
)
BATCHES = ("tests/unit/data/test_token_batches.py", "tests/unit/models/test_padding.py")
PACKED = (BATCHES[1], "tests/unit/models/test_packed_forward.py")
ROLLOUT = ("tests/unit/rollout/test_kv_cache.py", "tests/unit/rollout/test_embedded.py")
REPORT = "tests/unit/report"
PLAN = "tests/unit/plan"
# file -> the functions and classes that are mutated (none: all of it), and its tests, the fastest first
TARGETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **{
        f"rlhf_cli/algo/{name}.py": ((), (f"{ALGO}/test_{name}.py", *TRAIN))
        for name in ("masking", "kl", "advantages", "losses", "logprobs")
    },
    **{
        f"rlhf_cli/algo/{name}.py": ((), (f"{ALGO}/test_{name}.py",)) for name in ("sampling", "schedules", "normalise")
    },
    "rlhf_cli/algo/packing.py": ((), (f"{ALGO}/test_packing.py", *BATCHES)),
    "rlhf_cli/data/token_batches.py": ((), (*BATCHES, *TRAIN)),
    "rlhf_cli/models/heads.py": (("ResponseLM", "TokenScorer"), (*PACKED, *ROLLOUT, *TRAIN)),
    "rlhf_cli/models/packed_forward.py": ((), PACKED),
    "rlhf_cli/models/cpu/linear.py": ((), ("tests/unit/models/cpu/test_linear.py",)),
    "rlhf_cli/models/cpu/attention.py": (
        ("CausalAttention", "_blocks", "one_token", "attention"),
        ("tests/unit/models/cpu/test_attention.py",),
    ),
    "rlhf_cli/engine/distributed.py": (
        ("share", "balanced_share", "pad_to_same_count", "pad_to_ranks"),
        ("tests/unit/engine/test_distributed.py", *TRAIN),
    ),
    "rlhf_cli/engine/plain.py": (("_add_gradient", "_update", "_scaled"), ("tests/unit/engine/test_plain.py",)),
    "rlhf_cli/rollout/kv_cache.py": (("GrowingLayer",), ROLLOUT),
    "rlhf_cli/rollout/embedded.py": (("sample", "_decode", "_all_ended", "_Rows"), ROLLOUT),
    "rlhf_cli/rewards/reward_model.py": ((), ("tests/unit/rewards/test_reward_model.py", *TRAIN)),
    "rlhf_cli/rewards/weighted_sum.py": ((), ("tests/unit/rewards/test_weighted_sum.py", *TRAIN)),
    "rlhf_cli/rewards/classifier_source.py": ((), ("tests/unit/rewards/test_classifier_source.py",)),
    "rlhf_cli/rewards/ensemble.py": ((), ("tests/unit/train/test_sources.py", "tests/unit/run/test_evaluation.py")),
    **{
        f"rlhf_cli/plan/{name}.py": ((), (f"{PLAN}/test_{name}.py",))
        for name in ("batch_counts", "engine_memory", "live_tensors")
    },
    **{
        f"rlhf_cli/report/{name}.py": ((), (f"{REPORT}/test_{name}.py",))
        for name in ("calibration", "overoptimization")
    },
    "rlhf_cli/report/intervals.py": ((), (f"{REPORT}/test_intervals.py",)),
    "rlhf_cli/run/evaluation.py": (("metrics", "compare", "_win_rate"), ("tests/unit/run/test_evaluation.py",)),
    "rlhf_cli/train/batch.py": ((), TRAIN),
    "rlhf_cli/train/flops.py": ((), TRAIN),
    "rlhf_cli/train/ppo.py": (
        (
            *("_next_state", "collect", "score", "estimate", "update", "_minibatches", "_accumulate", "_can_reuse"),
            *("_first_view", "_policy_gradients", "_policy_backward", "policy_objective", "_value_backward"),
            *("_pretrain", "_look_for_negative_kl", "normalised", "_skip_failed", "_source_metrics"),
        ),
        TRAIN,
    ),
    "rlhf_cli/train/forward.py": (
        (
            *("micro_batches", "map_micro_batches", "logits", "policy", "logprobs_and_entropy", "logprobs", "values"),
            *("collate", "take_read"),
        ),
        TRAIN,
    ),
    "rlhf_cli/train/reward.py": (
        (
            *("num_steps", "Pairs", "mean_weight", "_batch", "update", "_accumulate", "_micro_batches", "evaluate"),
            "calibrate",
            *("_pairs", "_scores", "_hidden", "_forward", "_over_all", "_whole"),
        ),
        TRAIN[1:],
    ),
}

ADVANTAGES, LOSSES, NORMALISE, SAMPLING = (
    f"rlhf_cli/algo/{name}.py" for name in ("advantages", "losses", "normalise", "sampling")
)
PPO, REWARD, TOKENS = "rlhf_cli/train/ppo.py", "rlhf_cli/train/reward.py", "rlhf_cli/data/token_batches.py"
PLAIN, CACHE = "rlhf_cli/engine/plain.py", "rlhf_cli/rollout/kv_cache.py"
DEVIATIONS = "the deviations sum to 0, so that a multiple of the mean beside them changes nothing"
FLAT = "the tensors have two dimensions: the last is number 1"
NOTHING = "no tokens either way"
FOUR = "the tensors have four dimensions: the last but one is number 2"
# (file, mutated line) -> why no test can tell it from the original
EQUIVALENT: dict[tuple[str, str], str] = {
    (ADVANTAGES, "advantages = torch.ones_like(values)"): "every column is written before it is read",
    (LOSSES, "return torch.where(advantages <= 0, torch.minimum(loss, -dual_clip * advantages), loss)"): (
        "at an advantage of 0 both losses are 0 and have no gradient"
    ),
    (SAMPLING, "kept = probs.scatter(1, order, ordered.masked_fill(reached_before, 0.0))"): FLAT,
    (
        SAMPLING,
        "return torch.searchsorted(cumulated, target, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)",
    ): FLAT,
    (NORMALISE, "covariance = (rows + mean).T @ (rows - mean) / len(rows)"): DEVIATIONS,
    (NORMALISE, "covariance = (rows - mean).T @ (rows + mean) / len(rows)"): DEVIATIONS,
    (PLAIN, "factor = self._optim.max_grad_norm / (norm + 1e-6) if self._optim.max_grad_norm else 2.0"): (
        "only a factor below 1 changes a gradient"
    ),
    (PLAIN, "wide = gradient.to(torch.promote_types(dtype, gradient.dtype))"): "the wider of both, in any order",
    (PLAIN, "return (wide.mul_(factor) if factor <= 1 else wide).to(dtype)"): "a product with 1 is the same",
    (CACHE, "end = self.length + key_states.shape[2]"): FOUR,
    (CACHE, "self.keys, self.values = key_states[..., 1:0, :], value_states[..., :0, :]"): NOTHING,
    (CACHE, "self.keys, self.values = key_states[..., :0, :], value_states[..., 1:0, :]"): NOTHING,
    (CACHE, "self.keys, self.values = key_states[..., :0, :], value_states[..., :1, :]"): (
        "values are made anew when keys are, and nothing is held yet"
    ),
    (CACHE, "if end > self.keys.shape[2]:"): FOUR,
    (CACHE, "roomy = held.new_zeros((*held.shape[:2], tokens, held.shape[-1]))"): FOUR,
    (
        REWARD,
        "return (self.weight * preference_loss(better, self.margin, worse, self.confidence)).sum()",
    ): "both are subtracted from the better score",
    (REWARD, "return (self.weight * centering_loss(scores[self.worse], scores[self.better])).sum()"): (
        "a squared sum of the two"
    ),
}


@dataclass(frozen=True)
class Edit:
    """Characters start to end of a file become `new`."""

    start: int
    end: int
    new: str


@dataclass(frozen=True)
class Mutant:
    """One file with one edit."""

    path: str
    line: int
    before: str
    after: str
    source: str

    @property
    def equivalent(self) -> str | None:
        """Why it cannot be told from the original, if so."""
        return EQUIVALENT.get((self.path, self.after))


class Text:
    """A source file (ASCII) with the places of its nodes."""

    def __init__(self, path: str) -> None:
        self.path, self.source = path, (ROOT / path).read_text("ascii")
        self.starts = [0, *(match.end() for match in re.finditer("\n", self.source))]

    def span(self, node: Any) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def of(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end]

    def replace(self, node: ast.AST, new: str) -> Edit:
        return Edit(*self.span(node), new)

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> Edit:
        """Replace the operator that stands between two operands."""
        start = self.source.index(old, self.span(left)[1], self.span(right)[0])
        return Edit(start, start + len(old), new)

    def mutant(self, edit: Edit) -> Mutant:
        source = self.source[: edit.start] + edit.new + self.source[edit.end :]
        first = self.source.rindex("\n", 0, edit.start) + 1
        before = self.source[first : self.source.index("\n", edit.end)]
        after = source[first : source.index("\n", edit.start + len(edit.new))]
        return Mutant(self.path, self.source.count("\n", 0, first) + 1, _joined(before), _joined(after), source)


def _joined(lines: str) -> str:
    return " ".join(lines.split())


ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
BITWISE = {ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&")}
COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}
UNARY = {ast.USub: "-", ast.Invert: "~", ast.Not: "not "}
OTHER_NAMES = {
    **{"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "mean": "sum"},
    **{
        "zeros_like": "ones_like",
        "logsigmoid": "sigmoid",
        "expm1": "exp",
        "rsqrt": "sqrt",
        "masked_mean": "masked_sum",
    },
}
DROPPED_METHODS = {"square", "sqrt", "exp", "expm1", "flip", "clamp", "sign", "scatter_add", "masked_fill"}
DROPPED_KEYWORDS = {"keepdim", "correction", "shift_mean", "right", "descending"}
KEPT_KEYWORDS = {"strict", "device", "dtype", "dim"}  # what they say is no mathematics; dim: see other_keyword
REDUCTIONS = {"masked_sum", "masked_mean", "masked_whiten"}
UNSWAPPED = {"min", "max", "minimum", "maximum", "map", "zip", "getattr"}  # symmetric, or an error at once


def called(node: ast.Call) -> str:
    """The name of the function or method."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


Operator = Callable[[Text, Any], Iterator[Edit]]


def other_operator(text: Text, node: ast.BinOp) -> Iterator[Edit]:
    """a + b -> a - b, and so on, unless they are lists."""
    if any(isinstance(side, ast.List) or text.of(side).startswith("list(") for side in (node.left, node.right)):
        return
    for kind, (old, new) in {**ARITHMETIC, **BITWISE}.items():
        if isinstance(node.op, kind):
            yield text.between(node.left, node.right, old, new)


def other_assignment(text: Text, node: ast.AugAssign) -> Iterator[Edit]:
    """a += b -> a -= b, and so on; also a = b."""
    for kind, (old, new) in {**ARITHMETIC, **BITWISE}.items():
        if isinstance(node.op, kind):
            yield text.between(node.target, node.value, old, new)
            yield text.between(node.target, node.value, old, "")


def other_comparison(text: Text, node: ast.Compare) -> Iterator[Edit]:
    """a < b -> a <= b, a > b, and so on."""
    old, others = COMPARISONS[type(node.ops[0])]
    for new in others:
        yield text.between(node.left, node.comparators[0], old, new)


def and_or(text: Text, node: ast.BoolOp) -> Iterator[Edit]:
    """a and b -> a or b, and back."""
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    yield text.between(node.values[0], node.values[1], old, new)


def without_sign(text: Text, node: ast.UnaryOp) -> Iterator[Edit]:
    """-a -> a, ~a -> a, not a -> a."""
    start, sign = text.span(node)[0], UNARY[type(node.op)]
    yield Edit(start, start + len(sign), "")


def other_constant(text: Text, node: ast.Constant) -> Iterator[Edit]:
    """True -> False, 0 -> 1, 1 -> 0 and 2, other numbers n + 1 or twice as large."""
    if isinstance(node.value, bool):
        yield text.replace(node, str(not node.value))
    elif isinstance(node.value, int | float):
        kind = type(node.value)
        others = {0: (1,), 1: (0, 2)}.get(node.value, (node.value * 2 if kind is float else node.value + 1,))
        for other in others:
            yield text.replace(node, repr(kind(other)))


def other_name(text: Text, node: ast.Call) -> Iterator[Edit]:
    """torch.minimum(...) -> torch.maximum(...), min(...) -> max(...), and so on."""
    name, end = called(node), text.span(node.func)[1]
    if name in OTHER_NAMES and (isinstance(node.func, ast.Attribute) or name != "mean"):
        yield Edit(end - len(name), end, OTHER_NAMES[name])


def other_call(text: Text, node: ast.Call) -> Iterator[Edit]:
    """f(a, b) -> f(b, a); x.square() -> x; reversed(x) -> x; where(c, a, b) -> a; masked_sum(x, mask) over all of x."""
    name = called(node)
    if name not in UNSWAPPED and not text.of(node.func).startswith("self."):  # own methods: an error at once
        yield from swapped(text, node.args[name == "where" :])
    if isinstance(node.func, ast.Attribute) and name in DROPPED_METHODS and text.of(node.func.value) != "torch":
        yield Edit(text.span(node.func)[1] - len(name) - 1, text.span(node)[1], "")
    if name == "reversed":
        yield text.replace(node, text.of(node.args[0]))
    if name == "where":
        yield text.replace(node, f"({text.of(node.args[1])})")
    if name in REDUCTIONS:
        yield text.replace(node.args[1], f"torch.ones_like({text.of(node.args[1])})")


def other_keyword(text: Text, node: ast.Call) -> Iterator[Edit]:
    """clamp(min=0) -> clamp(max=0); sum(dim=1) -> sum(dim=0); std(correction=0) -> std()."""
    for keyword in node.keywords:
        start, end = text.span(keyword)
        if keyword.arg in ("min", "max"):
            yield Edit(start, start + 3, OTHER_NAMES[keyword.arg])
        elif keyword.arg == "dim" and text.of(keyword.value) == "1":
            yield text.replace(keyword.value, "0")
        elif keyword.arg in DROPPED_KEYWORDS:
            comma = re.search(r",\s*$", text.source[:start])
            yield Edit(comma.start() if comma else start, end, "")


def other_order(text: Text, node: ast.Tuple | ast.List) -> Iterator[Edit]:
    """(a, b, c) -> (b, a, c) and (a, c, b)."""
    if isinstance(node.ctx, ast.Load) and len(node.elts) > 2:
        yield from swapped(text, node.elts)


def swapped(text: Text, items: Sequence[ast.expr]) -> Iterator[Edit]:
    """Two neighbours in each other's place, where both are names, attributes or subscripts."""
    for left, right in pairwise(items):
        if all(isinstance(item, ast.Name | ast.Attribute | ast.Subscript) for item in (left, right)):
            (start, stop), (again, end) = text.span(left), text.span(right)
            yield Edit(start, end, text.of(right) + text.source[stop:again] + text.of(left))


def other_bounds(text: Text, node: ast.Slice) -> Iterator[Edit]:
    """[a:b] -> [a + 1:b], [a:b - 1], [1:b]; numbers are changed as constants."""
    if node.lower is not None and not isinstance(node.lower, ast.Constant):
        yield text.replace(node.lower, f"{text.of(node.lower)} + 1")
    if node.upper is not None and not isinstance(node.upper, ast.Constant | ast.UnaryOp):
        yield text.replace(node.upper, f"{text.of(node.upper)} - 1")
    if node.upper is not None and node.lower is None:
        start = text.span(node)[0]
        yield Edit(start, start, "1")


def other_branch(text: Text, node: ast.If | ast.IfExp | ast.While) -> Iterator[Edit]:
    """if a -> if not (a); comparisons are turned round by themselves."""
    if not isinstance(node.test, ast.Compare):
        yield text.replace(node.test, f"(not ({text.of(node.test)}))")


def other_jump(text: Text, node: ast.Break) -> Iterator[Edit]:
    """break -> pass."""
    yield text.replace(node, "pass")


OPERATORS: dict[type[ast.AST], tuple[Operator, ...]] = {
    ast.BinOp: (other_operator,),
    ast.AugAssign: (other_assignment,),
    ast.Compare: (other_comparison,),
    ast.BoolOp: (and_or,),
    ast.UnaryOp: (without_sign,),
    ast.Constant: (other_constant,),
    ast.Call: (other_name, other_call, other_keyword),
    ast.Tuple: (other_order,),
    ast.List: (other_order,),
    ast.Slice: (other_bounds,),
    ast.If: (other_branch,),
    ast.IfExp: (other_branch,),
    ast.While: (other_branch,),
    ast.Break: (other_jump,),
}
SKIPPED = (ast.Assert, ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A node and those below it, without decorators, annotations, assertions and texts."""
    if isinstance(node, SKIPPED) or (isinstance(node, ast.keyword) and node.arg in KEPT_KEYWORDS):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("decorator_list", "annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from nodes(child)


def mutants(path: str) -> list[Mutant]:
    """All mutants of a file, in order."""
    text, wanted = Text(path), TARGETS[path][0]
    tree = ast.parse(text.source)
    named = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in wanted]
    assert {node.name for node in named} == set(wanted), "TARGETS names a function that is not there"
    found: dict[str, Mutant] = {}
    for top in named or [tree]:
        for node in nodes(top):
            for operator in OPERATORS.get(type(node), ()):
                for edit in operator(text, node):
                    mutant = text.mutant(edit)
                    found.setdefault(mutant.source, mutant)
    found.pop(text.source, None)
    for mutant in found.values():
        ast.parse(mutant.source)
    return sorted(found.values(), key=lambda mutant: mutant.line)


class MutatedFile(SourceFileLoader):
    """Loads one module from a string, and leaves no bytecode."""

    def __init__(self, fullname: str, mutant: Mutant) -> None:
        super().__init__(fullname, str(ROOT / mutant.path))
        self.text = mutant.source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec")


class Finder:
    """Stands first on sys.meta_path for the one module."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = mutant.path.removesuffix(".py").replace("/", ".")
        self.mutant = mutant

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = MutatedFile(fullname, self.mutant)
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


def start(mutant: Mutant | None, tests: Sequence[str], log: str) -> int:
    """Fork a child that runs tests on a mutant (none: the code as it is) and exits as pytest does; return its id."""
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if mutant:
            sys.meta_path.insert(0, Finder(mutant))  # type: ignore[arg-type]
        code = int(sys.modules["pytest"].main([*PYTEST, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def waited(children: dict[int, float]) -> dict[int, int | None]:
    """Wait for one of some children (id -> deadline) at least; return exit codes, None for one that took too long."""
    ended: dict[int, int | None] = {}
    while not ended:
        for child, deadline in children.items():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, 9)
                os.waitpid(child, 0)
                ended[child] = None
        time.sleep(0.02)
    return ended


def verdict(code: int | None) -> str:
    """What pytest's exit code says of a mutant."""
    if code is None:
        return "timed out"
    if code in (3, 4, 5):
        raise SystemExit(f"pytest ended with {code}: not a verdict on the mutant but an error of this script")
    return "killed" if code else "survived"


def baseline(tests: Sequence[str], folder: str) -> float:
    """Check that all tests pass on the code as it is; return the seconds that they took."""
    log, begun = f"{folder}/baseline", time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(start(None, tests, log), 0)[1])
    if code:
        raise SystemExit(f"{Path(log).read_text()}\nthe tests fail on the code as it is: no mutant was tried")
    return time.monotonic() - begun


def run(chosen: list[Mutant], jobs: int, console: Console) -> dict[Mutant, str]:
    """Return the verdict on every mutant: killed, timed out or survived."""
    tests = list(dict.fromkeys(test for mutant in chosen for test in TARGETS[mutant.path][1]))
    verdicts: dict[Mutant, str] = {}
    running: dict[int, tuple[Mutant, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        limit = 30 + 4 * baseline(tests, folder)
        waiting = iter(chosen)
        with console.status("") as status:
            while len(verdicts) < len(chosen):
                while len(running) < jobs and (mutant := next(waiting, None)):
                    child = start(mutant, TARGETS[mutant.path][1], f"{folder}/{len(verdicts)}")
                    running[child] = mutant, time.monotonic() + limit
                for child, code in waited({child: deadline for child, (_, deadline) in running.items()}).items():
                    verdicts[running.pop(child)[0]] = verdict(code)
                status.update(f"{len(verdicts)} of {len(chosen)}")
    return verdicts


def import_once() -> None:
    """Import what every child needs and no mutant touches; one thread, as a fork copies no other.

    What is frozen is left alone by a child's garbage collector, which would make the child copy most of the memory.
    """
    os.chdir(ROOT)
    os.environ.update(ENVIRONMENT)
    for name in (*HEAVY, *SLOW_IMPORTS):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.freeze()


def table(verdicts: dict[Mutant, str]) -> Table:
    """Return the counts by file."""
    shown = Table("file", title="Mutants", title_justify="left")
    for heading in ("mutants", "killed", "survived"):
        shown.add_column(heading, justify="right")
    for path in dict.fromkeys(mutant.path for mutant in verdicts):
        own = [verdict for mutant, verdict in verdicts.items() if mutant.path == path]
        survived = own.count("survived")
        shown.add_row(path, str(len(own)), str(len(own) - survived), str(survived))
    return shown


def describe(mutant: Mutant, remark: str) -> str:
    return f"{mutant.path}:{mutant.line} {remark}\n  - {mutant.before}\n  + {mutant.after}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="*", help="keep the files whose names contain this")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")
    return parser.parse_args()


def main() -> int:
    options, begun = parsed(), time.monotonic()
    paths = [path for path in TARGETS if not options.path or any(part in path for part in options.path)]
    found = [mutant for path in paths for mutant in mutants(path)]
    stale = [key for key in EQUIVALENT if key[0] in paths and key not in {(m.path, m.after) for m in found}]
    if stale or not found:
        raise SystemExit(f"no such mutant: {stale or options.path}")
    chosen = [mutant for mutant in found if not mutant.equivalent]
    if options.list:
        for mutant in found:
            print(describe(mutant, f"equivalent: {mutant.equivalent}" if mutant.equivalent else ""))
        print(f"{len(chosen)} mutants, {len(found) - len(chosen)} left out as equivalent")
        return 0
    console = Console()
    import_once()
    verdicts = run(chosen, options.jobs, console)
    console.print(table({mutant: verdicts[mutant] for mutant in chosen}))
    for mutant in chosen:
        if verdicts[mutant] != "killed":
            print(describe(mutant, verdicts[mutant]))
    survived = list(verdicts.values()).count("survived")
    counts = f"{len(chosen)} mutants, {len(chosen) - survived} killed, {survived} survived"
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    print(f"{counts}, {len(found) - len(chosen)} left out as equivalent, {minutes} min {seconds} s")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
