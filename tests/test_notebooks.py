"Every notebook runs from top to bottom, and every notebook is fit to be read"
import ast, os, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastcore.nbio import nb_frontmatter, read_nb
from nbdev.config import get_config

cfg = get_config(Path(__file__).parent)
NBS = sorted(o.relative_to(cfg.nbs_path) for o in cfg.nbs_path.rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(cfg.nbs_path).parts))
LESSONS = [o for o in NBS if o.parts[0] == 'course' or o.name == 'getting_started.ipynb']
REAL = ['MNIST', 'FashionMNIST', 'cifar-10-batches-py', 'eurosat']
EXPORTS = {'export', 'exports', 'exporti'}

RUN = """import sys
from nbdev.test import test_nb
path, root, skip, force = sys.argv[1:]
ok, _ = test_nb(path, skip_flags=skip.split(), force_flags=force.split(), basepath=root)
sys.exit(not ok)"""


def notebooks(which): return pytest.mark.parametrize('nb', which, ids=[o.as_posix() for o in which])
def read(nb): return read_nb(cfg.nbs_path/nb)
def code(nb): return [o for o in read(nb).cells if o.cell_type == 'code']


def flags():
    "The flagged cells that run: those named in `$NBDEV_FLAGS`, and `realdata` where `$DLCOURSE_DATA` holds every set"
    root = os.environ.get('DLCOURSE_DATA')
    real = 'realdata' if root and all((Path(root)/o).exists() for o in REAL) else ''
    return f"{os.environ.get('NBDEV_FLAGS', '')} {real}".strip()


def run(nb):
    "Run one notebook in a process of its own, which inherits nothing from another notebook"
    env = dict(os.environ, OMP_NUM_THREADS='1')
    args = [cfg.nbs_path/nb, cfg.config_path, cfg.tst_flags, flags()]
    return subprocess.run([sys.executable, '-c', RUN, *map(str, args)], env=env, capture_output=True, text=True)


@pytest.fixture(scope='module')
def runs(request):
    "The notebooks under test, running two at a time on two cores"
    mine = [o for o in request.session.items if o.module is request.module and o.originalname == 'test_runs']
    with ThreadPoolExecutor(min(4, os.cpu_count())) as pool:
        yield {(nb := o.callspec.params['nb']): pool.submit(run, nb) for o in mine}
        pool.shutdown(cancel_futures=True)


def needs_real(nb): return any('realdata' in o.directives for o in code(nb))
def marked(nb): return pytest.param(nb, id=nb.as_posix(), marks=[pytest.mark.realdata] if needs_real(nb) else [])


@pytest.mark.parametrize('nb', [marked(o) for o in NBS])
def test_runs(nb, runs):
    out = runs[nb].result()
    assert out.returncode == 0, f'{nb} failed\n{out.stdout}\n{out.stderr}'


def test_there_are_notebooks(): assert Path('index.ipynb') in NBS and Path('00_core.ipynb') in NBS


@notebooks(NBS)
def test_small(nb): assert (cfg.nbs_path/nb).stat().st_size < 1_000_000


@notebooks(NBS)
def test_title(nb):
    first = next(o for o in read(nb).cells if o.cell_type == 'markdown').source
    assert re.fullmatch(r'# [^\n]+\n+> [^\n]+\n?', first), 'the first text cell is "# Title", an empty line and "> one line"'
    assert 'description' in nb_frontmatter(read(nb))


@notebooks(LESSONS)
def test_lesson_shows_results(nb): assert any(o.outputs for o in code(nb)), 'run it with nbdev-test --save'


@notebooks(LESSONS)
def test_lesson_installs_itself_in_colab(nb):
    first = next(o for o in code(nb) if 'default_exp' not in o.directives)
    assert 'hide' in first.directives and "'google.colab' in sys.modules" in first.source and '%pip install -q dlcourse' in first.source


def texts(out):
    "The text of a saved output, pictures left out"
    return ''.join([out.get('text', '')] + [str(v) for k,v in out.get('data', {}).items() if k.startswith('text/')])


@notebooks(NBS)
def test_outputs_clean(nb):
    outs = [o for c in code(nb) for o in c.outputs]
    assert not [o for o in outs if o.output_type == 'error' or 'Traceback (most recent call last)' in texts(o)]
    assert not [o for o in outs if '\r' in texts(o)], 'progress bars: run tools/tidy.py'
    local = re.compile(r'(?<![\w.:/<~-])/(?:root|home|Users|tmp|work|workspace|mnt|opt|usr|var|private|content)/[\w.]')
    assert not [m[0] for o in outs if (m := local.search(texts(o)))], 'an output names a folder of the machine it ran on'


@notebooks(NBS)
def test_cells_short(nb):
    lessons = [c for c in code(nb) if not EXPORTS & c.directives.keys()]
    lines = {c.id: len([o for o in c.source.splitlines() if o.strip() and not o.startswith('#|')]) for c in lessons}
    assert not {k: v for k,v in lines.items() if v > 15}


@notebooks(NBS)
def test_imports_apart(nb):
    "The docs build runs each cell that imports, in a fresh namespace"
    def kinds(cell): return {type(o) for o in cell.parsed_() or []}
    mixed = [c.id for c in code(nb) if {ast.Import, ast.ImportFrom} & kinds(c) and {ast.Expr, ast.Assign} & kinds(c)]
    assert not mixed, 'imports and other code share a cell'


@notebooks(NBS)
def test_links_between_notebooks(nb):
    "Quarto takes the numbers off the names itself, so a link has to name the file as it is"
    links = re.findall(r'\]\((?!\w+:|#)([^)#\s]+)', '\n'.join(o.source for o in read(nb).cells if o.cell_type == 'markdown'))
    assert not [o for o in links if not (cfg.nbs_path/nb).parent.joinpath(o).exists()]
