"TP1: every experiment runs in its quick size, and Adam decays as the document's does"
from functools import partial

import pytest
import torch
from torch import nn

from dlcourse.course.experiment import experiments, reproduce
from dlcourse.course.tp1.cifar10 import l2_adam
from dlcourse.course.tp1.eurosat import images
from dlcourse.course.experiment import Trial

VARIANTS = [(k, p) for k,e in experiments().items() if k.startswith('tp1') for p in e.variants if 'alexnet' not in p]


@pytest.mark.parametrize('id, variant', VARIANTS, ids=[f'{k} {p}' for k,p in VARIANTS])
def test_quick(tmp_path, id, variant):
    record = reproduce(id, variants=[variant], folder=tmp_path)
    assert [(r['variant'], r['seed']) for r in record['rows']] == [(variant, 1)] and record['rows'][0]['figures']


def test_decay_goes_through_the_gradient():
    p, q = (nn.Parameter(torch.tensor([1., -2.])) for _ in range(2))
    ours, theirs = partial(l2_adam, wd=0.1)([p], lr=0.01), torch.optim.Adam([q], lr=0.01, weight_decay=0.1)
    for o,w in ((ours, p), (theirs, q)):
        for _ in range(3):
            w.grad = torch.tensor([0.5, 0.1])
            o.step()
    assert torch.allclose(p, q) and ours.hypers[0]['wd'] == 0.1


def test_quick_images_are_few_and_coloured():
    dls = images(Trial('', 1, False, 'cpu'), 64)
    assert dls.one_batch()[0].shape[1:] == (3, 64, 64) and len(dls.train_ds) < 400
