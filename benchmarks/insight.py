"""What explanations cost beside a forward pass.

    python -m benchmarks.insight [--repeats N] [--threads N] [-o FILE]

Grad-CAM at the last feature map, found automatically, for the predicted class of 64 images, against one forward pass of the same network
on the same batch without gradients. The weights are random; the images are those that come with the package."""
import argparse
from types import SimpleNamespace

from .__main__ import record
from .measure import RESULTS, begin, compare, interleaved, silent

N, TARGET = 64, 1.1
NETS = {'cnn': dict(size=28), 'residual': dict(size=28), 'mobilenet_v2': dict(size=96, frozen=True)}


def contestants(arch, size, frozen=False):
    "Grad-CAM and a forward pass of the network `arch` on `N` images of `size` pixels"
    import torch
    from dlcourse.data.blocks import dls_for
    from dlcourse.insight.explain import cam_maps, default_layer
    from dlcourse.insight.layers import layer_shapes
    from dlcourse.training.learner import learner_for
    with silent(): learn = learner_for(arch, dls_for('fashion_mini', size=size, bs=N, seed=1), pretrained=False, seed=1)
    if frozen: learn.freeze()
    model, x = learn.model.eval(), learn.dls.valid.one_batch()[0][:N]
    def cam(): return cam_maps(model, x, lambda scores: scores.argmax(1)[None], default_layer(model, layer_shapes(model, x[:1])))
    def forward():
        with torch.no_grad(): return model(x)
    return dict(cam=cam, forward=forward)


def row(arch, options, size, **kwargs):
    "Grad-CAM / forward pass"
    found = interleaved(contestants(arch, size, **kwargs), options)
    return compare(f'{arch}, {size} px: Grad-CAM of {N} images / forward pass', 'grad-cam', found['cam'], found['forward'], TARGET).judge()


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.insight', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=25, metavar='N', help='rounds that count; two more warm up (25)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('-o', '--output', default=RESULTS/'bench-insight.json', metavar='FILE')
    return p.parse_args(args)


def main(args=None):
    options = arguments(args)
    began = begin(options.threads)
    o = SimpleNamespace(device='cpu', warm_up=2, repeats=options.repeats)
    rows = [row(arch, o, **kwargs).plain() for arch,kwargs in NETS.items()]
    record(rows, {'grad-cam': dict(images=N, networks=NETS)}, 'insight', began, options.output, repeats=options.repeats,
           threads=options.threads)


if __name__ == '__main__': main()
