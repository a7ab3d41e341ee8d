"Everything a lesson needs: `from dlcourse.all import *`"
from fastai.basics import *
from fastai.callback.hook import *
from fastai.callback.mixup import *
from fastai.callback.schedule import *
from fastai.callback.tracker import *
from fastai.callback.training import *
from fastai.interpret import *
from fastai.vision.core import *
from fastai.vision.data import *

from dlcourse.core import *
from dlcourse.course.experiment import experiments, recorded, reproduce, reproduction
from dlcourse.course.records import by_class, reported_and_obtained, verdict_table
from dlcourse.data.arrays import *
from dlcourse.data.folders import *
from dlcourse.data.sources import *
from dlcourse.data.explore import *
from dlcourse.data.sampling import *
from dlcourse.data.selection import *
from dlcourse.data.transforms import *
from dlcourse.data.saved import *
from dlcourse.data.stores import *
from dlcourse.data.loader import *
from dlcourse.data.blocks import *
from dlcourse.data.check import *
from dlcourse.insight.cost import cost, flops_per_image, latency
from dlcourse.insight.curves import *
from dlcourse.insight.embedding import fisher_ratio, layer_activations, plot_embedding, probe_accuracy
from dlcourse.insight.evaluation import *
from dlcourse.insight.explain import grad_cam, saliency
from dlcourse.insight.inference import export_folder, export_onnx, fast
from dlcourse.insight.layers import *
from dlcourse.insight.resolution import *
from dlcourse.insight.studies import plot_study
from dlcourse.models.blocks import *
from dlcourse.models.cnn import *
from dlcourse.models.folding import fold_batchnorm
from dlcourse.models.fusion import *
from dlcourse.models.mlp import *
from dlcourse.models.backbones import *
from dlcourse.models.nets import *
from dlcourse.models.heads import *
from dlcourse.models.pretrained import *
from dlcourse.models.registry import *
from dlcourse.models.views import *
from dlcourse.models.weights import *
from dlcourse.models.whitened import *
from dlcourse.models.zoo import *
from dlcourse.training.callbacks import *
from dlcourse.training.lean import *
from dlcourse.training.learner import *
from dlcourse.training.losses import *
from dlcourse.training.runs import Run
from dlcourse.training.settings import Settings
from dlcourse.training.search import search, study, trainer
from dlcourse.training.space import match_param_counts, narrow_space
from dlcourse.training.transfer import *
from dlcourse.report.pages import Report, report
