"The command line: the main job, what it prints and writes, errors, interruption, and its help"
import io, json, os, re, resource, shlex, signal, subprocess, sys, time
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from conftest import Aside, needs_data, small_disk
from PIL import Image

import dlcourse
from dlcourse.cli import main
from dlcourse.cli.parsing import commands, groups, parser
from dlcourse.cli.studies import Progress
from dlcourse.cli.train import settings_of
from dlcourse.cli.values import shares, value
from dlcourse.course.shares import read_share
from dlcourse.training.databases import Address, is_address
from dlcourse.training.space import parse_space

MLP = 'train mlp --data digits --n-per-class 40 --set widths=16'
EVERY = [o.name.split() for o in commands.values()]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, drawn_on_request): monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    "Run a command in this process: exit code, lines of the output, lines of the error stream"
    def run(line):
        code = main(shlex.split(line))
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err.splitlines()
    return run


def command(*words, **kwargs):
    "A command in a process of its own"
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONUNBUFFERED='1')
    return subprocess.Popen([sys.executable, '-m', 'dlcourse', *words], env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def names(folder='.'): return sorted(o.relative_to(folder).as_posix() for o in Path(folder).rglob('*'))


def pictures(root, n=6, mode='L', side=8):
    "A folder of bright and dark images"
    rng = np.random.default_rng(0)
    for name, low in (('bright', 160), ('dark', 0)):
        (Path(root)/name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(low, low+90, (side, side), dtype=np.uint8)).convert(mode).save(Path(root)/name/f'{i}.png')


# ---- odd names, places and launchers -----------------------------------------------------------

ODD = ['$10-$20', '_ <b>', 'macro avg', '\x1b[2J', 'two\nlines', 'חתול', '猫', b'caf\xe9'.decode(errors='surrogateescape')]
if not os.path.supports_unicode_filenames and sys.getfilesystemencoding() != 'utf-8': ODD = [o for o in ODD if o.isascii()]


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "A folder of classes with odd names, and a run on it"
    root = tmp_path_factory.mktemp('odd')
    for k,name in enumerate(ODD):
        (root/'$a$'/name).mkdir(parents=True)
        for i in range(5): Image.fromarray(np.full((8, 8), 30*k, np.uint8)).save(root/'$a$'/name/f'{i}.png')
    with pytest.MonkeyPatch.context() as m:
        m.chdir(root)
        assert main(['train', 'mlp', '--data', '$a$', '--bs', '8', '--epochs', '1']) == 0
    return root


@pytest.mark.parametrize('line', ['data show $a$', 'evaluate mlp--a--1', 'predict mlp--a--1 $a$/*/0.png', 'report mlp--a--1'])
@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_odd_names_in_any_encoding(line, encoding, odd, drawn, monkeypatch):
    if line.startswith('report'): pytest.importorskip('typst')
    monkeypatch.chdir(odd)
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, 'stdout', out)
    words = [o for w in line.split() for o in (sorted(map(str, Path().glob(w))) if '*' in w else [w])]
    assert main(words) == 0
    said = out.buffer.getvalue().decode(encoding)
    assert '\x1b' not in said and out.errors == 'strict'
    if words[0] == 'evaluate': assert sum(o.startswith('macro avg') for o in said.splitlines()) == 2
    if words[0] == 'predict': assert len(said.splitlines()) == len(ODD)


def test_files_of_odd_names_are_utf8(odd):
    run = odd/'runs'/'mlp--a--1'
    text = (run/'report.csv').read_text(encoding='utf-8')
    assert all(o in text for o in ODD if o.isprintable()) and (r'caf\xe9' in text) == (ODD[-1] == 'caf\udce9')
    classes = json.loads((run/'metrics.json').read_text(encoding='utf-8'))['test']['classes']
    assert set(classes) == {o.replace('\udce9', r'\xe9') for o in ODD}


@pytest.mark.parametrize('line', ['search mlp --space lr=0.1|0.2', 'reproduce mba-7'])
def test_a_launcher_is_refused(line, run, monkeypatch):
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '2')
    code, out, err = run(line)
    assert (code, out, len(err)) == (2, [], 1) and 'start it without the launcher' in err[0] and names() == []


def test_two_runs_into_one_folder(run, monkeypatch):
    "The second, which looked before the first had written anything, is refused and leaves the first whole"
    from dlcourse.training import runs
    monkeypatch.setattr(runs, 'check_folder', lambda folder: None)
    assert run(f'{MLP} --epochs 1 --out one')[0] == 0
    before = Path('one/settings.json').read_bytes()
    code, out, err = run(f'{MLP} --epochs 2 --out one')
    assert code == 2 and 'one exists already' in err[0] and Path('one/settings.json').read_bytes() == before


def test_the_name_of_the_lock_is_taken(run):
    Path('one/.lock').mkdir(parents=True)
    code, out, err = run(f'{MLP} --epochs 1 --out one')
    assert code == 2 and len(err) == 1 and names() == ['one', 'one/.lock']


def test_a_user_without_an_entry_trains_again(run, monkeypatch):
    def unknown(*args): raise KeyError('getpwuid(): uid not found: 12345')
    monkeypatch.setattr('pwd.getpwuid', unknown)
    for o in ('USER', 'LOGNAME', 'LNAME', 'USERNAME', 'HOME'): monkeypatch.delenv(o, raising=False)
    assert run(f'{MLP} --epochs 1 --out one')[0] == 0 and names('one') == FILES


# ---- the main job ------------------------------------------------------------------------------

FILES = ['confusion_matrix.png', 'curves.png', 'history.csv', 'metrics.json', 'report.csv', 'report.txt', 'settings.json',
    'weights.safetensors']


def test_main_job_in_its_own_process():
    "As a user types it, on the images that come along: no network, no carriage return in a log, the result in the last line"
    p = command('train', 'cnn', '--epochs', '1', '--set', 'filters=8')
    out, err = p.communicate(timeout=300)
    assert (p.returncode, err) == (0, '')
    lines = out.splitlines()
    assert len(lines) == 3 and '\r' not in out and '\x1b' not in out
    assert re.fullmatch(r'\[1/1\] epoch 0  train_loss \S+  valid_loss \S+  accuracy \S+  \S+ s', lines[1])
    accuracy, where = re.fullmatch(r'test accuracy (0\.\d{4})  (\S+)', lines[2]).groups()
    assert where == 'runs/cnn-fashion_mini-1' and float(accuracy) > 0.5 and names(where) == FILES
    metrics = json.loads(Path(where, 'metrics.json').read_text())
    assert metrics['test']['n'] == 1000 and f"{metrics['test']['accuracy']:.4f}" == accuracy
    assert Path(where, 'report.txt').read_text().splitlines()[-2].startswith('macro avg')
    assert Path(where, 'history.csv').read_text().startswith('epoch,train_loss,valid_loss,accuracy,seconds\n0,')


def test_same_command_same_result(run):
    lines = [run(f'{MLP} --epochs 2')[1] for _ in range(2)]
    assert lines[0][-1].split()[-1] == 'runs/mlp-digits-1' and lines[1][-1].split()[-1] == 'runs/mlp-digits-2'
    assert lines[0][-1].split()[:3] == lines[1][-1].split()[:3]
    assert Path('runs/mlp-digits-1/weights.safetensors').read_bytes() == Path('runs/mlp-digits-2/weights.safetensors').read_bytes()


def test_options_reach_their_place(run):
    line = ('train cnn --data digits --classes 3,5,8 --n-per-class 40 --imbalance 1,0.5,0.5 --label-noise 0.1 '
            '--valid 0.25 --augment --bs 16 --size 10 '
            '--epochs 2 --lr 0.01 --schedule flat_cos --seed 7 --channels-last --early-stopping 2 --weight-decay 0.1 '
            '--label-smoothing 0.05 --device cpu '
            '--set filters=4,8 dropout=0.1 --set activation=gelu --out here')
    code, out, err = run(line)
    assert code == 0 and out[-1].endswith('  here'), err
    d = json.loads(Path('here/settings.json').read_text())
    s = d['settings']
    assert d['examples']['classes'] == ['3', '5', '8'] and d['examples']['train'] + d['examples']['valid'] == 80
    assert {k: s['data_args'][k] for k in ('imbalance', 'label_noise', 'valid', 'augment', 'bs', 'size')} == dict(
        imbalance=[1., 0.5, 0.5], label_noise=0.1, valid=0.25, augment=True, bs=16, size=10)
    assert {k: s['model_args'][k] for k in ('filters', 'dropout', 'activation')} == dict(filters=[4, 8], dropout=0.1, activation='gelu')
    assert s['learner_args'] == dict(early_stopping=2, wd=0.1, label_smoothing=0.05, precision='float32', channels_last=True)
    assert [s[k] for k in ('epochs', 'lr', 'schedule', 'seed', 'device')] == [2, 0.01, 'flat_cos', 7, 'cpu']


def test_learning_rate_found(run):
    code, out, _ = run(f'{MLP} --epochs 1 --lr auto')
    assert code == 0 and re.match(r'learning rate \S+, suggested by lr_find', out[1])
    assert Path('runs/mlp-digits-1/lr_find.png').stat().st_size > 1000


def test_numbers_instead_of_classes(run, drawn):
    code, out, _ = run('train mlp --data boston_housing --epochs 3 --set widths=16')
    assert code == 0 and re.fullmatch(r'test mean absolute error \d+\.\d{4}  runs/mlp-boston_housing-1', out[-1])
    assert names('runs/mlp-boston_housing-1') == [o for o in FILES if 'confusion' not in o]
    assert run('evaluate mlp-boston_housing-1')[1][-1] == out[-1]


def test_data_without_test_part(run):
    "Parts that the folder names are kept as they are"
    pictures('photos/train'), pictures('photos/valid')
    code, out, _ = run('train mlp --data photos --epochs 1 --bs 4')
    assert code == 0 and re.fullmatch(r'validation accuracy \S+ \(the data have no test part\)  runs/mlp-photos-1', out[-1])
    code, _, err = run('evaluate mlp-photos-1 --part test')
    assert (code, err) == (2, ['error: no test part: these DataLoaders hold train, valid'])


# ---- judging and predicting --------------------------------------------------------------------

def test_evaluate(run, drawn):
    trained = run(f'{MLP} --epochs 2')[1]
    before = Path('runs/mlp-digits-1/weights.safetensors').read_bytes()
    code, out, _ = run('evaluate runs/mlp-digits-1')
    assert code == 0 and out[-1] == trained[-1] and len(out) == 15
    for part, what in (('valid', 'validation'), ('train', 'training')):
        code, out, _ = run(f'evaluate mlp-digits-1 --part {part}')
        assert code == 0 and out[-1].startswith(f'{what} accuracy ') and Path(f'runs/mlp-digits-1/report_{part}.csv').exists()
    metrics = json.loads(Path('runs/mlp-digits-1/metrics.json').read_text())
    assert {'train', 'valid', 'test'} <= metrics.keys() and metrics['test']['n'] == 359
    assert Path('runs/mlp-digits-1/weights.safetensors').read_bytes() == before


def test_predict(run):
    "Images of other sizes and colours, in the order given; the same answer as for the test image itself"
    from dlcourse.data.sources import load
    from dlcourse.training.runs import Run
    run(f'{MLP} --epochs 3')
    x = load('digits').x_test[:3, 0].numpy()
    files = []
    for i, image in enumerate(x):
        image = Image.fromarray(image)
        if i == 1: image = image.convert('RGB')
        if i == 2: image = image.resize((64, 48))
        image.save(f'a picture {i}.png')
        files.append(f'a picture {i}.png')
    code, out, _ = run(f"predict mlp-digits-1 {' '.join(map(shlex.quote, files))}")
    probs = Run('mlp-digits-1').learner().get_preds(ds_idx=2)[0][:2]
    assert code == 0 and [o.partition('  ')[0] for o in out] == files
    for line, p in zip(out, probs):
        name, prob, top = re.fullmatch(r'a picture \d\.png  (\d)  (\S+)  \((.*)\)', line).groups()
        assert int(name) == p.argmax() and float(prob) == pytest.approx(p.max().item(), abs=1e-4)
        assert [int(o.split()[0]) for o in top.split(', ')] == p.argsort(descending=True)[:3].tolist()


def test_predict_refuses_a_network_whose_output_is_nan(run):
    from dlcourse.training.checkpoints import load_tensors, save_tensors
    run(f'{MLP} --epochs 1')
    file = 'runs/mlp-digits-1/weights.safetensors'
    tensors, notes = load_tensors(file)
    save_tensors(file, {k: v*0 + 3e38 if v.is_floating_point() else v for k,v in tensors.items()}, **notes)
    Image.new('L', (8, 8), 200).save('a.png')
    code, out, err = run('predict mlp-digits-1 a.png')
    assert (code, len(err)) == (2, 1) and 'the output of the network is NaN for 1 of 1 items' in err[0] and out == []


def test_predict_refuses_all_for_one_bad_file(run):
    run(f'{MLP} --epochs 1')
    Image.new('L', (8, 8)).save('good.png')
    Path('bad.png').write_text('no image')
    for bad in ('bad.png', 'missing.png', '.'):
        code, out, err = run(f'predict mlp-digits-1 good.png {bad}')
        assert (code, out) == (2, []) and len(err) == 1 and err[0].startswith(f'error: {bad} is not an image that can be read')


def test_two_evaluations_at_once_keep_both(run, monkeypatch):
    from dlcourse.insight import evaluation
    run(f'{MLP} --epochs 1')
    real = evaluation.evaluate
    def another(*args):
        monkeypatch.setattr(evaluation, 'evaluate', real)
        assert main('evaluate mlp-digits-1 --part valid'.split()) == 0
        return real(*args)
    monkeypatch.setattr(evaluation, 'evaluate', another)
    assert run('evaluate mlp-digits-1 --part train')[0] == 0
    assert json.loads(Path('runs/mlp-digits-1/metrics.json').read_text()).keys() >= {'test', 'valid', 'train'}


def test_evaluate_shows_what_it_cannot_write(run):
    run(f'{MLP} --epochs 1')
    with small_disk(10): code, out, err = run('evaluate mlp-digits-1')
    assert code == 2 and len(err) == 1 and any('macro avg' in o for o in out)


def test_predict_needs_images(run):
    run('train mlp --data boston_housing --epochs 1 --set widths=4')
    Image.new('L', (8, 8)).save('a.png')
    code, _, err = run('predict mlp-boston_housing-1 a.png')
    assert code == 2 and err == ['error: predict needs a network for images, and this one was trained on rows of numbers']


def test_export(run):
    "An ONNX program says what predict says; what cannot be written is said in one line, and leaves nothing"
    from dlcourse.data.sources import load
    from dlcourse.insight.inference import run_onnx
    run(f'{MLP} --epochs 1')
    code, out, err = run('export mlp-digits-1 -o new/digits.onnx')
    assert (code, out, err) == (0, ['ONNX program: new/digits.onnx'], []) and names('new') == ['digits.onnx']
    image = load('digits').x_test[:1]
    Image.fromarray(image[0, 0].numpy()).save('a.png')
    assert f"{run_onnx('new/digits.onnx', image).max():.4f}" == run('predict mlp-digits-1 a.png')[1][0].split()[2]
    Path('there').mkdir()
    for line, says in [('-o there', 'error: there exists already'), ('-o digits.tar', 'a name that ends in .onnx, or a folder'),
        ('-o a.png/digits', 'error: cannot write a.png/digits')]:
        before = names()
        code, out, err = run(f'export mlp-digits-1 {line}')
        assert code == 2 and not out and len(err) == 1 and says in err[0] and names() == before


def test_export_needs_images(run):
    run('train mlp --data boston_housing --epochs 1')
    code, _, err = run('export mlp-boston_housing-1 -o a.onnx')
    assert code == 2 and err == ['error: an exported network takes images as bytes, and these data are something else']
    assert names() == ['runs', *(f'runs/{o}' for o in names('runs'))]


# ---- data and networks -------------------------------------------------------------------------

def test_data_list(run):
    code, out, _ = run('data list')
    known = ['boston_housing', 'cifar10', 'digits', 'eurosat', 'fashion_mini', 'fashion_mnist', 'mnist']
    assert code == 0 and [o.split()[0] for o in out[1:]] == known
    assert next(o for o in out if o.startswith('digits')).split()[-1] == 'yes'


def test_data_list_says_what_is_here(run, monkeypatch, tmp_path):
    monkeypatch.setenv('DLCOURSE_DATA', str(tmp_path))
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    assert next(o for o in run('data list')[1] if o.startswith('cifar10')).split()[-1] == 'no'


def test_data_get_what_comes_along(run): assert run('data get digits')[:2] == (0, ['digits comes with the installation'])


def test_data_show(run, drawn):
    code, out, _ = run('data show digits')
    assert code == 0 and out[0].startswith('digits: 1,438 training') and out[-1].endswith('digits.png')
    with Image.open('digits.png') as im: assert im.width > 800
    pictures('photos', mode='RGB', side=20)
    code, out, _ = run('data show photos --size 10 -o new/p.png')
    assert code == 0 and '3×10×10' in out[0] and Path('new/p.png').exists()
    assert 'target' in run('data show boston_housing')[1][-1]


def test_archs(run):
    code, out, _ = run('archs')
    assert code == 0 and {'mlp', 'cnn', 'cnn_v3', 'residual', 'inception'} <= {o.split()[0] for o in out[1:]}


# ---- what cannot work --------------------------------------------------------------------------

BAD = [('train cn', "unknown architecture 'cn'. Did you mean 'cnn'"), ('train', 'which network? For example: dlcourse train cnn'),
       ('train cnn --data fashion_mni', "unknown data set 'fashion_mni'. Did you mean 'fashion_mini'"),
       ('train cnn --classes Sneakers,Bag', "unknown class 'Sneakers'. Did you mean 'Sneaker'"),
       ('train cnn --classes Bag', 'at least two'),
       ('train mlp --n-per-class 301', '301'), ('train mlp --bs 5000', 'bs must be at most 2400'),
       ('train mlp --imbalance 0', ''), ('train mlp --imbalance 1,2', 'imbalance must have 10 class sizes'), ('train mlp --valid 1.5', ''),
        ('train cnn_v3 --data digits', 'takes at least 17×17 pixels'), ('train cnn --data boston_housing', 'needs images'),
       ('train mlp --schedule cosine', "unknown schedule 'cosine'"),
       ('train mlp --device gpu', "unknown device 'gpu'"), ('train mlp --set widths',
       "--set takes KEY=VALUE, such as dropout=0.2, not 'widths'"),
       ('train mlp --set width=3', "Did you mean 'widths'"), ('train mlp --set widths=big', 'widths must be a whole number'),
       ('train mlp --set dropout=2', ''), ('train mlp --set activation=relo', "Did you mean 'relu'"),
       ('train mlp --lr 1e38 --schedule flat', 'the training loss is not a finite number at epoch 0'),
       ('train mlp --out file/x', 'cannot make a folder for the run'),
       ('train mlp --out full', 'full exists already'), ('train mlp --data empty', ''),
       ('train mlp --out ~no-one/x', '~no-one stands for the home folder of a user'), (f'train mlp --out {"n"*300}', 'at most 255 bytes'),
       (f'export nothing -o {"n"*300}', 'at most 255 bytes'), ('search mlp --space lr=1|2 --plot astray/x/a.png', 'astray is a link'),
       (f'search mlp --space lr=1|2 --plot {"n"*300}.png', 'at most 255 bytes'),
       ('train mlp --data one', 'at least two are needed'),
       ('train mlp --data spoiled', '2.png is not an image that can be read'), ('train --resume x', "unknown run 'x'"),
       ('train --resume full', 'is not a run folder'),
       ('train mlp --resume x --epochs 3', "--resume takes everything from the run's own settings: leave out arch, epochs"),
       ('evaluate nothing', "unknown run 'nothing'"),
       ('predict nothing a.png', "unknown run 'nothing'"), ('export nothing -o a.onnx', "unknown run 'nothing'"),
       ('data get mnits', "Did you mean 'mnist'"), ('data show mnits', "Did you mean 'mnist'"),
       ('data show fashion_mini -o file/x.png', 'cannot write file/x.png'), ('data show one', 'at least two are needed')]


@pytest.mark.parametrize('line, says', BAD, ids=[o[0] for o in BAD])
def test_bad_input(run, line, says):
    "One line on the error stream, exit code 2, no traceback, nothing left behind"
    Path('file').touch()
    Path('full').mkdir()
    Path('full/x').touch()
    Path('astray').symlink_to('nowhere')
    for o in ('empty/a', 'empty/b', 'one/a'): Path(o).mkdir(parents=True)
    Image.new('L', (8, 8)).save('one/a/1.png')
    pictures('spoiled')
    Path('spoiled/bright/2.png').write_bytes(b'no image')
    before = names()
    code, out, err = run(line)
    assert code == 2 and len(err) == 1 and err[0].startswith('error: ') and says in err[0], (code, err)
    assert names() == before


def test_what_the_system_refuses_is_one_line(run, monkeypatch):
    "Wherever it does"
    def refuse(*args): raise PermissionError(13, 'Permission denied', '/root/x')
    monkeypatch.setattr('dlcourse.training.runs.find_run', refuse)
    assert run('evaluate x') == (2, [], ['error: cannot use /root/x: Permission denied'])


@pytest.mark.parametrize('line', ['tain cnn', 'train cnn --epochs many', 'train cnn --epochs 0', 'train cnn --lr fast',
    'train cnn --lr=-1', 'train cnn --imbalance a',
    'train cnn --bs 0', 'train cnn --valid 0', 'train cnn --size 0', 'train cnn --early-stopping 0', 'train cnn --weight-decay=-1',
        'train cnn --label-smoothing 2',
    'train cnn --label-noise 2', 'train cnn --n-per-class 0', 'evaluate', 'predict run', 'export run', 'data get',
        'evaluate x --part all', 'train cnn --nonsense'])
def test_words_that_do_not_parse(capsys, line):
    with pytest.raises(SystemExit) as e: main(line.split())
    err = capsys.readouterr().err.splitlines()
    assert e.value.code == 2 and len(err) == 1 and err[0].startswith('error: ') and err[0].endswith(' --help`')
    assert names() == []


@pytest.mark.parametrize('words, says', [
    (['trian', 'cnn'], '(did you mean train?): see `dlcourse --help`'),
    (['data', 'lst'], '(did you mean list?): see `dlcourse data --help`'),
    (['train', 'cnn', '--epochz', '3'], 'unknown option --epochz (did you mean --epochs?): see `dlcourse train --help`'),
    (['evaluate', 'a', '--part', 'tset'], '(did you mean test?)'), (['train', 'cnn', 'mlp'], "'mlp' is one word too many"),
    (['train', 'cnn', '--data', ''], "--data: expected a name, not ''"), (['train', ' '], "NETWORK: expected a name, not ' '"),
    (['train', 'cnn', '--seed', 'x'], "expected a whole number from 0 to 4294967295, not 'x'"),
    (['train', 'cnn', '--channels', 'x'], "expected a whole number of at least 1, not 'x'"),
    (['evaluate', 'a', '--part=--'], 'expected a value'),
    (['train', 'cnn', '--seed=-1'], "expected a whole number from 0 to 4294967295, not '-1'"),
    (['train', '--' + 'x\n'*3000], 'unknown option --x')])
def test_words_that_do_not_parse_get_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as e: main(words)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith('error: ') and says in err and err.count('\n') == 1 and len(err) < 400


def test_run_of_another_version(run):
    run(f'{MLP} --epochs 1')
    path = Path('runs/mlp-digits-1/settings.json')
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    for line in ('evaluate mlp-digits-1', 'predict mlp-digits-1 a.png', 'train --resume mlp-digits-1'):
        code, _, err = run(line)
        assert code == 2 and 'is a run of format 99' in err[0] and len(err) == 1


def test_finished_run_is_not_trained_again(run):
    run(f'{MLP} --epochs 1')
    assert run('train --resume mlp-digits-1')[2] == ['error: runs/mlp-digits-1 is finished (1 epochs): evaluate it, or start another run']


def test_finished_run_that_was_not_judged_is_judged(run):
    trained = run(f'{MLP} --epochs 1')[1]
    for o in ('metrics.json', 'curves.png'): Path('runs/mlp-digits-1', o).unlink()
    code, out, _ = run('train --resume mlp-digits-1')
    assert code == 0 and out[-1] == trained[-1] and names('runs/mlp-digits-1') == FILES


def test_full_disk(run, monkeypatch):
    from dlcourse.core import CourseError
    def full(path, *args): raise CourseError(f'cannot write {path}: No space left on device')
    for o in ('files', 'training.runs'): monkeypatch.setattr(f'dlcourse.{o}.whole_file', full)
    assert run(f'{MLP} --epochs 1') == (2, [], ['error: cannot write runs/mlp-digits-1/settings.json: No space left on device'])
    assert names() == []


def test_faults_of_ours_show_their_traceback(monkeypatch):
    def broken(args): raise ValueError('a fault')
    monkeypatch.setattr(commands['archs'], 'run', broken)
    with pytest.raises(ValueError, match='a fault'): main(['archs'])


def test_reader_that_goes_away():
    code = ("import sys; from dlcourse.cli import main; from dlcourse.cli.parsing import commands; "
            "commands['archs'].run = lambda args: print('x'); sys.exit(main(['archs']))")
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.close()
    err = p.stderr.read()
    assert p.wait(timeout=100) == 141 and 'Traceback' not in err and 'BrokenPipe' not in err


# ---- pretrained networks -----------------------------------------------------------------------

FROM_FILE = 'train squeezenet1_1 --data digits --n-per-class 10 --bs 20 --size 32 --weights w'


@pytest.fixture
def weights(monkeypatch):
    "A folder with weights of chance; no other weights and no hub are to be had"
    import torch
    from torchvision.models import squeezenet1_1
    def unreachable(*args, **kwargs): raise URLError('no network in tests')
    for k in ('DLCOURSE_WEIGHTS', 'DLCOURSE_DATA'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('TORCH_HOME', str(Path('hub').resolve()))
    for o in ('torch.hub.urlopen', 'torch.hub.download_url_to_file'): monkeypatch.setattr(o, unreachable)
    monkeypatch.setattr('dlcourse.models.weights.urlopen', unreachable)
    Path('w').mkdir()
    torch.manual_seed(1)
    torch.save(squeezenet1_1(num_classes=3).state_dict(), 'w/squeezenet1_1.pth')
    return Path('w/squeezenet1_1.pth')


def test_pretrained_from_training_to_prediction(run, weights):
    "One line says which weights; afterwards the run needs neither their file nor the hub"
    code, out, err = run(f'{FROM_FILE} --pretrained --cache --epochs 2')
    assert (code, err, len(out)) == (0, [], 5), err
    assert out[0].startswith('squeezenet1_1 (torchvision), weights: squeezenet1_1.pth; mean (0.485,')
    assert names('runs/squeezenet1_1-digits-1') == FILES
    d = json.loads(Path('runs/squeezenet1_1-digits-1/settings.json').read_text())
    assert d['backbone']['weights'] == 'squeezenet1_1.pth' and d['settings']['model_args']['head'] == 'fastai'
    assert d['settings']['learner_args']['cache'] is True
    weights.unlink()
    assert run('evaluate squeezenet1_1-digits-1')[1][-1] == out[-1]
    from dlcourse.data.sources import load
    from dlcourse.training.runs import Run
    Image.fromarray(load('digits').x_test[0, 0].numpy()).save('a.png')
    code, said, err = run('predict squeezenet1_1-digits-1 a.png')
    assert (code, err, len(said)) == (0, [], 1), err
    p = Run('squeezenet1_1-digits-1').learner().get_preds(ds_idx=2)[0][0]
    assert said[0].split()[1] == str(p.argmax().item()) and float(said[0].split()[2]) == pytest.approx(p.max().item(), abs=1e-3)


def test_transfer_options_reach_their_place(run, weights):
    code, out, err = run(f'{FROM_FILE} --cache f.safetensors --copies 2 --augment --head linear --fine-tune 1 --set dropout=0.1 --out here')
    assert code == 0 and [o[:5] for o in out[2:-1]] == ['[1/1]']*2 and 'epoch 1' in out[3], err
    s = json.loads(Path('here/settings.json').read_text())['settings']
    assert s['model_args'] == dict(pretrained=True, weights='w', head='linear', dropout=0.1) and (s['epochs'], s['fine_tune']) == (1, 1)
    assert {k: s['learner_args'][k] for k in ('frozen', 'cache', 'copies')} == dict(frozen=True,
        cache=str(Path('f.safetensors').resolve()), copies=2)
    assert Path('f.safetensors').stat().st_size > 10_000


@pytest.mark.parametrize('words, arch, model, learner', [
    ('mobilenet_v2 --no-pretrained', 'mobilenet_v2', dict(pretrained=False), {}),
    ('mobilenet_v2 --unfrozen', 'mobilenet_v2', {}, dict(frozen=False)),
    ('mobilenet_v2', 'mobilenet_v2', {}, {}), ('--fuse alexnet+mobilenet_v2 --cache', 'alexnet+mobilenet_v2', {}, dict(cache=True)),
    ('alexnet+mobilenet_v2 --set how=late', 'alexnet+mobilenet_v2', dict(how='late'), {}),
    ('resnet18 --pretrained --weights IMAGENET1K_V1', 'resnet18', dict(pretrained=True, weights='IMAGENET1K_V1'), {})])
def test_transfer_words(words, arch, model, learner):
    s = settings_of(parser().parse_args(['train', *words.split()]))
    assert (s.arch, s.model_args, s.learner_args) == (arch, model, learner)


def spoil(path):
    "Files in `w` that are no weights of SqueezeNet"
    import torch
    from torchvision.models import shufflenet_v2_x0_5
    Path('w/cut.pth').write_bytes(path.read_bytes()[:10_000])
    Path('w/cut.safetensors').write_bytes(b'\x90' + bytes(7) + b'{"a"')
    torch.save(shufflenet_v2_x0_5().state_dict(), 'w/other.pth')
    torch.save(shufflenet_v2_x0_5(), 'w/pickled.pth')
    Path('w/text.pth').write_text('weights')


BAD_TRANSFER = [('--weights w/cut.pth', 'w/cut.pth cannot be read as weights: it is damaged or incomplete'),
    ('--weights w/cut.safetensors', 'w/cut.safetensors cannot be read as weights'),
    ('--weights w/other.pth', 'w/other.pth is not of squeezenet1_1: of the 50 weights of its body 0 are there'),
    ('--weights w/pickled.pth', 'w/pickled.pth holds pickled code'),
    ('--weights w/text.pth', 'w/text.pth'), ('--weights nowhere', 'there is no file or folder nowhere'),
    ('--size 16 --weights w', 'the smallest square ones it takes have 17×17'),
    ('--no-pretrained --cache', 'cache needs a frozen part; squeezenet1_1 is trained from scratch'),
    ('--no-pretrained --weights w', 'pretrained=False'),
    ('--weights w --cache w/other.safetensors', 'w/other.safetensors is not a file of features'),
    ('--weights w --unfrozen --fine-tune 2', 'fine_tune needs a frozen part'),
    ('--weights w --fuse alexnet+mobilenet_v2', "--fuse alexnet+mobilenet_v2 is the network: leave out 'squeezenet1_1'"),
    ('--weights w --head fast', "Did you mean 'fastai'")]


def test_bad_weights_and_options_leave_nothing(run, weights):
    "Each gets one line on the error stream and exit code 2"
    spoil(weights)
    Path('w/other.safetensors').write_text('text')
    before = names()
    for words, says in BAD_TRANSFER:
        code, out, err = run(f'train squeezenet1_1 --data digits --n-per-class 10 --bs 20 --size 32 {words}')
        assert code == 2 and len(err) == 1 and err[0].startswith('error: ') and says in err[0], (words, code, err)
        assert names() == before, words


@pytest.mark.parametrize('line, says', [('cnn --cache', 'cache needs a pretrained network'), ('cnn --pretrained',
    'pretrained needs a pretrained network'),
    ('--fuse alexnet+resnt18', "unknown architecture 'resnt18'. Did you mean 'resnet18'"),
    ('--fuse alexnet', '--fuse takes two or more networks, such as alexnet+mobilenet_v2'),
    ('alexnet+mobilenet_v2 --size 32', 'alexnet does not work on images of 32×32 pixels; the smallest square ones it takes have 63×63'),
    ('resnt18', "Did you mean 'resnet18'")])
def test_bad_networks(run, line, says):
    code, out, err = run(f'train {line} --data digits')
    assert (code, out, len(err)) == (2, [], 1) and says in err[0] and names() == []


def test_hub_that_cannot_be_reached(run, weights, monkeypatch):
    "The error says where a file may be put, and a file that was put there is used"
    line = f"{FROM_FILE.removesuffix(' --weights w')} --epochs 1"
    code, out, err = run(f'{line} --pretrained')
    assert code == 2 and not Path('runs').exists()
    assert 'squeezenet1_1.safetensors or squeezenet1_1.pth into $DLCOURSE_WEIGHTS, a folder' in err[-1]
    assert 'https://download.pytorch.org' in err[-1]
    monkeypatch.setenv('DLCOURSE_WEIGHTS', 'w')
    assert run(f'{line} --pretrained')[0] == 0


@pytest.mark.parametrize('line', ['train --cache mobilenet_v2', 'train alexnet --fine-tune 0', 'train alexnet --copies 0'])
def test_transfer_words_that_do_not_parse(capsys, line):
    with pytest.raises(SystemExit) as e: main(line.split())
    assert e.value.code == 2 and 'expected ' in capsys.readouterr().err


@needs_data('weights')
def test_real_weights(run):
    "MobileNetV2 from the weights of ImageNet learns more from 8 digits of each kind than chance would"
    code, out, err = run('train mobilenet_v2 --data digits --n-per-class 10 --bs 20 --size 32 --cache --epochs 10')
    assert code == 0 and 'weights: mobilenet_v2_features.safetensors' in out[0] and float(out[-1].split()[2]) > 0.4, (out, err)


# ---- interrupted -------------------------------------------------------------------------------

def wait_for(done, p, seconds=120):
    end = time.time() + seconds
    while not done():
        assert not p.ended() and time.time() < end, p.result(1)
        time.sleep(0.02)


def test_interrupt_and_resume(run):
    "Ctrl-C after some epochs keeps them and says how to carry on; the end is that of a run without interruption"
    words = shlex.split(f'{MLP} --epochs 60 --out cut --set dropout=0.1')
    p = Aside(f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler) # where the tests run in the background it would be ignored
from dlcourse.cli import main
sys.exit(main({words}))""")
    history = Path('cut/history.csv')
    wait_for(lambda: history.exists() and history.read_text().count('\n') > 2, p)
    os.kill(p.process.pid, signal.SIGINT)
    code, out, err = p.result()
    assert code == 130 and 'Traceback' not in err
    n = int(re.search(r'interrupted; (\d+) of 60 epochs are kept in cut\ncarry on with: dlcourse train --resume cut\n$', err)[1])
    assert 2 <= n < 60 and history.read_text().count('\n') == n+1
    assert names('cut') == ['checkpoint.safetensors', 'history.csv', 'settings.json', 'weights.safetensors']
    assert run('evaluate cut --part valid')[0] == 0
    code, out, _ = run('train --resume cut')
    assert code == 0 and out[0].startswith(f'Run cut: mlp on digits, {n} of 60 epochs') and len(out) == 60 - n + 2
    threads = json.loads(Path('cut/settings.json').read_text())['settings']['threads'] # of the process that started it
    whole = run(f'{MLP} --epochs 60 --out whole --set dropout=0.1 --threads {threads}')[1]
    assert out[-1].split()[:3] == whole[-1].split()[:3]
    assert Path('cut/weights.safetensors').read_bytes() == Path('whole/weights.safetensors').read_bytes()
    strip = lambda p: [o.rpartition(',')[0] for o in Path(p, 'history.csv').read_text().splitlines()]
    assert strip('cut') == strip('whole')


@pytest.mark.parametrize('where, says', [('dlcourse.training.progress.TextProgress.after_epoch',
    'interrupted before the first epoch had ended; nothing was kept'),
                                         ('dlcourse.insight.evaluation.evaluate', 'interrupted')])
def test_interrupt_elsewhere(run, monkeypatch, where, says):
    def ctrl_c(*args): raise KeyboardInterrupt
    monkeypatch.setattr(where, ctrl_c)
    code, out, err = run(f'{MLP} --epochs 1')
    trained = 'evaluation' in where
    assert code == 130 and err[1] == says
    assert err[2:] == (['carry on with: dlcourse train --resume runs/mlp-digits-1'] if trained else [])
    if not trained: assert names() == []
    monkeypatch.undo()


# ---- help --------------------------------------------------------------------------------------

@pytest.mark.parametrize('words', EVERY + [[o] for o in groups] + [[]], ids=' '.join)
def test_help(words, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    with pytest.raises(SystemExit) as e: main([*words, '--help'])
    out = capsys.readouterr().out
    assert e.value.code == 0 and 'examples:\n  dlcourse ' in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize('words', [[o] for o in groups] + [[]], ids=' '.join)
def test_half_a_command_gets_the_help(words, run):
    code, out, err = run(shlex.join(words))
    assert code == 0 and 'usage: ' in out[0] and not err


@pytest.mark.parametrize('line', sorted({line for c in commands.values() for line in c.examples}))
def test_examples_parse(line):
    words = shlex.split(line)
    assert words[0] == 'dlcourse' and parser().parse_args(words[1:]).run in [c.run for c in commands.values()]


def test_every_command_says_what_it_does():
    for c in commands.values(): assert c.run.__doc__ and '\n' not in c.run.__doc__ and c.examples


def test_version(capsys):
    with pytest.raises(SystemExit) as e: main(['--version'])
    assert e.value.code == 0 and capsys.readouterr().out == f'dlcourse {dlcourse.__version__}\n'


def test_help_imports_nothing_heavy():
    code = f"""
import sys
from dlcourse.cli import main
for words in {EVERY + [[]]}:
    try: main([*words, '--help'])
    except SystemExit: print('ok', file=sys.stderr)
print(*({{'torch', 'fastai', 'torchvision', 'numpy', 'pandas', 'matplotlib', 'fastcore'}} & sys.modules.keys()), file=sys.stderr)"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.stderr.split() == ['ok'] * (len(EVERY) + 1)


def cpu_time(code):
    "Seconds of processor time of a Python process: less disturbed than the clock by what else the machine does"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, '-c', code], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_quick():
    start = "from dlcourse.cli import main; main(['--help'])"
    assert min(cpu_time(start) for _ in range(2)) < 0.3 * cpu_time('import torch')


@pytest.mark.parametrize('line, words', [
    (['data', 'show', 'digits', '-o', 'nope'], "expected a name that ends in .png, .svg or .pdf, not 'nope'"),
    (['data', 'show', 'digits', '--size', '9'], '--size is for a folder of images'), (['train', 'mlp', '--bs', 'x'*5000], "not 'xxx")])
def test_odd_values_write_nothing(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try: code = main(line)
    except SystemExit as e: code = e.code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and words in last and len(last) < 300 and not list(tmp_path.iterdir())


# ---- words to values ---------------------------------------------------------------------------

@pytest.mark.parametrize('text, expected', [('3', 3), ('0.5', 0.5), ('1e-3', 1e-3), ('16,32', (16, 32)), ('[1, 2]', [1, 2]), ('gelu',
    'gelu'), ('True', True),
                                            ('false', False), ('none', None), ("'3'", '3'), ('__import__("os")', '__import__("os")'),
                                            ('', '')])
def test_values(text, expected): assert value(text) == expected and type(value(text)) is type(expected)


@pytest.mark.parametrize('text, expected', [('2', 2), ('0.1', 0.1), ('3,2.5', [3, 2.5]), ('1,0.5', [1., 0.5]), ('Bag=1', {'Bag': 1}),
    ('T-shirt/top=0.5,Ankle boot=3', {'T-shirt/top': 0.5, 'Ankle boot': 3})])
def test_shares(text, expected): assert shares(text) == expected


# ---- reproduce ---------------------------------------------------------------------------------

def test_reproduce_lists_runs_and_records(run):
    "A list without names; a quick run of one part; the record; nothing left to do the second time"
    code, out, _ = run('reproduce -o records')
    assert code == 0 and any('tp1-1.3' in o and 'not measured' in o for o in out) and not Path('records').exists()
    code, out, _ = run('reproduce tp1-1.3 --variant ours -o records')
    assert code == 0 and out[0] == 'tp1-1.3 ours seed 1 (1 of 1)' and out[-1] == 'records: records'
    assert names('records') == ['tp1-1.3.quick.json']
    text = Path('records/tp1-1.3.quick.json').read_text()
    code, out, _ = run('reproduce tp1-1.3 --variant ours -o records')
    assert code == 0 and out[0].startswith('tp1-1.3: ') and Path('records/tp1-1.3.quick.json').read_text() == text


@pytest.mark.parametrize('line, message', [('reproduce mba-77', "unknown experiment 'mba-77'"), ('reproduce tp1-1.3 --variant our',
    "unknown variant 'our'. Did you mean 'ours'"),
                                           ('reproduce tp1-1.3 tp1-1.4 --variant ours', '--variant goes with one experiment'),
                                           ('reproduce tp1-1.1 --device tpu', "unknown device 'tpu'")])
def test_reproduce_refuses(run, line, message):
    code, _, err = run(f'{line} -o records')
    assert code == 2 and err[0].startswith('error: ') and message in err[0] and not Path('records').exists()


def test_reproduce_in_full_without_the_data(run, monkeypatch):
    monkeypatch.setenv('DLCOURSE_DATA', 'nowhere')
    monkeypatch.setenv('FASTAI_HOME', str(Path('home').absolute()))
    code, _, err = run('reproduce tp1-1.2 --full -o records')
    assert code == 2 and 'needs cifar10: dlcourse data get cifar10' in err[0] and not Path('records').exists()
    code, _, err = run('reproduce mac-3a mac-4d --full -o records')
    assert code == 2 and err[0].startswith('error: mac-3a mac-4d in full needs mnist, cifar10, eurosat: ')
    assert 'dlcourse data get eurosat (not found in nowhere or ' in err[0]


def test_reproduce_says_what_its_figures_are(run):
    "A quick run is called one, also the second time, when nothing is left to do; a list names the folder and the time that is usual"
    code, out, _ = run('reproduce tp1-1.1 -o records')
    assert code == 0 and any('a quick run' in o for o in out) and not any('nothing was left' in o for o in out)
    code, out, _ = run('reproduce tp1-1.1 -o records')
    assert any('nothing was left to run; --again' in o for o in out)
    code, out, _ = run('reproduce mba-1 --full -o records')
    assert code == 0 and not any('quick' in o for o in out)
    code, out, _ = run('reproduce -o records')
    assert out[-1] == 'records: 1 in records' and next(o for o in out if o.startswith('mac-3c')).split()[-2:] == ['about', '7']


def test_reproduce_looks_at_the_folder_first(run):
    Path('records').write_text('a file')
    code, out, err = run('reproduce tp1-1.1 -o records/deep')
    assert code == 2 and err[0].startswith('error: cannot write to records/deep: ') and err[0].endswith('records is a file') and not out


def test_progress_of_a_terminal_keeps_the_trial(monkeypatch, capsys):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    show = Progress()
    show('mba-7 seed 1'); show('epoch 1 of 3'); show('epoch 2 of 3'); show.clear()
    assert [o for o in re.split(r'\r\x1b\[K', capsys.readouterr().out) if o] == ['mba-7 seed 1', 'mba-7 seed 1, epoch 1 of 3',
        'mba-7 seed 1, epoch 2 of 3']


def test_reproduce_after_ctrl_c(run, monkeypatch):
    "What is recorded is kept, and it is said how to carry on"
    from dlcourse.course import experiment
    def stop(exp, trial):
        if trial.seed == 2: raise KeyboardInterrupt
        return real(exp, trial)
    real = experiment.one_trial
    monkeypatch.setattr(experiment, 'one_trial', stop)
    code, _, err = run('reproduce mba-1 --seeds 3 -o records')
    assert code == 130 and err[-1] == 'the same command carries on' and names('records') == ['mba-1.quick.json']


def test_best_settings_can_be_copied_into_python(run):
    code, out, _ = run("search mlp --data digits --n-per-class 20 --space 'lr=0.001:0.1:log,opt_func=adamw|sgd,widths=[16]|[8,4]' "
                       '--n 2 --epochs 1 --set activation=gelu')
    said, _, call = out[-1].partition(': ')
    names = {}
    exec('from dlcourse.all import *', names)
    learn = eval(call, names)
    assert code == 0 and said == 'with the best settings' and len(learn.dls.train_ds) < 200
    assert any(type(o).__name__ == 'GELU' for o in learn.model.modules())


# ---- shares ---------------------------------------------------------------------------------------

def test_shares_are_measured_and_merged(run):
    for k in (1, 2): assert run(f'reproduce tp1-1.1 --seeds 2 --share {k}/2 -o {k}')[0] == 0
    code, out, err = run('reproduce --merge 1 2 -o all')
    assert (code, err) == (0, []) and out[0].startswith('tp1-1.1: CIFAR-10') and out[-1] == 'records: all'
    rows = json.loads(Path('all/tp1-1.1.quick.json').read_text())['rows']
    assert [r['seed'] for r in rows] == [1, 2] and run('reproduce tp1-1.1 --merge 1 2 -o all')[0] == 0


@pytest.mark.parametrize('line, says', [
    ('reproduce tp1-1.1 --share 3/2 -o new', 'share must be K/N with K from 1'),
    ('reproduce tp1-1.1 --share= -o new', 'share must be K/N'),
    ('reproduce mba --full --share x -o new', 'share must be K/N'),
    ('reproduce tp1-1.1 --share 1/2 --again -o new', 'share goes without again'),
    ('reproduce --merge a --share 1/2 -o new', '--merge joins records and measures nothing: leave out --share'),
    ('reproduce tp1-1.1 --merge a --seeds 2 -o new', 'leave out --seeds'), ('reproduce --merge a b -o new', 'there is no folder a'),
    ('reproduce --merge . -o new', '. has no record to merge'), ('reproduce tp1-1.11 --merge . -o new', 'unknown experiment')])
def test_shares_and_merges_that_cannot_be(line, says, run):
    code, out, err = run(line)
    assert code == 2 and says in err[0] and not Path('new').exists()


# ---- commands on pages ---------------------------------------------------------------------------

def scripts(page):
    "The blocks of bash on a page"
    cells = json.loads((Path(__file__).parents[1]/'nbs'/page).read_text(encoding='utf-8'))['cells']
    return [o for c in cells if c['cell_type'] == 'markdown' for o in re.findall(r'^```bash\n(.*?)^```', ''.join(c['source']), re.M | re.S)]


SCRIPTS = scripts('cli/07_machines.ipynb')


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_parse(script):
    "Bash takes each script, and dlcourse each of its commands, within quotes too"
    checked = subprocess.run(['bash', '-n'], input=script, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, '')
    lines = re.findall(r'\bdlcourse (?:search|reproduce) .*', script.replace('\\\n', ' '))
    for line in lines:
        line = re.sub(r"\$\{?\w+\}?", '1', re.split(r" > |' *$|;|&|\)", line)[0])
        args = parser().parse_args(shlex.split(line)[1:])
        assert args.run in [c.run for c in commands.values()]
        if getattr(args, 'space', None): parse_space(args.space)
        if is_address(getattr(args, 'storage', None)): assert Address(args.storage).search == 'widths'
        if getattr(args, 'share', None): read_share(args.share)
    assert lines or 'createdb' in script


def test_scripts_of_pages_are_found(): assert [sum(f'dlcourse {k}' in o for o in SCRIPTS) for k in ('search', 'reproduce')] == [3, 4]
