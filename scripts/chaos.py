"""Strike PPO runs of two ranks with random faults, and check that they recover as if nothing had happened.

A run of the tiny models is started, struck, checked and resumed until it is finished; then the next run begins. The
faults are kill -9, signals, stopped ranks, damaged checkpoints, and files that cannot grow. After each fault: the exit
code is the documented one, no process of the run is left, status.json does not say "running", every checkpoint is
valid unless it was damaged here, and no more steps are lost than lie between two checkpoints. A finished run has the
same metrics, responses and weights, byte for byte, as an undisturbed run of the same seed. When the time is over, the
current run is finished without faults. If a check failed, the exit code is 1 and the folder is kept. Linux only.
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
from rlhf_cli.report.report_commands import list_checkpoints, pointer_faults
from rlhf_cli.report.run_dir import is_finished
from rlhf_cli.system.run_status import read_status

NUM_STEPS, EVERY_STEPS, TIMEOUT_S = 24, 2, 20
WORDS = (
    *("conf=tiny", "launch.num_gpus=2", f"launch.timeout_s={TIMEOUT_S}", f"ppo.num_steps={NUM_STEPS}"),
    *("ppo.kl_target=0.5", "ppo.kl_horizon=100", "ppo.ema_decay=0.9", f"checkpoint.every_steps={EVERY_STEPS}"),
    *("eval.num_prompts=2", "check.num_prompts=0"),
)
HANG_S = 120.0  # twice launch.timeout_s and all grace periods together
GONE_S = 10.0
MAX_FAILURES = 10  # the session ends after this many

STOP, PAUSE, FULL = "SIGSTOP", "pause", "full disk"
ACTS = {"SIGKILL": 12, "SIGTERM": 2, "SIGINT": 2, "SIGUSR1": 2, STOP: 1, PAUSE: 2, FULL: 3}  # -> weight
FILE_LIMITS = tuple(2**10 * kib for kib in (8, 12, 16, 24, 64, 128, 256))  # the largest shard has 284 KiB
TARGETS = ("supervisor", "rank 0", "rank 1")
MOMENTS = {"start": 2, "steps": 4, "save": 4}
EMPTY, ALL = "empty latest", "flip in every checkpoint"
DAMAGES = {"flip": 4, "truncate": 2, "delete": 2, EMPTY: 1, ALL: 1}
DAMAGE_SHARE = 0.5  # of the kills
NEW_RUN = "new run"


@dataclass(frozen=True)
class Fault:
    """What is done to a run, and when; damage: what is done to its newest checkpoint afterwards."""

    act: str
    target: str
    moment: str
    num_steps: int  # new steps before the fault, unless the moment is "start"
    delay_s: float
    damage: str = ""

    @property
    def kind(self) -> str:
        """The title of its row in the table."""
        return self.act if self.act == FULL else f"{self.act} of {self.target}"

    def __str__(self) -> str:
        if self.act == FULL:
            return self.act
        when = "" if self.moment == "start" else f" after {self.num_steps} steps"
        return f"{self.kind} ({self.moment}{when}, {self.delay_s:.3f} s)"


def chosen(draw: random.Random, resumes: bool, acts: dict[str, int] = ACTS) -> Fault:
    """Draw a fault. The disk is full only for a run that resumes; only a rank that trains is stopped or paused."""
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


def documented_codes(fault: Fault, trains: bool) -> set[int]:
    """Return the documented exit codes for a fault; trains: the run printed a step or that it has resumed."""
    if fault.act in (STOP, FULL):
        return {StalledError.code if fault.act == STOP else DiskError.code}
    number = signal.Signals[fault.act]
    if fault.act == "SIGKILL":
        return {-number if fault.target == "supervisor" else 128 + number}
    return {Interrupted.code} if trains else {Interrupted.code, 128 + number, -number}


def suggestion(text: str) -> str | None:
    """Return what the message of exit code 5 suggests: a path to resume from, NEW_RUN, or None."""
    errors = [line for line in text.splitlines() if line.startswith("rlhf: error: ")]
    if not errors:
        return None
    if offered := re.search(r"continue from it with run\.resume=(.+)$", errors[-1]):
        return offered[1]
    return NEW_RUN if "start again with another" in errors[-1] else None


def damaged(draw: random.Random, checkpoints: Path, how: str) -> Path:
    """Damage the newest checkpoint, or the file `latest`; return the damaged file."""
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
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


@dataclass
class Tally:
    """The counts that are printed at the end."""

    faults: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    most_lost: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def lose(self, by: str, num_steps: int) -> None:
        """Record the number of steps lost to a kind of fault."""
        self.most_lost[by] = max(self.most_lost.get(by, 0), num_steps)


def table(tally: Tally, wall_s: float) -> str:
    """Return the counts as a table."""
    rows: list[tuple[str, object]] = [(f"fault: {kind}", count) for kind, count in sorted(tally.faults.items())]
    rows += [(f"damage: {kind}", count) for kind, count in sorted(tally.damages.items())]
    rows.append(("faults", tally.faults.total() + tally.damages.total()))
    rows += [*tally.counts.items()]
    rows += [(f"most steps lost, {by}", lost) for by, lost in sorted(tally.most_lost.items())]
    rows += [("differences found", len(tally.differences)), ("checks failed", len(tally.failures))]
    rows.append(("wall time", f"{wall_s:.0f} s"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value!s:>6}" for name, value in rows)


@dataclass
class Run:
    """A run through all its launches; attempt: counts the new names it got because no checkpoint was usable."""

    root: Path
    label: str
    seed: int
    attempt: int = 0
    resume: str = ""  # "": a new run; or "true"; or the path that a message suggested
    num_launches: int = 0
    newest: int = 0  # step of the checkpoint to resume from; 0: none

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
        """Words that only the command lines of its processes contain."""
        return f"run.name={self.name}", f"run.output_dir={self.root}"

    def start_again(self) -> None:
        self.attempt, self.resume, self.newest = self.attempt + 1, "", 0

    def last_logged(self) -> int:
        """Return the step of the last complete line of metrics.jsonl."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def checkpoint_faults(self) -> list[str]:
        """Return the faults of its checkpoints, or only of the one whose path it resumes from."""
        if self.resume in ("", "true"):
            found = [row.fault for row in list_checkpoints(self.folder, verify=True) if row.fault]
            return found + pointer_faults(self.checkpoints)
        try:
            check_hashes(Path(self.resume), read_manifest(Path(self.resume)))
        except CheckpointError as error:
            return [str(error)]
        return []


def until(happened: Callable[[], bool], limit_s: float, pause_s: float = 0.02) -> bool:
    """Wait for something, at most for the limit; return whether it happened."""
    deadline = time.monotonic() + limit_s
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def processes(marks: tuple[str, ...]) -> dict[int, str]:
    """Return the processes whose command lines have all these words, each with its rank: "0", "1" or ""."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {pid: rank for pid in pids if (rank := rank_of(pid, marks)) is not None}


def rank_of(pid: int, marks: tuple[str, ...]) -> str | None:
    """Return the rank of a process, "" for the supervisor, or None if it is not part of the run or has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        if not all(mark in words for mark in marks):
            return None
        rank = re.search(rb"(?:^|\0)RANK=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
    except OSError:  # it has just ended
        return None
    return rank[1].decode() if rank else ""


class Launch:
    """One launch of a run, until all its processes are gone."""

    def __init__(self, run: Run, file_limit: int | None = None) -> None:
        """Start the run; file_limit: largest size of any file in bytes."""

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
            stdout=subprocess.PIPE,  # a file would be subject to the limit
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

    def printed_steps(self) -> list[int]:
        """Return the steps printed so far."""
        return [int(step) for step in re.findall(r"^step (\d+)/", self.text(), re.MULTILINE)]

    def resumed_after(self) -> int | None:
        """Return the step that it resumed after, once it has printed it."""
        found = re.search(r"^resumed after step (\d+)", self.text(), re.MULTILINE)
        return int(found[1]) if found else None

    def is_saving(self) -> bool:
        """Return whether there is an unfinished checkpoint or export of this launch."""
        for file in (*self.run.checkpoints.glob(".step-*"), self.run.folder / ".final"):
            try:
                if file.stat().st_ctime_ns > self.began_ns:
                    return True
            except FileNotFoundError:
                continue
        return False

    def reaches(self, fault: Fault) -> bool:
        """Wait for the moment of a fault; return False if the run ended before or hangs."""
        if fault.moment == "start":
            until(self.has_ended, self.began + fault.delay_s - time.monotonic())
            return not self.has_ended()

        def is_due() -> bool:
            printed = self.printed_steps()
            return self.has_ended() or len(printed) >= fault.num_steps or NUM_STEPS in printed

        due = until(is_due, HANG_S)
        self.known = processes(self.run.marks)  # finding them takes as long as a save
        if due and fault.moment == "save":
            due = until(lambda: self.has_ended() or self.is_saving(), HANG_S, pause_s=0.001)
        time.sleep(fault.delay_s)
        return due and not self.has_ended()

    def send(self, target: str, number: int) -> None:
        """Send a signal to the supervisor or a rank; wait until that process exists."""
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
        """Stop a rank for a while; return whether the run then continues or ends."""
        self.send(target, signal.SIGSTOP)
        time.sleep(seconds)
        before = len(self.printed_steps())
        self.send(target, signal.SIGCONT)
        return until(lambda: self.has_ended() or len(self.printed_steps()) > before or self.is_saving(), HANG_S)

    def end(self) -> tuple[int | None, int]:
        """Wait for its end; return its exit code (None: it hung) and how many processes it left behind."""
        code = self.process.returncode if until(self.has_ended, HANG_S) else None
        until(lambda: not processes(self.run.marks), GONE_S)
        num_left = len(processes(self.run.marks))
        self.close()
        return code, num_left

    def close(self) -> None:
        """Kill its remaining processes and write its output to a file."""
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
    except ProcessLookupError:  # it has just ended
        return


NOT_COMPARED = ("time/", "perf/", "tokens_per_s", "memory/")


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Return the differences between a run and an undisturbed one of the same seed."""
    found = []
    mine, theirs = (_metrics(folder) for folder in (run, undisturbed))
    if mine != theirs:
        first = next((a["step"] for a, b in zip(mine, theirs, strict=False) if a != b), "none")
        found.append(
            f"{run}/metrics.jsonl: {len(mine)} and {len(theirs)} records; the first different one: step {first}"
        )
    weights = sorted(
        {file.relative_to(one) for one in (run, undisturbed) for file in one.glob("final/*/*.safetensors")}
    )
    for name in (Path("samples.jsonl"), *weights):
        here, there = (
            (folder / name).read_bytes() if (folder / name).exists() else b"" for folder in (run, undisturbed)
        )
        if here != there or not here:
            found.append(f"{run / name}: differs from {undisturbed / name}")
    return found


def _metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(NOT_COMPARED)} for line in lines]


class Chaos:
    """A session of runs, one after another."""

    def __init__(self, root: Path, minutes: float, seed: int) -> None:
        self.root, self.seed = root, seed
        self.draw = random.Random(seed)
        self.began = time.monotonic()
        self.deadline = self.began + 60 * minutes
        self.tally = Tally()

    def play(self) -> None:
        """Begin runs until the time is over."""
        number = 0
        while time.monotonic() < self.deadline and len(self.tally.failures) < MAX_FAILURES:
            number += 1
            self.play_run(Run(self.root, f"run{number}", self.seed * 1000 + number))

    def play_run(self, run: Run) -> None:
        """Strike and resume a run until it is finished; then compare it with an undisturbed one."""
        while not is_finished(run.folder):
            if len(self.tally.failures) >= MAX_FAILURES or not self.play_launch(run):
                self.tally.counts["runs abandoned"] += 1
                return
        undisturbed = Run(self.root, f"{run.label}-undisturbed", run.seed)
        launch = Launch(undisturbed)
        try:
            code, _ = launch.end()
        finally:
            launch.close()
        if code != 0:
            self.fail(launch, f"exit code {code} without a fault")
            return
        found = differences(run.folder, undisturbed.folder)
        self.tally.differences += found
        self.tally.counts["runs finished and compared"] += 1
        self.say(f"{run.label} finished after {run.num_launches} launches: {len(found)} differences")
        for one in found:
            self.fail(launch, one)

    def play_launch(self, run: Run) -> bool:
        """Launch a run and strike it while there is time; return False if it must be abandoned."""
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
            self.fail(launch, f"{num_left} processes are left {GONE_S:g} s after its end")
        # a killed process without a parent stays in the process table until init reaps it
        if not until(lambda: read_status(run.folder).get("state") != "running", GONE_S):
            self.fail(launch, f"status.json says running {GONE_S:g} s after the last process ended")
        if is_finished(run.folder) and code == 0:
            self.say(f"{run.name} finished{'' if fault is None else f' before {fault}'}")
            return True
        if fault is None:
            self.fail(launch, f"exit code {code} without a fault")
            return False
        self.tally.faults[fault.kind] += 1
        if code not in (codes := documented_codes(fault, trains)):
            self.fail(launch, f"exit code {code} after {fault}, expected {' or '.join(map(str, sorted(codes)))}")
        if fault.act == "SIGKILL":
            self.tally.counts["kills inside a save"] += launch.is_saving()
        self.say(f"{run.name} {fault}{f', {file_limit} bytes' if file_limit else ''} -> exit code {code}")
        return is_finished(run.folder) or self.check_and_damage(launch, fault, code)

    def strike(self, launch: Launch, fault: Fault | None) -> tuple[Fault | None, bool]:
        """Inject a fault; return the last one injected (None: none) and whether the run was training."""
        while fault is not None and fault.act == PAUSE and launch.reaches(fault):
            seconds = self.draw.uniform(1, 8)
            self.tally.faults[fault.kind] += 1
            continues = launch.pause(fault.target, seconds)
            self.say(f"{launch.run.name} {fault}, for {seconds:.1f} s -> {'continues' if continues else 'hangs'}")
            if not continues:
                self.fail(launch, f"no step within {HANG_S:g} s after {fault}")
            fault = chosen(self.draw, False, {act: weight for act, weight in ACTS.items() if act != PAUSE})
        if fault is None or fault.act == FULL:
            return fault, False
        if not launch.reaches(fault):
            return None, False
        trains = bool(launch.printed_steps()) or launch.resumed_after() is not None
        launch.send(fault.target, signal.Signals[fault.act])
        return fault, trains

    def check_resumed(self, launch: Launch) -> None:
        """Check that a run resumed from its newest checkpoint, or from the one it was given."""
        run, after = launch.run, launch.resumed_after()
        if after is None:
            return
        if after != run.newest:
            self.fail(launch, f"resumed after step {after}, expected step {run.newest}")
        run.resume = "true"

    def check_and_damage(self, launch: Launch, fault: Fault, code: int | None) -> bool:
        """Check the checkpoints that a fault left, damage them if it says so, and choose how to resume."""
        run = launch.run
        faults = run.checkpoint_faults() if run.folder.exists() else []
        for one in faults:
            self.fail(launch, f"after {fault}: {one}")
        if code == DiskError.code and any(run.checkpoints.glob(".step-*")):
            self.fail(launch, "an unfinished checkpoint is left on the full disk")
        if faults:
            return self.resume_as_suggested(run, None, run.last_logged())
        if run.resume in ("", "true"):
            newest = pointed(run.checkpoints, LATEST)
            before, run.newest = run.newest, int(newest.name.removeprefix("step-")) if newest else 0
            if run.newest < before:
                self.fail(launch, f"the newest checkpoint is of step {run.newest}, before of step {before}")
            run.resume = "true" if newest else ""
            self.count_lost(launch, fault, 0 if code == Interrupted.code else EVERY_STEPS)
            if newest and fault.damage:
                file = damaged(self.draw, run.checkpoints, fault.damage)
                self.tally.damages[fault.damage] += 1
                return self.resume_as_suggested(run, file, run.last_logged())
        if not run.resume:
            self.tally.counts["started again, no checkpoint yet"] += 1
            run.start_again()
        return True

    def count_lost(self, launch: Launch, fault: Fault, most: int) -> None:
        """Record the steps that are logged but in no checkpoint."""
        lost = launch.run.last_logged() - launch.run.newest
        self.tally.lose("kills" if fault.act == "SIGKILL" else "other faults", lost)
        if lost > most:
            self.fail(launch, f"{lost} steps lost by {fault}, expected at most {most}")

    def resume_as_suggested(self, run: Run, file: Path | None, last_logged: int) -> bool:
        """Check that a resume is refused with the file's name, and prepare to resume as the message suggests."""
        run.resume = "true"
        valid = newest_valid(run.checkpoints)
        launch = Launch(run)
        try:
            code, num_left = launch.end()
        finally:
            launch.close()
        text = launch.text()
        if code != CheckpointError.code or num_left:
            self.fail(
                launch, f"exit code {code}, {num_left} processes left; expected {CheckpointError.code} for {file}"
            )
        if file is not None and str(file) not in text:
            self.fail(launch, f"the error does not name {file}")
        suggested = suggestion(text)
        if suggested != (NEW_RUN if valid is None else str(valid)):
            self.fail(launch, f"the error suggests {suggested}, expected {valid or NEW_RUN}; {file} is damaged")
        self.say(
            f"{run.name} {file and file.relative_to(run.checkpoints)} damaged -> exit code {code}, suggests {suggested}"
        )
        if valid is None:
            self.tally.counts["started again, no valid checkpoint"] += 1
            self.tally.lose("damage of every checkpoint", last_logged)
            run.start_again()
            return True
        run.newest, run.resume = int(valid.name.removeprefix("step-")), str(valid)
        self.tally.lose("damage", last_logged - run.newest)
        return True

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)

    def fail(self, launch: Launch, text: str) -> None:
        """Record a failed check."""
        failure = f"{launch.run.name}: {text} [{launch.transcript}]"
        self.tally.failures.append(failure)
        self.say(f"FAILED {failure}")


def newest_valid(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint whose files are all unchanged, or None."""
    for row in reversed(list_checkpoints(checkpoints.parent, verify=True)):
        if not row.fault:
            return checkpoints / row.name
    return None


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="how long faults are injected (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all random choices (default: 1)")
    parser.add_argument("--folder", type=Path, help="an empty or new folder for the runs (default: one under /tmp)")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    if options.folder is not None and options.folder.exists() and any(options.folder.iterdir()):
        raise SystemExit(f"--folder {options.folder} must be empty or new")
    root = (options.folder or Path(tempfile.mkdtemp(prefix="rlhf-chaos-"))).resolve()
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    chaos = Chaos(root, options.minutes, options.seed)
    chaos.play()
    print(f"\n{table(chaos.tally, time.monotonic() - chaos.began)}")
    if chaos.tally.failures:
        print("\n".join(chaos.tally.failures), f"\neverything is kept in {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
