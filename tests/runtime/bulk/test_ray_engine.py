"""Ray actors give what local processes give, whoever dies; needs `wsss[ray]`."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from local_model import POISON, LocalModel, write_images

from wsss.errors import ConfigError, MissingDependencyError
from wsss.runtime.bulk.image_list.frozen_list import unit_size_for
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bulk.work import ray_engine

TESTS = Path(__file__).parents[2]


def files(out):
    """Every output that counts, by its path."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for part in ("masks", "units", "inputs")
        for path in sorted((out / part).rglob("*"))
        if path.is_file()
    }


def kill_some(pids, count, killed):
    """Kills workers that have opened the model, one after the other."""
    while len(killed) < count:
        time.sleep(0.05)
        for path in sorted(pids.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            pid = int(path.name)
            if pid not in killed:
                time.sleep(0.3)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break


def test_without_ray_the_error_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    images = write_images(tmp_path / "images", 1)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wsss\[ray\]'"):
        label_in_bulk([images], LocalModel(), tmp_path / "out", engine="ray")


def test_options_that_do_not_fit(tmp_path):
    images = write_images(tmp_path / "images", 1)
    with pytest.raises(ConfigError, match="`workers` is 0, expected 1 or more"):
        label_in_bulk([images], LocalModel(), tmp_path / "out", engine="ray", workers=0)
    with pytest.raises(ConfigError, match="give `engine` ray as well"):
        label_in_bulk([images], LocalModel(), tmp_path / "out", ray_address="auto")


@pytest.mark.parametrize(("on_gpu", "resource"), [(False, "CPU"), (True, "GPU")])
def test_an_actor_gets_a_gpu_where_the_model_computes_on_one(
    on_gpu, resource, tmp_path, monkeypatch
):
    """Not where a server, which gets one request at a time, does so."""

    class Bare:
        def cluster_resources(self):
            return {}

    monkeypatch.setattr(ray_engine, "_connected", lambda address, workers: nullcontext(Bare()))
    images = write_images(tmp_path / "images", 1)
    model = LocalModel(workers=1, in_flight=1, on_gpu=on_gpu)
    with pytest.raises(ConfigError, match=f"the Ray cluster has no {resource}: add a node"):
        label_in_bulk([images], model, tmp_path / "out", engine="ray")


class TestWithRay:
    @pytest.fixture(autouse=True)
    def ray(self, monkeypatch):
        """Its processes find the model of these tests."""
        ray = pytest.importorskip("ray")
        paths = [str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield ray
        assert not ray.is_initialized()

    def test_same_bytes_as_local_and_set_aside_what_kills(self, tmp_path):
        images = write_images(tmp_path / "images", 40, {17: POISON})
        before = signal.getsignal(signal.SIGTERM)
        outs = {}
        for engine in ("local", "ray"):
            outs[engine] = tmp_path / engine
            summary = label_in_bulk([images], LocalModel(), outs[engine], workers=2, engine=engine)
            assert (summary.labelled, summary.failed, summary.remaining) == (39, 1, 0)
        assert files(outs["local"]) == files(outs["ray"])
        assert "image 017.png,worker-died" in (outs["ray"] / "failures.csv").read_text()
        assert signal.getsignal(signal.SIGTERM) is before

    def test_what_is_wrong_with_the_model_or_the_cluster_ends_the_job(self, tmp_path):
        images = write_images(tmp_path / "images", 3)
        model = LocalModel(pids=tmp_path / "absent")
        with pytest.raises(RuntimeError, match=r"(?s)in a worker.*FileNotFoundError"):
            label_in_bulk([images], model, tmp_path / "out", engine="ray", workers=1)
        with pytest.raises(ConfigError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
            label_in_bulk(
                [images], model, tmp_path / "out", engine="ray", ray_address="127.0.0.1:1"
            )

    @pytest.mark.slow
    def test_ctrl_c_finishes_units_under_way(self, tmp_path):
        count = 200
        images = write_images(tmp_path / "images", count)
        label_in_bulk([images], LocalModel(), tmp_path / "local", workers=1)
        out = tmp_path / "ray"
        code = f"""
from local_model import LocalModel
from pathlib import Path
from wsss.runtime.bulk.run import label_in_bulk
model = LocalModel(seconds=0.1)
label_in_bulk([{str(images)!r}], model, Path({str(out)!r}), engine="ray", workers=2)
"""
        job = subprocess.Popen(
            [sys.executable, "-c", code],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while not list(out.glob("units/*")):
            time.sleep(0.05)
            assert job.poll() is None
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does
        _, errors = job.communicate(timeout=120)
        assert "KeyboardInterrupt" in errors
        done = set(out.glob("units/*"))
        assert 0 < len(done) < count / unit_size_for(count)
        assert [path for path in (out / ".work").iterdir() if path.suffix != ".lock"] == []
        summary = label_in_bulk([images], LocalModel(), out, workers=1)
        assert summary.kept >= len(done) * unit_size_for(count) - unit_size_for(count)
        assert files(tmp_path / "local") == files(out)

    @pytest.mark.slow
    def test_three_actors_are_killed(self, tmp_path):
        count = 600
        assert count > 3 * unit_size_for(count)
        images = write_images(tmp_path / "images", count)
        label_in_bulk([images], LocalModel(), tmp_path / "local", workers=1)
        pids, killed = tmp_path / "pids", []
        pids.mkdir()
        killer = threading.Thread(target=kill_some, args=(pids, 3, killed))
        killer.start()
        model = LocalModel(seconds=0.02, pids=pids)
        summary = label_in_bulk([images], model, tmp_path / "ray", engine="ray", workers=2)
        killer.join()
        assert len(killed) == 3
        assert (summary.labelled, summary.failed) == (count, 0)
        assert files(tmp_path / "local") == files(tmp_path / "ray")

    @pytest.mark.slow
    def test_a_node_is_lost(self, tmp_path):
        from ray.cluster_utils import Cluster

        count = 600
        images = write_images(tmp_path / "images", count)
        label_in_bulk([images], LocalModel(), tmp_path / "local", workers=1)
        pids = tmp_path / "pids"
        pids.mkdir()
        one = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=one)
        try:
            other = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
            cluster.wait_for_nodes()

            def lose() -> None:
                while len(list(pids.iterdir())) < 2:
                    time.sleep(0.05)
                time.sleep(0.5)
                cluster.remove_node(other, allow_graceful=False)

            loser = threading.Thread(target=lose)
            loser.start()
            model = LocalModel(seconds=0.02, pids=pids)
            summary = label_in_bulk(
                [images],
                model,
                tmp_path / "ray",
                settings=Settings(),
                engine="ray",
                ray_address=cluster.address,
            )
            loser.join()
        finally:
            cluster.shutdown()
        assert (summary.labelled, summary.failed) == (count, 0)
        assert files(tmp_path / "local") == files(tmp_path / "ray")
