"""`rlhf score`: scores given responses, and shows how well a reward agrees with their ranking."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from rlhf_cli.config.errors import InputError
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.report import calibration
from rlhf_cli.report.intervals import Interval, bootstrap_mean
from rlhf_cli.report.run_dir import PAIRS, lines_of
from rlhf_cli.report.run_records import Record
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable
from rlhf_cli.use.commands import ScoreOptions
from rlhf_cli.use.evaluate import make_table
from rlhf_cli.use.input_rows import RESPONSE, RankedRow, read_rankings, read_single_responses
from rlhf_cli.use.response_scorer import ResponseScorer
from rlhf_cli.use.responses import plain_prompt, with_columns, write_json_lines

_PAIR_COLUMNS = {"chosen_column", "rejected_column", "ranking_column"}  # one of them makes every row a ranking


def run(options: ScoreOptions) -> None:
    """Score the rows, show a summary, and write the scores."""
    is_ranked = options.response_column is None and not _PAIR_COLUMNS.isdisjoint(options.columns)
    rows = None if is_ranked else read_single_responses(options.rows, options.response_column)
    notes: list[str] = []
    if rows is None:
        rankings, notes = read_rankings(options.rows, options.columns)
        scale = options.scale or _scale_of_run(options) or 1.0
    else:
        _refuse_pair_options(options)
    with closing(ResponseScorer.open(options.reward)) as scorer:
        if rows is None:
            records = score_pairs(scorer, rankings, scale)
            table = _pairs_table(scorer.name, records, scale)
        else:
            records = _score_singles(scorer, rows, options.response_column or RESPONSE)
            table = _singles_table(scorer.name, records)
    for note in notes:
        print(printable(note))
    console().print(table)
    if options.out is not None:
        write_json_lines(options.out, records)
        print(printable(f"{len(records)} {'pairs' if rows is None else 'responses'}: {options.out}"))


def _refuse_pair_options(options: ScoreOptions) -> None:
    given = [*options.columns, *(["scale"] if options.scale is not None else [])]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise InputError(f"{option} is for pairs, but each row of {options.rows.path} has one response; leave it out")


def score_pairs(scorer: ResponseScorer, rows: Sequence[RankedRow], scale: float) -> list[Record]:
    """Score each response once; return the scored pairs in the form of a run's pairs.jsonl.

    Each record also has the conversation and the row's other columns. scale: log odds per
    point of score.
    """
    exchanges = [Exchange(row.messages, response, row.columns) for row in rows for response in row.responses]
    scores = iter(scorer.score(exchanges))
    records = []
    for row in rows:
        row_scores = [next(scores) for _ in row.responses]
        for better, worse in row.pairs:
            fields = {
                "prompt": plain_prompt(row.messages),
                "chosen": row.responses[better],
                "rejected": row.responses[worse],
                "score_chosen": row_scores[better],
                "score_rejected": row_scores[worse],
                "log_odds": scale * (row_scores[better] - row_scores[worse]),
                "weight": 1 / len(row.pairs),
                "category": row.category,
            }
            records.append(with_columns(fields, row.columns))
    return records


def _scale_of_run(options: ScoreOptions) -> float | None:
    model = options.reward.model
    return None if model is None or model.run is None else fitted_scale(model.run)


def fitted_scale(run: Path) -> float | None:
    """Return the log odds per point of score, fitted to the pairs that a run scored.

    A run normalises the scores of the model that it exports, and records the log odds that it
    trained. Both are in proportion, and the scale is their least-squares slope. None without pairs.
    Raises InputError if they are damaged.
    """
    file = run / PAIRS
    try:
        pairs = list(lines_of(file))
        margins = np.array([float(pair["score_chosen"] - pair["score_rejected"]) for pair in pairs])
        log_odds = np.array([float(pair["log_odds"]) for pair in pairs])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: damaged ({type(error).__name__}: {error}); give --scale") from error
    total = float((margins * margins).sum())
    slope = float((margins * log_odds).sum()) / total if total else 0.0
    return slope if slope > 0 else None


def _score_singles(scorer: ResponseScorer, rows: Sequence[Prompt], column: str) -> list[Record]:
    exchanges = [
        Exchange(
            [dict(message) for message in row.messages],
            str(row.columns[column]),
            {name: value for name, value in row.columns.items() if name != column},
        )
        for row in rows
    ]
    return [
        with_columns(
            {"prompt": plain_prompt(exchange.messages), "response": exchange.response, "score": score},
            exchange.columns,
        )
        for exchange, score in zip(exchanges, scorer.score(exchanges), strict=True)
    ]


def _pairs_table(name: str, records: Sequence[Record], scale: float) -> Table:
    found = calibration.Calibration(records)
    margins = [record["score_chosen"] - record["score_rejected"] for record in records]
    mean_margin = float(np.average(margins, weights=[record["weight"] for record in records]))
    table = make_table(f"{name}: {len(records)} pairs", ("", "", "95 % interval"))
    table.add_row("accuracy", *_share_cells(calibration.accuracy(records)))
    table.add_row('baseline: "the longer answer wins"', *_share_cells(calibration.longer_wins(records)))
    table.add_row("mean of score(chosen) - score(rejected)", f"{mean_margin:.3f}", "")
    table.add_row(f"calibration error (ECE), at {scale:.3g} log odds a point", f"{found.ece:.3f}", "0 is best")
    table.add_row("Brier score", f"{found.brier:.3f}", "0 is best, 0.25 is a coin")
    for group in calibration.by_category(records):
        table.add_row(Text(f"accuracy, {printable(group.name)} ({group.num_pairs})"), *_share_cells(group.accuracy))
    return table


def _singles_table(name: str, records: Sequence[Record]) -> Table:
    scores = [record["score"] for record in records]
    mean = bootstrap_mean(scores)
    table = make_table(f"{name}: {len(records)} responses", ("", "", "95 % interval"))
    table.add_row("mean score", f"{mean.mean:.3f}", f"{mean.low:.3f} to {mean.high:.3f}")
    table.add_row("standard deviation", f"{np.std(scores):.3f}", "")
    table.add_row("lowest, highest", f"{min(scores):.3f}, {max(scores):.3f}", "")
    return table


def _share_cells(share: Interval) -> tuple[str, str]:
    return f"{share.mean:.1%}", f"{share.low:.1%} to {share.high:.1%}"
