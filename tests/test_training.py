"Faults and equalities of the training room that don't belong in a lesson: Learners, then searches, then run folders"
import functools, itertools, json, math, multiprocessing, os, pickle, re, shutil, signal, sqlite3, sys, time, warnings
from contextlib import ExitStack
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Aside, small_disk
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.mixup import MixUp
from fastai.losses import L1LossFlat
from fastai.metrics import R2Score, mae
from dlcourse.training.losses import SquaredError
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import Learner
from PIL import Image
from torch import nn
from torchvision.models import shufflenet_v2_x0_5, squeezenet1_1

from dlcourse import core
from dlcourse.cli import main
from dlcourse.core import CourseError, lock_for, num_threads, optional, seed_all, whole_file
from dlcourse.data.blocks import dls_for
from dlcourse.data.loader import MemoryDL
from dlcourse.insight.evaluation import evaluate
from dlcourse.insight.studies import plot_history, plot_importance, plot_parallel, plot_study
from dlcourse.files import read_tensors, write_tensors
from dlcourse.training.feature_files import described, hash_of_network
from dlcourse.training import databases, runs as R, search as search_module, storage as storage_module
from dlcourse.training import trials as trials_module
from dlcourse.training.callbacks import BestWeights
from dlcourse.training.checkpoints import load_tensors, load_weights, save_tensors
from dlcourse.training.lean import LeanLearner, sgd
from dlcourse.training.ensembles import ensemble
from dlcourse.training.feature_files import _settings
from dlcourse.training.learner import learner_for
from dlcourse.training.runs import Run, start
from dlcourse.training.search import search, study, trainer
from dlcourse.training.settings import Settings, schedules
from dlcourse.training.space import Choice, Range, narrow_space, parse_space, plan_trials
from dlcourse.training.storage import Journal
from dlcourse.training.trials import TrialStore
from dlcourse.training.windows import During, train_only


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, drawn_on_request): monkeypatch.chdir(tmp_path)


# ==== Learners =================================================================================

def train(learn, n=1, fit='fit', **kw):
    "Train `learn` without bar and log, and return it"
    with learn.quiet(): getattr(learn, fit)(n, **kw)
    return learn


def flat(learn): return torch.cat([o.flatten().float() for o in learn.model.state_dict().values()])


class Memory(Callback):
    "Whether memory is kept, at each batch and, in a fit, between the epochs"
    seen = ()
    def after_batch(self): self.seen += (bool(core._keeping),)
    def before_epoch(self): self.seen += (bool(core._keeping),)*self.in_fit


@pytest.mark.parametrize('run', [lambda o: o.fit(1), lambda o: o.validate(), lambda o: o.get_preds()])
def test_memory_is_kept_while_a_learner_works(run):
    learn = learner_for('mlp', data='digits', n_per_class=4, seed=1, cbs=Memory())
    with learn.quiet(): run(learn)
    assert learn.memory.seen and set(learn.memory.seen) == {core._c_library() is not None} and not core._keeping


def test_arguments_find_their_way():
    learn = learner_for('mlp', data='digits', n_per_class=20, valid=50, bs=16, size=10, widths=(7,), wd=0.1, seed=1)
    assert len(learn.dls.train_ds) == 150 and learn.dls.one_batch()[0].shape == (16, 1, 10, 10)
    assert learn.wd == 0.1 and any(p.shape == (7, 100) for p in learn.model.parameters())


def test_a_full_disk_leaves_what_was_saved_before():
    learn = train(learner_for('mlp', data='digits', n_per_class=10, widths=(40,), seed=1))
    for write, name in ((learn.save, 'w'), (learn.export, 'e.pkl')):
        write(Path(name).absolute())
        file, = Path().glob(f'{name}*')
        before = file.read_bytes()
        with small_disk(4096), pytest.raises(CourseError, match=f'cannot write .*{file}: File too large'): write(Path(name).absolute())
        assert file.read_bytes() == before
        file.unlink()
    assert os.listdir() == ['models'] # fastai's own


@pytest.mark.parametrize('error, says', [(OSError(28, 'No space left on device'), 'No space left on device'), (KeyboardInterrupt(), '')])
def test_a_failed_export_leaves_the_learner_as_it_was(monkeypatch, error, says):
    learn = train(learner_for('mlp', data='digits', n_per_class=10, widths=(4,), seed=1))
    dls, opt = learn.dls, learn.opt
    def fails(*args, **kwargs): raise error
    monkeypatch.setattr(torch, 'save', fails)
    with pytest.raises((CourseError, KeyboardInterrupt), match=says): learn.export('a.pkl')
    assert learn.dls is dls and learn.opt is opt and len(learn.dls.train_ds) > 0


def test_data_in_the_place_of_loaders():
    x, y = torch.arange(40*64).reshape(40, 1, 8, 8).byte(), torch.arange(40) % 4
    for data in ('digits', (x, y)):
        learn, named = learner_for('mlp', data, seed=1, bs=8), learner_for('mlp', data=data, seed=1, bs=8)
        assert learn.dls.n == named.dls.n and torch.equal(flat(learn), flat(named))
    both = "give dls or data, not both: got 'digits' and 'mnist'"
    with pytest.raises(CourseError, match=both): learner_for('mlp', 'digits', data='mnist')
    with pytest.raises(CourseError, match='data must be a name, a folder or arrays, got 3'): learner_for('mlp', 3)


def test_second_fit_on_the_same_loaders_is_the_same():
    dls = dls_for('digits')
    assert torch.equal(*[flat(train(learner_for('mlp', dls, seed=5))) for _ in range(2)])
    assert not torch.equal(*[flat(train(learner_for('mlp', dls, seed=s))) for s in (5, 6)])


def test_a_resumed_fit_walks_the_same_path():
    whole = train(learner_for('mlp', data='digits', seed=5), 2, 'fit_one_cycle')
    part = learner_for('mlp', data='digits', seed=5)
    class Stop(Callback):
        order = 70
        def after_epoch(self):
            if self.epoch == 0: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(part, 2, 'fit_one_cycle', cbs=Stop())
    part.remove_cbs(Stop)
    part.remove_cbs([cb for cb in part.cbs if cb.name == 'param_scheduler'])
    train(part, 2, 'fit_one_cycle', start_epoch=1)
    assert torch.equal(flat(whole), flat(part))


def test_callbacks_of_fastai_work(tmp_path):
    learn = learner_for('mlp', data='digits', seed=1, path=tmp_path, cbs=SaveModelCallback())
    train(learn, 2)
    assert (tmp_path/'models'/'model.pth').exists()


def test_events_are_called_in_fastais_order():
    def events(cls):
        seen = []
        class Spy(Callback): pass
        for e in ('before_fit before_epoch before_train before_batch after_pred after_loss before_backward after_backward before_step '
                  'after_step after_batch after_train before_validate after_validate after_epoch after_fit').split():
            setattr(Spy, e, lambda self, e=e: seen.append(e))
        dls = dls_for('digits', n_per_class=20)
        train(cls(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), loss_func=nn.CrossEntropyLoss(), cbs=Spy()), 2)
        return seen
    assert events(Learner) == events(LeanLearner)


def test_a_cancelled_batch_is_skipped():
    class Skip(Callback):
        def before_batch(self):
            if self.training: raise CancelBatchException
    learn = learner_for('mlp', data='digits', cbs=Skip())
    before = flat(learn)
    train(learn)
    assert torch.equal(before, flat(learn))


def test_nan_stops_names_the_batch_and_keeps_the_best_weights():
    learn = train(learner_for('mlp', data='digits', seed=1, lr=1e-2), 2)
    best = flat(learn)
    with pytest.raises(CourseError, match=r'epoch 0, batch \d+ .*smaller learning rate'): train(learn, 2, lr=1e38)
    assert torch.equal(best, flat(learn)) and len(learn.history) == 2
    train(learn, 1, lr=1e-3)
    assert learn.history.valid_loss.iloc[-1] < 1


def test_bar_starts_at_any_epoch():
    learn = learner_for('mlp', data='digits', n_per_class=20, seed=5)
    learn.fit_one_cycle(2, start_epoch=1)
    assert len(learn.history) == 1


@pytest.mark.parametrize('kwargs, says', [(dict(arch='cnnn'), "unknown architecture 'cnnn'. Did you mean 'cnn'"),
    (dict(arch='cnn', width=3), "unknown argument of cnn 'width'"), (dict(arch='alexnet+squeezenet1_1', hows='late'),
    "Did you mean 'how'")])
def test_names_are_checked_before_data_are_fetched(monkeypatch, kwargs, says):
    def fetch(*args, **kwargs): raise AssertionError('data were fetched')
    monkeypatch.setattr('dlcourse.training.learner.dls_for', fetch)
    with pytest.raises(CourseError, match=says): learner_for(data='cifar10', **kwargs)


def test_unknown_monitor_is_named():
    learn = learner_for('mlp', data='digits', cbs=BestWeights('f1'))
    with pytest.raises(CourseError, match="cannot watch 'f1'"): train(learn)


@pytest.mark.parametrize('arch,kw,match', [
    ('mlp', dict(early_stopping=0), 'early_stopping'),
    ('mlp', dict(label_smoothing=2), 'label_smoothing'),
    ('mlp', dict(valid=0), 'valid=0'),
    ('mlp', dict(bs=0), 'bs must be'),
    ('mlp', dict(size=0), 'size'),
    ('cn', {}, "Did you mean 'cnn'"),
    ('mlp', dict(width=3), 'width'),
    (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), {}, '7'),
])
def test_bad_networks_are_one_clear_error(arch, kw, match):
    with pytest.raises(CourseError, match=match): learner_for(arch, data='digits', **kw)


def test_lr_find_leaves_no_file(tmp_path):
    learn = learner_for('mlp', data='digits', path=tmp_path, seed=1)
    with learn.quiet(): first = learn.lr_find(show_plot=False)
    assert not list(tmp_path.iterdir()) and learn.opt is None
    assert torch.equal(flat(train(learn)), flat(train(learner_for('mlp', learn.dls, seed=1))))
    assert 1e-6 < first.valley < 10


# ==== Searches =================================================================================

SPACE = dict(lr=(1e-4, 1e-1, 'log'), depth=(1, 4), norm=['batch', None])
linux = pytest.mark.skipif(sys.platform != 'linux', reason='forks, and looks processes up in /proc')


def plain(settings): return settings['lr'] + settings['depth']
def found(*args, **kwargs): return search(*args, progress=False, **kwargs)
def params(result): return [result.params[i] for i in result.table.index]


def forked(f, *args):
    "Run `f` in a process of its own"
    p = multiprocessing.get_context('fork').Process(target=f, args=args)
    p.start()
    return p


# ---- what is refused --------------------------------------------------------------------------

@pytest.mark.parametrize('space, says', [
    ({}, 'a space must be a dictionary with at least one setting'), (None, 'space must be a dictionary'),
    ([1], 'space must be a dictionary'),
    (dict(lr=[]), 'lr=[] leaves nothing'), (dict(lr=0.1), 'lr=0.1 is neither a list of choices nor a range'),
    (dict(lr='adam'), 'neither a list'),
    (dict(lr=(1, 1)), 'is not a range'), (dict(lr=('a', 'b')), 'is not a range'),
    (dict(lr=(0., float('inf'))), 'is not a range'), (dict(lr=(True, 3)), 'is not a range'),
    (dict(lr=(0., 1., 'log')), 'must begin above 0'),
    (dict(lr=(1., 2., 'lin')), "only 'log' may follow the two ends of a range, got 'lin'"), (dict(opt_func=['adm']), "Did you mean")])
def test_spaces_refused(space, says):
    with pytest.raises(CourseError) as e: found(space, plain)
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('more, says', [
    (dict(method='gird'), "Did you mean 'grid'"), (dict(n=0), 'n must be a whole number .* got 0'),
    (dict(n=2.5), 'n must be .* got 2.5'), (dict(workers=0), 'workers must be a whole number .* got 0'),
    (dict(seed=-1), 'seed must be .* got -1'),
    (dict(pruner='medium'), "Did you mean 'median'"), (dict(method='grid', points=0), 'points must be .* got 0'),
    (dict(method='grid', points=10**8), 'points must be a whole number from 1 to 10,?000'), (dict(n=10**9), 'n must be'),
    (dict(n=True), 'n must be .* got True'), (dict(workers=True), 'workers must be .* got True'),
    (dict(seconds=-1), 'seconds must be a number above 0'), (dict(seconds=float('nan')), 'seconds must be .* got nan'),
    (dict(storage=5), 'storage must be a path'), (dict(storage=''), 'storage must be a path')])
def test_arguments_refused(more, says):
    with pytest.raises(CourseError, match=says): found(SPACE, plain, **more)


@pytest.mark.parametrize('train', ['cnn', None, dict(arch='cnn')])
def test_train_is_a_function(train):
    with pytest.raises(CourseError, match='train must be a function of a settings dictionary'): found(SPACE, train)


@pytest.mark.parametrize('values', [[1, '1'], [None, 'None'], [lambda: 1, lambda: 2], [nn.NLLLoss(), nn.NLLLoss(reduction='sum')],
                                    [torch.zeros(2), torch.zeros(2)], {1: 'a', '1': 'b'}, [1, True, 1.0, '1']])
def test_choices_that_share_a_name_are_named_by_you(values):
    with pytest.raises(CourseError, match='x has several choices called .*: name them in a dictionary'): found(dict(x=values), plain)
    named = {f'choice {i}': o for i,o in enumerate(values.values() if isinstance(values, dict) else values)}
    assert len(found(dict(x=named), lambda settings: 1.).table) == len(named)


@pytest.mark.parametrize('values, labels', [
    (np.array([1, 2]), ['1', '2']), (pd.Series([0.5, 1.], index=[7, 7]), ['0.5', '1.0']), (range(2, 4), ['2', '3']),
    ([1, 1, 2], ['1', '2']),
    ([object()], ['<object object>']), ({7: 'a'}, ['7']), (Choice({'a': 1}), ['a'])])
def test_other_ways_to_write_choices(values, labels): assert list(parse_space(dict(x=values))['x'].values) == labels


@pytest.mark.parametrize('value', [Range(3, 1), Range(1, 2.5, whole=True), Choice({}),
                                   (10**400, 10**401), (10**5000, 1), (-1e308, 1e308), (1e-320, 1., 'log'), list(range(2000)),
                                   {1, 2}, np.zeros((2, 2)), (1, 2, 'log', 4), (None, 1)])
def test_other_values_refused(value):
    with pytest.raises(CourseError, match='x') as e: parse_space(dict(x=value))
    assert len(str(e.value)) < 300


def test_grid_too_large():
    large = {f'x{i}': (0., 1.) for i in range(6)}
    with pytest.raises(CourseError, match='has 1,000,000 settings'): found(large, plain, method='grid', points=10)


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(CourseError, match=r"pip install 'dlcourse\[search\]'"): found(SPACE, plain)


# ---- what is tried ----------------------------------------------------------------------------

@pytest.mark.parametrize('method', ['bayes', 'grid', 'random'])
def test_resume_changes_nothing(method):
    whole = found(SPACE, plain, method=method, n=14, seed=3)
    for n in (4, 11, 14): parts = found(SPACE, plain, method=method, n=n, seed=3, storage='s')
    assert params(parts) == params(whole) and parts.best == whole.best
    assert params(found(SPACE, plain, method=method, n=14, seed=4)) != params(whole)


def test_grid_is_complete(): assert len({tuple(o.values()) for o in params(found(SPACE, plain, method='grid', points=3))}) == 3*3*2


@pytest.mark.parametrize('method', ['bayes', 'random'])
def test_few_settings_are_tried_once_each(method):
    "Unless a number of trials is asked for"
    few = dict(lr=[0.1, 0.2], depth=[1, 2, 3])
    res = found(few, plain, method=method, pruner=None)
    assert len(res.table) == 6 == len({tuple(o.values()) for o in params(res)})
    assert len(found(few, plain, method=method, n=8, pruner=None).table) == 8


def test_finished_search_trains_nothing_again():
    found(SPACE, plain, n=3, storage='s')
    assert len(found(SPACE, lambda settings: 1/0, n=3, storage='s').complete) == 3


def test_minimize():
    res = found(SPACE, plain, method='random', n=8, maximize=False)
    assert res.best_value == res.complete.value.min() and plain(res.best) == res.best_value


def test_values_come_back_as_given():
    given = dict(widths={'a': [1, 2], 'b': [3]}, opt_func=['sgd'], flag=[True, False], x=[1, 1.5, None])
    best = found(given, lambda settings: len(settings['widths']), method='grid').best
    assert best['widths'] is given['widths']['a'] and best['opt_func'] is sgd and type(best['flag']) is bool


def test_seconds():
    res = found(SPACE, lambda settings: time.sleep(0.05) or 1., n=50, seconds=0.2)
    assert 1 <= len(res.complete) < 20


# ---- storages ---------------------------------------------------------------------------------

@pytest.mark.parametrize('more, says', [
    (dict(space={'lr': (1e-4, 1., 'log')}), 'its space is'), (dict(method='random'), 'its method is bayes, not random'),
    (dict(seed=1), 'its seed is 0, not 1'), (dict(maximize=False), 'its maximize is True')])
def test_storage_of_another_search(more, says):
    found(SPACE, plain, n=2, storage='s')
    usual = dict(space=SPACE, train=plain, n=2, storage='s')
    with pytest.raises(CourseError, match='s holds another search: ' + says): found(**{**usual, **more})


@pytest.mark.parametrize('other, says', [
    (dict(epochs=2), 'its epochs is 1, not 2;'), (dict(bs=32), 'its bs is None, not 32;'),
    (dict(n_per_class=None), 'its n_per_class is 20, not None;')])
def test_storage_of_another_training(other, says):
    space, usual = dict(lr=[1e-3, 1e-2]), dict(epochs=1, widths=[8], n_per_class=20)
    found(space, trainer('mlp', 'digits', **usual), n=1, storage='s')
    with pytest.raises(CourseError, match=says): found(space, trainer('mlp', 'digits', **{**usual, **other}), n=1, storage='s')


def test_unknown_metric_is_refused_before_the_first_epoch(monkeypatch):
    seen = []
    monkeypatch.setattr(search_module.ReportEpochs, 'after_epoch', lambda self: seen.append(self.epoch))
    with pytest.raises(CourseError, match="Did you mean 'accuracy'"): found(dict(lr=[1e-3]), tiny(metric='accurate'), n=1)
    found(dict(lr=[1e-3]), tiny(metric='accuracy'), n=1)
    assert seen == [0]


def test_storage_that_is_something_else():
    Path('notes.txt').write_text('lines\nof text')
    Path('folder').mkdir()
    for name, says in [('notes.txt', 'is not the storage of a search'), ('folder', 'is a folder'), ('notes.txt/s', 'cannot write')]:
        with pytest.raises(CourseError, match=says): found(SPACE, plain, n=1, storage=name)
    assert Path('notes.txt').read_text() == 'lines\nof text'


def test_foreign_storages_stay_as_they_are():
    "A sentence or the right result; never an addition to what isn't ours"
    optuna = optional('optuna', 'search')
    journal = optuna.storages.journal
    for name in ('mine', 'search'):
        storage = journal.JournalStorage(journal.JournalFileBackend(name))
        optuna.create_study(storage=storage, study_name=name).enqueue_trial({'x': 1})
    with sqlite3.connect('sqlite') as base: base.execute('create table t (a)')
    whole = found(SPACE, plain, n=3, storage='whole')
    lines = Path('whole').read_text().splitlines()
    Path('deep').write_text(lines[0] + '\n' + '['*10**5 + ']'*10**5 + '\n')
    Path('value').write_text('\n'.join(lines).replace(f'"values":[{whole.table.value[1]}]', '"values":["high"]') + '\n')
    Path('settings').write_text('\n'.join(lines).replace('"slot":2', '"slot":1') + '\n')
    with open('large', 'wb') as f: f.truncate(10**10)
    for name in ('mine', 'search', 'sqlite', 'deep', 'value', 'settings', 'large'):
        before = os.stat(name).st_size, os.stat(name).st_mtime_ns
        with pytest.raises(CourseError, match=f'{name}(,| is| has| holds)') as e: found(SPACE, plain, n=3, storage=name)
        assert '\n' not in str(e.value) and (os.stat(name).st_size, os.stat(name).st_mtime_ns) == before


def test_each_cut_of_a_storage_is_carried_on():
    whole = found(SPACE, stepped, n=12, storage='s')
    text = Path('s').read_bytes()
    for end in range(0, len(text), len(text)//5):
        Path('part').write_bytes(text[:end])
        assert params(found(SPACE, stepped, n=12, storage='part')) == params(whole)


@linux
def test_storage_that_is_a_pipe():
    os.mkfifo('pipe')
    with pytest.raises(CourseError, match='pipe is a pipe or a device'): found(SPACE, plain, n=1, storage='pipe')


def test_another_plan_is_another_search():
    "A small space is tried as a whole without `n`, and at random with it"
    few = dict(lr=[0.1, 0.2], depth=[1, 2, 3])
    found(few, plain, n=4, storage='s')
    with pytest.raises(CourseError, match='s holds another search: its trial .* is planned'): found(few, plain, storage='s')


def test_locks_of_dead_processes_and_waiting(monkeypatch, capsys):
    "A lock file that was left behind is free at once; waiting for a process that works is said, and ends"
    for o in ('s.lock', '.s.lock', '.s.plan.lock'): Path(o).touch()
    os.symlink('s', 's.plan.lock') # as Optuna locks
    start = time.monotonic()
    found(SPACE, plain, n=2, storage='s')
    assert time.monotonic() - start < 5
    monkeypatch.setattr(storage_module, 'idle_time', 1.2)
    with Journal('s').alone(), pytest.raises(CourseError, match='held .s.lock for 1.2 s and does nothing: end it, and the same call'):
        found(SPACE, plain, n=3, storage='s')
    assert 'waiting for another process that writes to s' in capsys.readouterr().out
    Path('.t.lock').mkdir()
    with pytest.raises(CourseError, match='cannot lock t: its lock .t.lock is a folder: remove it'): found(SPACE, plain, n=2, storage='t')
    assert not Path('.s.lock').exists()


def test_ctrl_c_ends_a_wait(capsys):
    "Ctrl-C while another process keeps the storage locked ends the search soon; the trial is done again"
    start, held = time.monotonic(), ExitStack()
    def hold(settings):
        held.enter_context(Journal('s').alone())
        raise KeyboardInterrupt
    with held: found(SPACE, hold, n=3, storage='s')
    assert 'interrupted after 0 of 3 trials' in capsys.readouterr().out and time.monotonic() - start < 5
    assert found(SPACE, plain, n=3, storage='s').table.value.equals(found(SPACE, plain, n=3).table.value)


def test_half_written_line():
    found(SPACE, plain, n=3, storage='s')
    with open('s', 'a') as f: f.write('{"op_code":5,"wor')
    assert len(found(SPACE, plain, n=5, storage='s').complete) == 5
    assert len(found(SPACE, lambda settings: 1/0, n=5, storage='s').complete) == 5


def test_damaged_storage():
    found(SPACE, plain, n=3, storage='s')
    lines = Path('s').read_text().splitlines()
    Path('s').write_text('\n'.join(lines[:3] + ['{"op_code":'] + lines[4:]) + '\n')
    with pytest.raises(CourseError, match='s, line 4, is damaged'): found(SPACE, plain, n=3, storage='s')


# ---- one storage for several processes and machines ---------------------------------------------

@pytest.fixture(params=['journal', 'sqlite', 'postgres'])
def place(request):
    "A storage of each kind; all keep the same contract"
    if request.param == 'postgres': return f"{request.getfixturevalue('postgres')}#{request.node.name.replace('[', '-').replace(']', '')}"
    return dict(journal='trials', sqlite='sqlite:///trials.db')[request.param]


@linux
def test_two_workers_share_a_storage_and_one_is_killed(place):
    "The trial of the killed one is done again, with its settings; each trial is there once, and the table can be read again"
    def deadly(settings):
        if settings['depth'] == 4 and not Path('killed').exists():
            Path('killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(settings)
    shared = found(SPACE, deadly, n=8, storage=place, method='random', workers=2)
    assert Path('killed').exists() and list(shared.table.state) == ['complete']*8
    read = found(SPACE, nothing_left, n=8, storage=place, method='random')
    assert params(shared) == params(found(SPACE, plain, n=8, method='random')) == params(read)


def nothing_left(settings): raise AssertionError('every trial is there')


@linux
def test_a_worker_of_another_machine_is_killed(place, monkeypatch):
    "Its trial counts as lost after some time without a heartbeat, and another machine takes it up"
    monkeypatch.setattr(trials_module, 'grace_period', 0.8)
    monkeypatch.setattr(trials_module, 'heartbeat_interval', 0.1)
    here = os.getpid()
    def deadly(settings):
        if os.getpid() != here and len(done) == 2: os.kill(os.getpid(), signal.SIGKILL)
        done.append(settings)
        return plain(settings)
    def elsewhere():
        trials_module._machine = lambda: 'another machine'
        found(SPACE, deadly, n=5, storage=place, method='random')
    done, how = [], dict(n=5, storage=place, method='random')
    other = multiprocessing.get_context('fork').Process(target=elsewhere)
    other.start()
    other.join()
    assert other.exitcode == -signal.SIGKILL
    first = found(SPACE, deadly, **how)
    assert list(first.table.state) == ['complete', 'complete', 'running', 'complete', 'complete'] or len(first.complete) == 5
    time.sleep(1)
    whole = found(SPACE, deadly, **how)
    assert len(whole.complete) == 5 and params(whole) == params(found(SPACE, plain, n=5, method='random')) and len(done) == 3


def test_workers_with_other_settings_are_refused(place):
    found(SPACE, plain, n=2, storage=place, seed=1, method='random')
    for other in (dict(seed=2), dict(method='bayes'), dict(maximize=False)):
        with pytest.raises(CourseError, match='holds another search: its .*; choose another storage') as e:
            found(SPACE, plain, **dict(n=2, storage=place, seed=1, method='random') | other)
        assert 'secret' not in str(e.value)
    assert len(found(SPACE, plain, n=3, storage=place, seed=1, method='random').complete) == 3 # more trials are no other search


def test_a_search_ends_with_the_trial_of_a_dead_process(place):
    "A process that finds no trial left takes up one that was lost, without another call"
    store = TrialStore(parse_space(SPACE), plan_trials(parse_space(SPACE), 'random', 3), dict(seed=0), search_module._place(place)).open()
    lost = store.claim()
    store.storage.set_trial_user_attr(lost._trial_id, 'who', dict(store.who, pid=2**22 + 1))
    store.run_all(plain)
    assert [t.state.name for t in store.slots().values()] == ['COMPLETE']*3


@pytest.mark.parametrize('address, says', [
    ('mysql://ana:secret@db/course', "unknown kind of database 'mysql'"), ('postgresql://ana:secret@db', 'ends in its name'),
    ('postgresql://ana:secret@127.0.0.1:1/course#x', r'the database postgresql://ana@127.0.0.1:1/course#x does not work \(.*refused'),
    ('sqlite:///:memory:', 'ends in its name'), ('sqlite:///text', 'the database sqlite:///text does not work .file is not a database'),
    ('://', 'storage must be a file or an address'), ('postgresql://ana:secret@db:port/x', 'storage must be a file or an address')])
def test_addresses_of_databases(address, says, capsys):
    if address.startswith('postgresql://ana:secret@127'): pytest.importorskip('psycopg')
    Path('text').write_text('no database'*100)
    with pytest.raises(CourseError, match=says) as e: found(SPACE, plain, n=1, storage=address)
    assert 'secret' not in str(e.value) + capsys.readouterr().out and '\n' not in str(e.value)


def test_the_password_is_shown_nowhere():
    address = databases.Address('postgresql://ana:secret@db/course?sslmode=require&password=secret#widths')
    store = TrialStore(parse_space(SPACE), [{}], dict(seed=0), address)
    assert 'secret' not in f'{address}{address!r}{store}'
    assert str(address) == 'postgresql://ana@db/course#widths' and pickle.loads(pickle.dumps(address)).url.password == 'secret'


def test_a_database_without_its_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, 'psycopg', None)
    with pytest.raises(CourseError, match=r"this needs psycopg, which is not installed: pip install 'dlcourse\[postgres\]'"):
        found(SPACE, plain, n=1, storage='postgresql://ana@db/course')


# ---- trials that fail, are pruned, are interrupted --------------------------------------------

def test_failures_are_noted_and_learnt_from():
    def train(settings):
        if settings['depth'] == 4: raise RuntimeError('out of memory\nwith details')
        return -abs(settings['lr'] - 0.01)
    res = found(SPACE, train, n=40)
    failed = res.table[res.table.state == 'failed']
    assert set(failed.depth) == {4} and set(failed.error) == {'RuntimeError: out of memory'} and failed.value.isna().all()
    assert (res.table.depth[10:] == 4).mean() < 0.25


@pytest.mark.parametrize('value, says', [(None, 'None'), (float('nan'), 'nan'), ('good', "'good'")])
def test_no_number(value, says):
    says = f'3 of 3 failed, the first with ValueError: train must return a finite number, got {says}'
    with pytest.raises(CourseError, match=says): found(SPACE, lambda settings: value, n=3)


def test_pruning():
    def train(settings, report):
        for epoch in range(5): report(settings['lr'] * (epoch + 1))
        report.note(size=7)
        return settings['lr'] * 5
    res = found(SPACE, train, n=25)
    assert set(res.table.state) == {'complete', 'pruned'} and set(res.complete['size']) == {7}
    assert res.best_value == res.table.value.max() and set(found(SPACE, train, n=25, pruner=None).table.state) == {'complete'}


def test_ctrl_c_keeps_what_is_finished(capsys):
    calls = []
    def train(settings):
        calls.append(settings)
        if len(calls) == 3: raise KeyboardInterrupt
        return plain(settings)
    res = found(SPACE, train, n=6, storage='s')
    assert len(res.complete) == 2 and capsys.readouterr().out == 'interrupted after 2 of 6 trials: the same call carries on from s\n'
    again = found(SPACE, train, n=6, storage='s')
    assert len(again.complete) == 6 and calls[2] in calls[3:] and params(again) == params(found(SPACE, plain, n=6))


@pytest.mark.parametrize('change', [
    "delete from studies", "update study_directions set direction='?'", "update trials set datetime_start='2026-11-27 04:s7:56'",
    "update trial_params set param_value='?'"])
def test_a_database_that_somebody_has_changed(change):
    found(SPACE, plain, n=2, storage='sqlite:///s.db')
    with sqlite3.connect('s.db') as base: base.execute(change)
    with pytest.raises(CourseError, match='sqlite:///s.db is damaged .* choose another storage'):
        found(SPACE, plain, n=3, storage='sqlite:///s.db')


def test_ctrl_c_waits_for_the_end_of_a_line():
    done, before = [], signal.signal(signal.SIGINT, signal.default_int_handler) # a process in the background ignores Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt), storage_module.without_interrupts():
            signal.raise_signal(signal.SIGINT)
            done.append('the line after Ctrl-C')
    finally: signal.signal(signal.SIGINT, before)
    assert done


def test_ctrl_c_before_anything(capsys):
    def train(settings): raise KeyboardInterrupt
    res = found(SPACE, train, n=3)
    assert capsys.readouterr().out == 'interrupted after 0 of 3 trials: a search with a storage can be carried on\n'
    assert list(res.table.state) == ['waiting']*3 and list(res.table)[:3] == list(SPACE) and repr(res) == '3 trials (3 waiting)'
    with pytest.raises(CourseError, match='no trial was completed'): res.best
    assert study('x', [1, 2], train, progress=False).runs.tolist() == [0, 0]


def stepped(settings, report):
    value = -(math.log10(settings['lr']) + 2)**2 - settings['depth']
    for epoch in range(4): report(value*(1 + 1/(epoch + 1)))
    return value


@pytest.mark.parametrize('method, pruner, seeds', [
    ('bayes', 'median', 10), ('bayes', 'halving', 2), ('random', 'median', 1), ('grid', 'halving', 1)])
def test_interrupted_search_tries_what_an_uninterrupted_one_tries(method, pruner, seeds):
    "Ctrl-C within three of the trials, at some report"
    def interrupted(settings, report):
        trial, steps = next(trials), []
        def note(value):
            steps.append(value)
            if stops.get(trial) == len(steps): signal.raise_signal(signal.SIGINT)
            report(value)
        return stepped(settings, note)
    for seed in range(seeds):
        how = dict(method=method, n=14, seed=seed, pruner=pruner)
        whole, trials, stops = found(SPACE, stepped, **how), iter(range(100)), {3: 1 + seed % 4, 8: 2, 9 + seed % 5: 1 + seed % 3}
        for _ in range(4): parts = found(SPACE, interrupted, storage=f's{seed}', **how)
        assert params(parts) == params(whole) and parts.table.state.equals(whole.table.state) and parts.best == whole.best


# ---- several processes ------------------------------------------------------------------------

def slow_trial(settings):
    with open('calls', 'a') as f: f.write(f"{settings['lr']}\n")
    time.sleep(0.02)
    return plain(settings)


@linux
def test_two_searches_on_one_storage_share_the_trials():
    team = [forked(lambda: found(SPACE, slow_trial, method='random', n=20, storage='s')) for _ in range(2)]
    for p in team: p.join()
    res = found(SPACE, slow_trial, method='random', n=20, storage='s')
    assert [p.exitcode for p in team] == [0, 0] and len(res.complete) == 20
    assert sorted(Path('calls').read_text().split()) == sorted(map(str, res.table.lr)), 'each trial ran once'


@linux
def test_killed_worker_is_replaced():
    def train(settings):
        if not Path('killed').exists():
            Path('killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(settings)
    res = found(SPACE, train, n=6, method='random', workers=2)
    assert len(res.complete) == 6 and params(res) == params(found(SPACE, plain, n=6, method='random'))


@linux
def test_settings_that_always_kill():
    def train(settings): return os.kill(os.getpid(), signal.SIGKILL) if settings['x'] == 2 else 1.
    res = found(dict(x=[1, 2]), train, method='grid', workers=2)
    assert res.table.set_index('x').state.to_dict() == {1: 'complete', 2: 'failed'}
    assert 'its process was ended' in res.table.error.dropna().iloc[0]


@linux
def test_killed_search_is_resumed():
    def hang(settings): Path('hanging').touch(); time.sleep(60)
    p = forked(lambda: found(SPACE, hang, n=3, storage='s'))
    while not Path('hanging').exists(): time.sleep(0.01)
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    res = found(SPACE, plain, n=3, storage='s')
    assert len(res.complete) == 3 and params(res) == params(found(SPACE, plain, n=3))


def test_another_machine_counts_as_lost_after_silence(monkeypatch):
    monkeypatch.setattr(trials_module, '_this_process', lambda: dict(place='elsewhere', pid=1, started='1'))
    def ends(settings): raise SystemExit
    with monkeypatch.context() as m, pytest.raises(SystemExit):
        m.setattr(trials_module.TrialStore, 'close_own', lambda self: None)
        found(SPACE, ends, n=2, storage='s')
    assert found(SPACE, plain, n=2, storage='s').table.state.tolist() == ['running', 'complete']
    monkeypatch.setattr(trials_module, 'grace_period', -1)
    assert found(SPACE, plain, n=2, storage='s').table.state.tolist() == ['complete', 'complete']


def test_trial_that_another_process_took_over(capsys, monkeypatch):
    def slow(settings, report):
        if Path('taken').exists(): return 1.
        Path('taken').touch()
        with monkeypatch.context() as m:
            m.setattr(trials_module, '_is_lost', lambda t: True)
            found(SPACE, plain, n=1, storage='s')
        report(2.)
    trials_module.notice.cache_clear()
    assert found(SPACE, slow, n=1, storage='s').best_value != 1.
    assert 'another process does it again' in capsys.readouterr().out


# ---- training ---------------------------------------------------------------------------------

def tiny(**kwargs): return trainer('mlp', 'digits', **{**dict(epochs=1, widths=[8], n_per_class=20), **kwargs})


def test_test_part_is_never_read(monkeypatch):
    read, made, was = [], [], MemoryDL.__iter__
    def noted(self):
        read.append(self)
        return was(self)
    @functools.wraps(dls_for)
    def kept(*args, **kwargs): return made.append(dls_for(*args, **kwargs)) or made[-1]
    monkeypatch.setattr(MemoryDL, '__iter__', noted)
    monkeypatch.setattr(search_module, 'dls_for', kept)
    assert len(found(dict(lr=[1e-3, 1e-2]), tiny(), method='grid').complete) == 2
    parts = [[sum(o is dl for o in read) for dl in dls.loaders] for dls in made]
    assert len(parts) == 2 and all(train and valid and not test for train, valid, test in parts)


@pytest.mark.parametrize('make, says', [
    (lambda: tiny(epochs=0), 'epochs must be a whole number'), (lambda: tiny(seeds=0), 'seeds must be a whole number from 1'),
    (lambda: tiny(seeds='x'), 'seeds must be'), (lambda: tiny(seeds=[]), 'seeds must be'),
    (lambda: tiny(seeds=[0.5]), 'seeds? must be'),
    (lambda: tiny(metric=5), 'metric'), (lambda: tiny(metric='x'), "unknown metric 'x'"),
    (lambda: tiny(seeds=10**9), 'seeds must be'),
    (lambda: tiny(schedule='one-circle'), 'one_cycle'), (lambda: tiny(dropot=1), "Did you mean 'dropout'"),
    (lambda: found(dict(widths=[[8]]), tiny()), 'widths is fixed in the trainer and searched'),
    (lambda: found(dict(kernel=[3, 5]), tiny()), 'unknown setting of mlp'),
    (lambda: found(dict(lr=[1e-3]), tiny(metric='accurate'), n=1), "Did you mean 'accuracy'")])
def test_trainers_refused(make, says):
    with pytest.raises(CourseError, match=says): make()


def test_value_is_that_of_learner_for():
    value = tiny(epochs=2)(dict(lr=0.01, bs=16))
    learn = learner_for('mlp', data='digits', widths=[8], n_per_class=20, lr=0.01, bs=16, seed=0)
    learn = learner_for('mlp', dls_for('digits', n_per_class=20, bs=16, seed=42), widths=[8], lr=0.01, seed=0)
    with learn.quiet(): learn.fit_one_cycle(2, learn.lr)
    assert value == learn.rows[-1]['accuracy']


def test_value_with_early_stopping_is_that_of_the_kept_epoch():
    train = tiny(epochs=6, early_stopping=1, metric='valid_loss', schedule='flat')
    assert not train.maximize and train(dict(lr=0.5)) == train.fit(dict(lr=0.5)).history.valid_loss.min()


# ---- around, study, plots ---------------------------------------------------------------------

def test_narrow_space():
    space = dict(lr=(1e-4, 1e-1, 'log'), depth=(1, 9), x=(0., 1.), bs=[64, 16, 32], norm=['batch', None])
    near = {k: str(v) for k,v in narrow_space(dict(lr=1e-4, depth=9, x=0.5, bs=32, norm=None), space).items()}
    assert near == dict(lr='0.0001 to 0.000562341 log', depth='7 to 9 whole', x='0.25 to 0.75', bs='16|32|64', norm='None')
    assert str(narrow_space(dict(depth=2), dict(depth=(1, 3)), share=0.1)['depth']) == '2'
    refused = [({}, {}, 'best has no value for lr'), (dict(lr=3), {}, 'lr=3 is none of the choices 1|2'),
               (dict(lr=1), dict(share=0), 'share must be a number above 0'), (dict(lr=1), dict(share='x'), 'share must be'),
               (5, {}, 'best must be a dictionary')]
    for best, more, says in refused:
        with pytest.raises(CourseError) as e: narrow_space(best, dict(lr=[1, 2]), **more)
        assert says in str(e.value)
    for value in (9, float('nan'), 'x', None, True, 1.5):
        with pytest.raises(CourseError, match='is not in the range'): narrow_space(dict(lr=value), dict(lr=(1, 2)))


def test_study():
    table = study('x', [0, 0.5, None, 'a'], lambda settings: settings['seed'] + (settings['x'] == 'a'), seeds=[1, 3], progress=False)
    assert list(table.index) == ['0', '0.5', 'None', 'a'] and table['mean'].tolist() == [2, 2, 2, 3]
    assert table['std'].round(3).tolist() == [1.414]*4
    for values, axis, says in [((0, 1), 'x', 'must be a list of values'), ([1], 'seed', 'axis must be a setting other than seed'),
                               ([1], 5, 'axis must be text')]:
        with pytest.raises(CourseError, match=says): study(axis, values, plain, progress=False)


def test_study_keeps_the_values_that_fail():
    "With no runs and the reason, and the others can be drawn"
    from matplotlib import pyplot as plt
    def train(settings):
        if settings['x'] == 'b' or (settings['x'], settings['seed']) == ('c', 1): raise ValueError(f"no {settings['x']}")
        return 1.
    res = study('x', ['a', 'b', 'c'], train, seeds=2, progress=False)
    assert list(res.index) == ['a', 'b', 'c'] and list(res.runs) == [2, 0, 1]
    assert res.error['b'] == 'ValueError: no b' and res.error['c'] == 'ValueError: no c'
    assert res.error.isna()['a'] and res['mean'].isna()['b']
    plt.close(plot_study(res))


def test_importance_says_nothing_of_its_own(capfd):
    found(SPACE, plain, n=6, pruner=None).importance()
    assert capfd.readouterr() == ('', '')


def test_plots():
    res, few = found(SPACE, plain, n=8, maximize=False), found(SPACE, plain, n=2)
    assert plot_history(res).axes[0].lines[-1].get_ydata()[-1] == res.best_value and len(plot_parallel(res).axes[0].lines) == 8 + 3
    assert plot_importance(res) and res.plot_history()
    with pytest.raises(CourseError, match='at least four completed trials'): plot_importance(few)
    with pytest.raises(CourseError, match='no column mean'): plot_study(res.table)


def test_space_of_itself(): assert parse_space(parse_space(SPACE)) == parse_space(SPACE)


# ---- the command line -------------------------------------------------------------------------

def test_command(capsys, drawn):
    line = ['search', 'mlp', '--data', 'digits', '--n-per-class', '20', '--epochs', '1',
            '--space', 'lr=0.001:0.1:log,widths=[8]|[8,8]', '--storage', 's', '--plot', 'p.png', '--n']
    assert main([*line, '2']) == 0 and main([*line, '3']) == 0
    *_, summary, call = capsys.readouterr().out.splitlines()
    assert summary.startswith('3 trials (3 complete), best')
    assert call.startswith("with the best settings: learner_for('mlp', data='digits'") and Path('p.png').stat().st_size > 5000
    assert main([*line[:-2], 'p.svg', '--n', '3']) == 0 and '<svg' in Path('p.svg').read_text()


def test_command_looks_at_the_picture_first(capsys):
    line = ['search', 'mlp', '--data', 'digits', '--space', 'lr=0.01|0.1', '--plot']
    with pytest.raises(SystemExit): main([*line, 'p.txt'])
    assert 'ends in .png, .svg or .pdf' in capsys.readouterr().err
    Path('file').write_text('')
    assert main([*line, 'file/p.png']) == 2 and 'cannot write to file: file is a file' in capsys.readouterr().err


def test_command_after_ctrl_c(monkeypatch, capsys):
    "The trials that were finished are printed, no waiting ones; the exit code tells"
    def stop(self, settings, report=None):
        if seen: raise KeyboardInterrupt
        return seen.append(1) or 0.5
    seen = []
    monkeypatch.setattr(trainer, '__call__', stop)
    assert main(['search', 'mlp', '--data', 'digits', '--space', 'lr=0.01:0.1', '--n', '4', '--storage', 's']) == 130
    assert capsys.readouterr().out.count('waiting') == 1


@pytest.mark.parametrize('space, says', [
    ('kernel=3|5', 'unknown setting of mlp'), ('lr=0.1:0.01', 'is not a range'), ('opt_func=adm|sgd', "Did you mean 'adam'")])
def test_command_refuses(space, says, capsys):
    assert main(['search', 'mlp', '--data', 'digits', '--space', space]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize('space', ['', 'lr', 'lr=', '=3', 'lr=1,2'])
def test_command_takes_no_other_words(space, capsys):
    with pytest.raises(SystemExit): main(['search', 'mlp', '--space', space])
    assert 'expected settings such as lr=0.001:0.1:log' in capsys.readouterr().err


# ==== Run folders: interrupted and carried on, damaged, changed, full disks =====================

SMALL = dict(data_args=dict(n_per_class=30, bs=32), model_args=dict(widths=[16], dropout=0.2))


class Stop(Callback):
    "Raise `what` at an event of one epoch; `order` decides whether before or after the files are written"
    def __init__(self, epoch, event, order=0, what=KeyboardInterrupt):
        self.at, self.order, self.what = epoch, order, what
        setattr(self, event, self.stop)

    def stop(self):
        if self.learn.epoch == self.at and (self.learn.training or self.order): raise self.what


def begin(folder=None, **kwargs):
    run = start(Settings('mlp', 'digits', **{'epochs': 5, **SMALL, **kwargs}), folder)
    return run


def resume(folder):
    run = Run(folder)
    run.train()
    return run


def replace_files(monkeypatch, f):
    "Let `f` stand for `whole_file` where a run writes"
    for o in ('dlcourse.files', 'dlcourse.training.runs'): monkeypatch.setattr(f'{o}.whole_file', f)


def weights(run): return load_tensors(run.folder/'weights.safetensors')[0]
def measured(run): return [{k: v for k,v in o.items() if k != 'seconds'} for o in run.rows]
def names(folder='.'): return sorted(o.relative_to(folder).as_posix() for o in Path(folder).rglob('*'))


def assert_same(a, b):
    wa, wb = weights(a), weights(b)
    assert wa.keys() == wb.keys() and all(torch.equal(wa[k], wb[k]) for k in wa)
    assert measured(a) == measured(b)
    assert a.learner().best_epoch == b.learner().best_epoch


# ---- interrupted and carried on ----------------------------------------------------------------

CASES = [dict(schedule=o) for o in schedules] + [
    dict(model_args=dict(widths=[16], norm='batch')),
    dict(epochs=30, lr=0.05, learner_args=dict(early_stopping=2)),
    dict(learner_args=dict(early_stopping=2, label_smoothing=0.1, wd=0.3)),
    dict(arch='cnn', model_args=dict(filters=[4]), data_args=dict(n_per_class=20, augment=True, label_noise=0.1)),
    dict(arch='cnn', model_args=dict(filters=[4, 8]), data_args=dict(n_per_class=20), learner_args=dict(channels_last=False)),
    dict(data='boston_housing', data_args={}, lr=0.01)]


@pytest.mark.parametrize('case', CASES, ids=lambda o: ' '.join(f'{k}={v}' for k,v in o.items()))
def test_resumed_is_uninterrupted(case):
    def begin(folder):
        run = start(Settings(**{'arch': 'mlp', 'data': 'digits', 'epochs': 5, **SMALL, **case}), folder)
        return run
    begin('whole').train()
    run = begin('cut')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(2, 'after_batch')])
    assert_same(Run('whole'), resume('cut'))
    assert names('whole') == names('cut')


@pytest.mark.parametrize('epoch, event, order', [(1, 'before_epoch', -30), (1, 'after_epoch', 55), (1, 'after_epoch', 65), (1,
    'after_epoch', 75),
                                                  (4, 'after_epoch', 75), (4, 'after_fit', 60), (3, 'before_validate', 1)])
def test_interrupted_anywhere(epoch, event, order):
    begin('whole').train()
    run = begin('cut')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(epoch, event, order)])
    assert_same(Run('whole'), resume('cut'))


@pytest.mark.parametrize('name', ['checkpoint.safetensors', 'weights.safetensors', 'history.csv'])
def test_interrupted_while_writing(name, monkeypatch):
    begin('whole').train()
    run, real = begin('cut'), whole_file
    def fails(path, *args):
        if path.name == name and run.learner().n_done == 3: raise KeyboardInterrupt
        return real(path, *args)
    with monkeypatch.context() as m:
        replace_files(m, fails)
        with pytest.raises(KeyboardInterrupt): run.train()
    assert_same(Run('whole'), resume('cut'))


def test_interrupted_several_times():
    begin('whole').train()
    run = begin('cut')
    for epoch in (1, 2, 4):
        with pytest.raises(KeyboardInterrupt, match=f'{epoch} of 5 epochs are kept in cut'): run.train(cbs=[Stop(epoch, 'after_batch')])
        assert len(run.rows) == epoch
    run.train()
    assert_same(Run('whole'), run)


def test_resumes_with_bars_too():
    run = begin('cut')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(3, 'after_batch')])
    Run('cut').train()
    assert Run('cut').finished


def test_killed_process_carries_on():
    "A process that was killed has told nobody, and leaves a half-written file; it had another number of threads than this one"
    n = 1 if torch.get_num_threads() != 1 else 2
    code = f"""
import os, torch
from fastai.callback.core import Callback
from dlcourse.training.runs import start
from dlcourse.training.settings import Settings
class Die(Callback):
    def after_batch(self):
        if self.learn.epoch == 2: os._exit(9)
torch.set_num_threads({n})
run = start(Settings('mlp', 'digits', epochs=5, **{SMALL!r}), 'cut')
run.train(cbs=[Die()])"""
    assert Aside(code).result()[0] == 9
    Path('cut/weights.safetensors.99.part').write_bytes(b'half')
    there = Run('cut').settings.threads
    assert there == n
    begin('whole', threads=there).train()
    assert_same(Run('whole'), resume('cut'))


def test_killed_before_the_first_epoch():
    "Settings alone are enough to start with"
    begin('whole').train()
    begin('cut')
    assert names('cut') == ['settings.json']
    assert_same(Run('whole'), resume('cut'))


def test_interrupted_in_the_first_epoch_leaves_nothing():
    run = begin()
    with pytest.raises(KeyboardInterrupt, match='nothing was kept'): run.train(cbs=[Stop(0, 'after_batch')])
    assert names() == []


def test_files_of_others_stay():
    run = begin('mine')
    Path('mine/notes.txt').write_text('keep me')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(0, 'after_batch')])
    assert names() == ['mine', 'mine/notes.txt']


def test_half_written_files_of_others_stay():
    for o in ('film.9999999.part', 'settings.json.9999999.part'): (Path('mine').mkdir(exist_ok=True), (Path('mine')/o).touch())
    with pytest.raises(CourseError, match='mine exists already'): begin('mine')
    assert names('mine') == ['film.9999999.part']
    Path('mine/film.9999999.part').unlink()
    run = begin('mine')
    for o in ('film.9999999.part', 'weights.safetensors.9999999.part'): (Path('mine')/o).touch()
    run.train()
    assert names('mine') == ['film.9999999.part', 'history.csv', 'settings.json', 'weights.safetensors']


@linux
def test_tensors_under_a_name_that_is_no_utf_8():
    path = Path(b'\xff'.decode(errors='surrogateescape'))/'a.safetensors'
    save_tensors(path, dict(a=torch.ones(3)), note=1)
    tensors, notes = load_tensors(path)
    assert tensors['a'].sum() == 3 and notes == dict(note=1)


def test_one_process_at_a_time():
    run = begin('mine')
    with lock_for('mine'):
        with pytest.raises(CourseError, match='another process is training mine'): run.train()
    assert names() == ['mine', 'mine/settings.json'] and not run.finished
    run.train()
    assert run.finished


def test_what_an_interrupted_run_has_can_be_used():
    run = begin('cut')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(3, 'after_batch')])
    run = Run('cut')
    loss, accuracy = run.learner().validate()
    assert (loss, accuracy) == pytest.approx((run.rows[2]['valid_loss'], run.rows[2]['accuracy']))
    assert not run.finished and repr(run) == 'Run cut: mlp on digits, 3 of 5 epochs'


def test_a_run_that_lost_its_checkpoint_is_not_finished(capsys):
    run = begin('cut')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(1, 'after_batch')])
    before = weights(run)
    Path('cut/checkpoint.safetensors').unlink()
    run = Run('cut')
    assert not run.finished and repr(run) == 'Run cut: mlp on digits, 1 of 5 epochs (its checkpoint is lost)'
    with pytest.raises(CourseError, match='cut has lost its checkpoint.safetensors, .* after 1 of 5 epochs: evaluate it'): run.train()
    assert all(torch.equal(v, before[k]) for k,v in weights(run).items())
    capsys.readouterr()
    assert main(['evaluate', 'cut']) == 0
    assert 'cut is not finished: this is what it has after 1 of 5 epochs' in capsys.readouterr().out
    assert main(['train', '--resume', 'cut']) == 2
    assert 'has lost its checkpoint.safetensors' in capsys.readouterr().err


def test_a_finished_run_without_its_history_says_so():
    begin('whole', epochs=1).train()
    Path('whole/history.csv').unlink()
    with pytest.raises(CourseError, match='whole has lost its history.csv: put it back'): Run('whole').learner()


def test_early_stopping_keeps_the_best():
    run = begin(epochs=40, lr=0.05, learner_args=dict(early_stopping=2))
    run.train()
    best = min(run.rows, key=lambda o: o['valid_loss'])
    assert len(run.rows) == best['epoch'] + 3 < 40
    again = Run(run.folder)
    assert again.learner().validate()[0] == pytest.approx(best['valid_loss'])
    assert again.learner().best_epoch == best['epoch'] and again.finished


def test_weights_while_early_stopping_waits_are_the_best():
    run = begin('cut', epochs=40, lr=0.05, learner_args=dict(early_stopping=3))
    class Waits(Callback):
        order = 75
        def after_epoch(self):
            if self.learn.epoch > self.learn.best_epoch: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Waits()])
    run = Run('cut')
    assert run.learner().validate()[0] == pytest.approx(min(o['valid_loss'] for o in run.rows))


def test_found_learning_rate_is_kept():
    run = begin('auto', lr='auto')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(2, 'after_batch')])
    found = Run('auto').settings.lr_found
    assert found > 0 and Run('auto').has('lr_find.png')
    resume('auto')
    begin('given', lr=found).train()
    assert_same(Run('auto'), Run('given'))


def test_same_seed_same_run():
    for folder in 'ab': begin(folder).train()
    begin('c', seed=43).train()
    assert_same(Run('a'), Run('b'))
    assert measured(Run('a')) != measured(Run('c'))


# ---- number of threads --------------------------------------------------------------------------

WIDE = dict(data_args=dict(n_per_class=60, bs=64), model_args=dict(widths=[128]), epochs=3)


@pytest.mark.parametrize('n', [1, 2, 4])
def test_resumed_with_another_number_of_threads(n):
    "A run keeps the number that it was started with, and the process keeps its own"
    with num_threads(n): begin('whole', **WIDE).train()
    assert Run('whole').settings.threads == n
    for m in (1, 2, 4):
        with num_threads(n): run = begin(f'cut{m}', **WIDE)
        with num_threads(m):
            with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(1, 'after_batch')])
            assert torch.get_num_threads() == m
            again = resume(f'cut{m}')
            assert torch.get_num_threads() == m and again.changes() == []
        assert_same(Run('whole'), again)


class Note(Callback):
    "Note the number of threads that a batch is trained with"
    def after_batch(self): self.found = torch.get_num_threads()


def test_asked_for_threads():
    note = Note()
    before = torch.get_num_threads()
    run = begin('run', threads=3, epochs=1)
    run.train(cbs=[note])
    assert note.found == 3 and torch.get_num_threads() == before
    assert json.loads(Path('run/settings.json').read_text())['settings']['threads'] == 3
    assert repr(run) == 'Run run: mlp on digits, 1 of 1 epochs, 3 threads (finished)'


def test_threads_are_put_back_after_a_fault():
    before = torch.get_num_threads()
    with pytest.raises(CourseError, match='not a finite number'): begin(lr=1e38, schedule='flat', threads=before + 1).train()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize('threads', [0, 1.5, '2', True, 10**9])
def test_bad_number_of_threads(threads):
    with pytest.raises(CourseError, match='^threads must be a whole number from 1 to 1024, or None, got '): Settings(threads=threads)


def test_threads_that_torch_refuses(monkeypatch):
    monkeypatch.setattr(torch, 'set_num_threads', lambda n: None)
    there = torch.get_num_threads()
    with pytest.raises(CourseError, match=f'^threads must be {there} on this machine'): begin('run', threads=there + 1)
    assert names() == []


def interrupted(folder):
    run = begin(folder)
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(2, 'after_batch')])


def test_run_of_before_the_number_was_noted(capsys):
    interrupted('run')
    settings = vars(Run('run').settings)
    change('run', settings={k: v for k,v in settings.items() if k != 'threads'}, processor='another one')
    capsys.readouterr()
    assert resume('run').finished
    said = capsys.readouterr().out
    assert 'the last digits of the weights may differ from those of an uninterrupted run: the processor was another one and is' in said
    assert 'the number of threads it began with is not known' in said


def test_resumed_where_torch_refuses_the_number(capsys, monkeypatch):
    interrupted('run')
    there = torch.get_num_threads()
    change('run', settings={**vars(Run('run').settings), 'threads': there + 1})
    monkeypatch.setattr(torch, 'set_num_threads', lambda n: None)
    capsys.readouterr()
    resume('run')
    assert f'the number of threads was {there + 1} and is {there}' in capsys.readouterr().out


# ---- faults while training ---------------------------------------------------------------------

def test_nan_at_once_leaves_nothing():
    with pytest.raises(CourseError, match='^the training loss is not a finite number at epoch 0, batch 1'):
        begin(lr=1e38, schedule='flat').train()
    assert names() == []


class Poison(Callback):
    "Spoil the weights in one epoch"
    def before_train(self):
        if self.learn.epoch == 3:
            for p in self.learn.model.parameters(): p.data.fill_(math.nan)


def test_nan_later_keeps_the_best():
    run = begin()
    with pytest.raises(CourseError, match=r'epoch 3, batch 0 .*\(3 epochs are kept in runs/mlp-digits-1\)$'): run.train(cbs=[Poison()])
    run = Run('mlp-digits-1')
    best = min(o['valid_loss'] for o in run.rows)
    assert run.finished and len(run.rows) == 3
    assert run.learner().validate()[0] == pytest.approx(best)


def disk_full(monkeypatch, n):
    "The disk refuses the `n`th file and all later ones"
    count = []
    def refuses(path, mode='w'):
        count.append(path)
        if len(count) > n: raise CourseError(f'cannot write {path}: No space left on device')
        return whole_file(path, mode)
    replace_files(monkeypatch, refuses)


@pytest.mark.parametrize('n', [0, 1])
def test_full_disk_at_once_leaves_nothing(monkeypatch, n):
    disk_full(monkeypatch, n)
    with pytest.raises(CourseError, match='^cannot write .*: No space left on device$'): begin().train()
    assert names() == []


def test_full_disk_later_keeps_what_there_is(monkeypatch):
    begin('whole').train()
    with monkeypatch.context() as m:
        disk_full(m, 8)
        with pytest.raises(CourseError, match=r'^cannot write cut/weights\S+: No space left on device \(3 epochs are kept in cut\)$'):
            begin('cut').train()
    assert_same(Run('whole'), resume('cut'))


def test_epoch_whose_history_finds_no_room_is_counted(monkeypatch):
    begin('whole').train()
    real = whole_file
    def fails(path, *args):
        if path.name == 'history.csv': raise CourseError(f'cannot write {path}: No space left on device')
        return real(path, *args)
    with monkeypatch.context() as m:
        replace_files(m, fails)
        with pytest.raises(CourseError, match=r'No space left on device \(1 epoch is kept in cut\)$'): begin('cut').train()
    assert_same(Run('whole'), resume('cut'))


def test_really_full_disk():
    "A limit on file size is met as a full disk is: the write fails half-way"
    code = """
import resource
from dlcourse.core import CourseError
from dlcourse.training.runs import start
from dlcourse.training.settings import Settings
run = start(Settings('mlp', 'digits', epochs=2))
learn = run.learner()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with learn.quiet(): run.train()
except CourseError as e: print(e)"""
    code, out, err = Aside(code).result()
    assert (code, out) == (0, 'cannot write runs/mlp-digits-1/checkpoint.safetensors: File too large\n'), err
    assert names() == []


@pytest.mark.parametrize('where', ['file/run', '/proc/run', 'link', 'link/run', 'circle', None])
def test_folder_that_cannot_be_made(where):
    Path('file').write_text('in the way')
    for name, to in dict(link='nowhere', runs='nowhere', circle='circle').items(): Path(name).symlink_to(to)
    with pytest.raises(CourseError, match='^cannot make a folder for the run: '): begin(where)
    assert names() == ['circle', 'file', 'link', 'runs']


# ---- settings that cannot be -------------------------------------------------------------------

@pytest.mark.parametrize('kwargs, says', [
    (dict(arch='cnnn'), "unknown architecture 'cnnn'. Did you mean 'cnn'"), (dict(data='mnits'), "Did you mean 'mnist'"),
    (dict(epochs=0), 'epochs must be a whole number of at least 1, or None, got 0'), (dict(epochs=1.5), 'epochs must be .*, got 1.5'),
    (dict(lr='fast'), "lr must be a number above 0, or 'auto', got 'fast'"), (dict(lr=math.nan), 'lr must be .*, got nan'),
    (dict(lr=-1), 'lr must be .*, got -1'), (dict(seed=-1), 'seed must be a whole number from 0 to 4294967295, got -1'),
    (dict(schedule='one'), "Did you mean 'one_cycle'"), (dict(device='cuda:77'), "unknown device 'cuda:77'"),
    (dict(model_args=dict(width=3)), "Did you mean 'widths'"), (dict(data_args=dict(bs=10_000)), 'bs must be at most'),
    (dict(data_args=dict(n_per_class=10_000)), '10,?000'), (dict(data_args=dict(classes=['1'])), 'at least two'),
    (dict(data_args=dict(classes=['1', 'x'])), "unknown class 'x'")])
def test_bad_settings_leave_nothing(kwargs, says):
    with pytest.raises(CourseError, match=says) as e: start(Settings(**{'arch': 'mlp', 'data': 'digits', **kwargs}))
    assert '\n' not in str(e.value)
    assert names() == []


def test_folder_is_not_overwritten():
    Path('mine').mkdir()
    Path('mine/x').touch()
    with pytest.raises(CourseError, match='mine exists already'): begin('mine')
    assert names() == ['mine', 'mine/x']


def test_numbers_of_folders():
    assert [begin().folder.name for _ in range(2)] == ['mlp-digits-1', 'mlp-digits-2']
    shutil.rmtree('runs/mlp-digits-1')
    Path('runs/mlp-digits-3').touch()
    assert [begin().folder.name for _ in range(2)] == ['mlp-digits-1', 'mlp-digits-4']


def test_settings_survive_json():
    s = Settings('cnn', 'digits', data_args=dict(classes=('1', '2'), imbalance={'1': 0.5}), model_args=dict(filters=(4, 8)))
    a, b = s.written_out(), start(s).settings
    assert json.loads(json.dumps(vars(a))) == {**vars(b), 'epochs': None}
    assert [tuple(p.shape) for p in a.learner().model.parameters()] == [tuple(p.shape) for p in b.learner().model.parameters()]


USUAL = dict(precision='float32', channels_last=None)


def test_every_setting_is_written():
    s = begin().settings
    assert s.model_args['activation'] == 'relu' and s.data_args['label_noise'] == 0. and s.learner_args == dict(USUAL, wd=None,
        early_stopping=None, label_smoothing=0.)
    again = s.written_out()
    assert again == s


@pytest.mark.parametrize('kwargs, says', [
    (dict(data_args=dict(bs=0)), 'bs must be a whole number of at least 1, got 0'), (dict(data_args=dict(sise=8)), "Did you mean 'size'"),
    (dict(data_args=dict(size=0)), 'size must be a number of pixels'), (dict(data_args=dict(channels=2)), 'channels must be 1 for grey'),
    (dict(data_args=dict(label_noise=2)), 'label_noise must be a number from 0 to 1'), (dict(data_args=dict(valid=0)), 'valid must be'),
    (dict(data_args=dict(augment='yes')), 'augment must be True or False'),
    (dict(data_args=dict(classes=['0', '77'])), "unknown class '?77"),
    (dict(data_args=dict(n_per_class=10**6)), 'images, fewer than'), (dict(model_args=dict(width=3)), "Did you mean 'widths'"),
    (dict(learner_args=dict(early_stopping=0)), 'early_stopping must be'),
    (dict(learner_args=dict(label_smoothing=-1)), 'label_smoothing must be'),
    (dict(learner_args=dict(wd='much')), 'wd must be a number of at least 0, or None'),
    (dict(learner_args=dict(opt_func='sgd')), "unknown argument of the Learner 'opt_func'"),
    (dict(learner_args=dict(cbs=[])), "unknown argument of the Learner 'cbs'"),
    (dict(arch='cnn', model_args=dict(filters=[0])), 'filters|widths'),
    (dict(device='cuda:77'), 'unknown device'), (dict(data_args=[1]), 'data_args must be a dictionary')])
def test_bad_settings_before_any_download(kwargs, says, monkeypatch, tmp_path_factory):
    "A data set that has to be downloaded first isn't"
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    monkeypatch.setenv('DLCOURSE_DATA', str(elsewhere/'empty'))
    monkeypatch.setenv('FASTAI_HOME', str(elsewhere/'home'))
    def fetched(*args, **kwargs): raise AssertionError('nothing may be fetched')
    monkeypatch.setattr('socket.socket.connect', fetched)
    with pytest.raises(CourseError, match=says): start(Settings(**{'arch': 'mlp', 'data': 'mnist', **kwargs}))
    assert names() == []


# ---- folders that are no runs, or not of this version ------------------------------------------

def change(folder, **kwargs):
    d = json.loads((Path(folder)/'settings.json').read_text())
    d.update(kwargs)
    (Path(folder)/'settings.json').write_text(json.dumps(d))


def test_unknown_run():
    with pytest.raises(CourseError, match="unknown run 'x': there is no run in runs"): Run('x')
    begin(), begin('elsewhere/one')
    with pytest.raises(CourseError, match="Did you mean 'mlp-digits-1'"): Run('mlp-digit')
    with pytest.raises(CourseError, match="Did you mean 'mlp-digits-1'"): Run('runs/mlp_digits_11')
    with pytest.raises(CourseError, match="unknown run 'two'.*There are: one"): Run('elsewhere/two')
    assert Run('MLP-digits-1').folder == Path('runs/mlp-digits-1')


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '7', '{"format": 1}',
    '{"format": 1, "versions": {"dlcourse": "0"}, "settings": {"colour": 1}}', '\xff'])
def test_damaged_settings(text):
    begin('run')
    Path('run/settings.json').write_bytes(text.encode('latin1'))
    with pytest.raises(CourseError, match='^run/settings.json is damaged or not of a run') as e: Run('run')
    assert '\n' not in str(e.value)


def test_not_a_run():
    Path('photos').mkdir()
    with pytest.raises(CourseError, match='^photos is not a run folder: it has no settings.json$'): Run('photos')


def test_another_format():
    begin('run')
    change('run', format=2, versions=dict(dlcourse='9.9'))
    with pytest.raises(CourseError, match='^run is a run of format 2, made by dlcourse 9.9; this is dlcourse .*, which reads format 1$'):
        Run('run')


def test_impossible_settings_in_the_file():
    begin('run')
    change('run', settings={**vars(Run('run').settings), 'epochs': 'many'})
    with pytest.raises(CourseError, match="epochs must be .*, got 'many'"): Run('run')


@pytest.mark.parametrize('damage', [lambda p: p.write_bytes(p.read_bytes()[:100]), lambda p: p.write_bytes(b''),
    lambda p: p.write_bytes(b'\x80\x04pickle' * 99)])
@pytest.mark.parametrize('name', ['weights', 'checkpoint'])
def test_damaged_tensors(name, damage):
    run = begin('run')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(2, 'after_batch')])
    damage(Path(f'run/{name}.safetensors'))
    before = names('run')
    with pytest.raises(CourseError, match=f'run/{name}.safetensors is damaged'): resume('run')
    assert names('run') == before


def test_weights_of_another_network():
    begin('run').train()
    save_tensors('run/weights.safetensors', {'body.dense1.linear.weight': torch.zeros(3, 3)})
    with pytest.raises(CourseError, match='run/weights.safetensors does not fit the network: .* has shape'): Run('run').learner()


def test_damaged_history():
    begin('run').train()
    Path('run/history.csv').write_text('epoch,valid_loss\n0,low\n')
    with pytest.raises(CourseError, match="history.csv is damaged: valid_loss is 'low'"): Run('run').rows


def test_history_is_exact():
    run = begin()
    rows = run.train().rows
    assert run.rows == rows and all(type(o['epoch']) is int for o in rows)
    assert run.history.valid_loss.tolist() == [o['valid_loss'] for o in rows]


def image_folder(root, n=10):
    rng = np.random.default_rng(0)
    for name, low in (('bright', 128), ('dark', 0)):
        (Path(root)/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(rng.integers(low, low+128, (8, 8, 3), dtype=np.uint8)).save(Path(root)/name/f'{i}.png')


def test_data_that_changed():
    image_folder('photos')
    run = start(Settings('mlp', 'photos', epochs=1, data_args=dict(bs=8)))
    run.train()
    assert run.folder == Path('runs/mlp-photos-1') and Path(run.settings.data).is_absolute()
    Path('photos/dark/0.png').unlink(), Path('photos/bright/0.png').unlink()
    with pytest.raises(CourseError, match='the data of runs/mlp-photos-1 have changed: train was 13, now 11'): Run(run.folder).learner()
    shutil.rmtree('photos')
    with pytest.raises(CourseError, match='photos') as e: Run(run.folder).learner()
    assert '\n' not in str(e.value)


def test_changed_settings_do_not_fit_the_weights():
    begin('run').train()
    s = vars(Run('run').settings)
    change('run', settings={**s, 'model_args': {**s['model_args'], 'widths': [17]}})
    with pytest.raises(CourseError, match='does not fit the network'): Run('run').learner()


# ---- tensors -----------------------------------------------------------------------------------

def test_tensors_of_all_kinds(tmp_path):
    base = torch.arange(12.).view(3, 4)
    tensors = dict(view=base.T, scalar=torch.tensor(3), empty=torch.zeros(0, 2), flag=torch.tensor([True]), same=base, again=base,
        half=base.half())
    save_tensors(tmp_path/'a.safetensors', tensors, inf=-math.inf, text='ü')
    got, notes = load_tensors(tmp_path/'a.safetensors')
    assert all(torch.equal(tensors[k], got[k]) and tensors[k].dtype == got[k].dtype for k in tensors) and got.keys() == tensors.keys()
    assert notes == dict(inf=-math.inf, text='ü')


def test_missing_tensors():
    with pytest.raises(CourseError, match='a.safetensors is missing'): load_tensors('a.safetensors')


def test_weights_that_are_too_many_or_too_few():
    model = torch.nn.Linear(2, 2)
    for odd in ({}, {**model.state_dict(), 'more': torch.zeros(1)}, {'weight': torch.zeros(2, 2)}):
        with pytest.raises(CourseError, match='expected'): load_weights(model, odd)


def test_no_file_of_a_run_can_hold_code():
    run = begin()
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(2, 'after_batch')])
    assert {o.suffix for o in run.folder.iterdir()} == {'.json', '.csv', '.safetensors'}
    source = Path(R.__file__).read_text()
    assert 'pickle' not in source.replace('a pickle would', '') and 'torch.load' not in source


# ---- pretrained networks -----------------------------------------------------------------------

@pytest.fixture
def own_weights():
    "A file of weights of chance, and nothing else to be had"
    torch.manual_seed(1)
    save_tensors('given/squeezenet1_1.safetensors', squeezenet1_1(num_classes=3).state_dict())
    save_tensors('given/shufflenet_v2_x0_5.safetensors', shufflenet_v2_x0_5(num_classes=3).state_dict())
    return Path('given').resolve()


def transfer(folder=None, arch='squeezenet1_1', **kwargs):
    small = dict(epochs=3, lr=1e-2, data_args=dict(n_per_class=10, bs=20, size=32), model_args=dict(weights='given'))
    given = {**small, **{k: {**small.get(k, {}), **v} if isinstance(v, dict) else v for k,v in kwargs.items()}}
    run = start(Settings(arch, 'digits', **given), folder)
    return run


class StopAfter(Callback):
    "Raise in the epoch that follows `n` finished ones, counted over all fits"
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.learn.training and len(self.learn.rows) == self.n: raise KeyboardInterrupt


AUGMENTED = dict(augment=True)
TRANSFERS = [dict(learner_args=dict(cache=True)), dict(learner_args=dict(cache='features.safetensors', early_stopping=2)),
    dict(learner_args=dict(cache=True, copies=3), data_args=AUGMENTED, lr='auto'),
        dict(learner_args=dict(frozen=False), data_args=AUGMENTED),
    dict(model_args=dict(pretrained=False, weights=None)), dict(arch='squeezenet1_1+shufflenet_v2_x0_5', model_args=dict(how='late'),
        learner_args=dict(cache=True)),
    dict(epochs=2, fine_tune=2, learner_args=dict(cache=True), data_args=AUGMENTED),
        dict(epochs=1, fine_tune=3, learner_args=dict(early_stopping=1))]


@pytest.mark.parametrize('case', TRANSFERS, ids=lambda o: ' '.join(f'{k}={v}' for k,v in o.items()))
def test_transfer_resumed_without_its_file_is_uninterrupted(case, own_weights):
    whole = transfer('whole', **case)
    torch.rand(9) # whatever else may draw before the training
    whole.train()
    n = len(Run('whole').rows)
    run = transfer('cut', **case)
    with pytest.raises(KeyboardInterrupt, match=f'{n-1} of {run.settings.n_epochs} epochs are kept'): run.train(cbs=[StopAfter(n-1)])
    shutil.rmtree(own_weights)
    assert_same(Run('whole'), resume('cut'))
    assert names('whole') == names('cut') and Run('cut').finished


@pytest.mark.parametrize('n', [1, 2])
def test_fine_tuning_interrupted_around_its_second_fit(n, own_weights):
    args = dict(epochs=2, fine_tune=1, learner_args=dict(cache=True))
    transfer('whole', **args).train()
    run = transfer('cut', **args)
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[StopAfter(n)])
    shutil.rmtree(own_weights)
    assert_same(Run('whole'), resume('cut'))


def test_fine_tuning_is_that_of_fastai(own_weights):
    run = transfer('run', epochs=2, fine_tune=2)
    ours = run.train().model.state_dict()
    learn = run.settings.learner()
    learn.fine_tune(2, 1e-2, freeze_epochs=2)
    assert all(torch.equal(v, ours[k]) for k,v in learn.model.state_dict().items())
    assert repr(Run('run')).endswith('squeezenet1_1 on digits, 4 of 4 epochs (finished)')
    assert Run('run').learner().best_epoch == run.learner().best_epoch


def test_no_number_while_only_the_head_is_trained(own_weights):
    class Spoil(Callback):
        def before_train(self):
            if len(self.learn.rows) == 1: self.learn.model.head.out.weight.data.fill_(math.nan)
    run = transfer('run', epochs=2, fine_tune=2, model_args=dict(head='linear'))
    with pytest.raises(CourseError, match=r'not a finite number .*\(1 epoch is kept in run\)$'): run.train(cbs=[Spoil()])
    assert Run('run').finished and Run('run').learner().best_epoch == 0


@pytest.mark.parametrize('cache', [False, True, 'features.safetensors'])
def test_killed_between_the_first_checkpoint_and_the_first_weights(cache, own_weights, monkeypatch):
    args = dict(learner_args=dict(cache=cache))
    transfer('whole', **args).train()
    run, real = transfer('cut', **args), whole_file
    def fails(path, *args):
        if path.name == 'weights.safetensors': raise KeyboardInterrupt
        return real(path, *args)
    with monkeypatch.context() as m:
        replace_files(m, fails)
        with pytest.raises(KeyboardInterrupt): run.train()
    shutil.rmtree(own_weights)
    assert_same(Run('whole'), resume('cut'))


def test_interrupted_frozen_run_can_be_used(own_weights):
    "The frozen part lies in a file of its own while epochs are left"
    run = transfer('cut')
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[StopAfter(2)])
    shutil.rmtree(own_weights)
    assert names('cut') == ['checkpoint.safetensors', 'frozen.safetensors', 'history.csv', 'settings.json', 'weights.safetensors']
    assert not any('body.' in k for k in [*weights(run), *load_tensors('cut/checkpoint.safetensors')[0]])
    assert Run('cut').learner().validate()[0] == pytest.approx(run.rows[1]['valid_loss'], rel=1e-4)
    Path('cut/frozen.safetensors').unlink()
    with pytest.raises(CourseError, match='cut/weights.safetensors does not fit the network: body'): Run('cut').learner()


def test_opened_again_it_says_and_reads_nothing(own_weights, capsys):
    "The same network, head, normalisation and frozen body, without the file it began with and without a line about it"
    run = transfer('run', epochs=1, arch='squeezenet1_1')
    with run.learner().quiet(): run.train()
    was, out = run.learner(), capsys.readouterr().out.splitlines()
    assert len(out) == 1 and out[0].startswith('squeezenet1_1 (torchvision), weights: squeezenet1_1.safetensors')
    shutil.rmtree(own_weights)
    now = Run('run').learner()
    assert capsys.readouterr().out == ''
    with now.quiet(), was.quiet(): assert torch.equal(now.get_preds(ds_idx=2)[0], was.get_preds(ds_idx=2)[0]) and now.model.frozen
    assert str(now.model.backbone) == str(was.model.backbone) and [type(o) for o in now.model.head] == [type(o) for o in was.model.head]
    assert now.model.backbone.mean == (0.485, 0.456, 0.406)


def test_settings_name_the_weights_and_the_head(own_weights, monkeypatch):
    monkeypatch.setenv('DLCOURSE_WEIGHTS', str(own_weights))
    run = transfer('run', model_args=dict(weights=None), learner_args=dict(cache=Path('f.safetensors')))
    assert run.facts['backbone'] == dict(weights='squeezenet1_1.safetensors', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert run.settings.model_args == dict(pretrained=True, weights=None, head='fastai', dropout=None)
    assert run.settings.learner_args == dict(USUAL, wd=None, early_stopping=None, label_smoothing=0., frozen=True,
        cache=str(Path('f.safetensors').resolve()), copies=1)
    assert run.settings.written_out() == run.settings
    text = Path('run/settings.json').read_text()
    assert str(own_weights) not in text
    scratch = transfer('scratch', model_args=dict(pretrained=False, weights=None))
    assert scratch.facts['backbone'] is None and scratch.settings.model_args['head'] == 'own' and not scratch.learner().model.frozen
    assert [Settings('alexnet+resnet18', model_args=dict(how=o)).written_out().model_args['head'] for o in ('middle',
        'Late')] == ['dense', 'fastai']


def test_features_of_other_images_are_refused(own_weights):
    transfer('a', epochs=1, learner_args=dict(cache='f.safetensors')).train()
    before = names()
    with pytest.raises(CourseError, match='f.safetensors was made from other images: remove it, or name another file'):
        transfer('b', epochs=1, seed=1, learner_args=dict(cache='f.safetensors')).train()
    assert names() == before


def test_cached_features_serve_other_labels(own_weights):
    "Labels are those of the data, whatever the features in the file were once computed for"
    def losses(folder, cache, **data_args):
        run = transfer(folder, epochs=2, learner_args=dict(cache=cache), data_args=data_args)
        run.train()
        return run.history.valid_loss.tolist()
    first = losses('a', 'f.safetensors', classes=['0', '1', '2'])
    noisy = dict(classes=['0', '1', '2'], label_noise=0.9)
    with_file, without = losses('b', 'f.safetensors', **noisy), losses('c', False, **noisy)
    assert with_file == pytest.approx(without, abs=1e-4) and with_file != pytest.approx(first, abs=1e-2)


@pytest.mark.parametrize('change', [lambda o: setattr(o[1], 'max_val', 1.), lambda o: setattr(o[2], 'count_include_pad', False),
    lambda o: setattr(o[3], 'num_heads', 4), lambda o: o[0].register_forward_hook(lambda m, x, y: 2*y),
    lambda o: o.register_forward_pre_hook(lambda m, x: x), lambda o: setattr(o[0], 'forward', lambda x: x)])
def test_what_a_layer_does_not_show_is_part_of_its_features(change):
    def net(): return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU6(), nn.AvgPool2d(2, padding=1), nn.MultiheadAttention(8, 2)).eval()
    changed = net()
    change(changed)
    first, second, other = ([_settings(m) for m in o.modules()] for o in (net(), net(), changed))
    assert first == second != other


@pytest.mark.parametrize('change, says', [
    (lambda t: {**t, 'train.0': t['train.0'][:-1]}, 'does not fit these images: train.0 has shape'),
    (lambda t: {**t, 'train.0': t['train.0'].double()}, 'train.0 has type float64, expected float32'),
    (lambda t: {**t, 'valid.0': t['valid.0'] * math.nan}, 'valid.0 holds NaN'), (lambda t: {}, 'train.0 has shape none'),
    (lambda t: {**t, 'more': t['valid.0']}, 'more has shape .*, expected none')])
def test_tampered_features_are_refused(change, says, own_weights):
    args = dict(epochs=1, learner_args=dict(cache='f.safetensors'))
    transfer('a', **args).train()
    tensors, origin = read_tensors('f.safetensors')
    changed = change({k: v.clone() for k,v in tensors.items()})
    with open('f.safetensors', 'wb') as f: write_tensors(f, changed, origin)
    with pytest.raises(CourseError, match=f'f.safetensors .*{says}'): transfer('b', **args).train()


def test_a_changed_byte_of_features_is_noticed(own_weights):
    args = dict(epochs=1, learner_args=dict(cache='f.safetensors'))
    transfer('a', **args).train()
    data = bytearray(Path('f.safetensors').read_bytes())
    data[-2] ^= 64
    Path('f.safetensors').write_bytes(data)
    with pytest.raises(CourseError, match='f.safetensors is damaged: its numbers are not'): transfer('b', **args).train()


def test_resumed_run_writes_no_file_that_its_settings_name(own_weights):
    "Settings of a run may be a stranger's; a cache that is there is read, one that isn't is not made"
    run = transfer('cut', learner_args=dict(cache='f.safetensors'))
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[StopAfter(1)])
    Path('f.safetensors').unlink()
    resume('cut')
    assert not Path('f.safetensors').exists() and Run('cut').finished


# ---- run folders from elsewhere ----------------------------------------------------------------

def settings_with(**groups):
    "Change entries of the settings in `settings.json`"
    def change(folder):
        d = json.loads((folder/'settings.json').read_text())
        for k,v in groups.items(): d['settings'][k] = {**d['settings'][k], **v} if isinstance(v, dict) else v
        (folder/'settings.json').write_text(json.dumps(d))
    return change


def facts_with(**facts):
    def change(folder):
        d = {**json.loads((folder/'settings.json').read_text()), **facts}
        (folder/'settings.json').write_text(json.dumps({k: v for k,v in d.items() if v != 'left out'}))
    return change


def tensors_with(name, f, summed=False):
    "Change tensors and texts of a file by `f`; a checksum is left out, unless `summed`"
    def change(folder):
        path = folder/f'{name}.safetensors'
        tensors, texts = read_tensors(path)
        tensors, texts = f({k: v.clone() for k,v in tensors.items()}, {k: v for k,v in texts.items() if summed or k != 'crc32'})
        with open(path, 'wb') as o: write_tensors(o, tensors, texts)
    return change


def each(f): return lambda t, m: ({k: f(v) for k,v in t.items()}, m)
def one(name, f): return lambda t, m: ({**t, name: f(t[name])}, m)
def note(name, text): return lambda t, m: (t, {**m, name: text})


def in_place_of(name, f):
    def change(folder):
        (folder/name).unlink()
        f(folder/name)
    return change


FIRST = 'body.dense1.linear.weight'
TAMPERED = [
    (settings_with(arch=5), 'arch must be .*, got 5'), (settings_with(data=['x']), 'data must be'),
    (settings_with(seed=10**30), 'seed must be'), (settings_with(bogus=1), 'damaged or not of a run'),
    (settings_with(data_args=dict(normalize=False)), 'normalize was True, now False: change it back'),
    (settings_with(model_args=dict(widths=[10**9])), 'widths was'), (settings_with(lr=1.), 'lr was'),
    (facts_with(parameters='many'), 'parameters must be a whole number'), (facts_with(parameters=7), 'the network of .* has changed'),
    (facts_with(examples='left out'), 'it has no examples'), (facts_with(trained_on='x'*9999), 'trained_on must be a short text'),
    (facts_with(backbone=dict(weights='x', mean=[0.], std=[0.])), 'backbone must be'), (facts_with(format=True), 'of format True'),
    (in_place_of('weights.safetensors', os.mkdir), 'must be a file, and it is a folder'),
    (in_place_of('history.csv', os.mkfifo), 'must be a file, and it is a pipe'),
    (in_place_of('checkpoint.safetensors', lambda o: o.symlink_to('nowhere')), 'is a link to a file that is missing'),
    (in_place_of('settings.json', lambda o: o.write_text('{"a":'*9999 + '1' + '}'*9999)), 'nests more than 50 levels'),
    (in_place_of('history.csv', lambda o: o.write_text('epoch,valid_loss\n0,1\n')), 'each epoch must have'),
    (in_place_of('history.csv', lambda o: o.write_bytes(b'\xff\x00')), 'history.csv is damaged'),
    (tensors_with('weights', lambda t, m: ({}, m)), 'has shape none'),
    (tensors_with('weights', each(lambda v: v.long())), 'has type int64'),
    (tensors_with('weights', each(lambda v: v * math.nan)), 'holds NaN'),
    (tensors_with('weights', note('best_epoch', '99')), 'best epoch is 99'),
    (tensors_with('checkpoint', one('opt.0.exp_avg', lambda v: torch.zeros(999, 999))), '0.exp_avg has shape'),
    (tensors_with('checkpoint', one('opt.0.step', lambda v: torch.zeros(5))), '0.step has shape'),
    (tensors_with('checkpoint', one('opt.0.exp_avg', lambda v: v.double())), '0.exp_avg has type float64'),
    (tensors_with('checkpoint', one('opt.0.exp_avg', lambda v: v.to(torch.float8_e4m3fn))), '0.exp_avg has type float8'),
    (tensors_with('checkpoint', lambda t, m: ({**t, 'opt.99.step': t['opt.0.step']}, {k: v for k,v in m.items() if k != 'n_tensors'})),
     '99.step has shape .*, expected none'),
    (tensors_with('checkpoint', lambda t, m: ({k: v for k,v in t.items() if not k.startswith('opt.0')}, m)), 'tensors, expected'),
    (tensors_with('checkpoint', one(f'model.{FIRST}', lambda v: v * math.nan)), 'holds NaN'),
    (tensors_with('checkpoint', one('smooth_val', lambda v: torch.zeros(3))), 'smooth_val has shape'),
    (tensors_with('checkpoint', note('at', '[7, 0]')), 'do not go together'),
    (tensors_with('checkpoint', note('watch', '[]')), 'watch must be'),
    (tensors_with('checkpoint', note('rows', '[{"epoch": 0}]')), 'each epoch must have'),
    (tensors_with('checkpoint', note('rows', '['*99999)), 'note .rows.'),
    (tensors_with('checkpoint', note('made_with', '[1]')), 'must be a dictionary'),
    (tensors_with('weights', one(FIRST, lambda v: v + 1e-3), summed=True), 'its numbers are not those that were written'),
    (tensors_with('weights', note('best_epoch', '0'), summed=True), 'its numbers are not those that were written'),
    (tensors_with('checkpoint', one('opt.0.exp_avg_sq', lambda v: v + math.inf), summed=True), 'its numbers are not those'),
    (lambda folder: (folder/'history.csv').write_text((folder/'history.csv').read_text().replace('\n1,', '\n1,9')),
     'disagree about epoch 1')]


@pytest.fixture(scope='module')
def interrupted_run(tmp_path_factory):
    "A run of which two of three epochs are trained"
    folder = tmp_path_factory.mktemp('elsewhere')/'run'
    run = begin(folder, epochs=3)
    with run.learner().quiet(), pytest.raises(KeyboardInterrupt): run.train(cbs=[Stop(2, 'after_batch')])
    return folder


@pytest.mark.parametrize('change, says', TAMPERED, ids=[o[1] for o in TAMPERED])
def test_tampered_run_is_refused_in_a_sentence(change, says, interrupted_run, capsys):
    shutil.copytree(interrupted_run, 'run')
    change(Path('run'))
    before = {o: o.stat().st_size for o in Path('run').iterdir() if o.is_file()}
    assert main(['train', '--resume', 'run']) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith('error: ') and re.search(says, error[0])
    assert {o: o.stat().st_size for o in Path('run').iterdir() if o.is_file()} == before


def test_untouched_run_from_elsewhere_carries_on(interrupted_run):
    shutil.copytree(interrupted_run, 'run')
    for o in ('weights.safetensors.9999999.part', 'history.csv.9999999.part'): (Path('run')/o).write_text('half')
    run = Run('run')
    with run.learner().quiet(): run.train()
    assert names('run') == ['history.csv', 'settings.json', 'weights.safetensors'] and run.finished


def test_settings_of_a_stranger_name_no_file_to_write(own_weights):
    "Neither a cache, nor a folder for downloads"
    run = transfer('cut', learner_args=dict(cache=True))
    with pytest.raises(KeyboardInterrupt): run.train(cbs=[StopAfter(1)])
    settings_with(learner_args=dict(cache='../evil.safetensors'), data_args=dict(path='../evil'))(Path('cut'))
    resume('cut')
    assert not Path('../evil.safetensors').exists() and not Path('../evil').exists()


# ---- killed at any write -----------------------------------------------------------------------

killing = dict(n=None, at=None)


def kill_at_a_write(event, args):
    "Audit hook: count what is opened for writing, renamed, removed and made, and press Ctrl-C at one of these"
    if killing['n'] is None or event not in ('open', 'os.rename', 'os.remove', 'os.mkdir'): return
    if isinstance(args[0], int) or not os.path.abspath(os.fsdecode(args[0])).startswith(os.path.abspath('cut')): return
    if event == 'open' and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR): return
    killing['n'] += 1
    if killing['n'] == killing['at']: raise KeyboardInterrupt


@pytest.fixture
def kill_at():
    "Function that runs a command which is killed at its `k`th write; returns whether it was"
    if 'hooked' not in killing: sys.addaudithook(kill_at_a_write)
    killing['hooked'] = True
    def run(k, words):
        killing.update(n=0, at=k)
        try: return main(words) == 130
        finally: killing['n'] = None
    yield run
    killing['n'] = None


def test_killed_at_any_write(kill_at, monkeypatch, capsys):
    "Started again or resumed, every one ends with the bits of a run that was left alone; every third point is tried"
    monkeypatch.setattr('dlcourse.core.save_figure', lambda fig, path: plt.close(fig))
    words = 'train mlp --data digits --n-per-class 10 --bs 8 --classes 0,1 --epochs 2 --set widths=8 --out'.split()
    assert main([*words, 'whole']) == 0
    k = 1
    while kill_at(k, [*words, 'cut']):
        there = Path('cut/settings.json').exists()
        assert main(['train', '--resume', 'cut'] if there else [*words, 'cut']) in (0, 2)
        assert_same(Run('whole'), Run('cut'))
        assert names('cut') == names('whole'), f'killed at write {k}'
        shutil.rmtree('cut')
        k += 3
    assert k > 30


NOT_FROZEN = [
    (dict(arch='mlp', learner_args=dict(cache=True)),
    'cache needs a pretrained network (any torchvision or timm name); mlp is trained from scratch'),
    (dict(arch='cnn', fine_tune=2), 'fine_tune needs a pretrained network'),
    (dict(arch='cnn', model_args=dict(pretrained=True)), 'pretrained needs a pretrained network'),
    (dict(model_args=dict(pretrained=False), learner_args=dict(cache=True)),
    'cache needs a frozen part; squeezenet1_1 is trained from scratch'),
    (dict(model_args=dict(pretrained=False), fine_tune=1), 'fine_tune needs a frozen part'),
    (dict(learner_args=dict(frozen=False, cache=True, copies=2)),
    'cache and copies need a frozen part; squeezenet1_1 is trained as a whole from the start'),
    (dict(learner_args=dict(copies=2)), 'copies=2 needs cache'), (dict(learner_args=dict(copies=0, cache=True)),
    'copies must be a whole number of at least 1, got 0'),
    (dict(fine_tune=0), 'fine_tune must be a whole number of at least 1, or None, got 0'),
    (dict(fine_tune=1, schedule='flat'), "schedule must be 'one_cycle' for fine-tuning, which is two one-cycle fits, got 'flat'"),
    (dict(model_args=dict(weights='given', pretrained=False)), 'pretrained=False'),
    (dict(model_args=dict(head='fast')), "unknown head 'fast'. Did you mean 'fastai'"),
    (dict(arch='squeezenet1_1+resnt18'), "unknown architecture 'resnt18'. Did you mean 'resnet18'"),
    (dict(arch='alexnet+alexnet'), 'two or more different networks'),
    (dict(arch='squeezenet1_1+resnet18', model_args=dict(how='early')), "unknown fusion 'early'"),
    (dict(arch='alexnet', data_args=dict(size=40)),
    'alexnet does not work on images of 40×40 pixels; the smallest square ones it takes have 63×63'),
    (dict(model_args=dict(weights='nowhere')), 'there is no file or folder nowhere with the weights of squeezenet1_1')]


@pytest.mark.parametrize('kwargs, says', NOT_FROZEN, ids=[o[1] for o in NOT_FROZEN])
def test_bad_transfer_settings_leave_nothing(kwargs, says):
    with pytest.raises(CourseError) as e:
        start(Settings(**{'arch': 'squeezenet1_1', 'data': 'digits', 'data_args': dict(size=32), **kwargs}))
    assert says in str(e.value) and '\n' not in str(e.value) and names() == []


# ---- Parts of a training -----------------------------------------------------------------------

def test_a_window_over_all_epochs_is_the_setting_itself():
    def weights(wd, *cbs):
        learn = learner_for('mlp', data='digits', n_per_class=10, seed=1, wd=wd)
        with learn.quiet(): learn.fit(2, cbs=list(cbs))
        return learn.model.state_dict()
    always, window, never = weights(0.5), weights(0., During(dict(wd=0.5))), weights(0.5, During(dict(wd=0.5), 5))
    assert all(torch.equal(v, window[k]) and torch.equal(v, never[k]) for k,v in always.items())


@pytest.mark.parametrize('settings', [dict(wd='x'), dict(lr=-1), dict(eps=float('nan')), dict(mom=[0.9, None])])
def test_settings_of_a_window_are_numbers(settings):
    learn = learner_for('mlp', data='digits', n_per_class=10, seed=1)
    with pytest.raises(CourseError, match='must be a number of at least 0'), learn.quiet(): learn.fit(1, cbs=During(settings))


def test_only_what_learns_is_changed():
    learn = learner_for('cnn', data='digits', n_per_class=10, filters=[4, 4], norm='batch', seed=1)
    before = {k: p.detach().clone() for k,p in learn.model.named_parameters()}
    for what in ('bias', 'conv', 'head.out'):
        count = train_only(learn, what)
        with learn.quiet(): learn.fit(1, 0.01)
        learnt = [p for p in learn.model.parameters() if p.requires_grad]
        assert count == sum(p.numel() for p in learnt)
        changed = {k for k,p in learn.model.named_parameters() if not torch.equal(p.detach(), before[k])}
        assert changed <= {k for k,p in learn.model.named_parameters() if p.requires_grad} and changed
        before = {k: p.detach().clone() for k,p in learn.model.named_parameters()}
    learn.model = torch.nn.Flatten()
    with pytest.raises(CourseError, match='has no parameters of the kind'): train_only(learn, 'conv')


def test_an_ensemble_is_an_ordinary_learner(tmp_path):
    dls = dls_for('digits', n_per_class=10, seed=1)
    members = [learner_for('mlp', dls, widths=[8], seed=i) for i in (1, 2)]
    together = ensemble(members)
    with together.quiet(): preds, y = together.get_preds()
    with members[0].quiet(), members[1].quiet(): each = [o.get_preds()[0] for o in members]
    assert torch.allclose(preds, sum(each)/2, atol=1e-6) and together.dls is dls
    before = [p.clone() for p in members[0].model.parameters()]
    for p in together.model.parameters(): p.data.zero_()
    assert all(torch.equal(a, b) for a,b in zip(before, members[0].model.parameters())), 'the networks of an ensemble are copies'
    other = learner_for('mlp', data='fashion_mini', n_per_class=10, seed=1)
    with pytest.raises(CourseError, match='the same classes'): ensemble([members[0], other])
    with pytest.raises(CourseError, match='two networks or more, got 0'): ensemble([])


def test_members_of_an_ensemble_see_what_they_were_trained_on(capsys):
    dls = dls_for('digits', n_per_class=10, seed=1)
    plain = learner_for('mlp', dls_for('digits', n_per_class=10, seed=1, normalize=False), widths=[8], seed=1)
    grey = learner_for('mlp', dls, widths=[8], seed=2)
    colour = learner_for('mlp', dls_for('digits', n_per_class=10, seed=1, channels=3), widths=[8], seed=3)
    for pair in ([plain, grey], [grey, plain], [colour, grey], [colour, plain]):
        with plain.quiet(), grey.quiet(), colour.quiet(): each, both = [o.get_preds()[0] for o in pair], ensemble(pair).get_preds()[0]
        assert torch.allclose(both, sum(each)/2, atol=1e-5)
    large = learner_for('mlp', dls_for('digits', n_per_class=10, seed=1, size=16), widths=[8])
    with pytest.raises(CourseError, match='in one size'): ensemble([grey, large])
    capsys.readouterr()
    ensemble([grey, learner_for('mlp', dls_for('digits', n_per_class=10, seed=2), widths=[8])])
    assert 'were training items of another member' in capsys.readouterr().out


# ---- the order of numbers in memory, and precision ------------------------------------------------

def test_a_state_in_another_order_is_put_right():
    "Fused optimizers go through memory without a look at strides"
    learn = learner_for('cnn', data='digits', n_per_class=20, filters=(8, 16), seed=1, channels_last=False)
    twin = learner_for('cnn', learn.dls, filters=(8, 16), seed=1, channels_last=False)
    for o in (learn, twin):
        with o.quiet(): o.fit(1)
        o.model.to(memory_format=torch.channels_last)
    for state in twin.opt.opt.state.values(): state.update({k: v.contiguous() for k,v in state.items()})
    for o in (learn, twin):
        seed_all(3, o.dls)
        with o.quiet(): o.fit(1)
    for a,b in zip(learn.model.parameters(), twin.model.parameters()): assert torch.equal(a, b)


@pytest.mark.parametrize('bad', ['half', 'fp16', ''])
def test_unknown_precision_comes_before_the_data(bad):
    with pytest.raises(CourseError, match='float32, bf16'): learner_for('cnn', data='no such data', precision=bad)


def test_features_know_their_precision(monkeypatch, tmp_path):
    "A cache of features in bfloat16 isn't taken for one in float32"
    file = tmp_path/'f.safetensors'
    def fitted(precision):
        learn = learner_for('squeezenet1_1', data='fashion_mini', n_per_class=4, size=32, pretrained=False, precision=precision,
                            head='linear', cache=str(file), seed=1)
        learn.freeze()
        with learn.quiet(): learn.fit(1)
    fitted('float32')
    with pytest.raises(CourseError, match='other precision'): fitted('bf16')


@pytest.mark.parametrize('loss, meets', [(nn.L1Loss(), False), (nn.MSELoss(), False), (nn.functional.huber_loss, False),
    (lambda x, y: ((x - y)**2).mean(), False), (lambda x, y: (x[:, 0] - y).abs().mean(), True), (L1LossFlat(), True),
    (SquaredError(), True), (lambda x, y: (x - y[:, None]).abs().mean(), True), (lambda x, y: ((x - y.reshape(-1, 1))**2).mean(), True)],
    ids=range(9))
def test_each_output_is_compared_with_its_own_target(loss, meets):
    rows = torch.randn(20, 3)
    for arch in ('mlp', nn.Sequential(nn.Linear(3, 1))):
        if meets: learner_for(arch, data=(rows, rows[:, 0]), loss_func=loss, metrics=[mae, lambda x, y: loss(x, y), R2Score()])
        else:
            for what,f in dict(loss_func=loss, metrics=lambda x, y: loss(x, y)).items():
                with pytest.raises(CourseError, match=f'{what} must .* one by one'): learner_for(arch, data=(rows, rows[:, 0]), **{what: f})


def test_callbacks_that_change_inputs_are_told_of_features(capsys):
    class Darker(Callback):
        def before_batch(self): self.learn.xb = (self.xb[0]/2,)
    learn = learner_for('squeezenet1_1', data='fashion_mini', n_per_class=2, size=32, pretrained=False, head='linear', cache=True)
    learn.freeze()
    with learn.quiet(): learn.fit_one_cycle(1)
    assert 'in place of images' not in capsys.readouterr().out
    with learn.quiet(): learn.fit(1, cbs=[Darker(), MixUp()])
    assert '(Darker, MixUp) get features in place of images' in capsys.readouterr().out
    learn.cache = None
    with learn.quiet(): learn.fit(1, cbs=Darker())
    assert 'in place of images' not in capsys.readouterr().out


@pytest.fixture(scope='module')
def half():
    "A Learner in bfloat16, and the types that its layers gave since they were last cleared"
    learn, seen = learner_for('cnn', data='digits', n_per_class=4, filters=(4,), bs=8, precision='bf16', seed=1), []
    for layer in (m for m in learn.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
        layer.register_forward_hook(lambda layer, x, out: seen.append(out.dtype))
    return learn, seen


WAYS = dict(fit=lambda learn: learn.fit(1), validate=lambda learn: learn.validate(), predictions=lambda learn: learn.get_preds(ds_idx=2),
            unlabelled=lambda learn: learn.get_preds(dl=learn.dls.test_dl(learn.dls.valid_ds.items[:2])),
            one=lambda learn: learn.predict(learn.dls.valid_ds.items[0]), evaluate=lambda learn: evaluate(learn, 'test'))


@pytest.mark.parametrize('way', WAYS)
def test_every_way_computes_in_the_precision_asked_for(half, way):
    learn, seen = half
    seen.clear()
    with learn.quiet(): WAYS[way](learn)
    assert set(seen) == {torch.bfloat16} and not torch.is_autocast_enabled('cpu')
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())


def test_a_fit_in_bf16_warns_of_no_gpu(half):
    with half[0].quiet(), warnings.catch_warnings():
        warnings.simplefilter('error')
        half[0].fit(1)


OWN = """from fasttransform import Transform
by, factors = {by}, [{listed}]
def scaled(x): return x*{helper}
class Mine(Transform):
    def __init__(self, v): self.kept = v
    def encodes(self, x:int):
        self.last = x
        return scaled(x)*by*factors[0]*{code}
"""


@pytest.mark.parametrize('change', ['by', 'listed', 'helper', 'code', 'kept'])
def test_features_know_what_a_transform_of_your_own_does(change):
    def text(**kwargs):
        values, space = dict(by=1, listed=1, helper=1, code=1, kept=1) | kwargs, dict(__name__='mine')
        exec(OWN.format(**values), space)
        mine = space['Mine'](values['kept'])
        mine.last = next(calls)
        return described([mine])
    calls = itertools.count()
    assert text() == text() != text(**{change: 2})


def test_features_know_the_settings_of_a_network():
    def hashed(change=lambda body: None):
        body = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU())
        change(body)
        net = torch.nn.Module()
        net.body = body
        return hash_of_network(net)
    assert hashed() == hashed(lambda body: body.eval())
    changes = [lambda body: setattr(body[1], 'eps', .3), lambda body: body.__setitem__(2, torch.nn.Tanh()),
               lambda body: setattr(body[0], 'stride', (2, 2))]
    assert len({hashed(), *map(hashed, changes)}) == 4
