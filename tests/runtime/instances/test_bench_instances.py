import numpy as np
import torch
from instance_scenes import ideal_displacement, outline, walk_settings
from pytest import approx, raises

from wsss.bench import instances
from wsss.bench import published_operators as published
from wsss.bench.instances import InstanceCase, bench_instances
from wsss.errors import WsssError
from wsss.runtime.instances.settings import InstanceSettings


def case():
    objects = np.zeros((20, 36), int)
    objects[2:18, 2:18], objects[2:18, 18:34] = 1, 2
    scores = torch.from_numpy((objects > 0).astype(np.float32))[None]
    return InstanceCase((80, 144), scores, outline(objects), ideal_displacement(objects))


def test_rows_tell_every_stage():
    walk = walk_settings(tolerance=1e-4, steps=16)
    rows = list(bench_instances(case(), walk, InstanceSettings(steps=20), batch=3, rounds=1))
    assert [(row.stage, row.batch) for row in rows] == [
        ("refine", 1),
        ("refine, batch", 3),
        ("cluster", 1),
        ("walk", 1),
        ("label", 1),
    ]
    assert all(row.planes == 3 and row.grid == (20, 36) for row in rows)
    assert [row.speedup is None for row in rows] == [False, False, True, True, False]
    for row in rows:
        if row.speedup is not None:
            assert row.speedup == approx(row.published_seconds / row.seconds_per_image)


def test_no_speed_of_wrong_centroids(monkeypatch):
    monkeypatch.setattr(published, "follow_displacement", lambda field, steps: 0 * field)
    with raises(WsssError, match=r"of the cells arrive where the published form arrives"):
        next(bench_instances(case(), walk_settings(), InstanceSettings()))
    assert instances.LEAST_AGREEMENT > 0.9
