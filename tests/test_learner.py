"Faults and equalities of the training room that don't belong in a lesson"
import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import Learner
from torch import nn

from dlcourse.core import CourseError
from dlcourse.data.blocks import dls_for
from dlcourse.training.callbacks import BestWeights
from dlcourse.training.lean import LeanLearner
from dlcourse.training.learner import learner_for


def quiet(learn, n=1, fit='fit', **kw):
    with learn.quiet(): getattr(learn, fit)(n, **kw)
    return learn


def flat(learn): return torch.cat([o.flatten().float() for o in learn.model.state_dict().values()])


def test_arguments_find_their_way():
    learn = learner_for('mlp', data='digits', n_per_class=20, valid=50, bs=16, size=10, widths=(7,), wd=0.1, seed=1)
    assert len(learn.dls.train_ds) == 150 and learn.dls.one_batch()[0].shape == (16, 1, 10, 10)
    assert learn.wd == 0.1 and any(p.shape == (7, 100) for p in learn.model.parameters())


def test_second_fit_on_the_same_loaders_is_the_same():
    dls = dls_for('digits')
    assert torch.equal(*[flat(quiet(learner_for('mlp', dls, seed=5))) for _ in range(2)])
    assert not torch.equal(*[flat(quiet(learner_for('mlp', dls, seed=s))) for s in (5, 6)])


def test_a_resumed_fit_walks_the_same_path():
    whole = quiet(learner_for('mlp', data='digits', seed=5), 3, 'fit_one_cycle')
    part = learner_for('mlp', data='digits', seed=5)
    class Stop(Callback):
        order = 70
        def after_epoch(self):
            if self.epoch == 0: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): quiet(part, 3, 'fit_one_cycle', cbs=Stop())
    part.remove_cbs(Stop)
    part.remove_cbs([cb for cb in part.cbs if cb.name == 'param_scheduler'])
    quiet(part, 3, 'fit_one_cycle', start_epoch=1)
    assert torch.equal(flat(whole), flat(part))


def test_callbacks_of_fastai_work(tmp_path):
    learn = learner_for('mlp', data='digits', seed=1, path=tmp_path, cbs=SaveModelCallback())
    quiet(learn, 2)
    assert (tmp_path/'models'/'model.pth').exists()


def test_events_are_called_in_fastais_order():
    def events(cls):
        seen = []
        class Spy(Callback): pass
        for e in ('before_fit before_epoch before_train before_batch after_pred after_loss before_backward after_backward before_step '
                  'after_step after_batch after_train before_validate after_validate after_epoch after_fit').split():
            setattr(Spy, e, lambda self, e=e: seen.append(e))
        dls = dls_for('digits', n_per_class=20)
        quiet(cls(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), loss_func=nn.CrossEntropyLoss(), cbs=Spy()), 2)
        return seen
    assert events(Learner) == events(LeanLearner)


def test_a_cancelled_batch_is_skipped():
    class Skip(Callback):
        def before_batch(self):
            if self.training: raise CancelBatchException
    learn = learner_for('mlp', data='digits', cbs=Skip())
    before = flat(learn)
    quiet(learn)
    assert torch.equal(before, flat(learn))


def test_nan_stops_names_the_batch_and_keeps_the_best_weights():
    learn = quiet(learner_for('mlp', data='digits', seed=1, lr=1e-2), 2)
    best = flat(learn)
    with pytest.raises(CourseError, match=r'epoch 0, batch \d+ .*smaller learning rate'): quiet(learn, 2, lr=1e38)
    assert torch.equal(best, flat(learn)) and len(learn.history) == 2
    quiet(learn, 1, lr=1e-3)
    assert learn.history.valid_loss.iloc[-1] < 1


def test_bar_starts_at_any_epoch():
    learn = learner_for('mlp', data='digits', seed=5)
    with learn.quiet(): learn.fit_one_cycle(3, start_epoch=1)
    assert len(learn.history) == 2


def test_unknown_monitor_is_named():
    learn = learner_for('mlp', data='digits', cbs=BestWeights('f1'))
    with pytest.raises(CourseError, match="cannot watch 'f1'"): quiet(learn)


@pytest.mark.parametrize('arch,kw,match', [
    ('mlp', dict(early_stopping=0), 'early_stopping'),
    ('mlp', dict(label_smoothing=2), 'label_smoothing'),
    ('mlp', dict(valid=0), 'valid=0'),
    ('mlp', dict(bs=0), 'batch size'),
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
    assert torch.equal(flat(quiet(learn)), flat(quiet(learner_for('mlp', learn.dls, seed=1))))
    assert 1e-6 < first.valley < 10
