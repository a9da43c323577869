"""What the job runner tells the web processes of itself: who it is and what it computes with."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from converters.durable import replacing

FILE_NAME = "worker.json"
STATE_NAME = "worker.state"
TROUBLE_NAME = "worker.trouble"
STARTING = "loading the model"
READY = "ready"


@dataclass(frozen=True, slots=True)
class RunnerRecord:
    """One job runner.

    Attributes:
        pid: its process id.
        device: where the trunk runs, such as "cpu" or the name of a GPU.
        precision: "bfloat16" or "float32".
        trunk_id: identifies weights, taps, pooling and precision.
    """

    pid: int
    device: str
    precision: str
    trunk_id: str

    def write(self, data_dir: Path) -> None:
        """Store it for `read_runner` in other processes."""
        with replacing(data_dir / FILE_NAME) as path:
            path.write_text(json.dumps(asdict(self)))

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs; a number that was given away is told by its command."""
        try:
            return "backend.worker" in psutil.Process(self.pid).cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            return False


def read_runner(data_dir: Path) -> RunnerRecord | None:
    """The last job runner that had its model; None before the first, or if the file is damaged."""
    try:
        return RunnerRecord(**json.loads((data_dir / FILE_NAME).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def describe_runner(trunk_id: str) -> RunnerRecord:
    """This process as a job runner whose trunk is loaded."""
    import torch  # noqa: PLC0415  # web processes read records without it

    from backend.precision import fastest_precision  # noqa: PLC0415

    has_gpu = torch.cuda.is_available()
    place = torch.device("cuda" if has_gpu else "cpu")
    return RunnerRecord(
        pid=os.getpid(),
        device=torch.cuda.get_device_name() if has_gpu else "cpu",
        precision=str(fastest_precision(place)).removeprefix("torch."),
        trunk_id=trunk_id,
    )


def read_state(data_dir: Path) -> str:
    """`READY`, or in a sentence what the job runner waits for or died of."""
    path = data_dir / STATE_NAME
    return path.read_text() if path.exists() else STARTING


def write_state(data_dir: Path, state: str) -> None:
    """Record the state for `read_state` in other processes."""
    with replacing(data_dir / STATE_NAME) as path:
        path.write_text(state)


def read_trouble(data_dir: Path) -> str:
    """What keeps the job runner from its work, in a sentence; '' when nothing does."""
    path = data_dir / TROUBLE_NAME
    return path.read_text() if path.exists() else ""


def write_trouble(data_dir: Path, trouble: str) -> None:
    """Record a trouble for `read_trouble` in other processes, or with '' that it is over."""
    path = data_dir / TROUBLE_NAME
    if not trouble:
        path.unlink(missing_ok=True)
    elif trouble != read_trouble(data_dir):
        with replacing(path) as temporary:
            temporary.write_text(trouble)
