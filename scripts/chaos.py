"""Faults at random moments of a PPO run with two ranks, and whether it goes on as if nothing had been.

usage: python scripts/chaos.py [--minutes 5] [--seed 1] [--folder DIR]

A run of the tiny models is started, struck, looked at and resumed until it is finished, then the next one: kill -9,
signals, stopped ranks, damaged checkpoints, files that cannot grow. After each fault: the exit code is the documented
one, no process of the run is left, status.json does not say "running", every checkpoint is whole but for what was
damaged here, and no more steps are lost than lie between two checkpoints. A finished run has the metrics, the answers
and the weights, byte for byte, of a run of the same seed that nobody touched. When the time is over the run that is
under way is let go to its end. Exit code 1 and a folder that is kept: some check failed. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_cli.config.errors import CheckpointError, DiskError, Interrupted, StalledError
from rlhf_cli.engine.checkpoint_manifest import LATEST, check_hashes, pointed, read_manifest, steps
from rlhf_cli.report.checkpoint_listing import list_checkpoints, pointer_faults
from rlhf_cli.report.run_dir import is_finished
from rlhf_cli.system.run_status import read_status

NUM_STEPS, EVERY_STEPS, TIMEOUT_S = 24, 2, 20
WORDS = (
    *("conf=tiny", "launch.num_gpus=2", f"launch.timeout_s={TIMEOUT_S}", f"ppo.num_steps={NUM_STEPS}"),
    *("ppo.kl_target=0.5", "ppo.kl_horizon=100", "ppo.ema_decay=0.9", f"checkpoint.every_steps={EVERY_STEPS}"),
    *("eval.num_prompts=2", "check.num_prompts=0"),
)
HANG_S = 120.0  # nothing takes so long: launch.timeout_s and all graces together are half of it
GONE_S = 10.0
MANY = 10  # failures; more say nothing new

STOP, PAUSE, FULL = "SIGSTOP", "pause", "full disk"
ACTS = {"SIGKILL": 12, "SIGTERM": 2, "SIGINT": 2, "SIGUSR1": 2, STOP: 1, PAUSE: 2, FULL: 3}  # with their weights
FILE_LIMITS = tuple(2**10 * kib for kib in (8, 12, 16, 24, 64, 128, 256))  # the largest shard has 284 KiB
TARGETS = ("supervisor", "rank 0", "rank 1")
MOMENTS = {"start": 2, "steps": 4, "save": 4}
EMPTY, ALL = "empty latest", "flip in every checkpoint"
DAMAGES = {"flip": 4, "truncate": 2, "delete": 2, EMPTY: 1, ALL: 1}
DAMAGE_SHARE = 0.5  # of the kills
ANEW = "anew"


@dataclass(frozen=True)
class Fault:
    """What is done to a run, and when; damage: what is then done to its newest checkpoint."""

    act: str
    target: str
    moment: str
    num_steps: int  # new steps before it, unless it comes in the start
    delay_s: float
    damage: str = ""

    @property
    def kind(self) -> str:
        """Its row of the table."""
        return self.act if self.act == FULL else f"{self.act} of {self.target}"

    def __str__(self) -> str:
        if self.act == FULL:
            return self.act
        when = "" if self.moment == "start" else f", {self.num_steps} steps on"
        return f"{self.kind} ({self.moment}{when}, {self.delay_s:.3f} s)"


def chosen(draw: random.Random, resumes: bool, acts: dict[str, int] = ACTS) -> Fault:
    """Draw a fault; the disk is full only for a run that resumes, and a rank alone is stopped, once it trains."""
    possible = [act for act in acts if act != FULL or resumes]
    act = draw.choices(possible, [acts[one] for one in possible])[0]
    stops = act in (STOP, PAUSE)
    target = draw.choice(TARGETS[1:] if stops else TARGETS)
    moments = [moment for moment in MOMENTS if moment != "start" or not stops]
    moment = draw.choices(moments, [MOMENTS[one] for one in moments])[0]
    delay = draw.uniform(0.3, 7) if moment == "start" else draw.uniform(0, 0.03 if moment == "save" else 0.6)
    num_steps = draw.randint(1, 6)
    damaged = act == "SIGKILL" and draw.random() < DAMAGE_SHARE
    damage = draw.choices(list(DAMAGES), list(DAMAGES.values()))[0] if damaged else ""
    return Fault(act, target, moment, num_steps, delay, damage)


def wanted_codes(fault: Fault, trains: bool) -> set[int]:
    """The exit codes that are documented for a fault; trains: a step, or the checkpoint that was resumed, was told."""
    if fault.act in (STOP, FULL):
        return {StalledError.code if fault.act == STOP else DiskError.code}
    number = signal.Signals[fault.act]
    if fault.act == "SIGKILL":
        return {-number if fault.target == "supervisor" else 128 + number}
    return {Interrupted.code} if trains else {Interrupted.code, 128 + number, -number}


def way_out(text: str) -> str | None:
    """Read what the message of exit code 5 offers: the path to resume from, ANEW, or nothing (None)."""
    errors = [line for line in text.splitlines() if line.startswith("rlhf: error: ")]
    if not errors:
        return None
    if offered := re.search(r"continue from it with run\.resume=(.+)$", errors[-1]):
        return offered[1]
    return ANEW if "start again with another" in errors[-1] else None


def damaged(draw: random.Random, checkpoints: Path, how: str) -> Path:
    """Damage the checkpoint that `latest` names, or `latest`; return the file."""
    newest = pointed(checkpoints, LATEST)
    assert newest is not None
    if how == EMPTY:
        (checkpoints / LATEST).write_bytes(b"")
        return checkpoints / LATEST
    for older in [checkpoints / f"step-{step}" for step in steps(checkpoints)] if how == ALL else []:
        if older != newest:
            flip(draw, draw.choice(files_of(older)))
    file = draw.choice([*files_of(newest), *([checkpoints / LATEST] if how == "delete" else [])])
    match how:
        case "delete":
            file.unlink()
        case "truncate":
            os.truncate(file, draw.randrange(file.stat().st_size))
        case _:
            flip(draw, file)
    return file


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file())


def flip(draw: random.Random, file: Path) -> None:
    """Turn one bit of a file."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


@dataclass
class Tally:
    """What is shown at the end."""

    faults: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    most_lost: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def lose(self, by: str, num_steps: int) -> None:
        """Take in the steps that were lost by a kind of fault."""
        self.most_lost[by] = max(self.most_lost.get(by, 0), num_steps)


def table(tally: Tally, wall_s: float) -> str:
    """Return the table of a finished session."""
    rows: list[tuple[str, object]] = [(f"fault: {kind}", count) for kind, count in sorted(tally.faults.items())]
    rows += [(f"damage: {kind}", count) for kind, count in sorted(tally.damages.items())]
    rows.append(("faults", tally.faults.total() + tally.damages.total()))
    rows += [*tally.counts.items()]
    rows += [(f"steps lost at most, {by}", lost) for by, lost in sorted(tally.most_lost.items())]
    rows += [("differences found", len(tally.differences)), ("checks failed", len(tally.failures))]
    rows.append(("wall time", f"{wall_s:.0f} s"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value!s:>6}" for name, value in rows)


@dataclass
class Run:
    """One run through all its launches; anew: under another name, as a message of the package asks for."""

    root: Path
    label: str
    seed: int
    attempt: int = 0
    resume: str = ""  # "": a new run; "true", or the path that a message offered
    num_launches: int = 0
    newest: int = 0  # step of the checkpoint to go on from; 0: there is none

    @property
    def name(self) -> str:
        return f"{self.label}-{self.attempt}"

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def marks(self) -> tuple[str, str]:
        """Words that the command line of each of its processes has, and no other."""
        return f"run.name={self.name}", f"run.output_dir={self.root}"

    def start_anew(self) -> None:
        self.attempt, self.resume, self.newest = self.attempt + 1, "", 0

    def last_logged(self) -> int:
        """The step of the last whole line of metrics.jsonl."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def checkpoint_faults(self) -> list[str]:
        """Say what is wrong with its checkpoints; of a run that goes on from a path, with that one."""
        if self.resume in ("", "true"):
            found = [row.fault for row in list_checkpoints(self.folder, verify=True) if row.fault]
            return found + pointer_faults(self.checkpoints)
        try:
            check_hashes(Path(self.resume), read_manifest(Path(self.resume)))
        except CheckpointError as error:
            return [str(error)]
        return []


def until(happened: Callable[[], bool], limit_s: float, pause_s: float = 0.02) -> bool:
    """Wait until something has happened, no longer than the limit; say whether it has."""
    deadline = time.monotonic() + limit_s
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def processes(marks: tuple[str, ...]) -> dict[int, str]:
    """Return the processes whose command lines have all the words, each with its rank: "0", "1" or ""."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: rank for pid in pids if (rank := rank_of(pid, marks)) is not None}


def rank_of(pid: int, marks: tuple[str, ...]) -> str | None:
    """Return the rank of a process, "" of one that is no rank; None: it is not of the run, or has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        if not all(mark in words for mark in marks):
            return None
        rank = re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
    except OSError:  # it has ended meanwhile
        return None
    return rank[1].decode() if rank else ""


class Launch:
    """One start of a run, until nothing of it is left."""

    def __init__(self, run: Run, file_limit: int | None = None) -> None:
        """file_limit: bytes that no file may exceed."""

        def limit() -> None:
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        own = (*run.marks, f"run.seed={run.seed}", *([f"run.resume={run.resume}"] if run.resume else []))
        environment = {name: value for name, value in os.environ.items() if name != "RANK"}
        environment |= {"TMPDIR": str(run.root / "tmp"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.run = run
        self.began, self.began_ns = time.monotonic(), time.time_ns()
        self.output = bytearray()
        self.known: dict[int, str] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_cli", "train-ppo", *WORDS, *own],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # not a file: it would have the limit too
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limit,
        )
        run.num_launches += 1
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        while part := os.read(self.process.stdout.fileno(), 2**16):
            self.output += part

    def text(self) -> str:
        return self.output.decode("utf-8", "replace")

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def told_steps(self) -> list[int]:
        """The steps that were told so far."""
        return [int(step) for step in re.findall(r"^step (\d+)/", self.text(), re.MULTILINE)]

    def resumed_after(self) -> int | None:
        """The step that it went on from, once it says so."""
        told = re.search(r"^resumed after step (\d+)", self.text(), re.MULTILINE)
        return int(told[1]) if told else None

    def is_saving(self) -> bool:
        """Say whether an unfinished checkpoint or export lies there that is not older than this launch."""
        for file in (*self.run.checkpoints.glob(".step-*"), self.run.folder / ".final"):
            try:
                if file.stat().st_ctime_ns > self.began_ns:
                    return True
            except FileNotFoundError:
                continue
        return False

    def reaches(self, fault: Fault) -> bool:
        """Wait for the moment of a fault; False: it ended before, or hangs."""
        if fault.moment == "start":
            until(self.has_ended, self.began + fault.delay_s - time.monotonic())
            return not self.has_ended()

        def is_far() -> bool:
            told = self.told_steps()
            return self.has_ended() or len(told) >= fault.num_steps or NUM_STEPS in told

        due = until(is_far, HANG_S)
        self.known = processes(self.run.marks)  # to look for them takes as long as a save
        if due and fault.moment == "save":
            due = until(lambda: self.has_ended() or self.is_saving(), HANG_S, pause_s=0.001)
        time.sleep(fault.delay_s)
        return due and not self.has_ended()

    def send(self, target: str, number: int) -> None:
        """Send a signal to the supervisor or to a rank, which is waited for."""
        wanted = "" if target == "supervisor" else target.removeprefix("rank ")
        found: list[int] = []

        def is_there() -> bool:
            among = self.known or processes(self.run.marks)
            found[:] = [pid for pid in among if rank_of(pid, self.run.marks) == wanted]
            return bool(found) or self.has_ended()

        until(is_there, GONE_S, pause_s=0.005)
        for pid in found:
            kill(pid, number)

    def pause(self, target: str, seconds: float) -> bool:
        """Stop a rank for a while; say whether the run then goes on, or has come to its end."""
        self.send(target, signal.SIGSTOP)
        time.sleep(seconds)
        before = len(self.told_steps())
        self.send(target, signal.SIGCONT)
        return until(lambda: self.has_ended() or len(self.told_steps()) > before or self.is_saving(), HANG_S)

    def end(self) -> tuple[int | None, int]:
        """Wait for its end; return its exit code (None: it hung) and how many processes it left. None is left here."""
        code = self.process.returncode if until(self.has_ended, HANG_S) else None
        until(lambda: not processes(self.run.marks), GONE_S)
        num_left = len(processes(self.run.marks))
        self.close()
        return code, num_left

    def close(self) -> None:
        """Kill what is left of it, and write down what it said."""
        for pid in processes(self.run.marks):
            kill(pid, signal.SIGKILL)
        if not self.has_ended():
            self.process.kill()
            self.process.wait(GONE_S)
        self.transcript.write_bytes(self.output)

    @property
    def transcript(self) -> Path:
        return self.run.root / f"{self.run.name}.launch{self.run.num_launches}.txt"


def kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has ended meanwhile
        return


NOT_COMPARED = ("time/", "tokens_per_s", "memory/")


def differences(run: Path, untouched: Path) -> list[str]:
    """Say where a run is not what an untouched one of the same seed is."""
    found = []
    mine, theirs = (_metrics(folder) for folder in (run, untouched))
    if mine != theirs:
        first = next((a["step"] for a, b in zip(mine, theirs, strict=False) if a != b), "none")
        found.append(
            f"{run}/metrics.jsonl: {len(mine)} and {len(theirs)} records, the first that differs: step {first}"
        )
    weights = sorted({file.relative_to(one) for one in (run, untouched) for file in one.glob("final/*/*.safetensors")})
    for name in (Path("samples.jsonl"), *weights):
        here, there = ((folder / name).read_bytes() if (folder / name).exists() else b"" for folder in (run, untouched))
        if here != there or not here:
            found.append(f"{run / name}: not the bytes of {untouched / name}")
    return found


def _metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(NOT_COMPARED)} for line in lines]


class Chaos:
    """A session: runs one after another, and what was found."""

    def __init__(self, root: Path, minutes: float, seed: int) -> None:
        self.root, self.seed = root, seed
        self.draw = random.Random(seed)
        self.began = time.monotonic()
        self.deadline = self.began + 60 * minutes
        self.tally = Tally()

    def play(self) -> None:
        """Begin runs until the time is over."""
        number = 0
        while time.monotonic() < self.deadline and len(self.tally.failures) < MANY:
            number += 1
            self.play_run(Run(self.root, f"run{number}", self.seed * 1000 + number))

    def play_run(self, run: Run) -> None:
        """Strike and resume a run until it is finished; then compare it."""
        while not is_finished(run.folder):
            if len(self.tally.failures) >= MANY or not self.play_launch(run):
                self.tally.counts["runs given up"] += 1
                return
        untouched = Run(self.root, f"{run.label}-untouched", run.seed)
        launch = Launch(untouched)
        try:
            code, _ = launch.end()
        finally:
            launch.close()
        if code != 0:
            self.fail(launch, f"exit code {code} without a fault")
            return
        found = differences(run.folder, untouched.folder)
        self.tally.differences += found
        self.tally.counts["runs finished and compared"] += 1
        self.say(f"{run.label} finished after {run.num_launches} launches: {len(found)} differences")
        for one in found:
            self.fail(launch, one)

    def play_launch(self, run: Run) -> bool:
        """Start or resume a run and strike it, while there is time; False: it ended as it should not, give it up."""
        fault = chosen(self.draw, bool(run.resume)) if time.monotonic() < self.deadline else None
        file_limit = self.draw.choice(FILE_LIMITS) if fault and fault.act == FULL else None
        launch = Launch(run, file_limit)
        if run.resume:
            self.tally.counts["resumes"] += 1
        try:
            fault, trains = self.strike(launch, fault)
            code, num_left = launch.end()
        finally:
            launch.close()
        self.check_resumed(launch)
        if num_left:
            self.fail(launch, f"{num_left} processes left {GONE_S:g} s after its end")
        # a killed process whose parent is gone is in the process table until init looks
        if not until(lambda: read_status(run.folder).get("state") != "running", GONE_S):
            self.fail(launch, f"status.json says running, {GONE_S:g} s after the last process ended")
        if is_finished(run.folder) and code == 0:
            self.say(f"{run.name} came to its end{'' if fault is None else f' before {fault}'}")
            return True
        if fault is None:
            self.fail(launch, f"exit code {code} without a fault")
            return False
        self.tally.faults[fault.kind] += 1
        if code not in (codes := wanted_codes(fault, trains)):
            self.fail(launch, f"exit code {code} after {fault}, wanted {' or '.join(map(str, sorted(codes)))}")
        if fault.act == "SIGKILL":
            self.tally.counts["kills inside a save"] += launch.is_saving()
        self.say(f"{run.name} {fault}{f', {file_limit} bytes' if file_limit else ''} -> exit code {code}")
        return is_finished(run.folder) or self.look_and_damage(launch, fault, code)

    def strike(self, launch: Launch, fault: Fault | None) -> tuple[Fault | None, bool]:
        """Do what a fault says; return the one that was the last (None: none came), and whether the run trained."""
        while fault is not None and fault.act == PAUSE and launch.reaches(fault):
            seconds = self.draw.uniform(1, 8)
            self.tally.faults[fault.kind] += 1
            goes_on = launch.pause(fault.target, seconds)
            self.say(f"{launch.run.name} {fault}, for {seconds:.1f} s -> {'goes on' if goes_on else 'hangs'}")
            if not goes_on:
                self.fail(launch, f"no further step within {HANG_S:g} s of {fault}")
            fault = chosen(self.draw, False, {act: weight for act, weight in ACTS.items() if act != PAUSE})
        if fault is None or fault.act == FULL:
            return fault, False
        if not launch.reaches(fault):
            return None, False
        trains = bool(launch.told_steps()) or launch.resumed_after() is not None
        launch.send(fault.target, signal.Signals[fault.act])
        return fault, trains

    def check_resumed(self, launch: Launch) -> None:
        """See that a run went on from its newest checkpoint, or from the one that it was given."""
        run, after = launch.run, launch.resumed_after()
        if after is None:
            return
        if after != run.newest:
            self.fail(launch, f"resumed after step {after}, wanted step {run.newest}")
        run.resume = "true"

    def look_and_damage(self, launch: Launch, fault: Fault, code: int | None) -> bool:
        """Look at the checkpoints that a fault left, damage them if it says so, and choose the way on."""
        run = launch.run
        faults = run.checkpoint_faults() if run.folder.exists() else []
        for one in faults:
            self.fail(launch, f"after {fault}: {one}")
        if code == DiskError.code and any(run.checkpoints.glob(".step-*")):
            self.fail(launch, "an unfinished checkpoint was left where the disk is full")
        if faults:
            return self.take_way_out(run, None, run.last_logged())
        if run.resume in ("", "true"):
            newest = pointed(run.checkpoints, LATEST)
            before, run.newest = run.newest, int(newest.name.removeprefix("step-")) if newest else 0
            if run.newest < before:
                self.fail(launch, f"newest checkpoint of step {run.newest}, it was {before}")
            run.resume = "true" if newest else ""
            self.count_lost(launch, fault, 0 if code == Interrupted.code else EVERY_STEPS)
            if newest and fault.damage:
                file = damaged(self.draw, run.checkpoints, fault.damage)
                self.tally.damages[fault.damage] += 1
                return self.take_way_out(run, file, run.last_logged())
        if not run.resume:
            self.tally.counts["starts anew, no checkpoint yet"] += 1
            run.start_anew()
        return True

    def count_lost(self, launch: Launch, fault: Fault, most: int) -> None:
        """Take in the steps that are logged and in no checkpoint."""
        lost = launch.run.last_logged() - launch.run.newest
        self.tally.lose("kills" if fault.act == "SIGKILL" else "other faults", lost)
        if lost > most:
            self.fail(launch, f"{lost} steps lost by {fault}, wanted at most {most}")

    def take_way_out(self, run: Run, file: Path | None, last_logged: int) -> bool:
        """See that a resume is refused, naming the file, and go on as the message offers; False: it offers nothing."""
        run.resume = "true"
        whole = newest_whole(run.checkpoints)
        launch = Launch(run)
        try:
            code, num_left = launch.end()
        finally:
            launch.close()
        text = launch.text()
        if code != CheckpointError.code or num_left:
            self.fail(launch, f"exit code {code}, {num_left} processes left; wanted {CheckpointError.code} for {file}")
        if file is not None and str(file) not in text:
            self.fail(launch, f"the refusal does not name {file}")
        offered = way_out(text)
        if offered != (ANEW if whole is None else str(whole)):
            self.fail(launch, f"the refusal offers {offered}, wanted {whole or ANEW}; {file} is damaged")
        self.say(
            f"{run.name} {file and file.relative_to(run.checkpoints)} damaged -> exit code {code}, offers {offered}"
        )
        if whole is None:
            self.tally.counts["starts anew, no checkpoint whole"] += 1
            self.tally.lose("damage, all of it", last_logged)
            run.start_anew()
            return True
        run.newest, run.resume = int(whole.name.removeprefix("step-")), str(whole)
        self.tally.lose("damage", last_logged - run.newest)
        return True

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def fail(self, launch: Launch, text: str) -> None:
        """Take in a check that failed."""
        failure = f"{launch.run.name}: {text} [{launch.transcript}]"
        self.tally.failures.append(failure)
        self.say(f"FAILED {failure}")


def newest_whole(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint of which every byte is as it was written; None: there is none."""
    for row in reversed(list_checkpoints(checkpoints.parent, verify=True)):
        if not row.fault:
            return checkpoints / row.name
    return None


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="how long faults are made (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: 1)")
    parser.add_argument("--folder", type=Path, help="an empty or new folder for the runs (default: one under /tmp)")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    if options.folder is not None and options.folder.exists() and any(options.folder.iterdir()):
        raise SystemExit(f"{options.folder} is not empty")
    root = (options.folder or Path(tempfile.mkdtemp(prefix="rlhf-chaos-"))).resolve()
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    chaos = Chaos(root, options.minutes, options.seed)
    chaos.play()
    print(f"\n{table(chaos.tally, time.monotonic() - chaos.began)}")
    if chaos.tally.failures:
        print("\n".join(chaos.tally.failures), f"\nall of it is kept in {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
