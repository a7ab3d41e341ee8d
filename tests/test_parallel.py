"Training in two processes does what one process does: loaders, weights, figures, decisions; then run folders"
import json, os, shutil, socket, subprocess, sys, time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import in_two
from conftest import Aside
from dlcourse.cli import main
from dlcourse.core import CourseError, kept_rng, num_threads
from dlcourse.data.blocks import dls_for
from dlcourse.training.norms import part_norms, share_norms
from dlcourse.training.processes import shares
from dlcourse.training.shares import SharedDL

pytest.importorskip('accelerate')


def environment(): return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(Path(__file__).parent.parent)}


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def two(code, folder=None):
    "Python code in two processes, on one thread each, with the variables that torchrun sets; their imports are behind them"
    place = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    return [Aside(code, folder, RANK=str(i), LOCAL_RANK=str(i), **place) for i in range(2)]


def commands(*words, folder): return two(f'from dlcourse.cli import main\nraise SystemExit(main({[*map(str, words)]}))', folder)


def ended(both):
    "Exit codes of two processes, and what each wrote to its streams"
    return zip(*[o.result(240) for o in both])


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
    here = str(Path(in_two.__file__).parent)
    codes, _, said = ended(two(f'import sys; sys.path.insert(0, {here!r})\nimport in_two; in_two.main({str(to)!r})'))
    assert codes == (0, 0), said
    with num_threads(1): one = in_two.both()
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


@pytest.mark.parametrize('case', ['uneven', 'with_norms', 'weighted_loss', 'items', 'last_batch', 'last_norm', 'stopping', 'unseeded',
                                  'features'])
def test_two_processes_are_one(found, case):
    one, first, second = (o[case] for o in found)
    same(first, second, 0)
    same(one, first)


def test_each_share_by_its_own_statistics(found):
    one, first, second = (o['own_statistics']['buffers'] for o in found)
    assert torch.equal(first, second) and not torch.allclose(one, first)


@pytest.mark.parametrize('norm, shape', [
    (nn.BatchNorm1d(4), (6, 4)), (nn.BatchNorm1d(4, affine=False), (6, 4, 5)), (nn.BatchNorm2d(4, track_running_stats=False), (3, 4, 2, 2)),
    (nn.BatchNorm2d(4, momentum=None), (3, 4, 5, 1)), (nn.BatchNorm3d(4, affine=False, track_running_stats=False), (2, 4, 2, 2, 2))])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dtype, tol', [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 1e-1)])
def test_a_common_norm_is_the_usual_one(norm, shape, training, dtype, tol):
    "In one process, all kinds of norms, outputs, gradients and statistics"
    own = deepcopy(norm).train(training).to(torch.float64 if dtype == torch.float64 else torch.float32)
    results, x, weight = [], torch.randn(shape).to(dtype)*3 + 5, torch.randn(shape).to(dtype)
    for layer in (own, deepcopy(own)):
        was = share_norms(layer) if results else []
        given = x.clone().requires_grad_()
        out = layer(given)
        (out*weight).sum().backward()
        part_norms(was)
        assert type(layer) is type(norm) and vars(layer).keys() == vars(norm).keys()
        results.append([out, given.grad, *(o.grad for o in layer.parameters()), *layer.buffers()])
    for a, b in zip(*results, strict=True): assert a.dtype == b.dtype and torch.allclose(a, b, rtol=tol, atol=tol)


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


# ---- run folders, from the command line -----------------------------------------------------------

LINE = 'train mlp --n-per-class 12 --bs 33 --seed 3 --threads 1'.split()
EPOCHS = ['--epochs', '40', '--early-stopping', '30']


def weights(folder): return torch.cat([o.flatten() for o in load_file(folder/'weights.safetensors').values()])


def no_seconds(folder): return [o.rsplit(',', 1)[0] for o in (folder/'history.csv').read_text().splitlines()]


def same_runs(a, b):
    near(weights(a), weights(b))
    rows = [[[float(v) for v in o.split(',')] for o in no_seconds(f)[1:]] for f in (a, b)]
    near(*rows)
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "The folder of a run of one process"
    folder = tmp_path_factory.mktemp('alone')/'one'
    assert main([*LINE, *EPOCHS, '--out', str(folder)]) == 0
    return folder


def test_accelerate_launch(alone, tmp_path):
    words = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2',
             '--main_process_port', str(free_port()), '-m', 'dlcourse', *LINE, *EPOCHS, '--out', 'two']
    out = subprocess.run(words, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=240)
    said = out.stdout.splitlines()
    assert out.returncode == 0 and said[0].startswith('Run two') and said[-1].startswith('test accuracy'), out.stderr
    assert len(said) == len(no_seconds(alone)) + 1
    assert json.loads((tmp_path/'two/settings.json').read_text())['processes'] == 2
    same_runs(alone, tmp_path/'two')


def test_killed_and_resumed(alone, tmp_path, capsys):
    "Killed by the system at some epoch; carried on with by two processes, and by one"
    both = commands(*LINE, *EPOCHS, '--out', 'cut', folder=tmp_path)
    while '\n[4/40]' not in both[0].printed() and not both[0].ended(): time.sleep(.01)
    for o in both: o.process.kill()
    assert [*ended(both)][0] == (-9, -9)
    shutil.copytree(tmp_path/'cut', tmp_path/'by one')
    codes, said, errors = ended(commands('train', '--resume', 'cut', folder=tmp_path))
    assert codes == (0, 0) and 'may differ' not in ''.join(said), errors
    same_runs(alone, tmp_path/'cut')
    assert main(['train', '--resume', str(tmp_path/'by one')]) == 0
    assert 'the number of processes was 2 and is 1' in capsys.readouterr().out
    same_runs(alone, tmp_path/'by one')


def test_settings_that_cannot_work(tmp_path):
    codes, out, errors = ended(commands(*LINE, '--set', 'nothing=1', '--out', 'new', folder=tmp_path))
    said = [o for o in ''.join(errors).splitlines() if o.startswith(('error:', '[rank'))]
    assert all(codes) and out == ('', '') and len(said) == 1 and 'nothing' in said[0] and not os.listdir(tmp_path)
