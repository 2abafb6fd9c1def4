"""`rlhf score`: what a reward says of answers, and how often it agrees with who ranked them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from rlhf_cli.config.errors import InputError
from rlhf_cli.data.prompts import Prompt
from rlhf_cli.report import calibration as judgement
from rlhf_cli.report.intervals import Interval, bootstrap_mean
from rlhf_cli.report.run_dir import PAIRS, lines_of
from rlhf_cli.report.run_records import Record
from rlhf_cli.rewards.source import Exchange
from rlhf_cli.system.terminal import console
from rlhf_cli.system.text import printable
from rlhf_cli.use.cli_options import Rewarding, Rows, beside
from rlhf_cli.use.input_rows import RESPONSE, Ranked, rankings, singles
from rlhf_cli.use.response_scorer import ResponseScorer
from rlhf_cli.use.responses import plain, write_lines
from rlhf_cli.use.trained_runs import Role, run_of

_NAMES_ANSWERS = {"chosen_column", "rejected_column", "ranking_column"}  # given for pairs, whatever else rows have


@dataclass(frozen=True)
class Score:
    """What was asked for."""

    rewarding: Rewarding
    rows: Rows
    out: Path | None
    response_column: str | None  # of rows with one answer; None: rows rank answers
    scale: float | None  # log odds of a point of score
    columns: dict[str, Any] = field(default_factory=dict)  # options of PreferenceDataConfig that were given


def run(wanted: Score) -> None:
    """Score the rows; show what there is to say of all, write down each."""
    wants_pairs = wanted.response_column is None and not _NAMES_ANSWERS.isdisjoint(wanted.columns)
    rows = None if wants_pairs else singles(wanted.rows, wanted.response_column, "--file")
    if rows is not None:
        _refuse_options_of_pairs(wanted)
    ranked, notes = ([], []) if rows is not None else rankings(wanted.rows, wanted.columns, "--file")
    scale = 1.0 if rows is not None else wanted.scale or scale_of_run(wanted.rewarding.config.model) or 1.0
    judge = ResponseScorer.of(wanted.rewarding, "reward")
    try:
        if rows is not None:
            records = _singles(judge, rows, wanted.response_column or RESPONSE)
            table = _of_singles(judge, records)
        else:
            records = pairs(judge, ranked, scale)
            table = _of_pairs(judge, records, scale)
    finally:
        judge.close()
    for note in notes:
        print(printable(note))
    console().print(table)
    if wanted.out is not None:
        write_lines(wanted.out, records)
        print(printable(f"{len(records)} {'pairs' if rows is None else 'answers'}: {wanted.out}"))


def _refuse_options_of_pairs(wanted: Score) -> None:
    given = [name for name, value in [*wanted.columns.items(), ("scale", wanted.scale)] if value is not None]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise InputError(f"{option} is of pairs; the rows of {wanted.rows.path} have one answer each: leave it out")


def pairs(judge: ResponseScorer, ranked: Sequence[Ranked], scale: float) -> list[Record]:
    """Return every pair of ranked answers with its scores, as lines of a run's pairs.jsonl; each answer is asked once.

    A line has the whole conversation and the row's other columns, too.

    scale: what a difference of scores is multiplied by for log odds. Lengths are in characters.
    """
    exchanges = [Exchange(row.messages, answer, row.columns) for row in ranked for answer in row.answers]
    scores = judge.score(exchanges)
    found, first = [], 0
    for row in ranked:
        for better, worse in row.pairs:
            good, bad = scores[first + better], scores[first + worse]
            written = {
                "prompt": plain(row.messages),
                "chosen": row.answers[better],
                "rejected": row.answers[worse],
                "score_chosen": good,
                "score_rejected": bad,
                "log_odds": scale * (good - bad),
                "weight": 1 / len(row.pairs),
                "category": row.category,
            }
            found.append(beside(row.columns, written))
        first += len(row.answers)
    return found


def scale_of_run(path: str | None) -> float | None:
    """Return the log odds of a point of score of a reward model out of a run, from the pairs that the run scored.

    A run normalises the scores that it exports and notes the log odds that training fitted: log odds and margins are
    in proportion, and this is the least-squares slope. None where there is no such run. Raises InputError where the
    pairs are damaged.
    """
    run = None if path is None else run_of(path, Role.reward_model)
    if run is None:
        return None
    try:
        noted = list(lines_of(run / PAIRS))
        margins = np.array([float(pair["score_chosen"] - pair["score_rejected"]) for pair in noted])
        log_odds = np.array([float(pair["log_odds"]) for pair in noted])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{run / PAIRS}: damaged ({type(error).__name__}: {error}); give --scale") from error
    total = float((margins * margins).sum())
    slope = float((margins * log_odds).sum()) / total if total else 0.0
    return slope if slope > 0 else None


def _singles(judge: ResponseScorer, rows: Sequence[Prompt], column: str) -> list[Record]:
    exchanges = [
        Exchange(
            [dict(message) for message in row.messages],
            str(row.columns[column]),
            {name: value for name, value in row.columns.items() if name != column},
        )
        for row in rows
    ]
    scores = judge.score(exchanges)
    return [
        beside(exchange.columns, {"prompt": plain(row.messages), "response": exchange.response, "score": score})
        for row, exchange, score in zip(rows, exchanges, scores, strict=True)
    ]


def _of_pairs(judge: ResponseScorer, records: Sequence[Record], scale: float) -> Table:
    found, baseline = judgement.accuracy(records), judgement.longer_wins(records)
    calibration = judgement.calibration(records)
    made = _table(f"{judge.name}: {len(records)} pairs", ("", "", "95 % interval"))
    made.add_row("accuracy", *_percent(found))
    made.add_row('baseline: "the longer answer wins"', *_percent(baseline))
    margins = [one["score_chosen"] - one["score_rejected"] for one in records]
    mean = float(np.average(margins, weights=[one["weight"] for one in records]))
    made.add_row("mean of score(chosen) - score(rejected)", f"{mean:.3f}", "")
    made.add_row(f"calibration error (ECE), at {scale:.3g} log odds a point", f"{calibration.ece:.3f}", "0 is best")
    made.add_row("Brier score", f"{calibration.brier:.3f}", "0 is best, 0.25 is a coin")
    for group in judgement.by_category(records):
        made.add_row(Text(f"accuracy, {printable(group.name)} ({group.num_pairs})"), *_percent(group.accuracy))
    return made


def _of_singles(judge: ResponseScorer, records: Sequence[Record]) -> Table:
    scores = [one["score"] for one in records]
    made = _table(f"{judge.name}: {len(records)} answers", ("", "", "95 % interval"))
    made.add_row("mean score", *_number(bootstrap_mean(scores)))
    made.add_row("standard deviation", f"{np.std(scores):.3f}", "")
    made.add_row("lowest, highest", f"{min(scores):.3f}, {max(scores):.3f}", "")
    return made


def _table(title: str, columns: Sequence[str]) -> Table:
    made = Table(title=Text(printable(title)), title_justify="left")
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 else "right")
    return made


def _percent(found: Interval) -> tuple[str, str]:
    return f"{found.mean:.1%}", f"{found.low:.1%} to {found.high:.1%}"


def _number(found: Interval) -> tuple[str, str]:
    return f"{found.mean:.3f}", f"{found.low:.3f} to {found.high:.3f}"
