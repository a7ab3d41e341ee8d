"The report: its pages, what must fit on them, odd texts, bad input, and its command"
import json, re, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.learner import Learner
from fastai.metrics import accuracy
from torch import nn

from dlcourse.report import pages as module
from dlcourse.cli import main
from dlcourse.core import CourseError
from dlcourse.data.blocks import dls_for
from dlcourse.report.entries import evaluate_entries, options_text, read_entries
from dlcourse.report.layout import Layout, left_out, shrink_to_pages, steps
from dlcourse.report.pages import Contents, Texts, Typeset, report
from dlcourse.report.wording import Printable, Wording, breakable, first_words, font_folder, paragraphs, phrases
from dlcourse.training.learner import learner_for
from dlcourse.training.runs import Run, start
from dlcourse.training.settings import Settings

typst = pytest.importorskip('typst')
NASTY = '#panic("x") #pagebreak() $a_b$ *b* _c_ @d <e> \\ // /* [ ]]) "q" `r` = h\n+ i\n#set page(columns: 1)'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with two runs"
    path = tmp_path_factory.mktemp('reports')
    with pytest.MonkeyPatch.context() as m:
        m.chdir(path)
        for n in (8, 32):
            run = start(Settings('mlp', 'digits', epochs=2, seed=1, data_args=dict(n_per_class=60), model_args=dict(widths=[n])))
            run.train()
    return path


@pytest.fixture(autouse=True)
def there(home, monkeypatch): monkeypatch.chdir(home)


@pytest.fixture
def learn(home):
    learn = Run('mlp-digits-2').learner()
    return learn


@pytest.fixture
def plain(monkeypatch):
    "Figures that take no time, for tests that don't look at them"
    def square(o, say, *args): return dict(svg='<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', caption='a square')
    for o in ('curves_figure', 'matrix_figure', 'examples_figure'): monkeypatch.setattr(module, o, square)


def stock(dls, n=1, **kwargs):
    "A Learner as fastai makes it"
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), loss_func=nn.CrossEntropyLoss(), metrics=accuracy, **kwargs)
    with learn.quiet(): learn.fit(n, 1e-2)
    return learn


def pdf_pages(path): return len(re.findall(rb'/Type\s*/Page\b', Path(path).read_bytes()))
def leftovers(): return [o.name for o in Path().iterdir() if '.part' in o.name]


# ---- pages -------------------------------------------------------------------------------------

@pytest.mark.parametrize('names, lang', [(['mlp-digits-1'], 'en'), (['mlp-digits-1'], 'pt'), (['mlp-digits-1', 'mlp-digits-2'] * 2, 'pt')])
def test_pages_of_the_file_itself(names, lang):
    res = report(names, 'a.pdf', lang=lang, authors=['João Conceição', 'Zoë'], abstract='ação ' * 100,
        observations='É só uma observação. ' * 100)
    assert pdf_pages('a.pdf') == res.pages == len(res.images(20)) and res.pages in (1, 2) and not res.left_out
    assert Path('a.pdf').read_bytes()[:5] == b'%PDF-' and not leftovers()
    assert res._repr_png_()[:4] == b'\x89PNG' and len(res._repr_png_()) < 200_000


def test_long_observations():
    res = report('mlp-digits-1', 'long.pdf', observations='All of this was seen. ' * 1300)
    assert pdf_pages('long.pdf') == res.pages == 2
    kept, of = map(int, re.fullmatch(r'observations cut after (\d+) of (\d+) words', res.left_out[-1]).groups())
    assert of == 6500 and 3000 < kept < 5000
    assert res.left_out[:-1] == ['figures at 70% of their size', 'type of 8 pt', 'no examples', 'no table by class', 'no confusion matrix']
    assert all(o in repr(res) for o in res.left_out) and '2 pages' in repr(res)
    assert Wording('en')('cut') in json.loads(res.made.data)['observations'][-1]


def test_many_learners(plain):
    r = Run('mlp-digits-1').learner()
    res = report({f'a learner with a name of some length, number {i}': r for i in range(60)}, 'many.pdf')
    assert pdf_pages('many.pdf') == res.pages == 2 and 'the best 20 learners of 60' in res.left_out
    assert len(json.loads(res.made.data)['results']['rows']) == 20


def test_same_report_same_bytes():
    files = [Path(report('mlp-digits-1', f'{i}.pdf', date='').path).read_bytes() for i in 'ab']
    assert files[0] == files[1]


@pytest.mark.parametrize('room', range(0, 3000, 250))
def test_never_more_than_two_pages(room):
    "Whatever takes the room, the first step that suffices is the last one taken"
    tried = []
    def pages(f):
        tried.append(f)
        return 2 if f.words + 100*f.examples + 40*f.classes + 300*f.matrix + 500*f.figures + 100*f.size <= room + 1000 else 3
    full = Layout(words=2000)
    if pages(Layout(figures=0.7, size=8, examples=0, classes=0, matrix=False, learners=5, words=0)) > 2:
        with pytest.raises(CourseError, match='report on fewer learners'): shrink_to_pages(full, pages)
    else:
        fit = shrink_to_pages(full, pages)
        assert pages(fit) == 2 and fit.size >= 8
        if 0 < fit.words < 2000: assert pages(Layout(**{**vars(fit), 'words': fit.words+1})) == 3


def test_steps_only_go_down():
    fit = vars(Layout())
    for step in steps:
        for k,v in step.items():
            assert k == 'floats' or v < fit[k]
            fit[k] = v
    assert fit['words'] == 0 and fit['size'] == 8 and left_out(Layout(), Layout()) == []


def test_tall_tables_do_not_run_off_the_page(plain):
    "A table that is higher than a page counts as too much, although Typst would set it on one page"
    es = read_entries('mlp-digits-1')
    evaluate_entries(es, Printable())
    data = Contents(es, Texts('t', [], '', '', ''), Wording()).data(Layout())
    wide = dict(data['results'], wide=True)
    def pages(n): return Typeset(json.dumps(dict(data, results=dict(wide, rows=wide['rows']*n)))).pages
    assert pages(20) <= 2 < pages(120)


# ---- texts -------------------------------------------------------------------------------------

def test_nasty_texts_are_text(learn):
    "Typst's signs do nothing: ten page breaks make no page"
    res = report({NASTY[:30]: learn, '_' + 'b'*90: learn}, 'n.pdf', title=NASTY, authors=[NASTY[:60]], date='#today()', abstract=NASTY,
        observations=NASTY*10)
    assert res.pages == pdf_pages('n.pdf') <= 2 and not res.left_out
    plain = json.loads(res.made.data)['observations'][0].replace('\u200b', '')
    assert plain.startswith('#panic("x") #pagebreak() $a_b$ *b*')


def test_class_names_with_dollars_and_dashes():
    x, y = (torch.rand(60, 1, 8, 8) * 255).byte(), torch.arange(3).repeat(20)
    dls = dls_for((x, y), bs=16)
    learn = learner_for('mlp', dls, widths=(4,))
    with learn.quiet(): learn.fit(1)
    es = read_entries(learn)
    evaluate_entries(es, Printable())
    es[0].ev.vocab = ['$a_b', 'c$^d$', '_' + 'e'*50]
    data = Contents(es, Texts('t', [], '', '', ''), Wording()).data(Layout())
    assert 'svg' in data['matrix'] and data['by_class']['rows'][0][0] == '$a_b'


FONTS = typst.Fonts(include_system_fonts=False, font_paths=[str(font_folder)])

def drawn(c):
    page = b'#set page(width: 40pt, height: 40pt)\n#set text(font: ("Libertinus Serif", "DejaVu Sans"), size: 20pt)\n#sys.inputs.c'
    return typst.compile(page, format='png', ppi=72, ignore_system_fonts=True, sys_inputs=dict(c=c), font_paths=FONTS)


def test_no_glyph_is_missing():
    "Every letter of both languages looks like something else than a missing one"
    letters = set(''.join(v for pair in phrases.values() for v in pair)) | set('áàâãçéêíóôõúüÁÀÂÃÇÉÊÍÓÔÕÚÜºª“”–—…→≤×²°') - {' '}
    odd = drawn('\ue123'), drawn(' ')
    assert not [c for c in letters if not c.isspace() and drawn(c) in odd]


def test_what_no_font_has(learn, plain):
    res = report({'模 model': learn}, 'cjk.pdf', title='日 ção 🦊 é', observations='\x00\x1b[31m ok')
    assert res.left_out == ['no font has 日 模 🦊'] and '□ ção □ é' == json.loads(res.made.data)['title']


def test_what_cannot_be_seen():
    "Spaces of another width are spaces, joiners nothing, and a code that means nothing is a box that is counted"
    printable = Printable()
    assert printable('a\u2003b\u202fc\u3000d\xa0e\u200df') == 'a b c d\xa0ef' and not printable.lacking
    assert printable('\ue000\uffff') == '□□' and len(printable.lacking) == 2


def test_a_title_of_spaces_is_none(learn, plain):
    assert json.loads(report({'one': learn}, 's.pdf', title=' \n ').made.data)['title'] == Wording()('title', 'one')


@pytest.mark.parametrize('text', ['x'*500, '/a/b'*200, 'a_b-c.d,e'*40, 'plain words stay as they are'])
def test_breakable(text):
    res = breakable(text)
    assert res.replace('\u200b', '') == text and max(map(len, re.split(r'[\u200b ]', res))) <= 30
    assert ('\u200b' in res) == (' ' not in text)


def test_paragraphs():
    assert paragraphs('') == paragraphs(' \n\n ') == []
    assert paragraphs('a\nb\r\n\r\n- c\n- d\n\n- e\nf') == ['a b', ['c', 'd'], '- e f']
    assert [first_words('a b\n\nc', n) for n in range(5)] == ['', 'a', 'a b', 'a b\n\nc', 'a b\n\nc']


def test_portuguese_numbers_everywhere(plain):
    data = json.loads(report(['mlp-digits-1', 'mlp-digits-2'], 'pt.pdf', lang='pt').made.data)
    rows = data['results']['rows'] + data['by_class']['rows']
    assert all(re.fullmatch(r'[−\d.]*(,\d+)?|–', c) for row in rows for c in row[1:])
    assert ['Taxa de aprendizado', '0,003'] in data['setup'] and data['results']['head'][1] == 'Acurácia'


# ---- contents ----------------------------------------------------------------------------------

def test_numbers_are_those_of_the_evaluation(plain):
    es = read_entries(['mlp-digits-1', 'mlp-digits-2'])
    evaluate_entries(es, Printable())
    data = json.loads(report(['mlp-digits-1', 'mlp-digits-2'], 'c.pdf').made.data)
    table = data['results']
    assert [row[1] for row in table['rows']] == [f'{o.ev.accuracy:.3f}' for o in es]
    assert table['named'] and table['best'] == int(np.argmax([o.ev.accuracy for o in es])) and 'test part' in table['caption']
    assert data['differs']['head'][1:] == ['Parameters', 'Options'] and data['differs']['rows'][0][2] == 'n_per_class = 60; widths = 8'


def test_stock_learner_and_run_side_by_side(learn, plain):
    res = report({'stock': stock(learn.dls), 'ours': learn}, 's.pdf')
    data = json.loads(res.made.data)
    assert [o[0] for o in data['results']['rows']] == ['stock', 'ours'] and data['results']['rows'][0][-1] == '–'


def test_report_leaves_learners_as_they_are(learn):
    before, rows = {k: v.clone() for k,v in learn.model.state_dict().items()}, len(learn.history)
    report(learn, 'l.pdf')
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and len(learn.history) == rows


def test_no_history(learn):
    other = stock(learn.dls)
    other.recorder.values = []
    res = report(other, 'h.pdf')
    assert res.left_out == ['no curves: there is no history'] and res.pages <= 2


def test_validation_part_is_said(plain):
    rng = np.random.default_rng(0)
    learn = learner_for('mlp', dls_for((rng.integers(0, 255, (80, 8, 8), dtype=np.uint8), np.arange(80) % 2), bs=16), widths=(4,))
    with learn.quiet(): learn.fit(1)
    data = json.loads(report(learn, 'v.pdf').made.data)
    assert 'validation part' in data['results']['caption'] and 'no test part' in data['results']['notes']


def test_none_is_best_on_different_data(learn, plain):
    other = learner_for('mlp', data='digits', classes=['1', '2'], widths=(4,))
    with other.quiet(): other.fit(1)
    data = json.loads(report([learn, other], 'd.pdf').made.data)
    assert data['results']['best'] is None and 'different data' in data['results']['notes']


def test_numbers_instead_of_classes(learn):
    house = learner_for('mlp', data='boston_housing', widths=(4,), seed=1)
    with house.quiet(): house.fit(1)
    data = json.loads(report(house, 'b.pdf').made.data)
    assert data['results']['head'][:3] == ['RMSE', 'MAE', 'R²'] and data['matrix'] is None and data['examples']['rows']
    assert data['results']['named'] is data['examples']['named'] is False # The first column is of numbers too, so it goes to the right
    with pytest.raises(CourseError, match='mix classification and regression'): report([house, learn], 'b.pdf')


def test_no_figure_stays_open(learn):
    import matplotlib.pyplot as plt
    house = learner_for('mlp', data='boston_housing', widths=(4,), seed=1)
    with house.quiet(): house.fit(1)
    before = plt.get_fignums()
    for o in (learn, house): report(o, 'f.pdf')
    assert plt.get_fignums() == before


def test_options_name_no_folder():
    s = Settings('squeezenet1_1', 'digits', model_args=dict(weights='/secret/place/squeezenet1_1.pth'), data_args=dict(size=32),
        learner_args=dict(cache='/secret/c.safetensors'))
    assert options_text(s, Wording()) == 'size = 32; weights = squeezenet1_1.pth; cache = c.safetensors'


# ---- bad input ---------------------------------------------------------------------------------

@pytest.mark.parametrize('given', [[], {}, ()])
def test_nothing_in_it(given):
    with pytest.raises(CourseError, match='a report with nothing in it'): report(given, 'x.pdf')
    assert not Path('x.pdf').exists()


@pytest.mark.parametrize('kwargs, says', [
    (dict(lang='fr'), "unknown language 'fr'"), (dict(path='x.txt'), 'a name that ends in .pdf'),
    (dict(path='x'), 'a name that ends in .pdf'),
    (dict(title='t'*201), 'the title may have at most 200 characters; 201 were given'),
    (dict(abstract='a ' * 251), 'at most 250 words; 251'),
    (dict(authors=['a']*13), 'at most 12 authors'), (dict(authors='a'*81), 'at most 80 characters'),
    (dict(observations=3), 'observations must be text, got 3'),
    (dict(authors=3), 'authors must be a name, or a list of names, got 3'), (dict(date='d'*81), 'the date may have at most 80 characters'),
    (dict(authors=[1]), 'author 1 must be a text'), (dict(date=3), 'date must be a text or a datetime.date'),
    (dict(learners='mlp-digit-1'), "Did you mean 'mlp-digits-1'"),
    (dict(learners=3), 'got a int'), (dict(learners=[None]), 'got a NoneType'), (dict(learners='.'), 'is not a run folder')])
def test_refused(kwargs, says):
    with pytest.raises(CourseError, match=re.escape(says)): report(**{'learners': 'mlp-digits-1', 'path': 'x.pdf', **kwargs})
    assert not Path('x.pdf').exists() and not leftovers()


def test_not_trained():
    with pytest.raises(CourseError, match='MLP has not been trained|has not been trained'):
        report(learner_for('mlp', data='digits'), 'x.pdf')
    start(Settings('mlp', 'digits'), 'untrained')
    with pytest.raises(CourseError, match='untrained has no weights yet'): report('untrained', 'x.pdf')


def test_typst_missing(monkeypatch, learn):
    monkeypatch.setitem(sys.modules, 'typst', None)
    with pytest.raises(CourseError, match=re.escape("pip install 'dlcourse[report]'")): report(learn, 'x.pdf')


def test_nothing_half_written(monkeypatch, learn, plain):
    def fails(self): raise KeyboardInterrupt
    monkeypatch.setattr(Typeset, 'pdf', fails)
    Path('old.pdf').write_text('old')
    with pytest.raises(KeyboardInterrupt): report(learn, 'old.pdf')
    assert Path('old.pdf').read_text() == 'old' and not leftovers()


def test_place_that_cannot_be_written(learn, plain):
    Path('file').write_text('')
    with pytest.raises(CourseError, match='cannot write'): report(learn, 'file/x.pdf')
    Path('folder.pdf').mkdir()
    with pytest.raises(CourseError, match='cannot write'): report(learn, 'folder.pdf')
    assert not leftovers()


# ---- the command -------------------------------------------------------------------------------

def test_command(capsys):
    Path('notes.txt').write_text('Só isto.\n\n- ção', encoding='utf-8')
    code = main(['report', 'mlp-digits-1', 'runs/mlp-digits-2', '-o', 'out/both.pdf', '--title', 'Dígitos', '--author', 'Ana', '--author',
        'João', '--observations', 'notes.txt', '--lang', 'pt'])
    out = capsys.readouterr()
    assert (code, out.err) == (0, '') and out.out == 'out/both.pdf: 2 pages\n' and pdf_pages('out/both.pdf') == 2


@pytest.mark.parametrize('line, says', [
    ('mlp-digit-1', "Did you mean 'mlp-digits-1'"), ('mlp-digits-1 --lang de', "unknown language 'de'"),
    ('mlp-digits-1 --observations nots.txt', 'there is no file nots.txt for --observations'),
    ('mlp-digits-1 --abstract latin.txt', 'cannot read latin.txt as text'), ('mlp-digits-1 -o x.doc', 'a name that ends in .pdf'),
    ('mlp-digits-1 --device gpu9', "unknown device 'gpu9'")])
def test_command_refuses(line, says, capsys):
    Path('latin.txt').write_bytes('ção'.encode('latin-1'))
    code = main(['report', *line.split()])
    err = capsys.readouterr().err
    assert code == 2 and says in err and err.count('\n') == 1 and not Path('report.pdf').exists()


@pytest.mark.parametrize('abstract', ['- one\n- two', '- one\n- two\n\nand more', 'text\n\n- one'])
def test_an_abstract_that_is_a_list(abstract, plain):
    assert report('mlp-digits-1', 'listed.pdf', abstract=abstract).pages <= 2
