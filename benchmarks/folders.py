"""What the images of a folder cost from a mapped file of bytes: in memory, from the photographs, decoded once, many, and interrupted.

    python -m benchmarks.folders [--repeats N] [--many N] [--threads N] [-o FILE]

The folders are made by a script, of smooth random images; nothing is downloaded. Seconds are those of the CPU, of this process and of
those that decode. Memory is that of the process beyond the page cache (RssAnon), above what it is after the imports."""
import argparse, json, os, signal, subprocess, sys, tempfile, time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .__main__ import record
from .loaders import drain
from .measure import RESULTS, again, begin, child_json, compare, interleaved, silent, single

CLASSES = 10


def make(root, n, size, quality=90):
    "A folder of `n` smooth random JPEG images of `size`, in ten class folders"
    from PIL import Image
    rng, root = np.random.default_rng(0), Path(root)
    for i in range(min(n, CLASSES)): (root/f'class{i}').mkdir(parents=True)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(root/f'class{i % CLASSES}'/f'{i:07}.jpg', quality=quality)
    return root


def loaders(root, size, **kwargs):
    from dlcourse.data.blocks import dls_for
    with silent(): return dls_for(root, size=size, bs=64, seed=1, **kwargs)


def epoch_rows(work, options, n=2000):
    "An epoch of 64-pixel images: from a mapped file, in memory, from files, and from a mapped array of the user's own"
    from dlcourse.data.blocks import dls_for
    root, group = make(work/'small', n, (64, 64)), 'epoch'
    ours, held, files = (loaders(root, 64, **kw) for kw in (dict(mapped=True), dict(in_memory=True), dict(in_memory=False)))
    x = np.concatenate([x for x,_ in held.train.store.parts])
    np.save(work/'own.npy', x)
    np.save(work/'last.npy', x.transpose(0, 2, 3, 1))
    own, last, plain = (dls_for((o, np.arange(n) % CLASSES), bs=64, seed=1) for o in
                        (np.load(work/'own.npy', mmap_mode='r'), np.load(work/'last.npy', mmap_mode='r'), x))
    ways = dict(ours=ours, held=held, own=own, last=last, plain=plain)
    many = interleaved({k: again(lambda d=d: drain(d.train), 10) for k,d in ways.items()}, options)
    few = interleaved(dict(ours=again(lambda: drain(ours.train), 10), files=lambda: drain(files.train)), options)
    few['ours'] = [o/10 for o in few['ours']]
    return [compare('an epoch from a mapped file / in memory', group, many['ours'], many['held'], 1.5, scale=10),
            compare('an epoch from a mapped file / from files', group, few['ours'], few['files'], 1/25),
            compare('an epoch from an own mapped array, channels first / in memory', group, many['own'], many['plain'], 1.5, scale=10),
            compare('an epoch from an own mapped array, channels last / in memory', group, many['last'], many['plain'], scale=10)]


def cpu(f):
    "CPU seconds of this process and its children that `f()` takes"
    before = os.times()
    f()
    return sum(os.times()[:4]) - sum(before[:4])


def bare(files, size):
    "Decode `files` with Pillow, and nothing else"
    from PIL import Image, ImageOps
    for o in files:
        im = Image.open(o).convert('RGB')
        np.asarray(im if im.size == size else ImageOps.fit(im, size, Image.Resampling.BILINEAR))


def bare_by_two(files, size):
    "`bare` in two processes at once, which on some machines share a core"
    team = [get_context('fork').Process(target=bare, args=(files[i::2], size)) for i in range(2)]
    for o in team: o.start()
    for o in team: o.join()
    assert all(o.exitcode == 0 for o in team)


def decode_rows(work, options, n, size, side):
    "Decoding into the file by two processes / decoding with Pillow alone, in two and in one"
    from dlcourse.data.decoded import clear_decoded
    from dlcourse.data.decoding import decode
    from dlcourse.data.folders import image_files
    root = make(work/f'photos{side}', n, size)
    files, to, seconds = image_files(root).files, (side, side), ([], [], [])
    paths = [str(o) for o in files]
    for _ in range(options.decodings):
        seconds[0].append(cpu(lambda: decode(root, files, (3, side, side), processes=2)))
        seconds[1].append(cpu(lambda: bare_by_two(paths, to)))
        seconds[2].append(cpu(lambda: bare(paths, to)))
        clear_decoded()
    what = f'{size[0]}×{size[1]}' + (f' to {side}×{side}' if size != to else '')
    name = f'{n:,} JPEGs of {what}: decoded into the file by two processes'
    return [compare(f'{name} / decoding alone, by two', 'decoding', seconds[0], seconds[1], 1.3),
            compare(f'{name} / decoding alone, by one', 'decoding', seconds[0], seconds[2])]


def anonymous():
    "Bytes of this process beyond the page cache"
    line = next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('RssAnon'))
    return int(line.split()[1])*1024


def measure_many(root):
    "In a fresh process: seconds to the first batch, and memory beyond the imports after it and after an epoch; prints JSON"
    import dlcourse.training.learner # what a training imports
    from dlcourse.data.blocks import dls_for
    before, start, cpu_start = anonymous(), time.perf_counter(), time.process_time()
    with silent():
        dls = dls_for(root, size=32, mapped=True)
        dls.one_batch()
    found = dict(wall=time.perf_counter() - start, cpu=time.process_time() - cpu_start, first=anonymous() - before)
    peak = found['first']
    for i,_ in enumerate(dls.train): peak = max(peak, anonymous() - before) if i % 50 == 0 else peak
    print(json.dumps(dict(found, epoch=peak, imports=before)))


def many_rows(work, options):
    "A folder of very many small images"
    root = make(work/'many', options.many, (32, 32))
    runs = [child_json('benchmarks.folders', '--measure', root, threads=options.threads) for _ in range(1 + options.runs)]
    first, again_ = runs[0], runs[1:]
    name, group = f'{options.many:,} images of 32×32', 'many'
    return [single(f'{name}: first batch of a later run, CPU', group, [o['cpu'] for o in again_], 2.),
            single(f'{name}: first batch of a later run, on the wall', group, [o['wall'] for o in again_], clock='wall'),
            single(f'{name}: memory beyond imports and page cache, a later run with an epoch', group, [o['epoch']/1e6 for o in again_],
                   300., unit='MB'),
            single(f'{name}: the same of the run that decodes', group, [first['epoch']/1e6], 300., unit='MB')]


DECODE = ('import sys; from dlcourse.data.decoding import decode; from dlcourse.data.folders import image_files; '
          'r = sys.argv[1]; decode(r, image_files(r).files, (3, 224, 224), processes=2)')


def killed(root, marks, chunks, delay):
    "Start to decode `root` in a process of its own, and kill it `delay` seconds after it has marked some more chunks; returns the marks"
    begun = marks.stat().st_size if marks.exists() else 0
    p = subprocess.Popen([sys.executable, '-c', DECODE, str(root)], stderr=subprocess.DEVNULL)
    while p.poll() is None and (marks.stat().st_size if marks.exists() else 0) < begun + 8*chunks: time.sleep(0.002)
    time.sleep(delay)
    p.send_signal(signal.SIGKILL)
    p.wait()
    return marks.stat().st_size//8 if marks.exists() else 0


def kill_row(work, options, n=10_000, kills=10):
    "Wrong bytes after a decoding that was killed ten times and carried on"
    from dlcourse.data import decoded, decoding
    from dlcourse.data.folders import image_files
    from dlcourse.data.reading import read_images
    root, rng = make(work/'killed', n, (64, 64)), np.random.default_rng(0)
    files, shape = image_files(root).files, (3, 224, 224)
    o = decoded.decoded_for(root, decoding.origin_of(root, files, shape), (n, *shape))
    left = [killed(root, o.marks_file, rng.integers(1, 12), rng.uniform(0, 0.3)) for _ in range(kills)]
    assert not decoded.is_whole(o) and left == sorted(left), left
    made, wrong = np.load(decoding.decode(root, files, shape, processes=2).path, mmap_mode='r'), 0
    for i in range(0, n, 500): wrong += int((made[i:i+500] != read_images(files[i:i+500], 224, 3).numpy()).sum())
    row = single(f'{n:,} images to 224×224: wrong bytes after {kills} times kill -9', 'killed', [wrong], 0., unit='bytes')
    return row, dict(marked_when_killed=left, chunks=o.n_chunks)


def arguments(args=None):
    p = argparse.ArgumentParser('python -m benchmarks.folders', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--repeats', type=int, default=9, metavar='N', help='rounds of epochs that count; one more warms up (9)')
    p.add_argument('--decodings', type=int, default=7, metavar='N', help='rounds of decoding (7)')
    p.add_argument('--runs', type=int, default=3, metavar='N', help='later runs of the large folder (3)')
    p.add_argument('--many', type=int, default=200_000, metavar='N', help='images of the large folder (200,000)')
    p.add_argument('--threads', type=int, default=1, metavar='N', help='threads that torch may use (1)')
    p.add_argument('--measure', metavar='FOLDER', help='only measure one run with the large folder')
    p.add_argument('-o', '--output', default=RESULTS/'bench-folders.json', metavar='FILE')
    return p.parse_args(args)


def main(args=None):
    options = arguments(args)
    began = begin(options.threads)
    if options.measure: return measure_many(options.measure)
    o = SimpleNamespace(**vars(options), device='cpu', warm_up=1)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        os.environ['DLCOURSE_CACHE'] = str(work/'decoded')
        rows = epoch_rows(work, o)
        rows += decode_rows(work, o, 60_000, (64, 64), 64) + decode_rows(work, o, 4000, (500, 375), 224)
        row, kills = kill_row(work, o)
        rows += [row, *many_rows(work, o)]
    about = dict(epoch=dict(images=2000), decoding=dict(processes=2), killed=kills, many=dict(images=options.many))
    record([r.judge().plain() for r in rows], about, 'folders', began, options.output, repeats=options.repeats, threads=options.threads)


if __name__ == '__main__': main()
