"Curves and evaluation: any fastai Learner, faults and bad input, and equality with independent counts"
import json
import random

import matplotlib
matplotlib.use('Agg')
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.basics import (BCEWithLogitsLossFlat, CategoryBlock, CrossEntropyLossFlat, DataBlock, DataLoaders, Learner, MSELossFlat,
                           RandomSplitter, accuracy, error_rate, set_seed)
from fastai.callback.all import EarlyStoppingCallback, SaveModelCallback
from fastai.data.transforms import Normalize
from fastai.interpret import ClassificationInterpretation
from fastai.tabular.all import TabularDataLoaders, tabular_learner
from fastai.vision.augment import Brightness
from fastai.vision.core import PILImage, PILImageBW
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from fasttransform import Transform
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score, precision_score, r2_score
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from dlcourse.core import CourseError
from dlcourse.insight.curves import best_epoch, compare, convergence, history, plot_compare, plot_curves, plot_losses
from dlcourse.insight.embedding import layer_activations
from dlcourse.insight.evaluation import Evaluation, evaluate
from dlcourse.insight.explain import cam_maps
from dlcourse.insight.layers import draw_indices, first_batch, layer_outputs, layer_table, to_rows, watch_layers
from dlcourse.training.learner import learner_for

digits = load_digits()
x, y = torch.tensor(digits.data[:600]).float()/16, torch.tensor(digits.target[:600])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


def quiet(learn, *epochs):
    "Fit `learn` without bar and log"
    with learn.quiet():
        for n in epochs: learn.fit(n, 0.01)
    return learn


def tensor_learner(*epochs, targets=y, n_out=10, loss=None, metrics=accuracy, **kwargs):
    "A linear model on plain tensors, with PyTorch's own loss function"
    set_seed(1)
    dls = DataLoaders.from_dsets(TensorDataset(x[:400], targets[:400]), TensorDataset(x[400:], targets[400:]), bs=64, num_workers=0)
    return quiet(Learner(dls, nn.Linear(64, n_out), loss or nn.CrossEntropyLoss(), metrics=metrics, **kwargs), *epochs)


def image_learner(epochs=1, cls=PILImageBW, **kwargs):
    "A small network on a DataBlock of 8x8 images"
    set_seed(1)
    def image(i): return (digits.images[i]*15).astype('uint8') if cls is PILImageBW else np.repeat((digits.images[i]*15).astype('uint8')[..., None], 3, 2)
    args = dict(get_x=image, get_y=lambda i: f'digit {digits.target[i]}', splitter=RandomSplitter(0.4, seed=1))
    block = DataBlock([ImageBlock(cls), CategoryBlock], **{**args, **kwargs})
    dls = block.dataloaders(range(500), bs=64, num_workers=0)
    return quiet(Learner(dls, nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), metrics=accuracy), epochs) if cls is PILImageBW else dls


class Calls:
    "Counts how often a model runs"
    def __init__(self, model):
        self.n = 0
        model.register_forward_hook(self)
    def __call__(self, *args): self.n += 1


# ---- one pass ---------------------------------------------------------------------------------

def test_everything_comes_from_one_pass():
    learn = image_learner()
    calls = Calls(learn.model)
    ev = evaluate(learn)
    assert calls.n == len(learn.dls.valid)
    ev.confusion_matrix(), ev.report(), ev.most_confused(), ev.top_losses(), ev.errors(), ev.to_dict(), repr(ev), ev.accuracy, ev.loss
    ev.plot_confusion_matrix(), ev.plot_confusion_matrix('pred'), ev.per_class(), ev.plot_top_losses(3)
    ev.interpretation().plot_confusion_matrix(), ev.interpretation().most_confused()
    assert calls.n == len(learn.dls.valid)


def test_evaluation_leaves_no_trace():
    learn = tensor_learner(2)
    before, losses = history(learn), list(learn.recorder.losses)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy(), learn.dls.train.rng.getstate()
    evaluate(learn, 'train'), evaluate(learn, 'valid')
    pd.testing.assert_frame_equal(history(learn), before)
    assert learn.recorder.losses == losses
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all() and learn.dls.train.rng.getstate() == states[3]


def test_a_failing_pass_leaves_no_trace_either():
    learn = tensor_learner(2)
    before = history(learn)
    learn.model.register_forward_hook(lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): evaluate(learn)
    pd.testing.assert_frame_equal(history(learn), before)


def test_training_part_in_order_complete_and_without_augmentation():
    learn = image_learner(batch_tfms=[Brightness(0.9, p=1.)])
    ev = evaluate(learn, 'train')
    plain = evaluate(learn, dl=learn.dls.test_dl(learn.dls.train_ds.items, with_labels=True))
    assert len(ev) == len(learn.dls.train_ds) and torch.allclose(ev.preds, plain.preds, atol=1e-6)
    assert ev.targets.tolist() == [int(o[1]) for o in learn.dls.train_ds]
    assert learn.dls.train_ds.split_idx == 0


def test_an_unfitted_learner_can_be_judged():
    assert 0 <= evaluate(tensor_learner()).accuracy <= 1


# ---- what the loss function means --------------------------------------------------------------

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), F.cross_entropy, lambda p, t: -p.log_softmax(1)[range(len(t)), t].mean()])
def test_cross_entropies_agree(loss):
    learn = tensor_learner(2)
    a = evaluate(learn)
    learn.loss_func = loss
    b = evaluate(learn)
    assert torch.allclose(a.preds, b.preds) and torch.allclose(a.losses, b.losses, atol=1e-6)
    assert torch.allclose(a.losses, -a.preds[range(200), a.targets].log(), atol=1e-4)


def test_class_weights_weigh_the_losses():
    learn = tensor_learner(1)
    plain = evaluate(learn)
    learn.loss_func = CrossEntropyLossFlat(weight=torch.arange(10.))
    assert torch.allclose(evaluate(learn).losses, plain.losses*plain.targets, atol=1e-5)
    assert learn.loss_func.reduction == 'mean'


@pytest.mark.parametrize('loss', [nn.BCEWithLogitsLoss(), BCEWithLogitsLossFlat()])
def test_two_classes_from_one_output(loss):
    learn = tensor_learner(3, targets=(y > 4).float()[:, None], n_out=1, loss=loss, metrics=None)
    ev = evaluate(learn)
    with torch.no_grad(): right = ((learn.model(x[400:])[:, 0] > 0) == (y[400:] > 4)).float().mean()
    assert ev.vocab == ['0', '1'] and ev.accuracy == pytest.approx(right.item())


def test_several_labels_an_item_are_refused():
    learn = tensor_learner(targets=F.one_hot(y, 10).float(), loss=nn.BCEWithLogitsLoss(), metrics=None)
    with pytest.raises(CourseError, match='one class or numbers'): evaluate(learn)


def test_more_outputs_than_classes_are_refused():
    learn = image_learner(0)
    learn.model = nn.Sequential(nn.Flatten(), nn.LazyLinear(12))
    with pytest.raises(CourseError, match='12 outputs, but the data have 10 classes'): evaluate(learn)


# ---- numbers -----------------------------------------------------------------------------------

@pytest.mark.parametrize('loss', [nn.MSELoss(), MSELossFlat(), nn.L1Loss()])
def test_regression(loss):
    learn = tensor_learner(3, targets=y.float()[:, None], n_out=1, loss=loss, metrics=None)
    ev = evaluate(learn)
    p, t = ev.preds, ev.targets
    row = ev.report().iloc[0]
    assert row.r2 == pytest.approx(r2_score(t, p), abs=1e-5) and row.mae == pytest.approx((p-t).abs().mean().item(), abs=1e-5)
    assert ev.top_losses(3).loss.is_monotonic_decreasing
    json.dumps(ev.to_dict(), allow_nan=False)


def test_regression_refuses_what_only_classes_have():
    ev = evaluate(tensor_learner(1, targets=y.float()[:, None], n_out=1, loss=nn.MSELoss(), metrics=None))
    for f in (lambda: ev.accuracy, ev.confusion_matrix, ev.plot_confusion_matrix, ev.per_class, ev.most_confused, ev.errors, ev.interpretation):
        with pytest.raises(CourseError, match='predicts numbers'): f()


def test_two_numbers_an_item():
    targets = torch.stack([y, 10-y], 1).float()
    rep = evaluate(tensor_learner(5, targets=targets, n_out=2, loss=nn.MSELoss(), metrics=None)).report()
    assert len(rep) == 2 and (rep.r2 < 1).all()


@pytest.mark.filterwarnings('ignore:Using a target size')
def test_a_broadcasting_loss_is_refused():
    learn = tensor_learner(targets=y.float(), n_out=1, loss=nn.MSELoss(), metrics=None)
    with pytest.raises(CourseError, match='every target'): evaluate(learn)


# ---- any Learner -------------------------------------------------------------------------------

def test_vision_learner_agrees_with_fastai_and_sklearn():
    dls = image_learner(cls=PILImage, batch_tfms=Normalize.from_stats([0.5]*3, [0.3]*3))
    learn = quiet(vision_learner(dls, 'resnet18', pretrained=False, metrics=accuracy), 1)
    ev, hist = evaluate(learn), history(learn)
    plot_curves(learn), ev.plot_top_losses(2)
    theirs = ClassificationInterpretation.from_learner(learn)  # wipes the record
    assert (ev.confusion_matrix() == theirs.confusion_matrix()).all()
    assert torch.allclose(ev.losses, theirs.losses, atol=1e-5)
    rep = ev.report()
    assert rep.precision['weighted avg'] == pytest.approx(precision_score(ev.targets, ev.decoded, average='weighted', zero_division=0))
    assert rep.f1['macro avg'] == pytest.approx(f1_score(ev.targets, ev.decoded, average='macro', zero_division=0))
    assert rep.f1['accuracy'] == pytest.approx(hist.accuracy.iloc[-1], abs=1e-6)


def tabular_data(y_name):
    df = pd.DataFrame(digits.data[:300], columns=[f'p{i}' for i in range(64)])
    df['kind'], df['number'] = [f'c{i}' for i in digits.target[:300]], digits.target[:300].astype('float32')
    block = CategoryBlock() if y_name == 'kind' else None
    return TabularDataLoaders.from_df(df, cont_names=[f'p{i}' for i in range(64)], y_names=y_name, y_block=block, bs=64, num_workers=0)


def test_tabular_classes():
    learn = quiet(tabular_learner(tabular_data('kind'), layers=[32], metrics=accuracy), 3)
    ev = evaluate(learn)
    assert ev.vocab[3] == 'c3' and ev.accuracy == pytest.approx(history(learn).accuracy.iloc[-1], abs=1e-6)
    assert (ev.confusion_matrix() == ClassificationInterpretation.from_learner(learn).confusion_matrix()).all()
    with pytest.raises(CourseError, match='top_losses'): ev.plot_top_losses(3)


def test_tabular_numbers():
    learn = quiet(tabular_learner(tabular_data('number'), layers=[32], y_range=(0, 9)), 3)
    ev = evaluate(learn)
    assert ev.report().index.tolist() == ['number']
    assert ev.report().mse.iloc[0] == pytest.approx(history(learn).valid_loss.iloc[-1], rel=1e-4)


def test_plain_pytorch_loaders():
    dl = lambda a, b, **kw: torch.utils.data.DataLoader(TensorDataset(x[a:b], y[a:b]), batch_size=50, **kw)
    learn = quiet(Learner(DataLoaders(dl(0, 400, shuffle=True, drop_last=True), dl(400, 600)), nn.Linear(64, 10), nn.CrossEntropyLoss(), metrics=accuracy), 2)
    assert evaluate(learn).accuracy == pytest.approx(history(learn).accuracy.iloc[-1], abs=1e-6)
    assert evaluate(learn, 'train').targets.tolist() == y[:400].tolist()
    with pytest.raises(CourseError, match='image loaders'): evaluate(learn).plot_top_losses(2)


def test_callbacks_that_watch_a_fit_may_stay(tmp_path):
    learn = tensor_learner(cbs=[SaveModelCallback(), EarlyStoppingCallback(patience=9)], path=tmp_path)
    quiet(learn, 2)
    before = history(learn)
    evaluate(learn)
    pd.testing.assert_frame_equal(history(learn), before)


def test_our_own_learners():
    learn = learner_for('mlp', data='digits', seed=1, early_stopping=2)
    with learn.quiet():
        learn.fit(1, 1e-3)
        learn.fit(2, 1e-3)
    ev = evaluate(learn)
    assert len(history(learn)) == 3 and compare({'a': learn}).seconds_per_epoch['a'] > 0
    assert ev.loss == pytest.approx(history(learn).valid_loss[best_epoch(learn)], rel=1e-4)  # the restored weights
    assert convergence(learn).steps.item() == 2*len(learn.dls.train)
    assert (ev.confusion_matrix() == ClassificationInterpretation.from_learner(learn).confusion_matrix()).all()
    evaluate(learn, 'test').plot_top_losses(2), plot_curves(learn)


def test_our_own_regression():
    learn = learner_for('mlp', data='boston_housing', seed=1)
    with learn.quiet(): learn.fit(1, 1e-3)
    ev = evaluate(learn, 'test')
    assert len(ev) == 102 and ev.report().r2.item() < 1
    with pytest.raises(CourseError, match='images'): ev.plot_top_losses(2)


# ---- parts and loaders -------------------------------------------------------------------------

def test_a_loader_of_the_callers_own():
    learn = image_learner()
    items = learn.dls.valid_ds.items
    ev = evaluate(learn, dl=learn.dls.test_dl(items, with_labels=True))
    assert ev.part == 'dl' and ev.losses.tolist() == pytest.approx(evaluate(learn).losses.tolist(), abs=1e-5)


def test_a_test_part():
    learn = tensor_learner(1)
    learn.dls.loaders.append(learn.dls.valid.new(TensorDataset(x[:100], y[:100])))
    ev = evaluate(learn, 'test')
    assert (ev.part, len(ev)) == ('test', 100)


def test_parts_that_are_not_there():
    learn = tensor_learner()
    for o in ('test', 2, -1):
        with pytest.raises(CourseError, match='hold train, valid'): evaluate(learn, o)
    with pytest.raises(CourseError, match="Did you mean 'valid'"): evaluate(learn, 'validation')
    learn.dls.loaders.pop()
    with pytest.raises(CourseError, match='no valid part'): evaluate(learn)


def test_an_empty_validation_part():
    learn = image_learner(1, splitter=lambda o: (list(range(100)), []))
    with pytest.raises(CourseError, match='valid part is empty'): evaluate(learn)
    assert best_epoch(learn) is None and compare({'all': learn}).best_epoch['all'] is None
    plot_curves(learn)


def test_a_loader_without_targets():
    learn = image_learner()
    with pytest.raises(CourseError, match='no targets'): evaluate(learn, dl=learn.dls.test_dl([1, 2, 3]))


# ---- counting ----------------------------------------------------------------------------------

def by_hand(targets, decoded, vocab):
    "An `Evaluation` with given answers"
    p = F.one_hot(torch.tensor(decoded), len(vocab)).float()*0.5 + 0.5/len(vocab)
    t = torch.tensor(targets)
    return Evaluation(None, None, 'valid', p, t, -p[range(len(t)), t].log(), vocab)


def test_a_class_that_never_occurs_and_names_that_look_like_rows():
    ev = by_hand([0, 0, 1, 1], [0, 1, 1, 1], ['accuracy', 'b', 'macro avg'])
    rep = ev.report()
    assert rep.shape == (6, 4) and rep.support.tolist() == [2, 2, 0, 4, 4, 4]
    assert ev.to_dict()['macro']['recall'] == pytest.approx(0.5) and ev.to_dict()['weighted']['recall'] == pytest.approx(0.75)
    assert ev.to_dict()['accuracy'] == 0.75 and list(ev.to_dict()['classes']) == ['accuracy', 'b', 'macro avg']
    assert ev.most_confused() == [('accuracy', 'b', 1)] and ev.errors().tolist() == [1]
    json.dumps(ev.to_dict(), allow_nan=False)
    assert np.isfinite(ev.plot_confusion_matrix('pred').axes[0].images[0].get_array()).all()


def test_all_normalisations():
    ev = by_hand([0, 0, 1, 1], [0, 1, 1, 1], ['a', 'b'])
    for how, want in [(None, [[1, 1], [0, 2]]), (True, [[.5, .5], [0, 1]]), ('pred', [[1, 1/3], [0, 2/3]]), ('all', [[.25, .25], [0, .5]])]:
        assert np.asarray(ev.plot_confusion_matrix(how).axes[0].images[0].get_array()) == pytest.approx(np.array(want))
    with pytest.raises(CourseError, match='unknown normalisation'): ev.plot_confusion_matrix('rows')


def test_the_matrix_is_a_fresh_copy():
    ev = by_hand([0, 0, 1, 1], [0, 1, 1, 1], ['a', 'b'])
    ev.confusion_matrix()[:] = 0
    ev.most_confused()
    assert ev.confusion_matrix().tolist() == [[1, 1], [0, 2]]


def test_top_losses_read_only_their_own_images():
    learn = image_learner()
    ev, read = evaluate(learn), []
    learn.dls.valid_ds.tls[0].tfms.fs.insert(0, Transform(lambda o: read.append(o) or o))
    assert len(ev.plot_top_losses(4).axes) == 4
    assert set(read) == set(np.array(learn.dls.valid_ds.items)[ev.top_losses(4)['index']].tolist())


def test_images_are_shown_as_they_were():
    learn = image_learner(batch_tfms=Normalize.from_stats([0.3], [0.2]))
    ev = evaluate(learn)
    item = learn.dls.valid_ds.items[ev.top_losses(1)['index'][0]]
    shown = ev.plot_top_losses(1).axes[0].images[0].get_array()
    assert np.asarray(shown) == pytest.approx((digits.images[item]*15).astype('uint8')/255, abs=0.005)  # decoding rounds down to bytes


# ---- curves ------------------------------------------------------------------------------------

def test_history_needs_a_record():
    with pytest.raises(CourseError, match='has not been fitted'): history(tensor_learner())
    learn = tensor_learner(1)
    learn.get_preds()
    with pytest.raises(CourseError, match='wiped'): history(learn)
    with pytest.raises(CourseError, match='has not been fitted'): plot_curves(pd.DataFrame())
    with pytest.raises(CourseError, match='five steps'): convergence(tensor_learner())


def test_history_leaves_out_what_is_no_epoch():
    learn = tensor_learner(2)
    learn.recorder.values.append([1., 0.5])
    assert len(history(learn)) == 2
    learn = tensor_learner()
    with learn.quiet(): learn.lr_find(show_plot=False)
    with pytest.raises(CourseError, match='no history'): history(learn)


def test_a_history_of_its_own_comes_first():
    learn = tensor_learner(2)
    learn.history = pd.DataFrame(dict(epoch=[0, 1, 2], train_loss=[3., 2., 1.], valid_loss=[3., 1., 2.], seconds=[1., 1., 4.]))
    assert best_epoch(learn) == 1 and compare({'a': learn}).seconds_per_epoch['a'] == 2
    learn.best_epoch = 2
    assert best_epoch(learn) == 2 and compare({'a': learn}).valid_loss['a'] == 2
    learn.best_epoch = 9
    assert best_epoch(learn) == 1


def test_training_metrics_get_their_curves_and_gaps():
    learn = tensor_learner(3)
    learn.recorder.train_metrics = True
    quiet(learn, 3)
    t, h = compare({'a': learn}).loc['a'], history(learn).loc[2]
    assert t.accuracy_gap == pytest.approx(h.train_accuracy - h.valid_accuracy)
    solid = [[l.get_linestyle() for l in ax.lines if len(l.get_xdata()) == 3] for ax in plot_curves(learn).axes]
    assert solid == [['--', '-'], ['--', '-']]


def test_better_means_smaller_for_errors():
    hist = pd.DataFrame(dict(valid_loss=[1., 2.], error_rate=[0.5, 0.1], accuracy=[0.5, 0.9], mae=[1., 2.]))
    assert [best_epoch(hist, o) for o in hist] == [0, 1, 1, 0]
    assert best_epoch(hist.assign(valid_loss=np.nan)) is None
    with pytest.raises(CourseError, match="Did you mean 'accuracy'"): best_epoch(hist, 'accurcy')


def test_curves_on_given_axes():
    learn = tensor_learner(1)
    fig, axs = plt.subplots(1, 2)
    assert plot_curves(learn, ax=axs) is fig and plot_compare({'a': learn}, 'valid_loss', ax=axs[0]) is fig
    with pytest.raises(CourseError, match='2 panels need 2 axes'): plot_curves(learn, ax=axs[0])
    assert plot_curves(learn, 'loss', ax=axs[0]) is fig


def test_learners_come_with_names():
    learn = tensor_learner(1)
    for o in (learn, [learn], {}):
        with pytest.raises(CourseError, match='dictionary'): compare(o)
    with pytest.raises(CourseError, match='unknown metric'): plot_compare({'a': learn}, 'f1')


def test_learners_with_different_metrics_and_lengths():
    table = compare({'a': tensor_learner(2), 'b': tensor_learner(3, metrics=error_rate), 'c': history(tensor_learner(1))})
    assert table.epochs.tolist() == [2, 3, 1] and np.isnan(table.accuracy['b']) and np.isnan(table.parameters['c'])


def test_convergence_of_odd_losses():
    t = convergence(dict(nan=[1., 1., np.nan, np.nan, np.nan], flat=[2.]*50, steps=[5.]*5 + [1.]*20))
    assert not t.settled['nan'] and t.settled['flat'] and t.first_step_near['flat'] == 1
    assert t.first_step_near['steps'] == 6 and t.final_level['steps'] == 1
    assert np.isnan(t.first_step_near['nan'])
    plot_losses(tensor_learner(2), log=True)


def test_a_figure_shows_once():
    fig = plot_curves(tensor_learner(1))
    assert plt.fignum_exists(fig.number)
    with pytest.raises(NotImplementedError): fig._ipython_display_()
    assert not plt.fignum_exists(fig.number)


# ---- Layers and batches ------------------------------------------------------------------------

class Twice(nn.Module):
    "A network whose only activation is called twice, and writes into its input"
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.relu, self.out = nn.ReLU(inplace=True), nn.Linear(6, 10)

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.conv1(x.reshape(-1, 1, 8, 8)))))
        return self.out(x.mean((2, 3)))


def test_what_is_kept_is_not_written_over():
    torch.manual_seed(1)
    model, a = Twice(), torch.rand(3, 64)
    kept = layer_outputs(model, a)
    assert list(kept) == ['conv1', 'relu@1', 'conv2', 'relu@2', 'out']
    assert kept['conv2'].min() < 0 and torch.equal(kept['conv2'].relu(), kept['relu@2'])
    assert not any(m._forward_hooks for m in model.modules()) and model.training


def test_hooks_go_where_a_pass_fails():
    model = Twice()
    with pytest.raises(RuntimeError), watch_layers(model, ['conv1', 'relu']): model(torch.rand(3, 7))
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_called_twice_can_be_looked_at():
    learn = tensor_learner()
    learn.model = Twice()
    table = layer_table(learn)
    assert table['shape']['relu@1'] == (4, 8, 8) and table['shape']['relu@2'] == (6, 8, 8)
    acts = layer_activations(learn, ['relu@1', 'relu@2', 'out'], n=20)
    assert [o.shape for o in acts.features.values()] == [(20, 4), (20, 6), (20, 10)]
    xb, yb = first_batch(learn)
    first, second = (cam_maps(learn.model, xb, yb[None], f'relu@{i}')[0] for i in (1, 2))
    assert first.shape == second.shape and not torch.equal(first, second)


def test_gradients_at_the_first_of_two_calls():
    torch.manual_seed(1)
    model, a, c = Twice().eval(), torch.rand(2, 64), torch.tensor([1, 2])
    A = model.relu(model.conv1(a.reshape(-1, 1, 8, 8))).detach().requires_grad_()
    out = model.out(model.conv2(A).relu().mean((2, 3)))
    g, = torch.autograd.grad(out.gather(1, c[:, None]).sum(), A)
    expected = (g.mean((2, 3), keepdim=True)*A.detach()).sum(1).relu()
    assert torch.allclose(cam_maps(model, a, c[None], 'relu@1')[0][0], expected, atol=1e-6)


def test_rows_are_a_copy():
    a = torch.rand(4, 6)
    to_rows(a).zero_()
    assert a.sum() > 0


def test_first_batch_leaves_no_trace_and_keeps_order():
    learn = tensor_learner()
    numbers = torch.get_rng_state()
    assert torch.equal(first_batch(learn, 'train')[0], x[:64]) and torch.equal(numbers, torch.get_rng_state())
    with pytest.raises(CourseError, match='no test part'): first_batch(learn, 'test')
    with pytest.raises(CourseError, match='whole number'): draw_indices(learn, 'valid', 1, 0)


def test_figures_have_a_ground(): assert plot_curves(tensor_learner(1)).get_facecolor() == (1, 1, 1, 1)
