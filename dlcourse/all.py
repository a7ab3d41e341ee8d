"Everything a lesson needs: `from dlcourse.all import *`. fastai's names come first, then ours, room by room"
from fastai.basics import *
from fastai.callback.hook import *
from fastai.callback.mixup import *
from fastai.callback.schedule import *
from fastai.callback.tracker import *
from fastai.callback.training import *
from fastai.interpret import *
from fastai.vision.core import *
from fastai.vision.data import *

# The lowest floors
from dlcourse.values.door import CourseError
from dlcourse.core import seed_all

# Data
from dlcourse.data.arrays import Examples
from dlcourse.data.folders import load_folder
from dlcourse.data.reading import read_images
from dlcourse.data.sources import datasets, load, locate, source
from dlcourse.data.explore import channel_stats, class_distribution, plot_class_distribution, show_classes
from dlcourse.data.sampling import (
    choose_classes, class_counts, class_weights, imbalance, label_noise, long_tail, n_per_class, oversample, stratified_split)
from dlcourse.data.transforms import BatchAffine, BatchTransform, CropFlip, RandomPosition, RandomScale, SaltAndPepper
from dlcourse.data.saved import load_set, perturb, save_images, save_set
from dlcourse.data.loader import ExampleLoaders
from dlcourse.data.blocks import block_for, dls_for
from dlcourse.data.check import check

# Models
from dlcourse.models.blocks import InceptionModule, ResidualBlock, conv_layer, count_params, dense_layer
from dlcourse.models.registry import register
from dlcourse.models.mlp import mlp, power_widths, spread_widths
from dlcourse.models.cnn import cnn, cnn_base, cnn_v2, cnn_v3, conv_block
from dlcourse.models.nets import all_conv, draw_net, inception, residual
from dlcourse.models.whitened import whitened
from dlcourse.models.folding import fold_batchnorm
from dlcourse.models.views import OverViews, mirrored, shifted
from dlcourse.models.weights import load_pretrained
from dlcourse.models.pretrained import TransferNet, transfer_net
from dlcourse.models.fusion import fusion_net
from dlcourse.models.zoo import archs, find_arch, match_params, model_for, size_of, smallest_input

# Training
from dlcourse.training.losses import (
    BinaryLoss, Brier, CrossEntropy, MultiHinge, SquaredError, cross_entropy, hinge, quadratic, zero_one)
from dlcourse.training.lean import LeanLearner, adam, adamw, sgd
from dlcourse.training.callbacks import BestWeights, EarlyStopping, LookaheadCallback, StopOnNaN
from dlcourse.training.precision import Bfloat16
from dlcourse.training.transfer import TransferLearner, feature_table
from dlcourse.training.learner import learner_for, sizes_of
from dlcourse.training.settings import Settings
from dlcourse.training.runs import Run
from dlcourse.training.space import match_param_counts, narrow_space
from dlcourse.training.search import search, study, trainer
from dlcourse.training.kept import KeepWeights
from dlcourse.training.windows import During, train_only
from dlcourse.training.ensembles import ensemble

# Insight
from dlcourse.insight.layers import layer_outputs, layer_table
from dlcourse.insight.curves import best_epoch, compare, convergence, history, panels, plot_compare, plot_curves, plot_losses, tidy
from dlcourse.insight.evaluation import Evaluation, evaluate
from dlcourse.insight.cost import cost, flops_per_image, latency
from dlcourse.insight.resolution import RandomSize, any_size, at_sizes, plot_sizes
from dlcourse.insight.inference import export_folder, export_onnx, fast
from dlcourse.insight.explain import grad_cam, saliency
from dlcourse.insight.embedding import fisher_ratio, layer_activations, plot_embedding, probe_accuracy
from dlcourse.insight.studies import plot_study
from dlcourse.insight.similarity import similarity
from dlcourse.insight.robustness import layer_robustness
from dlcourse.insight.lesions import lesions
from dlcourse.insight.landscape import loss_line, loss_surface, trajectory
from dlcourse.insight.calibration import calibration

# Course and report
from dlcourse.course.experiment import Trial, experiment, experiments, recorded, reproduce, reproduction
from dlcourse.course.records import by_class, reported_and_obtained, verdict_table
from dlcourse.report.pages import Report, report
