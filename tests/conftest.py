"""Options, fixtures and guards that every layer of tests shares."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# Ray detaches the processes that it starts, so parentage does not tell whose they are; what they
# inherited in their environment does.
SESSION_MARK = "RLFT_TEST_SESSION"
RAY_PROCESSES = frozenset({"raylet", "gcs_server"})
SHUTDOWN_S = 15.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        metavar="DIR",
        default=None,
        help="folder of data sets for the tests that read real data; without it they are skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--data")
    if given is not None and not Path(given).is_dir():
        raise pytest.UsageError(f"--data {given}: no such folder; give one, or leave --data out")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch finds none")


@pytest.fixture(scope="session")
def data_dir(pytestconfig: pytest.Config) -> Path:
    given = pytestconfig.getoption("--data")
    if given is None:
        pytest.skip("needs real data: pytest --data DIR")
    return Path(given).resolve()


def ray_processes(mark: str) -> list[psutil.Process]:
    """Running raylet and gcs_server processes that were started, at any depth, under `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() in RAY_PROCESSES and process.environ().get(SESSION_MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue  # gone meanwhile, or another user's: not ours either way
    return found


@pytest.fixture(scope="session", autouse=True)
def no_ray_left_behind() -> Iterator[None]:
    """Fails the session if it leaves a Ray cluster running, and stops that one and no other.

    It is autouse and session-wide, so it is set up first and torn down after every cluster fixture.
    """
    mark = os.environ[SESSION_MARK] = uuid.uuid4().hex
    yield
    deadline = time.monotonic() + SHUTDOWN_S
    while (left := ray_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    del os.environ[SESSION_MARK]
    if left:
        names = ", ".join(f"{process.name()} ({process.pid})" for process in left)
        for process in left:
            process.terminate()
        pytest.fail(f"the tests left Ray running: {names}; call ray.shutdown() in the fixture")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One private cluster for all tests that need actors; runs in this process join it."""
    import ray

    root = Path(__file__).resolve().parents[1]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests" / "support")])
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("RAY_worker_niceness", "0")  # as in a private cluster of a run
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=512 * 2**20,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained quickstart model: 0.5M float32 parameters, 19 tokens."""
    from envs.addition import build_model

    folder = tmp_path_factory.mktemp("tiny") / "model"
    model, tokenizer = build_model(seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
