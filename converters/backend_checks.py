"""What `cellai doctor` says about the backend, from the facts that the backend reports."""

from collections.abc import Iterator, Mapping
from typing import Any

from converters.check import Check, advice, ok, problem

GB = 1e9
LITTLE_DISK_GB = 1.0
SOME_DISK_GB = 5.0
FEW_CORES = 2
# No stage lasts so long without a sign of life: a training takes minutes at most.
STUCK_SECONDS = 900.0
# The quiet period is ten seconds; a mark that waits so long is not seen by anybody.
UNSEEN_SECONDS = 600.0
LOG = "the backend's log says more (DATA_DIR/logs/backend.log of `cellai up`)"


def check_backend(facts: Mapping[str, Any], *, project_id: int | None = None) -> Iterator[Check]:
    """Checks of a backend that answers.

    Args:
        facts: JSON of its /diagnosis.
        project_id: the project whose jobs are of interest; None for all.
    """
    yield _access(facts["label_studio"])
    yield from _runner(facts["runner"])
    yield _machine(facts["machine"], facts["runner"])
    for disk in facts["disks"]:
        yield _disk(disk)
    for project in facts["projects"]:
        if project_id in {None, project["project_id"]}:
            yield _jobs(project)


def _access(label_studio: Mapping[str, Any]) -> Check:
    if label_studio["problem"]:
        return problem(
            "Backend to Label Studio",
            label_studio["problem"],
            "Correct CELLAI_LABEL_STUDIO_URL and CELLAI_LABEL_STUDIO_API_KEY of the backend.",
        )
    return ok("Backend to Label Studio", f"{label_studio['url']} takes its API key")


def _runner(runner: Mapping[str, Any]) -> Iterator[Check]:
    state = runner["state"]
    if state == "loading the model":
        yield advice("Weights", "The model is being loaded.", "Ask again in a minute.")
    elif state != "ready":
        yield problem("Weights", state, f"Give them with --weights or CELLAI_WEIGHTS; {LOG}.")
    else:
        yield ok("Weights", f"loaded, trunk {runner['trunk_id']}")
    if runner["trouble"]:
        yield problem("Job runner", runner["trouble"], f"Remove the cause; {LOG}.")
    elif state == "ready" and not runner["is_alive"]:
        yield problem("Job runner", "It is not running.", f"Restart the backend; {LOG}.")
    elif runner["is_alive"]:
        yield ok("Job runner", "running")


def _machine(machine: Mapping[str, Any], runner: Mapping[str, Any]) -> Check:
    cores, device, precision = machine["cores"], runner["device"], runner["precision"]
    found = (
        f"{cores} cores, {machine['memory_bytes'] / GB:.0f} GB memory, features on"
        f" {device or 'nothing yet'} in {precision or 'nothing yet'}"
    )
    if cores < FEW_CORES and device == "cpu":
        return advice(
            "Machine", found, "Give the backend two cores: Label Studio needs one while it trains."
        )
    if device == "cpu" and precision != "bfloat16":
        return advice(
            "Machine",
            found,
            "A processor with bfloat16 (AVX512-BF16 or AMX) or a CUDA GPU computes the features of"
            " a new import several times faster; nothing else depends on it.",
        )
    return ok("Machine", found)


def _disk(disk: Mapping[str, Any]) -> Check:
    folder = disk["folder"]
    if disk["refusal"]:
        return problem(
            "Disk",
            f"{folder} cannot be written: {disk['refusal']}.",
            "The backend's user must be able to write files there.",
        )
    free_gb = disk["free_bytes"] / GB
    found = f"{free_gb:.1f} GB free at {folder}"
    if free_gb < LITTLE_DISK_GB:
        return problem("Disk", found, "Make room: nothing can be stored soon.")
    if free_gb < SOME_DISK_GB:
        return advice("Disk", found, "Make room, or lower CELLAI_FEATURE_CACHE_GB (8 by default).")
    return ok("Disk", found)


def _jobs(project: Mapping[str, Any]) -> Check:
    name = f"Jobs of project {project['project_id']}"
    silent, waiting = project["silent_seconds"], project["waiting_seconds"]
    if silent is not None and silent > STUCK_SECONDS:
        return problem(
            name,
            f"The running job has been at {project['stage']!r} for {silent / 60:.0f} minutes.",
            f"Restart the backend, the job goes on; {LOG}.",
        )
    if project["failures"]:
        return problem(
            name,
            f"The last {project['failures']} failed: {project['error']}",
            f"Remove the cause, it is tried again by itself; {LOG}.",
        )
    if silent is None and waiting is not None and waiting > UNSEEN_SECONDS:
        return problem(
            name,
            f"Changes have waited for {waiting / 60:.0f} minutes.",
            f"Restart the backend; {LOG}.",
        )
    return ok(name, f"running: {project['stage']}" if project["stage"] else "nothing stuck")
