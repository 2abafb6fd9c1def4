"""Mutation tests of the mathematics: change one token of the code; one of the unit tests must fail.

Each file in TARGETS has the unit tests that cover it. A mutant that no test could tell from the original code is listed
in EQUIVALENT with the reason. No file is written: torch, transformers and DeepSpeed are imported once, without the
package. A forked child compiles one mutant in memory and runs pytest up to the first failure. The exit code is 1 if a
mutant survives. Linux only.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.util
import os
import re
import resource
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

sys.path.insert(0, str(Path(__file__).resolve().parent))

from sample import REPOSITORY, add_sample_options, sampled

ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
IMPORTED_ONCE = (
    *("torch", "deepspeed", "datasets", "hydra", "transformers", "rich.progress", "pytest"),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "gpt_neox", "llama", "qwen2")),
)
# plain assertions: pytest would warn that the imported plugins are too late to be rewritten
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
# file -> the functions and classes to mutate (none: all of them), and the tests of the file, fastest first
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
        ("CausalAttention", "_blocks", "attend_one_token", "attention"),
        ("tests/unit/models/cpu/test_attention.py",),
    ),
    "rlhf_cli/engine/distributed.py": (
        ("share", "balanced_share", "pad_to_same_count", "pad_to_ranks"),
        ("tests/unit/engine/test_distributed.py", *TRAIN),
    ),
    "rlhf_cli/engine/plain.py": (("_add_gradient", "_update", "_scaled"), ("tests/unit/engine/test_plain.py",)),
    "rlhf_cli/rollout/kv_cache.py": (("PreallocatedLayer",), ROLLOUT),
    "rlhf_cli/rollout/embedded.py": (("sample", "_decode", "_all_ended", "_DecodingRows"), ROLLOUT),
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
    **{f"rlhf_cli/train/{name}.py": ((), TRAIN) for name in ("batch", "shaping", "ppo_metrics")},
    "rlhf_cli/train/flops.py": (("work",), TRAIN),
    "rlhf_cli/train/ppo.py": (
        (
            *("_next_state", "collect", "score", "estimate", "update", "_minibatches", "_accumulate", "_can_reuse"),
            *("_first_pass", "_policy_gradients", "_policy_backward", "policy_objective", "_value_backward"),
            *("_pretrain", "_warn_of_negative_kl", "normalise", "_skip_failed_rewards"),
        ),
        TRAIN,
    ),
    "rlhf_cli/train/forward.py": (
        (
            *("group_rows", "micro_batches", "map_micro_batches", "logits", "policy_outputs", "logprobs_and_entropy"),
            *("logprobs", "values", "map_logprobs", "collate", "take_count"),
        ),
        TRAIN,
    ),
    "rlhf_cli/train/reward.py": (
        (
            *("num_steps", "Pairs", "mean_weight", "_batch", "update", "_accumulate", "_micro_batches", "evaluate"),
            "calibrate",
            *("_pairs", "_scores", "_hidden", "_forward", "_over_all", "_as_one_text"),
        ),
        TRAIN[1:],
    ),
}

ADVANTAGES, LOSSES, NORMALISE, PACKING, SAMPLING = (
    f"rlhf_cli/algo/{name}.py" for name in ("advantages", "losses", "normalise", "packing", "sampling")
)
PPO, REWARD, TOKENS = "rlhf_cli/train/ppo.py", "rlhf_cli/train/reward.py", "rlhf_cli/data/token_batches.py"
PLAIN, CACHE = "rlhf_cli/engine/plain.py", "rlhf_cli/rollout/kv_cache.py"
DEVIATIONS = "the deviations sum to 0, so adding a multiple of the mean to them changes nothing"
FLAT = "the tensors have two dimensions: the last is number 1"
NOTHING = "both have no tokens"
FOUR = "the tensors have four dimensions: the last but one is number 2"
# (file, mutated line) -> why no test can distinguish it from the original
EQUIVALENT: dict[tuple[str, str], str] = {
    (ADVANTAGES, "advantages = torch.ones_like(values)"): "every column is written before it is read",
    (LOSSES, "return torch.where(advantages <= 0, torch.minimum(loss, -dual_clip * advantages), loss)"): (
        "at an advantage of 0 both losses are 0 and have no gradient"
    ),
    (PACKING, "prefix = common_prefix_length(previous, text)"): "the result does not depend on the order",
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
    (PLAIN, "wide = gradient.to(torch.promote_types(dtype, gradient.dtype))"): "promotion does not depend on the order",
    (PLAIN, "return (wide.mul_(factor) if factor <= 1 else wide).to(dtype)"): "multiplying by 1 changes nothing",
    (CACHE, "end = self.length + key_states.shape[2]"): FOUR,
    (CACHE, "self.keys, self.values = key_states[..., 1:0, :], value_states[..., :0, :]"): NOTHING,
    (CACHE, "self.keys, self.values = key_states[..., :0, :], value_states[..., 1:0, :]"): NOTHING,
    (CACHE, "self.keys, self.values = key_states[..., :0, :], value_states[..., :1, :]"): (
        "values are reallocated with the keys, and no token is held yet"
    ),
    (CACHE, "if end > self.keys.shape[2]:"): FOUR,
    (CACHE, "larger = held.new_zeros((*held.shape[:2], tokens, held.shape[-1]))"): FOUR,
    (REWARD, "losses = preference_loss(scores[self.better], self.margin, scores[self.worse], self.confidence)"): (
        "both are subtracted from the better score"
    ),
    (
        REWARD,
        "losses = centering_loss(scores[self.worse], scores[self.better])",
    ): "it squares the sum of the two scores",
}


@dataclass(frozen=True)
class Edit:
    """Replace the characters from start to end of a file."""

    start: int
    end: int
    new: str


@dataclass(frozen=True)
class Mutant:
    """A file with one edit; before and after are the changed line on one line each."""

    path: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}\n  - {self.before}\n  + {self.after}"


class SourceText:
    """The text of an ASCII source file, addressed by syntax node."""

    def __init__(self, path: str) -> None:
        self.path, self.source = path, (REPOSITORY / path).read_text("ascii")
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", self.source))]

    def span(self, node: Any) -> tuple[int, int]:
        """Return the offsets of a node's first character and of the one after its last."""
        start, end = self.line_starts[node.lineno - 1], self.line_starts[node.end_lineno - 1]
        return start + node.col_offset, end + node.end_col_offset

    def of(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end]

    def replace(self, node: ast.AST, new: str) -> Edit:
        return Edit(*self.span(node), new)

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> Edit:
        """Replace the operator between two operands."""
        start = self.source.index(old, self.span(left)[1], self.span(right)[0])
        return Edit(start, start + len(old), new)

    def mutant(self, edit: Edit) -> Mutant:
        source = self.source[: edit.start] + edit.new + self.source[edit.end :]
        first = self.source.rindex("\n", 0, edit.start) + 1
        before = self.source[first : self.source.index("\n", edit.end)]
        after = source[first : source.index("\n", edit.start + len(edit.new))]
        line = self.source.count("\n", 0, first) + 1
        return Mutant(self.path, line, " ".join(before.split()), " ".join(after.split()), source)


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
    **{"zeros_like": "ones_like", "logsigmoid": "sigmoid", "expm1": "exp", "rsqrt": "sqrt"},
    "masked_mean": "masked_sum",
}
DROPPED_METHODS = {"square", "sqrt", "exp", "expm1", "flip", "clamp", "sign", "scatter_add", "masked_fill"}
DROPPED_KEYWORDS = {"keepdim", "correction", "shift_mean", "right", "descending"}
KEPT_KEYWORDS = {"strict", "device", "dtype", "dim"}  # not mathematics; for dim see other_keyword
REDUCTIONS = {"masked_sum", "masked_mean", "masked_whiten"}
UNSWAPPED = {"min", "max", "minimum", "maximum", "map", "zip", "getattr"}  # symmetric, or an error in any case


def called(node: ast.Call) -> str:
    """Return the name of the called function or method."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


Operator = Callable[[SourceText, Any], Iterator[Edit]]


def other_operator(text: SourceText, node: ast.BinOp) -> Iterator[Edit]:
    """a + b -> a - b and so on, except for lists."""
    if any(isinstance(side, ast.List) or text.of(side).startswith("list(") for side in (node.left, node.right)):
        return
    for kind, (old, new) in {**ARITHMETIC, **BITWISE}.items():
        if isinstance(node.op, kind):
            yield text.between(node.left, node.right, old, new)


def other_assignment(text: SourceText, node: ast.AugAssign) -> Iterator[Edit]:
    """a += b -> a -= b and so on; also a = b."""
    for kind, (old, new) in {**ARITHMETIC, **BITWISE}.items():
        if isinstance(node.op, kind):
            yield text.between(node.target, node.value, old, new)
            yield text.between(node.target, node.value, old, "")


def other_comparison(text: SourceText, node: ast.Compare) -> Iterator[Edit]:
    """a < b -> a <= b, a > b and so on."""
    old, others = COMPARISONS[type(node.ops[0])]
    for new in others:
        yield text.between(node.left, node.comparators[0], old, new)


def and_or(text: SourceText, node: ast.BoolOp) -> Iterator[Edit]:
    """a and b -> a or b, and the reverse."""
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    yield text.between(node.values[0], node.values[1], old, new)


def without_sign(text: SourceText, node: ast.UnaryOp) -> Iterator[Edit]:
    """-a -> a, ~a -> a, not a -> a."""
    start, sign = text.span(node)[0], UNARY[type(node.op)]
    yield Edit(start, start + len(sign), "")


def other_constant(text: SourceText, node: ast.Constant) -> Iterator[Edit]:
    """True -> False, 0 -> 1, 1 -> 0 and 2; other integers are increased by 1, other floats doubled."""
    if isinstance(node.value, bool):
        yield text.replace(node, str(not node.value))
    elif isinstance(node.value, int | float):
        kind = type(node.value)
        others = {0: (1,), 1: (0, 2)}.get(node.value, (node.value * 2 if kind is float else node.value + 1,))
        for other in others:
            yield text.replace(node, repr(kind(other)))


def other_name(text: SourceText, node: ast.Call) -> Iterator[Edit]:
    """torch.minimum(...) -> torch.maximum(...), min(...) -> max(...) and so on."""
    name, end = called(node), text.span(node.func)[1]
    if name in OTHER_NAMES and (isinstance(node.func, ast.Attribute) or name != "mean"):
        yield Edit(end - len(name), end, OTHER_NAMES[name])


def other_call(text: SourceText, node: ast.Call) -> Iterator[Edit]:
    """f(a, b) -> f(b, a); x.square() -> x; reversed(x) -> x; where(c, a, b) -> a; masked_sum(x, 1)."""
    name = called(node)
    if name not in UNSWAPPED and not text.of(node.func).startswith("self."):  # swapping those is always an error
        yield from swapped(text, node.args[name == "where" :])
    if isinstance(node.func, ast.Attribute) and name in DROPPED_METHODS and text.of(node.func.value) != "torch":
        yield Edit(text.span(node.func)[1] - len(name) - 1, text.span(node)[1], "")
    if name == "reversed":
        yield text.replace(node, text.of(node.args[0]))
    if name == "where":
        yield text.replace(node, f"({text.of(node.args[1])})")
    if name in REDUCTIONS:
        yield text.replace(node.args[1], f"torch.ones_like({text.of(node.args[1])})")


def other_keyword(text: SourceText, node: ast.Call) -> Iterator[Edit]:
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


def other_order(text: SourceText, node: ast.Tuple | ast.List) -> Iterator[Edit]:
    """(a, b, c) -> (b, a, c) and (a, c, b)."""
    if isinstance(node.ctx, ast.Load) and len(node.elts) > 2:
        yield from swapped(text, node.elts)


def swapped(text: SourceText, items: Sequence[ast.expr]) -> Iterator[Edit]:
    """Swap two neighbours if both are names, attributes or subscripts."""
    for left, right in pairwise(items):
        if all(isinstance(item, ast.Name | ast.Attribute | ast.Subscript) for item in (left, right)):
            (start, stop), (again, end) = text.span(left), text.span(right)
            yield Edit(start, end, text.of(right) + text.source[stop:again] + text.of(left))


def other_bounds(text: SourceText, node: ast.Slice) -> Iterator[Edit]:
    """[a:b] -> [a + 1:b], [a:b - 1], [1:b]; other_constant changes numbers."""
    if node.lower is not None and not isinstance(node.lower, ast.Constant):
        yield text.replace(node.lower, f"{text.of(node.lower)} + 1")
    if node.upper is not None and not isinstance(node.upper, ast.Constant | ast.UnaryOp):
        yield text.replace(node.upper, f"{text.of(node.upper)} - 1")
    if node.upper is not None and node.lower is None:
        start = text.span(node)[0]
        yield Edit(start, start, "1")


def other_branch(text: SourceText, node: ast.If | ast.IfExp | ast.While) -> Iterator[Edit]:
    """if a -> if not (a); other_comparison inverts comparisons."""
    if not isinstance(node.test, ast.Compare):
        yield text.replace(node.test, f"(not ({text.of(node.test)}))")


def other_jump(text: SourceText, node: ast.Break) -> Iterator[Edit]:
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
    """Yield a node and its descendants, except decorators, annotations, assertions and f-strings."""
    if isinstance(node, SKIPPED) or (isinstance(node, ast.keyword) and node.arg in KEPT_KEYWORDS):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("decorator_list", "annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from nodes(child)


def mutants(path: str) -> list[Mutant]:
    """Return all mutants of a file in line order; raise ValueError if TARGETS names an unknown function or test."""
    text, (wanted, tests) = SourceText(path), TARGETS[path]
    tree = ast.parse(text.source)
    tops = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in wanted]
    unknown = [
        *sorted(set(wanted) - {node.name for node in tops}),
        *(t for t in tests if not (REPOSITORY / t).exists()),
    ]
    if unknown:
        raise ValueError(f"TARGETS[{path!r}]: {', '.join(unknown)} does not exist; correct scripts/mutate.py")
    found: dict[str, Mutant] = {}
    for node in (below for top in tops or [tree] for below in nodes(top)):
        for operator in OPERATORS.get(type(node), ()):
            for edit in operator(text, node):
                mutant = text.mutant(edit)
                ast.parse(mutant.source)
                found.setdefault(mutant.source, mutant)
    found.pop(text.source, None)
    return sorted(found.values(), key=lambda mutant: mutant.line)


def all_mutants(paths: Sequence[str]) -> list[Mutant]:
    """Return the mutants of some target files; raise SystemExit if TARGETS or EQUIVALENT is out of date."""
    found, errors = [], []
    for path in paths:
        try:
            found += mutants(path)
        except (OSError, ValueError) as error:
            errors.append(str(error))
    lines = {(mutant.path, mutant.after) for mutant in found}
    for path, line in EQUIVALENT:
        if path not in TARGETS or (path in paths and (path, line) not in lines):
            errors.append(f"EQUIVALENT[{path!r}]: this line is no mutant; correct scripts/mutate.py: {line}")
    if errors or not found:
        raise SystemExit("\n".join(errors) or "no file in TARGETS matches PATH")
    return found


class MutantLoader(SourceFileLoader):
    """Finds and loads one module from the mutated source, and leaves no bytecode."""

    def __init__(self, mutant: Mutant) -> None:
        name = mutant.path.removesuffix(".py").replace("/", ".")
        super().__init__(name, str(REPOSITORY / mutant.path))
        self.text = mutant.source

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec")


def start(mutant: Mutant | None, tests: Sequence[str], folder: str, limit_s: int | None = None) -> int:
    """Fork a child that runs tests on a mutant, or on the original code, with limited CPU time; return its id.

    The child exits as pytest does and writes its output to a file in folder that has its id as name.
    """
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        output = os.open(f"{folder}/{os.getpid()}", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if limit_s:
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
        if mutant:
            sys.meta_path.insert(0, MutantLoader(mutant))  # type: ignore[arg-type]
        code = int(sys.modules["pytest"].main([*PYTEST, *tests]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(folder: str) -> tuple[int, int]:
    """Wait for any child; return its id and exit code, or raise SystemExit if pytest itself failed."""
    child, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    if code in (3, 4, 5):  # internal error, usage error, no tests; 2: the mutant cannot be imported; negative: a signal
        output = Path(folder, str(child)).read_text("utf-8")
        raise SystemExit(f"{output}\npytest ended with exit code {code}: this is an error of the script or its tests")
    return child, code


def survivors(chosen: Sequence[Mutant], jobs: int) -> list[Mutant]:
    """Run the tests of every mutant; return those on which all tests pass."""
    waiting, running, survived = list(reversed(chosen)), {}, []
    with tempfile.TemporaryDirectory() as folder:
        tests = list(dict.fromkeys(test for mutant in chosen for test in TARGETS[mutant.path][1]))
        first = start(None, tests, folder)
        if wait(folder)[1]:
            output = Path(folder, str(first)).read_text("utf-8")
            raise SystemExit(f"{output}\nthe tests fail on the original code: no mutant was tried")
        limit_s = 30 + round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime)  # of CPU time
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                running[start(mutant, TARGETS[mutant.path][1], folder, limit_s)] = mutant
            child, code = wait(folder)
            mutant = running.pop(child)
            if code == 0:
                survived.append(mutant)
                print(f"survived: {mutant}", flush=True)
            if sys.stderr.isatty():
                print(f"\r{len(chosen) - len(waiting) - len(running)} of {len(chosen)} ", end="", file=sys.stderr)
    return survived


def import_once() -> None:
    """Import what every child needs and no mutant changes; use one thread, because a fork copies only one.

    The frozen objects are left alone by a child's garbage collector, which would otherwise copy most of the memory.
    """
    os.chdir(REPOSITORY)
    os.environ.update(ENVIRONMENT)
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.freeze()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="*", help="limit the run to files whose path contains this text")
    parser.add_argument("--jobs", type=int, default=2, help="number of mutants tested at a time (default: 2)")
    parser.add_argument("--check", action="store_true", help="validate TARGETS and EQUIVALENT; run no test")
    parser.add_argument("--list", action="store_true", help="print every mutant; run no test")
    add_sample_options(parser)
    return parser.parse_args()


def main() -> int:
    options, begun = parsed(), time.monotonic()
    found = all_mutants([path for path in TARGETS if not options.path or any(part in path for part in options.path)])
    chosen = [mutant for mutant in found if (mutant.path, mutant.after) not in EQUIVALENT]
    counts = f"{len(chosen)} mutants, {len(found) - len(chosen)} more are equivalent to the original"
    if options.list:
        print(*found, sep="\n")
    if options.list or options.check:
        print(counts)
        return 0
    import_once()
    chosen = sampled(chosen, options)
    survived = survivors(chosen, options.jobs)
    for path in dict.fromkeys(mutant.path for mutant in chosen):
        total, lived = (sum(mutant.path == path for mutant in group) for group in (chosen, survived))
        print(f"{path:40} {total:4} mutants {total - lived:4} killed {lived:3} survived")
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    print(f"{len(chosen)} mutants run, {len(survived)} survived; {minutes} min {seconds} s")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
