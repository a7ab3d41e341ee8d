"""Training in two processes against one, each on one thread: the wall time of an epoch of the same batches.

    python -m benchmarks.parallel [--repeats N] [-o FILE]

Networks see batches of 64 random images of 3×32×32. In two processes each computes half of a batch; tests/test_parallel.py holds that the
weights are those of one process. It needs a core for each process and nothing else that computes."""
import argparse, json, statistics, sys, time

from .__main__ import record
from .measure import RESULTS, begin, child, compare

TARGET = 0.625 # of the time, for 1.6 times the throughput
ARCHS = ('cnn', 'cnn_v2')
BATCH, BATCHES, EPOCHS = 64, 12, 4


def epochs(arch):
    "Seconds of each epoch in this process, validation on one batch included"
    from .convolutions import ColorTask
    from .loops import HYPER, our_loaders
    from dlcourse.training.learner import learner_for
    learn, found = learner_for(arch, our_loaders(ColorTask(arch, BATCH, BATCH*BATCHES)), seed=0), []
    with learn.quiet(), learn.distrib_ctx():
        for _ in range(EPOCHS):
            start = time.perf_counter()
            learn.fit(1, HYPER['lr'])
            found.append(time.perf_counter() - start)
    return found


def epoch_in(processes, arch):
    "Median seconds of an epoch after the first one, in as many processes"
    command = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)] if processes > 1 else []
    out = child([sys.executable, '-W', 'ignore', *command, '-m', 'benchmarks.parallel', '--epochs-of', arch], 1)[2]
    return statistics.median(json.loads(next(o for o in reversed(out.splitlines()) if o.startswith('[')))[1:])


def main(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.parallel', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=5, metavar='N', help='rounds (5)')
    p.add_argument('-o', '--output', default=RESULTS/'bench-parallel.json', metavar='FILE')
    p.add_argument('--epochs-of', choices=ARCHS, help=argparse.SUPPRESS)
    options = p.parse_args(args)
    if options.epochs_of:
        from dlcourse.core import is_first
        found = epochs(options.epochs_of)
        if is_first(): print(json.dumps(found), flush=True)
        return
    began, rows, seconds = begin(1), [], {}
    for arch in ARCHS:
        pairs = [(epoch_in(2, arch), epoch_in(1, arch)) for _ in range(options.repeats)]
        two, one = map(list, zip(*pairs))
        rows.append(compare(f'{arch}, two processes / one process', 'processes', two, one, TARGET, clock='wall').judge().plain())
        seconds[arch] = dict(two=two, one=one)
    record(rows, dict(processes=dict(seconds=seconds)), 'parallel', began, options.output, repeats=options.repeats, threads=1)


if __name__ == '__main__': main()
