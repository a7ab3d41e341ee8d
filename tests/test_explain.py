"Grad-CAM and saliency: networks of every kind against captum, faults and bad input, and that nothing is changed"
import matplotlib
matplotlib.use('Agg')
import numpy as np
import pytest
import torch
from fastai.basics import CategoryBlock, CrossEntropyLossFlat, DataBlock, DataLoaders, Learner, RandomSplitter
from fastai.data.transforms import get_image_files, parent_label
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from dlcourse.core import CourseError
from dlcourse.data.blocks import dls_for
from dlcourse.insight.explain import default_layer, grad_cam, image_batch, saliency
from dlcourse.insight.layers import is_feature_map, layer_shapes, layer_table
from dlcourse.models.zoo import model_for
from dlcourse.training.learner import learner_for

rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (40, 3, 40, 40), dtype=np.uint8), np.arange(40) % 4


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close('all')


@pytest.fixture(scope='module')
def dls(): return dls_for((x, y), bs=8, seed=1)


@pytest.fixture(scope='module')
def learn(dls): return learner_for('cnn', dls, filters=8, seed=1)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "A folder of class folders with colour images"
    root = tmp_path_factory.mktemp('images')
    for i in range(16):
        (root/f'c{i%2}').mkdir(exist_ok=True)
        Image.fromarray(x[i].transpose(1, 2, 0)).save(root/f'c{i%2}'/f'{i}.png')
    return root


def state(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    return [m.training for m in model.modules()], hooks, [(p.requires_grad, p.grad is None) for p in model.parameters()], torch.is_grad_enabled()


def equals_captum(learn, layer=None, **kwargs):
    "Compare with captum's `LayerGradCam` at the same layer; the explanation"
    captum = pytest.importorskip('captum.attr')
    before = state(learn.model)
    cam = grad_cam(learn, 4, of='predicted', layer=layer, **kwargs)
    assert state(learn.model) == before
    images,_,_ = image_batch(learn, 4)
    learn.model.eval()
    m = learn.model.get_submodule(cam.layer)
    theirs = captum.LayerGradCam(learn.model, m).attribute(images.clone().requires_grad_(), cam.classes[0], relu_attributions=True)[:, 0]
    torch.testing.assert_close(cam.maps[0], theirs.detach(), atol=1e-4, rtol=1e-4)
    assert cam.maps.max() > 0
    return cam


@pytest.mark.parametrize('arch, layer', [('cnn', 'body.block3.act'), ('all_conv', 'body'), ('residual', 'body.block3'), ('inception', 'body.module2'),
                                         ('cnn_base', 'body'), ('cnn_v2', 'body.block4.act'), ('cnn_v3', 'body.block5.act')])
def test_our_networks(dls, arch, layer):
    assert equals_captum(learner_for(arch, dls, seed=1)).layer == layer


@pytest.mark.parametrize('arch', ['resnet18', 'squeezenet1_1', 'mobilenet_v2', 'tf_efficientnet_lite0'])
@pytest.mark.parametrize('frozen', [True, False])
def test_backbones(dls, arch, frozen):
    learn = learner_for(arch, dls_for((x, y), bs=8, size=64, seed=1), pretrained=False, seed=1)
    if frozen: learn.freeze()
    assert equals_captum(learn).layer == 'body'


def test_inner_layer_of_a_frozen_body(dls):
    learn = learner_for('mobilenet_v2', dls_for((x, y), bs=8, size=64, seed=1), pretrained=False, seed=1)
    learn.freeze()
    assert equals_captum(learn, 'body.10').maps.shape[2:] == (4, 4)


def test_middle_fusion_has_one_map():
    learn = learner_for('squeezenet1_1+resnet18', dls_for((x, y), bs=8, size=64, seed=1), pretrained=False, head='fastai', seed=1)
    assert grad_cam(learn, 2).layer == 'body'
    assert grad_cam(learn, 2, layer='resnet18').layer == 'body.bodies.resnet18'


def test_late_fusion_asks_which_body():
    learn = learner_for('squeezenet1_1+resnet18', dls_for((x, y), bs=8, size=64, seed=1), pretrained=False, how='late', seed=1)
    with pytest.raises(CourseError, match='body.bodies.squeezenet1_1'): grad_cam(learn, 2)
    assert grad_cam(learn, 2, layer='body.bodies.squeezenet1_1').maps.max() > 0


def test_transformer_has_no_default():
    model = model_for('vit_tiny_patch16_224', (3, 224, 224), 4, pretrained=False)
    with pytest.raises(CourseError, match='outputs tokens, not a feature map'): default_layer(model, layer_shapes(model, torch.rand(1, 3, 224, 224)))


def test_network_that_rests_by_itself(dls):
    "A body under `no_grad` in a module of the user's own, with functions between the modules"
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.body, self.head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True)), nn.Linear(8, 4)
        def forward(self, x):
            with torch.no_grad(): x = self.body(x)
            return self.head(torch.relu(x).mean((2, 3)))
    torch.manual_seed(1)
    learn = Learner(dls, Net(), nn.CrossEntropyLoss())
    cam = grad_cam(learn, 3, of=[0, 1, 2, 3], layer='body.0')
    assert cam.maps.shape == (4, 3, 38, 38)
    w, A = learn.model.head.weight.detach(), learn.model.body[0](image_batch(learn, 3)[0]).detach()
    grad = w[:, None, :, None, None]*(A > 0)[None]/38**2
    torch.testing.assert_close(cam.maps, (grad.mean((3, 4), keepdim=True)*A[None]).sum(2).relu(), atol=1e-6, rtol=1e-4)
    with pytest.raises(CourseError, match='no gradient at the input'): saliency(learn, 2)


def test_stock_learners_and_files(files):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(0.5, seed=1))
    dls = block.dataloaders(files, bs=4, num_workers=0)
    learn = vision_learner(dls, resnet18, pretrained=False, normalize=False)
    cam = grad_cam(learn, get_image_files(files)[:3])
    assert cam.of == ['predicted'] and cam.targets is None and cam.maps.shape[:2] == (1, 3)
    assert grad_cam(learn, str(get_image_files(files)[0])).maps.shape[1] == 1
    assert grad_cam(learn, PILImage.create(get_image_files(files)[0])).maps.shape[1] == 1
    assert grad_cam(learn, dls.one_batch()).of == ['actual', 'predicted']
    cam.plot()
    (files/'broken.png').write_text('no image')
    with pytest.raises(CourseError, match='broken.png|cannot be read|can be read'): grad_cam(learn, [files/'broken.png'])
    (files/'broken.png').unlink()
    with pytest.raises(CourseError, match='nowhere.png'): grad_cam(learn, 'nowhere.png')
    with pytest.raises(CourseError, match='without targets'): grad_cam(learn, get_image_files(files)[:1], of='actual')


def test_image_file_with_our_learner(learn, files):
    assert grad_cam(learn, [files/'c0'/'0.png', files/'c1'/'1.png']).images.shape == (2, 3, 40, 40)


def test_plain_tensors_and_loss_of_pytorch():
    data = TensorDataset(torch.tensor(x).float()/255, torch.tensor(y))
    learn = Learner(DataLoaders.from_dsets(data, data, bs=8, num_workers=0), model_for('cnn', (3, 40, 40), 4, filters=4), nn.CrossEntropyLoss())
    assert grad_cam(learn, 3).vocab == ['0', '1', '2', '3']


def test_one_output_for_two_classes():
    data = TensorDataset(torch.tensor(x).float()/255, torch.tensor(y % 2)[:, None].float())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    learn = Learner(DataLoaders.from_dsets(data, data, bs=8, num_workers=0), net, nn.BCEWithLogitsLoss())
    cam = grad_cam(learn, 4, of=[0, 1])
    assert cam.maps.shape[:2] == (2, 4) and not torch.equal(cam.maps[0], cam.maps[1]) and cam.preds.shape == (4, 2)


def test_grey_positions_and_heat():
    learn = learner_for('cnn', dls_for((x[:, 0], y), bs=8, seed=1), filters=4, seed=1)
    cam = grad_cam(learn, [3, 0], of=[2])
    assert torch.equal(cam.targets, torch.as_tensor(learn.dls.labels('valid'))[[3, 0]])
    assert cam.heat.shape == (1, 2, 40, 40) and 0 <= cam.heat.min() and cam.heat.max() <= 1
    assert 0 <= cam.images.min() and cam.images.max() <= 1
    torch.testing.assert_close(cam.images[0, 0], torch.tensor(x[learn.dls.valid_ds.items[3], 0])/255, atol=1.01/255, rtol=0)
    cam.plot(ncols=1)


def test_no_grad_outside_does_not_matter(learn):
    with torch.no_grad(): a = grad_cam(learn, 2).maps
    assert torch.equal(a, grad_cam(learn, 2).maps)


def test_nothing_is_changed(learn):
    learn.model.train()
    learn.model.body.block1.eval()
    learn.model.head.out.weight.requires_grad_(False)
    before, numbers = state(learn.model), torch.get_rng_state()
    grad_cam(learn, 2, part='train'); saliency(learn, 2)
    for bad in (dict(of=99), dict(of='zebra'), dict(layer='nothing'), dict(layer='head.out'), dict(items=torch.zeros(2, 5, 40, 40)), dict(items=[1000])):
        with pytest.raises(CourseError): grad_cam(learn, **bad)
    assert state(learn.model) == before and torch.equal(torch.get_rng_state(), numbers)
    learn.model.head.out.weight.requires_grad_(True)


@pytest.mark.parametrize('kwargs, says', [(dict(of=4), '0 to 3'), (dict(of='5'), 'unknown class'), (dict(layer='body.blok1'), "Did you mean 'body.block1'"),
                                          (dict(items=[-1]), 'go from 0 to'), (dict(items=0), 'at least 1, not 0; positions are given as a list'), (dict(items=-3), 'at least 1, not -3'), (dict(part='tset'), "unknown part 'tset'"), (dict(part='test'), 'no test part'),
                                          (dict(items=torch.zeros(2, 3, 40, 40, dtype=torch.uint8)), 'as floats')])
def test_bad_input(learn, kwargs, says):
    with pytest.raises(CourseError, match=says): grad_cam(learn, **kwargs)


def test_no_classes_and_no_images(dls):
    numbers = learner_for('cnn', dls_for((x, y.astype(np.float32)), bs=8, seed=1), filters=4)
    with pytest.raises(CourseError, match='predicts numbers'): grad_cam(numbers)
    with pytest.raises(CourseError, match='predicts numbers'): saliency(numbers)
    rows = learner_for('mlp', dls_for((rng.normal(size=(40, 6)).astype(np.float32), y), bs=8, seed=1))
    with pytest.raises(CourseError, match='images'): grad_cam(rows)
    with pytest.raises(CourseError, match='no convolution'): grad_cam(learner_for('mlp', dls))
    assert saliency(learner_for('mlp', dls), 2).maps.shape == (2, 2, 40, 40)


def test_layer_table(learn):
    table = layer_table(learn)
    assert list(table.index[:2]) == ['body.block1.conv', 'body.block1.norm'] and table.index[-1] == 'head'
    assert table.feature_map.equals(table['shape'].map(is_feature_map))


def test_a_network_alone_is_refused():
    with pytest.raises(CourseError, match='a Learner is needed, with its data, and this is a Sequential'): grad_cam(nn.Sequential(nn.Conv2d(1, 2, 3)), 2)
