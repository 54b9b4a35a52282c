"""The GitHub Action, the GitLab template and the worked example: their very commands, run by bash as CI runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

import finished_run
from hawkeye.config import Recipe
from hawkeye.store import open_store

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())
EXAMPLE = ROOT / "examples" / "ci"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository with a recipe, a checkpoint and data, and a `hawkeye` whose stages are tiny."""
    finished_run.recipe(tmp_path)
    (tmp_path / "recipe.toml").write_text(
        'model = "model-0.0.pt"\ndata = "data/data.yaml"\nimgsz = 64\nstore = "models"\n'
        "[gates]\nclass_drop = 20\nclass_objects = 5\n"
    )
    command = tmp_path / "bin" / "hawkeye"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{finished_run.__file__}" "$@"\n')
    command.chmod(0o755)
    return tmp_path


def bash(script: str, place: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """As GitHub's `shell: bash` and GitLab's runner start it: stop at the first failure, also in a pipe."""
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=place, text=True,
                          capture_output=True, check=False, env={**os.environ, **env, "PATH": path})  # fmt: skip


class Job:
    """The composite action, walked through as a runner does: conditions, environment, outputs, summary."""

    def __init__(self, place: Path, **given: str) -> None:
        self.place = place
        self.inputs = {name: str(entry.get("default", "")) for name, entry in ACTION["inputs"].items()} | given
        self.outputs: dict[str, str] = {}
        self.ran: list[str] = []
        self.code = 0
        self.text = ""
        for name in ("output", "summary"):
            (place / name).write_text("")
        for step in ACTION["runs"]["steps"]:
            if self._holds(step.get("if", "true")):
                self._run(step)
                if self.code:
                    break

    def _value(self, expression: str) -> str:
        expression = expression.strip()
        if match := re.fullmatch(r"inputs\.(\w+)", expression):
            return self.inputs[match[1]]
        if match := re.fullmatch(r"steps\.(\w+)\.outputs\.(\w+)", expression):
            return self.outputs.get(f"{match[1]}.{match[2]}", "")
        if match := re.fullmatch(r"'(.*)'", expression):
            return match[1]
        raise AssertionError(f"an expression that this test cannot judge: {expression}")

    def _holds(self, condition: str) -> bool:
        if condition == "true":
            return True
        found = [re.fullmatch(r"(.+?) (==|!=) (.+)", part.strip()) for part in condition.split("&&")]
        assert all(found), condition
        return all((self._value(m[1]) == self._value(m[3])) is (m[2] == "==") for m in found if m)

    def _run(self, step: dict[str, Any]) -> None:
        assert step["shell"] == "bash"
        env = {name: self._value(value[3:-2]) for name, value in step.get("env", {}).items()}
        done = bash(step["run"], self.place, {**env, "GITHUB_OUTPUT": str(self.place / "output"),
                                              "GITHUB_STEP_SUMMARY": str(self.place / "summary")})  # fmt: skip
        for line in (self.place / "output").read_text().splitlines():
            key, _, value = line.partition("=")
            self.outputs[f"{step['id']}.{key}"] = value
        (self.place / "output").write_text("")
        self.ran.append(step["name"])
        self.code, self.text = done.returncode, self.text + done.stdout + done.stderr

    def output(self, name: str) -> str:
        """An output of the whole action."""
        return self._value(ACTION["outputs"][name]["value"][3:-2])

    @property
    def summary(self) -> str:
        return (self.place / "summary").read_text()


def action(place: Path, **given: str) -> Job:
    return Job(place, **{"config": "recipe.toml", "extras": "", "release": "true", **given})


def test_the_action_from_the_first_release_to_a_rejected_one(place: Path) -> None:
    first = action(place)
    assert first.code == 0, first.text
    assert first.ran == ["Has anything changed?", "Optimize and judge", "Release"]
    assert (first.output("changed"), first.output("passed")) == ("true", "true")
    assert "every gate is passed" in first.summary and "| pruned + INT8 |" in first.summary
    assert len(open_store(str(place / "models")).history()) == 1

    shutil.rmtree(place / "runs")  # a fresh runner, without a cache
    idle = action(place)
    assert (idle.code, idle.ran, idle.output("changed")) == (0, ["Has anything changed?"], "false")

    (place / "model-0.0.pt").write_text("0.5")  # the base model has become worse
    rejected = action(place, out="runs/worse")
    assert rejected.code == 3 and rejected.ran[-1] == "Optimize and judge", "it must not come to the release"
    assert (rejected.output("changed"), rejected.output("passed")) == ("true", "false")
    assert "a gate is missed" in rejected.summary and "below the released model" in rejected.summary
    assert len(open_store(str(place / "models")).history()) == 1
    suite = ElementTree.parse(place / "hawkeye-gates.xml").getroot()
    missed = {case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None}
    assert missed == {"max_drop", "class_drop", "released_drop", "released_class_drop"}
    assert action(place, out="runs/worse").ran == ["Has anything changed?"], "what was rejected is not made again"


def stand_in_for_pip(place: Path) -> Path:
    """A `python` that only writes down its arguments, one a line; returns where."""
    stand_in = place / "bin" / "python"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{place}/pip"\n')
    stand_in.chmod(0o755)
    return place / "pip"


def test_what_the_action_installs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTION_PATH", str(ROOT))
    asked = stand_in_for_pip(place)
    pip = ["-m", "pip", "install"]
    assert action(place, extras="compress,store").ran[0] == "Install"
    assert asked.read_text().splitlines() == [*pip, f"{ROOT}[compress,store]"], "its own version, from its checkout"
    action(place, extras="compress,store", drivers="s3fs gcsfs; touch hacked")
    assert asked.read_text().splitlines()[4:] == ["s3fs", "gcsfs;", "touch", "hacked"]


def test_bad_input_fails_the_action_with_its_message(place: Path) -> None:
    (place / "recipe.toml").write_text("[prune]\nflop = 0.7\n")
    job = action(place)
    assert (job.code, job.ran) == (2, ["Has anything changed?"])
    assert "prune.flop: unknown key" in job.text


def test_inputs_never_become_a_part_of_a_command() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"], "an input would be run as shell"


# --- GitLab


def gitlab(place: Path, job: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A job of the template with what it extends, its lines in one shell."""
    parts = [GITLAB[job]]
    while "extends" in parts[0]:
        parts.insert(0, GITLAB[parts[0]["extends"]])
    env = {k: str(v) for part in (GITLAB, *parts) for k, v in part.get("variables", {}).items()}
    lines = [line for key in ("before_script", "script") for part in parts for line in part.get(key, [])]
    assert all(isinstance(line, str) for line in lines), "YAML took a line for something else"
    return bash("\n".join(lines), place, {**env, "HAWKEYE_INSTALL": "", "HAWKEYE_CONFIG": "recipe.toml", **variables})


def test_the_gitlab_jobs(place: Path) -> None:
    early = gitlab(place, ".hawkeye-release")
    assert early.returncode == 0 and "nothing to release" in early.stdout
    first = gitlab(place, ".hawkeye-optimize")
    assert first.returncode == 0, first.stderr
    assert "every gate is passed" in (place / "hawkeye-summary.md").read_text()
    assert gitlab(place, ".hawkeye-release").returncode == 0
    again = gitlab(place, ".hawkeye-optimize", HAWKEYE_OUT="runs/other")
    assert again.returncode == 0 and "unchanged since the released version" in again.stdout
    (place / "slow.toml").write_text((place / "recipe.toml").read_text().replace("imgsz", "seed = 1\nimgsz"))
    slow = gitlab(place, ".hawkeye-optimize", HAWKEYE_OUT="runs/slow", HAWKEYE_CONFIG="slow.toml",
                  FINISHED_RUN_LATENCY_MS="20")  # fmt: skip
    assert slow.returncode == 3 and "gate released_latency: 2.000 (limit 1.100) MISSED" in slow.stdout
    assert gitlab(place, ".hawkeye-release", HAWKEYE_OUT="runs/slow").returncode == 3
    assert len(open_store(str(place / "models")).history()) == 1


def test_the_gitlab_release_job_leaves_runs_of_other_days_alone(place: Path) -> None:
    assert gitlab(place, ".hawkeye-optimize").returncode == 0
    (place / "hawkeye-summary.md").unlink()  # the next pipeline: a fresh checkout, with the cache of the run
    again = gitlab(place, ".hawkeye-optimize")
    assert (again.returncode, "unchanged since the run in" in again.stdout) == (0, True)
    assert (place / "runs" / "candidate" / "report.json").is_file()
    late = gitlab(place, ".hawkeye-release")
    assert late.returncode == 0 and "nothing to release" in late.stdout
    assert not open_store(str(place / "models")).history()


def test_what_the_gitlab_jobs_install(place: Path) -> None:
    asked = stand_in_for_pip(place)
    variables = yaml.safe_load((EXAMPLE / "gitlab-ci.yml").read_text())["variables"]
    gitlab(place, ".hawkeye-release", HAWKEYE_INSTALL=variables["HAWKEYE_INSTALL"])
    where = "git+https://gitlab.example.com/your-group/hawkeye.git"
    assert asked.read_text().splitlines()[3:] == [f"hawkeye[compress,store] @ {where}", "s3fs"]


def test_what_the_gitlab_template_writes_is_what_it_keeps() -> None:
    job = GITLAB[".hawkeye-optimize"]
    script = "\n".join(job["script"])
    assert job["artifacts"]["reports"]["junit"] in script and "hawkeye-summary.md" in job["artifacts"]["paths"]


# --- the worked example


def test_the_example_works_command_by_command(place: Path) -> None:
    shutil.copytree(EXAMPLE, place / "examples" / "ci")
    demo = place / "runs" / "demo"  # what `hawkeye demo` leaves behind, apart from its size
    shutil.copytree(place / "data", demo / "data")
    (demo / "run" / "0-original").mkdir(parents=True)
    shutil.copy(place / "model-0.0.pt", demo / "run" / "0-original" / "original.pt")
    path = place / "examples" / "ci" / "recipe.toml"
    path.write_text(
        path.read_text().replace("imgsz = 320", "imgsz = 64").replace("[gates]", "[gates]\nclass_objects = 5")
    )
    blocks = re.findall(r"```bash\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    first = bash(blocks[0], place, {})
    assert first.returncode == 0, first.stdout + first.stderr
    assert "unchanged since the released version" in first.stdout
    second = bash(blocks[1], place, {})
    assert second.returncode == 0, second.stdout + second.stderr
    assert "changed: exit code 4" in second.stdout and "recover.budget (90.0 → 120.0)" in second.stdout
    assert [e.action for e in open_store(str(place / "models")).history()] == ["release", "release", "rollback"]


def test_the_example_is_the_demo() -> None:
    recipe = Recipe.load(EXAMPLE / "recipe.toml")
    demo = Recipe.load(ROOT / "configs" / "demo.toml")
    same = ("imgsz", "seed", "prune", "recover", "quantize", "benchmark")
    assert {key: getattr(recipe, key) for key in same} == {key: getattr(demo, key) for key in same}
    assert recipe.gates.max_drop == demo.gates.max_drop


def test_the_example_pipelines_use_what_exists() -> None:
    workflow = yaml.safe_load((EXAMPLE / "github-workflow.yml").read_text())
    steps = workflow["jobs"]["detector"]["steps"]
    used = next(step for step in steps if "hawkeye@" in step["uses"])
    assert set(used["with"]) <= set(ACTION["inputs"]), "an input that the action does not have"
    assert all("default" in e or name in used["with"] for name, e in ACTION["inputs"].items())
    assert workflow[True]["schedule"], "YAML reads `on` as true"
    pipeline = yaml.safe_load((EXAMPLE / "gitlab-ci.yml").read_text())
    assert pipeline["include"][0]["file"] == "ci/gitlab.yml"
    for name in ("optimize", "release"):
        assert pipeline[name]["extends"] in GITLAB
    for rule in pipeline["release"]["rules"]:  # a job in a pipeline without one that it needs is refused by GitLab
        assert any(
            set(other) <= set(rule) and other.get("if", "") in rule["if"] for other in pipeline["optimize"]["rules"]
        )
