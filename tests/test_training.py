"Faults and equalities of the training room that don't belong in a lesson: Learners, then searches"
import functools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import Learner
from torch import nn

from dlcourse.cli import main
from dlcourse.core import CourseError, optional
from dlcourse.data.blocks import dls_for
from dlcourse.data.loader import MemoryDL
from dlcourse.insight.studies import plot_history, plot_importance, plot_parallel, plot_study
from dlcourse.training import search as search_module, trials as trials_module
from dlcourse.training.callbacks import BestWeights
from dlcourse.training.lean import LeanLearner, sgd
from dlcourse.training.learner import learner_for
from dlcourse.training.search import search, study, trainer
from dlcourse.training.space import narrow_space, parse_space


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


# ==== Learners =================================================================================

def train(learn, n=1, fit='fit', **kw):
    "Train `learn` without bar and log, and return it"
    with learn.quiet(): getattr(learn, fit)(n, **kw)
    return learn


def flat(learn): return torch.cat([o.flatten().float() for o in learn.model.state_dict().values()])


def test_arguments_find_their_way():
    learn = learner_for('mlp', data='digits', n_per_class=20, valid=50, bs=16, size=10, widths=(7,), wd=0.1, seed=1)
    assert len(learn.dls.train_ds) == 150 and learn.dls.one_batch()[0].shape == (16, 1, 10, 10)
    assert learn.wd == 0.1 and any(p.shape == (7, 100) for p in learn.model.parameters())


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
    ({}, 'a space must be a dictionary with at least one setting'), (None, 'a space must be a dictionary'),
    ([1], 'a space must be a dictionary'),
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
    (dict(method='gird'), "Did you mean 'grid'"), (dict(n=0), 'n must be a whole number of at least 1, got 0'),
    (dict(n=2.5), 'n must be .* got 2.5'), (dict(workers=0), 'workers must be a number of processes from 1, got 0'),
    (dict(seed=-1), 'seed must be .* got -1'),
    (dict(pruner='medium'), "Did you mean 'median'"), (dict(method='grid', points=0), 'points must be .* got 0')])
def test_arguments_refused(more, says):
    with pytest.raises(CourseError, match=says): found(SPACE, plain, **more)


@pytest.mark.parametrize('train', ['cnn', None, dict(arch='cnn')])
def test_train_is_a_function(train):
    with pytest.raises(CourseError, match='train must be a function of a settings dictionary'): found(SPACE, train)


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


def test_half_written_line():
    found(SPACE, plain, n=3, storage='s')
    with open('s', 'a') as f: f.write('{"op_code":5,"wor')
    assert len(found(SPACE, plain, n=5, storage='s').complete) == 5
    assert len(found(SPACE, lambda settings: 1/0, n=5, storage='s').complete) == 5


def test_damaged_storage():
    found(SPACE, plain, n=3, storage='s')
    lines = Path('s').read_text().splitlines()
    Path('s').write_text('\n'.join(lines[:3] + ['{"op_code":'] + lines[4:]) + '\n')
    with pytest.raises(CourseError, match='s is damaged'): found(SPACE, plain, n=3, storage='s')


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


def test_ctrl_c_before_anything():
    def train(settings): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): found(SPACE, train, n=3)


# ---- several processes ------------------------------------------------------------------------

def note(settings):
    with open('calls', 'a') as f: f.write(f"{settings['lr']}\n")
    time.sleep(0.02)
    return plain(settings)


@linux
def test_two_searches_on_one_storage_share_the_trials():
    team = [forked(lambda: found(SPACE, note, method='random', n=20, storage='s')) for _ in range(2)]
    for p in team: p.join()
    res = found(SPACE, note, method='random', n=20, storage='s')
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
    Trial = optional('optuna', 'search').trial.Trial
    set_user_attr = Trial.set_user_attr
    def not_lost(self, k, v):
        if k != 'lost': set_user_attr(self, k, v)
    def ends(settings): raise SystemExit
    with monkeypatch.context() as m, pytest.raises(SystemExit):
        m.setattr('optuna.study.Study.tell', lambda *args, **kwargs: None)
        m.setattr(Trial, 'set_user_attr', not_lost)
        found(SPACE, ends, n=2, storage='s')
    assert found(SPACE, plain, n=2, storage='s').table.state.tolist() == ['running', 'complete']
    monkeypatch.setattr(trials_module, 'grace_period', -1)
    assert found(SPACE, plain, n=2, storage='s').table.state.tolist() == ['complete', 'complete']


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
    (lambda: tiny(epochs=0), 'at least one epoch'), (lambda: tiny(seeds=0), 'one seed'),
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
    refused = [({}, {}, 'best has no value for lr'), (dict(lr=3), {}, '3 is none of the choices 1|2'),
               (dict(lr=1), dict(share=0), 'share must be above 0')]
    for best, more, says in refused:
        with pytest.raises(CourseError) as e: narrow_space(best, dict(lr=[1, 2]), **more)
        assert says in str(e.value)


def test_study():
    table = study('x', [0, 0.5, None, 'a'], lambda settings: settings['seed'] + (settings['x'] == 'a'), seeds=[1, 3], progress=False)
    assert list(table.index) == ['0', '0.5', 'None', 'a'] and table['mean'].tolist() == [2, 2, 2, 3]
    assert table['std'].round(3).tolist() == [1.414]*4
    for values, axis, says in [((0, 1), 'x', 'must be a list of values'), ([1], 'seed', 'axis must be a setting other than seed')]:
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

def test_command(capsys):
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
