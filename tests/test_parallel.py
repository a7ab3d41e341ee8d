"Training in two processes does what one process does: loaders, weights, figures, decisions; then run folders"
import os, subprocess, sys
from pathlib import Path

import pytest
import torch

import in_two
from dlcourse.core import CourseError, kept_rng, num_threads
from dlcourse.data.blocks import dls_for
from dlcourse.training.processes import shares
from dlcourse.training.shares import SharedDL

pytest.importorskip('accelerate')
LAUNCH = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2']


def launched(*words, limit=240, **kwargs):
    "Run `words` in two processes, on one thread each; fails when they take longer than `limit` seconds"
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parent.parent)}
    free = ['--master-port', str(29600 + os.getpid() % 10000)]
    return subprocess.run([*LAUNCH, *free, *map(str, words)], env=env, capture_output=True, text=True, timeout=limit, **kwargs)


# ---- the rows ---------------------------------------------------------------------------------

@pytest.mark.parametrize('among', [1, 2, 3, 4])
@pytest.mark.parametrize('bs, drop_last', [(16, True), (7, False), (2, False), (48, False)])
def test_each_row_once(among, bs, drop_last):
    dl = dls_for('fashion_mini', n_per_class=6, bs=bs, seed=1).train
    dl.drop_last = drop_last
    def passed(dl):
        with kept_rng(): return [o[-1] for o in dl]
    state = dl.rng.getstate()
    whole, parts = passed(dl), []
    for i in range(among):
        dl.rng.setstate(state)
        parts.append(passed(SharedDL(dl, i, among)))
    for y, *shared in zip(whole, *parts, strict=True):
        sizes = shares(len(y), among)
        assert max(sizes) - min(sizes) <= 1 and sum(sizes) == len(y)
        assert torch.equal(torch.cat([o[:n] for o,n in zip(shared, sizes)]), y)


@pytest.mark.parametrize('fault', [dict(n=None), dict(bs=None)])
def test_what_cannot_be_shared_out(fault):
    dl = dls_for('fashion_mini', n_per_class=2, bs=2).train
    vars(dl).update(fault)
    with pytest.raises(CourseError, match='several processes need'): SharedDL(dl, 0, 2)


# ---- a script in two processes ------------------------------------------------------------------

@pytest.fixture(scope='module')
def found(tmp_path_factory):
    "What one process finds, and each of two"
    to = tmp_path_factory.mktemp('two')
    out = launched(in_two.__file__, to)
    assert out.returncode == 0, out.stderr
    with num_threads(1): one = in_two.both()[0]
    return one, *(torch.load(to/f'{i}.pt', weights_only=False) for i in range(2))


def near(a, b, tol=1e-5): assert torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=tol, atol=tol), (a, b)


def same(a, b, tol=1e-5):
    "Fail unless two results agree, but for the order in which numbers are added"
    near(a['weights'], b['weights'], tol)
    assert [list(o) for o in a['rows']] == [list(o) for o in b['rows']]
    near([list(o.values()) for o in a['rows']], [list(o.values()) for o in b['rows']], tol)
    near(a['measured'], b['measured'], tol)
    for x, y in zip(a['preds'], b['preds'], strict=True): near(x, y, tol)
    near(a['after'], b['after'], tol)
    assert a['found'] == b['found']


@pytest.mark.parametrize('case', ['uneven', 'with_norms', 'weighted_loss', 'items', 'last_batch', 'stopping', 'unseeded', 'features'])
def test_two_processes_are_one(found, case):
    one, first, second = (o[case] for o in found)
    same(first, second, 0)
    same(one, first)


def test_the_last_batch_has_one_row(found): assert found[0]['last_batch']['batches'] == [32, 32, 1]
def test_stopped_early(found): assert len(found[1]['stopping']['rows']) < 9


@pytest.mark.parametrize('case', ['own_loss', 'dropout'])
def test_random_numbers_of_their_own(found, case):
    "`MixUp` and dropout draw for the rows of a process: other numbers than one process would, and the same result in both"
    one, first, second = (o[case] for o in found)
    same(first, second, 0)
    assert not torch.allclose(one['weights'], first['weights'])
    near(one['rows'][-1]['train_loss'], first['rows'][-1]['train_loss'], .2)


def test_a_loss_of_nan_ends_both(found):
    one, *both = (o['not_a_number'] for o in found)
    assert 'not a finite number at epoch' in one['said'] and both == [one]*2


def test_without_the_block_each_trains_for_itself(found):
    one, *both = (o['outside'] for o in found)
    for o in both: assert o['rows'] == 1 and torch.equal(o['preds'], one['preds'])
