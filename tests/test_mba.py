"The exercises of the MBA document: values, rules by hand, counts, and a quick run of each experiment"
import math

import pytest
import torch
from torch import nn

from dlcourse.core import CourseError
from dlcourse.course.experiment import Trial, find_experiments, one_trial, recorded
from dlcourse.course.mba.architectures import three_nets, ways
from dlcourse.course.mba.boston import Decay, epochs_for, house_net
from dlcourse.course.mba.losses import four, logistic_probabilities, points, truth
from dlcourse.course.mba.optimisers import adam_rule, by_hand_and_torch, rank_correlation, sgd_rule
from dlcourse.models.blocks import count_params
from dlcourse.models.zoo import model_for
from dlcourse.training.losses import BinaryLoss, Brier, MultiHinge, cross_entropy, hinge, quadratic, zero_one

MBA = [o.id for o in find_experiments(['mba'])]
SAID = {'quadratic': [.018, .032, .106, .321, .24, .205, .331, .101, .043, .025],
        'cross-entropy': [.142, .195, .394, .837, .674, .603, .857, .382, .233, .17],
        '0-1': [0, 0, 0, 1, 0, 0, 1, 0, 0, 0],
        'hinge': [.265, .355, .651, 1.134, .98, .905, 1.151, .635, .415, .313]}
FUNCTIONS = [zero_one, quadratic, cross_entropy, hinge]


def test_all_ten_are_there(): assert set(MBA) == {f'mba-{i}' for i in range(1, 11)}


@pytest.mark.parametrize('id', MBA)
def test_quick_run(id):
    exp = find_experiments([id])[0]
    for variant in exp.variants[::4] if id == 'mba-8' else exp.variants:
        figures = one_trial(exp, Trial(variant, 1, False, 'cpu'))['figures']
        assert figures and all(v is not None for v in figures.values())
        assert set(exp.reported.get(variant, {})) <= set(figures), 'what the document reports is measured'


@pytest.mark.parametrize('id', MBA)
def test_records_are_whole(id):
    record = recorded(id)
    assert all('figures' in r and not r['provenance']['uncommitted_changes'] for r in record['rows'])


@pytest.mark.parametrize('name', four)
def test_losses_equal_the_printed_ones(name):
    each = four[name](logistic_probabilities(points, truth), torch.tensor(truth), 'none')
    assert torch.allclose(each, torch.tensor(SAID[name], dtype=each.dtype), atol=.0011), 'the last printed digit of one is cut, not rounded'


@pytest.mark.parametrize('f', FUNCTIONS)
def test_losses_take_any_shape(f):
    p, y = torch.rand(2, 3, 4), torch.randint(0, 2, (2, 3, 4))
    each = f(p, y, 'none')
    assert each.shape == p.shape
    assert torch.allclose(f(p, y), each.mean()) and torch.allclose(f(p, y, 'sum'), each.sum())
    assert torch.allclose(f(p.flatten(), y.flatten(), 'none'), each.flatten())
    assert f(torch.ones(3), torch.ones(3)) == 0 and f(torch.zeros(3), torch.zeros(3)) == 0
    with pytest.raises(CourseError, match='own target'): f(torch.rand(3, 1), torch.rand(4))
    with pytest.raises(CourseError, match='own target'): f(torch.rand(3, 2), torch.rand(2, 3))
    with pytest.raises(CourseError, match='reduction'): f(p, y, 'average')


def test_a_certain_mistake_costs_a_lot_but_not_infinity():
    assert cross_entropy(torch.tensor([0.]), torch.tensor([1])) == 100


@pytest.mark.parametrize('f', [quadratic, cross_entropy, hinge])
def test_losses_have_a_slope(f):
    x = torch.randn(8, 1, requires_grad=True)
    BinaryLoss(f)(x, torch.randint(0, 2, (8,))).backward()
    assert x.grad.abs().min() > 0


def test_losses_of_classes():
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    p, corner = x.softmax(1), torch.eye(3)[y]
    assert torch.allclose(Brier('none')(x, y), ((p - corner)**2).sum(1))
    assert torch.allclose(MultiHinge()(x, y), nn.functional.multi_margin_loss(x, y))
    assert torch.allclose(Brier()(torch.zeros(1, 5), torch.tensor([3])), torch.tensor(.8))


@pytest.mark.parametrize('momentum', [0., .5, .9])
def test_sgd_by_hand(momentum):
    mine, theirs = by_hand_and_torch(sgd_rule(.005, momentum), lambda p: torch.optim.SGD(p, .005, momentum=momentum), 200)
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize('betas', [(.9, .999), (.8, .95), (0., .9)])
def test_adam_by_hand(betas):
    mine, theirs = by_hand_and_torch(adam_rule(.02, betas, 1e-7), lambda p: torch.optim.Adam(p, .02, betas, 1e-7), 200)
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_a_wrong_rule_would_be_seen():
    mine, theirs = by_hand_and_torch(adam_rule(.02, (.9, .99)), lambda p: torch.optim.Adam(p, .02), 20)
    assert not torch.allclose(mine, theirs, rtol=0, atol=1e-6)


def test_rank_correlation():
    assert rank_correlation(dict(a=1, b=2, c=3), dict(a=10, b=11, c=50)) == pytest.approx(1)
    assert rank_correlation(dict(a=1, b=2, c=3), dict(c=10, b=11, a=50)) == pytest.approx(-1)


def test_counts():
    assert count_params(model_for('inception', (1, 28, 28), 10)) == 196_154
    assert count_params(model_for('residual', (1, 28, 28), 10)) == 186_058
    assert count_params(house_net()) == 369


def test_house_net_begins_as_in_keras():
    for o in house_net().modules():
        if isinstance(o, nn.Linear):
            assert (o.bias == 0).all() and o.weight.abs().max() <= math.sqrt(6/sum(o.weight.shape))


def test_decay_rounds_as_the_document_prints_it():
    class Opt:
        hypers = [dict(lr=.02)]
        def set_hyper(self, k, v): self.hypers[-1][k] = v
    class Learn: epoch, opt = 0, Opt()
    cb, rates = Decay(.05, 10), []
    cb.learn = Learn()
    for Learn.epoch in range(20):
        cb.before_epoch()
        rates.append(Opt.hypers[-1]['lr'])
    assert rates == [.02]*10 + [.019, .0181, .0172, .0164, .0156, .0148, .0141, .0134, .0127, .0121]


def test_epochs(): assert [epochs_for(2**i) for i in range(1, 9)] == list(range(10, 18))


def test_ways():
    found = {k: ways(o) for k,o in three_nets().items()}
    assert sum(found['VGG'].values()) == 1 and sum(found['ResNet'].values()) == 2**4
    assert min(found['ResNet']) == 2 and min(found['Inception']) == 3
