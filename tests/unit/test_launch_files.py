"""The templates for clusters against what reads them: schemas, syntax, options, and files that exist."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
TEMPLATES = ("ray-cluster.yaml", "kuberay-job.yaml", "slurm.sbatch", "Dockerfile")


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_says_what_to_change_and_that_it_was_not_run(name):
    text = (LAUNCH / name).read_text()
    assert "CHANGE" in text
    assert re.search(r"NOT (RUN|BUILT)", text)


# -- ray up ----------------------------------------------------------------------------------------


def ray_cluster() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "ray-cluster.yaml").read_text())


def ray_schema() -> dict[str, Any]:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def test_the_cluster_fits_ray_s_schema_and_a_wrong_key_would_not():
    import jsonschema

    jsonschema.validate(ray_cluster(), ray_schema())
    with pytest.raises(jsonschema.ValidationError, match="head_nodetype"):
        jsonschema.validate({**ray_cluster(), "head_nodetype": "head"}, ray_schema())


def test_the_cluster_is_consistent():
    cluster = ray_cluster()
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    workers = sum(t.get("min_workers", 0) for t in types.values())
    assert 1 <= workers <= cluster["max_workers"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in cluster[key][-1]
        assert ".venv/bin" in cluster[key][-1], "a job runs the python that `ray start` saw"
    assert any("auth_token" in place for place in cluster["file_mounts"])


# -- KubeRay ---------------------------------------------------------------------------------------


class Strict(BaseModel):
    """Part of the RayJob resource, `ray.io/v1`, as KubeRay 1.6 documents it; no other keys."""

    model_config = ConfigDict(extra="forbid")


class Resources(Strict):
    limits: dict[str, str]
    requests: dict[str, str]


class Port(Strict):
    containerPort: int
    name: str


class Mount(Strict):
    name: str
    mountPath: str
    readOnly: bool = False


class Container(Strict):
    name: str
    image: str
    ports: list[Port] = []
    resources: Resources
    volumeMounts: list[Mount] = []


class EmptyDir(Strict):
    medium: str
    sizeLimit: str


class Claim(Strict):
    claimName: str


class Volume(Strict):
    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class PodSpec(Strict):
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []


class Template(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(HeadGroup):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class AuthOptions(Strict):
    mode: str = Field(pattern="^(token|disabled)$")


class Cluster(Strict):
    rayVersion: str
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    submissionMode: str = Field(pattern="^(K8sJobMode|HTTPMode|InteractiveMode|SidecarMode)$")
    backoffLimit: int
    rayClusterSpec: Cluster


class Metadata(Strict):
    generateName: str = Field(pattern=r"^[a-z]([-a-z0-9]*)$")


class RayJob(Strict):
    apiVersion: str = Field(pattern=r"^ray\.io/v1$")
    kind: str = Field(pattern="^RayJob$")
    metadata: Metadata
    spec: JobSpec


def ray_job() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "kuberay-job.yaml").read_text())


def test_the_ray_job_has_the_resource_s_fields_and_a_wrong_one_would_not_pass():
    RayJob.model_validate(ray_job())
    tree = ray_job()
    tree["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(ValidationError, match="rayStartParam"):
        RayJob.model_validate(tree)


def test_the_ray_job_is_consistent():
    import ray

    job = RayJob.model_validate(ray_job())
    cluster = job.spec.rayClusterSpec
    assert cluster.rayVersion == ray.__version__, "the version of the locks"
    mounts = set()
    for group in [cluster.headGroupSpec, *cluster.workerGroupSpecs]:
        volumes = {v.name for v in group.template.spec.volumes}
        for container in group.template.spec.containers:
            assert {m.name for m in container.volumeMounts} <= volumes
            mounts |= {m.mountPath for m in container.volumeMounts}
    words = job.spec.entrypoint.split()
    assert words[:4] == ["python", "-m", "rlft", "run"] and (ROOT / words[4]).is_file()
    [root] = [w.removeprefix("run_root=") for w in words if w.startswith("run_root=")]
    assert any(root.startswith(f"{mount}/") for mount in mounts), "results are on a volume"


# -- Slurm -----------------------------------------------------------------------------------------

SBATCH_OPTIONS = {
    *("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time"),
    *("output", "signal", "partition", "account"),
}


def test_the_slurm_script_is_bash_with_options_that_sbatch_has():
    script = LAUNCH / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    first = next(i for i, x in enumerate(lines) if x and not x.startswith("#"))
    options = {}
    for number, line in enumerate(lines):
        if line.startswith("#SBATCH"):
            assert number < first, "sbatch stops reading options at the first command"
            match = re.match(r"#SBATCH --([a-z-]+)=(\S+)", line)
            assert match, line
            options[match[1]] = match[2]
    assert options.keys() <= SBATCH_OPTIONS
    assert options["ntasks-per-node"] == "1", "one Ray node on each"
    assert re.fullmatch(r"\d+:\d\d:\d\d", options["time"])


STAND_INS = {
    "scontrol": 'echo "$(hostname)"',
    "srun": (
        "while [[ ${1:-} == -* ]]; do [[ $1 == -w ]] && shift; shift; done\n"
        'if [[ $1 == hostname ]]; then echo 127.0.0.1; exit; fi\necho "srun $*" >>"$CALLS"\n'
        "exec sleep 50"
    ),
    "python": (
        'if [[ $1 == -m ]]; then echo "run $* at $RAY_ADDRESS" >>"$CALLS"; exit 7; fi\n'
        "case $2 in *secrets*) echo secret ;; *) echo 1 ;; esac"
    ),
}
"""What the script calls: only its own logic is run."""


def test_the_slurm_script_run_with_stand_ins_ends_with_the_run_s_code(tmp_path):
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, body in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    env = {
        "PATH": "/usr/bin:/bin",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node[1]",
        "SLURM_JOB_ID": "1234567",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_GPUS_ON_NODE": "8",
    }
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "configs/quickstart.yaml", "seed=1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr
    head, run = (tmp_path / "calls").read_text().splitlines()
    port = 20000 + 1234567 % 20000
    assert head.startswith("srun ray start --block") and f"--port={port}" in head
    assert "--num-gpus=8" in head and "--head" in head
    expected = f"run -m rlft run configs/quickstart.yaml seed=1 run_root={tmp_path}/runs"
    assert run == f"{expected} at 127.0.0.1:{port}"
    assert not list(tmp_path.glob(".ray-token-*")), "the token is gone with the job"


# -- Docker ----------------------------------------------------------------------------------------

INSTRUCTIONS = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}


def test_the_dockerfile_has_known_instructions_and_copies_what_is_there():
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [x for x in text.replace("\\\n", " ").splitlines() if x.strip()]
    words = [line.split() for line in lines]
    assert {w[0] for w in words} <= INSTRUCTIONS
    assert [w[0] for w in words][:2] == ["ARG", "FROM"]
    copied = [source for w in words if w[0] == "COPY" for source in w[1:-1]]
    assert {"locks", "rlft", "envs", "algos", "configs", "pyproject.toml"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
    names = [" ".join(w[:2]) for w in words]
    install = next(i for i, w in enumerate(words) if "locks/install.sh" in w)
    assert install > names.index("COPY rlft"), "the editable install wants the sources"


def test_templates_name_files_that_exist():
    for name in TEMPLATES:
        text = (LAUNCH / name).read_text()
        for path in re.findall(r"(?<![\w./-])((?:launch|locks|configs|docs)/[\w./-]*\w)", text):
            assert (ROOT / path).exists(), f"{name} names {path}"
