"Faults, bad input and equalities of the cost of a network and of images at other sizes than usual"
import json, subprocess, sys
from pathlib import Path

import numpy as np, pytest, torch
from fastai.learner import Learner
from fastcore.nbio import read_nb
from torch import nn
from dlcourse.core import CourseError
from dlcourse.data.transforms import AtSize
from dlcourse.insight.cost import cost, flops_per_image, latency, saved_bytes
from dlcourse.insight.evaluation import evaluate
from dlcourse.models.folding import answering
from dlcourse.insight.resolution import (RandomPart, RandomSize, SizedPreds, SizePredictor, _rule_figures, any_size, at_sizes, cheapest_right, check_size, best_mixture, cost_at,
                                         compare_size_rules, look_twice, plot_size_rules, plot_sizes, preds_at, resize_inputs, thumbnails, train_size_predictor)
from dlcourse.models.zoo import model_for
from dlcourse.training.learner import learner_for

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT/'results'/'benchmarks'/'resolution.json'
SHAPE = (1, 28, 28)


@pytest.fixture(scope='module')
def learn(): return learner_for('cnn', n_per_class=10, seed=1, filters=4)


@pytest.fixture
def x(): return torch.rand(3, *SHAPE)


def hooks(model): return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
def state(model): return hooks(model), [m.training for m in model.modules()]


# What a network costs

def test_flops_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4*6*6, 2))
    assert flops_per_image(net, torch.rand(5, 3, 8, 8)) == 2*(3*9)*4*36 + 2*144*2


def test_bytes_are_those_on_disk(tmp_path):
    net = model_for('cnn', SHAPE, 10, filters=4)
    torch.save(net.state_dict(), tmp_path/'w.pth')
    assert abs(saved_bytes(net) - (tmp_path/'w.pth').stat().st_size) < 1000 # The name of the file is in it


def test_cost_of_several(x):
    small, large = (model_for('cnn', SHAPE, 10, filters=o) for o in (2, 8))
    small[0].train(); small[1].eval()
    was = state(small)
    table = cost(dict(small=small, large=large), x, runs=1)
    assert list(table.index) == ['small', 'large'] and state(small) == was
    for o in ('parameters', 'bytes', 'flops'): assert table[o]['small'] < table[o]['large']
    assert (table.images == 3).all() and np.allclose(table.ms_each*3, table.ms)


def test_cost_of_a_learner_leaves_no_trace(learn):
    torch.manual_seed(0); expected = torch.rand(3)
    torch.manual_seed(0); cost(learn, runs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('what, x, says', [(nn.Linear(2, 2), None, 'not given'), (nn.Linear(2, 2), [1], 'a list'), (nn.Linear(2, 2), torch.rand(0, 2), 'empty'),
                                           ('cnn', torch.rand(1, 2), 'not of a str')])
def test_cost_of_nothing(what, x, says):
    with pytest.raises(CourseError, match=says): cost(what, x)


def test_modes_come_back_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    with pytest.raises(KeyError), answering(net): raise KeyError
    assert [m.training for m in net.modules()] == [True, True, False]
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_latency_of_a_single_run():
    took = latency(nn.Linear(2, 2), torch.rand(4, 2), runs=1)
    assert 0 < took.low <= took.ms <= took.high and took.per_image == took.ms/4


# Sizes

def test_sizes_in_any_order(learn):
    a, b = preds_at(learn, [14, (20, 28), 28]), preds_at(learn, [28, 14, (20, 28), 14])
    assert a.sizes == b.sizes == [(14, 14), (20, 28), (28, 28)] and torch.equal(a.preds, b.preds) and (np.diff(a.flops) > 0).all()


def test_table_of_pairs(learn):
    table = at_sizes(learn, [28, (28, 14)])
    assert list(table.index) == ['28×14', 28] and list(table) == ['accuracy', 'flops', 'ms']
    assert len(plot_sizes({'a': table, 'b': table}).axes) == 2


@pytest.mark.parametrize('sizes', [[], [0], [-28], [14.5], ['28'], [(28, 28, 3)], [(28, 0)], 28, None, [None]])
def test_bad_sizes(learn, sizes):
    with pytest.raises(CourseError, match='sizes are a list of numbers of pixels or pairs'): preds_at(learn, sizes)


def test_the_usual_size_is_what_evaluate_says(learn):
    p, e = preds_at(learn, [28], 'test'), evaluate(learn, 'test')
    assert torch.equal(p.preds[0], e.preds) and p.accuracy[0] == pytest.approx(e.accuracy)


def test_resized_on_the_way_in(learn):
    by_hand = evaluate(learn, dl=learn.dls.valid.new(after_batch=[*learn.dls.valid.after_batch.fs, AtSize((20, 20))]))
    assert torch.allclose(preds_at(learn, [20]).preds[0], by_hand.preds, atol=1e-5)


def test_a_loader_that_resizes_gives_original_pixels(learn):
    small = learn.dls.valid.new(after_batch=[AtSize((14, 14)), *learn.dls.valid.after_batch.fs])
    assert next(iter(small))[0].shape[-1] == 14
    assert torch.allclose(preds_at(learn, [28], dl=small).preds, preds_at(learn, [28]).preds, atol=1e-5)


def test_nothing_stays_behind(learn):
    was, weights = state(learn.model), {k: v.clone() for k,v in learn.model.state_dict().items()}
    at_sizes(learn, [14, 20])
    with pytest.raises(KeyError), resize_inputs(learn.model, (14, 14)): raise KeyError
    assert state(learn.model) == was and all(torch.equal(v, weights[k]) for k,v in learn.model.state_dict().items())


def test_nothing_stays_behind_after_a_refusal():
    flat = learner_for('cnn_v2', n_per_class=10, seed=1)
    was = state(flat.model)
    with pytest.raises(CourseError, match='does not take 56×56'): at_sizes(flat, [28, 56])
    assert state(flat.model) == was and at_sizes(flat, [28]).flops[28] > 0


# Networks that refuse

@pytest.mark.parametrize('arch, size, says', [
    ('cnn_v2', (56, 56), r'layer head\.dense1\.linear \(Linear\) has weights for 512 features and gets 2048, since the feature map is flattened: any_size'),
    ('all_conv', (14, 14), r'layer head\.out \(Conv2d\) has a kernel of 4×4, and its input is only 2×2'),
    ('all_conv', (56, 56), 'gives 160 numbers for an image, not 10: an answer for each place of a map, which any_size averages')])
def test_the_layer_that_refuses_is_named(x, arch, size, says):
    net = model_for(arch, SHAPE, 10)
    was = state(net)
    with pytest.raises(CourseError, match=says): check_size(net, x, size)
    assert state(net) == was


class Fussy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
    def forward(self, x):
        x = self.conv(x)
        if x.shape[-1] != 28: raise AssertionError('28 pixels or nothing')
        return x.mean((2, 3))


def test_a_failure_outside_the_layers(x):
    "The layer that ran before is not to blame"
    with pytest.raises(CourseError, match='does not take 20×20 pixels: it fails: 28 pixels or nothing'): check_size(Fussy(), x, (20, 20))
    with pytest.raises(CourseError, match=r'its layer 1 \(Fussy\) fails'): check_size(nn.Sequential(nn.Identity(), Fussy()), x, (20, 20))


def test_cost_at_refuses_before_it_times(x):
    with pytest.raises(CourseError, match='does not take 56×56'): cost_at(model_for('cnn_v2', SHAPE, 10), x, [28, 56])


# What takes any size

@pytest.mark.parametrize('arch, others', [('cnn_base', [(14, 14), (40, 40), (20, 33)]), ('cnn_v2', [(14, 14), (40, 40), (20, 33)]), ('all_conv', [(40, 40), (28, 56)])])
def test_any_size_changes_nothing_at_the_usual_size(x, arch, others):
    net = model_for(arch, SHAPE, 10)
    was = state(net)
    free = any_size(net, x)
    assert state(net) == was and hooks(free) == 0
    assert {id(p) for p in free.parameters()} == {id(p) for p in net.parameters()}
    with answering(net), answering(free):
        assert torch.equal(free(x), net(x))
        for o in others: assert free(AtSize(o).apply(x)).shape == (3, 10)


def test_any_size_of_a_dense_network_shrinks_the_image(x):
    "What it flattens is the image itself"
    free = any_size(model_for('mlp', SHAPE, 10), x)
    with answering(free): assert torch.allclose(free(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), free(x), atol=1e-5)


def test_any_size_without_a_flatten(x):
    with pytest.raises(CourseError, match='no Flatten layer'): any_size(nn.Conv2d(1, 2, 3), x)


def test_all_conv_has_no_dense_layer(x):
    "Exercise 6.4: convolutions, padding and reshape alone"
    net = model_for('all_conv', SHAPE, 10)
    kinds = {type(m) for m in net.modules() if not list(m.children())}
    assert kinds <= {nn.Conv2d, nn.ReLU, nn.Flatten} and nn.Conv2d in kinds
    assert not any(isinstance(m, (nn.Linear, nn.LazyLinear, nn.Bilinear)) for m in any_size(net, x).modules())
    assert {p.ndim for p in net.parameters()} == {1, 4} and net(x).shape == (3, 10)


# Training at other sizes and on parts

def test_random_size(x):
    tfm = RandomSize([14, (20, 28)], seed=1)
    assert {tuple(tfm.apply(x).shape) for _ in range(30)} == {(3, 1, 14, 14), (3, 1, 20, 28)}
    with pytest.raises(CourseError, match='sizes are a list'): RandomSize([0])


def test_random_part(x):
    assert torch.allclose(RandomPart(1., seed=1).apply(x), x, atol=1e-5)
    parts = RandomPart(seed=1).apply(x)
    assert parts.shape == x.shape and parts.min() >= x.min() - 1e-6 and parts.max() <= x.max() + 1e-6
    for o in (0, -1, 2):
        with pytest.raises(CourseError, match='share of the area'): RandomPart(o)


# The size that an image needs

class Rule:
    "Stands for a classifier: `probabilities` for each size of `classes_`, whatever the image"
    def __init__(self, classes, probabilities): self.classes_, self.p = np.array(classes), np.array(probabilities)
    def predict_proba(self, x): return self.p
    def __getitem__(self, i): return self
    @property
    def coef_(self): return np.zeros((len(self.classes_), 5))


@pytest.fixture
def three():
    "Three images, two classes, at three sizes that cost 10, 40 and 100 FLOPs: wrong, right, right; right at once; never right"
    a, b = [0.9, 0.1], [0.4, 0.6]
    return SizedPreds([(1, 1), (2, 2), (3, 3)], torch.tensor([[b, a, a], [a, a, a], [a, a, a]]), torch.tensor([0, 0, 1]), np.array([10, 40, 100]), torch.rand(1, 1, 3, 3))


def test_cheapest_right(three):
    assert cheapest_right(three.decoded, three.targets).tolist() == [1, 0, 0]


def test_flops_of_the_predictor_by_hand(three):
    predictor = SizePredictor(three.sizes, Rule([0, 1], [[0.3, 0.7], [0.95, 0.05], [0.8, 0.2]]), 1)
    assert predictor.flops == 2*2*5
    at = predictor.choose(np.zeros((3, 5)), 0.9)
    assert at.tolist() == [1, 0, 1]
    right = (three.decoded == three.targets).numpy()[at, range(3)]
    row = _rule_figures(three, right, three.flops[at] + predictor.flops)
    assert row['mflops']*1e6 == pytest.approx((40 + 10 + 40)/3 + 20) and row['accuracy'] == pytest.approx(2/3)


def test_a_size_that_no_image_needed():
    "Sizes without examples get no probability of their own, and certainty is reached all the same"
    predictor = SizePredictor([(1, 1), (2, 2), (3, 3)], Rule([0, 2], [[0.5, 0.5 - 1e-12]]), 1)
    assert np.allclose(predictor.suffices(np.zeros((1, 5))), [[0.5, 0.5, 1]]) and predictor.choose(np.zeros((1, 5)), 1.).tolist() == [2]
    for o in (-0.1, 90):
        with pytest.raises(CourseError, match='trust is a probability'): predictor.choose(np.zeros((1, 5)), o)


def test_second_look_costs_both(three):
    right, flops = look_twice(three, 0.7)
    assert flops.tolist() == [110, 10, 10] and right.tolist() == [True, True, False]


def test_mixture_is_the_best_one():
    flops, accuracy = [1., 3., 5., 9.], [0.5, 0.4, 0.9, 0.8]
    assert np.allclose(best_mixture(3., flops, accuracy), [0.5, 0, 0.5, 0]) and np.allclose(best_mixture(9., flops, accuracy), [0, 0, 1, 0])
    assert np.allclose(best_mixture(1., flops, accuracy), [1, 0, 0, 0])


def test_predictor_end_to_end(learn):
    sizes = [10, 28]
    predictor = train_size_predictor(learn, sizes)
    judged = compare_size_rules(learn, predictor, 'test', trusts=(0.5, 0.9))
    p = preds_at(learn, sizes, 'test')
    assert predictor.flops == 2*64 and thumbnails(learn, 'test').shape == (len(p.targets), 64)
    assert judged.loc[('fixed', 28)].accuracy == pytest.approx(p.accuracy[1]) and np.allclose(judged.mflops['fixed']*1e6, p.flops)
    assert judged.accuracy['oracle'].item() == judged.accuracy.max() and (judged.mflops['predicted']*1e6 >= p.flops[0] + predictor.flops - 1e-6).all()
    assert plot_size_rules(judged).axes


def test_nothing_to_predict(learn):
    with pytest.raises(CourseError, match='nothing to predict: 28 pixels are enough'): train_size_predictor(learn, [28])


def test_numbers_have_no_size():
    table = learner_for('mlp', data='boston_housing')
    with pytest.raises(CourseError, match='only images'): at_sizes(table, [28])


# The record

def test_help_of_the_run():
    out = subprocess.run([sys.executable, '-m', 'benchmarks.resolution', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    for o in ('photographs', 'clothing', 'choice', '--seeds'): assert o in out.stdout


def test_recorded_run():
    found = json.loads(RECORD.read_text(encoding='utf-8'))
    assert {o['group'] for o in found['rows']} == {'photographs', 'clothing', 'choice'}
    assert not {'command', 'commit', 'date', 'hardware', 'threads', 'versions', 'seconds'} - found['provenance'].keys()
    for row in found['rows']:
        assert len({o['seed'] for o in row['runs']}) == len(row['runs']) >= 2
        if 'mean' in row: assert np.allclose(row['mean'], np.mean([o['accuracy'] for o in row['runs']], 0), atol=1e-3) and len(row['mean']) == len(row['sizes']) == len(row['flops'])


def test_page_shows_the_recorded_run():
    made = json.loads(RECORD.read_text(encoding='utf-8'))['provenance']['date']
    page = next((ROOT/'nbs'/'insight').glob('*_resolution.ipynb'))
    shown = json.dumps([c.outputs for c in read_nb(page).cells if c.cell_type == 'code'])
    assert made in shown, f'run it again: nbdev-test {page.relative_to(ROOT)} --save'
