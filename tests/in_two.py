"What tests/test_parallel.py trains in one process, and in two"
from pathlib import Path

import torch
from fastai.callback.mixup import MixUp
from fastai.metrics import F1Score, accuracy
from fastcore.imports import noop
from torch import nn

from dlcourse.core import CourseError, is_first, seed_all
from dlcourse.data.blocks import dls_for
from dlcourse.training.callbacks import EarlyStopping
from dlcourse.training.lean import sgd
from dlcourse.training.learner import learner_for
from dlcourse.training.processes import part


def result(learn, fit='fit_one_cycle', n=2, lr=3e-3, check=lambda learn: None, **kwargs):
    "Train `learn`, and return its weights, its history, what it measures and predicts, and what `check` finds within the block"
    with learn.quiet(), learn.distrib_ctx():
        getattr(learn, fit)(n, lr, **kwargs)
        found = check(learn)
        measured, preds = list(learn.validate()), learn.get_preds(with_loss=True)
    weights = torch.cat([o.flatten().float() for o in learn.model.state_dict().values()])
    with learn.quiet(): after = learn.get_preds()[0]
    rows = [{k: v for k,v in o.items() if k != 'seconds'} for o in learn.rows]
    return dict(weights=weights, rows=rows, measured=measured, preds=preds, found=found, after=after)


def small(arch='mlp', **kwargs):
    usual = dict(seed=3) if 'dls' in kwargs else dict(data='fashion_mini', n_per_class=12, seed=3, bs=33)
    return learner_for(arch, **{**usual, **kwargs})

def uneven(): return result(small(metrics=[accuracy, F1Score(average='macro')]))
def with_norms():
    "In the usual order of memory; channels last, one process alone is 3e-4 from itself in the usual order"
    return result(small('cnn_v2', opt_func=sgd, augment=True, dropout=0., bs=32, channels_last=False))

def weighted_loss(): return result(small(loss_func=nn.CrossEntropyLoss(weight=torch.arange(1., 11))))
def own_loss(): return result(small(cbs=MixUp()))

def items():
    dls = dls_for('fashion_mini', n_per_class=12, bs=16, in_memory=False, item_tfms=noop, seed=3)
    return result(small(dls=dls))

def last_batch():
    "Batches of 32, 32 and 1, which one of two processes has no row of"
    dls = dls_for('fashion_mini', n_per_class=12, bs=32, seed=3, valid=55)
    dls.train.drop_last = False
    return dict(result(small(dls=dls)), batches=[len(o[0]) for o in dls.train])

def last_norm():
    "The same with batch norm: a row that one process takes for company is none of the batch"
    dls = dls_for('fashion_mini', n_per_class=12, bs=32, seed=3, valid=55)
    dls.train.drop_last = False
    return result(small('cnn', dls=dls, opt_func=sgd, channels_last=False), lr=1e-2)

def own_statistics():
    "Each process normalises by its own rows; buffers are those of the first"
    learn = small('cnn', bs=32)
    with learn.quiet(), learn.distrib_ctx(sync_bn=False): learn.fit(1, 1e-3)
    return dict(buffers=torch.cat([o.flatten().float() for o in learn.model.buffers()]), rows=len(learn.rows))

def stopping():
    learn = small(cbs=EarlyStopping('accuracy', patience=1))
    return result(learn, 'fit', 9, 1e-3, check=lambda learn: learn.best_epoch)

def unseeded():
    "Nobody has seeded anything: weights and order are those of the first process"
    dls = dls_for('fashion_mini', n_per_class=12, bs=33)
    seed_all(int(not is_first()), dls)
    return result(small(dls=dls, seed=None))

def features():
    "A frozen body, whose features are computed once"
    learn = small('squeezenet1_1', size=32, pretrained=False, head='linear', cache=True)
    learn.model.head.dropout.p = 0.
    learn.freeze()
    return result(learn, lr=1e-2)

def dropout():
    "Numbers that a network draws for itself are others in each process"
    learn = small(dropout=.5)
    return result(learn)

def not_a_number():
    learn = small()
    try: result(learn, lr=1e30)
    except CourseError as e: return dict(said=str(e), type=type(learn.model).__name__, loaders=[type(o).__name__ for o in learn.dls])

def outside():
    "Trained without the block: each process for itself"
    learn = small()
    with learn.quiet(): learn.fit(1)
    with learn.quiet(): return dict(rows=len(learn.rows), preds=learn.get_preds()[0])

CASES = [uneven, with_norms, weighted_loss, own_loss, items, last_batch, last_norm, own_statistics, stopping, unseeded, features, dropout,
         not_a_number, outside]


def both():
    "Results of all cases"
    torch.set_num_threads(1)
    return {f.__name__: f() for f in CASES}


def main(folder):
    "Save the results of this one of two processes in `folder`"
    torch.save(both(), Path(folder)/f'{int(not is_first())}.pt')
    part()
