"""Make the saved outputs of notebooks again, and compare saved outputs with new ones

    python tools/outputs.py                       every notebook
    python tools/outputs.py nbs/data/*.ipynb      these
    python tools/outputs.py --check nbs/x.ipynb   only say what differs

Each notebook runs from top to bottom in a process of its own, on one thread, with the real data of `$DLCOURSE_DATA` where they are.

What a cell prints must not change unseen. Compared are its words, its numbers, and how many pictures it shows; not compared are times,
dates, versions, hashes and progress bars. Before a notebook trains anything its numbers must agree to three figures. After that a
number with a decimal point may be off by a quarter, and a whole number below 1,000 by a quarter or by 3: another machine adds up in
another order. A cell whose words depend on the machine says so, and why, in a line `#| varies: REASON` that a reader of the notebook
sees."""
import argparse, html, math, multiprocessing, os, re, subprocess, sys, tempfile, threading
from base64 import b64decode
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace

from fastcore.nbio import read_nb, write_nb
from nbdev.config import get_config

TOOLS = str(Path(__file__).resolve().parent)
sys.path.insert(0, TOOLS)
from tidy import tidy

# One thread; and the memory of a tensor that goes is kept for the next one: to ask for it again takes a fifteenth of a training's time
LEAN = dict(OMP_NUM_THREADS='1', MALLOC_MMAP_THRESHOLD_=str(2**25), MALLOC_TRIM_THRESHOLD_=str(2**32),
            PYTHONPATH=os.pathsep.join(filter(None, [TOOLS, os.environ.get('PYTHONPATH')])))
STARTING = threading.Lock() # one process at a time starts, or is asked for its exit code
REAL = ['MNIST', 'FashionMNIST', 'cifar-10-batches-py', 'eurosat']
TRAINS = re.compile(r'\.(?:fit\w*|fine_tune|validate|lr_find|backward|step)\('
                    r'|\b\w+_learner\('
                    r'|\b(?:train\w*|search|reproduce|fit\w*|tune\w*|latency|cost|measure\w*|main|bench\w*)\(|^!|^%time', re.M)
NUMBER = r'(?<![\w.])[-+−]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?'
UNIT = r'(?:µs|us|ms|s|sec|seconds?|min|minutes?|h|hours?|it/s|images/s|images a second|[kMG]?B/s)'
NOISE = [
    re.compile(r'\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)?)?'), # a date
    re.compile(r'\b\d+:\d\d(?::\d\d)?\b'), # a time
    re.compile(r'\b\d+\.\d+\.\d+[\w.+]*'), # a version
    re.compile(r'\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b'), # a hash
    re.compile(rf'{NUMBER}\s*{UNIT}(?![\w])')] # how long, how fast
# A picture of one point
EMPTY = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=='
TIMES = re.compile(r'time|seconds|minutes|^ms\b|\bms$|latency|per second|/s$|^s$', re.I)

PRELOAD = ['dlcourse.all', 'fastai.vision.all', 'fastai.tabular.core', 'IPython.core.interactiveshell', 'matplotlib.pyplot',
           'matplotlib_inline.backend_inline', 'nbdev.test', 'nbdev.showdoc', 'optuna', 'scipy.stats', 'sklearn.decomposition',
           'sklearn.linear_model', 'sklearn.manifold', 'sklearn.metrics', 'sklearn.model_selection', 'timm', 'torchvision.models',
           'PIL.BmpImagePlugin', 'PIL.GifImagePlugin', 'PIL.JpegImagePlugin', 'PIL.PpmImagePlugin', 'sklearn.compose',
           'sklearn.cross_decomposition', 'sklearn.datasets', 'sklearn.ensemble', 'sklearn.pipeline', 'warm']


def flags():
    "The flagged cells that run: those named in `$NBDEV_FLAGS`, and `realdata` where `$DLCOURSE_DATA` holds every set"
    root = os.environ.get('DLCOURSE_DATA')
    real = 'realdata' if root and all((Path(root)/o).exists() for o in REAL) else ''
    return f"{os.environ.get('NBDEV_FLAGS', '')} {real}".strip()


class Ran:
    "How a notebook's run ended: `returncode` (0: well), and what it wrote to the terminal"
    def __init__(self, returncode, stdout, stderr): self.returncode,self.stdout,self.stderr = returncode,stdout,stderr


def write_into(log):
    "From now on what this process prints goes into the files `log`.out and `log`.err"
    for fd,end in ((1, 'out'), (2, 'err')): os.dup2(os.open(f'{log}.{end}', os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)


def written(log):
    "What a process has printed into `log`.out and `log`.err"
    return [Path(f'{log}.{end}').read_text(encoding='utf-8', errors='replace') for end in ('out', 'err')]


def unpainted(fig, fmt='png', base64=False, **kwargs):
    "Stand in for IPython's `print_figure`: everything in `fig` is placed and asked to draw itself, and an empty picture comes back"
    if not fig.axes and not fig.lines: return None
    fig.draw_without_rendering()
    return EMPTY if base64 else b64decode(EMPTY)


@contextmanager
def paintless(*kinds):
    """Within the block nothing paints a picture: neither IPython, nor a figure that pyplot has changed, nor `savefig` in files of the
    `kinds` 'png' and 'svg'"""
    import IPython.core.pylabtools as shown
    from matplotlib.backend_bases import FigureCanvasBase
    from matplotlib.figure import Figure
    shows, saves, idles = shown.print_figure, Figure.savefig, FigureCanvasBase.draw_idle
    def savefig(fig, file, **kwargs):
        kind = kwargs.get('format') or Path(str(file)).suffix[1:]
        if kind not in kinds: return saves(fig, file, **kwargs)
        fig.draw_without_rendering()
        picture = b64decode(EMPTY) if kind == 'png' else b'<svg xmlns="http://www.w3.org/2000/svg"/>'
        if hasattr(file, 'write'): file.write(picture)
        else: Path(file).write_bytes(picture)
    shown.print_figure, Figure.savefig, FigureCanvasBase.draw_idle = unpainted, savefig, lambda *args, **kwargs: None
    try: yield
    finally: shown.print_figure, Figure.savefig, FigureCanvasBase.draw_idle = shows, saves, idles


@contextmanager
def timed_once():
    "Within the block torch's timer runs what it times once, and says that it took as long five times: no time is compared"
    from torch.utils.benchmark import Timer
    times = Timer.blocked_autorange
    def once(self, callback=None, min_run_time=0.): return SimpleNamespace(times=[self._timeit(1)]*5)
    Timer.blocked_autorange = once
    try: yield
    finally: Timer.blocked_autorange = times


def child(path, to, root, skip, force, paint, log):
    "Run one notebook in this process, which was made for it; what it prints goes into the files `log`.out and `log`.err"
    write_into(log)
    import nbdev.test
    nbdev.test.write_nb = lambda nb, _: write_nb(nb, to)
    with ExitStack() as lean:
        for o in () if paint else (paintless('png'), timed_once()): lean.enter_context(o)
        ok, _ = nbdev.test.test_nb(path, skip_flags=skip.split(), force_flags=force.split(), basepath=root, save=True)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(not ok)


@lru_cache(None)
def processes():
    "Where processes come from: forked from one that has the imports behind it, or new ones on a system that cannot fork"
    if 'forkserver' not in multiprocessing.get_all_start_methods(): return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOAD)
    return context


@contextmanager
def lean_processes():
    "New processes see `LEAN` in their environment, the one among them that all later ones are forked from"
    before = {k: os.environ.get(k) for k in LEAN}
    os.environ.update(LEAN)
    try: yield
    finally:
        for k,v in before.items():
            if v is None: del os.environ[k]
            else: os.environ[k] = v


def run(path, to, cfg, paint=True):
    """Run the notebook at `path` in a process of its own, on one thread, and write it with its new outputs to `to`; to paint its
    pictures takes two thirds of their time, which nobody needs who only compares"""
    log = f'{to}.log'
    args = [path, to, cfg.config_path, cfg.tst_flags, flags(), 'paint' if paint else '', log]
    process = processes().Process(target=child, args=[str(o) for o in args])
    with STARTING, lean_processes(): process.start()
    wait([process.sentinel])
    with STARTING: process.join() # a start reads the exit codes of all processes that ended, and each can be read once
    return Ran(process.exitcode, *written(log))


def joined(text): return text if isinstance(text, str) else ''.join(text)


def without_times(page):
    "An HTML table as text, the columns left out that hold times"
    rows = [re.findall(r'<t([hd])[^>]*>(.*?)</t[hd]>', r, re.S) for r in re.findall(r'<tr.*?</tr>', page, re.S)]
    rows = [[html.unescape(re.sub('<[^>]+>', ' ', text)).strip() for _,text in r] for r in rows]
    timed = {i for i,name in enumerate(rows[0] if rows else []) if TIMES.search(name)}
    return '\n'.join(' '.join(o for i,o in enumerate(r) if i not in timed) for r in rows if not (r and TIMES.search(r[0])))


def without_time_columns(text):
    "`text` without the numbers under headings such as `seconds`, in tables whose columns end below one another"
    ends, lines = set(), []
    for line in text.split('\n'):
        words = [(m[0], m.start(), m.end()) for m in re.finditer(r'\S+', line)]
        timed = {end for word,_,end in words if TIMES.search(word)}
        if len(words) > 2 and timed and not any(re.fullmatch(NUMBER, o[0]) for o in words): ends = timed
        if not words: ends = set()
        for word,start,end in words:
            if end in ends and re.fullmatch(NUMBER, word): line = line[:start] + ' '*len(word) + line[end:]
        lines.append(line)
    return '\n'.join(lines)


def text_of(out):
    "What an output says, pictures as their kind"
    if out.output_type == 'stream': return without_time_columns(joined(out.text))
    if out.output_type == 'error': return out.get('ename', 'error')
    data = out.get('data', {})
    if any(k.startswith('image/') for k in data): return '[a picture]'
    if 'text/html' in data:
        page = re.sub(r'<(style|script).*?</\1>', ' ', joined(data['text/html']), flags=re.S)
        return without_times(page) if '<table' in page else html.unescape(re.sub('<[^>]+>', ' ', page))
    return without_time_columns(joined(data.get('text/markdown') or data.get('text/plain') or ''))


def clean(text):
    "`text` without what changes from run to run"
    text = re.sub(r'\x1b\[[0-9;]*[A-Za-z]', '', text)
    for o in NOISE: text = o.sub(' ', text)
    return text


def said(cell):
    "Everything that the outputs of `cell` say, warnings left out"
    tidy(cell)
    return clean('\n'.join(text_of(o) for o in cell.outputs if o.get('name') != 'stderr'))


def tokens(text):
    "Words and numbers of `text`; rules of tables and other signs are left out"
    return re.findall(rf'{NUMBER}|[^\W\d_]+|\d+', re.sub(r'[-=─━│┃┏┓┗┛]{2,}', ' ', text))


def number(token):
    try: return float(token.replace(',', '').replace('−', '-'))
    except ValueError: return None


def same_number(a, b, measured):
    "Do the tokens `a` and `b` agree as numbers, measured ones roughly?"
    x, y = number(a), number(b)
    if x is None or y is None: return False
    if x == y or (math.isnan(x) and math.isnan(y)): return True
    whole = not any(o in a + b for o in '.e')
    if not measured: return not whole and math.isclose(x, y, rel_tol=2e-3, abs_tol=1e-4)
    if whole: return max(abs(x), abs(y)) < 1000 and abs(x - y) <= max(3, .25*max(abs(x), abs(y)))
    return math.isclose(x, y, rel_tol=.25, abs_tol=.05)


def difference(old, new, measured):
    "The first place where the texts `old` and `new` differ, or None"
    a, b = tokens(old), tokens(new)
    for i,(x,y) in enumerate(zip(a, b)):
        if x == y or same_number(x, y, measured): continue
        near = slice(max(0, i - 3), i + 4)
        return f'saved {" ".join(a[near])!r}, now {" ".join(b[near])!r}'
    if len(a) != len(b): return f'saved {len(a)} words, now {len(b)}: {" ".join((a if len(a) > len(b) else b)[min(len(a), len(b)):][:8])!r}'


def differences(saved, now):
    "Id of each cell whose output differs between two runs of a notebook, and where"
    found, measured, new = {}, False, {o.id: o for o in now.cells}
    for cell in saved.cells:
        if cell.cell_type != 'code': continue
        measured = measured or bool(TRAINS.search(cell.source))
        if 'varies' in cell.directives or cell.id not in new: continue
        where = difference(said(cell), said(new[cell.id]), measured)
        if where: found[cell.id] = where
    return found


def make_again(path, cfg, check):
    "Run the notebook at `path`; save its outputs, or say how they differ. Returns whether all is well"
    with tempfile.TemporaryDirectory() as tmp:
        to = Path(tmp)/'new.ipynb'
        out = run(path, to, cfg, paint=not check)
        if out.returncode:
            print(f'{path} failed\n{out.stderr}')
            return False
        new = read_nb(to)
    found = differences(read_nb(path), new)
    for cell,where in found.items(): print(f'{path} {cell}: {where}')
    if check: return not found
    for o in new.cells:
        if o.cell_type == 'code': tidy(o)
    write_nb(new, path)
    subprocess.run(['nbdev-clean', '--fname', str(path)], check=True, cwd=cfg.config_path)
    return True


def main(paths, check=False):
    "Make the outputs of the notebooks at `paths` again, or of all of them; returns whether all ran, and with `check` whether none differs"
    cfg = get_config(Path(__file__).parent)
    found = paths or sorted(o for o in cfg.nbs_path.rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(cfg.nbs_path).parts))
    return all([make_again(Path(o).resolve(), cfg, check) for o in found])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', help='notebooks; all of them if none is named')
    parser.add_argument('--check', action='store_true', help='save nothing; exit with 1 if an output differs')
    args = parser.parse_args()
    sys.exit(not main(args.notebooks, args.check))
