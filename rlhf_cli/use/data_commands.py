"""`rlhf data inspect` and `rlhf data convert`: rows looked at as a run would read them, and written in one format."""

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

inspect reads rows as a run would, and shows their format, three of them as the model sees them, lengths in tokens,
duplicates, prompts on both sides, and every row that is left out or refused (the first N of a side, 20). Tokens are
those of `conf=` or `model.path=`, else of the built-in `bytes`. Exit code 3 where training would refuse them, else 0.

convert writes rows of any format as one: {"prompt": messages, "chosen": ..., "rejected": ...}, a ranking as
{"prompt": messages, "completions": [{"response": ..., "rating": ...}]}; without `for=` the rows say what they are.

TRAIN, EVAL and IN are files, patterns, folders or Hub ids; keys are those of `data.` and `model.`: data.format=hh.
"""
REFUSED = 3  # exit code
_BAR = 40  # characters of the longest


def run(args: list[str]) -> int:
    """Run `rlhf data ...` and return its exit code."""
    if not args or "--help" in args or "-h" in args:
        print(USAGE, end="")
        return 0
    commands = {"inspect": _inspect, "convert": _convert}
    if args[0] not in commands:
        raise InputError(f"data wants a command: inspect or convert, got {one_line(args[0], 80)}")
    return commands[args[0]](args[1:])


@dataclass(frozen=True)
class _Asked:
    """The words of the command line."""

    paths: list[str]
    keys: list[str]  # of the configuration
    command: str | None
    show: int


def _asked(args: list[str]) -> _Asked:
    own = {"for": "", "show": str(NUM_SHOWN)}
    paths, keys = [], []
    for arg in args:
        name, is_key, value = arg.partition("=")
        if arg.startswith("-"):
            raise InputError(f"unknown option {arg}; see `rlhf data --help`")
        if not is_key:
            paths.append(arg)
        elif name in own:
            own[name] = value
        else:
            keys.append(arg)
    if own["for"] not in ("", *COMMANDS):
        raise InputError(f"for must be {' or '.join(COMMANDS)}, got {own['for']}")
    if not own["show"].isdecimal():
        raise InputError(f"show must be a number of rows, got {own['show']}")
    return _Asked(paths, keys, own["for"] or None, int(own["show"]))


def _composed(asked: _Asked, train: Any, held_out: Any) -> tuple[DataConfig, ModelConfig]:
    """Return the options of data and model; those of the command for which the rows are, where it is not told."""
    if asked.command is not None:
        return _options(asked.command, asked.keys, train, held_out)
    try:
        data, model = _options("train-rm", asked.keys, train, held_out)
    except InputError as error:
        try:
            return _options("train-ppo", asked.keys, train, held_out)
        except InputError:
            raise error from None
    assert isinstance(data, PreferenceDataConfig)
    if _has_answers(data):
        return data, model
    return _options("train-ppo", asked.keys, train, held_out)


def _options(command: str, keys: list[str], train: Any, held_out: Any) -> tuple[DataConfig, ModelConfig]:
    cfg: DictConfig = compose_yaml(command, keys)
    if train is not None:
        cfg.data.train = train
        cfg.data.eval = held_out
    if OmegaConf.is_missing(cfg.data, "train"):
        raise InputError("data: no rows; give a file, or a conf= that names some")
    if cfg.model.path is None and cfg.model.tokenizer is None:
        cfg.model.tokenizer = "bytes"
    data: Any = OmegaConf.to_object(cfg.data)
    model: Any = OmegaConf.to_object(cfg.model)
    return data, model


def _has_answers(config: PreferenceDataConfig) -> bool:
    """Whether the first rows contain answers to compare."""

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


def _inspect(args: list[str]) -> int:
    asked = _asked(args)
    if len(asked.paths) > 2:
        raise InputError(
            "data inspect takes one or two files, TRAIN and EVAL; give more as data.train=[a,b] or a pattern"
        )
    train, held_out = (*asked.paths, None, None)[:2]
    config, model = _composed(asked, train, held_out)
    sides = {"data.train": config.train_sources(), "data.eval": config.eval_sources()}
    for key, sources in sides.items():
        for source in sources:
            resolve_pattern(source.path, key)
    renderer = Renderer(load_tokenizer(model, "model"), config)
    looks = {key: inspect_rows(config, sources, key, renderer, asked.show) for key, sources in sides.items() if sources}
    lines = [f"for {'train-rm' if isinstance(config, PreferenceDataConfig) else 'train-ppo'}, tokens of {_name(model)}"]
    lines += renderer.notes
    for key, look in looks.items():
        lines += ["", f"{key}: {', '.join(source.path for source in sides[key])}", *_described(look, config)]
        lines += _problems(look, asked.show)
    if len(looks) == 2:
        lines += ["", *_both_sides(looks["data.train"], looks["data.eval"], asked.show)]
    lines += _examples(looks["data.train"], renderer)
    refused = [key for key, look in looks.items() if look.is_refused]
    lines += ["", f"a run refuses {' and '.join(refused)}" if refused else "a run takes these rows"]
    print(printable("\n".join(lines)))
    return REFUSED if refused else 0


def _name(model: ModelConfig) -> str:
    return model.tokenizer or model.path or "bytes"


def _described(look: RowInspection, config: DataConfig) -> list[str]:
    lines = [f"  {one_line(message, 2000)}" for message in look.fatal]
    lines += sorted(
        {f"  format {one.name}: {describe_columns(options, one)}" for one, options in look.formats.values()}
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(look.dropped.items()))
    dropped = f"{sum(look.dropped.values())} dropped{f' ({reasons})' if reasons else ''}"
    others = f", {look.num_filtered_out} left out by the filter" if look.num_filtered_out else ""
    lines.append(f"  {look.num_rows} rows: {look.num_kept} kept, {dropped}, {look.num_refused} refused{others}")
    if not look.lengths:
        return lines
    lines.append(
        f"  {len(look.prompts)} distinct prompts; {len(look.duplicates)} duplicate rows{_first(look.duplicates)}"
    )
    if isinstance(config, PreferenceDataConfig) and look.num_kept:
        lines.append(f"  the longer answer wins in {look.num_longer_wins / look.num_kept:.3f} of pairs")
        number = len(look.contradictions)
        lines.append(f"  {number} rows say the opposite of another one{_first(look.contradictions)}")
    for name, lengths in look.lengths.items():
        ordered = sorted(lengths)
        middle, most = quantile(ordered, 0.5), quantile(ordered, 0.95)
        lines.append(f"  tokens, {name}: {ordered[0]} to {ordered[-1]}, median {middle}, 95 % up to {most}")
        lines += _bars(histogram(lengths))
    return lines


def _first(places: list[tuple[str, str]]) -> str:
    """Return the first of some pairs of places, to look at."""
    return f" (first: {places[0][0]} and {places[0][1]})" if places else ""


def _bars(bins: list[tuple[int, int, int]]) -> list[str]:
    most = max(count for _, _, count in bins)
    width = len(str(bins[-1][1]))
    return [f"    {low:{width}}-{high:{width}} {'#' * -(-count * _BAR // most)} {count}" for low, high, count in bins]


def _problems(look: RowInspection, show: int) -> list[str]:
    if not look.problems:
        return []
    lines = [f"  {one_line(one.place, 200)}: {one.what}{'' if one.refused else ' -> dropped'}" for one in look.problems]
    more = sum(look.dropped.values()) + look.num_refused - len(look.problems)
    lines += [f"  … and {more} more; show=N shows more than {show}"] if more else []
    return ["  rows that are left out or refused:", *(f"  {line}" for line in lines)]


def _both_sides(train: RowInspection, held_out: RowInspection, show: int) -> list[str]:
    shared = shared_prompts(train, held_out)
    lines = [f"{len(shared)} prompts are on both sides"]
    lines += [f"  {first} has the prompt of {second}" for first, second in shared[:show]]
    return lines


def _examples(look: RowInspection, renderer: Renderer) -> list[str]:
    lines: list[str] = []
    for place, example in look.examples:
        lines += ["", f"{place}, as the model sees it:"]
        for name, text in rendered_texts(example, renderer):
            first, *others = text.split("\n")
            lines += [f"  {name:8} | {first}", *(f"  {'':8} | {line}" for line in others)]
    return lines


def _convert(args: list[str]) -> int:
    asked = _asked(args)
    *sources, target = asked.paths or [""]
    if not sources:
        raise InputError("data convert wants IN ... OUT.jsonl; see `rlhf data --help`")
    config, _ = _composed(asked, sources, None)
    for note in export_rows(config, target):
        print(printable(note))
    return 0
