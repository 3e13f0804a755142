"""examples/cluster: the cluster YAML by Ray's own schema, the RayJob by KubeRay's fields, the Slurm script
with commands that only record."""

import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples/cluster"
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
RAY = next(name.partition("==")[2] for name in DEPENDENCIES if name.startswith("ray["))

# Fields of ray.io/v1 as the types of KubeRay document them (RayJobSpec, RayClusterSpec, HeadGroupSpec,
# WorkerGroupSpec).
JOB = {
    "activeDeadlineSeconds",
    "authOptions",
    "autoscalerOptions",
    "backoffLimit",
    "clusterSelector",
    "deletionStrategy",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "managedBy",
    "metadata",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
CLUSTER = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions",
    "headGroupSpec",
    "headServiceAnnotations",
    "managedBy",
    "rayVersion",
    "suspend",
    "workerGroupSpecs",
}
HEAD = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
WORKERS = {
    "groupName",
    "idleTimeoutSeconds",
    "labels",
    "maxReplicas",
    "minReplicas",
    "numOfHosts",
    "rayStartParams",
    "replicas",
    "resources",
    "scaleStrategy",
    "suspend",
    "template",
}


def load(name):
    return yaml.safe_load((EXAMPLES / name).read_text())


def test_the_cluster_yaml_fits_the_schema_of_ray_up():
    config = prepare_config(load("ray_cluster.yaml"))
    validate_config(config)
    nodes = config["available_node_types"][config["head_node_type"]]
    assert nodes["min_workers"] == 1 and nodes["max_workers"] == 3 == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize(
    "environment", [load("runtime_env.yaml"), yaml.safe_load(load("rayjob.yaml")["spec"]["runtimeEnvYAML"])]
)
def test_runtime_environments(environment):
    assert set(environment) <= RuntimeEnv.known_fields
    assert RuntimeEnv(**environment)["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "240"


def test_the_rayjob_has_the_fields_of_kuberay():
    job = load("rayjob.yaml")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]{,45}[a-z0-9])?", job["metadata"]["name"])
    assert set(spec) <= JOB and set(cluster) <= CLUSTER and set(head) <= HEAD and set(workers) <= WORKERS
    assert (
        spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode")
        and spec["backoffLimit"] > 0
        and "jobId" not in spec
    )
    assert (
        0 < workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
        and cluster["enableInTreeAutoscaling"]
    )
    assert all(
        isinstance(value, str) for group in (head, workers) for value in group["rayStartParams"].values()
    )


def test_pods_of_the_rayjob_share_storage_and_have_time_to_save():
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert subprocess.run(["bash", "-n", "-c", command[2]]).returncode == 0
        assert int(re.search(r"timeout (\d+)", command[2])[1]) < pod["terminationGracePeriodSeconds"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == "srft-ray-shared"
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_manifest_by_the_kubernetes_client():
    """Every key of the pod templates is one of Kubernetes' own models."""
    client = pytest.importorskip("kubernetes.client", reason="the kubernetes package is not installed")
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        check_model(client, group["template"], "V1PodTemplateSpec")


def check_model(client, value, kind):
    if inner := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        return [check_model(client, item, inner[1]) for item in value]
    if inner := re.fullmatch(r"[Dd]ict[(\[]str, (.*)[)\]]", kind):
        return [check_model(client, item, inner[1]) for item in value.values()]
    if (model := getattr(client, kind, None)) is None:
        assert isinstance(value, {"int": int, "bool": bool, "float": float}.get(kind, str | int)), (
            kind,
            value,
        )
        return []
    types = {json: model.openapi_types[name] for name, json in model.attribute_map.items()}
    assert set(value) <= set(types), (kind, set(value) - set(types))
    return [check_model(client, item, types[key]) for key, item in value.items()]


def test_versions_agree_with_pyproject():
    text = "".join(path.read_text() for path in EXAMPLES.iterdir())
    assert {found.rstrip(".") for found in re.findall(r"ray:?(?:Version: \")?(2\.[\d.]+)", text)} == {RAY}
    assert set(re.findall(r"-(py\d+)", text)) == {"py311"}


# Slurm

STUBS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1",
    "sleep": '[ "$1" != 5 ] || set -- 0.2\nexec /bin/sleep "$@"',  # between looks at the nodes
    "python": 'echo "${ALIVE:-$(grep -c "^ray start" "$LOG")}"',  # a node lives when its Ray has started
    "ray": 'echo "ray $*" >> "$LOG"; [ "$1" != start ] || [ "${ALIVE:-2}" = 0 ] || exec sleep 2',
    "scontrol": 'case "$1" in show) printf "n1\\nn2\\n" ;; *) echo "scontrol $*" >> "$LOG" ;; esac',
    "srft-ray": 'trap \'echo saved >> "$LOG"; exit ${SAVED:-0}\' TERM\necho "srft-ray $*" >> "$LOG"\n'
    '[ -n "${CODE:-}" ] && exit "$CODE"\nfor _ in $(seq 600); do /bin/sleep 0.05; done',
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the script with commands that write what they are asked to tmp_path/log."""
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def start(**variables):
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LOG": str(tmp_path / "log"),
            "HOME": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_GPUS_ON_NODE": "2",
            **variables,
        }
        return subprocess.Popen(
            ["bash", EXAMPLES / "slurm.sh", "my.yaml", "run.dir=/x y"],
            env=environment,
            start_new_session=True,
        )

    return start


def log(tmp_path, line=None):
    path, deadline = tmp_path / "log", time.time() + 20
    while line is not None and not (path.exists() and line in path.read_text()):
        assert time.time() < deadline
        time.sleep(0.05)
    return path.read_text()


def test_slurm_script_starts_ray_and_the_run(slurm, tmp_path):
    assert slurm(CODE="0").wait(20) == 0
    text = log(tmp_path)
    assert (
        "ray get-auth-token --generate" in text
        and "srft-ray train my.yaml run.dir=/x y" in text
        and "requeue" not in text
    )
    assert re.search(r"ray start --head --block .*--port=6379 .*--num-cpus=4 --num-gpus=2", text)
    assert "ray start --block --address=10.0.0.1:6379" in text


@pytest.mark.parametrize(("variables", "code", "requeued"), [({}, 0, True), ({"SAVED": "1"}, 1, False)])
def test_slurm_script_queues_a_preempted_run_again(slurm, tmp_path, variables, code, requeued):
    job = slurm(**variables)
    log(tmp_path, "srft-ray train")
    time.sleep(0.2)  # the script goes on to wait
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == code
    assert "saved" in log(tmp_path) and ("scontrol requeue 7" in log(tmp_path)) == requeued


def test_slurm_script_that_is_preempted_before_the_run_starts(slurm, tmp_path):
    job = slurm(ALIVE="1")
    log(tmp_path, "ray start --head")
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 0
    assert "scontrol requeue 7" in log(tmp_path) and "srft-ray" not in log(tmp_path)


def test_slurm_script_passes_on_the_code_of_a_failed_run(slurm, tmp_path):
    assert slurm(CODE="1").wait(20) == 1
    assert "requeue" not in log(tmp_path)


def test_slurm_script_ends_if_ray_does_not_start(slurm, tmp_path):
    assert slurm(ALIVE="0").wait(20) != 0
    assert "srft-ray" not in log(tmp_path)


def test_slurm_script_is_clean():
    assert subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"]).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", EXAMPLES / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_accepts_the_script():
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm controller answers here")
    done = subprocess.run(
        [
            "sbatch",
            "--test-only",
            "--nodes=1",
            "--gpus-per-node=0",
            "--cpus-per-task=1",
            EXAMPLES / "slurm.sh",
            "my.yaml",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
