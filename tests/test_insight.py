"The pages of insight: any fastai Learner, faults and bad input, and equality with independent counts"
import json, os, random, runpy, shutil, subprocess, sys, warnings
from copy import deepcopy
from functools import partial
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import matplotlib
matplotlib.use('Agg')
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageCms
from fastai.basics import (BCEWithLogitsLossFlat, CategoryBlock, CrossEntropyLossFlat, DataBlock, DataLoaders, Learner, MSELossFlat,
                           RandomSplitter, accuracy, error_rate, set_seed)
from fastai.callback.all import EarlyStoppingCallback, SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize, get_image_files, parent_label
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastai.losses import BCEWithLogitsLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy
from fastai.tabular.all import TabularDataLoaders, tabular_learner
from fastai.vision.augment import Brightness
from fastai.vision.core import PILImage, PILImageBW
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from fastcore.nbio import read_nb
from fasttransform import Transform
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, r2_score, silhouette_score
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from conftest import needs_data, small_disk
from dlcourse.core import CourseError, notice
from dlcourse.data.blocks import dls_for
from dlcourse.data.transforms import AtSize, BatchTransform
from dlcourse.insight import alignment, inference, similarity as similar
from dlcourse.insight.calibration import best_temperature, calibration
from dlcourse.insight.cost import cost, flops_per_image, latency, saved_bytes
from dlcourse.insight.curves import best_epoch, compare, convergence, history, plot_compare, plot_curves, plot_losses
from dlcourse.insight.embedding import fisher_ratio, layer_activations, plot_embedding, probe_accuracy
from dlcourse.insight.evaluation import Evaluation, evaluate
from dlcourse.insight.explain import cam_maps, default_layer, grad_cam, image_batch, saliency
from dlcourse.data.pictures import open_picture
from dlcourse.insight.inference import compare_speed, export_folder, export_onnx, fast, onnx_settings, pixel_net, run_alone, run_onnx
from dlcourse.insight.layers import (channel_axes, draw_indices, first_batch, is_feature_map, layer_outputs, layer_shapes, layer_table,
                                     main_layers, read_part, to_rows, watch_layers, whole_numbers)
from dlcourse.insight.graph_pictures import draw_graph
from dlcourse.insight.graphs import autograd_derivative, count_paths, graph_of, path_sum, path_table, paths, totals
from dlcourse.insight.lesions import lesions, residual_blocks
from dlcourse.insight.landscape import loss_line, loss_surface, random_direction, trajectory
from dlcourse.insight import surrogate as sg
from dlcourse.insight.robustness import Judge, gradient_norms, layer_robustness, weight_layers
from dlcourse.insight.resolution import (RandomPart, RandomSize, SizePredictor, SizedPreds, _rule_figures, any_size, at_sizes,
                                         best_mixture, cheapest_right, check_size, compare_size_rules, cost_at, look_twice,
                                         plot_size_rules, plot_sizes, preds_at, resize_inputs, thumbnails, train_size_predictor)
from dlcourse.insight.outputs import class_probabilities
from dlcourse.models import folding
from dlcourse.models.folding import FastNet, answering, fold_batchnorm, largest_map
from dlcourse.models.views import OverViews
from dlcourse.models.zoo import model_for
from dlcourse.training.ensembles import ensemble
from dlcourse.training.losses import BinaryLoss, quadratic
from dlcourse.training.kept import KeepWeights, unchanged
from dlcourse.training.learner import learner_for
from dlcourse.training.losses import Brier, CrossEntropy


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')

# ---- Curves and evaluation -------------------------------------------------------------------

digits = load_digits()
x, y = torch.tensor(digits.data[:600]).float()/16, torch.tensor(digits.target[:600])




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
    def image(i):
        return (digits.images[i]*15).astype('uint8') if cls is PILImageBW else np.repeat((digits.images[i]*15).astype('uint8')[..., None],
            3, 2)
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
    for f in (lambda: ev.accuracy, ev.confusion_matrix, ev.plot_confusion_matrix, ev.per_class, ev.most_confused, ev.errors,
        ev.interpretation):
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
    learn = quiet(Learner(DataLoaders(dl(0, 400, shuffle=True, drop_last=True), dl(400, 600)), nn.Linear(64, 10), nn.CrossEntropyLoss(),
        metrics=accuracy), 2)
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
        with pytest.raises(CourseError, match='hold train, valid|must be .train'): evaluate(learn, o)
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


def test_names_of_classes_are_never_formulas():
    names = ['$10-$20', r'a\$b$', '<b>\n%', '_']
    ev = by_hand([0, 1, 2, 3], [0, 1, 3, 3], names)
    for fig in (ev.plot_confusion_matrix(), ev.per_class()):
        fig.canvas.draw()
        texts = [o._preprocess_math(o.get_text()) for o in fig.axes[0].get_yticklabels()]
        assert texts == [('$10-$20', False), (r'a\$b$', False), ('<b> %', False), ('_', False)]
    losses = {'_a': [3., 2., 1.]*3, '$x$ and $y$': [2., 1., 1.]*3}
    texts = plot_losses(losses).axes[0].get_legend().texts
    assert [o._preprocess_math(o.get_text()) for o in texts] == [(' _a', False), ('$x$ and $y$', False)]


def test_a_class_that_never_occurs_and_names_that_look_like_rows():
    ev = by_hand([0, 0, 1, 1], [0, 1, 1, 1], ['accuracy', 'b', 'macro avg'])
    rep = ev.report()
    assert rep.shape == (6, 4) and rep.support.tolist() == [2, 2, 0, 4, 4, 4]
    assert ev.to_dict()['macro']['recall'] == pytest.approx(0.75) and ev.to_dict()['weighted']['recall'] == pytest.approx(0.75)
    assert ev.to_dict()['accuracy'] == 0.75 and list(ev.to_dict()['classes']) == ['accuracy', 'b', 'macro avg']
    assert ev.most_confused() == [('accuracy', 'b', 1)] and ev.errors().tolist() == [1]
    json.dumps(ev.to_dict(), allow_nan=False)
    assert np.isfinite(ev.plot_confusion_matrix('pred').axes[0].images[0].get_array()).all()


def test_a_class_without_items_has_no_recall():
    ev = by_hand([0, 0, 1, 1], [0, 1, 1, 2], ['a', 'b', 'c', 'd'])
    rep = ev.report()
    assert rep.recall.iloc[:4].tolist() == pytest.approx([.5, .5, np.nan, np.nan], nan_ok=True)
    assert rep.precision.iloc[:4].tolist() == pytest.approx([1, .5, 0, np.nan], nan_ok=True)
    assert rep.recall['macro avg'] == balanced_accuracy_score(ev.targets, ev.decoded) and rep.recall['weighted avg'] == ev.accuracy
    assert [o.get_text() for o in ev.per_class().axes[0].texts] == ['0.50', '0.50', 'no items', 'no items']
    assert sum(o.get_text() == '–' for o in ev.plot_confusion_matrix('true').axes[0].texts) == 2*4


weighting = torch.tensor([1., 2., 3., 4., 5., 6., 7., 8., 9., 10.])
plain_losses = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weighting), nn.CrossEntropyLoss(weighting, label_smoothing=0.1),
                nn.CrossEntropyLoss(ignore_index=3), nn.CrossEntropyLoss(reduction='sum'), nn.MultiMarginLoss(weight=weighting),
                CrossEntropyLossFlat(weight=weighting), FocalLossFlat(), LabelSmoothingCrossEntropy(), Brier(),
                CrossEntropy(weight=weighting), partial(F.cross_entropy, weight=weighting),
                lambda out, y: F.cross_entropy(out, y, weighting)]

@pytest.mark.parametrize('loss', plain_losses, ids=str)
def test_the_loss_is_that_of_torch_and_of_validate(loss):
    learn = tensor_learner(loss=loss)
    learn.dls.valid.bs = 200
    out, targets = learn.get_preds(act=lambda o: o)
    want = loss(out, targets).mean().item()
    with learn.quiet(): assert learn.validate()[0] == pytest.approx(want, rel=1e-5)
    assert evaluate(learn).loss == pytest.approx(want, rel=1e-5) and evaluate(learn).to_dict()['loss'] == evaluate(learn).loss


number_losses = [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(beta=0.1), nn.MSELoss(reduction='sum')]

@pytest.mark.parametrize('loss', number_losses, ids=str)
def test_the_loss_of_numbers_is_that_of_torch(loss):
    learn = tensor_learner(targets=torch.stack([y.float(), 2*y.float()], 1), n_out=2, loss=loss, metrics=[])
    out, targets = learn.get_preds(act=lambda o: o)
    assert evaluate(learn).loss == pytest.approx(loss(out, targets).item(), rel=1e-5)


@pytest.mark.parametrize('loss', [nn.BCEWithLogitsLoss(), BCEWithLogitsLossFlat()], ids=str)
def test_several_labels_an_item_are_no_classes(loss):
    several = F.one_hot(y, 10).float().roll(1, 1) + F.one_hot(y, 10)
    learn = tensor_learner(targets=several, loss=loss, metrics=[])
    with pytest.raises(CourseError, match='several labels each'): evaluate(learn)
    out = torch.tensor([[2., -1., 0.]])
    assert torch.allclose(class_probabilities(out, loss), out.sigmoid())


def of_scores(x, y): return nn.functional.binary_cross_entropy_with_logits(x[:, 0], y.float())
def of_shares(x, y): return nn.functional.binary_cross_entropy(x[:, 0], y.float())


@pytest.mark.parametrize('loss, is_share', [(BinaryLoss(), False), (BinaryLoss(quadratic), False), (of_scores, False), (of_shares, True),
    (lambda x, y: of_scores(x, y), False)], ids=range(5))
@pytest.mark.parametrize('size', [0.2, 5.])
def test_one_output_for_two_classes(loss, is_share, size):
    "Whatever the loss is called, and however small the scores are"
    dls = dls_for((torch.rand(24, 4), torch.arange(24) % 2), bs=8, valid=12)
    net = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Linear(1, 1), *([nn.Sigmoid()] if is_share else []))
    net[2].weight.data, net[2].bias.data = torch.full((1, 1), size), torch.full((1,), 0.1)
    ev = evaluate(Learner(dls, net, loss_func=loss))
    with torch.no_grad(): out = torch.cat([net(b[0]) for b in dls.valid])[:, 0]
    p = out if is_share else out.sigmoid()
    assert torch.allclose(ev.preds[:, 1], p, atol=1e-6) and ev.vocab == ['0', '1']


def test_classes_that_there_are_not_are_named():
    learn = tensor_learner(targets=y.where(y != 3, -100))
    with pytest.raises(CourseError, match='from 0 to 9, got -100 to 9'): evaluate(learn)


def test_outputs_of_nan_are_no_answer():
    learn = tensor_learner()
    learn.model.bias.data[2] = np.nan
    with pytest.raises(CourseError, match='NaN for 200 of 200 items'): evaluate(learn)
    with pytest.raises(CourseError, match='NaN for 200 of 200 items'): layer_activations(learn, 'input')


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
    epochs, two = pd.DataFrame(dict(train_loss=[1.]*5)), dict(high=[5.]*20, low=list(np.linspace(6, 1, 20)))
    with pytest.raises(CourseError, match='histories only'): convergence(dict(steps=tensor_learner(1), epochs=epochs))
    t = convergence(two)
    assert (t.common_level == 5.25).all() and t.first_step_at_common.tolist() == [1, 4]
    assert convergence(two, level=2).first_step_at_common.isna().tolist() == [True, False]
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


def test_a_learner_without_a_validation_part():
    learn = tensor_learner()
    learn.dls = DataLoaders(learn.dls.train)
    assert torch.equal(first_batch(learn)[0], x[:64]) and gradient_norms(learn).empty
    assert loss_line(learn, points=2, part='train', progress=False).part == 'train'
    with pytest.raises(CourseError, match='no valid part: these DataLoaders hold train'): loss_line(learn, points=2)


def test_figures_have_a_ground(): assert plot_curves(tensor_learner(1)).get_facecolor() == (1, 1, 1, 1)


# ---- Grad-CAM and saliency -------------------------------------------------------------------

rng = np.random.default_rng(0)
photos, photo_classes = rng.integers(0, 256, (40, 3, 40, 40), dtype=np.uint8), np.arange(40) % 4




@pytest.fixture(scope='module')
def dls(): return dls_for((photos, photo_classes), bs=8, seed=1)


@pytest.fixture(scope='module')
def photo_learn(dls): return learner_for('cnn', dls, filters=8, seed=1)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A folder of class folders with colour images"
    root = tmp_path_factory.mktemp('images')
    for i in range(16):
        (root/f'c{i%2}').mkdir(exist_ok=True)
        Image.fromarray(photos[i].transpose(1, 2, 0)).save(root/f'c{i%2}'/f'{i}.png')
    return root


def modes_and_weights(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    return [m.training for m in model.modules()], hooks, [(p.requires_grad,
        p.grad is None) for p in model.parameters()], torch.is_grad_enabled()


def equals_captum(photo_learn, layer=None, **kwargs):
    "Compare with captum's `LayerGradCam` at the same layer; the explanation"
    captum = pytest.importorskip('captum.attr')
    before = modes_and_weights(photo_learn.model)
    cam = grad_cam(photo_learn, 4, of='predicted', layer=layer, **kwargs)
    assert modes_and_weights(photo_learn.model) == before
    images,_,_ = image_batch(photo_learn, 4)
    photo_learn.model.eval()
    m = photo_learn.model.get_submodule(cam.layer)
    theirs = captum.LayerGradCam(photo_learn.model, m).attribute(images.clone().requires_grad_(), cam.classes[0],
        relu_attributions=True)[:, 0]
    torch.testing.assert_close(cam.maps[0], theirs.detach(), atol=1e-4, rtol=1e-4)
    assert cam.maps.max() > 0
    return cam


@pytest.mark.parametrize('arch, layer', [('cnn', 'body.block3.act'), ('all_conv', 'body'), ('residual', 'body.block3'), ('inception',
    'body.module2'),
                                         ('cnn_base', 'body'), ('cnn_v2', 'body.block4.act'), ('cnn_v3', 'body.block5.act')])
def test_our_networks(dls, arch, layer):
    assert equals_captum(learner_for(arch, dls, seed=1)).layer == layer


@pytest.mark.parametrize('arch', ['resnet18', 'squeezenet1_1', 'mobilenet_v2', 'tf_efficientnet_lite0'])
@pytest.mark.parametrize('frozen', [True, False])
def test_backbones(dls, arch, frozen):
    photo_learn = learner_for(arch, dls_for((photos, photo_classes), bs=8, size=64, seed=1), pretrained=False, seed=1)
    if frozen: photo_learn.freeze()
    assert equals_captum(photo_learn).layer == 'body'


def test_inner_layer_of_a_frozen_body(dls):
    photo_learn = learner_for('mobilenet_v2', dls_for((photos, photo_classes), bs=8, size=64, seed=1), pretrained=False, seed=1)
    photo_learn.freeze()
    assert equals_captum(photo_learn, 'body.10').maps.shape[2:] == (4, 4)


def test_middle_fusion_has_one_map():
    photo_learn = learner_for('squeezenet1_1+resnet18', dls_for((photos, photo_classes), bs=8, size=64, seed=1), pretrained=False,
        head='fastai', seed=1)
    assert grad_cam(photo_learn, 2).layer == 'body'
    assert grad_cam(photo_learn, 2, layer='resnet18').layer == 'body.bodies.resnet18'


def test_late_fusion_asks_which_body():
    photo_learn = learner_for('squeezenet1_1+resnet18', dls_for((photos, photo_classes), bs=8, size=64, seed=1), pretrained=False,
        how='late', seed=1)
    with pytest.raises(CourseError, match='body.bodies.squeezenet1_1'): grad_cam(photo_learn, 2)
    assert grad_cam(photo_learn, 2, layer='body.bodies.squeezenet1_1').maps.max() > 0


def test_transformer_has_no_default():
    model = model_for('vit_tiny_patch16_224', (3, 224, 224), 4, pretrained=False)
    with pytest.raises(CourseError, match='outputs tokens, not a feature map'):
        default_layer(model, layer_shapes(model, torch.rand(1, 3, 224, 224)))


def test_network_that_rests_by_itself(dls):
    "A body under `no_grad` in a module of the user's own, with functions between the modules"
    class Net(nn.Module):
        def __init__(self):
            super().__init__(); self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)), nn.Linear(8, 4)
        def forward(self, photos):
            with torch.no_grad(): photos = self.body(photos)
            return self.head(torch.relu(photos).mean((2, 3)))
    torch.manual_seed(1)
    photo_learn = Learner(dls, Net(), nn.CrossEntropyLoss())
    cam = grad_cam(photo_learn, 3, of=[0, 1, 2, 3], layer='body.0')
    assert cam.maps.shape == (4, 3, 38, 38)
    w, A = photo_learn.model.head.weight.detach(), photo_learn.model.body[0](image_batch(photo_learn, 3)[0]).detach()
    grad = w[:, None, :, None, None]*(A > 0)[None]/38**2
    torch.testing.assert_close(cam.maps, (grad.mean((3, 4), keepdim=True)*A[None]).sum(2).relu(), atol=1e-6, rtol=1e-4)
    with pytest.raises(CourseError, match='no gradient at the input'): saliency(photo_learn, 2)


def test_stock_learners_and_files(files):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(0.5, seed=1))
    dls = block.dataloaders(files, bs=4, num_workers=0)
    photo_learn = vision_learner(dls, resnet18, pretrained=False, normalize=False)
    cam = grad_cam(photo_learn, get_image_files(files)[:3])
    assert cam.of == ['predicted'] and cam.targets is None and cam.maps.shape[:2] == (1, 3)
    assert grad_cam(photo_learn, str(get_image_files(files)[0])).maps.shape[1] == 1
    assert grad_cam(photo_learn, PILImage.create(get_image_files(files)[0])).maps.shape[1] == 1
    assert grad_cam(photo_learn, dls.one_batch()).of == ['actual', 'predicted']
    cam.plot()
    (files/'broken.png').write_text('no image')
    with pytest.raises(CourseError, match='broken.png|cannot be read|can be read'): grad_cam(photo_learn, [files/'broken.png'])
    (files/'broken.png').unlink()
    with pytest.raises(CourseError, match='nowhere.png'): grad_cam(photo_learn, 'nowhere.png')
    with pytest.raises(CourseError, match='no actual class'): grad_cam(photo_learn, get_image_files(files)[:1], of='actual')


def test_image_file_with_our_learner(photo_learn, files):
    assert grad_cam(photo_learn, [files/'c0'/'0.png', files/'c1'/'1.png']).images.shape == (2, 3, 40, 40)


def test_plain_tensors_and_loss_of_pytorch():
    data = TensorDataset(torch.tensor(photos).float()/255, torch.tensor(photo_classes))
    photo_learn = Learner(DataLoaders.from_dsets(data, data, bs=8, num_workers=0), model_for('cnn', (3, 40, 40), 4, filters=4),
        nn.CrossEntropyLoss())
    assert grad_cam(photo_learn, 3).vocab == ['0', '1', '2', '3']


def test_one_output_for_two_classes():
    data = TensorDataset(torch.tensor(photos).float()/255, torch.tensor(photo_classes % 2)[:, None].float())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    photo_learn = Learner(DataLoaders.from_dsets(data, data, bs=8, num_workers=0), net, nn.BCEWithLogitsLoss())
    cam = grad_cam(photo_learn, 4, of=[0, 1])
    assert cam.maps.shape[:2] == (2, 4) and not torch.equal(cam.maps[0], cam.maps[1]) and cam.preds.shape == (4, 2)


class ChannelsLast(nn.Module):
    "A network with maps (h, w, C) inside, as Swin and ConvNeXt have them"
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.mix = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, 6)
        self.act, self.out = nn.GELU(), nn.Linear(6, 2)
    def forward(self, x): return self.out(self.act(self.mix(self.norm(self.stem(x).permute(0, 2, 3, 1)))).mean((1, 2)))


@pytest.fixture(scope='module')
def last_learn():
    "A learner of `ChannelsLast` on 24 noisy images of 16x8 pixels"
    set_seed(1)
    x = torch.rand(24, 3, 16, 8)
    sets = TensorDataset(x[:12], torch.arange(12) % 2), TensorDataset(x[12:], torch.arange(12) % 2)
    return Learner(DataLoaders.from_dsets(*sets, bs=12, num_workers=0), ChannelsLast(), nn.CrossEntropyLoss())


def test_channels_may_come_last(last_learn):
    table = layer_table(last_learn)
    assert table.channels.to_dict() == dict(stem='first', norm='last', mix='last', act='last', out='')
    x, model = last_learn.dls.valid.one_batch()[0], last_learn.model.eval()
    A = model.act(model.mix(model.norm(model.stem(x).permute(0, 2, 3, 1)))).detach().requires_grad_()
    g, = torch.autograd.grad(model.out(A.mean((1, 2)))[:, 1].sum(), A)
    cam = grad_cam(last_learn, 12, of=1)
    assert (cam.layer, cam.maps.shape) == ('act', (1, 12, 4, 2))
    assert torch.allclose(cam.maps[0], (g.mean((1, 2), keepdim=True)*A).sum(3).relu())
    rows = layer_activations(last_learn, ['stem', 'act']).features
    assert np.allclose(rows['act'], A.detach().mean((1, 2)), atol=1e-6) and rows['stem'].shape == (12, 6)


@pytest.mark.parametrize('arch, layer, shape, channels', [
    ('swin_t', 'features.1.0.attn', (8, 8, 96), 'last'), ('swin_t', 'features.3.1', (4, 4, 192), 'last'),
    ('swin_t', 'body.features', (1, 1, 768), 'last'), ('convnext_tiny', '1.0.block.3', (8, 8, 384), 'last'),
    ('convnext_tiny', '1.0.block', (96, 8, 8), 'first'), ('convnext_tiny', '2.0', (96, 8, 8), 'first')])
def test_layers_of_known_networks(arch, layer, shape, channels):
    with torch.device('meta'): model = model_for(arch, (3, 32, 32), 2, pretrained=False)
    found = layer_shapes(model, torch.rand(1, 3, 32, 32, device='meta'))
    name = next(k for k in found if k.endswith(layer))
    assert (found[name][1], channel_axes(found)[name]) == (shape, dict(first=0, last=-1)[channels])


positions = [2, np.int64(2), torch.tensor(2), [0, 1], (0, 1), range(2), np.array([0, 1], 'uint8'), torch.tensor([0, 1]),
             [np.int32(0), torch.tensor(1)], pd.Series([0, 1], index=['a', 'b']), pd.Index([0, 1]), np.array(2)]

@pytest.mark.parametrize('items', positions, ids=repr)
def test_whole_numbers_of_any_kind_are_positions(last_learn, items):
    assert torch.equal(image_batch(last_learn, items)[0], last_learn.dls.valid_ds.tensors[0][:2])


def test_top_losses_are_explained(last_learn):
    top = evaluate(last_learn).top_losses(5)['index']
    assert torch.equal(image_batch(last_learn, top)[0], last_learn.dls.valid_ds.tensors[0][list(top)])
    assert whole_numbers(top) == top.tolist()


no_positions = [1.5, float('nan'), [1.5], True, [True, False], np.array([True, False]), {1, 2}, [None], pd.DataFrame({'index': [1]}), []]

@pytest.mark.parametrize('items', no_positions, ids=repr)
def test_what_are_no_positions(last_learn, items):
    with pytest.raises(CourseError, match='items must be|positions in the valid part'): grad_cam(last_learn, items)


def test_grey_positions_and_heat():
    photo_learn = learner_for('cnn', dls_for((photos[:, 0], photo_classes), bs=8, seed=1), filters=4, seed=1)
    cam = grad_cam(photo_learn, [3, 0], of=[2])
    assert torch.equal(cam.targets, torch.as_tensor(photo_learn.dls.labels('valid'))[[3, 0]])
    assert cam.heat.shape == (1, 2, 40, 40) and 0 <= cam.heat.min() and cam.heat.max() <= 1
    assert 0 <= cam.images.min() and cam.images.max() <= 1
    torch.testing.assert_close(cam.images[0, 0], torch.tensor(photos[photo_learn.dls.valid_ds.items[3], 0])/255, atol=1.01/255, rtol=0)
    cam.plot(ncols=1)


def test_no_grad_outside_does_not_matter(photo_learn):
    with torch.no_grad(): a = grad_cam(photo_learn, 2).maps
    assert torch.equal(a, grad_cam(photo_learn, 2).maps)


def test_nothing_is_changed(photo_learn):
    photo_learn.model.train()
    photo_learn.model.body.block1.eval()
    photo_learn.model.head.out.weight.requires_grad_(False)
    before, numbers = modes_and_weights(photo_learn.model), torch.get_rng_state()
    grad_cam(photo_learn, 2, part='train'); saliency(photo_learn, 2)
    for bad in (dict(of=99), dict(of='zebra'), dict(layer='nothing'), dict(layer='head.out'), dict(items=torch.zeros(2, 5, 40, 40)),
        dict(items=[1000])):
        with pytest.raises(CourseError): grad_cam(photo_learn, **bad)
    assert modes_and_weights(photo_learn.model) == before and torch.equal(torch.get_rng_state(), numbers)
    photo_learn.model.head.out.weight.requires_grad_(True)


@pytest.mark.parametrize('kwargs, says', [(dict(of=4), '0 to 3'), (dict(of='5'), 'unknown class'), (dict(layer='body.blok1'),
    "Did you mean 'body.block1'"),
                                          (dict(items=[-1]), 'go from 0 to'),
                                          (dict(items=0), 'items must be a whole number of at least 1 or files, images or positions'),
                                          (dict(items=-3), 'got -3'), (dict(part='tset'), "unknown part 'tset'"),
                                          (dict(part='test'), 'no test part'),
                                          (dict(items=torch.zeros(2, 3, 40, 40, dtype=torch.uint8)), 'as floats')])
def test_explanations_of_bad_input(photo_learn, kwargs, says):
    with pytest.raises(CourseError, match=says): grad_cam(photo_learn, **kwargs)


def test_no_classes_and_no_images(dls):
    numbers = learner_for('cnn', dls_for((photos, photo_classes.astype(np.float32)), bs=8, seed=1), filters=4)
    with pytest.raises(CourseError, match='predicts numbers'): grad_cam(numbers)
    with pytest.raises(CourseError, match='predicts numbers'): saliency(numbers)
    rows = learner_for('mlp', dls_for((rng.normal(size=(40, 6)).astype(np.float32), photo_classes), bs=8, seed=1))
    with pytest.raises(CourseError, match='images'): grad_cam(rows)
    with pytest.raises(CourseError, match='no convolution'): grad_cam(learner_for('mlp', dls))
    assert saliency(learner_for('mlp', dls), 2).maps.shape == (2, 2, 40, 40)


def test_layer_table(photo_learn):
    table = layer_table(photo_learn)
    assert list(table.index[:2]) == ['body.block1.conv', 'body.block1.norm'] and table.index[-1] == 'head'
    assert table.feature_map.equals(table['shape'].map(is_feature_map))


def test_a_network_alone_is_refused():
    with pytest.raises(CourseError, match='learn must be a fastai `Learner`, with its data, got a Sequential'):
        grad_cam(nn.Sequential(nn.Conv2d(1, 2, 3)), 2)


# ---- Embedding -------------------------------------------------------------------------------

digit_images, digit_classes = (digits.images[:300, None]*15).astype(np.uint8), digits.target[:300]




@pytest.fixture(scope='module')
def digit_learn():
    digit_learn = learner_for('cnn', dls_for((digit_images, digit_classes), bs=32, valid=0.5, seed=1), filters=8, seed=1)
    with digit_learn.quiet(): digit_learn.fit(2, 0.01)
    return digit_learn


def test_features_are_what_the_layers_give(digit_learn):
    acts = layer_activations(digit_learn, ['input', 'block2', 'head.out'], n=40)
    dl = digit_learn.dls.valid.new(get_idxs=lambda: acts.index.tolist(), n=40, bs=40)
    images, labels = dl.one_batch()
    digit_learn.model.eval()
    with torch.no_grad(): maps, out = digit_learn.model.body[:2](images), digit_learn.model(images)
    np.testing.assert_allclose(acts.features['body.block2'], maps.mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(acts.features['head.out'], out, atol=1e-5)
    np.testing.assert_allclose(acts.features['input'], images.flatten(1), atol=1e-6)
    assert (acts.targets == labels.numpy()).all() and (acts.preds == out.argmax(1).numpy()).all()
    whole = layer_activations(digit_learn, 'block2', n=40, pool=False)
    np.testing.assert_allclose(whole.features['body.block2'], maps.flatten(1), atol=1e-5)


def test_draw_is_seeded_and_leaves_no_trace(digit_learn):
    digit_learn.model.train()
    digit_learn.model.body.block1.eval()
    modes, numbers, rows = [m.training for m in digit_learn.model.modules()], torch.get_rng_state(), len(digit_learn.history)
    a, b, c = (layer_activations(digit_learn, 'head.out', n=30, seed=s).index.tolist() for s in (1, 1, 2))
    assert a == b != c and a == sorted(set(a))
    with pytest.raises(CourseError): layer_activations(digit_learn, 'nothing')
    assert modes == [m.training for m in digit_learn.model.modules()] and torch.equal(numbers,
        torch.get_rng_state()) and rows == len(digit_learn.history)
    assert not any(m._forward_hooks for m in digit_learn.model.modules())


@pytest.mark.parametrize('part', ['train', 'valid'])
def test_all_of_a_small_part(digit_learn, part):
    acts = layer_activations(digit_learn, 'head.out', part=part)
    assert len(acts) == 150 and (acts.targets == digit_learn.dls.labels(part)).all()


def test_separability(digit_learn):
    acts = layer_activations(digit_learn)
    table = acts.separability()
    assert list(table.index) == ['input', 'body.block1', 'body.block2', 'body.block3', 'head.out']
    assert table.silhouette['head.out'] == pytest.approx(silhouette_score(acts.features['head.out'], acts.targets), abs=1e-6)
    assert ((0 <= table.probe) & (table.probe <= 1)).all() and table.equals(acts.separability())


def test_fisher_ratio_is_of_variances():
    rng = np.random.default_rng(0)
    digit_images, digit_classes = rng.normal(size=(60, 5)), np.arange(60) % 3
    def scatter(x): return ((x - x.mean(0))**2).sum()
    total, within = scatter(digit_images), sum(scatter(digit_images[digit_classes == c]) for c in range(3))
    assert fisher_ratio(digit_images, digit_classes) == pytest.approx((total - within)/within)
    assert fisher_ratio(np.array([[0.], [0.], [1.], [1.]]), np.array([0, 0, 1, 1])) == float('inf')
    assert np.isnan(fisher_ratio(np.ones((4, 2)), np.array([0, 0, 1, 1])))
    nan = np.array([[0.], [np.nan], [1.], [1.]])
    with pytest.raises(CourseError, match='NaN for 1 of 4 items'): fisher_ratio(nan, np.array([0, 0, 1, 1]))


def test_probe_is_not_tested_on_what_it_knows():
    rng = np.random.default_rng(0)
    digit_images, digit_classes = rng.normal(size=(90, 200)), rng.permutation(np.arange(90) % 2)
    assert probe_accuracy(digit_images, digit_classes) < 0.7
    assert probe_accuracy(digit_images + 3*digit_classes[:, None], digit_classes) > 0.95
    with pytest.raises(CourseError, match='folds must be a whole number of at least 2'): probe_accuracy(digit_images, digit_classes,
        folds=1)
    with pytest.raises(CourseError, match='rarest class has 2'): probe_accuracy(digit_images, np.array([0]*88 + [1]*2))


@pytest.mark.parametrize('method', ['tsne', 'pca'])
def test_picture_marks_what_is_wrong(digit_learn, method):
    acts = layer_activations(digit_learn, ['input', 'head.out'], n=150)
    fig = acts.plot(method)
    assert len(fig.axes) == 2 and 'silhouette' in fig.axes[0].get_title() and 'probe' in fig.axes[0].get_title()
    crosses = [o for o in fig.axes[1].collections if o.get_label() == 'predicted wrongly']
    assert len(crosses) == bool(acts.wrong.any()) and all(len(o.get_offsets()) == acts.wrong.sum() for o in crosses)


def test_same_call_same_picture(digit_learn):
    a, b = (layer_activations(digit_learn, ['block1', 'head.out'], n=60).embed('tsne') for _ in range(2))
    for k in a: assert np.array_equal(a[k][0], b[k][0])


@pytest.mark.parametrize('arch', ['mlp', 'residual', 'inception', 'all_conv', 'resnet18'])
def test_layers_of_any_network(arch):
    shape = (3, 32, 32)
    model = model_for(arch, shape, 4, **(dict(pretrained=False) if arch == 'resnet18' else {}))
    found = layer_shapes(model, torch.rand(2, *shape))
    names = main_layers(model, found)
    assert 2 <= len(names) <= 5 and len(set(names)) == len(names) and found[names[-1]][1][0] == 4
    assert names == [o for o in found if o in names]


def test_plain_torch_learner():
    data = TensorDataset(torch.tensor(digits.data[:120]).float()/16, torch.tensor(digit_classes[:120]))
    digit_learn = Learner(DataLoaders.from_dsets(data, data, bs=16, num_workers=0),
        nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), nn.CrossEntropyLoss())
    acts = layer_activations(digit_learn)
    assert list(acts.features) == ['input', '0', '2'] and len(acts) == 120
    plot_embedding(digit_learn, 'pca')


@pytest.mark.parametrize('kwargs, says', [(dict(layers='body.blok1'), "Did you mean 'body.block1'"), (dict(part='test'), 'no test part'),
    (dict(layers=[]), 'layers must be a name or a list of names'),
                                          (dict(n=1), 'n must be a whole number of at least 2'), (dict(n=10.5),
                                              'n must be a whole number of at least'),
                                          (dict(ncols=0, method='pca', n=30),
                                              'ncols must be a whole number of at least 1'), (dict(method='umap'), 'unknown method'),
                                          (dict(n=4), 'at least five')])
def test_embedding_of_bad_input(digit_learn, kwargs, says):
    with pytest.raises(CourseError, match=says): plot_embedding(digit_learn, **kwargs)


def test_a_network_alone_has_no_data(digit_learn):
    with pytest.raises(CourseError, match='learn must be a fastai `Learner`, with its data'): layer_activations(digit_learn.model)


def test_a_rare_class_has_a_picture_without_a_probe(digit_learn):
    acts = layer_activations(digit_learn, 'head.out', n=60)
    acts.targets[:] = [0]*58 + [1]*2
    assert np.isnan(acts.separability().probe.item()) and 'probe –' in acts.plot('pca').axes[0].get_title()


def test_no_classes():
    numbers = learner_for('cnn', dls_for((digit_images, digit_classes.astype(np.float32)), bs=8, seed=1), filters=4)
    with pytest.raises(CourseError, match='predicts numbers'): layer_activations(numbers)


def test_one_class(digit_learn):
    acts = layer_activations(digit_learn, 'head.out')
    acts.targets[:] = 3
    with pytest.raises(CourseError, match='all of one'): acts.separability()


# ---- Fast inference and export ---------------------------------------------------------------

def images(n=12, c=3, side=16, classes=2, seed=0):
    "Random images as bytes with labels, in memory"
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, c, side, side), dtype=np.uint8)), torch.arange(n) % classes


def seen(model, x):
    "`model` after its normalisations have seen something, in evaluation mode"
    torch.manual_seed(0)
    with torch.no_grad():
        model.train()(x)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d) and m.affine: m.weight.uniform_(0.5, 1.5); m.bias.uniform_(-0.5, 0.5)
    return model.eval()


def norms(model): return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
def copied_weights(model): return {k: v.clone() for k,v in model.state_dict().items()}
def error(a, b): return ((a - b).abs().max()/a.abs().max()).item()


def check_fold(model, left, x=None):
    "Folded, `model` answers the same and keeps `left` normalisations"
    x = torch.randn(3, 3, 12, 12) if x is None else x
    model = seen(model, x)
    was = copied_weights(model)
    quick = fold_batchnorm(model)
    with torch.no_grad(): assert error(model(x), quick(x)) < 1e-4
    assert norms(quick) == left
    assert all(torch.equal(v, was[k]) for k,v in model.state_dict().items()) and was.keys() == model.state_dict().keys()


# ---- equal answers -----------------------------------------------------------------------------

NETS = dict(mobilenet_v2=(3, 32), resnet18=(1, 32), mobilenetv3_small_050=(3, 32), cnn=(1, 28), mlp=(1, 28), residual=(3, 16),
    inception=(3, 16))
NETS['resnet18+squeezenet1_1'] = (3, 32)


@pytest.mark.parametrize('name', NETS)
def test_same_answers(name):
    c, side = NETS[name]
    torch.manual_seed(0)
    own = {} if name in ('cnn', 'mlp', 'residual', 'inception') else dict(pretrained=False)
    if name in ('cnn', 'residual', 'inception'): own = dict(norm='batch')
    x = torch.randn(5, c, side, side)
    model = seen(model_for(name, (c, side, side), 4, **own), x)
    was, mode = copied_weights(model), [m.training for m in model.modules()]
    quick = fast(model, x[:2])
    with torch.no_grad(): assert error(model(x), quick(x)) < 1e-4
    assert norms(model) == 0 or norms(quick) < norms(model)
    assert all(torch.equal(v, was[k]) for k,v in model.state_dict().items()) and mode == [m.training for m in model.modules()]
    assert not any(m._forward_hooks for m in model.modules())


def test_left_in_training_mode():
    model = model_for('cnn', (1, 28, 28), 3).train()
    fast(model, (1, 28, 28)), largest_map(model, torch.rand(2, 1, 28, 28)), compare_speed(dict(a=model), torch.rand(2, 1, 28, 28), rounds=1)
    assert model.training and all(m.training for m in model.modules()) and not any(m._forward_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_pieces_give_the_same(monkeypatch):
    model, x = seen(model_for('cnn', (3, 28, 28), 3, norm='batch'), torch.randn(8, 3, 28, 28)), torch.randn(11, 3, 28, 28)
    quick = fast(model, x)
    assert len(quick.pieces(x)) == 1
    monkeypatch.setattr(folding, '_largest', 1)
    assert [len(o) for o in quick.pieces(x)] == [4, 4, 3]
    with torch.no_grad(): assert error(model(x), quick(x)) < 1e-4


def test_rows_and_learner():
    "A table's rows have no pixels; a learner brings its own batch"
    model = nn.Sequential(nn.Linear(5, 3)).eval()
    x = torch.randn(4, 5)
    assert torch.allclose(fast(model, x)(x), model(x), atol=1e-6)
    byte_learn = learner_for('mlp', data='boston_housing', seed=1)
    assert isinstance(fast(byte_learn), FastNet)


def test_bf16_on_request():
    x = torch.randn(4, 3, 16, 16)
    model = seen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()), x)
    out = fast(model, x, bf16=True)(x)
    assert out.dtype == torch.float32 and 1e-5 < error(model(x), out) < 0.05 and model[0].weight.dtype == torch.float32


# ---- what may and may not be folded ------------------------------------------------------------

def pair(**kw): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **kw))


class Net(nn.Module):
    "A convolution and a normalisation, used as `how` says"
    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), how

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.how == 'twice': return self.norm(self.conv(y))
        if self.how == 'weights read': return y + nn.functional.conv2d(x, self.conv.weight, padding=1)
        if self.how == 'scale read': return y * self.norm.weight.view(1, 3, 1, 1)
        if self.how == 'decides' and y.sum() > 1e9: return x
        return y


@pytest.mark.parametrize('how, left', [('once', 0), ('twice', 1), ('weights read', 1), ('scale read', 1), ('decides', 1)])
def test_how_it_is_used(how, left): check_fold(Net(how), left)


def test_not_affine(): check_fold(pair(affine=False), 0)
def test_no_statistics(): check_fold(pair(track_running_stats=False), 1)
def test_no_bias_and_groups(): check_fold(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)), 0)


def test_shared_layers():
    "One convolution for two normalisations; one normalisation for two convolutions; weights that two layers share"
    conv, norm, act = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
    check_fold(nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)), 2)
    check_fold(nn.Sequential(nn.Conv2d(3, 3, 3), norm, nn.Conv2d(3, 3, 3), norm), 1)
    tied = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3))
    tied[2].weight = tied[0].weight
    check_fold(tied, 0)
    check_fold(nn.Sequential(act, conv, act, norm), 1)


class Decides(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
    def forward(self, x): return self.layers(x) if x.sum() < 1e9 else x


def test_in_parts():
    "A network that cannot be traced: the same activation before and after a convolution is no mere repetition"
    act = nn.ReLU()
    check_fold(Decides(act, nn.Conv2d(3, 3, 3), act, nn.BatchNorm2d(3)), 1)
    check_fold(Decides(act, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), act), 0)
    class Inner(Decides): pass
    check_fold(Decides(Inner(act, nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)), 0)


class Standardised(nn.Conv2d):
    "A convolution that standardises its weights at each call"
    def forward(self, x): return self._conv_forward(x, (self.weight - self.weight.mean())/self.weight.std(), self.bias)


@pytest.mark.parametrize('conv', [Standardised(3, 4, 3), spectral_norm(nn.Conv2d(3, 4, 3)), nn.ConvTranspose2d(3, 4, 3)],
    ids=['standardised', 'spectral', 'transposed'])
def test_other_convolutions_stay(conv): check_fold(nn.Sequential(conv, nn.BatchNorm2d(4)), 1)


@pytest.mark.parametrize('layer', [0, 1])
def test_hooked_layers_stay(layer):
    "What a hook sees stays what it was"
    model, x, got = pair(), torch.randn(3, 3, 12, 12), []
    seen(model, x)
    model[layer].register_forward_hook(lambda m, args, out: got.append((args[0], out)))
    quick = fold_batchnorm(model)
    assert norms(quick) == 1
    del got[:]
    model(x), quick(x)
    assert len(got) == 2 and all(torch.equal(a, b) for a,b in zip(*got))


# ---- what cannot be made fast ------------------------------------------------------------------

class Two(nn.Module):
    def forward(self, x): return x, x


def test_exports_of_bad_input():
    with pytest.raises(CourseError, match='one tensor, not a tuple'): fast(Two(), (3, 8, 8))
    with pytest.raises(CourseError, match='pass a batch x, or the shape'): fast(pair())
    with pytest.raises(CourseError, match='only answers'): fast(pair(), (3, 8, 8)).train()


def test_other_answers_are_refused(monkeypatch):
    "If folding went wrong, nobody would get the copy"
    def wrong(model):
        model = deepcopy(model)
        model[0].bias.data += 1
        return model
    monkeypatch.setattr(folding, 'fold_batchnorm', wrong)
    with pytest.raises(CourseError, match="can't be folded safely"): fast(pair(), (3, 8, 8))


# ---- export ------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def byte_learn(): return learner_for('cnn', data=images(c=1), norm='batch', bs=4, seed=1, filters=[4, 4], label_smoothing=0.1)


@pytest.fixture(scope='module')
def folder(byte_learn, tmp_path_factory): return export_folder(byte_learn, tmp_path_factory.mktemp('out')/'deep'/'net')


def test_smoothed_loss(byte_learn):
    net = pixel_net(byte_learn)
    assert torch.allclose(net(net.pixels), evaluate(byte_learn).preds, atol=1e-5) and net.settings['channels'] == 1


def test_sigmoid_loss():
    byte_learn = learner_for('cnn', data=images(), bs=4, seed=1, filters=[4, 4])
    model = nn.Sequential(byte_learn.model, nn.Linear(2, 1))
    binary = Learner(byte_learn.dls, model, loss_func=BCEWithLogitsLossFlat())
    net = pixel_net(binary)
    assert net(net.pixels).shape == (len(net.pixels), 2) and torch.allclose(net(net.pixels), evaluate(binary).preds, atol=1e-5)


def test_several_sizes_of_batch(byte_learn, tmp_path):
    file = export_onnx(byte_learn, tmp_path/'new'/'net.onnx')
    net = pixel_net(byte_learn)
    x = images(40, 1, seed=3)[0]
    for n in (1, 3, 40): assert np.allclose(run_onnx(file, x[:n]), net(x[:n]), atol=1e-4)
    assert onnx_settings(file) == json.loads(json.dumps(net.settings)) and os.listdir(file.parent) == ['net.onnx']
    with pytest.raises(CourseError, match='cannot run the program on pixels of shape'): run_onnx(file, x[:, :, 3:])
    odd = file.read_bytes().replace(b'"classes"', b'"cl\xa0sses"')
    with pytest.raises(CourseError, match='its settings are no text in UTF-8'): onnx_settings(odd)


def test_settings_are_readable(byte_learn, folder):
    d = json.loads((folder/'settings.json').read_text())
    assert d['classes'] == ['0', '1'] and (d['channels'], d['height'], d['width']) == (1, 16, 16) and len(d['mean']) == len(d['std']) == 1
    assert sorted(o.name for o in folder.iterdir()) == ['pictures.py', 'predict.py', 'program.pt2', 'settings.json', 'weights.safetensors']
    assert os.listdir(folder.parent) == ['net']


@pytest.fixture(scope='module')
def read_alone(folder, tmp_path_factory):
    "What the exported script says of six pictures: two that a viewer turns or converts, the two that it shows, and two more"
    note, root = Image.Exif(), tmp_path_factory.mktemp('pictures')
    note[0x0112] = 6
    Image.fromarray(np.linspace(0, 65535, 40*30).reshape(40, 30).astype(np.uint16)).save(root/'deep.png', exif=note)
    lab, color = ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB')).tobytes(), images(1, 3, 40)[0][0].permute(1, 2, 0).numpy()
    Image.fromarray(color, 'LAB').save(root/'lab.tif', icc_profile=lab)
    for o in ('deep.png', 'lab.tif'): open_picture(root/o).save(root/f'seen-{o}.png')
    Image.fromarray(color).save(root/'color.png')
    Image.fromarray(images(1, 1)[0][0, 0].numpy()).save(root/'fits.png')
    return run_alone(folder, [root/o for o in ('deep.png', 'lab.tif', 'seen-deep.png.png', 'seen-lab.tif.png', 'color.png', 'fits.png')])


def test_exported_script_reads_pictures_as_a_viewer_shows_them(read_alone):
    said = [{k: v for k,v in o.items() if k != 'file'} for o in read_alone]
    assert len({o['file'] for o in read_alone}) == 6 and said[:2] == said[2:4]


def test_exported_script_names_every_picture_that_cannot_be_read(folder, tmp_path, monkeypatch):
    (tmp_path/'empty.png').touch()
    Image.new('L', (9, 9)).save(tmp_path/'seen.png')
    for name in ('path', 'argv', 'dont_write_bytecode'): monkeypatch.setattr(sys, name, getattr(sys, name))
    sys.path, sys.argv = [*sys.path], ['predict.py', *(f'{tmp_path}/{o}.png' for o in ('empty', 'none', 'seen'))]
    with pytest.raises(SystemExit, match=r'empty.png is not an image that can be read \(empty\); .*none.png .*no such file'):
        runpy.run_path(str(folder/'predict.py'), run_name='__main__')
    del sys.modules['pictures']


def test_weights_build_the_network_again(byte_learn, folder):
    from safetensors.torch import load_file
    saved, have = load_file(folder/'weights.safetensors'), byte_learn.model.state_dict()
    assert saved.keys() == have.keys() and all(torch.equal(saved[k], v) for k,v in have.items())


def test_any_image_file(read_alone):
    "A colour image of another size, beside one that fits"
    for o in read_alone[4:]: assert o['answer'] in '01' and sum(o['probabilities'].values()) == pytest.approx(1, abs=1e-5)


def test_tampered_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path/'net')
    program = tmp_path/'net'/'program.pt2'
    program.write_bytes(program.read_bytes()[:2000])
    Image.fromarray(images(1, 1)[0][0, 0].numpy()).save(tmp_path/'b.png')
    with pytest.raises(CourseError, match='does not run by itself'): run_alone(tmp_path/'net', [tmp_path/'b.png'])


@pytest.mark.parametrize('content, why', [(None, 'is missing'), (b'no program', 'cannot read the program')])
def test_damaged_program(tmp_path, content, why):
    file = tmp_path/'net.onnx'
    if content: file.write_bytes(content)
    for f in (onnx_settings, lambda o: run_onnx(o, images(1, 1)[0])):
        with pytest.raises(CourseError, match=why): f(file)


def test_a_program_of_somebody_else_has_no_settings(monkeypatch):
    other = SimpleNamespace(get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}))
    monkeypatch.setattr('dlcourse.insight.inference._session', lambda program: other)
    with pytest.raises(CourseError, match='the program has no settings'): onnx_settings('net.onnx')


# ---- where an export fails nothing is left -----------------------------------------------------

def test_missing_package(byte_learn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(CourseError, match=r"needs onnxscript, which is not installed: pip install 'dlcourse\[export\]'"):
        export_onnx(byte_learn, tmp_path/'net.onnx')
    assert not os.listdir(tmp_path)


def test_existing_folder(byte_learn, tmp_path):
    (tmp_path/'net').mkdir()
    (tmp_path/'net'/'mine.txt').write_text('mine')
    with pytest.raises(CourseError, match='exists already'): export_folder(byte_learn, tmp_path/'net')
    assert os.listdir(tmp_path/'net') == ['mine.txt'] and os.listdir(tmp_path) == ['net']


def test_disk_error(byte_learn, tmp_path):
    for n in (100, 5000, 9000): # in the settings, the weights, the program
        with small_disk(n), pytest.raises(CourseError, match='cannot write .*net: File too'): export_folder(byte_learn, tmp_path/'net')
    assert not os.listdir(tmp_path)
    (tmp_path/'file').write_text('')
    with pytest.raises(CourseError, match='cannot write'): export_folder(byte_learn, tmp_path/'file'/'net')
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('write', [export_folder, export_onnx])
def test_wrong_program(byte_learn, tmp_path, monkeypatch, write):
    "A program that answers differently is not kept, and what was there stays"
    monkeypatch.setattr(inference, 'run_onnx', lambda program, x: np.zeros((len(x), 2)))
    monkeypatch.setattr(inference, 'run_alone', lambda folder, files: [dict(probabilities={'0': 0., '1': 0.}) for _ in files])
    monkeypatch.setattr(inference, '_onnx_bytes', lambda net: b'')
    monkeypatch.setattr(inference, '_exported', lambda *_, **__: None)
    monkeypatch.setattr(torch.export, 'save', lambda *_: None)
    (tmp_path/'old.onnx').write_text('old')
    with pytest.raises(CourseError, match='does not give what the learner gives'):
        write(byte_learn, tmp_path/('old.onnx' if write is export_onnx else 'net'))
    assert os.listdir(tmp_path) == ['old.onnx'] and (tmp_path/'old.onnx').read_text() == 'old'


class Stubborn(nn.Module):
    "A network that torch cannot export: it decides by what it sees"
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(256, 2)
    def forward(self, x): return self.out(x.flatten(1)) if x.sum() < 1e9 else self.out(-x.flatten(1))


def test_network_that_cannot_be_exported(byte_learn, tmp_path):
    with pytest.raises(CourseError, match='torch cannot export this network'):
        export_folder(Learner(byte_learn.dls, Stubborn(), loss_func=byte_learn.loss_func), tmp_path/'net')
    assert not os.listdir(tmp_path)


class Darker(BatchTransform):
    def __init__(self): super().__init__(train_only=False)
    def apply(self, x): return x * 0.5


def test_data_that_cannot_be_exported():
    x, y = images(c=1)
    dark = learner_for('cnn', data=(x, y), bs=4, filters=[4, 4], batch_tfms=[Darker()])
    with pytest.raises(CourseError, match='Darker.* changes validation images'): pixel_net(dark)
    with pytest.raises(CourseError, match='takes images as bytes'): pixel_net(learner_for('mlp', data='boston_housing'))
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(8, 1, 16, 16), y[:8]), 4)
    plain = Learner(DataLoaders(data, data), dark.model, loss_func=nn.CrossEntropyLoss())
    with pytest.raises(CourseError, match="don't say how pixels become its input"): pixel_net(plain)


def test_augmented_loader_is_exported_plain():
    byte_learn = learner_for('cnn', data=images(), bs=4, seed=1, filters=[4, 4], augment=True)
    net = pixel_net(byte_learn)
    assert torch.allclose(net(net.pixels), evaluate(byte_learn).preds, atol=1e-5)


@needs_data('weights')
def test_real_weights():
    x = torch.randn(4, 3, 96, 96)
    model = model_for('mobilenet_v2', (3, 96, 96), 10).eval()
    with torch.no_grad(): assert error(model(x), fast(model, x[:2])(x)) < 1e-4


# ---- Cost and image sizes --------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT/'results'/'benchmarks'/'resolution.json'
SHAPE = (1, 28, 28)


@pytest.fixture(scope='module')
def sized_learn(): return learner_for('cnn', n_per_class=10, seed=1, filters=4)


@pytest.fixture
def sized_batch(): return torch.rand(3, *SHAPE)


def hooks(model): return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
def hooks_and_modes(model): return hooks(model), [m.training for m in model.modules()]


# What a network costs

def test_flops_of_quantised_layers(capsys):
    "As many products as before quantising; those of recurrent layers are said to be missing"
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.LSTM(4, 6, batch_first=True)
        def forward(self, x): return self.b(self.a(x))[0]
    def quantised(*which):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return torch.ao.quantization.quantize_dynamic(Both(), {*which})
    x = torch.rand(2, 3, 8)
    assert flops_per_image(quantised(nn.Linear), x) == flops_per_image(Both(), x) > 2*3*8*4
    assert 'not counted' not in capsys.readouterr().out
    notice.cache_clear()
    assert flops_per_image(quantised(nn.Linear, nn.LSTM), x) == 2*3*8*4
    assert 'quantised recurrent layers are not counted' in capsys.readouterr().out


def test_flops_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4*6*6, 2))
    assert flops_per_image(net, torch.rand(5, 3, 8, 8)) == 2*(3*9)*4*36 + 2*144*2


def test_bytes_are_those_on_disk(tmp_path):
    net = model_for('cnn', SHAPE, 10, filters=4)
    torch.save(net.state_dict(), tmp_path/'w.pth')
    assert abs(saved_bytes(net) - (tmp_path/'w.pth').stat().st_size) < 1000 # The name of the file is in it


def test_cost_of_several(sized_batch):
    small, large = (model_for('cnn', SHAPE, 10, filters=o) for o in (2, 8))
    small[0].train(); small[1].eval()
    was = hooks_and_modes(small)
    table = cost(dict(small=small, large=large), sized_batch, runs=1)
    assert list(table.index) == ['small', 'large'] and hooks_and_modes(small) == was
    for o in ('parameters', 'bytes', 'flops'): assert table[o]['small'] < table[o]['large']
    assert (table.images == 3).all() and np.allclose(table.ms_each*3, table.ms)


def test_cost_of_a_learner_leaves_no_trace(sized_learn):
    torch.manual_seed(0); expected = torch.rand(3)
    torch.manual_seed(0); cost(sized_learn, runs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('what, sized_batch, says', [(nn.Linear(2, 2), None, 'not given'), (nn.Linear(2, 2), [1], 'accept'), (nn.Linear(2,
    2), torch.rand(0, 2), 'empty'),
                                           ('cnn', torch.rand(1, 2), 'model must be a')])
def test_cost_of_nothing(what, sized_batch, says):
    with pytest.raises(CourseError, match=says): cost(what, sized_batch)


def test_modes_come_back_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    with pytest.raises(KeyError), answering(net): raise KeyError
    assert [m.training for m in net.modules()] == [True, True, False]
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_latency_of_a_single_run():
    took = latency(nn.Linear(2, 2), torch.rand(4, 2), runs=1)
    assert 0 < took.low <= took.ms <= took.high and took.per_image == took.ms/4


# Sizes

def test_sizes_in_any_order(sized_learn):
    a, b = preds_at(sized_learn, [14, (20, 28), 28]), preds_at(sized_learn, [28, 14, (20, 28), 14])
    assert a.sizes == b.sizes == [(14, 14), (20, 28), (28, 28)] and torch.equal(a.preds, b.preds) and (np.diff(a.flops) > 0).all()


def test_table_of_pairs(sized_learn):
    table = at_sizes(sized_learn, [28, (28, 14)])
    assert list(table.index) == ['28×14', 28] and list(table) == ['accuracy', 'flops', 'ms']
    assert len(plot_sizes({'a': table, 'b': table}).axes) == 2


@pytest.mark.parametrize('sizes', [[], [0], [-28], [14.5], ['28'], [(28, 28, 3)], [(28, 0)], 28, None, [None]])
def test_bad_sizes(sized_learn, sizes):
    with pytest.raises(CourseError, match='sizes are a list of numbers of pixels or pairs'): preds_at(sized_learn, sizes)


def test_the_usual_size_is_what_evaluate_says(sized_learn):
    p, e = preds_at(sized_learn, [28], 'test'), evaluate(sized_learn, 'test')
    assert torch.equal(p.preds[0], e.preds) and p.accuracy[0] == pytest.approx(e.accuracy)


def test_resized_on_the_way_in(sized_learn):
    by_hand = evaluate(sized_learn, dl=sized_learn.dls.valid.new(after_batch=[*sized_learn.dls.valid.after_batch.fs, AtSize((20, 20))]))
    assert torch.allclose(preds_at(sized_learn, [20]).preds[0], by_hand.preds, atol=1e-5)


def test_a_loader_that_resizes_gives_original_pixels(sized_learn):
    small = sized_learn.dls.valid.new(after_batch=[AtSize((14, 14)), *sized_learn.dls.valid.after_batch.fs])
    assert next(iter(small))[0].shape[-1] == 14
    assert torch.allclose(preds_at(sized_learn, [28], dl=small).preds, preds_at(sized_learn, [28]).preds, atol=1e-5)


def test_nothing_stays_behind(sized_learn):
    sized_learn.model.eval() # as an evaluation leaves it, whichever test comes first
    was, weights = hooks_and_modes(sized_learn.model), {k: v.clone() for k,v in sized_learn.model.state_dict().items()}
    at_sizes(sized_learn, [14, 20])
    with pytest.raises(KeyError), resize_inputs(sized_learn.model, (14, 14)): raise KeyError
    assert hooks_and_modes(sized_learn.model) == was and all(torch.equal(v, weights[k]) for k,v in sized_learn.model.state_dict().items())


def test_nothing_stays_behind_after_a_refusal():
    flat = learner_for('cnn_v2', n_per_class=10, seed=1)
    was = hooks_and_modes(flat.model)
    with pytest.raises(CourseError, match='does not take 56×56'): at_sizes(flat, [28, 56])
    assert hooks_and_modes(flat.model) == was and at_sizes(flat, [28]).flops[28] > 0


# Networks that refuse

@pytest.mark.parametrize('arch, size, says', [
    ('cnn_v2', (56, 56), r'layer head\.dense1\.linear \(Linear\) has weights for 512 features and gets 2048, '
        r'since the feature map is flattened: any_size'),
    ('all_conv', (14, 14), r'layer head\.out \(Conv2d\) has a kernel of 4×4, and its input is only 2×2'),
    ('all_conv', (56, 56), 'gives 160 numbers for an image, not 10: an answer for each place of a map, which any_size averages')])
def test_the_layer_that_refuses_is_named(sized_batch, arch, size, says):
    net = model_for(arch, SHAPE, 10)
    was = hooks_and_modes(net)
    with pytest.raises(CourseError, match=says): check_size(net, sized_batch, size)
    assert hooks_and_modes(net) == was


class Fussy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
    def forward(self, sized_batch):
        sized_batch = self.conv(sized_batch)
        if sized_batch.shape[-1] != 28: raise AssertionError('28 pixels or nothing')
        return sized_batch.mean((2, 3))


def test_a_failure_outside_the_layers(sized_batch):
    "The layer that ran before is not to blame"
    with pytest.raises(CourseError, match='does not take 20×20 pixels: it fails: 28 pixels or nothing'):
        check_size(Fussy(), sized_batch, (20, 20))
    with pytest.raises(CourseError, match=r'its layer 1 \(Fussy\) fails'):
        check_size(nn.Sequential(nn.Identity(), Fussy()), sized_batch, (20, 20))


def test_cost_at_refuses_before_it_times(sized_batch):
    with pytest.raises(CourseError, match='does not take 56×56'): cost_at(model_for('cnn_v2', SHAPE, 10), sized_batch, [28, 56])


# What takes any size

@pytest.mark.parametrize('arch, others', [('cnn_base', [(14, 14), (40, 40), (20, 33)]), ('cnn_v2', [(14, 14), (40, 40), (20, 33)]),
    ('all_conv', [(40, 40), (28, 56)])])
def test_any_size_changes_nothing_at_the_usual_size(sized_batch, arch, others):
    net = model_for(arch, SHAPE, 10)
    was = hooks_and_modes(net)
    free = any_size(net, sized_batch)
    assert hooks_and_modes(net) == was and hooks(free) == 0
    assert {id(p) for p in free.parameters()} == {id(p) for p in net.parameters()}
    with answering(net), answering(free):
        assert torch.equal(free(sized_batch), net(sized_batch))
        for o in others: assert free(AtSize(o).apply(sized_batch)).shape == (3, 10)


def test_any_size_of_a_dense_network_shrinks_the_image(sized_batch):
    "What it flattens is the image itself"
    free = any_size(model_for('mlp', SHAPE, 10), sized_batch)
    with answering(free):
        assert torch.allclose(free(sized_batch.repeat_interleave(2, 2).repeat_interleave(2, 3)), free(sized_batch), atol=1e-5)


def test_any_size_without_a_flatten(sized_batch):
    with pytest.raises(CourseError, match='no Flatten layer'): any_size(nn.Conv2d(1, 2, 3), sized_batch)


def test_all_conv_has_no_dense_layer(sized_batch):
    "Exercise 6.4: convolutions, padding and reshape alone"
    net = model_for('all_conv', SHAPE, 10)
    kinds = {type(m) for m in net.modules() if not list(m.children())}
    assert kinds <= {nn.Conv2d, nn.ReLU, nn.Flatten} and nn.Conv2d in kinds
    assert not any(isinstance(m, (nn.Linear, nn.LazyLinear, nn.Bilinear)) for m in any_size(net, sized_batch).modules())
    assert {p.ndim for p in net.parameters()} == {1, 4} and net(sized_batch).shape == (3, 10)


# Training at other sizes and on parts

def test_random_size(sized_batch):
    tfm = RandomSize([14, (20, 28)], seed=1)
    assert {tuple(tfm.apply(sized_batch).shape) for _ in range(30)} == {(3, 1, 14, 14), (3, 1, 20, 28)}
    with pytest.raises(CourseError, match='sizes are a list'): RandomSize([0])


def test_random_part(sized_batch):
    assert torch.allclose(RandomPart(1., seed=1).apply(sized_batch), sized_batch, atol=1e-5)
    parts = RandomPart(seed=1).apply(sized_batch)
    assert parts.shape == sized_batch.shape and parts.min() >= sized_batch.min() - 1e-6 and parts.max() <= sized_batch.max() + 1e-6
    for o in (0, -1, 2):
        with pytest.raises(CourseError, match='least must be a number above 0 and up to 1'): RandomPart(o)


# The size that an image needs

class Rule:
    "Stands for a classifier: `probabilities` for each size of `classes_`, whatever the image"
    def __init__(self, classes, probabilities): self.classes_, self.p = np.array(classes), np.array(probabilities)
    def predict_proba(self, sized_batch): return self.p
    def __getitem__(self, i): return self
    @property
    def coef_(self): return np.zeros((len(self.classes_), 5))


@pytest.fixture
def three():
    "Three images, two classes, at three sizes that cost 10, 40 and 100 FLOPs: wrong, right, right; right at once; never right"
    a, b = [0.9, 0.1], [0.4, 0.6]
    return SizedPreds([(1, 1), (2, 2), (3, 3)], torch.tensor([[b, a, a], [a, a, a], [a, a, a]]), torch.tensor([0, 0, 1]),
        np.array([10, 40, 100]), torch.rand(1, 1, 3, 3))


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
        with pytest.raises(CourseError, match='trust must be a number from 0 to 1'): predictor.choose(np.zeros((1, 5)), o)


def test_second_look_costs_both(three):
    right, flops = look_twice(three, 0.7)
    assert flops.tolist() == [110, 10, 10] and right.tolist() == [True, True, False]


def test_mixture_is_the_best_one():
    flops, accuracy = [1., 3., 5., 9.], [0.5, 0.4, 0.9, 0.8]
    assert np.allclose(best_mixture(3., flops, accuracy), [0.5, 0, 0.5, 0]) and np.allclose(best_mixture(9., flops, accuracy), [0, 0, 1, 0])
    assert np.allclose(best_mixture(1., flops, accuracy), [1, 0, 0, 0])


def test_predictor_end_to_end(sized_learn):
    sizes = [10, 28]
    predictor = train_size_predictor(sized_learn, sizes)
    judged = compare_size_rules(sized_learn, predictor, 'test', trusts=(0.5, 0.9))
    p = preds_at(sized_learn, sizes, 'test')
    assert predictor.flops == 2*64 and thumbnails(sized_learn, 'test').shape == (len(p.targets), 64)
    assert judged.loc[('fixed', 28)].accuracy == pytest.approx(p.accuracy[1]) and np.allclose(judged.mflops['fixed']*1e6, p.flops)
    assert judged.accuracy['oracle'].item() == judged.accuracy.max()
    assert (judged.mflops['predicted']*1e6 >= p.flops[0] + predictor.flops - 1e-6).all()
    assert plot_size_rules(judged).axes


def test_nothing_to_predict(sized_learn):
    with pytest.raises(CourseError, match='nothing to predict: 28 pixels are enough'): train_size_predictor(sized_learn, [28])


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
        if 'mean' in row:
            assert np.allclose(row['mean'], np.mean([o['accuracy'] for o in row['runs']], 0),
                atol=1e-3) and len(row['mean']) == len(row['sizes']) == len(row['flops'])


def test_page_shows_the_recorded_run():
    made = json.loads(RECORD.read_text(encoding='utf-8'))['provenance']['date']
    page = next((ROOT/'nbs'/'insight').glob('*_resolution.ipynb'))
    shown = json.dumps([c.outputs for c in read_nb(page).cells if c.cell_type == 'code'])
    assert made in shown, f'run it again: nbdev-test {page.relative_to(ROOT)} --save'


# ---- Similarity --------------------------------------------------------------------------------

def features(n, *shape, seed=0): return np.random.default_rng(seed).normal(size=(n, *shape))


def reference_cka(x, y, unbiased):
    "Linear CKA from whole matrices, in 64 bits: Song et al. 2012 as it is printed"
    def hsic(K, L):
        n, one = len(K), np.ones(len(K))
        if not unbiased:
            H = np.eye(n) - 1/n
            return np.trace(K @ H @ L @ H)/(n - 1)**2
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        return (np.trace(K @ L) + one @ K @ one*(one @ L @ one)/(n - 1)/(n - 2) - 2/(n - 2)*(one @ K @ L @ one))/n/(n - 3)
    K, L = x @ x.T, y @ y.T
    return hsic(K, L)/np.sqrt(hsic(K, K)*hsic(L, L))


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize('n,p,q', [(40, 3, 5), (12, 80, 60), (30, 4, 200), (4, 2, 2)])
def test_cka_is_the_printed_one(n, p, q, unbiased):
    x, y = features(n, p) + 2, features(n, q, seed=1) + features(n, 1)
    assert alignment.cka(x, y, unbiased=unbiased) == pytest.approx(reference_cka(x, y, unbiased), abs=1e-8)


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize('n,widths', [(150, (3, 40, 200, 70)), (70, (3, 5, 2)), (130, (9, 900)), (4, (2, 3))])
def test_all_pairs_at_once(n, widths, unbiased):
    xs = {str(d): features(n, d, seed=d) + features(n, 1) for d in widths}
    found = alignment.cka_matrix(xs, unbiased=unbiased)
    printed = [[reference_cka(x, y, unbiased) for y in xs.values()] for x in xs.values()]
    assert np.allclose(found.values, printed, rtol=0, atol=1e-8)
    other = {'constant': np.full((n, 5), 0.1), **dict(list(xs.items())[:1])}
    between = alignment.cka_matrix(xs, other, unbiased=unbiased)
    assert list(between) == list(other) and np.allclose(between.iloc[:, 1], found.iloc[:, 0]) and (between.constant == 0).all()


@pytest.mark.parametrize('xs,ys,message', [
    (dict(a=features(5, 2)), dict(b=features(6, 2)), 'x has 5 rows, y 6'),
    (dict(a=features(5, 2)*np.nan), None, 'a must be finite numbers; row 0'),
    (dict(a=features(3, 2)), None, 'at least 4 examples, got 3'), ({}, None, 'at least one layer')])
def test_layers_that_cannot_be_compared(xs, ys, message):
    with pytest.raises(CourseError, match=message): alignment.cka_matrix(xs, ys)


@pytest.mark.parametrize('measure', [alignment.cka, alignment.procrustes, alignment.svcca])
def test_turned_and_scaled_features_are_the_same(measure):
    x, y = features(50, 6), features(50, 4, seed=1)
    turn = np.linalg.qr(features(6, 6))[0]
    assert measure(x, y) == pytest.approx(measure(1e3*x @ turn + 7, y), abs=1e-10)
    assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-10) and measure(x, x) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize('kernel', ['linear', 'rbf'])
@pytest.mark.parametrize('sizes', [[64, 64, 1], [64, 3], [2, 2, 2], [3, 64], [1]*9])
def test_short_batches_are_joined(sizes, kernel):
    x = features(sum(sizes), 8)
    y, ends = x[:, :4]**2 + x[:, 4:], np.cumsum(sizes)
    found = alignment.minibatch_cka(((x[e-n:e], y[e-n:e]) for e,n in zip(ends, sizes)), kernel)
    assert np.isfinite(found) and found == pytest.approx(alignment.cka(x, y, kernel=kernel), abs=0.5)


@pytest.mark.parametrize('measure', [alignment.cka, alignment.procrustes, alignment.svcca])
def test_a_layer_that_says_nothing_is_like_no_other(measure):
    x, constant = features(20, 3), np.full((20, 5), 0.1)
    assert measure(x, constant) == measure(constant, constant) == 0
    assert measure(x, np.c_[x, np.zeros(20)]) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize('x,y,message', [
    (features(5, 2), features(6, 2), 'x has 5 rows, y 6'), (features(5, 2), features(5, 2)*np.nan, 'y must be finite numbers; row 0'),
    (features(5), features(5), 'a row of features for each example'), (features(3, 2), features(3, 2), 'at least 4 examples, got 3')])
def test_features_that_cannot_be_compared(x, y, message):
    with pytest.raises(CourseError, match=message): alignment.cka(x, y)


def test_no_batch_is_no_similarity():
    with pytest.raises(CourseError, match='got none'): alignment.minibatch_cka([])
    with pytest.raises(CourseError, match='got 2'): alignment.minibatch_cka([(features(2, 3), features(2, 3))])


def test_a_layer_called_twice_is_two_entries():
    learn = tensor_learner()
    learn.model = Twice()
    state, calls = torch.get_rng_state(), ['conv1', 'relu@1', 'conv2', 'relu@2']
    found = similar.similarity(learn, layers=calls, n=30)
    kept = layer_outputs(learn.model, torch.stack([learn.dls.valid.dataset[i][0] for i in draw_indices(learn, 'valid', 30, 42)]))
    for a in calls:
        for b in calls:
            x, y = (kept[o].flatten(1).double().numpy() for o in (a, b))
            assert found.values.loc[a, b] == pytest.approx(reference_cka(x, y, True), abs=1e-6)
    assert torch.equal(torch.get_rng_state(), state) and not any(m._forward_hooks for m in learn.model.modules())


def test_similarity_of_a_network_with_itself_leaves_no_trace():
    learn = tensor_learner()
    learn.model = Twice().train()
    assert similar.similarity(learn, learn, n=30).matched() > 0 and torch.is_grad_enabled() and learn.model.training


def test_sums_over_batches_come_near_the_whole(monkeypatch):
    learn = tensor_learner()
    learn.model = Twice()
    whole = similar.similarity(learn)
    monkeypatch.setattr(similar, 'CAP', 1000)
    monkeypatch.setattr(similar, 'BATCH', 64)
    parts = similar.similarity(learn)
    assert parts.batches > 1 == whole.batches and np.allclose(parts.values, whole.values, atol=0.05)
    with pytest.raises(CourseError, match='take pool=True'): similar.similarity(learn, measure='svcca')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_a_transformer_and_half_precision(dtype):
    import timm
    net = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=16, depth=2, embed_dim=24, num_heads=2, num_classes=2).to(dtype)
    learn = Learner(dls_for((photos, photo_classes), bs=8, seed=1, size=32), net, loss_func=F.cross_entropy)
    if dtype == torch.float32: assert np.allclose(np.diag(similar.similarity(learn, layers=['blocks.0', 'blocks.1', 'norm']).values), 1)
    else:
        with pytest.raises(CourseError, match='does not accept a batch'): similar.similarity(learn)


# ---- Layers put back and taken out -------------------------------------------------------------

def everything(learn):
    "All that a study must leave as it was"
    tensors = [v.clone() for v in learn.model.state_dict().values()]
    return tensors, [m.training for m in learn.model.modules()], [p.requires_grad for p in learn.model.parameters()], torch.get_rng_state()


def same(a, b):
    return all(torch.equal(x, y) for x,y in zip(a[0], b[0])) and a[1:3] == b[1:3] and torch.equal(a[3], b[3])


@pytest.fixture(scope='module')
def residual():
    "A small residual network with batch norm, and its kept weights"
    learn, kept = learner_for('residual', dls_for('digits', n_per_class=20, seed=1), filters=[8, 8], seed=1), KeepWeights()
    with learn.quiet(): learn.fit(2, 0.01, cbs=kept)
    return learn, kept


@pytest.mark.parametrize('study', ['robustness', 'lesions', 'gradients'])
@pytest.mark.parametrize('error', [None, KeyboardInterrupt, ValueError])
def test_a_study_leaves_no_trace(residual, monkeypatch, study, error):
    learn, kept = residual
    monkeypatch.setattr('dlcourse.insight.robustness.Judge.accuracy', raised_at_second(error) if error else Judge.accuracy)
    loss = learn.loss_func
    if error: monkeypatch.setattr(learn, 'loss_func', lambda *a: (_ for _ in ()).throw(error()))
    run = dict(robustness=lambda: layer_robustness(learn, kept, n=20), lesions=lambda: lesions(learn, blocks=residual_blocks(learn), n=20),
               gradients=lambda: gradient_norms(learn))[study]
    before = everything(learn)
    if error:
        with pytest.raises(error): run()
    else: assert len(run().values)
    assert same(before, everything(learn)) and not any('forward' in vars(m) for m in learn.model.modules())
    learn.loss_func = loss


def test_several_numbers_of_blocks_at_once():
    learn = learner_for('block_net', dls_for('digits', n_per_class=20, seed=1), blocks=3, filters=4, seed=1)
    found = lesions(learn, [1, 2], n=20).values
    assert found.k.tolist() == [1]*3 + [2]*3
    assert found[found.k == 2].accuracy.tolist() == lesions(learn, 2, n=20).values.accuracy.tolist()
    for k in ([0, 1], [], [4]):
        with pytest.raises(CourseError, match='k must be a whole number'): lesions(learn, k, n=20)


def raised_at_second(error):
    "An `accuracy` that fails in the middle of a study"
    calls = []
    def accuracy(self):
        calls.append(1)
        if len(calls) > 1: raise error
        return 0.5
    return accuracy


def test_put_back_to_the_end_is_the_network_itself(residual):
    learn, kept = residual
    found = layer_robustness(learn, kept, [0, 2], n=200)
    assert np.allclose(found.values[2], found.accuracy) and found.accuracy == pytest.approx(evaluate(learn).accuracy)
    assert list(found.values.index) == weight_layers(learn)


def vit():
    import timm
    return timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=16, depth=3, embed_dim=24, num_heads=2, num_classes=4)


@pytest.mark.parametrize('net,expected', [
    (lambda: resnet18(num_classes=4), ['layer1.0', 'layer1.1', 'layer2.1', 'layer3.1', 'layer4.1']),
    (vit, ['blocks.0', 'blocks.1', 'blocks.2'])])
def test_blocks_of_other_libraries(dls, net, expected):
    assert residual_blocks(Learner(dls_for((photos, photo_classes), bs=8, seed=1, size=32), net(), loss_func=F.cross_entropy)) == expected


def test_a_learning_rate_search_keeps_no_weights():
    learn, kept = tensor_learner(), KeepWeights()
    learn.add_cb(kept)
    with learn.quiet(): learn.get_preds(); learn.lr_find(num_it=5, show_plot=False)
    assert kept.epochs == []
    quiet(learn, 2)
    quiet(learn, 1)
    assert kept.epochs == [0, 1, 2, 3]


# ---- Loss landscape ----------------------------------------------------------------------------

def test_a_filter_of_a_direction_is_as_long_as_that_of_the_network(residual):
    d = random_direction(residual[0].model, 3)
    for k,p in residual[0].model.named_parameters():
        if p.ndim < 2: assert not d[k].any()
        else: assert torch.allclose(d[k].flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1), atol=1e-5)


def test_scaled_filters_have_the_same_landscape():
    "Batch norm undoes the scale of the filters before it, and filter normalisation takes that into account"
    def line(scale):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                            nn.Linear(144, 10))
        net[1].weight.data.mul_(scale)
        learn = tensor_learner()
        learn.model = net
        return loss_line(learn, points=5, n=50, batchnorm='batch', progress=False).values.loss
    assert np.allclose(line(1), line(10), rtol=1e-3)


@pytest.mark.parametrize('study', [lambda o, k: loss_line(o, points=3, n=20),
                                   lambda o, k: loss_surface(o, points=2, n=20, batchnorm='batch'),
                                   lambda o, k: trajectory(o, k, points=2, n=20)])
@pytest.mark.parametrize('fails', [False, True])
def test_a_landscape_leaves_no_trace(residual, monkeypatch, study, fails):
    learn, kept = residual
    before, calls = everything(learn), []
    if fails:
        def interrupted(*args):
            calls.append(1)
            if len(calls) > 1: raise KeyboardInterrupt
            return torch.tensor(1.)
        monkeypatch.setattr(learn, 'loss_func', interrupted)
        with pytest.raises(KeyboardInterrupt): study(learn, kept)
    else: assert 'examples' in repr(study(learn, kept))
    assert same(before, everything(learn))


def test_the_ends_of_a_line_are_the_networks(residual):
    learn, kept = residual
    line = loss_line(learn, kept.state(0), points=2, n=10**6, progress=False).values.loss
    assert line[0] == pytest.approx(evaluate(learn).loss, rel=1e-4)
    with unchanged(learn.model) as model:
        model.load_state_dict(kept.state(0))
        assert line[1] == pytest.approx(evaluate(learn).loss, rel=1e-4)


def test_a_landscape_of_numbers():
    learn = tensor_learner(targets=x[:, :2], n_out=2, loss=F.mse_loss, metrics=[])
    expected = F.mse_loss(learn.model(x[400:]), x[400:, :2]).item()
    assert loss_line(learn, points=3, progress=False).values.loss[1] == pytest.approx(expected, rel=1e-5)


# ---- Calibration -------------------------------------------------------------------------------

@pytest.mark.parametrize('bins', [1, 10, 15])
@pytest.mark.parametrize('classes', [2, 7])
def test_calibration_is_that_of_torchmetrics(bins, classes):
    from torchmetrics.functional.classification import multiclass_calibration_error
    torch.manual_seed(bins)
    p, y = (3*torch.randn(300, classes)).softmax(1), torch.randint(0, classes, (300,))
    found = calibration(p, y, bins=bins)
    for norm,own in dict(l1=found.ece, max=found.mce).items():
        assert own == pytest.approx(multiclass_calibration_error(p, y, classes, bins, norm).item(), abs=1e-6)


def test_a_temperature_that_is_known_is_found():
    torch.manual_seed(1)
    z = 2*torch.randn(20_000, 5)
    y = torch.distributions.Categorical(logits=z).sample()
    assert best_temperature(z.softmax(1), y) == pytest.approx(1, abs=0.03)
    assert best_temperature((3*z).softmax(1), y) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize('p,y,message', [
    (torch.full((4, 2), 0.7), torch.zeros(4), 'apply softmax'), (torch.full((4, 2), 0.5), torch.zeros(3), 'for each of the 3 targets'),
    (torch.full((4, 2), 0.5), torch.tensor([0, 1, 2, 0]), 'class numbers from 0 to 1'),
    (torch.full((4, 2), float('nan')), torch.zeros(4), 'apply')])
def test_what_is_no_probability(p, y, message):
    with pytest.raises(CourseError, match=message): calibration(p, y.long())


def test_two_classes_from_one_probability():
    p = torch.rand(50, 1)
    y = torch.randint(0, 2, (50,))
    assert calibration(p, y).ece == pytest.approx(calibration(torch.cat([1 - p, p], 1), y).ece)


# Computational graphs -------------------------------------------------------

@pytest.mark.parametrize('f, values', [
    (lambda a, b, c: 2*(a - b) + c, dict(a=3, b=1, c=5)),
    (lambda x, w, b: x @ w + b, dict(x=[1, 2, 3], w=[0.5, -1, 2], b=1)),
    (lambda x, w, b: x @ w + b, dict(x=torch.rand(2, 3), w=torch.rand(3, 4), b=torch.rand(4))),
    (lambda x, m, s, g, d: (x - m)/s*g + d, dict(x=[1, 2, 6], m=3, s=2, g=[1, 2, 3], d=1)),
    (lambda a: a*a*a, dict(a=2)),
    (lambda a: 1 - a/2 + 3**a + 1/a, dict(a=2)),
    (lambda x: (x.clone().mul_(2)[0]*x[1]).exp(), dict(x=[1, 2])),
    (lambda x: torch.stack([p*q for p,q in zip(x.unbind(), x.flip(0).unbind())]), dict(x=[1, 2, 3])),
    (lambda x: x.relu().sum() + x.T.contiguous().view(-1)[0], dict(x=[[1., -2.], [3., 4.]])),
    (lambda x, y: F.cross_entropy(x, y), dict(x=torch.rand(2, 3), y=torch.tensor([0, 2]))),
    (lambda a: a, dict(a=[1, 2]))])
def test_sum_over_paths_is_autograd(f, values):
    graph = graph_of(f, **values)
    sums = totals(graph)
    for o in graph.inputs:
        by_paths, by_autograd = path_sum(graph, o.name), autograd_derivative(graph, o.name)
        assert by_paths.shape == by_autograd.shape == (*graph.output.shape, *o.shape)
        assert torch.allclose(by_paths, by_autograd, rtol=1e-5) and by_autograd.abs().sum() > 0
        assert torch.allclose(sums[o].reshape(by_autograd.shape), by_autograd, rtol=1e-5)


def test_graph_of_an_unused_input():
    graph = graph_of(lambda a, b: 2*a, a=1, b=3)
    assert path_sum(graph, 'b').item() == autograd_derivative(graph, 'b').item() == 0 and count_paths(graph, 'b') == 0
    assert len(path_table(graph, 'b')) == 2 and len(draw_graph(graph, 'b').patches) == 6
    plt.close('all')


def test_graph_keeps_the_value_from_before_a_change_in_place():
    graph = graph_of(lambda x: x.mul(3).add_(1).mul_(2), x=1)
    assert [o.value.item() for o in graph.vertices if o.op not in ('input', 'constant')] == [3, 4, 8]


def test_graph_of_a_network_has_its_parameters():
    net = nn.Linear(2, 1).double()
    graph = graph_of(lambda x: net(x), x=[[1., 2.]])
    assert {o.name for o in graph.inputs} == {'x', 'leaf 1', 'leaf 2'}


@pytest.mark.parametrize('f, values, message', [
    (lambda a: a.detach()*2, dict(a=1), 'depends on none of a'), (lambda a: a.mul_(2), dict(a=1), 'clone'),
    (lambda a: a*2, dict(b=1), 'names of the expression'), (lambda a: 3, dict(a=1), 'must return a tensor'),
    (lambda a: {}, dict(a=1), 'must return a tensor'), (lambda a: a*2, dict(a='one'), 'a must be a number'),
    (lambda a: a*2, dict(a=torch.tensor(1j)), 'a must be real'), (lambda a: a[:, None]*a, dict(a=torch.ones(200)), 'smaller tensors')])
def test_graphs_refused(f, values, message):
    with pytest.raises(CourseError, match=message): graph_of(f, **values)


def test_graph_that_autograd_refuses():
    def spoiled(a):
        h = a*2
        y = h.exp()
        y.mul_(3)
        return y*h
    with pytest.raises(CourseError, match='autograd refuses'): graph_of(spoiled, a=1)


def test_unknown_vertex_and_too_many_paths():
    def ladder(b):
        for _ in range(12): b = b.sin() + b.cos()
        return b
    graph = graph_of(ladder, b=1)
    with pytest.raises(CourseError, match='unknown vertex'): path_sum(graph, 'z')
    with pytest.raises(CourseError, match='4,096 paths'): paths(graph, 'b')
    with pytest.raises(CourseError, match='hard to read'): draw_graph(graph, most=20)


def test_boxes_of_a_graph_are_apart():
    graph = graph_of(lambda a, b, c, d: (a*b + c*d)*(a - d) + b/c, a=1, b=2, c=3, d=4)
    ax = draw_graph(graph, 'a', with_totals=True)
    boxes = [o.get_bbox() for o in ax.patches if hasattr(o, 'get_bbox')]
    assert len(boxes) == len(graph.vertices) and not [1 for p,q in combinations(boxes, 2) if p.overlaps(q)]
    plt.close('all')


def test_a_graph_that_grows_downwards_has_boxes_apart_and_ends_below():
    graph = graph_of(lambda a, b, c, d: (a*b + c*d)*(a - d) + b/c, a=1, b=2, c=3, d=4)
    ax = draw_graph(graph, 'a', with_totals=True, down=True)
    boxes = [o.get_bbox() for o in ax.patches if hasattr(o, 'get_bbox')]
    assert len(boxes) == len(graph.vertices) and not [1 for p,q in combinations(boxes, 2) if p.overlaps(q)]
    assert boxes[graph.vertices.index(graph.output)].y0 == min(o.y0 for o in boxes)
    wide = draw_graph(graph, 'a').figure.get_size_inches()
    assert ax.figure.get_size_inches()[1] > wide[1]
    plt.close('all')
# ---- surrogates of a search ----

@pytest.fixture(scope='module')
def hill():
    "A space, and sixty points of a smooth function of it"
    rng, space = np.random.default_rng(0), dict(lr=(1e-4, 1., 'log'), opt=['sgd', 'adam'])
    t = pd.DataFrame(dict(lr=10**rng.uniform(-4, 0, 60), opt=rng.choice(['sgd', 'adam'], 60)))
    return space, t.assign(value=0.1*(t.opt == 'adam') - (np.log10(t.lr) + 2)**2, state='complete')


def test_each_point_is_predicted_once_by_a_model_that_has_not_seen_it(hill):
    space, table = hill
    unseen = sg.predict_unseen(table, space, 'linear')
    assert unseen.split.value_counts().tolist() == [12]*5 and unseen.measured.equals(table.value)
    changed = table.assign(value=table.value.where(table.index != 7, 99.))
    again = sg.predict_unseen(changed, space, 'linear')
    assert again.predicted[7] == unseen.predicted[7] and (again.predicted != unseen.predicted).sum() == 48


def test_incomplete_points_teach_nothing(hill):
    space, table = hill
    more = pd.concat([table, table.head(3).assign(state='pruned', value=50.), table.head(1).assign(value=np.nan)], ignore_index=True)
    assert sg.measured_points(more).equals(table)
    a, b = (sg.fit_surrogate(t, space, 'linear').predict(table) for t in (table, more))
    assert (a == b).all()


def test_surrogates_refuse_what_is_outside_the_space(hill):
    space, table = hill
    with pytest.raises(CourseError, match='lr=2.0 is outside the range'): sg.encode_settings(table.assign(lr=2.), space)
    with pytest.raises(CourseError, match='column of the table'): sg.encode_settings(table.drop(columns='opt'), space)
    with pytest.raises(CourseError, match='at least 5 measured points, got 0'): sg.fit_surrogate(table.assign(state='failed'), space)


# ---- Figures are what they say ---------------------------------------------------------------

def one_epoch_away(loss, y, n_out=3):
    "A fastai Learner of one linear layer on 40 rows"
    sets = TensorDataset(x[:24], y[:24]), TensorDataset(x[24:40], y[24:40])
    torch.manual_seed(1)
    return Learner(DataLoaders.from_dsets(*sets, bs=7, device='cpu'), nn.Linear(64, n_out), loss)


def test_operations_of_attention_are_counted():
    x = torch.randn(2, 10, 32)
    net = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    per_token = 2*(4*32*32 + 2*32*64)
    assert flops_per_image(net, x) == 10*per_token + 2*2*10*10*32
    class Recurrent(nn.Module):
        def __init__(self): super().__init__(); self.lstm = nn.LSTM(32, 16, batch_first=True)
        def forward(self, x): return self.lstm(x)[0]
    assert flops_per_image(Recurrent(), x) == 2*10*4*16*(32 + 16)
    assert torch.backends.mha.get_fastpath_enabled() and torch.backends.mkldnn.enabled


def test_a_monitor_that_is_named_decides():
    learn = learner_for('mlp', data=(x[:40].numpy(), y[:40].numpy()), bs=8)
    learn.rows = [dict(epoch=i, train_loss=1 - i, valid_loss=v, accuracy=a) for i,(v,a) in enumerate([(2, 0.1), (1, 0.2), (3, 0.9)])]
    learn.best_epoch = 1
    assert [best_epoch(learn, o) for o in (None, 'valid_loss', 'accuracy', 'train_loss')] == [1, 1, 2, 2]
    assert compare(dict(a=learn), monitor='accuracy').best_epoch['a'] == 2


@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(weight=torch.tensor([1., 9., 0.1])), nn.CrossEntropyLoss(ignore_index=1),
                                  nn.CrossEntropyLoss(reduction='sum')])
def test_the_middle_of_a_landscape_is_the_loss(monkeypatch, loss):
    learn = one_epoch_away(loss, torch.arange(600) % 3)
    monkeypatch.setattr('dlcourse.insight.landscape.read_part', partial(read_part, bs=5))
    assert loss_line(learn, points=3, progress=False).values.loss[1] == pytest.approx(evaluate(learn).loss, rel=1e-6)


class OneProbability(nn.Module):
    def __init__(self): super().__init__(); self.linear = nn.Linear(64, 1)
    def forward(self, x): return self.linear(x).sigmoid()


def bce(p, y): return F.binary_cross_entropy(p[:, 0], y)

def bce_of_logits(p, y): return F.binary_cross_entropy_with_logits(p[:, 0], y)


def test_one_probability_is_decided_at_one_half():
    learn = one_epoch_away(bce, (torch.arange(600) % 2).float(), 1)
    learn.model = OneProbability()
    ev = evaluate(learn)
    assert (layer_activations(learn, 'linear').preds == ev.decoded.numpy()).all() and (ev.decoded == 0).any()
    learn.model, learn.loss_func = learn.model.linear, bce_of_logits
    learn.loss_func.__name__ = 'bce'
    assert torch.allclose(evaluate(learn).preds, ev.preds) # a score that is no probability is a logit


@pytest.mark.parametrize('odd', [-1., 2., 0.3])
def test_targets_of_two_classes_are_checked(odd):
    y = (torch.arange(600) % 2).float()
    y[25] = odd
    with pytest.raises(CourseError, match='class numbers from 0 to 1'): evaluate(one_epoch_away(BCEWithLogitsLossFlat(), y, 1))


@pytest.mark.parametrize('loss,y,n_out', [(BCEWithLogitsLossFlat(), torch.ones(600, 3), 3), (MSELossFlat(), torch.rand(600, 2), 2)])
def test_only_classes_are_averaged(loss, y, n_out):
    with pytest.raises(CourseError, match='one class for each item'): ensemble([one_epoch_away(loss, y, n_out) for _ in range(2)])


def test_views_are_averaged_for_classes():
    net = OverViews(nn.Sequential(nn.Flatten(), nn.Linear(4, 1)))
    with pytest.raises(CourseError, match='two classes or more'): net(torch.rand(2, 1, 2, 2))


def test_features_that_are_infinite_or_lists():
    assert fisher_ratio([[0.], [1.], [4.], [5.]], [0, 0, 1, 1]) == 16
    with pytest.raises(CourseError, match='infinity'): fisher_ratio(np.array([[np.inf], [1.]]), np.arange(2))
    with pytest.raises(CourseError, match='real numbers'): alignment.cka(np.ones((5, 2))*1j, np.ones((5, 2)))
