"""What studies of a trained network cost beside the forward passes that they can't do without.

    python -m benchmarks.studies [--repeats N] [--threads N] [-o FILE]

Three studies: ten layers put back to five epochs each on 1,000 images against fifty forward passes; a loss surface of 21 × 21 points on
1,000 images against 441 forward passes; the pooled features of twenty layers for 10,000 images against one forward pass of all of them.
The forward passes are done in chunks of the size that is fastest here. The weights are hardly trained; the images are noise. For the
features the memory beyond the result is measured too, in a process of its own."""
import argparse, json, resource, sys
from types import SimpleNamespace

from .__main__ import record
from .measure import RESULTS, again, begin, child_json, compare, interleaved, silent, single

CHUNKS = (50, 100, 250, 500, 1000)
LAYERS, EPOCHS, POINTS, IMAGES, MANY = 10, 5, 21, 1000, 10_000
MEMORY_CAP = 200 # MB beyond the features that are returned


def network(depth=LAYERS, width=16):
    "`depth` - 1 convolutions with batch norm and ReLU on maps of 14×14, a mean and a dense layer"
    from torch import nn
    def block(a, b, stride=1): return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    blocks = [block(1, width, 2), *(block(width, width) for _ in range(depth - 2))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def learner(n, depth=LAYERS, epochs=0):
    "A Learner with `n` validation images of noise, and the callback that kept its weights"
    import numpy as np
    from dlcourse.data.blocks import dls_for
    from dlcourse.training.kept import KeepWeights
    from dlcourse.training.learner import learner_for
    rng, kept = np.random.default_rng(0), KeepWeights()
    x, y = rng.integers(0, 256, (n + 100, 1, 28, 28), dtype=np.uint8), rng.integers(0, 10, n + 100)
    with silent():
        learn = learner_for(network(depth), dls_for((x, y), valid=list(range(100, n + 100)), bs=50, seed=1), seed=1)
        if epochs: learn.fit(epochs, cbs=kept)
    return learn, kept


def forward(learn, n, chunk):
    "A function that sends the validation images through the network once"
    import torch
    model = learn.model.eval()
    batches = torch.cat([b[0] for b in learn.dls.valid])[:n].split(chunk)
    def run():
        with torch.no_grad():
            for x in batches: model(x)
    return run


def best_chunk(learn, n):
    "Chunk of the fastest forward pass, and the pass"
    passes = {c: forward(learn, n, c) for c in CHUNKS}
    seconds = interleaved(passes, SimpleNamespace(device='cpu', warm_up=1, repeats=5))
    chunk = min(passes, key=lambda c: sorted(seconds[c])[2])
    return chunk, passes[chunk]


def robustness_row(options):
    from dlcourse.insight.robustness import layer_robustness
    learn, kept = learner(IMAGES, epochs=EPOCHS)
    chunk, once = best_chunk(learn, IMAGES)
    def study(): layer_robustness(learn, kept, range(EPOCHS), n=IMAGES)
    found = interleaved(dict(ours=study, peer=again(once, LAYERS*EPOCHS)), options)
    return compare(f'{LAYERS} layers put back to {EPOCHS} epochs, {IMAGES:,} images / {LAYERS*EPOCHS} forward passes', 'robustness',
                   found['ours'], found['peer'], 1.1, note=f'chunks of {chunk}')


def surface_row(options):
    from dlcourse.insight.landscape import loss_surface
    learn, _ = learner(IMAGES)
    chunk, once = best_chunk(learn, IMAGES)
    def study(): loss_surface(learn, points=POINTS, n=IMAGES, progress=False)
    found = interleaved(dict(ours=study, peer=again(once, POINTS**2)), options)
    return compare(f'loss surface of {POINTS}×{POINTS} points, {IMAGES:,} images / {POINTS**2} forward passes', 'landscape',
                   found['ours'], found['peer'], 1.05, note=f'chunks of {chunk}')


def features_row(options):
    from dlcourse.insight.embedding import layer_activations
    learn, _ = learner(MANY, depth=21)
    chunk, once = best_chunk(learn, MANY)
    layers = [str(i) for i in range(20)]
    def study(): layer_activations(learn, layers, n=MANY)
    found = interleaved(dict(ours=study, peer=once), options)
    return compare(f'features of {len(layers)} layers, {MANY:,} images / forward pass', 'features', found['ours'], found['peer'], 1.2,
                   note=f'chunks of {chunk}')


def peak_memory():
    "Megabytes that the features of twenty layers of 10,000 images take at most, beyond the data, the network and the result"
    from dlcourse.insight.embedding import layer_activations
    learn, _ = learner(MANY, depth=21)
    layers = [str(i) for i in range(20)]
    layer_activations(learn, layers, n=500)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = layer_activations(learn, layers, n=MANY)
    result = sum(o.nbytes for o in found.features.values())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024 - before/1024 - result/2**20


def memory_row(options):
    values = [child_json('benchmarks.studies', '--memory', threads=options.threads) for _ in range(3)]
    return single(f'features of 20 layers, {MANY:,} images: memory beyond the result', 'features', values, MEMORY_CAP, unit='MB')


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.studies', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=3, metavar='N', help='rounds that count; one more warms up (3)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('--memory', action='store_true', help='print the peak of the memory only')
    p.add_argument('-o', '--output', default=RESULTS/'bench-studies.json', metavar='FILE')
    return p.parse_args(args)


def main(args=None):
    options = arguments(args)
    began = begin(options.threads)
    if options.memory: sys.exit(print(json.dumps(peak_memory())))
    o = SimpleNamespace(device='cpu', warm_up=1, repeats=options.repeats, threads=options.threads)
    rows = [f(o).judge().plain() for f in (robustness_row, surface_row, features_row, memory_row)]
    facts = dict(layers=LAYERS, epochs=EPOCHS, points=POINTS, images=IMAGES, many=MANY, chunks=CHUNKS)
    record(rows, dict.fromkeys(('robustness', 'landscape', 'features'), facts), 'studies', began, options.output,
           repeats=options.repeats, threads=options.threads)


if __name__ == '__main__': main()
