"""`rlhf data`: shows rows as a run reads them, or converts rows of any format to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rlhf_cli.config.compose import compose_yaml
from rlhf_cli.config.data_sources import Format
from rlhf_cli.config.errors import InputError
from rlhf_cli.config.paths import resolve_pattern
from rlhf_cli.config.schema import COMMANDS
from rlhf_cli.config.sections import DataConfig, ModelConfig, PreferenceDataConfig, RowPolicy
from rlhf_cli.data.bad_rows import NUM_SHOWN, BadRow, Row
from rlhf_cli.data.conversation import Renderer
from rlhf_cli.data.detect_format import NUM_DETECTED, describe_columns
from rlhf_cli.data.export_rows import export_rows
from rlhf_cli.data.inspect_rows import RowInspection, histogram, inspect_rows, quantile, rendered_texts, shared_prompts
from rlhf_cli.data.row_formats import read_comparison
from rlhf_cli.data.row_pipeline import Conversion, files_of
from rlhf_cli.models.load_tokenizer import load_tokenizer
from rlhf_cli.system.text import one_line, printable

USAGE = """\
usage: rlhf data inspect TRAIN [EVAL] [conf=NAME | conf=FILE.yaml] [for=train-rm|train-ppo] [show=N] [key=value ...]
       rlhf data convert IN ... OUT.jsonl [for=train-rm|train-ppo] [key=value ...]

inspect reads rows as a run does. It shows their format, three examples as the model sees them, lengths in tokens,
duplicates, prompts that are in both TRAIN and EVAL, and each row that is dropped or refused (the first N per side,
default 20). The tokenizer comes from `conf=` or `model.path=`; the default is the built-in `bytes`. The exit code is
3 if a run would refuse the rows, else 0.

convert writes pairs as {"prompt": messages, "chosen": ..., "rejected": ...}, and rankings as
{"prompt": messages, "completions": [{"response": ..., "rating": ...}]}. Without `for=` the rows decide what they are.

TRAIN, EVAL and IN are files, patterns, folders or Hub ids. Keys are options of `data.` and `model.`,
such as data.format=hh.
"""
REFUSED = 3  # exit code
_MAX_BAR = 40  # characters


def run(args: list[str]) -> int:
    """Run `rlhf data ...` and return its exit code."""
    if not args or "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    commands = {"inspect": _inspect, "convert": _convert}
    if args[0] not in commands:
        raise InputError(f"rlhf data must be followed by inspect or convert, got {one_line(args[0], 80)}")
    return commands[args[0]](_DataArguments.parse(args[1:]))


@dataclass(frozen=True)
class _DataArguments:
    """The command line."""

    paths: list[str]
    keys: list[str]  # of the configuration
    command: str | None  # for which the rows are
    num_shown: int

    @staticmethod
    def parse(args: list[str]) -> _DataArguments:
        options = {"for": "", "show": str(NUM_SHOWN)}
        paths, keys = [], []
        for arg in args:
            name, is_key, value = arg.partition("=")
            if arg.startswith("-"):
                raise InputError(f"unknown option {arg}; see `rlhf data --help`")
            if not is_key:
                paths.append(arg)
            elif name in options:
                options[name] = value
            else:
                keys.append(arg)
        if options["for"] not in ("", *COMMANDS):
            raise InputError(f"for must be {' or '.join(COMMANDS)}, got {options['for']}")
        if not options["show"].isdecimal():
            raise InputError(f"show must be a number of rows, got {options['show']}")
        return _DataArguments(paths, keys, options["for"] or None, int(options["show"]))

    def compose(self, train: Any, held_out: Any) -> tuple[DataConfig, ModelConfig]:
        """Return the options of data and model; without a command, the rows decide which one."""
        if self.command is not None:
            return self._options_of(self.command, train, held_out)
        try:
            data, model = self._options_of("train-rm", train, held_out)
        except InputError as error:
            try:
                return self._options_of("train-ppo", train, held_out)
            except InputError:
                raise error from None
        assert isinstance(data, PreferenceDataConfig)
        return (data, model) if _has_answers(data) else self._options_of("train-ppo", train, held_out)

    def _options_of(self, command: str, train: Any, held_out: Any) -> tuple[DataConfig, ModelConfig]:
        cfg: DictConfig = compose_yaml(command, self.keys)
        if train is not None:
            cfg.data.train = train
            cfg.data.eval = held_out
        if OmegaConf.is_missing(cfg.data, "train"):
            raise InputError("no rows to read; give a file, or a conf= that sets data.train")
        if cfg.model.path is None and cfg.model.tokenizer is None:
            cfg.model.tokenizer = "bytes"
        data: Any = OmegaConf.to_object(cfg.data)
        model: Any = OmegaConf.to_object(cfg.model)
        return data, model


def _has_answers(config: PreferenceDataConfig) -> bool:
    """Return whether the first rows have answers to compare."""

    def prepare(options: PreferenceDataConfig, row_format: Format) -> tuple[dict[str, str], Callable[[Row], bool]]:
        named = {options.chosen_column, options.rejected_column, options.ranking_column}

        def convert(row: Row) -> bool:
            if not named & row.keys():  # those columns mean answers, even if their contents are bad
                read_comparison(row, options, row_format)
            return True

        return {}, convert

    try:
        conversion = Conversion(files_of(config, config.train_sources()[0], "data.train")[0], prepare)
        first = [row for _, row in islice(conversion, NUM_DETECTED)]
    except InputError:
        return True  # reading the rows will report the error
    return any(not isinstance(row, BadRow) or row.policy is RowPolicy.drop for row in first)


def _inspect(arguments: _DataArguments) -> int:
    if len(arguments.paths) > 2:
        raise InputError(
            "data inspect takes one or two files, TRAIN and EVAL; for more, set data.train=[a,b] or give a pattern"
        )
    train, held_out = (*arguments.paths, None, None)[:2]
    config, model = arguments.compose(train, held_out)
    sides = {"data.train": config.train_sources(), "data.eval": config.eval_sources()}
    for key, sources in sides.items():
        for source in sources:
            resolve_pattern(source.path, key)
    renderer = Renderer(load_tokenizer(model, "model"), config)
    found = {
        key: inspect_rows(config, sources, key, renderer, arguments.num_shown)
        for key, sources in sides.items()
        if sources
    }
    command = "train-rm" if isinstance(config, PreferenceDataConfig) else "train-ppo"
    lines = [f"for {command}, tokens of {model.tokenizer or model.path or 'bytes'}", *renderer.notes]
    for key, rows in found.items():
        lines += ["", f"{key}: {', '.join(source.path for source in sides[key])}", *_summary(rows, config)]
        lines += _problems(rows, arguments.num_shown)
    if len(found) == 2:
        shared = shared_prompts(found["data.train"], found["data.eval"])
        lines += ["", f"{len(shared)} prompts are on both sides"]
        lines += [f"  {first} has the prompt of {second}" for first, second in shared[: arguments.num_shown]]
    lines += _examples(found["data.train"], renderer)
    refused = [key for key, rows in found.items() if rows.is_refused]
    lines += ["", f"a run refuses {' and '.join(refused)}" if refused else "a run accepts these rows"]
    print(printable("\n".join(lines)))
    return REFUSED if refused else 0


def _summary(rows: RowInspection, config: DataConfig) -> list[str]:
    lines = [f"  {one_line(message, 2000)}" for message in rows.fatal]
    lines += sorted({f"  format {one.name}: {describe_columns(own, one)}" for one, own in rows.formats.values()})
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rows.dropped.items()))
    dropped = f"{sum(rows.dropped.values())} dropped{f' ({reasons})' if reasons else ''}"
    others = f", {rows.num_filtered_out} left out by the filter" if rows.num_filtered_out else ""
    lines.append(f"  {rows.num_rows} rows: {rows.num_kept} kept, {dropped}, {rows.num_refused} refused{others}")
    if not rows.lengths:
        return lines
    duplicates, contradictions = rows.duplicates, rows.contradictions
    lines.append(f"  {len(rows.prompts)} distinct prompts; {len(duplicates)} duplicate rows{_first_of(duplicates)}")
    if isinstance(config, PreferenceDataConfig) and rows.num_kept:
        lines.append(f"  the longer answer wins in {rows.num_longer_wins / rows.num_kept:.3f} of pairs")
        lines.append(f"  {len(contradictions)} rows contradict another row{_first_of(contradictions)}")
    for name, lengths in rows.lengths.items():
        ordered = sorted(lengths)
        median, high = quantile(ordered, 0.5), quantile(ordered, 0.95)
        lines.append(f"  tokens, {name}: {ordered[0]} to {ordered[-1]}, median {median}, 95 % up to {high}")
        lines += _bars(histogram(lengths))
    return lines


def _first_of(places: list[tuple[str, str]]) -> str:
    return f" (first: {places[0][0]} and {places[0][1]})" if places else ""


def _bars(bins: list[tuple[int, int, int]]) -> list[str]:
    most = max(count for _, _, count in bins)
    width = len(str(bins[-1][1]))
    scaled = [(low, high, count, -(-count * _MAX_BAR // most)) for low, high, count in bins]
    return [f"    {low:{width}}-{high:{width}} {'#' * length} {count}" for low, high, count, length in scaled]


def _problems(rows: RowInspection, num_shown: int) -> list[str]:
    if not rows.problems:
        return []
    lines = ["  dropped or refused rows:"]
    for problem in rows.problems:
        outcome = "" if problem.refused else " -> dropped"
        lines.append(f"    {one_line(problem.place, 200)}: {problem.what}{outcome}")
    more = sum(rows.dropped.values()) + rows.num_refused - len(rows.problems)
    return [*lines, f"    … and {more} more; show=N shows more than {num_shown}"] if more else lines


def _examples(rows: RowInspection, renderer: Renderer) -> list[str]:
    lines: list[str] = []
    for place, example in rows.examples:
        lines += ["", f"{place}, as the model sees it:"]
        for name, text in rendered_texts(example, renderer):
            first, *others = text.split("\n")
            lines += [f"  {name:8} | {first}", *(f"  {'':8} | {line}" for line in others)]
    return lines


def _convert(arguments: _DataArguments) -> int:
    *sources, target = arguments.paths or [""]
    if not sources:
        raise InputError("data convert must be followed by IN ... OUT.jsonl; see `rlhf data --help`")
    config, _ = arguments.compose(sources, None)
    for note in export_rows(config, target):
        print(printable(note))
    return 0
