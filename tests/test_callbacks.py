"Every pattern of callbacks on both Learners, and what is left after an interruption"
import tempfile
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.basics import defaults
from fastai.callback.core import (Callback, CancelBackwardException, CancelBatchException, CancelEpochException, CancelFitException,
    CancelStepException, CancelTrainException, CancelValidException, FetchPredsCallback)
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import AvgSmoothLoss, CastToTensor, Learner, Metric, Recorder, load_learner
from fastai.losses import MSELossFlat
from fastai.metrics import mae, mse
from fastai.optimizer import SGD
from fastai.torch_core import TensorBase, TensorImage, trainable_params
from fastcore.foundation import L
from torch import nn
from torch.utils.data import TensorDataset

from dlcourse.core import CourseError
from dlcourse.training.callbacks import EarlyStopping
from dlcourse.training.lean import LeanLearner
from dlcourse.training.learner import learner_for


class Both:
    "What a pattern does with one kind of Learner: weights, record, table, error, and what the pattern returned"
    def __init__(self, kind): self.kind, self.table, self.error, self.learn = kind, [], None, None

    def make(self, *cbs, typed=False, dtype=torch.float32, **kw):
        "A Learner of the kind, for 48 items in batches of 16, that writes its table into a list"
        torch.manual_seed(1)
        x = torch.randn(48, 3)
        y = x @ torch.tensor([[1.], [2.], [3.]]) + 1
        items = [(TensorImage(a), TensorBase(b)) for a,b in zip(x, y)] if typed else TensorDataset(x, y)
        dls = DataLoaders(TfmdDL(items, num_workers=0, bs=16, shuffle=True), TfmdDL(items, num_workers=0, bs=24))
        dls.train.rng.seed(1)
        args = dict(loss_func=MSELossFlat(), opt_func=SGD, metrics=mae) | kw
        self.learn = self.kind(dls, nn.Linear(3, 1).to(dtype), cbs=list(cbs), **args)
        self.learn.logger = lambda row: self.table.append(list(row)[:-1])
        return self.learn

    def fit(self, *cbs, n=2, lr=0.05, **kw):
        "Fit a Learner with the callbacks `cbs`, without a bar"
        learn = self.make(*cbs, **kw)
        with learn.no_bar(): learn.fit(n, lr)
        return learn

    def outcome(self, pattern):
        self.returned = None
        try: self.returned = pattern(self)
        except (Exception, KeyboardInterrupt) as e: self.error = f'{type(e).__name__}: {e}'
        learn, rec = self.learn, getattr(self.learn, 'recorder', None)
        names = ('train_iter', 'epoch', 'pct_train', 'n_epoch', 'training', 'smooth_loss', 'final_record')
        state = {k: getattr(learn, k, None) for k in names}
        record = {k: getattr(rec, k, None) for k in ('losses', 'lrs', 'iters', 'values', 'metric_names')}
        weights = [o.detach().clone() for o in learn.model.parameters()]
        return plain(dict(error=self.error, table=self.table, returned=self.returned, weights=weights, **state, **record))


def plain(o):
    "`o` with lists in place of tensors and fastai's lists, so that it can be compared"
    if isinstance(o, dict): return {k: plain(v) for k,v in o.items()}
    if isinstance(o, (list, tuple, L)): return [plain(v) for v in o]
    if isinstance(o, (torch.Tensor, np.generic, np.ndarray)): return plain(o.tolist())
    return 'NaN' if isinstance(o, float) and o != o else o


class Sees(Callback):
    "Call `f` with the callback after each event named, in training only, and keep what it returns"
    def __init__(self, f, event='after_batch', order=55, train=True):
        self.f, self.order, self.seen, self.run_valid = f, order, [], not train
        setattr(self, event, self._see)
    def _see(self): self.seen.append(self.f(self))


def sees(f, event='after_batch', order=55, n=2, fits=1, **kw):
    "A pattern: what a callback sees"
    def pattern(both):
        cb = Sees(f, event, order)
        learn = both.make(cb, **kw)
        with learn.no_bar():
            for _ in range(fits): learn.fit(n, 0.05)
        return cb.seen
    return pattern


def does(event, f, order=0, when=lambda o: True, **kw):
    "A pattern: a callback that does something at an event, in training"
    return sees(lambda o: f(o) if when(o) else None, event, order, **kw)


def at_batch(n): return lambda o: o.train_iter == n
def at_epoch(n): return lambda o: o.epoch == n
def throw(e, *args):
    def f(o): raise e(*args)
    return f


def sets(name, value): return lambda o: setattr(o.learn, name, value(o))
def scaled(o): o.learn.loss_grad.mul_(3)


class Penalty(Callback):
    def after_loss(self): self.learn.loss_grad = self.loss + .1*sum(p.pow(2).sum() for p in self.model.parameters())


class EachEvent(Callback):
    def __init__(self): self.seen = []
    def __call__(self, event_name):
        self.seen.append(event_name)
        return super().__call__(event_name)


class Deaf(Callback):
    "Hears nothing but batches"
    seen = 0
    def __call__(self, event_name):
        if event_name == 'after_batch': self.seen += 1


class Guesses(Callback):
    "Has events that no class implements"
    def __init__(self): self.seen = []
    def __getattr__(self, k):
        if k == 'after_step': return lambda: self.seen.append('step')
        return super().__getattr__(k)


class History(Callback):
    def before_fit(self): self.mine = self.learn.history is self


class OwnRecorder(Recorder):
    def after_batch(self):
        super().after_batch()
        self.learn.last = float(self.losses[-1]) if self.losses else None


class OwnSmooth(AvgSmoothLoss):
    def accumulate(self, learn):
        super().accumulate(learn)
        self.val = self.val + learn.pred.detach().mean()


class LossHasGradient(Metric):
    def reset(self): self.found = []
    def accumulate(self, learn): self.found.append(learn.loss.grad_fn is not None)
    @property
    def value(self): return sum(self.found)
    @property
    def name(self): return 'graph'


class Cutting(Recorder): remove_on_fetch = False


class Overheard(Callback):
    "Is asked for each of its events"
    def __init__(self): self.seen = []
    def __getattribute__(self, k):
        if k in ('before_batch', 'after_step', 'after_fit'): object.__getattribute__(self, 'seen').append(k)
        return object.__getattribute__(self, k)


def subclassed(both): # a Learner whose own step changes the loss in place
    class Mine(both.kind):
        def _backward(self):
            self.loss_grad.mul_(2)
            super()._backward()
    both.kind = Mine
    both.fit()


def copied(both): # a Learner with a stranger among its callbacks holds no graph after a fit
    both.learn = deepcopy(both.fit(Penalty()))
    with both.learn.no_bar(): both.learn.fit(1, .05)


def keeps(cls): # a callback of this class, and what it has seen
    def pattern(both):
        cb = cls()
        both.fit(cb)
        return cb.seen
    return pattern


def with_recorder(make):
    def pattern(both):
        learn = both.make()
        learn.remove_cb(Recorder)
        learn.add_cb(make())
        with learn.no_bar(): learn.fit(2, .05)
        return getattr(learn, 'last', None)
    return pattern


def interrupted(both):
    cb = Sees(lambda o: throw(KeyboardInterrupt)(o) if o.train_iter == 5 else None)
    learn = both.make(cb)
    with learn.no_bar():
        with pytest.raises(KeyboardInterrupt): learn.fit(3, 0.05)
        at_once = plain(learn.recorder.losses), float(learn.smooth_loss)
        learn.remove_cb(cb)
        learn.fit(1, 0.05)
    return at_once


def validated(both):
    learn = both.fit()
    with learn.no_bar(): found = learn.validate(), learn.smooth_loss
    both.learn.recorder = SimpleNamespace() # that the record is kept is a difference that is meant
    return found


def predicted(both):
    learn = both.fit(typed=True)
    with learn.no_bar(): x, *rest = learn.get_preds(with_input=True, with_loss=True)
    both.learn.recorder = SimpleNamespace()
    return type(x).__name__, x, rest


def defaults_changed(both):
    before = list(defaults.callbacks)
    try:
        defaults.callbacks = [o for o in before if o.__name__ != 'ProgressCallback'] + [Penalty]
        learn = both.make()
        learn.fit(1, .05)
        return [hasattr(learn, o) for o in ('penalty', 'progress', 'recorder')]
    finally: defaults.callbacks = before


def by_position(both):
    learn = both.make()
    both.learn = both.kind(learn.dls, nn.Linear(3, 1), MSELossFlat(), SGD, 1e-3, trainable_params, [Penalty()], [mae])
    with both.learn.no_bar(), both.learn.no_logging(): both.learn.fit(1)
    return hasattr(both.learn, 'penalty')


def by_hand(both):
    learn = both.make(Penalty())
    learn.create_opt()
    b = next(iter(learn.dls.train))
    learn('before_fit')
    learn.training = True
    learn.one_batch(0, b)
    return learn.loss.grad_fn is not None, type(learn.xb).__name__


def other_data(o):
    items = o.learn.dls.train.dataset
    o.learn.dls = DataLoaders(TfmdDL(items, num_workers=0, bs=8), TfmdDL(items, num_workers=0, bs=8))


def other_inputs(o): # one input and two targets from now on
    o.learn.dls.n_inp = 1
    return len(o.learn.xb), type(o.learn.xb).__name__


def other_schedule(both):
    def put(o):
        if o.train_iter == 2: o.learn.param_scheduler.scheds['lr'] = lambda pos: 0.5
    learn = both.make(Sees(put, 'after_step'))
    with learn.no_bar(): learn.fit_one_cycle(2, 0.05)
    return learn.recorder.hps


def gains(o):
    if not hasattr(o, 'extra'):
        o.extra = []
        o.after_step = lambda: o.extra.append(int(o.learn.train_iter))
    return len(o.extra)


def patched(both): # another callback's method wrapped at the start of a fit
    seen = []
    def wrap(o):
        rec = o.learn.recorder
        was = rec.after_batch
        rec.after_batch = lambda: (seen.append(o.learn.train_iter), was())
    both.fit(Sees(wrap, 'before_fit'))
    return seen


def moved(o): # behind the recorder, then before it
    o.order = 45 if o.train_iter % 2 else 55
    return len(o.learn.recorder.losses)


def adds(o): o.learn.add_cb(Penalty())
def appends(o):
    cb = Penalty()
    cb.learn = o.learn
    o.learn.cbs.append(cb)
def removes(o): o.learn.remove_cb(Recorder)


def twice(f):
    def pattern(both): return [f(both), f(both)]
    return pattern


def scheduled(**scheds):
    def pattern(both):
        learn = both.make()
        with learn.no_bar(): learn.fit(2, 0.05, cbs=ParamScheduler(scheds))
        return learn.recorder.hps
    return pattern


def skipped(both):
    cb = EachEvent()
    learn = both.make(cb)
    with learn.no_bar(): learn.fit(3, .05, start_epoch=2)
    return cb.seen


def finds_predictions(both):
    cb = FetchPredsCallback()
    both.fit(cb)
    return cb.preds


def switched_off(both):
    cb = Penalty()
    learn = both.make(cb)
    with learn.no_bar():
        for value in (False, True):
            cb.run = value
            learn.fit(1, .05)
    return cb.run


def saved(both):
    with tempfile.TemporaryDirectory() as folder:
        learn = both.make(SaveModelCallback(), EarlyStoppingCallback(patience=1), ReduceLROnPlateau(patience=1), path=folder)
        with learn.no_bar(): learn.fit(4, 0.8)
        return sorted(o.name for o in Path(folder).rglob('*.pth'))


def wrong_type(both):
    learn = both.make(dtype=torch.float64, loss_func=lambda p,y: ((p - y)**2).mean())
    learn.add_cb(Callback(before_batch=lambda: None))
    learn.cbs[-1].before_batch = lambda: setattr(learn, 'xb', tuple(o.double() for o in learn.xb))
    with learn.no_bar(): learn.fit(1)


def without_cast(both):
    learn = both.make(Sees(lambda o: (type(o.x).__name__, type(o.pred).__name__), 'after_pred'), typed=True)
    learn.remove_cb(CastToTensor)
    with learn.no_bar(): learn.fit(1, .05)
    return learn.sees.seen


def held(both):
    class Holds(Callback):
        order, seen = 55, ()
        def before_train(self): self.held = self.recorder.losses
        def after_batch(self): self.seen = (*self.seen, len(self.held))
    cb = Holds()
    both.fit(cb)
    return cb.seen


def removed(both):
    learn = both.make()
    learn.remove_cb(Recorder)
    with learn.no_bar(): learn.fit(1, 0.05)


def throw_metric(pred, y): raise ValueError('no such number')


PATTERNS = {
    'no callback': lambda b: b.fit() and None,
    'no callback, train metrics': lambda b: b.fit(Recorder(train_metrics=True)) and None,
    'a penalty': lambda b: b.fit(Penalty()) and None,
    'a class of callbacks': lambda b: b.fit(Penalty) and None,
    'another loss in the record': does('after_loss', sets('loss', lambda o: o.learn.loss*2)),
    'loss_grad scaled in place after the loss': does('after_loss', scaled),
    'loss_grad scaled in place before the step': does('before_step', scaled),
    'loss_grad scaled in place after the batch': does('after_batch', scaled, order=20),
    'loss_grad replaced': does('before_backward', sets('loss_grad', lambda o: o.learn.loss_grad*3)),
    'the gradient of the loss': sees(lambda o: o.learn.loss.grad_fn is not None, 'after_pred'),
    'own __call__': keeps(EachEvent),
    'own __call__, deaf': keeps(Deaf),
    'own __getattr__': keeps(Guesses),
    'own __getattribute__': keeps(Overheard),
    'own step of the Learner': subclassed,
    'a copy after the fit': copied,
    'types before_batch': sees(lambda o: (type(o.x).__name__, type(o.y).__name__), 'before_batch', 0, typed=True),
    'types behind CastToTensor': sees(lambda o: (type(o.x).__name__, type(o.y).__name__), 'before_batch', 10, typed=True),
    'types of tuples': sees(lambda o: (type(o.learn.xb).__name__, type(o.learn.yb).__name__), 'before_batch', 0),
    'CastToTensor removed': without_cast,
    'get_preds with input': predicted,
    'CancelFit': does('after_batch', throw(CancelFitException), when=at_batch(4), fits=2),
    'CancelEpoch': does('after_batch', throw(CancelEpochException), when=at_batch(4)),
    'CancelTrain': does('before_batch', throw(CancelTrainException), when=at_batch(1)),
    'CancelValid': does('before_validate', throw(CancelValidException)),
    'CancelBatch': does('after_pred', throw(CancelBatchException), when=at_batch(1), n=1),
    'CancelStep': does('before_step', throw(CancelStepException), when=at_batch(2)),
    'CancelBackward': does('before_backward', throw(CancelBackwardException), when=at_batch(2)),
    'Ctrl-C, then a fit': interrupted,
    'an error': does('after_step', throw(ValueError, 'no such thing')),
    'an error without a word': does('after_step', throw(ValueError)),
    'an error before the fit': does('before_fit', throw(KeyError, 'x')),
    'an error in a metric': lambda b: b.fit(metrics=throw_metric) and None,
    'losses read in a batch': sees(lambda o: plain(o.recorder.losses)),
    'losses read before the recorder': sees(lambda o: len(o.recorder.losses), order=45),
    'losses held since the start': held,
    'losses set': does('after_batch', lambda o: setattr(o.recorder, 'losses', []), order=55, when=at_batch(3)),
    'smooth_loss read': sees(lambda o: float(o.smooth_loss)),
    'smooth_loss read too early': sees(lambda o: float(o.smooth_loss), 'before_batch'),
    'smooth_loss set': does('after_batch', sets('smooth_loss', lambda o: torch.tensor(7.)), order=55, when=at_batch(5)),
    'the average inside the recorder': sees(lambda o: float(o.recorder.smooth_loss.value)),
    'a shorter average in mid-fit': does('after_batch', lambda o: setattr(o.recorder.smooth_loss, 'beta', .5), order=55, when=at_batch(2)),
    'fit, validate': validated,
    'a Recorder of another beta': lambda b: b.fit(Recorder(beta=0.5)) and None,
    'a second Recorder': twice(lambda b: len(b.fit(Recorder(train_metrics=True)).recorder.values[0])),
    'the Recorder replaced': with_recorder(OwnRecorder),
    'the Recorder replaced by a class': with_recorder(lambda: Cutting),
    'the Recorder removed': removed,
    'the Recorder removed in mid-fit': does('after_batch', removes, order=55, when=at_batch(4)),
    'an average of one\'s own': does('before_fit', lambda o: setattr(o.recorder, 'smooth_loss', OwnSmooth()), order=51),
    'a metric that reads the loss': lambda b: b.fit(Recorder(train_metrics=True), metrics=LossHasGradient()) and None,
    'defaults.callbacks': defaults_changed,
    'a callback called History': lambda b: b.fit(History()).history.mine,
    'cbs by position': by_position,
    'one batch by hand': by_hand,
    'other data in mid-fit': does('before_epoch', other_data, when=at_epoch(1)),
    'other data in mid-epoch': does('after_batch', other_data, when=at_batch(1)),
    'other inputs in mid-fit': sees(other_inputs),
    'callbacks added in mid-fit': does('after_batch', adds, when=at_batch(1)),
    'callbacks appended in mid-fit': does('after_batch', appends, when=at_batch(1)),
    'another schedule in mid-fit': other_schedule,
    'another learning rate in mid-fit': does('after_batch', lambda o: o.opt.set_hyper('lr', .2), when=at_batch(2)),
    'another loss in mid-fit': does('before_epoch', sets('loss_func', lambda o: nn.L1Loss()), when=at_epoch(1)),
    'other metrics in mid-fit': does('after_epoch', sets('metrics', lambda o: [mae, mse]), when=at_epoch(0)),
    'another model before the fit': does('before_fit', lambda o: o.learn.model.weight.data.zero_()),
    'another order in mid-fit': sees(moved),
    'an event gained in mid-fit': sees(gains),
    'another callback\'s event wrapped': patched,
    'another batch': does('before_batch', sets('xb', lambda o: (o.x*2,))),
    'another prediction': does('after_pred', sets('pred', lambda o: o.pred*2)),
    'no training at some batches': does('before_batch', sets('training', lambda o: False), when=at_batch(1), n=1),
    'switched off': switched_off,
    'in validation only': lambda b: b.fit(Sees(lambda o: None, train=False)) and None,
    'predictions in every epoch': finds_predictions,
    'validation in every epoch': does('after_train', lambda o: o.learn.validate() and None, order=60),
    'an epoch skipped': skipped,
    'a schedule for an unknown name': scheduled(nonsense=SchedLin(0, 1)),
    'a schedule with two values for one group': scheduled(lr=lambda pos: [0.1, 0.2]),
    'a schedule of slices': scheduled(lr=lambda pos: slice(0.1)),
    'fastai: accumulation and clipping': lambda b: b.fit(GradientAccumulation(20), GradientClip(.1)) and None,
    'fastai: savers and stoppers': saved,
    'fastai: a loss of NaN': lambda b: b.fit(TerminateOnNaNCallback(), lr=1e38) and None,
    'fastai: short epochs': lambda b: b.fit(ShortEpochCallback(pct=.5)) and None,
    'a type that cannot be averaged': wrong_type,
    'an unknown event': lambda b: b.make()('before_lunch'),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', PATTERNS)
def test_the_same_as_fastais_learner(name):
    stock, lean = (Both(kind).outcome(PATTERNS[name]) for kind in (Learner, LeanLearner))
    for k in stock: assert lean[k] == stock[k], k


def test_the_comparison_would_notice():
    one, other = (Both(LeanLearner).outcome(lambda b: b.fit(lr=lr) and None) for lr in (.05, .0500001))
    assert len(PATTERNS) >= 40 and one['weights'] != other['weights'] and one['table'] != other['table']


# What a pattern can't show: what is left after an interruption, and a Learner without its record

class CtrlC(Callback):
    def after_pred(self):
        if self.training and self.train_iter == 1: raise KeyboardInterrupt


@pytest.mark.parametrize('mix', [MixUp, CutMix])
@pytest.mark.parametrize('how', ['of the learner', 'of the fit'])
def test_after_ctrl_c_the_loss_is_the_learners(mix, how):
    own, fits = ([mix()], []) if how == 'of the learner' else ([], [mix()])
    learn = learner_for('mlp', data='digits', n_per_class=20, bs=32, cbs=own)
    loss = learn.loss_func
    with learn.quiet():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[*fits, CtrlC()])
        assert learn.loss_func is loss
        learn.fit(1, cbs=fits)
        learn.get_preds(with_loss=True)
        with pytest.raises(KeyboardInterrupt), learn.added_cbs(CtrlC()): learn.lr_find()
        assert learn.loss_func is loss


def test_after_ctrl_c_torch_computes_in_its_own_types():
    learn = learner_for('mlp', data='digits', n_per_class=20, bs=32).to_bf16()
    with learn.quiet(), pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=CtrlC())
    assert not torch.is_autocast_enabled('cpu')


def test_a_learner_without_recorder():
    learn = learner_for('mlp', data='digits', n_per_class=20, bs=32)
    learn.remove_cb(Recorder)
    with learn.quiet():
        learn.fit(1)
        assert learn.n_done == 1
        with pytest.raises(CourseError, match='add_cb'): learn.lr_find()
        with pytest.raises(CourseError, match='EarlyStopping needs the Recorder'): learn.fit(1, cbs=EarlyStopping())


def test_an_exported_learner_says_that_it_has_no_data(tmp_path):
    learn = learner_for('mlp', data='digits', n_per_class=20, bs=32, path=tmp_path)
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    for f in (lambda: loaded.fit(1), loaded.validate, loaded.get_preds, loaded.tta, loaded.lr_find, lambda: loaded.fine_tune(1),
              loaded.show_results, lambda: loaded.show_results(ds_idx=0)):
        with loaded.quiet(), pytest.raises(CourseError, match='it was exported without'): f()
    for f in (loaded.dls.show_batch, loaded.dls.one_batch, loaded.dls.valid.show_batch, loaded.dls.class_counts):
        with pytest.raises(CourseError, match='export'): f()
    items = learn.dls.test_dl([0, 1, 2])
    with loaded.quiet(), pytest.raises(CourseError, match='these items have none'): loaded.show_results(dl=items)
    loaded.dls = learn.dls
    with loaded.quiet(): loaded.fit(1)
    assert len(loaded.history) == 1


@pytest.mark.parametrize('kw, says', [(dict(num_it=5), 'num_it must be a whole number from 25, got 5'), (dict(num_it=0), 'got 0'),
    (dict(num_it=-3), 'got -3'), (dict(num_it=30.5), 'got 30.5'), (dict(start_lr=0), 'start_lr must be'),
    (dict(start_lr=2, end_lr=1), 'below end_lr, got start_lr=2, end_lr=1'), (dict(start_lr=1e20, end_lr=1e30),
        'begin lower with start_lr')])
def test_rates_that_suggest_nothing(kw, says):
    learn = Both(LeanLearner).make()
    before = plain(list(learn.model.parameters()))
    with learn.quiet(), pytest.raises(CourseError, match=says): learn.lr_find(**kw)
    assert plain(list(learn.model.parameters())) == before and learn.opt is None


def test_a_loss_that_never_changes_suggests_nothing():
    learn = Both(LeanLearner).make()
    learn.loss_func = lambda p, y: 0*p.sum() + 1
    with learn.quiet(), pytest.raises(CourseError, match='at every learning rate'): learn.lr_find()


def test_the_record_of_a_fit_outlives_validation_and_lr_find():
    learn = Both(LeanLearner).fit()
    before = plain([learn.recorder.losses, learn.recorder.values, learn.smooth_loss, learn.recorder.smooth_loss.value])
    with learn.quiet():
        learn.validate()
        learn.get_preds()
        learn.lr_find(show_plot=False)
    assert plain([learn.recorder.losses, learn.recorder.values, learn.smooth_loss, learn.recorder.smooth_loss.value]) == before
