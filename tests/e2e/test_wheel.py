"""A wheel, installed in a clean virtual environment, runs the command."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from tests.conftest import REPOSITORY, child_environment


def test_the_wheel_holds_all_and_runs(tmp_path):
    """The dependencies are lent from this environment's site-packages; the package itself comes from the wheel."""
    source = tmp_path / "source"  # setuptools leaves a build folder beside what it reads, and reads it the next time
    shutil.copytree(REPOSITORY, source, ignore=shutil.ignore_patterns(".*", "build", "outputs", "*.egg-info"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, capture_output=True, text=True, check=True, timeout=120)
    (wheel,) = tmp_path.glob("rlhf-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("conf/train_ppo.yaml", "conf/experiment/train_rm/demo.yaml", "demo/preferences_train.jsonl"):
        assert f"rlhf_cli/{name}" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"rlhf_cli"}
    clean = tmp_path / "venv"
    venv.create(clean, with_pip=True)
    python = clean / "bin/python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    (packages,) = clean.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text("\n".join(site.getsitepackages()))
    done = subprocess.run(
        [str(clean / "bin/rlhf"), "train-ppo", "conf=tiny", "ppo.num_steps=1", "eval.num_prompts=0"],
        cwd=tmp_path, env=child_environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/tiny/report.html").is_file()  # its template and script are in the wheel
    where = subprocess.run(
        [str(python), "-c", "import rlhf_cli; print(rlhf_cli.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(clean)
