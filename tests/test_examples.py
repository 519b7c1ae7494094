"""The examples for clusters: their command lines are ours, their scripts end as they say."""

import os
import re
import shlex
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
import typer

from wsss.cli.main import app
from wsss.runtime.bulk.run import Shard

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
FILES = sorted(EXAMPLES.glob("label_*"))
VARIABLES = {
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "16",
    "SLURM_CPUS_PER_TASK": "8",
    "JOB_COMPLETION_INDEX": "3",
}


def commands(text):
    """Words of each `wsss` command, with the variables that the scheduler sets."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^\s*(?:srun )?(wsss .*)$", text, re.MULTILINE)
    for line in lines:
        command = re.split(r" (?:&|\|\|)(?: |$)", line)[0]
        yield shlex.split(re.sub(r"\$(\w+)", lambda found: VARIABLES[found[1]], command))


def script(path):
    """What the shell runs: the file itself, or the block of a pod's container."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        return text
    (block,) = re.findall(r"^ +- \|\n((?: {14}.*\n)+)", text, re.MULTILINE)
    return textwrap.dedent(block)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_command_lines_are_taken_by_the_command(path):
    found = list(commands(script(path)))
    assert found
    for _, name, *words in found:
        command = typer.main.get_command(app).commands[name]
        values = command.make_context(name, words).params
        if "merge" in path.name:
            assert values["merge"]
        else:
            assert Shard.parse(values["shard"]) == Shard(3, 16)
            assert values["images"]
            assert values["model"]


def test_all_shards_are_run():
    assert "#SBATCH --array=0-15%" in (EXAMPLES / "label_slurm_array.sh").read_text()
    job = (EXAMPLES / "label_kubernetes.yaml").read_text()
    assert re.search(r"^  completions: 16$", job, re.MULTILINE)
    assert "$JOB_COMPLETION_INDEX/16" in job


@pytest.fixture
def shell(tmp_path):
    """Starts a script with a `wsss` and a scheduler of its own."""

    def start(path, wsss):
        for name, text in {"wsss": wsss, "srun": 'exec "$@"'}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        variables = {**VARIABLES, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        program = "bash" if path.suffix == ".sh" else "sh"
        return subprocess.Popen([program, "-c", script(path)], env=variables, cwd=tmp_path)

    return start


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 0), (1, 1), (2, 2), (130, 130)])
def test_failed_images_alone_do_not_fail_a_shard(shell, path, code, expected):
    assert shell(path, f"exit {code}").wait(30) == expected


def test_a_pod_passes_the_signal_on_and_waits(shell, tmp_path):
    wsss = (
        "trap 'sleep 0.3; touch finished; exit 130' TERM; touch begun; while :; do sleep 0.1; done"
    )
    process = shell(EXAMPLES / "label_kubernetes.yaml", wsss)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert (tmp_path / "finished").exists()


def test_a_pod_ends_with_a_command_that_a_signal_ended(shell):
    """As one before `wsss` listens to signals does."""
    assert shell(EXAMPLES / "label_kubernetes.yaml", "kill -TERM $$").wait(30) == 143


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_kubernetes_reads_them(path):
    """As far as this can be told without a cluster."""
    yaml = pytest.importorskip("yaml", reason="PyYAML, in no extra of ours; passed with 6.0.3")
    job = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    assert container["args"] == [script(path)]
